"""Rankings: against scikit-learn, SciPy, loops over resamples, and curves by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from isounc.statistics.risk_coverage import risk_coverage
from isounc.studies.qa.ranking import draw_weights, estimated, p_value, ranking, spearman
from tests.studies.qa.planted import sample


def loop(u, wrong):
    """AUROC, AURC, excess AURC and PRR of a sample from their definitions, ties in random order."""
    n, errors = len(u), wrong.sum()
    pairs = [(a > b) + (a == b) / 2 for a in u[wrong] for b in u[~wrong]]
    expected = [np.mean(wrong[u == value]) for value in np.sort(u)]
    left = np.cumsum(expected)
    aurc = np.mean(left / np.arange(1, n + 1))
    oracle = np.cumsum(np.r_[np.zeros(n - errors), np.ones(errors)])
    area, best = (np.trapezoid(np.r_[0, e] / n, dx=1 / n) for e in (left, oracle))
    chance = errors / (2 * n)
    eaurc = aurc - np.mean(oracle / np.arange(1, n + 1))
    return np.mean(pairs), aurc, eaurc, (chance - area) / (chance - best)


@pytest.mark.parametrize("which", ["fine", "tied", "constant", "infinite"])
def test_statistics_of_resamples_are_those_of_the_drawn_questions(which):
    _, wrong, fine, tied = sample(60)
    u = {
        "fine": fine,
        "tied": tied,
        "constant": 0 * fine,
        "infinite": np.where(tied > 1, np.inf, tied),
    }[which]
    # More resamples than a block.
    weights = draw_weights(60, 40, seed=2)
    found = ranking(u, wrong, weights)
    assert (weights.sum(axis=1) == 60).all() and (weights[0] == 1).all()
    for b in (0, 1, 17, 33, 40):
        drawn = np.repeat(np.arange(60), weights[b])
        expected = loop(u[drawn], wrong[drawn])
        np.testing.assert_allclose([column[b] for column in found], expected, atol=1e-12)
        finite = np.clip(u, -9, 9)
        assert found.auroc[b] == pytest.approx(roc_auc_score(wrong[drawn], finite[drawn]))
    np.testing.assert_allclose(found.prr, 2 * found.auroc - 1)


def test_statistics_by_hand():
    # Certain to uncertain: right, wrong, right, wrong.
    u, wrong = np.array([3.0, 1.0, 2.0, 4.0]), np.array([False, False, True, True])
    found = ranking(u, wrong, np.ones((1, 4), int))
    assert found.auroc[0] == pytest.approx(3 / 4)
    assert found.aurc[0] == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)
    assert found.eaurc[0] == pytest.approx(found.aurc[0] - (1 / 3 + 2 / 4) / 4)
    drawn = risk_coverage(u, wrong)
    np.testing.assert_allclose(drawn.coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(drawn.risk, [0, 1 / 2, 1 / 3, 1 / 2])
    np.testing.assert_allclose(drawn.best_risk, [0, 0, 1 / 3, 1 / 2])
    np.testing.assert_allclose(drawn.rejected, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(drawn.errors, [0.5, 0.25, 0.25, 0, 0])
    np.testing.assert_allclose(drawn.best_errors, [0.5, 0.25, 0, 0, 0])
    np.testing.assert_allclose(drawn.random_errors, [0.5, 0.375, 0.25, 0.125, 0])


@pytest.mark.parametrize("which", [2, 3])
def test_curves_integrate_to_the_statistics(which):
    values = sample(90)
    u, wrong = values[which], values[1]
    found, drawn = ranking(u, wrong, np.ones((1, 90), int)), risk_coverage(u, wrong)
    assert drawn.risk.mean() == pytest.approx(found.aurc[0])
    assert drawn.best_risk.mean() == pytest.approx(found.aurc[0] - found.eaurc[0])
    areas = [
        np.trapezoid(y, drawn.rejected)
        for y in (drawn.random_errors, drawn.errors, drawn.best_errors)
    ]
    assert (areas[0] - areas[1]) / (areas[0] - areas[2]) == pytest.approx(found.prr[0])
    with pytest.raises(ValueError, match="NaN at 1 of 2 questions"):
        risk_coverage(np.array([1.0, np.nan]), np.array([True, False]))
    for bad in (np.ones(89), np.ones((90, 1)), np.ones((1, 90))):
        with pytest.raises(ValueError, match=r"shape \(Q,\) with Q > 0, got"):
            risk_coverage(bad, wrong)
    for shape in ((0,), (2, 2)):
        with pytest.raises(ValueError, match=r"shape \(Q,\) with Q > 0, got"):
            risk_coverage(np.ones(shape), np.ones(shape, bool))


def test_interval_covers_the_truth_as_often_as_it_says():
    # AUROC of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2).
    truth, inside = 0.7602499, 0
    for seed in range(200):
        _, wrong, fine, _ = sample(150, seed=seed)
        found = ranking(fine, wrong, draw_weights(150, 200, seed=seed))
        number = estimated(found.auroc, level=0.9)
        assert number.low is not None and number.high is not None
        inside += number.low <= truth <= number.high
    # Binomial(200, .9): outside 165..193 less than once in a thousand.
    assert 165 <= inside <= 193


def test_estimates_by_hand():
    resampled = np.arange(1.0, 21.0)
    number = estimated(np.r_[7.0, resampled], level=0.8)
    # Quantiles of 1..20 are linear: 1 + 19 q.
    assert number[:4] == pytest.approx((7.0, np.sqrt(35.0), 1 + 19 * 0.1, 1 + 19 * 0.9))
    assert number.reason == "" and number.cells("u") == {
        "u": number.value, "u_se": number.se, "u_low": number.low, "u_high": number.high
    }  # fmt: skip
    # One of twenty may be undefined, two may not; two defined ones are the fewest.
    resampled[0] = np.nan
    assert estimated(np.r_[7.0, resampled]).low == pytest.approx(2 + 18 * 0.025)
    resampled[1] = np.inf
    without = estimated(np.r_[7.0, resampled])
    assert without[:4] == (7.0, None, None, None)
    assert without.reason == "no interval: undefined in 2 of 20 resamples"
    assert estimated(np.array([7.0, 1.0])).low is None
    assert estimated(np.array([7.0, 1.0, 3.0]), level=0.5)[1:4] == pytest.approx((2**0.5, 1.5, 2.5))
    nothing = estimated(np.array([np.nan, 1.0, 2.0]))
    assert nothing == (None, None, None, None, "undefined in the sample")
    assert estimated(np.array([np.nan, 1.0, 2.0]), why="flat").reason == "flat"
    for level in (0.0, 1.0):
        with pytest.raises(ValueError, match="level must lie between 0 and 1"):
            estimated(resampled, level=level)


def test_p_values_by_hand():
    # The sample's own difference comes first and is not counted.
    for resamples, greater, two_sided in (
        ([1.0, 2.0, 3.0, 4.0], 1 / 5, 2 / 5),
        ([-1.0, -2.0, -3.0, -4.0], 1.0, 2 / 5),
        ([-1.0, 1.0, 2.0, 3.0], 2 / 5, 4 / 5),
        ([1.0, -1.0, -2.0, -3.0], 4 / 5, 4 / 5),
        ([1.0, 1.0, -1.0, -1.0], 3 / 5, 1.0),
        # A tie counts for both sides, and so does what rounding makes of one.
        ([0.0, 1.0, 1.0, 1.0], 2 / 5, 4 / 5),
        ([0.0, -1.0, -1.0, -1.0], 1.0, 4 / 5),
        ([1e-16, -1e-16, 1.0, 1.0], 3 / 5, 1.0),
    ):
        differences = np.array([9.0, *resamples])
        assert p_value(differences, alternative="greater") == pytest.approx(greater), resamples
        assert p_value(differences) == pytest.approx(two_sided), resamples


@pytest.mark.parametrize("errors", [1, 3])
def test_one_answer_of_a_kind_is_enough(errors):
    u, wrong = np.array([0.0, 1.0, 2.0, 3.0]), np.arange(4) < errors
    found = ranking(u, wrong, np.ones((1, 4), int))
    np.testing.assert_allclose([column[0] for column in found], loop(u, wrong), atol=1e-12)
    both = ranking(u, np.array([errors > 1] * 4), np.ones((1, 4), int))
    assert all(np.isnan(column).all() for column in both)


def test_p_values_of_undefined_differences():
    assert p_value(np.array([np.nan, 1.0])) is None
    assert p_value(np.array([1.0, np.nan])) is None
    assert p_value(np.array([1.0, 1.0, np.nan, 1.0])) == pytest.approx(2 / 3)


def test_spearman_of_resamples():
    _, _, fine, tied = sample(50)
    weights = draw_weights(50, 70, seed=0)
    found = spearman(np.stack([fine, tied, -fine, np.ones(50)]), weights)
    for b in (0, 1, 33, 70):
        drawn = np.repeat(np.arange(50), weights[b])
        assert found[b, 0, 1] == pytest.approx(spearmanr(fine[drawn], tied[drawn])[0])
    np.testing.assert_allclose(found[:, 0, 2], -1)
    assert np.isnan(found[:, 0, 3]).all()
