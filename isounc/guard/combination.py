"""Several scores as one: a logistic regression of wrong answers, fitted apart from the calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from isounc.checks import real_array, real_vector
from isounc.guard.guard import Guard
from isounc.guard.sample import Table, Values


@dataclass(frozen=True)
class Combination:
    """Log odds of a wrong answer from several scores, each as the normal score of its rank.

    A guard on it must be calibrated on other answers than it was fitted to: on its own sample the log
    odds are too good, and the promise would be broken. `guard` refuses that.
    """

    features: Float[np.ndarray, "N F"]
    """Scores of the sample it was fitted to, among which new ones are ranked."""
    weights: Float[np.ndarray, " F"]
    """Weight of the normal score of each."""
    intercept: float
    """Log odds of a wrong answer whose scores are all in the middle."""

    @classmethod
    def fit(cls, features: Table, correct: Values) -> Combination:
        """Fit the weights to answers whose correctness is known.

        Raises
        ------
        ValueError
            If features are no table of defined scores with a row for each answer, or there are fewer
            than five right or wrong answers.
        """
        from sklearn.linear_model import LogisticRegression  # these take seconds to import

        from isounc.llm.answers.logistic import DEFAULT_LOGISTIC, has_enough_of_both, normal_scores

        table, labels = _table("features", features), real_vector("correct", correct)
        if len(table) != len(labels) or not np.isin(labels, (0, 1)).all():
            raise ValueError(
                f"correct must be true or false for each of {len(table)} answers, got {len(labels)} "
                "values" + " that are neither" * (len(table) == len(labels))
            )
        wrong = labels == 0
        if not has_enough_of_both(wrong):
            raise ValueError(
                f"correct must hold {DEFAULT_LOGISTIC.num_folds} right and as many wrong answers or more, "
                f"got {int((~wrong).sum())} and {int(wrong.sum())}"
            )
        fit = LogisticRegression(C=DEFAULT_LOGISTIC.inverse_penalty, max_iter=1000)
        fit.fit(normal_scores(table, table), wrong)
        return cls(table, np.ravel(fit.coef_), np.ravel(fit.intercept_).item())

    def score(self, features: Table) -> Float[np.ndarray, " M"]:
        """Log odds that each answer is wrong; higher is uncertain.

        Raises
        ------
        ValueError
            If features are no table of defined scores with as many columns as those fitted.
        """
        table = _table("features", features)
        if table.shape[1] != len(self.weights):
            raise ValueError(
                f"features must have {len(self.weights)} columns, those fitted, got {table.shape[1]}"
            )
        from isounc.llm.answers.logistic import normal_scores

        return normal_scores(table, self.features) @ self.weights + self.intercept

    def guard(self, features: Table, correct: Values, **promise: Any) -> Guard:
        """`Guard.fit` on the combined score of other answers than those it was fitted to.

        Raises
        ------
        ValueError
            As `Guard.fit`, or if the sample is the one it was fitted to, part of it, or holds it.
        """
        own = {row.tobytes() for row in self.features}
        table = _table("features", features)
        rows = [row.tobytes() for row in table]
        shared = sum(row in own for row in rows)
        # Scores of few values are shared by more rows than those fitted.
        holds_own = shared == len(self.features) and own <= set(rows)
        if shared == len(table) or holds_own:
            raise ValueError(
                "features must be of other answers than the combination was fitted to, got "
                f"{shared} of {len(table)} rows that it was; split the sample before fitting"
            )
        return Guard.fit(self.score(table), correct, higher_is_uncertain=True, **promise)


def _table(argument: str, values: Any) -> Float[np.ndarray, "N F"]:
    table = real_array(argument, values).astype(np.float64)
    if table.ndim != 2 or not table.size or np.isnan(table).any():
        raise ValueError(
            f"{argument} must be a table (answers, scores) without NaN, got shape {table.shape}"
            + f" with {int(np.isnan(table).sum())} NaN"
        )
    return np.ascontiguousarray(table)
