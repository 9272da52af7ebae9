"""Scores put together: rules for epistemic + aleatoric, what a score adds to others, transfer between models.

A fitted combination is never judged on questions that it was fitted on. Features enter as normal scores, so that units,
and any increasing transformation of a score, are without effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtri

from isounc.checks import check_choice, check_count, check_real
from isounc.studies.qa.evaluation import DEFAULT_BOOTSTRAP, BootstrapSettings, Scores
from isounc.studies.qa.ranking import draw_weights, estimated, p_value, ranking

RULES = ("sum", "rank", "z", "logistic")
"""Combinations of epistemic and aleatoric uncertainty; see `combine`."""
NORMALISATIONS = ("raw", "z", "rank")
"""What `transfer` does to a model's features; see there."""
GAIN_COLUMNS = (
    *("baselines", "extra", "num_questions", "num_wrong", "auroc_without", "auroc_with"),
    *("gain", "gain_se", "gain_low", "gain_high", "p", "reason"),
)
"""Columns of the row of `auroc_gain`."""
TRANSFER_COLUMNS = (
    *("left_out", "features", "normalise", "num_train", "num_test", "num_undefined"),
    *("auroc", "auroc_se", "auroc_low", "auroc_high", "reason"),
)
"""Columns of the rows of `transfer`."""


@dataclass(frozen=True)
class FitSettings:
    """Logistic regression and its cross-validation."""

    num_folds: int = 5
    """Folds, with the same share of wrong answers in each."""
    num_repeats: int = 5
    """Times that the questions are split anew; predictions (log odds) are averaged over them."""
    inverse_penalty: float = 1.0
    """C of scikit-learn's LogisticRegression (L2), on features of about unit variance."""
    seed: int = 0
    """Seed of the folds."""

    def __post_init__(self):
        check_count("num_folds", self.num_folds, 2)
        check_count("num_repeats", self.num_repeats, 1)
        check_real("inverse_penalty", self.inverse_penalty, positive=True)
        check_count("seed", self.seed, 0)


def combine(
    epistemic: Float[np.ndarray, " Q"],
    aleatoric: Float[np.ndarray, " Q"],
    rule: str,
    *,
    sigma2: float | None = None,
    wrong: Bool[np.ndarray, " Q"] | None = None,
    settings: FitSettings = FitSettings(),
) -> Float[np.ndarray, " Q"]:
    r"""One uncertainty from two, by a named rule; NaN where either is.

        sum       sigma2 epistemic + aleatoric: variances; sigma2 is the isotropic variance of the parameters
        rank      mean of the two mid-ranks, divided by Q
        z         mean of the standardised log epistemic and the standardised aleatoric
        logistic  log odds of a wrong answer by logistic regression on both, out of fold

    With sigma2 = 1 a squared gradient norm of hundreds swamps a p (1 - p) of at most 1/4, hence the others. ``rank``
    and ``z`` compare a question with the others given, whose answers need not be known: a single question has no such
    value. ``logistic`` needs answers, of other questions.

    Nonpositive epistemic values, which have no log, count as the smallest positive one (they stay lowest). Under ``z``
    a constant is 0 throughout, so that the other uncertainty alone decides, as it does under ``rank``.

    Raises
    ------
    ValueError
        Unknown rule, lengths that differ, no question where both are defined; ``sum`` without sigma2; ``z`` with
        infinite values or no positive epistemic value; ``logistic`` without `wrong` or with too few of a class.
    """
    check_choice("rule", rule, RULES)
    e, a = (np.asarray(values, np.float64) for values in (epistemic, aleatoric))
    if e.ndim != 1 or e.shape != a.shape:
        raise ValueError(
            f"epistemic and aleatoric must both have shape (Q,); got {e.shape} and {a.shape}"
        )
    defined = ~(np.isnan(e) | np.isnan(a))
    if not defined.any():
        raise ValueError(
            "epistemic and aleatoric must both be defined at some question; they are at none"
        )
    if rule == "sum":
        if sigma2 is None:
            raise ValueError(
                "sigma2 must be given for rule 'sum': a trained model has no prior variance of its own"
            )
        return check_real("sigma2", sigma2) * e + a
    if rule == "logistic":
        if wrong is None or np.shape(wrong) != e.shape:
            raise ValueError(
                f"wrong must say for each of {len(e)} answers if it is wrong; got {wrong!r:.100}"
            )
        fitted = out_of_fold(
            np.stack([e, a], axis=1)[defined], np.asarray(wrong)[defined], settings=settings
        )
    elif rule == "rank":
        fitted = (_positions(e[defined], e[defined]) + _positions(a[defined], a[defined])) / 2
    else:
        fitted = (_standardised(_log(e[defined])) + _standardised(a[defined])) / 2
    result = np.full(len(e), np.nan)
    result[defined] = fitted
    return result


