"""Gains of planted signals, of copies and of noise."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from isounc.llm.answers.logistic import LogisticSettings, out_of_fold_log_odds
from isounc.llm.answers.score_table import make_score_table
from isounc.studies.qa.evaluation import (
    BootstrapSettings,
)
from isounc.studies.qa.gains import GAIN_COLUMNS, auroc_gain
from isounc.studies.qa.ranking import draw_weights

FEW = BootstrapSettings(num_resamples=60, seed=1)
ONCE = LogisticSettings(num_repeats=1)


def test_gain_of_a_new_signal_and_of_none():
    rng = np.random.default_rng(2)
    known, new = rng.normal(size=(2, 500))
    wrong = rng.random(500) < 1 / (1 + np.exp(-1.5 * (known + new)))
    scores = make_score_table(
        {"known": known, "new": new, "copy": known**3, "noise": rng.normal(size=500)}, ~wrong
    )
    found = {
        extra: auroc_gain(scores, baselines=["known"], extra=[extra], logistic=ONCE, bootstrap=FEW)
        for extra in ("new", "copy", "noise")
    }
    assert tuple(found["new"]) == GAIN_COLUMNS
    assert found["new"]["gain_low"] > 0.05 and found["new"]["p"] == pytest.approx(2 / 61)
    assert abs(found["copy"]["gain"]) < 0.005 and found["noise"]["gain"] < 0.01
    assert found["noise"]["gain_low"] <= 0
    row = found["new"]
    assert row["gain"] == pytest.approx(row["auroc_with"] - row["auroc_without"])
    few = make_score_table({"a": np.arange(9.0), "b": np.arange(9.0)}, np.arange(9) < 7)
    assert "fewer than 5" in auroc_gain(few, baselines=["a"], extra=["b"])["reason"]
    with pytest.raises(ValueError, match="got known in both"):
        auroc_gain(scores, baselines=["known"], extra=["known"])
    with pytest.raises(ValueError, match="extra must name"):
        auroc_gain(scores, baselines=["known"], extra=[])
    with pytest.raises(ValueError, match="extra must be one of"):
        auroc_gain(scores, baselines=["known"], extra=["gone"])


@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_interval_and_p_value_of_a_gain_are_those_of_a_loop_over_resamples(strength):
    rng = np.random.default_rng(7)
    known, new = rng.normal(size=(2, 120))
    wrong = rng.random(120) < 1 / (1 + np.exp(-known - strength * new))
    row = auroc_gain(
        make_score_table({"known": known, "new": np.where(np.arange(120) < 110, new, np.nan)},
                         ~wrong),
        baselines=["known"], extra=["new"], logistic=ONCE, bootstrap=FEW,
    )  # fmt: skip
    x, wrong = np.stack([known, new], axis=1)[:110], wrong[:110]
    alone, both = (out_of_fold_log_odds(z, wrong, settings=ONCE) for z in (x[:, :1], x))
    gains = np.array([
        roc_auc_score(wrong, both, sample_weight=w) - roc_auc_score(wrong, alone, sample_weight=w)
        for w in draw_weights(110, 60, seed=1)
    ])  # fmt: skip
    assert (row["num_questions"], row["num_wrong"]) == (110, wrong.sum())
    assert row["auroc_without"] == pytest.approx(roc_auc_score(wrong, alone))
    assert row["gain"] == pytest.approx(gains[0])
    assert row["gain_se"] == pytest.approx(gains[1:].std(ddof=1))
    assert [row["gain_low"], row["gain_high"]] == pytest.approx(
        np.quantile(gains[1:], [0.025, 0.975])
    )
    fewer = min((gains[1:] <= 0).sum(), (gains[1:] >= 0).sum())
    assert 0 < fewer, "so that the p-value is not the least possible"
    assert row["p"] == pytest.approx(2 * (1 + fewer) / 61)
