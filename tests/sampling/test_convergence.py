"""R-hat, ESS and Monte Carlo errors: ArviZ on the same draws, known theory, bad draws."""

from __future__ import annotations

import arviz as az
import numpy as np
import pytest
from scipy.signal import lfilter

from isounc.sampling.convergence import CHUNK_DRAWS, Diagnostics, diagnose


def autoregression(rng, shape, phi):
    """AR(1) chains of unit variance along axis 1, started in equilibrium."""
    noise = rng.standard_normal(shape)
    noise[:, 1:] *= np.sqrt(1 - phi**2)
    return lfilter([1.0], [1.0, -phi], noise, axis=1)


def with_rejections(rng, draws, rate):
    """The draws of a sampler that stays where it is at the given rate."""
    steps = np.arange(draws.shape[1])
    source = np.where(rng.random(draws.shape[:2]) < rate, 0, steps)
    return np.stack([x[np.maximum.accumulate(at)] for x, at in zip(draws, source, strict=True)])


def draws_of_kinds(kind):
    rng = np.random.default_rng(11)
    x = autoregression(rng, (4, 300, 6), 0.6)
    return {
        "autocorrelated": lambda: x,
        "antithetic": lambda: autoregression(rng, (4, 300, 6), -0.6),
        "random walk": lambda: np.cumsum(x, axis=1),
        "odd": lambda: x[:, :-1],
        "two chains": lambda: x[:2],
        "shifted chain": lambda: x + np.array([0.0, 0.0, 0.0, 1.0])[:, None, None],
        "wide chain": lambda: x * np.array([1.0, 1.0, 1.0, 3.0])[:, None, None],
        "stuck chain": lambda: np.where(np.arange(4)[:, None, None] == 2, x[0, 0, 0], x),
        "rejections": lambda: with_rejections(rng, x, 0.4),
        "few values": lambda: np.round(2 * x) / 4,
        "heavy tails": lambda: np.sinh(3 * x),
        "four draws": lambda: x[:, :4],
        "five draws": lambda: x[:, :5],
        "tiny": lambda: 0.5 + 1e-6 * x,
    }[kind]()


def arviz_numbers(x):
    """ArviZ's counterparts for one location (K, S)."""
    square = (x - x.mean()) ** 2
    return {
        "rhat": az.rhat(x, method="rank"),
        "ess_bulk": az.ess(x, method="bulk"),
        "ess_var": az.ess(square, method="bulk"),
        "ess_tail": az.ess(x, method="tail", prob=(0.05, 0.95)),
        "ess_mean": az.ess(x, method="mean"),
        "mean": x.mean(),
        "mean_se": az.mcse(x, method="mean"),
        "var": x.var(),
        # The delta method for a square root, undone.
        "var_se": 2 * x.std() * az.mcse(x, method="sd"),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "autocorrelated",
        "antithetic",
        "random walk",
        "odd",
        "two chains",
        "shifted chain",
        "wide chain",
        "stuck chain",
        "rejections",
        "few values",
        "heavy tails",
        "four draws",
        "five draws",
        "tiny",
    ],
)
def test_agrees_with_arviz(kind):
    x = draws_of_kinds(kind)
    ours = diagnose(x)
    for location in range(x.shape[2]):
        for name, number in arviz_numbers(x[:, :, location]).items():
            # The square of a tiny deviation is computed here from a scaled one: better, not equal.
            close = pytest.approx(float(number), rel=1e-5 if kind == "tiny" else 1e-9)
            assert getattr(ours, name)[location] == close, (name, location)


def test_agrees_with_arviz_on_float32_probabilities_with_rejections():
    rng = np.random.default_rng(3)
    logits = with_rejections(rng, autoregression(rng, (4, 500, 5), 0.5), 0.3) * [1, 3, 6, 9, 12]
    p = (1 / (1 + np.exp(-logits))).astype(np.float32)
    ours = diagnose(p)
    for location in range(p.shape[2]):
        for name, number in arviz_numbers(p[:, :, location].astype(np.float64)).items():
            assert getattr(ours, name)[location] == pytest.approx(float(number), rel=1e-7), name


def test_independent_draws_are_worth_their_number():
    d = diagnose(np.random.default_rng(0).standard_normal((4, 1000, 60)))
    for ess in (d.ess_bulk, d.ess_var, d.ess_tail, d.ess_mean):
        assert np.mean(ess) == pytest.approx(4000, rel=0.05)
    assert d.rhat.max() < 1.01


