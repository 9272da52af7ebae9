"""Training without a prior: that it trains, reproduces, and says where it fails."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from isounc import densities
from isounc.problems import Problem
from isounc.training import (
    TrainSettings,
    _split,
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


STOP = TrainSettings(epochs=60, minibatch=8, learning_rate=0.2, patience=4, validation_share=0.3)


def test_early_stopping_is_a_plain_loop(problem, model):
    """The same steps, one after the other, with a loss that is written out here."""
    held, order = _split(KEY, len(problem.X), STOP)
    assert len(held) == 10 and order.shape == (60, 2, 8)  # 22 examples: two steps, six left out
    for rows in order.reshape(60, -1):
        assert len(set(rows)) == 16 and not set(rows) & set(held)
    assert len({*held, *order.ravel()}) == 32
    adamw = optax.adamw(STOP.learning_rate, weight_decay=STOP.weight_decay)
    X, y = jnp.asarray(problem.X, jnp.float32), jnp.asarray(problem.y)

    @jax.jit
    def loss(theta, rows):
        logits = model.apply(theta, X[rows])[:, 0]
        return optax.sigmoid_binary_cross_entropy(logits, y[rows]).mean()

    gradient = jax.jit(jax.grad(loss))
    theta = model.init(KEY)
    state = adamw.init(theta)
    losses, thetas = [float(loss(theta, held))], [theta]
    while len(losses) <= STOP.epochs and len(losses) - 1 - int(np.argmin(losses)) < STOP.patience:
        for rows in order[len(losses) - 1]:
            updates, state = adamw.update(gradient(theta, rows), state, theta)
            theta = optax.apply_updates(theta, updates)
        losses.append(float(loss(theta, held)))
        thetas.append(theta)
    best = int(np.argmin(losses))
    assert 0 < best and len(losses) - 1 == best + STOP.patience < STOP.epochs  # it does stop early
    stopped = fit_trained(problem, model, key=KEY, settings=STOP)
    np.testing.assert_allclose(stopped.theta, thetas[best], rtol=1e-3, atol=1e-4)
    assert stopped.kind == "stopped" and stopped.passed
    whole = -32 * float(loss(thetas[best], np.arange(32)))
    assert stopped.log_likelihood == pytest.approx(whole, rel=1e-3)


def test_early_stopping_of_several_is_that_of_each(problem, model):
    """They stop at different epochs, in one program."""
    problems, keys = [binary(3), problem], [jax.random.key(5), KEY]
    many = fit_trained_many(problems, model, keys=keys, settings=STOP)
    for i in (0, 1):
        alone = fit_trained(problems[i], model, key=keys[i], settings=STOP)
        np.testing.assert_allclose(many[i].theta, alone.theta, rtol=1e-3, atol=1e-3)


def test_early_stopping_needs_something_to_hold_out(problem, model):
    for share, count in ((0.001, 1), (0.999, 31)):
        settings = dataclasses.replace(STOP, validation_share=share)
        held, order = _split(KEY, 32, settings)
        assert len(held) == count and order.shape[2] == min(8, 32 - count)
    with pytest.raises(ValueError, match="two examples or more to hold one out"):
        _split(KEY, 1, STOP)
    for share in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="validation_share must be"):
            TrainSettings(validation_share=share)
    with pytest.raises(ValueError, match="patience must be an integer of at least 0"):
        TrainSettings(patience=-1)
    diverged = fit_trained(
        problem, model, key=KEY, epochs=3, minibatch=8, learning_rate=1e30, patience=2
    )
    assert np.isfinite(diverged.theta).all()  # a loss that is no number is not the least


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
