"""Thirteen claims of the paper and of the article about it, settled from the tables of all studies.

Nothing is sampled here. The command reads the tables of run folders, by default the committed ones
below results/, and gives each claim a verdict: supported, contradicted, supported under conditions
(which it names), undecided, or not run (with the command to run).

     1  first order is enough                      7  other data distort a covariance, isotropy
     2  isotropy costs little                         avoids it
     3  strong correspondence on eight problems    8  spectra support isotropy
     4  it improves with model size                9  norms out of distribution
     5  it says more than p(1-p)                  10  cost
     6  p(1-p) tracks E[p(1-p)]; the sum          11  language models: conflict and recall
        counts Var p twice                        12  a different signal than self-assessment
                                                 13  routing: less cost, no less reliability

What is measured, the bound on it with its reason, and the rule that makes a verdict of intervals over
seeds are fixed in isounc/studies/claims, measures.py and rules.py; what the paper says, in our words, and the protocol
of each claim in statements.py beside it. In short: a claim has conditions (kind of theta*, region,
setting), in each of which the unit of replication is the seed. It is supported if every condition is,
at a level that simulation with few and skewed seeds puts below 5% of false verdicts; conditions are
named with a correction for their number (Holm). Cells that failed their gate never count, and their
number is said. Where several runs have a problem in a condition, the one with the most widths counts,
then the one with the most seeds.

The run folder holds results.csv (a row for each problem in each condition), summary.csv (conditions),
verdicts.csv (claims), notes.csv (what a run says nothing about), a figure for each claim, and
report.html and report.md, each in one file. Evidence is gathered anew each time.

    isounc claims                                        from a clone: the committed tables
    isounc claims --runs runs/mine runs/covariance-quick from your own run folders
    isounc claims --claims 3 5 --out runs/two            two of them
    isounc claims --pages README.md                      also writes the table into a Markdown file
    isounc publish runs/claims-quick results/claims      what is committed
"""

from __future__ import annotations

from isounc.runs.executors import Batch
from isounc.runs.study import Study
from isounc.studies.claims.report import make_report, prepare
from isounc.studies.claims.settings import VIEWS, Settings, check, plan, remarks


def _nothing(batch: Batch, settings: Settings, say: object) -> list:
    """There are no cells."""
    return []


STUDY = Study(
    name="claims",
    description=__doc__ or "",
    presets={"quick": Settings()},
    unit="claims",
    check=check,
    plan=plan,
    evaluate=_nothing,
    report=make_report,
    prepare=prepare,
    views=VIEWS,
    remarks=remarks,
)
