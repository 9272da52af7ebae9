"""Where a squared gradient norm of a probability points the wrong way as an uncertainty.

    ||grad p||^2 = (p (1 - p))^2 ||grad f||^2,    f = log p - log(1 - p),

rises with p up to p = 1/2 and falls beyond. Whoever takes it for the uncertainty of an answer of
probability p below 1/2 reads the better answer as the more uncertain one.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def rises_with_p(prob: Float[np.ndarray, "N M"], *, over_classes: bool) -> Bool[np.ndarray, " N"]:
    """Whether a prediction that is a little sharper has a larger norm, in theory.

    Sharper means that all logits grow by one factor; the gradients of the logits stay the same,
    of one length and orthogonal.

    Parameters
    ----------
    prob
        p of the predicted class, (N, 1), or of all classes.
    over_classes
        False: the norm is that of the predicted class, and rises where p < 1/2. True: it is the sum
        over the classes, sum_c p_c^2 (1 - 2 p_c + sum_k p_k^2). That needs more than p < 1/2 of the
        largest: the sum falls where few classes share the rest, always so for two.
    """
    below = prob.max(axis=1) < 0.5
    if not over_classes:
        return below
    # The derivative of the sum by the factor of the logits, at a factor of 1.
    log_p = np.log(np.maximum(prob, np.finfo(np.float64).tiny))
    slope = prob * (log_p - (prob * log_p).sum(axis=1, keepdims=True))
    size = (prob**2).sum(axis=1, keepdims=True)
    growth = 2 * (prob * slope).sum(axis=1, keepdims=True)
    rest = 1 - 2 * prob + size
    rise = (2 * prob * slope * rest + prob**2 * (growth - 2 * slope)).sum(axis=1)
    # At equal probabilities the sum is stationary, and what is left is rounding.
    return below & (rise > 1e-9 * size[:, 0])


def warning_of(count: int, whole: str, what: str) -> str:
    """The sentence that warns of norms that rise with p, at `count` of a whole ("5 examples")."""
    return (
        f"{what} is below 1/2 at {count} of {whole}, where ||grad p||^2 (epistemic) rises with p in "
        "theory, so that as an uncertainty it points the wrong way: use ||grad log p||^2, which is "
        "epistemic / p^2 of that p, or the moderated probability"
    )
