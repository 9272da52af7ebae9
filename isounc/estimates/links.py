"""Moments of sigmoid and softmax under Gaussian logits: E[p], Var[p] and E[p (1 - p)].

The variance of a confident prediction is a tail integral: it is made by logits many standard
deviations from their mean, where rules with nodes about the mean (Gauss-Hermite, plain Monte Carlo)
have none. Here the nodes go where the integrand is:

    2 classes    one integral over the logit, nodes dense where the sigmoid bends;
    3 classes    the same rule for one contrast given the other, inside panels over the other;
    4 and more   quasi-Monte Carlo from a mixture of Gaussians, one at the peak of each integrand.

Everything is deterministic, and differentiable in mean and covariance: a derivative holds nodes and
weights fixed, so that it is the same rule applied to the derivative of the integrand.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Real

from isounc.checks import check_count
from isounc.estimates import softmax_quadrature

_TAIL = 7.0  # standard deviations kept beyond the outermost peak; 1e-10 of a variance lies outside
_FAR = 13.0  # peaks further out than this many standard deviations weigh less than 1e-36
_SIGMOID_NODES = 128
_INNER_NODES, _PANEL_NODES = 40, 48
_SMALL_VAR = 1e-12  # of a logit: below it the delta method errs less than the quadrature
_SMALL_CONTRAST_VAR = 1e-5  # of logit differences: the same, set by rounding in float32


class LinkMoments(NamedTuple):
    """Moments of p = link(f) under Gaussian logits f; var + label_var = mean (1 - mean)."""

    mean: Float[Array, "*B"]
    """E[p]."""
    var: Float[Array, "*B"]
    """Var[p], epistemic."""
    label_var: Float[Array, "*B"]
    """E[p (1 - p)], aleatoric."""


def sigmoid_normal_moments(
    mean: Real[Array | np.ndarray, "*B"], var: Real[Array | np.ndarray, "*B"]
) -> LinkMoments:
    """E[p], Var[p] and E[p (1 - p)] of p = 1 / (1 + exp(-f)), f ~ N(mean, var), elementwise.

    With m = -|mean| (the rest by symmetry) and s = sqrt(var), the trapezoidal rule in t, where
    f = m + s z = sinh(t):

        E[g(f)] = int phi(z) g(f) dz,    dz = cosh(t) / s dt,    -7 < z < u + 7,
        u = min(2 s, max(-m / s, 0) + 3).

    Nodes are dense on the scale 1 of the sigmoid and sparse on the scale s of the Gaussian. The
    peak of phi(z) p^2, which is log-concave, lies at z = 2 s (1 - p) < u. Moments are those of
    p - sigmoid(m), in a form that does not cancel; below var = 1e-12 the delta method takes over.

    Parameters
    ----------
    mean, var
        Moments of the logit, of one shape. A negative variance (rounding) counts as 0.

    Returns
    -------
    LinkMoments
        Arrays of that shape, float32 or float64. Relative errors at any mean and variance: below
        1e-6 in float64, 2e-4 in float32. What underflows is 0.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    mean, var = _floats(mean, var)
    if mean.shape != var.shape:
        raise ValueError(f"mean and var must have one shape, got {mean.shape} and {var.shape}")
    moments = _in_chunks(_sigmoid_location, (mean.ravel(), var.ravel()), _SIGMOID_NODES)
    return LinkMoments(*(x.reshape(mean.shape) for x in moments))


