"""The report of the claims: tables, a figure for each claim, sections of the page, a reading."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from isounc.fields import declared
from isounc.runs import files
from isounc.runs.figures import Plot
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section, Table, table_markdown
from isounc.runs.study import Report, TableFile
from isounc.runs.tables import rows_of_table
from isounc.studies.claims.evidence import ROW_COLUMNS, Row
from isounc.studies.claims.figures import forest
from isounc.studies.claims.gather import gather
from isounc.studies.claims.measures import MEASURES
from isounc.studies.claims.pages import write_table
from isounc.studies.claims.rules import (
    LEVEL,
    NAMED_LEVEL,
    Condition,
    Stratum,
    from_scale,
    interval_of,
)
from isounc.studies.claims.settings import Settings, find_sources
from isounc.studies.claims.statements import NARROW, WIDE
from isounc.studies.claims.tables import (
    NOTE,
    NOTE_COLUMNS,
    ROW,
    SUMMARY_COLUMNS,
    VERDICT_COLUMNS,
    Settled,
    alone,
    bound_text,
    number_text,
    numbers,
    place,
    settle,
    sources_text,
    summary_rows,
    verdict_rows,
    verdict_table,
    where,
    words,
)

RULE = (
    f"Supported: every condition has a one-sided p of at most {LEVEL:g}, and none is missing. "
    "Supported under conditions: some have, corrected for their number (Holm), at most "
    f"{NAMED_LEVEL:g}. Contradicted: none has, and some have as much evidence against the claim. "
    "Intervals are 95%; verdicts ask for more."
)
"""The rule of `isounc.studies.claims.rules` in short."""


def prepare(settings: Settings, folder: RunFolder) -> None:
    """Gather the evidence into the tables of the run folder, and write the pages."""
    rows, notes = gather(find_sources(settings), settings.claims)
    folder.write_table("results.csv", rows, ROW_COLUMNS)
    folder.write_table("notes.csv", notes, NOTE_COLUMNS)
    for page in settings.pages:
        write_table(page, front_page(verdict_rows(_settled(folder, settings))))


def front_page(verdicts: Iterable[Mapping[str, Any]]) -> str:
    """The table of verdicts as Markdown, from rows of `verdicts.csv`."""
    return "\n\n".join(table_markdown(verdict_table(verdicts)))


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Make the tables, figures and sections from the evidence in the run folder.

    Raises
    ------
    ValueError
        If there is none, or one that cannot be read.
    """
    settled = _settled(folder, settings)
    verdicts = verdict_rows(settled)
    tables = {
        "results.csv": TableFile(ROW_COLUMNS, [row for s in settled for row in s.rows]),
        "summary.csv": TableFile(SUMMARY_COLUMNS, summary_rows(settled)),
        "verdicts.csv": TableFile(VERDICT_COLUMNS, verdicts),
    }
    return Report(
        tables=tables,
        plots=[
            Plot(f"claim-{s.key}", s.key, caption(s), functools.partial(forest, s))
            for s in settled
        ],
        sections=functools.partial(_sections, settled, verdicts),
        text=_text(settled),
        checks={s.key: s.verdict for s in settled},
        reading=[sentence(s) for s in settled],
        reading_tables=[
            verdict_table(verdicts)._replace(note=RULE), protocol_table(settled)
        ],
    )  # fmt: skip


def _settled(folder: RunFolder, settings: Settings) -> list[Settled]:
    if files.table_path(folder.path, "results.csv") is None:
        raise ValueError(f"{folder.path} has no results.csv yet; run isounc claims again")
    rows = rows_of_table(folder.results, ROW, f"results.csv of {folder.path}")
    table = folder.read_table("notes.csv")
    notes = [
        declared(note, NOTE, f"notes.csv of {folder.path}") for note in table.to_dict("records")
    ]
    return settle(rows, notes, settings.claims)


def caption(settled: Settled) -> str:
    """What the figure of a claim shows."""
    return (
        f"{settled.claim.title}: {words(settled)}. Means over the problems with 95% intervals over "
        "seeds (their number in brackets); the black line is the bound."
    )


def sentence(settled: Settled) -> str:
    """A paragraph about a claim: what is said, the verdict, numbers, conditions, and how to repeat it."""
    claim = settled.claim
    parts = [f"{settled.key}. {claim.title}: {words(settled)}. Claimed: {claim.sentence}"]
    if settled.counted:
        parts.append(f"Measured: {numbers(settled)}.")
        if said := where(settled):
            parts.append(f"{said}.")
        yes, no = alone(settled)
        parts.append(
            f"Of {len(settled.counted)} conditions {yes} have a 95% interval on the claimed side of "
            f"the bound and {no} on the other, which alone decides nothing."
        )
    beside = [f for f in settled.of_state("beside") if f.mean is not None]
    if beside:
        parts.append(f"Beside it, which decides nothing: {numbers(settled, beside)}.")
    if bands := _widths(settled):
        parts.append(f"Widths: {bands}.")
    cells, failed, undefined = (
        sum(row.get(name) or 0 for row in settled.rows)
        for name in ("num_cells", "num_failed", "num_undefined")
    )
    if failed or undefined:
        parts.append(
            f"Of {cells + failed + undefined} numbers (one for each cell, point, region and measure) "
            f"{failed} were left out for a failed gate or check and {undefined} as undefined."
        )
    if settled.notes:
        parts.append(f"Not used: {'; '.join(settled.notes)}.")
    parts.append(f"From {sources_text(settled)}; {claim.command}.")
    return " ".join(parts)


