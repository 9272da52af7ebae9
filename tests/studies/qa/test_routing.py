"""Passing on to a second answerer: votes, curves in closed form, routers without leaks, verdicts."""

import dataclasses

import numpy as np
import pytest

from isounc.guard.cost_risk import Answerers, cost_risk, gain
from isounc.studies.qa.ranking import draw_weights
from isounc.studies.qa.routing import report, tables
from isounc.studies.qa.routing.paths import gains, oracle_paths, paths
from isounc.studies.qa.routing.results import Pair, evaluate_pair, splits
from isounc.studies.qa.routing.routers import question_features, worth
from isounc.studies.qa.routing.second import majority
from isounc.studies.qa.routing.settings import RoutingSettings, SecondSettings

SECONDS = {
    "answers": 1.0, "gradient norms": 2.0, "P(True)": 1.5, "second answers": 10.0,
    "prompt's states": 0.5,
}  # fmt: skip


def planted(both=40, second=30, neither=30, first=0, **scores):
    """Questions that both answerers, or one of them, have right."""
    kinds = [(1, 1)] * both + [(0, 1)] * second + [(0, 0)] * neither + [(1, 0)] * first
    correct = np.array(kinds, bool)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=len(correct))
    scores = {"p": noise, "isotropic": noise + 3.0 * ~correct[:, 0]} | scores
    questions = [f"Who wrote book {i}?" for i in range(len(correct))]
    states = rng.normal(size=(len(correct), 6)).astype(np.float32)
    return Pair("tiny", "triviaqa", "more", scores, correct, questions, states, SECONDS)


@pytest.mark.parametrize(
    ("texts", "answer", "votes"),
    [
        (["Rome", "Paris", "paris!", "The Paris", "Rome"], "Paris", 3),
        (["Rome", "Paris", "Paris", "rome"], "Rome", 2),  # as many: the first that was drawn
        (["", "", "", "Oslo"], "Oslo", 1),  # an empty sample has no vote
        (["...", ""], "", 2),
        (["the", "a", "The"], "the", 2),
    ],
)
def test_majority(texts, answer, votes):
    assert majority(texts) == (answer, votes)


def test_majority_of_nothing():
    with pytest.raises(ValueError, match="texts must hold at least one sample"):
        majority([])


@pytest.mark.parametrize("round_to", [8, 0])
def test_paths_are_those_of_repeated_questions(round_to):
    """In each resample the gain of `isounc.guard`, with questions repeated as often as drawn."""
    rng = np.random.default_rng(1)
    correct = rng.uniform(size=(40, 2)) < [0.4, 0.6]
    score = np.round(rng.normal(size=40) - correct[:, 0], round_to)
    score[:3] = np.inf
    weights = draw_weights(40, 5, seed=2)
    found = paths(score, correct, weights)
    gained = gains(found, correct, weights)
    for i, drawn in enumerate(weights):
        rows = np.repeat(np.arange(40), drawn)
        by_hand = gain(score[rows], correct[rows])
        for name, value in by_hand._asdict().items():
            assert getattr(gained, name)[i] == pytest.approx(value), name
    # A threshold's cascade lies on the path.
    stages = (score > 0.5).astype(int)
    point = cost_risk(stages[None], Answerers(correct, np.array([1.0, 10.0])))
    assert found.at(np.array([stages.mean()]))[0, 0] == pytest.approx(point.risk[0])


def test_oracle_and_chance_in_closed_form():
    """Risk .6 falls to .3 over the first .3 that an oracle passes on, and then stays."""
    pair = planted()
    ones = np.ones((1, 100), int)
    oracle = oracle_paths(pair.correct, ones)
    assert oracle.mean()[0] == pytest.approx(0.3 + 0.3 * 0.3 / 2)
    assert oracle.mean(0.1, 0.9)[0] == pytest.approx((0.2 * 0.4 + 0.6 * 0.3) / 0.8)
    chance = paths(np.zeros(100), pair.correct, ones)
    assert chance.mean(0.2, 0.4)[0] == pytest.approx(0.6 - 0.3 * 0.3)
    assert gains(chance, pair.correct, ones).gain[0] == pytest.approx(0)
    assert gains(oracle, pair.correct, ones).gain[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="low and high must rise within 0 and 1"):
        chance.mean(0.5, 0.5)


def test_areas_at_the_measured_costs():
    """All of it on one side of a split that tests everything: ends 3 (with norms) and 10 seconds."""
    settings = RoutingSettings(num_splits=2, guard_share=0.5, num_resamples=20)
    pair = planted(200, 150, 150)
    found = evaluate_pair(pair, settings)
    assert found.ends == (3.0, 10.0)
    for split, (guard, test) in enumerate(found.halves):
        assert not set(guard) & set(test) and len(guard) + len(test) == 500
        wrong = (~pair.correct[test]).mean(axis=0)
        policy = found.policies["isotropic"]
        # Asked at random for c seconds: 1 and 10 seconds, of which 6.5 is the middle of 3 and 10.
        mixture = wrong[0] + (6.5 - 1) / 9 * (wrong[1] - wrong[0])
        assert policy.mixture[split, 0] == pytest.approx(mixture)
        useful = (pair.correct[test] @ [-1, 1] == 1).mean()
        shares = np.linspace(0.2, 0.9, 20001)  # a cascade's, of 1 + 10 e seconds
        by_hand = (wrong[0] - np.minimum(shares, useful)).mean()
        assert policy.oracle[split, 0] == pytest.approx(by_hand, abs=1e-4)
        curve = policy.curve[split, 0]
        assert policy.costs[split, [0, -1]].tolist() == [3.0, 13.0]
        assert curve[0] == pytest.approx(wrong[0]) and curve[-1] == pytest.approx(wrong[1])
    assert found.policies["router"].costs[0, [0, -1]].tolist() == [1.5, 10.5]
    assert found.policies["router_question"].costs[0, [0, -1]].tolist() == [1.0, 10.0]


