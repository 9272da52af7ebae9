"""A report on how each leaf of the parameters is treated, and on what that costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from isounc.gradnorm.leaves import Filter, check_args, check_leaves, linearise_at, split_leaves
from isounc.gradnorm.plan import Plan


class LeafReport(NamedTuple):
    """Treatment of one leaf."""

    path: str
    """Path in the parameters."""
    shape: tuple[int, ...]
    """Shape."""
    way: str
    """fast, tied, formed or unused (`isounc.gradnorm.plan`)."""
    uses: tuple[str, ...]
    """Primitive and method of each use."""
    operations: int | None
    """Multiply-adds per example beside the forward and backward pass through the activations; None
    if the gradient is formed."""
    stored: int
    """Numbers held per example that are part of its gradient."""


class Explanation(NamedTuple):
    """Treatment of every leaf, and its cost."""

    leaves: tuple[LeafReport, ...]
    """One report per leaf."""

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
    """Report how `value_and_sq_grad_norm` treats each leaf for arguments of these shapes.

    Nothing is computed. Every way is exact: they differ in what they cost.

    Parameters
    ----------
    f
        Scalar function `f(params, *args)` of one example. Of an NNX module make one by `nnx.split`
        and `nnx.merge`.
    params
        Its parameters, any pytree of arrays.
    *args
        One example.
    wrt
        The leaves that count, as in `value_and_sq_grad_norm`.
    has_aux
        Whether f returns `(scalar, aux)`.

    Returns
    -------
    Explanation
        A report for each leaf; `print` shows them as a table.

    Raises
    ------
    TypeError, ValueError
        As `value_and_sq_grad_norm`.

    Examples
    --------
    >>> f = lambda w, x: jnp.tanh(x @ w)
    >>> explain(f, jnp.ones(3), jnp.ones(3)).leaves[0].way
    'fast'
    """
    check_leaves(params)
    check_args(args)
    if not callable(f):
        raise TypeError(f"f must be a function of (params, *args), got {f!r:.80}")
    plans: list[Plan] = []

    def analyse(params, *args):
        leaves, fill, _ = split_leaves(params, wrt)
        out, _, _, plan = linearise_at(
            f, leaves, fill, args, dtype=np.dtype(np.float32), gram=False, has_aux=has_aux
        )
        if out.shape != ():
            raise ValueError(
                f"f must return a scalar, got shape {out.shape}; give a function f(params, *args) of "
                "one example"
            )
        plans.append(plan)
        return out

    jax.eval_shape(analyse, params, *args)
    leaves, _, paths = split_leaves(params, wrt)
    reports = (
        _report(plans[0], i, path, leaf.shape)
        for i, (leaf, path) in enumerate(zip(leaves, paths, strict=True))
    )
    return Explanation(tuple(reports))


def _report(plan: Plan, leaf: int, path: str, shape: tuple[int, ...]) -> LeafReport:
    """Report on a leaf, by its index."""
    uses = [use for use in plan.uses if leaf in use.leaves]
    ruled = [use.ruled for use in uses if use.ruled]
    words = [use.primitive for use in uses]
    way, operations, stored = plan.ways[leaf], 0, 0
    if way == "fast":
        costs = [use.rule.cost for use in ruled]
        words = [f"{word} ({cost.method})" for word, cost in zip(words, costs, strict=True)]
        operations = sum(
            math.prod(use.turns) * cost.operations for use, cost in zip(ruled, costs, strict=True)
        )
    elif way == "tied":
        # Gram matrices of the rows of all uses and turns.
        rows = sum(math.prod(use.turns) * use.rule.num_rows for use in ruled)
        operations = rows**2 * sum(shape)
    elif way == "formed":
        operations, stored = None, math.prod(shape)
    return LeafReport(path, shape, way, tuple(words), operations, stored)
