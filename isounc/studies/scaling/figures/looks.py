"""The look of an estimator in figures: a colour, a marker, and its label in the registry."""

from __future__ import annotations

from isounc.estimates.estimators import ESTIMATORS
from isounc.runs.style import SPARE, Look

LOOKS = {
    "isotropic": ("#0072B2", "o"),
    "link_aware": ("#D55E00", "s"),
    "layer_scaled": ("#56B4E9", "P"),
    "laplace": ("#CC79A7", "^"),
    "laplace_diagonal": ("#E69F00", "v"),
    "oracle": ("#009E73", "D"),
    "oracle_within_chain": ("#8C8C8C", "X"),
    "oracle_diagonal": ("#8C6D31", "p"),
    "posterior_averaged": ("#000000", "*"),
}
"""Colour and marker of the built-in estimators."""


def estimator_look(name: str, *, position: int = 0) -> Look:
    """Return the look of an estimator; one that is not built in has a spare colour by position."""
    color, marker = LOOKS.get(name) or SPARE[position % len(SPARE)]
    label = ESTIMATORS[name].label if name in ESTIMATORS else ""
    return Look(label or name, color, marker)
