"""Evidence from the tables of the studies: a number of each problem in each condition.

Each function takes the runs of one study, and gives rows of `ROW_COLUMNS`. Where several runs have a
problem in a condition, the one with the most seeds counts (`best`): seeds of different runs may be the
same data, and are never pooled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import stdtrit

from isounc.runs import files
from isounc.studies.claims.rules import MEASURES, Condition, Stratum, stratum, to_scale
from isounc.studies.claims.sources import NEEDED, PROTOCOLS, Source
from isounc.studies.claims.statements import NARROW, NARROWEST_WIDE, WIDE

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]
ROW_COLUMNS = (
    "claim", *Condition._fields, "problem", "mean", "se", "num_seeds", "num_cells", "num_failed",
    "num_undefined", "source",
)  # fmt: skip
"""Columns of `results.csv`; mean and se are on the measure's scale."""
BASE = {
    "depth": 1, "activation": "tanh", "parameterisation": "ntk", "prior_sd": 2.0, "n": 100,
    "grid_margin": 0,
}  # fmt: skip
"""The base of the scaling runs. Those of earlier versions say nothing of n and the grid's margin,
which were these."""
REAL = ("breast_cancer", "wine", "digits_3v8")
"""Problems whose data are real."""
_AXES = ("problem", "point", "region")
_CELL = [*_AXES, "width", "seed"]


