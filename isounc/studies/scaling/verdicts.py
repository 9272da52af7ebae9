"""Verdicts on whether the estimate improves with size, and which protocol the paper's may be.

Everything is computed from result rows. A *verdict* is about one estimator at one kind of point in
one region, of one problem under one protocol and one value of what the protocol sweeps: the change of
the Pearson correlation with the MCMC reference per doubling of the size (`isounc.statistics.trend`),
and the correlations at the largest size at which a seed has one. A *reading* of Table 1 of the paper
is a protocol, a point and a size; its distance from the table is the mean absolute difference of the
Pearson correlations of the isotropic estimate over the problems that have one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from isounc.statistics import Interval, interval_over_seeds, trend
from isounc.studies.scaling.comparisons import SD
from isounc.studies.scaling.paper import TABLE1
from isounc.studies.scaling.protocols import (
    PROTOCOLS,
    Protocol,
    cells_of,
    num_examples,
    protocol_names,
    why_not_run,
)
from isounc.studies.scaling.settings import Cell, Settings

if TYPE_CHECKING:
    import pandas

ESTIMATORS = ("isotropic", "null_aleatoric", "logit_scaled")
"""Estimators of which there are verdicts: the claim, its null, and a rival at the same cost."""
VERDICTS = ("improves", "gets worse", "undecided", "undefined", "not run")
"""The change of a correlation with size: its interval lies above 0, below 0, about 0; there is none;
or no cell was computed."""
_WORDS = {"improves": "improves", "declines": "gets worse", "undecided": "undecided"}
_PARTS = ("mean", "low", "high")
VERDICT_COLUMNS = (
    *(
        "protocol",
        "problem",
        "setting",
        "point",
        "region",
        "compared",
        "estimator",
        "axis",
        "sizes",
    ),
    *("verdict", "why", *(f"slope_{part}" for part in _PARTS), "num_seeds"),
    *(f"spearman_slope_{part}" for part in _PARTS),
    *("size", *(f"{s}_{part}" for s in ("pearson", "spearman") for part in _PARTS)),
    *("num_passed", "num_cells"),
)
"""Columns of `verdicts.csv`; sizes are those that the protocol asks for, slopes are per doubling."""
CLOSEST_COLUMNS = (
    *("protocol", "setting", "point", "region", "compared", "width", "depth"),
    *("num_problems", "problems", "pearson_difference", "spearman_difference"),
)
"""Columns of `closest.csv`: mean absolute differences from Table 1."""
_SWEPT = {
    "n": "n",
    "prior_sd": "prior sd",
    "parameterisation": "",
    "depth": "depth",
    "width": "width",
}
"""Fields that a protocol may sweep beside its size, with their names in settings."""

_CELL = [
    *("problem", "width", "depth", "activation", "parameterisation", "prior_sd", "n"),
    "grid_margin",
]
_WHICH = ["point", "region", "estimator", "quantity"]
_COLUMNS = ["seed", "class", "gate", "pearson", "spearman", "reason", "num_params"]

Row = dict[str, Any]


def compared(protocol: Protocol) -> str:
    """What the correlations of a protocol are between, in words."""
    words = "‖∇p‖², MCMC variance" if protocol.moment == "variance" else "‖∇p‖, MCMC sd"
    return words if protocol.view == "trace" else f"{words}, predicted class"


def verdict_rows(of_cell: ByCell, settings: Settings) -> list[Row]:
    """A row for each verdict of a run, in the order of protocols, problems and settings.

    Parameters
    ----------
    of_cell
        Result rows of every class.
    settings
        Settings of the run.
    """
    verdicts = []
    for name in protocol_names(settings):
        protocol = PROTOCOLS[name]
        planned = cells_of(name, settings)
        for (problem, *_), group in groups(planned, protocol).items():
            about = {
                "protocol": name, "problem": problem, "compared": compared(protocol),
                "setting": setting(group[0], planned, settings, protocol), "axis": protocol.axis,
            }  # fmt: skip
            for point in protocol.points:
                for region in protocol.regions:
                    for estimator in ESTIMATORS:
                        which = {"point": point, "region": region, "estimator": estimator}
                        found = [select(of_cell, c, settings, protocol, which) for c in group]
                        verdicts.append(about | which | _verdict(group, found, settings, protocol))
    return verdicts


def closest_rows(of_cell: ByCell, settings: Settings) -> list[Row]:
    """A row for each reading of Table 1 that has a problem: its distance from the table.

    Readings with the most problems come first, the closest first among them. A reading that several
    protocols share is that of the first of them.
    """
    readings: dict[tuple, Row] = {}
    for name in protocol_names(settings):
        protocol = PROTOCOLS[name]
        planned = cells_of(name, settings)
        for cells in groups(planned, protocol, over="problem").values():
            first = cells[0]
            for point in protocol.points:
                for region in protocol.regions:
                    which = {"point": point, "region": region, "estimator": "isotropic"}
                    differences = {
                        cell.problem: pair
                        for cell in cells
                        if cell.problem in TABLE1
                        and (pair := _differences(of_cell, cell, settings, protocol, which))
                    }
                    pearson, spearman = (
                        [value for pair in differences.values() if (value := pair[i]) is not None]
                        for i in (0, 1)
                    )
                    key = (tuple(cells), point, region, protocol.moment, protocol.view)
                    if not pearson or key in readings:
                        continue
                    readings[key] = {
                        "protocol": name,
                        "setting": setting(first, planned, settings, protocol, ("width", "depth")),
                        "point": point, "region": region, "compared": compared(protocol),
                        "width": first.width, "depth": first.depth,
                        "num_problems": len(pearson), "problems": " ".join(differences),
                        "pearson_difference": sum(pearson) / len(pearson),
                        "spearman_difference": sum(spearman) / len(spearman) if spearman else None,
                    }  # fmt: skip
    return sorted(
        readings.values(), key=lambda row: (-row["num_problems"], row["pearson_difference"])
    )


def not_run(of_cell: ByCell, settings: Settings) -> dict[Cell, str]:
    """The cells of a run's protocols that have no row, with the reason."""
    missing = {}
    for name in protocol_names(settings):
        for cell in cells_of(name, settings):
            if _key(cell, settings) not in of_cell.cells:
                missing[cell] = why_not_run(cell, settings) or "its records are not there yet"
    return missing


