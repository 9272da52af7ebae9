"""Log densities against scipy.stats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from isounc import densities
from isounc.models import Model
from isounc.problems import Problem

BINARY = Model(2, 1, "bernoulli", width=3)
CLASSES = Model(2, 3, "categorical", width=3)
REGRESSION = Model(2, 1, "gaussian", width=3)
MODELS = pytest.mark.parametrize("model", [BINARY, CLASSES, REGRESSION], ids=lambda m: m.likelihood)


def problem_of(model, n=7, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, model.in_features))
    if model.likelihood == "gaussian":
        return Problem.from_arrays(X, rng.normal(size=n), noise_sd=0.3)
    classes = max(2, model.out_features)
    return Problem.from_arrays(X, np.arange(n) % classes, likelihood=model.likelihood)


def point(model, seed=1):
    return np.random.default_rng(seed).normal(size=model.num_params)


def reference_log_lik(model, outputs, problem):
    if model.likelihood == "bernoulli":
        return stats.bernoulli.logpmf(problem.y, special.expit(outputs[:, 0]))
    if model.likelihood == "categorical":
        p = special.softmax(outputs, axis=1)
        return stats.multinomial.logpmf(np.eye(p.shape[1])[problem.y], 1, p)
    return stats.norm.logpdf(problem.y, outputs[:, 0], problem.noise_sd)


@MODELS
def test_log_densities_are_scipys(model, x64):
    problem, theta = problem_of(model), point(model)
    data = densities.make_data(problem, model, 1.7)
    outputs = np.asarray(model.apply(jnp.asarray(theta), data.X))
    terms = densities.log_likelihood_terms(model, jnp.asarray(outputs), data)
    expected = reference_log_lik(model, outputs, problem)
    np.testing.assert_allclose(terms, expected, rtol=1e-10)
    log_lik = densities.log_likelihood(model, jnp.asarray(theta), data)
    log_prior = densities.log_prior(jnp.asarray(theta), data)
    assert float(log_lik) == pytest.approx(expected.sum(), rel=1e-10)
    assert float(log_prior) == pytest.approx(stats.norm.logpdf(theta, 0, 1.7).sum(), rel=1e-12)
    both = densities.log_density(model, jnp.asarray(theta), data)
    assert float(both) == pytest.approx(float(log_lik + log_prior), rel=1e-12)


@MODELS
@pytest.mark.parametrize("n", [23, 24])
def test_the_log_likelihood_has_one_gradient_whichever_axis_comes_last(model, n, x64):
    # 3 units: the layout of the computation changes at 24 examples.
    data = densities.make_data(problem_of(model, n), model, 1.7)
    theta = jnp.asarray(point(model))

    def plain(theta):
        return densities.log_likelihood_terms(model, model.apply(theta, data.X), data).sum()

    def taken(theta):
        return densities.log_likelihood(model, theta, data)

    # Compiled as a whole, which takes less time than operation by operation.
    value, gradient = jax.jit(jax.value_and_grad(taken))(theta)
    expected, expected_gradient = jax.jit(jax.value_and_grad(plain))(theta)
    assert float(value) == pytest.approx(float(expected), rel=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


def test_log_prior_has_a_scale_for_each_parameter(x64):
    model = Model(4, 1, width=9, parameterisation="fan_in")
    theta = point(model)
    data = densities.make_data(problem_of(model), model, 1.5)
    sd = np.concatenate([np.full(36, 0.75), np.full(9, 1.5), np.full(9, 0.5), [1.5]])
    np.testing.assert_allclose(data.prior_sd, sd)
    assert float(densities.log_prior(jnp.asarray(theta), data)) == pytest.approx(
        stats.norm.logpdf(theta, 0, sd).sum(), rel=1e-12
    )


@MODELS
def test_data_come_in_jaxs_float_and_int32(model):
    problem = problem_of(model)
    data = densities.make_data(problem, model, 2.0)
    assert data.X.dtype == data.prior_sd.dtype == data.noise_sd.dtype == jnp.float32
    assert data.y.dtype == (jnp.float32 if model.likelihood == "gaussian" else jnp.int32)
    assert float(data.noise_sd) == pytest.approx(0.3 if model.likelihood == "gaussian" else 1.0)
    np.testing.assert_allclose(data.X, problem.X, rtol=1e-6)


def test_bad_prior_sd_is_refused():
    with pytest.raises(ValueError, match="prior_sd"):
        densities.make_data(problem_of(BINARY), BINARY, -1.0)


def test_data_of_problems_are_stacked_in_their_order():
    problems = [problem_of(CLASSES, seed=seed) for seed in range(3)]
    stacked = densities.stack_data(problems, CLASSES, 2.0)
    for i, problem in enumerate(problems):
        for ours, alone in zip(stacked, densities.make_data(problem, CLASSES, 2.0), strict=True):
            np.testing.assert_array_equal(ours[i], alone)
            assert ours.dtype == alone.dtype
    alone = densities.stack_data(problems[:1], CLASSES, 2.0)
    np.testing.assert_array_equal(alone.X[0], stacked.X[0])
    with pytest.raises(ValueError, match=r"X of one shape, got \(7, 2\) and \(8, 2\)"):
        densities.stack_data([*problems, problem_of(CLASSES, n=8)], CLASSES, 2.0)
    with pytest.raises(ValueError, match="use make_model"):
        densities.stack_data([problem_of(BINARY)], CLASSES, 2.0)