def scaling(sources: Sequence[Source], claims: Iterable[str], note: Callable[[str, Source, str], None]):
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

    def of(self, estimator: str, column: str = "pearson", quantity: str = "epistemic"):
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
    """Σ(A − E − V/2) / ΣT over the locations, from three levels.

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
    return levels[[*_CELL, "gate"]].assign(value=value)


_OF_SCALING: Mapping[str, Callable[[_Numbers], Mapping[str, pandas.DataFrame]]] = {
    "1": lambda n: {"oracle": n.of("oracle"), "oracle, one chain": n.of("oracle_within_chain")},
    "2": lambda n: {
        "less than oracle": n.difference("isotropic", "oracle"),
        "less than Laplace": n.difference("isotropic", "laplace"),
    },
    "3": lambda n: {"correspondence": n.of("isotropic")},
    "5": lambda n: {
        "beyond p(1−p)": _classes(n.of("isotropic", "partial_spearman")),
        "r less that of p(1−p)": _classes(n.difference("isotropic", "null_aleatoric")),
    },
    "6": lambda n: {
        "tracks": _classes(n.of("isotropic", quantity="aleatoric")), "twice": _classes(_twice(n)),
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
    rows, scale = [], MEASURES[measure].scale
    band = np.where(frame["width"].to_numpy(int) < NARROWEST_WIDE, NARROW, WIDE)
    for (problem, point, region, setting), cells in frame.assign(setting=band).groupby(
        [*_AXES, "setting"], sort=False, observed=True
    ):
        passed = cells[cells["gate"].eq("pass")]
        defined = passed[np.isfinite(passed["value"].to_numpy(float))]
        seeds = {
            seed: np.mean([to_scale(v, scale) for v in values])
            for seed, values in defined.groupby("seed")["value"]
        }
        counts = {
            "num_cells": len(defined), "num_failed": len(cells) - len(passed),
            "num_undefined": len(passed) - len(defined),
        }  # fmt: skip
        where = Condition(measure, str(point), str(region), str(setting))
        rows.append(_row(claim, where, str(problem), list(seeds.values()), source) | counts)
    return rows


def _row(
    claim: str, where: Condition, problem: str, values: Sequence[float], source: Source
) -> Row:
    """A row, whose mean and error are empty below two seeds."""
    numbers: Row = {"mean": None, "se": None, "num_seeds": len(values)}
    if len(values) >= 2:
        part = stratum(problem, values)
        numbers = {"mean": part.mean, "se": part.se, "num_seeds": part.num_seeds}
    return {"claim": claim, **where._asdict(), "problem": problem, **numbers, "source": source.name}


def _slopes(cells: pandas.DataFrame, source: Source) -> list[Row]:
    """Changes of r with the size: of protocols, or by width near the data and on the grid."""
    if files.table_path(source.run.path, "verdicts.csv") is not None:
        table = source.table("verdicts.csv", PROTOCOLS)
        rows = []
        for verdict in _records(table[table["estimator"].eq("isotropic")]):
            setting = f"protocol {verdict['protocol']}"
            setting += f", {verdict['setting']}" if verdict["setting"] else ""
            where = Condition("slope", verdict["point"], "", setting)
            row = _of_interval("4", where, verdict, source, "slope_")
            passed, planned = (int(verdict[name] or 0) for name in ("num_passed", "num_cells"))
            rows.append(row | {"num_cells": passed, "num_failed": planned - passed})
        return rows
    rows = []
    numbers = _Numbers(cells).of("isotropic")
    for region, protocol in (("test", "near"), ("grid", "wide")):
        there = numbers[numbers["region"].eq(region)]
        for (problem, point), group in there.groupby(["problem", "point"], sort=False, observed=True):
            passed = group[group["gate"].eq("pass")]
            defined = passed[np.isfinite(passed["value"].to_numpy(float))]
            slopes = [
                float(np.polyfit(np.log2(seed["width"].to_numpy(float)), seed["value"], 1)[0])
                for _, seed in defined.groupby("seed")
                if seed["width"].nunique() > 1
            ]
            where = Condition("slope", str(point), "", f"protocol {protocol}")
            rows.append(
                _row("4", where, str(problem), slopes, source)
                | {"num_cells": len(defined), "num_failed": len(group) - len(passed),
                   "num_undefined": len(passed) - len(defined)}
            )  # fmt: skip
    return rows


def _of_interval(
    claim: str, where: Condition, verdict: Mapping[str, Any], source: Source, prefix: str = ""
) -> Row:
    """A row from a mean with its Student 95% interval over the seeds of one problem."""
    mean, low, high = (verdict[f"{prefix}{part}"] for part in ("mean", "low", "high"))
    n = int(verdict["num_seeds"] or 0)
    row = _row(claim, where, str(verdict["problem"]), [], source) | {"num_seeds": n}
    if n >= 2 and None not in (mean, low, high):
        row |= {"mean": mean, "se": (high - low) / 2 / float(stdtrit(n - 1, 0.975))}
    return row


def _records(table: pandas.DataFrame) -> list[Row]:
    """Rows with None for empty cells."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _spelled(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def covariance(sources: Sequence[Source]) -> list[Row]:
    """Rows of claim 7, from the verdicts of the covariance study on the mean of the other data."""
    names = {
        "distorts": "distorts", "structured": "structured", "isotropic wins": "isotropic avoids it"
    }  # fmt: skip
    rows = []
    for source in sources:
        table = source.table("verdicts.csv", NEEDED["covariance"]["verdicts.csv"])
        chosen = table[
            table["hypothesis"].isin(list(names)) & table["proxy"].eq("others")
            & table["problem"].ne("all") & table["statistic"].ne("spearman")
        ]  # fmt: skip
        for row in _records(chosen):
            data = "real data" if row["problem"] in REAL else "made-up data"
            region = "" if row["region"] == "all" else row["region"]
            setting = f"{data}, width {row['width']}"
            where = Condition(names[row["hypothesis"]], row["point"], region, setting)
            rows.append(_of_interval("7", where, row, source))
    return rows


def spectrum(sources: Sequence[Source]) -> list[Row]:
    """Rows of claim 8, from the verdicts of the spectrum study at the largest width of each run."""
    names = {"isotropic in trace": "in trace", "order kept": "for gradients"}
    rows = []
    for source in sources:
        table = source.table("verdicts.csv", NEEDED["spectrum"]["verdicts.csv"])
        chosen = table[table["hypothesis"].isin(list(names)) & table["problem"].ne("all")]
        found = _records(chosen)
        widest = max((row["width"] for row in found if row["width"]), default=None)
        for row in found:
            if row["width"] != widest:
                continue
            region = "" if row["region"] == "all" else row["region"]
            setting = f"{row['parameterisation']}, width {row['width']}, depth {row['depth']}, n {row['n']}"
            where = Condition(names[row["hypothesis"]], row["point"], region, setting)
            rows.append(_of_interval("8", where, row, source))
    return rows


