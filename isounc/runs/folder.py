"""Run folders: write, read, verify and resume the records of an experiment.

A run is a folder::

    settings.json               what was asked for; decides whether a later start may resume it
    info.json                   versions, device, git state, checks; the text columns of tables
    cells/<name>.npz            arrays of one record: plain numbers, truth values or text
    cells/<name>.json           format_version, name, run, sha256 of the npz, meta_sha256, meta
    cells/damaged/              records that failed verification, kept for inspection
    .verified                   which records are known to be whole; may be removed at any moment
    results.csv, summary.csv    tables; a published run has large ones as results.csv.gz

Three rules keep a run readable after a kill, a crash or a full disk. Every file is written beside
its final place, synced, and renamed over it, so a file is either whole or absent. A record exists
only when both halves are there and the checksums hold, so a kill between the two renames loses one
record and never mixes two. Nothing is ever unpickled, so reading a run executes no code.

Several processes may write to one run. Whoever writes or opens it holds the advisory lock `.lock`,
so a temporary file that is seen under the lock was left by a kill and is removed. On a file system
without locks such files stay. The module `values` explains how values are encoded, and `verified`
how a run of many records is resumed without reading them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isounc.checks import check_kind, check_path
from isounc.runs import files, record_files, values, verified
from isounc.runs.files import locked
from isounc.runs.folder_tables import DamagedRecordWarning, RunTables, check_name
from isounc.runs.place import check_place, check_run
from isounc.runs.values import Damaged

_HEAD = 64
"""Bytes of a JSON file that have its format version, as isounc writes it."""


class Record(NamedTuple):
    """The result of one cell of a run."""

    name: str
    """File name without ending: letters, digits and `. _ = + , -`, at most 200 of them."""
    meta: dict[str, Any]
    """Values that JSON can hold: None, bool, int, float, str, lists, and dicts with text keys."""
    arrays: dict[str, np.ndarray]
    """Numeric, boolean or text arrays by name; a name may have slashes (`"test/X"`)."""


class RunFolder(RunTables):
    """A run on disk; made by `RunFolder.open` (read and write) or `RunFolder.load` (read only).

    Attributes
    ----------
    path
        The folder.
    settings
        The settings the run was started with, as stored.
    study
        Name of the study whose run it is; empty for a run that does not say.
    writable
        False after `RunFolder.load`: nothing is written, moved or locked into being.
    untouched
        Names of the records that were whole, and whose files nobody had touched since, when
        `RunFolder.open` opened the run. Nothing is read for it but the list of such records and the
        sizes and times of files: what keeps both (a failing disk) is found when a record is read.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, writable: bool, study: str = ""):
        super().__init__(path, writable=writable)
        self.settings = settings
        self.study = study
        self.untouched: set[str] = set()
        self._digest = values.json_digest(values.encode(settings, "settings"))

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r}, study={self.study!r})"

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], settings: Mapping[str, Any], *, study: str = ""
    ) -> RunFolder:
        """Create a run folder, or resume an existing one.

        Parameters
        ----------
        path
            The folder. Missing parents are created.
        settings
            Settings that JSON can hold, stored on creation and compared on resumption.
        study
            Name of the study whose run it is, stored on creation.

        Raises
        ------
        ValueError
            If the path is a file, a non-empty folder that is no run, a run of another study or with
            other settings (each difference is listed), or if it holds anything of a newer format.
        OSError
            If the folder cannot be written.
        """
        path = check_place(path)
        check_kind("settings", settings, Mapping)
        wanted = values.encode(dict(settings), "settings")
        with files.explained(f"the run folder {path}"):
            path.mkdir(parents=True, exist_ok=True)
        with locked(path, create=True) as held:
            if (path / "settings.json").exists():
                known, stored = _load_settings(path)
                if known and study and known != study:  # whose records may have the same names
                    raise ValueError(
                        f"{path} holds a run of the study {known!r}, got {study!r}; choose another --out"
                    )
                _check_same_run(path, stored, wanted)
                study = known or study
            else:
                stored = values.decode(wanted)
                content = values.json_bytes({"study": study, "settings": wanted})
                files.write_atomic({path / "settings.json": content}, "settings.json")
            with files.explained(f"the folder {path / 'cells'}"):
                (path / "cells").mkdir(exist_ok=True)
            if held:
                files.remove_stale(path, path / "cells")
        run = cls(path, stored, writable=True, study=study)
        there = verified.scan(path / "cells")
        run.untouched = run._untouched(there)
        for name in there.keys() - run.untouched:  # now, not hours into the run
            run._refuse_newer(name)
        return run

    @classmethod
    def join(cls, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> RunFolder:
        """Open a run that another process of the same session has opened; no record is looked at.

        Raises
        ------
        ValueError
            If the path is no run, or one with other settings.
        """
        run = cls.load(path, writable=True)
        _check_same_run(run.path, run.settings, values.encode(dict(settings), "settings"))
        return run

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, writable: bool = False) -> RunFolder:
        """Open an existing run, for reading only unless `writable`.

        Its tables are DataFrames: `run.results`, `run.summary`, `run.read_table(name)`.

        Raises
        ------
        ValueError
            If the path is no run, or a run of a newer format.
        """
        path = check_path("path", path)
        check_run(path)
        if writable:
            check_place(path)
        study, settings = _load_settings(path)
        return cls(path, settings, writable=writable, study=study)

    def write(self, record: Record) -> None:
        """Store a record, replacing one of the same name. Equal arrays give equal npz bytes.

        Raises
        ------
        ValueError
            If the name, the meta or an array cannot be stored without loss, if the meta is beyond
            the bounds within which it is read, if a record of a newer format would be replaced, or
            if the run was opened for reading.
        OSError
            If it cannot be written (a full disk). Records written before are kept.
        """
        self._require_writable()
        check_kind("record", record, Record)
        check_name(record.name)
        halves = record_files.record_bytes(*record, self._digest)
        files.check_readable(halves[1], f"record {record.name!r}")
        contents = dict(zip(self._halves(record.name), halves, strict=True))
        self._refuse_newer(record.name)
        with locked(self.path, create=True) as held:
            files.write_atomic(contents, f"record {record.name!r}")
            if held and (stamp := verified.stamp_of(*self._halves(record.name))) is not None:
                new = (record.name, stamp, halves[1])
                verified.add_to_list(self.path, self._digest, [new])

    def read(self, name: str) -> Record | None:
        """Read and verify a record; None if there is none.

        A damaged record is moved to `cells/damaged/` (left in place in a run opened for reading),
        announced by a `DamagedRecordWarning`, and None is returned, so that the caller computes it
        again.

        Raises
        ------
        ValueError
            If the name is not valid, or the record is of a newer format (it is left in place).
        """
        check_name(name)
        found = self._read(name, with_arrays=True, listed={})
        return None if found is None else found[0]

    def _read(
        self, name: str, *, with_arrays: bool, listed: Mapping[str, verified.Line]
    ) -> tuple[Record, verified.Stamp, str] | None:
        """Read and verify a record; also the stamp of its files before, and its JSON's SHA-256."""
        with contextlib.suppress(Damaged):
            return self._read_verified(name, with_arrays, listed)
        # Another worker may have been between the two halves; under the lock nobody is.
        with locked(self.path, create=self.writable):
            try:
                return self._read_verified(name, with_arrays, {})
            except Damaged as error:
                reason = str(error)
                outcome = "left in place"
                if self.writable:
                    outcome = f"set aside as {self._set_aside(name)}; it will be computed again"
        message = f"record {name!r} of {self.path} is damaged ({reason}); {outcome}"
        warnings.warn(message, DamagedRecordWarning, stacklevel=3)
        return None

    def require(self, name: str) -> Record:
        """Read a record as `read` does; ValueError if there is none."""
        if (record := self.read(name)) is None:
            raise ValueError(f"{self.path} lacks the record {name!r}; run the same command again")
        return record

    def has(self, name: str) -> bool:
        """Whether a record exists and verifies; see `read` for a damaged one."""
        return self.read(name) is not None

    def names(self) -> list[str]:
        """Sorted names of the records with both halves present, which are not verified."""
        there = verified.scan(self.path / "cells")
        return [name for name, halves in there.items() if all(halves)]

    def records(
        self,
        *,
        with_arrays: bool = True,
        prefix: str = "",
        key: Callable[[str], Any] | None = None,
    ) -> Iterator[Record]:
        """Every record that verifies, in the order of names.

        Parameters
        ----------
        with_arrays
            Whether the arrays are asked for. Without them no file of arrays is read whose record
            was whole and has not been touched since.
        prefix
            Beginning of the names of those that are asked for.
        key
            Sorts the names in another way, as in `sorted`.
        """
        listed = verified.read_list(self.path, self._digest)
        new: list[tuple[str, verified.Stamp, str]] = []
        try:
            there = (n for n in verified.scan(self.path / "cells") if n.startswith(prefix))
            for name in sorted(there, key=key):
                found = self._read(name, with_arrays=with_arrays, listed=listed)
                if found is None:
                    continue
                record, stamp, sha256 = found
                if listed.get(name) != (stamp, sha256):
                    new.append((name, stamp, sha256))
                yield record
        finally:
            if new and self.writable:
                with locked(self.path, create=True) as held:
                    if held:
                        verified.add_to_list(self.path, self._digest, new)

    def _halves(self, name: str) -> tuple[Path, Path]:
        return self.path / "cells" / f"{name}.npz", self.path / "cells" / f"{name}.json"

    def _untouched(self, there: Mapping[str, verified.Halves]) -> set[str]:
        listed = verified.read_list(self.path, self._digest)
        return {name for name, line in listed.items() if name in there
                and there[name].stamp == line.stamp}  # fmt: skip

    def _refuse_newer(self, name: str) -> None:
        described = self._halves(name)[1]
        with contextlib.suppress(Damaged):
            head = files.head_or_none(described, _HEAD)
            if head is None or record_files.format_of(head) == values.FORMAT_VERSION:
                return
            if (content := files.bytes_or_none(described)) is not None:
                values.parse_json(content, f"record {name!r} of {self.path}")

    def _read_verified(
        self, name: str, with_arrays: bool, listed: Mapping[str, verified.Line]
    ) -> tuple[Record, verified.Stamp, str] | None:
        halves = self._halves(name)
        stamp = verified.stamp_of(*halves)  # first: what is replaced meanwhile is not what is read
        described = files.bytes_or_none(halves[1])
        sha256 = "" if described is None else hashlib.sha256(described).hexdigest()
        is_known = stamp is not None and listed.get(name) == (stamp, sha256)
        npz = None if is_known and not with_arrays else files.bytes_or_none(halves[0])
        if npz is None and described is None:
            return None
        parts = record_files.record_parts(
            name, npz, described, f"record {name!r} of {self.path}", self._digest, with_arrays,
            is_known=is_known,
        )  # fmt: skip
        if stamp is None:
            raise Damaged("its files were replaced while they were read")
        return Record(name, *parts), stamp, sha256

    def _set_aside(self, name: str) -> str:
        stem = f"{name}-{secrets.token_hex(4)}"
        with files.explained(f"the damaged record {name!r} to cells/damaged"):
            place = self.path / "cells" / "damaged"
            place.mkdir(exist_ok=True)
            for half in self._halves(name):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(half, place / (stem + half.suffix))
        return f"cells/damaged/{stem}"


def _load_settings(path: Path) -> tuple[str, dict[str, Any]]:
    """The name of the study (empty for a run that does not say), and the settings."""
    file = path / "settings.json"
    try:
        payload = values.parse_json(files.bytes_or_none(file) or b"", str(file))
        if not isinstance(payload.get("settings"), dict):
            raise Damaged("it has no settings")
    except Damaged as error:
        raise ValueError(
            f"{file} is not the settings file of a run ({error}); choose another --out, or "
            "restore the file"
        ) from error
    return str(payload.get("study", "")), values.decode(payload["settings"])


def _check_same_run(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    # Encoded, NaN equals NaN and a tuple equals the list it was stored as.
    lines = values.differences(values.encode(stored, "settings"), wanted)
    if lines:
        raise ValueError(
            "\n  ".join([f"{path} holds a run with other settings:", *lines])
            + "\nChoose another --out, or give the settings of that run to resume it."
        )
