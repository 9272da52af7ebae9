"""The tables of a confirmation run: means over seeds, paired differences, and verdicts.

The unit of replication is the seed. `all` is the mean over the problems that have a link and two
seeds that passed and are defined, each problem with the same weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from isounc.fields import integer, number, text
from isounc.runs.style import REGION_LOOKS
from isounc.statistics import over_seeds, verdict
from isounc.studies.confirmation.cell import CURVED, ONE_PASS, SCALED
from isounc.studies.confirmation.settings import ALL, BASE, FACTORS, Condition
from isounc.studies.confirmation.verdicts import HYPOTHESES, OF_LINK

if TYPE_CHECKING:
    pass

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]
STATISTICS = ("pearson", "spearman")
"""Correlations of which differences are made; the first is that of the protocol's verdicts."""
LEVEL = "level"
"""Statistic of the hypotheses that are about no correlation."""
RESULT_COLUMNS = (
    *("problem", "seed", "link", "factor", "value", "region", "estimate"),
    *("pearson", "spearman", "log2_level", "num_averaged", "num_undefined"),
    *("gate", "gate_reasons", "reason"),
)
"""Columns of `results.csv`."""
_PLACE = ("problem", "factor", "value", "region")
_OVER = ("mean", "low", "high", "num_seeds", "num_problems")
SUMMARY_COLUMNS = (
    *(*_PLACE, "estimate", "num_cells", "num_failed", "num_undefined", "num_seeds", "num_problems"),
    *(f"{name}_{part}" for name in (*STATISTICS, "log2_level") for part in ("mean", "low", "high")),
)
"""Columns of `summary.csv`."""
DIFFERENCE_COLUMNS = (*_PLACE, "statistic", "estimate", "rival", *_OVER)
"""Columns of `differences.csv`."""
VERDICT_COLUMNS = (*_PLACE, "hypothesis", "statistic", "bound", *_OVER, "verdict")
"""Columns of `verdicts.csv`."""

_TEXTS = ("gate_reasons", "reason")
_CORRELATION = number(-1 - 1e-6, 1 + 1e-6, None)
ROW = {
    "problem": text(longest=1000),
    "seed": integer(0, 2**63 - 1),
    "link": text(longest=1000),
    "factor": text(FACTORS),
    "value": text(longest=1000, default=""),
    "region": text(longest=1000),
    "estimate": text(longest=1000),
    **dict.fromkeys(STATISTICS, _CORRELATION),
    "log2_level": number(-1100, 1100, None),
    **dict.fromkeys(("num_averaged", "num_undefined"), integer(0, 10**9)),
    "gate": text(("pass", "fail")),
    **dict.fromkeys(_TEXTS, text(longest=100_000, default="")),
}
"""What a row must hold, which anybody may have edited."""
NO_LINK = "identity"
"""Link of the problems that are in no mean over problems."""


class Key(NamedTuple):
    """What a row is about, but for problem and seed."""

    factor: str
    """The factor."""
    value: str
    """Its value."""
    region: str
    """The region."""
    estimate: str
    """The estimate."""


class Results:
    """Rows by what they are about, for the means and differences over seeds."""

    def __init__(self, rows: Sequence[Row]):
        self._rows: dict[Key, dict[tuple[str, int], Row]] = {}
        for row in rows:
            key = Key(row["factor"], row["value"], row["region"], row["estimate"])
            self._rows.setdefault(key, {})[row["problem"], row["seed"]] = row
        links = {row["problem"]: row["link"] for row in rows}
        self.problems = list(links)
        self.linked = [name for name, link in links.items() if link != NO_LINK]
        regions = dict.fromkeys(row["region"] for row in rows)
        self.regions = sorted(regions, key=lambda name: (*REGION_LOOKS, name).index(name))
        found = dict.fromkeys(Condition(row["factor"], row["value"]) for row in rows)
        self.conditions = sorted(found, key=_condition_order)
        names = dict.fromkeys(row["estimate"] for row in rows)
        known = (*ONE_PASS, *CURVED)
        ensembles = sorted(set(names) - set(known), key=lambda name: (len(name), name))
        self.estimates = [name for name in (*known, *ensembles) if name in names]

    def rows(self, key: Key, problem: str) -> list[Row]:
        """The rows of all seeds of a problem; of all problems with a link for `ALL`."""
        among = self.linked if problem == ALL else [problem]
        return [row for (name, _), row in self._rows.get(key, {}).items() if name in among]

    def rivals(self, key: Key, estimate: str) -> Mapping[tuple[str, int], Row]:
        """The rows of another estimate under the same condition, or of the base where it is that.

        Another scale changes no rival, and another point no ensemble.
        """
        same = key.factor == "reference" and estimate not in SCALED
        same = same or (key.factor == "point" and estimate.startswith("ensemble_"))
        if same:
            key = Key(BASE, "", key.region, estimate)
        return self._rows.get(key._replace(estimate=estimate), {})

    def values(
        self, number: Callable[[Row], float | None], key: Key, problem: str
    ) -> dict[str, list[float]]:
        """A number of each seed that passed and of which it is defined, by problem."""
        found: dict[str, list[float]] = {}
        for row in self.rows(key, problem):
            if row["gate"] == "pass" and (value := number(row)) is not None:
                found.setdefault(row["problem"], []).append(value)
        return found

    def differences(
        self, key: Key, rival: str, statistic: str, problem: str
    ) -> dict[str, list[float]]:
        """A statistic less a rival's, of each seed in which both passed, by problem."""
        difference = functools.partial(_less, others=self.rivals(key, rival), statistic=statistic)
        return self.values(difference, key, problem)

    def places(self) -> Iterator[tuple[str, Condition, str]]:
        """Problems (`ALL` first), conditions and regions."""
        for problem in [ALL, *self.problems]:
            for condition in self.conditions:
                for region in self.regions:
                    yield problem, condition, region


