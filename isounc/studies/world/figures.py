"""Figures: AUROC against accuracy and temperature, correspondence against size, and the sign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import expit

from isounc.runs.folder import Record
from isounc.runs.style import Look, NothingToDraw, legend_below, styled
from isounc.statistics import interval_over_seeds
from isounc.studies.world.cell import CONDITIONS
from isounc.studies.world.scores import SCORES
from isounc.studies.world.settings import DEPTH
from isounc.studies.world.tables import Results, Rows, Size, What

LOOKS = {
    "log_p": Look(SCORES["log_p"].label, "#000000", "o"),
    "entropy": Look(SCORES["entropy"].label, "#8C8C8C", "s"),
    "null": Look(SCORES["null"].label, "#E69F00", "v"),
    "sq_norm": Look(SCORES["sq_norm"].label, "#009E73", "^"),
    "log_sq_norm": Look(SCORES["log_sq_norm"].label, "#0072B2", "<"),
    "total": Look(SCORES["total"].label, "#D55E00", "d"),
    "moderated": Look(SCORES["moderated"].label, "#56B4E9", ">"),
    "logit_scaled": Look(SCORES["logit_scaled"].label, "#882255", "P"),
    "p_true": Look(SCORES["p_true"].label, "#AA4499", "X"),
    "oracle": Look("oracle", "#444444", "_", ":"),
}
"""Looks of the scores that are drawn."""
_AGAINST_ACCURACY = ("log_p", "entropy", "sq_norm", "log_sq_norm", "total", "moderated", "p_true")
_HEATED = ("log_p", "entropy", "null", "sq_norm", "log_sq_norm", "total", "moderated")
_BY_SIZE = ("sq_norm", "logit_scaled", "null", "log_sq_norm", "entropy")
_PANELS = ("all", "recall", "conflict16", "conflict4", "rule")
_ASSESSMENT = {
    "true and false answers": ("told", "asked_auroc", "AUROC"),
    "sentences trained on": ("told", "taught_accuracy", "right replies"),
    "its own answers": ("all", "auroc", "AUROC for a wrong answer"),
}
_SIZES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^dvP<>X"
_IN_A_ROW = 4
"""Most panels in a row: more are too small to read on a page."""
_RIGHT, _WRONG = "#0072B2", "#D55E00"


def against_accuracy(results: Results) -> Figure:
    """Draw the AUROC of scores against accuracy, a panel for each condition.

    Raises
    ------
    NothingToDraw
        If no AUROC is defined.
    """
    names = [name for name in _PANELS if name in results.conditions]
    drawn = 0
    with styled():
        figure = Figure(figsize=(0.8 + 2.3 * len(names), 3.4), layout="constrained")
        figure.suptitle("AUROC for a wrong answer, by condition", x=0.01, ha="left")
        axes = figure.subplots(1, max(1, len(names)), sharey=True, squeeze=False)[0]
        for ax, condition in zip(axes, names, strict=False):
            for size in results.sizes:
                told = results.over(size, What("told"), "accuracy").mean
                for score in (*_AGAINST_ACCURACY, "oracle"):
                    column = "oracle" if score == "oracle" else "auroc"
                    what = What(condition, score="log_p" if score == "oracle" else score)
                    mean = results.over(size, what, column).mean
                    if told is not None and mean is not None:
                        drawn += 1
                        look = LOOKS[score]
                        ax.plot(
                            told, mean, marker=look.marker, color=look.color, linestyle="none",
                            markersize=3 + 0.8 * np.log2(max(1, size.width / 8)), alpha=0.8,
                        )  # fmt: skip
            ax.set_title(CONDITIONS[condition], loc="left")
            ax.set_xlabel("accuracy on what was told")
            _half(ax)
        axes[0].set_ylabel("AUROC")
        if not drawn:
            raise NothingToDraw("no condition has ten wrong and ten right answers")
        legend_below(figure, _handles((*_AGAINST_ACCURACY, "oracle")))
    return figure


def by_size(results: Results, at_match: Rows, accuracy: float) -> Figure:
    """Draw the rank correlation with the trace against width, at equal accuracy and at the end.

    Raises
    ------
    NothingToDraw
        If fewer than two widths have such a correlation.
    """
    if len(results.widths) < 2:
        raise NothingToDraw("the run has one width")
    with styled():
        figure = Figure(figsize=(7.6, 3.4), layout="constrained")
        title = "Rank correlation with Σ_c Var p_c of the other members"
        figure.suptitle(title, x=0.01, ha="left")
        axes = figure.subplots(1, 2, sharey=True)
        axes[0].set_title(f"at accuracy {accuracy:g} on what was told", loc="left")
        axes[1].set_title(f"after {results.epochs[-1]} epochs", loc="left")
        for score in _BY_SIZE:
            matched, at_end = [], []
            for width in results.widths:
                values = [
                    row["r_trace"] for row in at_match
                    if (row["score"], row["width"]) == (score, width) and "r_trace" in row
                ]  # fmt: skip
                matched.append(interval_over_seeds(values, kind="mean"))
                size = Size(width, DEPTH, results.epochs[-1])
                at_end.append(results.over(size, What(score=score), "r_trace"))
            for ax, found in zip(axes, (matched, at_end), strict=True):
                _curve(ax, results.widths, found, LOOKS[score])
        for ax in axes:
            ax.set_xscale("log", base=2)
            ax.set_xticks(results.widths, [str(width) for width in results.widths])
            ax.set_xlabel("width")
            ax.axhline(0, color="#444444", linewidth=0.8)
        # Intervals over two worlds may reach beyond what a correlation can be.
        low, high = axes[0].get_ylim()
        axes[0].set_ylim(max(low, -1), min(high, 1))
        axes[0].set_ylabel("rank correlation")
        legend_below(figure, _handles(_BY_SIZE))
    return figure


def self_assessment(results: Results) -> Figure:
    """Draw how well decoders say which answers are true against training length, a line for each size.

    Raises
    ------
    NothingToDraw
        If decoders were not asked.
    """
    looks = {
        size.label: Look(size.label, _SIZES[i % len(_SIZES)], _MARKERS[i % len(_MARKERS)])
        for i, size in enumerate(results.longest)
    }
    drawn = 0
    with styled():
        figure = Figure(figsize=(8.2, 3.2), layout="constrained")
        figure.suptitle("Self-assessment: P(True) by training length", x=0.01, ha="left")
        axes = figure.subplots(1, len(_ASSESSMENT))
        for ax, (title, (condition, column, label)) in zip(axes, _ASSESSMENT.items(), strict=True):
            for size in results.longest:
                found = [
                    results.over(size._replace(epochs=n), What(condition, score="p_true"), column)
                    for n in results.epochs
                ]
                drawn += column != "auroc" and any(of.num_seeds for of in found)
                _curve(ax, results.epochs, found, looks[size.label])
            ax.set_xscale("log")
            ax.set_xticks(results.epochs, [str(n) for n in results.epochs])
            ax.set_xticks([], minor=True)
            ax.set_title(title, loc="left")
            ax.set_xlabel("epochs")
            ax.set_ylabel(label)
            _half(ax)
        if not drawn:
            raise NothingToDraw("no decoder was asked about given answers")
        legend_below(
            figure,
            {
                label: Line2D([], [], color=look.color, marker=look.marker)
                for label, look in looks.items()
            },
        )
    return figure


def by_temperature(results: Results) -> Figure:
    """Draw AUROC against temperature, a panel for each size at the longest training.

    Raises
    ------
    NothingToDraw
        If there is one temperature.
    """
    if len(results.temperatures) < 2:
        raise NothingToDraw("the run has one temperature")
    with styled():
        count = len(results.longest)
        num_rows = math.ceil(count / _IN_A_ROW)
        num_columns = math.ceil(count / num_rows)
        size_of_figure = (0.9 + 2.2 * num_columns, 0.8 + 2.4 * num_rows)
        figure = Figure(figsize=size_of_figure, layout="constrained")
        title = f"AUROC for a wrong answer by temperature, {results.epochs[-1]} epochs"
        figure.suptitle(title, x=0.01, ha="left")
        panels = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
        axes = panels.ravel()
        for ax in axes[count:]:
            ax.set_axis_off()
        for ax, size in zip(axes[:count], results.longest, strict=True):
            for score in _HEATED:
                found = [
                    results.over(size, What(temperature=t, score=score), "auroc")
                    for t in results.temperatures
                ]
                _curve(ax, results.temperatures, found, LOOKS[score])
            ax.set_xscale("log", base=2)
            ax.set_xticks(results.temperatures, [f"{t:g}" for t in results.temperatures])
            ax.set_title(size.label, loc="left")
            ax.set_xlabel("temperature")
            _half(ax)
        for row in panels:
            row[0].set_ylabel("AUROC")
        legend_below(figure, _handles(_HEATED))
    return figure


def sign(records: Sequence[Record]) -> Figure:
    """Draw norms against p for right and wrong answers, a row for each training length.

    Raises
    ------
    NothingToDraw
        If there are no records with answers.
    """
    records = [record for record in records if "log_odds" in record.arrays]
    if not records:
        raise NothingToDraw("no record holds answers")
    with styled():
        figure = Figure(figsize=(8.2, 0.8 + 2.3 * len(records)), layout="constrained")
        cell = records[0].meta["cell"]
        title = f"Norms against p, width {cell['width']}, world {cell['world']}"
        figure.suptitle(title, x=0.01, ha="left")
        rows = figure.subplots(len(records), 3, sharex=True, squeeze=False)
        for axes, record in zip(rows, records, strict=True):
            kept = record.arrays["judged"]
            p = expit(record.arrays["log_odds"])[kept]
            norm, wrong = record.arrays["sq_norm"][kept], record.arrays["wrong"][kept]
            with np.errstate(divide="ignore"):
                drawn = {
                    "‖∇p‖²": norm, "‖∇ log p‖²": norm / p**2, "‖∇f‖²": norm / (p * (1 - p)) ** 2,
                }  # fmt: skip
            for ax, (name, values) in zip(axes, drawn.items(), strict=True):
                good = np.isfinite(values) & (values > 0)
                for is_wrong, color in ((False, _RIGHT), (True, _WRONG)):
                    at = good & (wrong == is_wrong)
                    ax.plot(
                        p[at], values[at], ".", color=color, markersize=2.5, alpha=0.6,
                        markeredgewidth=0,
                    )  # fmt: skip
                ax.axvline(0.5, color="#444444", linewidth=0.8)
                if good.any():
                    ax.set_yscale("log")
                ax.set_title(f"{name}, {record.meta['cell']['epochs']} epochs", loc="left")
        for ax in rows[-1]:
            ax.set_xlabel("p of the answer")
        entries = {
            label: Line2D([], [], color=color, marker=".", linestyle="none")
            for label, color in (("right", _RIGHT), ("wrong", _WRONG))
        }
        legend_below(figure, entries)
    return figure


def _curve(ax: Axes, x: Sequence[float], found: Sequence[Any], look: Look) -> None:
    known = [(a, interval) for a, interval in zip(x, found, strict=True) if interval.num_seeds]
    if not known:
        return
    style: dict[str, Any] = {"color": look.color}
    ax.plot(
        [a for a, _ in known], [interval.mean for _, interval in known], marker=look.marker,
        linestyle=look.linestyle, **style,
    )  # fmt: skip
    for a, interval in known:
        if interval.low is not None:
            ax.plot([a, a], [interval.low, interval.high], linewidth=0.9, **style)


def _half(ax: Axes) -> None:
    ax.axhline(0.5, color="#444444", linewidth=0.8)
    ax.set_ylim(0, 1.02)


def _handles(scores: Sequence[str]) -> dict[str, Line2D]:
    return {
        LOOKS[name].label: Line2D(
            [], [], color=LOOKS[name].color, marker=LOOKS[name].marker, linestyle="none"
        )
        for name in scores
    }
