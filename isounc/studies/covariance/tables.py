"""The tables of a covariance run: means over seeds, and verdicts.

The unit of replication is the seed. `all` among the problems is the mean over those that have two
seeds that passed and are defined, each with the same weight; among the regions it is all locations
together. `others` is the mean over the proxies of another distribution than the training inputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from isounc.fields import integer, number, text
from isounc.runs.style import REGION_LOOKS
from isounc.statistics import Over, over_seeds, verdict
from isounc.studies.covariance.cell import PRIOR, STRUCTURE, Key
from isounc.studies.covariance.forms import FORMS
from isounc.studies.covariance.proxies import PROXIES, SAME
from isounc.studies.covariance.settings import ALL, POINTS
from isounc.studies.covariance.verdicts import (
    CORRELATIONS,
    EVERY_PROXY,
    HYPOTHESES,
    Hypothesis,
)

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]
OTHERS = "others"
"""Name of the mean over the proxies of another distribution."""
NUMBERS = (*CORRELATIONS, "log2_level", *STRUCTURE)
"""Numbers of a row that are averaged over seeds."""
RESULT_COLUMNS = (
    *("problem", "width", "seed", *Key._fields, "region", *NUMBERS),
    *("gate", "gate_reasons", "reason"),
)
"""Columns of `results.csv`."""
SUMMARY_COLUMNS = (
    *("problem", "width", *Key._fields, "region", "num_cells", "num_failed", "num_seeds"),
    *(f"{name}_{part}" for name in NUMBERS for part in ("mean", "low", "high")),
)
"""Columns of `summary.csv`."""
VERDICT_COLUMNS = (
    *("hypothesis", "problem", "width", "point", "proxy", "region", "statistic", "bound"),
    *("mean", "low", "high", "num_seeds", "num_problems", "verdict"),
)
"""Columns of `verdicts.csv`."""

_CORRELATION = number(-1 - 1e-6, 1 + 1e-6, None)
ROW = {
    "problem": text(longest=1000),
    "width": integer(1, 10**9),
    "seed": integer(0, 2**63 - 1),
    "point": text(POINTS),
    "proxy": text(PROXIES),
    "form": text(FORMS),
    "lam": number(above=0),
    "region": text(longest=1000),
    **dict.fromkeys(NUMBERS, number(default=None)),
    **dict.fromkeys(CORRELATIONS, _CORRELATION),
    "gate": text(("pass", "fail")),
    **dict.fromkeys(("gate_reasons", "reason"), text(longest=100_000, default="")),
}
"""What a row must hold, which anybody may have edited."""


class Place(NamedTuple):
    """Where estimates are compared, and at which point they are made."""

    width: int
    """Hidden units per layer."""
    point: str
    """theta*."""
    region: str
    """The region."""


class Results:
    """Rows by what they are about, for the means and differences over seeds."""

    def __init__(self, rows: Iterable[Row]):
        self._rows: dict[tuple[Place, Key], dict[tuple[str, int], Row]] = {}
        for row in rows:
            place = Place(row["width"], row["point"], row["region"])
            key = Key(*(row[name] for name in Key._fields))
            self._rows.setdefault((place, key), {})[row["problem"], row["seed"]] = row
        cells = [cell for found in self._rows.values() for cell in found]
        self.problems = list(dict.fromkeys(problem for problem, _ in cells))
        places = {place for place, _ in self._rows}
        keys = {key for _, key in self._rows}
        self.widths = sorted({place.width for place in places})
        self.points = [point for point in POINTS if any(p.point == point for p in places)]
        looks = (*REGION_LOOKS, *sorted({p.region for p in places} - {*REGION_LOOKS, ALL}), ALL)
        self.regions = [name for name in looks if any(p.region == name for p in places)]
        self.proxies = [name for name in PROXIES if any(key.proxy == name for key in keys)]
        self.forms = [name for name in FORMS if any(key.form == name for key in keys)]
        self.lams = sorted({key.lam for key in keys})

    def rows(self, place: Place, key: Key, problem: str) -> list[Row]:
        """The rows of all seeds of a problem, or for `ALL` of all problems."""
        found = self._rows.get((place, key), {})
        return [row for (name, _), row in found.items() if problem in (ALL, name)]

    def row(self, place: Place, key: Key, cell: tuple[str, int]) -> Row | None:
        """The row of a (problem, seed) that passed."""
        row = self._rows.get((place, key), {}).get(cell)
        return row if row is not None and row["gate"] == "pass" else None

    def others(self, place: Place, problem: str) -> list[str]:
        """The proxies of another distribution that a problem has."""
        return [
            proxy for proxy in self.proxies
            if proxy not in SAME
            and self.rows(place, Key(place.point, proxy, "full", PRIOR), problem)
        ]  # fmt: skip

    def over(
        self, number: Callable[[tuple[str, int]], float | None], place: Place, problem: str
    ) -> Over:
        """The interval over the seeds of a number that some of them have."""
        train = Key(place.point, "train", "full", PRIOR)
        values: dict[str, list[float]] = {}
        for cell in self._rows.get((place, train), {}):
            if problem in (ALL, cell[0]) and (value := number(cell)) is not None:
                values.setdefault(cell[0], []).append(value)
        return over_seeds(values, None if problem == ALL else problem)

    def mean_over(self, place: Place, key: Key, column: str, problem: str) -> Over:
        """The interval over the seeds of a column; its proxy may be `OTHERS`."""
        return self.over(lambda cell: self.mean_of(cell, place, key, column), place, problem)

    def mean_of(self, cell: tuple[str, int], place: Place, key: Key, column: str) -> float | None:
        """A number of a (problem, seed), for `OTHERS` the mean over these proxies."""
        proxies = self.others(place, cell[0]) if key.proxy == OTHERS else [key.proxy]
        rows = [self.row(place, key._replace(proxy=proxy), cell) for proxy in proxies]
        return _mean([None if row is None else row[column] for row in rows])

    def tested(
        self, hypothesis: Hypothesis, place: Place, proxy: str, column: str, problem: str
    ) -> Over:
        """The interval over the seeds of the number of a hypothesis."""
        return self.over(
            lambda cell: _mean([
                self.number(cell, hypothesis, place, name, column)
                for name in (self.others(place, cell[0]) if proxy == OTHERS else [proxy])
            ]),
            place, problem,
        )  # fmt: skip

    def number(
        self, cell: tuple[str, int], hypothesis: Hypothesis, place: Place, proxy: str, column: str
    ) -> float | None:
        """The number of a hypothesis of a (problem, seed) and a proxy."""
        mine = self.row(place, Key(place.point, proxy, hypothesis.form, PRIOR), cell)
        value = None if mine is None else mine[column]
        form, other = hypothesis.rival
        if not form or value is None:
            return value
        theirs = self.row(place, Key(place.point, other or proxy, form, PRIOR), cell)
        return None if theirs is None or theirs[column] is None else value - theirs[column]

    def places(self) -> Iterable[tuple[str, Place]]:
        """Problems (`ALL` first) with widths, points and regions."""
        for problem, width, point, region in itertools.product(
            [ALL, *self.problems], self.widths, self.points, self.regions
        ):
            yield problem, Place(width, point, region)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, if there is one and all values are known."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def summarise(results: Results) -> Rows:
    """Means and intervals over seeds of every number, by problem and over the problems."""
    summary = []
    for problem, place in results.places():
        for proxy, form, lam in itertools.product(results.proxies, results.forms, results.lams):
            key = Key(place.point, proxy, form, lam)
            rows = results.rows(place, key, problem)
            if not rows:
                continue
            line: dict[str, Any] = {
                "problem": problem, "width": place.width, **key._asdict(), "region": place.region,
                "num_cells": len(rows), "num_failed": sum(row["gate"] == "fail" for row in rows),
            }  # fmt: skip
            for name in NUMBERS:
                if all(row[name] is None for row in rows):
                    continue
                interval = results.mean_over(place, key, name, problem).interval
                line |= {f"{name}_{part}": getattr(interval, part) for part in interval._fields[:3]}
                if name == CORRELATIONS[0]:
                    line["num_seeds"] = interval.num_seeds
            summary.append(line)
    return summary


def verdicts(results: Results) -> Rows:
    """What the intervals say about each hypothesis, by problem and over the problems."""
    rows = []
    for problem, place in results.places():
        for name, hypothesis in HYPOTHESES.items():
            if hypothesis.region not in ("", place.region) or (
                not hypothesis.region and place.region == ALL
            ):
                continue
            proxies = ["train"]
            if name != EVERY_PROXY:
                proxies = [OTHERS, *(proxy for proxy in results.proxies if proxy != "train")]
            columns = (hypothesis.column,) if hypothesis.column else CORRELATIONS
            for proxy, column in itertools.product(proxies, columns):
                over = results.tested(hypothesis, place, proxy, column, problem)
                if not over.interval.num_seeds:
                    continue
                rows.append({
                    "hypothesis": name, "problem": problem, "width": place.width,
                    "point": place.point, "proxy": proxy, "region": place.region,
                    "statistic": column, "bound": hypothesis.bound, **over.columns(),
                    "verdict": verdict(over.interval, hypothesis.bound, below=hypothesis.below),
                })  # fmt: skip
    return rows


def failing(rows: Iterable[Row]) -> Rows:
    """The cells that fail, by point and region, with the reasons; `ALL` fails with any region."""
    names = ("problem", "width", "seed", "point", "region")
    failed: dict[tuple, str] = {}
    for row in rows:
        if row["gate"] == "fail":
            failed.setdefault(tuple(row[name] for name in names), row["gate_reasons"])
    names = (*names, "reasons")
    return [dict(zip(names, (*where, why), strict=True)) for where, why in failed.items()]
