"""Exact squared gradient norms of a traced function: the plan, and the function that carries it out.

Leaves of the parameters go one of four ways:

    fast     every use has a rule (`isounc.gradnorm.rules`) and no two uses share an element: nothing is stored;
    tied     several uses of one matrix (embedding and output head, turns of a recurrence): their factors are kept, and
             cross terms come from Gram matrices of them;
    formed   anything else: the gradient of that leaf is formed by ordinary differentiation, and its norm taken;
    unused   the function does not depend on it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isounc.gradnorm import rules as uses_
from isounc.gradnorm.trace import (
    Item,
    Origin,
    Path,
    Status,
    apart,
    body_of,
    evaluate,
    scan_counts,
    scan_statuses,
    vary,
    varying,
    walk,
)


class Known(NamedTuple):
    """A use whose norm is known without forming a gradient."""

    origin: Origin
    """How the parameter that enters is a rearrangement of one leaf."""
    rule: uses_.Rule
    """How the norm is had."""
    turns: tuple[int, ...]
    """Lengths of the scans around it."""

    @property
    def each(self) -> bool:
        """Whether every turn of the scans has a slice of the leaf of its own."""
        return self.turns == self.origin.lengths


class Use(NamedTuple):
    """Where a parameter meets data."""

    path: Path
    """Where in the jaxpr."""
    primitive: str
    """Name of the equation's primitive."""
    leaves: frozenset[int]
    """Leaves that enter."""
    known: Known | None
    """None where the gradient has to be formed."""


def _rule_at(eqn, ins: Sequence[Item]) -> tuple[Origin, uses_.Rule] | None:
    """Rule for an equation that one rearranged leaf enters, and that leaf's origin."""
    tracked = [i for i, item in enumerate(ins) if item.status and item.status.leaves]
    if len(tracked) == 1 and (origin := ins[tracked[0]].status.origin):  # pyright: ignore
        rule = uses_.rule_of(eqn, tracked[0])
        return rule and (origin, rule)
    return None


class _Analysis:
    """Collects the uses; values are absent."""

    def __init__(self):
        self.uses: list[Use] = []
        self.turns: tuple[int, ...] = ()

    def meets(self, eqn, ins):
        return _rule_at(eqn, ins) is not None

    def plain(self, eqn, ins):
        return [None] * len(eqn.outvars)

    def use(self, eqn, ins, path):
        leaves = frozenset().union(*(item.status.leaves for item in ins if item.status))
        found = _rule_at(eqn, ins)
        known = found and Known(*found, self.turns)
        self.uses.append(Use(path, eqn.primitive.name, leaves, known))
        return [None] * len(eqn.outvars)

    def whole(self, items: Sequence[Item], path: Path, what: str) -> None:
        """Uses of parameters as they are, by something that is no equation."""
        leaves = frozenset().union(*(item.status.leaves for item in items if item.status))
        if leaves:
            self.uses.append(Use(path, what, leaves, None))

    def scan(self, eqn, ins, path):
        num_consts, num_carry = scan_counts(eqn)
        self.whole(ins[num_consts : num_consts + num_carry], path, "scan's carry")
        args = [Item(status, None) for status in scan_statuses(eqn, ins)]
        outside, self.turns = self.turns, (*self.turns, eqn.params["length"])
        outs = walk(*body_of(eqn), args, (*path, "scan"), self)
        self.whole(outs, path, "scan's output")
        self.turns = outside
        return [None] * len(eqn.outvars)

    def checkpoint(self, eqn, ins, path):
        return walk(*body_of(eqn), ins, (*path, "checkpoint"), self)


class Plan(NamedTuple):
    """What is done with each leaf and at each use."""

    kinds: tuple[str, ...]
    """fast, tied, formed or unused, by leaf."""
    at: dict[Path, Known]
    """Uses of leaves that are fast or tied."""
    uses: tuple[Use, ...]
    """All uses."""


def make_plan(closed, num_leaves: int, num_inputs: int, *, outer: bool = False) -> Plan:
    """Analyse a jaxpr whose first inputs are the leaves.

    ``outer`` asks for factors of every use, from which products of gradients come: leaves whose uses share no element
    count as tied, the rest is formed.
    """
    avals = closed.in_avals
    leaves = [
        Item(Status(frozenset([i]), Origin(i, tuple((0, n) for n in a.shape), tuple(range(a.ndim)))), None)
        for i, a in enumerate(avals[:num_leaves])
    ]  # fmt: skip
    analysis = _Analysis()
    outs = walk(
        closed.jaxpr, closed.consts, [*leaves, *[Item(None, None)] * num_inputs], (), analysis
    )
    analysis.whole(outs[:1], ("output",), "output")
    kinds = []
    for i, aval in enumerate(avals[:num_leaves]):
        mine = [use for use in analysis.uses if i in use.leaves]
        kinds.append(_kind(mine, aval.shape, outer))
    at = {
        use.path: use.known
        for use in analysis.uses
        if use.known and all(kinds[leaf] in ("fast", "tied") for leaf in use.leaves)
    }
    return Plan(tuple(kinds), at, tuple(analysis.uses))


