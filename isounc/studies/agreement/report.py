"""From the records of an agreement run to z-scores, verdicts, tables and the figure.

A cell is compared where both sides pass their gate. Each region of a compared cell gives two z-scores, isounc minus
NumPyro over the joint standard error: of the level and of the summed variance (`agreement.Totals`). They are judged
in two families, each corrected for its size (Holm), which no dependence between z-scores can upset, at half the
level:

    single      every z-score of every compared cell, p = 2 Phi(-|z|): finds one cell that is far off;
    together    for each region and total, the sum of z^2 over cells, chi-square with as many degrees of freedom, since
                cells share no draws: finds many cells that are a little off.

The verdict is AGREES where neither rejects: for two right samplers the chance of DISAGREES is at most about the level.
About, since the standard errors are estimates, and both sides stop where theirs are small. z-scores at single locations
are held against the bounds of `scoring.compare` and shown; over many cells those bounds have no error level (a root
mean square above 3 comes by chance about once in 400), so that they mark a cell but decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import stats

from isounc.references import zscores
from isounc.runs import style
from isounc.runs.folder import RunFolder
from isounc.runs.style import legend_below, region_look, styled
from isounc.statistics import holm
from isounc.studies.agreement.cell import Side, Totals

Rows = list[dict[str, Any]]

_ABOUT = "rhat ess_bulk ess_var draws gradients seconds gate reasons".split()
CELL_COLUMNS = tuple(
    "control problem width outcome mean_z_rms mean_z_max var_z_rms var_z_max region var_ratio var_ratio_se "
    "p_adjusted bounds".split()
) + tuple(f"{side}_{name}" for side in ("isounc", "numpyro") for name in _ABOUT)
REGION_COLUMNS = tuple(
    "control problem width compared region mean_z_rms mean_z_max var_z_rms var_z_max var_ratio var_ratio_se "
    "level_z level_p_adjusted var_sum_z var_sum_p_adjusted".split()
)
TEST_COLUMNS = tuple("control region total num_cells chi_square p_value p_adjusted".split())
SUMMARY_COLUMNS = tuple(
    "control num_cells num_compared num_disagree num_marked single_p_adjusted together_p_adjusted verdict "
    "expected".split()
)

TOTALS = ("level", "var_sum")
Z_SHOWN = 8.0
"""Larger z-scores are drawn at the edge, as arrows."""
BAND = "#EDEDED"


class Cell(NamedTuple):
    """One posterior."""

    problem: str
    """Name of the problem."""
    width: int
    """Hidden units per layer."""

    @property
    def name(self) -> str:
        """Part of a record's name."""
        return f"{self.problem}-w{self.width}"


class Findings(NamedTuple):
    """What the records of a run say."""

    cells: Rows
    """A row for each cell and control, `CELL_COLUMNS`."""
    regions: Rows
    """A row for each region of each, `REGION_COLUMNS`."""
    tests: Rows
    """A row for each sum of squares over cells, `TEST_COLUMNS`."""
    summary: Rows
    """A row for each control, and for none, `SUMMARY_COLUMNS`."""


def record_name(side: str, cell: Cell, control: str = "none") -> str:
    """Name of a side's record: NumPyro is never given the fault, and has one for all controls."""
    return f"{side}-{cell.name}" if side == "numpyro" else f"{side}-{cell.name}-{control}"


def gather(
    folder: RunFolder, cells: Sequence[Cell], controls: Sequence[str], *, level: float
) -> Findings:
    """Compare the sides of every cell in a run folder, for no fault and for each that was planted."""
    theirs = {cell: _read(folder, record_name("numpyro", cell)) for cell in cells}
    sides = {
        control: {
            cell: (_read(folder, record_name("isounc", cell, control)), theirs[cell])
            for cell in cells
        }
        for control in ("none", *controls)
    }
    return judge(sides, level=level)


def judge(sides: Mapping[str, Mapping[Cell, tuple[Side, Side]]], *, level: float) -> Findings:
    """Compare isounc with NumPyro.

    Parameters
    ----------
    sides
        By planted fault (`none` without one) and cell: isounc's side and NumPyro's.
    level
        Chance that two right samplers are said to disagree, for each planted fault.
    """
    found = Findings([], [], [], [])
    for control, by_cell in sides.items():
        rows, regions = Rows(), Rows()
        for cell, (ours, theirs) in by_cell.items():
            row, its_regions = _compare(ours, theirs)
            who = {"control": control, **cell._asdict()}
            rows.append(who | row)
            regions += [who | {"compared": row["outcome"] == "agrees"} | r for r in its_regions]
        _judge(found, control, rows, regions, level)
    return found


def _read(folder: RunFolder, name: str) -> Side:
    record = folder.read(name)
    if record is None:
        raise ValueError(f"{folder.path} lacks {name!r}: run the same command again")
    return Side.from_record(record)


