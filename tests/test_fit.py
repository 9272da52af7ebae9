"""Point estimates: the MAP against closed forms and SciPy, its checks and its reasons; training."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from isounc import densities, fit
from isounc.centring import make_frame
from isounc.fit import MapSettings, fit_map, fit_maps
from isounc.models import make_model
from isounc.precision import double_precision
from isounc.problems import Problem, make_problem
from tests.exact import load_exact

PRIOR_SD = 1.5
KEY = jax.random.key(0)
# Fewer starts and steps than the default: these problems are small.
QUICK = MapSettings(num_restarts=3, adam_steps=100)


def binary(seed=0, n=32):
    """Two inputs, labels of a curved rule with noise: no separating line, no symmetry."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 2))
    y = (X[:, 0] + X[:, 1] ** 2 + 0.7 * rng.standard_normal(n) > 0.7).astype(int)
    return Problem.from_arrays(X, y)


@pytest.fixture(scope="module")
def problem():
    return binary()


@pytest.fixture(scope="module")
def model(problem):
    return make_model(problem, width=3)


@pytest.fixture(scope="module")
def found(problem, model):
    return fit_map(problem, model, prior_sd=PRIOR_SD, key=KEY, settings=QUICK)


def test_linear_regression_has_its_closed_form():
    rng = np.random.default_rng(1)
    X = rng.standard_normal((15, 2))
    y = 0.4 + X @ [1.2, -0.7] + 0.3 * rng.standard_normal(15)
    problem = Problem.from_arrays(X, y, noise_sd=0.3)
    model = make_model(problem, depth=0, parameterisation="fan_in")
    result = fit_map(problem, model, prior_sd=PRIOR_SD, key=KEY, settings=QUICK)

    features = np.concatenate([X, np.ones((15, 1))], axis=1)
    sd = PRIOR_SD * np.array([1 / np.sqrt(2), 1 / np.sqrt(2), 1])
    precision = features.T @ features / 0.3**2 + np.diag(1 / sd**2)
    theta = np.linalg.solve(precision, features.T @ y / 0.3**2)
    np.testing.assert_allclose(result.theta, theta, rtol=1e-6)
    np.testing.assert_allclose(result.hessian, precision, rtol=1e-9)
    white = np.linalg.eigvalsh(precision * sd * sd[:, None])
    assert result.hessian_min_eigenvalue == pytest.approx(white[0])
    residual = (y - features @ theta) / 0.3
    log_lik = -0.5 * residual @ residual - 15 * np.log(0.3 * np.sqrt(2 * np.pi))
    prior = -0.5 * (theta / sd) @ (theta / sd) - np.log(sd * np.sqrt(2 * np.pi)).sum()
    assert result.log_likelihood == pytest.approx(log_lik)
    assert result.log_density == pytest.approx(log_lik + prior)
    # One maximum: every start finds it, and reports it with the constants of the log posterior.
    assert result.restart_log_densities == pytest.approx([log_lik + prior] * 3)
    assert result.passed and result.kind == "map" and result.hessian_method == "dense"


def test_logistic_regression_agrees_with_scipy(problem):
    # Of the shape of logistic_2d.npz, so that both share a program.
    model = make_model(problem, depth=0, parameterisation="standard")
    result = fit_map(problem, model, prior_sd=PRIOR_SD, key=KEY, settings=QUICK)
    features = np.concatenate([problem.X, np.ones((len(problem.y), 1))], axis=1)
    sign = 2 * problem.y - 1

    def potential(theta):
        f = features @ theta
        return np.logaddexp(0, -sign * f).sum() + 0.5 * theta @ theta / PRIOR_SD**2

    best = scipy.optimize.minimize(potential, np.zeros(3), tol=1e-10)
    np.testing.assert_allclose(result.theta, best.x, atol=1e-5)
    assert result.passed and float(result.rel_grad_norm) < QUICK.tolerance
    p = 1 / (1 + np.exp(-features @ result.theta))
    hessian = features.T @ (features * (p * (1 - p))[:, None]) + np.eye(3) / PRIOR_SD**2
    np.testing.assert_allclose(result.hessian, hessian, rtol=1e-9)


@pytest.mark.parametrize("name", ["logistic_2d.npz", "softmax_1d.npz"])
def test_map_and_hessian_of_the_exact_references(name):
    reference = load_exact(name)
    problem = Problem.from_arrays(reference["X"], reference["y"])
    model = make_model(problem, depth=0, parameterisation="standard")
    prior_sd = float(reference["prior_sd"])
    result = fit_map(problem, model, prior_sd=prior_sd, key=KEY, settings=QUICK)
    assert result.passed
    np.testing.assert_allclose(result.theta, reference["theta_map"], atol=1e-6)
    np.testing.assert_allclose(result.hessian, reference["hessian"], atol=1e-6)


