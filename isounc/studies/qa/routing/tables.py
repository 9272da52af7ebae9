"""Tables about passing on to the second answerer.

routing.csv            every policy on the test questions of every split
routing_curve.csv      risk and cost along the share that is passed on, with intervals
routing_cascades.csv   cascades with a promise, split by split
routing_verdicts.csv   the hypotheses, by 95% intervals over questions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from isounc.statistics import Interval, verdict
from isounc.studies.qa.ranking import Estimated
from isounc.studies.qa.routing.cascades import Certified, certify
from isounc.studies.qa.routing.paths import oracle_paths
from isounc.studies.qa.routing.results import (
    ROUTERS,
    SHARES,
    Evaluation,
    Pair,
    break_even_share,
    evaluate_pair,
)
from isounc.studies.qa.routing.settings import RoutingSettings

KEY = ("model", "benchmark", "second")
COLUMNS = {
    "routing": (
        *KEY, "split", "score", "chosen", "num_guard", "num_test", "first_risk", "second_risk",
        "auroc", "mean_risk", "random_risk", "oracle_risk", "gain", "first_seconds",
        "second_seconds", "break_even", "area_low", "area_high", "area", "mixture_area",
        "oracle_area",
    ),
    "routing_curve": (*KEY, "score", "share", "seconds", "risk", "risk_low", "risk_high"),
    "routing_cascades": (
        *KEY, "split", "score", "target", "budget_share", "found", "promised",
        "passed_on", "cost_share", "log2_cost", "cascade_risk", "excess", "second_risk",
    ),
    "routing_verdicts": (
        *KEY, "hypothesis", "score", "target", "bound", "mean", "se", "low", "high",
        "num_questions", "num_splits", "verdict",
    ),
}  # fmt: skip
"""Columns of each table, by the name of its file.

    first_risk, second_risk     share of wrong answers of each on the test questions
    auroc                       of the score for a wrong first answer (for routers: of what passing on is worth)
    gain                        of passing on by it, 0 by chance and 1 by who is right; costs have no part
    first_seconds               before a question can be passed on: with a router, before it is asked at all
    break_even                  largest share a cascade may pass on and still cost less than the second alone
    area                        mean risk over the costs from area_low to area_high seconds;
                                mixture_area of one of both at random, oracle_area of a cascade that knows
    promised                    the target, or with a budget the bound that holds with the confidence
    excess                      share of wrong answers on the test questions less what was promised
