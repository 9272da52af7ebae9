"""Values as bytes that survive: strict JSON, arrays without pickle, tables, atomic files, the lock.

The module `folder` decides what a run holds. This one decides how each file is encoded, and how it
reaches the disk whole or not at all.

JSON here is strict. `NaN`, `Infinity` and `-Infinity` are stored as strings of that spelling and
come back as floats. A text with that spelling is stored with a backslash before it (one that begins
with backslashes already, with one more), and comes back unchanged. Tuples come back as lists.
"""

from __future__ import annotations

import contextlib
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

from isounc import untrusted
from isounc.checks import check_path
from isounc.fields import Unreadable

if TYPE_CHECKING:
    import pandas  # at run time where it is used: it takes a second to import

FORMAT_VERSION = 1
MOST_BYTES = {".json": 2**25, ".csv": 2**28, ".gz": 2**26, ".npz": 2**36}
"""Largest files that are read, by ending."""
TEMPORARY_PREFIX = ".tmp-"
LOCK_NAME = ".lock"

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


def record_bytes(
    name: str, meta: Mapping[str, Any], arrays: Mapping[str, Any], run: str
) -> tuple[bytes, bytes]:
    """Encode a record as an npz and a JSON file, which holds the checksums of both halves.

    `run` is the digest of the settings of the run that it belongs to.
    """
    encoded, npz = encode(dict(meta), "meta"), pack(arrays)
    payload = {
        "name": name,
        "run": run,
        "sha256": hashlib.sha256(npz).hexdigest(),
        "meta_sha256": json_digest(encoded),
        "meta": encoded,
    }
    return npz, json_bytes(payload)


