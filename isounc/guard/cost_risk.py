"""Cost against risk of answering with one of several answerers, and what bounds it from both sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from isounc.checks import real_array
from isounc.guard.certificate import Share


class Answerers(NamedTuple):
    """What each answerer would say to each question, from the cheapest to the last resort."""

    correct: Bool[np.ndarray, "N J"]
    """Whether each answer is right; a column of a person may be all true."""
    costs: Float[np.ndarray, " J"]
    """Mean cost of an answer of each, such as measured seconds."""


class CostRisk(NamedTuple):
    """Mean cost and risk of some ways to choose the answerer, one entry each."""

    cost: Float[np.ndarray, " T"]
    """Mean cost of a question."""
    risk: Float[np.ndarray, " T"]
    """Share of wrong answers among all questions."""
    low: Float[np.ndarray, " T"]
    """Lower end of the risk's exact 95% interval."""
    high: Float[np.ndarray, " T"]
    """Upper end."""


def checked_answerers(correct: Any, costs: Any) -> Answerers:
    """Answers and costs of two answerers or more.

    Raises
    ------
    ValueError
        The tables do not fit, a label is no truth value, or a cost is not positive and finite.
    """
    table = real_array("correct", correct).astype(np.float64)
    if table.ndim != 2 or table.shape[1] < 2 or not len(table) or not np.isin(table, (0, 1)).all():
        raise ValueError(
            "correct must hold true and false with a row for each question and a column for each of "
            f"two answerers or more, got shape {table.shape}"
        )
    values = real_array("costs", costs).astype(np.float64)
    if values.shape != table.shape[1:] or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(
            f"costs must be a positive number for each of {table.shape[1]} answerers, got "
            f"{np.asarray(costs).tolist()!r:.80}"
        )
    return Answerers(table == 1, values)


def cost_risk(
    stages: Int[np.ndarray, "T N"], answerers: Answerers, *, pays_all: bool = True
) -> CostRisk:
    r"""Cost and risk where question n is answered by answerer `stages[t, n]`.

        cost_t = mean_n sum_{j <= stage} c_j (a cascade has paid for all it tried), or c_stage

    Parameters
    ----------
    stages
        Number of the answerer, for each way and question.
    answerers
        Their answers and costs.
    pays_all
        False for a router, which chooses before anybody has answered.
    """
    cost, wrong = costs_and_errors(stages, answerers, pays_all=pays_all)
    shares = [Share.of_counts(int(count), stages.shape[1]) for count in wrong]
    return CostRisk(
        cost, wrong / stages.shape[1],
        np.array([s.low for s in shares]), np.array([s.high for s in shares]),
    )  # fmt: skip


def costs_and_errors(
    stages: Int[np.ndarray, "T N"], answerers: Answerers, *, pays_all: bool = True
) -> tuple[Float[np.ndarray, " T"], Int[np.ndarray, " T"]]:
    """Mean cost of a question, and number of wrong answers, as `cost_risk` has them."""
    paid = np.cumsum(answerers.costs) if pays_all else answerers.costs
    right = answerers.correct[np.arange(stages.shape[1]), stages]
    return paid[stages].mean(axis=1), stages.shape[1] - right.sum(axis=1)


def single_answerers(answerers: Answerers) -> CostRisk:
    """Cost and risk of always asking one of them: a point for each."""
    number, questions = len(answerers.costs), len(answerers.correct)
    stages = np.repeat(np.arange(number)[:, None], questions, axis=1)
    return cost_risk(stages, answerers, pays_all=False)


def mixture_risk(cost: Float[np.ndarray, " T"], answerers: Answerers) -> Float[np.ndarray, " T"]:
    """Least risk at each cost of asking one of them at random: the lower hull of the single ones.

    NaN below the cost of the cheapest.
    """
    single = single_answerers(answerers)
    order = np.argsort(single.cost, kind="stable")
    hull: list[int] = []
    for i in order.tolist():
        if hull and single.risk[i] >= single.risk[hull[-1]]:
            continue  # it costs more and knows no more
        while len(hull) > 1 and _is_above(single, hull[-2], hull[-1], i):
            hull.pop()
        hull.append(i)
    x, y = single.cost[hull], single.risk[hull]
    return np.where(cost < x[0], np.nan, np.interp(cost, x, y))


