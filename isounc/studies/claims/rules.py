r"""How a claim is settled: what is measured, the bound on it, and the rule that makes a verdict.

Bounds and rule were fixed before any verdict was seen; since then the two levels were lowered, by
simulation alone, and one correlation that was averaged as it is went to Fisher's scale. Claim 13 was
added later: its bounds are those of the routing study's hypotheses, and that both must hold at one place
was written down before this rule was applied to its tables, which were known; its conditions of
convolutional networks and of a language model were added later still, before they had any tables.

**Evidence.** A claim has one measure or several, and every measure conditions (a kind of theta*, a
region, a setting). In a condition each problem is a stratum: a number of each of its seeds, averaged
over the cells of that seed, so that a seed is one replicate however many widths it was run at.
Correlations are on Fisher's scale. Cells whose reference failed its gate, and undefined numbers, are
in no stratum; they are counted. A stratum has `MIN_SEEDS` seeds or more. The number of a condition is
the mean over its problems of their means over seeds, with Welch's standard error and degrees of
freedom, and so is about new seeds of the same problems.

**States.** A condition has a one-sided p-value *for* the claim (the number lies on the claimed side
of its bound) and one *against* it. Of a measure that has to lie within +-bound the p-value for is the
larger of two (both sides must hold), that against twice the smaller. A condition is

    supported      if the p-value for it, corrected for the number of conditions (Holm), is at most
                   `NAMED_LEVEL`
    contradicted   if the p-value against it is, corrected in the same way
    undecided      otherwise, also where seeds agree to the last digit and so give no error

and a problem whose own 95% interval lies on the other side of the bound is named as an exception.
Where a claim needs several measures at once (`Claim.together`), one that is supported counts only where
all of them are, at the same place; elsewhere it is undecided, with the reason.

**Verdicts.**

    supported          every condition has a p-value of at most `LEVEL` (so all are supported),
                       none that the protocol asks for is missing (a condition, a problem, a number
                       of models), and there is no exception
    supported under    some conditions are supported: the verdict names them, and those contradicted
    contradicted       none is supported, and one or more are contradicted
    undecided          neither
    not run            no table has such a condition; the verdict says how to get one

**Why this is safe.** "Supported" asks for the worst condition (an intersection-union test): its p-value
needs no correction, and its least favourable null has one condition at its bound and all others far
above. "Supported under" names the best of many, and is wrong if any condition that it names is null:
Holm's correction bounds that for any dependence between conditions; least favourable are all of them
at their bounds. Both would hold at 5% if Student's t did. With 3 to 10 seeds it does not where numbers
are skewed towards the other side: the rare bad seed is missing from most samples. Of seeds as skewed
as an exponential or a log-normal distribution (sigma .75), one or two problems and 10 seeds, a nominal
.0025 becomes .04, and a nominal .00005 over 100 independent conditions .03 to .04. The levels are
therefore a twentieth and a thousandth of 5%, such that by simulation the rate of a false "supported", and of a
false condition in "supported under", stays below 5% at both least favourable nulls, with normal,
exponential and log-normal seeds, 3, 5 and 10 of them, 1 to 8 problems, up to 100 conditions, and
conditions that share no, half or nine tenths of their variance
(`tests/studies/claims/test_rules.py`). The price is power: few seeds leave much undecided, also where
a 95% interval lies beyond the bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from isounc.statistics import MAX_ABS_CORRELATION, holm
from isounc.studies.claims.measures import MEASURES, Measure, Scale

LEVEL = 0.0025
"""Largest p-value of every condition where a claim is supported."""
NAMED_LEVEL = 0.00005
"""Largest corrected p-value of a condition that is named, supported or contradicted."""
MIN_SEEDS = 3
"""Fewest seeds of a problem: of two, an interval says nothing."""

State = Literal["supported", "contradicted", "undecided", "missing", "beside"]
Verdict = Literal["supported", "supported under", "contradicted", "undecided", "not run"]


class Stratum(NamedTuple):
    """The number of one problem in one condition, on the measure's scale."""

    problem: str
    """The problem."""
    mean: float
    """Mean over its seeds."""
    se: float
    """Standard error of the mean."""
    num_seeds: int
    """Seeds in it, or questions."""


