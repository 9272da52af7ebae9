"""A run folder as figures and tables look at it: rows by what they are about, cells by problem.

Rows come from `results.csv`, or from the records where the run has not finished and written it. A
*setup* is everything that a scaling curve holds fixed: the problem, and the model but for its
width. Numbers of several seeds are put together by `isounc.studies.scaling.summary` and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from isounc.estimates.estimators import ESTIMATORS, POINTS, Estimator, estimator_names
from isounc.runs.folder import RunFolder
from isounc.statistics import Trend, trend
from isounc.studies.scaling.summary import KEY_COLUMNS, summarise

REGIONS = ("test", "grid", "far")
_PROBLEMS = (
    *("linear", "xor", "rings", "moons", "clusters3", "spirals3", "rings3"),
    *("linear_regression", "nonlinear_regression", "breast_cancer", "wine", "digits_3v8"),
)


class Setup(NamedTuple):
    """What a scaling curve holds fixed."""

    problem: str
    """Name of the problem."""
    depth: int
    """Hidden layers."""
    activation: str
    """Name of the activation."""
    parameterisation: str
    """`ntk`, `fan_in` or `standard`."""
    prior_sd: float
    """Prior standard deviation of a weight, before the parameterisation's scaling."""


class Cell(NamedTuple):
    """A record that describes a cell of a sweep."""

    name: str
    """Name of the record."""
    setup: Setup
    """What the cell shares with the others of its curve."""
    width: int
    """Hidden units per layer."""
    seed: int
    """Seed of data and initialisation."""
    meta: dict[str, Any]
    """The record's meta: gate, checks of the point estimates, seconds."""

    @property
    def passed(self) -> bool:
        """Whether the reference passed its gate (a record without a gate did not)."""
        return (self.meta.get("gate") or {}).get("passed") is True


