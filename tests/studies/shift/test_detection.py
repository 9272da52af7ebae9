"""AUROC, average precision and FPR against counts over pairs; thresholds against every order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from isounc.studies.shift.detection import Threshold, alarm_rate, detect, fit_threshold


def by_counting(inside, outside):
    """AUROC over all pairs, average precision over thresholds, FPR at 95% over thresholds."""
    inside, outside = [float(v) for v in inside], [float(v) for v in outside]
    pairs = [(o > i) + 0.5 * (o == i) for o in outside for i in inside]
    precision, before = 0.0, 0.0
    for bound in sorted({*inside, *outside}, reverse=True):
        caught, false = sum(o >= bound for o in outside), sum(i >= bound for i in inside)
        precision += (caught - before) / len(outside) * caught / (caught + false)
        before = caught
    passing = [
        sum(o <= bound for o in outside) / len(outside)
        for bound in [-np.inf, *sorted({*inside, *outside})]
        if sum(i <= bound for i in inside) >= 0.95 * len(inside) - 1e-9
    ]
    return sum(pairs) / len(pairs), precision, min(passing)


RNG = np.random.default_rng(0)
CASES = {
    "apart": (RNG.normal(size=40), RNG.normal(size=30) + 5),
    "tied": (RNG.integers(0, 4, 50), RNG.integers(1, 5, 20)),
    "constant": (np.ones(7), np.ones(3)),
    "tiny": (RNG.random(30) * 1e-300, RNG.random(30) * 2e-300),
    "huge": (RNG.random(30) * 1e300, RNG.random(30) * 1.2e300),
    "all but equal": (1 + RNG.integers(0, 9, 40) * 2.3e-16, 1 + RNG.integers(3, 12, 40) * 2.3e-16),
    "single": (np.zeros(1, int), np.ones(1)),
}


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_of_counting(name):
    inside, outside = CASES[name]
    found = detect(inside, outside, higher="out")
    np.testing.assert_allclose(found, by_counting(inside, outside), rtol=1e-12)
    # The other direction is that of minus the score, and nothing turns a wrong one round.
    turned = detect(inside, outside, higher="in")
    negative = [-np.asarray(v, float) for v in (inside, outside)]
    np.testing.assert_allclose(turned, by_counting(*negative), rtol=1e-12)
    assert turned.auroc == pytest.approx(1 - found.auroc, abs=1e-12)


def test_a_threshold_has_its_exact_rate_over_all_orders():
    rates, expected = [], set()
    for order in itertools.permutations(range(5)):
        threshold = fit_threshold(np.array(order[:4]), higher="out", alarm=0.4)
        expected.add(threshold.expected)
        rates.append(alarm_rate(np.array(order[4:]), threshold, higher="out"))
    assert expected == {2 / 5} and np.mean(rates) == pytest.approx(2 / 5, abs=1e-12)
    values = RNG.normal(size=39)
    threshold = fit_threshold(values, higher="in", alarm=0.05)
    assert threshold == Threshold(np.sort(values)[1], 2 / 40)
    assert alarm_rate(values, threshold, higher="in") == 1 / 39
    tied = fit_threshold(np.ones(20, int), higher="out", alarm=0.05)
    assert alarm_rate(np.array([1, 1, 2]), tied, higher="out") == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: detect([], [1.0], higher="out"),
            "inside must be one finite number or more, got none",
        ),
        (lambda: detect([1.0], [0.0, np.nan], higher="out"), "outside must be .* got nan at 1"),
        (lambda: detect([1.0], [0.0], higher="up"), "higher must be one of out, in"),
        (lambda: detect([1j], [0.0], higher="in"), "inside must hold real numbers"),
        (lambda: fit_threshold(np.ones(18), higher="in", alarm=0.05), "values must be at least 19"),
        (lambda: fit_threshold([1.0], higher="in", alarm=0.0), "alarm must be a positive"),
        (lambda: fit_threshold([1.0], higher="in", alarm=1.0), "alarm must be below 1"),
        (lambda: fit_threshold([np.inf], higher="in", alarm=0.5), "values must be .* got inf at 0"),
    ],
)
def test_bad_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
