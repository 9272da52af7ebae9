"""The run folders that claims rest on: found, told apart, and refused where they cannot be read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from isounc.checks import check_path
from isounc.fields import shortened
from isounc.runs import csv_tables, files
from isounc.runs.folder import RunFolder
from isounc.runs.values import Damaged

if TYPE_CHECKING:
    import pandas

CELL = ("problem", "width", "depth", "activation", "parameterisation", "prior_sd", "seed")
_VERDICT = ("hypothesis", "problem", "mean", "low", "high", "num_seeds", "statistic")
_CELLS = ("num_cells", "num_failed")
COSTS = "processes.csv"
"""The table of `benchmarks/cost.py`, whose folder is no run folder, with a row for each process."""
NEEDED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "scaling": {
        "results.csv": (
            *CELL, "point", "region", "estimator", "quantity", "class", "gate", "pearson",
            "spearman", "slope",
        ),
    },
    "covariance": {
        "verdicts.csv": (*_VERDICT, "width", "point", "proxy", "region"),
        "summary.csv": (
            "problem", "width", "point", "region", "form", "proxy", "lam", *_CELLS
        ),
    },
    "spectrum": {
        "verdicts.csv": (
            *_VERDICT, "width", "depth", "parameterisation", "n", "point", "region",
        ),
        "summary.csv": (
            "problem", "width", "depth", "parameterisation", "n", "point", "region", "form",
            "statistic", *_CELLS,
        ),
        "results.csv": (
            "problem", "width", "depth", "parameterisation", "n", "seed", "point", "region", "form",
            "order", "check",
        ),
    },
    "shift": {
        "verdicts.csv": (*_VERDICT, "network", "score", "rival", "shift"),
        "summary.csv": ("problem", "network", "shift", "score", *_CELLS),
    },
    "qa": {
        "results.csv": ("model", "benchmark", "score", "num_questions", "auroc", "auroc_se"),
        "tests.csv": (
            "model", "benchmark", "score", "against", "statistic", "num_questions", "gain",
            "gain_se",
        ),
        "correlations.csv": (
            "model", "benchmark", "score", "other", "num_questions", "spearman", "spearman_se",
        ),
        "gains.csv": ("model", "benchmark", "extra", "num_questions", "gain", "gain_se"),
    },
    "world": {
        "results.csv": (
            "world", "width", "depth", "epochs", "condition", "part", "temperature", "score", "auroc",
            "with_p_true",
        ),
    },
    "routing": {
        "verdicts.csv": (
            "hypothesis", "problem", "cheap_width", "score", "target", "mean", "low", "high",
            "num_seeds",
        ),
        "cascades.csv": (
            "problem", "cheap_width", "seed", "gate", "score", "target", "found", "log2_cost",
            "cascade_risk",
        ),
        "results.csv": ("problem", "cheap_width", "seed", "gate", "score", "risk"),
    },
    "cost": {COSTS: ("process", "model", "width", "examples", "way", "to_forward")},
}  # fmt: skip
"""Columns that are needed of the tables of each study."""
PROTOCOLS = (
    "protocol", "problem", "setting", "point", "estimator", "slope_mean", "slope_low",
    "slope_high", "num_seeds", "num_passed", "num_cells",
)  # fmt: skip
"""Columns that are needed of `verdicts.csv` of a scaling run, which has it if it ran protocols."""
TEXTS = (
    *("problem", "activation", "parameterisation", "point", "region", "estimator", "quantity"),
    *("class", "gate", "setting", "protocol", "hypothesis", "proxy", "statistic", "network"),
    *(
        "check",
        "score",
        "rival",
        "shift",
        "form",
        "model",
        "benchmark",
        "against",
        "extra",
        "other",
        "condition",
        "part",
        "networks",
        "second",
    ),
)
"""Columns of text, in folders that do not say so."""
_CORRELATION, _COUNT = (-1 - 1e-6, 1 + 1e-6), (0, 2**53)
RANGES = {
    **dict.fromkeys(("pearson", "spearman", "partial_spearman", "order", "with_p_true"), _CORRELATION),
    **dict.fromkeys(("num_seeds", "num_cells", "num_failed", "num_questions"), _COUNT),
    **dict.fromkeys(("gain_se", "auroc_se", "spearman_se", "slope", "to_forward", "width"),
                    (0, math.inf)),
    **dict.fromkeys(("mean", "low", "high", "slope_mean", "slope_low", "slope_high", "gain"),
                    (-math.inf, math.inf)),
    **dict.fromkeys(("auroc", "risk", "cascade_risk", "target", "found"), (0, 1)),
    "log2_cost": (-math.inf, math.inf),
}  # fmt: skip
"""Columns of numbers, with the range that they must lie in."""
DEEPEST = 3
"""How far below the folder of results run folders are looked for."""


class Source(NamedTuple):
    """A folder whose tables are evidence."""

    study: str
    """The study that made it."""
    name: str
    """Its path as it was given, or below the folder of results."""
    path: Path
    """The folder."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the run."""
        return RunFolder.load(self.path).settings

    def has(self, name: str) -> bool:
        """Whether it has a table."""
        return files.table_path(self.path, name) is not None

    def table(self, name: str, needed: Sequence[str]) -> pandas.DataFrame:
        """A table with the columns that are needed.

        Raises
        ------
        ValueError
            If there is none, it cannot be read, or it lacks a column.
        """
        data = _bytes(self.path, name)
        if data is None:
            raise ValueError(
                f"{self.path} must have {name}, as a finished run of {self.study} does, got none"
            )
        table = csv_tables.table_frame(data, TEXTS, name=str(self.path / name))
        if missing := [column for column in needed if column not in table]:
            raise ValueError(
                f"{name} of {self.path} must have the columns {', '.join(needed)}, got "
                f"{', '.join(map(str, table.columns))}, without {', '.join(missing)}: it is of "
                f"another version of {self.study}; run that again"
            )
        for column in table.columns.intersection(list(RANGES)):
            self._check_numbers(name, table[column])
        return table

    def _check_numbers(self, name: str, column: pandas.Series) -> None:
        least, most = RANGES[str(column.name)]
        known = column.dropna()
        try:
            values = known.to_numpy(float)
        except (TypeError, ValueError):
            bad = [value for value in known if not isinstance(value, int | float)]
        else:
            bad = known[~(np.isfinite(values) & (values >= least) & (values <= most))].tolist()
        if bad:
            right = (
                "finite numbers" if least == -math.inf else f"numbers from {least:g} to {most:g}"
            )
            raise ValueError(
                f"{column.name} in {name} of {self.path} must hold {right}, got {shortened(bad[0])}"
            )


