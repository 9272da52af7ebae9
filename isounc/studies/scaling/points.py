"""What protocols change of a problem and of theta*: the mean of a chain's draws, and a wide grid."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from isounc import densities
from isounc.checks import check_real
from isounc.fit import PointEstimate
from isounc.problems import Problem
from isounc.sampling.moments import Posterior


def chain_mean(posterior: Posterior, problem: Problem, *, prior_sd: float) -> PointEstimate:
    """The mean of the kept draws of the first chain, as a point theta*.

        theta* = (1 / S) sum_s theta_s

    Where the chain has visited symmetric modes, which unit does what differs between draws, and
    their mean need not be a model of the data. It passes its check all the same: how it predicts is
    part of the result. Of tempered SMC a chain is one set of particles.

    Parameters
    ----------
    posterior
        A sampled posterior; its kept draws are chain-major.
    problem
        Its data, on which the log likelihood is that of the mean.
    prior_sd
        Prior standard deviation, for the log posterior.
    """
    model = posterior.model
    per_chain = len(posterior.draws) // posterior.num_chains
    theta = np.asarray(posterior.draws[:per_chain], np.float64).mean(axis=0)
    data = densities.make_data(problem, model, prior_sd)
    at = jnp.asarray(theta, data.X.dtype)
    log_likelihood = float(densities.log_likelihood(model, at, data))
    is_finite = bool(np.isfinite(theta).all())
    return PointEstimate(
        kind="chain_mean",
        theta=theta,
        log_density=log_likelihood + float(densities.log_prior(at, data)),
        log_likelihood=log_likelihood,
        rel_grad_norm=None,
        hessian_min_eigenvalue=None,
        hessian_method=None,
        hessian=None,
        restart_log_densities=(),
        passed=is_finite,
        reasons=() if is_finite else ("The draws of the chain are not finite.",),
    )


def with_grid(problem: Problem, margin: float) -> Problem:
    """A problem whose grid reaches `margin` beyond the range of its training inputs.

    It has as many points as before. Of the other regions `test` is left, which has labels. A problem
    without a grid is returned as it is.

    Parameters
    ----------
    margin
        In the units of the inputs that the model sees: standard deviations in built-in problems.

    Raises
    ------
    ValueError
        If the margin is not positive.
    """
    margin = check_real("margin", margin, positive=True)
    if problem.grid_shape is None:
        return problem
    axes = [
        np.linspace(column.min() - margin, column.max() + margin, size)
        for column, size in zip(problem.X.T, problem.grid_shape, strict=True)
    ]
    mesh = np.meshgrid(*axes, indexing="ij")
    grid = np.stack([coordinate.ravel() for coordinate in mesh], axis=1)
    kept = {name: X for name, X in problem.regions.items() if name in problem.targets}
    truth = {name: p for name, p in problem.p_true.items() if name in kept}
    return dataclasses.replace(problem, regions={**kept, "grid": grid}, p_true=truth)
