"""The report of a run of the confirmation study: tables, figures and sections of the page."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from isounc.runs.figures import Plot
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section, Table
from isounc.runs.study import Report, TableFile
from isounc.runs.tables import rows_of_run
from isounc.runs.words import cells_run, interval, ratio_interval, short
from isounc.studies.confirmation import figures
from isounc.studies.confirmation.reading import Tables, reading
from isounc.studies.confirmation.reading_tables import means_table, reading_tables
from isounc.studies.confirmation.settings import ALL, BASE, Condition, Settings, batches
from isounc.studies.confirmation.tables import (
    DIFFERENCE_COLUMNS,
    RESULT_COLUMNS,
    ROW,
    STATISTICS,
    SUMMARY_COLUMNS,
    VERDICT_COLUMNS,
    Results,
    Row,
    Rows,
    differences,
    failing,
    summarise,
    verdicts,
)
from isounc.studies.confirmation.verdicts import HYPOTHESES
from isounc.studies.confirmation.words import condition_name, estimate_name


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Make the tables, figures and sections of a run of the confirmation study.

    Rows come from the records or, in a folder without records (such as a committed one), from its
    `results.csv`.

    Raises
    ------
    ValueError
        If the run has no results yet, or some that cannot be read.
    """
    rows = rows_of_run(folder, ROW)
    place = {name: i for i, name in enumerate(settings.problems)}
    rows.sort(key=lambda row: place.get(row["problem"], len(place)))
    results = Results(rows)
    tables = Tables(results, rows, summarise(results), differences(results), verdicts(results))
    failures = failing(rows)
    state = _state(rows, settings)
    return Report(
        tables={
            "results.csv": TableFile(RESULT_COLUMNS, rows),
            "summary.csv": TableFile(SUMMARY_COLUMNS, tables.summary),
            "differences.csv": TableFile(DIFFERENCE_COLUMNS, tables.differences),
            "verdicts.csv": TableFile(VERDICT_COLUMNS, tables.verdicts),
        },
        plots=_plots(tables),
        sections=functools.partial(_sections, tables, state, failures),
        text=state,
        checks={
            "verdicts": {
                f"{row['hypothesis']} in {row['region']} by {row['statistic']}": row["verdict"]
                for row in tables.verdicts
                if (row["problem"], row["factor"]) == (ALL, BASE)
            },
            "failing": failures,
        },
        reading=reading(tables),
        reading_tables=reading_tables(tables),
    )


def _state(rows: Sequence[Row], settings: Settings) -> str:
    """Say whether the run has all its cells."""
    shared = ("reference", "point")
    done = {(r["problem"], r["factor"], r["value"], r["seed"]) for r in rows}
    done = {cell for cell in done if cell[1] not in shared}
    return cells_run(len(done), batches(settings))


def _plots(tables: Tables) -> list[Plot]:
    intervals = "Bars are 95% intervals over seeds; right of zero logit-scaled is ahead."
    plots = []
    for statistic, called in figures.NAMES.items():
        end = "" if statistic == STATISTICS[0] else f"-{statistic}"
        what = f"{called} with the MCMC variance, of logit-scaled less that of each rival"
        plots += [
            Plot(
                f"differences-by-condition{end}", f"conditions{end}",
                f"{what}: mean over the problems with a link, under each condition. {intervals}",
                functools.partial(figures.by_condition, tables.differences, statistic),
            ),
            Plot(
                f"differences-by-problem{end}", f"problems{end}",
                f"{what}, problem by problem at the base, of those with a link. {intervals}",
                functools.partial(
                    figures.by_problem, tables.differences, tables.results.linked, statistic
                ),
            ),
        ]  # fmt: skip
    return [
        *plots,
        Plot(
            "levels-by-condition", "levels",
            "Sum of the estimated variances over the sum of the MCMC variances, geometric mean over "
            "the problems with a link. Bars are 95% intervals over seeds.",
            functools.partial(figures.levels, tables.summary),
        ),
    ]  # fmt: skip


def _sections(
    tables: Tables, state: str, failures: Rows, drawn: Sequence[FigureFile]
) -> list[Section]:
    def of_kind(kind: str) -> tuple[FigureFile, ...]:
        return tuple(figure for figure in drawn if figure.kind == kind and figure.paths)

    regions = tables.results.regions
    return [
        Section("summary", "Verdicts at the base", (state,), (),
                (base_table(tables), means_table(tables))),
        Section(
            "conditions", "Condition by condition", (), (*of_kind("conditions"), *of_kind("conditions-spearman")),
            tuple(
                condition_table(tables, region, by_rank=by_rank)
                for by_rank in (False, True) for region in regions
            ),
        ),
        Section(
            "problems", "Problem by problem, at the base", (), (*of_kind("problems"), *of_kind("problems-spearman")),
            tuple(problem_table(tables, region) for region in regions),
        ),
        Section("levels", "Levels", (), of_kind("levels"), (level_table(tables),)),
        Section("failing", "Cells that failed", (), (), (_failing_table(failures),)),
    ]  # fmt: skip


