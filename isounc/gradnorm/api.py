"""Squared gradient norms of any JAX function, exactly, at the price of a backward pass and without storing gradients.

    value, sq_norm = value_and_sq_grad_norm(f)(params, x)

is `jax.value_and_grad` followed by the sum of squares, with no weight matrix's gradient in between: the traced function
is rewritten so that each use of a weight turns its cotangent into a number (`isounc.gradnorm.engine`). Gradients of
biases and scales, and of what no rule knows, are formed one leaf at a time an example; `explain` says which.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isounc.checks import check_count
from isounc.gradnorm.engine import Plan, linearise

Groups = bool | Callable[[str], str]
"""False for one sum, True for a sum a leaf, or a function from a leaf's path to the name of its group."""
Filter = str | Callable[[str], bool] | None
"""Which leaves count: a regular expression that their path must contain, a function of the path, or None for all."""


def value_and_sq_grad_norm(
    f: Callable[..., Any],
    *,
    per_leaf: Groups = False,
    wrt: Filter = None,
    in_axes: int | Sequence[int | None] | None = None,
    batch_size: int | None = None,
    dtype: Any = None,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, Any]]:
    """A function that gives f and ||grad_params f||^2.

    Parameters
    ----------
    f
        ``f(params, *args)``, a scalar. ``params`` is any pytree of arrays; integer leaves count as fixed.
    per_leaf
        True gives a dict from each leaf's path to its part of the sum, a function from path to group one from groups.
    wrt
        Only these leaves count, by regular expression or function of the path; the others are fixed.
    in_axes
        As for `jax.vmap`, for ``args`` alone (an integer for all): N values and N norms, one an example. ``params`` is
        shared. None is one example.
    batch_size
        Examples at a time, which bounds the memory of their activations; None is all.
    dtype
        Of the sums that make up the norms; float32, or float64 where a leaf is. float64 needs JAX's x64 mode; what the
        function itself computes keeps its types.
    has_aux
        f returns ``(scalar, aux)``, and so does the function in place of the value.

    Returns
    -------
    Callable
        ``(params, *args) -> (value, sq_norm)``, compiled; it composes with jit, vmap, grad, lax.map, and examples that
        are sharded over devices.

    Raises
    ------
    TypeError, ValueError
        On the call: f that is not a real scalar, leaves that are no arrays or complex, no leaf that ``wrt`` keeps, axes
        of different lengths.
    NotImplementedError
        A while loop that parameters and data enter.

    Examples
    --------
    >>> f = lambda w, x: jnp.tanh(x @ w)
    >>> value, sq_norm = value_and_sq_grad_norm(f)(jnp.ones(3), jnp.ones(3))
    """

    def sums(out, pull):
        _check_scalar(out)
        return pull(jnp.ones_like(out))

    return _transformed(f, sums, False, per_leaf, wrt, in_axes, batch_size, dtype, has_aux)


def value_and_sq_grad_norms(
    f: Callable[..., Any],
    *,
    per_leaf: Groups = False,
    wrt: Filter = None,
    in_axes: int | Sequence[int | None] | None = None,
    batch_size: int | None = None,
    dtype: Any = None,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, Any]]:
    """As `value_and_sq_grad_norm` for f with K outputs: (K,) values and (K,) squared norms from one forward pass.

    The K backward passes run at once: memory is that of ``batch_size`` x K of them.
    """

    def sums(out, pull):
        _check_vector(out)
        return jax.vmap(pull)(jnp.eye(out.size, dtype=out.dtype))

    return _transformed(f, sums, False, per_leaf, wrt, in_axes, batch_size, dtype, has_aux)


def value_and_grad_gram(
    f: Callable[..., Any],
    *,
    per_leaf: Groups = False,
    wrt: Filter = None,
    in_axes: int | Sequence[int | None] | None = None,
    batch_size: int | None = None,
    dtype: Any = None,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, Any]]:
    """As `value_and_sq_grad_norms`, with all products: the K x K matrix <grad f_k, grad f_l>.

    Leaves with several uses have their K gradients formed.
    """

    def sums(out, pull):
        _check_vector(out)
        return pull(jnp.eye(out.size, dtype=out.dtype))

    return _transformed(f, sums, True, per_leaf, wrt, in_axes, batch_size, dtype, has_aux)


