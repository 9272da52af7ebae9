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


def judge(sides: Mapping[str, Mapping[Pair, tuple[Side, Side]]], *, level: float) -> Findings:
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
