"""Transfer between models: fitted on the answers of all models but one, tested on that one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from isounc.checks import check_choice
from isounc.llm.answers.logistic import (
    DEFAULT_LOGISTIC,
    LogisticSettings,
    log_odds_from_others,
    normal_scores,
)
from isounc.llm.answers.score_table import ScoreTable
from isounc.llm.answers.totals import standardised
from isounc.studies.qa.evaluation import DEFAULT_BOOTSTRAP, BootstrapSettings
from isounc.studies.qa.ranking import draw_weights, estimated, ranking

NORMALISATIONS = ("raw", "z", "rank")
"""Transformations of a model's scores that `transfer` knows."""
TRANSFER_COLUMNS = (
    *("left_out", "features", "normalise", "num_train", "num_test", "num_undefined"),
    *("auroc", "auroc_se", "auroc_low", "auroc_high", "reason"),
)
"""Columns of the rows of `transfer`."""


def transfer(
    by_model: Mapping[str, ScoreTable],
    features: Sequence[str],
    *,
    normalise: str = "raw",
    logistic: LogisticSettings = DEFAULT_LOGISTIC,
    bootstrap: BootstrapSettings = DEFAULT_BOOTSTRAP,
) -> list[dict[str, Any]]:
    """AUROC on each model's wrong answers of a regression fitted on all other models' scores.

    `normalise` says what is done to each score before the logistic regression:

        raw    one shift and scale for all models, from the training models
        z      mean 0 and standard deviation 1 within each model
        rank   `normal_scores` within each model

    `z` and `rank` use the left-out model's scores on all its questions, but none of its answers.
    The interval is over the left-out model's questions, with the fit fixed: it does not say how
    another model would do. Models are usually asked the same questions. Features are scores only,
    so that a question's difficulty is not learnt by heart, but the left-out model's errors are not
    independent of the training ones.

    Parameters
    ----------
    by_model
        A table of scores for each model.
    features
        Names of the scores that the regression uses.
    normalise
        One of `NORMALISATIONS`.
    logistic
        The regression; it is fitted once for each model left out.
    bootstrap
        The interval.

    Returns
    -------
    list of dict
        A row of `TRANSFER_COLUMNS` for each model.

    Raises
    ------
    ValueError
        There are fewer than two models, a feature or the normalisation is unknown, or a feature is
        infinite (unless `normalise` is `rank`).
    """
    check_choice("normalise", normalise, NORMALISATIONS)
    if len(by_model) < 2 or not features:
        raise ValueError(
            "by_model must hold two models or more, and features at least one score, got "
            f"{list(by_model)} and {list(features)}"
        )
    data, num_undefined = {}, {}
    for model, table in by_model.items():
        data[model], num_undefined[model] = _features_of(model, table, features, normalise)
    rows = []
    for model, (test, wrong) in data.items():
        train, labels = (
            np.concatenate([parts[i] for other, parts in data.items() if other != model])
            for i in (0, 1)
        )
        row: dict[str, Any] = dict.fromkeys(TRANSFER_COLUMNS)
        row |= {"left_out": model, "features": " ".join(features), "normalise": normalise}
        row |= {"num_train": len(train), "num_test": len(test)}
        row |= {"num_undefined": num_undefined[model]}
        if _one_class(labels) or _one_class(wrong):
            which = "training" if _one_class(labels) else "left-out"
            rows.append(row | {"reason": f"one class only among the {which} answers"})
            continue
        log_odds = log_odds_from_others(train, labels, test, settings=logistic)
        weights = draw_weights(len(test), bootstrap.num_resamples, seed=bootstrap.seed)
        auroc = estimated(ranking(log_odds, wrong, weights).auroc, level=bootstrap.level)
        rows.append(row | auroc.cells("auroc") | {"reason": auroc.reason})
    return rows


def _features_of(
    model: str, table: ScoreTable, names: Sequence[str], normalise: str
) -> tuple[tuple[Float[np.ndarray, "Q F"], Bool[np.ndarray, " Q"]], int]:
    """Normalised features and wrong answers where all are defined; number of other questions."""
    for name in names:
        check_choice(f"features (of {model})", name, table.uncertainty)
    features = np.stack([table.uncertainty[name] for name in names], axis=1)
    defined = ~np.isnan(features).any(axis=1)
    if normalise != "rank" and np.isinf(features[defined]).any():
        raise ValueError(
            f"features of {model} must be finite for {normalise!r}, got an infinite value; use "
            "'rank', or leave that score out"
        )
    normalised = _NORMALISE[normalise](features[defined])
    return (normalised, table.wrong[defined]), int((~defined).sum())


def _one_class(wrong: Bool[np.ndarray, " Q"]) -> bool:
    return bool(wrong.all() or not wrong.any())


def _columns_standardised(features: Float[np.ndarray, "Q F"]) -> Float[np.ndarray, "Q F"]:
    return np.stack([standardised(column) for column in features.T], axis=1)


_NORMALISE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "raw": lambda features: features,
    "z": _columns_standardised,
    "rank": lambda features: normal_scores(features, features),
}
