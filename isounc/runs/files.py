"""Files of a run: written whole or not at all, read within bounds, under one lock.

The module `folder` decides what a run holds, `values` how a value is encoded, `records` and
`csv_tables` what is in the files. This one decides how bytes reach the disk and come back.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from isounc import untrusted
from isounc.checks import check_path
from isounc.fields import Unreadable
from isounc.runs.values import Damaged, json_bytes, parse_json

MOST_BYTES = {".json": 2**25, ".csv": 2**28, ".gz": 2**26, ".npz": 2**36, ".png": 2**26}
"""Largest files that are read, by ending."""
TEMPORARY_PREFIX = ".tmp-"
LOCK_NAME = ".lock"


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
        with os.scandir(folder) as entries:  # of many records: a glob takes several times as long
            leftovers = [e.path for e in entries if e.name.startswith(TEMPORARY_PREFIX)]
        for leftover in leftovers:
            Path(leftover).unlink(missing_ok=True)


def bytes_or_none(path: Path) -> bytes | None:
    """Content of a file; None if there is none, `Damaged` if it is no file, or a huge one."""
    try:
        return untrusted.read_bytes(path, most=MOST_BYTES.get(path.suffix, 0))
    except FileNotFoundError:
        return None
    except Unreadable as error:
        raise Damaged(str(error)) from error


def check_readable(content: bytes, what: str) -> None:
    """Raise a ValueError if a JSON file of this content would be refused when it is read."""
    most = MOST_BYTES[".json"]
    if len(content) > most:
        raise ValueError(f"{what} must have at most {most} bytes of JSON, got {len(content)}")
    try:
        parse_json(content, what)
    except Damaged as error:
        raise ValueError(
            f"{what} must be such as can be read again, got one that is {error}"
        ) from error


def head_or_none(path: Path, length: int) -> bytes | None:
    """The first bytes of a file; None if there is none, `Damaged` if it is no file."""
    try:
        with untrusted.open_regular(path) as file:
            return file.read(length)
    except FileNotFoundError:
        return None
    except Unreadable as error:
        raise Damaged(str(error)) from error


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


def write_atomic(files: Mapping[Path, bytes | io.BufferedIOBase], what: str) -> None:
    """Replace files so that a reader, or a kill, sees the old or the new bytes of each.

    All are on disk before the first is renamed, so a disk that fills up changes none of them. Of a
    file in place of bytes the rest is copied.
    """
    staged = {path.with_name(TEMPORARY_PREFIX + secrets.token_hex(8)): path for path in files}
    try:
        with explained(f"{what} in {next(iter(files)).parent}"):
            for temporary, path in staged.items():
                with open(temporary, "xb") as file:
                    content = files[path]
                    if isinstance(content, bytes):
                        file.write(content)
                    else:
                        shutil.copyfileobj(content, file, 2**20)
                    file.flush()
                    os.fsync(file.fileno())
            for temporary, path in staged.items():
                os.replace(temporary, path)
    finally:
        for temporary in staged:
            with contextlib.suppress(OSError):  # gone after the rename, left after a failure
                temporary.unlink()
