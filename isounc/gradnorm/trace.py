"""A walk through a jaxpr that tells values of the parameters alone from values that data enter.

A value that only rearranges one leaf (a cast, a transpose, a slice, a constant multiple) keeps its
`Origin`: the norm of its cotangent is then the norm of the leaf's gradient. `walk` goes through a
jaxpr once and leaves each equation to a visitor, so that the analysis and the evaluation see the
same values in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jax.ref import AbstractRef

Path = tuple[int | str, ...]
"""Place of an equation: its index in each jaxpr from the outermost on, with a word for each scan
and checkpoint on the way."""


class Origin(NamedTuple):
    """The leaf that a value rearranges, and how."""

    leaf: int
    """Index of the leaf."""
    box: tuple[tuple[int, int], ...]
    """Start and stop along each axis of the leaf; the value has nothing of the leaf outside."""
    axes: tuple[int, ...] | None
    """The leaf's axis behind each axis of the value; None where a reshape has mixed them."""
    scale: float = 1.0
    """The constant that the leaf is multiplied by."""
    lengths: tuple[int, ...] = ()
    """Lengths of the scans that run over leading axes of the leaf, outermost first; every turn of
    any other scan uses the same value."""


class Status(NamedTuple):
    """Dependence on the parameters of a value that data do not enter."""

    leaves: frozenset[int] = frozenset()
    """Leaves that it depends on; none for a constant."""
    origin: Origin | None = None
    """Its origin if it rearranges one leaf, else None."""


class Item(NamedTuple):
    """A value on the way through a jaxpr."""

    status: Status | None
    """None if data enter the value."""
    value: Any
    """The array, or None while a function is only analysed."""


@runtime_checkable
class Visitor(Protocol):
    """Treatment of the equations that `walk` meets; `ins` are an equation's inputs in order."""

    def meets(self, eqn: jex.JaxprEqn, ins: Sequence[Item]) -> bool:
        """Whether a parameter that meets constants alone counts as used, as if they were data."""
        ...

    def plain(self, eqn: jex.JaxprEqn, ins: Sequence[Item]) -> Sequence[Any]:
        """Return the outputs of an equation in which parameters and data do not meet."""
        ...

    def use(self, eqn: jex.JaxprEqn, ins: Sequence[Item], path: Path) -> Sequence[Any]:
        """Return the outputs of an equation in which parameters and data meet."""
        ...

    def scan(self, eqn: jex.JaxprEqn, ins: Sequence[Item], path: Path) -> Sequence[Any]:
        """Return the outputs of a scan in which parameters and data meet."""
        ...

    def checkpoint(self, eqn: jex.JaxprEqn, ins: Sequence[Item], path: Path) -> Sequence[Item]:
        """Return the outputs of a `jax.checkpoint`, some of which may be parameters alone."""
        ...


INLINED = ("jit", "pjit", "closed_call", "core_call")
"""Primitives that only call a jaxpr."""
CHECKPOINTS = ("remat2", "checkpoint", "remat")
"""Names of the primitive of `jax.checkpoint` in the releases of JAX."""
CONSTANT = Status()


