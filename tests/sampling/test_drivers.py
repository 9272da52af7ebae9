"""Drivers: their rounds and forecasts, and one that is written outside of the package."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from isounc.models import make_model
from isounc.problems import Problem
from isounc.sampling import SamplerSettings, drivers, sample_posterior
from isounc.sampling.drivers import DRIVERS
from isounc.sampling.moments import Block
from isounc.sampling.run import DrawnBlocks, Driver, Forecast, fetch
from isounc.sampling.settings import SAMPLER_NAMES

PRIOR_SD = 1.5


def test_rounds_and_forecasts():
    settings = SamplerSettings(
        num_warmup=100, num_draws=250, max_draws=900, block=100, num_mutations=5, num_chains=3
    )
    assert all(isinstance(driver, Driver) for driver in DRIVERS.values())
    assert [name for name in DRIVERS if not DRIVERS[name].has_energy] == [
        "adjusted_mclmc",
        "tempered_smc",
    ]
    for name, driver in DRIVERS.items():
        # 250 draws are three blocks, which particles cannot leave before the last one.
        assert driver.blocks_per_round(settings) == (3 if name == "tempered_smc" else 1)
    assert DRIVERS["hmc"].forecast(settings, num_params=7) == Forecast(100 + 250, 0)
    smc = DRIVERS["tempered_smc"]
    forecast = smc.forecast(settings, num_params=7)
    # Five transitions of each at each of some eight temperatures.
    assert forecast.num_transitions == 8 * 5 * 250
    # 250 particles of 3 runs, 7 numbers each, with their gradients, and copies of both.
    assert forecast.num_floats == 250 * 3 * 7 * 2 * 2
    more = dataclasses.replace(settings, num_mutations=10)
    assert smc.forecast(more, num_params=7).num_transitions == 2 * forecast.num_transitions
    # check_modes moves 8 runs of 250 particles, by as many transitions of three chains.
    checked = dataclasses.replace(settings, check_modes=True, check_modes_up_to=7)
    assert drivers.forecast(settings, num_params=7) == Forecast(350, 0)
    assert drivers.forecast(checked, num_params=8) == Forecast(350, 0)
    both = drivers.forecast(checked, num_params=7)
    assert both == Forecast(350 + math.ceil(8 * 5 * 250 * 8 / 3), 250 * 8 * 7 * 2 * 2)
    everywhere = dataclasses.replace(checked, check_modes_up_to=0)
    assert drivers.forecast(everywhere, num_params=7) == both


class PriorDriver:
    """Independent draws of a prior, in rounds of two blocks: a model without data."""

    has_energy = False

    def blocks_per_round(self, settings):
        return 2

    def forecast(self, settings, *, num_params):
        return Forecast(settings.num_draws, 0)

    def draw(self, run):
        number, shape = 0, (1, run.settings.chains)
        shift, step_size = jnp.full((1, run.X.shape[1], 1), 0.5), jnp.ones(shape)
        while True:
            number += 1
            blocks = []
            for key in jax.random.split(jax.random.fold_in(run.run_keys[0], number), 2):
                x = jax.random.normal(key, (*shape, run.settings.block, run.model.num_params))
                theta = PRIOR_SD * x
                p = jax.vmap(jax.vmap(lambda t: run.model.predict(t, run.X[0])))(theta[0])
                moments = [p - 0.5, (p - 0.5) ** 2, p * (1 - p), p[..., 0]]
                counts = jnp.zeros(shape, int)
                block = Block(
                    *(m.mean(1)[None] for m in moments),
                    values=p[None, :, :, run.fixed, 0],
                    draws=theta,
                    energy=jnp.full(x.shape[:3], jnp.nan),
                    divergent=counts,
                    saturated=counts,
                    acceptance=jnp.ones(shape),
                    num_gradients=counts,
                )
                blocks.append(fetch(block))
            run.report("sampling", 2 * number * run.settings.block, 0)
            yield DrawnBlocks(blocks, shift, step_size)


@pytest.fixture
def registered():
    DRIVERS["prior"] = PriorDriver()
    SAMPLER_NAMES.append("prior")
    yield "prior"
    del DRIVERS["prior"]
    SAMPLER_NAMES.remove("prior")


def test_a_driver_from_outside_is_driven_in_whole_rounds_to_its_own_distribution(registered):
    problem = Problem.from_arrays(
        np.zeros((4, 1)), np.array([0, 1, 0, 1]), regions={"q": np.array([[0.5], [3.0]])}
    )
    model = make_model(problem, depth=0, parameterisation="standard")
    settings = SamplerSettings(
        # Three blocks and a budget of five, each to the next even number.
        sampler=registered, num_draws=300, max_draws=500, block=100, target_var_se=1e-6
    )  # fmt: skip
    calls = []
    posterior = sample_posterior(
        problem, model, prior_sd=PRIOR_SD, key=jax.random.key(0), settings=settings,
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    assert posterior.num_draws == 600 and posterior.stopped.startswith("budget of 600 draws")
    assert {done for what, done, _ in calls if what.startswith("sampling")} >= {200, 400, 600}
    assert posterior.gate.ebfmi_min is None and posterior.gate.divergences == 0
    # f = w x + b is N(0, PRIOR_SD^2 (x^2 + 1)) without data.
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    sd = PRIOR_SD * np.sqrt(problem.regions["q"][:, 0] ** 2 + 1)
    p = expit(sd[:, None] * nodes)
    mean = p @ weights / weights.sum()
    var = p**2 @ weights / weights.sum() - mean**2
    moments = posterior.regions["q"]
    z = [(moments.mean[:, 0] - mean) / moments.mean_se[:, 0]]
    z += [(moments.var[:, 0] - var) / moments.var_se[:, 0]]
    assert np.abs(z).max() < 4, z
