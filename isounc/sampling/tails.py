"""How heavy the right tail of draws is: the shape k of a generalised Pareto distribution.

A mean of draws, and its standard error, say little where single draws that are rare decide about
it: with k above 1 the mean does not exist, above 1/2 the variance does not, and with n draws the
mean is not to be trusted if k exceeds min(1 - 1 / log10(n), 0.7).

Source: Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling", JMLR 25(72),
2024; the fit is that of Zhang and Stephens 2009, with the prior of the former. The numbers are
ArviZ's (`arviz.psislw` of the logarithms).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

LEAST_TAIL = 5
"""Fewest draws beyond the cutoff for a fit; with fewer k is infinite."""


def khat_bound(num_draws: int, most: float) -> float:
    """The largest k for which a mean of so many draws is trusted, at most `most`."""
    return min(1 - 1 / math.log10(max(num_draws, 11)), most)


def pareto_khat(x: Float[np.ndarray, "q n"]) -> Float[np.ndarray, " q"]:
    """K of the right tail of each row, from its largest min(n / 5, 3 sqrt(n)) draws."""
    n = x.shape[1]
    size = math.ceil(min(n / 5, 3 * math.sqrt(n)))
    largest = np.partition(x, n - size - 1, axis=1)[:, n - size - 1 :]
    tail = np.sort(largest[:, 1:], axis=1) - largest[:, :1]
    khat = np.full(len(x), np.inf)
    whole = tail[:, 0] > 0
    if whole.any() and size >= LEAST_TAIL:
        khat[whole] = _fit(tail[whole])
    for row in np.flatnonzero(~whole):
        # Draws that equal the cutoff are not beyond it.
        beyond = tail[row][tail[row] > 0]
        if len(beyond) >= LEAST_TAIL:
            khat[row] = _fit(beyond[None])[0]
    return khat


def _fit(tail: Float[np.ndarray, "q n"]) -> Float[np.ndarray, " q"]:
    """K of positive exceedances in ascending order, by the posterior mean of b = k / scale."""
    n = tail.shape[1]
    tail = tail / tail[:, -1:]  # of any scale, so that nothing underflows
    count = 30 + int(math.sqrt(n))
    spread = 1 - np.sqrt(count / (np.arange(1, count + 1) - 0.5))
    b = 1 + spread / (3 * tail[:, int(n / 4 + 0.5) - 1, None])
    b[b == 0] = 1e-12  # where k / b is 0 / 0; its limit is minus the mean
    k = np.log1p(-b[:, :, None] * tail[:, None, :]).mean(axis=2)
    log_likelihood = n * (np.log(-b / k) - k - 1)
    weights = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    weights[weights < 10 * np.finfo(float).eps] = 0
    b = (b * weights).sum(axis=1) / weights.sum(axis=1)
    k = np.log1p(-b[:, None] * tail).mean(axis=1)
    # A prior at 1/2 that weighs as much as ten draws.
    return (n * k + 5) / (n + 10)
