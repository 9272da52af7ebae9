"""Rules for the uses of a parameter whose gradient's norm is known without forming the gradient.

A rule replaces one equation out = use(a, w) by a function of (a, w, total) with the same value. Its
backward pass hands on the cotangent of `a`, turns the cotangent G of `out` into the squared norm of
w's gradient, and returns that as the "cotangent" of `total`. Over all turns of a scan these add up,
and nothing of the size of w is ever stored.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex
from jaxtyping import Array, Float, Int, Num

from isounc.gradnorm import products
from isounc.gradnorm.trace import aval_of, evaluate, vary, varying

Data = Num[Array, "*data"]
"""Data that meet a parameter, or a residual of them."""
Cotangent = Float[Array, "*out"]
"""Cotangent of an equation's output."""


class Rule(ABC):
    """Squared norm of the gradient of a parameter w that meets data a in one equation."""

    eqn: jex.JaxprEqn
    """The equation."""
    data: int
    """Position of a among the equation's two inputs."""
    num_rows: int
    """Number of rows T of the gradient's factors."""

    @property
    @abstractmethod
    def cost(self) -> products.Cost:
        """Cost of `sq_norm`, and the method that it uses."""

    @abstractmethod
    def residual(self, a: Data, dtype: np.dtype) -> Num[Array, "*residual"]:
        """Return all that `sq_norm` needs of a."""

    @abstractmethod
    def sq_norm(self, residual: Data, g: Cotangent, dtype: np.dtype) -> Float[Array, ""]:
        """Return the squared norm of w's gradient for the cotangent g of the output."""

    @abstractmethod
    def gram(self, a: Data, g: Float[Array, "K *out"], dtype: np.dtype) -> Float[Array, "K K"]:
        """Return the inner products of w's gradients for K cotangents."""

    def value(self, a: Data, w: Float[Array, "*leaf"]) -> Float[Array, "*out"]:
        """Return the output of the equation."""
        return evaluate(self.eqn, (a, w) if self.data == 0 else (w, a))[0]

    def accumulate(self, values: Sequence[Any], total: Float[Array, ""]) -> Float[Array, "*out"]:
        """Return the output of the equation, with the squared norm added to `total`'s cotangent."""
        return _with_norm(self, values[self.data], values[1 - self.data], total)

    def has_factors(self, axes: tuple[int, ...]) -> bool:
        """Whether there are `factors`; `axes` are the axes of the leaf behind those of w."""
        return False

    def factors(self, a: Data, g: Cotangent, axes: tuple[int, ...]) -> products.Factors:
        """Return the factors of the gradient of a two-dimensional leaf."""
        raise NotImplementedError


