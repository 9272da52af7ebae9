"""Panels of intervals: a row for each condition or problem, a panel for each region."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from isounc.runs.style import Look, NothingToDraw, styled

IntervalEnds = tuple[float | None, float | None, float | None]
"""A mean with the ends of its interval; None where there is none."""
_HEIGHT = 0.36
"""Inches of a row."""


def interval_panels(
    title: str,
    labels: Sequence[str],
    groups: Sequence[str],
    regions: Sequence[str],
    looks: Mapping[str, Look],
    at: Callable[[int, str, str], IntervalEnds],
) -> tuple[Figure, list[Axes]]:
    """Draw panels of intervals, with a line between rows of different groups.

    Parameters
    ----------
    labels, groups
        A label and a group for each row.
    regions
        A panel for each.
    looks
        What is drawn in each row, one below the other.
    at
        The interval of a row, a region and a key of `looks`.

    Raises
    ------
    NothingToDraw
        If there is no interval at all.
    """
    known = [at(i, r, name)[0] for i in range(len(labels)) for r in regions for name in looks]
    if all(mean is None for mean in known):
        raise NothingToDraw("no place has two seeds that passed")
    with styled():
        height = 1.4 + _HEIGHT * len(labels)
        figure = Figure(figsize=(3.0 + 2.7 * len(regions), height), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left")
        axes = figure.subplots(1, len(regions), sharex=True, sharey=True, squeeze=False)[0]
        offsets = np.linspace(-0.3, 0.3, len(looks)) if len(looks) > 1 else np.zeros(1)
        for ax, region in zip(axes, regions, strict=True):
            ax.set_title(region, loc="left")
            for (name, look), offset in zip(looks.items(), offsets, strict=True):
                for i in range(len(labels)):
                    _draw(ax, at(i, region, name), i + offset, look)
            for i in range(1, len(labels)):
                if groups[i] != groups[i - 1]:
                    ax.axhline(i - 0.5, color="#BBBBBB", linewidth=0.6)
            ax.grid(axis="x", color="#DDDDDD", linewidth=0.5)
            ax.set_axisbelow(True)
        axes[0].set_yticks(range(len(labels)), labels)
        axes[0].set_ylim(len(labels) - 0.5, -0.5)
    return figure, list(axes)


def _draw(ax: Axes, interval: IntervalEnds, y: float, look: Look) -> None:
    mean, low, high = interval
    if mean is None:
        return
    face = "white"
    if low is not None and high is not None:
        ax.plot([low, high], [y, y], color=look.color, linewidth=1.2)
        face = look.color
    ax.plot(
        [mean], [y], marker=look.marker, color=look.color, markerfacecolor=face, markersize=4.5,
        linestyle="none",
    )  # fmt: skip


def handles(looks: Mapping[str, Look]) -> dict[str, Line2D]:
    """The entries of a legend."""
    return {
        look.label: Line2D([], [], color=look.color, marker=look.marker, linewidth=1.2)
        for look in looks.values()
    }
