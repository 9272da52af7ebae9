"""Moments and their Monte Carlo errors where only batch means of the draws were kept.

Axes: K chains, B batches per chain, N locations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int

from isounc.checks import real_array


class BatchMoments(NamedTuple):
    """Moments per location from streamed batch means."""

    mean: Float[np.ndarray, "*N"]
    """Mean over all draws."""
    mean_se: Float[np.ndarray, "*N"]
    """Monte Carlo standard error of `mean`."""
    var: Float[np.ndarray, "*N"]
    """Variance over all draws, divisor K S."""
    var_se: Float[np.ndarray, "*N"]
    """Monte Carlo standard error of `var`."""


def batch_means_se(
    batch_means: Float[ArrayLike, "K B *N"],
    batch_square_means: Float[ArrayLike, "K B *N"],
    *,
    shift: Float[ArrayLike, "*N"] | float = 0.0,
    lengths: Int[ArrayLike, " B"] | None = None,
) -> BatchMoments:
    """Moments and their Monte Carlo errors where only batch means were kept.

    With a and b the batch means of p - c and (p - c)^2, m = mean a and n = K B batches:
    mean = c + m, var = mean b - m^2, se(mean) = sd(a) / sqrt(n) and, by the delta method,
    se(var) = sd(b - 2 m a) / sqrt(n). sd runs over the batches of all chains, so that chains that
    disagree widen both. Batches count by their lengths L, in sd^2(a) = sum w (a - m)^2 / (n - 1),
    w = L / mean L, too: the variance of a batch mean goes with 1 / L.

    Parameters
    ----------
    batch_means, batch_square_means
        From consecutive batches. Batches that are not much longer than the autocorrelation time
        give errors that are too small.
    shift
        c, the same for both. In float32 a c near the mean saves the variance from cancellation;
        with 0 the two are batch means of p and of p^2.
    lengths
        Draws of a chain in each batch, which may differ; None means equally many.

    Raises
    ------
    ValueError
        For arrays of different shapes, or fewer than 2 batches.
    """
    a = real_array("batch_means", batch_means).astype(np.float64)
    b = real_array("batch_square_means", batch_square_means).astype(np.float64)
    if a.shape != b.shape or a.ndim < 2 or a.shape[0] * a.shape[1] < 2:
        raise ValueError(
            "batch_means and batch_square_means must both be (chains, batches, locations...) with "
            f"2 batches or more, got shapes {a.shape} and {b.shape}"
        )
    if lengths is not None and np.shape(lengths) != a.shape[1:2]:
        raise ValueError(
            f"lengths must be one for each of the {a.shape[1]} batches, got shape "
            f"{np.shape(lengths)}"
        )
    m, mean_se = weighted_mean_and_se(a, lengths)
    var, var_se = weighted_mean_and_se(b - 2 * m * a + m**2, lengths)
    mean = real_array("shift", shift).astype(np.float64) + m
    return BatchMoments(mean, mean_se, np.maximum(var, 0.0), var_se)


def weighted_mean_and_se(
    batches: Float[np.ndarray, "K B *N"], lengths: Int[ArrayLike, " B"] | None = None
) -> tuple[Float[np.ndarray, "*N"], Float[np.ndarray, "*N"]]:
    """Mean over the draws of all batches, and its standard error from the spread of these."""
    count = batches.shape[0] * batches.shape[1]
    weight = np.ones(batches.shape[1]) if lengths is None else np.asarray(lengths, float)
    weight = (weight / weight.mean()).reshape(1, -1, *[1] * (batches.ndim - 2))
    mean = (weight * batches).mean((0, 1))
    var = (weight * (batches - mean) ** 2).sum((0, 1)) / (count - 1)
    return np.asarray(mean), np.asarray(np.sqrt(var / count))