class DotRule(Rule):
    """Rule for `dot_general` of data a with a parameter w.

    With a as A (B, T, C) and the cotangent of the output as G (B, T, O), over batch axes B, rows T,
    contracted axes C and the parameter's own axes O, the gradient of w is A_b^T G_b for each b, and

        ||A^T G||^2 = sum_st (A A^T)_st (G G^T)_st,

    which is ||a||^2 ||g||^2 for a single row (Goodfellow 2015, arXiv 1510.01799; for sequences
    Li et al. 2022, "Large language models can be strong differentially private learners",
    arXiv 2110.05679).

    Parameters
    ----------
    eqn
        The equation.
    position
        Position of the parameter among its inputs.
    """

    def __init__(self, eqn: jex.JaxprEqn, position: int):
        self.eqn, self.data = eqn, 1 - position
        contract, batch = eqn.params["dimension_numbers"]
        shapes = [aval_of(v).shape for v in eqn.invars]
        self.contract, self.batch = contract[self.data], batch[self.data]
        self.w_contract, self.w_batch = contract[position], batch[position]
        shape = shapes[self.data]
        self.free = [i for i in range(len(shape)) if i not in (*self.contract, *self.batch)]
        self.w_free = [
            i for i in range(len(shapes[position])) if i not in (*self.w_contract, *self.w_batch)
        ]
        sizes = [[shape[i] for i in axes] for axes in (self.batch, self.free, self.contract)]
        self.num_batch, self.num_rows, self.num_in = map(math.prod, sizes)
        self.num_out = math.prod(shapes[position][i] for i in self.w_free)

    @property
    def cost(self) -> products.Cost:
        return products.cost(self.num_batch, self.num_rows, self.num_in, self.num_out)

    def _rows(self, a: Data) -> Num[Array, "B T C"]:
        """Return A of the class's docstring."""
        a = a.transpose(*self.batch, *self.free, *self.contract)
        return a.reshape(self.num_batch, self.num_rows, self.num_in)

    def _cotangents(self, g: Cotangent) -> Float[Array, "B T O"]:
        """Return G of the class's docstring."""
        num_b, num_t, num_o = len(self.batch), len(self.free), len(self.w_free)
        if self.data == 1:  # then the parameter's own axes stand before the rows
            rows = range(num_b + num_o, num_b + num_o + num_t)
            g = g.transpose(*range(num_b), *rows, *range(num_b, num_b + num_o))
        return g.reshape(self.num_batch, self.num_rows, self.num_out)

    def residual(self, a: Data, dtype: np.dtype) -> Float[Array, "B *rest"]:
        return products.residual(a, self._rows, self.cost.method, dtype)

    def sq_norm(self, residual: Data, g: Cotangent, dtype: np.dtype) -> Float[Array, ""]:
        G = self._cotangents(g)
        return products.sq_norm(residual, self._rows, G, self.cost.method, dtype)

    def gram(self, a: Data, g: Float[Array, "K *out"], dtype: np.dtype) -> Float[Array, "K K"]:
        G = jax.vmap(self._cotangents)(g)
        return products.gram(self.residual(a, dtype), self._rows, G, self.cost.method, dtype)

    def has_factors(self, axes: tuple[int, ...]) -> bool:
        return self.num_batch == 1 and len(self.w_contract) == len(self.w_free) == 1

    def factors(self, a: Data, g: Cotangent, axes: tuple[int, ...]) -> products.Factors:
        return {
            axes[self.w_contract[0]]: self._rows(a)[0],
            axes[self.w_free[0]]: self._cotangents(g)[0],
        }


