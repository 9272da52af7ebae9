"""Views of a run of the agreement study: tables, figures and sections of the page."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from isounc.runs.figures import Plot
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section
from isounc.runs.study import Report, TableFile
from isounc.runs.tables import table_of_rows
from isounc.studies.agreement.figures import z_figure
from isounc.studies.agreement.settings import Cell, Settings, pairs
from isounc.studies.agreement.sides import Side
from isounc.studies.agreement.tables import (
    CELL_COLUMNS,
    REGION_COLUMNS,
    SUMMARY_COLUMNS,
    TEST_COLUMNS,
    Findings,
    judge,
)


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Tables, figures and sections of a run of the agreement study.

    Raises
    ------
    ValueError
        If the run lacks a record.
    """
    findings = judge(read_sides(folder, settings), level=settings.level)
    tables = {
        "results.csv": TableFile(CELL_COLUMNS, findings.cells),
        "regions.csv": TableFile(REGION_COLUMNS, findings.regions),
        "tests.csv": TableFile(TEST_COLUMNS, findings.tests),
        "summary.csv": TableFile(SUMMARY_COLUMNS, findings.summary),
    }
    return Report(
        tables=tables,
        plots=plots(findings, level=settings.level),
        sections=functools.partial(_sections, findings),
        text=summary_text(findings) + "\np-values are corrected for their number (Holm).",
        checks=findings.summary,
        passed=all(line["verdict"] == line["expected"] for line in findings.summary),
    )


def read_sides(folder: RunFolder, settings: Settings):
    """The sides of every posterior by planted fault, `none` without one."""

    def read(cell: Cell) -> Side:
        return Side.from_record(folder.require(cell.name))

    theirs = {pair: read(Cell(pair, "numpyro", "none")) for pair in pairs(settings)}
    return {
        control: {pair: (read(Cell(pair, "isounc", control)), theirs[pair]) for pair in theirs}
        for control in ("none", *settings.controls)
    }


def plots(findings: Findings, *, level: float) -> list[Plot]:
    """One figure for each control."""
    figures = []
    for line in findings.summary:
        control = line["control"]
        rows = [row for row in findings.regions if row["control"] == control]
        planted = "" if control == "none" else f" (planted fault: {control})"
        title = f"isounc against NumPyro's NUTS{planted}: {line['verdict']}"
        figures.append(
            Plot(
                "agreement" if control == "none" else f"agreement-{control}",
                "z-scores",
                f"z-scores of the mean prediction and of the summed variance of every region{planted}.",
                functools.partial(z_figure, rows, title=title, level=level),
            )
        )
    return figures


