"""Norms and inner products of gradients A^T G, without forming them where that is cheaper.

A (B, T, C) holds data and G (B, T, O) cotangents, over B products, T rows, C inputs and O outputs;
the gradient has a part A_b^T G_b for each b. Three methods give its squared norm:

    rank one    ||A||^2 ||G||^2 for a single row
    gram        sum_st (A A^T)_st (G G^T)_st, unless these terms cancel (`unless_cancelled`)
    direct      the sum of squares of A^T G

A single row is first reduced to its norm, so that A need not be held until G is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

Factors = dict[int, Float[Array, "R _"] | Int[Array, " R"]]
"""Factors of the gradient of a two-dimensional leaf: R rows for each axis of the leaf, or R indices
in place of rows that are one-hot. The gradient is the sum over R of the rows' outer products."""

MOST_CANCELLED = 16
"""Cancellation of the terms of a Gram form, over that of rows that have nothing in common, above
which the gradient is formed instead."""
BLOCK = 2**16
"""Number of gradient entries that are formed at a time in place of a Gram form."""


Residual = Num[Array, "*residual"]
"""Data, or their squared norm, kept from the forward for the backward pass."""
Rows = Callable[[Num[Array, "*data"]], Num[Array, "B T C"]]
"""Function from the data to A."""


class Part(NamedTuple):
    """One of several gradients of a leaf that add up."""

    scale: float
    """Constant that the gradient is multiplied by."""
    factors: Factors
    """Its factors."""
    sq_norm: Float[Array, ""] | None
    """Its squared norm without the constant, if there is a cheaper way to it than its factors."""


class Cost(NamedTuple):
    """Cost of a squared norm beside the function's own forward and backward pass."""

    method: str
    """rank one, gram, direct, or for a table's rows rank one, rows, sums."""
    operations: int
    """Multiply-adds per example."""


def cost(b: int, t: int, c: int, o: int) -> Cost:
    """Return the cheapest method for A (b, t, c) and G (b, t, o)."""
    if t == 1:
        return Cost("rank one", b * (c + o))
    gram, direct = b * t * t * (c + o + 1), b * t * c * o
    return Cost("gram", gram) if gram <= direct else Cost("direct", direct)


