"""Rules that combine the epistemic and the aleatoric uncertainty of an answer into a total."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from isounc.checks import check_choice, check_real
from isounc.llm.answers.logistic import DEFAULT_LOGISTIC, LogisticSettings, out_of_fold_log_odds

RULES = ("sum", "rank", "z", "logistic")
"""Rules of `combine`."""


def combine(
    epistemic: Float[np.ndarray, " Q"],
    aleatoric: Float[np.ndarray, " Q"],
    rule: str,
    *,
    sigma2: float | None = None,
    wrong: Bool[np.ndarray, " Q"] | None = None,
    settings: LogisticSettings = DEFAULT_LOGISTIC,
) -> Float[np.ndarray, " Q"]:
    r"""Total uncertainty of Q answers by a named rule; NaN where either part is.

        sum       sigma2 epistemic + aleatoric; sigma2 is the isotropic variance of the parameters
        rank      mean of the two mid-ranks (less 1/2), divided by Q
        z         mean of the standardised log epistemic and the standardised aleatoric
        logistic  log odds of a wrong answer by logistic regression on both, out of fold

    With sigma2 = 1 a squared gradient norm of hundreds swamps a p (1 - p) of at most 1/4, hence
    the other rules. `rank` and `z` compare a question with the others that are given, whose
    answers need not be known: a single question has no such total. `logistic` needs to know
    whether the answers to other questions are wrong.

    Nonpositive epistemic values have no logarithm and count as the smallest positive one, so that
    they stay lowest. Under `z` a constant is 0 throughout, so that the other part alone decides,
    as it does under `rank`.

    Raises
    ------
    ValueError
        The rule is unknown, the lengths differ, or there is no question where both parts are
        defined; `sum` without `sigma2`; `z` with infinite values or no positive epistemic value;
        `logistic` without `wrong` or with too few wrong or right answers.
    """
    check_choice("rule", rule, RULES)
    if epistemic.ndim != 1 or epistemic.shape != aleatoric.shape:
        raise ValueError(
            "epistemic and aleatoric must both have shape (Q,), got "
            f"{epistemic.shape} and {aleatoric.shape}"
        )
    defined = ~(np.isnan(epistemic) | np.isnan(aleatoric))
    if not defined.any():
        raise ValueError(
            "epistemic and aleatoric must both be defined at some question, got none of "
            f"{len(defined)}"
        )
    if rule == "sum":
        if sigma2 is None:
            raise ValueError(
                "sigma2 must be given for rule 'sum', since a trained model has no prior "
                "variance of its own, got None"
            )
        return check_real("sigma2", sigma2) * epistemic + aleatoric
    e, a = epistemic[defined], aleatoric[defined]
    if rule == "rank":
        from scipy.stats import rankdata  # takes a second to import

        combined = ((rankdata(e) - 0.5) / len(e) + (rankdata(a) - 0.5) / len(a)) / 2
    elif rule == "z":
        combined = (standardised(_log(e)) + standardised(a)) / 2
    else:
        if wrong is None or wrong.shape != epistemic.shape:
            raise ValueError(
                f"wrong must say for each of {len(epistemic)} answers whether it is wrong, got "
                f"{wrong!r:.100}"
            )
        combined = out_of_fold_log_odds(np.stack([e, a], axis=1), wrong[defined], settings=settings)
    result = np.full(len(epistemic), np.nan)
    result[defined] = combined
    return result


def standardised(values: Float[np.ndarray, " Q"]) -> Float[np.ndarray, " Q"]:
    """Values with mean 0 and standard deviation 1; zeros if they are constant.

    Raises
    ------
    ValueError
        A value is infinite.
    """
    if np.isinf(values).any():
        raise ValueError(
            f"values to standardise must be finite, got {values[np.isinf(values)][0]}; "
            "ranks can be taken of infinite values"
        )
    sd = values.std()
    # A constant computed in floating point has an sd of rounding errors.
    if sd <= 1e-12 * np.abs(values).max():
        return np.zeros_like(values)
    return (values - values.mean()) / sd


def _log(values: Float[np.ndarray, " Q"]) -> Float[np.ndarray, " Q"]:
    positive = values[values > 0]
    if not len(positive):
        raise ValueError(
            "epistemic must have a positive value for rule 'z', which takes its logarithm, got none"
        )
    return np.log(np.maximum(values, positive.min()))
