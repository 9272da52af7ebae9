"""Gains of planted signals, of copies and of noise."""

from __future__ import annotations

import numpy as np
import pytest

from isounc.llm.answers.logistic import LogisticSettings
from isounc.llm.answers.score_table import make_score_table
from isounc.studies.qa.evaluation import (
    BootstrapSettings,
)
from isounc.studies.qa.gains import GAIN_COLUMNS, auroc_gain

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
