"""The report of a run of the routing study: tables, figures, reading and sections of the page."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from isounc.fields import declared
from isounc.runs import files
from isounc.runs.figures import Plot
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section, Table
from isounc.runs.study import Report, TableFile
from isounc.runs.tables import rows_of_run, rows_of_table
from isounc.runs.words import cells_run, interval, listed, short
from isounc.studies.routing import figures
from isounc.studies.routing.cell import SCORES
from isounc.studies.routing.settings import NETWORKS, Settings, plan
from isounc.studies.routing.tables import (
    ALL,
    CASCADE_COLUMNS,
    CASCADE_ROW,
    HYPOTHESES,
    RESULT_COLUMNS,
    ROW,
    SUMMARY_COLUMNS,
    VERDICT_COLUMNS,
    Results,
    Row,
    Rows,
    summarise,
    verdicts,
)

_BARS = "Bars are 95% intervals over seeds."


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Make the tables, figures and sections of a run of the routing study.

    Raises
    ------
    ValueError
        If the run has no results yet, or some that cannot be read.
    """
    results = Results(rows_of_run(folder, ROW), _cascades(folder))
    decided = verdicts(results)
    done = {(row["problem"], row["cheap_width"], row["seed"]) for row in results.rows}
    state = cells_run(len(done), [batch.cells for group in plan(settings) for batch in group])
    found = reading(results, decided)
    tables = (gain_table(results), cascade_table(results), verdict_table(decided))
    return Report(
        tables={
            "results.csv": TableFile(RESULT_COLUMNS, results.rows),
            "cascades.csv": TableFile(CASCADE_COLUMNS, results.cascades),
            "summary.csv": TableFile(SUMMARY_COLUMNS, summarise(results)),
            "verdicts.csv": TableFile(VERDICT_COLUMNS, decided),
        },
        plots=[
            Plot(
                "gains", "gains", f"Gain of every score. {_BARS}",
                functools.partial(figures.gains, results),
            ),
            Plot(
                "costs", "costs",
                "Cost of the cheapest cascade that keeps a target risk with the stated confidence, as "
                f"a share of the expensive network's; none where no cascade keeps it. {_BARS}",
                functools.partial(figures.costs, results),
            ),
        ],
        sections=functools.partial(_sections, state, found, tables),
        text="\n".join([state, *found]),
        checks={f"{r['hypothesis']}, {r['score']}": r["verdict"] for r in decided if r["problem"] == ALL},
        reading=found,
        reading_tables=tables,
    )  # fmt: skip


def _cascades(folder: RunFolder) -> Rows:
    """Rows of `cascades.csv`: from the records, or as they were published."""
    rows = [
        declared(row, CASCADE_ROW, f"cascade {i} of record {record.name!r}")
        for record in folder.records(with_arrays=False)
        for i, row in enumerate(record.meta.get("cascades", []))
    ]
    if not rows and files.table_path(folder.path, "cascades.csv"):
        table = folder.read_table("cascades.csv")
        rows = rows_of_table(table, CASCADE_ROW, f"cascades.csv of {folder.path}")
    return rows


def _sections(
    state: str, found: Sequence[str], tables: Sequence[Table], drawn: Sequence[FigureFile]
) -> list[Section]:
    def of(kind: str) -> tuple[FigureFile, ...]:
        return tuple(figure for figure in drawn if figure.kind == kind and figure.paths)

    gains, cascades, decided = tables
    return [
        Section("reading", "What the run shows", (state, *found), of("gains"), (gains,)),
        Section("cascades", "Cascades with a promise", (), of("costs"), (cascades,)),
        Section("verdicts", "Verdicts", (), (), (decided,)),
    ]


