"""Checks of arguments, which raise a ValueError in one form: "<argument> must be ..., got ..."."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import numpy as np

S = TypeVar("S")


def check_choice(argument: str, value: Any, choices: Collection[str]) -> None:
    """Raise a ValueError with near matches unless `value` is one of `choices`."""
    if isinstance(value, str) and value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"{argument} must be one of {', '.join(choices)}, got {value!r:.200}{hint}")


def check_name(argument: str, value: Any) -> None:
    """Raise a ValueError unless `value` can be part of a file name or a key of an archive."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", value):
        raise ValueError(f"{argument} must be letters, digits, '_', '-' or '.', got {value!r}")


def check_count(argument: str, value: Any, least: int, most: int | float = math.inf) -> None:
    """Raise a ValueError unless `value` is an integer from `least` to `most`."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if is_integer and least <= value <= most:
        return
    if least == most:
        expected = f"{least}"
    elif most == math.inf:
        expected = f"an integer of at least {least}"
    else:
        expected = f"an integer from {least} to {most}"
    raise ValueError(f"{argument} must be {expected}, got {value!r}")


def check_real(argument: str, value: Any, *, positive: bool = False) -> float:
    """Return `value` as a float; raise a ValueError unless it is finite and >= 0 (or positive)."""
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        kind = "a positive" if positive else "a non-negative"
        raise ValueError(f"{argument} must be {kind} finite number, got {value!r}")
    return number


def check_array(argument: str, values: Any, *, ndim: int) -> np.ndarray:
    """Return a copy of `values`; raise a ValueError unless it has `ndim` axes and is finite.

    The copy is float64, but one axis of integers or booleans (labels, that is) becomes int64.
    """
    try:
        array = np.array(values)
    except ValueError as error:
        raise ValueError(f"{argument} must be a rectangular array of numbers: {error}") from error
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(f"{argument} must hold real numbers, got dtype {array.dtype}")
    if array.ndim != ndim:
        expected = "(rows, columns)" if ndim == 2 else "(rows,)"
        raise ValueError(f"{argument} must have shape {expected}, got {array.shape}")
    labels = ndim == 1 and array.dtype.kind in "biu"
    array = array.astype(np.int64 if labels else np.float64)
    not_finite = np.argwhere(~np.isfinite(array))
    if len(not_finite):
        place = ", column ".join(str(i) for i in not_finite[0])
        raise ValueError(
            f"{argument} must be finite, got {array[tuple(not_finite[0])]} at row {place} "
            f"(counted from 0; {len(not_finite)} such in all)"
        )
    return array


def settings_from(kind: type[S], settings: S | None, fields: Mapping[str, Any]) -> S:
    """Return `settings`, or those of a kind with some fields; raise a ValueError if given both."""
    if settings is None:
        return kind(**fields)
    if fields:
        raise ValueError(
            f"settings must be given as a whole or by keyword, got both ({', '.join(fields)})"
        )
    return settings
