"""Which values of a traced function depend on its parameters alone, and where those meet the data.

A value that is only a rearrangement of one leaf (a cast, a transpose, a slice, a constant multiple) keeps its
`Origin`: the norm of its cotangent is then the norm of the leaf's gradient. `walk` goes through a jaxpr once; what
happens at each equation is the visitor's business, so that the analysis and the evaluation see the same values in the
same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.extend import core as jex

Path = tuple[int | str, ...]
"""Where an equation stands: its index in each jaxpr from the outermost on, with a word at scans and checkpoints."""


class Origin(NamedTuple):
    """How a value is a rearrangement of one leaf."""

    leaf: int
    """Index of the leaf."""
    box: tuple[tuple[int, int], ...]
    """Start and stop along each axis of the leaf: outside of it the value has nothing of the leaf."""
    axes: tuple[int, ...] | None
    """The leaf's axis behind each axis of the value; None where a reshape has mixed them."""
    scale: float = 1.0
    """The constant that the leaf is multiplied by."""
    lengths: tuple[int, ...] = ()
    """Lengths of the scans that run over leading axes of the leaf; other scans use the same value at every turn."""


class Status(NamedTuple):
    """A value that the data do not enter."""

    leaves: frozenset[int] = frozenset()
    """Leaves that it depends on; none for a constant."""
    origin: Origin | None = None
    """Where it is a rearrangement of one leaf."""


class Item(NamedTuple):
    """A value on the way through a jaxpr."""

    status: Status | None
    """None where data enter."""
    value: Any
    """The array; None while a function is only analysed."""


class Visitor(Protocol):
    """What is done with the equations that `walk` meets."""

    def meets(self, eqn, ins: Sequence[Item]) -> bool:
        """Whether a parameter's meeting with constants alone counts as a use, as if they were data."""
        ...

    def plain(self, eqn, ins: Sequence[Item]) -> Sequence[Any]:
        """Values of an equation in which parameters and data do not meet."""
        ...

    def use(self, eqn, ins: Sequence[Item], path: Path) -> Sequence[Any]:
        """Values of an equation in which they do."""
        ...

    def scan(self, eqn, ins: Sequence[Item], path: Path) -> Sequence[Any]:
        """The same for a scan."""
        ...

    def checkpoint(self, eqn, ins: Sequence[Item], path: Path) -> Sequence[Item]:
        """The same for `jax.checkpoint`, whose outputs may still be parameters alone."""
        ...


INLINED = ("jit", "pjit", "closed_call", "core_call")
"""Calls without a meaning of their own."""
CHECKPOINTS = ("remat2", "checkpoint", "remat")
"""Names of `jax.checkpoint`'s primitive over the releases of JAX."""
CONSTANT = Status()


def walk(
    jaxpr: jex.Jaxpr, consts: Sequence[Any], args: Sequence[Item], path: Path, visitor: Visitor
) -> list[Item]:
    """Go through a jaxpr and return its outputs.

    Raises
    ------
    NotImplementedError
        Where parameters and data enter a while loop, which has no reverse mode.
    """
    env = dict(zip(jaxpr.constvars, (Item(CONSTANT, c) for c in consts), strict=True))
    env |= dict(zip(jaxpr.invars, args, strict=True))

    def read(var) -> Item:
        return Item(CONSTANT, var.val) if isinstance(var, jex.Literal) else env[var]

    for i, eqn in enumerate(jaxpr.eqns):
        ins = [read(v) for v in eqn.invars]
        here = (*path, i)
        name = eqn.primitive.name
        tracked = any(item.status is not None and item.status.leaves for item in ins)
        mixed = tracked and any(item.status is None for item in ins)
        if not eqn.outvars:
            visitor.plain(eqn, ins)  # a print or a check
            continue
        if tracked and name in INLINED:
            outs = walk(*body_of(eqn), ins, here, visitor)
        elif not mixed and not (tracked and visitor.meets(eqn, ins)):
            statuses = _derive(eqn, ins)
            outs = map(Item, statuses, visitor.plain(eqn, ins))
        elif name in CHECKPOINTS:
            outs = visitor.checkpoint(eqn, ins, here)
        elif name == "while":
            raise NotImplementedError(
                "f has a while loop that parameters and data enter; it has no gradient in reverse mode. "
                "Use jax.lax.scan, or fori_loop with a fixed number of steps."
            )
        elif name == "scan":
            outs = [Item(None, value) for value in visitor.scan(eqn, ins, here)]
        else:
            outs = [Item(None, value) for value in visitor.use(eqn, ins, here)]
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def body_of(eqn) -> tuple[jex.Jaxpr, Sequence[Any]]:
    """The jaxpr inside of an equation and its constants; JAX 0.12 holds those of scans open."""
    inner = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
    return (inner.jaxpr, inner.consts) if isinstance(inner, jex.ClosedJaxpr) else (inner, ())


def scan_counts(eqn) -> tuple[int, int]:
    """Constants and carries among a scan's inputs, which come in this order before what it runs over."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # since JAX 0.12
    return len(consts), len(carry)


def scan_statuses(eqn, ins: Sequence[Item]) -> list[Status | None]:
    """Statuses of a scan body's inputs: constants of the loop, its carry, and a slice of what it runs over."""
    num_consts, num_carry = scan_counts(eqn)
    statuses: list[Status | None] = []
    for i, (status, _) in enumerate(ins):
        if num_consts <= i < num_consts + num_carry:
            status = None
        elif status is not None and i >= num_consts:
            status = Status(status.leaves, _scanned(status.origin, eqn.params["length"]))
        statuses.append(status)
    return statuses


