"""Cascades against search by hand, and their promise against closed forms."""

import json

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from isounc.guard import Cascade
from isounc.guard.cascade import stages_of
from isounc.guard.cost_risk import (
    CostRisk,
    area_under,
    break_even,
    checked_answerers,
    cost_risk,
    gain,
    mixture_risk,
    oracle_stages,
    single_answerers,
)


def sample(n, rng):
    """A cheap answerer whose share of wrong answers is its score s, and one that is wrong in 5%."""
    scores = rng.uniform(size=(n, 1))
    cheap = rng.uniform(size=n) > scores[:, 0]
    return scores, np.stack([cheap, rng.uniform(size=n) > 0.05], axis=1)


def true_risk(threshold):
    """Of the whole cascade: int_0^t s ds + .05 (1 - t)."""
    t = max(threshold, 0.0)
    return t**2 / 2 + 0.05 * (1 - t)


def test_promise_holds_for_the_whole_cascade():
    rng = np.random.default_rng(0)
    violations = answered = 0
    for seed in range(60):
        cascade = Cascade.fit(*sample(400, rng), [1.0, 10.0], target_risk=0.12, seed=seed)
        if cascade.thresholds is not None:
            answered += cascade.thresholds[0] > 0.2
            violations += true_risk(cascade.thresholds[0]) > 0.12
    assert violations <= binom.ppf(0.999, 60, 0.1)
    assert answered > 40


def test_thresholds_by_hand():
    scores, correct = sample(2000, np.random.default_rng(1))
    cascade = Cascade.fit(scores, correct, [1.0, 10.0], target_risk=0.15, seed=3)
    order = np.random.default_rng(3).permutation(2000)
    design, certify = order[:1000], order[1000:]
    ladder = np.quantile(scores[design, 0], np.linspace(0, 1, 50), method="inverted_cdf")
    expected = -np.inf
    for t in np.r_[-np.inf, np.unique(ladder)]:  # of two answerers the path is the ladder itself
        kept = scores[certify, 0] <= t
        wrong = int((~np.where(kept, *correct[certify].T)).sum())
        if binom.cdf(wrong, 1000, 0.15) > 0.1:
            break
        expected = t
    assert cascade.thresholds == (expected,)
    kept = scores[certify, 0] <= expected
    assert cascade.mean_cost == pytest.approx(1 + 10 * (~kept).mean())
    assert cascade.mean_cost_se == pytest.approx(10 * (~kept).std(ddof=1) / np.sqrt(1000))
    assert cascade.risk.count == (~np.where(kept, *correct[certify].T)).sum()
    assert "answerer 1 keeps" in str(cascade)


def test_budget():
    scores, correct = sample(2000, np.random.default_rng(2))
    cascade = Cascade.fit(scores, correct, [1.0, 10.0], budget=7.0)
    assert cascade.mean_cost == pytest.approx(7.0, abs=1.0)
    assert cascade.risk.low < cascade.promised_risk < cascade.risk.high + 0.01
    # The bound is exact: at it, so few wrong answers have probability .1.
    assert binom.cdf(cascade.risk.count, cascade.risk.of, cascade.promised_risk) == pytest.approx(
        0.1
    )
    assert true_risk(cascade.thresholds[0]) < cascade.promised_risk
    poor = Cascade.fit(scores, correct, [1.0, 10.0], budget=0.5)
    assert poor.thresholds is None
    assert "cheapest costs" in poor.reason
    assert (poor.choose(scores) == 1).all()
    rich = Cascade.fit(scores, correct, [1.0, 10.0], budget=100)
    assert rich.risk.count <= cascade.risk.count + 20


def test_three_answerers_beat_two():
    """A middle answerer that knows when it is wrong makes the same risk cheaper."""
    rng = np.random.default_rng(3)
    scores = rng.uniform(size=(4000, 2))
    right = [rng.uniform(size=4000) > s for s in (scores[:, 0], 0.3 * scores[:, 1])]
    correct = np.stack([*right, np.ones(4000, bool)], axis=1)
    three = Cascade.fit(scores, correct, [1, 4, 50], target_risk=0.1, names=["a", "b", "person"])
    two = Cascade.fit(scores[:, :1], correct[:, [0, 2]], [1, 50], target_risk=0.1)
    assert three.mean_cost is not None and two.mean_cost is not None
    assert three.mean_cost < two.mean_cost
    assert "person answers the rest" in str(three)
    stages = three.choose(scores)
    for n in range(50):  # asked one by one, it goes the same way
        stage = 0
        while not three.keeps(stage, scores[n, stage] if stage < 2 else 0.0):
            stage += 1
        assert stage == stages[n]
    unasked = np.where(stages[:, None] <= [0, 0], [[0, np.nan]], 0) + scores
    assert (three.choose(unasked) == stages).all()


def test_no_cascade_is_an_answer():
    rng = np.random.default_rng(4)
    scores, correct = sample(400, rng)
    cascade = Cascade.fit(scores, correct, [1.0, 10.0], target_risk=0.03)
    assert cascade.thresholds is None
    assert "the last answerer alone is wrong in" in str(cascade)
    assert (cascade.choose(scores) == 1).all()
    assert not cascade.keeps(0, -1e9)


