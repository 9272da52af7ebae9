"""Cascades with a promise, fitted to the guard questions of each split and judged on its test questions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from isounc.studies.qa.routing.results import Evaluation
from isounc.studies.qa.routing.settings import RoutingSettings

Row = dict[str, Any]


class Certified(NamedTuple):
    """Cascades of one score and one target, in the splits that have one."""

    rows: list[Row]
    """A row for each split."""
    log2_cost: Float[np.ndarray, "S R"]
    """log2 of the mean cost as a share of the second answerer's; NaN where there is no cascade."""
    excess: Float[np.ndarray, "S R"]
    """Share of wrong answers less the target."""


def certify(
    found: Evaluation, settings: RoutingSettings
) -> dict[tuple[str, float | None], Certified]:
    """Cascades by score and target; None is the one with a budget.

    A router is no cascade: nobody has answered when it decides. The best score on the guard questions is
    left out: whoever chooses by them may not certify by them. Without MAPIE there are none.
    """
    try:
        import mapie  # noqa: F401  # what a run has computed is reported all the same
    except ImportError:
        return {}
    return {
        (name, target): _certified(found, name, target, settings)
        for name in found.pair.scores
        for target in (*settings.target_risks, None)
    }


def _certified(
    found: Evaluation, name: str, target: float | None, settings: RoutingSettings
) -> Certified:
    from isounc.guard import Cascade

    pair, score = found.pair, found.pair.scores[name]
    costs = np.array([pair.first_cost(name), pair.second_cost])
    budget = settings.budget_share * pair.second_cost
    rows: list[Row] = []
    log2_costs, excesses = [], []
    undefined = np.full(len(found.weights), np.nan)
    for split, (guard, test) in enumerate(found.halves):
        cascade = Cascade.fit(
            score[guard][:, None], pair.correct[guard], costs, target_risk=target,
            budget=budget if target is None else None, confidence=settings.confidence, seed=split,
        )  # fmt: skip
        row: Row = {"split": split, "score": name, "target": target}
        row["budget_share"] = settings.budget_share if target is None else None
        row["found"] = int(cascade.thresholds is not None)
        log2_cost, excess = undefined, undefined
        if cascade.thresholds is not None:
            stages = cascade.choose(score[test][:, None])
            drawn = found.weights[:, test].astype(float)
            total = drawn.sum(axis=1)
            wrong = ~pair.correct[test, stages]
            with np.errstate(invalid="ignore"):
                risk = drawn @ wrong / total
                share = drawn @ np.cumsum(costs)[stages] / total / costs[1]
            log2_cost = np.log2(share)
            excess = risk - cascade.promised_risk
            row |= {
                "promised": cascade.promised_risk, "passed_on": float(stages.mean()),
                "cost_share": float(share[0]), "log2_cost": float(log2_cost[0]),
                "cascade_risk": float(risk[0]), "excess": float(excess[0]),
                "second_risk": float((~pair.correct[test, 1]).mean()),
            }  # fmt: skip
        rows.append(row)
        log2_costs.append(log2_cost)
        excesses.append(excess)
    return Certified(rows, np.stack(log2_costs), np.stack(excesses))
