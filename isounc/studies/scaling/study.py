"""Scaling curves show how well estimates of uncertainty track MCMC variance as the model grows.

The study trains MLPs of increasing width on synthetic problems, samples their posteriors with HMC,
computes the isotropic estimate, its rivals and the null baselines that a forward pass gives for
nothing, and correlates each with the posterior predictive variance, cell by cell, with intervals
over seeds and what it says beyond p(1-p). The run folder holds records, tables, figures and
report.html. The same command resumes a run that was killed.

    isounc scaling                        three problems, five seeds: a minute or two
    isounc scaling --preset standard      all problems, widths to 256, three seeds
    isounc scaling --preset paper         the paper's problems, widths to 512, ten seeds
    isounc scaling --problems xor moons --widths 8 64 --num-seeds 5 --out runs/mine
"""

from __future__ import annotations

from isounc.runs.folder import RunFolder
from isounc.runs.study import Report, Study
from isounc.studies.scaling.cell import evaluate
from isounc.studies.scaling.cost import plan
from isounc.studies.scaling.settings import PRESETS, Settings, check


def _report(folder: RunFolder, settings: Settings) -> Report:
    """Import what draws and tabulates only here: cells can begin before."""
    from isounc.studies.scaling.report import make_report

    return make_report(folder, settings)


STUDY = Study(
    name="scaling",
    description=__doc__ or "",
    presets=PRESETS,
    unit="cells",
    check=check,
    plan=plan,
    evaluate=evaluate,
    report=_report,
    # A single worker is a process of its own as well, so that numbers do not depend on how many
    # there are.
    executor="processes",
)
