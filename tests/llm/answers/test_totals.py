"""Totals of epistemic and aleatoric uncertainty by hand, and logistic regression out of fold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from isounc.llm.answers.logistic import LogisticSettings, out_of_fold_log_odds
from isounc.llm.answers.totals import combine, standardised

ONCE = LogisticSettings(num_repeats=1)


def test_rules_by_hand():
    e, a = np.array([1.0, 100.0, 10.0, np.nan, 0.0]), np.array([0.2, 0.1, 0.2, 0.1, 0.0])
    np.testing.assert_allclose(combine(e, a, "sum", sigma2=0.01), [0.21, 1.1, 0.3, np.nan, 0])
    kept = [0, 1, 2, 4]
    ranks = (rankdata(e[kept]) + rankdata(a[kept]) - 1) / 2 / 4
    np.testing.assert_allclose(combine(e, a, "rank")[kept], ranks)
    # Zero counts as the smallest positive value, 1.
    log, plain = np.array([0, 2, 1, 0.0]), np.array([2, 1, 2, 0.0])
    expected = ((log - log.mean()) / log.std() + (plain - plain.mean()) / plain.std()) / 2
    np.testing.assert_allclose(combine(e, a, "z")[kept], expected)
    assert np.isnan(combine(e, a, "z")[3])
    # With a constant the other one decides.
    for rule in ("rank", "z"):
        order = np.argsort(combine(e[kept], np.full(4, 0.1), rule), kind="stable")
        np.testing.assert_array_equal(order, [0, 3, 2, 1] if rule == "z" else [3, 0, 2, 1])


def test_constants_are_zeros_when_standardised():
    for constant in (0.0, 0.1, -7.0, 1e-300):
        np.testing.assert_array_equal(standardised(np.full(7, constant)), np.zeros(7))
    # A spread of a ten thousand millionth of the values counts.
    found = standardised(np.array([1.0, 1.0 + 2e-10]))
    np.testing.assert_allclose(found, [-1, 1], rtol=1e-5)


@pytest.mark.parametrize(
    ("e", "a", "rule", "kwargs", "message"),
    [
        ([1.0], [1.0], "mean", {}, "rule must be one of"),
        ([1.0], [1.0], "sum", {}, "sigma2 must be given"),
        ([1.0], [1.0], "sum", {"sigma2": -1.0}, "sigma2 must be a non-negative"),
        ([1.0], [1.0, 2.0], "rank", {}, "same|shape"),
        ([np.nan], [1.0], "rank", {}, "at some question, got none of 1"),
        ([0.0], [1.0], "z", {}, "epistemic must have a positive value"),
        ([np.inf, 1.0], [1.0, 1.0], "z", {}, "must be finite"),
        ([1.0], [1.0], "logistic", {}, "wrong must say"),
        ([1.0] * 8, [1.0] * 8, "logistic", {"wrong": np.arange(8) < 4}, "at least 5 wrong"),
    ],
)
def test_rules_refuse(e, a, rule, kwargs, message):
    with pytest.raises(ValueError, match=message):
        combine(np.array(e), np.array(a), rule, **kwargs)


def test_logistic_rule_finds_what_neither_part_has():
    rng = np.random.default_rng(0)
    # Wrong where both are large; the epistemic one on a scale of its own.
    x = rng.normal(size=(400, 2))
    wrong = rng.random(400) < 1 / (1 + np.exp(-2 * x.sum(axis=1)))
    fitted = combine(np.exp(5 * x[:, 0]), x[:, 1], "logistic", wrong=wrong, settings=ONCE)
    assert roc_auc_score(wrong, fitted) > roc_auc_score(wrong, x[:, 1]) + 0.05
    assert roc_auc_score(wrong, fitted) > roc_auc_score(wrong, x.sum(axis=1)) - 0.02


def test_out_of_fold_does_not_see_its_own_answers():
    """Features without a signal, enough to fit the sample, give chance out of fold."""
    rng = np.random.default_rng(1)
    x, wrong = rng.normal(size=(200, 60)), rng.random(200) < 0.5
    found = out_of_fold_log_odds(x, wrong, settings=ONCE)
    assert abs(roc_auc_score(wrong, found) - 0.5) < 0.13
    np.testing.assert_array_equal(found, out_of_fold_log_odds(x, wrong, settings=ONCE))
    # Any increasing transformation of a feature changes nothing.
    np.testing.assert_allclose(found, out_of_fold_log_odds(np.exp(x), wrong, settings=ONCE))
    assert not np.allclose(
        found, out_of_fold_log_odds(x, wrong, settings=LogisticSettings(num_repeats=1, seed=1))
    )
