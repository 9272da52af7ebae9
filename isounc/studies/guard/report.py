"""The report of a run of the guard study: tables, figures and sections of the page."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from isounc.runs.figures import Plot
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section, Table
from isounc.runs.study import Report, TableFile
from isounc.runs.tables import rows_of_run
from isounc.runs.words import cells_run
from isounc.studies.guard import figures
from isounc.studies.guard.cell import PLUG_IN, QUANTILES, SCORES
from isounc.studies.guard.reading import reading
from isounc.studies.guard.scenarios import SCENARIOS
from isounc.studies.guard.settings import Settings, batches
from isounc.studies.guard.tables import (
    GRIDS,
    LOOKS,
    RESULT_COLUMNS,
    ROW,
    SUMMARY_COLUMNS,
    VERDICT_COLUMNS,
    Row,
    Tables,
    cell_name,
)

_KINDS = {
    "violations": (
        figures.violations_figure,
        "Rate of violations of the target {target:g} against n, with exact 95% intervals, on a "
        "square-root scale. In shifted scenarios nothing is promised.",
    ),
    "coverage": (
        figures.coverage_figure,
        "Mean share of accepted answers against n at the target {target:g}; bars are 95% intervals. "
        "In shifted scenarios the best possible is that of the answers that are judged.",
    ),
    "quality": (
        figures.quality_figure,
        "Mean share of accepted answers against the AUROC of the score at the target {target:g}.",
    ),
}


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Make the tables, figures and sections of a run of the guard study.

    Rows come from the records or, in a folder without records (such as a committed one), from its
    `results.csv`.

    Raises
    ------
    ValueError
        If the run has no results yet, or some that cannot be read.
    """
    rows = rows_of_run(folder, ROW)
    place = {name: i for i, name in enumerate(SCENARIOS)}
    rows.sort(key=lambda row: (place[row["scenario"]], row["n"], row["target"]))
    tables = Tables.of(rows)
    done = {(row["scenario"], row["n"], row["target"]) for row in rows}
    state = cells_run(len(done), batches(settings))
    said = {f"{row['method']}, {row['grid']}": row["verdict"] for row in tables.verdicts}
    unlike = sum(row["num_unlike"] for row in rows)
    targets = sorted({row["target"] for row in rows})
    return Report(
        tables={
            "results.csv": TableFile(RESULT_COLUMNS, rows),
            "summary.csv": TableFile(SUMMARY_COLUMNS, tables.summary),
            "verdicts.csv": TableFile(VERDICT_COLUMNS, tables.verdicts),
        },
        plots=[
            Plot(
                f"{kind}-target{target:g}", kind, caption.format(target=target),
                functools.partial(draw, tables, target),
            )
            for kind, (draw, caption) in _KINDS.items()
            for target in targets
        ],
        sections=functools.partial(_sections, tables, state),
        text=state,
        checks={"verdicts": said, "unlike_guard_fit": unlike},
        passed=not unlike,
        reading=reading(tables),
        reading_tables=[verdict_table(tables)],
    )  # fmt: skip


def _sections(tables: Tables, state: str, drawn: Sequence[FigureFile]) -> list[Section]:
    def of(kind: str) -> tuple[FigureFile, ...]:
        return tuple(figure for figure in drawn if figure.kind == kind and figure.paths)

    targets = sorted({row["target"] for row in tables.rows})
    return [
        Section(
            "verdicts", "Verdicts", (state,), (), (verdict_table(tables), broken_table(tables))
        ),
        Section("violations", "Violations", (), of("violations"), ()),
        Section("coverage", "Coverage", (), of("coverage") + of("quality"), ()),
        Section("cells", "Cells", (), (), tuple(rate_table(tables, t) for t in targets)),
    ]


def verdict_table(tables: Tables) -> Table:
    """Tabulate the verdict on each method."""
    lines = [
        (
            LOOKS[row["method"]].label, GRIDS[row["grid"]], row["verdict"],
            *(str(row[name]) for name in ("num_cells", "confirmed", "undecided", "refuted")),
            f"{row['confirmed_answering']} of {row['num_answering']}", str(row["num_silent"]),
            f"{row['expected_refuted']:.1f}", f"{row['highest']:.3f}", row["highest_cell"],
            f"{row['p_adjusted']:.2g}",
        )
        for row in tables.verdicts
    ]  # fmt: skip
    return Table(
        "Verdicts",
        (
            "method", "thresholds", "verdict", "cells", "kept", "undecided", "broken",
            "kept, of those that answer", "silent",
            "broken by chance", "highest rate", "where", "smallest p after Holm",
        ),
        lines,
        "Cells that count: something can be broken, and nothing is shifted. Broken: the 95% interval "
        "of the rate lies above the nominal one; by chance, at most this many at exactly the nominal. "
        "A cell answers where half of the samples or more have a threshold, and is silent where none has.",
    )  # fmt: skip


def broken_table(tables: Tables) -> Table:
    """Tabulate the cells whose interval lies above the nominal rate."""
    lines = [
        (LOOKS[line["method"]].label, GRIDS[line["grid"]], cell_name(line), _rate(line),
         f"{line['p_value']:.2g}", f"{line['p_adjusted']:.2g}")
        for line in tables.summary
        if line["counts"] and line["verdict"] == "refuted"
    ]  # fmt: skip
    columns = ("method", "thresholds", "cell", "rate of violations", "p", "p after Holm")
    return Table("Cells above the nominal rate", columns, lines, "")


def rate_table(tables: Tables, target: float) -> Table:
    """Tabulate violations and coverage at a target, with thresholds from the sample itself."""
    lines = []
    for name, scenario in SCENARIOS.items():
        for n in sorted({line["n"] for line in tables.found(scenario=name, target=target)}):
            found = {
                method: tables.found(
                    scenario=name, n=n, target=target, method=method,
                    grid=SCORES if method == PLUG_IN else QUANTILES,
                )[0]
                for method in LOOKS
            }  # fmt: skip
            lines.append((
                scenario.label, str(n), *map(_rate, found.values()),
                f"{found['fixed_sequence']['without']:.2f}",
                *(f"{line['coverage_mean']:.3f}" for line in found.values()),
                f"{found[PLUG_IN]['best_coverage']:.3f}",
            ))  # fmt: skip
    called = [look.label for look in LOOKS.values()]
    return Table(
        f"Target {target:g}",
        (
            "scenario", "n", *(f"violations, {name}" for name in called),
            "no threshold, fixed sequence", *(f"coverage, {name}" for name in called),
            "best possible",
        ),
        lines,
        "Rates of violations with exact 95% intervals; mean coverage, whose standard errors are in "
        "summary.csv.",
    )  # fmt: skip


def _rate(line: Row) -> str:
    return f"{line['rate']:.3f} [{line['low']:.3f}, {line['high']:.3f}]"
