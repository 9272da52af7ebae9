"""Risk-coverage and rejection curves, the areas under which are AURC and PRR."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class RiskCoverage(NamedTuple):
    """The curves behind AURC and PRR; see `risk_coverage`."""

    coverage: Float[np.ndarray, " Q"]
    """k / Q for k = 1..Q: share of the answers kept, most certain first."""
    risk: Float[np.ndarray, " Q"]
    """Error rate of the answers kept."""
    best_risk: Float[np.ndarray, " Q"]
    """The same if all wrong answers came last."""
    rejected: Float[np.ndarray, " Q+1"]
    """Share of the answers rejected, 0..1, most uncertain first."""
    errors: Float[np.ndarray, " Q+1"]
    """Share of wrong answers left among all Q when the rejected ones are replaced by right ones."""
    random_errors: Float[np.ndarray, " Q+1"]
    """The same for rejection at random."""
    best_errors: Float[np.ndarray, " Q+1"]
    """The same if wrong answers are rejected first."""


def risk_coverage(
    uncertainty: Float[np.ndarray, " Q"], wrong: Bool[np.ndarray, " Q"]
) -> RiskCoverage:
    """Curves of an uncertainty; errors are spread evenly among equal values (random order).

    The mean of `risk` is the AURC. PRR is the area between `random_errors` and `errors` (by
    trapezoids in `rejected`) over that between `random_errors` and `best_errors`.

    Raises
    ------
    ValueError
        Lengths differ, there is no question, or an uncertainty is undefined.
    """
    if uncertainty.ndim != 1 or uncertainty.shape != wrong.shape or not len(wrong):
        raise ValueError(
            "uncertainty and wrong must have shape (Q,) with Q > 0, got "
            f"{uncertainty.shape} and {wrong.shape}"
        )
    if np.isnan(uncertainty).any():
        raise ValueError(
            f"uncertainty must be defined, got NaN at {np.isnan(uncertainty).sum()} of "
            f"{len(uncertainty)} questions"
        )
    bad = wrong.astype(np.float64)
    _, group, sizes = np.unique(uncertainty, return_inverse=True, return_counts=True)
    rates = np.bincount(group, weights=bad) / sizes
    left = np.r_[0.0, np.cumsum(np.repeat(rates, sizes))]
    n, total = len(uncertainty), bad.sum()
    best = np.maximum(0.0, np.arange(n + 1) - (n - total))
    kept = np.arange(1, n + 1)
    rejected = np.arange(n + 1) / n
    return RiskCoverage(
        kept / n, left[1:] / kept, best[1:] / kept,
        rejected, left[::-1] / n, total / n * (1 - rejected), best[::-1] / n,
    )  # fmt: skip
