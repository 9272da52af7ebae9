"""Norms and inner products of gradients A^T G, without forming them where that is cheaper.

A (B, T, C) holds data and G (B, T, O) cotangents, over B products, T rows, C inputs and O outputs;
the gradient has a part A_b^T G_b for each b. Three methods give its squared norm:

    rank one    ||A||^2 ||G||^2 for a single row
    gram        sum_st (A A^T)_st (G G^T)_st
    direct      the sum of squares of A^T G

Each first reduces A to a residual, so that A itself need not be held until G is known.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

Factors = dict[int, Float[Array, "R _"] | Int[Array, " R"]]
"""Factors of the gradient of a two-dimensional leaf: R rows for each axis of the leaf, or R indices
in place of rows that are one-hot. The gradient is the sum over R of the rows' outer products."""


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


def residual(A: Num[Array, "B T C"], method: str, dtype: np.dtype) -> Float[Array, "B *rest"]:
    """Return all that `sq_norm` and `gram` need of A: (B,), (B, T, T) or A itself by method."""
    A = A.astype(dtype)
    with jax.default_matmul_precision("highest"):
        if method == "rank one":
            return jnp.einsum("btc,btc->b", A, A)
        return jnp.einsum("bsc,btc->bst", A, A) if method == "gram" else A


def sq_norm(
    residual: Float[Array, "B *rest"], G: Float[Array, "B T O"], method: str, dtype: np.dtype
) -> Float[Array, ""]:
    """Return ||A^T G||^2 from the residual of A."""
    G = G.astype(dtype)
    with jax.default_matmul_precision("highest"):
        if method == "rank one":
            return (residual * jnp.einsum("bto,bto->b", G, G)).sum()
        if method == "gram":
            # Where rows all but cancel, rounding may leave a tiny negative number.
            return jnp.maximum((residual * jnp.einsum("bso,bto->bst", G, G)).sum(), 0)
        return sum_of_squares(jnp.einsum("btc,bto->bco", residual, G))


def gram(
    residual: Float[Array, "B *rest"], G: Float[Array, "K B T O"], method: str, dtype: np.dtype
) -> Float[Array, "K K"]:
    """Return <A^T G_k, A^T G_l> for K cotangents, from the residual of A."""
    G = G.astype(dtype)
    with jax.default_matmul_precision("highest"):
        if method == "rank one":
            return jnp.einsum("kbto,lbto->kl", G * residual[None, :, None, None], G)
        if method == "gram":
            return jnp.einsum("kbso,lbso->kl", jnp.einsum("bst,kbto->kbso", residual, G), G)
        formed = jnp.einsum("btc,kbto->kbco", residual, G)
        return jnp.einsum("kbco,lbco->kl", formed, formed)


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
