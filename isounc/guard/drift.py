"""Does the promise still hold? Monitors of labelled feedback, and of scores without labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from isounc.checks import check_kind, real_vector
from isounc.guard.control import mapie
from isounc.guard.guard import Guard
from isounc.guard.sample import Values, check_share, checked_sample

MOST_STORED = 100_000
"""Answers that a monitor can hold; their bound is computed anew at each update."""


class RiskMonitor:
    """Watch the share of wrong answers among the accepted ones, as feedback comes in.

    A lower confidence bound of the running risk that holds at all times at once (MAPIE's
    `RiskMonitoring`) is compared with the target: while the risk of each accepted answer is at most
    the target, the probability that an alarm is ever raised is at most `test_level / 2`, however
    often one looks, since MAPIE keeps the other half for a threshold that it would estimate.

    Raises
    ------
    ValueError
        If the guard has no threshold: nothing is accepted, and there is nothing to watch.
    ImportError
        MAPIE is not installed.

    Source: Podkopaev and Ramdas 2022, "Tracking the risk of a deployed model" (arXiv 2110.06177).
    """

    def __init__(self, guard: Guard, *, test_level: float = 0.05):
        check_kind("guard", guard, Guard, "Guard.fit")
        if guard.threshold is None:
            raise ValueError(
                "guard must have a threshold: this one accepts nothing, so that there is no risk"
            )
        testing = mapie("exchangeability_testing")
        self._guard = guard
        self._monitor = testing.RiskMonitoring(
            risk="precision", test_level=check_share("test_level", test_level),
            threshold=guard.certificate.target_risk, warn=False,
        )  # fmt: skip
        self._accepted_at: list[int] = []
        self._seen = 0

    def update(self, scores: Values, correct: Values) -> RiskMonitor:
        """Add answers with their labels, in the order in which they came.

        Raises
        ------
        ValueError
            As `Guard.fit`, or if there are more answers than a monitor can hold.
        """
        given = self._guard.certificate.higher_is_uncertain
        sample = checked_sample(scores, correct, given)
        accepted = self._guard.accept(-sample.certainty if given else sample.certainty)
        if len(self._accepted_at) + accepted.sum() > MOST_STORED:
            raise ValueError(
                f"scores must be of at most {MOST_STORED} accepted answers in all, got more; start "
                "another monitor"
            )
        self._accepted_at += (self._seen + np.flatnonzero(accepted)).tolist()
        self._seen += len(accepted)
        self._monitor.update(sample.correct.astype(int), accepted.astype(int))
        return self

    @property
    def lower_bound(self) -> float | None:
        """Lower bound of the risk of the accepted answers so far; None without any."""
        latest = self._monitor.online_risk_lower_bound_latest
        return None if latest is None else float(latest)

    @property
    def alarm_since(self) -> int | None:
        """Number of the answer (from 0, in the order of feedback) that raised the alarm, or None."""
        bounds = self._monitor.online_risk_lower_bound_sequence_history
        above = np.flatnonzero(bounds > self._guard.certificate.target_risk)
        return self._accepted_at[above[0]] if len(above) else None


class ScoreMonitor:
    """Watch scores without labels, and say when they are no longer like the calibration scores.

    Each new score gets a conformal p-value among all those before it, ties broken at random, and a
    test martingale bets against the uniformity of the p-values (MAPIE's `OnlineMartingaleTest`). If
    all scores are exchangeable, the probability that it ever exceeds 1 / test_level is at most
    `test_level`. An alarm says that scores have changed, which need not mean more errors; and errors
    can rise while scores stay as they are.

    Raises
    ------
    ValueError
        If the calibration scores are undefined or empty.
    ImportError
        MAPIE is not installed.

    Source: Vovk, Gammerman, Shafer 2005, "Algorithmic Learning in a Random World", section 7.1.
    """

    def __init__(self, calibration: Values, *, test_level: float = 0.05, seed: int = 0):
        self._scores = _defined("calibration", calibration)
        if not len(self._scores):
            raise ValueError("calibration must hold at least one score, got none")
        self._level = check_share("test_level", test_level)
        self._test = mapie("exchangeability_testing").OnlineMartingaleTest(
            test_level=self._level, warn=False, random_state=seed
        )
        self._alarm: int | None = None
        self._seen = 0
        self._evidence = 1.0

    def update(self, scores: Values) -> ScoreMonitor:
        """Add scores in the order in which they came.

        Raises
        ------
        ValueError
            If one is undefined, or there are more than a monitor can hold.
        """
        new = _defined("scores", scores)
        if len(self._scores) + len(new) > MOST_STORED:
            raise ValueError(
                f"scores must be at most {MOST_STORED} in all, the calibration's among them, got "
                f"{len(self._scores) + len(new)}; start another monitor"
            )
        known = len(self._scores)
        self._scores = np.concatenate([self._scores, new])
        for i, value in enumerate(new):
            p_value = self._test.compute_p_value(value, self._scores[: known + i])
            self._evidence = float(self._test.update_simple_jumper_martingale(p_value))
            if self._alarm is None and self._evidence > 1 / self._level:
                self._alarm = self._seen
            self._seen += 1
        return self

    @property
    def evidence(self) -> float:
        """The martingale: how many times over the bets against exchangeability have paid."""
        return self._evidence

    @property
    def alarm_since(self) -> int | None:
        """Number of the new score (from 0) that raised the alarm, or None."""
        return self._alarm


def _defined(argument: str, values: Any) -> Float[np.ndarray, " N"]:
    array = real_vector(argument, values)
    if np.isnan(array).any():
        raise ValueError(
            f"{argument} must be defined, got NaN at {int(np.isnan(array).sum())} of {len(array)}"
        )
    return array
