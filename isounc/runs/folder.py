"""Run folders: write, read, verify and resume the records of an experiment.

A run is a folder::

    settings.json               what was asked for; decides whether a later start may resume it
    info.json                   versions, device, git state, checks; the text columns of tables
    cells/<name>.npz            arrays of one record: plain numbers, truth values or text
    cells/<name>.json           format_version, name, run, sha256 of the npz, meta_sha256, meta
    cells/damaged/              records that failed verification, kept for inspection
    results.csv, summary.csv    tables; a published run has large ones as results.csv.gz

Three rules keep a run readable after a kill, a crash or a full disk. Every file is written beside
its final place, synced, and renamed over it, so a file is either whole or absent. A record exists
only when both halves are there and the checksums hold, so a kill between the two renames loses one
record and never mixes two. Nothing is ever unpickled, so reading a run executes no code.

Several processes may write to one run. Whoever writes or opens it holds the advisory lock `.lock`,
so a temporary file that is seen under the lock was left by a kill and is removed. On a file system
without locks such files stay. The module `files` explains how values are encoded.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from isounc.checks import check_kind, check_path
from isounc.runs import files
from isounc.runs.files import Damaged, locked
from isounc.runs.place import check_place, check_run

if TYPE_CHECKING:
    import pandas

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+,-]{0,199}")
_TABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.csv")


class Record(NamedTuple):
    """The result of one cell of a run."""

    name: str
    """File name without ending: letters, digits and `. _ = + , -`, at most 200 of them."""
    meta: dict[str, Any]
    """Values that JSON can hold: None, bool, int, float, str, lists, and dicts with text keys."""
    arrays: dict[str, np.ndarray]
    """Numeric, boolean or text arrays by name; a name may have slashes (`"test/X"`)."""


class DamagedRecordWarning(UserWarning):
    """A record or `info.json` failed verification and was not used."""


class RunFolder:
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
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, writable: bool, study: str = ""):
        self.path = path
        self.settings = settings
        self.writable = writable
        self.study = study
        self._digest = files.json_digest(files.encode(settings, "settings"))

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
            If the path is a file, a non-empty folder that is no run, or a run with other settings
            (each difference is listed), or if it holds anything of a newer format.
        OSError
            If the folder cannot be written.
        """
        path = check_place(path)
        check_kind("settings", settings, Mapping)
        wanted = files.encode(dict(settings), "settings")
        with files.explained(f"the run folder {path}"):
            path.mkdir(parents=True, exist_ok=True)
        with locked(path, create=True) as held:
            if (path / "settings.json").exists():
                _, stored = _load_settings(path)
                _check_same_run(path, stored, wanted)
            else:
                stored = files.decode(wanted)
                content = files.json_bytes({"study": study, "settings": wanted})
                files.write_atomic({path / "settings.json": content}, "settings.json")
            with files.explained(f"the folder {path / 'cells'}"):
                (path / "cells").mkdir(exist_ok=True)
            if held:
                files.remove_stale(path, path / "cells")
        run = cls(path, stored, writable=True, study=study)
        for name in run._stems():  # now, not hours into the run
            run._refuse_newer(name)
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
            If the name, the meta or an array cannot be stored without loss, if a record of a newer
            format would be replaced, or if the run was opened for reading.
        OSError
            If it cannot be written (a full disk). Records written before are kept.
        """
        self._require_writable()
        check_kind("record", record, Record)
        _check_name(record.name)
        halves = files.record_bytes(*record, self._digest)
        contents = dict(zip(self._halves(record.name), halves, strict=True))
        self._refuse_newer(record.name)
        with locked(self.path, create=True):
            files.write_atomic(contents, f"record {record.name!r}")

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
        _check_name(name)
        return self._read(name, with_arrays=True)

    def _read(self, name: str, *, with_arrays: bool) -> Record | None:
        with contextlib.suppress(Damaged):
            return self._read_verified(name, with_arrays)
        # Another worker may have been between the two halves; under the lock nobody is.
        with locked(self.path, create=self.writable):
            try:
                return self._read_verified(name, with_arrays)
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
        return [n for n in self._stems() if all(half.exists() for half in self._halves(n))]

    def records(self, *, with_arrays: bool = True) -> Iterator[Record]:
        """Every record that verifies, in the order of names; without its arrays if so asked."""
        for name in self._stems():
            if (record := self._read(name, with_arrays=with_arrays)) is not None:
                yield record

    @property
    def results(self) -> pandas.DataFrame:
        """The table `results.csv`; see `read_table`."""
        return self.read_table("results.csv")

    @property
    def summary(self) -> pandas.DataFrame:
        """The table `summary.csv`; see `read_table`."""
        return self.read_table("summary.csv")

    def write_table(
        self,
        name: str,
        rows: pandas.DataFrame | Iterable[Mapping[str, Any]],
        columns: Sequence[str],
    ) -> None:
        """Write a table as CSV, and into `info.json` which of its columns hold text.

        Floats keep 6 significant digits; None, NaN, NA and keys left out give empty cells.

        Parameters
        ----------
        name
            File name, such as `results.csv`.
        rows
            A DataFrame, or mappings from column to number, truth value or text.
        columns
            Columns of the file, in order.

        Raises
        ------
        ValueError
            If the file name is not a plain `*.csv`, a row has a key that is no column, a value is
            not a single number, truth value or text, or the run was opened for reading.
        OSError
            If it cannot be written.
        """
        self._require_writable()
        _check_name(name, _TABLE, "table name", "look like results.csv")
        data, text_columns = files.table_bytes(rows, columns, name=name)
        with locked(self.path, create=True):
            described = self._read_description()
            described["text_columns"][name] = text_columns
            content = files.json_bytes(files.encode(described, "info.json"))
            files.write_atomic({self.path / name: data, self.path / "info.json": content}, name)
            (self.path / f"{name}.gz").unlink(missing_ok=True)  # of an earlier state

    def read_table(self, name: str, *, text_columns: Iterable[str] = ()) -> pandas.DataFrame:
        """Read a table, each column with its type; empty cells are NA.

        Parameters
        ----------
        name
            File name, such as `results.csv`.
        text_columns
            Columns of text (class "1" is a label), beside those that `write_table` noted; a run
            that was written before it did so needs them.

        Returns
        -------
        DataFrame
            Columns of the types `Int64`, `Float64`, `boolean` and `string`, as pandas finds them.

        Raises
        ------
        ValueError
            If there is no such table, or it is none: empty, no text, or with lines of other sizes.
        """
        _check_name(name, _TABLE, "table name", "look like results.csv")
        try:
            data = files.table_file(self.path, name)
        except Damaged as error:
            raise ValueError(str(error)) from error
        if data is None:
            raise ValueError(f"{self.path} has no {name} and no {name}.gz: did the run finish?")
        noted = self._read_description()["text_columns"].get(name, [])
        return files.table_frame(data, [*text_columns, *noted], name=str(self.path / name))

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Merge into `info.json`: top-level keys given here replace those of the same name."""
        self._require_writable()
        check_kind("info", info, Mapping)
        new = files.encode(dict(info), "info")
        with locked(self.path, create=True):
            described = files.encode(self._read_description(), "info.json")
            described["info"] |= new
            content = {self.path / "info.json": files.json_bytes(described)}
            files.write_atomic(content, "info.json")

    def read_info(self) -> dict[str, Any]:
        """Read what `write_info` gathered; empty, with a warning, if the file is damaged."""
        return self._read_description()["info"]

    def _read_description(self) -> dict[str, dict[str, Any]]:
        """Content of `info.json`: what `write_info` gathered, and text columns by table."""
        described = {"info": {}, "text_columns": {}}
        try:
            content = files.bytes_or_none(self.path / "info.json")
            if content is None:
                return described
            payload = files.parse_json(content, f"{self.path / 'info.json'}")
            for key in described:
                stored = payload.get(key, {})
                if not isinstance(stored, dict):
                    raise Damaged(f"its {key} is no object")
                described[key] |= files.decode(stored)
        except Damaged:
            message = f"info.json of {self.path} is damaged; going on without what it said"
            warnings.warn(message, DamagedRecordWarning, stacklevel=3)
        return described

    def _require_writable(self) -> None:
        if not self.writable:
            raise ValueError(
                f"{self.path} was opened for reading (RunFolder.load); use RunFolder.open to write"
            )

    def _halves(self, name: str) -> tuple[Path, Path]:
        return self.path / "cells" / f"{name}.npz", self.path / "cells" / f"{name}.json"

    def _stems(self) -> list[str]:
        halves = (self.path / "cells").glob("*.*")
        stems = {p.stem for p in halves if p.suffix in (".npz", ".json")}
        return sorted(stem for stem in stems if _NAME.fullmatch(stem))

    def _refuse_newer(self, name: str) -> None:
        with contextlib.suppress(Damaged):
            if (described := files.bytes_or_none(self._halves(name)[1])) is not None:
                files.parse_json(described, f"record {name!r} of {self.path}")

    def _read_verified(self, name: str, with_arrays: bool) -> Record | None:
        npz, described = (files.bytes_or_none(half) for half in self._halves(name))
        if npz is None and described is None:
            return None
        what = f"record {name!r} of {self.path}"
        halves = npz, described, what, self._digest
        return Record(name, *files.record_parts(name, *halves, with_arrays))

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
        payload = files.parse_json(files.bytes_or_none(file) or b"", str(file))
        if not isinstance(payload.get("settings"), dict):
            raise Damaged("it has no settings")
    except Damaged as error:
        raise ValueError(
            f"{file} is not the settings file of a run ({error}); choose another --out, or "
            "restore the file"
        ) from error
    return str(payload.get("study", "")), files.decode(payload["settings"])


def _check_same_run(path: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    # Encoded, NaN equals NaN and a tuple equals the list it was stored as.
    lines = files.differences(files.encode(stored, "settings"), wanted)
    if lines:
        raise ValueError(
            "\n  ".join([f"{path} holds a run with other settings:", *lines])
            + "\nChoose another --out, or give the settings of that run to resume it."
        )


def _check_name(
    name: str,
    pattern: re.Pattern[str] = _NAME,
    what: str = "record name",
    right: str = "begin with a letter or digit, then letters, digits or any of . _ = + , -",
) -> None:
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise ValueError(f"{what} must {right}, got {name!r}")