def softmax_normal_moments(
    mean: Real[Array | np.ndarray, "*B C"],
    cov: Real[Array | np.ndarray, "*B C C"],
    *,
    num_nodes: int = 8192,
) -> LinkMoments:
    """E[p_c], Var[p_c] and E[p_c (1 - p_c)] of p = softmax(f), f ~ N(mean, cov), C >= 2 classes.

    Only the C - 1 differences of logits matter; cov may be singular or zero. Two classes are the
    sigmoid of their difference, three a nested quadrature (`_three_classes`), more a quasi-Monte
    Carlo estimate (`isounc.estimates.softmax_quadrature`); where all differences have variances
    below 1e-5, the delta method. Prefer one batched call to `jax.vmap`: a batch is computed in
    chunks of bounded memory.

    Parameters
    ----------
    mean, cov
        Moments of the logits; cov is symmetric, and positive semidefinite up to rounding.
    num_nodes
        Nodes per location for four classes and more, a power of two.

    Returns
    -------
    LinkMoments
        Arrays (*B, C). Relative errors measured with means up to 15 and standard deviations of
        logit differences from 0.01 to 30: for two classes those of `sigmoid_normal_moments`. For
        three, below 1e-5 in the variance of each class and 2e-4 in the other moments in float64; in
        float32 2e-4, but for a class whose log probability varies far less than others (1e-3 of
        their sd), of which rounding leaves less.
        For four to ten below 1% in the variance summed over the classes, mostly below 0.3%, and 6%
        in the sum of E[p_c (1 - p_c)]; there a single class may err by 10% or more.

    Raises
    ------
    ValueError
        If the shapes do not fit, there is one class only, or num_nodes is not a power of two.
    """
    mean, cov = _floats(mean, cov)
    num_classes = mean.shape[-1] if mean.ndim else 0
    if num_classes < 2 or cov.shape != (*mean.shape, num_classes):
        raise ValueError(
            "mean must have shape (..., C) with C >= 2 and cov (..., C, C), "
            f"got {mean.shape} and {cov.shape}"
        )
    check_count("num_nodes", num_nodes, 8)
    if num_nodes & (num_nodes - 1):
        raise ValueError(f"num_nodes must be a power of two, got {num_nodes}")
    rows = mean.reshape(-1, num_classes), cov.reshape(-1, num_classes, num_classes)
    # Tensor cores and TPUs would round products of matrices to a few digits.
    with jax.default_matmul_precision("highest"):
        if num_classes == 2:
            moments = _in_chunks(_two_classes, rows, 2 * _SIGMOID_NODES)
        elif num_classes == 3:
            moments = _in_chunks(_three_classes, rows, 5 * _PANEL_NODES * _INNER_NODES)
        else:
            nodes = jnp.asarray(
                softmax_quadrature.normal_nodes(num_nodes, num_classes - 1), mean.dtype
            )
            # Once: where eigenvalues coincide, every evaluation may choose other eigenvectors.
            halves = jax.vmap(softmax_quadrature.half_of_logits)(rows[1])
            proposals = _in_chunks(softmax_quadrature.proposals, (rows[0], halves), num_classes**3)
            sample = functools.partial(softmax_quadrature.many_classes, nodes)
            moments = _in_chunks(sample, (rows[0], halves, *proposals), num_nodes * num_classes)
        small, delta = jax.vmap(_delta_method)(*rows)
    chosen = (jnp.where(small[:, None], a, b) for a, b in zip(delta, moments, strict=True))
    return LinkMoments(*(x.reshape(mean.shape) for x in chosen))


def _floats(*arrays) -> list[jax.Array]:
    """Arrays of one floating type, at least float32."""
    dtype = jnp.promote_types(jnp.result_type(float, *arrays), jnp.float32)
    return [jnp.asarray(x, dtype) for x in arrays]


