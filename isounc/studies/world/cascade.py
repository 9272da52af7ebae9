"""Cascades between sizes: the narrow decoder answers, or passes the question on to the wide one.

The unit of replication is the world. The cost of an answer is the number of parameters, to which the
multiplications of a token are proportional: at these sizes seconds measure Python.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from isounc.fields import integer, number, text
from isounc.guard.cost_risk import Answerers, cost_risk, gain
from isounc.runs.folder import Record
from isounc.runs.page import Table
from isounc.studies.world.scores import SCORES
from isounc.studies.world.transfer import over_worlds, widths_of_worlds

PASSING = ("log_p", "entropy", "sq_norm", "log_sq_norm", "total", "moderated", "logit_scaled")
"""Scores that decide whether to pass on."""
TARGETS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares of wrong answers that a cascade is to keep."""
CONFIDENCE = 0.9
"""Of a cascade's promise."""
_NUMBERS = (
    *("narrow_wrong", "wide_wrong", "gain", "found", "passed_on", "cost_share", "cascade_wrong"),
)
CASCADE_COLUMNS = (
    *("world", "narrow", "wide", "score", "target", "num_questions"), *_NUMBERS,
)  # fmt: skip
"""Columns of `cascade.csv`.

    narrow, wide    widths of the two decoders
    narrow_wrong    share of wrong answers of the narrow one; wide_wrong of the wide one
    gain            of passing on by the score, 0 by chance and 1 by who is right
                    (isounc.guard.cost_risk.gain); the same for every target
    found           1 if a cascade keeps the target at confidence .9 by a random half of the questions
    passed_on       share of the other half that it passes on
    cost_share      its cost there as a share of the wide decoder's, in parameters
    cascade_wrong   its share of wrong answers there
"""
CASCADE_ROW = {
    "world": integer(0, 2**63 - 1),
    **dict.fromkeys(("narrow", "wide"), integer(1, 10**6)),
    "score": text(PASSING),
    "target": number(0, 1),
    "num_questions": integer(0, 10**9),
    **dict.fromkeys(_NUMBERS, number(0, 1, None)),
    "gain": number(-1e6, 1 + 1e-6, None),
    "cost_share": number(0, 2, None),
}
"""What a row must hold, which anybody may have edited."""
Rows = list[dict[str, Any]]


def cascades(records: Iterable[Record], epochs: int) -> Rows:
    """Rows of `CASCADE_COLUMNS` of every pair of widths of each world after a training length.

    Without MAPIE no cascade is fitted, and `found` is undefined.
    """
    return [
        row
        for world, by_width in widths_of_worlds(records, epochs).items()
        for narrow, wide in itertools.combinations(sorted(by_width), 2)
        for row in _rows(world, by_width[narrow], by_width[wide])
    ]


def _rows(world: int, narrow: Record, wide: Record) -> Rows:
    judged = narrow.arrays["judged"] & wide.arrays["judged"]
    correct = np.stack([~record.arrays["wrong"][judged] for record in (narrow, wide)], axis=1)
    costs = np.array([record.meta["num_params"] for record in (narrow, wide)], float)
    shuffled = np.random.default_rng(world).permutation(len(correct))
    known, fresh = np.array_split(shuffled, 2)
    rows = []
    for name in PASSING:
        score = narrow.arrays[f"score/{name}"][judged].astype(float)
        shared = {
            "world": world,
            "narrow": narrow.meta["cell"]["width"],
            "wide": wide.meta["cell"]["width"],
            "score": name,
            "num_questions": len(score),
            "narrow_wrong": float((~correct[:, 0]).mean()),
            "wide_wrong": float((~correct[:, 1]).mean()),
            "gain": gain(score, correct).gain,
        }
        for target in TARGETS:
            found = _certified(score, correct, costs, known, fresh, target, world)
            rows.append(shared | {"target": target} | found)
    return rows


def _certified(
    score: Float[np.ndarray, " N"],
    correct: Bool[np.ndarray, "N 2"],
    costs: Float[np.ndarray, " 2"],
    known: np.ndarray,
    fresh: np.ndarray,
    target: float,
    seed: int,
) -> dict[str, Any]:
    """A cascade fitted to one half of the questions, judged on the other."""
    from isounc.guard import Cascade

    row: dict[str, Any] = dict.fromkeys(("found", "passed_on", "cost_share", "cascade_wrong"))
    try:
        cascade = Cascade.fit(
            score[known][:, None], correct[known], costs, target_risk=target,
            confidence=CONFIDENCE, seed=seed,
        )  # fmt: skip
    except ImportError:  # what a run has computed is reported all the same
        return row
    row["found"] = int(cascade.thresholds is not None)
    if cascade.thresholds is not None:
        stages = cascade.choose(score[fresh][:, None])
        found = cost_risk(stages[None], Answerers(correct[fresh], costs))
        row |= {
            "passed_on": float(stages.mean()),
            "cost_share": float(found.cost[0] / costs[1]),
            "cascade_wrong": float(found.risk[0]),
        }
    return row


def chosen_target(rows: Rows) -> float | None:
    """The smallest target at which half of the cascades on -log p were found."""
    for target in TARGETS:
        found = [
            r["found"] or 0 for r in rows if r["target"] == target and r["score"] == PASSING[0]
        ]
        if found and sum(found) >= len(found) / 2:
            return target
    return None


def cascade_table(rows: Rows) -> Table:
    """Tabulate the means over worlds, at the smallest target that half of the worlds can keep."""
    target = chosen_target(rows)
    shown = [row for row in rows if row["target"] == (TARGETS[-1] if target is None else target)]
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in shown:
        groups.setdefault((row["narrow"], row["wide"], row["score"]), []).append(row)
    lines = []
    for (narrow, wide, score), of_worlds in groups.items():
        by_world = {r["world"]: r["gain"] for r in shown
                    if (r["narrow"], r["wide"], r["score"]) == (narrow, wide, PASSING[0])}  # fmt: skip
        ahead = [
            {"less": row["gain"] - by_world[row["world"]]}
            for row in of_worlds
            if None not in (row["gain"], by_world.get(row["world"]))
        ]
        lines.append(
            (
                f"{narrow} to {wide}", SCORES[score].label, over_worlds(of_worlds, "gain"),
                over_worlds(ahead, "less"), f"{sum(int(r['found'] or 0) for r in of_worlds)} of {len(of_worlds)}",
                *(over_worlds(of_worlds, name) for name in (
                    "passed_on", "cost_share", "cascade_wrong", "narrow_wrong", "wide_wrong"
                )),
            )
        )  # fmt: skip
    promise = f"at most {TARGETS[-1] if target is None else target:g} are wrong"
    return Table(
        "Cascades between sizes",
        (
            "widths", "passed on by", "gain", "less that of −log p", "found", "passed on",
            "share of the cost", "wrong", "narrow, wrong", "wide, wrong",
        ),
        lines,
        "The narrow decoder answers or passes on; means over worlds with 95% intervals. Gain: 0 is chance, "
        f"1 the best order. From found on, cascades fitted to half of the questions that promise {promise} "
        f"with confidence {CONFIDENCE:g}, judged on the other half; costs are parameters.",
    )  # fmt: skip
