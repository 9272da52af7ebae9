"""Violation rates and coverage: a panel for each scenario or size of the calibration sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from isounc.runs.style import NothingToDraw, legend_below, styled
from isounc.studies.guard.cell import PLUG_IN, QUANTILES, SCORES
from isounc.studies.guard.scenarios import QUALITIES, SCENARIOS
from isounc.studies.guard.tables import LOOKS, Row, Rows, Tables

_BEST: dict[str, Any] = {"color": "#444444", "linestyle": ":", "linewidth": 1.2}
_RATES = (0, 0.01, 0.05, 0.1, 0.2, 0.5, 1)
_COLUMNS = 5


def violations_figure(tables: Tables, target: float) -> Figure:
    """Draw the violation rate against n: a panel for each scenario, bars are exact intervals."""

    def draw(ax: Axes, lines: Rows) -> None:
        nominal = 1 - lines[0]["confidence"]
        ax.axhline(nominal, **_BEST)
        _draw(ax, lines, "n", lambda r: (r["rate"], r["low"], r["high"]))
        ax.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
        ax.set_ylim(0, 1.1)
        ax.yaxis.set_major_locator(FixedLocator(_RATES))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        _sizes(ax, lines)

    title = f"How often the accepted answers hold more wrong ones than the target, {target:g}"
    return _by_scenario(tables, target, title, "violation rate", "nominal", draw)


def coverage_figure(tables: Tables, target: float) -> Figure:
    """Draw the mean coverage against n, beside that of the best possible threshold."""

    def draw(ax: Axes, lines: Rows) -> None:
        ax.axhline(lines[0]["best_coverage"], **_BEST)
        _draw(ax, lines, "n", _coverage)
        ax.set_ylim(-0.03, 1.03)
        _sizes(ax, lines)

    title = f"Share of answers that are accepted, target {target:g}"
    return _by_scenario(tables, target, title, "coverage", "best possible", draw)


def quality_figure(tables: Tables, target: float) -> Figure:
    """Draw the mean coverage against the AUROC of the score: a panel for each n."""
    lines = [
        line | {"auroc": SCENARIOS[line["scenario"]].calibration.auroc}
        for line in _own(tables, target)
        if line["scenario"] in QUALITIES
    ]
    if len({line["auroc"] for line in lines}) < 2:
        raise NothingToDraw("there are no two qualities of scores")
    sizes = _shown(lines)

    def draw(ax: Axes, here: Rows) -> None:
        best = sorted({(line["auroc"], line["best_coverage"]) for line in here})
        ax.plot(*zip(*best, strict=True), **_BEST)
        _draw(ax, here, "auroc", _coverage)
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlabel("AUROC of the score")

    panels = {f"n = {n}": [line for line in lines if line["n"] == n] for n in sizes}
    title = f"Share of answers that are accepted, target {target:g}, 30% wrong"
    return _panels(panels, title, "coverage", "best possible", draw)


def _own(tables: Tables, target: float) -> Rows:
    """The lines of a target, with thresholds from the sample itself."""
    return [line for line in tables.found(target=target) if line["grid"] in (QUANTILES, SCORES)]


def _by_scenario(
    tables: Tables, target: float, title: str, ylabel: str, dotted: str,
    draw: Callable[[Axes, Rows], None],
) -> Figure:  # fmt: skip
    lines = _own(tables, target)
    if not lines:
        raise NothingToDraw(f"there is no cell with target {target:g}")
    panels = {
        scenario.label + " (cannot exceed)" * (not here[0]["can_exceed"]): here
        for name, scenario in SCENARIOS.items()
        if (here := [line for line in lines if line["scenario"] == name])
    }
    return _panels(panels, title, ylabel, dotted, draw)


def _panels(
    panels: dict[str, Rows], title: str, ylabel: str, dotted: str,
    draw: Callable[[Axes, Rows], None],
) -> Figure:  # fmt: skip
    with styled():
        columns = min(_COLUMNS, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(1.0 + 2.1 * columns, 1.2 + 1.9 * rows), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left")
        axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for ax, (label, lines) in zip(axes.flat, panels.items(), strict=False):
            ax.set_title(label, loc="left")
            draw(ax, lines)
            ax.grid(color="#DDDDDD", linewidth=0.5)
            ax.set_axisbelow(True)
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        for ax in axes.flat[: len(panels) - columns]:  # another panel is below
            ax.set_xlabel("")
        for ax in axes[:, 0]:
            ax.set_ylabel(ylabel)
        legend: dict[str, Any] = {
            look.label: Line2D([], [], color=look.color, marker=look.marker, ls=look.linestyle)
            for look in LOOKS.values()
        }
        legend_below(figure, {**legend, dotted: Line2D([], [], **_BEST)})
    return figure


def _coverage(line: Row) -> tuple[float, float, float]:
    mean, se = line["coverage_mean"], line["coverage_se"]
    return mean, mean - 1.96 * se, mean + 1.96 * se


def _draw(ax: Axes, lines: Rows, x: str, ends: Callable[[Row], tuple[float, float, float]]) -> None:
    """Draw each method with bars; the most common one lies above the others."""
    for i, (method, look) in enumerate(reversed(LOOKS.items())):
        own = sorted((line for line in lines if line["method"] == method), key=lambda r: r[x])
        if not own:
            continue
        # Bars of methods that agree stand side by side.
        side = 1 if x == "auroc" or method == PLUG_IN else 1.05 ** (i - 2)
        places = [side * line[x] for line in own]
        means, low, high = zip(*map(ends, own), strict=True)
        ax.plot(places, means, color=look.color, linestyle=look.linestyle, linewidth=1.2)
        ax.plot(
            places, means, color=look.color, marker=look.marker, markersize=3.5, linestyle="none"
        )
        ax.vlines(places, low, high, color=look.color, linewidth=1.0)


def _shown(lines: Rows) -> list[int]:
    """The sizes that there is room for."""
    sizes = sorted({line["n"] for line in lines})
    return [n for n in sizes if n in (50, 200, 1000, 5000)] or sizes


def _sizes(ax: Axes, lines: Rows) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(_shown(lines)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("calibration sample n")