def test_where_the_dearest_first_answer_costs_as_much_there_is_no_area():
    pair = planted()._replace(seconds=SECONDS | {"second answers": 2.9})
    found = evaluate_pair(pair, RoutingSettings(num_splits=1, num_resamples=2))
    assert np.isnan(found.policies["p"].area).all()


def test_routers_are_fitted_to_guard_questions_alone():
    rng = np.random.default_rng(3)
    states = rng.normal(size=(300, 8))
    correct = np.stack([states[:, 0] > 0, states[:, 1] > 0], axis=1)
    guard = np.arange(150)
    found = worth(states, correct, guard, num_components=8)
    useful = correct[150:] @ [-1, 1]
    assert found[150:][useful == 1].mean() > found[150:][useful == -1].mean() + 0.8
    # Neither labels nor features of other questions have any part in a question's number.
    other = correct.copy()
    other[150:] = ~other[150:]
    assert np.array_equal(worth(states, other, guard, num_components=8), found)
    moved = states.copy()
    moved[200:] += 100.0
    assert worth(moved, correct, guard, num_components=8)[:200] == pytest.approx(found[:200])
    other = correct.copy()
    other[:150] = ~other[:150]
    assert not np.allclose(worth(states, other, guard, num_components=8), found)
    # Of answers that are all wrong there is nothing to fit.
    assert not worth(states, np.zeros((300, 2), bool), guard).any()


def test_question_features():
    rows = question_features(["Who was king in 1066?", "In which country is Mount Elbrus?"])
    assert rows[:, :4].tolist() == [[5, 21, 0, 1], [6, 33, 2, 0]]
    assert rows[:, 4:].tolist() == [[1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]


def make(pair, **changes):
    settings = dataclasses.replace(
        RoutingSettings(num_splits=3, num_resamples=100, target_risks=(0.5, 0.6)), **changes
    )
    return tables.make_tables([pair], settings)


def test_planted_verdicts_and_cascades():
    dear = SECONDS | {"second answers": 30.0}
    made = make(planted(240, 180, 180)._replace(seconds=dear))
    found = {(r["hypothesis"], r["score"]): r for r in made["routing_verdicts"]}
    better = found["second is better", ""]
    assert better["verdict"] == "confirmed" and better["mean"] == pytest.approx(-0.3)
    assert better["low"] < -0.3 < better["high"] < 0 and better["num_questions"] == 600
    for name in ("routes", "beats p", "beats router", "pays"):
        assert found[name, "isotropic"]["verdict"] == "confirmed", name
    assert found["routes", "p"]["verdict"] == "undecided"
    assert ("beats p", "p") not in found and ("saves", "router") not in found
    # What is best on the guard questions is the planted score.
    best = [r for r in made["routing"] if r["score"] == "best"]
    assert {r["chosen"] for r in best} == {"isotropic"} and {r["num_test"] for r in best} == {300}
    assert best[0]["first_seconds"] == 3.0 and best[0]["break_even"] == pytest.approx(0.9)
    cascades = [r for r in made["routing_cascades"] if r["found"] and r["score"] == "isotropic"]
    assert {r["target"] for r in cascades} == {None, 0.5, 0.6}
    for row in cascades:
        assert row["cost_share"] == pytest.approx((3 + 30 * row["passed_on"]) / 30, rel=1e-4)
        assert row["excess"] == pytest.approx(row["cascade_risk"] - row["promised"], abs=1e-5)
        assert row["promised"] == row["target"] or row["target"] is None
        if row["target"] is None:  # half of the cost of the second, by the designing half
            assert row["cost_share"] < 0.65 and row["promised"] > row["cascade_risk"] - 0.05
    curve = {(r["score"], r["share"]): r for r in made["routing_curve"]}
    assert curve["always second", 1.0]["seconds"] == 30
    assert curve["oracle", 0.3]["risk"] == pytest.approx(0.3, abs=0.03)
    middle = curve["random", 0.5]
    assert middle["seconds"] == 15.5 and middle["risk_low"] < middle["risk"] < middle["risk_high"]
    said = " ".join(report.reading(made))
    assert "that the second is wrong less often is confirmed (-0.30" in said
    assert "“saves” (the cascade costs less than the second answerer) at target 0.5" in said


def test_a_second_that_is_no_better_is_said_to_be_none():
    made = make(planted(100, 0, 100))  # the same answers
    (row,) = [r for r in made["routing_verdicts"] if r["hypothesis"] == "second is better"]
    assert row["verdict"] == "undecided" and row["mean"] == 0
    assert all(r["gain"] is None for r in made["routing"])
    assert not any(r["hypothesis"] == "routes" for r in made["routing_verdicts"])
    assert "is wrong less often is undecided (+0.00" in report.reading(made)[0]


def test_splits_are_those_of_the_questions_alone():
    pair = planted()
    settings = RoutingSettings(num_splits=2)
    ours, theirs = splits(pair, settings), splits(pair._replace(second="other"), settings)
    assert np.array_equal(ours[0][0], theirs[0][0])
    assert not np.array_equal(ours[0][0], ours[1][0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SecondSettings(num_samples=-1), "second.num_samples must be"),
        (lambda: SecondSettings(temperature=0.0), "second.temperature must be"),
        (lambda: RoutingSettings(num_splits=0), "routing.num_splits must be"),
        (lambda: RoutingSettings(guard_share=1.0), "routing.guard_share must be"),
        (lambda: RoutingSettings(target_risks=(0.9, 0.8)), "routing.target_risks must be one"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
