r"""A score of answers: a number that says, without knowing the right answer, that one is wrong.

A `Score` is a function of measured answers, with what tables and figures need to know about it:
its family, the probability (estimand) that it is about, its direction, and whether it is one of
the baselines. `isounc.llm.answers.isotropic_scores` and `isounc.llm.answers.baseline_scores` have
those that exist; `isounc.llm.answers.score_table` puts them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from isounc.llm.answers.answer import MeasuredAnswer

Sign = Literal["falls", "turns", "entropy", "fitted", "none"]
"""Key of `SIGNS`."""
SIGNS: Mapping[Sign, str] = {
    "falls": "falls as p rises, at every p: no flip",
    "turns": "rises with p below p = 1/2 and falls above: flips at p = 1/2, and points the wrong way "
    "below",
    "entropy": "falls as p rises while the entropy is the same; with a single other token, whose "
    "probability is 1 - p, rises with p below p = .30",
    "fitted": "fitted to other answers: no sign of its own",
    "none": "no function of p",
}
"""How a score changes, in theory, with the probability p of the answer, while the gradient of its
log-odds f = log p - log(1 - p) stays the same. A score that is used as an uncertainty must fall.

||grad p||^2 = (p (1 - p))^2 ||grad f||^2 and p (1 - p) are largest at p = 1/2: an answer of p = .01
has less of both than one of p = .3. ||grad log p||^2 = (1 - p)^2 ||grad f||^2 falls throughout. SemGrad
has the factor H (1 - p) for an answer of one token, with H the entropy of its distribution.
"""


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
    sign: Sign = "none"
    """How the uncertainty changes with p in theory, see `SIGNS`."""

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
