"""Scores of the answers to many questions, and whether each answer is wrong."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from isounc.checks import check_choice


@dataclass(frozen=True)
class ScoreTable:
    """Scores of the answers to Q questions, turned so that higher is more uncertain; see `make_score_table`."""

    uncertainty: Mapping[str, Float[np.ndarray, " Q"]]
    """By name; NaN where undefined."""
    wrong: Bool[np.ndarray, " Q"]
    """Whether the answer was wrong."""
    reasons: Mapping[str, str]
    """For each score with undefined values why they are."""

    def __len__(self) -> int:
        return len(self.wrong)


def make_score_table(
    values: Mapping[str, Float[ArrayLike, " Q"]],
    correct: Shaped[ArrayLike, " Q"],
    *,
    higher_is_certain: Collection[str] = (),
    reasons: Mapping[str, str] | None = None,
) -> ScoreTable:
    """Check a table of scores, and turn those in which higher means more certain.

    Parameters
    ----------
    values
        Scores by name, one value a question; NaN is undefined, infinities rank at the ends.
    correct
        Whether each answer was right: booleans, or 0 and 1.
    higher_is_certain
        Names of the scores, such as P(True), in which higher means more certain; their sign is turned.
    reasons
        For scores with undefined values why they are.

    Raises
    ------
    ValueError
        No score, no question, a length that differs, answers that are neither right nor wrong, an unknown name.
    """
    marks = np.asarray(correct)
    if marks.ndim != 1 or not len(marks) or not np.isin(marks, (0, 1)).all():
        raise ValueError(
            f"correct must be a list of True and False, one a question; got {correct!r:.200}"
        )
    if not values:
        raise ValueError("values must hold a score; got none")
    for name in higher_is_certain:
        check_choice("higher_is_certain", name, values)
    uncertainty, why = {}, {}
    for name, given in values.items():
        array = np.asarray(given, np.float64)
        if array.shape != marks.shape:
            raise ValueError(
                f"values[{name!r}] must have shape {marks.shape}, as correct; got {array.shape}"
            )
        uncertainty[name] = -array if name in higher_is_certain else array.copy()
        if np.isnan(array).any():
            why[name] = (reasons or {}).get(name, "no reason given")
    return ScoreTable(uncertainty, marks == 0, why)
