"""Small tables below the sentences of a reading, with the regions side by side."""

from __future__ import annotations

from isounc.runs.page import Table
from isounc.studies.spectrum.reading import Tables, condition_of
from isounc.studies.spectrum.settings import ALL, POINTS, POSTERIOR
from isounc.studies.spectrum.tables import Row
from isounc.studies.spectrum.verdicts import HYPOTHESES

_MARKS = {"confirmed": " ✓", "refuted": " ✗"}


def reading_tables(tables: Tables) -> tuple[Table, ...]:
    """Tabulate the verdicts over the problems at every point, and those on the posterior."""
    found = (_verdicts(tables, point) for point in (*POINTS, POSTERIOR))
    return tuple(table for table in found if table.rows)


def _verdicts(tables: Tables, point: str) -> Table:
    rows = [row for row in tables.verdicts if row["problem"] == ALL and row["point"] == point]
    conditions = list(dict.fromkeys(condition_of(row) for row in rows))
    names = [name for name in HYPOTHESES if any(row["hypothesis"] == name for row in rows)]
    regions = [r for r in dict.fromkeys(row["region"] for row in rows) if r != ALL]
    lines = []
    for condition in conditions:
        cells = []
        for name in names:
            mine = {
                row["region"]: _said(row)
                for row in rows
                if row["hypothesis"] == name and condition_of(row) == condition
            }
            # Each region in its place, where one may have none.
            there = [HYPOTHESES[name].region] if HYPOTHESES[name].region else regions
            cells.append(" ".join(mine.get(region, "-") for region in there) if mine else "-")
        lines.append((condition, *cells))
    claims = "; ".join(f"{name}: {HYPOTHESES[name].claim}" for name in names)
    where = f"The regions are {', '.join(regions)}, in this order. " if regions else ""
    where_at = f", at {POINTS[point]}" if point in POINTS else " on the posterior as a whole"
    return Table(
        f"Verdicts over the problems{where_at}",
        ("condition", *names),
        lines,
        f"Means over the problems; of what grows, the change per doubling or layer, with what is held "
        f"fixed in the first column; ✓ is confirmed, ✗ is refuted. {where}"
        f"{claims[:1].upper()}{claims[1:]}.",
    )


def _said(row: Row) -> str:
    if row["mean"] is None:
        return "undefined"
    return f"{row['mean']:.2g}{_MARKS.get(row['verdict'], '')}"
