"""Digits: references on inputs far from zero are exact, and the gate finds where digits are lost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc import centring
from isounc.densities import on_device
from isounc.models import make_model
from isounc.problems import Problem
from isounc.references import linear_gaussian, logistic_by_quadrature
from isounc.sampling import coordinates, pseudo_observations, readout, sample_posterior
from isounc.sampling import posterior as sampling_posterior

PRIOR_SD, KEY = 10.0, jax.random.key(0)
YEARS = np.arange(1980.0, 2020.0)
TOO_COARSE = "single precision is not enough here: standardise the inputs or use float64"


def line(x, noise_sd):
    """A trend over inputs x."""
    t = (x - x.mean()) / x.std()
    y = 0.5 + 0.3 * t + noise_sd * np.random.default_rng(0).standard_normal(len(x))
    ends = x.mean() + np.ptp(x) * np.linspace(-1, 1, 9)
    return Problem.from_arrays(x[:, None], y, noise_sd=noise_sd, regions={"q": ends[:, None]})


def turn(x):
    """Labels that turn from 0 to 1 over inputs x."""
    t = (x - x.mean()) / x.std()
    y = (t + np.random.default_rng(1).logistic(size=len(x)) / 2 > 0).astype(int)
    ends = x.mean() + np.ptp(x) * np.linspace(-1, 1, 9)
    return Problem.from_arrays(x[:, None], y, regions={"q": ends[:, None]})


def two_columns():
    rng = np.random.default_rng(2)
    X = np.column_stack([YEARS, 300 + rng.standard_normal(40)])
    y = 0.01 * (X[:, 0] - 2000) + 0.2 * (X[:, 1] - 300) + 0.01 * rng.standard_normal(40)
    return Problem.from_arrays(X, y, noise_sd=0.01, regions={"q": X[::5] + np.array([[3.0, 1.0]])})


def sampled(problem, *, depth=0, **fields):
    model = make_model(problem, depth=depth, width=3)
    return sample_posterior(problem, model, prior_sd=PRIOR_SD, key=KEY, num_draws=2000, **fields)


@pytest.mark.parametrize(
    "problem",
    [
        line(YEARS, 0.003),
        line(1.6e9 + 86_400 * (YEARS - 1980), 0.003),
        line(1e7 * (YEARS - YEARS.mean()), 0.01),
        turn(YEARS),
        two_columns(),
    ],
    ids=["years", "Unix seconds", "wide", "classes", "two columns"],
)
def test_a_passed_reference_is_the_closed_form_wherever_the_inputs_are(problem):
    posterior = sampled(problem)
    assert posterior.gate.passed, posterior.gate.reasons
    assert float(posterior.gate.log_density_error or 1) < 0.1
    assert float(posterior.gate.prediction_error or 1) < 0.1
    solve = linear_gaussian if problem.noise_sd else logistic_by_quadrature
    exact = solve(problem, posterior.model, prior_sd=PRIOR_SD).regions["q"]
    moments = posterior.regions["q"]
    assert np.abs((moments.mean - exact.mean) / moments.mean_se).max() < 4.5
    assert np.abs((moments.var - exact.var) / moments.var_se).max() < 4.5
    # The draws are those of the model as it was given, as far as float64 can say.
    X = np.column_stack([problem.regions["q"], np.ones(len(moments.mean))])
    scale = np.append(np.full(X.shape[1] - 1, X.shape[1] - 1) ** -0.5, 1.0)
    f = X @ (scale * posterior.draws).T
    p = f if problem.noise_sd else 1 / (1 + np.exp(-f))
    sd = np.sqrt(exact.var[:, 0])
    assert np.abs((p.mean(1) - exact.mean[:, 0]) / sd).max() < 0.2


def former(problems, frame, prior_sd, keys):
    """Coordinates whitened in float32, at condition number 1e14."""
    kernels = coordinates.prior_kernels(on_device(frame.data), keys, model=frame.model)
    spectra = pseudo_observations.spectra_of(problems, kernels)
    directions, targets = (
        np.array([[getattr(o, name)[:8] for o in outputs] for outputs in spectra], np.float32)
        for name in ("directions", "target")
    )
    return readout.Readout(jnp.asarray(directions), jnp.asarray(targets))


def test_what_nothing_else_sees_fails_the_gate(monkeypatch):
    monkeypatch.setattr(centring, "OFF_CENTRE", np.inf)
    monkeypatch.setattr(sampling_posterior, "candidates", lambda _, *args: [former(*args)])
    posterior = sampled(line(YEARS, 0.003))
    gate = posterior.gate
    assert not gate.passed and all(TOO_COARSE in reason for reason in gate.reasons), gate.reasons
    # r is flat whatever theta is: the predictions show it.
    assert float(gate.prediction_error or 0) > 0.5
    assert TOO_COARSE in posterior.stopped