def test_stored(tmp_path):
    scores, correct = sample(400, np.random.default_rng(5))
    never = scores * 0 + np.inf  # always passed on
    for name, cascade in (
        ("some", Cascade.fit(scores, correct, [1, 10], target_risk=0.15, names=("a", "b"))),
        ("budget", Cascade.fit(scores, correct, [1, 10], budget=5)),
        ("none", Cascade.fit(scores, correct, [1, 10], target_risk=0.001)),
        ("last", Cascade.fit(never, correct, [1, 10], target_risk=0.7)),
    ):
        cascade.save(tmp_path / name)
        assert Cascade.load(tmp_path / name) == cascade
    content = json.loads((tmp_path / "some").read_text())
    (tmp_path / "bad").write_text(json.dumps(content | {"costs": [1, 2, 3]}))
    with pytest.raises(
        ValueError, match=r"thresholds of .* must be one fewer than costs, got 1 and 3"
    ):
        Cascade.load(tmp_path / "bad")
    (tmp_path / "bad").write_text(json.dumps(content | {"costs": [1, -2]}))
    with pytest.raises(ValueError, match=r"costs of .* must be"):
        Cascade.load(tmp_path / "bad")


def test_costs_and_risks_by_hand():
    answerers = checked_answerers([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]], [1, 2, 10])
    stages = np.array([[0, 1, 2, 2], [0, 0, 0, 0]])
    found = cost_risk(stages, answerers)
    assert found.cost.tolist() == [(1 + 3 + 13 + 13) / 4, 1]
    assert found.risk.tolist() == [0.25, 0.75]
    interval = binomtest(1, 4).proportion_ci(0.95)
    assert (found.low[0], found.high[0]) == (interval.low, interval.high)
    assert cost_risk(stages, answerers, pays_all=False).cost.tolist() == [(1 + 2 + 20) / 4, 1]
    assert oracle_stages(answerers).tolist() == [0, 1, 2, 0]
    assert single_answerers(answerers).risk.tolist() == [0.75, 0.5, 0.25]
    # The second answerer lies below the line from the first to the third.
    assert mixture_risk(np.array([0.5, 1, 1.5, 6, 20]), answerers)[1:] == pytest.approx(
        [0.75, 0.625, 0.375, 0.25]
    )
    assert np.isnan(mixture_risk(np.array([0.5]), answerers)[0])
    assert break_even(checked_answerers([[1, 1]], [1, 4])) == 0.75
    assert break_even(checked_answerers([[1, 1]], [5, 4])) == 0


def test_mixture_leaves_out_what_no_mixture_needs():
    """An answerer above the line between two others, and one that costs more and knows less."""
    correct = np.zeros((10, 4))
    correct[:5, 0], correct[:5, 1], correct[:9, 2], correct[:6, 3] = 1, 1, 1, 1
    answerers = checked_answerers(correct, [1, 2, 3, 4])
    assert mixture_risk(np.array([1, 2, 3, 4.0]), answerers) == pytest.approx([0.5, 0.3, 0.1, 0.1])


def test_area():
    curve = CostRisk(np.array([1, 2, 4.0]), np.array([0.4, 0.5, 0.1]), np.zeros(3), np.ones(3))
    assert area_under(curve, (1, 4)) == pytest.approx(
        0.4
    )  # the second point is worse than the first
    assert area_under(curve, (1, 6)) == pytest.approx((3 * 0.4 + 2 * 0.1) / 5)
    with pytest.raises(ValueError, match="ends must rise from 1 or above, got 0 and 4"):
        area_under(curve, (0, 4))


@pytest.mark.parametrize("questions", [7, 10, 37, 101])
def test_two_that_are_right_together_have_nothing_to_gain(questions):
    """Rounding alone tells their risks apart."""
    right = np.arange(questions) % 3 > 0
    found = gain(np.arange(questions) * 1.0, np.stack([right, right], axis=1))
    assert found.gain is None
    assert found.mean_risk == pytest.approx(found.oracle_risk)


def test_ties_and_order_of_stages():
    thresholds = np.array([[-np.inf, 1.0], [2.0, -np.inf]])
    scores = np.array([[2.0, 1.0], [-np.inf, np.inf], [3.0, np.nan]])
    assert stages_of(scores, thresholds).tolist() == [[1, 0, 2], [0, 0, 2]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scores": np.zeros((8, 2))}, r"scores must have shape \(8, 1\)"),
        ({"scores": np.full((8, 1), np.nan)}, "with 8 NaN"),
        (
            {"correct": np.ones(8)},
            r"correct must hold true and false with a row .* got shape \(8,\)",
        ),
        ({"correct": np.full((8, 2), 2)}, "correct must hold true and false"),
        ({"costs": [1, 0]}, "costs must be a positive number for each of 2 answerers"),
        ({"costs": [1]}, "costs must be a positive number for each of 2"),
        ({"target_risk": 2}, "target_risk must be above 0 and below 1, got 2"),
        ({"budget": 1.0}, "target_risk or budget must be given, and not both"),
        ({"target_risk": None}, "target_risk or budget must be given"),
        ({"names": ["a"]}, "names must be one for each of 2 answerers, got 1"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
    ],
)
def test_bad_input(given, message):
    arguments = {
        "scores": np.zeros((8, 1)), "correct": np.ones((8, 2)), "costs": [1.0, 2.0],
        "target_risk": 0.1, **given,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        Cascade.fit(**arguments)
