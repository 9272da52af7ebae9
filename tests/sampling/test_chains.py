"""Warm-up that anneals: where it does, that chains get to the posterior, and that runs resume."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from isounc.models import make_model
from isounc.problems import Problem, make_problem
from isounc.sampling import chains, parts
from isounc.sampling.posterior import sample_posterior
from isounc.sampling.settings import SamplerSettings
from tests.sampling.test_checkpoint import SETTINGS, assert_same_bits, sampled

NOISE_SD, PRIOR_SD = 0.1, 10.0


def line(seed=0, n=60):
    """Points of a line with little noise."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2, 2, (n, 2))
    y = X @ [1.0, -2.0] + 0.5 + NOISE_SD * rng.standard_normal(n)
    return Problem.from_arrays(X, y, noise_sd=NOISE_SD, regions={"q": 3 * X[:5]})


def exact(problem):
    """Mean and variance of f at the locations: the posterior is Gaussian."""
    A, B = (np.column_stack([x, np.ones(len(x))]) for x in (problem.X, problem.regions["q"]))
    cov = np.linalg.inv(A.T @ A / NOISE_SD**2 + np.eye(3) / PRIOR_SD**2)
    return B @ cov @ A.T @ problem.y / NOISE_SD**2, ((B @ cov) * B).sum(1)


def test_annealed_chains_sample_the_posterior():
    # A standard deviation of the posterior is about 0.001 of the prior's.
    settings = SamplerSettings(
        coordinates="prior", num_draws=500, max_draws=500, num_warmup=100, trajectory_length=0.02
    )
    problem = line()
    model = make_model(problem, depth=0, parameterisation="standard")
    posterior = sample_posterior(
        problem, model, prior_sd=PRIOR_SD, key=jax.random.key(0), settings=settings
    )
    moments, (mean, var) = posterior.regions["q"], exact(problem)
    assert posterior.gate.rhat_max is not None
    assert posterior.gate.rhat_max < 1.01 and posterior.gate.divergences == 0
    assert np.abs((moments.mean[:, 0] - mean) / moments.mean_se[:, 0]).max() < 4
    assert np.abs((moments.var[:, 0] - var) / moments.var_se[:, 0]).max() < 4


def test_without_annealing_chains_stay_where_the_posterior_has_no_mass(monkeypatch):
    made = make_problem("nonlinear_regression", n=1000, seed=0)
    problem = Problem.from_arrays(
        made.X, made.y, noise_sd=made.noise_sd, regions={"q": made.X[:40]}
    )
    settings = SamplerSettings(
        coordinates="prior", num_draws=20, max_draws=20, block=20, max_integration_steps=64
    )

    def errors():
        """Root mean square of the residuals of each chain, in units of the noise."""
        posterior = sample_posterior(
            problem, make_model(problem, width=8, parameterisation="standard"), prior_sd=10.0,
            key=jax.random.key(0), settings=settings, keep_values=True,
        )  # fmt: skip
        assert posterior.values is not None
        rows = posterior.locations["q"]
        residuals = posterior.values["q"][..., 0] - made.y[rows][None, None]
        return np.sqrt((residuals**2).mean((1, 2))) / made.noise_sd

    assert errors().max() < 2
    monkeypatch.setattr(chains, "mean_depth", lambda r: np.zeros(len(r)))
    assert errors().max() > 3


@pytest.mark.parametrize(
    ("r", "depth"),
    [
        ([[0.0, -10.0, -20.0, -30.0]], 20.0),
        ([[-5.0, -5.0]], 0.0),
        ([[-np.inf, np.nan, -1.0, -4e6]], 4e6 - 1),
        ([[np.nan, np.nan]], 0.0),
        ([[7.0, -np.inf]], 0.0),
    ],
)
def test_depth_is_the_mean_distance_from_the_best_chain(r, depth):
    np.testing.assert_array_equal(chains.mean_depth(np.array(r)), [depth])


def test_an_annealed_window_resumes_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "SECONDS", 0.0)
    monkeypatch.setattr(parts, "TELL_EVERY", 0.0)
    everywhere = dataclasses.replace(SETTINGS, anneal_above=0.0)
    whole = sampled(settings=everywhere)

    def interrupt(what, done, total):
        if what.startswith("warm-up (4 of 40"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampled(tmp_path, interrupt, settings=everywhere)
    assert [path.name for path in tmp_path.glob("part-*")] == ["part-00000.npz"]
    assert_same_bits(sampled(tmp_path, settings=everywhere), whole)
    # Draws of the prior are near this posterior: by default nothing is annealed.
    assert not np.isin(sampled().draws, whole.draws).all(1).any()
