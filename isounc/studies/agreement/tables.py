"""The verdicts of an agreement run are made from its records, as rows of tables.

A cell is compared if both sides pass their gate. Each region of a compared cell gives two z-scores,
isounc minus NumPyro over the joint standard error: of the level and of the summed variance
(`isounc.studies.agreement.sides.Totals`). They are judged in two families at half the level. Each
is corrected for its size (Holm), which is valid under any dependence between z-scores:

    single      every z-score of every compared cell, p = 2 Phi(-|z|);
                this finds a single cell that is far off
    together    for each region and total, the sum of z^2 over cells, chi-square with as many
                degrees of freedom, since cells share no draws;
                this finds many cells that are a little off

The verdict is AGREES if neither rejects: for two correct samplers the chance of DISAGREES is at
most the level. This holds approximately, since the standard errors are estimates, and both sides
stop when theirs are small. z-scores at single locations are compared with the bounds of
`isounc.references.zscores.compare` and shown. Over many cells those bounds have no error level (a
root mean square above 3 comes by chance about once in 400), so that they mark a cell but decide
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from isounc.references import zscores
from isounc.statistics import holm
from isounc.studies.agreement.settings import Pair
from isounc.studies.agreement.sides import Side, Totals

Rows = list[dict[str, Any]]

_ABOUT = "rhat ess_bulk ess_var draws gradients seconds gate reasons".split()
CELL_COLUMNS = tuple(
    "control problem width outcome mean_z_rms mean_z_max var_z_rms var_z_max region var_ratio "
    "var_ratio_se p_adjusted bounds".split()
) + tuple(f"{side}_{name}" for side in ("isounc", "numpyro") for name in _ABOUT)
REGION_COLUMNS = tuple(
    "control problem width compared region mean_z_rms mean_z_max var_z_rms var_z_max var_ratio "
    "var_ratio_se level_z level_p_adjusted var_sum_z var_sum_p_adjusted".split()
)
TEST_COLUMNS = tuple("control region total num_cells chi_square p_value p_adjusted".split())
SUMMARY_COLUMNS = tuple(
    "control num_cells num_compared num_disagree num_marked single_p_adjusted "
    "together_p_adjusted verdict expected".split()
)
HEADINGS = {
    "num_cells": "posteriors",
    "num_compared": "compared",
    "num_disagree": "disagree",
    "num_marked": "out of bounds",
    "single_p_adjusted": "p, single",
    "together_p_adjusted": "p, together",
    "mean_z_rms": "z of means: rms",
    "mean_z_max": "max",
    "var_z_rms": "z of variances: rms",
    "var_z_max": "max",
    "var_ratio": "ratio of variances",
    "var_ratio_se": "s.e.",
    "isounc_rhat": "R-hat, isounc",
    "numpyro_rhat": "NumPyro",
    "isounc_ess_bulk": "ESS, isounc",
    "numpyro_ess_bulk": "NumPyro",
    "isounc_seconds": "seconds, isounc",
    "numpyro_seconds": "NumPyro",
    "bounds": "z-scores out of bounds",
    "isounc_reasons": "gate of isounc",
    "numpyro_reasons": "gate of NumPyro",
    "level_z": "z of level",
    "var_sum_z": "z of summed variance",
    "chi_square": "sum of z²",
    "p_value": "p",
    "p_adjusted": "p, corrected",
}
"""Headings on the page of the columns that are not headed by their own name."""

TOTALS = ("level", "var_sum")
"""Fields of `Totals` that are compared."""


class Comparisons(NamedTuple):
    """Rows of the tables of a run: isounc compared with NumPyro, with verdicts."""

    cells: Rows
    """A row for each cell and control, `CELL_COLUMNS`."""
    regions: Rows
    """A row for each region of each of them, `REGION_COLUMNS`."""
    tests: Rows
    """A row for each sum of squares over cells, `TEST_COLUMNS`."""
    summary: Rows
    """A row for each control and for the run without a fault, `SUMMARY_COLUMNS`."""


def compare_sides(
    sides: Mapping[str, Mapping[Pair, tuple[Side, Side]]], *, level: float
) -> Comparisons:
    """Compare isounc with NumPyro, and judge the comparison.

    Parameters
    ----------
    sides
        isounc's side and NumPyro's, by planted fault (`none` without one) and cell.
    level
        Chance that two correct samplers get the verdict DISAGREES, for each planted fault.
    """
    comparisons = Comparisons([], [], [], [])
    for control, by_cell in sides.items():
        rows, regions = Rows(), Rows()
        for cell, (ours, theirs) in by_cell.items():
            row, region_rows = _compare_cell(ours, theirs)
            key = {"control": control, **cell._asdict()}
            rows.append(key | row)
            regions += [key | {"compared": row["outcome"] == "agrees"} | r for r in region_rows]
        _judge(comparisons, control, rows, regions, level)
    return comparisons


def _compare_cell(ours: Side, theirs: Side) -> tuple[dict[str, Any], Rows]:
    """Make the row of a cell, before it is judged, and those of its regions."""
    agreement = zscores.compare(theirs, ours)
    regions = Rows()
    for name, region in agreement.regions.items():
        our_totals, their_totals = ours.totals[name], theirs.totals[name]
        # Draws of a failed side may all be the same.
        ratio = our_totals.var_sum / their_totals.var_sum if their_totals.var_sum else math.nan
        relative = [
            totals.var_sum_se / totals.var_sum if totals.var_sum else math.nan
            for totals in (our_totals, their_totals)
        ]
        row = {"region": name} | region.summary()
        row |= {f"{total}_z": _z(our_totals, their_totals, total) for total in TOTALS}
        row |= {"var_ratio": ratio, "var_ratio_se": ratio * math.hypot(*relative)}
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


def _judge(comparisons: Comparisons, control: str, rows: Rows, regions: Rows, level: float) -> None:
    """Judge the cells of one control, and add its rows to the comparisons."""
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
            tests.append({
                "control": control, "region": name, "total": total, "num_cells": len(z),
                "chi_square": square, "p_value": float(stats.chi2.sf(square, len(z))),
            })  # fmt: skip
    for test, p in zip(tests, holm([t["p_value"] for t in tests]), strict=True):
        test["p_adjusted"] = float(p)
    for row in (row for row in rows if row["outcome"] == "agrees"):
        cell = (row["problem"], row["width"])
        of_cell = [r for r in compared if (r["problem"], r["width"]) == cell]
        row["p_adjusted"] = min(r[f"{total}_p_adjusted"] for r in of_cell for total in TOTALS)
        if row["p_adjusted"] < level / 2:
            row["outcome"] = "disagrees"
    compared_cells = [row for row in rows if not row["outcome"].startswith("not")]
    least = {
        "single_p_adjusted": float(min(single, default=math.nan)),
        "together_p_adjusted": min((t["p_adjusted"] for t in tests), default=math.nan),
    }
    verdict = "AGREES" if all(p >= level / 2 for p in least.values()) else "DISAGREES"
    comparisons.summary.append({
        "control": control,
        "num_cells": len(rows),
        "num_compared": len(compared_cells),
        "num_disagree": sum(row["outcome"] == "disagrees" for row in compared_cells),
        "num_marked": sum(bool(row["bounds"]) for row in compared_cells),
        **least,
        "verdict": verdict if compared_cells else "NOTHING COMPARED",
        "expected": "AGREES" if control == "none" else "DISAGREES",
    })  # fmt: skip
    comparisons.cells.extend(rows)
    comparisons.regions.extend(regions)
    comparisons.tests.extend(tests)