class GatherRule(Rule):
    """Rule for rows of a table w by index (an embedding).

        ||gradient||^2 = sum_st [i_s = i_t] g_s . g_t

    Many rows are first added up by index, which needs no T x T matrix.
    """

    most_pairs = 256
    """Number of rows up to which pairs are quicker."""

    data = 1

    def __init__(self, eqn: jex.JaxprEqn):
        self.eqn = eqn
        self.table = aval_of(eqn.invars[0]).shape
        self.index_shape = aval_of(eqn.invars[1]).shape[:-1]
        self.fills = "FILL" in str(eqn.params["mode"])
        self.num_rows, self.width = math.prod(self.index_shape), math.prod(self.table[1:])

    @staticmethod
    def fits(eqn: jex.JaxprEqn) -> bool:
        """Whether a gather takes whole rows along the first axis, with the rows' axes last."""
        dims, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
        table, index = (aval_of(v) for v in eqn.invars)
        num_index = index.ndim - 1
        return (
            tuple(dims.start_index_map) == (0,)
            and tuple(dims.collapsed_slice_dims) == (0,)
            and not dims.operand_batching_dims
            and tuple(sizes) == (1, *table.shape[1:])
            and tuple(dims.offset_dims) == tuple(range(num_index, num_index + table.ndim - 1))
        )

    @property
    def cost(self) -> products.Cost:
        t, d = self.num_rows, self.width
        if t == 1:
            return products.Cost("rank one", d)
        return (
            products.Cost("rows", t * t * (d + 1))
            if t <= self.most_pairs
            else products.Cost("sums", t * d)
        )

    def _rows(self, index: Data, g: Cotangent) -> tuple[Int[Array, " T"], Float[Array, "T O"]]:
        """Return indices in range, and cotangents, zero where the index was out of range."""
        i, G = index.reshape(-1), g.reshape(self.num_rows, self.width)
        # The last row may lie beyond the range of the indices' own type.
        last = min(self.table[0] - 1, int(jnp.iinfo(i.dtype).max))
        if self.fills:
            inside = (i >= 0) & (i <= last)
            G = jnp.where(inside[:, None], G, 0)
        return jnp.clip(i, 0, last).astype(jnp.int32), G

    def _sums(self, i: Int[Array, " T"], G: Float[Array, "T O"]) -> Float[Array, "T O"]:
        """Return the sums of rows of equal index, followed by zeros."""
        order = jnp.argsort(i)
        first = jnp.diff(i[order], prepend=-1) != 0
        return jax.ops.segment_sum(G[order], jnp.cumsum(first) - 1, self.num_rows)

    def residual(self, index: Data, dtype: np.dtype) -> Data:
        return index

    def sq_norm(self, index: Data, g: Cotangent, dtype: np.dtype) -> Float[Array, ""]:
        i, G = self._rows(index, g)
        G = G.astype(dtype)
        if self.num_rows == 1:
            return products.sum_of_squares(G)
        if self.cost.method == "sums":
            return products.sum_of_squares(self._sums(i, G))
        same = (i[:, None] == i[None, :]).astype(dtype)
        with jax.default_matmul_precision("highest"):
            pairs = G @ G.T
        return products.unless_cancelled(
            same, pairs, lambda: products.sum_of_squares(self._sums(i, G))
        )

    def gram(self, index: Data, g: Float[Array, "K *out"], dtype: np.dtype) -> Float[Array, "K K"]:
        i, _ = self._rows(index, g[0])
        G = jax.vmap(lambda g_k: self._rows(index, g_k)[1])(g).astype(dtype)
        sums = jax.vmap(lambda G_k: self._sums(i, G_k))(G).reshape(len(G), -1)
        with jax.default_matmul_precision("highest"):
            return sums @ sums.T

    def has_factors(self, axes: tuple[int, ...]) -> bool:
        return len(self.table) == 2 and axes == (0, 1)

    def factors(self, index: Data, g: Cotangent, axes: tuple[int, ...]) -> products.Factors:
        i, G = self._rows(index, g)
        return {0: i, 1: G}


