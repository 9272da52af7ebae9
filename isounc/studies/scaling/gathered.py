"""The records of a run as a table: rows by column, so that many cells fit into memory.

A row of a record is a mapping of fifty names to numbers and texts, which takes six times the memory
of its numbers. Records are therefore read a few at a time, and of their rows the columns are kept
that figures and tables are made from (`isounc.studies.scaling.stored.TYPES`); all columns go to
`results.csv`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from isounc.runs.csv_tables import Encoder
from isounc.runs.folder import Record
from isounc.studies.scaling.comparisons import RESULT_COLUMNS
from isounc.studies.scaling.stored import TYPES, rows_of, typed_rows

if TYPE_CHECKING:
    import pandas

RECORDS_AT_ONCE = 64
"""Records whose rows are mappings at a time."""


class Gathered(NamedTuple):
    """The records of a run."""

    rows: pandas.DataFrame
    """Their result rows, with the columns and types of `TYPES`."""
    metas: dict[str, dict[str, Any]]
    """The rest of their metas, by name."""
    table: Encoder
    """The table `results.csv`."""


def gather(records: Iterable[Record], where: str) -> Gathered:
    """Gather the rows of records, in their order.

    Raises
    ------
    Unreadable
        Naming the record, or the column and row, whose value is of another kind.
    """
    import pandas as pd

    metas: dict[str, dict[str, Any]] = {}
    table = Encoder(RESULT_COLUMNS, name="results.csv")
    columns = {column: np.empty(0, kind) for column, kind in TYPES.items()}
    texts: dict[str, dict[Any, Any]] = {
        c: {None: math.nan} for c, kind in TYPES.items() if kind is object
    }
    for rows in _in_parts(records, metas):
        values = table.by_column(rows)
        frame = pd.DataFrame({column: list(values[column]) for column in TYPES})
        first = table.num_rows
        typed = typed_rows(frame, where, first=first)
        table.add_columns(values)
        for column in TYPES:
            new = typed[column].to_numpy()
            if column in texts:  # equal texts are one object
                known = texts[column]
                new = np.array([known.setdefault(v, v) for v in new.tolist()], object)
            columns[column] = _filled(columns[column], new, at=first)
    columns = {column: values[: table.num_rows] for column, values in columns.items()}
    return Gathered(pd.DataFrame(columns, copy=False), metas, table)


def _filled(column: np.ndarray, values: np.ndarray, *, at: int) -> np.ndarray:
    """A column with values put in, made longer where it ends; what is never filled takes no memory."""
    end = at + len(values)
    if end > len(column):
        longer = np.empty(max(end, 2 * len(column)), column.dtype)
        longer[:at] = column[:at]
        column = longer
    column[at:end] = values
    return column


def _in_parts(
    records: Iterable[Record], metas: dict[str, dict[str, Any]]
) -> Iterator[list[dict[str, Any]]]:
    """The rows of a few records at a time; what else their metas hold goes to `metas`."""
    rows: list[dict[str, Any]] = []
    for i, record in enumerate(records, 1):
        rows += rows_of(record.meta, f"record {record.name!r}")
        metas[record.name] = {name: v for name, v in record.meta.items() if name != "rows"}
        if i % RECORDS_AT_ONCE == 0:
            yield rows
            rows = []
    if rows:
        yield rows
