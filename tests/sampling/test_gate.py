"""The gate passes what is sound and says why it fails the rest; E-BFMI; errors from batch means."""

from __future__ import annotations

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import lfilter

from isounc.sampling.batch_means import batch_means_se
from isounc.sampling.convergence import diagnose
from isounc.sampling.gate import ebfmi, gate
from isounc.sampling.settings import GateSettings

K, S, Q = 4, 1000, 12


@pytest.fixture
def draws():
    return np.random.default_rng(0).beta(2, 3, (K, S, Q)).astype(np.float32)


@pytest.fixture
def energy():
    return np.random.default_rng(1).standard_normal((K, S))


def judge(draws, energy, **settings):
    counts = {"num_divergent": 0, "num_saturated": 0, "num_transitions": K * S}
    return gate(draws, energy=energy, **counts | settings)


def test_sound_draws_pass(draws, energy):
    verdict = judge(draws, energy)
    assert verdict.passed and verdict.reasons == ()
    assert verdict.num_locations == Q
    d = diagnose(draws)
    assert verdict.rhat_max == d.rhat.max() == d.rhat[verdict.where_worst]
    assert verdict.ess_bulk_min == d.ess_bulk.min()
    assert verdict.ess_var_min == d.ess_var.min()
    assert verdict.ess_tail_min == d.ess_tail.min()
    assert verdict.ebfmi_min == ebfmi(energy).min()
    assert verdict.var_mcse_median == np.median(d.var_se / d.var)
    assert judge(d, energy) == verdict
    assert judge(jnp.asarray(draws), energy) == verdict


def test_the_variance_is_known_to_3_percent_from_2200_draws(energy):
    # What the design says of Gaussian draws: relative error sqrt(2 / ESS).
    x = np.random.default_rng(2).standard_normal((4, 550, 50))
    assert judge(x, energy).var_mcse_median == pytest.approx(np.sqrt(2 / 2200), rel=0.03)


def shift_chain(x):
    x[2, :, 3] += 0.1


def freeze_chain(x):
    x[1] = x[1, :1]


def freeze_chain_at_its_median(x):
    x[1, :, 5] = np.median(x[:, :, 5])


def freeze_everything(x):
    x[:, :, 4] = 0.5


def spoil(x):
    x[3, 17, 2] = np.nan
    x[0, 5, 7] = np.inf


def two_values(x):
    x[:, ::2, 1], x[:, 1::2, 1] = 0.25, 0.75


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (shift_chain, r"R-hat is 1\.\d+ at location 3; it must be below 1\.01"),
        (freeze_chain, r"12 of 12 locations have a chain that stands still \(chain index 1\)"),
        (freeze_chain_at_its_median, r"1 of 12 locations have a chain that stands still"),
        (freeze_everything, r"1 of 12 locations have zero variance and so no R-hat"),
        (spoil, r"2 of 12 locations have a draw that is not finite"),
        (two_values, r"1 of 12 locations have too few different values"),
    ],
)
def test_bad_draws_fail_with_a_reason(draws, energy, damage, sentence):
    damage(draws)
    verdict = judge(draws, energy)
    assert not verdict.passed
    assert [reason for reason in verdict.reasons if re.match(sentence, reason)]


def test_bad_locations_are_counted(draws, energy):
    freeze_everything(draws)
    spoil(draws)
    draws[0, :, 9] = 0.1
    verdict = judge(draws, energy)
    assert (verdict.num_zero_variance, verdict.num_nonfinite, verdict.num_frozen) == (1, 2, 1)


def test_sticky_chains_fail_for_p_and_for_its_square(energy):
    noise = np.random.default_rng(3).standard_normal((K, S, Q))
    slow = lfilter([1.0], [1.0, -0.95], noise, axis=1)
    verdict = judge(slow, energy)
    assert any(r.startswith("the bulk ESS of p is") for r in verdict.reasons)
    # |p - mean| changes slowly, its sign at random: p itself looks fine.
    signs = np.random.default_rng(4).choice([-1.0, 1.0], slow.shape)
    verdict = judge(signs * np.abs(slow), energy)
    assert not any(r.startswith("the bulk ESS of p is") for r in verdict.reasons)
    assert any(r.startswith("the bulk ESS of (p - mean)^2 is") for r in verdict.reasons)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"num_divergent": 4}, "4 of 4000 transitions diverged (0.100%)"),
        ({"num_saturated": 1}, "1 of 4000 trajectories ended at the step limit; 0 may"),
        ({"settings": GateSettings(ess_min=1e5)}, "it must be 100000 or more"),
        ({"settings": GateSettings(rhat_max=1.00001)}, "it must be below 1.00001"),
        ({"settings": GateSettings(ebfmi_min=5.0)}, "it must be above 5"),
    ],
)
def test_every_bound_can_fail(draws, energy, changed, sentence):
    verdict = judge(draws, energy, **changed)
    assert not verdict.passed
    assert any(sentence in reason for reason in verdict.reasons)


