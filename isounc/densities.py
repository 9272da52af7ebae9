"""Log prior, log likelihood and log posterior, as separate terms; the link and its derivative.

The likelihood is summed over the examples (temperature 1) and the prior covers every parameter, biases included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from isounc.models import Model
from isounc.problems import Problem


class Data(NamedTuple):
    """Training data as arrays: arguments of compiled functions, never constants in them."""

    X: Float[Array, "N D"]
    """Inputs."""
    y: Shaped[Array, " N"]
    """Labels 0..C-1 (int32) or real targets."""
    noise_sd: Float[Array, ""]
    """Known noise standard deviation of a gaussian likelihood; 1 and without effect otherwise."""
    prior_sd: Float[Array, " P"]
    """Prior standard deviation of each parameter."""


def make_data(problem: Problem, model: Model, prior_sd: float) -> Data:
    """The arrays of a problem under a prior, in JAX's default float type."""
    return jax.tree.map(jnp.asarray, _host_data(problem, model, prior_sd))


def _host_data(problem: Problem, model: Model, prior_sd: float) -> Data:
    """`make_data` as NumPy arrays: what JAX does outside of a jitted function it compiles shape by shape."""
    dtype = jnp.result_type(float)
    y_dtype = dtype if problem.likelihood == "gaussian" else np.int32
    noise_sd = 1.0 if problem.noise_sd is None else problem.noise_sd
    parts = (problem.X, problem.y, noise_sd, model.param_prior_sd(prior_sd))
    types = (dtype, y_dtype, dtype, dtype)
    return Data(*(np.asarray(a, t) for a, t in zip(parts, types, strict=True)))  # pyright: ignore


def stack_data(problems: Sequence[Problem], model: Model, prior_sd: float) -> Data:
    """Data of several problems of one shape, stacked along a new leading axis.

    Raises
    ------
    ValueError
        For problems of different shapes, a model that was made for another kind of problem, or a ``prior_sd`` that
        is not positive.
    """
    for problem in problems:
        asked = (problem.num_features, problem.num_outputs, problem.likelihood)
        given = (model.in_features, model.out_features, model.likelihood)
        if asked != given:
            raise ValueError(
                f"model does not fit problem {problem.name!r}: (inputs, outputs, likelihood) must be {asked}; "
                f"got {given}; use make_model(problem, ...)"
            )
        if problem.X.shape != problems[0].X.shape:
            raise ValueError(
                f"problems must all have X of one shape; got {problems[0].X.shape} and {problem.X.shape}"
            )
    parts = [_host_data(problem, model, prior_sd) for problem in problems]
    return jax.tree.map(lambda *a: jnp.asarray(np.stack(a)), *parts)


def log_prior(theta: Float[Array, " P"], data: Data) -> Float[Array, ""]:
    """Sum over parameters of log N(theta; 0, prior_sd^2)."""
    z = theta / data.prior_sd
    return -0.5 * z @ z - jnp.log(data.prior_sd).sum() - 0.5 * z.size * jnp.log(2 * jnp.pi)


def log_likelihood_terms(
    model: Model, outputs: Float[Array, "N O"], data: Data
) -> Float[Array, " N"]:
    """Log p(y|x, theta) of each example, in nats, from the outputs before the link."""
    if model.likelihood == "bernoulli":
        # y f - softplus(f) in the form that does not cancel where the label is all but certain.
        return -jax.nn.softplus((1 - 2 * data.y) * outputs[:, 0])
    if model.likelihood == "categorical":
        log_p = jax.nn.log_softmax(outputs, axis=1)
        return jnp.take_along_axis(log_p, data.y[:, None], axis=1)[:, 0]
    residual = (data.y - outputs[:, 0]) / data.noise_sd
    return -0.5 * residual**2 - jnp.log(data.noise_sd) - 0.5 * jnp.log(2 * jnp.pi)


def log_likelihood(model: Model, theta: Float[Array, " P"], data: Data) -> Float[Array, ""]:
    """Sum over the examples of log p(y|x, theta)."""
    return log_likelihood_terms(model, model.apply(theta, data.X), data).sum()


