"""Thresholds against binomial tests by hand, and the promise against closed forms."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import beta, binom, binomtest

from isounc.guard import Certificate, CostMatrix, GroupGuard, Guard, Share
from isounc.guard.control import Promise, fewest_accepted, quantile_thresholds
from tests.guard.made_up import risk_below, uniform_sample


def by_hand(scores, correct, thresholds, target, confidence, method):
    """The largest threshold that keeps the promise, from p-values of the binomial test."""
    order = np.sort(np.unique(thresholds))
    p_values = []
    for t in order:
        accepted = scores <= t
        wrong = int((accepted & ~correct).sum())
        p_values.append(binom.cdf(wrong, accepted.sum(), target) if accepted.any() else 1.0)
    p_values = np.array(p_values)
    delta = 1 - confidence
    if method == "fixed_sequence":
        failed = np.flatnonzero(p_values > delta)
        valid = order[: failed[0] if len(failed) else len(order)]
    elif method == "bonferroni":
        valid = order[p_values <= delta / len(order)]
    else:
        by_p = np.argsort(p_values, kind="stable")
        kept = np.flatnonzero(p_values[by_p] > delta / (len(order) - np.arange(len(order))))
        valid = order[by_p[: kept[0] if len(kept) else len(order)]]
    return valid.max() if len(valid) else None


@pytest.mark.parametrize("method", ["fixed_sequence", "holm", "bonferroni"])
@pytest.mark.parametrize("digits", [1, 2, 8])  # one digit: eleven values, all of them tied
def test_thresholds_by_hand(method, digits):
    rng = np.random.default_rng(digits)
    for slope, target in ((0.4, 0.1), (0.8, 0.15), (1.0, 0.3)):
        scores, correct = uniform_sample(400, slope, rng)
        scores = scores.round(digits)
        grid = np.linspace(0.1, 1, 19)
        guard = Guard.fit(scores, correct, target_risk=target, method=method, thresholds=grid)
        expected = by_hand(scores, correct, grid, target, 0.9, method)
        assert guard.threshold == (None if expected is None else pytest.approx(expected, abs=1e-12))
        assert guard.certificate.num_thresholds == 19


def test_quantiles_by_hand():
    scores, correct = uniform_sample(600, 0.5, np.random.default_rng(0))
    guard = Guard.fit(scores, correct, target_risk=0.2)
    # The smallest k for which ceil(k / 10) errors at rate 0.2 are improbable enough.
    k = next(k for k in range(1, 300) if binom.cdf(np.ceil(k * 0.1), k, 0.2) <= 0.1)
    ranks = np.unique(np.linspace(k, 600, 100).round().astype(int))
    grid = np.sort(scores)[ranks - 1]
    assert guard.threshold == by_hand(scores, correct, grid, 0.2, 0.9, "fixed_sequence")
    assert guard.certificate.num_thresholds == len(grid)


def test_first_threshold_of_a_small_sample():
    promise = Promise(0.1, None, 0.9, "fixed_sequence")
    assert fewest_accepted(promise) == 22  # .9^22 = .098 and .9^21 = .109
    assert fewest_accepted(promise._replace(target_risk=0.9)) == 1  # .1 is not above .1
    certainty = np.arange(50.0)
    assert quantile_thresholds(certainty, promise)[0] == 50 - 22
    assert len(quantile_thresholds(certainty[:21], promise)) == 0
    assert quantile_thresholds(np.zeros(50), promise).tolist() == [0]  # all tied


@pytest.mark.parametrize(("method", "repetitions"), [("fixed_sequence", 100), ("holm", 40)])
def test_promise_holds(method, repetitions):
    rng = np.random.default_rng(7)
    violations = answered = 0
    for _ in range(repetitions):
        guard = Guard.fit(*uniform_sample(200, 0.8, rng), target_risk=0.3, method=method)
        violations += risk_below(guard.threshold, 0.8) > 0.3
        answered += guard.threshold is not None
    assert violations <= binom.ppf(0.999, repetitions, 0.1)
    assert answered > repetitions / 2  # it is not kept by answering nothing


def test_picking_by_hand_breaks_the_promise():
    """The threshold that just meets the target on the sample misses it half of the time."""
    rng = np.random.default_rng(8)
    violations = 0
    for _ in range(200):
        scores, correct = uniform_sample(200, 0.8, rng)
        order = np.argsort(scores)
        share = np.cumsum(~correct[order]) / np.arange(1, 201)
        violations += risk_below(scores[order][np.flatnonzero(share <= 0.2)[-1]], 0.8) > 0.2
    assert violations > 60


@pytest.mark.parametrize(
    "transform",
    [
        lambda s: 1e-30 * s,
        lambda s: 1e6 + 1e3 * s,
        lambda s: np.exp(40 * s),
        lambda s: np.float32(s),
        lambda s: np.where(s > 0.9, np.inf, s),
    ],
)
def test_only_the_order_counts(transform):
    scores, correct = uniform_sample(500, 0.6, np.random.default_rng(1))
    scores = scores.astype(np.float32).astype(float)
    base, other = (Guard.fit(s, correct, target_risk=0.15) for s in (scores, transform(scores)))
    assert (base.accept(scores) == other.accept(transform(scores))).all()
    assert base.certificate.coverage == other.certificate.coverage


def test_infinite_scores_are_never_thresholds(tmp_path):
    """An infinite uncertainty is not accepted even where all answers are right; -inf is."""
    scores = np.r_[np.full(50, -np.inf), np.linspace(0, 1, 200), np.full(50, np.inf)]
    guard = Guard.fit(scores, np.ones(300))
    assert guard.threshold == pytest.approx(1, abs=0.02)
    assert guard.accept([-np.inf, 0.5, np.inf]).tolist() == [True, True, False]
    guard.save(tmp_path / "guard.json")
    assert Guard.load(tmp_path / "guard.json") == guard
    nothing = Guard.fit(np.full(100, np.inf), np.ones(100))
    assert nothing.threshold is None
    assert "no score of the calibration sample is finite" in nothing.certificate.reason


def test_other_sign_and_kinds_of_labels():
    scores, correct = uniform_sample(500, 0.6, np.random.default_rng(2))
    base = Guard.fit(scores, correct)
    turned = Guard.fit(-scores, correct.astype(np.int8), higher_is_uncertain=False)
    listed = Guard.fit(scores.tolist(), correct.astype(float).tolist())
    assert base.threshold is not None
    assert turned.threshold == -base.threshold
    assert listed == base
    assert (base.accept(scores) == turned.accept(-scores)).all()
    assert base.accept(np.array([[0.0, np.nan], [base.threshold, np.inf]])).tolist() == [
        [True, False], [True, False],
    ]  # fmt: skip


def test_certificate():
    scores, correct = uniform_sample(500, 0.9, np.random.default_rng(3))
    guard = Guard.fit(scores, correct, target_risk=0.2, score="entropy", model="m")
    certificate = guard.certificate
    accepted = scores <= guard.threshold
    wrong = int((accepted & ~correct).sum())
    assert (certificate.risk.count, certificate.risk.of) == (wrong, accepted.sum())
    low, high = beta.ppf(
        [0.025, 0.975], [wrong, wrong + 1], [accepted.sum() - wrong + 1, accepted.sum() - wrong]
    )
    assert (certificate.risk.low, certificate.risk.high) == pytest.approx((low, high))
    assert certificate.coverage.value == accepted.mean()
    assert certificate.false_alarm.value == pytest.approx(
        (correct & ~accepted).sum() / correct.sum()
    )
    assert certificate.base_error.value == pytest.approx((~correct).mean())
    assert "Accept where entropy is at or below" in str(certificate)
    again = Guard.fit(scores, correct, target_risk=0.2)
    assert again.certificate.data == certificate.data
    correct[0] = not correct[0]
    assert Guard.fit(scores, correct, target_risk=0.2).certificate.data != certificate.data


def test_least_abstention_by_counting():
    """Of 1000 answers with 300 wrong ones, an oracle accepts 700 right ones and 77 wrong ones at most."""
    most_wrong = max(w for w in range(301) if w <= 0.1 * (700 + w))
    certificate = Guard.fit(np.zeros(1000), np.arange(1000) >= 300).certificate
    assert certificate.least_abstention == pytest.approx((300 - most_wrong) / 1000, abs=1e-3)
    certificate = Guard.fit(np.zeros(1000), np.arange(1000) >= 50).certificate
    assert certificate.least_abstention == 0
    assert "a score that knows the truth could accept all answers." in str(certificate)
    assert Share.of_counts(0, 0).value is None


def test_a_score_without_signal():
    rng = np.random.default_rng(4)
    scores, correct = rng.normal(size=1000), rng.uniform(size=1000) > 0.3
    guard = Guard.fit(scores, correct)
    assert guard.threshold is None
    assert "accepts 78 answers" in guard.certificate.reason
    assert not guard.accept(scores).any()
    assert "Nothing is accepted" in str(guard.certificate)
    few = Guard.fit(scores[:20], np.ones(20))
    assert "22 accepted answers are needed" in few.certificate.reason
    assert Guard.fit(scores, correct, method="holm").threshold is None


def test_two_promises():
    scores, correct = uniform_sample(800, 0.6, np.random.default_rng(5))
    grid = np.linspace(0.1, 1, 10)
    guard = Guard.fit(scores, correct, target_risk=0.25, target_false_alarm=0.4, thresholds=grid)
    # Both p-values must be small: Holm on the larger of the two.
    p_values = []
    for t in grid:
        accepted = scores <= t
        wrong, missed = (accepted & ~correct).sum(), (~accepted & correct).sum()
        p_values.append(
            max(binom.cdf(wrong, accepted.sum(), 0.25), binom.cdf(missed, correct.sum(), 0.4))
        )
    order = np.argsort(p_values)
    holds = np.array(p_values)[order] <= 0.1 / (10 - np.arange(10))
    kept = order[: 10 if holds.all() else np.argmin(holds)]
    assert guard.threshold == pytest.approx(grid[kept].max())
    strict = Guard.fit(scores, correct, target_risk=0.02, target_false_alarm=0.05)
    assert strict.threshold is None
    with pytest.raises(ValueError, match="method must be holm or bonferroni for two promises"):
        Guard.fit(scores, correct, target_false_alarm=0.4, method="fixed_sequence")


def test_costs_decide_among_what_is_promised():
    scores, correct = uniform_sample(2000, 0.6, np.random.default_rng(6))
    grid = np.linspace(0.05, 1, 20)
    costs = CostMatrix(accept_wrong=1.0, abstain_right=0.15, abstain_wrong=0.1)
    guard = Guard.fit(scores, correct, target_risk=0.25, thresholds=grid, costs=costs)
    most = Guard.fit(scores, correct, target_risk=0.25, thresholds=grid, method="holm")

    def mean_cost(t):
        accepted = scores <= t
        return (accepted & ~correct).mean() + 0.15 * (~accepted & correct).mean() + 0.1 * (
            ~accepted & ~correct
        ).mean()  # fmt: skip

    assert guard.threshold is not None and most.threshold is not None
    assert guard.threshold < most.threshold
    below = grid[grid <= most.threshold + 1e-9]
    assert guard.threshold == pytest.approx(min(below, key=mean_cost))
    with pytest.raises(ValueError, match="accept_wrong must be"):
        CostMatrix(accept_wrong=-1)


def test_stored_and_read_without_mapie(tmp_path):
    scores, correct = uniform_sample(300, 0.5, np.random.default_rng(9))
    for name, guard in (
        ("some", Guard.fit(scores, correct, target_risk=0.2)),
        ("none", Guard.fit(scores, correct, target_risk=0.01)),
    ):
        guard.save(tmp_path / name)
        assert Guard.load(tmp_path / name) == guard
    code = (
        "import sys; from isounc.guard import Guard; "
        f"print(Guard.load({str(tmp_path / 'some')!r}).accept([0.0, 2.0]).tolist(), 'mapie' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[True, False] False"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": "0.3"}, "threshold of .* must be a finite number"),
        ({"threshold": None}, "reason of .* must be given exactly where threshold is null"),
        ({"method": "magic"}, "method of .* must be one of"),
        ({"risk": {"count": 1}}, "risk of .* must have of"),
        ({"higher_is_uncertain": 1}, "higher_is_uncertain of .* must be true or false"),
    ],
)
def test_damaged_files(tmp_path, change, message):
    guard = Guard.fit(*uniform_sample(300, 0.5, np.random.default_rng(9)), target_risk=0.2)
    path = tmp_path / "guard.json"
    guard.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        Guard.load(path)
    path.write_text("[1,")
    with pytest.raises(ValueError, match=r"path .*guard\.json must"):
        Guard.load(path)
    with pytest.raises(OSError, match="absent"):
        Guard.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scores": [1.0, np.nan, 2.0]}, "scores must be defined, got NaN at 1 of 3"),
        ({"scores": [1.0, 2.0]}, "scores and correct must have one entry"),
        ({"scores": [], "correct": []}, "at least one, got 0 and 0"),
        ({"scores": [[1.0, 2.0, 3.0]]}, r"scores must have shape \(N,\)"),
        ({"scores": ["a", "b", "c"]}, "scores must hold real numbers"),
        ({"scores": np.ma.array([1.0, 2, 3], mask=[0, 1, 0])}, "scores must have no masked values"),
        ({"correct": [0, 1, 2]}, r"correct must hold true and false \(or 1 and 0\), got 2"),
        ({"target_risk": 0}, "target_risk must be above 0 and below 1, got 0"),
        ({"confidence": 90}, "confidence must be above 0 and below 1, got 90"),
        ({"target_false_alarm": True}, "target_false_alarm must be above 0"),
        ({"method": "holms"}, "method must be one of .* did you mean 'holm'"),
        ({"higher_is_uncertain": "yes"}, "higher_is_uncertain must be true or false"),
        ({"thresholds": []}, "thresholds must be 1 to 10000 finite numbers, got 0"),
        (
            {"thresholds": [np.inf]},
            "thresholds must be 1 to 10000 finite numbers, got 1, 1 of them",
        ),
    ],
)
def test_bad_input(given, message):
    arguments = {"scores": [1.0, 2.0, 3.0], "correct": [True, False, True], **given}
    with pytest.raises(ValueError, match=message):
        Guard.fit(arguments.pop("scores"), arguments.pop("correct"), **arguments)


def test_groups():
    rng = np.random.default_rng(10)
    easy, hard = uniform_sample(400, 0.2, rng), uniform_sample(400, 0.9, rng)
    scores, correct = (np.concatenate(pair) for pair in zip(easy, hard, strict=True))
    names = np.repeat(["easy", "hard"], 400)
    mixed = rng.permutation(800)
    guard = GroupGuard.fit(scores[mixed], correct[mixed], names[mixed], target_risk=0.3)
    # Two groups at confidence .9 together: .95 each.
    for name, sample in (("easy", easy), ("hard", hard)):
        alone = Guard.fit(*sample, target_risk=0.3, confidence=0.95)
        assert guard.guards[name].threshold == alone.threshold
        assert guard.guards[name].certificate.confidence == pytest.approx(0.95)
    accepted = guard.accept(scores, names)
    assert accepted[:400].all() and 0 < accepted[400:].mean() < 1
    apart = GroupGuard.fit(scores, correct, names, target_risk=0.15, simultaneous=False)
    assert apart.guards["hard"].certificate.confidence == 0.9
    with pytest.raises(ValueError, match=r"groups must be among .*easy, hard.* got odd"):
        guard.accept([0.1], ["odd"])
    with pytest.raises(ValueError, match="groups must hold a name for each answer"):
        GroupGuard.fit(scores, correct, names[:-1])


def test_shares_are_exact():
    for count, of in ((0, 10), (10, 10), (3, 7)):
        share = Share.of_counts(count, of)
        interval = binomtest(count, of).proportion_ci(0.95)
        assert (share.low, share.high) == (interval.low, interval.high)
    assert isinstance(Guard.fit([1.0], [True]).certificate, Certificate)
