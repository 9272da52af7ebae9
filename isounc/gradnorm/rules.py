"""Uses of a parameter whose gradient's norm is known without forming the gradient.

A rule replaces one equation out = use(a, w) by a function of (a, w, total) with the same value. Its backward pass hands
the cotangent of `a` on, turns the cotangent G of `out` into the squared norm of w's gradient, and gives that as the
"cotangent" of `total`: over all uses and turns of a scan these add up, and nothing of the size of w is ever stored.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from isounc.gradnorm.trace import evaluate, vary, varying


class Cost(NamedTuple):
    """Multiply-adds of a use beside the function's own, per example."""

    method: str
    """rank one, gram, direct, rows or sums."""
    operations: int


def _method(b: int, t: int, c: int, o: int) -> Cost:
    """The cheaper of both sides of ||A^T G||^2 = sum_st (A A^T)_st (G G^T)_st for A (b, t, c) and G (b, t, o)."""
    if t == 1:
        return Cost("rank one", b * (c + o))
    gram, direct = b * t * t * (c + o + 1), b * t * c * o
    return Cost("gram", gram) if gram <= direct else Cost("direct", direct)


def sum_of_squares(a) -> Float[Array, ""]:
    """A product, not a sum of powers: XLA writes the latter's squares to memory and adds them up at the very end."""
    with jax.default_matmul_precision("highest"):
        return jnp.vdot(a, a)


def _left(A, method: str, dtype) -> Float[Array, "..."]:
    """What the norm needs of A, which is less than A itself but where the gradient is formed."""
    A = A.astype(dtype)
    with jax.default_matmul_precision("highest"):
        if method == "rank one":
            return jnp.einsum("btc,btc->b", A, A)
        return jnp.einsum("bsc,btc->bst", A, A) if method == "gram" else A


def _sq_norm(left, G, method: str, dtype) -> Float[Array, ""]:
    """||A^T G||^2."""
    G = G.astype(dtype)
    with jax.default_matmul_precision("highest"):
        if method == "rank one":
            return (left * jnp.einsum("bto,bto->b", G, G)).sum()
        if method == "gram":
            # Where rows all but cancel, rounding may leave a tiny negative number.
            return jnp.maximum((left * jnp.einsum("bso,bto->bst", G, G)).sum(), 0)
        return sum_of_squares(jnp.einsum("btc,bto->bco", left, G))


def _products(left, G, method: str, dtype) -> Float[Array, "K K"]:
    """<A^T G_k, A^T G_l> for G (K, b, t, o)."""
    G = G.astype(dtype)
    with jax.default_matmul_precision("highest"):
        if method == "rank one":
            return jnp.einsum("kbto,lbto->kl", G * left[None, :, None, None], G)
        if method == "gram":
            return jnp.einsum("kbso,lbso->kl", jnp.einsum("bst,kbto->kbso", left, G), G)
        formed = jnp.einsum("btc,kbto->kbco", left, G)
        return jnp.einsum("kbco,lbco->kl", formed, formed)


