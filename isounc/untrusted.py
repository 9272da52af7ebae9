"""Reading of files that anybody may have written: bounded, without pickle, with one kind of error.

Whatever a file holds, these functions return a value or raise an `Unreadable` (a ValueError) that
names the file, or the OSError of a file that is absent or may not be read. Sizes are checked before
anything is allocated. `isounc.fields` declares what the values must be.

    >>> config = read_json(folder / "config.json", most=MEGABYTE)
    >>> with reading("model.gguf", "a whole GGUF file"):
    ...     ...  # whatever goes wrong here says so
"""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import io
import json
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from isounc.fields import Unreadable

MEGABYTE = 2**20
MOST_DEPTH = 64
"""Lists and objects within each other that a JSON file may have."""
MOST_BRACKETS = 500_000
"""Lists and objects in all that a JSON file may have: an empty one takes 60 bytes and more."""
MOST_ROWS = 500_000
"""Lines that a CSV file may have."""
MOST_CELL = 8 * MEGABYTE
"""Characters that a cell of a CSV file may have."""
MOST_COLUMNS = 1000
"""Columns that a CSV file may have."""
SPARE = 64 * MEGABYTE
"""What the arrays of an npz file may hold beyond the size of the file, without being asked."""
_NESTING = (list, dict, tuple)


@contextlib.contextmanager
def reading(what: str, right: str, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into an `Unreadable` that names it.

    Errors that already name the file or a package (`Unreadable`, OSError, ImportError) pass. So do
    those of `passing`, and requests to stop. All else is converted, MemoryError and the panics of
    packages written in Rust (which are no `Exception`s) included.

    Parameters
    ----------
    what
        The file, as in "<what> must be ...".
    right
        What it must be.
    passing
        Further errors that have a good message already.
    """
    try:
        yield
    except passing:
        raise
    except (Unreadable, OSError, ImportError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, MemoryError):
            given = "one that needs more memory than there is"
        else:
            given = f"one whose content goes wrong ({type(error).__name__}: {error!s:.300})"
        raise Unreadable(f"{what} must be {right}, got {given}") from error


def open_regular(path: str | os.PathLike[str], what: str | None = None) -> io.BufferedReader:
    """Open a regular file; a pipe, a device or a folder is refused without waiting for it.

    Parameters
    ----------
    path
        The file, or a link to one.
    what
        Its name in messages; None is the path.

    Raises
    ------
    Unreadable
        If it is anything but a regular file.
    OSError
        If it is absent or may not be read.
    """
    label = what or str(path)
    try:
        # A pipe that nobody writes to blocks whoever opens it, but not with O_NONBLOCK. The kind is
        # asked of the open file, which nobody can exchange for another between the two steps.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
    except ValueError as error:  # a null byte
        raise Unreadable(f"{label!r} must be the path of a file, got one with {error}") from error
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        given = kinds.get(stat.S_IFMT(kind), "device")
        raise Unreadable(f"{label} must be a regular file, got a {given}")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: str | os.PathLike[str], *, most: int, what: str | None = None) -> bytes:
    """Content of a regular file of at most `most` bytes; errors as in `open_regular`."""
    label = what or str(path)
    with open_regular(path, label) as file:
        size = os.fstat(file.fileno()).st_size
        check_size(size, most, label)
        content = file.read(size + 1)
    if len(content) != size:
        raise Unreadable(f"{label} must be a file at rest, got one that is being written")
    return content


def check_size(size: int, most: int, what: str) -> None:
    """Raise an `Unreadable` if a file, or what it holds, has more than `most` bytes."""
    if size > most:
        raise Unreadable(f"{what} must have at most {most} bytes, got {size}")


def gunzip(data: bytes, most: int, what: str) -> bytes:
    """Content of a gzip file, of which no more than `most` bytes are ever unpacked.

    Raises
    ------
    Unreadable
        If it is no gzip file, or a damaged one, or holds more than `most` bytes.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable(
            f"{what} must be a whole gzip file, got one that is not: {error}"
        ) from None
    if len(content) > most:
        raise Unreadable(f"{what} must unpack to at most {most} bytes, got more")
    return content


def decode_text(data: bytes, what: str) -> str:
    """UTF-8 text, with or without a byte order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(
            f"{what} must be UTF-8 text, got byte {data[error.start]:#x} at {error.start}"
        ) from None


def read_json(
    path: str | os.PathLike[str], *, most: int, what: str | None = None, **kwargs: Any
) -> Any:
    """Content of a JSON file; see `read_bytes` and `parse_json`."""
    label = what or str(path)
    return parse_json(read_bytes(path, most=most, what=label), label, **kwargs)


def parse_json(
    data: bytes | str,
    what: str,
    *,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    most_brackets: int = MOST_BRACKETS,
) -> Any:
    """Parse strict JSON.

    Parameters
    ----------
    data
        Content of the file.
    what
        Its name in messages.
    pairs
        Makes a value of an object's names and values, in their order and with repeated names; None
        makes a dict and refuses repeated names.
    most_brackets
        Lists and objects that the file may have.

    Raises
    ------
    Unreadable
        If it is not UTF-8 or no JSON, has NaN, an infinity or a number that overflows to one, a
        name twice in an object, or more brackets or depth than `most_brackets` and `MOST_DEPTH`.
    """
    string = decode_text(data, what) if isinstance(data, bytes) else data
    brackets = string.count("[") + string.count("{")
    if brackets > most_brackets:
        raise Unreadable(
            f"{what} must have at most {most_brackets} lists and objects, got {brackets} brackets"
        )

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    def finite(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else refuse(digits[:40])  # type: ignore[return-value]

    def unique(names: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(names)
        if len(result) != len(names):
            seen: set[str] = set()
            twice = next(n for n, _ in names if n in seen or seen.add(n))
            raise ValueError(f"{twice!r:.60} is twice in an object")
        return result

    try:
        value = json.loads(
            string, parse_constant=refuse, parse_float=finite, object_pairs_hook=pairs or unique
        )
    except RecursionError:
        raise _too_deep(what) from None
    except ValueError as error:
        raise Unreadable(f"{what} must be JSON, got a file that is none: {error!s:.200}") from None
    _check_depth(value, what)
    return value


def _check_depth(value: Any, what: str) -> None:
    # Level by level: what recurses over a value later must not meet one that is too deep for it.
    level = [value] if isinstance(value, _NESTING) else []
    for _ in range(MOST_DEPTH):
        level = [
            item
            for parent in level
            for item in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(item, _NESTING)
        ]
    if level:
        raise _too_deep(what)


def _too_deep(what: str) -> Unreadable:
    return Unreadable(
        f"{what} must have at most {MOST_DEPTH} lists and objects within each other, got more"
    )


def parse_csv(data: bytes, what: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file; empty lines are left out.

    Raises
    ------
    Unreadable
        If it is not UTF-8, has no header or a column twice, a line and the header differ in the
        number of cells, or it has more rows, columns or longer cells than the bounds of this module.
    """
    decode_text(data, what)
    # newline="" lets the csv module see line ends inside of quoted cells.
    lines = csv.reader(io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline=""))
    rows: list[list[str]] = []
    header: list[str] = []
    before = csv.field_size_limit(MOST_CELL)
    try:
        for cells in lines:
            if not cells:
                continue
            if not header:
                header = _checked_header(cells, what)
                continue
            if len(cells) != len(header):
                raise Unreadable(
                    f"line {lines.line_num} of {what} must have {len(header)} cells, as the header "
                    f"has, got {len(cells)}"
                )
            if len(rows) == MOST_ROWS:
                raise Unreadable(f"{what} must have at most {MOST_ROWS} rows, got more")
            rows.append(cells)
    except csv.Error as error:
        raise Unreadable(
            f"{what} must be CSV, got line {lines.line_num}, which is none: {error}"
        ) from None
    finally:
        csv.field_size_limit(before)
    if not header:
        raise Unreadable(f"{what} must have a header, got an empty file")
    return header, rows


