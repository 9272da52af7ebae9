r"""A score of answers: a number that says, without knowing the right answer, that one is wrong.

A `Score` is a function of measured answers, with what tables and figures need to know about it:
its family, the probability (estimand) that it is about, its direction, and whether it is one of
the baselines. `isounc.llm.answers.isotropic_scores` and `isounc.llm.answers.baseline_scores` have
those that exist; `isounc.llm.answers.score_table` puts them together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from isounc.llm.answers.answer import MeasuredAnswer


@dataclass(frozen=True, kw_only=True)
class ScoreInfo:
    """Description of a score."""

    family: str
    """Kind of score, such as `epistemic` or `p_true`: its row in tables, its colour in figures."""
    estimand: str | None = None
    """Probability that the score is about; None if it is not about a particular one."""
    higher_is_certain: bool = False
    """Whether a high value says that the answer is right."""
    is_baseline: bool = False
    """Whether other scores are compared with this one."""
    why_undefined: str = "no reason given"
    """Why the score is undefined where it is."""

    @property
    def name(self) -> str:
        """Name in tables: `family/estimand`, or the family alone."""
        return self.family if self.estimand is None else f"{self.family}/{self.estimand}"


@dataclass(frozen=True, kw_only=True)
class Score(ScoreInfo):
    """A score of answers.

    `score_of_each` makes the function of a score that looks at one answer at a time.
    """

    values: Callable[
        [Sequence[MeasuredAnswer], Bool[np.ndarray, " Q"]],
        Float[np.ndarray, " Q"],
    ]
    """From Q answers, and whether each is wrong, to one value each; NaN where undefined. Whether an
    answer is wrong may be used only to score other answers (out of fold)."""


def score_of_each(
    value: Callable[[MeasuredAnswer], float | None],
) -> Callable[[Sequence[MeasuredAnswer], Bool[np.ndarray, " Q"]], Float[np.ndarray, " Q"]]:
    """The function of a score that is a value of each answer by itself.

    `value` is not called for empty answers, and gives None where it is undefined.
    """

    def values(
        answers: Sequence[MeasuredAnswer], wrong: Bool[np.ndarray, " Q"]
    ) -> Float[np.ndarray, " Q"]:
        numbers = [value(answer) if answer.text else None for answer in answers]
        return np.array([np.nan if number is None else number for number in numbers], float)

    return values
