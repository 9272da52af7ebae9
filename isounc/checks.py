"""Checks of arguments, which raise errors of one form: "<argument> must be ..., got ..."."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
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


MOST_REAL = 1e150
"""Largest number whose square is a number."""


def check_real(argument: str, value: Any, *, positive: bool = False) -> float:
    """Return `value` as a float; raise a ValueError unless it is finite and >= 0 (or positive).

    It is at most `MOST_REAL`, for standard deviations are squared.
    """
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    try:
        # float() reads texts, and drops imaginary parts and masks.
        is_number = not isinstance(value, bool | str | bytes | np.ma.MaskedArray) and kind in "iuf"
        number = float(value) if is_number else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0 or (positive and number == 0):
        kind = "a positive" if positive else "a non-negative"
        raise ValueError(f"{argument} must be {kind} finite number, got {_shortened(value)}")
    if number > MOST_REAL:
        raise ValueError(f"{argument} must be at most {MOST_REAL:g}, got {value!r}")
    return number


def check_key(argument: str, value: Any) -> None:
    """Raise a ValueError unless `value` is one random key of JAX, of the new kind or the old."""
    import jax  # here, because most checks do without

    if isinstance(value, jax.Array):
        is_new = jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
        if value.shape == () if is_new else value.ndim == 1 and value.dtype == np.uint32:
            return
    shape = f" of shape {value.shape}" if hasattr(value, "shape") else ""
    kind = getattr(value, "dtype", type(value).__name__)
    raise ValueError(
        f"{argument} must be one random key of JAX, such as jax.random.key(0), got {kind}{shape}"
        + (f" ({value!r:.40})" if not shape else "")
    )


def check_keys(argument: str, values: Any, count: int) -> None:
    """Raise a ValueError unless `values` are `count` random keys of JAX."""
    if not hasattr(values, "__len__") or len(values) != count:
        raise ValueError(
            f"{argument} must be {count} random keys of JAX, such as "
            f"jax.random.split(jax.random.key(0), {count}), got {_shortened(values)}"
        )
    for i, value in enumerate(values):
        check_key(f"{argument}[{i}]", value)


def check_kind(argument: str, value: Any, kind: Any, maker: str = "") -> None:
    """Raise a TypeError unless `value` is of a kind; `maker` says what returns one."""
    if not isinstance(value, kind):
        source = f", as {maker} returns it" if maker else ""
        raise TypeError(
            f"{argument} must be a {kind.__name__}{source}, got {_shortened(value)} "
            f"({type(value).__name__})"
        )


def check_unmasked(argument: str, values: Any) -> None:
    """Raise a ValueError if an array, or one in a list, masks any of its values.

    NumPy and JAX give the values below a mask without a word.
    """
    if isinstance(values, np.ma.MaskedArray):
        count = int(np.ma.getmaskarray(values).sum())
        if count:
            raise ValueError(
                f"{argument} must have no masked values, got {count} of {values.size} masked; "
                "leave those rows out, or fill them in (.filled)"
            )
    elif isinstance(values, list | tuple):
        for value in values:
            if isinstance(value, list | tuple | np.ma.MaskedArray):
                check_unmasked(argument, value)


def check_path(argument: str, value: Any) -> Path:
    """Return `value` as a path; raise a ValueError unless it is text, or a path, of bounded length.

    `~` is the home of the user.
    """
    try:
        text = os.fspath(value)
    except TypeError:
        text = None
    names = text.split(os.sep) if isinstance(text, str) else []
    if not isinstance(text, str) or "\0" in text or any(len(os.fsencode(n)) > 255 for n in names):
        right = "the path of a file or folder, each name of at most 255 bytes"
        raise ValueError(f"{argument} must be {right}, got {_shortened(value)}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{argument} must be a path, got {text!r}: {error}") from error


def check_numbers(argument: str, values: Any, shape: str, sizes: Sequence[int | None]) -> None:
    """Raise a ValueError unless `values` are real numbers of a shape; traced arrays may be given.

    Parameters
    ----------
    argument, values
        Name and value.
    shape
        The shape in words.
    sizes
        Length of each axis; None for any.
    """
    import jax

    check_unmasked(argument, values)
    if isinstance(values, jax.Array):
        is_real = any(
            jax.numpy.issubdtype(values.dtype, t) for t in (np.floating, np.integer, bool)
        )
        if not is_real:
            raise ValueError(f"{argument} must hold real numbers, got dtype {values.dtype}")
        given = values.shape
    else:
        array = real_array(argument, values)
        check_integers(argument, array)
        given = array.shape
    fits = [size in (None, length) for size, length in zip(sizes, given, strict=False)]
    if len(given) != len(sizes) or not all(fits):
        raise ValueError(f"{argument} must have shape {shape}, got {given}")


def check_integers(argument: str, values: np.ndarray | np.generic) -> None:
    """Raise a ValueError if integers are beyond JAX's own type of them.

    JAX makes int64 int32 unless its x64 mode is on, and wraps what does not fit without a word.
    """
    import jax

    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8 or not values.size:
        return
    name = values.dtype.name
    limits = np.iinfo(name if jax.config.read("jax_enable_x64") else name.replace("64", "32"))
    for value in (values.min(), values.max()):
        if not limits.min <= value <= limits.max:
            raise ValueError(
                f"{argument} must hold integers from {limits.min} to {limits.max}, the {limits.dtype} "
                f"of JAX, got {value}; give them as floats, or turn on JAX's x64 mode"
            )


def real_array(argument: str, values: Any) -> np.ndarray:
    """Return `values` as an array; raise a ValueError unless they are real and none is masked."""
    check_unmasked(argument, values)
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{argument} must be a rectangular array of numbers: {error}") from error
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise ValueError(
            f"{argument} must hold real numbers, got dtype {array.dtype} ({_shortened(values)})"
        )
    return array


def real_vector(argument: str, values: Any) -> np.ndarray:
    """Return `values` as float64 of one axis; a ValueError unless they are real and none masked."""
    array = real_array(argument, values)
    if array.ndim != 1:
        raise ValueError(f"{argument} must have shape (N,), got {array.shape}")
    return array.astype(np.float64)


def check_array(argument: str, values: Any, *, ndim: int) -> np.ndarray:
    """Return a copy of `values`; raise a ValueError unless it has `ndim` axes and is finite.

    The copy is float64, but one axis of integers or booleans (labels, that is) becomes int64.
    """
    array = real_array(argument, values)
    if array.ndim != ndim:
        expected = "(rows, columns)" if ndim == 2 else "(rows,)"
        raise ValueError(f"{argument} must have shape {expected}, got {array.shape}")
    labels = ndim == 1 and array.dtype.kind in "biu"
    if labels and array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{argument} must be below 2^63, got {array.max()}")
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
    """Return `settings`, or those of a kind with some fields; raise a ValueError if given both.

    A name that the kind does not have is a TypeError with near matches, as for any argument.
    """
    if settings is None:
        names = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore
        for name in fields:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=3)
                hint = f"; did you mean {' or '.join(near)}?" if near else ""
                raise TypeError(
                    f"{name} is no setting of {kind.__name__} ({', '.join(names)}){hint}"
                )
        return kind(**fields)
    check_kind("settings", settings, kind, f"{kind.__name__}(...)")
    if fields:
        raise ValueError(
            f"settings must be given as a whole or by keyword, got both ({', '.join(fields)})"
        )
    return settings


def _shortened(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # a value of a kind that we know nothing of
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."
