"""Figures that compare problems have a panel per problem, one y axis and one legend.

The title of a panel says how many cells failed the gate, and which correlations are undefined. A
hollow marker is a seed that failed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from isounc.checks import check_choice
from isounc.runs.style import Look, NothingToDraw, legend_below
from isounc.studies.scaling.figures.looks import CORRELATIONS
from isounc.studies.scaling.results import Results, Setup


class Line(NamedTuple):
    """One line of every panel, or one bar of every group."""

    look: Look
    """Label, colour and marker."""
    short: str
    """Its name in notes."""
    point: str
    """Point of its rows."""
    estimator: str
    """Estimator of its rows."""
    regression: bool | None = None
    """Whether it is for regressions alone, or for classifications alone; None for both."""


def check_figure(results: Results, *, statistic: str, **wanted: str | None) -> None:
    """Check that a run has the statistic, regions and points that a figure is asked to show."""
    check_choice("statistic", statistic, CORRELATIONS)
    if results.rows.empty:
        raise NothingToDraw(f"{results.run.path} holds no result rows yet")
    for argument, value in wanted.items():
        check_choice(argument, value, results.values(argument))


def lines_for(results: Results, setup: Setup, lines: Sequence[Line]) -> list[Line]:
    """Return the lines that the panel of a setup may have."""
    is_regression = results.main_class(setup) == "f"
    return [line for line in lines if line.regression in (None, is_regression)]


def setups_with(results: Results, lines: Sequence[Line], region: str, quantity: str) -> list[Setup]:
    """Return the setups that have a row for any line; `NothingToDraw` is raised if none has."""
    setups = [s for s in results.setups if len(rows_of(results, s, lines, region, quantity))]
    if not setups:
        raise NothingToDraw(f"no {quantity} rows in region {region} at this point")
    return setups


def rows_of(
    results: Results, setup: Setup, lines: Sequence[Line], region: str, quantity: str
) -> pd.DataFrame:
    """Return all rows that a panel shows."""
    which = {"region": region, "quantity": quantity}
    shown = [
        results.select(setup, point=ln.point, estimator=ln.estimator, **which)
        for ln in lines_for(results, setup, lines)
    ]
    labels = [rows.index.to_numpy() for rows in shown]
    return results.rows.loc[np.concatenate([np.empty(0, int), *labels])]


def panel_grid(count: int) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` panels that share their y axis, at most four to a row."""
    columns = min(count, 3 if count in (5, 6, 9) else 4)
    rows = math.ceil(count / columns)
    size = ({1: 5.6, 2: 8.0}.get(columns, 10.0), 2.35 * rows + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.05)  # pyright: ignore
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for ax in grid[count:]:
        ax.remove()
    return figure, list(grid[:count])


def finish_panels(
    figure: Figure, panels: Sequence[Axes], values: Iterable[float], label: str,
    more: dict[str, Any],
) -> None:  # fmt: skip
    """Give all panels common limits, grid lines, a y label and one legend (with `more`)."""
    lowest = min([v for v in values if math.isfinite(v)], default=0.0)
    # Intervals of two or three seeds may reach to -1 and are cut; means and seeds never are.
    low = max(-1.05, math.floor(10 * min(0.0, lowest - 0.03)) / 10)
    legend: dict[str, Any] = {}
    for ax in panels:
        ax.set_ylim(low, 1.04)
        ax.yaxis.set_major_locator(MultipleLocator(0.2 if low > -0.5 else 0.5))
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            legend.setdefault(name, handle)
    figure.supylabel(label, fontsize=9)
    failed = [a for ax in panels for a in ax.lines if str(a.get_label()).startswith("_failed")]
    for artist in failed:  # what failed everywhere has no curve that would tell its colour
        if artist.get_markeredgecolor() != BAR_EDGE:
            legend.setdefault(str(artist.get_label()).removeprefix("_failed "), artist)
    legend |= more
    if failed:
        legend["hollow: failed the gate or its point's check, in no mean"] = Line2D(
            [], [], linestyle="none", marker="o", markerfacecolor="white",
            markeredgecolor="#333333", markersize=5,
        )  # fmt: skip
    legend_below(figure, legend)


def title_panels(
    panels: Sequence[Axes], results: Results, setups: Sequence[Setup], notes: Sequence[list[str]]
) -> None:
    """Write the problem over each panel, with its notes in small type below."""
    most = max(len(lines) for lines in notes)  # so that all titles stand at one height
    for ax, setup, lines in zip(panels, setups, notes, strict=True):
        name = results.label(setup)
        if results.main_class(setup) == "trace":
            name += ", trace"
        ax.set_title(name, loc="left", fontweight="bold", pad=4 + 9.5 * most)
        for place, line in enumerate(lines):
            ax.annotate(
                line, (0, 1), xycoords="axes fraction", xytext=(0, 4 + 9.5 * (most - 1 - place)),
                textcoords="offset points", fontsize=7.5, color="#444444",
            ).set_in_layout(False)  # fmt: skip


BAR_EDGE = "#222222"
"""Edge of the hollow markers on bars, whose place says which bar they belong to."""
MOST_MARKERS = 400
"""Markers of single seeds that a line has at most; more of them are a blot, and a large file."""


def thinned(points: np.ndarray) -> np.ndarray:
    """At most `MOST_MARKERS` of the rows, evenly chosen."""
    if len(points) <= MOST_MARKERS:
        return points
    return points[np.linspace(0, len(points) - 1, MOST_MARKERS).round().astype(int)]


def gate_note(rows: pd.DataFrame) -> list[str]:
    """Say how many cells failed the gate of their reference, or only a point estimate's check."""
    has_failed = rows["gate"] == "fail"
    share = has_failed.groupby([rows["width"], rows["seed"]]).mean()
    verdicts, failed = share, int((share == 1).sum())
    partly = int(share.between(0, 1, inclusive="neither").sum())
    notes = [f"{failed} of {len(verdicts)} cells failed the gate"] if failed else []
    if partly:
        notes.append(f"{partly} of {len(verdicts)} failed a point's check")
    return notes
