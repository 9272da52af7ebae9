"""The tables of a routing run: means over seeds, and verdicts.

The unit of replication is the seed. `all` among the problems is the mean over the problems and widths that
have two seeds or more; a cell whose network failed its check is in no number.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from isounc.fields import integer, number, text
from isounc.statistics import Over, over_seeds, verdict
from isounc.studies.routing.cell import CERTIFIED, NUMBERS, SCORES
from isounc.studies.routing.settings import NETWORKS, PROBLEMS

ALL = "all"
"""Name, among the problems, of the mean over them."""
Row = Mapping[str, Any]
Rows = list[dict[str, Any]]
_CELL = ("networks", "problem", "cheap_width", "seed", "gate", "gate_reasons", "score")
RESULT_COLUMNS = (*_CELL, *NUMBERS)
"""Columns of `results.csv`."""
CASCADE_COLUMNS = (*_CELL, "target", *CERTIFIED)
"""Columns of `cascades.csv`."""
_ENDS = ("mean", "low", "high")
SUMMARY_COLUMNS = (
    *("networks", "problem", "cheap_width", "score", "num_seeds"),
    *(f"{name}_{end}" for name in NUMBERS for end in _ENDS),
)
"""Columns of `summary.csv`."""
VERDICT_COLUMNS = (
    *("hypothesis", "networks", "problem", "cheap_width", "score", "target", "bound", *_ENDS),
    *("num_seeds", "num_problems", "verdict"),
)
"""Columns of `verdicts.csv`."""
_OF_CELL = {
    "networks": text(NETWORKS, "mlp"),  # runs before there were others do not say
    "problem": text(PROBLEMS),
    "cheap_width": integer(1),
    "seed": integer(0, 2**63 - 1),
    "gate": text(("pass", "fail")),
    "gate_reasons": text(default=""),
    "score": text(SCORES),
}
ROW = {**_OF_CELL, **dict.fromkeys(NUMBERS, number(default=None))}
"""Fields of a row of `results.csv`."""
CASCADE_ROW = {
    **_OF_CELL,
    "target": number(0, 1),
    **dict.fromkeys(CERTIFIED, number(default=None)),
}
"""Fields of a row of `cascades.csv`."""


class Hypothesis(NamedTuple):
    """A claim about a number, or its difference to that of another score."""

    claim: str
    """The claim in words."""
    column: str
    """The number."""
    rival: str = ""
    """The score whose number is subtracted, if any."""
    below: bool = False
    """Whether the number is claimed to be below zero."""
    is_certified: bool = False
    """Whether it is a number of `cascades.csv`."""


HYPOTHESES = {
    "routes": Hypothesis("the score passes on better than chance", "gain"),
    "beats p": Hypothesis("it gains more than 1 − p", "gain", "p"),
    "beats router": Hypothesis("it gains more than a router that reads the input", "gain", "router"),
    "saves": Hypothesis(
        "the cascade costs less than the expensive network", "log2_cost", below=True,
        is_certified=True,
    ),
    "keeps the risk": Hypothesis(
        "its risk on other questions is below the target", "excess", below=True, is_certified=True
    ),
}  # fmt: skip
"""Hypotheses by name; each is about zero."""


class Results:
    """The rows of a run."""

    def __init__(self, rows: Sequence[Row], cascades: Sequence[Row]):
        self.rows, self.cascades = rows, cascades
        self.networks = rows[0]["networks"] if rows else "mlp"
        self.places = list(dict.fromkeys((r["problem"], r["cheap_width"]) for r in rows))
        self.problems = list(dict.fromkeys(problem for problem, _ in self.places))
        self.widths = sorted({width for _, width in self.places})
        self.scores = [name for name in SCORES if any(r["score"] == name for r in rows)]
        self.targets = sorted({row["target"] for row in cascades})

    @property
    def target(self) -> float | None:
        """The smallest target risk at which half of the cells of the score p have a cascade."""
        for target in self.targets:
            found = [
                row["found"] for row in self.cascades
                if row["target"] == target and row["score"] == "p" and row["gate"] == "pass"
            ]  # fmt: skip
            if found and sum(found) >= len(found) / 2:
                return target
        return None

    def values(
        self, place: tuple[str, int], score: str, column: str, target: float | None = None
    ) -> dict[int, float]:
        """A number of each seed that has it and passed."""
        rows = self.rows if target is None else self.cascades
        return {
            row["seed"]: row[column] for row in rows
            if (row["problem"], row["cheap_width"]) == place and row["score"] == score
            and row["gate"] == "pass" and row[column] is not None
            and (target is None or row["target"] == target)
        }  # fmt: skip

    def over(
        self,
        place: tuple[str, int] | None,
        score: str,
        column: str,
        *,
        rival: str = "",
        target: float | None = None,
    ) -> Over:
        """The interval over seeds at a place, or over all places, of a number or a difference."""
        found = {}
        for one in self.places if place is None else [place]:
            values = self.values(one, score, column, target)
            if rival:
                others = self.values(one, rival, column, target)
                values = {seed: v - others[seed] for seed, v in values.items() if seed in others}
            found[_label(one)] = list(values.values())
        return over_seeds(found, None if place is None else _label(place))


def _label(place: tuple[str, int]) -> str:
    return f"{place[0]} width {place[1]}"


def summarise(results: Results) -> Rows:
    """Means and intervals over seeds of every number."""
    summary = []
    for place, score in itertools.product([None, *results.places], results.scores):
        line: dict[str, Any] = _named(results, place) | {"score": score, "num_seeds": 0}
        for name in NUMBERS:
            interval = results.over(place, score, name).interval
            line |= {f"{name}_{end}": getattr(interval, end) for end in _ENDS}
            line["num_seeds"] = max(line["num_seeds"], interval.num_seeds)
        summary.append(line)
    return summary


def verdicts(results: Results) -> Rows:
    """What the intervals say about each hypothesis, at every place and over all of them."""
    rows = []
    for (name, hypothesis), place, score in itertools.product(
        HYPOTHESES.items(), [None, *results.places], results.scores
    ):
        target = results.target if hypothesis.is_certified else None
        if hypothesis.rival == score or (hypothesis.is_certified and target is None):
            continue
        over = results.over(place, score, hypothesis.column, rival=hypothesis.rival, target=target)
        if over.interval.num_seeds:
            rows.append(
                {
                    "hypothesis": name,
                    **_named(results, place),
                    "score": score,
                    "target": target,
                    "bound": 0.0,
                }
                | over.columns()
                | {"verdict": verdict(over.interval, 0.0, below=hypothesis.below)}
            )
    return rows


def _named(results: Results, place: tuple[str, int] | None) -> dict[str, Any]:
    problem, width = place or (ALL, None)
    return {"networks": results.networks, "problem": problem, "cheap_width": width}
