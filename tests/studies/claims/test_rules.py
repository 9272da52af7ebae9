"""Verdicts on synthetic evidence whose truth is known, and how often they are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from isounc.statistics import interval_over_strata
from isounc.studies.claims import rules
from isounc.studies.claims.measures import MEASURES
from isounc.studies.claims.rules import Condition, Stratum, find, stratum
from isounc.studies.claims.statements import CLAIMS

SLOPE, WITHIN, RANK = "slope", "unlike P(True)", "correspondence"


def condition(i=0, measure=SLOPE):
    return Condition(measure, f"point {i}", "test", "")


def strata(*problems):
    return [stratum(f"problem {i}", values) for i, values in enumerate(problems)]


def only(evidence, **settings):
    found, verdict = find({condition(): evidence}, **settings)
    return found[0], verdict


def test_a_finding_is_the_textbook_interval_and_test():
    rng = np.random.default_rng(0)
    values = [rng.normal(0.1, s, n).tolist() for s, n in ((0.1, 5), (0.4, 3), (0.02, 10))]
    found, _ = only(strata(values[0]))
    test = stats.ttest_1samp(values[0], 0.0, alternative="greater")
    assert found.p_for == pytest.approx(test.pvalue)
    assert found.p_against == pytest.approx(1 - test.pvalue)
    low, high = test.confidence_interval(0.95).low, stats.ttest_1samp(values[0], 0.0)
    assert found.low < low and found.low == pytest.approx(high.confidence_interval(0.95).low)
    found, _ = only(strata(*values))
    house = interval_over_strata(values)
    assert (found.mean, found.low, found.high) == pytest.approx(house[:3])
    assert (found.num_problems, found.num_seeds) == (3, 18)


def test_correlations_are_averaged_on_fishers_scale():
    r = [0.2, 0.9, 0.95, 1.0]
    z = rules.to_scale(np.array(r), "correlation")
    assert np.isfinite(z).all() and z[:3] == pytest.approx(np.arctanh(r[:3]))
    found = find({condition(measure=RANK): strata(z[:3].tolist())})[0][0]
    test = stats.ttest_1samp(z[:3], math.atanh(MEASURES[RANK].bound), alternative="greater")
    assert found.mean == pytest.approx(math.tanh(z[:3].mean()))
    assert found.p_for == pytest.approx(test.pvalue)


def test_within_bounds_is_two_one_sided_tests():
    values = [0.01, -0.02, 0.03, 0.0]
    bound = MEASURES[WITHIN].bound
    found = find({condition(measure=WITHIN): strata(values)})[0][0]
    sides = [
        stats.ttest_1samp(values, at, alternative=side).pvalue
        for at, side in ((-bound, "greater"), (bound, "less"))
    ]
    assert found.p_for == pytest.approx(max(sides))
    assert found.state == "supported"
    for shift in (1.0, -1.0):  # on either side
        found = find({condition(measure=WITHIN): strata([v + shift for v in values])})[0][0]
        assert found.state == "contradicted"


STRONG = (0.50, 0.51, 0.49, 0.50, 0.52)
WEAK = (0.5, -0.4, 0.1, 0.2, -0.3)
AGAINST = tuple(-v for v in STRONG)


def verdict(*kinds, **settings):
    evidence = {condition(i): strata(kind) for i, kind in enumerate(kinds)}
    found, said = find(evidence, **settings)
    return said, [f.state for f in found]


def test_the_verdict_that_follows():
    yes, no, open_ = "supported", "contradicted", "undecided"
    assert verdict(STRONG, STRONG) == (yes, [yes, yes])
    assert verdict(STRONG, WEAK) == ("supported under", [yes, open_])
    assert verdict(STRONG, AGAINST) == ("supported under", [yes, no])
    assert verdict(WEAK, AGAINST) == (no, [open_, no])
    assert verdict(WEAK, WEAK) == (open_, [open_, open_])
    assert verdict() == ("not run", [])
    planned = [condition(0), condition(1)]
    assert verdict(STRONG, planned=planned) == ("supported under", [yes, "missing"])
    assert verdict(planned=planned) == ("not run", ["missing", "missing"])
    assert verdict(STRONG, least_points=2) == ("supported under", [yes])
    assert verdict(STRONG, STRONG, least_points=2) == (yes, [yes, yes])


def test_what_is_shown_beside_decides_nothing():
    beside = condition(measure="r less that of p(1−p)")
    evidence = {condition(): strata(STRONG), beside: strata([-v for v in STRONG])}
    found, said = find(evidence)
    assert said == "supported" and [f.state for f in found] == ["supported", "beside"]
    assert find({beside: strata(STRONG)})[1] == "not run"


PAIR = ("costs less", "keeps its target")


def together(*places):
    """The verdict and states of places at which two measures are needed at once."""
    evidence = {
        condition(i, measure): strata(values)
        for i, place in enumerate(places)
        for measure, values in zip(PAIR, place, strict=False)
    }
    found, said = find(evidence, together=PAIR)
    return said, [f.state for f in found], [f.why for f in found]


def test_measures_that_are_needed_at_once():
    """Both lie below their bounds, so that `AGAINST` is for the claim."""
    yes, no, open_ = "supported", "contradicted", "undecided"
    good, bad = AGAINST, STRONG
    assert together((good, good), (good, good))[:2] == (yes, [yes] * 4)
    said, states, why = together((good, good), (good, WEAK))
    assert (said, states) == ("supported under", [yes, yes, open_, open_])
    assert why[2] == "not supported here: keeps its target"
    # A saving that breaks the promise everywhere is no support, nor a promise kept at a higher cost.
    assert together((good, bad), (bad, good))[:2] == (no, [open_, no, no, open_])
    assert together((good, WEAK))[:2] == (open_, [open_, open_])
    said, states, why = together((good,))
    assert (said, states) == (open_, [open_]) and why == ["not supported here: keeps its target"]


def test_an_exception_and_a_missing_problem_forbid_a_whole_claim():
    found, said = only(strata(STRONG, STRONG, STRONG, [v - 0.6 for v in STRONG]))
    assert said == "supported under" and found.exceptions == ("problem 3",)
    assert only(strata(STRONG, STRONG))[1] == "supported"
    found, said = only(strata(STRONG), problems=["problem 0", "problem 1"])
    assert said == "supported under" and found.why == "without problem 1"


@pytest.mark.parametrize("values", [(0.5, 0.6), (0.5, 0.5, 0.5, 0.5)])
def test_too_few_seeds_or_equal_ones_decide_nothing(values):
    found, said = only(strata(values))
    assert said == "undecided" and found.state != "supported" and found.p_for is None
    # What was run and cannot count is not said to be missing.
    assert found.why.startswith("run, but" if len(values) == 2 else "seeds agree")


def test_a_whole_claim_needs_no_correction_and_a_named_condition_does():
    p = {0.0015: None, 0.00004: None, 0.00001: None}
    for goal in p:
        t = stats.t.isf(goal, 4)
        p[goal] = [Stratum("a", t, 1.0, 5)]
    weak, middle, strong = p.values()
    assert find({condition(0): weak, condition(1): weak})[1] == "supported"
    found, said = find({condition(0): strong, condition(1): middle, condition(2): strata(WEAK)})
    assert said == "supported under"
    assert [f.state for f in found] == ["supported", "undecided", "undecided"]


def test_every_bound_has_a_reason_and_every_claim_its_measures():
    used = {name for claim in CLAIMS.values() for name in claim.measures}
    assert used == set(MEASURES)
    for claim in CLAIMS.values():
        assert {c.measure for c in claim.planned} <= set(claim.measures)
        assert claim.sentence and claim.protocol and claim.command and claim.measures
    assert all(measure.why for measure in MEASURES.values())


# How often a false claim is supported, where that happens most.


def seeds(kind, normal):
    """Numbers of mean 0 that grow with normal ones; `exponential` has a skewness of -2."""
    if kind == "exponential":
        return 1 + np.log(ndtr(normal))
    if kind == "log-normal":
        return math.exp(0.75**2 / 2) - np.exp(-0.75 * normal)
    return normal


def rate_of_false_support(kind, whole, **size):
    """How often evidence gives a state or verdict that is wrong, as everything is at its bound.

    Only tables in which a p-value, computed here by other means, is small enough are judged: all
    others cannot be supported, which a few of them are there to show.
    """
    values = tables(kind, **size)
    means, variances = values.mean(axis=3), values.var(axis=3, ddof=1)
    num_seeds, num_problems = values.shape[3], values.shape[2]
    parts = variances / num_seeds
    freedom = parts.sum(axis=2) ** 2 / (parts**2 / (num_seeds - 1)).sum(axis=2)
    t = means.sum(axis=2) / np.sqrt(parts.sum(axis=2))
    p = stats.t.sf(t, freedom)
    # Where the smallest p-value does not pass the first step of Holm, none does.
    first = rules.NAMED_LEVEL / values.shape[1]
    might = (p <= rules.LEVEL).all(axis=1) if whole else (p <= 1.001 * first).any(axis=1)
    judged = [find(evidence_of(table)) for table in values[might]]
    assert num_problems > 1 or p[0] == pytest.approx(
        [f.p_for for f in find(evidence_of(values[0]))[0]]
    )
    assert not any(false(*find(evidence_of(table)), whole) for table in values[~might][:3])
    return sum(false(*found, whole) for found in judged) / len(values)


def false(found, verdict, whole):
    return verdict == "supported" if whole else any(f.state == "supported" for f in found)


def evidence_of(table):
    return {condition(i): strata(*block) for i, block in enumerate(table.tolist())}


def tables(kind, *, count, num_conditions, num_problems, num_seeds, shared=0.0, far=()):
    """Numbers of seeds, in which all conditions but those of `far` are at the bound."""
    rng = np.random.default_rng(7)
    size = (count, num_conditions, num_problems, num_seeds)
    common = rng.normal(size=(count, 1, num_problems, num_seeds))
    normal = math.sqrt(shared) * common + math.sqrt(1 - shared) * rng.normal(size=size)
    values = seeds(kind, normal)
    values[:, list(far)] += 1e6
    return values


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
@pytest.mark.parametrize("kind", ["normal", "exponential", "log-normal"])
def test_false_support_of_a_whole_claim_is_rare(kind, num_seeds):
    size = {"count": 5000, "num_conditions": 2, "num_problems": 1, "num_seeds": num_seeds}
    assert rate_of_false_support(kind, True, **size, far=[1]) < 0.05


@pytest.mark.parametrize(
    ("kind", "num_conditions", "num_problems", "num_seeds", "shared"),
    [
        ("normal", 12, 1, 3, 0.0), ("exponential", 12, 1, 5, 0.5), ("exponential", 100, 1, 10, 0.0),
        ("log-normal", 12, 1, 10, 0.9), ("log-normal", 12, 2, 10, 0.0), ("log-normal", 12, 8, 3, 0.5),
    ],
)  # fmt: skip
def test_false_conditions_of_a_claim_are_rare(
    kind, num_conditions, num_problems, num_seeds, shared
):
    size = {"num_conditions": num_conditions, "num_problems": num_problems}
    size |= {"num_seeds": num_seeds, "shared": shared}
    count = 80_000 // num_conditions // num_problems
    assert rate_of_false_support(kind, False, count=count, **size) < 0.05


def test_true_claims_are_found():
    made = tables(
        "normal", count=40, num_conditions=6, num_problems=8, num_seeds=5, shared=0.5
    )  # fmt: skip
    assert np.mean([find(evidence_of(table + 1.5))[1] == "supported" for table in made]) > 0.9
