"""Covariances against dense linear algebra in NumPy, Gram matrices against dense Jacobians."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc import covariance as cov
from isounc import densities
from isounc.estimates.grams import output_grams
from isounc.models import Model
from isounc.problems import Problem

BINARY = Model(2, 1, "bernoulli", width=3)
CLASSES = Model(2, 3, "categorical", width=3, parameterisation="fan_in")
REGRESSION = Model(2, 1, "gaussian", width=3)
MODELS = pytest.mark.parametrize("model", [BINARY, CLASSES, REGRESSION], ids=lambda m: m.likelihood)


def setting(model, n=9, seed=0):
    """A point and data of a model, in JAX's float type."""
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(n, 2)), np.arange(n) % max(2, model.out_features)
    if model.likelihood == "gaussian":
        problem = Problem.from_arrays(X, rng.normal(size=n), noise_sd=0.3)
    else:
        problem = Problem.from_arrays(X, y, likelihood=model.likelihood)
    theta = jnp.asarray(rng.normal(size=model.num_params), jnp.result_type(float))
    return theta, densities.make_data(problem, model, 1.4)


def dense_gauss_newton(model, theta, data):
    """Sum over examples of J^T H J with the Hessian of the log likelihood by autodiff."""
    jacobian = jax.jacrev(lambda t: model.apply(t, data.X))(theta)

    def log_lik(f, y):
        one = data._replace(X=data.X[:1], y=y[None])
        return densities.log_likelihood_terms(model, f[None], one)[0]

    hessians = -jax.vmap(jax.hessian(log_lik))(model.apply(theta, data.X), data.y)
    return jnp.einsum("nop,noq,nqr->pr", jacobian, hessians, jacobian)


@functools.partial(jax.jit, static_argnames="model")
def _curvatures(theta, data, *, model):
    return {
        "dense": dense_gauss_newton(model, theta, data),
        "factor": cov.gauss_newton_factor(model, theta, data),
        "woodbury": cov.gauss_newton(model, theta, data),
        "diagonal": cov.gauss_newton_diagonal(model, theta, data),
        "hessian": cov.hessian(model, theta, data, batch_size=4),
        "jax.hessian": jax.hessian(lambda t: -densities.log_density(model, t, data))(theta),
    }


@functools.cache
def curvatures(model):
    """All curvatures of a model in float64, compiled once for all tests, and the prior precision."""
    with jax.enable_x64(True):
        theta, data = setting(model)
        found = jax.device_get(_curvatures(theta, data, model=model))
    return found | {"prior": np.diag(1 / np.asarray(data.prior_sd) ** 2)}


def quadratic(covariance, jacobian):
    half = np.asarray(jax.tree.map(jnp.asarray, covariance).half(jnp.asarray(jacobian)))
    return half @ half.swapaxes(-1, -2)


def random_jacobian(model, *shape):
    return np.random.default_rng(7).normal(size=(*shape, model.num_params))


@MODELS
def test_gauss_newton_factor_is_the_dense_matrix(model):
    found = curvatures(model)
    factor = found["factor"]
    assert factor.shape == (9 * model.out_features, model.num_params)
    np.testing.assert_allclose(factor.T @ factor, found["dense"], rtol=1e-9, atol=1e-12)


@MODELS  # nine rows are fewer than the parameters; the 27 of three classes are more
def test_woodbury_is_the_dense_inverse(model, x64):
    found, jacobian = curvatures(model), random_jacobian(model, 4)
    expected = jacobian @ np.linalg.inv(found["prior"] + found["dense"]) @ jacobian.T
    np.testing.assert_allclose(
        quadratic(found["woodbury"], jacobian), expected, rtol=1e-9, atol=1e-11
    )


@MODELS
def test_woodbury_in_float32(model):
    found, jacobian = curvatures(model), random_jacobian(model, 4)
    expected = jacobian @ np.linalg.inv(found["prior"] + found["dense"]) @ jacobian.T
    sd = jnp.asarray(np.diag(found["prior"]) ** -0.5, jnp.float32)
    covariance = cov.PriorPlusLowRank.from_factor(sd, jnp.asarray(found["factor"], jnp.float32))
    assert ((0 <= covariance.shrink) & (covariance.shrink <= 1)).all()
    got = quadratic(covariance, jacobian.astype(np.float32))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@MODELS
