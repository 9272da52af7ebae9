"""Reading, page tables and figures about passing on, from the rows of the tables alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from isounc.runs.figures import Plot
from isounc.runs.page import Table
from isounc.runs.panels import IntervalEnds, interval_panels
from isounc.runs.style import Look, NothingToDraw, legend_below, styled
from isounc.runs.words import interval, short
from isounc.studies.qa.routing.results import SCORES
from isounc.studies.qa.routing.tables import (
    FIRST,
    HYPOTHESES,
    KEY,
    ORACLE,
    RANDOM,
    SECOND,
    chosen_target,
)

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]
LOOKS = {
    "p": Look(SCORES["p"], "#000000", "s", ":"),
    "log_p": Look(SCORES["log_p"], "#882255", "P"),
    "isotropic": Look(SCORES["isotropic"], "#0072B2", "o"),
    "isotropic_log": Look(SCORES["isotropic_log"], "#56B4E9", "^"),
    "router": Look(SCORES["router"], "#D55E00", "v", "--"),
    ORACLE: Look("oracle", "#117733", "*", "-."),
    RANDOM: Look("at random", "#8C8C8C", ".", ":"),
}
"""Policies whose curves are drawn; intervals of those that look at something."""
_GAIN = {"gain": Look("gain", "#0072B2", "o")}


def _pairs(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(tuple(row[name] for name in KEY) for row in rows))


def _of(rows: Sequence[Row], pair: tuple[Any, ...], **which: Any) -> list[Row]:
    wanted = dict(zip(KEY, pair, strict=True)) | which
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def _mean(rows: Sequence[Row], column: str) -> float | None:
    known = [row[column] for row in rows if row[column] is not None]
    return float(np.mean(known)) if known else None


def _title(pair: tuple[Any, ...]) -> str:
    model, benchmark, second = pair
    return f"{benchmark}: {model}, then {second}"


def reading(tables: Tables) -> list[str]:
    """Sentences that say what the tables show."""
    found = []
    for pair in _pairs(tables["routing_verdicts"]):
        verdicts = _of(tables["routing_verdicts"], pair)
        rows = _of(tables["routing"], pair, score="p")
        (better,) = [row for row in verdicts if row["hypothesis"] == "second is better"]
        cost = rows[0]["second_seconds"] / rows[0]["first_seconds"]
        found.append(
            f"{_title(pair)}. Of {better['num_questions']} questions the first answerer has "
            f"{short(_mean(rows, 'first_risk'))} wrong, the second {short(_mean(rows, 'second_risk'))} "
            f"(means over the splits), at {cost:.3g} times the cost; that the second is wrong less "
            f"often is {better['verdict']} ({interval(better)})."
        )
        cascades = _of(tables["routing_cascades"], pair)
        target = chosen_target(cascades)
        for name, hypothesis in HYPOTHESES.items():
            parts = [
                f"{SCORES[row['score']]} {row['verdict']} ({interval(row)})"
                for row in verdicts
                if row["hypothesis"] == name and row["score"]
            ]
            if parts:
                at = f" at target {target:g}" if hypothesis.is_certified else ""
                found.append(f"“{name}” ({hypothesis.claim}){at}: {'; '.join(parts)}.")
        if target is None and cascades:
            found.append("No target risk has a certified cascade in half of the splits.")
    return found


def page_tables(tables: Tables) -> list[Table]:
    """Gains and costs, cascades and verdicts."""
    return [_gain_table(tables), _cascade_table(tables), _verdict_table(tables)]


def _gain_table(tables: Tables) -> Table:
    lines = []
    for pair in _pairs(tables["routing"]):
        for score in (s for s in SCORES if _of(tables["routing"], pair, score=s)):
            rows = _of(tables["routing"], pair, score=score)
            gained = _of(tables["routing_verdicts"], pair, score=score, hypothesis="routes")
            pays = _of(tables["routing_verdicts"], pair, score=score, hypothesis="pays")
            numbers = (
                _mean(rows, n)
                for n in ("auroc", "first_seconds", "second_seconds", "break_even", "area",
                          "mixture_area", "oracle_area")
            )  # fmt: skip
            auroc, *costs = numbers
            lines.append(
                (
                    _title(pair), SCORES[score], interval(gained[0]) if gained else "undefined",
                    "" if score.startswith("router") else short(auroc),
                    *("" if c is None else f"{c:.3g}" for c in costs),
                    interval(pays[0]) if pays else "undefined",
                )
            )  # fmt: skip
    return Table(
        "Passing on: gains and risks at the same cost",
        (
            "answerers", "passed on by", "gain", "AUROC", "first, s", "second, s",
            "break-even share", "mean risk", "at random", "oracle", "less than at random",
        ),
        lines,
        "Gain 0 is passing on at random, 1 by who is right; costs have no part in it. first, s: seconds of "
        "a question before it can be passed on. Mean risks are over the costs from the dearest first answer "
        "to the second answer. 95% bootstrap intervals over questions.",
    )  # fmt: skip


def _cascade_table(tables: Tables) -> Table:
    lines = []
    rows = tables["routing_cascades"]
    for pair in _pairs(rows):
        of_pair = _of(rows, pair)
        for score, target in dict.fromkeys((r["score"], r["target"]) for r in of_pair):
            same = [r for r in of_pair if (r["score"], r["target"]) == (score, target)]
            there = [r for r in same if r["found"]]
            if not there:
                continue
            budget = same[0]["budget_share"]
            numbers = (
                _mean(there, name)
                for name in ("promised", "passed_on", "cost_share", "cascade_risk", "second_risk")
            )
            lines.append(
                (
                    _title(pair), SCORES[score],
                    f"cost {budget:g}" if target is None else f"risk {target:g}",
                    f"{len(there)} of {len(same)}", *map(short, numbers),
                )
            )  # fmt: skip
    return Table(
        "Cascades with a promise",
        (
            "answerers", "passed on by", "asked for", "splits with one", "promised risk",
            "passed on", "cost / second", "risk on test questions", "second, risk",
        ),
        lines,
        "Means over the splits that have one. Asked for is the largest risk, or the largest mean cost as a "
        "share of the second answerer's, where the promised risk is what holds with the confidence.",
    )  # fmt: skip


def _verdict_table(tables: Tables) -> Table:
    lines = [
        (
            _title(tuple(row[name] for name in KEY)), row["hypothesis"],
            SCORES.get(row["score"], ""), "" if row["target"] is None else f"{row['target']:g}",
            row["verdict"], interval(row), str(row["num_splits"]),
        )
        for row in tables["routing_verdicts"]
    ]  # fmt: skip
    claims = "; ".join(f"{name}: {h.claim}" for name, h in HYPOTHESES.items())
    return Table(
        "Verdicts on passing on",
        ("answerers", "hypothesis", "passed on by", "target", "verdict", "number", "splits"),
        lines, f"{claims[0].upper()}{claims[1:]}.",
    )  # fmt: skip


def plots(tables: Tables) -> list[Plot]:
    """Cost-risk curves, and gains."""
    if not tables["routing"]:
        return []
    return [
        Plot(
            "cost-risk", "routing",
            "Share of wrong answers against mean seconds of a question, means over the splits' test "
            "questions; shaded: 95% bootstrap intervals over questions. Squares: one answerer alone.",
            functools.partial(curves, tables),
        ),
        Plot(
            "routing-gains", "routing",
            "Gain of passing on by every score: 0 at random, 1 by who is right; 95% bootstrap intervals "
            "over questions.", functools.partial(gains, tables),
        ),
    ]  # fmt: skip


def curves(tables: Tables) -> Figure:
    """Draw risk against cost, a panel for each pair of answerers.

    Raises
    ------
    NothingToDraw
        If there is no curve.
    """
    pairs = _pairs(tables["routing_curve"])
    if not pairs:
        raise NothingToDraw("nobody was asked a second time")
    with styled():
        figure = Figure(figsize=(1.0 + 4.6 * len(pairs), 4.4), layout="constrained")
        drawn: dict[str, Any] = {}
        for ax, pair in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
            for name, look in LOOKS.items():
                rows = _of(tables["routing_curve"], pair, score=name)
                x, y, low, high = (
                    [row[column] for row in rows]
                    for column in ("seconds", "risk", "risk_low", "risk_high")
                )
                if not rows or None in y:
                    continue
                (drawn[look.label],) = ax.plot(
                    x, y, look.linestyle, marker=look.marker, color=look.color, ms=3, lw=1.2,
                    markevery=4,
                )  # fmt: skip
                if name in SCORES and name in ("p", "router") and None not in (*low, *high):
                    ax.fill_between(x, low, high, color=look.color, alpha=0.10, lw=0)
            for name in (FIRST, SECOND):
                for row in _of(tables["routing_curve"], pair, score=name):
                    ends = (row["risk_low"], row["risk_high"])
                    if None not in (row["risk"], *ends):
                        ax.plot([row["seconds"]] * 2, ends, color="#555555", lw=1)
                        ax.plot([row["seconds"]], [row["risk"]], "s", color="#555555", ms=6)
            ax.set_title(f"{pair[1]}\n{pair[0]}\nthen {pair[2]}", loc="left")
            ax.set_xlabel("mean seconds of a question")
        figure.axes[0].set_ylabel("share of wrong answers")
        legend_below(figure, drawn)
    return figure


def gains(tables: Tables) -> Figure:
    """Draw the gain of every score.

    Raises
    ------
    NothingToDraw
        If no gain is defined.
    """
    rows = [row for row in tables["routing_verdicts"] if row["hypothesis"] == "routes"]
    pairs = _pairs(rows)
    scores = [name for name in SCORES if any(row["score"] == name for row in rows)]
    by_panel = {f"{pair[1]}, {pair[2]}": pair for pair in pairs}

    def at(i: int, region: str, name: str) -> IntervalEnds:
        found = _of(rows, by_panel[region], score=scores[i])
        return (
            (found[0]["mean"], found[0]["low"], found[0]["high"]) if found else (None, None, None)
        )

    if not rows:
        raise NothingToDraw("no gain is defined")
    figure, axes = interval_panels(
        "Gain of passing on: 0 at random, 1 by who is right",
        [SCORES[name] for name in scores], [""] * len(scores), list(by_panel), _GAIN, at,
    )  # fmt: skip
    for ax in axes:
        ax.axvline(0, color="#555555", linewidth=0.8)
        ax.set_xlabel("gain")
    return figure
