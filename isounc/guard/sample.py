"""Calibration samples: scores of answers, and whether each answer is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from isounc.checks import real_vector

Values = Sequence[Any] | Shaped[np.ndarray, "_"]
"""A score or a label for each answer: a list, or an array of any kind of number."""
Table = Sequence[Any] | Shaped[np.ndarray, "_ _"]
"""Scores of several kinds for each answer."""


class Sample(NamedTuple):
    """A calibration sample."""

    certainty: Float[np.ndarray, " N"]
    """Scores, turned so that high is certain."""
    correct: Bool[np.ndarray, " N"]
    """Whether each answer is right."""


def checked_sample(scores: Any, correct: Any, higher_is_uncertain: Any) -> Sample:
    """A calibration sample, its scores turned so that high is certain.

    Raises
    ------
    ValueError
        If it is empty, its parts differ in length, a score is undefined, or a label no truth value.
    """
    values = real_vector("scores", scores)
    labels = real_vector("correct", correct)
    if len(values) != len(labels) or not len(values):
        raise ValueError(
            "scores and correct must have one entry for each answer, and at least one, got "
            f"{len(values)} and {len(labels)}"
        )
    if np.isnan(values).any():
        raise ValueError(
            f"scores must be defined, got NaN at {int(np.isnan(values).sum())} of {len(values)} "
            "answers; leave them out, or give them the score of the least certain"
        )
    if not np.isin(labels, (0, 1)).all():
        bad = labels[~np.isin(labels, (0, 1))][0]
        raise ValueError(f"correct must hold true and false (or 1 and 0), got {bad:g}")
    if not isinstance(higher_is_uncertain, bool | np.bool_):
        raise ValueError(f"higher_is_uncertain must be true or false, got {higher_is_uncertain!r}")
    return Sample(-values if higher_is_uncertain else values, labels == 1)


def check_share(argument: str, value: Any) -> float:
    """Return `value` as a float; raise a ValueError unless it lies between 0 and 1, ends excluded."""
    good = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not good or not 0 < float(value) < 1:
        raise ValueError(f"{argument} must be above 0 and below 1, got {value!r}")
    return float(value)
