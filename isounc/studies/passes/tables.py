"""The tables of a passes run: means over seeds, paired differences, and where one overtakes another.

The unit of replication is the seed. `all` is the mean over the problems, of seeds
that passed and are defined in all of them (but for problems of which no seed passed).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from isounc.fields import integer, number, text
from isounc.runs.style import REGION_LOOKS
from isounc.statistics import Interval, interval_over_seeds
from isounc.studies.passes.estimates import COMPARED, ESTIMATES, VIEWS
from isounc.studies.passes.settings import ALL, KINDS

if TYPE_CHECKING:
    pass

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]
STATISTICS = ("pearson", "spearman")
"""Correlations of which differences and crossings are made."""


class Pair(NamedTuple):
    """Two estimates that are compared seed by seed."""

    estimate: str
    """Name of the first in `ESTIMATES`."""
    rival: str
    """Name of the second."""
    terms: str = "same K"
    """A key of `TERMS`: how many networks the second has."""


TERMS = {
    "same K": "",
    "same passes": " for as many passes",
    "one network": " of one network",
}
"""How many networks the second of a pair has: as many, as many as the passes of the first buy, or
one; with the words that tables put behind it."""
PAIRS = (
    Pair("variance", "mean_norm"),
    Pair("variance", "mean_logit_scaled"),
    Pair("variance", "label_variance"),
    Pair("variance", "mean_norm", "same passes"),
    Pair("variance", "mean_logit_scaled", "same passes"),
    Pair("variance", "mean_logit_scaled", "one network"),
    Pair("mean_norm", "label_variance"),
    Pair("mean_logit_scaled", "mean_norm"),
    Pair("mean_logit_scaled", "label_variance"),
    Pair("combined", "variance"),
    Pair("combined", "mean_norm"),
    Pair("mean_norm", "mean_norm", "one network"),
    Pair("mean_logit_scaled", "mean_logit_scaled", "one network"),
)
"""Differences that are tabulated: the first less the second."""

_COST = ("passes", "forward", "backward", "seconds", "seconds_to_make")
_TEXTS = ("gate_reasons", "reason")
RESULT_COLUMNS = (
    *("problem", "seed", "kind", "region", "class", "count", "estimate", *_COST),
    *(*COMPARED, "num_groups", "num_groups_undefined", "gate", *_TEXTS),
)
"""Columns of `results.csv`."""
SUMMARY_COLUMNS = (
    *("class", "problem", "kind", "region", "estimate", "count", *_COST),
    *("num_seeds", "num_failed_gate", "num_undefined"),
    *(f"{name}_{part}" for name in COMPARED for part in ("mean", "low", "high")),
)
"""Columns of `summary.csv`."""
_WHERE = ("problem", "kind", "region", "statistic", "estimate", "rival", "terms")
DIFFERENCE_COLUMNS = ("class", *_WHERE, "count", "num_seeds", "mean", "low", "high")
"""Columns of `differences.csv`."""
CROSSING_COLUMNS = ("class", *_WHERE, "crossing", "beyond_doubt", "largest")
"""Columns of `crossings.csv`."""

_REAL = number(default=None)
ROW = {
    "problem": text(longest=1000),
    "seed": integer(0, 2**63 - 1),
    "kind": text(KINDS),
    "region": text(longest=1000),
    "class": text(VIEWS, VIEWS[0]),
    "count": integer(1, 10**9),
    "estimate": text(ESTIMATES),
    "gate": text(("pass", "fail")),
    **dict.fromkeys(_COST, number(0)),
    **dict.fromkeys(COMPARED, number(-1 - 1e-6, 1 + 1e-6, None)),
    **dict.fromkeys(("num_groups", "num_groups_undefined"), integer(0, 10**9)),
    **dict.fromkeys(_TEXTS, text(longest=100_000, default="")),
}
"""What a row of a record must hold, which anybody may have edited."""


class Quality:
    """Correlations by what they are of, for the means and differences over seeds.

    The rows are those of one view of the classes.
    """

    def __init__(self, rows: Sequence[Row]):
        self._rows: dict[tuple, dict[tuple[str, int], Row]] = {}
        for row in rows:
            key = (row["kind"], row["region"], row["estimate"], row["count"])
            self._rows.setdefault(key, {})[row["problem"], row["seed"]] = row
        self.problems = list(dict.fromkeys(row["problem"] for row in rows))
        found = dict.fromkeys(row["region"] for row in rows)
        self.regions = sorted(found, key=lambda name: (*REGION_LOOKS, name).index(name))
        self.kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
        self.counts = sorted({row["count"] for row in rows})
        self.seeds = sorted({row["seed"] for row in rows})
        self._passing: dict[tuple[str, str], dict[str, None]] = {}
        for row in rows:
            if row["gate"] == "pass":
                place = (row["kind"], row["region"])
                self._passing.setdefault(place, {})[row["problem"]] = None

    def rows(self, problem: str, kind: str, region: str, estimate: str, count: int) -> list[Row]:
        """The rows of all seeds; of all problems for `ALL`."""
        cells = self._rows.get((kind, region, estimate, count), {})
        return [row for (name, _), row in cells.items() if problem in (ALL, name)]

    def by_seed(
        self,
        number: Callable[[tuple[str, int]], float | None],
        problem: str,
        kind: str,
        region: str,
    ) -> list[float]:
        """A number of each seed of a problem; for `ALL` its means, of seeds in which all have it.

        These are the problems that have the region, and of which any seed passed.
        """
        among = self._passing.get((kind, region), {}) if problem == ALL else [problem]
        values = []
        for seed in self.seeds:
            found = [number((name, seed)) for name in among]
            known = [value for value in found if value is not None]
            if known and len(known) == len(found):
                values.append(float(np.mean(known)))
        return values

    def row(
        self, kind: str, region: str, estimate: str, count: int, cell: tuple[str, int]
    ) -> Row | None:
        """The row of a (problem, seed) that passed."""
        row = self._rows.get((kind, region, estimate, count), {}).get(cell)
        return row if row is not None and row["gate"] == "pass" else None

    def value(
        self,
        kind: str,
        region: str,
        estimate: str,
        count: int,
        statistic: str,
        cell: tuple[str, int],
    ) -> float | None:
        """A statistic of a (problem, seed) that passed and of which it is defined."""
        row = self.row(kind, region, estimate, count, cell)
        return None if row is None else row[statistic]

    def difference(
        self, pair: Pair, kind: str, region: str, count: int, statistic: str, cell: tuple[str, int]
    ) -> float | None:
        """The first of a pair for K = `count` less the second, of a (problem, seed)."""
        first = self.row(kind, region, pair.estimate, count, cell)
        rival = count if pair.terms == "same K" else 1
        if first is not None and pair.terms == "same passes":
            bought = [
                k
                for k in self.counts
                if (row := self.row(kind, region, pair.rival, k, cell)) is not None
                and row["passes"] <= first["passes"]
            ]
            rival = max(bought, default=0)
        second = self.row(kind, region, pair.rival, rival, cell)
        if first is None or second is None or None in (first[statistic], second[statistic]):
            return None
        return first[statistic] - second[statistic]


def summarise(quality: Quality) -> Rows:
    """Means and intervals over seeds of each estimate, by problem and over all problems."""
    summary = []
    for problem, kind, region, name, count in itertools.product(
        [ALL, *quality.problems], quality.kinds, quality.regions, ESTIMATES, quality.counts
    ):
        rows = quality.rows(problem, kind, region, name, count)
        if not rows:
            continue
        passed = [row for row in rows if row["gate"] == "pass"]
        line: dict[str, Any] = {
            "problem": problem, "kind": kind, "region": region, "estimate": name, "count": count,
            **{column: float(np.median([row[column] for row in rows])) for column in _COST},
            "num_failed_gate": len(rows) - len(passed),
            "num_undefined": sum(row["pearson"] is None for row in passed),
        }  # fmt: skip
        for statistic in COMPARED:
            value = functools.partial(quality.value, kind, region, name, count, statistic)
            interval = interval_over_seeds(quality.by_seed(value, problem, kind, region))
            line |= _parts(interval, f"{statistic}_")
            if statistic == "pearson":
                line["num_seeds"] = interval.num_seeds
        summary.append(line)
    return summary


def differences(quality: Quality) -> Rows:
    """Differences of the correlations of each of `PAIRS`, paired by problem and seed."""
    rows = []
    for problem, kind, region, statistic, pair in itertools.product(
        [ALL, *quality.problems], quality.kinds, quality.regions, STATISTICS, PAIRS
    ):
        for count in quality.counts:
            if (pair.estimate, pair.terms, count) == (pair.rival, "one network", 1):
                continue  # an estimate less itself
            difference = functools.partial(quality.difference, pair, kind, region, count, statistic)
            interval = interval_over_seeds(
                quality.by_seed(difference, problem, kind, region), kind="mean"
            )
            if interval.mean is None and count < ESTIMATES[pair.estimate].least:
                continue
            rows.append({
                "problem": problem, "kind": kind, "region": region, "statistic": statistic,
                **pair._asdict(), "count": count, "num_seeds": interval.num_seeds,
                **_parts(interval),
            })  # fmt: skip
    return rows


def _parts(interval: Interval, prefix: str = "") -> dict[str, float | None]:
    return {f"{prefix}{part}": getattr(interval, part) for part in ("mean", "low", "high")}


def crossings(differences: Sequence[Row]) -> Rows:
    """The smallest K from which on the first of a pair is ahead, by the mean and beyond doubt.

    Parameters
    ----------
    differences
        Rows of `differences`.

    Returns
    -------
    list
        A row for each place and pair: `crossing` is the smallest K at which, and at every larger
        one, the mean difference is above zero; `beyond_doubt` the same of its interval; None where
        the largest K is not such a one. `largest` is the largest K with a difference.
    """
    places: dict[tuple, list[Row]] = {}
    for row in differences:
        places.setdefault(tuple(row[column] for column in _WHERE), []).append(row)
    rows = []
    for where, group in places.items():
        known = sorted((r for r in group if r["mean"] is not None), key=lambda r: r["count"])
        rows.append({
            **dict(zip(_WHERE, where, strict=True)),
            "crossing": _ahead_from(known, "mean"),
            "beyond_doubt": _ahead_from(known, "low"),
            "largest": known[-1]["count"] if known else None,
        })  # fmt: skip
    return rows


def _ahead_from(rows: Sequence[Row], end: str) -> int | None:
    """The K from which on this end of the differences, ascending in K, is above zero."""
    ahead = list(itertools.takewhile(lambda r: r[end] is not None and r[end] > 0, rows[::-1]))
    return ahead[-1]["count"] if ahead else None
