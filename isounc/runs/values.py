"""Values as bytes: strict JSON with a format version, and arrays without pickle.

JSON here is strict. `NaN`, `Infinity` and `-Infinity` are stored as strings of that spelling and
come back as floats. A text with that spelling is stored with a backslash before it (one that begins
with backslashes already, with one more), and comes back unchanged. Tuples come back as lists.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from isounc import untrusted
from isounc.fields import Unreadable

FORMAT_VERSION = 1

_ABSENT = object()
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_LOOKS_NON_FINITE = re.compile(r"\\*(NaN|-?Infinity)")


class Damaged(Exception):
    """Why stored bytes cannot be trusted."""


def encode(value: Any, where: str) -> Any:
    """Give the strict-JSON form of a value; a ValueError says where it would lose anything."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        return f"\\{value}" if _LOOKS_NON_FINITE.fullmatch(value) else str(value)
    if isinstance(value, Mapping):
        bad = [key for key in value if not isinstance(key, str)]
        if bad:
            raise ValueError(f"{where} has keys that are not text: {bad[:3]!r}")
        return {str(key): encode(v, f"{where}.{key}") for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [encode(v, f"{where}[{i}]") for i, v in enumerate(value)]
    scalar = value.item() if getattr(value, "ndim", None) == 0 else None  # NumPy and JAX scalars
    if isinstance(scalar, bool | int | float | str):
        return encode(scalar, where)
    raise ValueError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold; "
        "give None, bool, int, float, str, list or dict, and put arrays into the record's arrays"
    )


def decode(value: Any) -> Any:
    """Undo `encode`."""
    if isinstance(value, str):
        if value in _NON_FINITE:
            return _NON_FINITE[value]
        return value[1:] if _LOOKS_NON_FINITE.fullmatch(value) else value
    if isinstance(value, list):
        return [decode(v) for v in value]
    if isinstance(value, dict):
        return {key: decode(v) for key, v in value.items()}
    return value


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """One line for each place where two encoded settings differ."""
    lines = []
    for key in sorted({*old, *new}):
        before, now = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if isinstance(before, dict) and isinstance(now, dict):
            lines += differences(before, now, f"{prefix}{key}.")
        elif before != now:
            shown = ["not set" if v is _ABSENT else repr(v) for v in (before, now)]
            lines.append(f"{prefix}{key}: {shown[0]} in the folder, {shown[1]} asked for")
    return lines


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """Parse a file with a format version.

    Raises
    ------
    Damaged
        If it is no JSON, or has no version.
    ValueError
        If it is of a newer format.
    """
    try:
        payload = untrusted.parse_json(data, "it")
    except Unreadable as error:
        raise Damaged(f"not valid JSON: {error}") from error
    version = payload.get("format_version") if isinstance(payload, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise Damaged("no format_version")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{what} is of format {version}, newer than the {FORMAT_VERSION} this isounc reads; "
            "upgrade isounc, or use another run folder (it was left as it is)"
        )
    return payload


def json_digest(value: Any) -> str:
    """SHA-256 of an encoded value, whatever the layout and key order of its file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def json_bytes(payload: dict[str, Any]) -> bytes:
    """File content of an encoded payload, with its format version."""
    text = json.dumps({"format_version": FORMAT_VERSION, **payload}, indent=1, allow_nan=False)
    return text.encode() + b"\n"


def pack(arrays: Mapping[str, Any], *, compress: bool = False) -> bytes:
    """Npz bytes that depend on the arrays alone.

    They are not compressed by default: float arrays hardly shrink, and builds of zlib differ in
    what deflate gives.
    """
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            if not name or not name.isprintable() or "\\" in name:
                raise ValueError(
                    f"array names must be printable text without backslashes, got {name!r}"
                )
            member = io.BytesIO()
            # Fortran order is a property of memory, not of the values: equal arrays, equal bytes.
            npy_format.write_array(member, _plain_array(name, arrays[name]), allow_pickle=False)
            entry = zipfile.ZipInfo(name + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # else it says which operating system wrote it
            archive.writestr(entry, member.getvalue(), compress_type=kind)
    return buffer.getvalue()


def _plain_array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(f"array {name!r} is masked; the mask would be lost: store it by itself")
    try:
        array = np.asarray(value, order="C")
        # False for object, structured and extension types (npy gives bfloat16 back as void).
        plain = array.dtype.kind != "O" and np.dtype(array.dtype.str) == array.dtype
    except (TypeError, ValueError) as error:
        raise ValueError(f"array {name!r} cannot be stored as an array: {error}") from error
    if not plain:
        raise ValueError(
            f"array {name!r} has dtype {array.dtype}, which cannot be stored without pickle "
            "or loss; give a plain numeric, boolean or text array"
        )
    return array


def unpack(npz: bytes) -> dict[str, np.ndarray]:
    """Read what `pack` wrote; `Damaged` for anything else, pickled arrays included."""
    try:
        return untrusted.parse_npz(npz, "the archive")
    except Unreadable as error:
        raise Damaged(f"the arrays cannot be read: {error}") from error
