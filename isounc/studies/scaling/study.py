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

Whether estimates "improve with model size" depends on what a paper may leave open: where one looks,
at which point, what size is, the prior, the data. --protocol runs named readings of the claim, each
fixed beforehand, and ends with one table of verdicts: change per doubling of the size, and
correlations, of the isotropic estimate, the null p(1-p) and the logit-scaled estimate.

    near, wide        width of one hidden layer; at test locations, on a grid of 1.5 x the range
    depth, params     hidden layers of equal width; number of parameters
    thesis            one chain's mean, n = 1000, prior sd 10, standard; a wide grid, norm against sd
    early             networks whose training a validation loss stopped
    chain_mean        the mean of the draws of one chain, otherwise as near
    examples, prior, parameterisation     near, for several n, prior sds or scalings

    isounc scaling --protocol all                            minutes to an hour, by the machine
    isounc scaling --protocol near thesis --problems xor     lists given beside hold for each
    isounc scaling --protocol all --dry-run                  the cells, and those known to be out
                                                             of reach, which are skipped
"""

from __future__ import annotations

from isounc.runs.folder import RunFolder
from isounc.runs.study import Report, Study
from isounc.studies.scaling.cell import evaluate
from isounc.studies.scaling.cost import plan
from isounc.studies.scaling.protocols import check, defaults, skipped_lines
from isounc.studies.scaling.settings import LISTS, PRESETS, Settings


def _report(folder: RunFolder, settings: Settings) -> Report:
    """Import what draws and tabulates only here: cells can begin before."""
    if settings.protocol:
        from isounc.studies.scaling.protocol_report import make_report
    else:
        from isounc.studies.scaling.report import make_report

    return make_report(folder, settings)


def prepare(settings: Settings, folder: RunFolder) -> None:
    """Refuse a folder whose cells lack, or have, the points that protocols bring.

    Their names are the same: cells without these points would be taken for those of a protocol.

    Raises
    ------
    ValueError
        If the run was begun without protocols, and there are some now, or the other way round.
    """
    there = next(folder.records(with_arrays=False), None)
    if there is None:
        return
    had = "stopped" in there.meta.get("points", {})
    if had != bool(settings.protocol):
        ways = ("without --protocol", "with --protocol")
        raise ValueError(
            f"protocol must be given to a run from its start or never: the cells of {folder.path} "
            f"were computed {ways[had]}, got a command {ways[not had]}; choose another --out"
        )


STUDY = Study(
    name="scaling",
    description=__doc__ or "",
    presets=PRESETS,
    unit="cells",
    check=check,
    plan=plan,
    evaluate=evaluate,
    report=_report,
    prepare=prepare,
    # A single worker is a process of its own as well, so that numbers do not depend on how many
    # there are.
    executor="processes",
    # How many seeds are computed together is a matter of rounding, as the executor is.
    growing=("protocol", "try_unreachable", "seeds_per_batch", *LISTS),
    defaults=defaults,
    remarks=skipped_lines,
)
