"""The run folders that claims rest on: found, told apart, and refused where they cannot be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from isounc.checks import check_path
from isounc.runs import files
from isounc.runs.folder import RunFolder

if TYPE_CHECKING:
    import pandas

CELL = ("problem", "width", "depth", "activation", "parameterisation", "prior_sd", "seed")
_VERDICT = ("hypothesis", "problem", "mean", "low", "high", "num_seeds", "statistic")
NEEDED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "scaling": {
        "results.csv": (
            *CELL, "point", "region", "estimator", "quantity", "class", "gate", "pearson",
            "spearman", "slope",
        ),
    },
    "covariance": {"verdicts.csv": (*_VERDICT, "width", "point", "proxy", "region")},
    "spectrum": {
        "verdicts.csv": (
            *_VERDICT, "width", "depth", "parameterisation", "n", "point", "region",
        ),
    },
    "shift": {"verdicts.csv": (*_VERDICT, "network", "score", "rival", "shift")},
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
    *("score", "rival", "shift", "model", "benchmark", "against", "extra", "other"),
)
"""Columns of text, in folders that do not say so."""
DEEPEST = 3
"""How far below the folder of results run folders are looked for."""


class Source(NamedTuple):
    """A run folder whose tables are evidence."""

    study: str
    """The study that made it."""
    name: str
    """Its path as it was given, or below the folder of results."""
    run: RunFolder
    """The folder."""

    def table(self, name: str, needed: Sequence[str]) -> pandas.DataFrame:
        """A table with the columns that are needed.

        Raises
        ------
        ValueError
            If there is none, or it lacks a column.
        """
        table = self.run.read_table(name, text_columns=TEXTS)
        if missing := [column for column in needed if column not in table]:
            raise ValueError(
                f"{name} of {self.run.path} must have the columns {', '.join(needed)}, got "
                f"{', '.join(map(str, table.columns))}, without {', '.join(missing)}: it is of "
                f"another version of the study {self.study}; run that again"
            )
        return table


def given(paths: Sequence[str]) -> list[Source]:
    """The run folders that a user names.

    Raises
    ------
    ValueError
        If one is no run folder, is given twice, or is of a study that no claim rests on.
    """
    found: list[Source] = []
    for path in paths:
        run = RunFolder.load(path)
        if run.path.resolve() in {other.run.path.resolve() for other in found}:
            raise ValueError(f"runs must name each folder once, got {path} again")
        study = study_of(run)
        if study not in NEEDED:
            raise ValueError(
                f"runs must be run folders of {', '.join(NEEDED)}, got {path}, "
                f"which is {f'one of {study}' if study else 'of an unknown study'}"
            )
        found.append(Source(study, str(path), run))
    return found


def published(results: str) -> list[Source]:
    """All published runs below a folder that claims rest on, in the order of their names.

    Raises
    ------
    ValueError
        If there is no such folder, or no run of these studies in it.
    """
    root = check_path("results", results)
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise ValueError(
            f"results must be the folder of published results (in a clone: results), got {root}, "
            f"which {kind}; name run folders as --runs instead"
        )
    found = []
    for depth in range(1, DEEPEST + 1):
        for settings in root.glob("/".join(["*"] * depth) + "/settings.json"):
            run = RunFolder.load(settings.parent)
            if (study := study_of(run)) in NEEDED:
                name = str(settings.parent.relative_to(root.parent))
                found.append(Source(study, name, run))
    if not found:
        raise ValueError(
            f"results must hold published runs of {', '.join(NEEDED)}, got {root}, which has none; "
            "name run folders as --runs instead"
        )
    return sorted(found, key=lambda source: source.name)


def study_of(run: RunFolder) -> str:
    """The study of a run; of one that does not say, that whose columns its tables have."""
    if run.study:
        return run.study
    for study, tables in NEEDED.items():
        if all(files.table_path(run.path, name) for name in tables) and all(
            set(needed) <= set(run.read_table(name).columns) for name, needed in tables.items()
        ):
            return study
    return ""
