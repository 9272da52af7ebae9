"""Small tables below the sentences of a reading, with the regions side by side."""

from __future__ import annotations

from isounc.runs.page import Table
from isounc.runs.words import ratio, short, signed
from isounc.studies.confirmation import figures
from isounc.studies.confirmation.reading import Tables
from isounc.studies.confirmation.settings import ALL, BASE
from isounc.studies.confirmation.tables import STATISTICS, Row
from isounc.studies.confirmation.verdicts import HYPOTHESES
from isounc.studies.confirmation.words import condition_name, estimate_name

_MARKS = {"confirmed": " ✓", "refuted": " ✗"}


def reading_tables(tables: Tables) -> tuple[Table, ...]:
    """Tabulate mean correlations at the base, and each hypothesis under each condition."""
    return (
        means_table(tables),
        *(conditions_table(tables, by_rank=by_rank) for by_rank in (False, True)),
    )


def means_table(tables: Tables) -> Table:
    """Tabulate mean correlations of each estimate at the base."""
    regions = tables.results.regions
    where = {"problem": ALL, "factor": BASE, "value": ""}
    lines = []
    for name in tables.results.estimates:
        found = [tables.line(estimate=name, region=region, **where) for region in regions]
        if all(line is not None for line in found):
            numbers = (
                " ".join(short(line[f"{statistic}_mean"]) for line in found if line)
                for statistic in STATISTICS
            )
            lines.append((estimate_name(name), *numbers))
    return Table(
        "Correlations with the MCMC variance at the base",
        ("estimate", *(f"{figures.NAMES[name]}: {' '.join(regions)}" for name in STATISTICS)),
        lines,
        "Means over the problems with a link.",
    )


def conditions_table(tables: Tables, *, by_rank: bool) -> Table:
    """Tabulate the number of each hypothesis under each condition, by Pearson's r or by rank."""
    regions = tables.results.regions
    names = [name for name, h in HYPOTHESES.items() if h.rival or not by_rank]
    lines = []
    for condition in tables.results.conditions:
        where = {"problem": ALL, **condition._asdict(), "by_rank": by_rank}
        found = {
            name: [tables.verdict(hypothesis=name, region=region, **where) for region in regions]
            for name in names
        }
        known = [row for rows in found.values() for row in rows if row is not None]
        if known:
            cells = max(row["num_seeds"] for row in known)
            problems = max(row["num_problems"] for row in known)
            numbers = (" ".join(_marked(name, row) for row in rows) for name, rows in found.items())
            lines.append((condition_name(condition), str(problems), str(cells), *numbers))
    note = f"The regions are {', '.join(regions)}, in this order; ✓ is confirmed, ✗ is refuted."
    if not by_rank:
        note += " H4 is the factor by which the level is off, and H4, unit the level."
    return Table(
        f"Each hypothesis under each condition, by {figures.NAMES[STATISTICS[by_rank]]}",
        ("condition", "problems", "cells", *names),
        lines,
        f"H1 to H3 are differences of correlations over the problems with a link. {note}",
    )


def _marked(name: str, row: Row | None) -> str:
    if row is None or row["mean"] is None:
        return "-"
    text = signed(row["mean"]) if HYPOTHESES[name].rival else f"{ratio(row['mean'])}×"
    return text + _MARKS.get(row["verdict"], "")