def _checked_header(cells: list[str], what: str) -> list[str]:
    if len(cells) > MOST_COLUMNS:
        raise Unreadable(f"{what} must have at most {MOST_COLUMNS} columns, got {len(cells)}")
    if len(set(cells)) != len(cells):
        twice = next(name for name in cells if cells.count(name) > 1)
        raise Unreadable(f"{what} must have each column once, got {twice!r:.60} twice")
    return cells


def parse_npz(data: bytes, what: str, *, most: int | None = None) -> dict[str, np.ndarray]:
    """Arrays of an npz file, by name; nothing is unpickled.

    Parameters
    ----------
    data
        Content of the file.
    what
        Its name in messages.
    most
        Bytes that the arrays may have together; None is the size of the file and `SPARE`.

    Raises
    ------
    Unreadable
        If it is no archive of plain arrays, holds a name twice, or more than `most` bytes.
    """
    right = "an npz file of plain arrays"
    bound = len(data) + SPARE if most is None else most
    arrays: dict[str, np.ndarray] = {}
    with reading(what, right), zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        check_size(sum(member.file_size for member in members), bound, f"the arrays of {what}")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename or name in arrays:
                given = "twice" if name in arrays else "which is no array"
                raise Unreadable(f"{what} must be {right}, got {member.filename!r:.80} {given}")
            with archive.open(member) as file:
                content = bytearray(file.read())  # an array needs memory that can be written to
            arrays[name] = _array(content, f"{name!r:.80} of {what}")
    return arrays


def _array(content: bytearray, what: str) -> np.ndarray:
    """The array in the content of an npy file, whose header must tell its size."""
    version = npy_format.read_magic(io.BytesIO(content[: npy_format.MAGIC_LEN]))
    if version not in _HEADERS:
        raise Unreadable(f"{what} must be an array of format 1 or 2, got {version}")
    digits = slice(npy_format.MAGIC_LEN, npy_format.MAGIC_LEN + _HEADERS[version][0])
    begin = digits.stop + int.from_bytes(content[digits], "little")
    shape, fortran, dtype = _header(version, bytes(content[digits.start : min(begin, 2**16)]))
    if dtype.kind not in "biufcSUmM" or not dtype.itemsize:
        given = "Python objects" if dtype.hasobject else f"{dtype!s:.60}"
        raise Unreadable(f"{what} must be a plain array, got one of {given}")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size != len(content) - begin:
        raise Unreadable(
            f"{what} must have the {size} bytes that its shape {shape!s:.60} and {dtype} make, got "
            f"{len(content) - begin}"
        )
    flat = (
        np.frombuffer(content, dtype, offset=begin) if size else np.empty(math.prod(shape), dtype)
    )
    return flat.reshape(shape, order="F" if fortran else "C")


_HEADERS = {
    (1, 0): (2, npy_format.read_array_header_1_0),
    (2, 0): (4, npy_format.read_array_header_2_0),
}
"""Of each format of an npy file the bytes that hold the length of its header, and what reads it."""


@functools.lru_cache(1024)
def _header(
    version: tuple[int, int], content: bytes
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type in the header of an npy file; records have the same again and again."""
    return _HEADERS[version][1](io.BytesIO(content))
