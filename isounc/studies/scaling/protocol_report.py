"""The report of a run of protocols: one table of verdicts, and how close each is to the paper."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from isounc.runs.figures import Plot
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section, Table
from isounc.runs.study import Report, TableFile
from isounc.studies.scaling.comparisons import RESULT_COLUMNS, TEXT_COLUMNS
from isounc.studies.scaling.figures.looks import POINT_WORDS
from isounc.studies.scaling.figures.sizes import size_figure, verdict_figure
from isounc.studies.scaling.gates import references
from isounc.studies.scaling.paper import SOURCE, UNKNOWN
from isounc.studies.scaling.protocol_reading import reading
from isounc.studies.scaling.protocols import PROTOCOLS, cells_of, protocol_names, seed_batches
from isounc.studies.scaling.results import Results
from isounc.studies.scaling.settings import Settings
from isounc.studies.scaling.stored import rows_of, typed_rows
from isounc.studies.scaling.summary import SUMMARY_COLUMNS, summarise
from isounc.studies.scaling.tables import (
    cost_table,
    gate_table,
    point_table,
    predictive_table,
    undefined_table,
)
from isounc.studies.scaling.verdicts import (
    CLOSEST_COLUMNS,
    VERDICT_COLUMNS,
    Row,
    by_cell,
    closest_rows,
    compared,
    not_run,
    verdict_rows,
)


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Make the tables, figures and sections of a run of protocols.

    Rows come from the records or, in a folder without records (such as a committed one), from its
    `results.csv`.

    Raises
    ------
    ValueError
        If the run's results cannot be read.
    """
    place = {cell.name: i for i, cells in enumerate(seed_batches(settings)) for cell in cells}
    records = list(folder.records(with_arrays=False))
    records.sort(key=lambda record: place.get(record.name, len(place)))
    tables: dict[str, TableFile] = {}
    if records:
        found = [r for record in records for r in rows_of(record.meta, f"record {record.name!r}")]
        rows = typed_rows(pd.DataFrame(found), f"the records of {folder.path}")
        metas = {record.name: record.meta for record in records}
        results = Results(folder, pd.DataFrame(found), metas, f"{len(records)} records")
        results.summary = summarise(found)
        tables = {
            "results.csv": TableFile(RESULT_COLUMNS, found),
            "summary.csv": TableFile(SUMMARY_COLUMNS, results.summary.to_dict("records")),
        }
    else:
        table = folder.read_table("results.csv", text_columns=TEXT_COLUMNS)
        rows = typed_rows(table, f"results.csv of {folder.path}")
        results = Results(folder, table, {}, "results.csv")
    of_cell = by_cell(rows)
    verdicts, closest = verdict_rows(of_cell, settings), closest_rows(of_cell, settings)
    missing = not_run(of_cell, settings)
    tables["verdicts.csv"] = TableFile(VERDICT_COLUMNS, verdicts)
    tables["closest.csv"] = TableFile(CLOSEST_COLUMNS, closest)
    cells = references(results)
    passed, partly = (int((cells["gate"] == verdict).sum()) for verdict in ("pass", "part"))
    plots = [
        Plot(
            "verdicts", "verdicts",
            "Change of the Pearson correlation per doubling of the size (colour) and its verdict by "
            "a 95% interval over seeds (sign), by protocol and kind of point (rows) and problem.",
            lambda: verdict_figure(verdicts),
        ),
        *(
            Plot(
                f"{name}_{point}", "sizes",
                f"Protocol {name}: {PROTOCOLS[name].question} Pearson correlations with the "
                f"reference, {POINT_WORDS.get(point, point)}.",
                functools.partial(size_figure, of_cell, settings, name, point),
            )
            for name in protocol_names(settings)
            for point in PROTOCOLS[name].points
        ),
    ]  # fmt: skip
    sentences = reading(results, verdicts, closest, missing, settings)
    return Report(
        tables=tables,
        plots=plots,
        sections=functools.partial(_sections, results, verdicts, closest, missing, settings),
        text=f"{len(verdicts)} verdicts.\n{passed} of {len(cells)} cells passed the gate"
        + (f", {partly} in some regions." if partly else "."),
        checks={
            "cells": len(cells),
            "passed_gate": passed,
            "passed_in_part": partly,
            "not_run": len(missing),
        },
        reading=sentences,
    )