def _compare(ours: Side, theirs: Side) -> tuple[dict[str, Any], Rows]:
    """The row of a cell, before it is judged, and those of its regions."""
    agreement = zscores.compare(theirs, ours)
    regions = Rows()
    for name, region in agreement.regions.items():
        a, b = ours.totals[name], theirs.totals[name]
        # Draws of a failed side may all be the same.
        ratio = a.var_sum / b.var_sum if b.var_sum else math.nan
        relative = [s.var_sum_se / s.var_sum if s.var_sum else math.nan for s in (a, b)]
        row = {"region": name} | region.summary()
        row |= {f"{total}_z": _z(a, b, total) for total in TOTALS}
        row |= {
            "var_ratio": ratio,
            "var_ratio_se": ratio * math.hypot(*relative),
        }
        regions.append(row)
    failed = [s for s, side in (("isounc", ours), ("numpyro", theirs)) if not side.gate.passed]
    words = {0: "agrees", 1: f"not compared: {''.join(failed[:1])} failed"}
    row = {
        "outcome": words.get(len(failed), "not compared: both failed"),
        "bounds": "; ".join(agreement.reasons),
        **{k: regions[0][k] for k in ("region", "var_ratio", "var_ratio_se")},
    }
    for key in ("mean_z_rms", "mean_z_max", "var_z_rms", "var_z_max"):
        row[key] = max(r[key] for r in regions)
    for name, side in (("isounc", ours), ("numpyro", theirs)):
        gate = side.gate
        numbers = (
            gate.rhat_max, gate.ess_bulk_min, gate.ess_var_min, side.num_draws, side.num_gradients,
            side.seconds, "passed" if gate.passed else "failed", "; ".join(gate.reasons),
        )  # fmt: skip
        row |= {f"{name}_{what}": n for what, n in zip(_ABOUT, numbers, strict=True)}
    return row, regions


def _z(ours: Totals, theirs: Totals, total: str) -> float:
    se = math.hypot(getattr(ours, f"{total}_se"), getattr(theirs, f"{total}_se"))
    return (getattr(ours, total) - getattr(theirs, total)) / se if se else math.nan


def _judge(found: Findings, control: str, rows: Rows, regions: Rows, level: float) -> None:
    """Correct the p-values of one comparison over cells, and add it to what was found."""
    compared = [r for r in regions if r["compared"]]
    places = [(r, total) for r in compared for total in TOTALS]
    single = holm([2 * float(stats.norm.sf(abs(r[f"{total}_z"]))) for r, total in places])
    for (r, total), p in zip(places, single, strict=True):
        r[f"{total}_p_adjusted"] = float(p)
    tests = Rows()
    for name in dict.fromkeys(r["region"] for r in compared):
        for total in TOTALS:
            z = np.array([r[f"{total}_z"] for r in compared if r["region"] == name])
            square = float((z**2).sum())
            tests.append(
                {"control": control, "region": name, "total": total, "num_cells": len(z), "chi_square": square,
                 "p_value": float(stats.chi2.sf(square, len(z)))}
            )  # fmt: skip
    for test, p in zip(tests, holm([t["p_value"] for t in tests]), strict=True):
        test["p_adjusted"] = float(p)
    for row in (row for row in rows if row["outcome"] == "agrees"):
        mine = [r for r in compared if (r["problem"], r["width"]) == (row["problem"], row["width"])]
        row["p_adjusted"] = min(r[f"{total}_p_adjusted"] for r in mine for total in TOTALS)
        if row["p_adjusted"] < level / 2:
            row["outcome"] = "disagrees"
    num_compared = sum(not row["outcome"].startswith("not") for row in rows)
    least = {
        "single_p_adjusted": float(min(single, default=math.nan)),
        "together_p_adjusted": min((t["p_adjusted"] for t in tests), default=math.nan),
    }
    verdict = "AGREES" if all(p >= level / 2 for p in least.values()) else "DISAGREES"
    found.summary.append(
        {"control": control, "num_cells": len(rows), "num_compared": num_compared,
         "num_disagree": sum(row["outcome"] == "disagrees" for row in rows),
         "num_marked": sum(bool(row["bounds"]) for row in rows if row["outcome"][:3] != "not"), **least,
         "verdict": verdict if num_compared else "NOTHING COMPARED",
         "expected": "AGREES" if control == "none" else "DISAGREES"}
    )  # fmt: skip
    found.cells.extend(rows)
    found.regions.extend(regions)
    found.tests.extend(tests)


def write_tables(folder: RunFolder, found: Findings) -> None:
    """Write agreement.csv (cells), regions.csv, tests.csv and summary.csv."""
    folder.write_table("agreement.csv", found.cells, CELL_COLUMNS)
    folder.write_table("regions.csv", found.regions, REGION_COLUMNS)
    folder.write_table("tests.csv", found.tests, TEST_COLUMNS)
    folder.write_table("summary.csv", found.summary, SUMMARY_COLUMNS)


