"""A threshold on a score of uncertainty that keeps a promise about wrong answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from isounc.checks import check_choice, check_kind, real_array, real_vector
from isounc.guard import control
from isounc.guard.certificate import METHODS, Certificate, Share, digest
from isounc.guard.costs import CostMatrix
from isounc.guard.sample import Sample, Values, check_share, checked_sample
from isounc.runs.files import store_json, stored_json


@dataclass(frozen=True)
class Guard:
    """Accept an answer, or abstain: see `Guard.fit`."""

    certificate: Certificate
    """The threshold, what it promises, and on what evidence."""

    @classmethod
    def fit(
        cls,
        scores: Values,
        correct: Values,
        *,
        target_risk: float = 0.1,
        confidence: float = 0.9,
        higher_is_uncertain: bool = True,
        target_false_alarm: float | None = None,
        method: str | None = None,
        thresholds: Sequence[float] | Float[np.ndarray, " T"] | None = None,
        costs: CostMatrix | None = None,
        score: str = "",
        model: str = "",
    ) -> Guard:
        r"""Find the threshold that accepts most and keeps the promise.

            P( P(wrong | accepted) <= target_risk ) >= confidence

        The outer probability is over calibration samples, the inner one over further questions of the
        same kind, so long as these and the calibration sample are exchangeable. Nothing is assumed of
        the score: one that says nothing about errors leads to no threshold, or to few accepted
        answers, not to a broken promise.

        By default the thresholds are quantiles of the scores, tried in a fixed sequence from the safe
        end until one fails. The promise is then exact for a score whose local share of wrong answers
        rises with it; for any other give `thresholds` that do not come from this sample, or the method
        holm or bonferroni. Where the most certain answers are often wrong, the sequence ends at its
        first threshold and hardly anything is accepted; holm goes past them (results/guard).

        Parameters
        ----------
        scores
            A score for each answer of the calibration sample. Infinite ones are never thresholds.
        correct
            Whether each answer is right: true or false, or 1 and 0.
        target_risk
            Largest share of wrong answers among the accepted ones, in (0, 1).
        confidence
            Probability of keeping the promise, in (0, 1).
        higher_is_uncertain
            False for a score that is high where the model is certain, such as a log probability.
        target_false_alarm
            If given, also promise that at most this share of the right answers is not accepted. Both
            are then tested at each threshold.
        method
            fixed_sequence, holm or bonferroni; None is fixed_sequence, and holm for two promises or
            where costs decide.
        thresholds
            Thresholds to try, in the units of the score. With fixed_sequence the safest comes first
            and must accept enough answers by itself.
        costs
            Take the cheapest of the thresholds that keep the promise instead of the one that accepts
            most; its cost on the calibration sample is an estimate without a guarantee.
        score, model
            Names, or a hash, for the certificate.

        Returns
        -------
        Guard
            With `threshold` None, and the reason in the certificate, if none keeps the promise.

        Raises
        ------
        ValueError
            An argument of the wrong shape, kind or range, undefined scores, or an empty sample.
        ImportError
            MAPIE is not installed.

        Examples
        --------
        >>> rng = np.random.default_rng(0)
        >>> uncertainty = rng.uniform(size=1000)
        >>> correct = rng.uniform(size=1000) > 0.5 * uncertainty
        >>> guard = Guard.fit(uncertainty, correct, target_risk=0.15)
        >>> guard.accept([0.01, 0.99])
        array([ True, False])
        """
        sample = checked_sample(scores, correct, higher_is_uncertain)
        for name, value in (
            ("target_risk", target_risk),
            ("confidence", confidence),
            ("target_false_alarm", 0.5 if target_false_alarm is None else target_false_alarm),
        ):
            check_share(name, value)
        if costs is not None:
            check_kind("costs", costs, CostMatrix)
        chooses = target_false_alarm is not None or costs is not None
        method = method or ("holm" if chooses else "fixed_sequence")
        check_choice("method", method, METHODS)
        if method == "fixed_sequence" and target_false_alarm is not None:
            raise ValueError(
                "method must be holm or bonferroni for two promises, which no single order of the "
                "thresholds suits, got 'fixed_sequence'"
            )
        promise = control.Promise(
            float(target_risk), None if target_false_alarm is None else float(target_false_alarm),
            float(confidence), method,
        )  # fmt: skip
        sign = -1.0 if higher_is_uncertain else 1.0
        tried = (
            control.quantile_thresholds(sample.certainty, promise)
            if thresholds is None
            else np.unique(sign * _checked_thresholds(thresholds))[::-1]
        )
        valid = control.certified(*sample, tried, promise) if len(tried) else tried
        chosen = _chosen(valid, sample, costs)
        return cls(
            Certificate(
                target_risk=promise.target_risk,
                target_false_alarm=promise.target_false_alarm,
                confidence=promise.confidence,
                higher_is_uncertain=bool(higher_is_uncertain),
                threshold=None if chosen is None else sign * chosen,
                reason="" if chosen is not None else _reason(sample, tried, promise),
                method=method,
                grid="quantiles" if thresholds is None else "given",
                num_thresholds=len(tried),
                **_of_sample(sample, chosen),
                score=str(score),
                model=str(model),
                data=digest(sign * sample.certainty, sample.correct),
                versions=dict(control.versions()),
            )
        )

    @property
    def threshold(self) -> float | None:
        """The threshold, in the units of the score; None where none keeps the promise."""
        return self.certificate.threshold

    def accept(self, scores: Any) -> Bool[np.ndarray, "*N"]:
        """Whether each answer is accepted. NaN never is, and without a threshold nothing is.

        Raises
        ------
        ValueError
            If scores are no real numbers.
        """
        values = real_array("scores", scores).astype(np.float64)
        if self.threshold is None:
            return np.zeros(values.shape, bool)
        if self.certificate.higher_is_uncertain:
            return values <= self.threshold
        return values >= self.threshold

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the certificate as a JSON file, which `load` reads."""
        store_json(path, self.certificate.to_json(), "guard")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Guard:
        """Read a file of `save`.

        Raises
        ------
        ValueError
            If it holds anything else; the message names the file and the field.
        OSError
            If it is absent or may not be read.
        """
        content, what = stored_json(path)
        return cls(Certificate.from_json(content, what))


