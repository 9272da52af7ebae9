"""Exact squared gradient norms of any JAX function, without storing gradients of weight matrices.

    value, sq_norm = value_and_sq_grad_norm(f)(params, x)

equals `jax.value_and_grad` followed by the sum of squares, at the price of one backward pass. The
traced function is rewritten so that each use of a weight turns its cotangent into a number
(`isounc.gradnorm.engine`). Gradients of biases and scales, and of uses without a rule, are formed
one leaf at a time for each example; `explain` reports which.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from isounc.checks import check_count
from isounc.gradnorm.engine import Pull
from isounc.gradnorm.leaves import Filter, check_args, check_leaves, linearise_at, split_leaves

Groups = bool | Callable[[str], str]
"""False for one sum over all leaves, True for one sum per leaf, or a function from a leaf's path to
the name of its group."""
InAxes = int | Sequence[int | None] | None
"""Axes of the examples, as in `jax.vmap` for all arguments after `params`; None for one example."""
DType = str | type | np.dtype | None
"""float32 or float64; None for float32, or float64 if a leaf is."""


def value_and_sq_grad_norm(
    f: Callable[..., Any],
    *,
    per_leaf: Groups = False,
    wrt: Filter = None,
    in_axes: InAxes = None,
    batch_size: int | None = None,
    dtype: DType = None,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, Any]]:
    """Make a function that returns f and ||grad_params f||^2.

    Parameters
    ----------
    f
        Scalar function `f(params, *args)`. `params` is any pytree of arrays, of which integer
        leaves count as fixed.
    per_leaf
        True for a dict from each leaf's path to its part of the sum; a function from path to group
        for a dict from groups to sums.
    wrt
        The leaves that count, by regular expression or function of the path; the others are fixed.
    in_axes
        Axes of the examples in `args`, as for `jax.vmap`, for N values and N norms; `params` is
        shared. None for one example.
    batch_size
        Number of examples at a time, which bounds the memory of their activations; None for all.
    dtype
        Type of the sums that make up the norms: float32 (the default, unless a leaf is float64) or
        float64, which needs JAX's x64 mode. The function itself computes in its own types.
    has_aux
        Whether f returns `(scalar, aux)`; the new function then returns that in place of f.

    Returns
    -------
    Callable
        Compiled function `(params, *args) -> (value, sq_norm)`. It composes with jit, vmap, grad,
        lax.map, and with examples that are sharded over devices.

    Raises
    ------
    TypeError, ValueError
        When the new function is called: if f is not a real scalar, if leaves are not arrays or are
        complex, if `wrt` keeps no leaf, or if axes of examples differ in length.
    NotImplementedError
        When the new function is called: if parameters enter a while loop on their way to the
        output, of which JAX has no reverse-mode derivative either.

    Notes
    -----
    The norms are as accurate as those of plain gradients in the same type. A weight with T rows of
    data a_t and cotangents g_t has the gradient sum_t a_t g_t^T. Its norm comes from the Gram
    matrices of the rows where that is cheaper, with a relative error of at most about 16 T eps (eps
    is 1.2e-7 in float32), and commonly of a few eps. Where the rows cancel so far that
    ||sum_t a_t g_t^T||^2 < sum_t ||a_t||^2 ||g_t||^2 / 16, the gradient is formed, a part at a time,
    for the whole batch of that call. `isounc.gradnorm.check` compares both for your own function.

    Functions with mutable references (`jax.new_ref`) and parameters that meet complex values are
    differentiated plainly, with the memory of a gradient for each example; `explain` says so.

    Examples
    --------
    >>> f = lambda w, x: jnp.tanh(x @ w)
    >>> value, sq_norm = value_and_sq_grad_norm(f)(jnp.ones(3), jnp.ones(3))
    """

    def pull_norm(out: Float[Array, "*out"], pull: Pull) -> list[Float[Array, ""]]:
        if out.shape != ():
            raise ValueError(
                f"f must return a scalar, got shape {out.shape}; for several outputs use "
                "value_and_sq_grad_norms, for a batch of examples give in_axes"
            )
        return pull(jnp.ones_like(out))

    transform = _Transform(f, pull_norm, False, per_leaf, wrt, dtype, has_aux)
    return _map_over_examples(transform, in_axes, batch_size)


def value_and_sq_grad_norms(
    f: Callable[..., Any],
    *,
    per_leaf: Groups = False,
    wrt: Filter = None,
    in_axes: InAxes = None,
    batch_size: int | None = None,
    dtype: DType = None,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, Any]]:
    """Make a function that returns K outputs of f and their K squared norms, from one forward pass.

    The parameters are those of `value_and_sq_grad_norm`, with f of shape (K,). The K backward
    passes run at once, so that the memory is that of `batch_size` x K of them.
    """

    def pull_norms(out: Float[Array, "*out"], pull: Pull) -> list[Float[Array, " K"]]:
        _check_vector(out)
        return jax.vmap(pull)(jnp.eye(out.size, dtype=out.dtype))

    transform = _Transform(f, pull_norms, False, per_leaf, wrt, dtype, has_aux)
    return _map_over_examples(transform, in_axes, batch_size)


def value_and_grad_gram(
    f: Callable[..., Any],
    *,
    per_leaf: Groups = False,
    wrt: Filter = None,
    in_axes: InAxes = None,
    batch_size: int | None = None,
    dtype: DType = None,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, Any]]:
    """Make a function that returns K outputs of f and the K x K products <grad f_k, grad f_l>.

    The parameters are those of `value_and_sq_grad_norm`, with f of shape (K,). The K gradients of
    leaves with several uses are formed.
    """

    def pull_gram(out: Float[Array, "*out"], pull: Pull) -> list[Float[Array, "K K"]]:
        _check_vector(out)
        return pull(jnp.eye(out.size, dtype=out.dtype))

    transform = _Transform(f, pull_gram, True, per_leaf, wrt, dtype, has_aux)
    return _map_over_examples(transform, in_axes, batch_size)


def value_and_log_sq_grad_norm(
    log_p: Callable[..., Any],
    *,
    per_leaf: Groups = False,
    wrt: Filter = None,
    in_axes: InAxes = None,
    batch_size: int | None = None,
    dtype: DType = None,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, Any]]:
    """Make a function that returns log p and log ||grad p||^2 = 2 log p + log ||grad log p||^2.

    `log_p` gives the logarithm of a probability that may underflow, for example of a sequence. The
    parameters are those of `value_and_sq_grad_norm`.
    """
    value_and_norm = value_and_sq_grad_norm(
        log_p, per_leaf=per_leaf, wrt=wrt, in_axes=in_axes, batch_size=batch_size, dtype=dtype,
        has_aux=has_aux,
    )  # fmt: skip

    @functools.wraps(log_p)
    def value_and_log_norm(params, *args):
        out, norms = value_and_norm(params, *args)
        value = out[0] if has_aux else out
        return out, jax.tree.map(lambda norm: 2 * value.astype(norm.dtype) + jnp.log(norm), norms)

    return value_and_log_norm


def _check_call(f: Any, per_leaf: Any, in_axes: Any, batch_size: Any) -> None:
    """Raise an error that names an option of the wrong kind."""
    if not callable(f):
        raise TypeError(f"f must be a function of (params, *args), got {f!r:.80}")
    if not isinstance(per_leaf, bool) and not callable(per_leaf):
        raise TypeError(
            f"per_leaf must be True, False or a function from path to group, got {per_leaf!r:.80}"
        )
    axes = in_axes if isinstance(in_axes, list | tuple) else [in_axes]
    if not all(axis is None or isinstance(axis, int | np.integer) for axis in axes):
        raise TypeError(
            "in_axes must be an integer, None, or one of them for each argument after params, got "
            f"{in_axes!r:.80}"
        )
    if batch_size is not None:
        check_count("batch_size", batch_size, 1)


def _norm_dtype(leaves: Sequence[Any], dtype: DType) -> np.dtype:
    """Return the type of the sums that make up the norms."""
    if dtype is None:
        double = any(leaf.dtype == jnp.float64 for leaf in leaves)
        return np.dtype(np.float64 if double else np.float32)
    try:
        dtype = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r:.80}") from error
    if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "dtype must be float32 unless JAX's x64 mode is on, got float64; "
            "jax.config.update('jax_enable_x64', True) turns it on"
        )
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")
    return dtype


class _Transform(NamedTuple):
    """The transformation of f for one example, which `value_and_sq_grad_norm` and its kin share."""

    f: Callable[..., Any]
    """Function of (params, *args)."""
    pull_parts: Callable[[Any, Pull], list[Any]]
    """Function from the output and its pullback to the part of each leaf."""
    gram: bool
    """Whether the parts are K x K products."""
    per_leaf: Groups
    """Groups of the leaves."""
    wrt: Filter
    """Leaves that count."""
    dtype: DType
    """Type of the sums."""
    has_aux: bool
    """Whether f returns (value, aux)."""

    def __call__(self, params: Any, *args: Any) -> tuple[Any, Any]:
        leaves, fill, paths = split_leaves(params, self.wrt)
        out, aux, pull, _ = linearise_at(
            self.f, leaves, fill, args,
            dtype=_norm_dtype(leaves, self.dtype), gram=self.gram, has_aux=self.has_aux,
        )  # fmt: skip
        parts = self.pull_parts(out, pull)
        return (out, aux) if self.has_aux else out, _grouped(parts, paths, self.per_leaf)


def _check_vector(out: Float[Array, "*out"]) -> None:
    if out.ndim != 1:
        raise ValueError(f"f must return a vector of outputs, got shape {out.shape}")


def _grouped(
    parts: Sequence[Float[Array, "*k"]], paths: Sequence[str], per_leaf: Groups
) -> Float[Array, "*k"] | dict[str, Float[Array, "*k"]]:
    """Return the sum of the leaves' parts, or the sums by group."""
    if per_leaf is False:
        return functools.reduce(jnp.add, parts)
    sums: dict[str, Any] = {}
    for path, part in zip(paths, parts, strict=True):
        group = path if per_leaf is True else per_leaf(path)
        sums[group] = sums[group] + part if group in sums else part
    return sums