def test_bounds_that_are_just_kept(draws, energy):
    assert judge(draws, energy, num_divergent=3).passed
    assert judge(draws, energy, num_saturated=2, settings=GateSettings(saturated_max=2)).passed
    assert judge(draws, energy, settings=GateSettings(divergence_rate_max=0.0)).passed


def test_which_bounds_may_be_met_exactly(draws, energy):
    found = judge(draws, energy)
    for kept, settings in (
        (True, GateSettings(ess_min=min(found.ess_bulk_min, found.ess_var_min))),
        (False, GateSettings(rhat_max=found.rhat_max)),
        (False, GateSettings(ebfmi_min=found.ebfmi_min)),
    ):
        assert judge(draws, energy, settings=settings).passed is kept, settings


@pytest.mark.parametrize(
    ("precision", "sentence"),
    [
        ((0.1, 0.1), None),
        ((0.11, 0.0), "log posterior are wrong by up to 0.11 nats; 0.1 may be: single precision"),
        ((np.inf, 0.0), "log posterior are wrong by up to inf nats"),
        ((0.0, 0.2), "wrong by up to 0.2 posterior standard deviations; 0.1 may be: single"),
        ((0.0, np.inf), "wrong by up to inf posterior standard deviations"),
    ],
)
def test_errors_of_single_precision(draws, energy, precision, sentence):
    verdict = judge(draws, energy, precision=precision)
    assert len(verdict.reasons) == (sentence is not None) and verdict.passed is (sentence is None)
    assert sentence is None or sentence in verdict.reasons[0]
    finite = tuple(error if np.isfinite(error) else None for error in precision)
    assert (verdict.log_density_error, verdict.prediction_error) == finite
    unknown = judge(draws, energy)
    assert unknown.log_density_error is None and unknown.prediction_error is None


def test_energies_fail_by_themselves(draws, energy):
    drifting = np.cumsum(energy, axis=1)
    assert [r.split(" is ")[0] for r in judge(draws, drifting).reasons] == ["E-BFMI"]
    energy[2] = 1.5
    assert "E-BFMI is undefined in 1 of 4 chains" in judge(draws, energy).reasons[0]
    energy[3, 5] = np.nan
    assert "E-BFMI is undefined in 2 of 4 chains" in judge(draws, energy).reasons[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
def test_a_verdict_is_strict_json(energy, value):
    frozen = np.full((K, S, 2), value)
    frozen[:, :, 1] = np.arange(K)[:, None]
    for draws in (frozen, frozen[:, :, :1], frozen[:, :, 0]):
        verdict = judge(draws, energy * np.nan)
        assert not verdict.passed
        text = json.dumps(verdict._asdict(), allow_nan=False)
        assert json.loads(text)["rhat_max"] is None
    assert judge(frozen, energy).where_worst == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_transitions": 0}, "num_transitions must be an integer of at least 1, got 0"),
        ({"num_divergent": -1}, "num_divergent must be an integer from 0 to 4000, got -1"),
        ({"num_saturated": 4001}, "num_saturated must be an integer from 0 to 4000, got 4001"),
        ({"energy": np.zeros((S, K))}, "a row for each of the 4 chains, got 1000"),
        ({"energy": np.zeros(S)}, r"energy must be \(chains, draws\)"),
    ],
)
def test_impossible_arguments_are_refused(unchecked, draws, energy, changed, message):
    with pytest.raises(ValueError, match=message):
        judge(draws, **{"energy": energy} | changed)


def test_ebfmi_is_its_formula(energy):
    for chain, fraction in zip(energy, ebfmi(energy), strict=True):
        steps = sum((chain[t] - chain[t - 1]) ** 2 for t in range(1, S))
        assert fraction == pytest.approx(steps / sum((e - chain.mean()) ** 2 for e in chain))
    assert ebfmi(np.array([[1.0, 1.0], [0.0, 2.0]]))[1] == 2.0
    assert np.isnan(ebfmi(np.array([[1.0, 1.0], [0.0, 2.0]]))[0])


@pytest.mark.parametrize("shape", [(4, 1), (0, 5), (5,), (1, 2, 2)])
def test_energies_of_a_wrong_shape_are_refused(unchecked, shape):
    with pytest.raises(ValueError, match=r"energy must be \(chains, draws\) with 2 draws or more"):
        ebfmi(np.ones(shape))


