"""Scores and errors whose selective risk is known at every threshold.

A right answer has the score x ~ N(0, 1), a wrong one x ~ N(d, 1), high where uncertain, so that the
AUROC of x for errors is Phi(d / sqrt 2). Of the answers with x <= t,

    coverage(t) = (1 - mu) Phi(t) + mu W(t),   risk(t) = mu W(t) / coverage(t),   W(t) = Phi(t - d)

are accepted and wrong, with mu the share of wrong answers. Where some errors are among the most certain
answers, W is (1 - c) Phi(t - d) + c Phi((t + 2) / .5), and the risk does not rise with t.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import root_scalar
from scipy.special import expit, log_ndtr, logit, ndtri

CONFIDENT_MEAN = -2.0
"""Mean score of wrong answers that look certain."""
CONFIDENT_SD = 0.5
"""Standard deviation of their scores."""
_LATTICE = np.linspace(-8.0, 12.0, 20_001)
"""Scores from where nothing is accepted to where everything is, on which a risk is looked at."""


def separation(auroc: float) -> float:
    """The distance d of the means of right and wrong answers with this AUROC."""
    return math.sqrt(2) * float(ndtri(auroc))


@dataclass(frozen=True)
class Answers:
    """A distribution of scores and errors."""

    auroc: float
    """AUROC of x for errors, those that look certain left out."""
    base_error: float | None = 0.3
    """Share mu of wrong answers; None is a thousandth above the target."""
    confident: float = 0.0
    """Share c of the wrong answers that look certain."""
    cuts: tuple[float, ...] = ()
    """If given, the score is the number of these that lie below x, instead of x."""

    def of_target(self, target: float) -> Answers:
        """The distribution with its share of wrong answers, where that depends on the target."""
        if self.base_error is not None:
            return self
        return dataclasses.replace(self, base_error=1.001 * target)

    @property
    def error(self) -> float:
        """The share of wrong answers, once it is known."""
        assert self.base_error is not None
        return self.base_error

    def draw(
        self, n: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        """Scores and whether each answer is wrong."""
        wrong = rng.uniform(size=n) < self.error
        looks_certain = wrong & (rng.uniform(size=n) < self.confident)
        noise = rng.normal(size=n)
        x = noise + separation(self.auroc) * wrong
        x = np.where(looks_certain, CONFIDENT_MEAN + CONFIDENT_SD * noise, x)
        if self.cuts:
            return np.searchsorted(self.cuts, x).astype(float), wrong
        return x, wrong

    def _log_shares(
        self, thresholds: Float[np.ndarray, " T"]
    ) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
        """Logarithms of the shares of the right and of the wrong answers that are accepted."""
        x = np.asarray(thresholds, float)
        if self.cuts:
            ends = np.array([-np.inf, *self.cuts, np.inf])
            levels = np.nan_to_num(np.floor(x), nan=-1.0)
            x = ends[np.clip(levels, -1, len(self.cuts)).astype(int) + 1]
        wrong = log_ndtr(x - separation(self.auroc))
        if self.confident:
            look_certain = log_ndtr((x - CONFIDENT_MEAN) / CONFIDENT_SD)
            with np.errstate(invalid="ignore"):  # NaN stays NaN
                wrong = np.logaddexp(
                    math.log1p(-self.confident) + wrong, math.log(self.confident) + look_certain
                )
        return log_ndtr(x), wrong

    def coverage(self, thresholds: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        """Share of answers that each threshold accepts; of NaN, which is no threshold, 0."""
        right, wrong = self._log_shares(thresholds)
        share = (1 - self.error) * np.exp(right) + self.error * np.exp(wrong)
        return np.where(np.isnan(thresholds), 0.0, share)

    def risk(self, thresholds: Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
        """Share of wrong answers among those that each threshold accepts; of none, NaN."""
        right, wrong = self._log_shares(thresholds)
        with np.errstate(invalid="ignore"):  # of no answers at all
            risk = expit(logit(self.error) + wrong - right)
        return np.where(np.isnan(thresholds), np.nan, risk)

    def best(self, target: float) -> float:
        """The largest threshold whose risk is at most the target; NaN if there is none."""
        tried = np.arange(len(self.cuts) + 1.0) if self.cuts else np.append(_LATTICE, np.inf)
        keeps = np.flatnonzero(self.risk(tried) <= target)
        if not len(keeps):
            return math.nan
        last = int(keeps[-1])
        if self.cuts or last >= len(tried) - 2:
            return float(tried[last])

        def excess(t: float) -> float:
            return float(self.risk(np.array([t]))[0]) - target

        return float(root_scalar(excess, bracket=(tried[last], tried[last + 1]), xtol=1e-12).root)

    def can_exceed(self, target: float) -> bool:
        """Whether any threshold has a risk above the target."""
        tried = np.arange(len(self.cuts) + 1.0) if self.cuts else np.append(_LATTICE, np.inf)
        return bool((self.risk(tried) > target).any())


@dataclass(frozen=True)
class Scenario:
    """What a guard is calibrated on, and what it is judged on."""

    label: str
    """Name in tables and figures."""
    calibration: Answers
    """Distribution of the calibration sample."""
    shifted: Answers | None = None
    """Distribution of the answers that are judged, where it is another one: nothing is promised."""


QUALITIES = {
    f"auroc_{round(100 * auroc)}": Scenario(f"AUROC {auroc:g}", Answers(auroc))
    for auroc in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
}
"""Scores of all qualities, at a share of wrong answers of .3."""
_HALVES = tuple(np.arange(-5.75, 7, 0.5).tolist())
SCENARIOS = QUALITIES | {
    "no_slack": Scenario("no signal, error at the target", Answers(0.5, None)),
    "few_errors": Scenario("2% wrong", Answers(0.8, 0.02)),
    "many_errors": Scenario("50% wrong", Answers(0.8, 0.5)),
    "ties": Scenario("score rounded to halves", Answers(0.8, cuts=_HALVES)),
    "discrete": Scenario("score of five values", Answers(0.8, cuts=(-1.0, 0.0, 1.0, 2.0))),
    "confident_errors": Scenario("3% of errors look certain", Answers(0.8, confident=0.03)),
    "more_errors": Scenario("shifted: 30%, then 50% wrong", Answers(0.8), Answers(0.8, 0.5)),
    "worse_score": Scenario("shifted: AUROC .8, then .6", Answers(0.8), Answers(0.6)),
}
"""All scenarios; AUROC .8 and a share of wrong answers of .3 unless said."""
