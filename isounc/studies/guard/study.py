"""How often thresholds with a guarantee break their promise, and what they cost in answers.

Protocol, fixed before the first run. A guard (`isounc.guard`) accepts answers up to a threshold of a
score, and promises that, with probability .9 over calibration samples, at most a share alpha of the
accepted answers is wrong. Here scores and errors are drawn from distributions in which the share of
wrong answers is known at every threshold (`isounc.studies.guard.scenarios`), so that whether a
threshold breaks the promise is decided exactly, without a test set. A cell is a scenario, a size n of
the calibration sample (50 to 5000) and a target alpha (.01, .05, .1, .2), with 1000 calibration
samples, which the targets share. Scenarios, with 30% wrong answers and an AUROC of .8 unless said:

    auroc_50 ... auroc_95   scores from no signal to nearly perfect
    no_slack                no signal and a share of wrong answers of 1.001 alpha: whatever is accepted
                            breaks the promise by a hair, the hardest case for it
    few_errors, many_errors 2% and 50% wrong answers
    ties, discrete          a score rounded to halves, and one of five values
    confident_errors        3% of the wrong answers are among the most certain: risk falls, then rises
    more_errors, worse_score  shifts: calibrated at 30% and judged at 50% wrong answers, and at an AUROC
                            of .8 and .6. Nothing is promised there; shown, and never counted

Thresholds are the guard's own (100 quantiles of the calibration scores), by the methods
fixed_sequence (the default), holm and bonferroni. In three scenarios they are also taken from an
independent sample of scores (`given`), as the guarantee asks for where the risk does not rise with
the score. Beside them stand the plug-in threshold that people pick by hand (the largest whose share of
wrong answers on the sample is at most alpha) and the best possible (the largest whose true share is).

For each cell and method: the rate of violations with its exact 95% interval (Clopper-Pearson), the
share of samples without a threshold (no violation: nothing is accepted), the mean true coverage with
its standard error, also as a share of the best possible, the mean true risk of those with a
threshold, and by how much a violation exceeds the target. Methods are compared sample by sample.

The promise is *confirmed* in a cell where the upper end of the interval is below 1 - confidence,
*refuted* where the lower end is above, else *undecided*. Cells in which no threshold can exceed the
target are not counted: nothing can be broken there. At exactly the nominal rate 2.5% of the cells are
refuted by chance; so a method is refuted only where the smallest exact binomial p-value, by Holm over all
cells and methods that count, is below .05. It is confirmed where every cell is, else undecided.

The samples of a cell are judged together, by ranks and p-values of `isounc.guard.control`; the first
of each goes through `Guard.fit` as well, and the report says whether all thresholds are the same.

The run folder holds results.csv (a row for each cell and method), summary.csv, verdicts.csv and the
figures. The same command resumes a run that was killed. It needs `pip install isounc[guard]`.

    isounc guard                       a minute: three sizes, one target, 200 samples a cell
    isounc guard --preset standard     seven sizes, four targets, 1000 samples
    isounc guard --scenarios discrete ties --targets 0.15 --confidence 0.95 --out runs/mine

A guard for scores of your own is fitted, checked and reported on by other commands:

    isounc guard fit --help            likewise isounc guard check and isounc guard report
"""

from __future__ import annotations

from isounc.guard import control
from isounc.runs.folder import RunFolder
from isounc.runs.study import Report, Study
from isounc.studies.guard.cell import evaluate
from isounc.studies.guard.settings import PRESETS, Settings, check, plan


def _report(folder: RunFolder, settings: Settings) -> Report:
    """Import what draws and tabulates only here: cells can begin before."""
    from isounc.studies.guard.report import make_report

    return make_report(folder, settings)


def _prepare(settings: Settings, folder: RunFolder) -> None:
    """Say before anything is computed that a package is missing."""
    control.mapie("risk_control")


STUDY = Study(
    name="guard",
    description=__doc__ or "",
    presets=PRESETS,
    unit="cells",
    check=check,
    plan=plan,
    evaluate=evaluate,
    report=_report,
    prepare=_prepare,
    separable=True,
    growing=("scenarios", "sample_sizes", "targets"),
)
