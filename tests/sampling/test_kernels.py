"""Transitions: the integrator, its energy error in float32, reports, metrics."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc.integrators import IntegratorState

from isounc.sampling.adaptation import count_draws, end_window, start_tuning
from isounc.sampling.integrator import Metric, splitting
from isounc.sampling.kernels import SAMPLERS, start_chains
from isounc.sampling.settings import SamplerSettings

KEY = jax.random.key(3)
SD = np.array([1.0, 2.0, 3.0])


def gaussian(x):
    """r of N(0, diag(1, 4, 9))."""
    return 0.5 * x @ x - 0.5 * ((x / SD) ** 2).sum()


def quartic(x):
    """r of a density that is not Gaussian, and couples neighbours."""
    return -0.25 * (x**4).sum() / x.size**0.5 - 0.3 * (x[1:] * jnp.sin(x[:-1])).sum()


def metric_of(num_params, rank, seed=0):
    rng = np.random.default_rng(seed)
    basis = (
        np.linalg.qr(rng.standard_normal((num_params, rank)))[0]
        if rank
        else np.zeros((num_params, 0))
    )
    return Metric(
        jnp.asarray(rng.uniform(0.5, 2, num_params)),
        jnp.asarray(basis),
        jnp.asarray(rng.uniform(0.2, 3, rank)),
    )


@pytest.mark.parametrize("rank", [0, 2])
def test_metric_is_its_own_inverse_mass(rank, x64):
    metric = metric_of(5, rank)
    sd, basis = np.diag(metric.sd), np.asarray(metric.basis)
    cov = sd @ (np.eye(5) + basis @ np.diag(np.asarray(metric.eigenvalues) - 1) @ basis.T) @ sd
    v = jnp.asarray(np.random.default_rng(1).standard_normal(5))
    np.testing.assert_allclose(metric.velocity(v), cov @ v, rtol=1e-12)
    np.testing.assert_allclose(metric.mass(metric.velocity(v)), v, rtol=1e-12)
    p = jax.vmap(lambda key: metric.momentum(key, v))(jax.random.split(KEY, 20_000))
    np.testing.assert_allclose(np.cov(p.T) @ cov, np.eye(5), atol=0.15)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_trajectory_turns_where_either_end_goes_back(rank, x64):
    """BlackJAX's rule: (M^-1 p_end) . (sum of the momenta less half of both ends') <= 0."""
    metric, rng = metric_of(5, rank), np.random.default_rng(2)
    sd, basis = np.diag(metric.sd), np.asarray(metric.basis)
    cov = sd @ (np.eye(5) + basis @ np.diag(np.asarray(metric.eigenvalues) - 1) @ basis.T) @ sd
    seen = set()
    for _ in range(60):
        left, right, others = rng.standard_normal((3, 5)) + rng.standard_normal(5)
        others *= 2 * rng.choice([-1, 1])
        between = others + 0.5 * (left + right)
        ends = bool(left @ cov @ between <= 0), bool(right @ cov @ between <= 0)
        turned = metric.turning(*map(jnp.asarray, (left, right, left + right + others)))
        assert bool(turned) is (ends[0] or ends[1])
        seen.add(ends)
    assert len(seen) == 4
    # At a right angle it has turned.
    if not rank:
        across = jnp.eye(5)
        assert metric.turning(across[0], across[1], 0.5 * (across[0] + across[1]) + across[1])
        assert metric.turning(across[1], across[0], 0.5 * (across[0] + across[1]) + across[1])


def begin(remainder, metric, x, p):
    value, gradient = jax.value_and_grad(remainder)(x)
    return IntegratorState(x, p, jnp.zeros((), x.dtype), (gradient, value))


def hamiltonian(remainder, metric, state):
    x, p = state.position, state.momentum
    return 0.5 * x @ x - remainder(x) + 0.5 * p @ metric.velocity(p)


@pytest.mark.parametrize("rank", [0, 2])
def test_splitting_is_reversible_keeps_volume_and_knows_its_error(rank, x64):
    rng, metric = np.random.default_rng(4), metric_of(4, rank)
    step = splitting(quartic, metric)
    state = begin(quartic, metric, *jnp.asarray(rng.standard_normal((2, 4))))
    there = step(step(state, 0.3), 0.3)
    error = hamiltonian(quartic, metric, there) - hamiltonian(quartic, metric, state)
    np.testing.assert_allclose(-there.logdensity, error, rtol=1e-9)
    assert abs(error) > 1e-4  # or nothing was compared
    back = step(step(there, -0.3), -0.3)
    np.testing.assert_allclose(back.position, state.position, atol=1e-12)
    np.testing.assert_allclose(back.logdensity, 0, atol=1e-12)

    def flow(z):
        out = step(begin(quartic, metric, z[:4], z[4:]), 0.3)
        return jnp.concatenate([out.position, out.momentum])

    z = jnp.concatenate([state.position, state.momentum])
    assert abs(jnp.linalg.det(jax.jacfwd(flow)(z)) - 1) < 1e-10


def test_steps_of_a_gaussian_in_its_metric_are_exact(x64):
    metric = Metric(jnp.asarray(SD), jnp.zeros((3, 0)), jnp.ones(0))
    state = begin(gaussian, metric, jnp.array([1.0, -2.0, 3.0]), jnp.array([0.5, 1.0, -0.2]))
    there = splitting(gaussian, metric)(state, np.pi / 2)
    # A quarter period exchanges position and momentum.
    np.testing.assert_allclose(there.position, metric.velocity(state.momentum), atol=1e-12)
    np.testing.assert_allclose(there.logdensity, 0, atol=1e-12)


def test_the_energy_error_survives_a_million_parameters_in_float32():
    def errors():
        size = 10**6
        rng = np.random.default_rng(0)
        x, p = (jnp.asarray(rng.standard_normal(size)) for _ in range(2))
        metric = Metric(jnp.ones(size), jnp.zeros((size, 0)), jnp.ones(0))

        def remainder(x):
            return -50 * (x[:1000].mean() - 0.5) ** 2

        @jax.jit
        def go(x, p):
            state = begin(remainder, metric, x, p)
            there = state
            for _ in range(4):
                there = splitting(remainder, metric)(there, 0.4)
            naive = hamiltonian(remainder, metric, there) - hamiltonian(remainder, metric, state)
            return -there.logdensity, naive

        return map(float, go(x, p))

    single, naive = errors()
    with jax.enable_x64(True):
        exact, _ = errors()
    assert abs(single - exact) < 1e-4
    assert abs(naive - exact) > 10 * abs(single - exact), "the difference of two sums would do"


@pytest.mark.parametrize("step_size", [0.0013, 0.02])
def test_rotations_keep_the_energy_over_thousands_of_steps_in_float32(step_size):
    # The error does not count what the rotation gains or loses: a cosine that is rounded to 1 - 3e-8
    # would cost half a nat in this many steps.
    size = 4000
    rng = np.random.default_rng(0)
    x, p = (jnp.asarray(rng.standard_normal(size)) for _ in range(2))
    metric = Metric(jnp.ones(size), jnp.zeros((size, 0)), jnp.ones(0))

    def remainder(x):
        return 0.0 * x[0]

    start = begin(remainder, metric, x, p)
    step = splitting(remainder, metric)
    end = jax.jit(
        lambda state: jax.lax.fori_loop(0, 4000, lambda _, state: step(state, step_size), state)
    )(start)

    def energy(state):
        x, p = np.asarray(state.position, float), np.asarray(state.momentum, float)
        return 0.5 * (x @ x + p @ p)

    assert abs(energy(end) - energy(start)) < 0.05 and end.logdensity == 0


def transitions(sampler, remainder, step_size, sd, x=None, **changes):
    """The chains and report of 500 transitions from a point, or of one from each of some points."""
    settings = SamplerSettings(sampler=sampler, trajectory_length=1.2, **changes)
    kernel = SAMPLERS[sampler]
    x = jnp.broadcast_to(jnp.array([1.0, 2.0, 0.0]), (500, 3)) if x is None else jnp.asarray(x)
    extra = kernel.begin(3, settings)
    tuning = start_tuning(3, x.dtype, settings, extra=extra)
    metric = tuning.metric._replace(sd=jnp.asarray(sd, x.dtype))
    tuning = tuning._replace(metric=metric, step_size=jnp.asarray(step_size, x.dtype))
    chains = start_chains(x, remainder)
    return jax.jit(
        lambda key: kernel.transition(key, chains, tuning, 0.5, remainder, settings)[:2]
    )(KEY)


@pytest.mark.parametrize("sampler", ["hmc", "nuts", "chees"])
def test_the_energy_is_the_one_that_the_momentum_was_drawn_into(sampler):
    chains, info = transitions(sampler, gaussian, 0.3, SD)
    kinetic = np.asarray(info.energy) - 1.0  # the potential at the start is (1 + 1) / 2
    # Half a chi-square of 3 degrees of freedom, whatever the metric.
    assert kinetic.min() > 0
    assert abs(kinetic.mean() - 1.5) < 5 * np.sqrt(1.5 / 500)
    assert abs(kinetic.var() - 1.5) < 0.5
    assert not np.any(info.divergent) and not np.any(info.saturated)
    np.testing.assert_allclose(chains.remainder, jax.vmap(gaussian)(chains.x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        chains.gradient, jax.vmap(jax.grad(gaussian))(chains.x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_stay_draws(sampler):
    x = (np.random.default_rng(6).standard_normal((4000, 3)) * SD).astype(np.float32)
    # The metric is not that of the density, and the steps are long enough for some to be refused.
    chains, info = transitions(sampler, gaussian, 0.9, np.ones(3), x)
    assert 0.5 < np.mean(info.acceptance) < 0.999 and not np.any(info.divergent)
    y = np.asarray(chains.x)
    for axis in range(3):
        assert abs(np.corrcoef(x[:, axis], y[:, axis])[0, 1]) < 0.95  # or nothing was tried
    np.testing.assert_allclose(y.mean(0) / SD, 0, atol=5 / np.sqrt(4000))
    np.testing.assert_allclose((y**2).mean(0) / SD**2, 1, atol=5 * np.sqrt(2 / 4000))
    np.testing.assert_allclose(chains.remainder, jax.vmap(gaussian)(chains.x), rtol=1e-4, atol=1e-4)
    gradient = jax.vmap(jax.grad(gaussian))(chains.x)
    np.testing.assert_allclose(chains.gradient, gradient, rtol=1e-4, atol=1e-4)


def test_microcanonical_steps_take_two_gradients_and_have_no_energy():
    _, info = transitions("adjusted_mclmc", gaussian, 0.0127, SD)
    assert set(np.asarray(info.num_gradients)) == {2 * 95}  # 1.2 in steps of at most 0.0127
    assert np.all(np.isnan(info.energy)) and not np.any(info.saturated)
    assert np.min(info.acceptance) > 0.99


def test_trees_cut_short_are_counted():
    # Steps of a hundredth never turn within two doublings; long ones do before the tenth.
    _, short = transitions("nuts", gaussian, 0.01, SD, max_tree_depth=2)
    assert np.all(short.saturated) and np.all(np.asarray(short.num_gradients) == 3)
    assert not np.any(transitions("nuts", gaussian, 0.3, SD)[1].saturated)


def test_hmc_goes_as_long_as_it_is_asked_to():
    _, info = transitions("hmc", gaussian, 0.25, SD)
    assert set(np.asarray(info.num_gradients)) == {5}  # 1.2 in steps of at most 0.25
    _, info = transitions("hmc", gaussian, 0.01, SD, max_integration_steps=7)
    assert set(np.asarray(info.num_gradients)) == {7}


def test_a_jump_into_the_wall_is_divergent_and_stays():
    chains, info = transitions("hmc", lambda x: -1e6 * jnp.exp(x[0]), 1.0, np.ones(3))
    assert np.all(info.divergent)
    np.testing.assert_array_equal(chains.x, np.broadcast_to([1.0, 2.0, 0.0], (500, 3)))


@pytest.mark.parametrize("kind", ["diagonal", "low_rank"])
def test_the_metric_comes_from_the_draws(kind):
    rng = np.random.default_rng(0)
    mixing = np.eye(6)
    if kind == "low_rank":
        mixing[:, 0] += 3 * np.ones(6) / np.sqrt(6)
    mixing[3] *= 2.5
    cov = mixing @ mixing.T
    draws = jnp.asarray(rng.standard_normal((4000, 6)) @ mixing.T, jnp.float32)
    settings = SamplerSettings(metric=kind, metric_rank=2)
    tuning = start_tuning(6, jnp.float32, settings)
    for some in jnp.split(draws, 100):
        tuning = count_draws(tuning, some)
    # Gradients of r = |x|^2 / 2 - x^T cov^-1 x / 2.
    gradients = draws - draws @ jnp.asarray(np.linalg.inv(cov), jnp.float32)
    metric = end_window(tuning, draws, gradients, settings).metric
    inverse_mass = np.stack([metric.velocity(e) for e in jnp.eye(6)])
    # Eigenvalues of what is left after whitening: 1 where the metric is the covariance. BlackJAX's
    # low-rank metric leaves those between 1/2 and 2 as they are.
    expected = cov if kind == "low_rank" else np.diag(np.diag(cov))
    left = np.linalg.eigvals(np.linalg.solve(expected, inverse_mass)).real
    bound = 2 if kind == "low_rank" else 1.25
    assert 1 / bound < left.min() and left.max() < bound, left
    assert (
        end_window(
            tuning, draws, gradients, dataclasses.replace(settings, metric="identity")
        ).metric.sd[3]
        == 1
    )