def _sections(findings: Findings, drawn: Sequence[FigureFile]) -> list[Section]:
    verdict = findings.summary[0]["verdict"]
    text = (
        f"isounc against NumPyro's NUTS: {verdict}. A posterior where either side fails its gate is "
        "shown and not compared. A control has a planted fault, which must be found."
    )
    verdicts = {
        "control": "control", "num_cells": "posteriors", "num_compared": "compared",
        "num_disagree": "disagree", "num_marked": "out of bounds", "single_p_adjusted": "p, single",
        "together_p_adjusted": "p, together", "verdict": "verdict", "expected": "expected",
    }  # fmt: skip
    where = {"control": "control", "problem": "problem", "width": "width"}
    z = {
        "mean_z_rms": "z of means: rms", "mean_z_max": "max", "var_z_rms": "z of variances: rms",
        "var_z_max": "max", "var_ratio": "ratio of variances", "var_ratio_se": "s.e.",
    }  # fmt: skip
    sides = {
        "isounc_rhat": "R-hat, isounc", "numpyro_rhat": "NumPyro",
        "isounc_ess_bulk": "ESS, isounc", "numpyro_ess_bulk": "NumPyro",
        "isounc_seconds": "seconds, isounc", "numpyro_seconds": "NumPyro",
    }  # fmt: skip
    reasons = {
        "bounds": "z-scores out of bounds", "isounc_reasons": "gate of isounc",
        "numpyro_reasons": "gate of NumPyro",
    }  # fmt: skip
    tests = {
        "control": "control", "region": "region", "total": "total", "num_cells": "posteriors",
        "chi_square": "sum of z²", "p_value": "p", "p_adjusted": "p, corrected",
    }  # fmt: skip
    levels = {"region": "region", **z, "level_z": "z of level", "var_sum_z": "z of summed variance"}
    marked = [row for row in findings.cells if any(row.get(name) for name in reasons)]
    holm_note = "p-values are corrected for their number (Holm)."
    return [
        Section(
            "summary", "Summary", (text,), tuple(drawn),
            (table_of_rows("Verdicts", verdicts, findings.summary, holm_note),),
        ),
        Section(
            "posteriors", "Posteriors", (), (),
            (
                table_of_rows(
                    "Posteriors", {**where, "outcome": "outcome", **z, **sides}, findings.cells,
                    "z-scores are isounc minus NumPyro in units of the joint standard error: the "
                    "worst region; the ratio is that of the first region.",
                ),
                table_of_rows("What failed", {**where, **reasons}, marked),
                table_of_rows("Regions", {**where, **levels}, findings.regions),
                table_of_rows("Sums of squares over posteriors", tests, findings.tests, holm_note),
            ),
        ),
    ]  # fmt: skip


def summary_text(findings: Findings) -> str:
    """The table of cells and the verdicts as lines for a terminal."""
    lines = [
        "z-scores are isounc minus NumPyro: worst region; ratio of summed variances: first region. isounc / NumPyro.",
        f"{'problem':<21}{'width':>5}{'z mean':>7}{'max':>5}{'z var':>7}{'max':>5}{'var ratio':>15}"
        f"{'R-hat':>15}{'least ESS':>14}{'1000 grads':>14}{'seconds':>12}  outcome",
    ]
    for row in findings.cells:
        if row["control"] != "none":
            continue
        sides = ("isounc", "numpyro")
        rhats = " / ".join(_shown(row[f"{s}_rhat"], ".3f") for s in sides)
        ess = " / ".join(
            _shown(_least(row[f"{s}_ess_bulk"], row[f"{s}_ess_var"]), ".0f") for s in sides
        )
        grads = " / ".join(f"{row[f'{s}_gradients'] / 1000:.0f}" for s in sides)
        seconds = " / ".join(f"{row[f'{s}_seconds']:.0f}" for s in sides)
        z = "".join(f"{row[f'{q}_z_rms']:>7.2f}{row[f'{q}_z_max']:>5.1f}" for q in ("mean", "var"))
        ratio = f"{row['var_ratio']:.3f} ± {row['var_ratio_se']:.3f}"
        lines.append(
            f"{row['problem']:<21}{row['width']:>5}{z}{ratio:>15}{rhats:>15}{ess:>14}{grads:>14}{seconds:>12}"
            f"  {row['outcome']}{' (z-scores out of bounds)' if row['bounds'] else ''}"
        )
    lines.append("")
    for line in findings.summary:
        what = (
            "No fault" if line["control"] == "none" else f"Control, planted fault {line['control']}"
        )
        expected = "" if line["verdict"] == line["expected"] else f" (expected: {line['expected']})"
        lines.append(
            f"{what}: {line['verdict']}{expected}; {line['num_compared']} of {line['num_cells']} cells compared, "
            f"{line['num_disagree']} of them disagree, {line['num_marked']} have z-scores out of bounds; "
            f"smallest p: single {line['single_p_adjusted']:.2g}, together {line['together_p_adjusted']:.2g}"
        )
    return "\n".join(lines)


def _least(*numbers: float | None) -> float | None:
    known = [n for n in numbers if n is not None]
    return min(known, default=None)


def _shown(number: float | None, form: str) -> str:
    return "?" if number is None else format(number, form)
