"""Moments of the softmax under Gaussian logits for four classes and more, by importance sampling.

Quasi-random nodes come from a mixture of Gaussians with one component at the peak of each class's
integrand: the variance of a confident prediction is made many standard deviations from the mean.
`isounc.estimates.links` calls it. Axes: C classes, R = C - 1 directions in which they differ.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

_NOMINAL, _EVEN = 0.15, 0.6  # shares of the nodes about the mean, and equally about every peak
_NEWTON_STEPS = 10
_SMALL = 1e-12  # variance of a logit that rounding leaves


@functools.lru_cache
def normal_nodes(num_nodes: int, dimension: int) -> np.ndarray:
    """Scrambled Sobol points (fixed seed) as standard normal nodes, (dimension, num_nodes)."""
    from scipy import special
    from scipy.stats import qmc  # a second to import, for four classes and more

    points = qmc.Sobol(dimension, scramble=True, rng=0).random(num_nodes)
    return np.ascontiguousarray(special.ndtri(points).T)


def half_of_logits(cov: Float[Array, "C C"]) -> Float[Array, "C R"]:
    """F with F F^T the covariance of the logits less their average, largest direction first.

    Derivatives are those of F + (cov - F F^T) F^+T / 2, whose square is cov to first order within
    the range of cov: eigenvectors have no derivative where eigenvalues coincide.
    """
    num_classes = cov.shape[0]
    centre = jnp.eye(num_classes, dtype=cov.dtype) - 1 / num_classes
    centred = centre @ cov @ centre
    values, vectors = lax.stop_gradient(jnp.linalg.eigh(centred))
    values, vectors = jnp.maximum(values[:0:-1], 0), vectors[:, :0:-1]
    noise = 10 * num_classes * float(jnp.finfo(cov.dtype).eps) * values[0] + _SMALL
    inverse = jnp.where(values > noise, lax.rsqrt(jnp.maximum(values, noise)), 0)
    change = centred - lax.stop_gradient(centred)
    return vectors * jnp.sqrt(values)[None, :] + 0.5 * change @ (vectors * inverse[None, :])


def proposals(
    mean: Float[Array, " C"], half: Float[Array, "C R"]
) -> tuple[Float[Array, "C R"], Float[Array, " C"]]:
    """Peaks z_c of phi(z) p_c(mean + F z)^2, and the share of the nodes about each.

    Newton steps on the logarithm, which is concave, each the best of five lengths. Shares follow
    the Laplace approximation of E[p_c^2] over a common floor; the top class has the floor only, as
    its variance is that of the others' sum.
    """
    mean, half = lax.stop_gradient((mean, half))
    eye = jnp.eye(half.shape[1], dtype=mean.dtype)
    lengths = jnp.array([1, 0.5, 0.25, 0.1, 0.03], mean.dtype)

    def at_class(c):
        def height(z):
            return 2 * jax.nn.log_softmax(mean + half @ z)[c] - 0.5 * z @ z

        def slopes(z):
            p = jax.nn.softmax(mean + half @ z)
            average = p @ half
            spread = half - average[None, :]
            return 2 * (half[c] - average) - z, eye + 2 * (spread * p[:, None]).T @ spread

        def newton_step(_, z):
            gradient, curvature = slopes(z)
            step = jnp.linalg.solve(curvature, gradient)
            candidates = z[None, :] + lengths[:, None] * step[None, :]
            return candidates[jnp.argmax(jax.vmap(height)(candidates))]

        z = lax.fori_loop(0, _NEWTON_STEPS, newton_step, jnp.zeros_like(half[0]))
        return z, height(z) - 0.5 * jnp.linalg.slogdet(slopes(z)[1])[1]

    classes = jnp.arange(mean.shape[0])
    peaks, log_mass = jax.vmap(at_class)(classes)
    mass = jax.nn.softmax(jnp.where(classes == jnp.argmax(mean), -jnp.inf, log_mass))
    return peaks, _EVEN / mean.shape[0] + (1 - _NOMINAL - _EVEN) * mass


def many_classes(
    nodes: Float[Array, "R n"],
    mean: Float[Array, " C"],
    half: Float[Array, "C R"],
    peaks: Float[Array, "C R"],
    shares: Float[Array, " C"],
):
    """Four classes and more at one location: importance sampling with quasi-random nodes.

    The nodes are those of sum_j r_j N(z_j, I), with z_0 = 0 and the others at the peaks, for each j
    a run of the Sobol sequence. The weights phi(z) / sum_j r_j phi(z - z_j), at most 1 / r_0, are
    the balance heuristic of Veach and Guibas 1995, "Optimally combining sampling techniques for
    Monte Carlo rendering"; they are normalised to sum to 1.
    """
    num_nodes = nodes.shape[1]

    def rule():
        centres = jnp.concatenate([jnp.zeros_like(peaks[:1]), peaks])
        nominal = jnp.full_like(shares[:1], _NOMINAL)
        stops = jnp.round(jnp.cumsum(jnp.concatenate([nominal, shares])) * num_nodes)
        stops = stops.at[-1].set(num_nodes)
        starts = jnp.concatenate([jnp.zeros_like(nominal), stops[:-1]])
        index = jnp.arange(num_nodes, dtype=mean.dtype)[None, :]
        member = (index >= starts[:, None]) & (index < stops[:, None])
        z = nodes + centres.T @ member.astype(mean.dtype)
        log_share = jnp.log(jnp.maximum((stops - starts) / num_nodes, 1e-30))
        ratio = centres @ z + (log_share - 0.5 * (centres**2).sum(1))[:, None]
        return z, jax.nn.softmax(-jax.nn.logsumexp(ratio, axis=0))

    z, weight = lax.stop_gradient(rule())
    p = jax.nn.softmax(mean[:, None] + half @ z, axis=0)
    p0 = jax.nn.softmax(mean)
    # Next to 1, a top class is known by the sum of the others: its own digits are used up.
    is_top = (jnp.arange(mean.shape[0]) == jnp.argmax(mean))[:, None]
    rest = jnp.where(is_top, 0, p).sum(0)[None, :]
    step = p - p0[:, None]
    step = jnp.where(is_top, -jnp.where(is_top, 0, step).sum(0)[None, :], step)
    shift = step @ weight
    var = (step - shift[:, None]) ** 2 @ weight
    label = (p * jnp.where(is_top, rest, 1 - p)) @ weight
    return p0 + shift, var, label