def _widths(settled: Settled) -> str:
    """The widths behind each band of widths, with the number of problems that have each set."""
    parts = []
    for band in (NARROW, WIDE):
        problems: dict[str, set[str]] = {}
        for row in settled.rows:
            if row["setting"] == band and row.get("widths"):
                problems.setdefault(row["widths"], set()).add(row["problem"])
        sets = [
            f"{widths} ({len(own)} problem{'s' * (len(own) != 1)})"
            for widths, own in problems.items()
        ]
        if sets:
            parts.append(f"{band}: {', '.join(sets)}")
    return "; ".join(parts)


def _text(settled: Sequence[Settled]) -> str:
    width = max(len(s.claim.title) for s in settled)
    lines = [f"{s.key:>3}  {s.claim.title:<{width}}  {words(s)}" for s in settled]
    return "\n".join([*lines, "", RULE])


def protocol_table(settled: Sequence[Settled]) -> Table:
    """Tabulate how each claim is measured, and why its bounds are where they are."""
    rows = [
        (s.key, s.claim.sentence, s.claim.protocol, " ".join(map(_bound, s.claim.measures)),
         s.claim.command)
        for s in settled
    ]  # fmt: skip
    headings = ("", "what is claimed, in our words", "protocol", "asked for", "evidence comes from")
    return Table("Protocols", headings, rows, "")


def _bound(name: str) -> str:
    measure = MEASURES[name]
    shown = "" if measure.counted else " Shown beside, decides nothing."
    return f"{measure.label}: {bound_text(measure)}, as {measure.why}.{shown}"


def _sections(
    settled: Sequence[Settled], verdicts: Sequence[Row], drawn: Sequence[FigureFile]
) -> list[Section]:
    table = verdict_table(verdicts, whole=True)._replace(note=RULE)
    sections = [Section("verdicts", "Verdicts", (), (), (table,))]
    for s in settled:
        figures = tuple(f for f in drawn if f.kind == s.key and f.paths)
        text = (
            f"Claimed: {s.claim.sentence}",
            f"Protocol. {s.claim.protocol}",
            *map(_bound, s.claim.measures),
            f"Verdict: {words(s)}.{f' {where(s)}.' if where(s) else ''}",
            *(f"Not used: {note}." for note in s.notes),
            f"From {sources_text(s)}. To repeat it: {s.claim.command}, then isounc claims.",
        )
        tables = (_findings_table(s), _problems_table(s)) if s.findings else ()
        sections.append(
            Section(f"claim-{s.key}", f"{s.key}. {s.claim.title}", text, figures, tables)
        )
    return sections


def _findings_table(settled: Settled) -> Table:
    lines: list[tuple[str, ...]] = []
    by_condition: dict[tuple, list[Row]] = {}
    for row in settled.rows:
        key = tuple(row[name] or "" for name in ("measure", "point", "region", "setting"))
        by_condition.setdefault(key, []).append(row)
    for f in settled.findings:
        own = by_condition.get(tuple(f.condition), [])
        left = sum((row.get("num_failed") or 0) + (row.get("num_undefined") or 0) for row in own)
        lines.append((
            f.condition.measure, place(f.condition), f.state, number_text(f), str(f.num_problems),
            str(f.num_seeds), str(left), "-" if f.p_for is None else f"{f.p_for:.2g}",
            "-" if f.p_against is None else f"{f.p_against:.2g}",
            ", ".join(f.exceptions) or "-", f.why or "-",
        ))  # fmt: skip
    return Table(
        "Conditions",
        (
            "measure", "condition", "state", "mean [95% interval]", "problems", "seeds",
            "cells left out", "p for", "p against", "problems that differ", "note",
        ),
        lines,
        "p-values are one-sided and not corrected.",
    )  # fmt: skip


def _problems_table(settled: Settled) -> Table:
    """Tabulate the evidence, problem by problem."""
    order = [finding.condition for finding in settled.findings]
    found = [(Condition(*(row[n] or "" for n in Condition._fields)), row) for row in settled.rows]
    lines: list[tuple[str, ...]] = []
    for condition, row in sorted(found, key=lambda pair: order.index(pair[0])):
        scale = MEASURES[condition.measure].scale
        number = "-"
        if row["mean"] is not None and row["se"] is not None:
            part = Stratum(row["problem"], row["mean"], row["se"], row["num_seeds"])
            ends = (part.mean, *interval_of(part))
            number = "{:.2f} [{:.2f}, {:.2f}]".format(*(from_scale(end, scale) for end in ends))
        counts = (row.get(name) or 0 for name in ("num_seeds", "num_failed", "num_undefined"))
        lines.append((
            condition.measure, place(condition), row["problem"], number, *map(str, counts), row["source"],
        ))  # fmt: skip
    headings = (
        "measure", "condition", "problem", "mean [95% interval]", "seeds", "failed", "undefined",
        "run",
    )  # fmt: skip
    return Table("Problem by problem", headings, lines, "")
