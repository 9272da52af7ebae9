"""Correlations, levels, attenuation and calibration of one cell against closed forms and SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from isounc.metrics import class_views, expected_calibration_error, negative_log_likelihood
from isounc.statistics import compare, holm, interval_over_strata


def lognormal_pair(n=200, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return np.exp(x), np.exp(0.6 * x + 0.8 * rng.normal(size=n))


def assert_undefined(result, *reasons):
    assert (result.pearson, result.spearman, result.log10_pearson) == (None, None, None)
    for reason in reasons:
        assert reason in result.reason


@pytest.mark.parametrize("seed", [0, 1])
def test_correlations_agree_with_scipy(seed):
    a, b = lognormal_pair(seed=seed)
    a = np.round(a, 1) + 0.1  # ties
    result = compare(a, b)
    assert result.pearson == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-12)
    assert result.spearman == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    log_r = stats.pearsonr(np.log10(a), np.log10(b)).statistic
    assert result.log10_pearson == pytest.approx(log_r, abs=1e-12)
    assert result.slope == pytest.approx(b.sum() / a.sum(), rel=1e-12)
    assert (result.n_points, result.n_dropped, result.attenuation) == (200, 0, None)
    assert result.reason == ""


def test_nonpositive_pairs_are_dropped_from_log10_only_and_counted():
    a, b = lognormal_pair()
    a[:5], b[3:9] = 0.0, -0.1
    result = compare(a, b)
    keep = (a > 0) & (b > 0)
    assert result.n_dropped == 9
    log_r = stats.pearsonr(np.log10(a[keep]), np.log10(b[keep])).statistic
    assert result.log10_pearson == pytest.approx(log_r, abs=1e-12)
    assert result.pearson == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-12)


def test_order_of_locations_does_not_matter():
    a, b = lognormal_pair()
    se = 0.1 * b
    order = np.random.default_rng(3).permutation(len(a))
    z = np.random.default_rng(4).random(len(a))
    first = compare(a, b, reference_se=se, given=z)
    second = compare(a[order], b[order], reference_se=se[order], given=z[order])
    np.testing.assert_allclose(first[:-2], second[:-2], rtol=1e-12)


def test_units_change_the_level_only_even_when_squares_underflow():
    a, b = lognormal_pair()
    first, second = compare(a, b), compare(a * 1e-250, b * 1e200)
    assert second.pearson == pytest.approx(first.pearson, abs=1e-12)
    assert second.spearman == first.spearman
    assert second.log10_pearson == pytest.approx(first.log10_pearson, abs=1e-9)
    assert second.slope is None
    assert "level undefined" in second.reason
    assert compare(4 * a, b).slope == pytest.approx(b.sum() / a.sum() / 4)
    assert compare(1e306 * a, b).slope is None


def test_perfect_correlation_does_not_pass_one():
    a, _ = lognormal_pair()
    result = compare(a, 0.3 * a)
    assert result.pearson is not None
    assert 1 - 1e-12 < result.pearson <= 1
    assert compare(a, -0.3 * a).pearson == pytest.approx(-1)
    assert result.slope == pytest.approx(0.3)


def test_jax_float32_arrays_are_accepted():
    a, b = lognormal_pair()
    result = compare(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    assert result.pearson == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-6)


@pytest.mark.parametrize("true_r", [0.5, 0.9])
def test_attenuation_predicts_the_loss_from_known_reference_error(true_r):
    rng = np.random.default_rng(5)
    n = 200_000
    estimate = rng.normal(size=n)
    truth = true_r * estimate + np.sqrt(1 - true_r**2) * rng.normal(size=n)
    se = rng.uniform(0.2, 0.8, size=n)
    result = compare(estimate, truth + se * rng.normal(size=n), reference_se=se)
    lossless = compare(estimate, truth).pearson
    assert result.pearson is not None
    assert lossless is not None
    assert result.attenuation == pytest.approx(1 / np.sqrt(1 + np.mean(se**2)), abs=5e-3)
    assert result.pearson / lossless == pytest.approx(result.attenuation, abs=1e-2)
    assert result.pearson < 0.95 * lossless


def test_attenuation_by_hand_and_at_its_ends():
    estimate, reference = np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0])  # variance 1

    def factor(se):
        return compare(estimate, reference, reference_se=np.full(3, se)).attenuation

    assert factor(0.0) == 1.0
    assert factor(0.6) == pytest.approx(0.8)
    assert factor(5.0) == 0.0


def test_attenuation_with_an_unusable_standard_error():
    a, b = lognormal_pair()
    result = compare(a, b, reference_se=np.where(np.arange(200) < 2, np.nan, 0.1))
    assert result.attenuation is None
    assert result.reason == "attenuation undefined: 2 of 200 reference_se values not finite"
    assert result.pearson is not None
    with pytest.raises(ValueError, match="reference_se must not be negative"):
        compare(a, b, reference_se=-b)
    constant = compare(a, np.ones(200), reference_se=0.1 * b)
    assert constant.attenuation is None
    assert_undefined(constant, "reference is constant")


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_points(n):
    a, b = lognormal_pair(n)
    result = compare(a, b, reference_se=b)
    assert_undefined(result, f"fewer than 3 points ({n})")
    assert result.attenuation is None
    assert (result.slope is None) == (n == 0)
    assert result.reason.startswith(f"fewer than 3 points ({n})" + "; level" * (n == 0))


@pytest.mark.parametrize("spread", [0.0, 1e-8, 9e-7])
def test_constant_values_have_no_correlation_but_a_level(spread):
    _, b = lognormal_pair()
    flat = 0.25 * (1 + spread * np.linspace(0, 1, 200))
    result = compare(flat, b)
    assert_undefined(result, "estimate is constant (0.25")
    assert result.slope == pytest.approx(b.mean() / 0.25, rel=1e-5)
    assert_undefined(compare(b, flat), "reference is constant (0.25")
    assert_undefined(compare(flat, flat), "estimate is constant", "reference is constant")


def test_a_small_spread_above_float32_resolution_counts():
    _, b = lognormal_pair()
    result = compare(1 + 1e-5 * b, b)
    assert result.pearson == pytest.approx(1, abs=1e-9)
    assert result.reason == ""
    # (max - min) / max of 1.2e-6 is above the tolerance of 1e-6.
    line = np.linspace(0, 1, 200)
    assert compare(1 + 1.2e-6 * line, line).pearson == pytest.approx(1, abs=1e-6)


def test_all_zero_values():
    a, _ = lognormal_pair()
    zero = np.zeros(200)
    result = compare(zero, a)
    assert_undefined(result, "estimate is zero everywhere")
    assert (result.slope, result.n_dropped) == (None, 200)
    assert_undefined(compare(a, zero), "reference is zero everywhere")


def test_values_that_are_not_finite_are_counted_by_side():
    a, b = lognormal_pair()
    a[[3, 7, 9]], b[1] = [np.nan, np.inf, -np.inf], np.nan
    result = compare(a, b, reference_se=np.ones(200))
    assert_undefined(result, "3 of 200 estimate values not finite")
    assert_undefined(result, "1 of 200 reference values not finite")
    assert (result.slope, result.attenuation, result.n_dropped) == (None, None, 4)


def test_log10_has_its_own_reasons():
    reference = np.array([1.0, 2.0, 3.0, 4.0])
    few = compare(np.array([-1.0, 0.0, 2.0, 5.0]), reference)
    assert few.pearson is not None
    assert (few.log10_pearson, few.n_dropped) == (None, 2)
    assert few.reason == "log10 undefined: fewer than 3 positive pairs (2)"
    flat = compare(np.array([-1.0, 2.0, 2.0, 2.0]), reference)
    assert flat.spearman is not None
    assert flat.log10_pearson is None
    assert flat.reason == "log10 undefined: estimate is constant over 3 positive pairs"


def test_a_level_that_is_not_positive_is_undefined():
    result = compare(np.array([-9.0, 1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, 5.0]))
    assert result.pearson is not None
    assert result.slope is None
    assert "level undefined: sums of estimate -3" in result.reason


@pytest.mark.parametrize("shape", [(4, 1), (3,), ()])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="reference must"):
        compare(np.ones(4), np.ones(shape))
    with pytest.raises(ValueError, match="reference_se must"):
        compare(np.ones(4), np.ones(4), reference_se=np.ones(shape))


def test_holm_by_hand_and_by_stepping_down():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.5]), [0.04, 0.09, 0.09, 0.5])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    assert holm([]).shape == (0,)
    p = np.random.default_rng(0).uniform(size=30) ** 4
    for level in (0.01, 0.05, 0.3):
        # Holm's own words: reject from the smallest on, until p_(i) exceeds level / (T - i + 1).
        rejected = np.zeros(30, bool)
        for i, index in enumerate(np.argsort(p)):
            if p[index] > level / (30 - i):
                break
            rejected[index] = True
        np.testing.assert_array_equal(holm(p) <= level, rejected)


def test_two_valued_locations_are_left_out_beside():
    a, b = lognormal_pair()
    a = np.round(a, 1) + 0.1  # ties
    se, two_valued = 0.1 * b, b > 2
    result = compare(a, b, reference_se=se, two_valued=two_valued)
    kept = ~two_valued
    assert result.not_two_valued == compare(a[kept], b[kept], reference_se=se[kept])
    assert result._replace(not_two_valued=None) == compare(a, b, reference_se=se)
    last = np.arange(4) == 3
    rest = compare(np.array([1.0, 3, 2, 9]), np.array([1.0, 2, 2, 5]), two_valued=last)
    assert rest.not_two_valued is not None
    assert rest.not_two_valued.n_points == 3
    assert rest.not_two_valued.pearson == pytest.approx(np.sqrt(3) / 2)
    assert rest.not_two_valued.slope == pytest.approx(5 / 6)


def test_two_valued_locations_may_be_none_or_all():
    a, b = lognormal_pair()
    nowhere = compare(a, b, two_valued=np.zeros(200, bool))
    assert nowhere.not_two_valued == compare(a, b) == nowhere._replace(not_two_valued=None)
    for kept in (0, 2):
        result = compare(a, b, two_valued=np.arange(200) >= kept)
        assert result.pearson is not None
        assert result.not_two_valued is not None
        assert result.not_two_valued.n_points == kept
        assert_undefined(result.not_two_valued, f"fewer than 3 points ({kept})")


@pytest.mark.parametrize(
    "mask", [[0, 1, 0, 1], [True] * 3, np.ones((4, 1), bool), [0.5] * 4, True], ids=str
)
def test_two_valued_locations_must_be_truth_values(mask):
    with pytest.raises(ValueError, match=r"two_valued must be truth values of shape \(4,\), got "):
        compare(np.arange(4.0), np.arange(4.0), two_valued=mask)


def test_class_views_by_hand():
    p = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.4, 0.4, 0.2]])
    values = np.arange(9.0).reshape(3, 3)
    views = class_views(p, values, "categorical")
    assert list(views) == ["trace", "predicted", "0", "1", "2"]
    np.testing.assert_array_equal(views["trace"], [3, 12, 21])
    np.testing.assert_array_equal(views["predicted"], [1, 3, 6])
    np.testing.assert_array_equal(views["2"], [2, 5, 8])
    assert list(class_views(p[:, :1], values[:, :1], "bernoulli")) == ["1"]
    regression = class_views(p[:, :1], values[:, :1], "gaussian")
    np.testing.assert_array_equal(regression["f"], [0, 3, 6])
    values[0, 0] = np.nan
    unknown = class_views(p, values, "categorical")
    assert np.isnan(unknown["trace"][0]) and np.isfinite(unknown["trace"][1:]).all()


def test_class_views_refuse_what_does_not_fit():
    p = np.full((4, 3), 1 / 3)
    with pytest.raises(ValueError, match=r"p must have shape \(N, 1\) for bernoulli"):
        class_views(p, p, "bernoulli")
    with pytest.raises(ValueError, match="values must have the shape of p"):
        class_views(p, p[:2], "categorical")
    with pytest.raises(ValueError, match="p must be finite"):
        class_views(p * np.nan, p, "categorical")
    with pytest.raises(ValueError, match="categorical"):
        class_views(p, p, "categorial")


def test_negative_log_likelihood_by_hand():
    binary = negative_log_likelihood(
        np.array([[0.8], [0.3]]), np.array([1, 0]), likelihood="bernoulli"
    )
    assert binary == pytest.approx(-(np.log(0.8) + np.log(0.7)) / 2)
    p = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    three = negative_log_likelihood(p, np.array([2, 0]), likelihood="categorical")
    assert three == pytest.approx(-(np.log(0.3) + np.log(0.6)) / 2)


def test_gaussian_negative_log_likelihood_is_the_normal_density():
    mean, y = np.array([[0.0], [1.0], [-2.0]]), np.array([0.5, 0.7, 1.0])
    var = np.array([[0.0], [0.3], [2.0]])
    sd = np.sqrt(0.4**2 + var[:, 0])
    expected = -stats.norm.logpdf(y, mean[:, 0], sd).mean()
    given = negative_log_likelihood(mean, y, likelihood="gaussian", noise_sd=0.4, p_var=var)
    assert given == pytest.approx(expected, rel=1e-12)
    without = negative_log_likelihood(mean, y, likelihood="gaussian", noise_sd=0.4)
    assert without == pytest.approx(-stats.norm.logpdf(y, mean[:, 0], 0.4).mean(), rel=1e-12)


def test_a_sure_mistake_costs_a_finite_amount():
    cost = negative_log_likelihood(np.array([[1.0]]), np.array([0]), likelihood="bernoulli")
    assert cost == pytest.approx(24 * np.log(2))


@pytest.mark.parametrize(
    ("p", "y", "settings", "message"),
    [
        ([[0.5], [1.2]], [0, 1], {"likelihood": "bernoulli"}, "p must hold probabilities"),
        ([[0.5], [np.nan]], [0, 1], {"likelihood": "bernoulli"}, "p must be finite, got nan"),
        (
            [[0.5], [0.5]],
            [0, 2],
            {"likelihood": "bernoulli"},
            r"y must hold labels 0\.\.1 .* got 0, 2",
        ),
        ([[0.5], [0.5]], [0], {"likelihood": "bernoulli"}, "y must be as long as p, 2, got 1"),
        ([0.5, 0.5], [0, 1], {"likelihood": "bernoulli"}, r"p must have shape \(rows, columns\)"),
        (
            [[0.5, 0.6]],
            [0],
            {"likelihood": "categorical"},
            "p must hold probabilities that sum to 1",
        ),
        ([[0.5]], [0], {"likelihood": "categorical"}, r"p must have shape \(N, C\)"),
        ([[0.5]], [0], {"likelihood": "bernouli"}, "bernoulli"),
        ([[0.5]], [0], {"likelihood": "gaussian"}, "noise_sd must be a positive finite number"),
        ([[0.5]], [np.inf], {"likelihood": "gaussian", "noise_sd": 1.0}, "y must be finite"),
        (
            [[0.5]],
            [0],
            {"likelihood": "gaussian", "noise_sd": 1.0, "p_var": [[-0.1]]},
            "p_var must not be negative",
        ),
    ],
)
def test_negative_log_likelihood_refuses_what_does_not_fit(p, y, settings, message):
    with pytest.raises(ValueError, match=message):
        negative_log_likelihood(np.array(p), np.array(y), **settings)


def test_calibration_error_by_hand():
    # Confidences 0.9, 0.8 (both right), 0.6 (wrong) and 0.7 (right), in four bins of quarters:
    # (0.5, 0.75] has 0.6 and 0.7, accuracy 1/2; (0.75, 1] has 0.9 and 0.8, accuracy 1.
    p, y = np.array([[0.9], [0.2], [0.6], [0.3]]), np.array([1, 0, 0, 0])
    expected = 0.5 * abs(0.5 - 0.65) + 0.5 * abs(1 - 0.85)
    assert expected_calibration_error(p, y, num_bins=4) == pytest.approx(expected)
    both = np.concatenate([1 - p, p], axis=1)
    assert expected_calibration_error(both, y, num_bins=4) == pytest.approx(expected)
    # One bin: accuracy 3/4 against mean confidence 3/4.
    assert expected_calibration_error(p, y, num_bins=1) == pytest.approx(0, abs=1e-12)


def test_bins_are_closed_above():
    # Confidences 0.5 (right) and 0.4 (wrong) share (0.25, 0.5], where gaps 0.5 and -0.4 cancel.
    p, y = np.array([[0.5, 0.5, 0.0], [0.4, 0.3, 0.3]]), np.array([0, 1])
    assert expected_calibration_error(p, y, num_bins=4) == pytest.approx(0.1 / 2)
    # The first bin is (0, 1/3]: 0.3 (wrong) is in it, 0.5 (right) in the next.
    p = np.array([[0.5, 0.5, 0.0, 0.0], [0.3, 0.3, 0.2, 0.2]])
    assert expected_calibration_error(p, y, num_bins=3) == pytest.approx((0.5 + 0.3) / 2)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_calibration_error_of_calibrated_and_of_overconfident_predictions(num_classes):
    rng = np.random.default_rng(8)
    n = 100_000
    if num_classes == 1:
        p = rng.uniform(size=(n, 1))
        y = (rng.uniform(size=n) < p[:, 0]).astype(int)
        sharp = p**3 / (p**3 + (1 - p) ** 3)
    else:
        p = rng.dirichlet(np.ones(num_classes), size=n)
        y = (rng.uniform(size=(n, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, num_classes - 1)
        sharp = p**3 / (p**3).sum(axis=1, keepdims=True)
    assert expected_calibration_error(p, y) < 0.01
    assert expected_calibration_error(sharp, y) > 0.1


def test_calibration_error_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="num_bins must be an integer from 1 to 1000000"):
        expected_calibration_error(np.array([[0.5]]), np.array([0]), num_bins=0)
    with pytest.raises(ValueError, match="y must hold labels"):
        expected_calibration_error(np.array([[0.5]]), np.array([0.5]))
    with pytest.raises(ValueError, match="p must have shape"):
        expected_calibration_error(np.array([0.5]), np.array([1]))
    with pytest.raises(ValueError, match=r"p must have shape \(N, 1\) .* got \(0, 1\)"):
        expected_calibration_error(np.zeros((0, 1)), np.zeros(0))


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.5]), [0.04, 0.09, 0.09, 0.5])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])


# Partial correlations.


def rest_of(values, given):
    """What a least-squares fit of a constant and `given` leaves."""
    design = np.column_stack([np.ones_like(given), given])
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e25])
def test_partial_correlations_are_those_of_the_residuals_of_a_regression(scale):
    a, b = lognormal_pair()
    z = np.round(np.sqrt(a * b) + np.random.default_rng(8).random(200), 1)  # ties
    result = compare(scale * a, b, given=scale * z)
    expected = stats.pearsonr(rest_of(a, z), rest_of(b, z)).statistic
    assert abs(expected - result.pearson) > 0.2
    assert result.partial_pearson == pytest.approx(expected, abs=1e-10)
    ranks = [stats.rankdata(v) for v in (a, b, z)]
    expected = stats.pearsonr(*(rest_of(r, ranks[2]) for r in ranks[:2])).statistic
    assert result.partial_spearman == pytest.approx(expected, abs=1e-10)
    assert result.reason == ""
    without = compare(scale * a, b)
    assert without[:6] == result[:6]
    assert (without.partial_pearson, without.partial_spearman, without.reason) == (None, None, "")


def test_a_partial_correlation_is_zero_where_the_given_explains_the_other():
    rng = np.random.default_rng(0)
    z, e, f = np.linalg.qr(np.column_stack([np.ones(60), rng.normal(size=(60, 3))]))[0].T[1:]
    assert compare(z + e, z + f, given=z).partial_pearson == pytest.approx(0, abs=1e-12)
    assert compare(z + e, z + e + f, given=z).partial_pearson == pytest.approx(0.5**0.5)
    assert compare(z + e, z + f, given=z).pearson == pytest.approx(0.5)


def test_what_follows_from_the_given_has_no_partial_correlation():
    a, b = lognormal_pair()
    for given, values in ((a, 3 * a + 1), (a.astype(np.float32), a)):
        result = compare(values, b, given=given)
        assert (result.partial_pearson, result.partial_spearman) == (None, None)
        assert "partial Pearson undefined: given leaves nothing of the estimate" in result.reason
        assert "partial Spearman undefined: given leaves nothing of the" in result.reason
    squared = compare((a**2).astype(np.float32), b, given=a)  # the ranks alone follow
    assert squared.partial_spearman is None
    expected = stats.pearsonr(rest_of(a**2, a), rest_of(b, a)).statistic
    assert squared.partial_pearson == pytest.approx(expected, abs=1e-5)
    assert squared.reason == "partial Spearman undefined: given leaves nothing of the estimate"
    # Underflow ties the smallest squares, which leaves (3%)^3 of the variance of the ranks.
    tied = compare(np.maximum(a**2, np.quantile(a**2, 0.03)), b, given=a)
    assert tied.partial_spearman is None
    assert tied.partial_pearson is not None
    both = compare(a, 2 * a, given=a).reason
    assert "partial Pearson undefined: given leaves nothing of the estimate and reference" in both


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (np.ones(200), "partial correlations undefined: given is constant (1 to within"),
        (np.zeros(200), "partial correlations undefined: given is zero everywhere"),
        (np.full(200, np.nan), "partial correlations undefined: 200 of 200 given values not"),
    ],
)
def test_a_given_of_no_use_is_a_reason(given, reason):
    a, b = lognormal_pair()
    result = compare(a, b, given=given)
    assert result.pearson is not None
    assert (result.partial_pearson, result.partial_spearman) == (None, None)
    assert reason in result.reason


def test_few_points_and_another_length():
    a, b, z = np.array([[1.0, 2.0, 4.0, 3.0], [1.0, 2.0, 3.0, 5.0], [3.0, 1.0, 2.0, 2.0]])
    three = compare(a[:3], b[:3], given=z[:3])
    assert three.pearson is not None
    assert three.reason == "partial correlations undefined: fewer than 4 points (3)"
    assert compare(a, b, given=z).reason == ""
    with pytest.raises(ValueError, match="given must be as long as estimate, 3, got 2"):
        compare(a[:3], b[:3], given=z[:2])
    with pytest.raises(ValueError, match=r"given must have shape \(N,\), got \(3, 1\)"):
        compare(a[:3], b[:3], given=np.ones((3, 1)))


def test_locations_that_are_not_two_valued_have_a_partial_correlation_of_their_own():
    a, b = lognormal_pair()
    z = np.sqrt(a * b) + np.random.default_rng(8).random(200)
    mask = np.arange(200) % 3 == 0
    rest = compare(a, b, given=z, two_valued=mask).not_two_valued
    assert rest == compare(a[~mask], b[~mask], given=z[~mask])
    assert rest.partial_pearson is not None


def test_an_interval_over_strata_weighs_them_alike_and_agrees_with_welch():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 5), rng.normal(3, 0.1, 3)
    got = interval_over_strata([a, b])
    direct = stats.ttest_ind(a, -b, equal_var=False).confidence_interval(0.95)
    assert got.mean == pytest.approx((a.mean() + b.mean()) / 2, rel=1e-12)
    assert (2 * got.low, 2 * got.high) == pytest.approx((direct.low, direct.high), rel=1e-9)
    assert got.num_seeds == 8
    # One stratum is Student's t; tiny units change nothing but the unit.
    alone = stats.ttest_1samp(a, 0).confidence_interval(0.9)
    one = interval_over_strata([a], level=0.9)
    assert (one.low, one.high) == pytest.approx((alone.low, alone.high), rel=1e-9)
    tiny = interval_over_strata([1e-150 * a, 1e-150 * b])
    assert np.array(tiny[:3]) == pytest.approx(1e-150 * np.array(got[:3]), rel=1e-9)
    assert interval_over_strata([[1, 1], [2, 2, 2]]) == (1.5, 1.5, 1.5, 5)
    assert interval_over_strata([]) == (None, None, None, 0)
    for bad in ([[1.0]], [[1.0, np.nan]], [[1, 2], []]):
        with pytest.raises(ValueError, match="values must be two finite numbers or more, got"):
            interval_over_strata(bad)
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        interval_over_strata([[1, 2]], level=95)
