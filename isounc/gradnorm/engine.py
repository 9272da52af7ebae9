"""Exact squared gradient norms of a traced function, by the plan of `isounc.gradnorm.plan`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from isounc.gradnorm import products
from isounc.gradnorm.plan import Plan, leaf_items, make_plan, rule_at
from isounc.gradnorm.trace import (
    Item,
    Path,
    Status,
    aval_of,
    body_of,
    evaluate,
    scan_counts,
    scan_statuses,
    vary,
    varying,
    walk,
)


@dataclass
class _Evaluation:
    """Visitor that computes, with the rules in place of the uses that the plan names."""

    plan: Plan
    totals: dict[Path, Float[Array, "*turns"]]
    """Zeros whose cotangents become the squared norms of fast uses."""
    taps: dict[Path, Float[Array, "*turns_and_out"]]
    """Zeros added to the outputs of tied uses, whose cotangents are those of the outputs."""
    data: dict[Path, Shaped[Array, "*turns_and_data"]]
    """Data that the parameter meets at tied uses, filled in by the walk."""

    def meets(self, eqn, ins):
        return rule_at(eqn, ins) is not None

    def plain(self, eqn, ins):
        return evaluate(eqn, [item.value for item in ins])

    def use(self, eqn, ins, path):
        values = [item.value for item in ins]
        if path not in self.plan.ruled:
            return evaluate(eqn, values)
        rule = self.plan.ruled[path].rule
        if path in self.totals:
            return [rule.accumulate(values, self.totals[path])]
        self.data[path] = values[rule.data]
        return [evaluate(eqn, values)[0] + self.taps[path]]

    def _inside(self, path: Path) -> tuple[dict[Path, Any], dict[Path, Any]]:
        """Return the totals and taps of the uses inside a scan or checkpoint."""
        totals, taps = (
            {p: zeros for p, zeros in by_path.items() if p[: len(path)] == path}
            for by_path in (self.totals, self.taps)
        )
        return totals, taps

    def scan(self, eqn, ins, path):
        params, (num_consts, num_carry) = eqn.params, scan_counts(eqn)
        statuses = scan_statuses(eqn, ins)
        values = [item.value for item in ins]
        consts, carry = values[:num_consts], values[num_consts : num_consts + num_carry]

        def turn(carry, xs):
            slices, (totals, taps) = xs
            inner = _Evaluation(self.plan, totals, taps, {})
            args = list(map(Item, statuses, (*consts, *carry, *slices)))
            outs = [item.value for item in walk(*body_of(eqn), args, (*path, "scan"), inner)]
            return outs[:num_carry], (outs[num_carry:], inner.data)

        carry, (ys, data) = jax.lax.scan(
            turn,
            carry,
            (values[num_consts + num_carry :], self._inside((*path, "scan"))),
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        self.data |= data
        return [*carry, *ys]

    def checkpoint(self, eqn, ins, path):
        statuses: list[Status | None] = []

        def inside(values, within):
            totals, taps = within
            inner = _Evaluation(self.plan, totals, taps, {})
            args = [Item(item.status, value) for item, value in zip(ins, values, strict=True)]
            outs = walk(*body_of(eqn), args, (*path, "checkpoint"), inner)
            statuses[:] = [item.status for item in outs]
            return [item.value for item in outs], inner.data

        recomputed = jax.checkpoint(
            inside, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
        )
        values = [item.value for item in ins]
        values, data = recomputed(values, self._inside((*path, "checkpoint")))
        self.data |= data
        return list(map(Item, statuses, values))


class Rewritten(NamedTuple):
    """A function with the rules in place of the uses of its leaves."""

    plan: Plan
    """Treatment of each leaf and of each use."""
    totals: dict[Path, Float[Array, "*turns"]]
    """Zeros whose cotangents become the squared norms of fast uses."""
    taps: dict[Path, Float[Array, "*turns_and_out"]]
    """Zeros added to the outputs of tied uses."""
    evaluate: Callable[..., tuple[Any, tuple[dict[Path, Any], list[Any]]]]
    """Function of (leaves, args, formed, totals, taps), where `formed` holds leaves by index, that
    returns the first output, and the data of tied uses with the other outputs."""


def rewrite(
    f: Callable[..., Sequence[Any]],
    leaves: Sequence[Any],
    args: Sequence[Any],
    dtype: np.dtype,
    *,
    gram: bool = False,
) -> Rewritten:
    """Trace f of leaves and args, of which only shapes and types matter, and plan its rules.

    The parameters are those of `linearise`.
    """
    closed = jax.make_jaxpr(lambda leaves, args: f(leaves, args))(list(leaves), list(args))
    plan = make_plan(closed, len(leaves), len(args), gram=gram)
    taps, totals = {}, {}
    for path, (origin, rule, turns) in plan.ruled.items():
        if plan.ways[origin.leaf] == "tied":
            out = aval_of(rule.eqn.outvars[0])
            taps[path] = jnp.zeros((*turns, *out.shape), out.dtype)
        else:
            totals[path] = jnp.zeros(turns, dtype)

    def evaluate(leaves, args, formed, totals, taps):
        evaluation = _Evaluation(plan, totals, taps, {})
        values = [formed.get(i, leaf) for i, leaf in enumerate(leaves)]
        if not plan.rewritten:
            out, *others = f(values, args)
            return out, ({}, others)
        inputs = [*leaf_items(leaves, values), *(Item(None, arg) for arg in args)]
        out, *others = walk(closed.jaxpr, closed.consts, inputs, (), evaluation)
        return out.value, (evaluation.data, [other.value for other in others])

    return Rewritten(plan, totals, taps, evaluate)


def sq_norms(
    plan: Plan,
    shapes: Sequence[tuple[int, ...]],
    cotangents: tuple[dict[int, Any], dict[Path, Any], dict[Path, Any]],
    data: dict[Path, Any],
    dtype: np.dtype,
) -> list[Float[Array, ""]]:
    """Squared gradient norm of each leaf, from the cotangents of what `Rewritten` holds."""
    gradients, total_cotangents, tap_cotangents = cotangents
    result = [jnp.zeros((), dtype) for _ in shapes]
    for i, gradient in gradients.items():
        result[i] = products.sum_of_squares(gradient.astype(dtype))
    for path, total in total_cotangents.items():
        origin = plan.ruled[path].origin
        result[origin.leaf] += origin.scale**2 * total.sum()
    for i, way in enumerate(plan.ways):
        if way == "tied":
            uses = [p for p in tap_cotangents if plan.ruled[p].origin.leaf == i]
            result[i] = _tied_sq_norm(plan, uses, shapes[i], data, tap_cotangents, dtype)
    return result


Pull = Callable[[Float[Array, "*out"]], list[Float[Array, "*k"]]]
"""Function from a cotangent of the output to each leaf's squared gradient norm (), or from K
cotangents to each leaf's products (K, K)."""


