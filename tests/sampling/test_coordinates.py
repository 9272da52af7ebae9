"""Coordinates are changes of variables: the density of x is that of theta times the Jacobian."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc import densities
from isounc.centring import make_frame
from isounc.densities import on_device
from isounc.models import make_model
from isounc.problems import Problem, make_problem
from isounc.sampling import coordinates, pseudo_observations, readout
from isounc.sampling.affine import Affine
from isounc.sampling.coordinates import COORDINATES, Curvature, Prior
from isounc.sampling.readout import NarrowReadout, Readout

PRIOR_SD = 1.5
KEYS = jax.random.split(jax.random.key(0), 1)


def setting(likelihood, depth, *, n=9, noise_sd=0.3, width=3):
    rng = np.random.default_rng(1)
    X = rng.standard_normal((n, 2))
    if likelihood == "gaussian":
        problem = Problem.from_arrays(
            X, X[:, 0] + rng.standard_normal(n) * noise_sd, noise_sd=noise_sd
        )
    elif likelihood == "categorical":
        problem = Problem.from_arrays(X, np.arange(n) % 3, likelihood="categorical", num_classes=3)
    else:
        problem = Problem.from_arrays(X, (X.sum(1) > 0).astype(int))
    return problem, make_model(problem, width=width, depth=depth)


def made(kind, problem, model):
    """Coordinates and data of one problem."""
    frame = make_frame([problem], model, PRIOR_SD)
    coords = COORDINATES[kind]([problem], frame, PRIOR_SD, KEYS)
    return jax.tree.map(lambda a: a[0], (coords, on_device(frame.data)))


@pytest.mark.parametrize(
    ("kind", "likelihood", "depth", "width"),
    [
        (Prior, "bernoulli", 1, 3),
        (Curvature, "bernoulli", 1, 3),
        (Affine, "bernoulli", 0, 3),
        (Affine, "categorical", 0, 3),
        (NarrowReadout, "bernoulli", 1, 3),
        (NarrowReadout, "categorical", 1, 3),
        (NarrowReadout, "gaussian", 2, 3),
        (Readout, "bernoulli", 1, 10),
        (Readout, "bernoulli", 2, 10),
        (Readout, "categorical", 1, 10),
        (Readout, "gaussian", 1, 10),
    ],
)
def test_the_density_is_that_of_the_change_of_variables(kind, likelihood, depth, width, x64):
    problem, model = setting(likelihood, depth, width=width)
    name = kind.name if kind is not Affine else "readout"
    coords, data = made(name, problem, model)
    assert type(coords) is kind

    @jax.jit
    def both(x):
        theta = coords.theta(x, model, data)
        jacobian = jax.jacfwd(lambda x: coords.theta(x, model, data))(x)
        volume = jnp.linalg.slogdet(jacobian)[1]
        exact = densities.log_density(model, theta, data) + volume
        said = coords.log_volume(x, model, data)
        return jnp.stack([coords.remainder(x, model, data) - 0.5 * x @ x - exact, said - volume])

    points = np.random.default_rng(2).standard_normal((6, model.num_params))
    constants = np.array([both(jnp.asarray(x)) for x in points])
    assert np.isfinite(constants).all()  # or NaN would equal NaN
    np.testing.assert_allclose(constants, np.broadcast_to(constants[0], (6, 2)), atol=1e-8)


def test_curvature_is_laplace_and_its_chains_start_at_draws_of_the_prior(x64):
    problem, model = setting("bernoulli", 1)
    coords, data = made("curvature", problem, model)

    def theta_of(x):
        return coords.theta(x, model, data)

    center = jnp.zeros(model.num_params)
    mode = theta_of(center)
    slope = jax.jit(jax.grad(lambda theta: densities.log_density(model, theta, data)))(mode)
    assert np.abs(slope * data.prior_sd).max() < 1e-4
    jacobian = np.asarray(jax.jit(jax.jacrev(lambda t: model.apply(t, data.X)[:, 0]))(mode))
    p = np.asarray(model.predict(mode, data.X)[:, 0])
    precision = jacobian.T @ np.diag(p * (1 - p)) @ jacobian + np.diag(1 / data.prior_sd**2)
    root = jax.jit(jax.jacfwd(theta_of))(center)
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(precision), rtol=1e-5, atol=1e-8)
    z = jnp.asarray(np.random.default_rng(3).standard_normal(model.num_params))
    theta = coords.theta(coords.start(z), model, data)
    np.testing.assert_allclose(theta, data.prior_sd * z, rtol=1e-8)


def test_readout_leaves_nothing_of_a_linear_gaussian_model(x64):
    problem, model = setting("gaussian", 0)
    coords, data = made("readout", problem, model)
    assert isinstance(coords, Affine)
    points = np.random.default_rng(2).standard_normal((5, model.num_params))
    rest = np.array([coords.remainder(jnp.asarray(x), model, data) for x in points])
    assert np.isfinite(rest).all()
    np.testing.assert_allclose(rest, rest[0], atol=1e-8)


def test_pseudo_observations_are_a_fixed_point_of_the_variational_approximation():
    problem, _ = setting("bernoulli", 1, n=12)
    kernel = 4 * np.exp(-0.5 * ((problem.X[:, None] - problem.X) ** 2).sum(-1))
    (precision,), (target,) = (
        a.T for a in pseudo_observations.pseudo_observations(problem, kernel)
    )
    inverse = np.linalg.inv(kernel + np.diag(1 / precision))
    mean = kernel @ inverse @ target
    sd = np.sqrt(np.diag(kernel - kernel @ inverse @ kernel))
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    p = 1 / (1 + np.exp(-(mean[:, None] + sd[:, None] * nodes)))
    weights = weights / weights.sum()
    # Expectations under q by quadrature; the iteration took 256 normal draws.
    np.testing.assert_allclose((p * (1 - p)) @ weights, precision, rtol=0.1)
    np.testing.assert_allclose(precision * (target - mean), problem.y - p @ weights, atol=0.05)


@pytest.mark.parametrize(("depth", "sharp"), [(0, [Affine]), (1, [Prior, NarrowReadout])])
def test_readout_is_a_candidate_where_the_data_are_sharp(depth, sharp):
    kinds = {}
    for noise_sd in (0.01, 3.0):
        problem, model = setting("gaussian", depth, noise_sd=noise_sd)
        frame = make_frame([problem], model, PRIOR_SD)
        found = coordinates.candidates("auto", [problem], frame, PRIOR_SD, KEYS)
        kinds[noise_sd] = [type(coords) for coords in found]
    assert kinds == {0.01: sharp, 3.0: [Prior]}


@pytest.mark.parametrize(("n", "prior_sd"), [(20, PRIOR_SD), (300, 30.0)])
def test_labels_that_tell_little_need_no_iteration(n, prior_sd, monkeypatch):
    problem, model = setting("bernoulli", 1, n=n)
    frame = make_frame([problem], model, prior_sd)
    args = ([problem], frame, prior_sd, KEYS)
    kernels = pseudo_observations.prior_kernels(on_device(frame.data), KEYS, model=model)
    spectra = pseudo_observations.spectra_of([problem], kernels)
    sharp = spectra[0][0].precision[0] > coordinates.SHARP
    assert sharp == (n == 300)
    if not sharp:
        monkeypatch.setattr(pseudo_observations, "pseudo_observations", None)
    kinds = [type(coords) for coords in coordinates.candidates("auto", *args)]
    assert kinds == ([Prior, NarrowReadout] if sharp else [Prior])


def test_readout_refuses_more_examples_than_it_can_factor(monkeypatch):
    monkeypatch.setattr(coordinates, "MAX_EXAMPLES", 20)
    problem = make_problem("moons", n=30, seed=0)
    model = make_model(problem, width=2)
    frame = make_frame([problem], model, PRIOR_SD)
    with pytest.raises(ValueError, match=r"for more than 20 examples.* got 'readout' and 30"):
        coordinates.readout([problem], frame, PRIOR_SD, KEYS)
    assert coordinates.candidates("auto", [problem], frame, PRIOR_SD, KEYS) == [Prior()]
    monkeypatch.setattr(coordinates, "MAX_EXAMPLES", 30)
    assert isinstance(coordinates.readout([problem], frame, PRIOR_SD, KEYS), NarrowReadout)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "categorical"])
def test_a_few_examples_stand_for_all_in_the_covariance_and_nothing_else(
    likelihood, x64, monkeypatch
):
    monkeypatch.setattr(readout, "MOST_ROWS", 8)
    problem, model = setting(likelihood, 1, n=35)
    coords, data = made("readout", problem, model)
    assert coords.precision.shape == (model.out_features, 8) and coords.pull.shape[1] == 35
    x = jnp.asarray(np.random.default_rng(4).standard_normal(model.num_params))
    theta = coords.theta(x, model, data)
    jacobian = jax.jacfwd(lambda x: coords.theta(x, model, data))(x)
    volume = jnp.linalg.slogdet(jacobian)[1]
    zero = jnp.zeros_like(x)
    at_zero = coords.theta(zero, model, data)
    volume_at_zero = jnp.linalg.slogdet(jax.jacfwd(lambda x: coords.theta(x, model, data))(zero))[1]

    def exact(theta, volume, x):
        return densities.log_density(model, theta, data) + volume + 0.5 * x @ x

    difference = coords.remainder(x, model, data) - coords.remainder(zero, model, data)
    expected = exact(theta, volume, x) - exact(at_zero, volume_at_zero, zero)
    assert float(difference) == pytest.approx(float(expected), abs=1e-8)


def test_a_narrow_readout_under_gaussian_noise_has_the_exact_conditional_posterior(x64):
    problem, model = setting("gaussian", 1)
    coords, data = made("readout", problem, model)
    x = jnp.asarray(np.random.default_rng(5).standard_normal(model.num_params))
    theta = coords.theta(x, model, data)
    phi = np.asarray(model.features(theta, data.X)) * np.asarray(data.prior_sd[-4:])
    noise = float(problem.noise_sd)
    cov = np.linalg.inv(np.eye(4) + phi.T @ phi / noise**2)
    mean = cov @ phi.T @ problem.y / noise**2
    jacobian = jax.jacfwd(lambda x: coords.theta(x, model, data))(x)[-4:, -4:]
    root = np.asarray(jacobian) / np.asarray(data.prior_sd[-4:])[:, None]
    np.testing.assert_allclose(root @ root.T, cov, rtol=1e-8, atol=1e-12)
    v = np.asarray(theta[-4:] / data.prior_sd[-4:])
    np.testing.assert_allclose(v - root @ np.asarray(x[-4:]), mean, rtol=1e-8, atol=1e-10)
    # What is left of the read-out given the hidden layers is nothing.
    other = x.at[-4:].add(1.0)
    assert float(coords.remainder(other, model, data)) == pytest.approx(
        float(coords.remainder(x, model, data)), abs=1e-8
    )
