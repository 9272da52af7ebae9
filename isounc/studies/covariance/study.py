"""A covariance of the parameters from other data than the training data, and what it does.

Protocol, fixed before the first run. The delta method says Var[p] = g^T Sigma g with g the gradient
of the prediction p at theta*. Its Laplace covariance

    Sigma = (GGN + lambda diag(1 / prior_sd^2))^-1,    lambda = 1: the posterior's own prior

needs inputs for the GGN (its labels do not enter). Where the training data are not at hand, proxy
inputs take their place. Does Sigma then still order inputs as the posterior does? Every cell
(problem, width, seed) is an MLP of one hidden layer, tanh, NTK parameterisation, prior sd 2, n = 100,
whose posterior is sampled as in `isounc scaling` and has to pass the same gate. Seeds 200, 201, ...
are used by nothing else. theta* is the MAP, and a trained network (AdamW without a prior). The
reference is the MCMC variance of p; g^T Sigma g and it are summed over classes.

Proxies have n inputs each (where a real set has fewer rows left for `fresh`, some count twice).
Moments and ranges are those of the training inputs:

    train       the training inputs                  fresh      new ones of the same distribution
    shifted_s   moved by s sd along the first input  rotated    by 45 degrees, first two inputs
    scaled      by 2 about the mean                  tight      Gaussian about the mean, .1 sd
    box         uniform, 1.5 times the range         other      the inputs of another problem
    permuted    every feature permuted by itself (real sets alone)

`others` is the mean over all of these but train and fresh. In one dimension rotated is a reflection.

Forms of Sigma: full, low_rank (the 10 strongest directions of the GGN; the rest keeps the prior),
block_diagonal (by layer), kfac (Kronecker blocks), last_layer, diagonal, and isotropic (with the
trace of full), which orders inputs by ||g||^2 whatever the proxy. lambda is 1, for the full form also
.01, .1, 10 and 100. All are exact, in double precision, through the n C rows of a factor of the GGN.

Hypotheses, at each point, for each proxy and for `others`, in each region (test, grid, far), for each
width and problem and over the problems:

    distorts                  r(full, proxy) - r(full, train) < 0
    isotropic wins            r(isotropic) - r(full, proxy) > 0
    isotropic costs little    r(isotropic) - r(full, train) > -.05
    diagonal suffers little   r(diagonal, proxy) - r(diagonal, train) > -.05
    structured                slope(full, proxy) - slope(isotropic) > 0, of log2(g^T Sigma g / Var) on
                              the distance to the nearest proxy input, beside that to the nearest
                              training input, over the locations of all regions together
    same place                alignment over seeds of log2(full, proxy / full, train) on the grid > 0:
                              the mean correlation of the fields of two seeds, with its jackknife

r is Pearson's with the MCMC variance; Spearman's is tabulated beside it. A hypothesis is *confirmed*
where the 95% interval over seeds lies on its side of the bound, *refuted* where it lies on the other,
else *undecided*: Student's t over the seeds of a problem, and over the problems the mean of their
means (Welch). None is corrected for the number of them. Where a reference fails its gate (in one
region, or as a whole), or a MAP or network its check, the rows are shown as failing and are in no
number. Fresh data are the control of "distorts".

Beside the verdicts: the level (sum of the estimates over that of the variances), the slopes for every
form, and how the k = 5 eigenvectors of Sigma of largest and of smallest variance lie to those of the
covariance of the draws within their chains, in prior coordinates. The latter need five draws for each
parameter. A Sigma with fewer inputs than parameters has no largest eigenvectors, as all that the GGN
leaves keeps the prior's variance; its stiff directions exist, and `log2_stiff` says for any width how
much larger the posterior's variance along them is than Sigma's.

KFAC comes from no library: laplax has the full, diagonal and low-rank forms alone, kfac-jax brings
distrax and with it TensorFlow Probability, curvlinops is written for PyTorch. The factors of an MLP
are two matrix products.

The run folder holds results.csv (a row for each cell, point, proxy, form, lambda and region),
summary.csv, verdicts.csv and the figures. The same command resumes a run that was killed.

    isounc covariance                       two problems, two widths, five seeds
    isounc covariance --preset standard     six problems, three widths
    isounc covariance --problems moons --widths 512 --proxies train tight --out runs/mine
"""

from __future__ import annotations

from isounc.runs.folder import RunFolder
from isounc.runs.study import Report, Study
from isounc.studies.covariance.cell import evaluate
from isounc.studies.covariance.settings import PRESETS, Settings, check, plan


def _report(folder: RunFolder, settings: Settings) -> Report:
    """Import what draws and tabulates only here: cells can begin before."""
    from isounc.studies.covariance.report import make_report

    return make_report(folder, settings)


STUDY = Study(
    name="covariance",
    description=__doc__ or "",
    presets=PRESETS,
    unit="cells",
    check=check,
    plan=plan,
    evaluate=evaluate,
    report=_report,
    executor="processes",
    growing=("problems", "widths"),
)
