"""Fields of files that anybody may have written, declared as a table of name → kind and range.

    >>> table = {"num_layers": integer(1, 1000), "rope": section({"factor": number(above=0)}, None)}
    >>> declared({"num_layers": 2}, table, "config.json")
    {'num_layers': 2, 'rope': None}

A value that is not what the table says is an `Unreadable`, in the form of `isounc.checks`:
"<field> of <file> must be ..., got ...".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

REQUIRED: Any = object()
"""Default of a field that every file must have."""


class Unreadable(ValueError):
    """A file, or a value in it, is not what it should be; the message says what would be right."""


class Field(NamedTuple):
    """Type and range of a field; `integer`, `number`, `text`, `truth` and `items` make one."""

    right: str
    """Description of a valid value, which an error message puts after "must be"."""
    convert: Callable[[Any, str], Any]
    """From a value and the name of its place to the value to use; NotImplemented refuses it."""
    default: Any = REQUIRED
    """Value of a field that is absent. Where this is None, null stands for an absent field."""

    def read(self, value: Any, place: str) -> Any:
        """The value to use; an `Unreadable` names the place, what is right, and the value."""
        if value is None and self.default is None:
            return None
        result = self.convert(value, place)
        if result is NotImplemented:
            raise Unreadable(f"{place} must be {self.right}, got {shortened(value)}")
        return result


def declared(entries: Any, table: Mapping[str, Field], where: str) -> dict[str, Any]:
    """Values of the fields of a table, from a mapping that may hold others besides.

    Parameters
    ----------
    entries
        What the file holds.
    table
        Fields by name.
    where
        The file or section, as in "num_layers of <where> must be ...".

    Raises
    ------
    Unreadable
        If `entries` is no mapping, lacks a required field, or a value is not what the table says.
    """
    if not isinstance(entries, Mapping):
        raise Unreadable(f"{where} must be a mapping of names to values, got {shortened(entries)}")
    values = {}
    for name, field in table.items():
        if name in entries:
            values[name] = field.read(entries[name], f"{name} of {where}")
        elif field.default is REQUIRED:
            given = ", ".join(str(key)[:40] for key in list(entries)[:8]) or "nothing"
            raise Unreadable(f"{where} must have {name} ({field.right}), got {given}")
        else:
            values[name] = field.default
    return values


def integer(
    least: int | float = -math.inf, most: int | float = math.inf, default: Any = REQUIRED
) -> Field:
    """An integer from `least` to `most`; truth values and 2.0 are none."""

    def convert(value: Any, place: str) -> Any:
        good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return value if good else NotImplemented

    return Field(f"an integer{_range(least, most)}", convert, default)


def number(
    least: float = -math.inf,
    most: float = math.inf,
    default: Any = REQUIRED,
    *,
    above: float | None = None,
) -> Field:
    """A finite number from `least` to `most`, or greater than `above`; given back as a float."""
    lowest = least if above is None else above

    def convert(value: Any, place: str) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return NotImplemented
        try:
            real = float(value)
        except OverflowError:
            return NotImplemented
        inside = lowest <= real <= most and not (above is not None and real == above)
        return real if math.isfinite(real) and inside else NotImplemented

    over = "" if above is None else f" above {above}" + " and" * (most < math.inf)
    return Field(f"a finite number{over}{_range(least, most)}", convert, default)


def _range(least: float, most: float) -> str:
    if least > -math.inf:
        return f" from {least} to {most}" if most < math.inf else f" of at least {least}"
    return f" of at most {most}" if most < math.inf else ""


def text(
    choices: Collection[str] = (), default: Any = REQUIRED, *, longest: int | None = None
) -> Field:
    """A text: one of `choices` if there are any, of at most `longest` characters if given."""

    def convert(value: Any, place: str) -> Any:
        good = isinstance(value, str) and (not choices or value in choices)
        return value if good and (longest is None or len(value) <= longest) else NotImplemented

    right = f"one of {', '.join(choices)}" if choices else "text"
    if longest is not None:
        right += f" of at most {longest} characters"
    return Field(right, convert, default)


def truth(default: Any = REQUIRED) -> Field:
    """True or false; 0, 1 and texts are neither."""
    return Field(
        "true or false", lambda v, _: v if isinstance(v, bool) else NotImplemented, default
    )


def items(kind: Field, most: int, default: Any = REQUIRED, *, least: int = 0) -> Field:
    """A list of `least` to `most` values of one kind."""

    def convert(value: Any, place: str) -> Any:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            return NotImplemented
        return [_read(kind, item, "item", i, place) for i, item in enumerate(value)]

    return Field(f"a list of {least} to {most} values, each {kind.right}", convert, default)


def _read(kind: Field, value: Any, what: str, name: Any, place: str) -> Any:
    """One of many values; its place is spelled only where it is needed, as that takes longer."""
    try:
        return kind.read(value, place)
    except Unreadable:
        return kind.read(value, f"{what} {str(name)[:40]} of {place}".lstrip())


def entries(kind: Field, most: int, default: Any = REQUIRED) -> Field:
    """A mapping of at most `most` names to values of one kind."""

    def convert(value: Any, place: str) -> Any:
        if not isinstance(value, Mapping) or len(value) > most:
            return NotImplemented
        return {name: _read(kind, item, "", name, place) for name, item in value.items()}

    return Field(f"a mapping of at most {most} names, each to {kind.right}", convert, default)


def section(table: Mapping[str, Field], default: Any = REQUIRED) -> Field:
    """A mapping with a table of its own."""

    def convert(value: Any, place: str) -> Any:
        return declared(value, table, place) if isinstance(value, Mapping) else NotImplemented

    return Field(f"a mapping{' with ' * bool(table)}{', '.join(table)}", convert, default)


def one_of(*kinds: Field, default: Any = REQUIRED) -> Field:
    """A value of the first of several kinds that takes it."""

    def convert(value: Any, place: str) -> Any:
        for kind in kinds:
            try:
                return kind.read(value, place)
            except Unreadable:
                continue
        return NotImplemented

    return Field(" or ".join(kind.right for kind in kinds), convert, default)


def nothing() -> Field:
    """Null, for a field where it means something else than an absent one."""
    return Field("null", lambda value, _: NotImplemented if value is not None else None)


def anything(default: Any = REQUIRED) -> Field:
    """Any value, for a field that its reader checks by other means."""
    return Field("a value", lambda value, _: value, default)


def shortened(value: Any, length: int = 80) -> str:
    """The value as Python spells it, cut in the middle of nothing longer than `length`."""
    # Only the beginning of what is long is spelled: a list may hold millions.
    if isinstance(value, str | bytes) and len(value) > length:
        return f"{value[:length]!r}... ({len(value)} long)"
    if isinstance(value, list | tuple | Mapping) and len(value) > 8:
        kind = "mapping" if isinstance(value, Mapping) else "list"
        return f"a {kind} of {len(value)} values"
    try:
        spelled = repr(value)
    except ValueError:  # of more digits than Python spells
        return "an integer too long to spell"
    return spelled if len(spelled) <= length else f"{spelled[:length]}..."
