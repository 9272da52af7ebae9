"""Routing: risks and gains by hand, planted tables, and a tiny run from the command line to the page."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import isounc.runs
from isounc.guard.cost_risk import gain
from isounc.runs.study import run_study
from isounc.studies.routing.cell import certify, cheap_scores, judge, predict, router_scores
from isounc.studies.routing.networks import CNN
from isounc.studies.routing.settings import (
    PRESETS,
    SIZES,
    Rows,
    Settings,
    check,
    make_split,
    networks_of,
    plan,
)
from isounc.studies.routing.study import STUDY
from isounc.studies.routing.tables import Results, verdicts
from isounc.training import TrainSettings


def by_hand(score, right):
    """Mean of R(e) by trapezoids, averaged over all orders of equal scores."""
    areas = []
    for order in itertools.permutations(range(len(score))):
        if list(np.asarray(score)[list(order)]) != sorted(score, reverse=True):
            continue
        risks = []
        for passed in range(len(score) + 1):
            on = list(order[:passed])
            risks.append(np.mean([not right[i][int(i in on)] for i in range(len(score))]))
        areas.append(np.mean((np.array(risks[1:]) + risks[:-1]) / 2))
    return np.mean(areas)


@pytest.mark.parametrize("score", [[3, 1, 2, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0.5, -1, 0.5, 2]])
def test_mean_risk_by_hand(score):
    right = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], bool)
    found = judge(np.array(score, float), right)
    assert found["mean_risk"] == pytest.approx(by_hand(score, right))
    assert found["oracle_risk"] == pytest.approx(by_hand([1, 0, -1, 0], right))
    assert gain(np.zeros(4), right).mean_risk == pytest.approx(found["random_risk"])
    expected = (found["random_risk"] - found["mean_risk"]) / (
        found["random_risk"] - found["oracle_risk"]
    )
    assert found["gain"] == pytest.approx(expected)


def test_gain_ends():
    right = np.array([[0, 1], [1, 1], [1, 1], [0, 1]], bool)
    assert judge((~right[:, 0]).astype(float), right)["gain"] == pytest.approx(1)
    assert judge(np.zeros(4), right)["gain"] == pytest.approx(0)
    assert judge(right[:, 0].astype(float), right)["gain"] == pytest.approx(-1)
    assert judge(np.zeros(4), np.ones((4, 2), bool))["gain"] is None
    assert judge(np.zeros(4), np.ones((4, 2), bool))["auroc"] is None


def test_certified_costs_by_hand():
    rng = np.random.default_rng(0)
    scores = {part: rng.uniform(size=600) for part in ("guard", "test")}
    right = {
        part: np.stack([rng.uniform(size=600) > s, rng.uniform(size=600) > 0.02], axis=1)
        for part, s in scores.items()
    }
    found = certify(scores, right, (1.0, 8.0), target=0.15, confidence=0.9, seed=1)
    assert found["found"] == 1
    assert found["cost_share"] == pytest.approx((1 + 8 * found["passed_on"]) / 8)
    assert found["log2_cost"] == pytest.approx(np.log2(found["cost_share"]))
    kept = np.sort(scores["test"])[: round(600 * (1 - found["passed_on"]))].max()
    wrong = ~np.where(scores["test"] <= kept, *right["test"].T)
    assert found["cascade_risk"] == pytest.approx(wrong.mean())
    assert certify(scores, right, (1.0, 8.0), target=0.001, confidence=0.9, seed=1)["found"] == 0


def test_splits_share_no_row():
    split = make_split("breast_cancer", 3)
    assert [len(part.y) for part in split[:3]] == [*SIZES["breast_cancer"], 569 - 330]
    rows = {row.tobytes() for part in split[:3] for row in part.X}
    assert len(rows) == 569
    assert np.abs(split.train.X.mean(axis=0)).max() < 1e-9
    assert not np.array_equal(split.test.y, make_split("breast_cancer", 4).test.y)


def test_scores_of_a_network_that_is_sure_are_small():
    split = make_split("breast_cancer", 0)
    model, _ = networks_of(split, 2, Settings())
    rng = np.random.default_rng(1)
    theta = rng.normal(size=model.num_params).astype(np.float32)
    found = cheap_scores(model, theta, split, "test")
    assert set(found) == {"p", "entropy", "isotropic", "total", "logit_scaled", "moderated"}
    assert all(values.shape == split.test.y.shape for values in found.values())
    assert np.corrcoef(found["p"], found["entropy"])[0, 1] > 0.8
    assert (
        found["moderated"] >= found["p"] - 1e-5
    ).all()  # averaging over a logit goes towards 1/2
    assert found["total"] == pytest.approx(found["isotropic"] + found["p"] * (1 - found["p"]))
    assert not router_scores(split, np.ones(len(split.guard.y), bool))["test"].any()


def test_a_convolution_by_hand():
    """One channel whose kernel looks one pixel to the left, a ReLU, means of two by two, a read-out."""
    network = CNN(width=1, depth=1, out_features=2)
    params = network.unflatten(np.zeros(network.init(jax.random.key(0)).size, np.float32))
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 0] = 2.0
    params["convolutions"][0]["kernel"] = jnp.asarray(kernel)
    params["convolutions"][0]["bias"] = jnp.asarray([0.5])
    weights = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    params["readout"]["kernel"] = jnp.asarray(weights)
    image = np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)
    left = np.hstack([np.zeros((8, 1)), image[:, :-1]])
    pooled = np.maximum(2 * left + 0.5, 0).reshape(4, 2, 4, 2).mean(axis=(1, 3))
    expected = pooled.reshape(-1) @ weights
    np.testing.assert_allclose(
        network.apply_params(params, image.reshape(1, 64))[0], expected, rtol=1e-5
    )


@pytest.fixture(scope="module")
def tiny_cnn(tmp_path_factory):
    """A run of convolutional networks, from the settings to the published tables."""
    out = tmp_path_factory.mktemp("cnn") / "run"
    settings = dataclasses.replace(
        PRESETS["quick"], networks="cnn", problems=("digits",), cheap_widths=(1,), width=2,
        num_seeds=2, target_risks=(0.9,), num_timings=1, train=TrainSettings(epochs=4),
        out=str(out), cache="", executor="serial", figures="shown",
    )  # fmt: skip
    assert run_study(STUDY, settings)
    return out, settings


def test_a_tiny_run_of_convolutional_networks(tiny_cnn):
    run = isounc.runs.load(tiny_cnn[0])
    assert set(run.results["networks"]) == {"cnn"} and len(run.results) == 2 * 7
    assert set(run.read_table("verdicts.csv")["networks"]) == {"cnn"}
    assert (run.results["gate"] == "pass").all()
    # It has learnt: nine classes in ten would be wrong by chance.
    assert (run.results["cheap_risk"] < 0.8).all()
    assert "cheap and expensive CNN" in (tiny_cnn[0] / "report.html").read_text()


def test_norms_of_a_convolutional_network(tiny_cnn):
    """Against the plain gradient of the predicted probability."""
    split = make_split("digits", 0)
    network, _ = networks_of(split, 2, tiny_cnn[1])
    assert isinstance(network, CNN)
    theta = np.asarray(network.init(jax.random.key(3)))
    few = split._replace(test=Rows(split.test.X[:4], split.test.y[:4]))
    found = cheap_scores(network, theta, few, "test")
    X = few.test.X.astype(np.float32)
    probs = predict(network, theta, X)
    for i, top in enumerate(probs.argmax(axis=1)):
        gradient = jax.grad(
            lambda t, x, top=top: jax.nn.softmax(network.apply(t, x[None]))[0, top]
        )(theta, X[i])
        assert found["isotropic"][i] == pytest.approx(float(gradient @ gradient), rel=1e-4)
        assert found["p"][i] == pytest.approx(1 - probs[i, top], abs=1e-6)


def planted(gain_of):
    rows = [
        {
            "networks": "mlp", "problem": "digits", "cheap_width": 4, "seed": seed, "gate": "pass",
            "gate_reasons": "",
            "score": score, **dict.fromkeys(("cheap_risk", "risk", "auroc"), 0.1),
            "gain": gain_of(score, seed),
        }
        for score in ("p", "isotropic", "router")
        for seed in range(5)
    ]  # fmt: skip
    return Results(rows, [])


def test_planted_verdicts():
    noise = [0.01, -0.01, 0.02, -0.02, 0.0]
    level = {"p": 0.3, "isotropic": 0.5, "router": -0.2}
    found = {
        (row["hypothesis"], row["score"]): row["verdict"]
        for row in verdicts(
            planted(lambda score, seed: level[score] + noise[seed] * (score != "p"))
        )
        if row["problem"] == "all"
    }
    assert found["routes", "isotropic"] == "confirmed"
    assert found["routes", "router"] == "refuted"
    assert found["beats p", "isotropic"] == "confirmed"
    assert found["beats p", "router"] == "refuted"
    assert ("beats p", "p") not in found
    assert found["beats router", "p"] == "confirmed"
    assert not any(name == "saves" for name, _ in found)


def test_a_failed_cell_is_in_no_number():
    results = planted(lambda score, seed: 0.1)
    results.rows[0]["gate"] = "fail"
    assert results.over(("digits", 4), "p", "gain").interval.num_seeds == 4


def test_a_tiny_run(tmp_path, capsys):
    settings = dataclasses.replace(
        PRESETS["quick"], problems=("breast_cancer",), cheap_widths=(2,), width=8, depth=1,
        num_seeds=2, target_risks=(0.1, 0.2), num_timings=1, train=TrainSettings(epochs=20),
        out=str(tmp_path / "run"), cache="", executor="serial", figures="all",
    )  # fmt: skip
    assert run_study(STUDY, settings)
    said = capsys.readouterr().out
    assert "The run has 2 of 2 cells." in said
    run = isounc.runs.load(tmp_path / "run")
    table = run.results
    assert len(table) == 2 * 7
    of_p = table[table["score"] == "p"]
    assert (of_p["cheap_microseconds"] > 0).all()
    record = run.read("breast_cancer-w2-seed0")
    right, score = record.arrays["right"], record.arrays["score/isotropic"]
    row = table[(table["score"] == "isotropic") & (table["seed"] == 0)].iloc[0]
    assert row["cheap_risk"] == pytest.approx((~right[:, 0]).mean(), rel=1e-5)
    assert row["gain"] == pytest.approx(judge(score, right)["gain"], rel=1e-5)
    assert {p.name for p in (tmp_path / "run" / "figures").glob("*.png")} >= {"gains.png"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "passes on better than chance" in page


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"problems": ()}, "problems must have at least one value"),
        ({"problems": ("digit",)}, "problems must be one of digits, breast_cancer, got 'digit'"),
        ({"cheap_widths": (0,)}, "cheap_widths must be"),
        ({"target_risks": (0.2, 0.1)}, "target_risks must rise"),
        ({"target_risks": (1.5,)}, "target_risks must be above 0 and below 1"),
        ({"confidence": 1}, "confidence must be above 0 and below 1, got 1"),
        ({"num_seeds": 0}, "num_seeds must be"),
        ({"networks": "rnn"}, "networks must be one of mlp, cnn, got 'rnn'"),
        ({"networks": "cnn"}, "problems must be digits, which are images"),
        ({"networks": "cnn", "problems": ("digits",), "depth": 4}, "depth of a cnn must be"),
        (
            {"networks": "cnn", "problems": ("digits",), "train": TrainSettings(patience=2)},
            "train.patience with networks cnn must be",
        ),
    ],
)
def test_bad_settings(given, message):
    with pytest.raises(ValueError, match=message):
        check(dataclasses.replace(Settings(), **given))
    assert sum(len(b.cells) for group in plan(Settings()) for b in group) == 10