def _kind(mine: list[Use], shape: tuple[int, ...], outer: bool) -> str:
    if not mine:
        return "unused"
    known = [use.known for use in mine if use.known]
    if len(known) < len(mine):
        return "formed"
    alone = all(apart(a.origin, b.origin) for i, a in enumerate(known) for b in known[:i])
    if alone and all(one.each for one in known):
        return "tied" if outer else "fast"
    return "tied" if not outer and _simple(known, shape) else "formed"


def _simple(mine: list[Known], shape: tuple[int, ...]) -> bool:
    """Whether all uses have factors that are rows on the two axes of a whole matrix, and not too many of them."""
    if len(shape) != 2:
        return False
    whole = tuple((0, n) for n in shape)
    rows = 0
    for origin, rule, turns in mine:
        if origin.box != whole or origin.axes is None or origin.lengths:
            return False
        if not rule.is_simple(origin.axes):
            return False
        rows += rule.num_rows * math.prod(turns)
    # Products of factors cost rows^2 (n + m), the formed gradient rows n m and its memory.
    return rows * (shape[0] + shape[1]) <= 4 * shape[0] * shape[1]


@dataclass
class _Evaluation:
    """Computes, with the rules in place of the uses that the plan names."""

    plan: Plan
    totals: dict[Path, Any]
    """Zeros whose cotangents become squared norms, at fast uses."""
    taps: dict[Path, Any]
    """Zeros added to the outputs of tied uses, a turn of the scans along leading axes; their cotangents are those of
    the outputs."""
    seen: dict[Path, Any]
    """What tied uses multiply the parameter by."""

    def meets(self, eqn, ins):
        return _rule_at(eqn, ins) is not None

    def plain(self, eqn, ins):
        return evaluate(eqn, [item.value for item in ins])

    def use(self, eqn, ins, path):
        values = [item.value for item in ins]
        known = self.plan.at.get(path)
        if known is None:
            return evaluate(eqn, values)
        rule = known.rule
        if path in self.totals:
            return [rule.accumulate(values, self.totals[path])]
        self.seen[path] = values[rule.data]
        return [evaluate(eqn, values)[0] + self.taps[path]]

    def _inside(self, path: Path) -> tuple[dict[Path, Any], dict[Path, Any]]:
        """Totals and taps of the uses inside of a scan or checkpoint."""
        totals, taps = (
            {p: t for p, t in of.items() if p[: len(path)] == path}
            for of in (self.totals, self.taps)
        )
        return totals, taps

    def scan(self, eqn, ins, path):
        params, (num_consts, num_carry) = eqn.params, scan_counts(eqn)
        statuses = scan_statuses(eqn, ins)
        values = [item.value for item in ins]
        consts, carry = values[:num_consts], values[num_consts : num_consts + num_carry]

        def turn(carry, xs):
            runs, (totals, taps) = xs
            inner = _Evaluation(self.plan, totals, taps, {})
            args = map(Item, statuses, (*consts, *carry, *runs))
            outs = walk(*body_of(eqn), list(args), (*path, "scan"), inner)
            outs = [item.value for item in outs]
            return outs[:num_carry], (outs[num_carry:], inner.seen)

        carry, (ys, seen) = jax.lax.scan(
            turn,
            carry,
            (values[num_consts + num_carry :], self._inside((*path, "scan"))),
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        self.seen |= seen
        return [*carry, *ys]

    def checkpoint(self, eqn, ins, path):
        statuses: list[Status | None] = []

        def inside(values, within):
            totals, taps = within
            inner = _Evaluation(self.plan, totals, taps, {})
            args = [Item(item.status, value) for item, value in zip(ins, values, strict=True)]
            outs = walk(*body_of(eqn), args, (*path, "checkpoint"), inner)
            statuses[:] = [item.status for item in outs]
            return [item.value for item in outs], inner.seen

        again = jax.checkpoint(
            inside, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
        )
        values, seen = again([item.value for item in ins], self._inside((*path, "checkpoint")))
        self.seen |= seen
        return list(map(Item, statuses, values))


Pull = Callable[[Any], list[Float[Array, "..."]]]


def linearise(
    f: Callable[..., Sequence[Array]],
    leaves: Sequence[Array],
    args: Sequence[Array],
    dtype: Any,
    *,
    outer: bool = False,
) -> tuple[Array, list[Array], Pull, Plan]:
    """Outputs of f(leaves, args), and the function from a cotangent of the first to each leaf's squared gradient norm.

    With ``outer``, that function takes K cotangents (K, ...) and gives each leaf's K x K matrix of products.
    """
    # Inside of shard_map every device has examples, and so gradients, of its own; JAX would add up those of leaves that
    # all devices share.
    axes = frozenset().union(*map(varying, (*leaves, *args)))
    leaves = [vary(leaf, axes) for leaf in leaves]
    closed = jax.make_jaxpr(lambda leaves, args: f(leaves, args))(leaves, list(args))
    plan = make_plan(closed, len(leaves), len(args), outer=outer)
    origins = {path: known.origin for path, known in plan.at.items()}
    taps, totals = {}, {}
    for path, (origin, rule, turns) in plan.at.items():
        if plan.kinds[origin.leaf] == "tied":
            out = rule.eqn.outvars[0].aval
            taps[path] = vary(jnp.zeros((*turns, *out.shape), out.dtype), axes)
        else:
            totals[path] = vary(jnp.zeros(turns, dtype), axes)
    formed = {i: leaf for i, leaf in enumerate(leaves) if plan.kinds[i] == "formed"}

    def rewritten(formed, totals, taps):
        evaluation = _Evaluation(plan, totals, taps, {})
        items = [
            Item(
                Status(frozenset([i]), Origin(i, tuple((0, n) for n in leaf.shape), tuple(range(leaf.ndim)))),
                formed.get(i, leaf),
            )
            for i, leaf in enumerate(leaves)
        ]  # fmt: skip
        items += [Item(None, arg) for arg in args]
        out, *others = walk(closed.jaxpr, closed.consts, items, (), evaluation)
        return out.value, (evaluation.seen, [other.value for other in others])

    out, pullback, (seen, others) = jax.vjp(rewritten, formed, totals, taps, has_aux=True)

    def norms(cotangent):
        by_leaf, by_total, by_tap = pullback(cotangent)
        result = [jnp.zeros((), dtype) for _ in leaves]
        for i, gradient in by_leaf.items():
            result[i] = uses_.sum_of_squares(gradient.astype(dtype))
        for path, total in by_total.items():
            result[origins[path].leaf] += origins[path].scale ** 2 * total.sum()
        for i, kind in enumerate(plan.kinds):
            if kind == "tied":
                paths = [p for p in by_tap if origins[p].leaf == i]
                result[i] = _tied(plan, paths, seen, by_tap, dtype)
        return result

    def products(cotangents):
        by_leaf, _, by_tap = jax.vmap(pullback)(cotangents)
        k = cotangents.shape[0]
        result = [jnp.zeros((k, k), dtype) for _ in leaves]
        with jax.default_matmul_precision("highest"):
            for i, gradient in by_leaf.items():
                flat = gradient.reshape(k, -1).astype(dtype)
                result[i] = flat @ flat.T
        for path, g in by_tap.items():
            origin, rule, turns = plan.at[path]
            A = _one_axis(seen[path], 0, len(turns))
            parts = jax.vmap(functools.partial(rule.gram, dtype=dtype), (0, 1))(
                A, _one_axis(g, 1, len(turns))
            )
            result[origin.leaf] += origin.scale**2 * parts.sum(0)
        return result

    return out, others, products if outer else norms, plan


def _one_axis(values: Array, first: int, num: int) -> Array:
    """`num` axes from `first` on as a single one."""
    return values.reshape(*values.shape[:first], -1, *values.shape[first + num :])


def _tied(plan: Plan, paths, seen, by_tap, dtype) -> Float[Array, ""]:
    """Squared norm of a sum of gradients, from the factors of each."""
    total = jnp.zeros((), dtype)
    before: list[tuple[float, dict[int, Any]]] = []
    for path in paths:
        origin, rule, turns = plan.at[path]
        axes = origin.axes or ()
        sides = jax.vmap(functools.partial(rule.sides, axes=axes))(
            *(_one_axis(of[path], 0, len(turns)) for of in (seen, by_tap))
        )
        sides = {axis: _one_axis(rows, 0, 2) for axis, rows in sides.items()}
        if turns:
            own = uses_.sides_product(sides, sides, dtype)
        else:
            own = rule.sq_norm(rule.keep(seen[path], dtype), by_tap[path], dtype)
        total += origin.scale**2 * own
        for scale, others in before:
            total += 2 * origin.scale * scale * uses_.sides_product(sides, others, dtype)
        before.append((origin.scale, sides))
    return jnp.maximum(total, 0)
