r"""Scores of the isotropic approach: epistemic, aleatoric and total uncertainty of an answer.

There is one of each for every estimand (`isounc.llm.answers.estimands`). With p the estimand's
probability and g = grad p over all parameters, and the p at which the score's sign flips in theory
(`isounc.llm.answers.scores.SIGNS`), below which it points the wrong way:

    epistemic                log ||g||^2                      (also layer_scaled, last_layer)     1/2
    epistemic_log            log ||grad log p||^2                                                none
    aleatoric                p (1 - p)                                                            1/2
    total_sum                sigma^2 ||g||^2 + p (1 - p)      the paper's total                   1/2
    total_rank, total_z      see `isounc.llm.answers.totals.combine`; they depend on              1/2
                             other questions
    total_logistic           the same, fitted to whether other answers were right,             fitted
                             out of fold
    link_aware               Var[sigmoid(f)],    f ~ N(logit p, sigma^2 ||grad logit p||^2)       1/2
    link_aware_total         m (1 - m), m = E[sigmoid(f)]                                         1/2
    moderated                1 - m, with a sigma^2 by the rule `unit`                            none

A pretrained model has no prior: sigma is a choice, the same for every parameter
(`ScoreSettings.sigma`). That of `moderated` is set by a reference set, the first
`ScoreSettings.num_reference` answers, without their right answers: the median of
sigma^2 ||grad logit p||^2 over them is pi^2/3 (`isounc.estimates.scale_rules`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from isounc.checks import check_choice, check_count, check_real
from isounc.estimates.moderated import moderated_error, sigmoid_mean_and_var
from isounc.estimates.scale_rules import unit_log_var
from isounc.llm.answers.answer import MeasuredAnswer
from isounc.llm.answers.estimands import ESTIMANDS, SCALINGS
from isounc.llm.answers.logistic import has_enough_of_both
from isounc.llm.answers.scores import Score, Sign
from isounc.llm.answers.totals import RULES, combine


@dataclass(frozen=True)
class ScoreSettings:
    """Which isotropic scores are made, and their constants."""

    estimands: tuple[str, ...] = ESTIMANDS
    """Probabilities of an answer that the isotropic scores are about."""
    sigma: float = 0.01
    """Standard deviation of every parameter in total_sum and link_aware."""
    rules: tuple[str, ...] = RULES
    """Totals: sum, rank, z, logistic."""
    num_reference: int = 100
    """The first answers that set the scale of `moderated`, or all if there are fewer."""

    def __post_init__(self):
        for value in self.estimands:
            check_choice("estimands", value, ESTIMANDS)
        for value in self.rules:
            check_choice("rules", value, RULES)
        check_real("sigma", self.sigma, positive=True)
        check_count("num_reference", self.num_reference, 1)


class Probabilities(NamedTuple):
    """Probabilities of Q answers under one estimand, with their gradients; NaN where undefined."""

    log_odds: Float[np.ndarray, " Q"]
    """log p - log(1 - p)."""
    log_sq_norm: Float[np.ndarray, " Q"]
    """log ||grad log p||^2 under one scaling."""

    @property
    def log_p(self) -> Float[np.ndarray, " Q"]:
        """Log p."""
        with np.errstate(invalid="ignore"):  # where undefined
            return -np.logaddexp(0, -self.log_odds)

    @property
    def log_1mp(self) -> Float[np.ndarray, " Q"]:
        """log(1 - p)."""
        with np.errstate(invalid="ignore"):  # where undefined
            return -np.logaddexp(0, self.log_odds)

    @property
    def log_epistemic(self) -> Float[np.ndarray, " Q"]:
        """Log ||grad p||^2, from grad p = p grad log p."""
        return 2 * self.log_p + self.log_sq_norm

    @property
    def log_sq_norm_of_log_odds(self) -> Float[np.ndarray, " Q"]:
        """Log ||grad logit p||^2, from grad logit p = grad log p / (1 - p)."""
        with np.errstate(invalid="ignore"):  # where p is 1
            return self.log_sq_norm - 2 * self.log_1mp

    @property
    def aleatoric(self) -> Float[np.ndarray, " Q"]:
        """P (1 - p)."""
        return np.exp(self.log_p + self.log_1mp)


def isotropic_scores(settings: ScoreSettings) -> tuple[Score, ...]:
    """The isotropic scores of every estimand."""
    scores: list[Score] = []
    for estimand in settings.estimands:
        scores += [epistemic(estimand, scaling) for scaling in SCALINGS]
        scores += [epistemic_log(estimand), aleatoric(estimand)]
        scores += [total(estimand, rule, sigma=settings.sigma) for rule in settings.rules]
        scores += [make(estimand, sigma=settings.sigma) for make in (link_aware, link_aware_total)]
        scores.append(moderated(estimand, num_reference=settings.num_reference))
    return tuple(scores)


def epistemic(estimand: str, scaling: str = "all") -> Score:
    """Log ||grad p||^2, with the gradient's entries weighted by a scaling; flips at p = 1/2."""
    family = "epistemic" if scaling == "all" else f"epistemic_{scaling}"
    return _score(family, estimand, lambda p, wrong: p.log_epistemic, scaling=scaling, sign="turns")


