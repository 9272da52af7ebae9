"""Exact posteriors: logistic regression by quadrature, linear regression in closed form.

Both models are of depth 0, linear in their parameters: f(x) = phi(x) . theta with phi(x) = (x, 1),
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
from jaxtyping import Float, Int
from scipy.special import expit

from isounc.centring import is_off_centre, make_frame
from isounc.checks import check_count, check_real
from isounc.models import Model, check_inputs
from isounc.problems import Problem
from isounc.sampling.moments import Moments

EDGE_MASS_MAX = 1e-12
"""Posterior mass that may lie in the outermost layer of the quadrature's box."""
RELATIVE_ERROR_MAX = 1e-6
"""Largest numerical error of a variance over the variance itself for a result to pass."""
_COARSER = 1.25
# A variance far from the data may be 1e-17 and come from the posterior's tail: weights down to
# e^-60 matter to it.
_COARSE_CUT, _FINE_CUT = 50.0, 60.0
_CHUNK = 4096
_DEGREES_OF_FREEDOM = 5


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
    linear = _linear(problem, model, prior_sd, "gaussian")
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
        regions[name] = _moments(
            (mean, var, np.full(len(x), noise_var), np.full(len(x), noise_entropy)),
            (np.abs(mean - other_mean), np.abs(var - other_var), zeros, zeros),
            total,
        )
    normal = np.random.default_rng(seed).standard_normal((model.num_params, num_draws))
    draws = linear.theta(theta + scipy.linalg.solve_triangular(factor.T, normal).T)
    error = _relative_error(regions)
    checks = {"var_relative_error_max": error, "condition_number": float(np.linalg.cond(precision))}
    return Exact(regions, draws, "closed form", checks, _too_large(error))


def logistic_by_quadrature(
    problem: Problem,
    model: Model,
    *,
    prior_sd: float,
    spacing: float = 0.25,
    half_width: float = 12.0,
    num_draws: int = 1000,
    seed: int = 0,
) -> Exact:
    """Logistic regression with one or two inputs by the trapezoid rule over all its parameters.

    Nodes are theta = m + L z, with m the posterior mode, L L^T the inverse Hessian at it and z a
    grid over [-R, R]^P. For g = p, (p - mean)^2, p (1 - p) and the entropy of p

        E[g] = sum_i w_i g(theta_i) / sum_i w_i.

    For an integrand that is analytic and decays, the rule's error falls exponentially in
    1 / spacing. The `_se` fields are the differences from a grid of 5/4 the spacing in a box of 4/5
    the width that drops more of the tail: its errors rather than those, smaller, of the result.

    Draws are made by rejection from Student's t (5 degrees of freedom) about the mode, its bound
    being the largest density ratio at the nodes and a margin of 5%.

    Parameters
    ----------
    problem
        With likelihood `bernoulli` and at most two inputs.
    model
        Of depth 0.
    prior_sd
        Prior standard deviation; `Model.group_prior_sd` spreads it over kernel and bias.
    spacing
        Spacing of the nodes, in standard deviations of the Laplace approximation.
    half_width
        R of the smaller box, in the same unit; it grows until the outermost layer holds less than
        `EDGE_MASS_MAX`.
    num_draws
        Independent draws of theta to return.
    seed
        Seed of those draws.

    Raises
    ------
    ValueError
        For a model that is not linear, another likelihood, more than two inputs, settings out of
        range, or a posterior that reaches beyond 4 R.

    Source: Trefethen and Weideman, The exponentially convergent trapezoidal rule, SIAM Review
    56(3), 2014.
    """
    check_inputs([problem], model)
    linear = _linear(problem, model, prior_sd, "bernoulli")
    phi, sd = linear.phi, linear.sd
    check_count("num_draws", num_draws, 1, 10**7)
    spacing = check_real("spacing", spacing, positive=True)
    half_width = check_real("half_width", half_width, positive=True)
    if model.num_params > 3:
        raise ValueError(
            f"problem must have at most 2 inputs for quadrature, got {model.in_features}"
        )
    nodes = (2 * half_width / spacing + 1) ** model.num_params
    if nodes > 2e7:
        raise ValueError(
            f"spacing and half_width must make at most 2e+07 nodes, got {spacing} and {half_width}, "
            f"which make {nodes:.2g}"
        )
    if half_width < 2 * spacing:
        raise ValueError(f"half_width must be at least twice spacing ({spacing}), got {half_width}")
    sign = 2 * problem.y - 1

    def log_density(theta: Float[np.ndarray, "T P"]) -> Float[np.ndarray, " T"]:
        likelihood = -np.logaddexp(0, -(theta @ phi.T) * sign).sum(1)
        return likelihood - 0.5 * ((theta / sd) ** 2).sum(1)

    mode, factor = _mode(phi, sign, sd)
    points = np.concatenate([linear.at(x) for x in problem.regions.values()])
    centre = expit(points @ mode)
    for widening in (1.0, 1.5, 2.0, 3.0, 4.0):
        nodes, log_p, weights, edge = _nodes(
            log_density, mode, factor, spacing * _COARSER, half_width * widening, _COARSE_CUT
        )
        if edge < EDGE_MASS_MAX:
            break
    else:
        raise ValueError(
            f"half_width must be large enough to cover the posterior, got {half_width:g}: at four "
            f"times that the outermost layer of the box still holds {edge:.1e} of it"
        )
    coarse = _expectations(points, nodes, weights, centre)
    half_width *= _COARSER * widening
    nodes, log_p, weights, edge = _nodes(log_density, mode, factor, spacing, half_width, _FINE_CUT)
    fine = _expectations(points, nodes, weights, coarse[0])
    errors = tuple(np.abs(a - b) for a, b in zip(fine, coarse, strict=True))
    mean = fine[0]
    entropy = -mean * np.log(mean) - (1 - mean) * np.log1p(-mean)

    regions, start = {}, 0
    for name, x in problem.regions.items():
        rows = slice(start, start + len(x))
        start += len(x)
        regions[name] = _moments(
            tuple(a[rows] for a in fine), tuple(a[rows] for a in errors), entropy[rows]
        )
    ratio = log_p - _log_student(nodes, mode, factor)
    draws = _reject(log_density, mode, factor, ratio.max() + 0.05, num_draws, seed)
    error = _relative_error(regions)
    checks = {
        "var_relative_error_max": error,
        "edge_mass": edge,
        "num_nodes": float(len(nodes)),
        "half_width": half_width,
    }
    return Exact(regions, linear.theta(draws), "quadrature", checks, _too_large(error))


