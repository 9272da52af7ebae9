"""Numbers, intervals and lists as figures, tables and readings spell them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def short(value: float | None) -> str:
    """Two decimals, without the sign of a zero."""
    return "undefined" if value is None else f"{round(value, 2) + 0.0:.2f}"


def signed(value: float) -> str:
    """Two decimals with a sign, which also a number that is all but zero keeps: verdicts ask it."""
    return f"{value:+.2f}"


def interval(row: Row, prefix: str = "") -> str:
    """A signed mean with its interval, as "+0.10 [+0.02, +0.18]"."""
    mean, low, high = (row[f"{prefix}{part}"] for part in ("mean", "low", "high"))
    if mean is None:
        return "undefined"
    return signed(mean) if low is None else f"{signed(mean)} [{signed(low)}, {signed(high)}]"


def ratio(log2_level: float | None) -> str:
    """A factor with two digits, from its log2."""
    return "undefined" if log2_level is None else f"{2.0**log2_level:.2g}"


def ratio_interval(row: Row, prefix: str = "log2_level_") -> str:
    """A factor with its interval, as "1.2 [0.9, 1.6]"."""
    mean, low, high = (row[f"{prefix}{part}"] for part in ("mean", "low", "high"))
    if mean is None or low is None:
        return ratio(mean)
    return f"{ratio(mean)} [{ratio(low)}, {ratio(high)}]"


def cells_run(done: int, batches: Iterable[Sequence[object]]) -> str:
    """Whether a run has all its cells, or more than are asked for now."""
    planned = sum(map(len, batches))
    if done > planned:
        return f"The run has {done} cells; {planned} are asked for."
    return f"The run has {done} of {planned} cells."


def listed(parts: Iterable[str]) -> str:
    """Parts as "a, b and c"."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
