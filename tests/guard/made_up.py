"""Scores and labels whose risk at every threshold is known in closed form."""

from __future__ import annotations

import numpy as np


def uniform_sample(n: int, slope: float, rng: np.random.Generator):
    """Uniform scores s with a share slope * s of wrong answers, so that the risk below t is slope t / 2."""
    scores = rng.uniform(size=n)
    return scores, rng.uniform(size=n) > slope * scores


def risk_below(threshold: float | None, slope: float) -> float:
    """Share of wrong answers among those of `uniform_sample` at or below a threshold."""
    return 0.0 if threshold is None else slope * threshold / 2
