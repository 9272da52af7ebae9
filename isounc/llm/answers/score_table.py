"""Scores of the answers to many questions, turned so that higher is more uncertain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from isounc.checks import check_choice
from isounc.llm.answers.answer import MeasuredAnswer
from isounc.llm.answers.baseline_scores import baseline_scores
from isounc.llm.answers.entailment import SameMeaning
from isounc.llm.answers.isotropic_scores import ScoreSettings, isotropic_scores
from isounc.llm.answers.scores import Score, ScoreInfo


@dataclass(frozen=True)
class ScoreTable:
    """Scores of the answers to Q questions, and whether each answer is wrong."""

    uncertainty: Mapping[str, Float[np.ndarray, " Q"]]
    """Values by name of the score, higher where more uncertain; NaN where undefined."""
    wrong: Bool[np.ndarray, " Q"]
    """Whether the answer is wrong."""
    scores: Mapping[str, ScoreInfo]
    """Description of each score, by name."""

    def __len__(self) -> int:
        return len(self.wrong)

    @property
    def baselines(self) -> list[str]:
        """Names of the baselines."""
        return [name for name, score in self.scores.items() if score.is_baseline]

    def find(self, family: str, estimand: str | None = None) -> str | None:
        """Name of the score of a family and an estimand; None if the table has none."""
        for name, score in self.scores.items():
            if (score.family, score.estimand) == (family, estimand):
                return name
        return None

    def at(self, questions: Bool[np.ndarray, " Q"]) -> ScoreTable:
        """The table of some of the questions."""
        uncertainty = {name: values[questions] for name, values in self.uncertainty.items()}
        return ScoreTable(uncertainty, self.wrong[questions], self.scores)

    def only(self, names: Iterable[str]) -> ScoreTable:
        """The table of some of the scores."""
        kept = list(names)
        return ScoreTable(
            {name: self.uncertainty[name] for name in kept},
            self.wrong,
            {name: self.scores[name] for name in kept},
        )


def make_score_table(
    values: Mapping[str, Float[np.ndarray, " Q"]],
    correct: Bool[np.ndarray, " Q"] | Int[np.ndarray, " Q"],
    *,
    scores: Iterable[ScoreInfo] = (),
) -> ScoreTable:
    """Check scores of Q answers, and turn those in which higher means more certain.

    Parameters
    ----------
    values
        One value a question for each score, by name; NaN is undefined, infinities rank at the ends.
    correct
        Whether each answer was right: booleans, or 0 and 1.
    scores
        What the scores are. One that is not described is a family of its own, in which higher
        means more uncertain.

    Raises
    ------
    ValueError
        There is no score or no question, lengths differ, an answer is neither right nor wrong, or
        a score that is described has no values.
    """
    marks = np.asarray(correct)
    if marks.ndim != 1 or not len(marks) or not np.isin(marks, (0, 1)).all():
        raise ValueError(
            f"correct must be a list of True and False, one a question, got {correct!r:.200}"
        )
    if not values:
        raise ValueError("values must hold at least one score, got none")
    described = {score.name: score for score in scores}
    for name in described:
        check_choice("scores", name, values)
    uncertainty, infos = {}, {}
    for name, given in values.items():
        array = np.asarray(given, np.float64)
        if array.shape != marks.shape:
            raise ValueError(
                f"values[{name!r}] must have shape {marks.shape}, as correct, got {array.shape}"
            )
        infos[name] = described.get(name, ScoreInfo(family=name))
        uncertainty[name] = -array if infos[name].higher_is_certain else array.copy()
    return ScoreTable(uncertainty, marks == 0, infos)


def score_answers(
    answers: Sequence[MeasuredAnswer],
    settings: ScoreSettings | None = None,
    *,
    more: Iterable[Score] = (),
    same: SameMeaning | None = None,
) -> ScoreTable:
    """All scores of measured answers.

    A score that is undefined at every question is left out.

    Parameters
    ----------
    answers
        From `isounc.llm.answers.measure.measure`.
    settings
        Which isotropic scores are made; None is `ScoreSettings()`.
    more
        Scores of your own.
    same
        Whether two answers mean the same, see `baseline_scores`.

    Raises
    ------
    ValueError
        There are no answers, or two scores have the same name.
    """
    if not answers:
        raise ValueError("answers must hold at least one answer, got none")
    wrong = np.array([not answer.correct for answer in answers])
    values: dict[str, Float[np.ndarray, " Q"]] = {}
    scores: dict[str, Score] = {}
    for score in (*isotropic_scores(settings or ScoreSettings()), *baseline_scores(same), *more):
        if score.name in scores:
            raise ValueError(
                f"more must hold scores with names of their own, got {score.name!r} twice"
            )
        scores[score.name] = score
        values[score.name] = score.values(answers, wrong)
    defined = {name: array for name, array in values.items() if not np.isnan(array).all()}
    return make_score_table(defined, ~wrong, scores=[scores[name] for name in defined])
