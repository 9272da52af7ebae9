"""Logistic regression by quadrature over all its parameters, in float64 on the host."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int
from scipy.special import expit

from isounc.checks import check_count, check_real
from isounc.models import Model, check_inputs
from isounc.problems import Problem
from isounc.references.exact import Columns, Exact, linear_model, make_moments, numerical_error

EDGE_MASS_MAX = 1e-12
"""Posterior mass that may lie in the outermost layer of the quadrature's box."""
_COARSER = 1.25
# A variance far from the data may be 1e-17 and come from the posterior's tail: weights down to
# e^-60 matter to it.
_COARSE_CUT, _FINE_CUT = 50.0, 60.0
_CHUNK = 4096
_DEGREES_OF_FREEDOM = 5


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
    linear = linear_model(problem, model, prior_sd, "bernoulli")
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
        regions[name] = make_moments(
            tuple(a[rows] for a in fine), tuple(a[rows] for a in errors), entropy[rows]
        )
    ratio = log_p - _log_student(nodes, mode, factor)
    draws = _reject(log_density, mode, factor, ratio.max() + 0.05, num_draws, seed)
    error, reasons = numerical_error(regions)
    checks = {
        "var_relative_error_max": error,
        "edge_mass": edge,
        "num_nodes": float(len(nodes)),
        "half_width": half_width,
    }
    return Exact(regions, linear.theta(draws), "quadrature", checks, reasons)


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
) -> Columns:
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
