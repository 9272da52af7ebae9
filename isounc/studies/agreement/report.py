"""The report of a run of the agreement study: tables, figures and sections of the page."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from isounc.runs.figures import Plot
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section, Table
from isounc.runs.study import Report, TableFile
from isounc.runs.tables import table_of_rows
from isounc.studies.agreement.figures import z_figure
from isounc.studies.agreement.settings import Cell, Pair, Settings, pairs
from isounc.studies.agreement.sides import Side
from isounc.studies.agreement.tables import (
    CELL_COLUMNS,
    HEADINGS,
    REGION_COLUMNS,
    SUMMARY_COLUMNS,
    TEST_COLUMNS,
    Comparisons,
    Rows,
    compare_sides,
)

_HOLM = "p-values are corrected for their number (Holm)."


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Make the tables, figures and sections of a run of the agreement study.

    Raises
    ------
    ValueError
        If the run lacks a record.
    """
    comparisons = compare_sides(read_sides(folder, settings), level=settings.level)
    tables = {
        "results.csv": TableFile(CELL_COLUMNS, comparisons.cells),
        "regions.csv": TableFile(REGION_COLUMNS, comparisons.regions),
        "tests.csv": TableFile(TEST_COLUMNS, comparisons.tests),
        "summary.csv": TableFile(SUMMARY_COLUMNS, comparisons.summary),
    }
    return Report(
        tables=tables,
        plots=plots(comparisons, level=settings.level),
        sections=functools.partial(_sections, comparisons),
        text=f"{summary_text(comparisons)}\n{_HOLM}",
        checks=comparisons.summary,
        passed=all(line["verdict"] == line["expected"] for line in comparisons.summary),
    )


def read_sides(folder: RunFolder, settings: Settings) -> dict[str, dict[Pair, tuple[Side, Side]]]:
    """Read both sides of every posterior, isounc's first, by planted fault (`none` without one)."""

    def read(cell: Cell) -> Side:
        return Side.from_record(folder.require(cell.name))

    theirs = {pair: read(Cell(pair, "numpyro", "none")) for pair in pairs(settings)}
    return {
        control: {pair: (read(Cell(pair, "isounc", control)), theirs[pair]) for pair in theirs}
        for control in ("none", *settings.controls)
    }


def plots(comparisons: Comparisons, *, level: float) -> list[Plot]:
    """List a figure for each control."""
    figures = []
    for line in comparisons.summary:
        control = line["control"]
        rows = [row for row in comparisons.regions if row["control"] == control]
        planted = "" if control == "none" else f" (planted fault: {control})"
        title = f"isounc against NumPyro's NUTS{planted}: {line['verdict']}"
        caption = f"z-scores of each region's mean prediction and summed variance{planted}."
        figures.append(
            Plot(
                "agreement" if control == "none" else f"agreement-{control}",
                "z-scores",
                caption,
                functools.partial(z_figure, rows, title=title, level=level),
            )
        )
    return figures


def _table(title: str, columns: str, rows: Rows, note: str = "") -> Table:
    headings = {name: HEADINGS.get(name, name) for name in columns.split()}
    return table_of_rows(title, headings, rows, note)


def _sections(comparisons: Comparisons, drawn: Sequence[FigureFile]) -> list[Section]:
    verdict = comparisons.summary[0]["verdict"]
    text = (
        f"isounc against NumPyro's NUTS: {verdict}. A posterior is shown but not compared if its "
        "gate fails on either side. A control has a planted fault, which the run must find."
    )
    z = "mean_z_rms mean_z_max var_z_rms var_z_max var_ratio var_ratio_se"
    reasons = "bounds isounc_reasons numpyro_reasons"
    marked = [row for row in comparisons.cells if any(row.get(name) for name in reasons.split())]
    verdicts = _table(
        "Verdicts",
        "control num_cells num_compared num_disagree num_marked single_p_adjusted "
        "together_p_adjusted verdict expected",
        comparisons.summary,
        _HOLM,
    )
    posteriors = _table(
        "Posteriors",
        f"control problem width outcome {z} isounc_rhat numpyro_rhat isounc_ess_bulk "
        "numpyro_ess_bulk isounc_seconds numpyro_seconds",
        comparisons.cells,
        "z-scores are isounc minus NumPyro in units of the joint standard error, in the worst "
        "region; the ratio is that of the first region.",
    )
    failed = _table("Failed checks", f"control problem width {reasons}", marked)
    regions = _table(
        "Regions", f"control problem width region {z} level_z var_sum_z", comparisons.regions
    )
    tests = _table(
        "Sums of squares over posteriors",
        "control region total num_cells chi_square p_value p_adjusted",
        comparisons.tests,
        _HOLM,
    )
    return [
        Section("summary", "Summary", (text,), tuple(drawn), (verdicts,)),
        Section("posteriors", "Posteriors", (), (), (posteriors, failed, regions, tests)),
    ]


def summary_text(comparisons: Comparisons) -> str:
    """Write the table of cells and the verdicts as lines for a terminal."""
    lines = [
        "z-scores are isounc minus NumPyro, in the worst region; the ratio of summed variances is "
        "that of the first region. Pairs are isounc / NumPyro.",
        f"{'problem':<21}{'width':>5}{'z mean':>7}{'max':>5}{'z var':>7}{'max':>5}{'var ratio':>15}"
        f"{'R-hat':>15}{'least ESS':>14}{'1000 grads':>14}{'seconds':>12}  outcome",
    ]
    for row in comparisons.cells:
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
            f"{row['problem']:<21}{row['width']:>5}{z}{ratio:>15}{rhats:>15}{ess:>14}{grads:>14}"
            f"{seconds:>12}  {row['outcome']}{' (z-scores out of bounds)' if row['bounds'] else ''}"
        )
    lines.append("")
    for line in comparisons.summary:
        control = line["control"]
        name = "No fault" if control == "none" else f"Control, planted fault {control}"
        expected = "" if line["verdict"] == line["expected"] else f" (expected: {line['expected']})"
        lines.append(
            f"{name}: {line['verdict']}{expected}; {line['num_compared']} of {line['num_cells']} "
            f"cells compared, {line['num_disagree']} of them disagree, {line['num_marked']} have "
            f"z-scores out of bounds; smallest p: single {line['single_p_adjusted']:.2g}, "
            f"together {line['together_p_adjusted']:.2g}"
        )
    return "\n".join(lines)


def _least(*numbers: float | None) -> float | None:
    known = [n for n in numbers if n is not None]
    return min(known, default=None)


def _shown(number: float | None, form: str) -> str:
    return "?" if number is None else format(number, form)
