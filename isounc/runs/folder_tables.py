"""The tables of a run folder, and its `info.json`, which says what they and the run are."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isounc.checks import check_kind
from isounc.runs import csv_tables, files, values, verified
from isounc.runs.files import locked
from isounc.runs.values import Damaged

if TYPE_CHECKING:
    import pandas

_TABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.csv")


class DamagedRecordWarning(UserWarning):
    """A record or `info.json` failed verification and was not used."""


class RunTables:
    """The part of `RunFolder` that holds tables and `info.json`."""

    def __init__(self, path: Path, *, writable: bool):
        self.path = path
        self.writable = writable

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
        rows: pandas.DataFrame | Iterable[Mapping[str, Any]] | csv_tables.Encoder,
        columns: Sequence[str],
    ) -> None:
        """Write a table as CSV, and into `info.json` which of its columns hold text.

        Floats keep 6 significant digits; None, NaN, NA and keys left out give empty cells.

        Parameters
        ----------
        name
            File name, such as `results.csv`.
        rows
            A DataFrame, or mappings from column to number, truth value or text; or both as an
            `isounc.runs.csv_tables.Encoder` has gathered them.
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
        check_name(name, _TABLE, "table name", "look like results.csv")
        table = csv_tables.encoded(rows, columns, name=name)
        with locked(self.path, create=True):
            described = self._read_description()
            described["text_columns"][name] = table.text_columns
            content = values.json_bytes(values.encode(described, "info.json"))
            files.write_atomic(
                {self.path / name: table.open(), self.path / "info.json": content}, name
            )
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
        check_name(name, _TABLE, "table name", "look like results.csv")
        try:
            data = files.table_file(self.path, name)
        except Damaged as error:
            raise ValueError(str(error)) from error
        if data is None:
            raise ValueError(f"{self.path} has no {name} and no {name}.gz: did the run finish?")
        noted = self._read_description()["text_columns"].get(name, [])
        return csv_tables.table_frame(data, [*text_columns, *noted], name=str(self.path / name))

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Merge into `info.json`: top-level keys given here replace those of the same name."""
        self._require_writable()
        check_kind("info", info, Mapping)
        new = values.encode(dict(info), "info")
        with locked(self.path, create=True):
            described = values.encode(self._read_description(), "info.json")
            described["info"] |= new
            content = {self.path / "info.json": values.json_bytes(described)}
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
            payload = values.parse_json(content, f"{self.path / 'info.json'}")
            for key in described:
                stored = payload.get(key, {})
                if not isinstance(stored, dict):
                    raise Damaged(f"its {key} is no object")
                described[key] |= values.decode(stored)
        except Damaged:
            message = f"info.json of {self.path} is damaged; going on without what it said"
            warnings.warn(message, DamagedRecordWarning, stacklevel=3)
        return described

    def _require_writable(self) -> None:
        if not self.writable:
            raise ValueError(
                f"{self.path} was opened for reading (RunFolder.load); use RunFolder.open to write"
            )


def check_name(
    name: str,
    pattern: re.Pattern[str] = verified.RECORD_NAME,
    what: str = "record name",
    right: str = "begin with a letter or digit, then letters, digits or any of . _ = + , -",
) -> None:
    """Raise a ValueError unless a name of a file is of the right form."""
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise ValueError(f"{what} must {right}, got {name!r}")
