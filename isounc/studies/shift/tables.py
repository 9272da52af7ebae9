"""The tables of a shift run: means over seeds, and verdicts.

The unit of replication is the seed. Of a problem, network and shift a number is that of its row.
`near`, `far` and `all` among the shifts are the means over a cell's shifts of that kind, all of which
must be known. `all` among the problems first takes the mean of a seed's networks (`mlp`, `cnn`; the
condition `logistic` by itself), then that over the problems with two seeds or more, each with the
same weight.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from isounc.fields import integer, number, text
from isounc.statistics import Over, over_seeds, verdict
from isounc.studies.shift.cell import IN_DISTRIBUTION, NUMBERS
from isounc.studies.shift.detection import HIGHER
from isounc.studies.shift.networks import NETWORKS
from isounc.studies.shift.scores import SCORES
from isounc.studies.shift.settings import ALL
from isounc.studies.shift.shifts import KINDS, PROBLEMS, SHIFTS
from isounc.studies.shift.verdicts import EVERY, HYPOTHESES, applies, rivals

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]
RESULT_COLUMNS = (
    *("problem", "network", "seed", "score", "higher", "shift", "kind", *NUMBERS),
    *("gate", "gate_reasons", "reason"),
)
"""Columns of `results.csv`."""
SUMMARY_COLUMNS = (
    *("problem", "network", "score", "higher", "shift", "num_cells", "num_failed", "num_seeds"),
    *(f"{name}_{part}" for name in NUMBERS for part in ("mean", "low", "high")),
)
"""Columns of `summary.csv`."""
VERDICT_COLUMNS = (
    *("hypothesis", "problem", "network", "score", "rival", "shift", "statistic", "bound"),
    *("mean", "low", "high", "num_seeds", "num_problems", "verdict"),
)
"""Columns of `verdicts.csv`."""
_SHARE = number(-1e-6, 1 + 1e-6, None)
ROW = {
    "problem": text(PROBLEMS),
    "network": text(NETWORKS),
    "seed": integer(0, 2**63 - 1),
    "score": text(SCORES),
    "higher": text(HIGHER),
    "shift": text((IN_DISTRIBUTION, *SHIFTS)),
    "kind": text(("in", *KINDS)),
    **dict.fromkeys(NUMBERS, _SHARE),
    "log2_ratio": number(default=None),
    **dict.fromkeys(("excess", "excess_train"), number(-1 - 1e-6, 1 + 1e-6, None)),
    "gate": text(("pass", "fail")),
    **dict.fromkeys(("gate_reasons", "reason"), text(longest=100_000, default="")),
}
"""What a row must hold, which anybody may have edited."""
POOLED = ("mlp", "cnn")
"""Networks over which `all` is the mean."""


class Place(NamedTuple):
    """What a number is about."""

    problem: str
    """The problem, or `ALL`."""
    network: str
    """The network, or `ALL`, which is the mean over `POOLED`."""
    shift: str
    """The shift, a kind of shifts, `ALL`, or `IN_DISTRIBUTION`."""


class Results:
    """Rows by what they are about, for the means and differences over seeds."""

    def __init__(self, rows: Iterable[Row]):
        self._rows: dict[tuple[str, str, str, str], dict[int, Row]] = {}
        self._values: dict[tuple, dict[str, dict[int, float]]] = {}
        self._over: dict[tuple, Over] = {}
        for row in rows:
            key = (row["problem"], row["network"], row["score"], row["shift"])
            self._rows.setdefault(key, {})[row["seed"]] = row
        problems, networks, scores, shifts = ({key[i] for key in self._rows} for i in range(4))
        self.problems = [name for name in PROBLEMS if name in problems]
        self.networks = [name for name in NETWORKS if name in networks]
        self.scores = tuple(name for name in SCORES if name in scores)
        self.shifts = [name for name in SHIFTS if name in shifts]
        self._cells = {(key[0], key[1]) for key in self._rows}
        self._of_kind = {
            cell: {
                kind: [
                    name for name in self.shifts
                    if any((*cell, score, name) in self._rows for score in self.scores)
                    and kind in (ALL, SHIFTS[name].kind)
                ]
                for kind in (*KINDS, ALL)
            }
            for cell in self._cells
        }  # fmt: skip

    def networks_of(self, problem: str) -> list[str]:
        """The networks of a problem."""
        return [name for name in self.networks if (problem, name) in self._cells]

    def shifts_of(self, problem: str, network: str) -> list[str]:
        """The shifts of a problem."""
        return self._of_kind[problem, network][ALL]

    def rows(self, place: Place, score: str) -> list[Row]:
        """All rows of a score at a place."""
        found = []
        for problem, network in sorted(self._cells):
            if place.problem not in (ALL, problem):
                continue
            if network not in self._pooled(problem, place.network):
                continue
            for shift in self._single(problem, network, place.shift):
                found += self._rows.get((problem, network, score, shift), {}).values()
        return found

    def _pooled(self, problem: str, network: str) -> list[str]:
        names = POOLED if network == ALL else (network,)
        return [name for name in names if (problem, name) in self._cells]

    def _single(self, problem: str, network: str, shift: str) -> list[str]:
        return self._of_kind[problem, network].get(shift, [shift])

    def values(self, place: Place, score: str, column: str) -> Mapping[str, Mapping[int, float]]:
        """A number by problem and seed: of one row, or a mean over shifts and networks."""
        key = (place, score, column)
        if key not in self._values:
            self._values[key] = {
                problem: self._means(problem, place, score, column)
                for problem in (self.problems if place.problem == ALL else [place.problem])
            }
        return self._values[key]

    def _means(self, problem: str, place: Place, score: str, column: str) -> dict[int, float]:
        """The number of each seed of a problem that has it and passed, in all rows that it is of."""
        wanted = [
            self._rows.get((problem, network, score, shift), {})
            for network in self._pooled(problem, place.network)
            for shift in self._single(problem, network, place.shift)
        ]
        found = {}
        for seed in sorted(set().union(*wanted)):
            rows = [of_seed.get(seed) for of_seed in wanted]
            known = [row[column] for row in rows if row is not None and row["gate"] == "pass"]
            if len(known) == len(rows) and None not in known:
                found[seed] = math.fsum(known) / len(known)
        return found

    def over(self, place: Place, score: str, column: str, rival: str = "") -> Over:
        """The interval over the seeds of a number, or of its difference to a rival's."""
        key = (place, score, column, rival)
        if key not in self._over:
            values = {
                problem: list(of_seed.values())
                for problem, of_seed in self.values(place, score, column).items()
            }
            if rival:
                others = self.values(place, rival, column)
                values = {
                    problem: [
                        value - others[problem][seed]
                        for seed, value in of_seed.items()
                        if seed in others[problem]
                    ]
                    for problem, of_seed in self.values(place, score, column).items()
                }
            self._over[key] = over_seeds(values, None if place.problem == ALL else place.problem)
        return self._over[key]

    def places(self) -> Iterable[Place]:
        """Everything that numbers are about: the means first, then every problem and network."""
        pooled = [name for name in self.networks if name in POOLED]
        for network in (*([ALL] if pooled else []), *self.networks):
            for shift in (IN_DISTRIBUTION, *KINDS, ALL):
                yield Place(ALL, network, shift)
        for problem in self.problems:
            for network in self.networks_of(problem):
                for shift in (IN_DISTRIBUTION, *self.shifts_of(problem, network)):
                    yield Place(problem, network, shift)


