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
        sections=functools.partial(_sections, findings, tables),
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


def _sections(
    findings: Findings, tables: dict[str, TableFile], drawn: Sequence[FigureFile]
) -> list[Section]:
    def table(name: str, title: str, note: str = ""):
        return table_of_rows(title, tables[name].columns, tables[name].rows, note)

    verdict = findings.summary[0]["verdict"]
    return [
        Section(
            "summary",
            "Summary",
            (
                f"isounc against NumPyro's NUTS: {verdict}. A posterior where either side fails its "
                "gate is shown and not compared. A control has a planted fault, which must be found.",
            ),
            tuple(drawn),
            (table("summary.csv", "Verdicts", "p-values are corrected for their number (Holm)."),),
        ),
        Section(
            "posteriors",
            "Posteriors",
            (),
            (),
            (
                table("results.csv", "Posteriors", "z-scores are isounc minus NumPyro."),
                table("regions.csv", "Regions"),
                table("tests.csv", "Sums of squares over posteriors"),
            ),
        ),
    ]


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
