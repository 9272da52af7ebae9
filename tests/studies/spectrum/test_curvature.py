"""Spectra, shares, divergences and coordinates against dense float64 constructions and closed forms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from isounc import covariance, densities
from isounc.models import make_model
from isounc.problems import make_problem
from isounc.sampling.readout import Readout
from isounc.studies.spectrum import curvature, draws, repriorised
from isounc.studies.spectrum.curvature import AtPoint, Projected, Spectrum
from isounc.studies.spectrum.hessian import hessian_spectrum

NETWORKS = {"moons": (1, "ntk"), "clusters3": (2, "fan_in")}


class Dense:
    """A small network with its GGN and gradients as matrices, in prior coordinates."""

    def __init__(self, name, depth, parameterisation, *, width=4, n=12):
        self.problem = make_problem(name, n=n, seed=1)
        self.model = make_model(
            self.problem, width=width, depth=depth, parameterisation=parameterisation
        )
        self.data = densities.make_data(self.problem, self.model, 1.5)
        self.theta = self.model.sample_prior(jax.random.key(0), 1.5)
        sd = np.asarray(self.data.prior_sd)
        factor = jax.jit(covariance.gauss_newton_factor, static_argnums=0)
        white = np.asarray(factor(self.model, self.theta, self.data)) * sd
        self.ggn = white.T @ white
        self.X = self.problem.regions["far"][:6]
        jacobian = jax.jit(jax.jacrev(self.model.predict))(self.theta, jnp.asarray(self.X))
        self.gradients = np.asarray(jacobian) * sd
        self.at = AtPoint.of(self.theta, self.data, self.model)
        self.projected = self.at.project(self.X)


@functools.cache
def network(name):
    """Networks that the tests share, as each costs a second or two."""
    return Dense(name, *NETWORKS[name])


@pytest.fixture(params=NETWORKS)
def dense(request, x64):
    return network(request.param)


def test_the_kernel_has_the_eigenpairs_of_the_ggn(dense):
    values, vectors = np.linalg.eigh(dense.ggn)
    values, vectors = values[::-1], vectors[:, ::-1]
    num = min(len(values), len(dense.at.spectrum.values))
    np.testing.assert_allclose(dense.at.spectrum.values[:num], values[:num], atol=1e-9 * values[0])
    np.testing.assert_allclose(dense.projected.sq_norm, (dense.gradients**2).sum((1, 2)))
    for rank in (1, 3):
        along = ((dense.gradients @ vectors[:, :rank]) ** 2).sum((1, 2))
        shares = along / (dense.gradients**2).sum((1, 2))
        np.testing.assert_allclose(curvature.shares(dense.projected, rank), shares, rtol=1e-6)
        np.testing.assert_allclose(
            curvature.removed(dense.projected, rank), dense.projected.sq_norm - along, rtol=1e-6
        )


def test_the_linearised_posterior_takes_the_data_out_of_few_directions_alone(dense):
    """g^T Sigma g = |g|^2 - a part in at most n C directions, to 1e-6 of the dense inverse."""
    sigma = np.linalg.inv(np.eye(len(dense.ggn)) + dense.ggn)
    truth = np.einsum("nmp,pq,nmq->n", dense.gradients, sigma, dense.gradients)
    found = curvature.laplace(dense.projected, dense.at.spectrum)
    np.testing.assert_allclose(found, truth, rtol=1e-6)
    directions = dense.problem.num_outputs * len(dense.problem.X)
    assert dense.projected.parts.shape == (len(dense.X), directions)
    assert len(np.linalg.eigvalsh(sigma)[np.linalg.eigvalsh(sigma) < 1 - 1e-9]) <= directions
    whole = curvature.low_rank(dense.projected, dense.at.spectrum, directions)
    np.testing.assert_allclose(whole, truth, rtol=1e-6)


def test_dimension_and_divergence_are_those_of_the_dense_covariance(dense):
    sigma = np.linalg.inv(np.eye(len(dense.ggn)) + dense.ggn)
    mean = np.asarray(dense.theta / dense.data.prior_sd)
    num = dense.model.num_params
    found = curvature.summary(dense.at.spectrum, num_params=num, num_outliers=2, mean=mean)
    dimension = np.trace(dense.ggn @ sigma)
    direct = 0.5 * (np.trace(sigma) + mean @ mean - num - np.linalg.slogdet(sigma)[1])
    assert found["dimension"] == pytest.approx(dimension, rel=1e-6)
    assert (found["kl_covariance"] + found["kl_mean"]) * num == pytest.approx(direct, rel=1e-6)
    values = np.linalg.eigvalsh(dense.ggn)[::-1]
    assert found["outlier_share"] == pytest.approx(values[:2].sum() / values.sum(), rel=1e-6)
    assert found["log2_over_mean"] == pytest.approx(np.log2(values[0] / values.mean()), rel=1e-6)
    rest = np.log2(values[0] / values[2:].sum())
    assert found["log2_over_rest"] == pytest.approx(rest, rel=1e-6)
    assert found["num_nonzero"] == np.linalg.matrix_rank(dense.ggn, rtol=1e-12)


def test_the_hessian_by_lanczos_is_the_dense_one(x64):
    small = network("clusters3")
    sd = np.asarray(small.data.prior_sd)
    hessian = jax.jit(covariance.hessian, static_argnums=0)
    matrix = np.asarray(hessian(small.model, small.theta, small.data))
    values = np.linalg.eigvalsh(matrix * np.outer(sd, sd) - np.eye(len(sd)))[::-1]
    settings = {"model": small.model, "key": jax.random.key(1)}
    dense = hessian_spectrum(small.theta, small.data, **settings, steps=5)
    np.testing.assert_allclose(dense.values, values, atol=1e-9 * values[0])
    lanczos = hessian_spectrum(small.theta, small.data, **settings, steps=20, dense_max=5)
    assert (dense.method, lanczos.method) == ("dense", "lanczos")
    assert len(lanczos.values) >= 2
    np.testing.assert_allclose(lanczos.values, values[: len(lanczos.values)], rtol=1e-3)
    assert lanczos.lowest == pytest.approx(values[-1], rel=1e-3)


def planted(values, parts, sq_norm):
    """A spectrum and gradients that are given by their parts in its directions."""
    values = np.array(values, float)
    spectrum = Spectrum(values, np.eye(len(values)))
    return spectrum, Projected(np.array(sq_norm, float), np.array(parts, float))


def test_exact_isotropy_is_told_from_one_outlier():
    flat, gradients = planted([0.0, 0.0], [[1.0, 0.5], [4.0, 0.0]], [2.0, 9.0])
    spread = curvature.spread(curvature.laplace(gradients, flat), gradients.sq_norm)
    assert spread == {"ratio_mean": 1.0, "ratio_cv": 0.0}
    outlier, gradients = planted([99.0, 0.0], [[1.0, 0.5], [0.0, 4.0]], [2.0, 9.0])
    found = curvature.laplace(gradients, outlier)
    np.testing.assert_allclose(found, [2 - 0.99, 9.0])
    np.testing.assert_allclose(curvature.removed(gradients, 1), [1.0, 9.0])
    np.testing.assert_allclose(curvature.removed(gradients, 2), [0.5, 5.0])
    inside = Projected(np.array([3.0, 4.0]), np.array([[3.0 - 1e-15], [3.9]]))  # rounding is left
    assert curvature.removed(inside, 1).tolist() == [0.0, pytest.approx(0.1)]
    ratio = np.array([0.505, 1.0])
    spread = curvature.spread(found, gradients.sq_norm)
    assert spread["ratio_cv"] == pytest.approx(ratio.std() / ratio.mean())
    numbers = curvature.summary(outlier, num_params=10, num_outliers=1, mean=np.zeros(10))
    assert numbers["dimension"] == pytest.approx(0.99) and numbers["outlier_share"] == 1.0
    assert numbers["log2_over_bulk"] is None and numbers["num_beyond_prior"] == 1


def test_gradients_that_vanish_are_left_out():
    spectrum, gradients = planted([3.0], [[0.0], [1.0]], [0.0, 2.0])
    np.testing.assert_allclose(curvature.shares(gradients, 1), [0.5])
    spread = curvature.spread(curvature.laplace(gradients, spectrum), gradients.sq_norm)
    assert spread["ratio_mean"] == pytest.approx(1.25 / 2)
    nothing = Projected(np.zeros(2), np.zeros((2, 1)))
    assert curvature.spread(nothing.sq_norm, nothing.sq_norm)["ratio_mean"] is None


def test_a_rank_above_the_directions_and_an_infinite_kernel_are_refused():
    _, gradients = planted([3.0], [[0.0], [1.0]], [0.0, 2.0])
    for call in (curvature.removed, curvature.shares):
        with pytest.raises(ValueError, match="rank must be 1, got 2"):
            call(gradients, 2)
    with pytest.raises(ValueError, match="kernel must be finite"):
        curvature.spectrum_of(np.array([[np.inf]]))


@pytest.mark.parametrize(("num_params", "num_draws"), [(60, 600), (300, 100)])
def test_the_law_of_marchenko_and_pastur_is_that_of_a_wishart_matrix(num_params, num_draws):
    rng = np.random.default_rng(0)
    white = rng.standard_normal((num_draws + 4, num_params))
    values = draws.covariance_eigenvalues(white, 4)
    assert len(values) == min(num_params, num_draws)
    low, high = draws.marchenko_pastur_edges(num_params, num_draws)
    assert values[0] == pytest.approx(high, rel=0.1) and values[-1] == pytest.approx(low, rel=0.25)
    levels = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    law = draws.marchenko_pastur_quantiles(num_params, num_draws, levels)
    np.testing.assert_allclose(law, np.quantile(values, levels), rtol=0.06)
    ends = draws.marchenko_pastur_quantiles(num_params, num_draws, np.array([0.0, 1.0]))
    np.testing.assert_allclose(ends, [low, high], rtol=1e-6)
    found = draws.numbers_of_draws(values, num_params=num_params, num_effective=num_draws)
    assert abs(found["draws_over_edge"]) < 0.14
    assert found["draws_variance"] == pytest.approx(1, abs=0.05)
    # A planted direction in which the posterior is wider than the prior.
    white[:, 0] *= 8
    wide = draws.covariance_eigenvalues(white, 4)
    found = draws.numbers_of_draws(wide, num_params=num_params, num_effective=num_draws)
    assert found["draws_over_edge"] > 1 and found["draws_num_over_edge"] == 1


def test_repeated_draws_are_fewer_effective_ones():
    rng = np.random.default_rng(0)
    independent = rng.standard_normal((800, 3))
    assert draws.effective_draws(independent, 4) == pytest.approx(796, rel=0.2)
    repeated = np.repeat(rng.standard_normal((80, 3)), 10, axis=0)
    assert draws.effective_draws(repeated, 4) < 200
    with pytest.raises(ValueError, match="num_draws must be"):
        draws.marchenko_pastur_edges(10, 0)


def test_the_variance_along_gradients_is_that_of_the_draws_covariance(x64):
    small = network("clusters3")
    rng = np.random.default_rng(0)
    thetas = rng.standard_normal((40, small.model.num_params)) + np.repeat([[0.0], [5.0]], 20, 0)
    factor = np.asarray(covariance.from_draws(jnp.asarray(thetas), num_chains=2).factor)
    g = small.gradients / np.asarray(small.data.prior_sd)
    truth = ((g @ factor) ** 2).sum((1, 2))
    found = draws.variance_along(np.asarray(small.theta), small.X, thetas, 2, model=small.model)
    np.testing.assert_allclose(found, truth, rtol=1e-9)


def test_the_density_ratio_is_the_remainder_of_readout_coordinates(x64):
    small = network("clusters3")
    model, data = small.model, small.data
    observed = repriorised.observe(small.problem, model, data, jax.random.key(3))
    coordinates = Readout(observed.directions, observed.target)
    x = jax.random.normal(jax.random.key(7), (model.num_params,))
    theta = coordinates.theta(x, model, data)
    found = repriorised.ratios(theta[None], observed, data, model=model)
    expected = coordinates.remainder(x, model, data)
    np.testing.assert_allclose(found.readout[0], expected, rtol=1e-9)
    num_readout = model.out_features * (model.width + 1)
    np.testing.assert_allclose(found.sq_readout[0], (x[-num_readout:] ** 2).mean(), rtol=1e-9)


def test_a_linear_model_is_repriorised_exactly(x64):
    """Without hidden layers the ratio is the evidence everywhere, and divergences are closed."""
    problem = make_problem("linear_regression", n=15, seed=0)
    model = make_model(problem, depth=0, parameterisation="standard")
    data = densities.make_data(problem, model, 1.5)
    observed = repriorised.observe(problem, model, data, jax.random.key(0))
    phi = 1.5 * np.column_stack([problem.X, np.ones(15)])
    noise = float(data.noise_sd) ** 2
    evidence = stats.multivariate_normal(None, phi @ phi.T + noise * np.eye(15)).logpdf(problem.y)
    thetas = repriorised.sample_readout(jax.random.key(1), observed, data, model=model, num=1000)
    readout = repriorised.ratios(thetas, observed, data, model=model)
    np.testing.assert_allclose(readout.readout, evidence, rtol=1e-8)
    # N(0, I) in x is the posterior here: draws of it have its moments.
    precision = np.eye(2) + phi.T @ phi / noise
    sigma = np.linalg.inv(precision)
    mean = sigma @ phi.T @ problem.y / noise
    white = np.asarray(thetas) / 1.5
    np.testing.assert_allclose(white.mean(0), mean, atol=5 * np.sqrt(np.diag(sigma).max() / 1000))
    np.testing.assert_allclose(np.cov(white.T), sigma, atol=0.2 * np.diag(sigma).max())
    prior_draws = repriorised.sample_prior(jax.random.key(2), data, 1000)
    prior = repriorised.ratios(prior_draws, observed, data, model=model)
    found = repriorised.divergences(readout, readout, prior)
    assert found["jeffreys_readout"] == pytest.approx(0, abs=1e-6)
    assert found["kl_readout"] == pytest.approx(0, abs=1e-6)
    assert found["sq_readout"] == pytest.approx(1, abs=0.1)
    kl = sum(curvature.kl_to_prior(np.linalg.eigvalsh(precision) - 1, mean))
    assert found["kl_weights"] == pytest.approx(kl, rel=0.05)
    inverse = 0.5 * (
        np.trace(precision) + mean @ precision @ mean - 2 - np.log(np.linalg.det(precision))
    )
    assert found["jeffreys_weights"] == pytest.approx(kl + inverse, rel=0.2)


def test_few_draws_that_count_leave_the_evidence_undefined():
    ones = np.ones(100)
    wild = repriorised.Ratios(np.linspace(0, 500, 100), ones, ones, ones)
    found = repriorised.divergences(wild, wild, wild)
    assert found["evidence_effective"] < 50 and found["kl_readout"] is None
    assert found["jeffreys_readout"] == 0.0