class DotRule:
    """``dot_general`` of data a with a parameter w.

    With a as A (B, T, C) and the cotangent of the output as G (B, T, O), over batch axes B, rows T, contracted C and
    the parameter's own axes O, the gradient of w is A_b^T G_b for each b, and

        ||A^T G||^2 = sum_st (A A^T)_st (G G^T)_st,

    which is ||a||^2 ||g||^2 for a single row (Goodfellow 2015, arXiv 1510.01799; for sequences Li et al. 2022, "Large
    language models can be strong differentially private learners", arXiv 2110.05679).
    """

    def __init__(self, eqn, position: int):
        self.eqn, self.position = eqn, position
        contract, batch = eqn.params["dimension_numbers"]
        shapes = [v.aval.shape for v in eqn.invars]
        self.data = 1 - position
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
    def cost(self) -> Cost:
        """The cheaper of both sides of the equation."""
        return _method(self.num_batch, self.num_rows, self.num_in, self.num_out)

    def _rows(self, a) -> Float[Array, "B T C"]:
        """A of the class's docstring."""
        a = a.transpose(*self.batch, *self.free, *self.contract)
        return a.reshape(self.num_batch, self.num_rows, self.num_in)

    def _cotangents(self, g) -> Float[Array, "B T O"]:
        """G of the class's docstring."""
        num_b, num_t, num_o = len(self.batch), len(self.free), len(self.w_free)
        if self.position == 0:  # then the output's own axes stand before the rows
            rows = range(num_b + num_o, num_b + num_o + num_t)
            g = g.transpose(*range(num_b), *rows, *range(num_b, num_b + num_o))
        return g.reshape(self.num_batch, self.num_rows, self.num_out)

    def keep(self, a, dtype) -> Float[Array, "..."]:
        """What `sq_norm` needs of a."""
        return _left(self._rows(a), self.cost.method, dtype)

    def sq_norm(self, kept, g, dtype) -> Float[Array, ""]:
        """||A^T G||^2."""
        return _sq_norm(kept, self._cotangents(g), self.cost.method, dtype)

    def gram(self, a, g, dtype) -> Float[Array, "K K"]:
        """<A^T G_k, A^T G_l> for K cotangents g (K, ...)."""
        G = jax.vmap(self._cotangents)(g)
        return _products(self.keep(a, dtype), G, self.cost.method, dtype)

    def value(self, a, w):
        """The equation itself."""
        values = (a, w) if self.position == 1 else (w, a)
        return evaluate(self.eqn, values)[0]

    def accumulate(self, values, total):
        """The equation with its norm going to `total`."""
        return _with_norm(self, values[self.data], values[self.position], total)

    def is_simple(self, axes: tuple[int, ...]) -> bool:
        """Whether `sides` can be had."""
        return self.num_batch == 1 and len(self.w_contract) == len(self.w_free) == 1

    def sides(self, a, g, axes: tuple[int, ...]) -> dict[int, Any]:
        """Rows of the gradient's factors by axis of a two-dimensional leaf."""
        return {
            axes[self.w_contract[0]]: self._rows(a)[0],
            axes[self.w_free[0]]: self._cotangents(g)[0],
        }


class GatherRule:
    """Rows of a table w by index (an embedding): ||gradient||^2 = sum_st [i_s = i_t] g_s . g_t.

    Many rows are summed by index first, which needs no T x T matrix.
    """

    most_pairs = 256
    """Rows up to which pairs are quicker."""

    data = 1
    """Position of the indices."""

    def __init__(self, eqn):
        self.eqn = eqn
        self.table = eqn.invars[0].aval.shape
        self.index_shape = eqn.invars[1].aval.shape[:-1]
        self.fills = "FILL" in str(eqn.params["mode"])
        self.num_rows, self.width = math.prod(self.index_shape), math.prod(self.table[1:])

    @staticmethod
    def fits(eqn) -> bool:
        """Whether a gather takes whole rows along the first axis, with the rows' axes last."""
        dims, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
        table, index = (v.aval for v in eqn.invars)
        num_index = index.ndim - 1
        return (
            tuple(dims.start_index_map) == (0,)
            and tuple(dims.collapsed_slice_dims) == (0,)
            and not dims.operand_batching_dims
            and tuple(sizes) == (1, *table.shape[1:])
            and tuple(dims.offset_dims) == tuple(range(num_index, num_index + table.ndim - 1))
        )

    @property
    def cost(self) -> Cost:
        """Of the Gram matrix of the cotangents, or nothing for one row."""
        t, d = self.num_rows, self.width
        if t == 1:
            return Cost("rank one", d)
        return Cost("rows", t * t * (d + 1)) if t <= self.most_pairs else Cost("sums", t * d)

    def rows(self, index, g) -> tuple[Int[Array, " T"], Float[Array, "T O"]]:
        """Indices in range, and the cotangents, zero where the index was out of range."""
        at, G = index.reshape(-1), g.reshape(self.num_rows, self.width)
        if self.fills:
            inside = (at >= 0) & (at < self.table[0])
            G = jnp.where(inside[:, None], G, 0)
        return jnp.clip(at, 0, self.table[0] - 1), G

    def _sums(self, at, G):
        """Rows of equal index added up, (T, O); the rest is zero."""
        order = jnp.argsort(at)
        first = jnp.diff(at[order], prepend=-1) != 0
        return jax.ops.segment_sum(G[order], jnp.cumsum(first) - 1, self.num_rows)

    def keep(self, index, dtype):
        """What `sq_norm` needs of the indices: all of them."""
        return index

    def sq_norm(self, index, g, dtype) -> Float[Array, ""]:
        """Sum over pairs of equal rows."""
        at, G = self.rows(index, g)
        G = G.astype(dtype)
        if self.num_rows == 1:
            return sum_of_squares(G)
        if self.cost.method == "sums":
            return sum_of_squares(self._sums(at, G))
        with jax.default_matmul_precision("highest"):
            # Rounding as in `_sq_norm`.
            return jnp.maximum(jnp.where(at[:, None] == at[None, :], G @ G.T, 0).sum(), 0)

    def gram(self, index, g, dtype) -> Float[Array, "K K"]:
        """The same for pairs of K cotangents."""
        at, _ = self.rows(index, g[0])
        G = jax.vmap(lambda one: self.rows(index, one)[1])(g).astype(dtype)
        if self.cost.method == "sums":
            sums = jax.vmap(lambda one: self._sums(at, one))(G).reshape(len(G), -1)
            with jax.default_matmul_precision("highest"):
                return sums @ sums.T
        same = (at[:, None] == at[None, :]).astype(dtype)
        with jax.default_matmul_precision("highest"):
            return jnp.einsum("kso,lso->kl", jnp.einsum("st,kto->kso", same, G), G)

    def value(self, index, w):
        """The equation itself."""
        return evaluate(self.eqn, (w, index))[0]

    def accumulate(self, values, total):
        """The equation with its norm going to `total`."""
        return _with_norm(self, values[1], values[0], total)

    def is_simple(self, axes: tuple[int, ...]) -> bool:
        """Whether `sides` can be had."""
        return len(self.table) == 2 and axes == (0, 1)

    def sides(self, index, g, axes: tuple[int, ...]) -> dict[int, Any]:
        """Indices on the table's first axis, cotangents on the second."""
        at, G = self.rows(index, g)
        return {0: at, 1: G}


