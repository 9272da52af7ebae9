"""Evidence on claims 1 to 6, from the results of the scaling study."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isounc.studies.claims.evidence import Row, records, row_of, row_of_interval
from isounc.studies.claims.measures import MEASURES
from isounc.studies.claims.rules import Condition, to_scale
from isounc.studies.claims.sources import NEEDED, PROTOCOLS, Source
from isounc.studies.claims.statements import NARROW, NARROWEST_WIDE, WIDE

if TYPE_CHECKING:
    import pandas

BASE = {
    "depth": 1, "activation": "tanh", "parameterisation": "ntk", "prior_sd": 2.0, "n": 100,
    "grid_margin": 0,
}  # fmt: skip
"""The base of the scaling runs. Those of earlier versions say nothing of n and the grid's margin,
which were these."""
_AXES = ["problem", "point", "region"]
_CELL = [*_AXES, "width", "seed"]
_COUNTS = ("num_cells", "num_failed", "num_undefined")
_PROTOCOL_IN = {"test": "near", "grid": "wide"}
"""The protocol of the scaling study that a sweep over widths is, by region."""


def scaling(
    sources: Sequence[Source], claims: Collection[str], note: Callable[[str, Source, str], None]
) -> list[Row]:
    """Rows of claims 1 to 6, from runs of the scaling study.

    Parameters
    ----------
    note
        Is told of a claim that a run says nothing about, and why.
    """
    rows: list[Row] = []
    for source in sources:
        table = source.table("results.csv", NEEDED["scaling"]["results.csv"])
        cells = _at_base(table)
        if cells.empty:
            for claim in "12356":
                note(claim, source, f"no cell at the base ({_spelled(BASE)})")
        numbers = _Numbers(cells)
        for claim in claims:
            if claim == "5" and "partial_spearman" not in table:
                note(claim, source, "its results.csv is of an earlier version, without "
                     "partial_spearman")  # fmt: skip
            elif claim in _OF_SCALING and not cells.empty:
                for measure, frame in _OF_SCALING[claim](numbers).items():
                    rows += _strata(claim, measure, frame, source)
            elif claim == "4":
                rows += _slopes(cells, source)
    return rows


class _Numbers:
    """Columns of result rows by estimator, with a row for each problem, place, width and seed."""

    def __init__(self, cells: pandas.DataFrame):
        self._cells = cells

    def of(
        self, estimator: str, column: str = "pearson", quantity: str = "epistemic"
    ) -> pandas.DataFrame:
        """A column of one estimator, beside the gate."""
        chosen = self._cells["estimator"].eq(estimator) & self._cells["quantity"].eq(quantity)
        rows = self._cells.loc[chosen, [*_CELL, "gate", column]]
        return rows.rename(columns={column: "value"})

    def difference(self, estimator: str, rival: str) -> pandas.DataFrame:
        """Pearson's r of one estimator less that of another in the same cell."""
        both = self.of(estimator).merge(
            self.of(rival).drop(columns="gate"), on=_CELL, suffixes=("", "_rival")
        )
        return both.assign(value=both["value"] - both["value_rival"])[[*_CELL, "gate", "value"]]


def _twice(numbers: _Numbers) -> pandas.DataFrame:
    """(A - E - V/2) / T, from three levels; not at draws, whose levels are means over draws.

    With A = p(1-p), E = E[p(1-p)], V = Var p, T = E + V and G = ||g||^2 as sums over the locations,
    the levels of the tables are a = E/A, e = V/G and t = T/(A + G). They give G/A = (a - t)/(t - e),
    and with it all others in units of A.
    """
    levels = numbers.of("isotropic", "slope", "aleatoric")
    for name, quantity in (("e", "epistemic"), ("t", "total")):
        other = numbers.of("isotropic", "slope", quantity).rename(columns={"value": name})
        levels = levels.merge(other.drop(columns="gate"), on=_CELL)
    a, e, t = (levels[name].to_numpy(float) for name in ("value", "e", "t"))
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = e * (a - t) / (t - e)
        value = (1 - a - variance / 2) / (a + variance)
    value[~((variance > 0) & np.isfinite(value))] = math.nan
    levels = levels[[*_CELL, "gate"]].assign(value=value)
    return levels[levels["point"].ne("draw")]


_OF_SCALING: Mapping[str, Callable[[_Numbers], Mapping[str, pandas.DataFrame]]] = {
    "1": lambda n: {"oracle": n.of("oracle"), "oracle, one chain": n.of("oracle_within_chain")},
    "2": lambda n: {
        "against the draws' Σ": n.difference("isotropic", "oracle"),
        "against Laplace's Σ": n.difference("isotropic", "laplace"),
    },
    "3": lambda n: {"correspondence": n.of("isotropic")},
    "5": lambda n: {
        "beyond p(1−p)": _classes(n.of("isotropic", "partial_spearman")),
        "r less that of p(1−p)": _classes(n.difference("isotropic", "null_aleatoric")),
    },
    "6": lambda n: {
        "p(1−p) tracks": _classes(n.of("isotropic", quantity="aleatoric")), "counted twice": _classes(_twice(n)),
    },
}  # fmt: skip
"""The measures of a claim from the numbers of a run."""