def write_figures(folder: RunFolder, found: Findings, *, level: float) -> None:
    """Draw the z-scores of every cell into the folder `figures`, one figure for each control."""
    for line in found.summary:
        control = line["control"]
        rows = [r for r in found.regions if r["control"] == control]
        planted = "" if control == "none" else f" (planted fault: {control})"
        title = f"isounc against NumPyro's NUTS{planted}: {line['verdict']}"
        stem = "agreement" if control == "none" else f"agreement-{control}"
        style.save(z_figure(rows, title=title, level=level), folder.path / "figures" / stem)


def z_figure(rows: Rows, *, title: str, level: float) -> Figure:
    """A line for each cell, with the z-scores of its regions: levels on the left, summed variances on the right."""
    cells = list(dict.fromkeys((r["problem"], r["width"]) for r in rows))
    problems = list(dict.fromkeys(problem for problem, _ in cells))
    # A gap between problems, the first one at the top.
    at = {cell: -i - 0.8 * problems.index(cell[0]) for i, cell in enumerate(cells)}
    names = list(dict.fromkeys(r["region"] for r in rows))
    looks = {name: region_look(name, position=i) for i, name in enumerate(names)}
    num = 2 * sum(r["compared"] for r in rows)
    bound = float(stats.norm.isf(level / 4 / max(num, 1)))
    with styled():
        height = 0.19 * (len(cells) + 0.8 * len(problems)) + 1.7
        figure = Figure(figsize=(7.6, height), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left")
        figure.get_layout_engine().set(wspace=0.06)  # pyright: ignore
        axes = figure.subplots(1, 2, sharey=True)
        for ax, total in zip(axes, TOTALS, strict=True):
            ax.axvspan(-bound, bound, color=BAND, linewidth=0)
            ax.axvline(0, color="#777777", linewidth=0.7)
            for r in rows:
                look, z = looks[r["region"]], r[f"{total}_z"]
                y = at[r["problem"], r["width"]] + 0.22 * (1 - names.index(r["region"]))
                face = look.color if r["compared"] else "white"
                beyond = abs(z) > Z_SHOWN
                marker = (">" if z > 0 else "<") if beyond else _marker(look.marker)
                ax.plot(
                    math.copysign(min(abs(z), Z_SHOWN), z), y, marker, color=look.color,
                    markerfacecolor=face, markersize=4.5, markeredgewidth=1, clip_on=False,
                )  # fmt: skip
            ax.set_xlim(-Z_SHOWN, Z_SHOWN)
            ax.set_xticks([-8, -4, 0, 4, 8])
            ax.set_xlabel("z-score: (isounc − NumPyro) / joint s.e.")
            ax.set_ylim(min(at.values()) - 0.8, 0.8)
        axes[0].set_title("level: mean prediction of a region", loc="left")
        axes[1].set_title("sum of the predictive variances", loc="left")
        axes[0].set_yticks(list(at.values()), [_tick(cell, cells) for cell in cells], fontsize=7.5)
        axes[1].tick_params(axis="y", length=0)
        blank: dict[str, Any] = {"linestyle": "none", "color": "#444444"}
        legend: dict[str, Any] = {
            name: Line2D([], [], linestyle="none", marker=_marker(look.marker), color=look.color, markersize=5)
            for name, look in looks.items()
        }  # fmt: skip
        if any(not r["compared"] for r in rows):
            hollow = Line2D([], [], marker="o", markerfacecolor="white", **blank)
            legend["hollow: a gate failed, not compared"] = hollow
        if any(abs(r[f"{total}_z"]) > Z_SHOWN for r in rows for total in TOTALS):
            legend[f"beyond ±{Z_SHOWN:g}"] = Line2D([], [], marker=">", **blank)
        legend["outside, a single z-score decides against agreement"] = Patch(facecolor=BAND)
        legend_below(figure, legend)
    return figure


def _marker(marker: str) -> str:
    return "s" if marker == "." else marker


def _tick(cell: tuple[str, int], cells: Sequence[tuple[str, int]]) -> str:
    """`problem  2` on the first line of a problem, the width alone on the others."""
    first = next(c for c in cells if c[0] == cell[0])
    return f"{cell[0]}   width {cell[1]}" if cell == first else str(cell[1])


def summary_text(found: Findings) -> str:
    """The table of cells and the verdicts as lines for a terminal."""
    lines = [
        "z-scores are isounc minus NumPyro: worst region; ratio of summed variances: first region. isounc / NumPyro.",
        f"{'problem':<21}{'width':>5}{'z mean':>7}{'max':>5}{'z var':>7}{'max':>5}{'var ratio':>15}"
        f"{'R-hat':>15}{'least ESS':>14}{'1000 grads':>14}{'seconds':>12}  outcome",
    ]
    for row in found.cells:
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
    for line in found.summary:
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
