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
from typing import NamedTuple

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
BLOCK = 2**18
"""Number of gradient entries that are formed at a time in place of a Gram form."""


class Part(NamedTuple):
    """One of several gradients of a leaf that add up."""

    scale: float
    """Constant that the gradient is multiplied by."""
    factors: Factors
    """Its factors."""
    sq_norm: Float[Array, ""] | None
    """Its squared norm if known, without the constant."""


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


def residual(A: Num[Array, "B T C"], method: str, dtype: np.dtype) -> Num[Array, "B *rest"]:
    """Return all that `sq_norm` and `gram` need of A: (B,) for rank one, else A itself."""
    if method != "rank one":
        return A
    A = A.astype(dtype)
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("btc,btc->b", A, A)


def sq_norm(
    residual: Num[Array, "B *rest"], G: Float[Array, "B T O"], method: str, dtype: np.dtype
) -> Float[Array, ""]:
    """Return ||A^T G||^2 from the residual of A."""
    A, G = residual.astype(dtype), G.astype(dtype)
    if method == "direct":
        return _formed_sq_norm(A, G)
    with jax.default_matmul_precision("highest"):
        if method == "rank one":
            # ||G||^2 alone would leave the range of float32 sooner than ||A|| ||G|| does.
            scale = lax.stop_gradient(jnp.sqrt(A))[:, None, None]
            scale = jnp.where(scale > 0, scale, 1)
            scaled = G * scale
            return (A / scale[:, 0, 0] ** 2 * jnp.einsum("bto,bto->b", scaled, scaled)).sum()
        rows, cotangents = jnp.einsum("bsc,btc->bst", A, A), jnp.einsum("bso,bto->bst", G, G)
        terms = _terms(*(jnp.diagonal(x, axis1=1, axis2=2) for x in (rows, cotangents)))
        return unless_cancelled(
            (rows * cotangents).sum(), terms, A.shape[1], lambda: _sq_norm_in_blocks(A, G)
        )


def gram(
    residual: Num[Array, "B *rest"], G: Float[Array, "K B T O"], method: str, dtype: np.dtype
) -> Float[Array, "K K"]:
    """Return <A^T G_k, A^T G_l> for K cotangents, from the residual of A."""
    A, G = residual.astype(dtype), G.astype(dtype)

    def formed() -> Float[Array, "K K"]:
        gradients = jnp.einsum("btc,kbto->kbco", A, G)
        return jnp.einsum("kbco,lbco->kl", gradients, gradients)

    with jax.default_matmul_precision("highest"):
        if method == "rank one":
            return jnp.einsum("kbto,lbto->kl", G * A[None, :, None, None], G)
        if method == "direct":
            return formed()
        rows = jnp.einsum("bsc,btc->bst", A, A)
        products = jnp.einsum("kbso,lbso->kl", jnp.einsum("bst,kbto->kbso", rows, G), G)
        diagonal = jnp.diagonal(rows, axis1=1, axis2=2)
        terms = jax.vmap(lambda g: _terms(diagonal, jnp.einsum("bto,bto->bt", g, g)))(G)
        return unless_cancelled(products, terms, A.shape[1], formed)


def _formed_sq_norm(A: Float[Array, "B T C"], G: Float[Array, "B T O"]) -> Float[Array, ""]:
    """Return ||A^T G||^2 by forming A^T G."""
    with jax.default_matmul_precision("highest"):
        return sum_of_squares(jnp.einsum("btc,bto->bco", A, G))


