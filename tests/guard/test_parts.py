"""What surrounds a guard: combinations, p-values of typicality, monitors of drift."""

import numpy as np
import pytest
from scipy.stats import binom, kstest

from isounc.guard import Combination, Guard, RiskMonitor, ScoreMonitor, conformal_p_values
from tests.guard.made_up import risk_below, uniform_sample


def test_p_values_by_hand():
    p_values = conformal_p_values([3, 1, 2, 2], [0, 2, 2.5, 9])
    assert p_values.tolist() == [5 / 5, 4 / 5, 2 / 5, 1 / 5]
    low = conformal_p_values([3, 1, 2, 2], [0, 2, 2.5, 9], higher_is_atypical=False)
    assert low.tolist() == [1 / 5, 4 / 5, 4 / 5, 5 / 5]
    for bad, message in (
        (([], [1]), "calibration must hold at least one score"),
        (([1], [np.nan]), "scores must be defined, got NaN at 1 of 1"),
        (([[1]], [1]), r"calibration must have shape \(N,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            conformal_p_values(*bad)


def test_p_values_are_valid():
    """Over calibration samples of 19, p is uniform on 1/20 ... 1; with ties it is only larger."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4000, 20))
    p_values = [conformal_p_values(row[1:], row[:1])[0] for row in draws]
    steps = np.bincount(np.round(20 * np.array(p_values)).astype(int), minlength=21)[1:]
    assert steps.sum() == 4000
    assert kstest(np.array(p_values) - rng.uniform(size=4000) / 20, "uniform").pvalue > 1e-3
    tied = np.array([conformal_p_values(r[1:], r[:1])[0] for r in draws.round()])
    for level in (0.05, 0.1, 0.5):
        assert (tied <= level).sum() <= binom.ppf(0.999, 4000, level)


def test_combination_is_better_and_kept_apart():
    rng = np.random.default_rng(1)

    def sample(n):
        parts = rng.normal(size=(n, 2))
        return parts, rng.uniform(size=n) > 1 / (1 + np.exp(1.5 - parts @ [1.5, -1.0]))

    (first, known), (second, labels), (third, truth) = (sample(n) for n in (600, 600, 20000))
    combination = Combination.fit(first, known)
    assert combination.weights[0] > 0 > combination.weights[1]
    guard = combination.guard(second, labels, target_risk=0.15, confidence=0.99)
    alone = Guard.fit(second[:, 0], labels, target_risk=0.15, confidence=0.99)
    assert guard.certificate.coverage.value > alone.certificate.coverage.value
    accepted = guard.accept(combination.score(third))
    assert (~truth[accepted]).mean() < 0.15
    # The weights are those of a plain logistic regression of the ranks.
    from sklearn.linear_model import LogisticRegression

    from isounc.llm.answers.logistic import normal_scores

    plain = LogisticRegression(max_iter=1000).fit(normal_scores(first, first), ~known)
    expected = plain.decision_function(normal_scores(third, first))
    assert combination.score(third) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"features must be of other answers .* got 600 of 600"):
        combination.guard(first, known)
    with pytest.raises(ValueError, match="got 50 of 50 rows"):
        combination.guard(first[:50], known[:50])
    with pytest.raises(ValueError, match="got 600 of 1200 rows"):
        combination.guard(np.concatenate([second, first]), np.concatenate([labels, known]))
    # Scores of three values are shared without being the same answers.
    few, more = (np.round(part[:, :1]).clip(-1, 1) for part in (first[:300], second))
    coarse = Combination.fit(few, known[:300])
    coarse.guard(np.concatenate([more, [[2.0]]]), np.r_[labels, False])
    with pytest.raises(ValueError, match="features must have 2 columns"):
        combination.score(third[:, :1])
    with pytest.raises(ValueError, match="correct must hold 5 right and as many wrong"):
        Combination.fit(first, np.ones(600))
    with pytest.raises(ValueError, match="features must be a table"):
        Combination.fit(first[:, 0], known)


def test_risk_monitor():
    rng = np.random.default_rng(2)
    guard = Guard.fit(*uniform_sample(1000, 0.8, rng), target_risk=0.2)
    assert risk_below(guard.threshold, 0.8) < 0.2
    monitor = RiskMonitor(guard)
    assert monitor.lower_bound is None
    assert monitor.alarm_since is None
    for _ in range(4):
        monitor.update(*uniform_sample(200, 0.8, rng))
    assert monitor.alarm_since is None
    assert monitor.lower_bound < 0.2
    before = 800
    for _ in range(4):  # every second answer is now wrong, whatever its score
        scores = rng.uniform(size=400)
        monitor.update(scores, rng.uniform(size=400) > 0.5)
    assert monitor.lower_bound > 0.2
    assert before < monitor.alarm_since < before + 1600
    with pytest.raises(ValueError, match="guard must have a threshold"):
        RiskMonitor(Guard.fit(np.zeros(100), np.zeros(100)))
    with pytest.raises(ValueError, match="correct must hold true and false"):
        monitor.update([0.1], [3])


def test_risk_monitor_raises_few_false_alarms():
    """At the edge of the promise, looked at after every answer: at most 2.5% (20 of 400, p < .001)."""
    rng = np.random.default_rng(3)
    guard = Guard.fit(np.zeros(100), np.ones(100), target_risk=0.1)
    alarms = 0
    for _ in range(60):
        monitor = RiskMonitor(guard).update(np.zeros(300), rng.uniform(size=300) > 0.1)
        alarms += monitor.alarm_since is not None
    assert alarms <= binom.ppf(0.999, 60, 0.025)


def test_score_monitor():
    rng = np.random.default_rng(4)
    calibration = rng.normal(size=300)
    quiet = [
        ScoreMonitor(rng.normal(size=50), seed=i).update(rng.normal(size=150)) for i in range(60)
    ]
    assert sum(m.alarm_since is not None for m in quiet) <= binom.ppf(0.999, 60, 0.05)
    monitor = ScoreMonitor(calibration).update(rng.normal(size=200))
    assert monitor.alarm_since is None
    monitor.update(rng.normal(size=200) + 2)
    assert 200 < monitor.alarm_since < 400
    assert monitor.evidence > 20
    since = monitor.alarm_since
    assert monitor.update(rng.normal(size=10)).alarm_since == since  # an alarm stays
    tied = ScoreMonitor(np.zeros(100)).update(np.zeros(300))
    assert tied.alarm_since is None
    with pytest.raises(ValueError, match="scores must be defined"):
        monitor.update([np.nan])
    with pytest.raises(ValueError, match="calibration must hold at least one"):
        ScoreMonitor([])
    with pytest.raises(ValueError, match="test_level must be above 0"):
        ScoreMonitor([1.0], test_level=2)
