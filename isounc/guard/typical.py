"""Conformal p-values say whether a score is as typical as those of the calibration sample."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from isounc.checks import real_vector
from isounc.guard.sample import Values


def conformal_p_values(
    calibration: Values,
    scores: Values,
    *,
    higher_is_atypical: bool = True,
) -> Float[np.ndarray, " M"]:
    r"""P-value of each score for being exchangeable with those of the calibration sample.

        p = (1 + #{i : s_i >= s}) / (n + 1)

    For a score that is exchangeable with the calibration scores, P(p <= a) <= a for every a, and for
    scores without ties p is uniform on 1/(n + 1), ..., 1. The p-values of several scores share their
    calibration sample and are dependent.

    Parameters
    ----------
    calibration
        Scores of the calibration sample.
    scores
        New scores.
    higher_is_atypical
        False for a score that is low where an input is unusual.

    Raises
    ------
    ValueError
        If scores are undefined or no vector, or the calibration sample is empty.

    Source: Vovk, Gammerman, Shafer 2005, "Algorithmic Learning in a Random World", section 2.2.
    """
    known, new = real_vector("calibration", calibration), real_vector("scores", scores)
    if not len(known):
        raise ValueError("calibration must hold at least one score, got none")
    for name, values in (("calibration", known), ("scores", new)):
        if np.isnan(values).any():
            raise ValueError(
                f"{name} must be defined, got NaN at {int(np.isnan(values).sum())} of {len(values)}"
            )
    sign = 1.0 if higher_is_atypical else -1.0
    ordered = np.sort(sign * known)
    at_least = len(ordered) - np.searchsorted(ordered, sign * new, side="left")
    return (1 + at_least) / (len(ordered) + 1)
