"""How well a score tells inputs of another distribution, and whether a threshold keeps its rate.

scikit-learn computes the curves. A score has a fixed direction, `higher`: "out" where higher values
are to mean out of distribution, "in" where they are to mean in distribution. It is never turned
round: a score whose stated direction is wrong has an AUROC below one half.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Real

from isounc.checks import check_choice, check_real, real_vector

HIGHER = ("out", "in")
"""What higher values of a score are to mean."""
TPR = 0.95
"""Share of in-distribution inputs that pass where `fpr95` is read off."""


class Detection(NamedTuple):
    """How a score tells two sets of inputs apart; out of distribution is the positive class."""

    auroc: float
    """Probability that an input out of distribution looks more so than one in it (ties count half)."""
    aupr: float
    """Average precision."""
    fpr95: float
    """Share of the inputs out of distribution that pass where 95% (or the next larger share) of
    those in distribution do."""


def detect(
    inside: Real[np.ndarray, " N"], outside: Real[np.ndarray, " M"], *, higher: str
) -> Detection:
    """Measure how a score tells inputs out of distribution from those in it.

    Parameters
    ----------
    inside, outside
        The score at inputs in and out of distribution.
    higher
        `"out"` or `"in"`, what higher values are to mean.

    Raises
    ------
    ValueError
        For an empty set, values that are not finite, or another direction.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    inside, outside = (
        _oriented(name, values, higher)
        for name, values in (("inside", inside), ("outside", outside))
    )
    # Ranks have no digits to lose: scikit-learn casts and compares the values themselves.
    _, ranks = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    is_out = np.repeat([0, 1], [len(inside), len(outside)])
    passed, kept, _ = roc_curve(1 - is_out, -ranks, drop_intermediate=False)
    return Detection(
        float(roc_auc_score(is_out, ranks)),
        float(average_precision_score(is_out, ranks)),
        float(passed[np.argmax(kept >= TPR - 1e-12)]),
    )


class Threshold(NamedTuple):
    """A threshold that a share `alarm` of the inputs in distribution is to exceed at most."""

    value: float
    """The k-th smallest of the n values that set it, k = ceil((1 - alarm) (n + 1)), as `higher` is
    "out"; alarm is raised above it. With `higher` "in" it is minus that of minus the values."""
    expected: float
    """(n + 1 - k) / (n + 1): the exact mean of the rate on new inputs of the same distribution,
    over both, where no values tie (with ties it is less)."""


def fewest(alarm: float) -> int:
    """The fewest values that can set a threshold at a rate."""
    return math.ceil(1 / alarm - 1e-9) - 1


def fit_threshold(values: Real[np.ndarray, " n"], *, higher: str, alarm: float) -> Threshold:
    """Set a threshold on values of inputs in distribution.

    Raises
    ------
    ValueError
        For values too few for the rate, values that are not finite, a rate outside (0, 1).

    Source: the rank of one more exchangeable value is uniform on 1..n+1 (split conformal
    prediction, Vovk et al. 2005).
    """
    oriented = np.sort(_oriented("values", values, higher))
    alarm = check_real("alarm", alarm, positive=True)
    if alarm >= 1:
        raise ValueError(f"alarm must be below 1, got {alarm}")
    n = len(oriented)
    rank = math.ceil((1 - alarm) * (n + 1) - 1e-9)
    if rank > n:
        raise ValueError(
            f"values must be at least {fewest(alarm)} for a rate of {alarm:g}, got {n}"
        )
    value = float(oriented[rank - 1])
    return Threshold(value if higher == "out" else -value, (n + 1 - rank) / (n + 1))


def alarm_rate(values: Real[np.ndarray, " N"], threshold: Threshold, *, higher: str) -> float:
    """Share of values beyond a threshold (those that equal it are not)."""
    oriented = _oriented("values", values, higher)
    bound = threshold.value if higher == "out" else -threshold.value
    return float((oriented > bound).mean())


def _oriented(name: str, values: Any, higher: str) -> Float[np.ndarray, " N"]:
    """Finite values whose higher ones mean out of distribution."""
    check_choice("higher", higher, HIGHER)
    array = real_vector(name, values)
    if not len(array) or not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array))
        got = f"{array[bad[0]]} at {bad[0]}" if len(bad) else "none"
        raise ValueError(f"{name} must be one finite number or more, got {got}")
    return array if higher == "out" else -array
