"""Transfer between models with planted scales."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from isounc.llm.answers.score_table import make_score_table
from isounc.studies.qa.evaluation import (
    BootstrapSettings,
)
from isounc.studies.qa.transfer import TRANSFER_COLUMNS, transfer

FEW = BootstrapSettings(num_resamples=60, seed=1)


def models(shifts, n=300):
    """Three models whose scores tell wrong answers alike, on scales of their own."""
    rng = np.random.default_rng(3)
    by_model = {}
    for model, (shift, scale) in shifts.items():
        wrong = rng.random(n) < 0.4
        u = scale * (rng.normal(size=n) + 2 * wrong) + shift
        by_model[model] = make_score_table({"u": u, "other": rng.normal(size=n)}, ~wrong)
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
            assert tuple(row) == TRANSFER_COLUMNS


def test_raw_transfer_fails_where_scales_confound():
    """The worse model has smaller scores: the sign is wrong between models, right within."""
    rng = np.random.default_rng(4)
    by_model = {}
    for model, (rate, shift) in {"a": (0.9, 0.0), "b": (0.1, 20.0), "c": (0.5, 10.0)}.items():
        wrong = rng.random(300) < rate
        by_model[model] = make_score_table({"u": rng.normal(size=300) + wrong + shift}, ~wrong)
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
    by_model["b"] = make_score_table({"u": np.r_[np.nan, np.arange(9.0)]}, np.ones(10, int))
    first, second = transfer(by_model, ["u"], bootstrap=FEW)
    assert first["reason"] == "one class only among the training answers" and first["auroc"] is None
    assert second["reason"] == "one class only among the left-out answers"
    assert (second["num_test"], second["num_undefined"]) == (9, 1)
    infinite = by_model | {
        "b": make_score_table({"u": np.r_[np.inf, np.arange(9.0)]}, np.arange(10) < 5)
    }
    with pytest.raises(ValueError, match="features of b must be finite for 'z'"):
        transfer(infinite, ["u"], normalise="z")
    assert transfer(infinite, ["u"], normalise="rank", bootstrap=FEW)[1]["auroc"] is not None
