"""Evaluation of scores: against scikit-learn, loops over resamples, curves by hand, and planted answers."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from scipy.stats import false_discovery_control, rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from isounc.studies.qa import combination, evaluation
from isounc.studies.qa import ranking as resampling
from isounc.studies.qa.combination import FitSettings, auroc_gain, combine, out_of_fold, transfer
from isounc.studies.qa.evaluation import (
    BootstrapSettings,
    correlations,
    curves,
    evaluate,
    make_scores,
    paired_tests,
)
from isounc.studies.qa.ranking import draw_weights, estimated, p_value, ranking, spearman

FEW = BootstrapSettings(num_resamples=60, seed=1)
ONCE = FitSettings(num_repeats=1)


def sample(n=200, seed=0, rate=0.4):
    """Uncertainties with ties and without, and which answers are wrong."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < rate
    fine = rng.normal(size=n) + wrong
    return rng, wrong, fine, np.round(fine)


# One ranking


def loop(u, wrong):
    """AUROC, AURC, excess AURC and PRR of a sample without weights, from their definitions, ties in random order."""
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
    drawn = curves(u, wrong)
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
    found, drawn = ranking(u, wrong, np.ones((1, 90), int)), curves(u, wrong)
    assert drawn.risk.mean() == pytest.approx(found.aurc[0])
    assert drawn.best_risk.mean() == pytest.approx(found.aurc[0] - found.eaurc[0])
    areas = [
        np.trapezoid(y, drawn.rejected)
        for y in (drawn.random_errors, drawn.errors, drawn.best_errors)
    ]
    assert (areas[0] - areas[1]) / (areas[0] - areas[2]) == pytest.approx(found.prr[0])
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        curves([1.0, np.nan], [True, False])


def test_one_class_is_undefined_with_a_reason():
    for wrong in (np.zeros(5, bool), np.ones(5, bool)):
        found = ranking(np.arange(5.0), wrong, draw_weights(5, 3, seed=0))
        assert all(np.isnan(column).all() for column in found)
    (row,) = evaluate(make_scores({"u": np.arange(5.0)}, np.ones(5)), settings=FEW)
    assert row["reason"] == "one class only: all 5 answers are right"
    assert row["auroc"] is row["aurc_low"] is row["prr_se"] is None
    (row,) = evaluate(
        make_scores({"u": np.full(5, np.nan)}, [0, 1, 0, 1, 1], reasons={"u": "no tokens"}),
        settings=FEW,
    )
    assert row["num_questions"] == 0 and row["num_undefined"] == 5
    assert row["reason"] == "no question where u is defined; 5 undefined: no tokens"
    # One wrong answer is missing from a third of the resamples: a value, but no interval.
    (row,) = evaluate(make_scores({"u": np.arange(9.0)}, np.arange(9) < 8), settings=FEW)
    assert (
        row["auroc"] == 1
        and row["auroc_low"] is None
        and "no interval: undefined in" in row["reason"]
    )


# Intervals


def test_intervals_are_the_percentiles_of_a_loop():
    _, wrong, fine, tied = sample(80)
    rows = evaluate(
        make_scores({"fine": fine, "sure": -tied}, ~wrong, higher_is_certain=["sure"]), settings=FEW
    )
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


def test_few_defined_values_are_in_few_resamples():
    values = np.r_[0.0, 1.0, 2.0, np.full(200, np.nan)]
    scores = make_scores(
        {"u": values, "v": values**2}, np.arange(203) % 2, reasons={"u": "r", "v": "r"}
    )
    row, _ = evaluate(scores, settings=FEW)
    assert row["auroc"] == 0.5 and row["auroc_low"] is None and "no interval" in row["reason"]
    (pair,) = correlations(scores, settings=FEW)
    assert pair["spearman"] == pytest.approx(1) and "no interval" in pair["reason"]