class Condition(NamedTuple):
    """Where a measure was taken."""

    measure: str
    """Name of the measure."""
    point: str
    """Kind of theta*; the model of a study of language models."""
    region: str
    """Region of inputs; a benchmark of a study of language models."""
    setting: str
    """What else sets conditions apart, such as the width."""


class Finding(NamedTuple):
    """What the evidence says in one condition."""

    condition: Condition
    """The condition."""
    state: State
    """What follows from it."""
    mean: float | None
    """Mean over the problems; as a correlation where it is one."""
    low: float | None
    """Lower end of its 95% interval."""
    high: float | None
    """Upper end."""
    num_problems: int
    """Problems that count."""
    num_seeds: int
    """Seeds that count, over all problems."""
    p_for: float | None
    """One-sided p-value for the claim, not corrected."""
    p_against: float | None
    """One-sided p-value against it, not corrected."""
    exceptions: tuple[str, ...]
    """Problems that say the opposite on their own."""
    why: str
    """Why there is no decision, where that needs saying."""


def stratum(problem: str, values: Sequence[float]) -> Stratum:
    """The stratum of the numbers of two seeds or more, which are on the measure's scale."""
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    return Stratum(problem, mean, math.sqrt(variance / n), n)


def to_scale(value: Any, scale: Scale) -> Any:
    """A number, or an array of them, on the scale on which it is averaged."""
    if scale == "plain":
        return value
    return np.arctanh(np.clip(value, -MAX_ABS_CORRELATION, MAX_ABS_CORRELATION))


def from_scale(value: float, scale: Scale) -> float:
    """Undo `to_scale`."""
    return value if scale == "plain" else math.tanh(value)


def find(
    evidence: Mapping[Condition, Sequence[Stratum]],
    *,
    planned: Iterable[Condition] = (),
    problems: Sequence[str] = (),
    least_points: int = 1,
    together: Sequence[str] = (),
) -> tuple[list[Finding], Verdict]:
    """Settle a claim.

    Parameters
    ----------
    evidence
        Strata by condition. Those with fewer than `MIN_SEEDS` seeds do not count.
    planned
        Conditions that the protocol asks for.
    problems
        Problems that the protocol asks for in every condition; empty for whichever there are.
    least_points
        Kinds of theta*, or models, without which a claim is not supported whole.
    together
        Measures that are supported at a place (a condition without its measure) only where all of them are.

    Returns
    -------
    findings, verdict
        One finding for each condition, planned ones first; the verdict rests on those of measures
        that count.
    """
    names = dict.fromkeys([*planned, *evidence])
    strata = {c: [s for s in evidence.get(c, ()) if s.num_seeds >= MIN_SEEDS] for c in names}
    found = [_finding(c, strata[c]) for c in names]
    for i, f in enumerate(found):
        if f.state == "missing" and f.condition in evidence:
            found[i] = f._replace(why=f"run, but no problem has {MIN_SEEDS} seeds that count")
    counted = [i for i, f in enumerate(found) if MEASURES[f.condition.measure].counted]
    tested = [i for i in counted if found[i].p_for is not None]
    for state, side in (("supported", "p_for"), ("contradicted", "p_against")):
        corrected = holm([getattr(found[i], side) for i in tested])
        for i, p in zip(tested, corrected.tolist(), strict=True):
            if p <= NAMED_LEVEL:
                found[i] = found[i]._replace(state=state)
    for i in tested:
        there = {s.problem for s in strata[found[i].condition]}
        if absent := [p for p in problems if p not in there]:
            found[i] = found[i]._replace(why=f"without {', '.join(absent)}")
        there = {f.condition.measure for f in found if f.condition[1:] == found[i].condition[1:]}
        if absent := [name for name in together if name not in there]:
            found[i] = found[i]._replace(why=f"without {', '.join(absent)}")
    judged = [found[i] for i in counted]
    whole = len({f.condition.point for f in judged}) >= least_points and all(
        f.p_for is not None and f.p_for <= LEVEL and not f.exceptions and not f.why for f in judged
    )
    if whole:
        for i in counted:
            found[i] = found[i]._replace(state="supported")
        return found, "supported"
    if together:
        found = _supported_together(found, together)
    states = {found[i].state for i in counted}
    if not tested and states <= {"missing"}:
        ran = any(found[i].condition in evidence for i in counted)
        return found, "undecided" if ran else "not run"
    if "supported" in states:
        return found, "supported under"
    return found, "contradicted" if "contradicted" in states else "undecided"


