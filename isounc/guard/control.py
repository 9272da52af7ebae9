"""Thresholds that keep a promise about risk: exact tests of each, and MAPIE's control of their errors.

A threshold is tested on the calibration sample by the exact binomial p-value of "its risk is above the
target"; those that are rejected keep the promise, and the probability that any of them does not is
bounded over all of them (learn then test). The thresholds, and their order, are fixed before the labels
are looked at: by the user, or as quantiles of the scores.

Source: Angelopoulos, Bates, Candes, Jordan, Lei 2021, "Learn then test" (arXiv 2110.01052).
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import math
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

MOST_QUANTILES = 100
"""Thresholds that are tried where the scores' quantiles are."""
MOST_THRESHOLDS = 10_000
"""Thresholds that a user may give."""
_NAMES = {"holm": "bonferroni_holm"}


class Promise(NamedTuple):
    """What is promised, and how."""

    target_risk: float
    """Largest share of wrong answers among the accepted ones."""
    target_false_alarm: float | None
    """Largest share of right answers that are not accepted, if anything is promised of it."""
    confidence: float
    """Probability of keeping it, over calibration samples."""
    method: str
    """One of `isounc.guard.certificate.METHODS`."""


def mapie(module: str) -> ModuleType:
    """A module of MAPIE.

    Raises
    ------
    ImportError
        It is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(f"mapie.{module}")
    except ModuleNotFoundError as error:
        if error.name != "mapie":
            raise
        raise ImportError(
            "fitting or watching a guard needs the package mapie: pip install isounc[guard]"
        ) from error


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computes thresholds; looking them up takes milliseconds."""
    return {name: importlib.metadata.version(name) for name in ("isounc", "mapie", "numpy")}


def fewest_accepted(promise: Promise) -> int:
    """Accepted answers, all of them right, that a threshold needs to be certified.

    The smallest k with (1 - target_risk)^k <= 1 - confidence.
    """
    return math.ceil(math.log(1 - promise.confidence) / math.log1p(-promise.target_risk) - 1e-9)


def quantile_thresholds(
    certainty: Float[np.ndarray, " N"], promise: Promise
) -> Float[np.ndarray, " T"]:
    """Thresholds at ranks of the calibration scores, from the safest on.

    The first accepts so many answers that it would be certified with wrong ones at half the target
    rate or, where that is more than half of the sample, so many that it is if all of them are right;
    the last accepts all. Nothing of this depends on the labels. Equal scores are one threshold, and
    infinite ones are none.
    """
    from scipy.stats import binom

    k = np.arange(1, len(certainty) // 2 + 1)
    at_half = binom.cdf(np.ceil(k * promise.target_risk / 2), k, promise.target_risk)
    enough = np.flatnonzero(at_half <= 1 - promise.confidence)
    first = int(k[enough[0]]) if len(enough) else fewest_accepted(promise)
    if first > len(certainty):
        return np.empty(0)
    ranks = np.unique(np.linspace(first, len(certainty), MOST_QUANTILES).round().astype(int))
    safest_first = np.sort(certainty)[::-1]
    thresholds = -np.unique(-safest_first[ranks - 1])
    return thresholds[np.isfinite(thresholds)]


def certified(
    certainty: Float[np.ndarray, " N"],
    correct: Bool[np.ndarray, " N"],
    thresholds: Float[np.ndarray, " T"],
    promise: Promise,
) -> Float[np.ndarray, " V"]:
    """The thresholds of certainty, given from the safest on, that keep the promise.

    The p-value of a threshold that accepts k answers, w of them wrong, is P(Binomial(k, alpha) <= w);
    that of two promises is the larger one.
    """
    from scipy.stats import binom

    accepted = certainty >= thresholds[:, None]
    num_accepted = accepted.sum(axis=1)
    p_values = binom.cdf((accepted & ~correct).sum(axis=1), num_accepted, promise.target_risk)
    if promise.target_false_alarm is not None:
        missed, right = (~accepted & correct).sum(axis=1), int(correct.sum())
        p_values = np.maximum(p_values, binom.cdf(missed, right, promise.target_false_alarm))
    control_fwer = mapie("risk_control").control_fwer
    method = _NAMES.get(promise.method, promise.method)
    return thresholds[control_fwer(p_values, 1 - promise.confidence, method)]