def test_undefined_values_are_left_out_and_counted():
    _, wrong, fine, tied = sample(100)
    holed = fine.copy()
    holed[::3] = np.nan
    scores = make_scores({"holed": holed, "tied": tied}, ~wrong, reasons={"holed": "empty answer"})
    first, second = evaluate(scores, settings=FEW)
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


@pytest.mark.parametrize(
    ("values", "correct", "kwargs", "message"),
    [
        ({}, [1], {}, "must hold a score"),
        ({"u": [1.0]}, [], {}, "correct must be"),
        ({"u": [1.0]}, [0.5], {}, "correct must be"),
        ({"u": [1.0]}, [1, 0], {}, r"values\['u'\] must have shape \(2,\).*got \(1,\)"),
        (
            {"u": [1.0]},
            [1],
            {"higher_is_certain": ["v"]},
            "higher_is_certain must be one of u, got 'v'",
        ),
    ],
)
def test_bad_tables(values, correct, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_scores(values, correct, **kwargs)


def test_bad_settings():
    with pytest.raises(ValueError, match="level must lie between"):
        BootstrapSettings(level=95)
    with pytest.raises(ValueError, match="num_resamples"):
        BootstrapSettings(num_resamples=1)
    with pytest.raises(ValueError, match="num_folds"):
        FitSettings(num_folds=1)


# Tests between scores


def test_paired_test_is_the_loop_and_uses_the_pairing():
    _, wrong, fine, _ = sample(150)
    rng = np.random.default_rng(5)
    near = fine + 0.1 * rng.normal(size=150)
    scores = make_scores(
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
    (alone,) = [r for r in evaluate(scores, settings=FEW) if r["score"] == "near"]
    assert rows["near"]["gain_se"] < alone["auroc_se"] / 3
    assert (rows["same"]["gain"], rows["same"]["p"]) == (0, 1)
    assert rows["noise"]["p"] == pytest.approx(2 / 61) and rows["noise"]["gain"] < 0
    adjusted = false_discovery_control([row["p"] for row in rows.values()])
    np.testing.assert_allclose([row["p_adjusted"] for row in rows.values()], adjusted)
    assert all(tuple(row) == evaluation.TEST_COLUMNS for row in rows.values())


def test_gain_is_positive_for_the_better_score_whatever_the_statistic():
    _, wrong, fine, _ = sample(150)
    scores = make_scores({"noise": np.random.default_rng(0).normal(size=150), "fine": fine}, ~wrong)
    for statistic in evaluation.STATISTICS:
        (row,) = paired_tests(scores, "noise", statistic=statistic, settings=FEW)
        assert row["gain"] > 0 and row["gain_low"] > 0 and row["p"] < 0.05
        sign = 1 if statistic in ("auroc", "prr") else -1
        assert row["gain"] == pytest.approx(sign * (row["value"] - row["value_against"]))


def test_best_baseline_is_chosen_in_every_resample():
    rng, wrong, fine, _ = sample(150)
    noise = {f"b{i}": rng.normal(size=150) + 0.5 * wrong for i in range(4)}
    scores = make_scores({"fine": fine, **noise}, ~wrong)
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
        (row,) = paired_tests(make_scores(table, ~wrong), ["a", "b", "c"], settings=settings)
        rejected += row["p"] <= 0.05
    # Equal to each of three, so better than the best of them less often than 1 in 20 (Binomial: 16 or more, .003).
    assert rejected < 16


def test_paired_test_rejects_as_often_as_it_says():
    rejected = 0
    for seed in range(200):
        rng, wrong, fine, _ = sample(100, seed=seed)
        settings = BootstrapSettings(num_resamples=100, seed=seed)
        table = {"a": rng.normal(size=100) + wrong, "b": fine}
        (row,) = paired_tests(make_scores(table, ~wrong), "a", settings=settings)
        rejected += row["p"] <= 0.1
    # Binomial(200, .1) is outside 8..34 once in a thousand.
    assert 8 <= rejected <= 34


def test_p_values_of_undefined_differences():
    assert p_value(np.array([np.nan, 1.0])) is None
    assert p_value(np.array([1.0, np.nan])) is None
    assert p_value(np.array([1.0, 1.0, np.nan, 1.0])) == pytest.approx(2 / 3)


# Correlations


def test_spearman_of_resamples():
    _, _, fine, tied = sample(50)
    weights = draw_weights(50, 70, seed=0)
    found = spearman(np.stack([fine, tied, -fine, np.ones(50)]), weights)
    for b in (0, 1, 33, 70):
        drawn = np.repeat(np.arange(50), weights[b])
        assert found[b, 0, 1] == pytest.approx(spearmanr(fine[drawn], tied[drawn])[0])
    np.testing.assert_allclose(found[:, 0, 2], -1)
    assert np.isnan(found[:, 0, 3]).all()


def test_correlation_rows():
    _, wrong, fine, tied = sample(60)
    values = {
        "fine": fine,
        "certain": -tied,
        "flat": np.zeros(60),
        "short": np.where(np.arange(60) < 2, fine, np.nan),
    }
    rows = correlations(make_scores(values, ~wrong, higher_is_certain=["certain"]), settings=FEW)
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


# Combinations


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


@pytest.mark.parametrize(
    ("e", "a", "rule", "kwargs", "message"),
    [
        ([1.0], [1.0], "mean", {}, "rule must be one of"),
        ([1.0], [1.0], "sum", {}, "sigma2 must be given"),
        ([1.0], [1.0], "sum", {"sigma2": -1.0}, "sigma2 must be a non-negative"),
        ([1.0], [1.0, 2.0], "rank", {}, "same|shape"),
        ([np.nan], [1.0], "rank", {}, "they are at none"),
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
    """Features without a signal, as many as to fit the answers in the sample, give chance out of fold."""
    rng = np.random.default_rng(1)
    x, wrong = rng.normal(size=(200, 60)), rng.random(200) < 0.5
    found = out_of_fold(x, wrong, settings=ONCE)
    assert abs(roc_auc_score(wrong, found) - 0.5) < 0.13
    np.testing.assert_array_equal(found, out_of_fold(x, wrong, settings=ONCE))
    # Any increasing transformation of a feature changes nothing.
    np.testing.assert_allclose(found, out_of_fold(np.exp(x), wrong, settings=ONCE))
    assert not np.allclose(
        found, out_of_fold(x, wrong, settings=FitSettings(num_repeats=1, seed=1))
    )


def test_gain_of_a_new_signal_and_of_none():
    rng = np.random.default_rng(2)
    known, new = rng.normal(size=(2, 500))
    wrong = rng.random(500) < 1 / (1 + np.exp(-1.5 * (known + new)))
    scores = make_scores(
        {"known": known, "new": new, "copy": known**3, "noise": rng.normal(size=500)}, ~wrong
    )
    found = {
        extra: auroc_gain(scores, baselines=["known"], extra=[extra], fit=ONCE, bootstrap=FEW)
        for extra in ("new", "copy", "noise")
    }
    assert tuple(found["new"]) == combination.GAIN_COLUMNS
    assert found["new"]["gain_low"] > 0.05 and found["new"]["p"] == pytest.approx(2 / 61)
    assert abs(found["copy"]["gain"]) < 0.005 and found["noise"]["gain"] < 0.01
    assert found["noise"]["gain_low"] <= 0
    row = found["new"]
    assert row["gain"] == pytest.approx(row["auroc_with"] - row["auroc_without"])
    few = make_scores({"a": np.arange(9.0), "b": np.arange(9.0)}, np.arange(9) < 7)
    assert "fewer than 5" in auroc_gain(few, baselines=["a"], extra=["b"])["reason"]
    with pytest.raises(ValueError, match="both have known"):
        auroc_gain(scores, baselines=["known"], extra=["known"])
    with pytest.raises(ValueError, match="extra must name"):
        auroc_gain(scores, baselines=["known"], extra=[])


# Transfer


def models(shifts, n=300):
    """Three models whose scores tell wrong answers alike, on scales of their own."""
    rng = np.random.default_rng(3)
    by_model = {}
    for model, (shift, scale) in shifts.items():
        wrong = rng.random(n) < 0.4
        u = scale * (rng.normal(size=n) + 2 * wrong) + shift
        by_model[model] = make_scores({"u": u, "other": rng.normal(size=n)}, ~wrong)
    return by_model


def test_transfer_between_models_that_agree():
    by_model = models({"a": (0, 1), "b": (50, 1), "c": (-50, 3)})
    for normalise in ("z", "rank"):
        rows = transfer(by_model, ["u", "other"], normalise=normalise, bootstrap=FEW)
        assert [row["left_out"] for row in rows] == ["a", "b", "c"]
        for row in rows:
            scores = by_model[row["left_out"]]
            alone = roc_auc_score(scores.wrong, scores.uncertainty["u"])
            assert row["auroc"] == pytest.approx(alone, abs=0.03)
            assert row["auroc_low"] < row["auroc"] < row["auroc_high"]
            assert (row["num_train"], row["num_test"], row["reason"]) == (600, 300, "")
            assert tuple(row) == combination.TRANSFER_COLUMNS


def test_raw_transfer_fails_where_scales_confound():
    """The worse model has smaller scores: between models the sign is the wrong way round, within them right."""
    rng = np.random.default_rng(4)
    by_model = {}
    for model, (rate, shift) in {"a": (0.9, 0.0), "b": (0.1, 20.0), "c": (0.5, 10.0)}.items():
        wrong = rng.random(300) < rate
        by_model[model] = make_scores({"u": rng.normal(size=300) + wrong + shift}, ~wrong)
    raw, within = (
        {
            row["left_out"]: row["auroc"]
            for row in transfer(by_model, ["u"], normalise=how, bootstrap=FEW)
        }
        for how in ("raw", "z")
    )
    assert raw["c"] < 0.4 and within["c"] > 0.65


def test_transfer_refuses_and_gives_reasons():
    by_model = models({"a": (0, 1), "b": (0, 1)}, n=40)
    with pytest.raises(ValueError, match="two models or more"):
        transfer({"a": by_model["a"]}, ["u"])
    with pytest.raises(ValueError, match=r"features \(of a\) must be one of u, other, got 'v'"):
        transfer(by_model, ["v"])
    by_model["b"] = make_scores({"u": np.r_[np.nan, np.arange(9.0)]}, np.ones(10))
    first, second = transfer(by_model, ["u"], bootstrap=FEW)
    assert first["reason"] == "one class only among the training answers" and first["auroc"] is None
    assert second["reason"] == "one class only among the left-out answers"
    assert (second["num_test"], second["num_undefined"]) == (9, 1)
    infinite = by_model | {
        "b": make_scores({"u": np.r_[np.inf, np.arange(9.0)]}, np.arange(10) < 5)
    }
    with pytest.raises(ValueError, match="features of b must be finite for 'z'"):
        transfer(infinite, ["u"], normalise="z")
    assert transfer(infinite, ["u"], normalise="rank", bootstrap=FEW)[1]["auroc"] is not None


def test_rows_are_rows_of_a_table():
    _, wrong, fine, tied = sample(60)
    scores = make_scores({"fine": fine, "tied": tied}, ~wrong)
    tables = [
        evaluate(scores, settings=FEW),
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
    assert evaluate(scores, settings=FEW) == tables[0]
    assert evaluate(scores, settings=BootstrapSettings(200, seed=2)) != tables[0]
    assert resampling.BLOCK < 60, "so that these tests go through more than one block"