@pytest.mark.parametrize("phi", [-0.4, 0.3, 0.8])
def test_autoregression_has_its_known_ess(phi):
    n = 4 * 3000
    d = diagnose(autoregression(np.random.default_rng(1), (4, 3000, 40), phi))
    in_theory = n * (1 - phi) / (1 + phi)
    assert np.mean(d.ess_mean) == pytest.approx(in_theory, rel=0.05)
    # The squares of a Gaussian AR(1) are correlated like phi^2.
    assert np.mean((d.var / d.var_se) ** 2 / 0.5) == pytest.approx(
        n * (1 - phi**2) / (1 + phi**2), rel=0.08
    )
    assert np.mean(d.mean_se) == pytest.approx(1 / np.sqrt(in_theory), rel=0.05)


@pytest.mark.parametrize("phi", [-0.5, 0.0, 0.7])
def test_standard_errors_are_the_spread_over_replications(phi):
    # Each location is a replication; exp makes the distribution skew.
    d = diagnose(np.exp(0.5 * autoregression(np.random.default_rng(2), (4, 500, 800), phi)))
    assert np.sqrt(np.mean(d.mean_se**2)) == pytest.approx(d.mean.std(), rel=0.08)
    assert np.sqrt(np.mean(d.var_se**2)) == pytest.approx(d.var.std(), rel=0.12)


def test_chunks_do_not_show():
    x = np.random.default_rng(4).standard_normal((2, 40, CHUNK_DRAWS // 80 + 3)).astype(np.float32)
    whole, last = diagnose(x), diagnose(x[:, :, -4:])
    for name in Diagnostics._fields:
        np.testing.assert_allclose(
            getattr(whole, name)[..., -4:], getattr(last, name), rtol=1e-12, err_msg=name
        )


def test_ranks_and_ess_ignore_a_change_of_units():
    x = np.random.default_rng(5).standard_normal((4, 200, 3))
    d, scaled = diagnose(x), diagnose(-(2.0**-200) * x)  # a power of 2 keeps ties as they are
    np.testing.assert_allclose(scaled.rhat, d.rhat, rtol=1e-9)
    np.testing.assert_allclose(scaled.ess_mean, d.ess_mean, rtol=1e-9)
    np.testing.assert_allclose(scaled.ess_var, d.ess_var, rtol=1e-9)
    np.testing.assert_allclose(scaled.var_se / scaled.var, d.var_se / d.var, rtol=1e-9)


def test_order_of_chains_does_not_matter():
    x = autoregression(np.random.default_rng(6), (4, 200, 3), 0.5)
    for field, permuted in zip(diagnose(x)[:-1], diagnose(x[[2, 0, 3, 1]])[:-1], strict=True):
        np.testing.assert_allclose(field, permuted, rtol=1e-9)


def test_locations_keep_their_shape():
    x = np.random.default_rng(7).standard_normal((4, 50, 2, 3))
    d = diagnose(x)
    assert d.rhat.shape == d.mean.shape == d.finite.shape == (2, 3)
    assert d.frozen.shape == (4, 2, 3)
    assert diagnose(x[:, :, 1, 2]).rhat == d.rhat[1, 2]
    np.testing.assert_array_equal(diagnose(x.astype(np.float32)).var.shape, (2, 3))


def test_bad_locations_are_marked_and_leave_the_others_alone():
    x = np.random.default_rng(8).standard_normal((4, 100, 6))
    alone = diagnose(x[:, :, 5:])
    x[1, 7, 0] = np.nan
    x[0, 0, 1], x[3, 9, 1] = np.inf, -np.inf
    x[:, :, 2] = 0.25
    x[2, :, 3] = 0.5
    x[:, :, 4] = np.arange(4)[:, None]
    d = diagnose(x)
    assert d.finite.tolist() == [False, False, True, True, True, True]
    assert d.frozen.any(axis=0).tolist() == [False, False, True, True, True, False]
    assert d.frozen[:, 3].tolist() == [False, False, True, False]
    for name in ("rhat", "ess_bulk", "ess_var", "ess_tail", "ess_mean", "mean_se", "var_se"):
        assert np.isnan(getattr(d, name)[:3]).all()
    assert np.isnan(d.mean[:2]).all() and np.isnan(d.var[:2]).all()
    assert (d.mean[2], d.var[2]) == (0.25, 0.0)
    assert np.isfinite(d.rhat[3]) and d.rhat[4] == np.inf
    assert not d.equal.any()
    for name in set(Diagnostics._fields) - {"equal"}:
        np.testing.assert_array_equal(getattr(d, name)[..., 5], getattr(alone, name)[..., 0])


def test_nothing_but_bad_locations():
    d = diagnose(np.full((2, 4, 3), np.nan))
    assert np.isnan(d.rhat).all() and not d.finite.any()


@pytest.mark.parametrize("shape", [(4,), (1, 100, 3), (4, 3, 3), (4, 100, 0)])
def test_too_few_draws_are_refused(unchecked, shape):
    with pytest.raises(ValueError, match=r"values must be .* got shape"):
        diagnose(np.zeros(shape))