def test_a_network_ends_at_a_strict_maximum(problem, model, found):
    assert found.passed and found.reasons == ()
    assert found.theta.dtype == np.float64 and found.theta.shape == (model.num_params,)
    assert found.rel_grad_norm < QUICK.tolerance
    with double_precision():
        data = densities.make_data(problem, model, PRIOR_SD)
        gradient = jax.grad(lambda t: densities.log_density(model, t, data))(found.theta)
    z, slope = found.theta / PRIOR_SD, np.asarray(gradient) * PRIOR_SD
    relative = np.linalg.norm(slope) / max(1.0, np.linalg.norm(z))
    # Both are rounding by now; what counts is that the bound holds when somebody else evaluates it.
    assert relative < QUICK.tolerance
    eigenvalues = np.linalg.eigvalsh(found.hessian * PRIOR_SD**2)
    assert found.hessian_min_eigenvalue == pytest.approx(eigenvalues[0]) and eigenvalues[0] > 0


def test_the_hessian_is_that_of_finite_differences(problem, model, found):
    with double_precision():
        data = densities.make_data(problem, model, PRIOR_SD)
        gradient = jax.jit(jax.grad(lambda t: -densities.log_density(model, t, data)))
        step = 1e-5
        columns = [
            (gradient(found.theta + e) - gradient(found.theta - e)) / (2 * step)
            for e in step * np.eye(model.num_params)
        ]
    np.testing.assert_allclose(found.hessian, np.stack(columns), atol=1e-6)


def test_the_best_restart_is_kept(found):
    assert len(found.restart_log_densities) == 3
    assert found.log_density == pytest.approx(max(found.restart_log_densities), abs=1e-8)


def test_of_several_maxima_the_highest_is_kept(model):
    problem = make_problem("xor", seed=0, n=32, num_test=1, num_far=1, grid_size=2)
    result = fit_map(problem, model, prior_sd=2.0, key=KEY, settings=QUICK)
    ends = np.array(result.restart_log_densities)
    assert np.ptp(ends) > 0.01, "the case is meant to have several maxima"
    assert result.log_density == pytest.approx(ends.max(), abs=1e-8)


def test_lanczos_finds_the_dense_eigenvalue(problem, model, found, monkeypatch):
    monkeypatch.setattr(fit, "DENSE_HESSIAN_MAX", model.num_params - 1)
    sparse = fit_map(problem, model, prior_sd=PRIOR_SD, key=KEY, settings=QUICK)
    assert sparse.hessian is None and sparse.hessian_method == "lanczos"
    assert sparse.hessian_min_eigenvalue == pytest.approx(found.hessian_min_eigenvalue, rel=5e-3)
    np.testing.assert_array_equal(sparse.theta, found.theta)


def test_too_few_steps_fail_with_the_norm_and_its_bound(problem):
    model = make_model(problem, depth=0)
    settings = MapSettings(num_restarts=2, adam_steps=1, lbfgs_steps=1)
    result = fit_map(problem, model, prior_sd=PRIOR_SD, key=KEY, settings=settings)
    assert not result.passed and float(result.rel_grad_norm) > settings.tolerance
    assert "did not converge" in result.reasons[0] and "1e-05" in result.reasons[0]


def checked(problem, model, prior_sd, z):
    """What fit_map reports had every start ended at z."""
    frame = make_frame([problem], model, prior_sd)
    with double_precision():
        data = densities.make_data(problem, model, prior_sd)
        potential = fit._potential(model, data)
        value, gradient = jax.value_and_grad(potential)(jnp.asarray(z))
        norm = float(jnp.linalg.norm(gradient) / max(1.0, np.linalg.norm(z)))
        found = np.ones_like(z), z[None], np.array([float(value)]), np.array([norm])
        return fit._checked_map(problem, frame, 0, prior_sd, *found, MapSettings())


