"""Agreement of isounc's sampler with NumPyro's NUTS, within Monte Carlo error.

Protocol, fixed before the run. Every cell (problem x width) is an MLP of one hidden layer in NTK
parameterisation, prior sd 2, n = 100, float32. NumPyro samples it as a NumPyro model of its own
(isounc/studies/agreement/sides.py writes priors, forward pass, likelihood and link again), so that
the study compares densities and predictions as well as samplers. Both run four chains until the
convergence gate of isounc passes and the variance is known to 3% (NumPyro 4%, since its draws cost
more), or their draws run out; anything that is not in the settings is at its default. The study
compares predictions at up to 64 locations near the data (test), on a grid and far away: mean and
variance at each (z-scores and bounds of `isounc.references.compare`), and in each region the mean
prediction and the summed variance (`level`, `var_sum`), with the Monte Carlo errors of both.

A cell where either side fails its gate is not compared: it is shown with its z-scores and never
counted as agreement. The verdict over the compared cells rests on the z-scores of level and
var_sum, at a level of 1% in all: half of it for single z-scores, half for sums of their squares
over cells (isounc/studies/agreement/tables.py). Controls give isounc a wrong prior, which the
comparison has to find. The run folder holds results.csv (a row for each cell), regions.csv,
tests.csv, summary.csv and the figure. The same command resumes a run that was killed.

    isounc agreement                                minutes: two problems, widths 2 and 8
    isounc agreement --preset paper                 eight problems, widths 2 to 128
    isounc agreement --problems moons --widths 32 --controls --out runs/mine
"""

from __future__ import annotations

from isounc.runs.study import Study
from isounc.studies.agreement.cell import evaluate
from isounc.studies.agreement.report import make_report
from isounc.studies.agreement.settings import PRESETS, check, plan

STUDY = Study(
    name="agreement",
    description=__doc__ or "",
    presets=PRESETS,
    unit="posteriors",
    check=check,
    plan=plan,
    evaluate=evaluate,
    report=make_report,
    # Records can be judged again at another level.
    views=("level",),
)