class ConvRule:
    """``conv_general_dilated`` of images a with a parameter as its kernel.

    A convolution is the product of the images' patches A (groups, positions, window x channels) with the kernel, and
    its norm that of `DotRule`. Source: Rochette, Manoel, Tramel 2019 (arXiv 1912.06015) for the gradients an example.
    """

    data = 0
    """Position of the images."""

    def __init__(self, eqn):
        self.eqn = eqn
        image, kernel, out = (v.aval.shape for v in (*eqn.invars, *eqn.outvars))
        self.dims, self.groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
        spatial = [kernel[i] for i in self.dims.rhs_spec[2:]]
        self.window, self.out = tuple(spatial), tuple(out[i] for i in self.dims.out_spec[2:])
        self.num_rows = out[self.dims.out_spec[0]] * math.prod(self.out)
        self.num_in = math.prod(spatial) * image[self.dims.lhs_spec[1]] // self.groups
        self.num_out = kernel[self.dims.rhs_spec[0]] // self.groups

    @staticmethod
    def fits(eqn) -> bool:
        """Whether patches are slices: not where images are dilated (transposed convolutions) or examples grouped."""
        params = eqn.params
        return params["batch_group_count"] == 1 and all(d == 1 for d in params["lhs_dilation"])

    @property
    def cost(self) -> Cost:
        """The cheaper of the patches' Gram matrix and the kernel's gradient."""
        return _method(self.groups, self.num_rows, self.num_in, self.num_out)

    def _patches(self, a) -> Float[Array, "groups T C"]:
        params = self.eqn.params
        a = a.transpose(*self.dims.lhs_spec)
        none = (0, 0, 0)
        zero = jnp.zeros((), a.dtype)
        a = lax.pad(a, zero, [none, none, *((low, high, 0) for low, high in params["padding"])])
        found = []
        for at in itertools.product(*map(range, self.window)):
            start = [i * d for i, d in zip(at, params["rhs_dilation"], strict=True)]
            strides = params["window_strides"]
            ends = [i + (n - 1) * s + 1 for i, n, s in zip(start, self.out, strides, strict=True)]
            found.append(lax.slice(a, (0, 0, *start), (*a.shape[:2], *ends), (1, 1, *strides)))
        patches = jnp.stack(found, axis=1)  # (images, window, channels, positions...)
        patches = patches.reshape(*patches.shape[:2], self.groups, -1, math.prod(self.out))
        return patches.transpose(2, 0, 4, 1, 3).reshape(self.groups, self.num_rows, self.num_in)

    def _cotangents(self, g) -> Float[Array, "groups T O"]:
        g = g.transpose(*self.dims.out_spec)  # (images, channels, positions...)
        g = g.reshape(g.shape[0], self.groups, self.num_out, -1)
        return g.transpose(1, 0, 3, 2).reshape(self.groups, self.num_rows, self.num_out)

    def value(self, a, w):
        """The equation itself."""
        return evaluate(self.eqn, (a, w))[0]

    def keep(self, a, dtype):
        """What `sq_norm` needs of the images: all of them, since their patches are larger."""
        return a

    def sq_norm(self, a, g, dtype) -> Float[Array, ""]:
        """Sum of squares of the kernel's gradient."""
        left = _left(self._patches(a), self.cost.method, dtype)
        return _sq_norm(left, self._cotangents(g), self.cost.method, dtype)

    def gram(self, a, g, dtype) -> Float[Array, "K K"]:
        """Products of the kernel's gradients for K cotangents."""
        left = _left(self._patches(a), self.cost.method, dtype)
        return _products(left, jax.vmap(self._cotangents)(g), self.cost.method, dtype)

    def accumulate(self, values, total):
        """The equation with its norm going to `total`."""
        return _with_norm(self, values[0], values[1], total)

    def is_simple(self, axes: tuple[int, ...]) -> bool:
        """A kernel that several convolutions share is formed."""
        return False

    def sides(self, a, g, axes: tuple[int, ...]) -> dict[int, Any]:
        """None: see `is_simple`."""
        raise NotImplementedError