def _in_chunks(function: Callable, rows: Sequence[jax.Array], num_nodes: int):
    """`function` of one location, for all N, in chunks that keep N x num_nodes out of memory."""
    # A CPU is fastest while a chunk fits its cache, an accelerator once a chunk fills it.
    elements = 2**15 if jax.default_backend() == "cpu" else 2**24
    size, count = max(1, elements // num_nodes), rows[0].shape[0]
    if count <= size:
        return jax.vmap(function)(*rows)
    # Whole chunks only: a remainder would be compiled as a second program.
    pad = -count % size
    rows = [jnp.concatenate([x, jnp.repeat(x[:1], pad, axis=0)]) for x in rows]
    # A backward pass computes the nodes again; it would otherwise hold those of all chunks at once.
    row_function = jax.checkpoint(lambda row: function(*row), prevent_cse=False)
    return jax.tree.map(lambda x: x[:count], lax.map(row_function, rows, batch_size=size))


def _sigmoid_rule(
    mean: Float[Array, "*B"], sd: Float[Array, "*B"], num_nodes: int
) -> tuple[Float[Array, "*B n"], Float[Array, "*B n"]]:
    """Nodes z and weights phi(z) dz for functions of sigmoid(mean + sd z), sd > 0."""
    peak = jnp.minimum(2 * sd, jnp.maximum(-mean / sd, 0) + 3)
    root, t_mean = jnp.hypot(1.0, mean), jnp.arcsinh(mean)

    def t_beyond(z):
        # arcsinh(f) - arcsinh(mean), in a form that also holds where f is close to the mean.
        step = sd * z
        f = mean + step
        ahead, back = f * root, mean * jnp.hypot(1.0, f)
        same_side = f * mean > 0
        ratio = step * (f + mean) / jnp.where(same_side, ahead + back, 1)
        return jnp.arcsinh(jnp.where(same_side, ratio, ahead - back))

    start, stop = t_beyond(jnp.full_like(mean, -_TAIL)), t_beyond(peak + _TAIL)
    h = (stop - start) / (num_nodes - 1)
    index = jnp.arange(num_nodes, dtype=mean.dtype).reshape((1,) * mean.ndim + (-1,))
    half = (start[..., None] + h[..., None] * index) / 2
    # sinh(t) - sinh(t_mean) = 2 cosh(t_mean + half) sinh(half), all from one exponential.
    up, down = jnp.exp(t_mean)[..., None], jnp.exp(-t_mean)[..., None]
    growth = jnp.expm1(half)
    scale = 1 + growth
    z = 0.5 * (up * scale + down / scale) * (growth + growth / scale) / sd[..., None]
    slope = 0.5 * (up * scale**2 + down / scale**2)
    weight = slope * jnp.exp(-0.5 * z**2) * (h / sd / math.sqrt(2 * math.pi))[..., None]
    return z, weight


def _sigmoid_quadrature(mean: Float[Array, "*B"], sd: Float[Array, "*B"], num_nodes: int):
    """E[p] - sigmoid(mean), Var[p] and E[p (1 - p)]."""
    z, weight = lax.stop_gradient(_sigmoid_rule(mean, sd, num_nodes))
    step = sd[..., None] * z
    f = mean[..., None] + step
    ratio = jnp.exp(-jnp.abs(f))
    large = 1 / (1 + ratio)
    small = ratio * large
    p, q = jnp.where(f > 0, large, small), jnp.where(f > 0, small, large)
    p0, q0 = jax.nn.sigmoid(mean)[..., None], jax.nn.sigmoid(-mean)[..., None]
    # p - p0 = tanh(step / 2) (p q0 + q p0): exact to rounding, however small the step.
    deviation = jnp.tanh(step / 2) * (p * q0 + q * p0)
    # Products of small weights and small squares underflow long before their sum does.
    guard = float(jnp.finfo(mean.dtype).tiny) ** -0.5
    weight = weight * guard
    weighted = weight * deviation
    shift = weighted.sum(-1) / guard
    square = (weighted * deviation).sum(-1) / guard
    return shift, jnp.maximum(square - shift**2, 0), (weight * p * q).sum(-1) / guard


def _sigmoid_location(mean: Float[Array, ""], var: Float[Array, ""]):
    """The three moments of one sigmoid."""
    below = -jnp.abs(mean)
    var = jnp.where(var < 0, 0, var)  # a maximum would halve the derivative at 0
    sd = jnp.sqrt(jnp.maximum(var, _SMALL_VAR))
    # Beyond sd = 3e4 only mean / sd matters for E[p], to 8 digits, and E[p (1 - p)] falls as 1 / sd;
    # digits of mean + sd z, of which those about 0 count, would be lost. Var[p] is the rest of
    # E[p] (1 - E[p]). Beyond |mean| = 1e8 all is 0.
    shrink = 1 / jnp.maximum(sd / 3e4, 1)
    near = jnp.maximum(below * shrink, -1e8)
    p, q = jax.nn.sigmoid(near), jax.nn.sigmoid(-near)
    shift, wide, label = _sigmoid_quadrature(near, sd * shrink, _SIGMOID_NODES)
    wide, label = wide + label * (1 - shrink), label * shrink
    tiny = var < _SMALL_VAR
    shift = jnp.where(tiny, 0.5 * var * p * q * (q - p), shift)
    wide = jnp.where(tiny, var * (p * q) ** 2, wide)
    label = jnp.where(tiny, p * q * (1 + 0.5 * var * (1 - 6 * p * q)), label)
    return jnp.where(mean > 0, q - shift, p + shift), wide, label


def _two_classes(mean: Float[Array, "2"], cov: Float[Array, "2 2"]):
    """Both classes at one location, each the sigmoid of its lead over the other."""
    var = jnp.full(2, cov[0, 0] + cov[1, 1] - cov[0, 1] - cov[1, 0])
    return jax.vmap(_sigmoid_location)(mean - mean[::-1], var)


def _max_contrast_var(cov: Float[Array, "C C"]) -> Float[Array, ""]:
    """Largest variance of a difference of two logits."""
    diagonal = jnp.diag(cov)
    return jnp.maximum((diagonal[:, None] + diagonal[None, :] - cov - cov.T).max(), 0)


def _delta_method(
    mean: Float[Array, " C"], cov: Float[Array, "C C"]
) -> tuple[Bool[Array, ""], tuple[Float[Array, " C"], ...]]:
    """Whether the logits hardly vary, and then the moments: E[p] to second order, Var[p] to first.

    Var[p_c] = J_c cov J_c^T with J_cj = p_c (1[c = j] - p_j). Logits are taken relative to the top
    class, so that nothing cancels where its probability is next to 1.
    """
    top = jnp.argmax(mean)
    is_top = jnp.arange(mean.shape[0]) == top
    p = jax.nn.softmax(mean)
    rest = jnp.where(is_top, 0, p).sum()
    cov = cov - cov[top][None, :] - cov[:, top][:, None] + cov[top, top]
    across = cov @ p
    log_var = jnp.diag(cov) - 2 * across + p @ across
    log_var = jnp.where(log_var < 0, 0, log_var)
    shift = 0.5 * p * (log_var - p @ jnp.diag(cov) + p @ across)
    var = p**2 * log_var
    label = p * jnp.where(is_top, rest, 1 - p) + shift * (1 - 2 * p) - shift**2 - var
    return _max_contrast_var(cov) < _SMALL_CONTRAST_VAR, (p + shift, var, label)


def _panel_rule(cuts: Float[Array, "6"], width: Float[Array, ""], num_nodes: int):
    """Nodes and weights (5, num_nodes) between sorted cuts, dense within `width` of each cut.

    x = left - width + (length + 2 width) sigmoid(u), with Gauss-Legendre nodes in u: dx is about
    width du at both ends of a panel, and grows with the distance from them.
    """
    legendre = np.polynomial.legendre.leggauss(num_nodes)
    node, weight = (jnp.asarray(x, cuts.dtype)[None, :] for x in legendre)
    left, length = cuts[:-1, None], jnp.diff(cuts)[:, None]
    reach = jnp.log1p(length / width)
    at = jax.nn.sigmoid(reach * node)
    span = length + 2 * width
    return left - width + span * at, weight * reach * span * at * (1 - at)


def _three_classes(mean: Float[Array, "3"], cov: Float[Array, "3 3"]):
    """Three classes at one location: the top class k against i and j, given f_i - f_j.

    With a = f_i - f_j, h = f_k - (f_i + f_j) / 2 and b = log(2 cosh(a / 2)) - h,

        p_k = sigmoid(-b),    p_i = sigmoid(a) sigmoid(b),    p_j = sigmoid(-a) sigmoid(b).

    Given a, b is Gaussian: moments of sigmoid(b) are those of one sigmoid. Over a = E[a] + sd z,
    panels are cut at 0, where the Gaussian is, where sigmoid(a) bends and, as b may be all but known
    from a, where sigmoid(b) does, at |a| / 2 = E[h | a].
    """
    order = jnp.argsort(mean)
    contrasts = jnp.array([[1, -1, 0], [-0.5, -0.5, 1]], mean.dtype)
    mean_a, mean_h = contrasts @ mean[order]
    (var_a, cov_ah), (_, var_h) = contrasts @ cov[order][:, order] @ contrasts.T
    largest = lax.stop_gradient(_max_contrast_var(cov))
    floor = float(jnp.finfo(cov.dtype).eps) * jnp.maximum(largest, _SMALL_CONTRAST_VAR)
    sd_a = jnp.sqrt(jnp.maximum(var_a, floor))
    slope = cov_ah / sd_a  # of E[h | z]
    sd_h = jnp.sqrt(jnp.maximum(var_h - slope**2, floor))

    def outer_rule():
        # Peaks lie within twice the covariances of z with the differences a and h -+ a / 2.
        reach = 2 * jnp.maximum(sd_a, jnp.abs(slope) + 0.5 * sd_a)
        end = _TAIL + jnp.minimum(reach, _FAR)
        sign = jnp.array([1, -1], mean.dtype)
        steep = 0.5 * sign * sd_a - slope
        bends = (mean_h - 0.5 * sign * mean_a) / jnp.where(steep == 0, _SMALL_VAR, steep)
        cuts = jnp.stack([-end, end, jnp.zeros_like(end), -mean_a / sd_a, *bends])
        cuts = jnp.clip(cuts, -end, end)
        width = jnp.minimum(1 / sd_a, (1 + sd_h) / (sd_a + jnp.abs(slope)))
        z, dz = _panel_rule(jnp.sort(cuts), jnp.minimum(width, end), _PANEL_NODES)
        return z.ravel(), (dz * jnp.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)).ravel()

    z, weight = lax.stop_gradient(outer_rule())
    a = mean_a + sd_a * z
    mean_b = jnp.logaddexp(a / 2, -a / 2) - mean_h - slope * z
    shift, var_b, label_b = _sigmoid_quadrature(mean_b, jnp.full_like(z, sd_h), _INNER_NODES)
    p_b = (jax.nn.sigmoid(mean_b) + shift)[None, :]
    # Rows i, j and "not k": p = factor sigmoid(b), and 1 - p = sigmoid(-b) + other sigmoid(b).
    factor = jnp.stack([jax.nn.sigmoid(a), jax.nn.sigmoid(-a), jnp.ones_like(a)])
    other = jnp.stack([factor[1], factor[0], jnp.zeros_like(a)])
    p = factor * p_b
    first = p @ weight
    # E[Var[p | a]] + Var[E[p | a]]
    var = (factor**2 * var_b[None, :] + (p - first[:, None]) ** 2) @ weight
    label = (factor * (label_b[None, :] + other * (var_b[None, :] + p_b**2))) @ weight
    back = jnp.argsort(order)
    return first.at[2].set(1 - first[2])[back], var[back], label[back]


LINK_MOMENTS: dict[str, Callable[[Float[Array, "N O"], Float[Array, "N O O"]], LinkMoments]] = {
    "sigmoid": lambda mean, cov: sigmoid_normal_moments(mean, cov[:, :, 0]),
    "softmax": softmax_normal_moments,
}
"""Moments of a likelihood's prediction (N, M) under Gaussian outputs, by `Likelihood.link`.

The link-aware estimate of a likelihood whose link is not here is the first-order one.
"""
