"""The thirteen claims: what the paper says, in our words, and how each is measured.

A `Claim` names its measures (`isounc.studies.claims.measures.MEASURES`), the study whose tables it
rests on, and the conditions that its protocol asks for, so that a run that lacks some can never
support it whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from isounc.studies.claims.rules import Condition
from isounc.studies.scaling.paper import TABLE1

NARROWEST_WIDE = 32
"""Width from which a network is called wide: that of the only protocol that the authors' group has
documented."""
NARROW, WIDE = f"width below {NARROWEST_WIDE}", f"width {NARROWEST_WIDE} and above"
POINTS = {
    "map": "the MAP",
    "trained": "a trained network",
    "draw": "a posterior draw",
    "stopped": "an early-stopped network",
    "chain_mean": "the mean of a chain",
}
"""Kinds of theta* in words."""
WORDS = POINTS | {
    "mlp": "an MLP", "cnn": "a CNN", "logistic": "logistic regression", "classes": "other classes",
    "train": "training inputs", "protocol params": "protocol params (by number of parameters)",
}  # fmt: skip
"""Names of conditions in words."""
REGIONS = ("test", "grid", "far")
_BANDS = (NARROW, WIDE)
_BASE = (
    "In every cell of the scaling runs at the base (one hidden layer, tanh, NTK parameterisation, "
    "prior sd 2, n = 100), by kind of θ*, region and width (below 32, and 32 and above)"
)


class Claim(NamedTuple):
    """What the paper says, and how it is settled."""

    title: str
    """A few words."""
    sentence: str
    """What the paper says, in our own words."""
    protocol: str
    """How it is measured."""
    measures: tuple[str, ...]
    """Names of its measures; those that do not count come last."""
    study: str
    """The study whose tables it rests on."""
    command: str
    """The command whose tables settle it."""
    planned: tuple[Condition, ...] = ()
    """Conditions that the protocol asks for; empty for those that the tables have."""
    problems: tuple[str, ...] = ()
    """Problems that it asks for in each of them."""
    least_points: int = 1
    """Kinds of theta*, or models, without which it is not supported whole."""
    together: tuple[str, ...] = ()
    """Measures that the claim needs at once: none counts for it where another does not."""


def _crossed(
    measures: Sequence[str], points: Sequence[str], regions: Sequence[str] = REGIONS,
    settings: Sequence[str] = _BANDS,
) -> tuple[Condition, ...]:  # fmt: skip
    return tuple(
        Condition(measure, point, region, setting)
        for measure, point, region, setting in itertools.product(
            measures, points, regions, settings
        )
    )


_SCALING = "isounc scaling --preset paper"
_WORLD = "isounc world --preset standard"
_QA = "isounc qa --data DATA --preset standard"

CLAIMS = {
    "1": Claim(
        "First order is enough",
        "The variance of a prediction under the posterior is that of its first-order Taylor "
        "expansion about θ*, gᵀΣg, if Σ is the posterior's covariance.",
        f"{_BASE}: r between gᵀΣg with the covariance of the posterior draws themselves and the "
        "MCMC variance.",
        ("oracle", "oracle, one chain"), "scaling", _SCALING,
        _crossed(["oracle"], ["map", "trained"]),
    ),
    "2": Claim(
        "Isotropy costs little",
        "An isotropic Σ in place of the full one loses little: ‖g‖² says what gᵀΣg says.",
        f"{_BASE}: r of ‖g‖² with the MCMC variance less that of gᵀΣg, with the covariance of the "
        "draws and with Laplace's (GGN of the training data), in the same cell.",
        ("against the draws' Σ", "against Laplace's Σ"), "scaling", _SCALING,
        _crossed(["against the draws' Σ", "against Laplace's Σ"], ["map", "trained"]),
    ),
    "3": Claim(
        "Strong correspondence on eight problems",
        "On eight classification and regression problems the squared gradient norm corresponds "
        "strongly to the epistemic uncertainty of MCMC.",
        f"{_BASE}: r of ‖g‖² with the MCMC variance over the paper's eight problems (three classes: "
        "summed over them).",
        ("correspondence",), "scaling", _SCALING,
        _crossed(["correspondence"], ["map", "trained", "draw"]), tuple(TABLE1),
    ),
    "4": Claim(
        "It improves with model size",
        "The correspondence becomes better as the network grows.",
        "Change of r per doubling of the size, by protocol (isounc scaling --protocol; each is a "
        "reading of the claim that was fixed before it was run), beside near (region test) and wide "
        "(grid) by width in the scaling runs. A slope that two protocols share to the last digit counts "
        "once; protocols share cells. Of several runs the one with the most seeds counts, whatever "
        "its widths.",
        ("slope",), "scaling", "isounc scaling --protocol all --preset standard",
    ),
    "5": Claim(
        "It says more than p(1−p)",
        "The gradient norm is an epistemic uncertainty of its own, beside the aleatoric p(1−p) of "
        "the same forward pass.",
        f"{_BASE}, classification: partial rank correlation of ‖g‖² with the MCMC variance given "
        "p(1−p).",
        ("beyond p(1−p)", "r less that of p(1−p)"), "scaling", _SCALING,
        _crossed(["beyond p(1−p)"], ["map", "trained", "draw"]),
    ),
    "6": Claim(
        "p(1−p) tracks E[p(1−p)]; and our objection: the sum counts Var p twice",
        "p(1−p) at θ* tracks the posterior's aleatoric uncertainty E[p(1−p)], and the total is the "
        "sum of both parts. (The second half is ours and against the sum: the total p̄(1−p̄) is "
        "E[p(1−p)] + Var p, which to first order p(1−p) at θ* stands for already.)",
        f"{_BASE}, classification: r of p(1−p) with E[p(1−p)]; and Σ(p(1−p) − E[p(1−p)] − Var p / 2) "
        "over the locations of a region, over Σ p̄(1−p̄), which is 0 where half of Var p is in p(1−p) "
        "(not at draws, where p(1−p) is E[p(1−p)] in the mean, and nothing counts twice).",
        ("p(1−p) tracks", "counted twice"), "scaling", _SCALING,
        _crossed(["p(1−p) tracks"], ["map", "trained", "draw"]) + _crossed(["counted twice"], ["map", "trained"]),
    ),
    "7": Claim(
        "Other data distort Σ, and isotropy avoids it",
        "A covariance estimated from other data than the training data has structured distortions, "
        "which an isotropic one avoids.",
        "Full Laplace covariances from eight or nine kinds of other inputs (their mean), against the "
        "one from the training inputs: loss of r with the MCMC variance, slope of the log error on "
        "the distance to these inputs less that of an isotropic Σ, and ‖g‖² against them. Beside it the "
        "slope with fresh inputs of the training distribution, which is above 0 as well: a slope "
        "says that the error has a structure, not that wrong data make it.",
        ("other data lower r", "the error grows with distance", "‖g‖² is better",
         "the error grows with distance, fresh data"), "covariance",
        "isounc covariance --preset standard",
    ),
    "8": Claim(
        "Spectra support isotropy",
        "Spectral theory of large networks (a bulk and a few outliers) supports an isotropic Σ at "
        "scale.",
        "At the largest width of each run of the spectrum study: the share of the parameters that "
        "the data determine (effective dimension over their number), and by region the correlation "
        "of log gᵀΣg with log ‖g‖², with Laplace's Σ.",
        ("few parameters determined", "order of inputs kept"), "spectrum", "isounc spectrum --preset standard",
    ),
    "9": Claim(
        "Norms behave predictably out of distribution",
        "The norm is small in distribution and larger outside of it (the article about the paper).",
        "By problem, network and kind of shift: AUROC of ‖∂p/∂θ‖² of the predicted class between "
        "shifted inputs and new ones of the same distribution; and the rate of false alarms of a "
        "threshold that new inputs of the distribution set (by default at 5%), less its exact "
        "expectation.",
        ("larger out of distribution", "threshold kept"), "shift", "isounc shift --preset standard",
    ),
    "10": Claim(
        "It costs next to nothing",
        "Next to the forward pass the estimate costs a negligible time (the article about the paper).",
        "Time of the estimate of one column, forward pass included, over that of the forward pass "
        "alone on the same batch in the same process, less 1, by model; its sizes (width, batch) "
        "count as problems do elsewhere. The unit of replication is the process.",
        ("cost",), "cost", "uv run benchmarks/cost.py --out results/cost (for each of --process 1 2 …)",
    ),
    "11": Claim(
        "Language models: best where answers conflict, chance on recall",
        "On questions whose answers conflict the sum of both parts predicts errors better than any "
        "other uncertainty; on factual recall it is near chance.",
        "AUROC for a wrong answer, with bootstrap errors over the questions: on TruthfulQA the sum "
        "(main estimand of the benchmark) less the best of all baselines, chosen anew in each "
        "resample; on TriviaQA and Natural Questions the sum less 1/2. The unit is the question, "
        "so this is about new questions for the same model: three models or more are needed to "
        "support it whole. Beside them the small decoders of the world study, by width, with the world as "
        "the unit: the sum (σ² by the rule of logit_scaled) less the best of −log p, entropy, P(True) and "
        "said frequency in each world on 16 tellings in conflict, and less 1/2 on recall.",
        ("combined is best", "chance on recall"), "qa", f"{_QA}; {_WORLD}", least_points=3,
    ),
    "12": Claim(
        "A different signal than self-assessment",
        "The uncertainty of the parameters is another signal than what a model says about itself.",
        "Rank correlation of ‖g‖² (main estimand) with P(True), and what it adds to the AUROC of "
        "all baselines in a cross-validated logistic regression; errors over the questions. Decoders "
        "of the world study take part where their P(True) ranks wrong answers above chance; to be unlike "
        "what says nothing is no signal.",
        ("unlike P(True)", "adds to all baselines"), "qa", f"{_QA}; {_WORLD}", least_points=3,
    ),
    "13": Claim(
        "It cuts cost without losing reliability",
        "A small model that passes on what it is uncertain about cuts the cost without losing "
        "reliability (the article about the paper).",
        "Small networks in front of a large one: MLPs on digits and breast_cancer, convolutional ones on "
        "digits; and a language model's short answers without examples in front of its most frequent answer "
        "of ten samples after five examples, where a run of question answering has that. By the "
        "hypotheses of these studies, which were fixed before their first runs: the cheapest cascade that "
        "is certified on the guard rows, at the smallest target risk at which half of the cells have one, "
        "costs less on the test rows than always asking the large network, and is wrong less often than "
        "the target, on average over the seeds that have one (the others are counted as undefined). Both "
        "have to hold for the same score (‖g‖² of the predicted class, or the sum with p(1−p)), problem and "
        "width of the small network. Of the language model questions are the replications, and its seeds "
        "random halves of the same questions. Beside them, for networks, its share of wrong answers less "
        "that of the large network, which is another meaning of reliability, and its cost next to that of a "
        "cascade on 1 − p.",
        ("costs less", "keeps its target", "against the large network", "against 1 − p"),
        "routing", "isounc routing --preset standard", together=("costs less", "keeps its target"),
    ),
}  # fmt: skip
"""The claims by number."""