def _checked_thresholds(thresholds: Any) -> Float[np.ndarray, " T"]:
    values = real_vector("thresholds", thresholds)
    if not 1 <= len(values) <= control.MOST_THRESHOLDS or not np.isfinite(values).all():
        raise ValueError(
            f"thresholds must be 1 to {control.MOST_THRESHOLDS} finite numbers, got {len(values)}"
            + f", {int((~np.isfinite(values)).sum())} of them not finite"
        )
    return values


def _chosen(
    valid: Float[np.ndarray, " V"], sample: Sample, costs: CostMatrix | None
) -> float | None:
    """The certainty at which answers are accepted from on."""
    if not len(valid):
        return None
    if costs is None:
        return float(valid.min())
    mean = costs.mean(sample.certainty >= valid[:, None], sample.correct)
    cheapest = valid[mean == mean.min()]
    return float(cheapest.min())


def _of_sample(sample: Sample, threshold: float | None) -> dict[str, Any]:
    """Shares of the calibration sample at a threshold of certainty."""
    wrong = ~sample.correct
    accepted = sample.certainty >= (np.inf if threshold is None else threshold)
    if threshold is None:
        accepted = np.zeros_like(wrong)
    return {
        "num_calibration": len(wrong),
        "base_error": Share.of_counts(int(wrong.sum()), len(wrong)),
        "coverage": Share.of_counts(int(accepted.sum()), len(wrong)),
        "risk": Share.of_counts(int((wrong & accepted).sum()), int(accepted.sum())),
        "false_alarm": Share.of_counts(
            int((sample.correct & ~accepted).sum()), int(sample.correct.sum())
        ),
    }


def _reason(sample: Sample, tried: Float[np.ndarray, " T"], promise: control.Promise) -> str:
    """Why no threshold keeps the promise."""
    fewest = control.fewest_accepted(promise)
    if fewest > len(sample.correct):
        return (
            f"even without an error {fewest} accepted answers are needed, and the calibration sample "
            f"has {len(sample.correct)}"
        )
    if not len(tried):
        return "no score of the calibration sample is finite where a threshold could be"
    accepted = sample.certainty >= tried[0]
    wrong = int((accepted & ~sample.correct).sum())
    if promise.method == "fixed_sequence":
        return (
            f"the safest threshold tried accepts {int(accepted.sum())} answers, {wrong} of them wrong, "
            "which is no proof"
        )
    return f"none of {len(tried)} thresholds could be shown to keep it"
