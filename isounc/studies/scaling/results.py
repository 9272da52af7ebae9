"""The results of a run, arranged for figures and tables: rows by curve, cells by problem.

Rows come from `results.csv`, or from the records of a run that did not write it. A *setup* is
everything that a scaling curve holds fixed: the problem, and the model without its width. Only
`isounc.studies.scaling.summary` combines the numbers of several seeds.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from isounc.estimates.estimators import ESTIMATORS, POINTS, Estimator, estimator_names
from isounc.runs import files
from isounc.runs.folder import RunFolder
from isounc.sampling.gate import Gate
from isounc.statistics import Trend, trend
from isounc.studies.scaling.comparisons import TEXT_COLUMNS
from isounc.studies.scaling.stored import check_meta, rows_of, typed_rows
from isounc.studies.scaling.summary import KEY_COLUMNS, summarise

if TYPE_CHECKING:
    import pandas

REGIONS = ("test", "grid", "far")
"""Regions in the order in which they are shown."""
_PROBLEMS = (
    *("linear", "xor", "rings", "moons", "clusters3", "spirals3", "rings3"),
    *("linear_regression", "nonlinear_regression", "breast_cancer", "wine", "digits_3v8"),
)
_CURVE = ("setup", "region", "point", "quantity", "estimator")
"""Columns that tell curves apart."""


class Setup(NamedTuple):
    """The settings that a scaling curve holds fixed."""

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
    n: float = 0
    """Training examples; 0 in runs of earlier versions, which do not say."""
    grid_margin: float = 0
    """The grid reaches this far beyond the training inputs; 0 is the grid of the problem."""


class CellRecord(NamedTuple):
    """A record that describes a cell of a sweep."""

    name: str
    """Name of the record."""
    setup: Setup
    """The settings that the cell shares with the others of its curve."""
    width: int
    """Hidden units per layer."""
    seed: int
    """Seed of data and initialisation."""
    meta: dict[str, Any]
    """The record's meta: gate, checks of the point estimates, seconds."""

    @property
    def passed(self) -> bool:
        """Whether the reference passed its gate in all regions (without a gate it did not)."""
        return (self.meta.get("gate") or {}).get("passed") is True

    def passed_in(self, region: str) -> bool:
        """Whether it passed, but for what is the matter with other regions alone."""
        gate = Gate.of(self.meta.get("gate") or {})
        return gate.passed or (bool(gate.reasons) and not gate.reasons_in(region))


