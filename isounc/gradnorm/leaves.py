"""Parameters as pytrees: which leaves count, and functions of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from isounc.checks import check_integers
from isounc.gradnorm.engine import Pull, linearise
from isounc.gradnorm.plan import Plan

Filter = str | Callable[[str], bool] | None
"""Leaves that count: a regular expression to be found in their path, a function of the path, or
None for all leaves."""


def path_text(path: tuple[Any, ...]) -> str:
    """Return the path of a leaf as text."""
    return jax.tree_util.keystr(path) or "params"


def check_leaves(params: Any) -> None:
    """Raise a TypeError that names the path of a leaf that is no array, or complex."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, np.ma.MaskedArray):
            raise TypeError(
                f"params must hold arrays without a mask, got a masked array at {path_text(path)}"
            )
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
            raise TypeError(
                f"params must hold arrays, got {type(leaf).__name__} ({leaf!r:.60}) at "
                f"{path_text(path)}. Give only the arrays (nnx.split, variables['params'], "
                "eqx.partition)."
            )
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(f"params must be real, got {leaf.dtype} at {path_text(path)}")


def check_args(args: tuple[Any, ...]) -> None:
    """Raise an error that names the place of data that are no numbers, masked, or beyond JAX's types.

    Raises
    ------
    TypeError
        For what is no array of numbers, and for a Python integer that fits no type.
    ValueError
        For an array of integers that JAX would wrap.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(args):
        if isinstance(leaf, np.ma.MaskedArray):
            kind = "a masked array"
        elif isinstance(leaf, str | bytes):
            kind = f"{leaf!r:.60}"
        elif isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OSUMm":
            kind = f"an array of dtype {leaf.dtype}"
        elif isinstance(leaf, int) and abs(leaf) > jnp.iinfo(jnp.result_type(int)).max:
            kind = f"{leaf!r:.60}, beyond {jnp.result_type(int)},"
        else:
            if isinstance(leaf, np.ndarray | np.generic):
                check_integers(f"args{path_text(path)}", leaf)
            continue
        raise TypeError(f"args must hold arrays of numbers, got {kind} at args{path_text(path)}")


def _predicate(wrt: Filter) -> Callable[[str], Any] | None:
    """Return a filter as a function of the path."""
    if not isinstance(wrt, str):
        if wrt is None or callable(wrt):
            return wrt
        raise TypeError(
            "wrt must be a regular expression, a function of the path, or None for all leaves, "
            f"got {wrt!r}"
        )
    try:
        return re.compile(wrt).search
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"wrt must be a regular expression, got {wrt!r:.80}: {error}") from error


def split_leaves(
    params: Any, wrt: Filter
) -> tuple[list[Any], Callable[[Sequence[Any]], Any], list[str]]:
    """Return the leaves that count, a function that puts them back among the others, and paths."""
    leaves_with_paths, tree = jax.tree_util.tree_flatten_with_path(params)
    keep = _predicate(wrt)
    indices, paths, everything = [], [], []
    for i, (path, leaf) in enumerate(leaves_with_paths):
        text = path_text(path)
        everything.append(leaf)
        if jnp.issubdtype(leaf.dtype, jnp.floating) and (keep is None or keep(text)):
            indices.append(i)
            paths.append(text)
    if not indices:
        expected = "params must have" if wrt is None else "wrt must keep"
        known = ", ".join(path_text(path) for path, _ in leaves_with_paths[:8]) or "none"
        raise ValueError(f"{expected} a floating-point leaf, got leaves {known}")

    def fill(leaves: Sequence[Any]) -> Any:
        filled = list(everything)
        for i, leaf in zip(indices, leaves, strict=True):
            filled[i] = leaf
        return jax.tree.unflatten(tree, filled)

    return [everything[i] for i in indices], fill, paths


def linearise_at(
    f: Callable[..., Any],
    leaves: Sequence[Any],
    fill: Callable[[Sequence[Any]], Any],
    args: tuple[Any, ...],
    *,
    dtype: np.dtype,
    gram: bool,
    has_aux: bool,
) -> tuple[Float[Array, "*out"], Any, Pull, Plan]:
    """Call `linearise` for f with arguments and aux as pytrees; return out, aux, pull and plan."""
    flat_args, tree = jax.tree.flatten(args)
    aux_trees: list[Any] = []

    def flat_f(leaves: Sequence[Any], flat_args: Sequence[Any]) -> list[Any]:
        result = f(fill(leaves), *jax.tree.unflatten(tree, flat_args))
        if has_aux and not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                f"f must return (value, aux) with has_aux=True, got {type(result).__name__}"
            )
        out, aux = result if has_aux else (result, ())
        if jax.tree.structure(out) != jax.tree.structure(0):
            raise TypeError(f"f must return one array, got {jax.tree.structure(out)}")
        if not jnp.issubdtype(jnp.result_type(out), jnp.floating):
            raise TypeError(f"f must return real numbers, got {jnp.result_type(out)}")
        flat_aux, aux_tree = jax.tree.flatten(aux)
        aux_trees.append(aux_tree)
        return [out, *flat_aux]

    out, flat_aux, pull, plan = linearise(flat_f, leaves, flat_args, dtype, gram=gram)
    return out, jax.tree.unflatten(aux_trees[-1], flat_aux), pull, plan