def reading(results: Results, decided: Sequence[Row]) -> list[str]:
    """Sentences that say what the tables show."""
    failed = sorted({r["seed"] for r in results.rows if r["gate"] == "fail"})
    risks = []
    for place in results.places:
        cheap, risk = (
            results.over(place, "p", name).interval.mean for name in ("cheap_risk", "risk")
        )
        if cheap is not None and risk is not None:
            risks.append(f"{place[0]} (cheap width {place[1]}) {short(cheap)} and {short(risk)}")
    found = []
    if risks:
        kind = NETWORKS[results.networks]
        found.append(f"Shares of wrong answers, cheap and expensive {kind}: {listed(risks)}.")
    if failed:
        found.append(f"Networks of seeds {listed(map(str, failed))} failed their check somewhere.")
    over_all = [row for row in decided if row["problem"] == ALL]
    for name, hypothesis in HYPOTHESES.items():
        parts = [
            f"{SCORES[row['score']]} {row['verdict']} ({interval(row)})"
            for row in over_all
            if row["hypothesis"] == name
        ]
        if parts:
            at = f" at target {results.target:g}" if hypothesis.is_certified else ""
            found.append(f"“{name}” ({hypothesis.claim}){at}: {'; '.join(parts)}.")
    broken = [
        row["excess"] > 0 for row in results.cascades
        if row["found"] and row["gate"] == "pass" and row["excess"] is not None
    ]  # fmt: skip
    if broken:
        found.append(
            f"Of {len(broken)} cascades {sum(broken)} have a test risk above their target; test rows are "
            "few, so that more do than break their promise."
        )
    return found


def gain_table(results: Results) -> Table:
    """Tabulate gains and AUROC of every score at every place."""
    lines = []
    for place in results.places:
        for score in results.scores:
            gain, auroc, cheap, seconds = (
                results.over(place, score, name).interval
                for name in ("gain", "auroc", "cheap_microseconds", "microseconds")
            )
            lines.append((
                place[0], str(place[1]), SCORES[score], interval(gain._asdict()),
                short(auroc.mean), _micro(cheap.mean), _micro(seconds.mean),
            ))  # fmt: skip
    return Table(
        "Gains",
        (
            "problem", "cheap width", "score", "gain", "AUROC", "cheap answer and score, µs",
            "expensive answer, µs",
        ),
        lines,
        "Gain 0 is passing on at random, 1 an oracle; with 95% intervals over seeds. Microseconds are "
        "of a question in a batch of 1000.",
    )  # fmt: skip


def cascade_table(results: Results) -> Table:
    """Tabulate the certified cascades by target."""
    lines = []
    for place in results.places:
        for score in results.scores:
            for target in results.targets:
                share = results.over(place, score, "found", target=target).interval.mean
                if not share:
                    continue
                passed, cost, risk = (
                    results.over(place, score, name, target=target).interval.mean
                    for name in ("passed_on", "cost_share", "cascade_risk")
                )
                lines.append((
                    place[0], str(place[1]), SCORES[score], f"{target:g}", f"{share:.0%}",
                    short(passed), short(cost), short(risk),
                ))  # fmt: skip
    return Table(
        "Cascades",
        (
            "problem", "cheap width", "score", "target risk", "cells with a cascade", "passed on",
            "cost / expensive", "risk on test rows",
        ),
        lines,
        "Means over the seeds that have a cascade.",
    )  # fmt: skip


def verdict_table(decided: Sequence[Row]) -> Table:
    """Tabulate the verdicts."""
    lines = [
        (
            row["hypothesis"], row["problem"], str(row["cheap_width"] or "-"), SCORES[row["score"]],
            row["verdict"], interval(row), str(row["num_seeds"]),
        )
        for row in decided
    ]  # fmt: skip
    claims = "; ".join(f"{name}: {h.claim}" for name, h in HYPOTHESES.items())
    return Table(
        "Verdicts",
        ("hypothesis", "problem", "cheap width", "score", "verdict", "number", "cells"),
        lines,
        f"{claims[0].upper()}{claims[1:]}.",
    )


def _micro(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