class Results:
    """The rows and cells of a run, arranged for figures and tables; `Results.of` reads them.

    Attributes
    ----------
    run
        The run folder that was read.
    rows
        Result rows in the main class of their setup, and those about predictions. A column `setup`
        has the label of the setup. Undefined numbers are NaN.
    cells
        Cells with a record that verifies, in the order of `setups`, widths and seeds.
    source
        Origin of the rows, in words.
    summary
        Summary by `summarise` of the rows of every class, from which `curves` are taken; None until
        a report sets it, which needs it as a table.
    setups
        All setups: known problems in the order of the paper, then others as they appear.

    The columns `setup`, `region`, `point` and `estimator` are ordered categories: built-in names in
    their own order, then others as they appear. A table in that order is one sorted by them.
    """

    def __init__(
        self,
        run: RunFolder,
        rows: pandas.DataFrame,
        metas: Mapping[str, Mapping[str, Any]],
        source: str,
    ):
        self.run = run
        self.source = source
        for name, meta in metas.items():
            check_meta(meta, f"record {name!r} of {run.path}")
        cells = [
            CellRecord(name, _setup(cell), cell["width"], cell["seed"], dict(meta))
            for name, meta in metas.items()
            if isinstance(cell := meta.get("cell"), dict)
        ]
        rows = typed_rows(rows, f"the result rows of {run.path}")
        of_rows = rows[list(Setup._fields)].drop_duplicates().itertuples(index=False, name=None)
        setups = dict.fromkeys([*(Setup(*values) for values in of_rows), *(c.setup for c in cells)])
        problems = ordered(dict.fromkeys(setup.problem for setup in setups), _PROBLEMS)
        self.setups = sorted(setups, key=lambda setup: problems.index(setup.problem))
        place = {setup: i for i, setup in enumerate(self.setups)}
        self.cells = sorted(cells, key=lambda cell: (place[cell.setup], cell.width, cell.seed))
        self._labels = {}
        for setup in self.setups:
            details = ", ".join(f"{field} {value}" for field, value in self._details(setup))
            self._labels[setup] = f"{setup.problem} ({details})" if details else setup.problem
        rows = self._arranged(rows)
        predictive = rows["quantity"] == "predictive"  # which is of all classes
        classes = rows[~predictive].groupby("setup", observed=True)["class"].agg(set)
        self._main_class = {
            label: "trace" if "trace" in names else min(names) for label, names in classes.items()
        }
        self.rows = self._in_main_class(rows)
        self.summary: pandas.DataFrame | None = None

    @functools.cached_property
    def curves(self) -> pandas.DataFrame:
        """Summary of `rows` by `summarise`, with a column `setup`; sorted by setup and width."""
        summary = summarise(self.rows) if self.summary is None else self.summary
        curves = self._in_main_class(self._arranged(summary))
        return curves.sort_values(["setup", "width"], kind="stable")

    @functools.cached_property
    def _rows(self) -> dict[Any, pandas.DataFrame]:
        return dict(iter(self.rows.groupby(list(_CURVE), observed=True, sort=False)))

    @functools.cached_property
    def _curves(self) -> dict[Any, pandas.DataFrame]:
        return dict(iter(self.curves.groupby(list(_CURVE), observed=True, sort=False)))

    @functools.cached_property
    def _row_widths(self) -> dict[Any, list[int]]:
        distinct = self.rows[["setup", "width"]].drop_duplicates()
        return distinct.groupby("setup", observed=True)["width"].agg(list).to_dict()

    @functools.cached_property
    def _cell_widths(self) -> dict[Setup, set[int]]:
        found: dict[Setup, set[int]] = {setup: set() for setup in self.setups}
        for cell in self.cells:
            found[cell.setup].add(cell.width)
        return found

    @classmethod
    def of(cls, run: RunFolder | Results) -> Results:
        """Read a run folder; results that have been read already are returned as they are.

        Raises
        ------
        ValueError
            If there is a `results.csv` that cannot be read, or a file has a newer format.
        """
        import pandas as pd

        if isinstance(run, Results):
            return run
        metas = {record.name: record.meta for record in run.records(with_arrays=False)}
        if files.table_path(run.path, "results.csv"):
            source = "results.csv"
            rows = run.read_table(source, text_columns=TEXT_COLUMNS)
            needed = (*KEY_COLUMNS, "seed", "gate")
            missing = [column for column in needed if column not in rows]
            if missing:
                raise ValueError(
                    f"results.csv of {run.path} must have the columns {', '.join(needed)}, "
                    f"got none of {missing}"
                )
            if rows.empty and not metas:
                raise ValueError(
                    f"results.csv of {run.path} must have rows, got a header alone: the run did "
                    "not finish, or the file was emptied"
                )
        else:
            rows = pd.DataFrame(
                [row for name, meta in metas.items() for row in rows_of(meta, f"record {name!r}")]
            )
            source = f"{len(metas)} records, since the run has no results.csv (it did not finish)"
        return cls(run, rows, metas, source)

    def values(self, column: str) -> list[Any]:
        """Return the distinct values of a column of the rows, without empty cells.

        Regions, points and estimators are in house order.
        """
        return ordered(self.rows[column].dropna().unique(), _orders().get(column, ()))

    def shown(self, view: str) -> list[str]:
        """Return the estimators of the rows that belong in a view, also unregistered ones."""
        return [
            name
            for name in self.values("estimator")
            if view in getattr(ESTIMATORS.get(name), "views", Estimator.views)
        ]

    def widths(self, setup: Setup) -> list[int]:
        """Return the widths of a setup in rows or records, ascending."""
        return sorted({*self._row_widths.get(self._labels[setup], ()), *self._cell_widths[setup]})

    def label(self, setup: Setup) -> str:
        """Return the problem and whatever differs from the run's other setups of that problem."""
        return self._labels[setup]

    def slug(self, setup: Setup) -> str:
        """Return `label` in a form that fits into a file name."""
        details = (f"{field}-{value}" for field, value in self._details(setup))
        return re.sub(r"[^A-Za-z0-9_.-]", "-", "_".join([setup.problem, *details]))

    def main_class(self, setup: Setup) -> str:
        """Return the class view that stands for a setup: the trace, or its only one."""
        return self._main_class.get(self._labels[setup], "1")

    def select(
        self, setup: Setup, *, region: str, point: str, quantity: str, estimator: str
    ) -> pandas.DataFrame:
        """Return the rows of all widths and seeds in the main class.

        All rows of the quantity `predictive`, which have no class of their own, are included.
        """
        key = (self._labels[setup], region, point, quantity, estimator)
        return self._rows.get(key, self.rows.iloc[:0])

    def curve(
        self, setup: Setup, *, region: str, point: str, estimator: str, quantity: str = "epistemic"
    ) -> pandas.DataFrame:
        """Return summary rows, one per width, ascending; see `summarise`."""
        key = (self._labels[setup], region, point, quantity, estimator)
        return self._curves.get(key, self.curves.iloc[:0])

    def at_width(self, setup: Setup, width: int, **which: str) -> dict[Hashable, Any] | None:
        """Return the row of `curve` at one width, or None if it has none."""
        curve = self.curve(setup, **which)
        widths = curve["width"].tolist()
        return curve.iloc[widths.index(width)].to_dict() if width in widths else None

    def trend(self, setup: Setup, *, statistic: str = "pearson", **which: str) -> Trend | None:
        """Return the trend of a correlation with width, or None for fewer than two widths."""
        rows = self.select(setup, **{"quantity": "epistemic", **which})
        widths = sorted(rows["width"].unique().tolist())
        if len(widths) < 2:
            return None
        columns = (rows[name].tolist() for name in ("gate", "seed", "width", statistic))
        by_seed: dict[int, dict[int, float | None]] = {}
        for gate, seed, width, value in zip(*columns, strict=True):
            if gate == "pass":
                of_seed = by_seed.setdefault(seed, {})
                if width in of_seed:
                    raise ValueError(
                        f"rows must not repeat a seed, got seed {seed} again of {which}"
                    )
                of_seed[width] = None if math.isnan(value) else value
        return trend(widths, [[by_seed[s].get(w) for w in widths] for s in sorted(by_seed)])

    def shown_cell(self, setup: Setup) -> CellRecord | None:
        """Return the cell of largest width and of the first seed that passed (else the first)."""
        cells = [cell for cell in self.cells if cell.setup == setup]
        cells = [cell for cell in cells if cell.width == cells[-1].width]
        return next((cell for cell in cells if cell.passed), cells[0] if cells else None)

    def _details(self, setup: Setup) -> list[tuple[str, Any]]:
        """Fields that differ between the setups of a problem, with their values as texts."""
        others = [other for other in self.setups if other.problem == setup.problem]
        return [
            (field, f"{value:g}" if isinstance(value, float) else value)
            for field, value in setup._asdict().items()
            if len({getattr(other, field) for other in others}) > 1
        ]

    def _in_main_class(self, frame: pandas.DataFrame) -> pandas.DataFrame:
        """Rows in the main class of their setup, and those about predictions, of all classes."""
        is_main = frame["class"] == frame["setup"].astype(object).map(self._main_class)
        shown = is_main | (frame["quantity"] == "predictive")
        return frame if shown.all() else frame[shown]  # no copy of a long table that has no others

    def _arranged(self, frame: pandas.DataFrame) -> pandas.DataFrame:
        """Add a column `setup`, and make categories in house order of what sorts the rows."""
        import pandas as pd

        setups = frame[list(Setup._fields)].itertuples(index=False, name=None)
        frame = frame.assign(setup=[self._labels[Setup(*values)] for values in setups])
        for column, order in {"setup": list(self._labels.values()), **_orders()}.items():
            names = ordered(frame[column].dropna().unique(), order)
            frame[column] = pd.Categorical(frame[column], names, ordered=True)
        return frame


def point_of(estimator: str, point: str) -> str:
    """Return the point of an estimator's rows: `posterior` if it has no other, else `point`."""
    known = ESTIMATORS.get(estimator)
    return "posterior" if known is not None and known.points == ("posterior",) else point


def ordered(names: Iterable[Any], known: Iterable[Any]) -> list[Any]:
    """Sort known names first, in their own order, then the others in the order given."""
    names, known = list(names), list(known)
    return [name for name in known if name in names] + [n for n in names if n not in known]


def _orders() -> dict[str, Iterable[str]]:
    return {"region": REGIONS, "point": POINTS, "estimator": estimator_names()}


def _setup(row: Mapping[str, Any]) -> Setup:
    return Setup(**{field: row[field] for field in Setup._fields if field in row})
