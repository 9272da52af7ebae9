"""Gradient norms in and out of distribution, beside scores that were made to tell the two.

Do norms behave predictably?

Protocol, fixed before the first run. A cell is a problem, a network and a seed: 300, 301, ..., which
of the other studies `isounc spectrum` alone uses. Problems: digits 0 to 4, wine and breast_cancer
(standardised features), and the synthetic problems of `isounc scaling`. A seed of a synthetic problem
is new data, one of digits or of a table a new split of the same rows, so that intervals there are about
the split and the training, not about other rows. Networks are classifiers of C >= 2 logits trained
without a prior (AdamW): an MLP (one hidden layer, tanh, NTK parameterisation, width 32), a CNN on
digits, and logistic regression on linear and clusters3. Every shift has its kind beforehand:

    near   classes (digits 5 to 9), rotated (by 90 degrees), shifted (every feature by one sd, random
           signs), permuted (every feature over the rows by itself)
    far    shuffled (pixels in another order), noise (uniform pixels), far (the region of that name)

Scores (equations, sources and what was fixed are in `isounc.studies.shift.scores` and on the page)
have one sign, that of their source: higher means "out" of distribution or "in" it. It is never turned
round; an AUROC below one half says that the stated sign is wrong. The isotropic norms are to be larger
out of distribution, GradNorm (Huang et al. 2021) smaller. Numbers of the rivals are those of their papers
or rules: ODIN T = 1000 and step .0014 of the range, ViM D = F/2, kNN k = 10, dropout .5 with 50 passes,
five networks. Nothing is tuned on shifted inputs.

AUROC, AUPR (out of distribution positive) and the FPR at 95% TPR compare each shift with `test`, new
inputs of the training distribution. A threshold at 5% is the k-th smallest of the n scores of
`validation`, further such inputs, k = ceil(.95 (n + 1)); on `test` its rate of alarms has the exact mean
(n + 1 - k)/(n + 1) for any score without ties. The same from the training inputs, which a network has
seen, is the control. The MCMC variance, summed over the classes, of an MLP of the same shape is the
ceiling where it passes the gate of `isounc scaling` in both regions and `validation`, and no number
where it fails.

Hypotheses, for every problem, network and shift, and over the problems by kind of shift:

    detects                        AUROC - 1/2 > 0, of every score
    isotropic wins                 AUROC(isotropic, predicted class) - AUROC(other score) > 0
    near the ceiling               AUROC(isotropic) - AUROC(MCMC variance) > -.05
    larger out                     log2(median over the shift / median over test) > 0, of the norms
    features help                  AUROC(product) - AUROC(its output factor) > 0, of GradNorm and of
                                   the isotropic norm of the read-out
    keeps its rate                 false alarms - exact expectation < .02, of every score
    keeps its rate from training   the same, threshold from the training inputs

*Confirmed* where the 95% interval over seeds lies on the side of the bound, *refuted* where it lies on
the other, else *undecided*: Student's t over the seeds of a problem, and over the problems the mean of
their means (Welch). None is corrected for the number of them. `all` among the networks is the mean of MLP
and CNN; logistic regression stands by itself.

To detect shifts is not what the isotropic estimate is for, as its authors say: a linear classifier is
sure far from its boundary, and as p (1 - p) falls there, so must ||grad p||^2. Logistic regression is there
to show it: `larger out` is expected to be refuted.

The run folder holds results.csv (a row for each cell, score and shift, and `test` for false alarms),
summary.csv, verdicts.csv and the figures. The same command resumes a run that was killed.

    isounc shift                       digits, wine, moons and linear, five seeds
    isounc shift --preset standard     ten problems
    isounc shift --problems digits --networks cnn --shifts classes noise --out runs/mine
"""

from __future__ import annotations

from isounc.runs.folder import RunFolder
from isounc.runs.study import Report, Study
from isounc.studies.shift.cell import evaluate
from isounc.studies.shift.settings import PRESETS, Settings, check, plan


def _report(folder: RunFolder, settings: Settings) -> Report:
    """Import what draws and tabulates only here: cells can begin before."""
    from isounc.studies.shift.report import make_report

    return make_report(folder, settings)


STUDY = Study(
    name="shift",
    description=__doc__ or "",
    presets=PRESETS,
    unit="cells",
    check=check,
    plan=plan,
    evaluate=evaluate,
    report=_report,
    executor="processes",
    growing=("problems", "networks"),
)
