"""Log prior, log likelihood and log posterior, as separate terms.

The likelihood is summed over the examples (temperature 1) and the prior covers every parameter,
biases included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from isounc.checks import check_kind
from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model
from isounc.problems import Problem


class Data(NamedTuple):
    """Training data as arrays: arguments of compiled functions, never constants in them."""

    X: Float[Array, "N D"]
    """Inputs."""
    y: Shaped[Array, " N"]
    """Labels 0..C-1 or counts (int32), or real targets."""
    noise_sd: Float[Array, ""]
    """Known noise standard deviation; 1 and without effect where the likelihood has none."""
    prior_sd: Float[Array, " P"]
    """Prior standard deviation of each parameter."""


def make_data(problem: Problem, model: Model, prior_sd: float) -> Data:
    """The arrays of a problem under a prior, in JAX's default float type."""
    check_kind("problem", problem, Problem, "make_problem")
    check_kind("model", model, Model, "make_model")
    return on_device(_host_data(problem, model, prior_sd, jnp.result_type(float)))


def _host_data(problem: Problem, model: Model, prior_sd: float, dtype: DTypeLike) -> Data:
    """`make_data` as NumPy arrays: JAX would compile its conversions shape by shape."""
    y_dtype = dtype if problem.y.dtype.kind == "f" else np.int32
    noise_sd = 1.0 if problem.noise_sd is None else problem.noise_sd
    parts = (problem.X, problem.y, noise_sd, model.param_prior_sd(prior_sd))
    types = (dtype, y_dtype, dtype, dtype)
    return Data(*(np.asarray(a, t) for a, t in zip(parts, types, strict=True)))  # pyright: ignore


def host_data(problems: Sequence[Problem], model: Model, prior_sd: float, dtype: DTypeLike) -> Data:
    """Data of several problems of one shape, stacked along a new leading axis, as NumPy arrays.

    Raises
    ------
    ValueError
        For problems of different shapes, a model that was made for another kind of problem, or a
        `prior_sd` that is not positive.
    """
    for problem in problems:
        asked = (problem.num_features, problem.num_outputs, problem.likelihood)
        given = (model.in_features, model.out_features, model.likelihood)
        if asked != given:
            raise ValueError(
                f"model must have the inputs, outputs and likelihood of problem {problem.name!r}, "
                f"{asked}, got {given}; use make_model(problem, ...)"
            )
        if problem.X.shape != problems[0].X.shape:
            raise ValueError(
                f"problems must all have X of one shape, got {problems[0].X.shape} and "
                f"{problem.X.shape}"
            )
    parts = [_host_data(problem, model, prior_sd, dtype) for problem in problems]
    return jax.tree.map(lambda *a: np.stack(a), *parts)


def stack_data(problems: Sequence[Problem], model: Model, prior_sd: float) -> Data:
    """`host_data` as JAX arrays of the default float type.

    Raises
    ------
    ValueError
        As `host_data`.
    """
    return on_device(host_data(problems, model, prior_sd, jnp.result_type(float)))


def on_device(data: Data) -> Data:
    """Data as JAX arrays, in JAX's default float type."""
    dtype = jnp.result_type(float)
    return jax.tree.map(lambda a: jnp.asarray(a, dtype if a.dtype.kind == "f" else a.dtype), data)


def log_prior(theta: Float[Array, " P"], data: Data) -> Float[Array, ""]:
    """Sum over parameters of log N(theta; 0, prior_sd^2)."""
    z = theta / data.prior_sd
    return -0.5 * z @ z - jnp.log(data.prior_sd).sum() - 0.5 * z.size * jnp.log(2 * jnp.pi)


def log_likelihood_terms(
    model: Model, outputs: Float[Array, "N O"], data: Data
) -> Float[Array, " N"]:
    """Log p(y|x, theta) of each example, in nats, from the outputs before the link."""
    return LIKELIHOODS[model.likelihood].log_prob(outputs, data.y, data.noise_sd)


def in_units(model: Model, n: int) -> bool:
    """Whether a row for each unit, and not for each example, makes gradients faster on a CPU.

    Measured with `benchmarks/layouts.py`, by up to a factor of 3: narrow networks are faster that
    way, and those of several outputs at any width.
    """
    if model.depth > 1:
        return n >= 8 * model.width
    if model.out_features > 1:
        return n >= 64 or n >= model.width
    return model.width <= 48 and n >= 2 * model.width


def log_likelihood(model: Model, theta: Float[Array, " P"], data: Data) -> Float[Array, ""]:
    """Sum over the examples of log p(y|x, theta)."""
    if in_units(model, len(data.X)):
        outputs = model.apply_transposed(theta, data.X).T
    else:
        outputs = model.apply(theta, data.X)
    return log_likelihood_terms(model, outputs, data).sum()


def log_density(model: Model, theta: Float[Array, " P"], data: Data) -> Float[Array, ""]:
    """Unnormalised log posterior: log likelihood + log prior."""
    return log_likelihood(model, theta, data) + log_prior(theta, data)
