"""Evidence: a number of each problem in each condition, as rows of a table.

Where several runs have a problem in a condition, the one with the most of its widths counts, then the
one with the most seeds (`best`): seeds of different runs may be the same data, and are never pooled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scipy.special import stdtrit

from isounc.studies.claims.rules import MIN_SEEDS, Condition, Stratum, stratum
from isounc.studies.claims.sources import Source

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]
ROW_COLUMNS = (
    "claim", *Condition._fields, "problem", "mean", "se", "num_seeds", "num_cells", "num_failed",
    "num_undefined", "widths", "source",
)  # fmt: skip
"""Columns of `results.csv`; mean and se are on the measure's scale."""


def row_of(
    claim: str, where: Condition, problem: str, values: Sequence[float], source: Source
) -> Row:
    """A row, whose mean and error are empty below two seeds."""
    numbers: Row = {"mean": None, "se": None, "num_seeds": len(values)}
    if len(values) >= 2:
        part = stratum(problem, values)
        numbers = {"mean": part.mean, "se": part.se, "num_seeds": part.num_seeds}
    return {"claim": claim, **where._asdict(), "problem": problem, **numbers, "source": source.name}


def row_of_interval(
    claim: str, where: Condition, verdict: Mapping[str, Any], source: Source, prefix: str = ""
) -> Row:
    """A row from a mean with its Student 95% interval over the seeds of one problem."""
    mean, low, high = (verdict[f"{prefix}{part}"] for part in ("mean", "low", "high"))
    n = int(verdict["num_seeds"] or 0)
    row = row_of(claim, where, str(verdict["problem"]), [], source) | {"num_seeds": n}
    if n >= 2 and None not in (mean, low, high):
        if not low <= mean <= high:
            raise ValueError(
                f"verdicts.csv of {source.path} must have a mean between its low and high, got "
                f"{mean:g}, {low:g} and {high:g} for {verdict['problem']}"
            )
        row |= {"mean": mean, "se": (high - low) / 2 / float(stdtrit(n - 1, 0.975))}
    return row


def records(table: pandas.DataFrame) -> list[Row]:
    """Rows with None for empty cells."""
    rows: Any = table.astype(object).where(table.notna(), None).to_dict("records")
    return rows


def best(rows: Iterable[Row]) -> list[Row]:
    """Keep one run for each problem and condition: the most widths win, then seeds, then cells.

    A run of width 32 alone would otherwise stand for "width 32 and above" in some problems, beside
    runs of all these widths in others.
    """
    chosen: dict[tuple, Row] = {}
    for row in rows:
        key = (row["claim"], *(row[name] for name in Condition._fields), row["problem"])
        if key not in chosen or _size(row) > _size(chosen[key]):
            chosen[key] = row
    return list(chosen.values())


def _size(row: Row) -> tuple[bool, int, int, int]:
    widths = len((row.get("widths") or "").split())
    enough = row["mean"] is not None and row["num_seeds"] >= MIN_SEEDS
    return enough, widths, row["num_seeds"], row.get("num_cells") or 0


def conditions(rows: Iterable[Row], claim: str) -> dict[Condition, list[Stratum]]:
    """The strata of a claim by condition."""
    found: dict[Condition, list[Stratum]] = {}
    for row in rows:
        if row["claim"] == claim:
            where = Condition(*(row[name] or "" for name in Condition._fields))
            parts = found.setdefault(where, [])
            if row["mean"] is not None and row["se"] is not None:
                parts.append(Stratum(row["problem"], row["mean"], row["se"], row["num_seeds"]))
    return found