def sum_of_squares(a: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Return ||a||^2 by a dot product, as XLA would write squares to memory before adding them."""
    with jax.default_matmul_precision("highest"):
        return jnp.vdot(a, a)


def residual(a: Num[Array, "*data"], rows: Rows, method: str, dtype: np.dtype) -> Residual:
    """Return all that `sq_norm` and `gram` need of the data: (B,) for rank one, else the data."""
    if method != "rank one":
        return a
    A = rows(a).astype(dtype)
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("btc,btc->b", A, A)


def sq_norm(
    residual: Residual, rows: Rows, G: Float[Array, "B T O"], method: str, dtype: np.dtype
) -> Float[Array, ""]:
    """Return ||A^T G||^2 from the residual of the data."""

    def formed(G: Float[Array, "B T O"]) -> Float[Array, ""]:
        # The rows are made anew in a branch, so that they need not be held for it.
        with jax.default_matmul_precision("highest"):
            A = rows(residual).astype(dtype)
            return sum_of_squares(jnp.einsum("btc,bto->bco", A, G.astype(dtype)))

    if method == "direct":
        return formed(G)
    scaled = G.astype(dtype)
    with jax.default_matmul_precision("highest"):
        if method == "rank one":
            # ||G||^2 alone would leave the range of float32 sooner than ||A|| ||G|| does.
            scale = lax.stop_gradient(jnp.sqrt(residual))[:, None, None]
            scale = jnp.where(scale > 0, scale, 1)
            scaled = lax.optimization_barrier(scaled * scale)
            unit = residual / scale[:, 0, 0] ** 2
            return (unit * jnp.einsum("bto,bto->b", scaled, scaled)).sum()
        A = rows(residual).astype(dtype)
        kernels = jnp.einsum("bsc,btc->bst", A, A), jnp.einsum("bso,bto->bst", scaled, scaled)
    num = -(-A.shape[0] * A.shape[2] * G.shape[2] // BLOCK)
    return unless_cancelled(*kernels, lambda: _sum_over_columns(formed, G, num))


def _sum_over_columns(
    part: Callable[[Float[Array, "B T _"]], Float[Array, ""]], G: Float[Array, "B T O"], num: int
) -> Float[Array, ""]:
    """Return the sum of a function of `num` groups of columns.

    XLA reserves the memory of a branch that it may never take: hence the groups.
    """
    if num == 1:
        return part(G)
    G = jnp.pad(G, ((0, 0), (0, 0), (0, -G.shape[2] % num)))
    groups = jnp.moveaxis(G.reshape(*G.shape[:2], num, -1), 2, 0)
    return lax.map(part, groups).sum()


def gram(
    residual: Residual, rows: Rows, G: Float[Array, "K B T O"], method: str, dtype: np.dtype
) -> Float[Array, "K K"]:
    """Return <A^T G_k, A^T G_l> for K cotangents, from the residual of the data."""
    G = G.astype(dtype)
    with jax.default_matmul_precision("highest"):
        if method == "rank one":
            return jnp.einsum("kbto,lbto->kl", G * residual[None, :, None, None], G)
        A = rows(residual).astype(dtype)

        def formed() -> Float[Array, "K K"]:
            gradients = jnp.einsum("btc,kbto->kbco", A, G)
            return jnp.einsum("kbco,lbco->kl", gradients, gradients)

        if method == "direct":
            return formed()
        kernel = jnp.einsum("bsc,btc->bst", A, A)
        value = jnp.einsum("kbso,lbso->kl", jnp.einsum("bst,kbto->kbso", kernel, G), G)
        lengths = jnp.einsum("btt,kbto,kbto->k", kernel, G, G)
        return lax.cond(_cancelled(jnp.diagonal(value), lengths), formed, lambda: value)


def unless_cancelled(
    A_kernel: Float[Array, "*B S S"],
    G_kernel: Float[Array, "*B S S"],
    formed: Callable[[], Float[Array, ""]],
) -> Float[Array, ""]:
    """Return sum_st (A A^T)_st (G G^T)_st, or `formed()` where its terms cancel.

    Gram matrices give ||A^T G||^2 to about eps S^2 with S = sum_t ||a_t|| ||g_t||, and forming
    A^T G gives it to about eps S ||A^T G||. With D = sum_t ||a_t||^2 ||g_t||^2, the sum's diagonal
    and what it is for rows that have nothing in common, S^2 is at most T D for T rows. So where D
    is at most `MOST_CANCELLED` times the result, its relative error is at most about
    `MOST_CANCELLED` T eps, and far less where rounding errors are independent. Everywhere else
    `formed` is used: it is computed only if an example of the batch needs it, also under `jax.vmap`.
    """
    rows, cotangents = (
        lax.stop_gradient(jnp.diagonal(kernel, axis1=-2, axis2=-1))
        for kernel in (A_kernel, G_kernel)
    )
    value = (A_kernel * G_kernel).sum()
    # Huge data may meet tiny cotangents, whose squares have left the range of their type.
    largest = jnp.maximum(rows.max(initial=0), cotangents.max(initial=0))
    lost = (value < 2.0**-100) & (largest > 2.0**24)
    cancelled = _cancelled(value, (rows * cotangents).sum(), lost)
    return lax.cond(cancelled, formed, lambda: value)


def _cancelled(
    value: Float[Array, "*K"],
    diagonal: Float[Array, "*K"],
    lost: Bool[Array, ""] | bool = False,
) -> Bool[Array, ""]:
    """Return whether terms have cancelled, or left the range of their type, in any example."""
    value, diagonal = map(lax.stop_gradient, (value, diagonal))
    accurate = (value * MOST_CANCELLED >= diagonal) & jnp.isfinite(value)
    return _anywhere(~accurate.all() | lost)


@jax.custom_batching.custom_vmap
def _anywhere(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """Return whether a flag is set in any example of a batch: one answer for all of them.

    `lax.cond` with an answer for each example would compute both branches for all.
    """
    return flag


@_anywhere.def_vmap
def _anywhere_in_batch(
    size: int, batched: list[bool], flag: Bool[Array, " N"]
) -> tuple[Bool[Array, ""], bool]:
    return _anywhere(flag.any()), False


def factors_product(
    x: Factors, y: dict[int, Float[Array, "S _"] | Int[Array, " S"]], dtype: np.dtype
) -> Float[Array, ""]:
    """Return the inner product of two gradients of a two-dimensional leaf, given by factors."""
    kernels = []
    for axis in (0, 1):
        rows, others = x[axis], y[axis]
        if rows.ndim == 1 and others.ndim == 1:
            kernels.append((rows[:, None] == others[None, :]).astype(dtype))
        elif rows.ndim == 1:
            kernels.append(others.astype(dtype)[:, rows].T)
        elif others.ndim == 1:
            kernels.append(rows.astype(dtype)[:, others])
        else:
            with jax.default_matmul_precision("highest"):
                kernels.append(rows.astype(dtype) @ others.astype(dtype).T)
    return (kernels[0] * kernels[1]).sum()


def sq_norm_of_sum(
    parts: Sequence[Part], shape: tuple[int, ...], dtype: np.dtype
) -> Float[Array, ""]:
    """Return the squared norm of the sum of gradients of a leaf with this shape."""
    total = diagonal = jnp.zeros((), dtype)
    for i, (scale, factors, sq_norm) in enumerate(parts):
        if sq_norm is None:
            sq_norm = factors_product(factors, factors, dtype)
        total += scale**2 * sq_norm
        for other in parts[:i]:
            total += 2 * scale * other.scale * factors_product(factors, other.factors, dtype)
        lengths = [_sq_lengths(factors[axis], dtype) for axis in (0, 1)]
        diagonal += scale**2 * (lengths[0] * lengths[1]).sum()

    # In groups as in `_sum_over_columns`.
    width = min(shape[1], -(-BLOCK // shape[0]))

    def columns(first: Int[Array, ""]) -> Float[Array, ""]:
        block = first + jnp.arange(width)
        gradient = sum(
            part.scale * _columns(part.factors, shape[0], block, dtype) for part in parts
        )
        return sum_of_squares(jnp.where(block < shape[1], gradient, 0))

    def formed() -> Float[Array, ""]:
        return lax.map(columns, jnp.arange(0, shape[1], width)).sum()

    return lax.cond(_cancelled(total, diagonal), formed, lambda: total)


def _sq_lengths(rows: Float[Array, "R _"] | Int[Array, " R"], dtype: np.dtype) -> Any:
    """Return the squared norms of the rows of a factor, which are 1 for indices."""
    if rows.ndim == 1:
        return jnp.ones(len(rows), dtype)
    rows = rows.astype(dtype)
    return jnp.einsum("rc,rc->r", rows, rows)


def _columns(
    factors: Factors, num: int, block: Int[Array, " B"], dtype: np.dtype
) -> Float[Array, "n B"]:
    """Return columns of a gradient with `num` rows, by their numbers."""
    left, right = factors[0], factors[1]
    if right.ndim == 1:
        right = (right[:, None] == block).astype(dtype)
    else:
        right = right.astype(dtype)[:, block]
    if left.ndim == 1:
        return jax.ops.segment_sum(right, left, num)
    with jax.default_matmul_precision("highest"):
        return left.astype(dtype).T @ right
