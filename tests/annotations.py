"""Checks of annotations, with jaxtyping's memory of axes only where an annotation names axes.

jaxtyping binds the arguments of every call and checks them twice, as axes may be shared between
arguments and the returned value. Most functions name no axes: beartype alone checks those in a
fraction of the time, which in tests of tables and figures was most of the time.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping

_with_axes = jaxtyping.jaxtyped


def check_sparingly() -> None:
    """Let jaxtyping's import hook leave functions that name no axes to the type checker alone."""
    jaxtyping.jaxtyped = _jaxtyped  # what the hook writes above every function that it imports


def _jaxtyped(fn: Any = None, *, typechecker: Callable | None = None) -> Any:
    if fn is None:
        return functools.partial(_jaxtyped, typechecker=typechecker)
    if isinstance(fn, types.FunctionType) and typechecker and not _is_generator(fn):
        hints = {name: _resolved(hint, fn) for name, hint in fn.__annotations__.items()}
        if not any(map(_names_axes, hints.values())):
            return _checked(fn, hints, typechecker)
    return _with_axes(fn, typechecker=typechecker)


def _is_generator(fn: types.FunctionType) -> bool:
    return any(
        test(fn)
        for test in (
            inspect.isgeneratorfunction, inspect.isasyncgenfunction, inspect.iscoroutinefunction,
        )
    )  # fmt: skip


def _checked(fn: types.FunctionType, hints: dict[str, Any], typechecker: Callable) -> Callable:
    twin = types.FunctionType(
        fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__
    )
    twin.__kwdefaults__ = fn.__kwdefaults__
    twin.__module__, twin.__qualname__, twin.__annotations__ = fn.__module__, fn.__qualname__, hints
    checked = typechecker(twin)

    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        __tracebackhide__ = True
        return (fn if jaxtyping.config.jaxtyping_disable else checked)(*args, **kwargs)

    return wrapper


def _resolved(hint: Any, fn: types.FunctionType) -> Any:
    """Return what an annotation stands for; Any, as in jaxtyping, where that is not known yet."""
    holder = types.SimpleNamespace(__annotations__={"hint": hint})
    try:
        return typing.get_type_hints(holder, fn.__globals__, include_extras=True)["hint"]
    except Exception:
        return Any


def _names_axes(hint: Any) -> bool:
    """Say whether a shaped array, or a tree of them, is anywhere in an annotation."""
    if isinstance(hint, type) and not isinstance(hint, types.GenericAlias):
        return type(hint).__module__.partition(".")[0] == "jaxtyping"
    if isinstance(hint, list | tuple):  # the arguments of a Callable
        return any(map(_names_axes, hint))
    if isinstance(hint, str | typing.ForwardRef | typing.TypeVar):
        return True
    return any(map(_names_axes, typing.get_args(hint)))
