"""Rows of records, and tables that every report has: the settings of the run and its machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isounc.fields import Field, Unreadable, declared, shortened
from isounc.runs.folder import Record, RunFolder
from isounc.runs.page import FigureFile, Section, Table

if TYPE_CHECKING:
    import pandas


def environment_section(folder: RunFolder, drawn: Sequence[FigureFile]) -> Section:
    """The last section of every page: settings, what computed the run, and what was not drawn."""
    skipped = [f"{figure.name}: {figure.reason}" for figure in drawn if not figure.paths]
    tables = (
        settings_table(folder.settings, "Settings"),
        settings_table(folder.read_info(), "Environment and checks"),
        *([settings_table({"not drawn": skipped}, "Figures")] if skipped else []),
    )
    return Section("settings", "Settings and environment", (), (), tables)


def declared_rows(records: Iterable[Record], table: Mapping[str, Field]) -> list[dict[str, Any]]:
    """The `rows` of all records, each with the fields of the table.

    Raises
    ------
    Unreadable
        If a record has none, or a value in one is not what the table declares.
    """
    found = []
    for record in records:
        rows = record.meta.get("rows")
        where = f"record {record.name!r}"
        if not isinstance(rows, list) or not rows:
            raise Unreadable(f"rows of {where} must be a list of mappings, got {shortened(rows)}")
        found += [declared(row, table, f"row {i} of {where}") for i, row in enumerate(rows)]
    return found


def rows_of_run(folder: RunFolder, fields: Mapping[str, Field]) -> list[dict[str, Any]]:
    """The `rows` of all records of a run or, without records, those of its `results.csv`.

    Raises
    ------
    ValueError
        If the run has no results yet.
    Unreadable
        If a value is not what the fields declare.
    """
    rows = declared_rows(folder.records(with_arrays=False), fields)
    if not rows:
        rows = rows_of_table(folder.results, fields, f"results.csv of {folder.path}")
    if not rows:
        raise ValueError(f"{folder.path} has no record yet; run the command again")
    return rows


def rows_of_table(
    table: pandas.DataFrame, fields: Mapping[str, Field], where: str
) -> list[dict[str, Any]]:
    """The rows of a CSV table, each with the fields declared.

    Raises
    ------
    Unreadable
        If a value is not what the fields declare.
    """
    cells = table.astype(object).where(table.notna(), None).to_dict("records")
    return [
        declared(
            {str(k): v for k, v in row.items() if v is not None}, fields, f"row {i} of {where}"
        )
        for i, row in enumerate(cells)
    ]


def table_of_rows(
    title: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], note: str = ""
) -> Table:
    """Some columns of the rows of a CSV table, as texts.

    Parameters
    ----------
    columns
        Headings by the name of the column.
    """
    texts = [tuple(_plain(row.get(column), ".4g") for column in columns) for row in rows]
    return Table(title, tuple(columns.values()), texts, note)


def settings_table(settings: Mapping[str, Any], title: str) -> Table:
    """Nested settings or facts as names and values."""
    rows = [(name, _plain(value)) for name, value in _flat(settings)]
    return Table(title, ("name", "value"), rows, "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(value: Any, form: str = "g") -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and 1000 <= abs(value) < 1e7 and form != "g":
        return f"{value:.0f}"
    return format(value, form) if isinstance(value, float) else str(value)
