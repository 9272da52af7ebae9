"""Is the posterior isotropic where it matters? Eigenvalues, gradients in them, and a correction.

Protocol, fixed before the first run. The isotropic estimate puts s^2 I for the covariance Sigma of
the parameters. In the linearised model, with prior precision and the GGN of the training data,

    Sigma = (diag(1/s^2) + GGN)^-1,    g^T Sigma g = |g|^2 - sum_i l_i / (1 + l_i) (g . u_i)^2

for a gradient g in prior coordinates z = theta / s (so |g|^2 is s^2 ||grad p||^2, the *prior*
predictive variance) and the at most n C eigenpairs (l_i, u_i) of the GGN there. All that the data did
lies in these directions. Everything here is exact through the n C x n C kernel of the GGN, in double
precision, at the MAP, at a trained network (AdamW without a prior) and at a posterior draw.

Cells (problem, width, depth, parameterisation, n, seed) vary one factor at a time about a base: all
widths and depths under each parameterisation, all n under the first. Under `standard` the prior
variance of the function grows with the width, which confounds its trends with width. Of the other
studies `isounc shift` alone uses its seeds 300, 301, ... The noise of a regression is 5 times its own
but for the preset paper, as sharper posteriors take hours to sample. Posteriors are sampled as in `isounc scaling`; the
training inputs are a region, train, beside test, grid and far. What rests on draws or on the MCMC
variance of p counts only where the gate passes in the region, what rests on a point only where that
passes its check.

Measured: eigenvalues of the GGN and of the Hessian of minus the log likelihood (dense up to 1100
parameters, beyond that by matfree's Lanczos, from the top down to the first pair whose residual is
above .1% of its value) and of the covariance of the draws within their chains, beside the Marchenko-Pastur law
of as many independent draws of the prior; the share of |g|^2 in the k strongest directions; the mean
and coefficient of variation over a region's locations of the ratio g^T Sigma g / |g|^2, which is 1
where isotropy is exact, and its correlation with |g|^2; the effective dimension d = sum l / (1 + l);
the KL divergence of the Laplace approximation from the prior; correlations with the MCMC variance of
five forms: isotropic (|g|^2), removed_k (|g|^2 less its part in the k strongest directions),
low_rank_k (less l / (1 + l) of it), laplace (all directions), and draws (Sigma of the draws); the
seconds of isotropic and removed_k (double precision, as all else). In several columns (classes) numbers are summed.

Coordinates after Hron et al. 2022: x has the hidden layers in prior coordinates and the read-out
whitened given them, by Gaussian pseudo-observations of the outputs (exact for a regression, an
approximation for classes). The divergence between the posterior and N(0, I), in both directions added
(Jeffreys), is E_post[r] - E_N(0,I)[r] for the log density ratio r, which needs no evidence; in the
coordinates theta / s the same with the log likelihood for r.

Hypotheses, with a bound for each (numbers of a cell; slopes are a seed's):

    outliers              the C largest eigenvalues of the GGN (a regression: 1) have more than half of
                          its trace (Papyan 2018, Ghorbani et al. 2019)
    outliers, Hessian     the largest eigenvalue of the Hessian is the GGN's within a factor of 2
    grows with width      largest over mean of all P eigenvalues, log2: slope on log2 width > 0
                          (Karakida et al. 2019)
    grows with depth      largest over mean of the nonzero ones beyond the C largest, log2: slope on
                          depth > 0 (dominant over bulk curvature: arXiv 2602.00545)
    repriorises           Jeffreys divergence in x: slope on log2 width < 0 (arXiv 2206.07673)
    repriorises, weights  the same in theta / s, of which theory says no such thing
    isotropic in trace    d / P < .1
    isotropic             coefficient of variation of the ratio < .1, in each region (laplace)
    data leave little     mean ratio on the region train < .5 (laplace)
    order kept            r(log g^T Sigma g, log |g|^2) > .9, in each region (laplace)
    cure                  r(removed_k) - r(isotropic) > 0 against the MCMC variance, k = 10
    k is enough           r(low_rank_k) - r(laplace) > -.05
    no wider than prior   log2 of the largest eigenvalue of the draws over the law's edge < .1

r is Pearson's of log10, undefined where an estimate is 0 at a location (all of |g|^2 lies in the k
directions, to 1e-12 of it). A hypothesis is *confirmed* where the 95% interval over seeds lies on its
side of the bound, *refuted* where it lies on the other, else *undecided*: Student's t for a problem,
and for `all` the mean of the problems' means (Welch). None is corrected for the number of them.

Added when numbers were there: "cure, shrunk", the cure with low_rank_k in place of removed_k, since
all that is left without the k directions is little near the data; and "grows with depth, sum", which
has the sum of the eigenvalues beyond the C largest in place of their mean, as the mean is over all
above 1e-12 of the largest, and deeper networks have more of them. The first runs had Pearson's r of
the values themselves where this protocol has that of log10; both are tabulated.

The run folder holds results.csv (a row for each cell, point, region and form), eigenvalues.csv (of
what failed, too, which the figures leave out), summary.csv, verdicts.csv and the figures. The same
command resumes a run that was killed.

    isounc spectrum                       two problems, a few widths and depths, three seeds
    isounc spectrum --preset standard     three problems, widths 4 to 256, n 30 to 300, five seeds
    isounc spectrum --problems moons --widths 16 512 --depths 1 --ns 100 --out runs/mine
"""

from __future__ import annotations

from isounc.runs.folder import RunFolder
from isounc.runs.study import Report, Study
from isounc.studies.spectrum.cell import evaluate
from isounc.studies.spectrum.settings import PRESETS, Settings, check, plan


def _report(folder: RunFolder, settings: Settings) -> Report:
    """Import what draws and tabulates only here: cells can begin before."""
    from isounc.studies.spectrum.report import make_report

    return make_report(folder, settings)


STUDY = Study(
    name="spectrum",
    description=__doc__ or "",
    presets=PRESETS,
    unit="cells",
    check=check,
    plan=plan,
    evaluate=evaluate,
    report=_report,
    executor="processes",
    growing=("problems", "widths", "depths", "parameterisations", "ns"),
)
