r"""Risk against the share of questions that are passed on, in a sample and in its resamples.

Questions go to the second answerer in the order of a score, the highest first and ties at random:

    R(e) = (1/n) (sum_q w_q wrong_1q + sum_{q among the first e n} w_q (wrong_2q - wrong_1q))

with w_q how often a resample has question q. R is piecewise linear, with a knot for each value of the
score. A policy whose cost is a + b e with a share e passed on has the mean risk

    area = (1 / (high - low)) int_low^high R((c - a) / b) dc

over the costs c between two ends.

Axes: Q questions, R the sample (first) and its resamples, K knots.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Paths(NamedTuple):
    """R(e) by its knots."""

    share: Float[np.ndarray, "R K"]
    """e, from 0 to 1."""
    risk: Float[np.ndarray, "R K"]
    """R(e)."""

    def at(self, shares: Float[np.ndarray, " E"]) -> Float[np.ndarray, "R E"]:
        """R at some shares."""
        pairs = zip(self.share, self.risk, strict=True)
        return np.stack([np.interp(shares, share, risk) for share, risk in pairs])

    def mean(self, low: float = 0.0, high: float = 1.0) -> Float[np.ndarray, " R"]:
        """Mean of R between two shares.

        Raises
        ------
        ValueError
            The shares do not rise, or lie outside of 0 and 1.
        """
        if not 0 <= low < high <= 1 + 1e-12:
            raise ValueError(f"low and high must rise within 0 and 1, got {low} and {high}")
        ends = self.at(np.array([low, high]))
        share = np.clip(self.share, low, high)
        # A knot outside has the risk of the end that it was moved to: no width, no area.
        risk = np.where(self.share < low, ends[:, :1], self.risk)
        risk = np.where(self.share > high, ends[:, 1:], risk)
        areas = np.diff(share, axis=1) * (risk[:, 1:] + risk[:, :-1]) / 2
        return areas.sum(axis=1) / (high - low)


def paths(
    score: Float[np.ndarray, " Q"],
    correct: Bool[np.ndarray, "Q 2"],
    weights: Int[np.ndarray, "R Q"],
) -> Paths:
    """R(e) of passing on by a score, in each row of weights."""
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    wrong = ~correct[order]
    change = wrong[:, 1].astype(int) - wrong[:, 0]
    drawn = weights[:, order].astype(float)
    total = drawn.sum(axis=1, keepdims=True)
    total = np.where(total > 0, total, np.nan)  # a resample may have none of a few questions
    shares = np.add.reduceat(drawn, starts, axis=1) / total
    changes = np.add.reduceat(drawn * change, starts, axis=1) / total
    nothing = np.zeros((len(drawn), 1))
    first = (drawn @ wrong[:, 0])[:, None] / total
    share = np.cumsum(np.hstack([nothing, shares]), axis=1)
    share[:, -1] = np.where(np.isnan(share[:, -1]), np.nan, 1.0)
    return Paths(share, first + np.cumsum(np.hstack([nothing, changes]), axis=1))


class Gains(NamedTuple):
    """`isounc.guard.cost_risk.Gain` in the sample and in its resamples; undefined ones are NaN."""

    mean_risk: Float[np.ndarray, " R"]
    """Mean of R(e)."""
    random_risk: Float[np.ndarray, " R"]
    """The same at random."""
    oracle_risk: Float[np.ndarray, " R"]
    """The same by who is right."""
    gain: Float[np.ndarray, " R"]
    """Share of the way from the one to the other."""


def gains(found: Paths, correct: Bool[np.ndarray, "Q 2"], weights: Int[np.ndarray, "R Q"]) -> Gains:
    """Gains of passing on along paths."""
    best = oracle_paths(correct, weights).mean()
    mean, random = found.mean(), (found.risk[:, 0] + found.risk[:, -1]) / 2
    span = random - best
    gain = np.divide(random - mean, span, out=np.full(len(mean), np.nan), where=span > 1e-12)
    return Gains(mean, random, best, gain)


def oracle_paths(correct: Bool[np.ndarray, "Q 2"], weights: Int[np.ndarray, "R Q"]) -> Paths:
    """R(e) where what the second answerer alone has right goes first, what the first alone has last."""
    return paths(correct[:, 1].astype(float) - correct[:, 0], correct, weights)