def _sq_norm_in_blocks(A: Float[Array, "B T C"], G: Float[Array, "B T O"]) -> Float[Array, ""]:
    """Return ||A^T G||^2 by forming A^T G a few columns at a time.

    XLA reserves the memory of a branch that it may never take: hence the blocks.
    """
    num = -(-A.shape[0] * A.shape[2] * G.shape[2] // BLOCK)
    if num == 1:
        return _formed_sq_norm(A, G)
    G = jnp.pad(G, ((0, 0), (0, 0), (0, -G.shape[2] % num)))
    blocks = jnp.moveaxis(G.reshape(*G.shape[:2], num, -1), 2, 0)
    return lax.map(lambda block: _formed_sq_norm(A, block), blocks).sum()


def _terms(rows: Float[Array, "B T"], cotangents: Float[Array, "B T"]) -> Float[Array, ""]:
    """Return sum_b (sum_t ||a_t|| ||g_t||)^2 from the squared norms of the rows of A and of G.

    It is infinite where one of both is so large and the other so small that their squares may have
    left the range of float32, though their product has not.
    """
    rows, cotangents = map(lax.stop_gradient, (rows, cotangents))
    terms = ((jnp.sqrt(rows) * jnp.sqrt(cotangents)).sum(1) ** 2).sum()
    largest = jnp.stack([rows.max(initial=0), cotangents.max(initial=0)])
    odd = (largest.max() > 2.0**24) & (largest.min() < 2.0**-96)
    return jnp.where(odd, jnp.inf, terms)


def unless_cancelled(
    value: Float[Array, "*k"],
    terms: Float[Array, "*k"],
    num_rows: int,
    formed: Callable[[], Float[Array, "*k"]],
) -> Float[Array, "*k"]:
    """Return a squared norm that comes from Gram matrices, or `formed()` where it has cancelled.

    With S = sum_t ||a_t|| ||g_t||, Gram matrices give ||A^T G||^2 to about eps S^2, and forming
    A^T G gives it to about eps S ||A^T G||. For T rows that have nothing in common S^2 is about
    T ||A^T G||^2. Up to `MOST_CANCELLED` times as much counts as accurate: the relative error is
    then at most about `MOST_CANCELLED` T eps, and far less where rounding errors are independent.

    Parameters
    ----------
    value
        The squared norm, or a matrix of inner products.
    terms
        S^2, one for each diagonal entry of a matrix.
    num_rows
        T.
    formed
        Function that returns the value by forming the gradient. It is computed only if an example
        of the batch needs it, also under `jax.vmap`.
    """
    norms = lax.stop_gradient(jnp.diagonal(value) if value.ndim else value)
    accurate = (norms * (MOST_CANCELLED * num_rows) >= terms) & jnp.isfinite(norms)
    cancelled = _anywhere(~accurate.all())
    return lax.cond(cancelled, formed, lambda: value)


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
    total = lengths = jnp.zeros((), dtype)
    for i, (scale, factors, sq_norm) in enumerate(parts):
        if sq_norm is None:
            sq_norm = factors_product(factors, factors, dtype)
        total += scale**2 * sq_norm
        for other in parts[:i]:
            total += 2 * scale * other.scale * factors_product(factors, other.factors, dtype)
        lengths += abs(scale) * jnp.sqrt(_terms(*(_sq_lengths(factors[j], dtype) for j in (0, 1))))
    num_rows = sum(len(part.factors[0]) for part in parts)

    def columns(first: Int[Array, ""]) -> Float[Array, ""]:
        block = first + jnp.arange(width)
        formed = sum(part.scale * _columns(part.factors, shape[0], block, dtype) for part in parts)
        return sum_of_squares(jnp.where(block < shape[1], formed, 0))

    width = min(shape[1], -(-BLOCK // shape[0]))
    firsts = jnp.arange(0, shape[1], width)
    return unless_cancelled(
        total, lengths**2, num_rows, lambda: lax.map(columns, firsts).sum()
    )


def _sq_lengths(
    rows: Float[Array, "R _"] | Int[Array, " R"], dtype: np.dtype
) -> Float[Array, "1 R"]:
    """Return the squared norms of the rows of a factor."""
    if rows.ndim == 1:
        return jnp.ones((1, len(rows)), dtype)
    rows = rows.astype(dtype)
    return jnp.einsum("rc,rc->r", rows, rows)[None]


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
