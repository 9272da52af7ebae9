"""Figures of protocols: verdicts at a glance, and correlations against size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from isounc.runs.style import NothingToDraw, legend_below, styled
from isounc.statistics import interval_over_seeds
from isounc.studies.scaling.figures.looks import (
    PAPER_COLOR,
    POINT_WORDS,
    edge_width,
    estimator_look,
)
from isounc.studies.scaling.figures.panels import finish_panels, panel_grid
from isounc.studies.scaling.paper import UNKNOWN, paper_value
from isounc.studies.scaling.protocols import PROTOCOLS, cells_of
from isounc.studies.scaling.settings import Settings
from isounc.studies.scaling.verdicts import (
    ESTIMATORS,
    ByCell,
    Row,
    compared,
    groups,
    select,
    setting,
    size,
)

if TYPE_CHECKING:
    import pandas

AXES = {
    "width": "hidden units per layer", "depth": "hidden layers", "params": "number of parameters",
}  # fmt: skip
"""Names of the axes of size."""
_SIGNS = {"improves": "▲", "gets worse": "▼", "undecided": "○", "undefined": "–", "not run": "×"}
_MOST_SLOPE = 0.1
"""Slope of the strongest colour."""


def verdict_figure(verdicts: Sequence[Row]) -> Figure:
    """Draw the verdicts: a row for each protocol, setting and point, a column for each problem.

    Colours are slopes, signs are verdicts; a panel each for the isotropic estimate, the null and
    the logit-scaled estimate.

    Raises
    ------
    NothingToDraw
        If there are none.
    """
    if not verdicts:
        raise NothingToDraw("there are no verdicts")
    problems = list(dict.fromkeys(row["problem"] for row in verdicts))
    lines = list(dict.fromkeys(_line(row) for row in verdicts))
    with styled():
        height = 1.6 + 0.19 * len(lines)
        width = 3.0 + len(ESTIMATORS) * max(1.6, 0.42 * len(problems))
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(1, len(ESTIMATORS), sharey=True, squeeze=False)[0]
        image = None
        for ax, estimator in zip(panels, ESTIMATORS, strict=True):
            slopes = np.full((len(lines), len(problems)), np.nan)
            for row in verdicts:
                if row["estimator"] != estimator:
                    continue
                place = lines.index(_line(row)), problems.index(row["problem"])
                slope = math.nan if row["slope_mean"] is None else row["slope_mean"]
                slopes[place] = slope
                is_dark = abs(slope) > 0.7 * _MOST_SLOPE
                ax.text(
                    place[1], place[0], _SIGNS[row["verdict"]], ha="center", va="center",
                    fontsize=8, color="white" if is_dark else "#222222",
                )  # fmt: skip
            image = ax.imshow(
                slopes, cmap="RdBu", vmin=-_MOST_SLOPE, vmax=_MOST_SLOPE, aspect="auto"
            )
            ax.set_facecolor("#eeeeee")
            ax.set_title(estimator_look(estimator).label, loc="left")
            ax.set_xticks(range(len(problems)), problems, rotation=60, ha="right")
            ax.set_yticks(range(len(lines)), lines)
            ax.tick_params(length=0)
            for spine in ax.spines.values():
                spine.set_visible(False)
        assert image is not None
        bar = figure.colorbar(image, ax=list(panels), shrink=0.6, pad=0.01, extend="both")
        bar.set_label("slope per doubling", fontsize=8)
        signs = {
            f"{sign} {words}": Line2D([], [], linestyle="none") for words, sign in _SIGNS.items()
        }
        legend_below(figure, signs, handlelength=0, handletextpad=0)
        figure.suptitle(
            "Does Pearson's r with MCMC improve with size? Slopes, and verdicts by 95% intervals"
        )
    return figure


def _line(row: Row) -> str:
    return ", ".join(filter(None, (row["protocol"], row["setting"], row["point"])))


def size_figure(of_cell: ByCell, settings: Settings, name: str, point: str) -> Figure:
    """Draw correlations against the size of a protocol, a panel for each problem and setting.

    Parameters
    ----------
    of_cell
        Result rows of every class.
    settings
        Settings of the run.
    name
        Name of the protocol.
    point
        One of its kinds of theta*.

    Raises
    ------
    NothingToDraw
        If no cell of it has a correlation there.
    """
    protocol = PROTOCOLS[name]
    planned = cells_of(name, settings)
    region = protocol.regions[0]
    panels_of: dict[str, dict[str, list[tuple[int, pandas.DataFrame]]]] = {}
    problems: dict[str, str] = {}
    for group in groups(planned, protocol).values():
        title = ", ".join(
            filter(None, (group[0].problem, setting(group[0], planned, settings, protocol)))
        )
        for estimator in ESTIMATORS:
            which = {"point": point, "region": region, "estimator": estimator}
            found = [(c, select(of_cell, c, settings, protocol, which)) for c in group]
            there = [
                (size(c, f, protocol.axis), f)
                for c, f in found
                if f is not None and f["pearson"].notna().any()
            ]
            if there:
                panels_of.setdefault(title, {})[estimator] = sorted(there, key=lambda pair: pair[0])
                problems[title] = group[0].problem
    if not panels_of:
        raise NothingToDraw(f"no cell of the protocol {name} has a correlation {point}")
    with styled():
        figure, panels = panel_grid(len(panels_of))
        values: list[float] = []
        for ax, (title, curves) in zip(panels, panels_of.items(), strict=True):
            for estimator, there in curves.items():
                values += _curve(ax, estimator, there)
            sizes = sorted({s for there in curves.values() for s, _ in there})
            _size_axis(ax, sizes)
            ax.set_xlabel(AXES[protocol.axis])
            value = paper_value(problems[title], "pearson")
            if value is not None:
                values.append(value)
                ax.axhline(
                    value, color=PAPER_COLOR, linestyle=(0, (5, 3)), linewidth=1.2, zorder=1.5,
                    label=f"paper (GN; {UNKNOWN})",
                )  # fmt: skip
            of_first = [f for _, f in next(iter(curves.values()))]
            failed = sum(int((f["gate"] == "fail").sum()) for f in of_first)
            ax.set_title(title, loc="left", fontweight="bold", pad=14)
            if failed:
                total = sum(map(len, of_first))
                ax.annotate(
                    f"{failed} of {total} cells failed", (0, 1), xycoords="axes fraction",
                    xytext=(0, 4), textcoords="offset points", fontsize=7.5, color="#444444",
                ).set_in_layout(False)  # fmt: skip
        finish_panels(figure, panels, values, "Pearson's r with the reference", {})
        figure.suptitle(
            f"Protocol {name}, {POINT_WORDS.get(point, point)} (region {region}; "
            f"{compared(protocol)})"
        )
    return figure


def _curve(ax: Axes, estimator: str, there: Sequence[tuple[int, pandas.DataFrame]]) -> list[float]:
    """Draw means with intervals of the seeds that passed, and the others hollow."""
    look = estimator_look(estimator)
    drawn: list[float] = []
    means = []
    for at, found in there:
        passed = found.loc[found["gate"] == "pass", "pearson"].dropna()
        mean = interval_over_seeds(passed.to_numpy(float))
        if mean.mean is not None:
            means.append((at, mean.mean, _or_nan(mean.low), _or_nan(mean.high)))
        failed = found.loc[found["gate"] == "fail", "pearson"].dropna().tolist()
        if failed and look.linestyle == "-":  # the cross of a null is never hollow
            ax.plot(
                [at] * len(failed), failed, linestyle="none", marker=look.marker, markersize=5,
                markerfacecolor="white", markeredgecolor=look.color, markeredgewidth=0.9,
                zorder=2.5, label=f"_failed {look.label}",
            )  # fmt: skip
            drawn += failed
    if means:
        x, mean, low, high = np.array(means).T
        if look.linestyle == "-":
            ax.fill_between(x, low, high, color=look.color, alpha=0.12, linewidth=0)
        ax.plot(
            x, mean, color=look.color, marker=look.marker, linestyle=look.linestyle,
            label=look.label, markeredgewidth=edge_width(look.marker),
            zorder=4 if estimator == ESTIMATORS[0] else 3,
        )  # fmt: skip
        drawn += mean.tolist()
    return drawn


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _size_axis(ax: Axes, sizes: Sequence[int]) -> None:
    """Sizes on a scale of doublings, at most six of them with a number."""
    ax.set_xscale("log", base=2)
    if len(sizes) > 6:
        sizes = [sizes[i] for i in np.linspace(0, len(sizes) - 1, 6).round().astype(int)]
    ax.xaxis.set_major_locator(FixedLocator(list(sizes)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.xaxis.set_minor_locator(NullLocator())