def value_and_log_sq_grad_norm(
    log_p: Callable[..., Any], **options: Any
) -> Callable[..., tuple[Any, Any]]:
    """From log p as a function: log p and log ||grad p||^2 = 2 log p + log ||grad log p||^2.

    For probabilities that underflow, of sequences say. Options are those of `value_and_sq_grad_norm`.
    """
    inner = value_and_sq_grad_norm(log_p, **options)

    def run(params, *args):
        out, norms = inner(params, *args)
        value = out[0] if options.get("has_aux") else out
        return out, jax.tree.map(lambda norm: 2 * value.astype(norm.dtype) + jnp.log(norm), norms)

    return functools.wraps(log_p)(run)


class LeafReport(NamedTuple):
    """What becomes of one leaf."""

    path: str
    """Its path in the parameters."""
    shape: tuple[int, ...]
    """Its shape."""
    way: str
    """fast, tied, formed or unused (`isounc.gradnorm.engine`)."""
    uses: tuple[str, ...]
    """Primitive and method of each use."""
    operations: int | None
    """Multiply-adds per example beside the forward and backward pass through the activations; None where formed."""
    stored: int
    """Numbers of the size of its gradient that are held per example."""


class Explanation(NamedTuple):
    """Which uses of the parameters took which path, and what that costs."""

    leaves: tuple[LeafReport, ...]
    """One entry a leaf."""

    def __str__(self) -> str:
        lines = [f"{'leaf':<40}{'shape':>18}  {'way':<7}{'operations':>12}{'stored':>10}  uses"]
        for leaf in self.leaves:
            shape = "x".join(map(str, leaf.shape)) or "scalar"
            operations = "-" if leaf.operations is None else leaf.operations
            lines.append(
                f"{leaf.path:<40}{shape:>18}  {leaf.way:<7}{operations:>12}{leaf.stored:>10}  "
                f"{', '.join(leaf.uses)}"
            )
        return "\n".join(lines)


def explain(
    f: Callable[..., Any], params: Any, *args: Any, wrt: Filter = None, has_aux: bool = False
) -> Explanation:
    """How `value_and_sq_grad_norm` goes about f at arguments of these shapes; nothing is computed."""
    check_leaves(params)
    plans: list[Plan] = []

    def analyse(params, *args):
        leaves, fill, _ = _split(params, wrt)
        out, _, _, plan = _linearise(f, leaves, fill, args, jnp.float32, False, has_aux)
        plans.append(plan)
        return out

    jax.eval_shape(analyse, params, *args)
    leaves, _, names = _split(params, wrt)
    plan, reports = plans[0], []
    for i, (leaf, name) in enumerate(zip(leaves, names, strict=True)):
        mine = [use for use in plan.uses if i in use.leaves]
        way, operations = plan.kinds[i], 0
        words = [use.primitive for use in mine]
        known = [use.known for use in mine if use.known]
        if way == "fast":
            costs = [one.rule.cost for one in known]
            words = [f"{use.primitive} ({c.method})" for use, c in zip(mine, costs, strict=True)]
            operations = sum(
                math.prod(one.turns) * c.operations for one, c in zip(known, costs, strict=True)
            )
        elif way == "tied":
            # Gram matrices of the rows of all uses and turns.
            rows = sum(math.prod(one.turns) * one.rule.num_rows for one in known)
            operations = rows**2 * sum(leaf.shape)
        elif way == "formed":
            operations = None
        stored = leaf.size if way == "formed" else 0
        reports.append(LeafReport(name, leaf.shape, way, tuple(words), operations, stored))
    return Explanation(tuple(reports))


def _name(path) -> str:
    return jax.tree_util.keystr(path) or "params"