def _scanned(origin: Origin | None, length: int) -> Origin | None:
    if origin is None or origin.axes is None:
        return None
    start, stop = origin.box[origin.axes[0]]
    if stop - start != length:
        return None
    return origin._replace(axes=origin.axes[1:], lengths=(*origin.lengths, length))


def _derive(eqn, ins: Sequence[Item]) -> list[Status | None]:
    """Statuses of the outputs of an equation whose inputs are all parameters, or all data."""
    if any(item.status is None for item in ins):
        return [None] * len(eqn.outvars)
    leaves = frozenset().union(*(item.status.leaves for item in ins if item.status))
    sources = [item.status.origin for item in ins if item.status and item.status.leaves]
    origins: list[Origin | None] = [None] * len(eqn.outvars)
    if len(sources) == 1 and sources[0] is not None:
        origins = _rearranged(eqn, ins, sources[0])
    return [Status(leaves, origin) for origin in origins]


def _rearranged(eqn, ins: Sequence[Item], origin: Origin) -> list[Origin | None]:
    name, params = eqn.primitive.name, eqn.params
    shapes = [v.aval.shape for v in eqn.invars]
    out = eqn.outvars[0].aval
    mixed = origin._replace(axes=None)
    if name in ("copy", "copy_p", "sharding_constraint", "name", "optimization_barrier"):
        return [origin] if len(eqn.outvars) == 1 else [None] * len(eqn.outvars)
    if name == "convert_element_type":
        return [origin if jnp.issubdtype(out.dtype, jnp.floating) else None]
    if name == "neg":
        return [origin._replace(scale=-origin.scale)]
    if name in ("mul", "div"):
        at = 0 if ins[0].status and ins[0].status.leaves else 1
        factor = eqn.invars[1 - at]
        if not isinstance(factor, jex.Literal) or jnp.ndim(factor.val) or (name, at) == ("div", 1):
            return [None]
        by = float(factor.val)
        return [origin._replace(scale=origin.scale * by if name == "mul" else origin.scale / by)]
    if name == "transpose":
        order = params["permutation"]
        axes = origin.axes and tuple(origin.axes[i] for i in order)
        return [origin._replace(axes=axes)]
    if name == "squeeze":
        drop = {d % len(shapes[0]) for d in params["dimensions"]}
        axes = origin.axes and tuple(a for i, a in enumerate(origin.axes) if i not in drop)
        return [origin._replace(axes=axes)]
    if name in ("reshape", "broadcast_in_dim", "rev", "expand_dims"):
        same_size = math.prod(shapes[0]) == math.prod(out.shape)
        if name == "reshape" and tuple(shapes[0]) == tuple(out.shape):
            return [origin]
        return [mixed if same_size else None]
    if name == "slice":
        strides = params["strides"]
        if strides is not None and any(s != 1 for s in strides):
            return [mixed]
        return [_cut(origin, params["start_indices"], params["limit_indices"])]
    if name == "split":
        start, found = 0, []
        for size in params["sizes"]:
            low, high = [0] * len(shapes[0]), list(shapes[0])
            low[params["axis"]], high[params["axis"]] = start, start + size
            found.append(_cut(origin, low, high))
            start += size
        return found
    return [None] * len(eqn.outvars)


def _cut(origin: Origin, starts: Sequence[int], stops: Sequence[int]) -> Origin:
    if origin.axes is None:
        return origin  # still inside its box
    box = list(origin.box)
    for axis, start, stop in zip(origin.axes, starts, stops, strict=True):
        first = box[axis][0]
        box[axis] = (first + start, first + stop)
    return origin._replace(box=tuple(box))


def apart(a: Origin, b: Origin) -> bool:
    """Whether two values share no element of their leaf."""
    return any(x[1] <= y[0] or y[1] <= x[0] for x, y in zip(a.box, b.box, strict=True))


def evaluate(eqn, values: Sequence[Any]) -> list[Any]:
    """Values of one equation, with its own rules of differentiation (custom ones included)."""
    inputs: dict[Any, Any] = {}
    for var, value in zip(eqn.invars, values, strict=True):
        if not isinstance(var, jex.Literal):
            inputs[var] = value
    wanted = [v for v in eqn.outvars if not isinstance(v, jex.DropVar)]
    about = jex.DebugInfo("isounc.gradnorm", "", ("",) * len(inputs), ("",) * len(wanted))
    one = jex.Jaxpr((), list(inputs), wanted, [eqn], eqn.effects, about)
    found = iter(jex.jaxpr_as_fun(jex.ClosedJaxpr(one, ()))(*inputs.values()))
    return [None if isinstance(v, jex.DropVar) else next(found) for v in eqn.outvars]


def varying(value: Any) -> frozenset[str]:
    """Axes of shard_map's mesh along which devices hold different values.

    JAX documents no name for them: `test_examples_sharded_over_devices` is what this one depends on.
    """
    return jax.typeof(value).manual_axis_type.varying


def vary(value: Any, axes: frozenset[str]) -> Any:
    """The same value, as one that may differ along these axes."""
    missing = tuple(axes - varying(value))
    return jax.lax.pcast(value, missing, to="varying") if missing else value
