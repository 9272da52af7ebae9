"""Studies: one folder each, all of the same few files (settings, cell, tables, figures, report).

The module `study` of each folder has its `STUDY`, which `load` returns.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from isounc.checks import check_choice

if TYPE_CHECKING:
    from isounc.runs.study import Study

STUDIES = {
    "scaling": "How well do the estimates track MCMC variance as the network grows?",
    "passes": "What do the estimates gain from K networks in place of one, and at what cost?",
    "confirmation": "Does the logit-scaled estimate hold on what was not used to find it?",
    "covariance": "What does a covariance of the parameters from other data than the training data do?",
    "spectrum": "Is the posterior isotropic where it matters? Curvature, draws and a correction.",
    "shift": "Do gradient norms tell inputs of another distribution, beside scores made for it?",
    "routing": "Which score of a small network says when a large one should answer?",
    "world": "Language models in a world whose truth is known: which uncertainty tells wrong answers?",
    "guard": "Does a guard keep its promise? Thresholds judged by exact risks, and what they accept.",
    "claims": "The paper's claims, settled from the tables of all studies.",
    "agreement": "Does the sampler find the same posteriors as NumPyro's NUTS?",
    "calibration": "Is the sampler right? Simulation-based calibration and Geweke's test.",
    "bank": "Make, check and install the bank of reference posteriors.",
    "qa": "Which uncertainty of a language model tells its wrong answers?",
}
"""Names of the studies, with a line for `isounc --help`."""


def load(name: str) -> Study:
    """A study by its name; importing it takes a second or two.

    Raises
    ------
    ValueError
        For an unknown name.
    """
    check_choice("study", name, STUDIES)
    return importlib.import_module(f"isounc.studies.{name}.study").STUDY