def record_parts(
    name: str, npz: bytes | None, described: bytes | None, what: str, run: str, with_arrays: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Verify and decode what `record_bytes` wrote: the meta and, `with_arrays`, the arrays.

    Raises
    ------
    Damaged
        If a half is missing, does not agree with the other, or belongs to another run.
    ValueError
        If the record is of a newer format.
    """
    if described is None:
        raise Damaged(f"{name}.json is missing")
    payload = parse_json(described, what)
    if npz is None:
        raise Damaged(f"{name}.npz is missing")
    meta = payload.get("meta")
    if payload.get("name") != name or not isinstance(meta, dict):
        raise Damaged(f"{name}.json does not describe this record")
    if payload.get("run", run) != run:  # absent in records of before
        raise Damaged("it belongs to a run with other settings")
    if payload.get("sha256") != hashlib.sha256(npz).hexdigest():
        raise Damaged(f"the checksum of {name}.npz does not match")
    if payload.get("meta_sha256") != json_digest(meta):
        raise Damaged(f"the checksum of the meta in {name}.json does not match")
    return decode(meta), unpack(npz) if with_arrays else {}


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

    if not isinstance(columns, list | tuple) or not all(isinstance(c, str) for c in columns):
        raise TypeError(f"columns must be a list of names, got {columns!r:.80}")
    if not isinstance(rows, pd.DataFrame):
        rows = list(rows) if isinstance(rows, Iterable) else [rows]
        if wrong := [row for row in rows if not isinstance(row, Mapping)]:
            raise TypeError(f"rows must be a DataFrame or mappings, got {wrong[0]!r:.80}")
        rows = pd.DataFrame(rows, dtype=object)
    frame = rows
    unknown = [key for key in frame.columns if key not in columns]
    if unknown:
        raise ValueError(f"the columns of {name} must be {', '.join(columns)}, got also {unknown}")
    # As objects, because a count beside an empty cell would turn into a float.
    frame = frame.reindex(columns=list(columns)).astype(object)
    frame = frame.where(frame.notna(), None)
    # Most cells are empty, floats or texts; a call for each would take half of the time.
    cells = {
        c: [
            "" if v is None else f"{v:.6g}" if type(v) is float
            else v if type(v) is str else _cell_text(v, f"{name}, column {c!r},")
            for v in frame[c]
        ]
        for c in columns
    }  # fmt: skip
    text_columns = [c for c in columns if any(isinstance(value, str) for value in frame[c])]
    csv_text = pd.DataFrame(cells, dtype=object).to_csv(index=False, lineterminator="\n")
    return csv_text.encode(), text_columns


def table_path(folder: Path, name: str) -> Path | None:
    """The file of a table, or of its compressed form `name`.gz; None if there is neither."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def table_file(folder: Path, name: str) -> bytes | None:
    """Content of a table, or of its compressed form `name`.gz; None if there is neither.

    Raises
    ------
    Damaged
        If it is no file, a huge one, or a damaged archive.
    """
    if (data := bytes_or_none(folder / name)) is not None:
        return data
    packed = folder / f"{name}.gz"
    if (data := bytes_or_none(packed)) is None:
        return None
    try:
        return untrusted.gunzip(data, MOST_BYTES[".csv"], str(packed))
    except Unreadable as error:
        raise Damaged(str(error)) from error


def table_frame(data: bytes, text_columns: Iterable[str], *, name: str) -> pandas.DataFrame:
    """Decode the CSV of `table_bytes`; an `Unreadable` says what is wrong with it."""
    import pandas as pd

    untrusted.parse_csv(data, name)  # pandas would fill a short line up
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
    """Hold the folder's lock, after waiting for whoever has it. The kernel frees it on a kill.

    Yields False, and holds nothing, if the folder cannot be written, if the file system has no
    locks, or if there is no lock file and `create` is False. A thread that holds the lock may take
    it again.
    """
    path = folder / LOCK_NAME
    held = create or path.exists()
    with contextlib.ExitStack() as stack:
        if held:
            # A singleton counts how often its thread has taken it. With `preserve_lock_file` the
            # mere existence of the file is never the lock, which would outlive a kill.
            lock = FileLock(path, is_singleton=True, preserve_lock_file=True, poll_interval=0.01)
            try:
                stack.enter_context(lock)
            except OSError:  # a folder that cannot be written has a better message for it later
                held = False
        yield held


def is_housekeeping(path: Path) -> bool:
    """Whether a file is the lock or a temporary file, so no content of a run."""
    return path.name == LOCK_NAME or path.name.startswith(TEMPORARY_PREFIX)


def remove_stale(*folders: Path) -> None:
    """Remove temporary files. Call it under the lock, when no living process owns one."""
    for folder in folders:
        for leftover in folder.glob(TEMPORARY_PREFIX + "*"):
            leftover.unlink(missing_ok=True)


def bytes_or_none(path: Path) -> bytes | None:
    """Content of a file; None if there is none, `Damaged` if it is no file, or a huge one."""
    try:
        return untrusted.read_bytes(path, most=MOST_BYTES.get(path.suffix, 0))
    except FileNotFoundError:
        return None
    except Unreadable as error:
        raise Damaged(str(error)) from error


def json_bytes(payload: dict[str, Any]) -> bytes:
    """File content of an encoded payload, with its format version."""
    text = json.dumps({"format_version": FORMAT_VERSION, **payload}, indent=1, allow_nan=False)
    return text.encode() + b"\n"


def store_json(path: str | os.PathLike[str], content: dict[str, Any], kind: str) -> None:
    """Write a small object that a user keeps, such as a `kind` of scale, as a file of its own."""
    file = check_path("path", path)
    write_atomic({file: json_bytes(content)}, f"{kind} {file.name}")


def stored_json(path: str | os.PathLike[str]) -> tuple[Any, str]:
    """Content of a file of `store_json`, and how error messages name the file.

    Raises
    ------
    ValueError
        If it is no JSON, or has more than a megabyte.
    OSError
        If it is absent or may not be read.
    """
    file = check_path("path", path)
    what = f"path {file}"
    return untrusted.read_json(file, most=untrusted.MEGABYTE, what=what), what


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
    """Replace files so that a reader, or a kill, sees the old or the new bytes of each.

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
