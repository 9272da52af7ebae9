"""The tables of a guard run: violation rates with intervals, and verdicts on each method."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from isounc.fields import integer, number, text, truth
from isounc.guard.certificate import METHODS, Share
from isounc.runs.style import Look
from isounc.statistics import Interval, holm, verdict
from isounc.studies.guard.cell import GIVEN, PLUG_IN, QUANTILES, SCORES
from isounc.studies.guard.scenarios import SCENARIOS

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]
LOOKS = {
    "fixed_sequence": Look("fixed sequence", "#0072B2", "o"),
    "holm": Look("Holm", "#009E73", "s"),
    "bonferroni": Look("Bonferroni", "#AA4499", "d", "--"),
    PLUG_IN: Look("plug-in", "#D55E00", "^"),
}
"""Names and looks of the methods."""
GRIDS = {
    SCORES: "every score of the sample",
    QUANTILES: "quantiles of the sample",
    GIVEN: "quantiles of another sample",
}
"""Thresholds that are tried, with what people call them."""
LEVEL = 0.05
"""Level of the tests that a promise is broken, all of them together."""

_MEANS = ("coverage_mean", "coverage_se", "gain_mean", "gain_se")
_KNOWN = ("risk_mean", "risk_se", "excess_mean")
RESULT_COLUMNS = (
    *("scenario", "n", "target", "confidence", "grid", "method", "is_shifted", "can_exceed"),
    *("num_repetitions", "num_violations", "num_without", *_KNOWN, *_MEANS, "best_coverage"),
    *("num_checked", "num_unlike"),
)
"""Columns of `results.csv`."""
SUMMARY_COLUMNS = (
    *(
        "scenario",
        "n",
        "target",
        "confidence",
        "grid",
        "method",
        "is_shifted",
        "can_exceed",
        "counts",
    ),
    *("rate", "low", "high", "verdict"),
    *("p_value", "p_adjusted", "without", *_KNOWN, *_MEANS, "best_coverage", "of_best"),
)
"""Columns of `summary.csv`."""
VERDICT_COLUMNS = (
    *("grid", "method", "num_cells", "confirmed", "undecided", "refuted", "expected_refuted"),
    *("highest", "highest_low", "highest_high", "highest_cell", "p_adjusted", "verdict"),
    *("num_answering", "confirmed_answering", "num_silent"),
)
"""Columns of `verdicts.csv`."""
_SHARE = number(-1e-9, 1 + 1e-9)
_PART = number(-1 - 1e-9, 1 + 1e-9, None)
_COUNT = integer(0, 10**9)
ROW = {
    "scenario": text(SCENARIOS),
    "n": integer(1, 10**9),
    "target": number(0, 1),
    "confidence": number(0, 1),
    "grid": text(GRIDS),
    "method": text(LOOKS),
    "is_shifted": truth(),
    "can_exceed": truth(),
    "num_repetitions": integer(1, 10**9),
    **dict.fromkeys(("num_violations", "num_without", "num_checked", "num_unlike"), _COUNT),
    **dict.fromkeys((*_KNOWN, *_MEANS), _PART),
    "best_coverage": _SHARE,
}
"""What a row of a record must hold, which anybody may have edited."""


class Tables(NamedTuple):
    """The tables of a run."""

    rows: Rows
    """A row for each cell, grid and method."""
    summary: Rows
    """See `summarise`."""
    verdicts: Rows
    """See `verdicts`."""

    @classmethod
    def of(cls, rows: Rows) -> Tables:
        """The tables from the rows of a run."""
        summary = summarise(rows)
        return cls(rows, summary, verdicts(summary))

    def found(self, **where: Any) -> Rows:
        """The lines of the summary with these values."""
        return [line for line in self.summary if all(line[k] == v for k, v in where.items())]


def summarise(rows: Sequence[Row]) -> Rows:
    """The violation rate of each row with its exact interval and verdict, and coverage.

    A row `counts` where something was promised that could be broken: a method with a guarantee, no
    shift, and thresholds whose risk exceeds the target. `p_value` is that of a rate of at most
    1 - confidence, `p_adjusted` the same after Holm over all rows that count.
    """
    from scipy.stats import binom

    summary: Rows = []
    for row in rows:
        total, violations = row["num_repetitions"], row["num_violations"]
        share, nominal = _share(violations, total), 1 - row["confidence"]
        interval = Interval(share.value, share.low, share.high, total)
        best = row["best_coverage"]
        summary.append({
            **{name: row[name] for name in SUMMARY_COLUMNS if name in row},
            "counts": row["method"] in METHODS and row["can_exceed"] and not row["is_shifted"],
            "rate": share.value, "low": share.low, "high": share.high,
            "verdict": verdict(interval, nominal, below=True),
            "p_value": float(binom.sf(violations - 1, total, nominal)), "p_adjusted": None,
            "without": row["num_without"] / total,
            "of_best": row["coverage_mean"] / best if best > 0 else None,
        })  # fmt: skip
    counting = [line for line in summary if line["counts"]]
    if counting:
        adjusted = holm([line["p_value"] for line in counting]).tolist()
        for line, p in zip(counting, adjusted, strict=True):
            line["p_adjusted"] = p
    return summary


def verdicts(summary: Sequence[Row]) -> Rows:
    """What the rows that count say of each grid and method.

    Refuted where the smallest adjusted p-value is below `LEVEL`, confirmed where every row is,
    undecided otherwise. Cells are answering where half of the samples or more have a threshold, and
    silent where none has.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for line in summary:
        if line["counts"]:
            found.setdefault((line["grid"], line["method"]), []).append(line)
    rows = []
    for (grid, method), lines in found.items():
        counts = {name: sum(line["verdict"] == name for line in lines) for name in _VERDICTS}
        answering = [line for line in lines if line["without"] <= 0.5]
        highest = max(lines, key=lambda line: line["rate"])
        p = min(line["p_adjusted"] for line in lines)
        said = "refuted" if p < LEVEL else "undecided"
        rows.append({
            "grid": grid, "method": method, "num_cells": len(lines), **counts,
            "expected_refuted": 0.025 * len(lines),
            "highest": highest["rate"], "highest_low": highest["low"],
            "highest_high": highest["high"], "highest_cell": cell_name(highest), "p_adjusted": p,
            "verdict": "confirmed" if counts["confirmed"] == len(lines) else said,
            "num_answering": len(answering),
            "confirmed_answering": sum(line["verdict"] == "confirmed" for line in answering),
            "num_silent": sum(line["without"] == 1 for line in lines),
        })  # fmt: skip
    return rows


# Most rates of a run recur, and an exact interval takes a millisecond.
_share = functools.cache(Share.of_counts)
_VERDICTS = ("confirmed", "undecided", "refuted")


def cell_name(line: Row) -> str:
    """A cell as readings and tables spell it."""
    return f"{SCENARIOS[line['scenario']].label}, n = {line['n']}, target {line['target']:g}"
