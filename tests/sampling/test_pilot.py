"""Pilots: what a transition is worth, what is taken, and when nothing is tried."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from isounc.models import Model, make_model
from isounc.problems import Problem
from isounc.sampling import SamplerSettings, coordinates, pilot, readout, sample_posterior
from isounc.sampling.clock import TimeIsUp

pytestmark = pytest.mark.usefixtures("optimized")
SETTINGS = SamplerSettings(num_warmup=80, num_draws=40, max_draws=40, block=20)
KEY = jax.random.key(3)


@pytest.fixture
def sharp():
    """Data that say far more than the prior, and a narrow network."""
    rng = np.random.default_rng(0)
    X = np.linspace(-1, 1, 30)[:, None]
    problem = Problem.from_arrays(
        X, np.sin(3 * X[:, 0]) + 0.02 * rng.standard_normal(30), noise_sd=0.02,
        regions={"line": np.linspace(-1.5, 1.5, 9)[:, None]},
    )  # fmt: skip
    return problem, make_model(problem, width=3)


def sampled(sharp, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return sample_posterior(*sharp, prior_sd=2.0, key=KEY, settings=settings)


def test_what_a_transition_is_worth_is_that_of_an_autoregression():
    rng = np.random.default_rng(1)
    chains = []
    for rho in (0.0, 0.6, 0.95):
        x = rng.standard_normal((1, 200, 5))
        steps = [x]
        for _ in range(29):
            x = rho * x + math.sqrt(1 - rho**2) * rng.standard_normal(x.shape)
            steps.append(x)
        chains.append(7 + 1e-3 * np.stack(steps, axis=2))
    worths = pilot.draws_per_transition(chains)
    # 200 chains of 30 draws at 5 locations: 3% is ten standard errors of each mean square.
    expected = [1.0, 0.25, 0.05 / 1.95]
    np.testing.assert_allclose(worths, expected, rtol=0.06)


def test_locations_without_variance_say_nothing():
    rng = np.random.default_rng(1)
    drawn = rng.standard_normal((2, 4, 12, 3))
    both = [drawn, drawn[:, :, ::2]]
    still = [np.concatenate([d, np.full((*d.shape[:3], 1), 0.3)], axis=3) for d in both]
    np.testing.assert_allclose(pilot.draws_per_transition(still), pilot.draws_per_transition(both))
    assert pilot.draws_per_transition([np.ones((1, 4, 12, 3))] * 2) == [1.0, 1.0]
    # One that stands still where another moves is worth nothing.
    assert pilot.draws_per_transition([np.zeros((1, 4, 12, 3)), drawn[:1]])[0] == 0


@pytest.mark.parametrize("cheap", ["prior", "readout"])
def test_the_candidate_with_most_draws_per_second_is_taken(cheap, sharp, monkeypatch):
    monkeypatch.setattr(pilot, "SHARE", math.inf)
    monkeypatch.setattr(pilot, "gradient_seconds", lambda c, *_: 1.0 if c.name == cheap else 1e6)
    posterior = sampled(sharp)
    assert [trial.coordinates for trial in posterior.trials] == ["prior", "readout"]
    assert posterior.coordinates == cheap
    for trial in posterior.trials:
        assert 0 < trial.draws_per_transition <= 1 and trial.num_gradients >= 1
        worth = trial.draws_per_transition / trial.num_gradients
        seconds = 1.0 if trial.coordinates == cheap else 1e6
        assert trial.draws_per_second == pytest.approx(worth / seconds)
    assert sampled(sharp).trials == posterior.trials, "the key decides"
    chosen = sampled(sharp, coordinates=cheap)
    np.testing.assert_array_equal(posterior.draws, chosen.draws, "a pilot leaves no trace")


def test_nothing_is_tried_where_the_run_is_short_or_there_is_no_choice(sharp, monkeypatch):
    short = sampled(sharp)
    assert (short.coordinates, short.trials) == ("prior", ())
    monkeypatch.setattr(pilot, "SHARE", math.inf)
    monkeypatch.setattr(coordinates, "SHARP", math.inf)
    blunt = sampled(sharp)
    assert (blunt.coordinates, blunt.trials) == ("prior", ())


def test_the_sampler_is_tried_too_and_leaves_no_trace(sharp, monkeypatch):
    monkeypatch.setattr(pilot, "SHARE", math.inf)
    judge = pilot.draws_per_transition
    monkeypatch.setattr(
        pilot, "draws_per_transition", lambda values: [*judge(values)[:-1], 1e6][: len(values)]
    )
    posterior = sampled(sharp, sampler="auto", coordinates="prior")
    tried = [(trial.sampler, trial.coordinates, trial.metric) for trial in posterior.trials]
    assert tried == [("hmc", "prior", "diagonal"), ("adjusted_mclmc", "prior", "diagonal")]
    assert posterior.sampler == "adjusted_mclmc"
    chosen = sampled(sharp, sampler="adjusted_mclmc", coordinates="prior")
    np.testing.assert_array_equal(posterior.draws, chosen.draws)


def test_pilots_take_no_more_than_their_share(sharp, monkeypatch):
    monkeypatch.setattr(pilot, "gradient_seconds", lambda *_: 1.0)
    monkeypatch.setattr(pilot, "SHARE", math.inf)
    gradients = 4 * sampled(sharp).trials[0].num_gradients
    # Of all 120 transitions of the run: a window of 20 short ones and 8 draws, twice.
    pilots, run = 2 * (20 * pilot.SHORT + 8) * gradients, 120 * gradients
    monkeypatch.setattr(pilot, "COMPILATION", 0.4 * run - pilots)
    for share, count in ((0.401, 2), (0.399, 0)):
        monkeypatch.setattr(pilot, "SHARE", share)
        assert len(sampled(sharp).trials) == count


def test_seconds_limit_pilots_and_those_that_ended_decide(sharp, monkeypatch):
    limits, real = [], pilot._pilot

    def stand_in(way, until):
        limits.append(until)
        if len(limits) == 2:
            raise TimeIsUp
        return real(way, math.inf)

    monkeypatch.setattr(pilot, "_pilot", stand_in)
    monkeypatch.setattr(pilot, "COMPILATION", 0.0)
    monkeypatch.setattr(pilot, "gradient_seconds", lambda *_: 1.0)
    posterior = sampled(sharp, max_seconds=900.0, num_warmup=300)
    assert (posterior.coordinates, posterior.trials) == ("prior", ())
    first, second = limits
    assert first == second and 90 <= first < 180, "a tenth of the seconds, and those before"
    del limits[:]
    sampled(sharp, max_seconds=70.0, coordinates="auto")
    assert 20 <= limits[0] <= 70


def test_the_forecast_of_a_gradient_grows_with_what_is_factored():
    model = Model(2, 1, width=8)
    narrow = readout.NarrowReadout(np.ones((1, 1, 100)), np.ones((1, 1, 100)))  # pyright: ignore
    few = readout.Readout(np.ones((1, 1, 8, 100)), np.ones((1, 1, 8)))  # pyright: ignore
    plain = pilot.gradient_seconds(coordinates.Prior(), model, 100)
    assert plain == pytest.approx(2e-6 + 2.6e-10 * 100 * 33)
    rows = pilot.gradient_seconds(narrow, model, 100)
    assert rows == pytest.approx(plain + 15e-6 + 1e-10 * (6 * 100 * 81 + 10 * 729))
    rank = pilot.gradient_seconds(few, model, 100)
    assert rank == pytest.approx(plain + 15e-6 + 1e-10 * (6 * 8 * 9 * 108 + 10 * 512))