def test_gauss_newton_diagonal_inverts_the_diagonal_of_the_precision(model):
    found = curvatures(model)
    precision = np.diag(found["prior"] + found["dense"])
    np.testing.assert_allclose(found["diagonal"].sd ** 2, 1 / precision, rtol=1e-10)


@MODELS
def test_dense_hessian_is_jaxs(model):
    hessian = curvatures(model)["hessian"]
    np.testing.assert_allclose(hessian, curvatures(model)["jax.hessian"], rtol=1e-9, atol=1e-10)
    np.testing.assert_array_equal(hessian, hessian.T)


def test_linear_outputs_and_more_examples_than_a_chunk():
    model = Model(2, 1, depth=0)
    with jax.enable_x64(True):
        theta, data = setting(model, n=67)
        found = jax.device_get(_curvatures(theta, data, model=model))
    assert found["factor"].shape == (67, 3)
    np.testing.assert_allclose(found["factor"].T @ found["factor"], found["dense"], rtol=1e-10)
    # The Hessian is the Gauss-Newton matrix where outputs are linear in the parameters.
    prior = np.diag(1 / np.asarray(data.prior_sd) ** 2)
    np.testing.assert_allclose(found["hessian"], prior + found["dense"], rtol=1e-10, atol=1e-11)


def random_spd(size, seed=0):
    a = np.random.default_rng(seed).normal(size=(size, size))
    return a @ a.T + 0.1 * np.eye(size)


def halves():
    """Covariances of six parameters by name, with their dense Sigma."""
    rng = np.random.default_rng(1)
    sd, factor = rng.uniform(0.5, 2, 6), rng.normal(size=(6, 3))
    rows, wide = rng.normal(size=(4, 6)), rng.normal(size=(11, 6))
    precision = random_spd(6)
    prior = np.diag(1 / sd**2)
    inverse, low_rank = np.linalg.inv, cov.PriorPlusLowRank.from_factor
    return {
        "diagonal": (cov.Diagonal, (sd,), np.diag(sd**2)),
        "factor": (cov.Factor, (factor,), factor @ factor.T),
        "low rank": (low_rank, (sd, rows), inverse(prior + rows.T @ rows)),
        "full rank": (low_rank, (sd, wide), inverse(prior + wide.T @ wide)),
        "precision": (cov.inverse_precision, (precision,), inverse(precision)),
    }


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("name", list(halves()))
def test_half_is_a_square_root_of_sigma(name, shape, x64):
    build, arguments, sigma = halves()[name]
    covariance = build(*(jnp.asarray(a) for a in arguments))
    jacobian = np.random.default_rng(5).normal(size=(*shape, 6))
    half = np.asarray(covariance.half(jnp.asarray(jacobian)))
    assert half.shape[:-1] == shape
    got = np.einsum("...r,...r->...", half, half)
    expected = np.einsum("...p,pq,...q->...", jacobian, sigma, jacobian)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    if len(shape) == 1:
        np.testing.assert_allclose(half @ half.T, jacobian @ sigma @ jacobian.T, rtol=1e-9)


def test_strong_curvature_leaves_a_positive_variance_in_float32():
    # Sigma shrinks by 1e6 along the first direction, and not at all along the second.
    rows = jnp.asarray([[1e3, 0.0, 0.0]])
    covariance = cov.PriorPlusLowRank.from_factor(jnp.ones(3), rows)
    got = (np.asarray(covariance.half(jnp.eye(3))) ** 2).sum(1)
    np.testing.assert_allclose(got[1:], 1, rtol=1e-6)
    assert got[0] == pytest.approx(1e-6, rel=1e-3)


def test_inverse_precision_of_an_indefinite_matrix_is_nan():
    factor = cov.inverse_precision(jnp.asarray([[1.0, 0.0], [0.0, -1.0]])).factor
    assert np.isnan(factor).any()


def dense_half_identity(covariance, size):
    return quadratic(covariance, np.eye(size))


