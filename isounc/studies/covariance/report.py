"""The report of a run of the covariance study: tables, figures and sections of the page."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from matplotlib.figure import Figure

from isounc.runs.figures import Plot
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section, Table
from isounc.runs.study import Report, TableFile
from isounc.runs.tables import rows_of_run
from isounc.runs.words import cells_run, interval, ratio_interval, short
from isounc.studies.covariance import figures
from isounc.studies.covariance.cell import PRIOR
from isounc.studies.covariance.figures import proxy_name
from isounc.studies.covariance.reading import Tables, reading
from isounc.studies.covariance.reading_tables import reading_tables
from isounc.studies.covariance.settings import ALL, POINTS, Cell, Settings, batches
from isounc.studies.covariance.tables import (
    OTHERS,
    RESULT_COLUMNS,
    ROW,
    SUMMARY_COLUMNS,
    VERDICT_COLUMNS,
    Results,
    Row,
    Rows,
    failing,
    summarise,
    verdicts,
)
from isounc.studies.covariance.verdicts import CORRELATIONS, EVERY_PROXY, HYPOTHESES

NUM_MAPS = 2
"""Seeds of a cell of which maps are drawn."""


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Make the tables, figures and sections of a run of the covariance study.

    Rows come from the records or, in a folder without records (such as a committed one), from its
    `results.csv`; maps need the records.

    Raises
    ------
    ValueError
        If the run has no results yet, or some that cannot be read.
    """
    rows = rows_of_run(folder, ROW)
    place = {name: i for i, name in enumerate(settings.problems)}
    rows.sort(key=lambda row: (row["width"], place.get(row["problem"], len(place))))
    results = Results(rows)
    tables = Tables(results, rows, summarise(results), verdicts(results))
    failures, state = failing(rows), _state(rows, settings)
    return Report(
        tables={
            "results.csv": TableFile(RESULT_COLUMNS, rows),
            "summary.csv": TableFile(SUMMARY_COLUMNS, tables.summary),
            "verdicts.csv": TableFile(VERDICT_COLUMNS, tables.verdicts),
        },
        plots=_plots(folder, results, sorted({row["seed"] for row in rows})),
        sections=functools.partial(_sections, tables, state, failures),
        text=state,
        checks={
            "verdicts": {
                f"{row['hypothesis']}, {row['point']}, width {row['width']}, {row['region']}, by "
                f"{row['statistic']}": row["verdict"]
                for row in tables.verdicts
                if row["problem"] == ALL and row["proxy"] in (OTHERS, "train")
            },
            "failing": failures,
        },
        reading=reading(tables),
        reading_tables=reading_tables(tables),
    )


def _state(rows: Sequence[Row], settings: Settings) -> str:
    """Say whether the run has all its cells."""
    done = {(row["problem"], row["width"], row["seed"]) for row in rows}
    return cells_run(len(done), batches(settings))


def _plots(folder: RunFolder, results: Results, seeds: Sequence[int]) -> list[Plot]:
    bars = "Mean over the problems; bars and bands are 95% intervals over seeds."
    plots = []
    for point in results.points:
        plots += [
            Plot(
                f"widths-{point}", "widths",
                f"Correlation with the MCMC variance against width, at {POINTS[point]}. {bars}",
                functools.partial(figures.by_width, results, point),
            )
        ]  # fmt: skip
        for width in results.widths[::-1]:
            where = f"width {width}, at {POINTS[point]}"
            for statistic, called in figures.NAMES.items():
                end = "" if statistic == CORRELATIONS[0] else f"-{statistic}"
                plots.append(
                    Plot(
                        f"proxies-{point}-w{width}{end}", f"proxies-{point}{end}",
                        f"{called} with the MCMC variance by proxy and form, {where}. {bars}",
                        functools.partial(figures.by_proxy, results, width, point, statistic),
                    )
                )  # fmt: skip
            plots += [
                Plot(
                    f"lambda-{point}-w{width}", f"lambda-{point}",
                    f"Correlation of the full form against λ, {where}. {bars}",
                    functools.partial(figures.by_lam, results, width, point),
                ),
                Plot(
                    f"slopes-{point}-w{width}", f"slopes-{point}",
                    f"Slopes of the log error on the distances to the proxy inputs and to the "
                    f"training inputs, {where}. {bars}",
                    functools.partial(figures.slopes, results, width, point),
                ),
            ]  # fmt: skip
            for problem in results.problems:
                plots.append(
                    Plot(
                        f"maps-{point}-{problem}-w{width}", f"maps-{point}",
                        f"Where gᵀΣg errs on {problem}, {where}: two seeds, each map less its "
                        "median. Dots are training inputs, crosses proxy inputs.",
                        functools.partial(_maps, folder, problem, width, point, seeds),
                    )
                )  # fmt: skip
    return plots


def _maps(folder: RunFolder, problem: str, width: int, point: str, seeds: Sequence[int]) -> Figure:
    cells = (Cell(problem, width, seed).name for seed in seeds)
    records = (record for record in map(folder.read, cells) if record is not None)
    return figures.maps(list(itertools.islice(records, NUM_MAPS)), point)


