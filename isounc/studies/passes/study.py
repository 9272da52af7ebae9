"""What K passes buy: five estimates from K networks against MCMC variance, beside their cost.

Protocol, fixed before the first run. Every cell (problem x seed) is an MLP of one hidden layer in
NTK parameterisation, prior sd 2, n = 100; its posterior is sampled as in `isounc scaling` and has to
pass the same gate. Three kinds of networks stand for what a person may have: `draws` of that
posterior (an oracle: 32 of its kept draws), an `ensemble` of networks trained from different
starting points, and `last_layer` samples around one trained network, from the Laplace
approximation of its last layer under the prior (rather than SWAG: they take a network however it
was trained, where SWAG takes the iterates of a training of its own). For K = 1, 2, 4, 8, 16 and 32 networks, at every
location,

    mean_norm           mean over k of ||grad p_k||^2                     K forward, K backward
    mean_logit_scaled   mean over k of logit_scaled_k (scale "unit")      K forward, K backward
    variance            variance of p_k over the networks, divisor K - 1  K forward
    label_variance      m (1 - m) with m the mean of p_k: the null        K forward
    combined            (8 c a + (K - 1) v) / (8 + K - 1)                 K forward, K backward

The last has a = mean_logit_scaled and v = variance, with c = sum v / sum a over the training inputs.
It is a moderated variance: v has K - 1 degrees of freedom and the gradients count as 8 more, since
at about that number of draws the two were level where this was scouted. It is a at K = 1 and tends
to v as K grows. Of several classes two things are compared, as in `isounc scaling`: the sums over
the classes (`trace`), and the class that the mean of p_k predicts (`predicted`). A backward pass
counts once for each class. Figures and crossings are of the sums.

Quality is the correlation (Pearson and Spearman) with the MCMC variance in each region; that of K
networks is averaged over up to 8 disjoint groups of K of the same 32. Intervals are over seeds; `all`
is the mean over the problems, of seeds in which all of them passed. A cell that fails its gate, or
an ensemble with a network that fails its check, is shown as failing and is in no mean. Cost is
passes at a location, and seconds measured for 1000 locations; the making of networks is timed apart.
One estimate overtakes another at the smallest K from which on, up to the largest, the mean over
seeds of its correlation less the other's is above zero; beyond doubt, the interval of that
difference. The other has K networks too, or as many as the same number of passes buys.

The run folder holds results.csv (a row for each cell, kind, region, K and estimate), summary.csv,
differences.csv, crossings.csv and the figures. The same command resumes a run that was killed.

    isounc passes                                   minutes: three problems
    isounc passes --preset standard                 six binary problems
    isounc passes --problems clusters3 spirals3 rings3 --out runs/three
    isounc passes --problems moons --width 64 --counts 1 4 16 --out runs/mine
"""

from __future__ import annotations

from isounc.runs.study import Study
from isounc.studies.passes.cell import evaluate
from isounc.studies.passes.report import make_report
from isounc.studies.passes.settings import PRESETS, check, plan

STUDY = Study(
    name="passes",
    description=__doc__ or "",
    presets=PRESETS,
    unit="cells",
    check=check,
    plan=plan,
    evaluate=evaluate,
    report=make_report,
)