class Results:
    """The rows and cells of a run, arranged; made by `Results.of`.

    Attributes
    ----------
    run
        The run folder that was read.
    rows
        Result rows, in their order.
    cells
        Cells with a record that verifies, in the order of `setups`, widths and seeds.
    source
        Where the rows are from, in words.
    setups
        All setups: known problems in the order of the paper, then others as they appear.
    """

    def __init__(
        self,
        run: RunFolder,
        rows: Iterable[Mapping[str, Any]],
        metas: Mapping[str, Mapping[str, Any]],
        source: str,
    ):
        self.run = run
        self.rows = [dict(row) for row in rows]
        self.source = source
        found = [(name, meta) for name, meta in metas.items() if isinstance(meta.get("cell"), dict)]
        cells = [
            Cell(name, _setup(meta["cell"]), meta["cell"]["width"], meta["cell"]["seed"], meta)
            for name, meta in ((name, dict(meta)) for name, meta in found)
        ]
        seen = dict.fromkeys([*(_setup(row) for row in self.rows), *(c.setup for c in cells)])
        names = list(dict.fromkeys(setup.problem for setup in seen))
        rank = {name: i for i, name in enumerate(ordered(names, _PROBLEMS))}
        self.setups = sorted(seen, key=lambda setup: rank[setup.problem])
        place = {setup: i for i, setup in enumerate(self.setups)}
        self.cells = sorted(cells, key=lambda c: (place[c.setup], c.width, c.seed))
        self._index: dict[tuple, list[dict[str, Any]]] = {}
        self._classes: dict[Setup, set[str]] = {}
        self._widths: dict[Setup, set[int]] = {}
        for cell in self.cells:
            self._widths.setdefault(cell.setup, set()).add(cell.width)
        for row in self.rows:
            setup = _setup(row)
            self._widths.setdefault(setup, set()).add(row["width"])
            keys = ("region", "point", "quantity", "estimator")
            self._index.setdefault((setup, *(row[key] for key in keys)), []).append(row)
            if row["quantity"] != "predictive":  # which is of all classes
                self._classes.setdefault(setup, set()).add(row["class"])
        self._curves: dict[tuple, list[dict[str, Any]]] = {}

    @classmethod
    def of(cls, run: RunFolder | Results) -> Results:
        """Read a run folder once; what has been read already is passed through.

        Raises
        ------
        ValueError
            If `results.csv` is there and cannot be read, or anything is of a newer format.
        """
        if isinstance(run, Results):
            return run
        metas = {record.name: record.meta for record in run.records()}
        if (run.path / "results.csv").is_file():
            rows = run.read_rows()
            missing = [c for c in (*KEY_COLUMNS, "seed", "gate") if rows and c not in rows[0]]
            if missing:
                raise ValueError(f"results.csv of {run.path} lacks the columns {missing}")
            return cls(run, rows, metas, "results.csv")
        rows = [row for meta in metas.values() for row in meta.get("rows") or []]
        source = f"{len(metas)} records, since the run has no results.csv (it did not finish)"
        return cls(run, rows, metas, source)

    def values(self, column: str) -> list[Any]:
        """Distinct values of a column of the rows; regions, points and estimators in house order.

        None, which is an empty cell of the table, is left out.
        """
        found = dict.fromkeys(row[column] for row in self.rows if row.get(column) is not None)
        known = {"region": REGIONS, "point": POINTS, "estimator": estimator_names()}
        return ordered(found, known.get(column, ()))

    def shown(self, view: str) -> list[str]:
        """Estimators of the rows that belong into a view, those not registered here among them."""
        return [
            name
            for name in self.values("estimator")
            if view in getattr(ESTIMATORS.get(name), "views", Estimator.views)
        ]

    def widths(self, setup: Setup) -> list[int]:
        """Widths of a setup in rows or records, ascending."""
        return sorted(self._widths.get(setup, ()))

    def label(self, setup: Setup) -> str:
        """The problem, and what tells this setup from the run's others of the problem."""
        differing = self._differing(setup)
        details = ", ".join(f"{key} {getattr(setup, key)}" for key in differing)
        return f"{setup.problem} ({details})" if details else setup.problem

    def slug(self, setup: Setup) -> str:
        """`label` as part of a file name."""
        parts = [f"{key}-{getattr(setup, key)}" for key in self._differing(setup)]
        return re.sub(r"[^A-Za-z0-9_.-]", "-", "_".join([setup.problem, *parts]))

    def main_class(self, setup: Setup) -> str:
        """The class view that stands for a setup: the trace, or its only one."""
        views = self._classes.get(setup, ())
        return "trace" if "trace" in views else min(views, default="1")

    def select(
        self, setup: Setup, *, region: str, point: str, quantity: str, estimator: str | None = None
    ) -> list[dict[str, Any]]:
        """Rows of all widths and seeds in the main class; of every estimator if None is asked for.

        Rows of the quantity `predictive` have no class and are all given.
        """
        if estimator is None:
            names = {key[4] for key in self._index if key[:4] == (setup, region, point, quantity)}
        else:
            names = {estimator}
        rows = [
            row
            for name in names
            for row in self._index.get((setup, region, point, quantity, name), ())
        ]
        if quantity == "predictive":
            return rows
        return [row for row in rows if row["class"] == self.main_class(setup)]

    def curve(
        self, setup: Setup, *, region: str, point: str, estimator: str, quantity: str = "epistemic"
    ) -> list[dict[str, Any]]:
        """Summary rows, one a width, ascending; see `isounc.studies.scaling.summary.summarise`."""
        key = (setup, region, point, quantity, estimator)
        if key not in self._curves:
            rows = self.select(
                setup, region=region, point=point, quantity=quantity, estimator=estimator
            )
            self._curves[key] = sorted(summarise(rows), key=lambda row: row["width"])
        return self._curves[key]

    def at_width(self, setup: Setup, width: int, **which: str) -> dict[str, Any] | None:
        """The summary row of `curve` at one width; None where there is none."""
        return next((r for r in self.curve(setup, **which) if r["width"] == width), None)

    def trend(self, setup: Setup, *, statistic: str = "pearson", **which: str) -> Trend | None:
        """Change with width of a correlation; None where there are fewer than two widths."""
        rows = self.select(setup, **{"quantity": "epistemic", **which})
        widths = sorted({row["width"] for row in rows})
        if len(widths) < 2:
            return None
        seeds: dict[Any, dict[int, float | None]] = {}
        for row in rows:
            kept = row["gate"] == "pass"
            value = row[statistic] if kept and row.get(statistic) not in (None, "") else None
            seeds.setdefault(row["seed"], {})[row["width"]] = value
        return trend(widths, {s: [by.get(w) for w in widths] for s, by in seeds.items()})

    def shown_cell(self, setup: Setup) -> Cell | None:
        """The cell that stands for a setup: largest width, first seed that passed (or first)."""
        cells = [cell for cell in self.cells if cell.setup == setup]
        cells = [cell for cell in cells if cell.width == cells[-1].width]
        return next((cell for cell in cells if cell.passed), cells[0] if cells else None)

    def _differing(self, setup: Setup) -> list[str]:
        others = [other for other in self.setups if other.problem == setup.problem]
        return [f for f in Setup._fields if len({getattr(o, f) for o in others}) > 1]


def point_of(estimator: str, point: str) -> str:
    """The point of an estimator's rows where those at `point` are asked for."""
    known = ESTIMATORS.get(estimator)
    return "posterior" if known is not None and known.points == ("posterior",) else point


def ordered(found: Iterable[Any], known: Iterable[Any]) -> list[Any]:
    """Known names first and in their own order, then the others as they were found."""
    found, known = list(found), list(known)
    return [name for name in known if name in found] + [n for n in found if n not in known]


def _setup(row: Mapping[str, Any]) -> Setup:
    return Setup(*(row[field] for field in Setup._fields))
