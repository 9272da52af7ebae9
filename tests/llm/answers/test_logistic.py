"""Logistic regression out of fold: against a loop with scikit-learn, and its parts by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from isounc.llm.answers.logistic import (
    LogisticSettings,
    has_enough_of_both,
    normal_scores,
    out_of_fold_log_odds,
    share_smaller,
)


def test_normal_scores_by_hand():
    among, values = np.array([2.0, 1.0, 4.0, 2.0]), np.array([0.0, 1.0, 2.0, 3.0, 5.0])
    shares = np.array([0, 0.5, 2, 3, 4]) / 4  # a tie counts half
    np.testing.assert_allclose(share_smaller(values, among), shares)
    expected = norm.ppf((4 * shares + 0.5) / 5)
    found = normal_scores(np.stack([values, -values], 1), np.stack([among, -among], 1))
    np.testing.assert_allclose(found, np.stack([expected, -expected], 1), atol=1e-15)
    np.testing.assert_array_equal(share_smaller(values, np.array([])), np.zeros(5))
    assert share_smaller(np.array([0.5, 1.0, 1.5]), np.array([1.0])).tolist() == [0, 0.5, 1]


def test_log_odds_are_those_of_a_loop_over_repeats_and_folds():
    rng = np.random.default_rng(0)
    x, wrong = rng.normal(size=(40, 2)), rng.random(40) < 0.4
    x[:, 0] += wrong
    settings = LogisticSettings(num_folds=4, num_repeats=3, inverse_penalty=0.2, seed=5)
    expected = np.zeros(40)
    for repeat in range(3):
        seed = int(np.random.SeedSequence([5, repeat]).generate_state(1)[0])
        folds = StratifiedKFold(4, shuffle=True, random_state=seed)
        for train, test in folds.split(x, wrong):
            n = len(train)
            z_train, z_test = (
                norm.ppf(
                    [
                        [(np.sum(c < v) + np.sum(c == v) / 2 + 0.5) / (n + 1)
                         for c, v in zip(x[train].T, row, strict=True)]
                        for row in rows
                    ]
                )
                for rows in (x[train], x[test])
            )  # fmt: skip
            fit = LogisticRegression(C=0.2, max_iter=1000).fit(z_train, wrong[train])
            expected[test] += (z_test @ fit.coef_[0] + fit.intercept_[0]) / 3
    np.testing.assert_allclose(out_of_fold_log_odds(x, wrong, settings=settings), expected)


def test_every_fold_needs_a_wrong_and_a_right_answer():
    settings = LogisticSettings(num_folds=3)
    for num_wrong, enough in ((2, False), (3, True), (7, True), (8, False)):
        wrong = np.arange(10) < num_wrong
        assert has_enough_of_both(wrong, settings) is enough
        if not enough:
            with pytest.raises(ValueError, match=f"at least 3 wrong .* got {num_wrong} wrong of"):
                out_of_fold_log_odds(np.ones((10, 1)), wrong, settings=settings)


def test_features_and_settings_that_do_not_fit_are_refused():
    wrong = np.arange(10) < 5
    for features in (np.ones((9, 1)), np.ones((10, 0))):
        with pytest.raises(ValueError, match=r"features must have shape \(10, F\)"):
            out_of_fold_log_odds(features, wrong)
    with pytest.raises(ValueError, match="got NaN at 2 of 10 questions"):
        out_of_fold_log_odds(np.where(np.arange(10) < 2, np.nan, 1.0)[:, None], wrong)
    LogisticSettings(num_folds=2, num_repeats=1, seed=0)
    # Those of the committed results.
    assert LogisticSettings() == LogisticSettings(5, 5, 1.0, 0)
    for bad in ({"num_folds": 1}, {"num_repeats": 0}, {"inverse_penalty": 0.0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            LogisticSettings(**bad)