def _sections(
    tables: Tables, state: str, failures: Rows, drawn: Sequence[FigureFile]
) -> list[Section]:
    def of(*kinds: str) -> tuple[FigureFile, ...]:
        return tuple(
            figure for kind in kinds for figure in drawn if figure.kind == kind and figure.paths
        )

    regions = [region for region in tables.results.regions if region != ALL]
    points = tables.results.points
    return [
        Section("summary", "Verdicts", (state,), of("widths"), (verdict_table(tables),)),
        *[
            Section(
                f"proxies-{point}", f"Proxy by proxy, at {POINTS[point]}", (),
                of(f"proxies-{point}", f"proxies-{point}-spearman"),
                tuple(proxy_table(tables, point, region) for region in regions),
            )
            for point in points
        ],
        Section(
            "lambda", "λ", (), of(*(f"lambda-{point}" for point in points)), ()
        ),
        Section(
            "structure", "Structure of the error", (),
            of(*(f"{kind}-{point}" for point in points for kind in ("slopes", "maps"))),
            (structure_table(tables),),
        ),
        Section("failing", "Cells that failed", (), (), (_failing_table(failures),)),
    ]  # fmt: skip


def verdict_table(tables: Tables) -> Table:
    """Tabulate the verdicts over the problems, for the mean of the other data."""
    lines = [
        (
            row["hypothesis"], row["point"], str(row["width"]), row["region"], row["statistic"],
            row["verdict"], interval(row), str(row["num_problems"]), str(row["num_seeds"]),
        )
        for row in tables.verdicts
        if row["problem"] == ALL
        and row["proxy"] == ("train" if row["hypothesis"] == EVERY_PROXY else OTHERS)
    ]  # fmt: skip
    claims = "; ".join(f"{name}: {hypothesis.claim}" for name, hypothesis in HYPOTHESES.items())
    return Table(
        "Verdicts over the problems, mean of the proxies of another distribution",
        (
            "hypothesis", "point", "width", "region", "by", "verdict", "number", "problems",
            "cells",
        ),
        lines,
        f"Numbers with 95% intervals over seeds. {claims[0].upper()}{claims[1:]}.",
    )  # fmt: skip


def proxy_table(tables: Tables, point: str, region: str) -> Table:
    """Tabulate r of every form by proxy, and the verdicts on the full form."""
    results, lines = tables.results, []
    for width in results.widths:
        for proxy in results.proxies:
            where = {
                "problem": ALL,
                "width": width,
                "point": point,
                "proxy": proxy,
                "region": region,
            }
            found = [tables.line(form=form, lam=PRIOR, **where) for form in results.forms]
            if not any(found):
                continue
            said = []
            for name in ("distorts", "isotropic wins"):
                row = tables.verdict(hypothesis=name, statistic=CORRELATIONS[0], **where)
                said.append("-" if row is None else f"{row['verdict']} {interval(row)}")
            level = next(line for line in found if line)
            means = [short(line.get("pearson_mean")) if line else "-" for line in found]
            lines.append((
                str(width), proxy_name(proxy), *means, *said,
                ratio_interval(level) if level.get("log2_level_mean") is not None else "-",
            ))  # fmt: skip
    return Table(
        f"Pearson's r with the MCMC variance at {POINTS[point]}, region {region}",
        (
            "width", "Σ from", *(figures.FORM_LOOKS[form].label for form in results.forms),
            "distorts", "isotropic wins", f"level, {results.forms[0]}",
        ),
        lines,
        "Means over the problems of the seeds that passed.",
    )  # fmt: skip


def structure_table(tables: Tables) -> Table:
    """Tabulate slopes, alignments and directions of the full form by proxy."""
    results, lines = tables.results, []
    names = ("slope_proxy", "slope_train", "r2", "overlap_stiff", "overlap_top", "log2_stiff")
    for point in results.points:
        for width in results.widths:
            for proxy in results.proxies:
                where = {
                    "problem": ALL, "width": width, "point": point, "proxy": proxy, "form": "full",
                    "lam": PRIOR,
                }  # fmt: skip
                line = tables.line(region=ALL, **where)
                grid = tables.line(region="grid", **where) or {}
                if line is None:
                    continue
                aligned = [_number(grid, name) for name in ("alignment", "alignment_change")]
                lines.append((
                    point, str(width), proxy_name(proxy), *(_number(line, n) for n in names),
                    *aligned,
                ))  # fmt: skip
    return Table(
        "Structure of the error of the full form",
        (
            "point", "width", "Σ from", "slope on the proxy's distance",
            "slope on the training distance", "R²", "overlap, stiffest", "overlap, widest",
            "log2 posterior / Σ, stiffest", "alignment of the error", "alignment of the change",
        ),
        lines,
        "Means over the problems with 95% intervals over seeds. The change is that against the full "
        "form from the training inputs.",
    )  # fmt: skip


def _number(line: Row, name: str) -> str:
    return "-" if line.get(f"{name}_mean") is None else interval(line, f"{name}_")


def _failing_table(failures: Rows) -> Table:
    lines = [
        (r["problem"], str(r["width"]), str(r["seed"]), r["point"], r["region"], r["reasons"])
        for r in failures
    ]
    headings = ("problem", "width", "seed", "point", "region", "reasons")
    return Table("Failed checks", headings, lines, "")
