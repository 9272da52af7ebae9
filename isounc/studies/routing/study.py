"""Routing: scores of a small network that say when a large one should answer in its place.

Protocol, fixed before the first run. The labels are real: handwritten digits (10 classes, 64 pixels) and
breast tumours (2 classes, 30 measurements), of scikit-learn. In every cell (problem x seed) the rows are
split at random into training rows, guard rows and test rows; columns are standardised by the training
rows. A cheap MLP and an expensive one are trained on the same rows. Each score of the cheap answer,

    p            1 - p of the predicted class: the null, which costs nothing
    entropy      of the predicted probabilities
    isotropic    ||grad p||^2 of the predicted class
    total        ||grad p||^2 + p (1 - p), the paper's sum (sigma = 1)
    logit_scaled Var[p] of a Gaussian logit (scale "unit", reference: the training rows)
    moderated    1 - the mean of that p
    router       log odds that the cheap answer is wrong, by a logistic regression of the inputs fitted to
                 the guard rows: it decides before the cheap network answers, and pays one of them alone

decides on the test rows who answers. With a share e of the questions passed on, the most uncertain first,
the risk is R(e); its mean over e from 0 to 1 is compared with passing on at random and with an oracle
(which passes on what the cheap one gets wrong and the expensive one right first, and what is the other way
round last):

    gain = (mean R_random - mean R) / (mean R_random - mean R_oracle)

Costs are measured seconds of a question in a batch of 1000 on the machine of the run, the backward pass of
a gradient score included. `Cascade.fit` on the guard rows then looks for the cheapest cascade of each target
risk with confidence .9, and its cost and risk on the test rows stand beside those of always asking the
expensive network.

Hypotheses, by the 95% interval over seeds: `routes` gain > 0; `beats p` gain less that of p > 0; `beats
router` gain less that of the router > 0; `saves` the certified cascade's cost is below 1 as a share of the
expensive network's (log2 of it < 0), at the smallest target at which at least half of the cells have a
cascade; `keeps the risk` its risk on the test rows less the target is below 0 on average. The promise
itself is about a single fit, and the share of cells whose test risk is above the target is told beside it
(test rows are few, so that this share is larger than that of broken promises).

    isounc routing                              a minute
    isounc routing --preset standard            ten seeds, three sizes of the cheap network
    isounc routing --problems breast_cancer --cheap-widths 2 --out runs/mine

A further pair, whose protocol is the same and was fixed before its first run: convolutional networks on
digits, as images of eight by eight pixels. The cheap one has a single convolution of three by three with
1, 2 or 4 channels, the expensive one two of 32 channels; each is followed by a ReLU and a mean over two
by two, and a read-out of all that is left. Channels take the place of widths in every table.

    isounc routing --networks cnn --problems digits --preset standard --cheap-widths 1 2 4 --width 32
"""

from __future__ import annotations

from isounc.runs.study import Study
from isounc.studies.routing.cell import evaluate
from isounc.studies.routing.report import make_report
from isounc.studies.routing.settings import PRESETS, check, plan

STUDY = Study(
    name="routing",
    description=__doc__ or "",
    presets=PRESETS,
    unit="cells",
    check=check,
    plan=plan,
    evaluate=evaluate,
    report=make_report,
    growing=("problems", "cheap_widths"),
)
