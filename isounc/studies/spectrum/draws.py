"""The covariance of posterior draws beside the prior's, and beside what chance alone makes of it.

All in prior coordinates z = theta / s, in which the prior's covariance is I. The sample covariance of
S independent draws of N(0, I) in P dimensions has eigenvalues between the edges (1 +- sqrt(P / S))^2
of Marchenko and Pastur's law, not at 1.

Source: Marchenko and Pastur 1967, Distribution of eigenvalues for some sets of random matrices.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from isounc.checks import check_count, check_real
from isounc.covariance import from_draws
from isounc.models import Model
from isounc.sampling.convergence import diagnose

NUM_PARAMS = 64
"""Parameters, evenly spaced, whose effective draws are counted."""


def marchenko_pastur_edges(num_params: int, num_draws: float) -> tuple[float, float]:
    """The ends of the nonzero part of the law, for unit variance.

    Raises
    ------
    ValueError
        For fewer than one parameter, or a number of draws that is not positive.
    """
    check_count("num_params", num_params, 1)
    root = math.sqrt(num_params / check_real("num_draws", num_draws, positive=True))
    return (1 - root) ** 2, (1 + root) ** 2


def marchenko_pastur_quantiles(
    num_params: int, num_draws: float, levels: Float[np.ndarray, " Q"]
) -> Float[np.ndarray, " Q"]:
    """Quantiles of the nonzero part of the law at levels between 0 and 1.

    The density is proportional to sqrt((b - x) (x - a)) / x between the edges a and b.
    """
    low, high = marchenko_pastur_edges(num_params, num_draws)
    # With x = middle - half cos(t), the roots at the edges become sines, and the sum converges fast.
    angle = np.linspace(0, np.pi, 4001)
    x = 0.5 * (low + high) - 0.5 * (high - low) * np.cos(angle)
    density = np.sin(angle) ** 2 / np.maximum(x, np.finfo(float).tiny)
    density[x <= 0] = 0.0  # P = S: the density is finite there
    steps = 0.5 * (density[1:] + density[:-1])
    cumulative = np.concatenate([[0.0], np.cumsum(steps)])
    return np.interp(levels, cumulative / cumulative[-1], x)


def effective_draws(draws: Float[np.ndarray, "T P"], num_chains: int) -> float:
    """Median effective sample size of some parameters' draws; at most T less the chains' means."""
    columns = np.unique(np.linspace(0, draws.shape[1] - 1, NUM_PARAMS).round().astype(int))
    found = diagnose(draws[:, columns].reshape(num_chains, -1, len(columns))).ess_mean
    finite = found[np.isfinite(found)]
    most = float(len(draws) - num_chains)
    return min(most, float(np.median(finite))) if len(finite) else most


def covariance_eigenvalues(
    white: Float[np.ndarray, "T P"], num_chains: int
) -> Float[np.ndarray, " Q"]:
    """Nonzero eigenvalues of the covariance of draws within their chains, largest first."""
    factor = np.asarray(from_draws(jnp.asarray(white), num_chains=num_chains).factor, float)
    num = min(factor.shape[0], factor.shape[1] - num_chains)
    gram = factor.T @ factor if factor.shape[1] < factor.shape[0] else factor @ factor.T
    return np.maximum(np.linalg.eigvalsh(gram)[::-1][:num], 0.0)


def numbers_of_draws(
    eigenvalues: Float[np.ndarray, " Q"], *, num_params: int, num_effective: float
) -> dict[str, float]:
    """How the eigenvalues lie to the prior's variance and to the law's upper edge."""
    edge = marchenko_pastur_edges(num_params, num_effective)[1]
    return {
        "draws_over_edge": float(np.log2(eigenvalues[0] / edge)),
        "draws_num_over_edge": float((eigenvalues > edge).sum()),
        "draws_variance": float(eigenvalues.sum() / num_params),
        "effective_draws": num_effective,
    }


def variance_along(
    theta: Float[np.ndarray, " P"],
    X: Float[np.ndarray, "N D"],
    draws: Float[np.ndarray, "T P"],
    num_chains: int,
    *,
    model: Model,
) -> Float[np.ndarray, " N"]:
    """g^T Sigma g with Sigma the covariance of the draws within their chains, summed over columns.

    It is the variance of g^T theta over them, so that Sigma is never formed.
    """
    dtype = jnp.result_type(float)
    groups = draws.reshape(num_chains, -1, draws.shape[1])
    centred = (groups - groups.mean(1, keepdims=True)).reshape(draws.shape)
    along = _along(*(jnp.asarray(a, dtype) for a in (theta, X, centred)), model=model)
    squares = (np.asarray(along, float) ** 2).sum(axis=(0, 2))
    return squares / (len(draws) - num_chains)


@functools.partial(jax.jit, static_argnames="model")
def _along(
    theta: Float[Array, " P"],
    X: Float[Array, "N D"],
    steps: Float[Array, "T P"],
    *,
    model: Model,
) -> Float[Array, "T N M"]:
    _, product = jax.linearize(lambda t: model.predict(t, X), theta)
    return jax.lax.map(product, steps)
