"""The hypotheses, as bounds on a number of each seed."""

from __future__ import annotations

from typing import NamedTuple

from isounc.studies.shift.cell import IN_DISTRIBUTION
from isounc.studies.shift.settings import BASE

CEILING = "mcmc"
"""The score that the base is held against as the ceiling."""
MARGIN = 0.05
"""AUROC below the ceiling up to which a score is near it."""
EXCESS = 0.02
"""Rate of false alarms beyond the exact expectation up to which a threshold keeps it."""
FACTORS = {"gradnorm": "gradnorm_output", "head": "head_output"}
"""Products of a feature and an output factor, with the latter."""
NORMS = ("isotropic", "isotropic_trace", "log_norm", "head", "gradnorm")
"""Gradient norms, of which it is asked whether they are larger out of distribution."""
EVERY = "every score"


class Hypothesis(NamedTuple):
    """A claim that a number lies above a bound, or below it."""

    claim: str
    """The claim in words."""
    column: str
    """The number of a row."""
    bound: float
    """Bound on the number."""
    scores: tuple[str, ...]
    """Scores that it is about; `EVERY` alone for all."""
    rival: str = ""
    """Score whose number is subtracted; `EVERY` for each other, "factor" for that of `FACTORS`."""
    below: bool = False
    """Whether the number lies below the bound."""
    inside: bool = False
    """Whether it is about new inputs of the same distribution, not about a shift."""


HYPOTHESES = {
    "detects": Hypothesis(
        "the score, with the sign that its source gives it, ranks shifted inputs better than chance",
        "auroc", 0.5, (EVERY,),
    ),
    "isotropic wins": Hypothesis(
        "‖∇p‖² of the predicted class ranks shifted inputs better than this score", "auroc", 0.0,
        (BASE,), EVERY,
    ),
    "near the ceiling": Hypothesis(
        "‖∇p‖² ranks shifted inputs at most .05 of AUROC worse than the MCMC variance does",
        "auroc", -MARGIN, (BASE,), CEILING,
    ),
    "larger out": Hypothesis(
        "the median norm is larger out of distribution than in it (log2 of the ratio)",
        "log2_ratio", 0.0, NORMS,
    ),
    "features help": Hypothesis(
        "the product of the feature and the output factor ranks shifted inputs better than the "
        "output factor alone", "auroc", 0.0, tuple(FACTORS), "factor",
    ),
    "keeps its rate": Hypothesis(
        "a threshold that new inputs of the distribution set has at most .02 more false alarms on "
        "further ones than its exact expectation", "excess", EXCESS, (EVERY,), below=True,
        inside=True,
    ),
    "keeps its rate from training": Hypothesis(
        "a threshold that the training inputs set does so", "excess_train", EXCESS, (EVERY,),
        below=True, inside=True,
    ),
}  # fmt: skip
"""Hypotheses by name; the study's docstring states them."""


def rivals(hypothesis: Hypothesis, score: str, scores: tuple[str, ...]) -> tuple[str, ...]:
    """The scores that a hypothesis holds a score against; the empty name stands for none."""
    if hypothesis.rival == EVERY:
        return tuple(name for name in scores if name != score)
    name = FACTORS[score] if hypothesis.rival == "factor" else hypothesis.rival
    return (name,) if not name or name in scores else ()


def applies(hypothesis: Hypothesis, shift: str) -> bool:
    """Whether a hypothesis is about a shift, a kind of shifts or all, or new inputs."""
    return hypothesis.inside == (shift == IN_DISTRIBUTION)
