"""Tempered sequential Monte Carlo: two modes against quadrature, temperatures, checkpoints."""

from __future__ import annotations

import dataclasses
import itertools
import re
import threading
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc.densities import stack_data
from isounc.models import make_model
from isounc.problems import Problem, make_problem
from isounc.sampling import clock, cores, parts, smc
from isounc.sampling.coordinates import COORDINATES, Prior
from isounc.sampling.posterior import sample_posterior, sample_posteriors
from isounc.sampling.settings import GateSettings, SamplerSettings
from isounc.sampling.smc_driver import mutate_all

KEY = jax.random.key(3)
PRIOR_SD, NOISE_SD = 2.0, 0.25
SETTINGS = SamplerSettings(
    sampler="tempered_smc", coordinates="prior", block=50, num_draws=400, max_draws=400,
    num_mutations=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def bump():
    """A bump that one hidden unit fits by one step: up at its left or down at its right."""
    X = np.linspace(-2, 2, 16)[:, None]
    y = (np.abs(X[:, 0]) < 1).astype(float)
    return Problem.from_arrays(
        X, y, noise_sd=NOISE_SD, regions={"q": np.linspace(-2, 2, 7)[:, None]}
    )


def bump_model(problem):
    return make_model(problem, width=1, parameterisation="standard")


def by_quadrature(problem):
    """Mean and variance of f = v tanh(w x + b) + c, whose v and c are Gaussian given (w, b)."""
    axis = np.linspace(-10, 10, 401)
    w, b = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))

    def features(x):
        hidden = np.tanh(x[:, 0] * w[:, None] + b[:, None])
        return np.stack([hidden, np.ones_like(hidden)], axis=2)

    phi, phi_q = features(problem.X), features(problem.regions["q"])
    precision = phi.transpose(0, 2, 1) @ phi / NOISE_SD**2 + np.eye(2)[None] / PRIOR_SD**2
    cov = np.linalg.inv(precision)
    projected = phi.transpose(0, 2, 1) @ problem.y / NOISE_SD**2
    readout = np.einsum("gij,gj->gi", cov, projected)
    log_weight = 0.5 * (projected * readout).sum(1) + 0.5 * np.linalg.slogdet(cov)[1]
    log_weight -= 0.5 * (w**2 + b**2) / PRIOR_SD**2
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    assert weight[(np.abs(w) > 9.9) | (np.abs(b) > 9.9)].sum() < 1e-4
    f = np.einsum("gni,gi->gn", phi_q, readout)
    within = np.einsum("gni,gij,gnj->gn", phi_q, cov, phi_q)
    mean = weight @ f
    return mean, weight @ (within + (f - mean[None]) ** 2)


def z_of(moments, truth):
    mean, var = truth
    return np.stack(
        [
            (moments.mean[:, 0] - mean) / moments.mean_se[:, 0],
            (moments.var[:, 0] - var) / moments.var_se[:, 0],
        ]
    )


def test_modes_have_their_mass_where_hmc_does_not_cross(bump):
    settings = dataclasses.replace(
        SETTINGS,
        block=100,
        num_draws=1000,
        max_draws=1000,
        target_acceptance=0.9,
        # In the corners of this posterior hmc diverges as well, once in some hundred transitions.
        gate=GateSettings(divergence_rate_max=0.01),
    )
    model, keys = bump_model(bump), list(jax.random.split(KEY))
    both = sample_posteriors([bump, bump], model, prior_sd=PRIOR_SD, keys=keys, settings=settings)
    truth = by_quadrature(bump)
    for posterior in both:
        assert posterior.gate.passed, posterior.gate.reasons
        assert posterior.gate.ebfmi_min is None
        z = z_of(posterior.regions["q"], truth)
        assert np.sqrt((z**2).mean()) < 2.5 and np.abs(z).max() < 4, z
        assert 0.6 < posterior.acceptance <= 1
        # Each of the 4000 particles took as many as any other of its run.
        assert posterior.num_gradients % 1000 == 0 and posterior.num_gradients > 40_000
        assert posterior.step_size.shape == (4,) and len(set(posterior.step_size)) == 4
        assert posterior.draws.shape == (1000, model.num_params)
    # Single numbers of so many may be equal by chance, two in a draw are not.
    assert not np.isin(both[0].draws, both[1].draws).all(1).any()
    hmc = sample_posterior(
        bump, model, prior_sd=PRIOR_SD, key=KEY,
        settings=dataclasses.replace(settings, sampler="hmc"),
    )  # fmt: skip
    assert any("R-hat" in reason for reason in hmc.gate.reasons)