def check_leaves(params: Any) -> None:
    """Refuse leaves that are no real arrays, by path, before JAX speaks of its own arguments."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
            raise TypeError(
                f"params must hold arrays; {_name(path)} is {type(leaf).__name__} ({leaf!r:.60}). "
                "Give only the arrays (nnx.split, variables['params'], eqx.partition)."
            )
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(f"params must be real; {_name(path)} is {leaf.dtype}.")


def _split(params: Any, wrt: Filter):
    """Leaves that count, a function that puts them back among the others, and their paths."""
    found, tree = jax.tree_util.tree_flatten_with_path(params)
    keep = re.compile(wrt).search if isinstance(wrt, str) else wrt
    at, names, everything = [], [], []
    for i, (path, leaf) in enumerate(found):
        name = _name(path)
        everything.append(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.floating) and (keep is None or keep(name)):
            at.append(i)
            names.append(name)
    if not at:
        paths = ", ".join(map(_name, (path for path, _ in found[:8]))) or "none"
        what = (
            "params has no floating-point leaf"
            if wrt is None
            else "wrt keeps no floating-point leaf of params"
        )
        raise ValueError(f"{what}; paths are: {paths}")

    def fill(leaves):
        whole = list(everything)
        for i, leaf in zip(at, leaves, strict=True):
            whole[i] = leaf
        return jax.tree.unflatten(tree, whole)

    return [everything[i] for i in at], fill, names


def _linearise(f, leaves, fill, args, dtype, outer, has_aux):
    """`linearise` of f with its aux put together again."""
    flat, tree = jax.tree.flatten(args)
    shape: list[Any] = []

    def of_leaves(leaves, flat):
        found = f(fill(leaves), *jax.tree.unflatten(tree, flat))
        if has_aux and not (isinstance(found, tuple) and len(found) == 2):
            raise TypeError(
                f"f must return (value, aux) with has_aux=True, got {type(found).__name__}"
            )
        out, aux = found if has_aux else (found, ())
        if jax.tree.structure(out) != jax.tree.structure(0):
            raise TypeError(f"f must return one array, got {jax.tree.structure(out)}")
        if not jnp.issubdtype(jnp.result_type(out), jnp.floating):
            raise TypeError(f"f must return real numbers, got {jnp.result_type(out)}")
        others, aux_tree = jax.tree.flatten(aux)
        shape[:] = [aux_tree]
        return [out, *others]

    out, others, pull, plan = linearise(of_leaves, leaves, flat, dtype, outer=outer)
    return out, jax.tree.unflatten(shape[0], others), pull, plan


def _norm_dtype(leaves, dtype):
    if dtype is None:
        double = any(leaf.dtype == jnp.float64 for leaf in leaves)
        return np.dtype(np.float64 if double else np.float32)
    dtype = np.dtype(dtype)
    if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "dtype float64 needs JAX's x64 mode: jax.config.update('jax_enable_x64', True)."
        )
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")
    return dtype


def _transformed(f, sums, outer, per_leaf, wrt, in_axes, batch_size, dtype, has_aux):
    """The function that `value_and_sq_grad_norm` and its kin return; sums(out, pull) gives what each leaf adds."""

    def one(params, *args):
        leaves, fill, names = _split(params, wrt)
        number = _norm_dtype(leaves, dtype)
        out, aux, pull, _ = _linearise(f, leaves, fill, args, number, outer, has_aux)
        parts = sums(out, pull)
        return (out, aux) if has_aux else out, _grouped(parts, names, per_leaf)

    return _mapped(one, f, in_axes, batch_size)


def _check_scalar(out) -> None:
    if out.shape != ():
        raise ValueError(
            f"f must return a scalar, got shape {out.shape}; for several outputs use value_and_sq_grad_norms, "
            "for a batch of examples give in_axes."
        )


def _check_vector(out) -> None:
    if out.ndim != 1:
        raise ValueError(f"f must return a vector of outputs, got shape {out.shape}")


def _grouped(parts: Sequence[Any], names: Sequence[str], per_leaf: Groups):
    if per_leaf is False:
        return functools.reduce(jnp.add, parts)
    sums: dict[str, Any] = {}
    for name, part in zip(names, parts, strict=True):
        group = name if per_leaf is True else per_leaf(name)
        sums[group] = sums[group] + part if group in sums else part
    return sums


def _mapped(one, f, in_axes, batch_size):
    """`one` for a batch, in chunks, compiled."""
    if batch_size is not None:
        check_count("batch_size", batch_size, 1)
    if in_axes is None:
        return _checked(jax.jit(one), f)

    def run(params, *args):
        axes = [in_axes] * len(args) if isinstance(in_axes, int) else list(in_axes)
        if len(axes) != len(args) or all(axis is None for axis in axes):
            raise ValueError(
                f"in_axes must have an entry for each of {len(args)} arguments, one of them an integer; got {in_axes}"
            )
        rows = {
            i: jax.tree.map(lambda a, axis=axis: jnp.moveaxis(jnp.asarray(a), axis, 0), args[i])
            for i, axis in enumerate(axes)
            if axis is not None
        }
        sizes = {a.shape[0] for a in jax.tree.leaves(rows)}
        if len(sizes) != 1:
            raise ValueError(
                f"args must have one length along in_axes {in_axes}, got {sorted(sizes)}"
            )

        def row(values):
            return one(params, *(values.get(i, arg) for i, arg in enumerate(args)))

        if batch_size is None or batch_size >= sizes.pop():
            return jax.vmap(row)(rows)
        return jax.lax.map(row, rows, batch_size=batch_size)

    return _checked(jax.jit(run), f)


def _checked(compiled, f):
    @functools.wraps(f)
    def call(params, *args):
        check_leaves(params)
        return compiled(params, *args)

    return call