def size(cell: Cell, found: pandas.DataFrame, axis: str) -> int:
    """The size of a cell on the axis of a protocol, given its rows."""
    return int(found["num_params"].iloc[0]) if axis == "params" else getattr(cell, axis)


class ByCell(NamedTuple):
    """Result rows, arranged for `select`."""

    cells: set[tuple]
    """The keys of the cells that have rows."""
    rows: dict[tuple, pandas.DataFrame]
    """Rows by cell, point, region, estimator and quantity."""
    none: pandas.DataFrame
    """No rows."""


def by_cell(rows: pandas.DataFrame) -> ByCell:
    """Arrange what is compared on the scale of a variance or an sd, by cell without its seed.

    Rows are typed (`isounc.studies.scaling.stored.typed_rows`).
    """
    chosen = rows["quantity"].isin(["epistemic", SD]) & rows["estimator"].isin(ESTIMATORS)
    rows = rows.loc[chosen, [*_CELL, *_WHICH, *_COLUMNS]]
    groups = rows.groupby([*_CELL, *_WHICH], sort=False)
    places: dict[Any, Any] = groups.indices
    arranged = {key: rows.iloc[at][_COLUMNS] for key, at in places.items()}
    return ByCell({key[: len(_CELL)] for key in arranged}, arranged, rows.iloc[:0][_COLUMNS])


def _key(cell: Cell, settings: Settings) -> tuple:
    return (
        *(cell.problem, cell.width, cell.depth, cell.activation, cell.parameterisation),
        *(cell.prior_sd, num_examples(cell, settings), cell.grid_margin),
    )


def select(
    of_cell: ByCell, cell: Cell, settings: Settings, protocol: Protocol, which: dict[str, str]
) -> pandas.DataFrame | None:
    """The rows of a cell under a protocol, one a seed; None if the cell was not computed."""
    key = _key(cell, settings)
    if key not in of_cell.cells:
        return None
    quantity = SD if protocol.moment == "sd" else "epistemic"
    place = (which["point"], which["region"], which["estimator"], quantity)
    rows = of_cell.rows.get((*key, *place), of_cell.none)
    names = set(rows["class"])
    view = protocol.view if protocol.view in names else min(names, default="")
    return rows[rows["class"] == view].set_index("seed").sort_index()


def groups(cells: Iterable[Cell], protocol: Protocol, over: str = "") -> dict[tuple, list[Cell]]:
    """Cells that differ in size alone, or in their problem alone (and the activation with it)."""
    free = {
        "problem": {"problem", "activation", "grid_margin"},
        "width": {"width"}, "depth": {"depth"}, "params": {"width", "depth"},
    }[over or protocol.axis]  # fmt: skip
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        key = tuple(getattr(cell, f) for f in Cell.__dataclass_fields__ if f not in free)
        groups.setdefault(key, []).append(cell)
    if not over:
        for group in groups.values():
            group.sort(key=lambda cell: (cell.depth, cell.width))
    return groups


def setting(
    cell: Cell, planned: Sequence[Cell], settings: Settings, protocol: Protocol,
    sizes: Sequence[str] = (),
) -> str:  # fmt: skip
    """What a protocol sweeps beside the size, and its value for a cell; empty if nothing."""
    free = set(sizes) or {"params": {"width", "depth"}}.get(protocol.axis, {protocol.axis})

    def value(of: Cell, field: str) -> Any:
        return num_examples(of, settings) if field == "n" else getattr(of, field)

    parts = []
    for field, name in _SWEPT.items():
        if field not in free and len({value(other, field) for other in planned}) > 1:
            mine = value(cell, field)
            text = f"{mine:g}" if isinstance(mine, float) else str(mine)
            parts.append(f"{name} {text}".strip())
    return ", ".join(parts)


