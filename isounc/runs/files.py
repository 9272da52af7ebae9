"""Values as bytes that survive: strict JSON, arrays without pickle, tables, atomic files, the lock.

``folder`` decides what a run holds; this module decides how one file of it is encoded and how it
reaches the disk whole or not at all.

JSON here is strict: ``NaN``, ``Infinity`` and ``-Infinity`` are stored as strings of that spelling
and come back as floats; a text that is spelled so is stored with a backslash before it (one that
begins with backslashes already, with one more), and comes back as it was. Tuples come back as lists.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import re
import secrets
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.lib import format as npy_format

if TYPE_CHECKING:
    import pandas  # at run time where it is used: it takes a second to import

FORMAT_VERSION = 1
TEMPORARY_PREFIX = ".tmp-"
LOCK_NAME = ".lock"

_ABSENT = object()
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_LOOKS_NON_FINITE = re.compile(r"\\*(NaN|-?Infinity)")


class Damaged(Exception):
    """Why stored bytes cannot be trusted."""


def encode(value: Any, where: str) -> Any:
    """Give the strict-JSON form of a value; ValueError says where it would lose anything."""
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
    """Parse a versioned file; `Damaged` if it is none, ValueError if it is of a newer format."""

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    try:
        payload = json.loads(data.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
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


def pack(arrays: Mapping[str, Any], *, compress: bool = False) -> bytes:
    """Npz bytes that depend on the arrays alone.

    Stored unless `compress`: float arrays hardly shrink, and what deflate gives differs between
    zlib builds.
    """
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            if not name or not name.isprintable() or "\\" in name:
                raise ValueError(f"array name {name!r} must be printable text without backslashes")
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
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(npz)) as archive:
            for entry in archive.infolist():
                if not entry.filename.endswith(".npy"):
                    raise Damaged(f"the archive holds {entry.filename!r}, which is no array")
                with archive.open(entry) as member:
                    array = npy_format.read_array(member, allow_pickle=False)
                arrays[entry.filename.removesuffix(".npy")] = array
    except Damaged:
        raise
    except Exception as error:  # a malformed archive can raise nearly anything; none of it is ours
        raise Damaged(f"the arrays cannot be read: {error}") from error
    return arrays


def table_bytes(
    rows: pandas.DataFrame | Iterable[Mapping[str, Any]], columns: Sequence[str], *, name: str
) -> tuple[bytes, list[str]]:
    """Encode a table as CSV; also give the names of the columns that hold text.

    Floats keep 6 significant digits; None, NaN and NA are empty.

    Raises
    ------
    ValueError
        If a key is no column, or a cell is not a single number, truth value or text.
    """
    import pandas as pd

    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows), dtype=object)
    unknown = [key for key in frame.columns if key not in columns]
    if unknown:
        raise ValueError(f"the columns of {name} must be {', '.join(columns)}, got also {unknown}")
    # As objects, because a count beside an empty cell would turn into a float.
    frame = frame.astype(object).reindex(columns=list(columns))
    frame = frame.where(frame.notna(), None)
    cells = {
        c: [_cell_text(value, f"{name}, column {c!r},") for value in frame[c]] for c in columns
    }
    text_columns = [c for c in columns if any(isinstance(value, str) for value in frame[c])]
    csv_text = pd.DataFrame(cells, dtype=object).to_csv(index=False, lineterminator="\n")
    return csv_text.encode(), text_columns


def table_frame(data: bytes, text_columns: Iterable[str], *, name: str) -> pandas.DataFrame:
    """Decode the CSV of `table_bytes`; ValueError where a line and the header disagree."""
    import pandas as pd

    lines = csv.reader(io.StringIO(data.decode(), newline=""))
    num_columns = len(next(lines, []))
    for cells in lines:
        if len(cells) != num_columns:  # pandas would fill a short line up
            raise ValueError(
                f"{name}, line {lines.line_num}, must have {num_columns} cells, got {len(cells)}; "
                "the file was changed after it was written"
            )
    return pd.read_csv(
        io.BytesIO(data), dtype=dict.fromkeys(text_columns, "string"),
        dtype_backend="numpy_nullable", keep_default_na=False, na_values=[""], low_memory=False,
    )  # fmt: skip


def _cell_text(value: Any, where: str) -> str:
    if getattr(value, "ndim", None) == 0:  # NumPy and JAX scalars
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool | int | str):
        return str(value)
    raise ValueError(f"{where} must hold single numbers or texts, got a {type(value).__name__}")


@contextlib.contextmanager
def locked(folder: Path, *, create: bool) -> Iterator[bool]:
    """Hold the folder's lock, waiting for whoever has it; the kernel frees it on a kill.

    Yields False, and holds nothing, where the folder cannot be written, the file system has no
    locks, or there is no lock file and `create` forbids to make one. A thread may take a lock again
    that it holds.
    """
    path = folder / LOCK_NAME
    held = create or path.exists()
    with contextlib.ExitStack() as stack:
        if held:
            # A singleton counts how often its thread has taken it. A preserved lock file never
            # becomes the lock itself, which a kill would leave behind.
            lock = FileLock(path, is_singleton=True, preserve_lock_file=True, poll_interval=0.01)
            try:
                stack.enter_context(lock)
            except OSError:  # what cannot be locked cannot be written: that will say it better
                held = False
        yield held


def is_housekeeping(path: Path) -> bool:
    """Whether a file is the lock or a temporary file, so no content of a run."""
    return path.name == LOCK_NAME or path.name.startswith(TEMPORARY_PREFIX)


def remove_stale(*folders: Path) -> None:
    """Remove temporary files; to be called under the lock, when nobody alive owns one."""
    for folder in folders:
        for leftover in folder.glob(TEMPORARY_PREFIX + "*"):
            leftover.unlink(missing_ok=True)


def bytes_or_none(path: Path) -> bytes | None:
    """Content of a file, None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def json_bytes(payload: dict[str, Any]) -> bytes:
    """File content of an encoded payload, with its format version."""
    text = json.dumps({"format_version": FORMAT_VERSION, **payload}, indent=1, allow_nan=False)
    return text.encode() + b"\n"


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an OSError into one that says what failed, what is kept and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not write {what}: {error.strerror or error}. Records already written are kept; "
            "make room (or the folder writable) and run the same command again to resume",
        ) from error


def write_atomic(files: Mapping[Path, bytes], what: str) -> None:
    """Replace files: a reader, or a kill, sees the old or the new bytes of each.

    All are on disk before the first is renamed, so a disk that fills up changes none of them.
    """
    staged = {path.with_name(TEMPORARY_PREFIX + secrets.token_hex(8)): path for path in files}
    try:
        with explained(f"{what} in {next(iter(files)).parent}"):
            for temporary, path in staged.items():
                with open(temporary, "xb") as file:
                    file.write(files[path])
                    file.flush()
                    os.fsync(file.fileno())
            for temporary, path in staged.items():
                os.replace(temporary, path)
    finally:
        for temporary in staged:
            with contextlib.suppress(OSError):  # gone after the rename, left after a failure
                temporary.unlink()
