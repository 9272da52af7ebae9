"""Log densities against scipy.stats; links, entropies and curvature against float64 and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from isounc import densities
from isounc.densities import Data
from isounc.models import Model
from isounc.problems import Problem

BINARY = Model(2, 1, "bernoulli", width=3)
CLASSES = Model(2, 3, "categorical", width=3)
REGRESSION = Model(2, 1, "gaussian", width=3)
MODELS = pytest.mark.parametrize("model", [BINARY, CLASSES, REGRESSION], ids=lambda m: m.likelihood)

SATURATED = np.array([-80.0, -30, -17, -4, 0, 0.5, 17, 30, 80])[:, None]
"""Logits where p or 1 - p is far below float32's epsilon."""
SATURATED_CLASSES = np.array(
    [[0.0, 0, 0], [30, 0, -5], [-5, 30, 0], [20, 19, -60], [80, -80, 0], [1030, 1000, 1001]]
)


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


def labelled(y):
    zeros = jnp.zeros((len(y), 2))
    return Data(zeros, jnp.asarray(y, jnp.int32), jnp.ones(()), jnp.ones(1))


@pytest.mark.parametrize("label", [0, 1])
def test_binary_log_likelihood_and_its_gradient_keep_their_digits_in_float32(label):
    data = labelled(np.full(len(SATURATED), label))
    outputs = jnp.asarray(SATURATED, jnp.float32)

    def terms(f):
        return densities.log_likelihood_terms(BINARY, f, data)

    f = SATURATED[:, 0] * (1 if label else -1)
    np.testing.assert_allclose(terms(outputs), special.log_expit(f), rtol=1e-5)
    gradient = jax.grad(lambda f: terms(f).sum())(outputs)[:, 0]
    expected = (1 if label else -1) * special.expit(-f)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_categorical_log_likelihood_in_float32():
    expected = special.log_softmax(SATURATED_CLASSES, axis=1)
    for label in range(3):
        data = labelled(np.full(len(expected), label))
        terms = densities.log_likelihood_terms(
            CLASSES, jnp.asarray(SATURATED_CLASSES, jnp.float32), data
        )
        np.testing.assert_allclose(terms, expected[:, label], rtol=1e-5, atol=2e-7)


def outputs_of(model):
    return SATURATED_CLASSES if model.likelihood == "categorical" else SATURATED


@MODELS
def test_predict_in_float32(model):
    outputs = outputs_of(model)
    p = densities.predict(model, jnp.asarray(outputs, jnp.float32))
    if model.likelihood == "bernoulli":
        expected = special.expit(outputs)
    else:
        expected = special.softmax(outputs, axis=1) if model is CLASSES else outputs
    assert p.shape == outputs.shape
    # Denormal numbers may be flushed to zero.
    np.testing.assert_allclose(p, expected, rtol=1e-5, atol=1e-37)


@MODELS
def test_predict_jacobian_is_that_of_autodiff(model, x64):
    outputs = jnp.asarray(np.random.default_rng(0).normal(size=(4, model.out_features)))
    by_autodiff = jax.jacobian(lambda f: densities.predict(model, f[None])[0])
    expected = jax.jit(jax.vmap(by_autodiff))(outputs)
    jacobian = densities.predict_jacobian(model, outputs)
    assert jacobian.shape == (4, model.out_features, model.out_features)
    np.testing.assert_allclose(jacobian, expected, rtol=1e-12)


def exact_complement(p):
    return np.stack([np.delete(p, c, axis=1).sum(1) for c in range(p.shape[1])], axis=1)


@MODELS
def test_variances_and_jacobians_keep_their_digits_at_saturation(model):
    outputs = outputs_of(model)
    f32 = jnp.asarray(outputs, jnp.float32)
    variance = densities.label_variance(model, f32, 0.5)
    jacobian = densities.predict_jacobian(model, f32)
    tolerance = dict(rtol=2e-5, atol=1e-37)
    if model.likelihood == "gaussian":
        np.testing.assert_allclose(variance, 0.25)
        np.testing.assert_array_equal(jacobian, 1)
        return
    if model.likelihood == "bernoulli":
        expected = special.expit(outputs) * special.expit(-outputs)
        np.testing.assert_allclose(jacobian[..., 0], expected, **tolerance)
    else:
        p = special.softmax(outputs, axis=1)
        expected = p * exact_complement(p)
        dense = -p[:, :, None] * p[:, None, :]
        dense[:, range(3), range(3)] = expected
        np.testing.assert_allclose(jacobian, dense, **tolerance)
        # Probabilities add up to one, so that the rows add up to zero.
        np.testing.assert_allclose(jacobian.sum(-1), 0, atol=1e-7)
    np.testing.assert_allclose(variance, expected, **tolerance)
    assert (np.asarray(variance) >= 0).all()


@MODELS
def test_label_entropy_is_scipys_and_never_negative_in_float32(model, x64):
    outputs = outputs_of(model)
    if model.likelihood == "bernoulli":
        f = np.abs(outputs[:, 0])
        expected = -special.log_expit(f) + f * special.expit(-f)
        np.testing.assert_allclose(
            expected[3:6], stats.bernoulli.entropy(special.expit(outputs[3:6, 0])), rtol=1e-9
        )
    elif model.likelihood == "categorical":
        expected = stats.entropy(special.softmax(outputs, axis=1), axis=1)
    else:
        expected = np.full(len(outputs), stats.norm.entropy(scale=0.4))
    entropy = densities.label_entropy(model, jnp.asarray(outputs), 0.4)
    assert entropy.shape == (len(outputs),)
    np.testing.assert_allclose(entropy, expected, rtol=1e-9, atol=1e-20)
    single = densities.label_entropy(model, jnp.asarray(outputs, jnp.float32), 0.4)
    np.testing.assert_allclose(single, expected, rtol=2e-5, atol=2e-7)
    if model.likelihood == "bernoulli":
        np.testing.assert_allclose(single, expected, rtol=2e-5, atol=1e-30)
    assert model.likelihood == "gaussian" or (np.asarray(single) >= 0).all()


@MODELS
def test_curvature_factor_squares_to_minus_the_hessian(model, x64):
    outputs = jnp.asarray(2 * np.random.default_rng(0).normal(size=(5, model.out_features)))
    labels = jnp.asarray([0, 1, 0, 1, 1] if model is not CLASSES else [0, 1, 2, 1, 0])
    data = labelled(labels)._replace(noise_sd=jnp.asarray(0.4))

    def log_lik(f, y):
        return densities.log_likelihood_terms(model, f[None], data._replace(y=y[None]))[0]

    expected = -jax.jit(jax.vmap(jax.hessian(log_lik)))(outputs, labels)
    factor = densities.curvature_factor(model, outputs, 0.4)
    assert factor.shape == (5, model.out_features, model.out_features)
    np.testing.assert_allclose(factor @ factor.mT, expected, rtol=1e-10, atol=1e-14)


def test_curvature_factor_at_saturation_in_float32():
    p = special.softmax(SATURATED_CLASSES, axis=1)
    expected = -p[:, :, None] * p[:, None, :]
    expected[:, range(3), range(3)] = p * exact_complement(p)
    factor = np.asarray(
        densities.curvature_factor(CLASSES, jnp.asarray(SATURATED_CLASSES, jnp.float32), 1.0)
    )
    np.testing.assert_allclose(factor @ factor.transpose(0, 2, 1), expected, rtol=1e-4, atol=1e-35)
