"""Off-centre inputs: the changed first layer is the model and its prior, in other parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc.centring import is_off_centre, make_frame
from isounc.fit import fit_map
from isounc.models import make_model
from isounc.problems import Problem
from isounc.references import linear_gaussian, logistic_by_quadrature

PRIOR_SD, KEY = 1.7, jax.random.key(0)
YEARS = np.arange(1980.0, 2020.0)
UNIX_SECONDS = 1.6e9 + 86_400.0 * np.arange(40)


def line(x, noise_sd=0.01):
    """A trend over inputs x."""
    rng = np.random.default_rng(0)
    t = (x - x.mean()) / x.std()
    y = 0.5 + 0.3 * t + noise_sd * rng.standard_normal(len(x))
    ends = x.mean() + np.ptp(x) * np.linspace(-1, 1, 9)
    return Problem.from_arrays(x[:, None], y, noise_sd=noise_sd, regions={"q": ends[:, None]})


@pytest.mark.parametrize("parameterisation", ["ntk", "fan_in", "standard"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_changed_model_is_the_model_and_its_prior(depth, parameterisation, x64):
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((12, 3))
    # Years, another column off centre, one that is not, and a constant.
    X = np.column_stack([1980 + np.arange(12), 30 + noise[:, 0], 0.1 * noise[:, 1], np.ones(12)])
    problem = Problem.from_arrays(X, noise[:, 2], noise_sd=0.1, regions={"q": X + 1})
    model = make_model(problem, width=3, depth=depth, parameterisation=parameterisation)
    frame = make_frame([problem], model, PRIOR_SD)
    u = 1e-4 * rng.standard_normal((5, model.num_params)) * frame.data.prior_sd[0]
    theta = frame.theta(u, 0)
    for ours, given in ((frame.data.X[0], problem.X), (frame.locations(problem, 0), X + 1)):
        for one, other in zip(u, theta, strict=True):
            expected = model.apply(jnp.asarray(other), given)
            assert np.ptp(expected) > 1e-12
            found = frame.model.apply(jnp.asarray(one), ours)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.ptp(expected))
    for name in ("apply", "features"):
        rows, columns = (
            getattr(frame.model, name + end)(jnp.asarray(u[0]), frame.data.X[0])
            for end in ("", "_transposed")
        )
        np.testing.assert_allclose(rows, columns.T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        ((theta / model.param_prior_sd(PRIOR_SD)) ** 2).sum(1),
        ((u / frame.data.prior_sd[0]) ** 2).sum(1),
    )
    np.testing.assert_allclose(frame.parameters(theta[0], 0), u[0], atol=1e-14)
    if depth == 0:
        phi = frame.linear_features(frame.data.X[0], 0)
        np.testing.assert_allclose(
            phi @ u.T, np.hstack([frame.model.apply(jnp.asarray(v), frame.data.X[0]) for v in u])
        )


def test_centred_inputs_are_left_alone():
    assert not is_off_centre(np.random.default_rng(0).standard_normal((50, 3)))
    problem = line(YEARS - YEARS.mean())
    model = make_model(problem, depth=0)
    frame = make_frame([problem], model, PRIOR_SD)
    assert frame.model is model and frame.centred == ()
    np.testing.assert_array_equal(frame.data.X[0], problem.X)


@pytest.mark.parametrize("x", [YEARS, UNIX_SECONDS, UNIX_SECONDS / 1e4])
def test_the_map_of_a_line_is_exact_wherever_its_inputs_are(x):
    problem = line(x)
    model = make_model(problem, depth=0)
    found = fit_map(problem, model, prior_sd=10.0, key=KEY)
    assert found.passed, found.reasons
    exact = linear_gaussian(problem, model, prior_sd=10.0)
    # In float64 predictions from theta have about 1e-7 of their digits at 1.6e9.
    f = np.asarray(problem.regions["q"]) @ found.theta[:1, None] + found.theta[1]
    np.testing.assert_allclose(f, exact.regions["q"].mean, atol=1e-5)


def test_a_map_that_nothing_finds_says_so():
    problem = line(1e200 * (YEARS - YEARS.mean()))
    with pytest.raises(ValueError, match=r"must have a finite log posterior .* standardise X"):
        fit_map(problem, make_model(problem, depth=0), prior_sd=10.0, key=KEY)


@pytest.mark.parametrize("offset", [0.0, 2000.0, 1.6e6])
def test_exact_references_do_not_depend_on_the_origin(offset):
    # With a prior wide enough the bias takes up the origin, and the posterior of f is the same.
    rng = np.random.default_rng(2)
    t = rng.standard_normal((30, 1))
    grid = np.linspace(-2, 2, 7)[:, None]
    labels = (t[:, 0] + rng.logistic(size=30) > 0).astype(int)
    exact = []
    for at in (offset, 0.0):
        regression = Problem.from_arrays(t + at, t[:, 0], noise_sd=0.3, regions={"q": grid + at})
        classes = Problem.from_arrays(t + at, labels, regions={"q": grid + at})
        for solve, problem in ((linear_gaussian, regression), (logistic_by_quadrature, classes)):
            model = make_model(problem, depth=0, parameterisation="standard")
            result = solve(problem, model, prior_sd=1e11)
            assert not result.reasons
            exact.append(result.regions["q"])
    for there, here in zip(exact[:2], exact[2:], strict=True):
        np.testing.assert_allclose(there.mean, here.mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(there.var, here.var, rtol=1e-6)
