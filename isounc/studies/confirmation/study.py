"""Does the logit-scaled estimate hold on what was not used to find it? Confirm or refute.

Protocol, fixed before the first run. `logit_scaled` takes the logit as Gaussian, N(f, s^2) with
s^2 = sigma^2 ||df/dtheta||^2, and Var[sigmoid(f)] as the estimate; its rule "unit" for sigma^2 was
found on other seeds (0 and 1, tried on 11 and 12), mostly on other problems. Here are the paper's
eight problems with seeds 100, 101, ..., which nothing else has used: ten in the preset paper, five
in standard, two in quick (`--num-varied-seeds` gives all conditions but the base fewer). The
reference is the variance of p by MCMC, sampled as in `isounc scaling`, summed over classes; it has
to pass the same gate.

Hypotheses, for one pass at one trained network (AdamW without a prior), in each region (test, grid,
far), for each problem, and over the problems:

    H1            orders inputs better than ||grad p||^2: r(logit_scaled) - r(isotropic) > 0
    H2            orders inputs better than p (1 - p): r(logit_scaled) - r(null_aleatoric) > 0
    H3, 4 / 16    at least as well as the variance of p over an ensemble of 4 / of 16 trained
                  networks, up to .05: r(logit_scaled) - r(ensemble) > -.05
    H4            scale "effective_dimension" is right within a factor of 2: |log2 L| < 1, with L
                  the sum of the estimate over the sum of the reference, on test
    H4, unit      scale "unit" overstates: log2 L > 0

r is Pearson's; Spearman's is tabulated beside it. Differences are paired: estimate and rival of the
same seed have the same data, reference and networks. A hypothesis is *confirmed* where the 95%
interval over seeds lies on its side of the bound, *refuted* where it lies on the other side, else
*undecided*. For a problem the interval is Student's t over its seeds; over the problems it is that
of the mean of the problems' means, each with a variance of its own (Welch), and counts the
problems that have a link and two seeds or more. The verdicts at the base over the problems are the
confirmation; all others say where it holds. None is corrected for the number of them.

(Added when the first numbers were there: the same rule for Spearman's rank correlation, whose verdicts
stand beside these under their own name. They differ.)

Conditions, one factor at a time about a base (n 100, prior sd 2, one hidden layer of 64, tanh, NTK
parameterisation, all training inputs as reference inputs of the scale, a trained network):

    prior_sd      .5, 1, 5, 10; the trained networks are those of the base
    n             30, 300, 1000
    activation    relu, gelu
    depth         2, 3, 4
    reference     10 or 30 training inputs; inputs of the region far; Gaussian ones of twice the
                  spread of the training inputs. The base's fit with another scale
    point         the MAP, single posterior draws, in place of the trained network

32 networks are trained in each cell. One-pass estimates are made at four of them (or four draws),
each with a scale of its own, and ensembles of 2 to 32 in at most four disjoint groups; correlations
and log L are averaged over them. Rivals are isotropic, both nulls, link_aware, Laplace
(GGN at trained networks, the Hessian at the MAP) and the ensembles. A cell whose reference, MAP or
one of whose networks fails its check is shown as failing and is in no mean; a correlation that is
undefined (constant estimates) is in none either. Both are counted.

The two regressions have no link: there logit_scaled is isotropic times a constant and orders inputs
as it does, so that they run at the base alone, are in no mean over problems, and say something
about H3 and H4 only.

The run folder holds results.csv (a row for each cell, condition, region and estimate), summary.csv,
differences.csv, verdicts.csv and the figures. The same command resumes a run that was killed, and
one with more problems or conditions adds to it.

    isounc confirmation                      three problems, two seeds
    isounc confirmation --preset standard    the paper's problems, all conditions, five seeds
    isounc confirmation --depths --ns 300    without other depths, and with one other n
"""

from __future__ import annotations

from isounc.runs.folder import RunFolder
from isounc.runs.study import Report, Study
from isounc.studies.confirmation.cell import evaluate
from isounc.studies.confirmation.settings import PRESETS, Settings, check, plan


def _report(folder: RunFolder, settings: Settings) -> Report:
    """Import what draws and tabulates only here: cells can begin before."""
    from isounc.studies.confirmation.report import make_report

    return make_report(folder, settings)


STUDY = Study(
    name="confirmation",
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
    growing=("problems", "prior_sds", "ns", "activations", "depths"),
)
