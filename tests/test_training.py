"""Training without a prior: that it trains, reproduces, and says where it fails."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc import densities
from isounc.problems import Problem
from isounc.training import (
    TrainSettings,
    constant_log_likelihood,
    fit_trained,
    fit_trained_many,
)
from tests.test_fit import KEY, binary, model, problem

__all__ = ["model", "problem"]


TRAIN = TrainSettings(epochs=50, minibatch=8)


@pytest.fixture(scope="module")
def trained(problem, model):
    return fit_trained(problem, model, key=KEY, settings=TRAIN)


def test_settings_by_keyword_are_those_given_as_a_whole(problem, model, trained):
    by_keyword = fit_trained(problem, model, key=KEY, epochs=50, minibatch=8)
    np.testing.assert_array_equal(by_keyword.theta, trained.theta)


def test_training_reduces_the_loss(problem, model, trained):
    data = densities.make_data(problem, model, 1.0)
    # The start that fit_trained takes from this key.
    start = densities.log_likelihood(model, model.init(jax.random.split(KEY)[0]), data)
    assert trained.log_likelihood > float(start) + 1
    assert trained.log_likelihood > constant_log_likelihood(problem)
    assert trained.passed and trained.reasons == () and trained.kind == "trained"
    theta = jnp.asarray(trained.theta)
    value = float(densities.log_likelihood(model, theta, data))
    assert trained.log_likelihood == pytest.approx(value, rel=1e-5)
    assert trained.log_density == pytest.approx(float(densities.log_density(model, theta, data)))
    assert trained.hessian is trained.rel_grad_norm is trained.hessian_min_eigenvalue is None


def test_training_is_reproducible_and_depends_on_the_key(problem, model, trained):
    again = fit_trained(problem, model, key=KEY, settings=TRAIN)
    np.testing.assert_array_equal(again.theta, trained.theta)
    other = fit_trained(problem, model, key=jax.random.key(1), settings=TRAIN)
    assert not np.allclose(other.theta, trained.theta)


def test_training_several_is_as_training_each(problem, model, trained):
    many = fit_trained_many([binary(3), problem], model, keys=[KEY, KEY], settings=TRAIN)
    np.testing.assert_allclose(many[1].theta, trained.theta, rtol=1e-3, atol=1e-3)
    assert not np.allclose(many[0].theta, trained.theta)


@pytest.mark.parametrize(
    ("rate", "reason"), [(1e30, "not finite"), (1e3, "no better than a constant")]
)
def test_a_learning_rate_that_diverges_fails_with_a_reason(problem, model, rate, reason):
    settings = TrainSettings(epochs=3, minibatch=8, learning_rate=rate)
    result = fit_trained(problem, model, key=KEY, settings=settings)
    assert not result.passed and reason in result.reasons[0]


def test_constant_predictions():
    labels = Problem.from_arrays(np.arange(5.0)[:, None], [0, 0, 1, 1, 1])
    assert constant_log_likelihood(labels) == pytest.approx(2 * np.log(0.4) + 3 * np.log(0.6))
    three = Problem.from_arrays(np.arange(4.0)[:, None], [0, 1, 2, 2])
    assert constant_log_likelihood(three) == pytest.approx(2 * np.log(0.25) + 2 * np.log(0.5))
    y = np.array([1.0, 3.0])
    real = Problem.from_arrays(np.arange(2.0)[:, None], y, noise_sd=2.0)
    terms = -0.5 * (np.array([-1, 1]) / 2) ** 2 - np.log(2 * np.sqrt(2 * np.pi))
    assert constant_log_likelihood(real) == pytest.approx(terms.sum())


def test_settings_that_make_no_sense_are_refused(problem, model):
    with pytest.raises(ValueError, match="minibatch must be an integer of at least 1"):
        TrainSettings(minibatch=0)
    with pytest.raises(ValueError, match="learning_rate must be a positive"):
        TrainSettings(learning_rate=-1.0)
    with pytest.raises(ValueError, match=r"settings must be .*got both \(epochs\)"):
        fit_trained(problem, model, key=KEY, settings=TrainSettings(), epochs=2)