class _Linear(NamedTuple):
    """A model of depth 0 in parameters in which linear algebra keeps its digits."""

    phi: Float[np.ndarray, "N P"]
    """Features of the training inputs."""
    sd: Float[np.ndarray, " P"]
    """Prior sd of each parameter."""
    at: Callable[[np.ndarray], np.ndarray]
    """Features of other inputs."""
    theta: Callable[[np.ndarray], np.ndarray]
    """The model's parameters from these."""


def _linear(problem: Problem, model: Model, prior_sd: float, likelihood: str) -> _Linear:
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
        return _Linear(design(problem.X), model.param_prior_sd(prior_sd), design, lambda v: v)
    frame = make_frame([problem], model, prior_sd)
    phi = frame.linear_features(frame.data.X[0], 0)
    # As wide as the posterior is along each: all columns are of one size.
    precision = 0.25 if problem.noise_sd is None else problem.noise_sd**-2
    scale = (1 + precision * (phi**2).sum(0)) ** -0.5

    def at(X: np.ndarray) -> np.ndarray:
        return scale * frame.linear_features(frame.centred[0].features(X), 0)

    return _Linear(scale * phi, 1 / scale, at, lambda v: frame.theta(scale * v, 0))


def _design(model: Model, X: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N P"]:
    scale = 1 / math.sqrt(model.in_features) if model.parameterisation == "ntk" else 1.0
    return np.concatenate([X * scale, np.ones((len(X), 1))], axis=1)


_Columns = tuple[Float[np.ndarray, " N"], ...]
"""Mean, variance, E[p (1 - p)] and E[H] of the prediction at N locations."""


def _moments(values: _Columns, errors: _Columns, entropy: Float[np.ndarray, " N"]) -> Moments:
    """Moments from columns, their errors, and the entropy of the averaged prediction."""
    (mean, var, aleatoric, expected), (mean_se, var_se, aleatoric_se, expected_se) = (
        [a[:, None] for a in part[:3]] + [part[3]] for part in (values, errors)
    )
    return Moments(
        mean, mean_se, var, var_se, aleatoric, aleatoric_se, expected, expected_se, entropy
    )


def _relative_error(regions: dict[str, Moments]) -> float:
    return float(max((m.var_se / m.var).max() for m in regions.values()))


def _too_large(error: float) -> tuple[str, ...]:
    if error <= RELATIVE_ERROR_MAX:
        return ()
    bound = f"it must be at most {RELATIVE_ERROR_MAX:g}"
    return (f"the numerical error of a variance is {error:.2g} of it; {bound}",)


def _mode(
    phi: Float[np.ndarray, "N P"], sign: Int[np.ndarray, " N"], sd: Float[np.ndarray, " P"]
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, "P P"]]:
    """The posterior mode by damped Newton steps, and a Cholesky factor of the inverse Hessian."""

    def minus_log_density(theta: Float[np.ndarray, " P"]) -> float:
        return np.logaddexp(0, -sign * (phi @ theta)).sum() + 0.5 * ((theta / sd) ** 2).sum()

    theta = np.zeros(len(sd))
    for _ in range(100):
        p = expit(phi @ theta)
        gradient = phi.T @ (p - (sign + 1) / 2) + theta / sd**2
        hessian = (phi.T * (p * (1 - p))) @ phi + np.diag(sd**-2)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-8 and minus_log_density(theta - size * step) > minus_log_density(theta):
            size /= 2
        theta = theta - size * step
        # The mode only places the grid: far less precision than this would do.
        if np.abs(gradient @ step) < 1e-16:
            break
    return theta, np.linalg.cholesky(np.linalg.inv(hessian))