def _classes(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Without regressions, whose aleatoric part is a known constant."""
    return frame[~frame["problem"].str.endswith("regression")]


def _at_base(table: pandas.DataFrame) -> pandas.DataFrame:
    """The rows of the base, summed over classes where there are several."""
    keep = np.ones(len(table), bool)
    for column, value in BASE.items():
        if column in table:
            keep &= table[column].eq(value).fillna(False).to_numpy(bool)
    cells = table[keep]
    classes = cells["class"].isin(["trace", "1", "f"])
    summed = cells.loc[cells["class"].eq("trace"), "problem"].unique()
    cells = cells[classes & (cells["class"].eq("trace") | ~cells["problem"].isin(summed))].copy()
    for column in ("pearson", "partial_spearman", "slope"):
        if column in cells:
            cells[column] = cells[column].to_numpy(float, na_value=math.nan)
    return cells


def _strata(claim: str, measure: str, frame: pandas.DataFrame, source: Source) -> list[Row]:
    """Rows of a measure: seeds average their cells that passed and are defined, in each band."""
    band = np.where(frame["width"].to_numpy(int) < NARROWEST_WIDE, NARROW, WIDE)
    cells = _counted(frame).assign(
        setting=band, value=to_scale(frame["value"].to_numpy(float), MEASURES[measure].scale)
    )
    place = [*_AXES, "setting"]
    widths = cells[cells["num_cells"]].groupby(place)["width"].unique().to_dict()
    return [
        row_of(claim, Condition(measure, *where), problem, values, source) | counts
        | {"widths": " ".join(map(str, sorted(widths.get((problem, *where), ()))))}
        for (problem, *where), values, counts in _by_place(cells, place)
    ]  # fmt: skip


def _counted(frame: pandas.DataFrame) -> pandas.DataFrame:
    """With columns that say which cells failed their gate, are undefined, or count."""
    failed = ~frame["gate"].eq("pass").fillna(False).to_numpy(bool)
    undefined = ~failed & ~np.isfinite(frame["value"].to_numpy(float))
    return frame.assign(num_failed=failed, num_undefined=undefined, num_cells=~(failed | undefined))


def _by_place(cells: pandas.DataFrame, place: list[str]) -> Iterator[tuple[Any, list[float], Row]]:
    """For each place the mean of every seed's cells that count, and how many cells there are."""
    seeds = cells[cells["num_cells"]].groupby([*place, "seed"], sort=True)["value"].mean()
    values: dict[Any, list[float]] = {}
    means: dict[Any, float] = seeds.to_dict()
    for (*where, _), value in means.items():
        values.setdefault(tuple(where), []).append(float(value))
    for where, counts in _counts(cells, place).items():
        yield where, values.get(where, []), counts


def _counts(cells: pandas.DataFrame, place: list[str]) -> dict[Any, Row]:
    """How many cells count, failed and are undefined, for each place in the order of the rows."""
    found: Any = cells.groupby(place, sort=False)[list(_COUNTS)].sum().to_dict("index")
    return {where: {name: int(n) for name, n in counts.items()} for where, counts in found.items()}


def _slopes(cells: pandas.DataFrame, source: Source) -> list[Row]:
    """Changes of r with the size: of protocols, or by width near the data and on the grid."""
    if source.has("verdicts.csv"):
        table = source.table("verdicts.csv", PROTOCOLS)
        rows, seen = [], set()
        for verdict in records(table[table["estimator"].eq("isotropic")]):
            same = tuple(verdict[n] for n in ("problem", "point", "slope_mean", "slope_low"))
            if verdict["slope_mean"] is not None and same in seen:
                continue
            seen.add(same)
            setting = f"protocol {verdict['protocol']}"
            setting += f", {verdict['setting']}" if verdict["setting"] else ""
            where = Condition("slope", verdict["point"], "", setting)
            row = row_of_interval("4", where, verdict, source, "slope_")
            passed, planned = (int(verdict[name] or 0) for name in ("num_passed", "num_cells"))
            rows.append(row | {"num_cells": passed, "num_failed": planned - passed})
        return rows
    numbers = _counted(_Numbers(cells).of("isotropic"))
    numbers = numbers[numbers["region"].isin(list(_PROTOCOL_IN))].copy()
    log_width = np.log2(numbers["width"].to_numpy(float))
    # Cells that do not count have no part in a slope, whose parts are sums over the widths.
    numbers["x"] = np.where(numbers["num_cells"], log_width, math.nan)
    of_seed = numbers.groupby([*_AXES, "seed"], sort=False)
    x = numbers["x"] - of_seed["x"].transform("mean")
    parts = numbers.assign(xy=x * numbers["value"], xx=x**2).groupby([*_AXES, "seed"])
    slopes: dict[Any, float] = (parts["xy"].sum() / parts["xx"].sum()).to_dict()
    found: dict[Any, list[float]] = {}
    for (*where, _), slope in slopes.items():
        if math.isfinite(slope):
            found.setdefault(tuple(where), []).append(float(slope))
    rows = []
    for (problem, point, region), counts in _counts(numbers, _AXES).items():
        where = Condition("slope", point, "", f"protocol {_PROTOCOL_IN[region]}")
        own = found.get((problem, point, region), [])
        rows.append(row_of("4", where, problem, own, source) | counts)
    return rows


def _spelled(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