def _verdict(
    cells: Sequence[Cell], found: Sequence[pandas.DataFrame | None], settings: Settings,
    protocol: Protocol,
) -> Row:  # fmt: skip
    """Slope, verdict and correlations of cells of one problem that differ in size."""
    there = [(c, f) for c, f in zip(cells, found, strict=True) if f is not None and len(f)]
    sizes = sorted({size(c, f, protocol.axis) for c, f in there})
    asked = (
        sorted({getattr(c, protocol.axis) for c in cells}) if protocol.axis != "params" else sizes
    )
    passed = [(size(c, f, protocol.axis), f[f["gate"] == "pass"]) for c, f in there]
    num_cells = sum(len(f) for _, f in there)
    num_passed = sum(len(f) for _, f in passed)
    row: Row = dict.fromkeys(VERDICT_COLUMNS[9:])
    row |= {
        "sizes": " ".join(map(str, asked)), "num_cells": num_cells, "num_passed": num_passed,
        "num_seeds": 0,
    }  # fmt: skip
    skipped = [why for cell in cells if (why := why_not_run(cell, settings))]
    if not there:
        if skipped:
            return row | {"verdict": "not run", "why": "; ".join(dict.fromkeys(skipped))}
        regions = ", ".join(protocol.regions)
        why = "no rows there" if any(f is not None for f in found) else "not computed yet"
        return row | {"verdict": "undefined", "why": f"{why} (region {regions})"}
    defined = [(s, f[f["pearson"].notna()]) for s, f in passed]
    defined = [(s, f) for s, f in defined if len(f)]
    if defined:
        # Of two cells with as many parameters, the deeper one.
        row["size"], at_largest = max(reversed(defined), key=lambda pair: pair[0])
        for statistic in ("pearson", "spearman"):
            values = at_largest[statistic].dropna().to_numpy(float)
            row |= _interval(statistic, interval_over_seeds(values))
    seeds = sorted({seed for _, f in defined for seed in f.index})
    if len({s for s, _ in defined}) > 1:
        for name, statistic in (("slope", "pearson"), ("spearman_slope", "spearman")):
            columns = [f[statistic].dropna().to_dict() for _, f in defined]
            by_seed = {seed: [column.get(seed) for column in columns] for seed in seeds}
            change = trend([s for s, _ in defined], by_seed)
            row |= dict(zip((f"{name}_{part}" for part in _PARTS), change[:3], strict=True))
            if name == "slope":
                row |= {"num_seeds": change.num_seeds, "verdict": _WORDS[change.verdict]}
                row["why"] = "one seed has no interval" if change.num_seeds == 1 else ""
    if row["slope_mean"] is None:
        row |= {"verdict": "undefined", "why": _why_undefined(there, passed, defined)}
    if skipped:
        row["why"] = "; ".join(filter(None, (row["why"], f"not run at some sizes: {skipped[0]}")))
    return row


def _why_undefined(
    there: Sequence[tuple[Cell, pandas.DataFrame]],
    passed: Sequence[tuple[int, pandas.DataFrame]],
    defined: Sequence[tuple[int, pandas.DataFrame]],
) -> str:
    """Why there is no slope."""
    if not any(len(f) for _, f in passed):
        return "no cell passed its gate"
    reasons = [r for _, f in passed for r in f.loc[f["pearson"].isna(), "reason"].dropna() if r]
    if reasons and len(defined) < 2:
        return "; ".join(dict.fromkeys(reason.partition(";")[0] for reason in reasons))
    sizes = len({s for s, _ in defined})
    if len({s for s, _ in passed}) < 2:
        return "there is one size"
    if sizes < 2:
        return f"cells passed their gate at {sizes} of {len(there)} sizes"
    return "no seed passed its gate at two sizes"


def _interval(name: str, interval: Interval) -> Row:
    return dict(zip((f"{name}_{part}" for part in _PARTS), interval[:3], strict=True))


def _differences(
    of_cell: ByCell, cell: Cell, settings: Settings, protocol: Protocol,
    which: dict[str, str],
) -> tuple[float, float | None] | None:  # fmt: skip
    """Absolute differences of the mean correlations over seeds from the paper's."""
    found = select(of_cell, cell, settings, protocol, which)
    if found is None:
        return None
    found = found[found["gate"] == "pass"]
    paper = TABLE1[cell.problem]["GN"]
    pearson, spearman = (
        interval_over_seeds(found[s].dropna().to_numpy(float)).mean for s in ("pearson", "spearman")
    )
    if pearson is None:
        return None
    return (
        abs(pearson - paper.pearson),
        None if spearman is None else abs(spearman - paper.spearman),
    )