def _supported_together(found: list[Finding], together: Sequence[str]) -> list[Finding]:
    """Leave undecided what is supported at a place where not all of some measures are."""
    yes = {f.condition for f in found if f.state == "supported"}
    kept = []
    for f in found:
        others = [name for name in together if f.condition._replace(measure=name) not in yes]
        if f.state == "supported" and others:
            f = f._replace(state="undecided", why=f"not supported here: {', '.join(others)}")
        kept.append(f)
    return kept


def _finding(condition: Condition, strata: Sequence[Stratum]) -> Finding:
    """The finding of a condition, before it is corrected for the number of conditions."""
    measure = MEASURES[condition.measure]
    state: State = "undecided" if measure.counted else "beside"
    seeds = sum(s.num_seeds for s in strata)
    if not strata:
        return Finding(condition, "missing", None, None, None, 0, 0, None, None, (), "not run")
    mean = math.fsum(s.mean for s in strata) / len(strata)
    parts = [(s.se / len(strata)) ** 2 for s in strata]
    squares = math.fsum(v**2 / (s.num_seeds - 1) for v, s in zip(parts, strata, strict=True))
    sizes = len(strata), seeds
    shown = from_scale(mean, measure.scale)
    if squares == 0:
        why = "seeds agree to the last digit, which gives no error"
        return Finding(condition, state, shown, None, None, *sizes, None, None, (), why)
    se, freedom = math.sqrt(math.fsum(parts)), math.fsum(parts) ** 2 / squares
    low, high = (from_scale(end, measure.scale) for end in _interval(mean, se, freedom))
    p_for, p_against = p_values(mean, se, freedom, measure)
    exceptions = tuple(s.problem for s in strata if len(strata) > 1 and _opposes(s, mean, measure))
    return Finding(
        condition, state, shown, low, high, *sizes, p_for, p_against, exceptions, ""
    )  # fmt: skip


def p_values(mean: float, se: float, freedom: float, measure: Measure) -> tuple[float, float]:
    """One-sided p-values for and against a claim, from a mean with its standard error."""
    bound = float(to_scale(measure.bound, measure.scale))
    if measure.side == "within":
        above, below = ((mean - bound) / se, (mean + bound) / se)
        p_for = max(stdtr(freedom, above), stdtr(freedom, -below))
        return float(p_for), min(1.0, 2 * float(min(stdtr(freedom, -above), stdtr(freedom, below))))
    t = (mean - bound) / se if measure.side == "above" else (bound - mean) / se
    return float(stdtr(freedom, -t)), float(stdtr(freedom, t))


def claimed(value: float, measure: Measure) -> bool:
    """Whether a number on the measure's scale lies where the claim says."""
    bound = float(to_scale(measure.bound, measure.scale))
    if measure.side == "within":
        return abs(value) < bound
    return value > bound if measure.side == "above" else value < bound


def _opposes(part: Stratum, mean: float, measure: Measure) -> bool:
    """Whether a problem's own 95% interval lies on the other side of the bound than the mean."""
    ends = interval_of(part)
    sides = {claimed(end, measure) for end in ends}
    if measure.side == "within" and ends[0] < 0 < ends[1] and False in sides:
        return False  # the interval has both sides in it
    return sides == {not claimed(mean, measure)}


def interval_of(part: Stratum) -> tuple[float, float]:
    """The 95% interval of a problem, on the measure's scale."""
    return _interval(part.mean, part.se, part.num_seeds - 1)


def _interval(mean: float, se: float, freedom: float) -> tuple[float, float]:
    half = float(stdtrit(freedom, 0.975)) * se
    return mean - half, mean + half
