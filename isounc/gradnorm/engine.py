"""Exact squared gradient norms of a traced function: the plan, and the function that carries it out.

Leaves of the parameters go one of four ways:

    fast     every use has a rule (`isounc.gradnorm.uses`) and no two uses share an element: nothing is stored;
    tied     several uses of one matrix outside of scans (embedding and output head, say): their factors are kept, and
             cross terms come from Gram matrices of them;
    formed   anything else: the gradient of that leaf is formed by ordinary differentiation, and its norm taken;
    unused   the function does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isounc.gradnorm import uses as uses_
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
    stop,
    walk,
)


class Known(NamedTuple):
    """A use whose norm is known without forming a gradient."""

    origin: Origin
    """How the parameter that enters is a rearrangement of one leaf."""
    rule: uses_.Rule
    """How the norm is had."""


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


class _Analysis:
    """Collects the uses; values are absent."""

    def __init__(self):
        self.uses: list[Use] = []

    def plain(self, eqn, ins):
        return [None] * len(eqn.outvars)

    def use(self, eqn, ins, path):
        tracked = [i for i, item in enumerate(ins) if item.status and item.status.leaves]
        leaves = frozenset().union(*(ins[i].status.leaves for i in tracked))
        known = None
        if len(tracked) == 1 and (origin := ins[tracked[0]].status.origin):
            rule = uses_.rule_of(eqn, tracked[0])
            known = rule and Known(origin, rule)
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
        outs = walk(*body_of(eqn), args, (*path, "scan"), self)
        self.whole(outs, path, "scan's output")
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

    ``outer`` asks for factors of every use, from which products of gradients come: leaves that are used once outside
    of scans and checkpoints count as tied, the rest is formed.
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
    analysis.whole(outs, ("output",), "output")
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
    flat = all(isinstance(step, int) for use in mine for step in use.path)
    if outer:
        return "tied" if alone and flat else "formed"
    if alone:
        return "fast"
    return "tied" if flat and _simple(known, shape) else "formed"


def _simple(mine: list[Known], shape: tuple[int, ...]) -> bool:
    """Whether all uses have factors that are rows on the two axes of a whole matrix, and not too many of them."""
    if len(shape) != 2:
        return False
    whole = tuple((0, n) for n in shape)
    rows = 0
    for origin, rule in mine:
        if origin.box != whole or origin.axes is None or isinstance(rule, uses_.ConvRule):
            return False
        if not rule.is_simple(origin.axes):
            return False
        rows += rule.num_rows
    # Products of factors cost rows^2 (n + m), the formed gradient rows n m and its memory.
    return rows * (shape[0] + shape[1]) <= 4 * shape[0] * shape[1]


@dataclass
class _Evaluation:
    """Computes, with the rules in place of the uses that the plan names."""

    plan: Plan
    totals: dict[Path, Any]
    """Zeros whose cotangents become squared norms, at fast uses."""
    taps: dict[Path, Any]
    """Zeros added to the outputs of tied uses; their cotangents are those of the outputs."""
    seen: dict[Path, Any]
    """What tied uses multiply the parameter by."""

    def plain(self, eqn, ins):
        return evaluate(eqn, [item.value for item in ins])

    def use(self, eqn, ins, path):
        values = [item.value for item in ins]
        known = self.plan.at.get(path)
        if known is None:
            return evaluate(eqn, values)
        if path in self.totals:
            return [known.rule.accumulate(values, self.totals[path])]
        data = known.rule.data
        self.seen[path] = values[data]
        held = [v if i == data else stop(v) for i, v in enumerate(values)]
        return [evaluate(eqn, held)[0] + self.taps[path]]

    def _inside(self, path: Path) -> dict[Path, Any]:
        return {p: t for p, t in self.totals.items() if p[: len(path)] == path}

    def scan(self, eqn, ins, path):
        params, (num_consts, num_carry) = eqn.params, scan_counts(eqn)
        statuses = scan_statuses(eqn, ins)
        values = [item.value for item in ins]
        consts, carry = values[:num_consts], values[num_consts : num_consts + num_carry]

        def turn(carry, xs):
            runs, totals = xs
            inner = _Evaluation(self.plan, totals, {}, {})
            args = map(Item, statuses, (*consts, *carry, *runs))
            outs = walk(*body_of(eqn), list(args), (*path, "scan"), inner)
            outs = [item.value for item in outs]
            return outs[:num_carry], outs[num_carry:]

        carry, ys = jax.lax.scan(
            turn,
            carry,
            (values[num_consts + num_carry :], self._inside((*path, "scan"))),
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        return [*carry, *ys]

    def checkpoint(self, eqn, ins, path):
        statuses: list[Status | None] = []

        def inside(values, totals):
            inner = _Evaluation(self.plan, totals, {}, {})
            args = [Item(item.status, value) for item, value in zip(ins, values, strict=True)]
            outs = walk(*body_of(eqn), args, (*path, "checkpoint"), inner)
            statuses[:] = [item.status for item in outs]
            return [item.value for item in outs]

        again = jax.checkpoint(
            inside, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
        )
        values = again([item.value for item in ins], self._inside((*path, "checkpoint")))
        return list(map(Item, statuses, values))


Pull = Callable[[Any], list[Float[Array, "..."]]]


def linearise(
    f: Callable[..., Array],
    leaves: Sequence[Array],
    args: Sequence[Array],
    dtype: Any,
    *,
    outer: bool = False,
) -> tuple[Array, Pull, Plan]:
    """f(leaves, args), and the function from a cotangent of it to each leaf's squared gradient norm.

    With ``outer``, that function takes K cotangents (K, ...) and gives each leaf's K x K matrix of products.
    """
    closed = jax.make_jaxpr(lambda leaves, args: f(leaves, args))(list(leaves), list(args))
    plan = make_plan(closed, len(leaves), len(args), outer=outer)
    origins = {path: known.origin for path, known in plan.at.items()}
    taps, totals = {}, {}
    for path, (origin, rule) in plan.at.items():
        if plan.kinds[origin.leaf] == "tied":
            out = rule.eqn.outvars[0].aval
            taps[path] = jnp.zeros(out.shape, out.dtype)
        else:
            totals[path] = jnp.zeros(origin.lengths, dtype)
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
        (out,) = walk(closed.jaxpr, closed.consts, items, (), evaluation)
        return out.value, evaluation.seen

    out, pullback, seen = jax.vjp(rewritten, formed, totals, taps, has_aux=True)

    def norms(cotangent):
        by_leaf, by_total, by_tap = pullback(cotangent)
        result = [jnp.zeros((), dtype) for _ in leaves]
        for i, gradient in by_leaf.items():
            result[i] = (gradient.astype(dtype) ** 2).sum()
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
            gram = plan.at[path].rule.gram(seen[path], g, dtype)
            result[origins[path].leaf] += origins[path].scale ** 2 * gram
        return result

    return out, products if outer else norms, plan


def _tied(plan: Plan, paths, seen, by_tap, dtype) -> Float[Array, ""]:
    """Squared norm of a sum of gradients, from the factors of each."""
    total = jnp.zeros((), dtype)
    before: list[tuple[float, dict[int, Any]]] = []
    for path in paths:
        origin, rule = plan.at[path]
        total += origin.scale**2 * rule.sq_norm(seen[path], by_tap[path], dtype)
        sides = rule.sides(seen[path], by_tap[path], origin.axes or ())
        for scale, others in before:
            total += 2 * origin.scale * scale * uses_.sides_product(sides, others, dtype)
        before.append((origin.scale, sides))
    return total