def log_density(model: Model, theta: Float[Array, " P"], data: Data) -> Float[Array, ""]:
    """Unnormalised log posterior: log likelihood + log prior."""
    return log_likelihood(model, theta, data) + log_prior(theta, data)


def predict(model: Model, outputs: Float[Array, "N O"]) -> Float[Array, "N M"]:
    """The predictive quantity: p(y=1), the C class probabilities, or the function itself."""
    if model.likelihood == "bernoulli":
        return jax.nn.sigmoid(outputs)
    if model.likelihood == "categorical":
        return jax.nn.softmax(outputs, axis=-1)
    return outputs


def predict_jacobian(model: Model, outputs: Float[Array, "N O"]) -> Float[Array, "N M O"]:
    """Derivative of `predict` with respect to the outputs, dp_m/df_o.

    Bernoulli: p (1-p). Categorical: diag(p) - p p^T. Gaussian: 1. Neither cancels at saturation (`_complement`).
    """
    if model.likelihood == "bernoulli":
        return (jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs))[..., None]
    if model.likelihood == "categorical":
        p = jax.nn.softmax(outputs, axis=-1)
        return p[..., :, None] * _identity_minus_rows(p)
    return jnp.ones((*outputs.shape, 1), outputs.dtype)


def _complement(p: Float[Array, "N C"]) -> Float[Array, "N C"]:
    """1 - p_c as the sum of the other probabilities, which keeps its digits when p_c is all but 1."""
    others = 1 - jnp.eye(p.shape[-1], dtype=p.dtype)
    return jnp.matmul(p, others, precision=jax.lax.Precision.HIGHEST)


def _identity_minus_rows(p: Float[Array, "N C"]) -> Float[Array, "N C C"]:
    """1[c=k] - p_k for each row c."""
    eye = jnp.eye(p.shape[-1], dtype=p.dtype)[None]
    return eye * _complement(p)[:, None, :] - (1 - eye) * p[:, None, :]


def label_variance(
    model: Model, outputs: Float[Array, "N O"], noise_sd: Float[Array, ""] | float
) -> Float[Array, "N M"]:
    """Aleatoric variance at fixed parameters: p (1-p) per class, or the noise variance."""
    if model.likelihood == "bernoulli":
        return jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs)
    if model.likelihood == "categorical":
        p = jax.nn.softmax(outputs, axis=-1)
        return p * _complement(p)
    return jnp.full_like(outputs, noise_sd**2)


def label_entropy(
    model: Model, outputs: Float[Array, "N O"], noise_sd: Float[Array, ""] | float
) -> Float[Array, " N"]:
    """Entropy of the label at fixed parameters, in nats (differential entropy for gaussian)."""
    if model.likelihood == "bernoulli":
        # Even in f, and a sum of positive terms for f >= 0.
        f = jnp.abs(outputs[:, 0])
        return jax.nn.softplus(-f) + f * jax.nn.sigmoid(-f)
    if model.likelihood == "categorical":
        log_p = jax.nn.log_softmax(outputs, axis=-1)
        return -(jnp.exp(log_p) * log_p).sum(-1)
    entropy = 0.5 * jnp.log(2 * jnp.pi * jnp.e * noise_sd**2)
    return jnp.full(outputs.shape[0], entropy, outputs.dtype)


def curvature_factor(
    model: Model, outputs: Float[Array, "N O"], noise_sd: Float[Array, ""] | float
) -> Float[Array, "N O O"]:
    """B with B B^T = minus the Hessian of log p(y|x) in the outputs, which does not depend on y.

    Bernoulli sqrt(p(1-p)); categorical B_ck = (1[c=k] - p_c) sqrt(p_k), since B B^T = diag(p) - p p^T; gaussian
    1 / noise_sd. It turns output Jacobians into the generalised Gauss-Newton matrix.
    """
    if model.likelihood == "bernoulli":
        return jnp.sqrt(label_variance(model, outputs, noise_sd))[..., None]
    if model.likelihood == "categorical":
        p = jax.nn.softmax(outputs, axis=-1)
        return _identity_minus_rows(p).mT * jnp.sqrt(p)[..., None, :]
    return jnp.ones((*outputs.shape, 1), outputs.dtype) / noise_sd