def _is_above(points: CostRisk, a: int, b: int, c: int) -> bool:
    """Whether b lies on or above the line from a to c."""
    slope = (points.risk[c] - points.risk[a]) / (points.cost[c] - points.cost[a])
    return bool(points.risk[b] >= points.risk[a] + slope * (points.cost[b] - points.cost[a]))


def oracle_stages(answerers: Answerers) -> Int[np.ndarray, " N"]:
    """The first answerer that is right, or the cheapest where none is: no cascade does better."""
    right = answerers.correct.any(axis=1)
    return np.where(right, answerers.correct.argmax(axis=1), 0)


def area_under(curve: CostRisk, ends: Sequence[float]) -> float:
    """Mean risk over costs between two ends, by trapezoids on the least risk that a cost buys.

    The curve is first made non-increasing: who may spend more may also spend less. Below its cheapest
    point its risk is not defined, and `ends` must not begin there.
    """
    order = np.argsort(curve.cost, kind="stable")
    cost, risk = curve.cost[order], np.minimum.accumulate(curve.risk[order])
    low, high = ends
    if not cost[0] <= low < high:
        raise ValueError(f"ends must rise from {cost[0]:g} or above, got {low:g} and {high:g}")
    inside = (cost > low) & (cost < high)
    x = np.r_[low, cost[inside], high]
    # A step function: the risk of the most expensive point that a cost pays for.
    y = risk[np.searchsorted(cost, x, side="right") - 1]
    return float((np.diff(x) * y[:-1]).sum() / (high - low))


class Gain(NamedTuple):
    """What a score is worth for passing on, of two answerers; costs have no part in it."""

    mean_risk: float
    """Mean of the risk R(e) over the share e of the questions that are passed on."""
    random_risk: float
    """The same where questions are passed on at random."""
    oracle_risk: float
    """The same where they are passed on by who is right."""
    gain: float | None
    """(random_risk - mean_risk) / (random_risk - oracle_risk): 0 is chance, 1 is the most; None where the
    order makes no difference."""


def gain(score: Float[np.ndarray, " N"], correct: Bool[np.ndarray, "N 2"]) -> Gain:
    """How well a score says which questions to pass on from the first answerer to the second.

    Parameters
    ----------
    score
        The highest are passed on first; ties in random order.
    correct
        Whether each answerer is right.
    """
    cheap, expensive = (~correct).T.astype(np.float64)
    random = float((cheap.mean() + expensive.mean()) / 2)
    mean = _mean_risk(score, cheap, expensive)
    oracle = _mean_risk(cheap - expensive, cheap, expensive)
    # More than rounding: where both answerers are right and wrong together, nothing is to be gained.
    share = (random - mean) / (random - oracle) if random - oracle > 1e-12 else None
    return Gain(mean, random, oracle, share)


def _mean_risk(
    score: Float[np.ndarray, " N"],
    cheap: Float[np.ndarray, " N"],
    expensive: Float[np.ndarray, " N"],
) -> float:
    """Mean of R(e) by trapezoids; ties at random."""
    change = expensive - cheap
    _, group, sizes = np.unique(-score, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=change) / sizes
    risks = cheap.mean() + np.r_[0.0, np.cumsum(np.repeat(means, sizes))] / len(score)
    return float((risks[1:] + risks[:-1]).mean() / 2)


def break_even(answerers: Answerers) -> float:
    """Largest share of questions that a cascade of two may pass on and still cost less than the second.

    1 - c_1 / c_2, since every question has paid for the first: a cascade whose first answerer costs half
    as much as the second must keep more than half of the questions.
    """
    first, *_, last = answerers.costs
    return float(max(0.0, 1 - first / last))
