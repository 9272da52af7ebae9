"""Tables as CSV: six significant digits, empty cells for what is undefined, types by column."""

from __future__ import annotations

import csv
import io
import math
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isounc import untrusted

if TYPE_CHECKING:
    import pandas  # at run time where it is used: it takes a second to import

MOST_IN_MEMORY = 2**26
"""Bytes of a table above which it is kept in a temporary file while it grows."""


class Encoder:
    """A table that grows row by row and is kept as the bytes of its CSV file.

    Rows of a long table are no longer needed once they are added. Above `MOST_IN_MEMORY` bytes the
    text moves to a temporary file without a name.
    """

    def __init__(self, columns: Sequence[str], *, name: str):
        """Begin a table with its header.

        Raises
        ------
        TypeError
            If the columns are no list of names.
        """
        if not isinstance(columns, list | tuple) or not all(isinstance(c, str) for c in columns):
            raise TypeError(f"columns must be a list of names, got {columns!r:.80}")
        self.columns, self.name = columns, name
        self.num_rows = 0
        self._known = frozenset(columns)
        self._with_text: set[str] = set()
        self._file: io.BufferedIOBase = io.BytesIO()
        self._write([tuple(columns)])

    @property
    def text_columns(self) -> list[str]:
        """Columns that hold a text, in order."""
        return [column for column in self.columns if column in self._with_text]

    @property
    def size(self) -> int:
        """Bytes of the table."""
        return self._file.seek(0, io.SEEK_END)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows. Floats keep 6 significant digits; None, NaN and NA are empty.

        Raises
        ------
        TypeError
            If a row is no mapping.
        ValueError
            If a key is no column, or a cell is not a single number, truth value or text.
        """
        self.add_columns(self.by_column(rows))

    def by_column(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, Sequence[Any]]:
        """The values of rows by column, None for a key that a row lacks; errors as in `add`."""
        # Every row is put in the order of the columns, as a call for each cell would take long.
        empty = dict.fromkeys(self.columns)
        filled = []
        for row in rows:
            if not isinstance(row, Mapping):
                raise TypeError(f"rows must be a DataFrame or mappings, got {row!r:.80}")
            if not row.keys() <= self._known:
                raise ValueError(
                    f"the columns of {self.name} must be {', '.join(self.columns)}, got also "
                    f"{[key for key in row if key not in self._known]}"
                )
            filled.append({**empty, **row}.values())
        values = zip(*filled, strict=True) if filled else ((),) * len(self.columns)
        return dict(zip(self.columns, values, strict=True))

    def add_columns(self, values: Mapping[str, Sequence[Any]]) -> None:
        """Add rows whose values are given by column, a list of equal length for each."""
        columns, one_line = [], True
        for c in self.columns:
            kinds = set(map(type, values[c]))
            cells = self._cells(values[c], kinds, f"{self.name}, column {c!r},")
            if any(issubclass(kind, str) for kind in kinds):
                self._with_text.add(c)
                one_line = one_line and not any("\r" in cell for cell in set(cells))
            columns.append(cells)
        self.num_rows += len(columns[0]) if columns else 0
        self._write(zip(*columns, strict=True), one_line=one_line)

    def open(self) -> io.BufferedIOBase:
        """The bytes of the table, at their beginning."""
        self._file.seek(0)
        return self._file

    def _cells(self, values: Sequence[Any], kinds: set[type], where: str) -> Sequence[str]:
        """Texts of a column; most have one kind of value, and a call for each takes long."""
        if kinds <= {str}:
            return values
        if kinds <= {int, bool}:
            return list(map(str, values))
        if kinds <= {float, type(None)}:
            known = set(values)
            if len(known) > len(values) // 32 or 0.0 in known:  # which -0.0 equals
                return ["" if v is None or v != v else f"{v:.6g}" for v in values]
            texts = {v: "" if v is None or v != v else f"{v:.6g}" for v in known}
            return list(map(texts.__getitem__, values))
        return [
            "" if v is None
            else v if type(v) is str
            else ("" if v != v else f"{v:.6g}") if type(v) is float
            else _cell_text(v, where)
            for v in values
        ]  # fmt: skip

    def _write(self, rows: Iterable[Sequence[str]], *, one_line: bool = False) -> None:
        """Add rows of texts; `one_line` says that none of them has a carriage return."""
        text = io.StringIO(newline="")
        plain = csv.writer(text, lineterminator="\n")
        if one_line:
            plain.writerows(rows)
            rows = ()
        # Python 3.11 writes a bare "\r" without quotes, and reads it as the end of a line.
        quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        for row in rows:
            (quoted if any("\r" in cell for cell in row) else plain).writerow(row)
        self._file.seek(0, io.SEEK_END)
        self._file.write(text.getvalue().encode())
        if isinstance(self._file, io.BytesIO) and self._file.tell() > MOST_IN_MEMORY:
            file = tempfile.TemporaryFile()
            weakref.finalize(self, file.close)
            file.write(self._file.getvalue())
            self._file = file


def encoded(
    rows: pandas.DataFrame | Iterable[Mapping[str, Any]] | Encoder,
    columns: Sequence[str],
    *,
    name: str,
) -> Encoder:
    """Encode a table as CSV; one that is encoded already is returned as it is.

    Raises
    ------
    ValueError, TypeError
        As `Encoder`.
    """
    if isinstance(rows, Encoder):
        return rows
    table = Encoder(columns, name=name)
    given: Any = rows
    if hasattr(given, "to_dict"):
        given = given.to_dict("records")
    table.add(given if isinstance(given, Iterable) else [given])
    return table


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
    if value is None or (isinstance(value, float) and math.isnan(value)) or _is_na(value):
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool | int | str):
        return str(value)
    raise ValueError(f"{where} must hold single numbers or texts, got a {type(value).__name__}")


def _is_na(value: Any) -> bool:
    """Whether a value is the NA or NaT of pandas, which need not have been imported."""
    return type(value).__name__ in ("NAType", "NaTType")
