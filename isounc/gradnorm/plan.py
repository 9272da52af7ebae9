"""The plan of a traced function: which way each leaf of its parameters goes.

fast     every use has a rule (`isounc.gradnorm.rules`), and no two uses share an element of the
leaf: nothing is stored;
tied     one matrix has several uses (embedding and output head, turns of a recurrence): their
factors are kept, and cross terms come from Gram matrices of them;
formed   anything else: ordinary differentiation forms the gradient of that leaf;
unused   the function does not depend on the leaf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core as jex

from isounc.gradnorm.rules import Rule, rule_of
from isounc.gradnorm.trace import (
    Item,
    Origin,
    Path,
    Status,
    apart,
    body_of,
    holds_references,
    scan_counts,
    scan_statuses,
    walk,
)


class RuledUse(NamedTuple):
    """A use with a rule, which needs no gradient."""

    origin: Origin
    """Origin of the parameter that enters."""
    rule: Rule
    """Rule for its norm."""
    turns: tuple[int, ...]
    """Lengths of the scans around the use, outermost first."""

    @property
    def has_own_slices(self) -> bool:
        """Whether every turn of the scans uses another slice of the leaf."""
        return self.turns == self.origin.lengths


class Use(NamedTuple):
    """A place where a parameter meets data."""

    path: Path
    """Place in the jaxpr."""
    primitive: str
    """Name of the equation's primitive."""
    leaves: frozenset[int]
    """Indices of the leaves that enter."""
    ruled: RuledUse | None
    """None if the gradient has to be formed."""


def rule_at(eqn: jex.JaxprEqn, ins: Sequence[Item]) -> tuple[Origin, Rule] | None:
    """Return the origin and the rule of an equation that one rearranged leaf enters, or None."""
    tracked = [(i, item.status) for i, item in enumerate(ins) if item.status and item.status.leaves]
    if len(tracked) != 1:
        return None
    [(position, status)] = tracked
    rule = rule_of(eqn, position) if status.origin else None
    return (status.origin, rule) if status.origin and rule else None


def _leaves_of(items: Sequence[Item]) -> frozenset[int]:
    """Return the indices of the leaves that enter any of the values."""
    return frozenset().union(*(item.status.leaves for item in items if item.status))


class _Analysis:
    """Visitor that collects the uses; all values are absent."""

    def __init__(self):
        self.uses: list[Use] = []
        self.turns: tuple[int, ...] = ()

    def meets(self, eqn, ins):
        return rule_at(eqn, ins) is not None

    def plain(self, eqn, ins):
        return [None] * len(eqn.outvars)

    def use(self, eqn, ins, path):
        match = rule_at(eqn, ins)
        ruled = match and RuledUse(*match, self.turns)
        self.uses.append(Use(path, eqn.primitive.name, _leaves_of(ins), ruled))
        return [None] * len(eqn.outvars)

    def add_unruled(self, items: Sequence[Item], path: Path, name: str) -> None:
        """Add a use by something that is no equation, such as the output."""
        if leaves := _leaves_of(items):
            self.uses.append(Use(path, name, leaves, None))

    def scan(self, eqn, ins, path):
        num_consts, num_carry = scan_counts(eqn)
        self.add_unruled(ins[num_consts : num_consts + num_carry], path, "scan's carry")
        args = [Item(status, None) for status in scan_statuses(eqn, ins)]
        outside, self.turns = self.turns, (*self.turns, eqn.params["length"])
        outs = walk(*body_of(eqn), args, (*path, "scan"), self)
        self.add_unruled(outs, path, "scan's output")
        self.turns = outside
        return [None] * len(eqn.outvars)

    def checkpoint(self, eqn, ins, path):
        return walk(*body_of(eqn), ins, (*path, "checkpoint"), self)


class Plan(NamedTuple):
    """Treatment of each leaf and of each use."""

    ways: tuple[str, ...]
    """fast, tied, formed or unused, for each leaf."""
    ruled: dict[Path, RuledUse]
    """Uses of the leaves that are fast or tied."""
    uses: tuple[Use, ...]
    """All uses."""
    rewritten: bool = True
    """Whether the function is evaluated with the rules; else all gradients are formed."""

    @property
    def formed(self) -> list[int]:
        """Indices of the leaves whose gradients are formed."""
        return [i for i, way in enumerate(self.ways) if way == "formed"]


def leaf_items(leaves: Sequence[Any], values: Sequence[Any]) -> list[Item]:
    """Return the leaves as inputs of a walk."""
    items = []
    for i, (leaf, value) in enumerate(zip(leaves, values, strict=True)):
        origin = Origin(i, tuple((0, n) for n in leaf.shape), tuple(range(leaf.ndim)))
        items.append(Item(Status(frozenset([i]), origin), value))
    return items


def make_plan(
    closed: jex.ClosedJaxpr, num_leaves: int, num_inputs: int, *, gram: bool = False
) -> Plan:
    """Analyse a jaxpr whose first inputs are the leaves.

    With `gram` every use has to give factors, from which products of gradients come: leaves whose
    uses share no element count as tied, and all others are formed.
    """
    avals = closed.in_avals[:num_leaves]
    if holds_references(closed.jaxpr):
        use = Use((), "mutable reference", frozenset(range(num_leaves)), None)
        return Plan(("formed",) * num_leaves, {}, (use,), rewritten=False)
    inputs = [*leaf_items(avals, [None] * num_leaves), *[Item(None, None)] * num_inputs]
    analysis = _Analysis()
    outs = walk(closed.jaxpr, closed.consts, inputs, (), analysis)
    analysis.add_unruled(outs[:1], ("output",), "output")
    ways = tuple(
        _way([use for use in analysis.uses if i in use.leaves], aval.shape, gram)
        for i, aval in enumerate(avals)
    )
    ruled = {
        use.path: use.ruled
        for use in analysis.uses
        if use.ruled and all(ways[leaf] in ("fast", "tied") for leaf in use.leaves)
    }
    return Plan(ways, ruled, tuple(analysis.uses))


def _way(uses: list[Use], shape: tuple[int, ...], gram: bool) -> str:
    """Return the way of a leaf with these uses."""
    if not uses:
        return "unused"
    ruled = [use.ruled for use in uses if use.ruled]
    if len(ruled) < len(uses):
        return "formed"
    disjoint = all(apart(a.origin, b.origin) for i, a in enumerate(ruled) for b in ruled[:i])
    if disjoint and all(use.has_own_slices for use in ruled):
        return "tied" if gram else "fast"
    return "tied" if not gram and _factors_are_cheaper(ruled, shape) else "formed"


def _factors_are_cheaper(uses: list[RuledUse], shape: tuple[int, ...]) -> bool:
    """Whether all uses have factors on the axes of a whole matrix, and few enough rows of them."""
    if len(shape) != 2:
        return False
    whole = tuple((0, n) for n in shape)
    rows = 0
    for origin, rule, turns in uses:
        if origin.box != whole or origin.axes is None or origin.lengths:
            return False
        if not rule.has_factors(origin.axes):
            return False
        rows += rule.num_rows * math.prod(turns)
    # Products of factors cost rows^2 (n + m), the formed gradient rows n m and its memory.
    return rows * (shape[0] + shape[1]) <= 4 * shape[0] * shape[1]
