"""Names as figures, tables and the reading spell them."""

from __future__ import annotations

from isounc.estimates.estimators import ESTIMATORS
from isounc.studies.confirmation.settings import BASE, Condition

_FACTORS = {
    "prior_sd": "prior sd {}",
    "n": "n = {}",
    "activation": "{}",
    "depth": "{} hidden layers",
    "point": "at the {}",
}
_VALUES = {
    ("reference", "far"): "reference: far inputs",
    ("reference", "wide"): "reference: wide Gaussian",
    ("point", "map"): "at the MAP",
    ("point", "draw"): "at single draws",
}


def condition_name(condition: Condition) -> str:
    """A condition in a few words."""
    factor, value = condition
    if factor == BASE:
        return "base"
    if factor == "reference" and (factor, value) not in _VALUES:
        return f"reference: {value} inputs"
    return _VALUES.get((factor, value)) or _FACTORS[factor].format(value)


def estimate_name(estimate: str) -> str:
    """An estimate as legends call it."""
    if estimate.startswith("ensemble_"):
        return f"variance over {estimate.removeprefix('ensemble_')} networks"
    return ESTIMATORS[estimate].label if estimate in ESTIMATORS else estimate
