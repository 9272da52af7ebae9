"""Warm-up that anneals: where it does, that chains get to the posterior, and that runs resume."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from isounc.densities import make_data
from isounc.models import Model, make_model
from isounc.problems import Problem, make_problem
from isounc.sampling import chains, parts
from isounc.sampling.convergence import diagnose
from isounc.sampling.kernels import HMC
from isounc.sampling.posterior import sample_posterior
from isounc.sampling.run import randomness, together
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


def test_an_axis_of_one_is_that_of_a_batch():
    """As `jax.vmap` has it, also with keys, trees and what a function closes over."""
    shared = jnp.array([1.0, 2.0])

    def function(key, tree):
        return tree["a"] @ shared + jax.random.normal(key), (tree["b"], 0.0)

    for length in (1, 3):
        keys = jax.random.split(jax.random.key(0), length)
        tree = {"a": jnp.arange(4.0 * length).reshape(length, 2, 2), "b": jnp.arange(length)}
        found, wanted = together(function)(keys, tree), jax.vmap(function)(keys, tree)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            np.testing.assert_array_equal(a, b)


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


@pytest.mark.usefixtures("optimized")
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


class Mixture(NamedTuple):
    """x itself is theta, and its density is that of two spherical Gaussians."""

    means: jax.Array
    sd: jax.Array
    weights: jax.Array

    name = "mixture"

    def start(self, z):
        return z

    def theta(self, x, model, data):
        return x

    def remainder(self, x, model, data):
        squares = ((x[None] - self.means) ** 2).sum(1) / self.sd**2
        of_parts = jnp.log(self.weights) - 0.5 * squares - len(x) * jnp.log(self.sd)
        return jax.nn.logsumexp(of_parts) + 0.5 * x @ x

    def log_volume(self, x, model, data):
        return jnp.zeros((), x.dtype)


# Two modes that chains cross and two that they do not; 16 chains begin 800 and 1600 nats away.
SD, NEAR, FAR = 0.05, (2.0, 2.12), (2.0, -2.0)
WEIGHTS = np.array([[0.3, 0.7], [0.8, 0.2]])
TOWARDS_MODES = SamplerSettings(
    num_chains=16, num_draws=500, max_draws=500, block=500, num_kept=8000, trajectory_length=0.2,
    anneal_above=0.0,
)  # fmt: skip
STATIC: dict[str, Any] = {
    "model": Model(in_features=1, out_features=1, depth=0, parameterisation="standard"),
    "settings": TOWARDS_MODES,
    "sampler": HMC(retries=0),
}


def draws_of_mixtures(*, anneal, length=60):
    """Draws (problem, chain, draw, parameter) after two windows of warm-up."""
    problem = Problem.from_arrays(np.array([[0.0], [1.0]]), np.array([0.0, 1.0]), noise_sd=1.0)
    data, X = make_data(problem, STATIC["model"], 1.0), np.ones((1, 1), np.float32)
    data, X = jax.tree.map(lambda a: jnp.stack([jnp.asarray(a)] * 2), (data, X))
    means = np.repeat([NEAR, FAR], 2).reshape(2, 2, 2)
    mixtures = Mixture(*map(jnp.float32, (means, np.full((2, 2), SD), WEIGHTS)))
    keys = jax.random.split(jax.random.key(0), 2)
    state = chains.start(mixtures, data, X, keys, **STATIC)
    for step in range(2):
        inputs = randomness(keys, step, length, X.dtype)
        window = chains.begin_window(state, TOWARDS_MODES, length, anneal=anneal and step == 0)
        assert (np.asarray(window.log_first) < -6).all() == (anneal and step == 0)
        window = chains.warm_up(window, 0, length, data, X, *inputs, serial=False, **STATIC)
        state = chains.tune(window, settings=TOWARDS_MODES, adapt_metric=False, retries=False)
    fixed, inputs = jnp.array([0]), randomness(keys, 2, TOWARDS_MODES.block, X.dtype)
    empty = chains.begin_block(state, X, fixed, TOWARDS_MODES)
    _, block = chains.draw(
        (state.chains, empty), 0, TOWARDS_MODES.block, state.coordinates, state.tuning,
        state.shift, data, X, fixed, *inputs, None, **STATIC,
    )  # fmt: skip
    return np.asarray(block.draws, float)


@pytest.mark.parametrize("anneal", [True, False])
def test_annealing_leaves_the_posterior_as_it_is_and_modes_apart_fail_r_hat(anneal):
    near, far = draws_of_mixtures(anneal=anneal)
    # Where chains cross, the shares of the modes are right, and so are the moments.
    middle = np.mean(NEAR)
    of_upper = WEIGHTS[0] @ stats.norm.sf((middle - np.array(NEAR)) * np.sqrt(2) / SD)
    numbers = np.stack([near.sum(2) > 2 * middle, near[..., 0], near[..., 0] ** 2], axis=2) * 1.0
    mean = WEIGHTS[0] @ np.array(NEAR)
    exact = [of_upper, mean, WEIGHTS[0] @ np.array(NEAR) ** 2 + SD**2]
    found = diagnose(numbers)
    assert np.nanmax(found.rhat) < 1.03
    assert (np.abs(numbers.mean((0, 1)) - exact) < 4 * found.mean_se).all()
    assert found.mean_se[0] < 0.015
    # Where they do not, some are in either, R-hat says so, and within a mode draws are right.
    is_upper = far[..., 0].mean(1) > 0
    assert 0 < is_upper.mean() < 1 and (np.sign(far) == np.sign(far[:, :1])).all()
    assert np.nanmax(diagnose(far).rhat) > 1.3
    within = np.abs(far) - FAR[0]
    assert np.abs(within.mean()) < 4 * np.nanmax(diagnose(within).mean_se)
    assert within.std() == pytest.approx(SD, rel=0.03)


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