def _map_over_examples(
    transform: _Transform, in_axes: InAxes, batch_size: int | None
) -> Callable[..., tuple[Any, Any]]:
    """Return the compiled transformation, mapped over examples in chunks if there are in_axes."""
    _check_call(transform.f, transform.per_leaf, in_axes, batch_size)

    def over_examples(params: Any, *args: Any) -> tuple[Any, Any]:
        if in_axes is None:
            return transform(params, *args)
        axes = [*in_axes] if isinstance(in_axes, Sequence) else [in_axes] * len(args)
        if len(axes) != len(args) or all(axis is None for axis in axes):
            raise ValueError(
                f"in_axes must have an entry for each of {len(args)} arguments, one of them an "
                f"integer, got {in_axes}"
            )

        def examples_first(a: Any, axis: int) -> Any:
            a = jnp.asarray(a)
            if not -a.ndim <= axis < a.ndim:
                raise ValueError(
                    f"in_axes must name axes that args have, got {axis} for shape {a.shape}"
                )
            return jnp.moveaxis(a, axis, 0)

        rows = {
            i: jax.tree.map(functools.partial(examples_first, axis=axis), args[i])
            for i, axis in enumerate(axes)
            if axis is not None
        }
        sizes = {a.shape[0] for a in jax.tree.leaves(rows)}
        if len(sizes) != 1:
            raise ValueError(
                f"args must have one length along in_axes {in_axes}, got {sorted(sizes)}"
            )

        def example(row: dict[int, Any]) -> tuple[Any, Any]:
            return transform(params, *(row.get(i, arg) for i, arg in enumerate(args)))

        if batch_size is None or batch_size >= sizes.pop():
            return jax.vmap(example)(rows)
        return jax.lax.map(example, rows, batch_size=batch_size)

    compiled = jax.jit(over_examples)

    @functools.wraps(transform.f)
    def value_and_norm(params: Any, *args: Any) -> tuple[Any, Any]:
        check_leaves(params)
        check_args(args)
        return compiled(params, *args)

    return value_and_norm
