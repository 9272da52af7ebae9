"""The bank of reference posteriors.

The study samples the posterior of every problem, width and parameterisation until its convergence
gate passes or the draws run out, and adds the exact references: logistic regression by quadrature
and linear regression in closed form. A posterior that fails its gate is kept and says so. The same
command resumes a run that was killed.

    isounc bank                              quick: two problems, one width, and the exact ones
    isounc bank --preset paper               eight problems, three widths, two parameterisations
    isounc references install runs/bank-paper          copy a run into the bank
    isounc references check xor-ntk-w8-v1              make it again with another key, and compare
"""

from __future__ import annotations

from isounc.runs.study import Study
from isounc.studies.bank.cell import evaluate
from isounc.studies.bank.report import make_report
from isounc.studies.bank.settings import PRESETS, check, plan

STUDY = Study(
    name="bank",
    description=__doc__ or "",
    presets=PRESETS,
    unit="references",
    check=check,
    plan=plan,
    evaluate=evaluate,
    report=make_report,
)
