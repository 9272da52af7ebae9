"""The reading of a run: a few sentences that say what its curves show, made from its tables.

Every number is that of a table (`Results.curve`, `Results.trend`) or follows from those of several
problems, so that no sentence can differ from its number. A mean over problems takes each as one of
the run's, not as a sample of all that there are:

    mean = sum_q m_q / Q,   se^2 = sum_q se_q^2 / Q^2

with the mean m_q over the seeds of problem q and its standard error, correlations on Fisher's scale.
Its interval is Student's, with degrees of freedom by Welch and Satterthwaite; for a single problem it
is the interval of the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from isounc.runs.words import listed
from isounc.statistics import MAX_ABS_CORRELATION, Trend
from isounc.studies.scaling.figures.looks import POINT_WORDS
from isounc.studies.scaling.gates import gate_sentence
from isounc.studies.scaling.results import Results, Setup, point_of

BESIDE = {
    "null_aleatoric": "p(1−p)",
    "logit_scaled": "logit-scaled",
    "link_aware": "link-aware",
    "laplace": "Laplace",
    "posterior_averaged": "the isotropic estimate averaged over draws",
}
"""Estimators whose value is said beside that of the isotropic one, where a run has them: words."""
MAIN = "isotropic"
"""The estimator that the reading is about."""
_PLACES = {
    "test": "Near the data (region test)",
    "grid": "On the grid around the data (region grid)",
    "far": "Far from the data (region far)",
}
_CHANGES = {
    "improves": "improves with width",
    "declines": "declines with width",
    "undecided": "neither improves nor declines with width beyond doubt",
}


class Number(NamedTuple):
    """A number with its interval, which is None where there are no two seeds."""

    mean: float
    """Mean over seeds, and over problems where there are several."""
    low: float | None
    """Lower end of its 95% interval."""
    high: float | None
    """Upper end."""

    def text(self, form: str) -> str:
        """Mean [low, high]."""
        if self.low is None or self.high is None:
            return f"{self.mean:{form}} (one seed)"
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"

    @property
    def verdict(self) -> str:
        """`improves` if the interval lies above 0, `declines` if below, else `undecided`."""
        if self.low is not None and self.low > 0:
            return "improves"
        return "declines" if self.high is not None and self.high < 0 else "undecided"


class Several(NamedTuple):
    """What a curve has of each problem, and their mean."""

    of: Mapping[str, Number]
    """By the label of the setup."""
    mean: Number
    """Mean over them."""


def reading(results: Results) -> tuple[str, ...]:
    """Say in words what the curves of a run show: its gate, each region, and the kinds of point."""
    regions = results.values("region")
    if results.rows.empty or not regions:
        return ()
    return tuple(
        sentence
        for sentence in (
            gate_sentence(results),
            _two_seeds(results),
            *(_region(results, region) for region in regions),
            _points(results, regions[0]),
        )
        if sentence
    )


def _two_seeds(results: Results) -> str:
    """Say how little intervals over two seeds tell: they have one degree of freedom."""
    if results.rows["seed"].nunique() != 2:
        return ""
    return (
        "In brackets are 95% intervals over two seeds, whose length is mostly chance: take more "
        "seeds (--num-seeds, with another --out) before you conclude anything from them."
    )


def mean_over(numbers: Sequence[tuple[Number, int]], *, correlations: bool) -> Number:
    """The mean of numbers of several problems, each with its count of seeds.

    It has no interval unless each of them has.
    """

    def z(value: float) -> float:
        bound = MAX_ABS_CORRELATION
        return math.atanh(min(bound, max(-bound, value))) if correlations else value

    if len(numbers) == 1:
        return numbers[0][0]
    centre = math.fsum(z(number.mean) for number, _ in numbers) / len(numbers)
    back = math.tanh if correlations else float
    if any(number.low is None or number.high is None for number, _ in numbers):
        return Number(back(centre), None, None)
    freedom = np.array([count - 1 for _, count in numbers], float)
    half = np.array([(z(n.high) - z(n.low)) / 2 for n, _ in numbers])  # type: ignore[arg-type]
    squared_errors = (half / stdtrit(freedom, 0.975)) ** 2
    total = squared_errors.sum()
    if total == 0:
        return Number(back(centre), back(centre), back(centre))
    joint = total**2 / (squared_errors**2 / freedom).sum()
    reach = float(stdtrit(joint, 0.975)) * math.sqrt(total) / len(numbers)
    return Number(back(centre), back(centre - reach), back(centre + reach))


def _trends(results: Results, region: str, point: str, estimator: str) -> Several | None:
    """Slopes per doubling of the width."""
    found: dict[str, tuple[Number, int]] = {}
    for setup in results.setups:
        trend = results.trend(setup, region=region, point=point, estimator=estimator)
        if trend is not None and trend.slope_mean is not None:
            found[results.label(setup)] = (_number(trend), trend.num_seeds)
    return _several(found, correlations=False)


def _values(results: Results, region: str, point: str, estimator: str) -> Several | None:
    """Correlations at the largest width of each setup."""
    found: dict[str, tuple[Number, int]] = {}
    for setup in results.setups:
        which = {"region": region, "point": point, "estimator": estimator}
        row = results.at_width(setup, max(results.widths(setup)), **which)
        if row is None or pd.isna(row["pearson_mean"]):
            continue
        mean, *ends = (row[f"pearson_{part}"] for part in ("mean", "low", "high"))
        low, high = (None if pd.isna(end) else float(end) for end in ends)
        found[results.label(setup)] = (Number(float(mean), low, high), int(row["num_seeds"]))
    return _several(found, correlations=True)


def _number(trend: Trend) -> Number:
    assert trend.slope_mean is not None
    return Number(trend.slope_mean, trend.low, trend.high)


def _several(found: Mapping[str, tuple[Number, int]], *, correlations: bool) -> Several | None:
    if not found:
        return None
    numbers = {name: number for name, (number, _) in found.items()}
    return Several(numbers, mean_over(list(found.values()), correlations=correlations))


def _region(results: Results, region: str) -> str:
    """What the isotropic estimate does with width in a region, and others beside it."""
    points = results.values("point")
    point = "map" if "map" in points else points[0]
    setups = [s for s in results.setups if len(_epistemic(results, s, region, point))]
    place = _PLACES.get(region, f"In region {region}")
    at = POINT_WORDS.get(point, f"at point {point}")
    values = _values(results, region, point, MAIN)
    if not setups:
        return ""
    if values is None:
        return (
            f"{place}, the isotropic estimate {at} has no correlation at the largest width: the "
            "cells failed the gate, or it is undefined."
        )
    trends = _trends(results, region, point, MAIN)
    text = f"{place}, the isotropic estimate {at} "
    if trends is not None:
        text += (
            f"{_CHANGES[trends.mean.verdict]}: its Pearson correlation with the MCMC variance "
            f"changes by {trends.mean.text('+.3f')} per doubling{_verdicts(trends)}. "
            f"{_widest(results, setups)} it is {values.mean.text('.2f')}"
        )
    else:
        text += (
            "has a Pearson correlation with the MCMC variance of "
            f"{values.mean.text('.2f')} {_lower(_widest(results, setups))}"
        )
    text += _range(values)
    beside = [
        f"{other.mean.text('.2f')} for {words}{_fewer(other, values)}"
        for name, words in BESIDE.items()
        if (other := _values(results, region, point_of(name, point), name)) is not None
    ]
    if beside:
        text += f", beside {listed(beside)}"
    return text + _left_out(results, setups, values) + "."


def _points(results: Results, region: str) -> str:
    """What the isotropic estimate does at the other kinds of point, and averaged over draws."""
    others = [
        (f"the isotropic estimate {POINT_WORDS.get(p, p)}", p, MAIN)
        for p in results.values("point")
        if p not in ("map", "posterior")
    ]
    if "map" not in results.values("point"):
        others = others[1:]  # the first is what the regions are about
    if "posterior_averaged" in results.values("estimator"):
        others.append(("its average over posterior draws", "posterior", "posterior_averaged"))
    parts = []
    for name, point, estimator in others:
        trends = _trends(results, region, point, estimator)
        values = _values(results, region, point, estimator)
        if trends is not None and values is not None:
            verb = "is undecided" if trends.mean.verdict == "undecided" else trends.mean.verdict
            slope, value = trends.mean.text("+.3f"), values.mean.text(".2f")
            parts.append(f"{name} {verb} ({slope} per doubling, to {value})")
    place = _PLACES.get(region, f"In region {region}")
    return f"{place}, {listed(parts)}." if parts else ""


def _epistemic(results: Results, setup: Setup, region: str, point: str) -> pd.DataFrame:
    return results.select(setup, region=region, point=point, quantity="epistemic", estimator=MAIN)


def _widest(results: Results, setups: Sequence[Setup]) -> str:
    widths = {max(results.widths(setup)) for setup in setups}
    if len(widths) == 1:
        return f"At the largest width, {widths.pop()},"
    return "At the largest width of each,"


def _verdicts(trends: Several) -> str:
    """The verdict on each problem, where there are several."""
    if len(trends.of) == 1:
        return ""
    named: dict[str, list[str]] = {}
    for name, number in trends.of.items():
        named.setdefault(number.verdict, []).append(f"{name} {number.mean:+.3f}")
    parts = [
        f"{verdict}: {', '.join(names)}"
        for verdict in _CHANGES
        if (names := named.get(verdict))
    ]  # fmt: skip
    return f" (mean of {len(trends.of)} problems; {'; '.join(parts)})"


def _range(values: Several) -> str:
    if len(values.of) == 1:
        return ""
    ordered = sorted(values.of.items(), key=lambda item: item[1].mean)
    (low, least), (high, most) = ordered[0], ordered[-1]
    return f" (from {least.mean:.2f}, {low}, to {most.mean:.2f}, {high})"


def _fewer(other: Several, values: Several) -> str:
    """Say so where a mean is over other problems than the one that it stands beside."""
    return "" if other.of.keys() == values.of.keys() else f" (of {listed(other.of)} alone)"


def _left_out(results: Results, setups: Sequence[Setup], values: Several) -> str:
    without = [label for s in setups if (label := results.label(s)) not in values.of]
    verb = "has" if len(without) == 1 else "have"
    return f"; {listed(without)} {verb} no value there" if without else ""


def _lower(text: str) -> str:
    return text[0].lower() + text[1:].rstrip(",")
