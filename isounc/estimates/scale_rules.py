"""The scale sigma^2 of Gaussian logits f ~ N(f(x, theta*), sigma^2 ||df/dtheta||^2).

A trained network has no prior that would say how far its parameters may be off. Two rules say it
without one or with one:

    unit                   the median of sigma^2 ||df/dtheta||^2 over reference inputs is the
                           variance of the label's own noise on the scale of f
    effective_dimension    over the training inputs, sigma^2 sum_i tr(B_i^T J_i J_i^T B_i) is the
                           effective dimension that data and prior leave

The first is about the order of the estimates, the second about their sum, too.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from isounc.likelihoods import Likelihood, NoiseSd

LOGISTIC_VAR = math.pi**2 / 3
"""Variance of the standard logistic distribution, the noise of a label on the scale of its logit:
y = 1 where f + noise > 0 has p(y = 1) = sigmoid(f)."""


def unit_var(
    likelihood: Likelihood,
    outputs: Float[Array, "N O"],
    gram: Float[Array, "N O O"],
    noise_sd: NoiseSd,
) -> Float[Array, ""]:
    """sigma^2 by the rule `unit`: where the parameters' noise is as large as the label's own.

    sigma^2 = pi^2/3 / median_n(||df/dtheta||^2) for a logit f; for C classes f is the log-odds of
    the predicted class against the others in their proportions, d = f_c - log sum_{k != c} exp f_k.
    Any other likelihood has the median of sigma^2 tr(B^T J J^T B) / O equal to 1, with B B^T the
    information that a label has about the outputs: for regression sigma^2 = noise_sd^2 /
    median_n(||df/dtheta||^2).

    Parameters
    ----------
    likelihood
        The likelihood of the model.
    outputs, gram
        f and J J^T at the reference inputs.
    noise_sd
        Known noise of a regression.

    Returns
    -------
    Array
        sigma^2; infinite or NaN where more than half of the gradients are zero.
    """
    if likelihood.link == "sigmoid":
        return LOGISTIC_VAR / jnp.median(gram[:, 0, 0])
    if likelihood.link == "softmax":
        is_top = jax.nn.one_hot(jnp.argmax(outputs, axis=1), outputs.shape[1], dtype=outputs.dtype)
        others = jax.nn.softmax(jnp.where(is_top > 0, -jnp.inf, outputs), axis=1)
        contrast = is_top - others
        return LOGISTIC_VAR / jnp.median(jnp.einsum("no,noq,nq->n", contrast, gram, contrast))
    half = likelihood.curvature_factor(outputs, noise_sd)
    return outputs.shape[1] / jnp.median(jnp.einsum("nok,noq,nqk->n", half, gram, half))


def unit_log_var(log_sq_norms: Float[np.ndarray, " R"]) -> float:
    """Log sigma^2 by the rule `unit` for log-odds, from log ||df/dtheta||^2 at reference inputs.

    It holds where the norms themselves are beyond float64, as for a language model that is sure of
    its answer. Undefined norms (NaN) are left out; NaN if none is left or more than half are zero.
    """
    ordered = np.sort(log_sq_norms[~np.isnan(log_sq_norms)])
    if not len(ordered):
        return math.nan
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    # The median of the norms, of which logarithms have another one where there are two middle ones.
    median = np.logaddexp(low, high) - math.log(2) if low != high else low
    return math.log(LOGISTIC_VAR) - float(median) if np.isfinite(median) else math.nan


def effective_var(
    factor: Float[Array, "R P"], prior_sd: Float[Array, " P"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """sigma^2 by the rule `effective_dimension`, and that dimension.

    With G the factor of the GGN over the training inputs (G^T G = sum_i J_i^T B_i B_i^T J_i, for
    one logit p (1 - p) df df^T) and lambda the eigenvalues of its kernel G G^T,

        sigma^2 ||G||^2 = sum lambda / (lambda + 1 / prior_sd^2).

    The right side is the same sum under the Laplace posterior, tr(G Sigma G^T). Prior sds that
    differ scale the columns of G on the right.
    """
    # Singular values of the factor, not eigenvalues of the kernel: squares would cost single
    # precision the small ones, of which there are many.
    singular = jnp.linalg.svd(factor * prior_sd[None, :], compute_uv=False)
    dimension = (singular**2 / (1 + singular**2)).sum()
    return dimension / (factor**2).sum(), dimension
