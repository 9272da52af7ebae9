"""Logistic regression of wrong answers on scores, with predictions for questions not fitted on.

Scores enter as normal scores, so that neither their units nor an increasing transformation of one
of them has any effect.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from isounc.checks import check_count, check_real


@dataclass(frozen=True)
class LogisticSettings:
    """Logistic regression and its cross-validation."""

    num_folds: int = 5
    """Folds, with the same share of wrong answers in each."""
    num_repeats: int = 5
    """Times that the questions are split anew; log odds are averaged over the splits."""
    inverse_penalty: float = 1.0
    """C of scikit-learn's `LogisticRegression` (L2), for features of about unit variance."""
    seed: int = 0
    """Seed of the folds."""

    def __post_init__(self):
        check_count("num_folds", self.num_folds, 2)
        check_count("num_repeats", self.num_repeats, 1)
        check_real("inverse_penalty", self.inverse_penalty, positive=True)
        check_count("seed", self.seed, 0)


DEFAULT_LOGISTIC = LogisticSettings()
"""Settings that are used unless others are given."""


def has_enough_of_both(
    wrong: Bool[np.ndarray, " Q"], settings: LogisticSettings = DEFAULT_LOGISTIC
) -> bool:
    """Whether there is a wrong and a right answer for every fold."""
    return bool(min(wrong.sum(), (~wrong).sum()) >= settings.num_folds)


def out_of_fold_log_odds(
    features: Float[np.ndarray, "Q F"],
    wrong: Bool[np.ndarray, " Q"],
    *,
    settings: LogisticSettings = DEFAULT_LOGISTIC,
) -> Float[np.ndarray, " Q"]:
    r"""Log odds that each answer is wrong, by logistic regressions fitted on other questions.

        z_qf = Phi^-1(share of the training questions with a smaller value; ties count half)

    The questions are split into folds. The log odds of each fold come from a fit on the others,
    from which z is computed too. This is repeated `num_repeats` times with new folds, and the log
    odds are averaged. The AUROC of the result is that of a classifier trained on (1 - 1/folds) Q
    questions, which is slightly pessimistic for one trained on all of them.

    Raises
    ------
    ValueError
        The shapes do not fit, a feature is undefined, or there are fewer wrong or right answers
        than folds.
    """
    from sklearn.linear_model import LogisticRegression  # takes seconds to import
    from sklearn.model_selection import StratifiedKFold

    if features.ndim != 2 or len(features) != len(wrong) or not features.shape[1]:
        raise ValueError(
            f"features must have shape ({len(wrong)}, F) with F > 0, got {features.shape}"
        )
    if np.isnan(features).any():
        raise ValueError(
            "features must be defined at every question, got NaN at "
            f"{np.isnan(features).any(axis=1).sum()} of {len(features)} questions"
        )
    if not has_enough_of_both(wrong, settings):
        raise ValueError(
            f"wrong must hold at least {settings.num_folds} wrong and as many right answers, one "
            f"for each fold, got {wrong.sum()} wrong of {len(wrong)}"
        )
    total = np.zeros(len(features))
    for repeat in range(settings.num_repeats):
        seed = int(np.random.SeedSequence([settings.seed, repeat]).generate_state(1)[0])
        folds = StratifiedKFold(settings.num_folds, shuffle=True, random_state=seed)
        for train, test in folds.split(features, wrong):
            fit = LogisticRegression(C=settings.inverse_penalty, max_iter=1000)
            fit.fit(normal_scores(features[train], features[train]), wrong[train])
            total[test] += fit.decision_function(normal_scores(features[test], features[train]))
    return total / settings.num_repeats


def log_odds_from_others(
    train: Float[np.ndarray, "Q_train F"],
    wrong: Bool[np.ndarray, " Q_train"],
    test: Float[np.ndarray, "Q F"],
    *,
    settings: LogisticSettings = DEFAULT_LOGISTIC,
) -> Float[np.ndarray, " Q"]:
    r"""Log odds that each answer is wrong, by a logistic regression fitted on other answers.

    Features are standardised by the mean and standard deviation of those fitted on; one fit, without
    folds. Ranks, if they are wanted, are for the caller to take.

    Raises
    ------
    ValueError
        If the answers fitted on are all wrong or all right.
    """
    from sklearn.linear_model import LogisticRegression  # takes seconds to import

    if wrong.all() or not wrong.any():
        raise ValueError(
            f"wrong must hold right and wrong answers, got {wrong.sum()} wrong of {len(wrong)}"
        )
    mean, sd = train.mean(axis=0), train.std(axis=0)
    sd = np.where(sd > 0, sd, 1.0)
    fit = LogisticRegression(C=settings.inverse_penalty, max_iter=1000)
    fit.fit((train - mean) / sd, wrong)
    return fit.decision_function((test - mean) / sd)


def normal_scores(
    values: Float[np.ndarray, "Q F"], among: Float[np.ndarray, "Q_ref F"]
) -> Float[np.ndarray, "Q F"]:
    r"""Values as normal quantiles of their place among reference values, column by column.

    z = Phi^-1((n share + 1/2) / (n + 1)), with the share of the n reference values that are smaller
    (ties count half).
    """
    from scipy.special import ndtri  # a third of a second to import

    shares = [share_smaller(v, a) for v, a in zip(values.T, among.T, strict=True)]
    return ndtri((np.stack(shares, axis=1) * len(among) + 0.5) / (len(among) + 1))


def share_smaller(
    values: Float[np.ndarray, " Q"], among: Float[np.ndarray, " Q_ref"]
) -> Float[np.ndarray, " Q"]:
    """Share of the reference values that are smaller, ties counting half."""
    ordered = np.sort(among)
    low, high = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (low + high) / (2 * max(len(ordered), 1))