class ConvRule(Rule):
    """Rule for `conv_general_dilated` of images a with a parameter as its kernel.

    A convolution is the product of the images' patches A (groups, positions, window x channels)
    with the kernel, and its norm that of `DotRule`. Source: Rochette, Manoel, Tramel 2019
    (arXiv 1912.06015) for the gradient of each example.
    """

    data = 0

    def __init__(self, eqn: jex.JaxprEqn):
        self.eqn = eqn
        image, kernel, out = (aval_of(v).shape for v in (*eqn.invars, *eqn.outvars))
        self.dims, self.groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
        spatial = [kernel[i] for i in self.dims.rhs_spec[2:]]
        self.window, self.out = tuple(spatial), tuple(out[i] for i in self.dims.out_spec[2:])
        self.num_rows = out[self.dims.out_spec[0]] * math.prod(self.out)
        self.num_in = math.prod(spatial) * image[self.dims.lhs_spec[1]] // self.groups
        self.num_out = kernel[self.dims.rhs_spec[0]] // self.groups

    @staticmethod
    def fits(eqn: jex.JaxprEqn) -> bool:
        """Whether patches are slices: images not dilated (transposed convolutions) nor grouped."""
        params = eqn.params
        return params["batch_group_count"] == 1 and all(d == 1 for d in params["lhs_dilation"])

    @property
    def cost(self) -> products.Cost:
        return products.cost(self.groups, self.num_rows, self.num_in, self.num_out)

    def _patches(self, a: Data) -> Num[Array, "G T C"]:
        """Return A of the class's docstring."""
        params = self.eqn.params
        a = a.transpose(*self.dims.lhs_spec)
        none = (0, 0, 0)
        zero = jnp.zeros((), a.dtype)
        a = lax.pad(a, zero, [none, none, *((low, high, 0) for low, high in params["padding"])])
        slices = []
        for offset in itertools.product(*map(range, self.window)):
            start = [i * d for i, d in zip(offset, params["rhs_dilation"], strict=True)]
            strides = params["window_strides"]
            ends = [i + (n - 1) * s + 1 for i, n, s in zip(start, self.out, strides, strict=True)]
            slices.append(lax.slice(a, (0, 0, *start), (*a.shape[:2], *ends), (1, 1, *strides)))
        patches = jnp.stack(slices, axis=1)  # (images, window, channels, positions...)
        patches = patches.reshape(*patches.shape[:2], self.groups, -1, math.prod(self.out))
        return patches.transpose(2, 0, 4, 1, 3).reshape(self.groups, self.num_rows, self.num_in)

    def _cotangents(self, g: Cotangent) -> Float[Array, "G T O"]:
        """Return G of `DotRule`, by group of channels."""
        g = g.transpose(*self.dims.out_spec)  # (images, channels, positions...)
        g = g.reshape(g.shape[0], self.groups, self.num_out, -1)
        return g.transpose(1, 0, 3, 2).reshape(self.groups, self.num_rows, self.num_out)

    def residual(self, a: Data, dtype: np.dtype) -> Data:
        return products.residual(a, self._patches, self.cost.method, dtype)

    def sq_norm(self, residual: Data, g: Cotangent, dtype: np.dtype) -> Float[Array, ""]:
        G = self._cotangents(g)
        return products.sq_norm(residual, self._patches, G, self.cost.method, dtype)

    def gram(self, a: Data, g: Float[Array, "K *out"], dtype: np.dtype) -> Float[Array, "K K"]:
        residual, G = self.residual(a, dtype), jax.vmap(self._cotangents)(g)
        return products.gram(residual, self._patches, G, self.cost.method, dtype)


def rule_of(eqn: jex.JaxprEqn, position: int) -> Rule | None:
    """Return the rule for an equation whose input at `position` is a parameter, or None."""
    name = eqn.primitive.name
    dtypes = [aval_of(v).dtype for v in (*eqn.invars, *eqn.outvars)]
    # The norm of a complex cotangent is not that of its real part: such gradients are formed.
    if any(jnp.issubdtype(dtype, jnp.complexfloating) for dtype in dtypes):
        return None
    if name == "dot_general":
        return DotRule(eqn, position)
    if name == "gather" and position == 0 and GatherRule.fits(eqn):
        return GatherRule(eqn)
    if name == "conv_general_dilated" and position == 1 and ConvRule.fits(eqn):
        return ConvRule(eqn)
    return None


def _with_norm(
    rule: Rule, a: Data, w: Float[Array, "*leaf"], total: Float[Array, ""]
) -> Float[Array, "*out"]:
    """Return rule.value(a, w); the cotangent of `total` becomes the squared norm of w's gradient.

    w is not differentiated here: a derivative of the norm goes through `forward` and `backward`.
    """

    @jax.custom_vjp
    def use(a, w, total):
        return rule.value(a, w)

    shape, dtype, norm_dtype = a.shape, a.dtype, total.dtype

    def forward(a, w, total):
        return rule.value(a, w), (rule.residual(a, norm_dtype), w)

    def backward(residuals, g):
        residual, w = residuals
        norm = rule.sq_norm(residual, g, norm_dtype)
        if not jnp.issubdtype(dtype, jnp.floating):
            return None, None, norm
        # The value is linear in a, so that its derivative may be taken at zero, and a is not held.
        zeros = vary(jnp.zeros(shape, dtype), varying(g))
        return jax.vjp(lambda a: rule.value(a, w), zeros)[1](g)[0], None, norm

    use.defvjp(forward, backward)
    return use(a, w, total)