def shift(sources: Sequence[Source]) -> list[Row]:
    """Rows of claim 9, from the verdicts of the shift study on the isotropic score."""
    names = {"detects": "outside", "keeps its rate": "inside"}
    rows = []
    for source in sources:
        table = source.table("verdicts.csv", NEEDED["shift"]["verdicts.csv"])
        chosen = table[
            table["hypothesis"].isin(list(names)) & table["score"].eq("isotropic")
            & table["problem"].ne("all") & table["network"].ne("all")
        ]  # fmt: skip
        for row in _records(chosen):
            where = Condition(names[row["hypothesis"]], row["network"], row["shift"], "")
            rows.append(_of_interval("9", where, row, source))
    return rows


def qa(sources: Sequence[Source], claims: Iterable[str]) -> list[Row]:
    """Rows of claims 11 and 12, from the tests, correlations and gains of the qa study."""
    rows = []
    for source in sources:
        tables = {
            name: _records(source.table(name, needed)) for name, needed in NEEDED["qa"].items()
        }
        estimands = {
            (row["model"], row["benchmark"]): row["extra"].partition("/")[2]
            for row in tables["gains.csv"]
            if row["extra"].startswith("epistemic/")
        }
        for (model, benchmark), estimand in estimands.items():
            def the(table: str, **which: Any) -> Row | None:
                which |= {"model": model, "benchmark": benchmark}
                return next(
                    (r for r in tables[table] if all(r[k] == v for k, v in which.items())), None
                )

            total, norm = f"total_sum/{estimand}", f"epistemic/{estimand}"
            against = next(
                (r["against"] for r in tables["tests.csv"] if r["against"].startswith("best of")
                 and (r["model"], r["benchmark"]) == (model, benchmark)), ""
            )  # fmt: skip
            conflict = benchmark.startswith("truthfulqa")
            found = [
                ("11", "combined is best", conflict, the("tests.csv", score=total, against=against),
                 "gain", 0.0),
                ("11", "chance on recall", not conflict, the("results.csv", score=total), "auroc", 0.5),
                ("12", "different", True, the("correlations.csv", score=norm, other="p_true"),
                 "spearman", 0.0),
                ("12", "a signal", True, the("gains.csv", extra=norm), "gain", 0.0),
            ]  # fmt: skip
            for claim, measure, wanted, row, column, origin in found:
                if claim in claims and wanted and row is not None and row[column] is not None:
                    where = Condition(measure, model, benchmark, "")
                    rows.append(_row(claim, where, benchmark, [], source) | {
                        "mean": row[column] - origin, "se": row[f"{column}_se"],
                        "num_seeds": row["num_questions"],
                    })  # fmt: skip
    return rows


def best(rows: Iterable[Row]) -> list[Row]:
    """Of the runs that have a problem in a condition, the one with the most seeds, then cells."""
    chosen: dict[tuple, Row] = {}
    for row in rows:
        key = (row["claim"], *(row[name] for name in Condition._fields), row["problem"])
        size = (row["mean"] is not None, row["num_seeds"], row.get("num_cells") or 0)
        other = chosen.get(key)
        if other is None or size > (
            other["mean"] is not None, other["num_seeds"], other.get("num_cells") or 0
        ):  # fmt: skip
            chosen[key] = row
    return list(chosen.values())


def conditions(rows: Iterable[Row], claim: str) -> dict[Condition, list[Stratum]]:
    """The strata of a claim by condition."""
    found: dict[Condition, list[Stratum]] = {}
    for row in rows:
        if row["claim"] == claim:
            where = Condition(*(row[name] or "" for name in Condition._fields))
            parts = found.setdefault(where, [])
            if row["mean"] is not None and row["se"] is not None:
                parts.append(Stratum(row["problem"], row["mean"], row["se"], row["num_seeds"]))
    return found