def out_of_fold(
    features: Float[np.ndarray, "Q F"],
    wrong: Bool[np.ndarray, " Q"],
    *,
    settings: FitSettings = FitSettings(),
) -> Float[np.ndarray, " Q"]:
    r"""Log odds that each answer is wrong, by logistic regressions fitted on other questions.

        z_qf = Phi^-1(share of the training questions with a smaller value; ties count half)

    The questions are split into folds; each fold's log odds come from a fit on the others, z included. That is done
    ``num_repeats`` times with new folds, and log odds are averaged. AUROC of the result is that of a classifier trained
    on (1 - 1/folds) Q questions, slightly pessimistic for one trained on all.

    Raises
    ------
    ValueError
        Shapes that do not fit, undefined features, fewer wrong or right answers than folds.
    """
    from sklearn.linear_model import LogisticRegression  # seconds to import
    from sklearn.model_selection import StratifiedKFold

    x, bad = np.asarray(features, np.float64), np.asarray(wrong).astype(bool)
    if x.ndim != 2 or len(x) != len(bad) or not x.shape[1]:
        raise ValueError(f"features must have shape ({len(bad)}, F) with F > 0; got {x.shape}")
    if np.isnan(x).any():
        raise ValueError(
            f"features must be defined; {np.isnan(x).any(axis=1).sum()} questions have NaN"
        )
    fewest = min(bad.sum(), (~bad).sum())
    if fewest < settings.num_folds:
        raise ValueError(
            f"wrong must hold at least {settings.num_folds} wrong and as many right answers, one for each "
            f"fold; got {bad.sum()} wrong of {len(bad)}"
        )
    total = np.zeros(len(x))
    for repeat in range(settings.num_repeats):
        seed = int(np.random.SeedSequence([settings.seed, repeat]).generate_state(1)[0])
        folds = StratifiedKFold(settings.num_folds, shuffle=True, random_state=seed)
        for train, test in folds.split(x, bad):
            fit = LogisticRegression(C=settings.inverse_penalty, max_iter=1000)
            fit.fit(normal_scores(x[train], x[train]), bad[train])
            total[test] += fit.decision_function(normal_scores(x[test], x[train]))
    return total / settings.num_repeats


def normal_scores(
    values: Float[np.ndarray, "Q F"], among: Float[np.ndarray, "R F"]
) -> Float[np.ndarray, "Q F"]:
    r"""Values as normal quantiles of their place among others, column by column.

    z = Phi^-1((number of others below + half of those equal + 1/2) / (R + 1))

    Q values of F features are placed among R others.
    """
    places = [_positions(v, a) * len(a) for v, a in zip(values.T, among.T, strict=True)]
    return ndtri((np.stack(places, axis=1) + 0.5) / (len(among) + 1))


def auroc_gain(
    scores: Scores,
    *,
    baselines: Sequence[str],
    extra: Sequence[str],
    fit: FitSettings = FitSettings(),
    bootstrap: BootstrapSettings = DEFAULT_BOOTSTRAP,
) -> dict[str, Any]:
    """What scores add to others: AUROC of a logistic model with them less that without; one row of `GAIN_COLUMNS`.

    Both models predict out of fold (`out_of_fold`, same folds), so that a useless score gains nothing: its gain is 0 or
    a little below on average, never above by over-fitting. The interval is a paired bootstrap over questions of the
    out-of-fold predictions. It holds the fits fixed, and so leaves out that other training questions would have given
    other coefficients; that part is small with few features and hundreds of questions. The p-value is two-sided.

    Only questions where all named scores are defined are used; ``num_questions`` says how many.

    Raises
    ------
    ValueError
        Unknown names, no baseline or no extra score, a score that is in both.
    """
    for argument, names in (("baselines", baselines), ("extra", extra)):
        if not names:
            raise ValueError(f"{argument} must name a score; got none")
        for name in names:
            check_choice(argument, name, scores.uncertainty)
    if both := set(baselines) & set(extra):
        raise ValueError(f"extra must not name baselines; both have {', '.join(sorted(both))}")
    x = np.stack([scores.uncertainty[name] for name in (*baselines, *extra)], axis=1)
    mask = ~np.isnan(x).any(axis=1)
    x, wrong = x[mask], scores.wrong[mask]
    row: dict[str, Any] = dict.fromkeys(GAIN_COLUMNS)
    row |= {"baselines": " ".join(baselines), "extra": " ".join(extra)}
    row |= {"num_questions": len(x), "num_wrong": int(wrong.sum())}
    if min(wrong.sum(), (~wrong).sum()) < fit.num_folds:
        return row | {
            "reason": f"fewer than {fit.num_folds} wrong or right answers, one for each fold"
        }
    weights = draw_weights(len(x), bootstrap.num_resamples, seed=bootstrap.seed)
    without, together = (
        ranking(out_of_fold(part, wrong, settings=fit), wrong, weights).auroc
        for part in (x[:, : len(baselines)], x)
    )
    gain = estimated(together - without, level=bootstrap.level)
    return row | {
        "auroc_without": float(without[0]),
        "auroc_with": float(together[0]),
        **gain.cells("gain"),
        "p": p_value(together - without),
        "reason": gain.reason,
    }