"""
FIRST, SECOND, RANDOM, ORACLE = "always first", "always second", "random", "oracle"
"""Policies of the curve that look at nothing, or know everything."""
Row = dict[str, Any]
Rows = list[Row]


class Hypothesis(NamedTuple):
    """A claim about a number and zero."""

    claim: str
    """The claim in words."""
    below: bool = False
    """Whether the number is claimed to be below zero."""
    is_certified: bool = False
    """Whether it is about cascades with a promise."""


HYPOTHESES = {
    "second is better": Hypothesis("the second is wrong less often", below=True),
    "routes": Hypothesis("passing on by it is better than at random"),
    "beats p": Hypothesis("it gains more than 1 − p"),
    "beats router": Hypothesis("it gains more than the router that looks at the prompt's state"),
    "pays": Hypothesis("at the measured costs it has less risk than a random mixture", below=True),
    "saves": Hypothesis(
        "the cascade costs less than the second answerer", below=True, is_certified=True
    ),
    "keeps the risk": Hypothesis(
        "its risk on other questions is below the target", below=True, is_certified=True
    ),
}
"""Hypotheses by name."""


def make_tables(
    pairs: Sequence[Pair], settings: RoutingSettings, *, seed: int = 0
) -> dict[str, Rows]:
    """Rows of every table in `COLUMNS`."""
    tables: dict[str, Rows] = {name: [] for name in COLUMNS}
    for pair in pairs:
        found = evaluate_pair(pair, settings, seed=seed)
        certified = certify(found, settings)
        cascades = [row for one in certified.values() for row in one.rows]
        rows = {
            "routing": _policies(found),
            "routing_curve": _curve(found),
            "routing_cascades": cascades,
            "routing_verdicts": _verdicts(found, certified, chosen_target(cascades)),
        }
        for name, new in rows.items():
            tables[name] += [pair.key | _short(row) for row in new]
    return tables


def _policies(found: Evaluation) -> Rows:
    rows = []
    for name, policy in found.policies.items():
        for split, (guard, test) in enumerate(found.halves):
            chosen = policy.chosen[split]
            wrong = (~found.pair.correct[test]).mean(axis=0)
            of_gain = {field: values[split, 0] for field, values in policy.gains._asdict().items()}
            rows.append(
                {
                    "split": split, "score": name, "chosen": chosen,
                    "num_guard": len(guard), "num_test": len(test),
                    "first_risk": wrong[0], "second_risk": wrong[1], "auroc": policy.auroc[split],
                    **of_gain, "first_seconds": found.pair.line(chosen)[0],
                    "second_seconds": found.pair.second_cost,
                    "break_even": None if name in ROUTERS else break_even_share(found.pair, chosen),
                    "area_low": found.ends[0], "area_high": found.ends[1],
                    "area": policy.area[split, 0], "mixture_area": policy.mixture[split, 0],
                    "oracle_area": policy.oracle[split, 0],
                }
            )  # fmt: skip
    return rows


def _curve(found: Evaluation) -> Rows:
    pair = found.pair
    first, second = pair.first_cost("p"), pair.second_cost
    by_split = [
        oracle_paths(pair.correct[t], found.weights[:, t]).at(SHARES) for _, t in found.halves
    ]
    oracle = np.stack(by_split)
    ends = oracle[:, :, [0, -1]]
    random = ends[:, :, :1] + SHARES * (ends[:, :, 1:] - ends[:, :, :1])
    lines = {
        FIRST: (np.array([first]), ends[:, :, :1]),
        SECOND: (np.array([second]), ends[:, :, 1:]),
        RANDOM: (first + SHARES * (second - first), random),
        ORACLE: (first + SHARES * second, oracle),
    }
    for name, policy in found.policies.items():
        lines[name] = (policy.costs.mean(axis=0), policy.curve)
    rows = []
    for name, (seconds, risks) in lines.items():
        shares = {FIRST: [0.0], SECOND: [1.0]}.get(name, SHARES)
        for i, share in enumerate(shares):
            at = found.over(risks[:, :, i])
            rows.append(
                {
                    "score": name, "share": float(share), "seconds": seconds[i], "risk": at.value,
                    "risk_low": at.low, "risk_high": at.high,
                }
            )  # fmt: skip
    return rows


def chosen_target(cascades: Sequence[Mapping[str, Any]]) -> float | None:
    """The smallest target risk at which half of the splits have a cascade for 1 − p."""
    targets = sorted({row["target"] for row in cascades if row["target"] is not None})
    for target in targets:
        found = [r["found"] for r in cascades if r["target"] == target and r["score"] == "p"]
        if found and sum(found) >= len(found) / 2:
            return target
    return None


def _verdicts(
    found: Evaluation,
    certified: Mapping[tuple[str, float | None], Certified],
    target: float | None,
) -> Rows:
    rows = [_verdict(found, "second is better", "", found.stronger, len(found.weights[0]))]

    def add(name: str, score: str, statistics: Float[np.ndarray, "S R"]) -> None:
        at = target if HYPOTHESES[name].is_certified else None
        there = int((~np.isnan(statistics[:, 0])).sum())
        if there:
            row = _verdict(found, name, score, found.over(statistics), len(found.weights[0]))
            rows.append(row | {"target": at, "num_splits": there})

    for score, policy in found.policies.items():
        gain = policy.gains.gain
        add("routes", score, gain)
        for name, rival in (("beats p", "p"), ("beats router", "router")):
            if score != rival:
                add(name, score, gain - found.policies[rival].gains.gain)
        add("pays", score, policy.area - policy.mixture)
        if target is not None and (score, target) in certified:
            add("saves", score, certified[score, target].log2_cost)
            add("keeps the risk", score, certified[score, target].excess)
    return rows


def _verdict(found: Evaluation, name: str, score: str, at: Estimated, count: int) -> Row:
    interval = Interval(at.value, at.low, at.high, count)
    return {
        "hypothesis": name, "score": score, "target": None, "bound": 0.0, "mean": at.value,
        "se": at.se, "low": at.low, "high": at.high, "num_questions": count,
        "num_splits": len(found.halves),
        "verdict": verdict(interval, 0.0, below=HYPOTHESES[name].below),
    }  # fmt: skip


def _short(row: Row) -> Row:
    """Six digits; undefined numbers are empty."""
    short = {}
    for name, value in row.items():
        if isinstance(value, float | np.floating):
            value = None if np.isnan(value) else float(f"{value:.6g}")
        short[name] = value
    return short