def walk(
    jaxpr: jex.Jaxpr, consts: Sequence[Any], args: Sequence[Item], path: Path, visitor: Visitor
) -> list[Item]:
    """Go through a jaxpr with a visitor, and return its outputs."""
    env = {
        var: Item(CONSTANT, _as_array(const))
        for var, const in zip(jaxpr.constvars, consts, strict=True)
    }
    env |= dict(zip(jaxpr.invars, args, strict=True))

    def read(var: jex.Var | jex.Literal) -> Item:
        return Item(CONSTANT, var.val) if isinstance(var, jex.Literal) else env[var]

    for i, eqn in enumerate(jaxpr.eqns):
        ins = [read(v) for v in eqn.invars]
        eqn_path = (*path, i)
        name = eqn.primitive.name
        tracked = any(item.status is not None and item.status.leaves for item in ins)
        mixed = tracked and any(item.status is None for item in ins)
        if not eqn.outvars:
            visitor.plain(eqn, ins)  # a print or a check
            continue
        if tracked and name in INLINED:
            outs = walk(*body_of(eqn), ins, eqn_path, visitor)
        elif not mixed and not (tracked and visitor.meets(eqn, ins)):
            statuses = _derive(eqn, ins)
            outs = map(Item, statuses, visitor.plain(eqn, ins))
        elif name in CHECKPOINTS:
            outs = visitor.checkpoint(eqn, ins, eqn_path)
        elif name == "scan":
            outs = [Item(None, value) for value in visitor.scan(eqn, ins, eqn_path)]
        else:
            outs = [Item(None, value) for value in visitor.use(eqn, ins, eqn_path)]
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def holds_references(jaxpr: jex.Jaxpr) -> bool:
    """Whether equations that `walk` meets read or write mutable references (`jax.new_ref`).

    What is written to one reaches the output by no variable of the jaxpr, so that a walk cannot
    see which parameters enter it.
    """
    for eqn in jaxpr.eqns:
        if any(isinstance(aval_of(v), AbstractRef) for v in (*eqn.invars, *eqn.outvars)):
            return True
        if eqn.primitive.name in (*INLINED, *CHECKPOINTS, "scan") and holds_references(
            body_of(eqn)[0]
        ):
            return True
    return False


def _as_array(const: Any) -> Any:
    """Return a constant as an array of JAX, which a traced index may enter."""
    return jnp.asarray(const) if isinstance(const, np.ndarray | np.generic) else const


def aval_of(var: Any) -> Any:
    """Return the shape and dtype of a variable, which JAX's type hints leave out."""
    return var.aval


def body_of(eqn: jex.JaxprEqn) -> tuple[jex.Jaxpr, Sequence[Any]]:
    """Return the jaxpr inside an equation and its constants; that of a scan is open in JAX 0.12."""
    inner = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
    return (inner.jaxpr, inner.consts) if isinstance(inner, jex.ClosedJaxpr) else (inner, ())


def scan_counts(eqn: jex.JaxprEqn) -> tuple[int, int]:
    """Count a scan's constants and carries, which come first among its inputs."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # since JAX 0.12
    return len(consts), len(carry)


def scan_statuses(eqn: jex.JaxprEqn, ins: Sequence[Item]) -> list[Status | None]:
    """Return statuses of a scan body's inputs: constants, carries, a slice of what it runs over."""
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
    """Return the origin of a turn's slice of a value that a scan runs over."""
    if origin is None or origin.axes is None:
        return None
    start, stop = origin.box[origin.axes[0]]
    if stop - start != length:
        return None
    return origin._replace(axes=origin.axes[1:], lengths=(*origin.lengths, length))


def _derive(eqn: jex.JaxprEqn, ins: Sequence[Item]) -> list[Status | None]:
    """Return statuses of the outputs of an equation in which parameters and data do not meet."""
    if any(item.status is None for item in ins):
        return [None] * len(eqn.outvars)
    leaves = frozenset().union(*(item.status.leaves for item in ins if item.status))
    sources = [item.status.origin for item in ins if item.status and item.status.leaves]
    origins: list[Origin | None] = [None] * len(eqn.outvars)
    if len(sources) == 1 and sources[0] is not None:
        origins = _rearranged(eqn, ins, sources[0])
    return [Status(leaves, origin) for origin in origins]