@pytest.fixture(scope="module")
def particles(bump):
    """The particles of two problems, K = 4 runs each, at their start; and `temper` for them."""
    model = bump_model(bump)
    data = stack_data([bump, bump], model, PRIOR_SD)
    keys = jax.random.split(KEY)
    begun = smc.start(Prior(), data, keys, model=model, settings=SETTINGS, together=100)

    def temper(particles, serial=True, together=400):
        settings = dataclasses.replace(SETTINGS, num_mutations=2)
        particles = smc.reweigh(particles, keys, settings=settings)
        count = smc.num_moves(settings, together=together)
        assert count == 2 * (400 // together)
        given = (particles, Prior(), data, smc.mutation_keys(keys, settings))
        return mutate_all(
            given, 0, count, jnp.array([0.3, 0.9]), model=model, settings=settings, serial=serial,
            together=together,
        )  # fmt: skip

    return begun, temper


def test_the_next_temperature_keeps_the_share_asked_for(particles):
    begun, temper = particles
    assert begun.chains.x.shape == (2, 4, 400, 4) and not np.any(begun.temperature)
    moved = temper(begun)
    for b, k in np.ndindex(2, 4):
        weight = np.exp(float(moved.temperature[b, k]) * np.float64(begun.chains.remainder[b, k]))
        assert abs(weight.sum() ** 2 / (weight**2).sum() / 400 - 0.5) < 1e-3
    assert len(np.unique(moved.temperature)) == 8, "runs know nothing of each other"
    # Many are copies, but none still is one.
    assert all(
        len(np.unique(x, axis=0)) > 380 for x in np.asarray(moved.chains.x).reshape(8, 400, 4)
    )


def test_a_particle_without_a_likelihood_has_no_descendants(particles):
    begun, temper = particles
    lost = begun.chains.remainder.at[:, :, 7].set(jnp.nan)
    lost = begun._replace(chains=begun.chains._replace(remainder=lost))
    with_it, without = temper(begun), temper(lost)
    # One of 400: the temperature hardly moves, and as many particles as before survive.
    np.testing.assert_allclose(without.temperature, with_it.temperature, rtol=0.1)
    assert all(
        len(np.unique(x, axis=0)) > 380 for x in np.asarray(without.chains.x).reshape(8, 400, 4)
    )
    assert np.isfinite(without.chains.remainder).all() and without.divergent.mean() < 0.05


class Lost(NamedTuple):
    """Coordinates in which no point has a likelihood."""

    def start(self, z):
        return z

    def theta(self, x, model, data):
        return x

    def remainder(self, x, model, data):
        return jnp.nan * x.sum()


def test_no_likelihood_at_all_ends_in_a_clear_error(bump, monkeypatch):
    monkeypatch.setitem(COORDINATES, "prior", lambda *args: Lost())
    with pytest.raises(
        ValueError, match="finite at some particle of each run, got none at lambda 0"
    ):
        sample_posterior(bump, bump_model(bump), prior_sd=PRIOR_SD, key=KEY, settings=SETTINGS)


def test_a_temperature_that_does_not_rise_ends_in_a_clear_error(bump, monkeypatch):
    calls = []

    def stay(particles, *args, **settings):
        calls.append(1)
        assert len(calls) < 3, "this would go on for ever"
        return particles

    monkeypatch.setattr(smc, "reweigh", stay)
    with pytest.raises(ValueError, match=r"tempering_ess must be low enough.*got 0\.5 at lambda 0"):
        sample_posterior(bump, bump_model(bump), prior_sd=PRIOR_SD, key=KEY, settings=SETTINGS)


def test_a_block_reports_its_own_particles(particles, bump):
    begun, _ = particles
    rng, model = np.random.default_rng(7), bump_model(bump)
    begun = begun._replace(
        divergent=jnp.asarray(rng.random((2, 4, 400)) < 0.1),
        acceptance=jnp.asarray(rng.random((2, 4, 400)), jnp.float32),
        num_gradients=jnp.arange(8).reshape(2, 4),
    )
    data = stack_data([bump, bump], model, PRIOR_SD)
    X = jnp.stack([jnp.asarray(bump.regions["q"], jnp.float32)] * 2)
    block = smc.collect_block(
        begun, Prior(), data, X, jnp.array([2, 5]), jnp.zeros((2, 7, 1)), 100, model=model,
        settings=SETTINGS,
    )  # fmt: skip
    part = slice(100, 150)
    np.testing.assert_array_equal(block.divergent, begun.divergent[:, :, part].sum(2))
    np.testing.assert_allclose(block.acceptance, begun.acceptance[:, :, part].mean(2), rtol=1e-5)
    np.testing.assert_array_equal(block.num_gradients, 50 * np.arange(8).reshape(2, 4))
    np.testing.assert_array_equal(block.position, begun.chains.x[:, :, 149])
    np.testing.assert_array_equal(block.log_density, begun.chains.remainder[:, :, 149])
    np.testing.assert_array_equal(block.saturated, np.zeros((2, 4)))
    assert block.energy.shape == (2, 4, 50) and np.isnan(block.energy).all()
    theta = PRIOR_SD * begun.chains.x[:, :, part].reshape(-1, 4)
    f = jax.jit(jax.vmap(lambda theta: model.predict(theta, X[0])))(theta).reshape(2, 4, 50, 7, 1)
    np.testing.assert_allclose(block.values[..., 0], f[:, :, :, 2, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(block.values[..., 1], f[:, :, :, 5, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(block.shifted_mean, f.mean(2), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(block.shifted_square, (f**2).mean(2), rtol=1e-4, atol=1e-5)


def test_r_and_its_gradient_stay_those_of_the_particles(particles, bump):
    begun, temper = particles
    moved = temper(temper(begun))
    assert np.all((moved.temperature > 0) & (moved.temperature < 1))
    data = stack_data([bump], bump_model(bump), PRIOR_SD)
    first = jax.tree.map(lambda a: a[0], data)

    def remainder(x):
        return Prior().remainder(x, bump_model(bump), first)

    r, gradient = jax.vmap(jax.value_and_grad(remainder))(moved.chains.x[0, 0])
    np.testing.assert_allclose(moved.chains.remainder[0, 0], r, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(moved.chains.gradient[0, 0], gradient, rtol=1e-3, atol=1e-2)


def test_the_last_temperature_is_one(particles):
    begun, temper = particles
    # At 0.999 all weights are almost equal, and nothing but the end keeps lambda from going on.
    last = temper(begun._replace(temperature=jnp.full_like(begun.temperature, 0.999)))
    np.testing.assert_allclose(last.temperature, 1, rtol=1e-6)
    np.testing.assert_allclose(temper(last).temperature, 1, rtol=1e-6)


def test_runs_one_by_one_are_those_side_by_side(particles):
    begun, temper = particles
    apart, beside = temper(begun), temper(begun, serial=False)
    # But for rounding, which few trajectories let grow.
    error = np.abs(np.asarray(apart.chains.x - beside.chains.x)).max(-1)
    assert np.mean(error > 1e-3) < 0.02
    np.testing.assert_array_equal(apart.num_gradients, beside.num_gradients)


def test_particles_moved_in_parts_come_from_the_same_distribution(particles):
    begun, temper = particles
    whole, parts = temper(begun), temper(begun, together=50)
    np.testing.assert_array_equal(whole.temperature, parts.temperature)
    assert np.asarray(parts.acceptance).shape == (2, 4, 400)
    difference = np.asarray(whole.chains.x.mean((0, 1, 2)) - parts.chains.x.mean((0, 1, 2)))
    assert np.abs(difference).max() < 5 * np.sqrt(2 * 4 / 3200)


def moons_problem():
    return make_problem("moons", n=12, num_test=5, num_far=5, grid_size=3, seed=0)


def sampled(settings=SETTINGS, checkpoint=None, progress=None):
    moons = moons_problem()
    return sample_posterior(
        moons, make_model(moons, width=3), prior_sd=1.0, key=KEY, settings=settings,
        keep_values=True, checkpoint=checkpoint, progress=progress,
    )  # fmt: skip


def assert_same_bits(a, b):
    assert a.gate == b.gate and a.stopped == b.stopped and a.num_gradients == b.num_gradients
    np.testing.assert_array_equal(a.draws, b.draws)
    np.testing.assert_array_equal(a.step_size, b.step_size)
    for region in a.regions:
        np.testing.assert_array_equal(a.values[region], b.values[region])
        for left, right in zip(a.regions[region], b.regions[region], strict=True):
            np.testing.assert_array_equal(left, right)


class Killed(Exception):
    pass


SEVERAL = dataclasses.replace(
    # No precision will do: three rounds of two blocks, of which the last exceeds the budget.
    SETTINGS, num_draws=80, max_draws=250, num_mutations=3, target_var_se=1e-6
)  # fmt: skip


@pytest.fixture(scope="module")
def several():
    """Three rounds, and all that was told of them."""
    calls = []
    return sampled(SEVERAL, progress=lambda *call: calls.append(call)), calls


def test_rounds_are_appended_and_told(several):
    whole, calls = several
    assert whole.num_draws == 300 and whole.values["test"].shape == (4, 300, 5, 1)
    ends = {done for what, done, _ in calls if what.startswith("sampling")}
    assert ends >= {100, 200, 300} and {total for *_, total in calls[1:]} == {300}
    tempered = [what for what, *_ in calls if "lambda" in what]
    assert re.fullmatch(r"tempering to lambda 0 \(0%, \d+ s\)", tempered[0])
    assert re.fullmatch(r"tempering to lambda 1 \(100%, \d+ s\)", tempered[-1])
    assert whole.stopped.startswith("budget of 300 draws")
    rounds = [
        set(map(tuple, values.reshape(-1, 5)))
        for values in np.split(whole.values["test"], 3, axis=1)
    ]
    assert not rounds[0] & rounds[1], "each round has particles of its own"


def test_a_killed_round_goes_on_within_a_temperature_to_the_same_bits(
    tmp_path, several, monkeypatch
):
    for name in ("SECONDS", "TELL_EVERY", "SAVE_EVERY"):
        monkeypatch.setattr(parts, name, 0.0)

    def die(what, done, total):
        # After the second of 3 mutations, when the first is stored.
        if done == 100 and "(67%" in what and "lambda 1" not in what:
            raise Killed

    with pytest.raises(Killed):
        sampled(SEVERAL, tmp_path / "run", die)
    assert (tmp_path / "run" / "part-00001.npz").exists()
    monkeypatch.undo()
    calls = []
    again = sampled(SEVERAL, tmp_path / "run", lambda *call: calls.append(call))
    assert {done for what, done, _ in calls if what.startswith("sampling")} >= {200, 300}
    assert_same_bits(again, several[0])
    longer = dataclasses.replace(SEVERAL, max_draws=400)
    assert_same_bits(sampled(longer, tmp_path / "run"), sampled(longer))


def test_rounds_without_time_or_after_an_interrupt(tmp_path, several, monkeypatch):
    whole, _ = several
    monkeypatch.setattr(parts, "SECONDS", 0.0)
    monkeypatch.setattr(parts, "TELL_EVERY", 0.0)

    def stop(what, done, total):
        if done == 100 and "(67%" in what:
            raise KeyboardInterrupt

    first = sampled(SEVERAL, tmp_path / "run", stop)
    assert (tmp_path / "run" / "part-00001.npz").exists(), "moves of the next round are kept"
    assert first.stopped.startswith("interrupted after 100 draws a chain: gate failed")
    np.testing.assert_array_equal(first.values["far"], whole.values["far"][:, :100])

    def stop_at_once(what, done, total):
        if "lambda" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampled(SEVERAL, progress=stop_at_once)
    # A clock that goes on whenever somebody looks at it.
    readings = itertools.count()
    fake = types.SimpleNamespace(monotonic=lambda: float(next(readings)))
    monkeypatch.setattr(clock, "time", fake)
    cut = sampled(dataclasses.replace(SEVERAL, max_seconds=12))
    assert cut.stopped.startswith("budget of 12 seconds spent after 100 draws a chain: gate failed")
    assert any(
        re.match(
            r"the time was spent before .* to the posterior \(on the way to lambda [\d.]+\)", reason
        )
        for reason in cut.gate.reasons
    )


def test_no_bit_depends_on_the_number_of_threads(several, monkeypatch):
    threads, mutate = set(), smc.mutate

    def seen(*args, **kwargs):
        threads.add(threading.get_ident())
        return mutate(*args, **kwargs)

    monkeypatch.setattr(smc, "mutate", seen)
    for count in (1, 3):
        monkeypatch.setattr(cores, "num_threads", lambda count=count: count)
        threads.clear()
        assert_same_bits(sampled(SEVERAL), several[0])
        assert (len(threads) > 1) == (count > 1)


def test_streamed_moments_are_those_of_the_kept_values():
    posterior = sampled(dataclasses.replace(SETTINGS, num_draws=100, max_draws=100, num_kept=50))
    values, moments = np.asarray(posterior.values["test"], float), posterior.regions["test"]
    np.testing.assert_allclose(moments.mean, values.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(moments.var, values.var((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(moments.aleatoric, (values * (1 - values)).mean((0, 1)), rtol=1e-4)
    # What a float64 check compares: positions, their log posterior and predictions.
    assert float(posterior.gate.log_density_error or 1) < 1e-3
    assert float(posterior.gate.prediction_error or 1) < 1e-3
    # A particle counts the gradients of its start and of its moves.
    assert posterior.num_gradients % 100 == 0 and 0 < posterior.acceptance <= 1
    # Every fifth particle of a run is kept, the largest divisor of a block that keeps enough, and
    # 48 / 4 of them are handed out.
    moons = moons_problem()
    predict = jax.jit(jax.vmap(make_model(moons, width=3).predict, (0, None)))
    expected = values[:, 4::5][:, np.linspace(0, 19, 12).round().astype(int)]
    np.testing.assert_allclose(
        predict(posterior.draws, moons.regions["test"]), expected.reshape(48, 5, 1), rtol=1e-4
    )
    batches = values.reshape(4 * 2, 50, 5, 1).mean(1)
    np.testing.assert_allclose(moments.mean_se, batches.std(0, ddof=1) / np.sqrt(8), rtol=1e-3)