def draws_with_modes(num_chains=3, per_chain=20, size=4):
    """Chain-major draws whose chains sit at different places."""
    rng = np.random.default_rng(2)
    centres = 10 * rng.normal(size=(num_chains, 1, size))
    return (centres + rng.normal(size=(num_chains, per_chain, size))).reshape(-1, size)


def test_covariance_of_draws_is_numpys(x64):
    draws = draws_with_modes()
    expected = np.cov(draws, rowvar=False)
    covariance = cov.from_draws(jnp.asarray(draws))
    np.testing.assert_allclose(dense_half_identity(covariance, 4), expected, rtol=1e-10)
    diagonal = cov.diagonal_from_draws(jnp.asarray(draws))
    np.testing.assert_allclose(diagonal.sd**2, np.diag(expected), rtol=1e-12)


def test_covariance_of_fewer_draws_than_parameters(x64):
    draws = np.random.default_rng(0).normal(size=(5, 12))
    covariance = cov.from_draws(jnp.asarray(draws))
    np.testing.assert_allclose(
        dense_half_identity(covariance, 12), np.cov(draws, rowvar=False), rtol=1e-9, atol=1e-12
    )


def test_within_chain_covariance_pools_the_chains_own(x64):
    draws = draws_with_modes()
    within = np.mean([np.cov(chain, rowvar=False) for chain in draws.reshape(3, 20, 4)], axis=0)
    got = dense_half_identity(cov.from_draws(jnp.asarray(draws), num_chains=3), 4)
    np.testing.assert_allclose(got, within, rtol=1e-10)
    pooled = dense_half_identity(cov.from_draws(jnp.asarray(draws)), 4)
    assert np.trace(pooled) > 10 * np.trace(got)


def test_covariance_of_draws_far_from_zero_in_float32():
    draws = (100 + np.random.default_rng(0).normal(size=(4000, 2))).astype(np.float32)
    got = dense_half_identity(cov.from_draws(jnp.asarray(draws)), 2)
    np.testing.assert_allclose(got, np.cov(draws.astype(float), rowvar=False), rtol=1e-3, atol=1e-3)


@functools.partial(jax.jit, static_argnames=("model", "batch_size"))
def grams_of(theta, X, covariances, *, model, batch_size):
    return output_grams(model.apply, theta, X, covariances, batch_size=batch_size)


def gram_setting(model):
    theta, _ = setting(model)
    X = jnp.asarray(np.random.default_rng(3).normal(size=(7, 2)), theta.dtype)
    sd = jnp.asarray(np.random.default_rng(4).uniform(0.5, 2, model.num_params), theta.dtype)
    factor = jnp.asarray(np.random.default_rng(5).normal(size=(model.num_params, 4)), theta.dtype)
    return theta, X, {"diagonal": cov.Diagonal(sd), "factor": cov.Factor(factor)}


@pytest.mark.parametrize("model", [BINARY, CLASSES], ids=lambda m: m.likelihood)
def test_grams_are_those_of_the_dense_jacobian(model, x64):
    theta, X, covariances = gram_setting(model)
    outputs, grams = grams_of(theta, X, covariances, model=model, batch_size=128)
    jacobian = np.asarray(jax.jit(jax.jacfwd(lambda t: model.apply(t, X)))(theta))
    reverse = jax.jit(jax.jacrev(lambda t: model.apply(t, X)))(theta)
    np.testing.assert_allclose(reverse, jacobian, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(outputs, model.apply(theta, X), rtol=1e-12)
    sigmas = {
        "diagonal": np.diag(covariances["diagonal"].sd ** 2),
        "factor": covariances["factor"].factor @ covariances["factor"].factor.T,
    }
    assert set(grams) == set(sigmas)
    for name, sigma in sigmas.items():
        expected = np.einsum("nop,pq,nrq->nor", jacobian, sigma, jacobian)
        np.testing.assert_allclose(grams[name], expected, rtol=1e-10, atol=1e-12)


def test_chunks_of_locations_do_not_change_the_grams():
    theta, X, covariances = gram_setting(CLASSES)
    whole = grams_of(theta, X, covariances, model=CLASSES, batch_size=7)
    for batch_size in (1, 3):
        parts = grams_of(theta, X, covariances, model=CLASSES, batch_size=batch_size)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), parts, whole
        )