LogDensity = Callable[[Float[np.ndarray, "T P"]], Float[np.ndarray, " T"]]
"""Unnormalised log density of T parameter vectors."""


def _nodes(
    log_density: LogDensity,
    mode: Float[np.ndarray, " P"],
    factor: Float[np.ndarray, "P P"],
    spacing: float,
    half_width: float,
    cut: float,
) -> tuple[Float[np.ndarray, "T P"], Float[np.ndarray, " T"], Float[np.ndarray, " T"], float]:
    """Nodes that matter, their log densities and weights, and the mass of the outermost layer."""
    steps = math.ceil(half_width / spacing)
    axis = spacing * np.arange(-steps, steps + 1)
    mesh = np.meshgrid(*[axis] * len(mode), indexing="ij")
    z = np.stack([a.ravel() for a in mesh], axis=1)
    theta = mode + z @ factor.T
    log_p = np.concatenate(
        [log_density(theta[i : i + 4 * _CHUNK]) for i in range(0, len(theta), 4 * _CHUNK)]
    )
    weights = np.exp(log_p - log_p.max())
    on_edge = np.abs(z).max(1) > (steps - 0.5) * spacing
    edge = float(weights[on_edge].sum() / weights.sum())
    kept = log_p > log_p.max() - cut
    return theta[kept], log_p[kept], weights[kept] / weights[kept].sum(), edge


def _expectations(
    points: Float[np.ndarray, "N P"],
    nodes: Float[np.ndarray, "T P"],
    weights: Float[np.ndarray, " T"],
    centre: Float[np.ndarray, " N"],
) -> _Columns:
    """The columns at the points; a `centre` near the mean keeps the variance's digits."""
    sums = np.zeros((4, len(points)))
    for i in range(0, len(nodes), _CHUNK):
        f, w = points @ nodes[i : i + _CHUNK].T, weights[i : i + _CHUNK]
        size = np.abs(f)
        small = np.exp(-size)
        tail = small / (1 + small)
        d = np.where(f > 0, 1 - tail, tail) - centre[:, None]
        sums[0] += d @ w
        sums[1] += d**2 @ w
        sums[2] += (tail * (1 - tail)) @ w
        sums[3] += (size * tail + np.log1p(small)) @ w
    return centre + sums[0], sums[1] - sums[0] ** 2, sums[2], sums[3]


def _log_student(
    theta: Float[np.ndarray, "T P"],
    mode: Float[np.ndarray, " P"],
    factor: Float[np.ndarray, "P P"],
) -> Float[np.ndarray, " T"]:
    """Unnormalised log density of Student's t about the mode."""
    z = scipy.linalg.solve_triangular(factor, (theta - mode).T, lower=True)
    nu = _DEGREES_OF_FREEDOM
    return -0.5 * (nu + len(mode)) * np.log1p((z**2).sum(0) / nu)


def _reject(
    log_density: LogDensity,
    mode: Float[np.ndarray, " P"],
    factor: Float[np.ndarray, "P P"],
    bound: float,
    num_draws: int,
    seed: int,
) -> Float[np.ndarray, "num_draws P"]:
    """Draws by rejection from Student's t, whose log density ratio has the bound."""
    rng = np.random.default_rng(seed)
    nu, accepted, num_accepted = _DEGREES_OF_FREEDOM, [], 0
    while num_accepted < num_draws:
        normal = rng.standard_normal((2 * num_draws, len(mode)))
        t = normal / np.sqrt(rng.chisquare(nu, (2 * num_draws, 1)) / nu)
        theta = mode + t @ factor.T
        log_ratio = log_density(theta) - _log_student(theta, mode, factor) - bound
        if log_ratio.max() > 0:
            raise ValueError(
                "spacing must be fine enough to bound the density, got a draw that exceeds the "
                f"bound by {log_ratio.max():.2g}"
            )
        accepted.append(theta[np.log(rng.random(len(theta))) < log_ratio])
        num_accepted += len(accepted[-1])
    return np.concatenate(accepted)[:num_draws]