def summarise(results: Results) -> Rows:
    """Means and intervals over seeds of every number."""
    summary = []
    for place, score in itertools.product(results.places(), results.scores):
        rows = results.rows(place, score)
        if not rows:
            continue
        line: dict[str, Any] = {
            **place._asdict(), "score": score, "higher": SCORES[score].higher,
            "num_cells": len(rows), "num_failed": sum(row["gate"] == "fail" for row in rows),
        }  # fmt: skip
        for name in NUMBERS:
            if all(row[name] is None for row in rows):
                continue
            if name == "alarms_train" and place.shift != IN_DISTRIBUTION:
                continue  # the control is about false alarms
            interval = results.over(place, score, name).interval
            line |= {f"{name}_{part}": getattr(interval, part) for part in interval._fields[:3]}
            line["num_seeds"] = max(interval.num_seeds, line.get("num_seeds", 0))
        summary.append(line)
    return summary


def verdicts(results: Results) -> Rows:
    """What the intervals say about each hypothesis, for every problem and over the problems."""
    rows = []
    for place, (name, hypothesis) in itertools.product(results.places(), HYPOTHESES.items()):
        if not applies(hypothesis, place.shift):
            continue
        scores = results.scores if EVERY in hypothesis.scores else hypothesis.scores
        for score in scores:
            for rival in rivals(hypothesis, score, results.scores):
                over = results.over(place, score, hypothesis.column, rival)
                if not over.interval.num_seeds:
                    continue
                rows.append({
                    "hypothesis": name, "problem": place.problem, "network": place.network,
                    "score": score, "rival": rival, "shift": place.shift,
                    "statistic": hypothesis.column, "bound": hypothesis.bound, **over.columns(),
                    "verdict": verdict(over.interval, hypothesis.bound, below=hypothesis.below),
                })  # fmt: skip
    return rows


def failing(rows: Iterable[Row]) -> Rows:
    """The cells that fail, by score and shift, with the reasons."""
    names = ("problem", "network", "seed", "score", "shift")
    return [
        {name: row[name] for name in names} | {"reasons": row["gate_reasons"]}
        for row in rows
        if row["gate"] == "fail"
    ]