def linearise(
    f: Callable[..., Sequence[Any]],
    leaves: Sequence[Any],
    args: Sequence[Any],
    dtype: np.dtype,
    *,
    gram: bool = False,
) -> tuple[Float[Array, "*out"], list[Any], Pull, Plan]:
    """Evaluate f, and prepare the squared gradient norms of its first output.

    Parameters
    ----------
    f
        Function of (leaves, args) with a sequence of arrays as outputs.
    leaves
        Floating-point arrays by which the first output is differentiated.
    args
        Arrays that are data.
    dtype
        Type of the sums that make up the norms.
    gram
        Whether all products of K gradients are wanted, instead of one squared norm.

    Returns
    -------
    tuple
        The first output, the others, the function from its cotangents to norms, and the plan.
    """
    # Every device inside shard_map has its own examples, and so its own gradients; JAX would add up
    # those of the leaves that all devices share.
    axes = frozenset().union(*map(varying, (*leaves, *args)))
    leaves = [vary(leaf, axes) for leaf in leaves]
    rewritten = rewrite(f, leaves, args, dtype, gram=gram)
    plan = rewritten.plan
    formed = {i: leaves[i] for i in plan.formed}
    totals, taps = jax.tree.map(lambda zeros: vary(zeros, axes), (rewritten.totals, rewritten.taps))

    with while_loops_named():
        out, pullback, (data, others) = jax.vjp(
            functools.partial(rewritten.evaluate, leaves, list(args)),
            formed, totals, taps, has_aux=True,
        )  # fmt: skip

    def norms(cotangent: Float[Array, "*out"]) -> list[Float[Array, ""]]:
        with while_loops_named():
            cotangents = pullback(cotangent)
        return sq_norms(plan, [leaf.shape for leaf in leaves], cotangents, data, dtype)

    def grams(cotangents: Float[Array, "K *out"]) -> list[Float[Array, "K K"]]:
        with while_loops_named():
            gradients, _, tap_cotangents = jax.vmap(pullback)(cotangents)
        k = cotangents.shape[0]
        result = [jnp.zeros((k, k), dtype) for _ in leaves]
        with jax.default_matmul_precision("highest"):
            for i, gradient in gradients.items():
                flat = gradient.reshape(k, -1).astype(dtype)
                result[i] = flat @ flat.T
        for path, g in tap_cotangents.items():
            origin, rule, turns = plan.ruled[path]
            a, g = _merge_axes(data[path], 0, len(turns)), _merge_axes(g, 1, len(turns))
            by_turn = jax.vmap(functools.partial(rule.gram, dtype=dtype), (0, 1))(a, g)
            result[origin.leaf] += origin.scale**2 * by_turn.sum(0)
        return result

    return out, others, grams if gram else norms, plan


@contextlib.contextmanager
def while_loops_named() -> Iterator[None]:
    """Raise JAX's error about the derivative of a while loop as one that says what to do."""
    try:
        yield
    except ValueError as error:
        if "while_loop" not in str(error):
            raise
        raise NotImplementedError(
            "f must not have a while loop that parameters enter on their way to the output: it has "
            "no reverse-mode derivative. Use jax.lax.scan, or fori_loop with a fixed length."
        ) from error


def _merge_axes(values: Shaped[Array, "*shape"], first: int, num: int) -> Shaped[Array, "*merged"]:
    """Merge `num` axes from `first` on into a single one, of length 1 if there are none."""
    return values.reshape(*values.shape[:first], -1, *values.shape[first + num :])


def _tied_sq_norm(
    plan: Plan,
    paths: Sequence[Path],
    shape: tuple[int, ...],
    data: dict[Path, Shaped[Array, "*turns_and_data"]],
    cotangents: dict[Path, Float[Array, "*turns_and_out"]],
    dtype: np.dtype,
) -> Float[Array, ""]:
    """Return the squared norm of the sum of the gradients of several uses, from their factors."""
    parts = []
    for path in paths:
        origin, rule, turns = plan.ruled[path]
        a, g = data[path], cotangents[path]
        by_turn = jax.vmap(functools.partial(rule.factors, axes=origin.axes or ()))(
            _merge_axes(a, 0, len(turns)), _merge_axes(g, 0, len(turns))
        )
        factors = {axis: _merge_axes(rows, 0, 2) for axis, rows in by_turn.items()}
        sq_norm = None
        if not turns and rule.cost.method in ("direct", "sums", "rank one"):
            sq_norm = rule.sq_norm(rule.residual(a, dtype), g, dtype)
        parts.append(products.Part(origin.scale, factors, sq_norm))
    return products.sq_norm_of_sum(parts, shape, dtype)
