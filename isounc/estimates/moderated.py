"""The moderated probability of a binary event: the sigmoid averaged over a Gaussian logit.

    E[sigmoid(f)],    f ~ N(d, s^2),    s^2 = sigma^2 ||grad d||^2,

with d = log p - log(1 - p). As an uncertainty it is 1 - E[sigmoid(f)], the probability that the
event does not happen. Its sign is the same at every p: at a given s it falls as p rises, from 1 to
0. s draws it towards 1/2 from either side and never across (1 - p at s = 0, 1/2 at s = infinity),
so that it rises with s above p = 1/2 and falls below. `isotropic(..., method="logit_scaled")` has it
for a classifier, whose several classes are averaged over through the softmax.

Source: MacKay 1992, The evidence framework applied to classification networks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from isounc.estimates.inputs import padded
from isounc.estimates.links import sigmoid_normal_moments
from isounc.padding import bucket
from isounc.precision import double_precision

_WIDEST = 600.0
"""Log variance beyond which any logit is a coin with two sides; its exponential is a number."""


def sigmoid_mean_and_var(
    log_odds: Float[np.ndarray, " N"], log_var: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Mean and variance of sigmoid(f), f ~ N(log_odds, exp(log_var)), in float64.

    NaN where log_odds is not finite or log_var is NaN; a log variance of minus infinity is none.
    """
    defined = np.isfinite(log_odds) & ~np.isnan(log_var)
    var = np.exp(np.minimum(log_var, _WIDEST))
    # Rows up to a few numbers of them, each of which is compiled once.
    rows = [padded(np.where(defined, a, 0.0), bucket(len(a))) for a in (log_odds, var)]
    with double_precision():
        moments = jax.device_get(_moments(*map(jnp.asarray, rows)))
    mean, var = (np.where(defined, a[: len(defined)], np.nan) for a in (moments.mean, moments.var))
    return mean, var


def moderated_error(
    log_odds: Float[np.ndarray, "*B"], log_var: Float[np.ndarray, "*B"]
) -> Float[np.ndarray, "*B"]:
    """1 - E[sigmoid(f)], f ~ N(log_odds, exp(log_var)), elementwise, in float64.

    It is E[sigmoid(-f)], so that it keeps its digits where p is all but 1.

    Parameters
    ----------
    log_odds
        log p - log(1 - p) of the event.
    log_var
        Log variance of the log-odds: minus infinity for none, and as large as one likes.

    Returns
    -------
    Array
        Relative errors below 1e-6 (TPU: 2e-4). NaN where an argument is NaN or log_odds infinite.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> moderated_error(np.array([0.0, 2.0, 2.0]), np.array([1.0, -np.inf, 100.0])).round(3)
    array([0.5  , 0.119, 0.5  ])
    """
    odds, spread = np.asarray(log_odds, np.float64), np.asarray(log_var, np.float64)
    if odds.shape != spread.shape:
        raise ValueError(
            f"log_odds and log_var must have one shape, got {odds.shape} and {spread.shape}"
        )
    mean, _ = sigmoid_mean_and_var(-odds.ravel(), spread.ravel())
    return mean.reshape(odds.shape)


_moments = jax.jit(sigmoid_normal_moments)
