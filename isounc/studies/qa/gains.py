"""Gain of a score over others: AUROC of logistic regressions with it and without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isounc.checks import check_choice
from isounc.llm.answers.logistic import (
    DEFAULT_LOGISTIC,
    LogisticSettings,
    has_enough_of_both,
    out_of_fold_log_odds,
)
from isounc.llm.answers.score_table import ScoreTable
from isounc.studies.qa.evaluation import DEFAULT_BOOTSTRAP, BootstrapSettings
from isounc.studies.qa.ranking import draw_weights, estimated, p_value, ranking

GAIN_COLUMNS = (
    *("baselines", "extra", "num_questions", "num_wrong", "auroc_without", "auroc_with"),
    *("gain", "gain_se", "gain_low", "gain_high", "p", "reason"),
)
"""Columns of the row of `auroc_gain`."""


def auroc_gain(
    table: ScoreTable,
    *,
    baselines: Sequence[str],
    extra: Sequence[str],
    logistic: LogisticSettings = DEFAULT_LOGISTIC,
    bootstrap: BootstrapSettings = DEFAULT_BOOTSTRAP,
) -> dict[str, Any]:
    """AUROC of a logistic model on baselines and extra scores, less that on the baselines alone.

    Both models predict out of fold (`out_of_fold_log_odds`, with the same folds), so that a useless
    score gains nothing: its gain is 0 or a little below on average, never above by over-fitting.
    The interval is a paired bootstrap over the questions of the out-of-fold predictions. It holds
    the fits fixed, and so leaves out that other training questions would have given other
    coefficients; that part is small with few features and hundreds of questions. The p-value is
    two-sided.

    Only questions where all named scores are defined are used; `num_questions` counts them.

    Parameters
    ----------
    table
        Scores of Q answers.
    baselines, extra
        Names of scores in the table.
    logistic
        The regressions.
    bootstrap
        The interval.

    Returns
    -------
    dict
        One row of `GAIN_COLUMNS`.

    Raises
    ------
    ValueError
        A name is unknown, a score is in both lists, or one of the lists is empty.
    """
    for argument, names in (("baselines", baselines), ("extra", extra)):
        if not names:
            raise ValueError(f"{argument} must name at least one score, got none")
        for name in names:
            check_choice(argument, name, table.uncertainty)
    if both := set(baselines) & set(extra):
        raise ValueError(f"extra must not name baselines, got {', '.join(sorted(both))} in both")
    features = np.stack([table.uncertainty[name] for name in (*baselines, *extra)], axis=1)
    defined = ~np.isnan(features).any(axis=1)
    features, wrong = features[defined], table.wrong[defined]
    row: dict[str, Any] = dict.fromkeys(GAIN_COLUMNS)
    row |= {"baselines": " ".join(baselines), "extra": " ".join(extra)}
    row |= {"num_questions": len(features), "num_wrong": int(wrong.sum())}
    if not has_enough_of_both(wrong, logistic):
        return row | {
            "reason": f"fewer than {logistic.num_folds} wrong or right answers, one for each fold"
        }
    weights = draw_weights(len(features), bootstrap.num_resamples, seed=bootstrap.seed)
    without, together = (
        ranking(out_of_fold_log_odds(columns, wrong, settings=logistic), wrong, weights).auroc
        for columns in (features[:, : len(baselines)], features)
    )
    gain = estimated(together - without, level=bootstrap.level)
    return row | {
        "auroc_without": float(without[0]),
        "auroc_with": float(together[0]),
        **gain.cells("gain"),
        "p": p_value(together - without),
        "reason": gain.reason,
    }