def given(paths: Sequence[str]) -> list[Source]:
    """The folders that a user names.

    Raises
    ------
    ValueError
        If one is no run folder, is given twice, or is of a study that no claim rests on.
    """
    found: list[Source] = []
    for path in paths:
        folder = check_path("runs", path)
        if folder.resolve() in {other.path.resolve() for other in found}:
            raise ValueError(f"runs must name each folder once, got {path} again")
        study = study_of(folder)
        if study not in NEEDED:
            raise ValueError(
                f"runs must be run folders of {', '.join(NEEDED)}, got {path}, "
                f"which is {f'one of {study}' if study else 'of an unknown study'}"
            )
        found.append(Source(study, str(path), folder))
    return found


def published(results: str) -> list[Source]:
    """All folders of published results that claims rest on, in the order of their names.

    Raises
    ------
    ValueError
        If there is no such folder, or nothing of these studies in it.
    """
    root = check_path("results", results)
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise ValueError(
            f"results must be the folder of published results (in a clone: results), got {root}, "
            f"which {kind}; name run folders as --runs instead"
        )
    names = ("settings.json", COSTS)
    folders = {
        path.parent
        for depth, name in itertools.product(range(1, DEEPEST + 1), names)
        for path in root.glob("/".join(["*"] * depth + [name]))
    }
    found = [
        Source(study, str(folder.relative_to(root.parent)), folder)
        for folder in folders
        if (study := study_of(folder)) in NEEDED
    ]
    if not found:
        raise ValueError(
            f"results must hold published runs of {', '.join(NEEDED)}, got {root}, which has none; "
            "name run folders as --runs instead"
        )
    return sorted(found, key=lambda source: source.name)


def study_of(folder: Path) -> str:
    """The study of a folder; of a run that does not say, that whose columns its tables have.

    Raises
    ------
    ValueError
        If it is no run folder, and has no table of the cost benchmark.
    """
    if not (folder / "settings.json").exists() and files.table_path(folder, COSTS):
        return "cost"
    if study := RunFolder.load(folder).study:
        return study
    for study, tables in NEEDED.items():
        if all(set(needed) <= _columns(folder, name) for name, needed in tables.items()):
            return study
    return ""


def _columns(folder: Path, name: str) -> set[str]:
    """The headings of a table; none if there is no such table."""
    first = (_bytes(folder, name) or b"").partition(b"\n")[0]
    return set(first.decode(errors="replace").strip().split(","))


def _bytes(folder: Path, name: str) -> bytes | None:
    try:
        return files.table_file(folder, name)
    except Damaged as error:
        raise ValueError(str(error)) from error