def transfer(
    by_model: Mapping[str, Scores],
    features: Sequence[str],
    *,
    normalise: str = "raw",
    fit: FitSettings = FitSettings(),
    bootstrap: BootstrapSettings = DEFAULT_BOOTSTRAP,
) -> list[dict[str, Any]]:
    """Leave one model out: fit on the scores of all others, predict its wrong answers; rows of `TRANSFER_COLUMNS`.

    ``normalise`` is what is done to each feature before the logistic regression:

        raw    nothing but one shift and scale for all, from the training models
        z      mean 0 and sd 1 within each model
        rank   `normal_scores` within each model

    ``z`` and ``rank`` use the left-out model's scores on all its questions, but none of its answers. The interval is
    over the left-out model's questions, with the fit fixed: it does not say how another model would do. Models are
    usually asked the same questions; features are scores only, so a question's difficulty is not learnt by heart, but
    the left-out model's errors are not independent of the training ones.

    Raises
    ------
    ValueError
        Fewer than two models, unknown feature or normalisation, infinite features (but for ``rank``).
    """
    from sklearn.linear_model import LogisticRegression  # seconds to import

    check_choice("normalise", normalise, NORMALISATIONS)
    if len(by_model) < 2 or not features:
        raise ValueError(
            f"by_model must hold two models or more, and features one; got {list(by_model)}, {list(features)}"
        )
    data, dropped = {}, {}
    for model, scores in by_model.items():
        for name in features:
            check_choice(f"features (of {model})", name, scores.uncertainty)
        x = np.stack([scores.uncertainty[name] for name in features], axis=1)
        mask = ~np.isnan(x).any(axis=1)
        if normalise != "rank" and np.isinf(x[mask]).any():
            raise ValueError(
                f"features of {model} must be finite for {normalise!r}; use 'rank', or leave them out"
            )
        data[model] = _WITHIN[normalise](x[mask]), scores.wrong[mask]
        dropped[model] = int((~mask).sum())
    rows = []
    for model, (test, wrong) in data.items():
        train, labels = (
            np.concatenate([parts[i] for other, parts in data.items() if other != model])
            for i in (0, 1)
        )
        row: dict[str, Any] = dict.fromkeys(TRANSFER_COLUMNS)
        row |= {"left_out": model, "features": " ".join(features), "normalise": normalise}
        row |= {"num_train": len(train), "num_test": len(test), "num_undefined": dropped[model]}
        if labels.all() or not labels.any() or wrong.all() or not wrong.any():
            which = "training" if labels.all() or not labels.any() else "left-out"
            rows.append(row | {"reason": f"one class only among the {which} answers"})
            continue
        mean, sd = train.mean(axis=0), train.std(axis=0)
        sd = np.where(sd > 0, sd, 1.0)
        model_fit = LogisticRegression(C=fit.inverse_penalty, max_iter=1000)
        model_fit.fit((train - mean) / sd, labels)
        odds = model_fit.decision_function((test - mean) / sd)
        weights = draw_weights(len(test), bootstrap.num_resamples, seed=bootstrap.seed)
        found = estimated(ranking(odds, wrong, weights).auroc, level=bootstrap.level)
        rows.append(row | found.cells("auroc") | {"reason": found.reason})
    return rows


def _positions(
    values: Float[np.ndarray, " Q"], among: Float[np.ndarray, " R"]
) -> Float[np.ndarray, " Q"]:
    """Share of the others that are smaller, ties counting half."""
    others = np.sort(among)
    low, high = (np.searchsorted(others, values, side=side) for side in ("left", "right"))
    return (low + high) / (2 * max(len(others), 1))


def _log(values: Float[np.ndarray, " Q"]) -> Float[np.ndarray, " Q"]:
    positive = values[values > 0]
    if not len(positive):
        raise ValueError(
            "epistemic must have a positive value for rule 'z', which takes its log; it has none"
        )
    return np.log(np.maximum(values, positive.min()))


def _standardised(values: Float[np.ndarray, " Q"]) -> Float[np.ndarray, " Q"]:
    if np.isinf(values).any():
        raise ValueError(
            "epistemic and aleatoric must be finite for rule 'z'; use 'rank' for infinite values"
        )
    sd = values.std()
    # A constant computed in floating point has an sd of rounding errors.
    return (
        (values - values.mean()) / sd
        if sd > 1e-12 * np.abs(values).max()
        else np.zeros_like(values)
    )


def _within(x: Float[np.ndarray, "Q F"]) -> Float[np.ndarray, "Q F"]:
    return np.stack([_standardised(column) for column in x.T], axis=1)


_WITHIN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "raw": lambda x: x,
    "z": _within,
    "rank": lambda x: normal_scores(x, x),
}
