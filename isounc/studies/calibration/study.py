"""Calibration of the reference sampler by two tests that need no other sampler to compare with.

Simulation-based calibration draws parameters from the prior and data from them, samples the
posterior of each data set and ranks the parameters among its draws: a correct sampler gives uniform
ranks, for predictions at fixed locations, for the log likelihood of the data and for the log prior.
Geweke's joint-distribution test alternates the sampler's transitions with redraws of the data and
compares moments with direct draws. Every sampler is checked, and the first of them in all
coordinates, on inputs about zero and far from it. Both tests repeat on the first case with planted
faults (controls), which they have to find. The verdict of each quantity rests on its p-value,
corrected for their number (Holm). The run folder holds results.csv (SBC), geweke.csv, gates.csv
(every reference that failed its gate; all replications are ranked) and figures. The same command
resumes a run that was killed.

    isounc calibration                              minutes: few replications of linear models
    isounc calibration --preset paper               all cases and coordinates: 40 minutes
    isounc calibration --samplers hmc nuts --cases logistic binary4 --out runs/mine
"""

from __future__ import annotations

from isounc.runs.study import Study
from isounc.studies.calibration.cell import evaluate
from isounc.studies.calibration.report import make_report
from isounc.studies.calibration.settings import PRESETS, check, plan

STUDY = Study(
    name="calibration",
    description=__doc__ or "",
    presets=PRESETS,
    unit="batches",
    check=check,
    plan=plan,
    evaluate=evaluate,
    report=make_report,
)