def batches(x, size, shift):
    parts = (x - shift).reshape(x.shape[0], -1, size, x.shape[2])
    return parts.mean(axis=2), (parts**2).mean(axis=2)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_batch_means_give_the_moments_and_errors_of_the_draws(shift):
    noise = np.random.default_rng(5).standard_normal((4, 4000, 80))
    x = 0.5 + 0.1 * lfilter([1.0], [1.0, -0.5], noise, axis=1)
    d = diagnose(x)
    streamed = batch_means_se(*batches(x, 50, shift), shift=shift)
    np.testing.assert_allclose(streamed.mean, d.mean, rtol=1e-12)
    np.testing.assert_allclose(streamed.var, d.var, rtol=1e-9)
    assert np.mean(streamed.mean_se / d.mean_se) == pytest.approx(1, abs=0.04)
    assert np.mean(streamed.var_se / d.var_se) == pytest.approx(1, abs=0.04)
    # And they are the errors: each location is a replication.
    assert np.mean(streamed.mean_se) == pytest.approx(streamed.mean.std(), rel=0.2)
    assert np.mean(streamed.var_se) == pytest.approx(streamed.var.std(), rel=0.2)


def test_batch_means_see_chains_that_disagree():
    x = 0.01 * np.random.default_rng(6).standard_normal((4, 400, 1))
    x += np.arange(4.0)[:, None, None]
    streamed = batch_means_se(*batches(x, 20, 0.0))
    assert streamed.mean_se[0] > 10 * batch_means_se(*batches(x[:1], 20, 0.0)).mean_se[0]


def test_a_shift_saves_float32_batch_means():
    x = 0.999 + 1e-5 * np.random.default_rng(7).standard_normal((4, 2000, 5))
    a, b = (part.astype(np.float32) for part in batches(x, 50, 0.999))
    streamed = batch_means_se(a, b, shift=np.full(5, 0.999))
    np.testing.assert_allclose(streamed.mean, x.mean(axis=(0, 1)), rtol=1e-9)
    np.testing.assert_allclose(streamed.var, x.var(axis=(0, 1)), rtol=1e-5)


def test_one_batch_of_each_chain_and_one_location_are_enough():
    a, b = batches(np.random.default_rng(8).standard_normal((4, 50, 1)), 50, 0.0)
    means = a.ravel()
    streamed = batch_means_se(a[:, :, 0], b[:, :, 0])
    assert streamed.mean == pytest.approx(means.mean())
    assert streamed.mean_se == pytest.approx(np.sqrt(((means - means.mean()) ** 2).sum() / 3 / 4))
    assert streamed.var == pytest.approx(b.mean() - means.mean() ** 2)
    about_mean = b.ravel() - 2 * means.mean() * means
    assert streamed.var_se == pytest.approx(
        np.sqrt(((about_mean - about_mean.mean()) ** 2).sum() / 12)
    )


def test_batches_count_by_their_lengths():
    # Two chains of 3 batches with 50, 50 and 10 draws, at one location.
    rng = np.random.default_rng(9)
    draws, lengths = rng.standard_normal((2, 110, 1)), np.array([50, 50, 10])
    parts = np.split(draws, np.cumsum(lengths)[:-1], axis=1)
    a = np.stack([part.mean(1) for part in parts], axis=1)
    b = np.stack([(part**2).mean(1) for part in parts], axis=1)
    found = batch_means_se(a, b, lengths=lengths)
    np.testing.assert_allclose(found.mean, draws.mean((0, 1)))
    np.testing.assert_allclose(found.var, draws.var((0, 1)))
    for means, centre, se in (
        (a, draws.mean(), found.mean_se),
        (b - 2 * draws.mean() * a + draws.mean() ** 2, draws.var(), found.var_se),
    ):
        of_one_draw = (lengths[None] * (means[..., 0] - centre) ** 2).sum() / 5
        np.testing.assert_allclose(se, np.sqrt(of_one_draw / 220))
    # Independent draws: the error is that of so many, whatever the lengths.
    draws = rng.standard_normal((20_000, 2, 110))
    parts = np.split(draws, np.cumsum(lengths)[:-1], axis=2)
    a = np.stack([part.mean(2).T for part in parts], axis=1)
    squared = batch_means_se(a, 0 * a + 9, lengths=lengths).mean_se ** 2
    np.testing.assert_allclose(squared.mean(), 1 / 220, rtol=0.03)
    with pytest.raises(
        ValueError, match="lengths must be one for each of the 3 batches, got shape"
    ):
        batch_means_se(a, a, lengths=lengths[:2])


@pytest.mark.parametrize(
    ("first", "second"), [((4, 10, 3), (4, 10, 2)), ((1, 1, 3), (1, 1, 3)), ((4,), (4,))]
)
def test_batch_means_of_a_wrong_shape_are_refused(unchecked, first, second):
    with pytest.raises(ValueError, match="batch_means and batch_square_means must both be"):
        batch_means_se(np.zeros(first), np.zeros(second))
