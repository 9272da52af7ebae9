"""Moderated probabilities against quadrature, their limits and their sign."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from isounc import isotropic
from isounc.estimates.moderated import moderated_error
from isounc.estimates.scale_rules import LOGISTIC_VAR, unit_log_var


def by_quadrature(odds, sd):
    """1 - E[sigmoid(f)] in float64: E[sigmoid(-f)], the Gaussian's tail beyond the logistic noise.

    f + noise < 0 for logistic noise, so that it is the integral of Phi(-(d + e) / sd) over its
    density: bounded functions, whatever the sd.
    """
    e = np.linspace(-60, 60, 60_001)
    density = special.expit(e) * special.expit(-e)
    return np.trapezoid(density * special.ndtr(-(odds + e) / sd), e)


@pytest.mark.parametrize("sd", [0.3, 2.0, 30.0, 3e5])
def test_it_is_the_average_of_the_sigmoid(sd):
    odds = np.array([-12.0, -1.0, 0.0, 2.5, 9.0, 14.0])
    got = moderated_error(odds, np.full(6, 2 * np.log(sd)))
    np.testing.assert_allclose(got, [by_quadrature(d, sd) for d in odds], rtol=1e-5)


def test_limits_at_any_log_odds():
    odds = np.array([-800.0, -40.0, -1.0, 0.0, 3.0, 40.0, 700.0])
    error = special.expit(-odds)
    np.testing.assert_allclose(moderated_error(odds, np.full(7, -np.inf)), error, rtol=1e-12)
    np.testing.assert_allclose(moderated_error(odds, np.full(7, -30.0)), error, rtol=1e-6)
    for log_var in (60.0, 500.0, 1e5):
        np.testing.assert_allclose(moderated_error(odds, np.full(7, log_var)), 0.5, rtol=1e-9)
    (got,) = moderated_error(np.array([300.0]), np.array([2 * np.log(50.0)]))
    assert got == pytest.approx(by_quadrature(300.0, 50.0), rel=1e-5)
    undefined = moderated_error(np.array([np.nan, 1.0, np.inf]), np.array([0.0, np.nan, 0.0]))
    assert np.isnan(undefined).all()
    assert moderated_error(np.zeros((2, 0)), np.zeros((2, 0))).shape == (2, 0)
    with pytest.raises(ValueError, match=r"one shape, got \(2,\) and \(3,\)"):
        moderated_error(np.zeros(2), np.zeros(3))


def test_its_sign_is_the_same_at_every_p():
    """At one sd it falls with p; the sd draws it towards 1/2 and never across."""
    odds = np.linspace(-30, 30, 41)
    for log_var in (-5.0, 1.0, 4.0):
        error = moderated_error(odds, np.full(41, log_var))
        assert (np.diff(error) < 0).all()
        assert ((error > 0.5) == (odds < 0))[odds != 0].all()
    spread = np.linspace(-4, 8, 9)
    assert (np.diff(moderated_error(np.full(9, 2.0), spread)) > 0).all()
    assert (np.diff(moderated_error(np.full(9, -2.0), spread)) < 0).all()


def test_a_classifier_has_it_by_the_rule_of_logit_scaled():
    """One logit x w: ||grad f||^2 = ||x||^2, and the rule's sigma^2 by hand."""
    rng = np.random.default_rng(0)
    X, x = rng.normal(size=(21, 3)), rng.normal(size=(4, 3)) * 3
    w = np.array([0.7, -1.2, 0.4])
    given = {"method": "logit_scaled", "reference": X}
    got = isotropic(lambda w, x: x @ w, x, jnp.asarray(w), task="binary", **given)
    var = LOGISTIC_VAR / np.median((X**2).sum(1))
    expected = [1 - by_quadrature(d, s) for d, s in zip(x @ w, np.sqrt(var * (x**2).sum(1)), strict=True)]  # fmt: skip
    np.testing.assert_allclose(got.moderated[:, 0], expected, rtol=1e-4)
    assert isotropic(lambda w, x: x @ w, x, jnp.asarray(w), task="binary").moderated is None


@pytest.mark.parametrize("norms", [[5.0], [1.0, 9.0, 4.0], [3.0, 1.0, 8.0, 6.0]])
def test_the_rule_from_logarithms(norms):
    """Also where the norms themselves are beyond float64."""
    for shift in (0.0, 3000.0):
        got = unit_log_var(np.log([*norms, np.nan]) + shift)
        assert got + shift == pytest.approx(np.log(LOGISTIC_VAR / np.median(norms)), rel=1e-12)
    assert np.isnan(unit_log_var(np.full(2, np.nan)))
    assert np.isnan(unit_log_var(np.array([-np.inf, -np.inf, 0.0])))