def _less(row: Row, others: Mapping[tuple[str, int], Row], statistic: str) -> float | None:
    """A statistic of a row less that of the row of the same cell among others."""
    other = others.get((row["problem"], row["seed"]))
    if other is None or other["gate"] != "pass":
        return None
    mine, theirs = row[statistic], other[statistic]
    return None if mine is None or theirs is None else mine - theirs


def _which(problem: str) -> str | None:
    return None if problem == ALL else problem


def _log2_level(row: Row) -> float | None:
    return row["log2_level"]


def _condition_order(condition: Condition) -> tuple:
    try:
        amount = float(condition.value)
    except ValueError:
        amount = float("inf")
    return FACTORS.index(condition.factor), amount, condition.value


def summarise(results: Results) -> Rows:
    """Correlations and levels of each estimate, by problem and over the problems."""
    summary = []
    for problem, condition, region in results.places():
        for estimate in results.estimates:
            key = Key(*condition, region, estimate)
            rows = results.rows(key, problem)
            if not rows:
                continue
            passed = [row for row in rows if row["gate"] == "pass"]
            line: dict[str, Any] = {
                "problem": problem, **condition._asdict(), "region": region,
                "estimate": estimate, "num_cells": len(rows),
                "num_failed": len(rows) - len(passed),
                "num_undefined": sum(row["pearson"] is None for row in passed),
            }  # fmt: skip
            for name in (*STATISTICS, "log2_level"):
                values = results.values(lambda row, name=name: row[name], key, problem)
                over = over_seeds(values, _which(problem))
                line |= {f"{name}_{p}": getattr(over.interval, p) for p in ("mean", "low", "high")}
                if name == "pearson":
                    line |= {
                        "num_seeds": over.interval.num_seeds,
                        "num_problems": over.num_problems,
                    }
            summary.append(line)
    return summary


def differences(results: Results) -> Rows:
    """Correlations of both logit-scaled estimates less each rival's, paired by problem and seed."""
    rows = []
    for problem, condition, region in results.places():
        for estimate in SCALED:
            key = Key(*condition, region, estimate)
            if not results.rows(key, problem):
                continue
            rivals = [name for name in results.estimates if name not in SCALED]
            for rival in [*rivals, SCALED[1]] if estimate == SCALED[0] else rivals:
                if not results.rivals(key, rival):
                    continue
                for statistic in STATISTICS:
                    found = results.differences(key, rival, statistic, problem)
                    rows.append({
                        "problem": problem, **condition._asdict(), "region": region,
                        "statistic": statistic, "estimate": estimate, "rival": rival,
                        **over_seeds(found, _which(problem)).columns(),
                    })  # fmt: skip
    return rows


def verdicts(results: Results) -> Rows:
    """What the intervals say about each hypothesis, by problem and over the problems."""
    rows = []
    for problem, condition, region in results.places():
        for name, hypothesis in HYPOTHESES.items():
            key = Key(*condition, region, hypothesis.estimate)
            without_link = problem != ALL and problem not in results.linked
            if not results.rows(key, problem) or (without_link and name in OF_LINK):
                continue
            for statistic in STATISTICS if hypothesis.rival else (LEVEL,):
                if hypothesis.rival:
                    found = results.differences(key, hypothesis.rival, statistic, problem)
                else:
                    found = results.values(_log2_level, key, problem)
                numbers = {cell: [*map(hypothesis.number, v)] for cell, v in found.items()}
                over = over_seeds(numbers, _which(problem))
                rows.append({
                    "problem": problem, **condition._asdict(), "region": region,
                    "hypothesis": name, "statistic": statistic, "bound": hypothesis.bound,
                    **over.columns(),
                    "verdict": verdict(
                        over.interval, hypothesis.bound, below=hypothesis.below
                    ),
                })  # fmt: skip
    return rows


def failing(rows: Sequence[Row]) -> Rows:
    """The cells that fail, by condition: where, or an empty text for everywhere, and why."""
    regions: dict[tuple, dict[str, bool]] = {}
    why: dict[tuple, dict[str, None]] = {}
    for row in rows:
        place = (row["problem"], row["factor"], row["value"], row["seed"])
        fails = row["gate"] == "fail"
        of_place = regions.setdefault(place, {})
        of_place[row["region"]] = of_place.get(row["region"], False) or fails
        if fails:
            why.setdefault(place, {})[row["gate_reasons"]] = None
    failed = []
    for place, reasons in why.items():
        where = [region for region, fails in regions[place].items() if fails]
        everywhere = len(where) == len(regions[place])
        values = (*place, "" if everywhere else ", ".join(where), "; ".join(reasons))
        names = ("problem", "factor", "value", "seed", "regions", "reasons")
        failed.append(dict(zip(names, values, strict=True)))
    return failed