@pytest.mark.parametrize("method", ["dense", "lanczos"])
def test_a_saddle_is_no_maximum(model, method, monkeypatch):
    # y = (x1 > 0) with inputs in pairs x, -x: theta = 0 is stationary for a tanh network, but each hidden unit has the
    # cross term -v w^T sum_n (y_n - 1/2) x_n, which is negative curvature where it exceeds the prior's 1.
    half = np.random.default_rng(0).standard_normal((16, 2))
    X = np.concatenate([half, -half])
    problem = Problem.from_arrays(X, (X[:, 0] > 0).astype(int))
    if method == "lanczos":
        monkeypatch.setattr(fit, "DENSE_HESSIAN_MAX", 1)
    result = checked(problem, model, 3.0, np.zeros(model.num_params))
    assert result.hessian_method == method and float(result.rel_grad_norm) < 1e-12
    # 9 is prior_sd^2, the roots are those of ntk's fan-ins.
    slope = 9 * np.linalg.norm((problem.y - 0.5) @ X) / np.sqrt(2) / np.sqrt(3)
    assert result.hessian_min_eigenvalue == pytest.approx(1 - slope, rel=5e-3)
    assert not result.passed and "no strict maximum" in result.reasons[0]
    # The search itself leaves it.
    free = fit_map(problem, model, prior_sd=3.0, key=KEY, settings=QUICK)
    assert free.passed and free.log_density > result.log_density + 1


def test_a_start_that_overflows_is_passed_over(problem, model, monkeypatch):
    real = fit._search

    def search(*args, **settings):
        z, values, norms = jax.device_get(real(*args, **settings))
        values, norms = np.array(values), np.array(norms)
        values[0, 0] = norms[0, 0] = np.nan
        return z, values, norms

    monkeypatch.setattr(fit, "_search", search)
    result = fit_map(problem, model, prior_sd=PRIOR_SD, key=KEY, settings=QUICK)
    assert result.passed and np.isnan(result.restart_log_densities[0])


def test_several_problems_in_one_call_are_as_one_by_one(model, found):
    problems = [binary(0), binary(5)]
    keys = [KEY, jax.random.key(7)]
    both = fit_maps(problems, model, prior_sd=PRIOR_SD, keys=keys, settings=QUICK)
    other = fit_map(problems[1], model, prior_sd=PRIOR_SD, key=keys[1], settings=QUICK)
    for together, alone in zip(both, [found, other], strict=True):
        np.testing.assert_allclose(together.theta, alone.theta, atol=1e-4)
        assert together.log_density == pytest.approx(alone.log_density, abs=1e-7)
        assert together.passed == alone.passed


def test_searches_at_once_are_those_one_by_one(model, monkeypatch):
    """Off the CPU all searches are one batch."""
    problems, keys = [binary(seed=s) for s in (0, 1)], [KEY, jax.random.key(1)]
    monkeypatch.setattr(fit.jax, "default_backend", lambda: "gpu")
    settings = dataclasses.replace(QUICK, lbfgs_steps=400)  # a program of its own
    at_once = fit_maps(problems, model, prior_sd=PRIOR_SD, keys=keys, settings=settings)
    monkeypatch.undo()
    apart = fit_maps(problems, model, prior_sd=PRIOR_SD, keys=keys, settings=QUICK)
    for one, other in zip(at_once, apart, strict=True):
        assert one.passed and other.passed
        np.testing.assert_allclose(
            one.restart_log_densities, other.restart_log_densities, rtol=1e-8
        )
        np.testing.assert_allclose(one.theta, other.theta, atol=1e-5)


def test_the_same_key_gives_the_same_map(problem, model, found):
    again = fit_map(problem, model, prior_sd=PRIOR_SD, key=KEY, settings=QUICK)
    np.testing.assert_array_equal(again.theta, found.theta)
    assert again.restart_log_densities == found.restart_log_densities


def test_what_does_not_fit_together_is_refused(problem, model):
    with pytest.raises(ValueError, match="prior_sd must be a positive"):
        fit_map(problem, model, prior_sd=0.0, key=KEY)
    regression = Problem.from_arrays(problem.X, problem.y * 1.0, noise_sd=1.0)
    with pytest.raises(ValueError, match="model must have the inputs, outputs and likelihood"):
        fit_map(regression, model, prior_sd=1.0, key=KEY)
    with pytest.raises(ValueError, match=r"X of one shape, got \(32, 2\) and \(9, 2\)"):
        fit_maps([problem, binary(n=9)], model, prior_sd=1.0, keys=[KEY, KEY])
    with pytest.raises(ValueError, match=r"settings must be .*got both \(num_restarts\)"):
        fit_map(problem, model, prior_sd=1.0, key=KEY, settings=MapSettings(), num_restarts=2)
    with pytest.raises(ValueError, match="num_restarts must be an integer from 1 to"):
        MapSettings(num_restarts=0)
    with pytest.raises(ValueError, match="tolerance must be a positive"):
        MapSettings(tolerance=0.0)
