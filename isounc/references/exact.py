"""Exact posteriors of linear models; linear regression in closed form.

The models are of depth 0, linear in their parameters: f(x) = phi(x) . theta with phi(x) = (x, 1),
x divided by sqrt(D) under `ntk`. Everything is worked out twice in float64, and the difference
stands in the place of the Monte Carlo standard errors of a sampled posterior. NumPy on the host.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

from isounc.centring import is_off_centre, make_frame
from isounc.checks import check_count
from isounc.models import Model, check_inputs
from isounc.problems import Problem
from isounc.sampling.moments import Moments

RELATIVE_ERROR_MAX = 1e-6
"""Largest numerical error of a variance over the variance itself for a result to pass."""


class Exact(NamedTuple):
    """An exact posterior; the `_se` fields of its moments hold numerical errors."""

    regions: dict[str, Moments]
    """Predictive moments by region, float64."""
    draws: Float[np.ndarray, "T P"]
    """Independent draws of the parameters."""
    method: str
    """quadrature or closed form."""
    checks: dict[str, float]
    """Numbers about the computation, by name."""
    reasons: tuple[str, ...]
    """A sentence for each bound that is not kept; empty if the result passed."""


def linear_gaussian(
    problem: Problem, model: Model, *, prior_sd: float, num_draws: int = 1000, seed: int = 0
) -> Exact:
    """Bayesian linear regression with known noise, in closed form.

    With Phi (n, P) the features of the training inputs, s the noise sd and
    Lambda = diag(sigma_l^2),

        A = Phi^T Phi / s^2 + Lambda^-1,
        E[f(x)] = phi . A^-1 Phi^T y / s^2,   Var[f(x)] = phi . A^-1 phi.

    The second way is the orthogonal decomposition Q R of [Phi / s; Lambda^-1/2], with A = R^T R
    never formed. The averaged prediction is Gaussian, so `entropy` is exact here:
    log(2 pi e (s^2 + Var[f])) / 2.

    Parameters
    ----------
    problem
        With likelihood `gaussian`.
    model
        Of depth 0.
    prior_sd
        Prior standard deviation; `Model.group_prior_sd` spreads it over kernel and bias.
    num_draws
        Independent draws of theta ~ N(A^-1 Phi^T y / s^2, A^-1) to return.
    seed
        Seed of those draws.

    Raises
    ------
    ValueError
        For a model that is not linear, another likelihood, or settings out of range.

    Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section 2.1.
    """
    check_inputs([problem], model)
    linear = linear_model(problem, model, prior_sd, "gaussian")
    phi, sd = linear.phi, linear.sd
    check_count("num_draws", num_draws, 1, 10**7)
    assert problem.noise_sd is not None
    noise_var = problem.noise_sd**2
    precision = phi.T @ phi / noise_var + np.diag(sd**-2)
    factor = np.linalg.cholesky(precision)
    theta = scipy.linalg.cho_solve((factor, True), phi.T @ problem.y / noise_var)
    orthogonal, triangle = np.linalg.qr(np.vstack([phi / problem.noise_sd, np.diag(1 / sd)]))
    other_theta = scipy.linalg.solve_triangular(
        triangle, orthogonal[: len(phi)].T @ problem.y / problem.noise_sd
    )

    regions = {}
    for name, x in problem.regions.items():
        phi_x = linear.at(x)
        mean = phi_x @ theta
        var = (scipy.linalg.solve_triangular(factor, phi_x.T, lower=True) ** 2).sum(0)
        other_mean = phi_x @ other_theta
        other_var = (scipy.linalg.solve_triangular(triangle, phi_x.T, trans=1) ** 2).sum(0)
        total = 0.5 * np.log(2 * np.pi * np.e * (noise_var + var))
        noise_entropy = 0.5 * math.log(2 * np.pi * np.e * noise_var)
        zeros = np.zeros(len(x))
        regions[name] = make_moments(
            (mean, var, np.full(len(x), noise_var), np.full(len(x), noise_entropy)),
            (np.abs(mean - other_mean), np.abs(var - other_var), zeros, zeros),
            total,
        )
    normal = np.random.default_rng(seed).standard_normal((model.num_params, num_draws))
    draws = linear.theta(theta + scipy.linalg.solve_triangular(factor.T, normal).T)
    error, reasons = numerical_error(regions)
    checks = {"var_relative_error_max": error, "condition_number": float(np.linalg.cond(precision))}
    return Exact(regions, draws, "closed form", checks, reasons)


class LinearModel(NamedTuple):
    """A model of depth 0 in parameters in which linear algebra keeps its digits."""

    phi: Float[np.ndarray, "N P"]
    """Features of the training inputs."""
    sd: Float[np.ndarray, " P"]
    """Prior sd of each parameter."""
    at: Callable[[np.ndarray], np.ndarray]
    """Features of other inputs."""
    theta: Callable[[np.ndarray], np.ndarray]
    """The model's parameters from these."""


def linear_model(problem: Problem, model: Model, prior_sd: float, likelihood: str) -> LinearModel:
    """The model's own parameters, or where inputs are off centre those of `isounc.centring`."""
    if problem.likelihood != likelihood or model.likelihood != likelihood:
        raise ValueError(
            f"problem and model must have likelihood {likelihood!r}, got {problem.likelihood!r} "
            f"and {model.likelihood!r}"
        )
    if model.depth != 0 or model.in_features != problem.num_features:
        raise ValueError(
            f"model must be linear (depth 0) in {problem.num_features} inputs, got depth "
            f"{model.depth} and {model.in_features} inputs"
        )
    if not is_off_centre(problem.X):
        design = functools.partial(_design, model)
        return LinearModel(design(problem.X), model.param_prior_sd(prior_sd), design, lambda v: v)
    frame = make_frame([problem], model, prior_sd)
    phi = frame.linear_features(frame.data.X[0], 0)
    # As wide as the posterior is along each: all columns are of one size.
    precision = 0.25 if problem.noise_sd is None else problem.noise_sd**-2
    scale = (1 + precision * (phi**2).sum(0)) ** -0.5

    def at(X: np.ndarray) -> np.ndarray:
        return scale * frame.linear_features(frame.centred[0].features(X), 0)

    return LinearModel(scale * phi, 1 / scale, at, lambda v: frame.theta(scale * v, 0))


def _design(model: Model, X: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N P"]:
    scale = 1 / math.sqrt(model.in_features) if model.parameterisation == "ntk" else 1.0
    return np.concatenate([X * scale, np.ones((len(X), 1))], axis=1)


Columns = tuple[Float[np.ndarray, " N"], ...]
"""Mean, variance, E[p (1 - p)] and E[H] of the prediction at N locations."""


def make_moments(values: Columns, errors: Columns, entropy: Float[np.ndarray, " N"]) -> Moments:
    """Moments from columns, their errors, and the entropy of the averaged prediction."""
    (mean, var, aleatoric, expected), (mean_se, var_se, aleatoric_se, expected_se) = (
        [a[:, None] for a in part[:3]] + [part[3]] for part in (values, errors)
    )
    return Moments(
        mean, mean_se, var, var_se, aleatoric, aleatoric_se, expected, expected_se, entropy
    )


def numerical_error(regions: dict[str, Moments]) -> tuple[float, tuple[str, ...]]:
    """Largest error of a variance over the variance, and a sentence if that is too much."""
    error = float(max((m.var_se / m.var).max() for m in regions.values()))
    if error <= RELATIVE_ERROR_MAX:
        return error, ()
    bound = f"it must be at most {RELATIVE_ERROR_MAX:g}"
    return error, (f"the numerical error of a variance is {error:.2g} of it; {bound}",)
