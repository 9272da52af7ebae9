"""The report of a run of the bank study: tables, figures and sections of the page."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from isounc.runs.figures import Plot
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section, Table
from isounc.runs.study import Report, TableFile
from isounc.runs.style import NothingToDraw, styled
from isounc.runs.tables import table_of_rows
from isounc.studies.bank.install import read, verdict
from isounc.studies.bank.settings import Settings, recipes

RESULT_COLUMNS = (
    *("name", "method", "problem", "parameterisation", "num_params", "passed"),
    *("rhat_max", "ess_min", "num_draws", "seconds", "reasons"),
)
"""Columns of `results.csv`: a row for each reference."""
SUMMARY_COLUMNS = ("method", "num_references", "num_passed", "rhat_max", "ess_min", "seconds")
"""Columns of `summary.csv`: a row for each method."""
HEADINGS = {
    "name": "reference",
    "num_params": "P",
    "num_references": "references",
    "num_passed": "passed",
    "rhat_max": "largest R-hat",
    "ess_min": "smallest ESS",
    "num_draws": "draws",
    "reasons": "failed checks",
}
"""Headings on the page of the columns that are not headed by their own name."""


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Make the tables, figures and sections of a run of the bank study.

    Raises
    ------
    ValueError
        If the run lacks a reference.
    """
    rows = [_row(folder, name) for name in recipes(settings)]
    bounds = settings.sampling.gate
    tables = {
        "results.csv": TableFile(RESULT_COLUMNS, rows),
        "summary.csv": TableFile(SUMMARY_COLUMNS, _summary(rows)),
    }
    num_passed = sum(row["passed"] for row in rows)
    lines = [
        f"{row['name']:<42}{'passed' if row['passed'] else 'FAILED: ' + row['reasons']}"
        for row in rows
    ]
    lines.append(f"\n{num_passed} of {len(rows)} references passed their checks.")
    plot = Plot(
        "checks",
        "checks",
        "Largest R-hat and smallest effective sample size of every sampled reference, with the "
        "bounds of the gate (dashed).",
        functools.partial(_figure, rows, bounds.rhat_max, bounds.ess_min),
    )
    return Report(
        tables=tables,
        plots=[plot],
        sections=functools.partial(_sections, rows),
        text="\n".join(lines),
        checks={"references": len(rows), "passed": num_passed},
    )


def _row(folder: RunFolder, name: str) -> dict[str, Any]:
    reference = read(folder, name)
    gate = reference.gate
    row = {
        "name": name,
        "method": reference.method,
        "problem": reference.problem.name,
        "parameterisation": reference.model.parameterisation,
        "num_params": reference.model.num_params,
        "passed": reference.passed,
        "seconds": folder.require(name).meta["seconds"],
        "reasons": "" if reference.passed else verdict(reference),
    }
    if gate is not None:
        ess = [n for n in (gate.ess_bulk_min, gate.ess_var_min) if n is not None]
        row |= {
            "rhat_max": gate.rhat_max,
            "ess_min": min(ess, default=None),
            "num_draws": reference.num_chains * reference.checks["num_draws"],
        }
    return row


def _summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    summary = []
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        rhat = [row["rhat_max"] for row in of_method if row.get("rhat_max") is not None]
        ess = [row["ess_min"] for row in of_method if row.get("ess_min") is not None]
        summary.append(
            {
                "method": method,
                "num_references": len(of_method),
                "num_passed": sum(row["passed"] for row in of_method),
                "rhat_max": max(rhat, default=None),
                "ess_min": min(ess, default=None),
                "seconds": sum(row["seconds"] for row in of_method),
            }
        )
    return summary


def _figure(rows: Sequence[Mapping[str, Any]], rhat_max: float, ess_min: float) -> Figure:
    sampled = [row for row in rows if row.get("rhat_max") is not None]
    if not sampled:
        raise NothingToDraw("no reference of this run is sampled")
    names = [row["name"] for row in sampled]
    heights = list(range(len(sampled)))[::-1]
    with styled():
        figure = Figure(figsize=(7.6, 1.2 + 0.2 * len(sampled)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, column, bound in ((left, "rhat_max", rhat_max), (right, "ess_min", ess_min)):
            for row, y in zip(sampled, heights, strict=True):
                face = "#0072B2" if row["passed"] else "white"
                axes.plot(row[column], y, "o", color="#0072B2", markerfacecolor=face)
            axes.axvline(bound, color="#777777", linestyle="--", linewidth=0.8)
        left.set_yticks(heights, names, fontsize=7.5)
        left.set_xlabel("largest R-hat (hollow: failed)")
        right.set_xlabel("smallest effective sample size")
        right.set_xscale("log")
    return figure


def _sections(rows: Sequence[Mapping[str, Any]], drawn: Sequence[FigureFile]) -> list[Section]:
    def table(title: str, columns: Sequence[str], rows, note: str = "") -> Table:
        return table_of_rows(title, {c: HEADINGS.get(c, c) for c in columns}, rows, note)

    by_method = table("By method", SUMMARY_COLUMNS, _summary(rows))
    shown = [column for column in RESULT_COLUMNS if column not in ("problem", "parameterisation")]
    note = (
        "ESS is the smallest bulk effective sample size of p and of (p − mean)². A reference that "
        "failed its checks is kept and says so."
    )
    by_name = table("References", shown, rows, note)
    return [
        Section("summary", "Summary", (), tuple(drawn), (by_method,)),
        Section("references", "References", (), (), (by_name,)),
    ]
