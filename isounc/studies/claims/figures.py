"""One figure for each claim: its numbers by condition, with intervals and the bound."""

from __future__ import annotations

import itertools
import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from isounc.runs.style import Look, NothingToDraw, legend_below, styled
from isounc.studies.claims.measures import MEASURES
from isounc.studies.claims.rules import Finding
from isounc.studies.claims.tables import Settled, bound_text, of_widths, place, words

STATES = {
    "supported": Look("supported", "#0072B2", "o"),
    "contradicted": Look("contradicted", "#D55E00", "X"),
    "undecided": Look("undecided", "#8C8C8C", "s"),
    "beside": Look("shown beside, decides nothing", "#AA4499", "d"),
}
"""Looks of the states of a condition."""
_ROW, _WIDTH = 0.21, 9.0
"""Inches of a row, and of the figure."""


def forest(settled: Settled) -> Figure:
    """Draw a row for each condition: its mean, its 95% interval, and the bound of its measure.

    Raises
    ------
    NothingToDraw
        If there is no evidence.
    """
    found = [f for f in settled.findings if f.mean is not None]
    if not found:
        raise NothingToDraw("the study was not run")
    measures = [name for name in settled.claim.measures if any(_of(f, name) for f in found)]
    points = list(dict.fromkeys(f.condition.point for f in found))
    found.sort(key=lambda f: points.index(f.condition.point))
    groups = [[f for f in found if _of(f, name)] for name in measures]
    heights = [len(group) + 2 for group in groups]
    with styled():
        figure = Figure(figsize=(_WIDTH, 1.2 + _ROW * sum(heights)), layout="constrained")
        title = f"{settled.key}. {settled.claim.title}\n{words(settled)}"
        figure.suptitle(title, x=0.01, ha="left")
        axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, name, group in zip(axes, measures, groups, strict=True):
            _panel(ax, name, group, settled)
        shown = {f.state for f in found}
        entries = {
            look.label: Line2D([], [], color=look.color, marker=look.marker, linewidth=1.2)
            for state, look in STATES.items()
            if state in shown
        }
        entries["the claim's bound"] = Line2D([], [], color="black", linewidth=1.0)
        legend_below(figure, entries)
    return figure


def _of(finding: Finding, measure: str) -> bool:
    return finding.condition.measure == measure


def _panel(ax: Axes, name: str, group: list[Finding], settled: Settled) -> None:
    measure = MEASURES[name]
    ax.set_title(f"{measure.label} ({bound_text(measure)})", loc="left")
    bounds = (-measure.bound, measure.bound) if measure.side == "within" else (measure.bound,)
    for bound in bounds:
        ax.axvline(bound, color="black", linewidth=1.0)
    for i, finding in enumerate(group):
        look = STATES[finding.state]
        mean = finding.mean
        assert mean is not None
        if finding.low is not None and finding.high is not None:
            ax.plot([finding.low, finding.high], [i, i], color=look.color, linewidth=1.2)
        ax.plot(
            [mean], [i], marker=look.marker, color=look.color, linestyle="none",
            markersize=4.5, markerfacecolor="white" if finding.low is None else look.color,
        )  # fmt: skip
    for i, (before, after) in enumerate(itertools.pairwise(group)):
        if before.condition.point != after.condition.point:
            ax.axhline(i + 0.5, color="#BBBBBB", linewidth=0.6)
    ax.set_xlim(*_limits(group, bounds))
    places = [of_widths(place(f.condition), settled) or "all" for f in group]
    labels = [f"{name} ({f.num_seeds})" for name, f in zip(places, group, strict=True)]
    ax.set_yticks(range(len(group)), labels)
    ax.set_ylim(len(group) - 0.4, -0.6)
    ax.tick_params(axis="y", labelsize=7, length=0)
    ax.grid(axis="x", color="#DDDDDD", linewidth=0.5)
    ax.set_axisbelow(True)


def _limits(group: list[Finding], bounds: tuple[float, ...]) -> tuple[float, float]:
    """The range of means and bounds with half as much around: a wide interval may leave it."""
    means = [f.mean for f in group if f.mean is not None]
    least, most = min(*means, *bounds), max(*means, *bounds)
    ends = [e for f in group for e in (f.low, f.high) if e is not None and math.isfinite(e)]
    room = 0.6 * (most - least) or 0.1
    lowest, highest = min([least, *ends]), max([most, *ends])
    edge = 0.04 * (min(highest, most + room) - max(lowest, least - room))
    return max(lowest, least - room) - edge, min(highest, most + room) + edge
