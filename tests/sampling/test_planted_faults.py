"""Faults planted in the posterior or the sampler: the exact answer or the gate must catch each.

The posterior is that of a logistic regression with slope and bias, integrated by the trapezoid
rule.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc import densities
from isounc.models import Model, make_model
from isounc.problems import Problem
from isounc.sampling import register_sampler
from isounc.sampling.coordinates import Prior
from isounc.sampling.drivers import DRIVERS
from isounc.sampling.kernels import HMC, SAMPLERS
from isounc.sampling.posterior import sample_posterior
from isounc.sampling.settings import SAMPLER_NAMES, SamplerSettings

PRIOR_SD = 1.5


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((12, 1))
    y = (X[:, 0] + rng.logistic(size=12) * 0.7 > 0).astype(int)
    return Problem.from_arrays(X, y, regions={"q": np.linspace(-4, 4, 17)[:, None]})


@pytest.fixture(scope="module")
def truth(problem):
    """Mean and variance of p at the locations."""
    axis = np.linspace(-9, 9, 301)
    w, b = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))
    f = w * problem.X + b
    log_density = -np.logaddexp(0, (1 - 2 * problem.y[:, None]) * f).sum(0)
    log_density -= 0.5 * (w**2 + b**2) / PRIOR_SD**2
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    p = 1 / (1 + np.exp(-(w * problem.regions["q"] + b)))
    mean = p @ weight
    return mean, (p - mean[:, None]) ** 2 @ weight


def sampled(problem, sampler="hmc", number=0):
    # A number of kept draws that nobody else uses: programs compiled with a fault are never reused.
    settings = SamplerSettings(
        sampler=sampler, num_chains=8, num_draws=2000, max_draws=2000, coordinates="prior",
        block=500, num_kept=1001 + number,
    )  # fmt: skip
    model = make_model(problem, depth=0, parameterisation="standard")
    return sample_posterior(
        problem,
        model,
        prior_sd=PRIOR_SD,
        key=jax.random.key(5),
        settings=settings,
        keep_values=True,
    )


def largest_z(posterior, truth):
    """The largest |z| of means and variances."""
    moments = posterior.regions["q"]
    z = [(moments.mean[:, 0] - truth[0]) / moments.mean_se[:, 0]]
    z += [(moments.var[:, 0] - truth[1]) / moments.var_se[:, 0]]
    return np.abs(z).max()


def mean_likelihood(monkeypatch):
    summed = densities.log_likelihood
    monkeypatch.setattr(densities, "log_likelihood", lambda m, t, d: summed(m, t, d) / len(d.y))


def tempered(monkeypatch):
    summed = densities.log_likelihood
    monkeypatch.setattr(densities, "log_likelihood", lambda m, t, d: summed(m, t, d) / 1.1)


def sd_as_variance(monkeypatch):
    right = Model.param_prior_sd
    monkeypatch.setattr(Model, "param_prior_sd", lambda self, sd: np.sqrt(right(self, sd)))


def missing_half(monkeypatch):
    right = Prior.remainder
    monkeypatch.setattr(
        Prior, "remainder", lambda self, x, m, d: right(self, x, m, d) - 0.5 * x @ x
    )


def no_prior_on_biases(monkeypatch):
    right = Prior.remainder
    monkeypatch.setattr(
        Prior, "remainder", lambda self, x, m, d: right(self, x, m, d) + 0.499 * x[-1] ** 2
    )


def test_without_a_fault_the_answer_is_exact(problem, truth):
    posterior = sampled(problem)
    assert posterior.gate.passed, posterior.gate.reasons
    assert largest_z(posterior, truth) < 4


@pytest.mark.parametrize(
    "fault", [mean_likelihood, tempered, sd_as_variance, missing_half, no_prior_on_biases]
)
def test_a_wrong_posterior_is_caught_by_the_exact_answer(monkeypatch, problem, truth, fault):
    fault(monkeypatch)
    posterior = sampled(problem, number=1 + len(fault.__name__))
    assert largest_z(posterior, truth) > 6
    # The gate asks the densities, and so knows of what is no fault of theirs.
    if fault in (missing_half, no_prior_on_biases):
        assert not posterior.gate.passed and float(posterior.gate.log_density_error or 0) > 0.1


class OneChainStands(HMC):
    """The first chain never moves."""

    def transition(self, key, chains, tuning, u, remainder, settings):
        new, info, proposal = super().transition(key, chains, tuning, u, remainder, settings)
        new = jax.tree.map(lambda a, b: a.at[0].set(b[0]), new, chains)
        return new, info, proposal


class OneKeyForTwo(HMC):
    """The second chain is a copy of the first."""

    def transition(self, key, chains, tuning, u, remainder, settings):
        new, info, proposal = super().transition(key, chains, tuning, u, remainder, settings)
        new = jax.tree.map(lambda a: a.at[1].set(a[0]), new)
        return new, info, proposal


class OneChainDiverges(HMC):
    """The first chain takes steps far too long."""

    def transition(self, key, chains, tuning, u, remainder, settings):
        def steep(x):
            return remainder(x) - 1e8 * jnp.sum(x**4)

        new, info, proposal = super().transition(key, chains, tuning, u, remainder, settings)
        wrong, told, _ = super().transition(key, chains, tuning, u, steep, settings)
        new, info = jax.tree.map(lambda a, b: a.at[0].set(b[0]), (new, info), (wrong, told))
        return new, info, proposal


@pytest.fixture
def registered():
    """Register samplers under their class's name for one test."""
    names = []

    def register(sampler):
        names.append(type(sampler).__name__)
        register_sampler(names[-1], sampler)
        return names[-1]

    yield register
    for name in names:
        del SAMPLERS[name], DRIVERS[name]
        SAMPLER_NAMES.remove(name)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (OneChainStands(), r"stands still \(chain index 0\)"),
        (OneKeyForTwo(), r"same draws \(chain indices 0 and 1\)"),
        (OneChainDiverges(), "diverged"),
    ],
)
def test_a_sick_chain_is_caught_by_the_gate(registered, problem, fault, reason):
    gate = sampled(problem, sampler=registered(fault)).gate
    assert not gate.passed
    assert any(re.search(reason, sentence) for sentence in gate.reasons), gate.reasons
