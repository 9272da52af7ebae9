"""The list of records that are known to be whole, by which a run is resumed without reading them.

A line of `.verified` in a run folder has the sizes and times of change of the two files of a record
when it was written or verified, and the SHA-256 of its JSON file. While the files are as the line
says, nobody has touched them since. A record without such a line (of an earlier version, or copied
without its times) is read and verified. The list only saves time: it may be removed at any moment,
and a line that is none is passed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from isounc import untrusted
from isounc.fields import Unreadable
from isounc.runs.values import FORMAT_VERSION

LIST_NAME = ".verified"
MOST_BYTES = 2**28
"""A longer list is not read; it has a line of about two hundred bytes for each record written."""
RECORD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+,-]{0,199}")
"""Names of records."""

Stamp = str
"""Size and time of change of the npz file, then of the JSON file, as a line of the list has them; times
are in nanoseconds."""


class Line(NamedTuple):
    """What the list says of a record."""

    stamp: Stamp
    """Sizes and times of its files."""
    sha256: str
    """Of the content of its JSON file."""


class Halves(NamedTuple):
    """The files of a record that a folder has."""

    npz: os.DirEntry[str] | None
    """Its arrays."""
    json: os.DirEntry[str] | None
    """Its meta and checksums."""

    @property
    def stamp(self) -> Stamp | None:
        """Sizes and times of both files; None if one is missing."""
        if self.npz is None or self.json is None:
            return None
        with contextlib.suppress(FileNotFoundError):  # removed since the folder was read
            return _stamp(self.npz.stat(), self.json.stat())
        return None


def scan(cells: Path) -> dict[str, Halves]:
    """Records in a folder by name, in the order of names; the folder is listed once."""
    found: dict[str, dict[str, os.DirEntry[str]]] = {"npz": {}, "json": {}}
    with contextlib.suppress(FileNotFoundError), os.scandir(cells) as entries:
        for entry in entries:
            stem, _, ending = entry.name.rpartition(".")
            if ending in found:
                found[ending][stem] = entry
    arrays, described = found["npz"], found["json"]
    names = sorted(name for name in arrays.keys() | described if RECORD_NAME.fullmatch(name))
    return {name: Halves(arrays.get(name), described.get(name)) for name in names}


def stamp_of(npz: Path, described: Path) -> Stamp | None:
    """Sizes and times of the two files of a record; None if one is missing."""
    with contextlib.suppress(FileNotFoundError):
        return _stamp(os.stat(npz), os.stat(described))
    return None


def read_list(folder: Path, run: str) -> dict[str, Line]:
    """Lines of the list of a folder by the name of the record, for the run of digest `run`.

    Of several lines for a record the last one counts. Lines of other formats are left out, and so is
    all of a list that cannot be read.
    """
    try:
        content = untrusted.read_bytes(folder / LIST_NAME, most=MOST_BYTES)
        text = untrusted.decode_text(content, LIST_NAME)
    except (Unreadable, OSError):
        return {}
    found: dict[str, Line] = {}
    prefix = _prefix(run)
    for line in text.splitlines():
        if not line.startswith(prefix):
            continue
        with contextlib.suppress(ValueError):  # torn, or of other things
            stamp, sha256, name = line[len(prefix) :].rsplit(" ", 2)
            found[name] = Line(stamp, sha256)
    return found


def add_to_list(folder: Path, run: str, lines: Iterable[tuple[str, Stamp, bytes | str]]) -> None:
    """Append records to the list of a folder, under its lock: name, stamp, content or its SHA-256.

    A list that cannot be written stays as it is.
    """
    prefix = _prefix(run)
    text = "".join(
        f"{prefix}{stamp} {what if isinstance(what, str) else hashlib.sha256(what).hexdigest()} {name}\n"
        for name, stamp, what in lines
    )
    path = folder / LIST_NAME
    # A run of others may have a link here, which leads out of it, or a pipe, which would wait.
    if path.is_symlink() or (path.exists() and not path.is_file()):
        return
    with contextlib.suppress(OSError), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a kill has left a line without its end
                text = "\n" + text
        file.write(text.encode())


def _prefix(run: str) -> str:
    return f"{FORMAT_VERSION} {run[:16]} "


def _stamp(npz: os.stat_result, described: os.stat_result) -> Stamp:
    return f"{npz.st_size} {npz.st_mtime_ns} {described.st_size} {described.st_mtime_ns}"
