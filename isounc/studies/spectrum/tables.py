"""The tables of a spectrum run: means over seeds, slopes and verdicts.

The unit of replication is the seed. `all` among the problems is the mean over those that have two
seeds that count, each with the same weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from isounc.fields import declared, integer, number, text
from isounc.models import PARAMETERISATIONS
from isounc.runs.folder import RunFolder
from isounc.runs.style import REGION_LOOKS
from isounc.runs.tables import rows_of_table
from isounc.statistics import Over, over_seeds, verdict
from isounc.studies.spectrum.cell import (
    DRAWS,
    LAPLACE,
    OF_POINT,
    OF_POSTERIOR,
    OF_REFERENCE,
    OF_REGION,
)
from isounc.studies.spectrum.settings import ALL, POINTS, POSTERIOR, TRAIN, Condition
from isounc.studies.spectrum.verdicts import HYPOTHESES, Hypothesis

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]
NUMBERS = (*OF_REFERENCE, *OF_REGION, *OF_POINT, *OF_POSTERIOR)
"""Numbers of a row that are averaged over seeds."""
_CONDITION = Condition._fields
RESULT_COLUMNS = (
    *("problem", *_CONDITION, "seed", "point", "region", "form", *NUMBERS),
    *("gate", "gate_reasons", "check", "check_reasons", "reason"),
)
"""Columns of `results.csv`."""
EIGENVALUE_COLUMNS = ("problem", *_CONDITION, "seed", "point", "kind", "rank", "value")
"""Columns of `eigenvalues.csv`."""
SUMMARY_COLUMNS = (
    *("problem", *_CONDITION, "point", "region", "form", "statistic"),
    *("num_cells", "num_failed", "mean", "low", "high", "num_seeds", "num_problems"),
)
"""Columns of `summary.csv`."""
VERDICT_COLUMNS = (
    *("hypothesis", "problem", *_CONDITION, "point", "region", "statistic", "bound"),
    *("mean", "low", "high", "num_seeds", "num_problems", "verdict"),
)
"""Columns of `verdicts.csv`; of a slope the width or the depth is empty."""

_IDENTITY = {
    "problem": text(longest=1000),
    "width": integer(1, 10**9),
    "depth": integer(1, 10**9),
    "parameterisation": text(PARAMETERISATIONS),
    "n": integer(1, 10**9),
    "seed": integer(0, 2**63 - 1),
    "point": text((*POINTS, POSTERIOR)),
}
_CORRELATION = number(-1 - 1e-6, 1 + 1e-6, None)
ROW = {
    **_IDENTITY,
    "region": text(longest=1000),
    "form": text(longest=1000),
    **dict.fromkeys(NUMBERS, number(default=None)),
    **dict.fromkeys(
        ("log10_pearson", "pearson", "spearman", "ratio_pearson", "ratio_spearman", "order"),
        _CORRELATION,
    ),
    **dict.fromkeys(("gate", "check"), text(("pass", "fail"))),
    **dict.fromkeys(("gate_reasons", "check_reasons", "reason"), text(longest=100_000, default="")),
}
"""What a row must hold, which anybody may have edited."""
KINDS = ("ggn", "hessian", "draws", "null")
_EIGENVALUE = {
    **_IDENTITY,
    "kind": text(KINDS),
    "rank": integer(1, 10**9),
    "value": number(),
}


def eigenvalues_of(folder: RunFolder) -> Rows:
    """The rows of the eigenvalues of all records, or of `eigenvalues.csv`; there may be none.

    Raises
    ------
    Unreadable
        If a value is not what is read.
    """
    found: Rows = []
    records = list(folder.records())
    for record in records:
        rows = record.meta.get("eigenvalues")
        for i, row in enumerate(rows if isinstance(rows, list) else []):
            where = f"eigenvalue {i} of record {record.name!r}"
            found.append(declared(row, _EIGENVALUE, where))
    if not records:
        name = "eigenvalues.csv"
        found = rows_of_table(folder.read_table(name), _EIGENVALUE, f"{name} of {folder.path}")
    return found


def passing(eigenvalues: Iterable[Row], rows: Iterable[Row]) -> list[Row]:
    """The eigenvalues of points and posteriors that passed their check."""
    names = ("problem", *_CONDITION, "seed", "point")
    failed = {
        tuple(row[name] for name in names)
        for row in rows
        if row["region"] == ALL and row["check"] == "fail"
    }
    return [row for row in eigenvalues if tuple(row[name] for name in names) not in failed]


class Place(NamedTuple):
    """What a number is about, but for problem and seed."""

    condition: Condition
    """The network and n."""
    point: str
    """theta*, or the posterior."""
    region: str
    """The region, or all of a point."""
    form: str
    """The form of the estimate."""


class Results:
    """Rows by what they are about, for the means, differences and slopes over seeds."""

    def __init__(self, rows: Iterable[Row]):
        self._rows: dict[Place, dict[tuple[str, int], Row]] = {}
        for row in rows:
            condition = Condition(*(row[name] for name in _CONDITION))
            place = Place(condition, row["point"], row["region"], row["form"])
            self._rows.setdefault(place, {})[row["problem"], row["seed"]] = row
        cells = [cell for found in self._rows.values() for cell in found]
        self.problems = list(dict.fromkeys(problem for problem, _ in cells))
        self.conditions = list(dict.fromkeys(place.condition for place in self._rows))
        self.points = [p for p in (*POINTS, POSTERIOR) if any(x.point == p for x in self._rows)]
        regions = {place.region for place in self._rows}
        order = (TRAIN, *REGION_LOOKS, *sorted(regions - {TRAIN, *REGION_LOOKS}))
        self.regions = [name for name in order if name in regions and name != ALL]
        self.forms = list(dict.fromkeys(place.form for place in self._rows))

    def places(self) -> list[Place]:
        """All places."""
        return list(self._rows)

    def rows(self, place: Place, problem: str) -> list[Row]:
        """The rows of all seeds of a problem, or for `ALL` of all problems."""
        found = self._rows.get(place, {})
        return [row for (name, _), row in found.items() if problem in (ALL, name)]

    def value(self, place: Place, column: str, cell: tuple[str, int]) -> float | None:
        """A number of a (problem, seed) that counts: what it rests on has passed."""
        row = self._rows.get(place, {}).get(cell)
        if row is None or row["check"] == "fail":
            return None
        return None if column in OF_REFERENCE and row["gate"] == "fail" else row[column]

    def over(
        self, value: Callable[[tuple[str, int]], float | None], places: Iterable[Place],
        problem: str,
    ) -> Over:  # fmt: skip
        """The interval over the seeds of a number that some cells of the places have."""
        cells = dict.fromkeys(cell for place in places for cell in self._rows.get(place, {}))
        values: dict[str, list[float]] = {}
        for cell in cells:
            if problem in (ALL, cell[0]) and (found := value(cell)) is not None:
                values.setdefault(cell[0], []).append(found)
        return over_seeds(values, None if problem == ALL else problem)

    def tested(
        self, hypothesis: Hypothesis, places: Sequence[Place], rank: int, problem: str
    ) -> Over:
        """The interval over the seeds of the number of a hypothesis.

        Parameters
        ----------
        places
            One place, or those of a slope.
        """

        def number(cell: tuple[str, int]) -> float | None:
            found = [self.value(place, hypothesis.column, cell) for place in places]
            if hypothesis.slope:
                sizes = [size_of(place.condition, hypothesis.slope) for place in places]
                return slope(sizes, found)
            (value,) = found
            if value is None or not hypothesis.rival:
                return abs(value) if hypothesis.absolute and value is not None else value
            rival = places[0]._replace(form=hypothesis.rival.format(k=rank))
            other = self.value(rival, hypothesis.column, cell)
            return None if other is None else value - other

        return self.over(number, places, problem)


def size_of(condition: Condition, axis: str) -> float:
    """The number that slopes are on: log2 of the width, or the depth."""
    return float(np.log2(condition.width)) if axis == "width" else float(condition.depth)


def slope(sizes: Sequence[float], values: Sequence[float | None]) -> float | None:
    """Least-squares slope over the sizes that have a value; None for fewer than two."""
    known = [(x, y) for x, y in zip(sizes, values, strict=True) if y is not None]
    if len({x for x, _ in known}) < 2:
        return None
    x, y = np.array(known).T
    x = x - x.mean()
    return float(x @ (y - y[0]) / (x @ x))


def axes_of(conditions: Sequence[Condition], axis: str) -> list[list[Condition]]:
    """Conditions that differ in the width alone, or in the depth; two or more each."""
    groups: dict[Condition, list[Condition]] = {}
    for condition in conditions:
        groups.setdefault(condition._replace(**{axis: 0}), []).append(condition)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def summarise(results: Results) -> Rows:
    """Means and intervals over seeds of every number, by problem and over the problems."""
    summary = []
    for place in results.places():
        if place.region == ALL:
            columns = OF_POSTERIOR if place.point == POSTERIOR else OF_POINT
        else:  # ratios are those of the two covariances that are whole, shares those of k directions
            columns = (*OF_REFERENCE, *OF_REGION[:1])
            columns = (*OF_REFERENCE, *OF_REGION[1:]) if place.form in (LAPLACE, DRAWS) else columns
        for problem in [ALL, *results.problems]:
            rows = results.rows(place, problem)
            if not rows:
                continue
            for column in columns:
                if all(row[column] is None for row in rows):
                    continue
                values: dict[str, list[float]] = {}
                num_failed = 0
                for row in rows:
                    if row["check"] == "fail" or (column in OF_REFERENCE and row["gate"] == "fail"):
                        num_failed += 1
                    elif row[column] is not None:
                        values.setdefault(row["problem"], []).append(row[column])
                over = over_seeds(values, None if problem == ALL else problem)
                summary.append({
                    "problem": problem, **place.condition._asdict(), "point": place.point,
                    "region": place.region, "form": place.form, "statistic": column,
                    "num_cells": len(rows), "num_failed": num_failed, **over.columns(),
                })  # fmt: skip
    return summary


def verdicts(results: Results, rank: int) -> Rows:
    """What the intervals say about each hypothesis, by problem and over the problems.

    Parameters
    ----------
    rank
        The number k of directions.
    """
    rows = []
    for name, hypothesis in HYPOTHESES.items():
        form = hypothesis.form.format(k=rank)
        points = [p for p in results.points if (p == POSTERIOR) == (form == DRAWS)]
        regions = [hypothesis.region] if hypothesis.region else results.regions
        groups = [[condition] for condition in results.conditions]
        if hypothesis.slope:
            groups = axes_of(results.conditions, hypothesis.slope)
        for group in groups:
            condition: dict[str, Any] = group[0]._asdict()
            if hypothesis.slope:
                condition[hypothesis.slope] = None
            for point in points:
                for region in regions:
                    places = [Place(condition, point, region, form) for condition in group]
                    for problem in [ALL, *results.problems]:
                        over = results.tested(hypothesis, places, rank, problem)
                        if not over.interval.num_seeds:
                            continue
                        rows.append({
                            "hypothesis": name, "problem": problem, **condition, "point": point,
                            "region": region, "statistic": hypothesis.column,
                            "bound": hypothesis.bound, **over.columns(),
                            "verdict": verdict(
                                over.interval, hypothesis.bound, below=hypothesis.below
                            ),
                        })  # fmt: skip
    return rows


def failing(rows: Iterable[Row]) -> Rows:
    """The cells that fail, with the reasons: of a point, or of the reference in a region."""
    failed: dict[tuple, str] = {}
    for row in rows:
        where = (row["problem"], Condition(*(row[name] for name in _CONDITION)).label, row["seed"])
        # The form of the draws rests on the gate, too, wherever it is made.
        of_itself = row["form"] == LAPLACE or row["point"] == POSTERIOR
        if row["check"] == "fail" and of_itself:
            failed.setdefault((*where, row["point"], ""), row["check_reasons"])
        if row["gate"] == "fail" and row["region"] != ALL:
            failed.setdefault((*where, "reference", row["region"]), row["gate_reasons"])
    names = ("problem", "condition", "seed", "what", "region", "reasons")
    return [dict(zip(names, (*where, why), strict=True)) for where, why in failed.items()]
