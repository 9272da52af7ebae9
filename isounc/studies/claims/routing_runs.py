"""Evidence on passing on: small networks before a large one, a language model before a costlier way."""

from __future__ import annotations

from collections.abc import Sequence

from isounc.studies.claims.evidence import Row, records, row_of, row_of_interval
from isounc.studies.claims.rules import Condition
from isounc.studies.claims.sources import NEEDED, Source

SCORES = {"isotropic": "‖g‖²", "total": "the sum"}
"""Scores that the claim is about, in words."""
NULL = "p"
"""The score that takes no gradient."""
_HYPOTHESES = {"saves": "costs less", "keeps the risk": "keeps its target"}
_PLACE = ("problem", "cheap_width", "score")
AGAIN = {
    "routing_verdicts.csv": (
        "model", "benchmark", "second", "hypothesis", "score", "target", "mean", "low", "high",
        "num_questions",
    ),
    "routing_cascades.csv": (
        "model", "benchmark", "second", "split", "score", "target", "found", "log2_cost",
        "cascade_risk", "second_risk",
    ),
}  # fmt: skip
"""Columns that are needed of the tables of a qa run with a second answerer."""
_ANSWERERS = ("model", "benchmark", "second", "score")


def routing(sources: Sequence[Source]) -> list[Row]:
    """Rows of claim 13, at the target risk that the study's verdicts are about.

    What decides is taken from these verdicts; what is shown beside it from the cascades, with the large
    network and with the cascade on 1 - p paired by seed. Seeds without a certified cascade have no
    numbers, and are counted as undefined.
    """
    rows = []
    for source in sources:
        tables = {
            name: records(source.table(name, needed)) for name, needed in NEEDED["routing"].items()
        }
        for verdict in tables["verdicts.csv"]:
            measure = _HYPOTHESES.get(verdict["hypothesis"])
            if measure is None or verdict["score"] not in SCORES or verdict["problem"] == "all":
                continue
            where = _where(measure, verdict)
            own = _counts(verdict, tables["cascades.csv"])
            rows.append(row_of_interval("13", where, verdict, source) | own)
            if measure == "costs less":
                rows += [row | own for row in _beside(verdict, tables, source)]
    return rows


def _where(measure: str, verdict: Row) -> Condition:
    # Runs before there were other networks do not say which theirs are.
    kind = "" if verdict.get("networks") in (None, "mlp") else f"{verdict['networks'].upper()} of "
    setting = f"{verdict['problem']}, {kind}width {verdict['cheap_width']}"
    return Condition(measure, SCORES[verdict["score"]], "", setting)


def _counts(verdict: Row, cascades: Sequence[Row]) -> Row:
    """Seeds with a cascade, those whose networks failed their check, and those without one."""
    cells = [
        row for row in cascades
        if all(row[name] == verdict[name] for name in (*_PLACE, "target"))
    ]  # fmt: skip
    good = [row for row in cells if row["gate"] == "pass"]
    found = sum(bool(row["found"]) for row in good)
    return {
        "num_cells": found, "num_failed": len(cells) - len(good),
        "num_undefined": len(good) - found, "widths": str(verdict["cheap_width"]),
    }  # fmt: skip


def _beside(verdict: Row, tables: dict[str, list[Row]], source: Source) -> list[Row]:
    """What decides nothing: the risk of the large network, and the cost of a cascade on 1 - p."""

    def by_seed(table: str, column: str, score: str) -> dict[int, float]:
        place = {
            "problem": verdict["problem"],
            "cheap_width": verdict["cheap_width"],
            "score": score,
        }
        if table == "cascades.csv":
            place["target"] = verdict["target"]
        return {
            row["seed"]: row[column] for row in tables[table]
            if row["gate"] == "pass" and row[column] is not None
            and all(row[name] == value for name, value in place.items())
        }  # fmt: skip

    pairs = {
        "against the large network": (
            by_seed("cascades.csv", "cascade_risk", verdict["score"]),
            by_seed("results.csv", "risk", verdict["score"]),
        ),
        "against 1 − p": (
            by_seed("cascades.csv", "log2_cost", verdict["score"]),
            by_seed("cascades.csv", "log2_cost", NULL),
        ),
    }
    return [
        row_of(
            "13", _where(measure, verdict), verdict["problem"],
            [value - others[seed] for seed, value in values.items() if seed in others], source,
        )
        for measure, (values, others) in pairs.items()
    ]  # fmt: skip


def second_answerers(sources: Sequence[Source]) -> list[Row]:
    """Rows of claim 13 from runs of question answering that have a second answerer.

    The interval is over questions, whose number takes the place of that of seeds; each number is a mean over
    random splits of the same questions, and the splits without a cascade are counted as undefined.
    """
    rows = []
    for source in sources:
        if not all(source.has(name) for name in AGAIN):
            continue
        verdicts, cascades = (records(source.table(name, needed)) for name, needed in AGAIN.items())
        for verdict in verdicts:
            measure = _HYPOTHESES.get(verdict["hypothesis"])
            if measure is None or verdict["score"] not in SCORES:
                continue
            setting = f"{verdict['benchmark']}, {verdict['model']} before {verdict['second']}"
            where = Condition(measure, SCORES[verdict["score"]], "", setting)
            same = [
                row for row in cascades
                if all(row[name] == verdict[name] for name in (*_ANSWERERS, "target"))
            ]  # fmt: skip
            found = sum(bool(row["found"]) for row in same)
            at = {"problem": verdict["benchmark"], "num_seeds": verdict["num_questions"]}
            counts = {"num_cells": found, "num_failed": 0, "num_undefined": len(same) - found}
            rows.append(row_of_interval("13", where, verdict | at, source) | counts)
    return rows