def _rearranged(eqn: jex.JaxprEqn, ins: Sequence[Item], origin: Origin) -> list[Origin | None]:
    """Return origins of the outputs of an equation of constants and a value with an origin.

    The equations named here are all that keep an origin, and only from real numbers to real
    numbers: the norm of a complex cotangent is not that of its real part.
    """
    name, params = eqn.primitive.name, eqn.params
    if not all(_is_real(v) for v in (*eqn.invars, *eqn.outvars)):
        return [None] * len(eqn.outvars)
    shapes = [aval_of(v).shape for v in eqn.invars]
    out = aval_of(eqn.outvars[0])
    mixed = origin._replace(axes=None)
    if name in ("copy", "copy_p", "sharding_constraint", "name", "optimization_barrier"):
        return [origin] if len(eqn.outvars) == 1 else [None] * len(eqn.outvars)
    if name == "convert_element_type":
        return [origin]
    if name == "neg":
        return [origin._replace(scale=-origin.scale)]
    if name in ("mul", "div"):
        position = 0 if ins[0].status and ins[0].status.leaves else 1
        factor = eqn.invars[1 - position]
        if not isinstance(factor, jex.Literal) or jnp.ndim(factor.val):
            return [None]
        if name == "div" and position == 1:  # a constant divided by the parameter
            return [None]
        factor = float(factor.val)
        scale = origin.scale * factor if name == "mul" else origin.scale / (factor or math.nan)
        # The square of any other scale might leave the range of float32.
        return [origin._replace(scale=scale) if 1e-9 < abs(scale) < 1e9 else None]
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
        if name == "reshape" and params["dimensions"] is None and shapes[0] == out.shape:
            return [origin]
        return [mixed if same_size else None]
    if name == "slice":
        strides = params["strides"]
        if strides is not None and any(s != 1 for s in strides):
            return [mixed]
        return [_cut(origin, params["start_indices"], params["limit_indices"])]
    if name == "split":
        start, parts = 0, []
        for size in map(int, params["sizes"]):  # NumPy integers
            low, high = [0] * len(shapes[0]), list(shapes[0])
            low[params["axis"]], high[params["axis"]] = start, start + size
            parts.append(_cut(origin, low, high))
            start += size
        return parts
    return [None] * len(eqn.outvars)


def _is_real(var: Any) -> bool:
    """Whether a variable is a floating-point array."""
    return jnp.issubdtype(aval_of(var).dtype, jnp.floating)


def _cut(origin: Origin, starts: Sequence[int], stops: Sequence[int]) -> Origin:
    """Return the origin of a slice of the value."""
    if origin.axes is None:
        return origin  # still inside its box
    box = list(origin.box)
    for axis, start, stop in zip(origin.axes, starts, stops, strict=True):
        first = box[axis][0]
        box[axis] = (first + start, first + stop)
    return origin._replace(box=tuple(box))


def apart(a: Origin, b: Origin) -> bool:
    """Whether two values of one leaf share no element of it."""
    return any(x[1] <= y[0] or y[1] <= x[0] for x, y in zip(a.box, b.box, strict=True))


def evaluate(eqn: jex.JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """Return the outputs of one equation, with its own (also custom) rules of differentiation."""
    inputs: dict[Any, Any] = {}
    for var, value in zip(eqn.invars, values, strict=True):
        if not isinstance(var, jex.Literal):
            inputs[var] = value
    wanted = [v for v in eqn.outvars if not isinstance(v, jex.DropVar)]
    info = jex.DebugInfo("isounc.gradnorm", "", ("",) * len(inputs), ("",) * len(wanted))
    jaxpr = jex.Jaxpr((), list(inputs), wanted, [eqn], eqn.effects, info)
    function = jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, ()))
    if eqn.primitive.name.startswith("custom_"):
        # Traced as a whole, so that its rules may index the constants that they make.
        function = jax.jit(function)
    outs = iter(function(*inputs.values()))
    return [None if isinstance(v, jex.DropVar) else next(outs) for v in eqn.outvars]


def varying(value: Any) -> frozenset[str]:
    """Return the mesh axes of shard_map along which devices hold different values.

    JAX documents no name for them; `test_examples_sharded_over_devices` fails if this one goes.
    """
    return jax.typeof(value).manual_axis_type.varying


def vary(value: Any, axes: frozenset[str]) -> Any:
    """Return the same value, as one that may differ between devices along these mesh axes."""
    missing = tuple(axes - varying(value))
    return jax.lax.pcast(value, missing, to="varying") if missing else value
