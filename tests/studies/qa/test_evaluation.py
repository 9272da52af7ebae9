"""Evaluation of scores: intervals, paired tests and correlations against loops over resamples."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from scipy.stats import false_discovery_control, spearmanr
from sklearn.metrics import roc_auc_score

from isounc.llm.answers.logistic import LogisticSettings
from isounc.llm.answers.score_table import make_score_table
from isounc.llm.answers.scores import ScoreInfo
from isounc.studies.qa import evaluation
from isounc.studies.qa import ranking as resampling
from isounc.studies.qa.evaluation import (
    BootstrapSettings,
    correlations,
    evaluate_scores,
    paired_tests,
)
from isounc.studies.qa.ranking import draw_weights, p_value, ranking, spearman
from tests.studies.qa.planted import sample

FEW = BootstrapSettings(num_resamples=60, seed=1)


def test_one_class_is_undefined_with_a_reason():
    for wrong in (np.zeros(5, bool), np.ones(5, bool)):
        found = ranking(np.arange(5.0), wrong, draw_weights(5, 3, seed=0))
        assert all(np.isnan(column).all() for column in found)
    (row,) = evaluate_scores(make_score_table({"u": np.arange(5.0)}, np.ones(5, int)), settings=FEW)
    assert row["reason"] == "one class only: all 5 answers are right"
    assert row["auroc"] is row["aurc_low"] is row["prr_se"] is None
    (row,) = evaluate_scores(
        make_score_table(
            {"u": np.full(5, np.nan)},
            np.array([0, 1, 0, 1, 1]),
            scores=[ScoreInfo(family="u", why_undefined="no tokens")],
        ),
        settings=FEW,
    )
    assert row["num_questions"] == 0 and row["num_undefined"] == 5
    assert row["reason"] == "no question where u is defined; 5 undefined: no tokens"
    # One wrong answer is missing from a third of the resamples: a value, but no interval.
    (row,) = evaluate_scores(
        make_score_table({"u": np.arange(9.0)}, np.arange(9) < 8), settings=FEW
    )
    assert (
        row["auroc"] == 1
        and row["auroc_low"] is None
        and "no interval: undefined in" in row["reason"]
    )


def test_intervals_are_the_percentiles_of_a_loop():
    _, wrong, fine, tied = sample(80)
    sure = ScoreInfo(family="sure", higher_is_certain=True)
    table = make_score_table({"fine": fine, "sure": -tied}, ~wrong, scores=[sure])
    rows = evaluate_scores(table, settings=FEW)
    weights = draw_weights(80, 60, seed=1)
    for row, u in zip(rows, (fine, tied), strict=True):
        resampled = [roc_auc_score(wrong, u, sample_weight=w) for w in weights[1:]]
        assert row["auroc"] == pytest.approx(roc_auc_score(wrong, u))
        assert row["auroc_se"] == pytest.approx(np.std(resampled, ddof=1))
        assert [row["auroc_low"], row["auroc_high"]] == pytest.approx(
            np.quantile(resampled, [0.025, 0.975])
        )
        assert row["num_wrong"] == wrong.sum() and row["reason"] == ""
        assert tuple(row) == evaluation.EVALUATION_COLUMNS


def test_few_defined_values_are_in_few_resamples():
    values = np.r_[0.0, 1.0, 2.0, np.full(200, np.nan)]
    scores = make_score_table({"u": values, "v": values**2}, np.arange(203) % 2)
    row, _ = evaluate_scores(scores, settings=FEW)
    assert row["auroc"] == 0.5 and row["auroc_low"] is None and "no interval" in row["reason"]
    (pair,) = correlations(scores, settings=FEW)
    assert pair["spearman"] == pytest.approx(1) and "no interval" in pair["reason"]


def test_undefined_values_are_left_out_and_counted():
    _, wrong, fine, tied = sample(100)
    holed = fine.copy()
    holed[::3] = np.nan
    scores = make_score_table(
        {"holed": holed, "tied": tied},
        ~wrong,
        scores=[ScoreInfo(family="holed", why_undefined="empty answer")],
    )
    first, second = evaluate_scores(scores, settings=FEW)
    kept = ~np.isnan(holed)
    assert first["auroc"] == pytest.approx(roc_auc_score(wrong[kept], fine[kept]))
    assert (first["num_questions"], first["num_undefined"]) == (66, 34)
    assert first["reason"] == "34 undefined: empty answer"
    assert second["num_questions"] == 100
    # Compared where both are defined.
    (test,) = paired_tests(scores, "tied", settings=FEW)
    assert test["num_questions"] == 66
    assert test["value_against"] == pytest.approx(roc_auc_score(wrong[kept], tied[kept]))
    (pair,) = correlations(scores, settings=FEW)
    assert pair["num_questions"] == 66
    assert pair["spearman"] == pytest.approx(spearmanr(fine[kept], tied[kept])[0])


def test_bad_settings():
    with pytest.raises(ValueError, match="level must lie between"):
        BootstrapSettings(level=95)
    # Those of the committed results.
    assert BootstrapSettings() == BootstrapSettings(num_resamples=2000, level=0.95, seed=0)
    for level in (0, 1):
        with pytest.raises(ValueError, match="level must lie between"):
            BootstrapSettings(level=level)
    with pytest.raises(ValueError, match="num_resamples"):
        BootstrapSettings(num_resamples=1)
    with pytest.raises(ValueError, match="num_folds"):
        LogisticSettings(num_folds=1)


def test_paired_test_is_the_loop_and_uses_the_pairing():
    _, wrong, fine, _ = sample(150)
    rng = np.random.default_rng(5)
    near = fine + 0.1 * rng.normal(size=150)
    scores = make_score_table(
        {"fine": fine, "near": near, "same": fine * 2, "noise": rng.normal(size=150)}, ~wrong
    )
    rows = {row["score"]: row for row in paired_tests(scores, "fine", settings=FEW)}
    weights = draw_weights(150, 60, seed=1)
    resampled = np.array(
        [
            roc_auc_score(wrong, near, sample_weight=w)
            - roc_auc_score(wrong, fine, sample_weight=w)
            for w in weights[1:]
        ]
    )
    assert rows["near"]["gain_se"] == pytest.approx(resampled.std(ddof=1))
    below, above = (resampled <= 0).sum(), (resampled >= 0).sum()
    assert rows["near"]["p"] == pytest.approx(min(1, 2 * (1 + min(below, above)) / 61))
    # Of two scores that nearly agree the difference is known far better than either.
    (alone,) = [r for r in evaluate_scores(scores, settings=FEW) if r["score"] == "near"]
    assert rows["near"]["gain_se"] < alone["auroc_se"] / 3
    assert (rows["same"]["gain"], rows["same"]["p"]) == (0, 1)
    assert rows["noise"]["p"] == pytest.approx(2 / 61) and rows["noise"]["gain"] < 0
    adjusted = false_discovery_control([row["p"] for row in rows.values()])
    np.testing.assert_allclose([row["p_adjusted"] for row in rows.values()], adjusted)
    assert all(tuple(row) == evaluation.TEST_COLUMNS for row in rows.values())


def test_gain_is_positive_for_the_better_score_whatever_the_statistic():
    _, wrong, fine, _ = sample(150)
    scores = make_score_table(
        {"noise": np.random.default_rng(0).normal(size=150), "fine": fine}, ~wrong
    )
    for statistic in evaluation.STATISTICS:
        (row,) = paired_tests(scores, "noise", statistic=statistic, settings=FEW)
        assert row["gain"] > 0 and row["gain_low"] > 0 and row["p"] < 0.05
        sign = 1 if statistic in ("auroc", "prr") else -1
        assert row["gain"] == pytest.approx(sign * (row["value"] - row["value_against"]))


def test_best_baseline_is_chosen_in_every_resample():
    rng, wrong, fine, _ = sample(150)
    noise = {f"b{i}": rng.normal(size=150) + 0.5 * wrong for i in range(4)}
    scores = make_score_table({"fine": fine, **noise}, ~wrong)
    (row,) = paired_tests(scores, list(noise), settings=FEW)
    weights = draw_weights(150, 60, seed=1)
    ours = ranking(fine, wrong, weights).auroc
    theirs = np.array([ranking(u, wrong, weights).auroc for u in noise.values()])
    gains = ours - theirs.max(axis=0)
    assert row["best"] == f"b{theirs[:, 0].argmax()}" and row["alternative"] == "greater"
    assert row["gain"] == pytest.approx(gains[0]) and row["gain_low"] == pytest.approx(
        np.quantile(gains[1:], 0.025)
    )
    single = [p_value(ours - other, alternative="greater") for other in theirs]
    assert row["p"] >= max(single)
    # The best that is named is the sample's, whatever the resamples say.
    near = {f"n{i}": u for i, u in enumerate(fine + 0.3 * rng.normal(size=(4, 150)))}
    (row,) = paired_tests(
        make_score_table({"fine": fine, **near}, ~wrong), list(near), settings=FEW
    )
    theirs = np.array([ranking(u, wrong, weights).auroc for u in near.values()])
    assert len(set(theirs.argmax(axis=0))) > 1 and theirs[:, 0].argmax() != theirs[:, 1].argmax()
    assert row["best"] == f"n{theirs[:, 0].argmax()}"
    assert row["value_against"] == pytest.approx(theirs[:, 0].max())
    with pytest.raises(ValueError, match="against must name"):
        paired_tests(scores, [])
    with pytest.raises(ValueError, match="against must be one of"):
        paired_tests(scores, "gone")


def test_best_of_several_does_not_reject_too_often():
    rejected = 0
    for seed in range(150):
        rng, wrong, fine, _ = sample(100, seed=seed)
        table = {name: rng.normal(size=100) + wrong for name in "abc"} | {"score": fine}
        settings = BootstrapSettings(num_resamples=100, seed=seed)
        (row,) = paired_tests(make_score_table(table, ~wrong), ["a", "b", "c"], settings=settings)
        rejected += row["p"] <= 0.05
    # Equal to each of three, so better than the best of them less often than 1 in 20 (Binomial: 16
    # or more with probability .003).
    assert rejected < 16


def test_paired_test_rejects_as_often_as_it_says():
    rejected = 0
    for seed in range(200):
        rng, wrong, fine, _ = sample(100, seed=seed)
        settings = BootstrapSettings(num_resamples=100, seed=seed)
        table = {"a": rng.normal(size=100) + wrong, "b": fine}
        (row,) = paired_tests(make_score_table(table, ~wrong), "a", settings=settings)
        rejected += row["p"] <= 0.1
    # Binomial(200, .1) is outside 8..34 once in a thousand.
    assert 8 <= rejected <= 34


def test_correlation_rows():
    _, wrong, fine, tied = sample(60)
    values = {
        "fine": fine,
        "certain": -tied,
        "flat": np.zeros(60),
        "short": np.where(np.arange(60) < 2, fine, np.nan),
    }
    rows = correlations(
        make_score_table(
            values, ~wrong, scores=[ScoreInfo(family="certain", higher_is_certain=True)]
        ),
        settings=FEW,
    )
    by_pair = {(row["score"], row["other"]): row for row in rows}
    assert len(rows) == 6
    found = by_pair["fine", "certain"]
    assert found["spearman"] == pytest.approx(spearmanr(fine, tied)[0])
    weights = draw_weights(60, 60, seed=1)
    resampled = spearman(np.stack([fine, tied]), weights)[1:, 0, 1]
    assert found["spearman_high"] == pytest.approx(np.quantile(resampled, 0.975))
    assert (
        by_pair["fine", "flat"]["spearman"] is None
        and by_pair["fine", "flat"]["reason"] == "flat constant"
    )
    assert "fewer than 3" in by_pair["fine", "short"]["reason"]
    assert all(tuple(row) == evaluation.CORRELATION_COLUMNS for row in rows)


def test_rows_are_rows_of_a_table():
    _, wrong, fine, tied = sample(60)
    scores = make_score_table({"fine": fine, "tied": tied}, ~wrong)
    tables = [
        evaluate_scores(scores, settings=FEW),
        paired_tests(scores, "tied", settings=FEW),
        correlations(scores, settings=FEW),
    ]
    for rows in tables:
        writer = csv.DictWriter(io.StringIO(), list(rows[0]))
        writer.writerows(rows)
        for row in rows:
            assert all(value is None or type(value) in (int, float, str) for value in row.values())
            assert not any(value != value for value in row.values())
    # The same seed, the same numbers.
    assert evaluate_scores(scores, settings=FEW) == tables[0]
    assert evaluate_scores(scores, settings=BootstrapSettings(200, seed=2)) != tables[0]
    assert resampling.BLOCK < 60, "so that these tests go through more than one block"