def _sections(
    results: Results, verdicts: Sequence[Row], closest: Sequence[Row], missing: Mapping[Any, str],
    settings: Settings, drawn: Sequence[FigureFile],
) -> list[Section]:  # fmt: skip
    def of_kind(kind: str) -> tuple[FigureFile, ...]:
        return tuple(figure for figure in drawn if figure.kind == kind and figure.paths)

    sections = [
        Section(
            "verdicts", "Verdicts",
            ("A verdict is about the change of the Pearson correlation with the reference for each "
             "doubling of the size, over the sizes at which a seed passed its gate: it improves or "
             "gets worse where the 95% interval over seeds excludes 0. The "
             f"{len(verdicts)} verdicts are not corrected for their number: where nothing changes, "
             "one in forty says by chance that it improves, and one in forty that it gets worse.",),
            of_kind("verdicts"), (protocol_table(settings), verdict_table(verdicts)),
        ),
        Section(
            "closest", "Which reading is closest to the paper",
            (f"Differences from Table 1 ({SOURCE}; {UNKNOWN}) describe what the paper may have done. "
             "No default is chosen by them.",),
            (), (closest_table(closest),),
        ),
        Section("missing", "Not run", (), (), (missing_table(missing),)),
        Section("sizes", "Correlations against size", (), of_kind("sizes"), ()),
        Section("predictions", "Predictions", (), (), (predictive_table(results),)),
        Section(
            "checks", "Checks",
            ("A cell counts only if its reference passed the gate and its point passed its check; "
             "others are drawn hollow.",),
            (), (gate_table(results), point_table(results), undefined_table(results)),
        ),
        Section("cost", "Cost", (), (), (cost_table(results),)),
    ]  # fmt: skip
    kept = [s._replace(tables=tuple(t for t in s.tables if t.rows)) for s in sections]
    return [s for s in kept if s.figures or s.tables]


def protocol_table(settings: Settings) -> Table:
    """Tabulate the protocols of a run: what each asks, fixes and compares."""
    rows = []
    for name in protocol_names(settings):
        protocol, cells = PROTOCOLS[name], cells_of(name, settings)

        def values(field: str, cells: Iterable[Any] = cells) -> str:
            found = dict.fromkeys(getattr(cell, field) for cell in cells)
            return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in found)

        ns = ", ".join(dict.fromkeys(str(c.n or settings.n or 100) for c in cells))
        rows.append((
            name, protocol.question, protocol.axis, ", ".join(protocol.points),
            ", ".join(protocol.regions), compared(protocol), values("problem"), values("width"),
            values("depth"), ns, values("prior_sd"), values("parameterisation"),
            values("activation"),
        ))  # fmt: skip
    return Table(
        "Protocols",
        (
            "name", "question", "size", "points", "regions", "compared", "problems", "widths",
            "depths", "n", "prior sds", "parameterisations", "activations",
        ),
        rows,
        "Fixed before the run; the grid of thesis reaches 1.5 standard deviations of an input beyond "
        "the data, and 5.5 where there are two classes.",
    )  # fmt: skip


def verdict_table(verdicts: Sequence[Row]) -> Table:
    """Tabulate the verdicts."""
    rows = [
        (
            row["protocol"], row["problem"], row["setting"], row["point"], row["region"],
            row["estimator"], f"{row['axis']}: {row['sizes']}",
            _interval(row, "slope", "{:+.3f}"),
            row["verdict"] + (f": {row['why']}" if row["why"] else ""),
            "-" if row["size"] is None else str(row["size"]),
            _interval(row, "pearson", "{:.2f}"), _interval(row, "spearman", "{:.2f}"),
            f"{row['num_passed']} of {row['num_cells']}",
        )
        for row in verdicts
    ]  # fmt: skip
    return Table(
        "Does it improve with size?",
        (
            "protocol", "problem", "setting", "point", "region", "estimator", "sizes",
            "slope per doubling", "verdict", "largest size", "Pearson there", "Spearman there",
            "cells passed",
        ),
        rows,
        "Mean [95% interval over seeds]. largest size: the largest at which a seed passed. "
        "verdicts.csv also has the slopes of Spearman's correlation.",
    )  # fmt: skip


def closest_table(closest: Sequence[Row]) -> Table:
    """Tabulate distances from Table 1."""
    rows = [
        (
            row["protocol"], row["setting"], row["point"], row["region"], row["compared"],
            f"{row['width']}, {row['depth']}", f"{row['num_problems']}", row["problems"],
            f"{row['pearson_difference']:.2f}",
            "-" if row["spearman_difference"] is None else f"{row['spearman_difference']:.2f}",
        )
        for row in closest
    ]  # fmt: skip
    return Table(
        "Distance from Table 1",
        (
            "protocol", "setting", "point", "region", "compared", "width, depth", "problems", "names",
            "Pearson", "Spearman",
        ),
        rows,
        "Mean absolute difference of the isotropic estimate's mean correlation over seeds from the "
        "paper's, over the problems of Table 1 that have one. Readings with the most problems come "
        "first; those with few can be close by chance. A reading that protocols share is shown once.",
    )  # fmt: skip


def missing_table(missing: Mapping[Any, str]) -> Table:
    """Tabulate the cells that were not run, with the reasons."""
    rows = [(cell.label, why) for cell, why in missing.items()]
    return Table("Cells that were not run", ("cell", "why"), rows, "")


def _interval(row: Row, name: str, form: str) -> str:
    mean, low, high = (row[f"{name}_{part}"] for part in ("mean", "low", "high"))
    if mean is None:
        return "-"
    if low is None:
        return form.format(mean)
    return f"{form.format(mean)} [{form.format(low)}, {form.format(high)}]"
