"""The looks of estimators, points and classes in figures, and the words of titles."""

from __future__ import annotations

from matplotlib.lines import Line2D

from isounc.estimates.estimators import ESTIMATORS
from isounc.runs.style import SPARE, Look

LOOKS = {
    "isotropic": ("#0072B2", "o"),
    "null_aleatoric": ("#B22222", "x", ":"),
    "null_squared": ("#F08080", "+", ":"),
    "null_distance": ("#7F1D1D", "1", ":"),
    "logit_scaled": ("#7B3294", "8"),
    "logit_scaled_level": ("#B68CC9", "h"),
    "link_aware": ("#D55E00", "s"),
    "layer_scaled": ("#56B4E9", "P"),
    "laplace": ("#CC79A7", "^"),
    "laplace_diagonal": ("#E69F00", "v"),
    "oracle": ("#009E73", "D"),
    "oracle_within_chain": ("#8C8C8C", "X"),
    "oracle_diagonal": ("#8C6D31", "p"),
    "posterior_averaged": ("#000000", "*"),
}
"""Colour, marker and, where it is not solid, line style of the built-in estimators."""
POINT_LOOKS = {
    "map": Look("isotropic at the MAP", "#0072B2", "o"),
    "trained": Look("isotropic at a trained network", "#882255", "X"),
    "draw": Look("isotropic at a posterior draw", "#44AA99", "h"),
}
"""Looks of the isotropic estimate at each kind of point."""
_CLASSES = (
    *(("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D")),
    *(("#E69F00", "v"), ("#56B4E9", "P"), ("#882255", "X")),
)
PAPER_COLOR = "#555555"
"""Colour of the paper's values."""
CORRELATIONS = {
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "log10_pearson": "Pearson correlation of log10",
}
"""Names of the correlations on axes."""
POINT_WORDS = {
    "map": "at the MAP",
    "trained": "at a trained network",
    "stopped": "at a network whose training stopped early",
    "chain_mean": "at the mean of a chain's draws",
    "draw": "at a posterior draw",
    "posterior": "over the posterior",
}
"""Points in titles."""


def estimator_look(name: str, *, position: int = 0) -> Look:
    """Return the look of an estimator; one that is not built in has a spare colour by position."""
    look = LOOKS.get(name) or SPARE[position % len(SPARE)]
    label = ESTIMATORS[name].label if name in ESTIMATORS else ""
    return Look(label or name, *look)


def edge_width(marker: str, hollow: float = 0) -> float:
    """Return the width of a marker's edge: that of a cross is all that one sees of it."""
    return hollow if marker in Line2D.filled_markers else 1


def class_look(c: int) -> Look:
    """Return the look of a class; after seven classes they begin again."""
    return Look(f"class {c}", *_CLASSES[c % len(_CLASSES)])