Rule = DotRule | GatherRule | ConvRule


def rule_of(eqn, position: int) -> Rule | None:
    """The rule for an equation whose input at `position` is a parameter, or None."""
    name = eqn.primitive.name
    if name == "dot_general":
        return DotRule(eqn, position)
    if name == "gather" and position == 0 and GatherRule.fits(eqn):
        return GatherRule(eqn)
    if name == "conv_general_dilated" and position == 1 and ConvRule.fits(eqn):
        return ConvRule(eqn)
    return None


def _with_norm(rule: Rule, a, w, total):
    # w is not differentiated here; whoever differentiates the norm itself goes through `forward` and `backward`.
    @jax.custom_vjp
    def use(a, w, total):
        return rule.value(a, w)

    shape, dtype, norm_dtype = a.shape, a.dtype, total.dtype

    def forward(a, w, total):
        return rule.value(a, w), (rule.keep(a, norm_dtype), w)

    def backward(residuals, g):
        kept, w = residuals
        norm = rule.sq_norm(kept, g, norm_dtype)
        if not jnp.issubdtype(dtype, jnp.floating):
            return None, None, norm
        # Linear in a: where it is taken does not matter, and a itself need not be held.
        at = vary(jnp.zeros(shape, dtype), varying(g))
        return jax.vjp(lambda a: rule.value(a, w), at)[1](g)[0], None, norm

    use.defvjp(forward, backward)
    return use(a, w, total)


def sides_product(a: dict[int, Any], b: dict[int, Any], dtype) -> Float[Array, ""]:
    """Inner product of two gradients of a two-dimensional leaf, each a sum over rows of outer products."""
    kernels = []
    for axis in (0, 1):
        x, y = a[axis], b[axis]
        if x.ndim == 1 and y.ndim == 1:
            kernels.append((x[:, None] == y[None, :]).astype(dtype))
        elif x.ndim == 1:
            kernels.append(y.astype(dtype)[:, x].T)
        elif y.ndim == 1:
            kernels.append(x.astype(dtype)[:, y])
        else:
            with jax.default_matmul_precision("highest"):
                kernels.append(x.astype(dtype) @ y.astype(dtype).T)
    return (kernels[0] * kernels[1]).sum()
