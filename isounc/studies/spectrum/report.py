"""The report of a run of the spectrum study: tables, figures and sections of the page."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from isounc.runs.figures import Plot
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section, Table
from isounc.runs.study import Report, TableFile
from isounc.runs.tables import rows_of_run, table_of_rows
from isounc.runs.words import cells_run
from isounc.studies.spectrum import figures
from isounc.studies.spectrum.reading import Tables, condition_of, number, reading
from isounc.studies.spectrum.reading_tables import reading_tables
from isounc.studies.spectrum.settings import ALL, Condition, Settings, batches
from isounc.studies.spectrum.tables import (
    EIGENVALUE_COLUMNS,
    RESULT_COLUMNS,
    ROW,
    SUMMARY_COLUMNS,
    VERDICT_COLUMNS,
    Results,
    Row,
    Rows,
    axes_of,
    eigenvalues_of,
    failing,
    passing,
    summarise,
    verdicts,
)
from isounc.studies.spectrum.verdicts import HYPOTHESES


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Make the tables, figures and sections of a run of the spectrum study.

    Rows come from the records or, in a folder without records (such as a committed one), from its
    tables.

    Raises
    ------
    ValueError
        If the run has no results yet, or some that cannot be read.
    """
    rows, eigenvalues = rows_of_run(folder, ROW), eigenvalues_of(folder)
    place = {name: i for i, name in enumerate(settings.problems)}
    rows.sort(key=lambda row: place.get(row["problem"], len(place)))
    results = Results(rows)
    tables = Tables(results, rows, summarise(results), verdicts(results, settings.rank), settings)
    failures, state = failing(rows), _state(tables)
    return Report(
        tables={
            "results.csv": TableFile(RESULT_COLUMNS, rows),
            "eigenvalues.csv": TableFile(EIGENVALUE_COLUMNS, eigenvalues),
            "summary.csv": TableFile(SUMMARY_COLUMNS, tables.summary),
            "verdicts.csv": TableFile(VERDICT_COLUMNS, tables.verdicts),
        },
        plots=_plots(tables, passing(eigenvalues, rows)),
        sections=functools.partial(_sections, tables, state, failures),
        text=state,
        checks={
            "verdicts": {
                f"{row['hypothesis']} at {row['point']} in {row['region']}, {condition_of(row)}":
                row["verdict"]
                for row in tables.verdicts if row["problem"] == ALL
            },
            "failing": len(failures),
        },
        reading=reading(tables),
        reading_tables=reading_tables(tables),
    )  # fmt: skip


def _state(tables: Tables) -> str:
    """Say whether the run has all its cells."""
    names = ("problem", *Condition._fields, "seed")
    done = {tuple(row[name] for name in names) for row in tables.rows}
    return cells_run(len(done), batches(tables.settings))


def _plots(tables: Tables, eigenvalues: Sequence[Row]) -> list[Plot]:
    problems = tables.results.problems
    conditions = tables.results.conditions
    groups = {axis: axes_of(conditions, axis) for axis in ("width", "depth")}
    of_base = [c for c in sorted(conditions) if c._replace(width=tables.base.width) == tables.base]
    rank, intervals = tables.settings.rank, "Bands and bars are 95% intervals over seeds."
    plots = [
        Plot(
            f"spectra-{problem}", "spectra",
            f"Eigenvalues on {problem}: of the GGN and the Hessian at each point, and of the covariance "
            "of the draws beside the Marchenko-Pastur law of as many effective draws of the prior. "
            "Geometric means over the seeds that passed, of positive ones.",
            functools.partial(figures.spectra, eigenvalues, of_base, problem),
        )
        for problem in problems
    ]  # fmt: skip
    for problem in problems:
        plots += [
            Plot(
                f"shares-{problem}", "gradients",
                f"Share of ‖g‖² in the k strongest directions of curvature, {problem}. {intervals}",
                functools.partial(
                    figures.shares, tables.summary, tables.base, tables.settings.ranks, problem
                ),
            ),
            Plot(
                f"ratios-{problem}", "ratios",
                f"Mean and coefficient of variation of gᵀΣg over s²‖g‖², {problem}. {intervals}",
                functools.partial(figures.ratios, tables.summary, groups["width"], problem),
            ),
            Plot(
                f"trends-{problem}", "trends",
                f"What theory says of widths and depths, {problem}. {intervals}",
                functools.partial(figures.trends, tables.summary, groups, problem),
            ),
        ]  # fmt: skip
    titles = {
        "cure": f"‖g‖² without its part in {rank} directions, less ‖g‖²",
        "cure, shrunk": f"‖g‖² without l/(1+l) of its part in {rank} directions, less ‖g‖²",
    }
    for name, words in titles.items():
        title = f"Pearson's r of log10 with the MCMC variance: {words}"
        stem = name.replace(", ", "-")
        draw = functools.partial(figures.correction, tables.verdicts, name, title)
        plots.append(Plot(stem, stem, f"What the correction gains. {title}. {intervals}", draw))
    return plots


def _sections(
    tables: Tables, state: str, failures: Rows, drawn: Sequence[FigureFile]
) -> list[Section]:
    def of_kind(*kinds: str) -> tuple[FigureFile, ...]:
        return tuple(figure for figure in drawn if figure.kind in kinds and figure.paths)

    columns = {name: name for name in ("problem", "condition", "seed", "what", "region", "reasons")}
    return [
        Section("verdicts", "Verdicts over the problems", (state,), (), (verdict_table(tables, ALL),)),
        Section("spectra", "Eigenvalues", (), of_kind("spectra"), ()),
        Section("trends", "Trends in width and depth", (), of_kind("trends"), ()),
        Section("gradients", "Gradients in the spectrum", (), of_kind("gradients", "ratios"), ()),
        Section("cure", "The correction", (), of_kind("cure", "cure-shrunk"), ()),
        Section(
            "problems", "Verdicts problem by problem", (), (),
            tuple(verdict_table(tables, problem) for problem in tables.results.problems),
        ),
        Section(
            "failing", "What failed", (), (), (table_of_rows("Failed checks", columns, failures),)
        ),
    ]  # fmt: skip


def verdict_table(tables: Tables, problem: str) -> Table:
    """Tabulate the verdicts on a problem, or over all of them."""
    lines = [
        (
            row["hypothesis"], HYPOTHESES[row["hypothesis"]].claim, condition_of(row), row["point"],
            "" if row["region"] == ALL else row["region"], row["verdict"], number(row),
            f"{row['bound']:g}", str(row["num_seeds"]),
        )
        for row in tables.verdicts
        if row["problem"] == problem
    ]  # fmt: skip
    return Table(
        f"Verdicts, {'over the problems' if problem == ALL else problem}",
        ("", "hypothesis", "condition", "point", "region", "verdict", "number", "bound", "cells"),
        lines,
        "Numbers, differences of correlations or slopes, with 95% intervals over seeds.",
    )
