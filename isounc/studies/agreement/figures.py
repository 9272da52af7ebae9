"""The figure of the agreement study shows the z-scores of every posterior, region by region."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import stats

from isounc.runs.style import legend_below, region_look, styled
from isounc.studies.agreement.tables import TOTALS, Rows

Z_SHOWN = 8.0
"""Larger z-scores are drawn at the edge, as arrows."""
BAND = "#EDEDED"


def z_figure(rows: Rows, *, title: str, level: float) -> Figure:
    """Draw a line for each cell with the z-scores of its regions.

    Levels are on the left, summed variances on the right.
    """
    cells = list(dict.fromkeys((r["problem"], r["width"]) for r in rows))
    problems = list(dict.fromkeys(problem for problem, _ in cells))
    # The first problem is at the top, and gaps separate problems.
    heights = {cell: -i - 0.8 * problems.index(cell[0]) for i, cell in enumerate(cells)}
    names = list(dict.fromkeys(r["region"] for r in rows))
    looks = {name: region_look(name, position=i) for i, name in enumerate(names)}
    num_compared = len(TOTALS) * sum(r["compared"] for r in rows)
    # Half the level for single z-scores, two-sided.
    bound = float(stats.norm.isf(level / 4 / max(num_compared, 1)))
    with styled():
        height = 0.19 * (len(cells) + 0.8 * len(problems)) + 1.7
        figure = Figure(figsize=(7.6, height), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left")
        figure.get_layout_engine().set(wspace=0.06)  # pyright: ignore
        axes = figure.subplots(1, 2, sharey=True)
        for ax, total in zip(axes, TOTALS, strict=True):
            ax.axvspan(-bound, bound, color=BAND, linewidth=0)
            ax.axvline(0, color="#777777", linewidth=0.7)
            for r in rows:
                look, z = looks[r["region"]], r[f"{total}_z"]
                y = heights[r["problem"], r["width"]] + 0.22 * (1 - names.index(r["region"]))
                face = look.color if r["compared"] else "white"
                beyond = abs(z) > Z_SHOWN
                marker = (">" if z > 0 else "<") if beyond else _marker(look.marker)
                ax.plot(
                    math.copysign(min(abs(z), Z_SHOWN), z), y, marker, color=look.color,
                    markerfacecolor=face, markersize=4.5, markeredgewidth=1, clip_on=False,
                )  # fmt: skip
            ax.set_xlim(-Z_SHOWN, Z_SHOWN)
            ax.set_xticks([-8, -4, 0, 4, 8])
            ax.set_xlabel("z-score: (isounc − NumPyro) / joint s.e.")
            ax.set_ylim(min(heights.values()) - 0.8, 0.8)
        axes[0].set_title("level: mean prediction of a region", loc="left")
        axes[1].set_title("sum of the predictive variances", loc="left")
        ticks = [_tick(cell, cells) for cell in cells]
        axes[0].set_yticks(list(heights.values()), ticks, fontsize=7.5)
        axes[1].tick_params(axis="y", length=0)
        blank: dict[str, Any] = {"linestyle": "none", "color": "#444444"}
        legend: dict[str, Any] = {
            name: Line2D(
                [], [], linestyle="none", marker=_marker(look.marker), color=look.color,
                markersize=5,
            )
            for name, look in looks.items()
        }  # fmt: skip
        if any(not r["compared"] for r in rows):
            hollow = Line2D([], [], marker="o", markerfacecolor="white", **blank)
            legend["hollow: a gate failed, not compared"] = hollow
        if any(abs(r[f"{total}_z"]) > Z_SHOWN for r in rows for total in TOTALS):
            legend[f"beyond ±{Z_SHOWN:g}"] = Line2D([], [], marker=">", **blank)
        legend["outside, a single z-score decides against agreement"] = Patch(facecolor=BAND)
        legend_below(figure, legend)
    return figure


def _marker(marker: str) -> str:
    return "s" if marker == "." else marker


def _tick(cell: tuple[str, int], cells: Sequence[tuple[str, int]]) -> str:
    """Name problem and width on the first line of a problem, the width alone on the others."""
    first = next(c for c in cells if c[0] == cell[0])
    return f"{cell[0]}   width {cell[1]}" if cell == first else str(cell[1])
