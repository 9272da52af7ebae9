"""What is measured of each claim, and the bound on it with its reason."""

from __future__ import annotations

from typing import Literal, NamedTuple

Side = Literal["above", "below", "within"]
Scale = Literal["plain", "correlation"]


class Measure(NamedTuple):
    """A number that a claim is about, and the bound on it."""

    label: str
    """What it is, in words."""
    side: Side
    """Where it has to lie: above the bound, below it, or within -bound and +bound."""
    bound: float
    """The bound."""
    why: str
    """Why the bound is there."""
    scale: Scale = "plain"
    """Correlations are averaged on Fisher's scale."""
    counted: bool = True
    """Whether it decides; others are shown beside those that do."""


_ENOUGH = "r = .9 leaves a fifth of the variance of the reference unexplained"
_LITTLE = ".05 is what the studies of covariances and of confirmation call little"
_BETTER = "better is any gain"

MEASURES = {
    "oracle": Measure(
        "r of gᵀΣg with the draws' own Σ", "above", 0.9, _ENOUGH, "correlation"
    ),
    "oracle, one chain": Measure(
        "r of gᵀΣg with Σ within chains", "above", 0.9, _ENOUGH, "correlation", counted=False
    ),
    "against the draws' Σ": Measure(
        "r of ‖g‖² less r with the draws' Σ", "above", -0.05, _LITTLE
    ),
    "against Laplace's Σ": Measure(
        "r of ‖g‖² less r with Laplace's Σ", "above", -0.05, _LITTLE
    ),
    "correspondence": Measure(
        "r of ‖g‖² with the MCMC variance", "above", 0.7,
        "r = .7 explains half of the variance of the reference", "correlation",
    ),
    "slope": Measure(
        "change of r per doubling of the size", "above", 0.0, "improvement is any gain"
    ),
    "beyond p(1−p)": Measure(
        "partial rank correlation given p(1−p)", "above", 0.1,
        "less explains not 1% of what p(1−p) leaves; ranks, so that no other function of p does it",
        "correlation",
    ),
    "r less that of p(1−p)": Measure(
        "r of ‖g‖² less r of p(1−p)", "above", 0.0, _BETTER, counted=False
    ),
    "p(1−p) tracks": Measure(
        "r of p(1−p) with E[p(1−p)]", "above", 0.9, _ENOUGH, "correlation"
    ),
    "counted twice": Measure(
        "p(1−p) less E[p(1−p)] and half of Var p, of the total", "above", 0.0,
        "above 0 more than half of the epistemic part is in p(1−p) already",
    ),
    "other data lower r": Measure(
        "r of a full Σ from other data less one from training data", "below", -0.05,
        f"a loss that is not little: {_LITTLE}",
    ),
    "the error grows with distance": Measure(
        "slope of its log error on the distance to these data, less that of an isotropic Σ", "above",
        0.0, "structure is any slope beside that of an isotropic Σ",
    ),
    "the error grows with distance, fresh data": Measure(
        "the same slope with fresh inputs of the training distribution", "above", 0.0,
        "what it shares with the slope above is no mark of wrong data", counted=False,
    ),
    "‖g‖² is better": Measure(
        "r of ‖g‖² less r of a full Σ from other data", "above", 0.0, _BETTER
    ),
    "few parameters determined": Measure(
        "share of the parameters that the data determine", "below", 0.1,
        "nine tenths keep the prior's variance",
    ),
    "order of inputs kept": Measure(
        "correlation of gᵀΣg with ‖g‖²", "above", 0.9,
        "isotropy is used for the order of inputs, which a correlation below .9 does not keep",
        "correlation",
    ),
    "larger out of distribution": Measure(
        "AUROC of ‖g‖², larger out of distribution", "above", 0.5, "1/2 is chance"
    ),
    "threshold kept": Measure(
        "false alarms of a threshold beyond its exact rate", "below", 0.02,
        "the study of shifts calls .02 kept",
    ),
    "cost": Measure(
        "forward passes on top of the prediction's own", "below", 0.1,
        "what is negligible is at most a tenth of a forward pass",
    ),
    "combined is best": Measure(
        "AUROC of the sum less the best baseline's", "above", 0.0, _BETTER
    ),
    "chance on recall": Measure(
        "AUROC of the sum less 1/2", "within", 0.1,
        "within a tenth of 1/2 is near chance; the paper has .61 ± .05 on TriviaQA",

    ),
    "unlike P(True)": Measure(
        "rank correlation of ‖g‖² with P(True)", "within", 0.3,
        "below .3 less than a tenth of the variance of the ranks is shared",
    ),
    "adds to all baselines": Measure(
        "AUROC that ‖g‖² adds to all baselines", "above", 0.0, "a signal is any gain"
    ),
    "costs less": Measure(
        "log2 of the certified cascade's cost as a share of the large network's", "below", 0.0,
        "a saving is any cost below that of always asking the large network",
    ),
    "keeps its target": Measure(
        "its share of wrong answers less the target", "below", 0.0,
        "the target is the reliability that was promised",
    ),
    "against the large network": Measure(
        "its share of wrong answers less the large network's", "below", 0.0,
        "no loss at all is at most the large network's own; the target may lie above that",
        counted=False,
    ),
    "against 1 − p": Measure(
        "log2 of its cost as a share of that of the cascade on 1 − p", "below", 0.0,
        "1 − p takes no gradient", counted=False,
    ),
}  # fmt: skip
"""Measures by name; a claim lists those that it rests on."""