def epistemic_log(estimand: str) -> Score:
    """Log ||grad log p||^2, which falls with p at every p."""
    return _score("epistemic_log", estimand, lambda p, wrong: p.log_sq_norm, sign="falls")


def aleatoric(estimand: str) -> Score:
    """P (1 - p); flips at p = 1/2."""
    return _score("aleatoric", estimand, lambda p, wrong: p.aleatoric, sign="turns")


def total(estimand: str, rule: str, *, sigma: float) -> Score:
    """Epistemic and aleatoric uncertainty combined by a rule (`isounc.llm.answers.totals`).

    Both parts, and so the total, flip at p = 1/2; `logistic` takes the sign that fits other answers.
    """

    def value(p: Probabilities, wrong: Bool[np.ndarray, " Q"]) -> Float[np.ndarray, " Q"]:
        if rule == "logistic" and not has_enough_of_both(wrong[~np.isnan(p.log_odds)]):
            return np.full(len(wrong), np.nan)
        sq_norm = np.exp(p.log_epistemic)
        return combine(sq_norm, p.aleatoric, rule, sigma2=sigma**2, wrong=wrong)

    sign = "fitted" if rule == "logistic" else "turns"
    return _score(f"total_{rule}", estimand, value, sign=sign)


def link_aware(estimand: str, *, sigma: float) -> Score:
    """Var[sigmoid(f)] of a Gaussian logit f; flips at p = 1/2."""
    return _score(
        "link_aware", estimand, lambda p, wrong: _sigmoid_moments(p, sigma)[1], sign="turns"
    )


def link_aware_total(estimand: str, *, sigma: float) -> Score:
    """M (1 - m) with m = E[sigmoid(f)] of a Gaussian logit f; flips at p = 1/2."""

    def value(p: Probabilities, wrong: Bool[np.ndarray, " Q"]) -> Float[np.ndarray, " Q"]:
        mean, _ = _sigmoid_moments(p, sigma)
        return mean * (1 - mean)

    return _score("link_aware_total", estimand, value, sign="turns")


def moderated(estimand: str, *, num_reference: int = 100, sigma: float | None = None) -> Score:
    """1 - E[sigmoid(f)] of a Gaussian logit f, which falls with p at every p.

    The variance draws it towards 1/2 and never across: it rises with the norm above p = 1/2 and
    falls below (`isounc.estimates.moderated`).

    Parameters
    ----------
    estimand
        The probability of the answer.
    num_reference
        The first so many of the answers set sigma^2 by the rule `unit`.
    sigma
        Standard deviation of every parameter instead, for single answers.
    """

    def value(p: Probabilities, wrong: Bool[np.ndarray, " Q"]) -> Float[np.ndarray, " Q"]:
        log_sq_norm = p.log_sq_norm_of_log_odds
        if sigma is None:
            log_var = unit_log_var(log_sq_norm[:num_reference])
        else:
            log_var = 2 * np.log(sigma)
        return moderated_error(p.log_odds, log_var + log_sq_norm)

    return _score("moderated", estimand, value, sign="falls")


def _score(
    family: str,
    estimand: str,
    value: Callable[[Probabilities, Bool[np.ndarray, " Q"]], Float[np.ndarray, " Q"]],
    *,
    scaling: str = "all",
    sign: Sign,
) -> Score:
    def values(
        answers: Sequence[MeasuredAnswer], wrong: Bool[np.ndarray, " Q"]
    ) -> Float[np.ndarray, " Q"]:
        p = _probabilities(answers, estimand, scaling)
        return np.full(len(answers), np.nan) if np.isnan(p.log_odds).all() else value(p, wrong)

    why = "no choices, an empty answer, or a number that is not finite"
    return Score(family=family, estimand=estimand, values=values, why_undefined=why, sign=sign)


def _probabilities(answers: Sequence[MeasuredAnswer], estimand: str, scaling: str) -> Probabilities:
    def numbers(answer: MeasuredAnswer) -> tuple[float, float]:
        log_odds = answer.log_odds.get(estimand)
        log_sq_norm = answer.log_sq_norms.get(estimand, {}).get(scaling)
        if log_odds is None or log_sq_norm is None:
            return np.nan, np.nan
        return log_odds, log_sq_norm

    columns = np.array([numbers(answer) for answer in answers], float).reshape(-1, 2)
    return Probabilities(columns[:, 0], columns[:, 1])


def _sigmoid_moments(
    p: Probabilities, sigma: float
) -> tuple[Float[np.ndarray, " Q"], Float[np.ndarray, " Q"]]:
    """Mean and variance of sigmoid(f), f ~ N(logit p, sigma^2 ||grad logit p||^2)."""
    return sigmoid_mean_and_var(p.log_odds, 2 * np.log(sigma) + p.log_sq_norm_of_log_odds)
