"""The certificate of a guard: its promise and the evidence for it, as an object and a JSON file."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from isounc import fields

METHODS = ("fixed_sequence", "holm", "bonferroni")
"""Ways to keep the promise over all the thresholds that are tried."""
GRIDS = ("quantiles", "given")
"""Where the thresholds come from: quantiles of the calibration scores, or the user."""
LEVEL = 0.95
"""Level of the intervals of a certificate."""


@dataclass(frozen=True)
class Share:
    """A share of a sample, with its exact 95% interval (Clopper-Pearson)."""

    count: int
    """Number of answers that are counted."""
    of: int
    """Size of the sample."""
    value: float | None
    """The share; None of none."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""

    @classmethod
    def of_counts(cls, count: int, of: int) -> Share:
        """The share `count / of`."""
        from scipy.stats import binomtest

        if not of:
            return cls(0, 0, None, 0.0, 1.0)
        low, high = binomtest(count, of).proportion_ci(LEVEL, method="exact")
        return cls(count, of, count / of, float(low), float(high))

    def __str__(self) -> str:
        if self.value is None:
            return "no value, of none"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}] ({self.count} of {self.of})"


@dataclass(frozen=True)
class Certificate:
    """The promise of a guard, and the calibration sample that it rests on.

        P( P(wrong | accepted) <= target_risk ) >= confidence

    The outer probability is over calibration samples, the inner one over questions like those of the
    calibration sample. The intervals describe the calibration sample, of which the threshold is a
    function: they are no part of the promise.
    """

    target_risk: float
    """Largest share of wrong answers among the accepted ones."""
    target_false_alarm: float | None
    """Largest share of right answers that are not accepted; None if nothing was asked for."""
    confidence: float
    """Probability with which a calibration sample gives a threshold that keeps the promise."""
    higher_is_uncertain: bool
    """Whether answers are accepted at or below the threshold, instead of at or above it."""
    threshold: float | None
    """The threshold; None where none keeps the promise, and nothing is accepted."""
    reason: str
    """Why there is no threshold; empty if there is one."""
    method: str
    """One of `METHODS`."""
    grid: str
    """One of `GRIDS`."""
    num_thresholds: int
    """Thresholds that could be tried."""
    num_calibration: int
    """Answers in the calibration sample."""
    base_error: Share
    """Wrong answers among all of them."""
    coverage: Share
    """Accepted answers among all of them."""
    risk: Share
    """Wrong answers among the accepted ones."""
    false_alarm: Share
    """Answers that are not accepted among the right ones."""
    score: str = ""
    """Name of the score."""
    model: str = ""
    """Name or hash of the model whose answers these are."""
    data: str = ""
    """SHA-256 of the calibration scores and labels."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Versions of what computed it."""

    @property
    def least_abstention(self) -> float:
        """Share that any score must leave unanswered, (mu - alpha) / (1 - alpha).

        With a share mu of wrong answers above the target alpha, even a score that knows the truth
        must abstain on that many: it accepts every right answer, and alpha / (1 - alpha) wrong ones
        for each. mu is the calibration sample's.
        """
        error = self.base_error.value or 0.0
        return max(0.0, (error - self.target_risk) / (1 - self.target_risk))

    def __str__(self) -> str:
        side = "at or below" if self.higher_is_uncertain else "at or above"
        name = self.score or "the score"
        bound = (
            f"no score can promise this and answer more than {1 - self.least_abstention:.3g} of the "
            "questions"
            if self.least_abstention
            else "a score that knows the truth could accept all answers"
        )
        promise = f"at most {self.target_risk:g} of the accepted answers are wrong"
        if self.target_false_alarm is not None:
            promise += (
                f", and at most {self.target_false_alarm:g} of the right ones are not accepted"
            )
        lines = [
            f"Promise: {promise}, with confidence {self.confidence:g}.",
            f"Share of wrong answers without a guard: {self.base_error}; {bound}.",
        ]
        if self.threshold is None:
            lines.append(f"No threshold keeps the promise: {self.reason}. Nothing is accepted.")
        else:
            lines += [
                f"Accept where {name} is {side} {self.threshold:.6g}.",
                f"On the calibration sample: accepted {self.coverage}, of these wrong {self.risk}; "
                f"right, yet not accepted {self.false_alarm}.",
            ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Content of the file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Any, what: str) -> Certificate:
        """The certificate of a file's content.

        Raises
        ------
        Unreadable
            If a field is absent or not what `to_json` writes; the message names it.
        """
        values = fields.declared(content, _FIELDS, what)
        for name in ("base_error", "coverage", "risk", "false_alarm"):
            values[name] = Share(**values[name])
        if (values["threshold"] is None) != bool(values["reason"]):
            raise fields.Unreadable(
                f"reason of {what} must be given exactly where threshold is null, got "
                f"{values['reason']!r:.80} with threshold {values['threshold']}"
            )
        return cls(**values)


def digest(scores: Float[np.ndarray, " N"], correct: Bool[np.ndarray, " N"]) -> str:
    """SHA-256 of scores (float64) and labels (bytes), in their order."""
    content = np.ascontiguousarray(scores, "<f8").tobytes() + np.uint8(correct).tobytes()
    return hashlib.sha256(content).hexdigest()


def share_field() -> fields.Field:
    """A `Share` in a file."""
    return fields.section(
        {
            "count": fields.integer(0),
            "of": fields.integer(0),
            "value": fields.number(0, 1, default=None),
            "low": fields.number(0, 1),
            "high": fields.number(0, 1),
        }
    )


_SHARE = share_field()
_FIELDS = {
    "target_risk": fields.number(0, 1),
    "target_false_alarm": fields.number(0, 1, default=None),
    "confidence": fields.number(0, 1),
    "higher_is_uncertain": fields.truth(),
    "threshold": fields.number(default=None),
    "reason": fields.text(longest=1000),
    "method": fields.text(METHODS),
    "grid": fields.text(GRIDS),
    "num_thresholds": fields.integer(0),
    "num_calibration": fields.integer(0),
    "base_error": _SHARE,
    "coverage": _SHARE,
    "risk": _SHARE,
    "false_alarm": _SHARE,
    "score": fields.text(longest=1000),
    "model": fields.text(longest=1000),
    "data": fields.text(longest=64),
    "versions": fields.entries(fields.text(longest=100), 20),
}