def base_table(tables: Tables) -> Table:
    """Tabulate the verdicts over the problems at the base."""
    lines = [
        (
            row["hypothesis"], HYPOTHESES[row["hypothesis"]].claim, row["region"],
            row["statistic"], row["verdict"], _verdict_number(row), str(row["num_problems"]), str(row["num_seeds"]),
        )
        for row in tables.verdicts
        if (row["problem"], row["factor"]) == (ALL, BASE)
    ]  # fmt: skip
    return Table(
        "Verdicts over the problems, at the base",
        ("", "hypothesis", "region", "by", "verdict", "number", "problems", "cells"),
        lines,
        "Differences of correlations, or factors of the level, with 95% intervals over seeds. The "
        "protocol's verdict on an order is that by Pearson's r; the same rule for Spearman's stands "
        "beside it.",
    )


def condition_table(tables: Tables, region: str, *, by_rank: bool = False) -> Table:
    """Tabulate the verdicts over the problems under each condition."""
    names = [name for name, h in HYPOTHESES.items() if h.rival or not by_rank]
    lines = []
    for condition in tables.results.conditions:
        where = {"problem": ALL, **condition._asdict(), "region": region, "by_rank": by_rank}
        found = [tables.verdict(hypothesis=name, **where) for name in names]
        if any(row is not None for row in found):
            cells = max(row["num_seeds"] for row in found if row is not None)
            texts = [_cell(row) for row in found]
            lines.append((condition_name(condition), str(cells), *texts))
    called = figures.NAMES[STATISTICS[by_rank]]
    note = f"c confirmed, r refuted, u undecided; differences of {called}."
    if not by_rank:
        note += " H4: factor by which the level is off; H4, unit: level."
    return Table(
        f"Verdicts over the problems by {called}, region {region}",
        ("condition", "cells", *names),
        lines,
        note,
    )


def problem_table(tables: Tables, region: str) -> Table:
    """Tabulate mean correlations of every estimate at the base, and the verdicts, by problem."""
    lines = []
    for problem in [ALL, *tables.results.problems]:
        where = {"problem": problem, "factor": BASE, "value": "", "region": region}
        found = [tables.line(estimate=name, **where) for name in tables.results.estimates]
        means = [short(line["pearson_mean"]) if line else "-" for line in found]
        said = [_cell(tables.verdict(hypothesis=name, **where)) for name in HYPOTHESES]
        lines.append((problem, *means, *said))
    return Table(
        f"Pearson's r with the MCMC variance, and verdicts, region {region}",
        ("problem", *map(estimate_name, tables.results.estimates), *HYPOTHESES),
        lines,
        "Means over the seeds that passed. all: over the problems with a link.",
    )


def level_table(tables: Tables) -> Table:
    """Tabulate the levels of both scales on test, by problem and condition."""
    lines = []
    for line in tables.summary:
        if line["estimate"] == "logit_scaled" and line["region"] == "test":
            where = {name: line[name] for name in ("problem", "factor", "value", "region")}
            other = tables.line(estimate="logit_scaled_level", **where)
            lines.append((
                line["problem"], condition_name(Condition(line["factor"], line["value"])),
                str(line["num_cells"] - line["num_failed"]), ratio_interval(line),
                ratio_interval(other) if other else "-",
            ))  # fmt: skip
    return Table(
        "Sum of the estimate over the sum of the MCMC variance, region test",
        ("problem", "condition", "cells", "scale unit", "scale effective_dimension"),
        lines,
        "Geometric means with 95% intervals over seeds.",
    )


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{row['verdict'][0]} {_verdict_number(row)}"


def _verdict_number(row: Row) -> str:
    hypothesis = HYPOTHESES[row["hypothesis"]]
    return interval(row) if hypothesis.rival else ratio_interval(row, "")


def _failing_table(failures: Rows) -> Table:
    lines = [
        (
            r["problem"], condition_name(Condition(r["factor"], r["value"])), str(r["seed"]),
            r["regions"] or "all", r["reasons"],
        )
        for r in failures
    ]  # fmt: skip
    head = ("problem", "condition", "seed", "regions", "reasons")
    return Table("Failed checks", head, lines, "")
