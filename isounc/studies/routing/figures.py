"""Figures: gains of the scores, and what certified cascades cost."""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.figure import Figure

from isounc.runs.panels import IntervalEnds, interval_panels
from isounc.runs.style import Look, NothingToDraw, legend_below, styled
from isounc.studies.routing.cell import SCORES
from isounc.studies.routing.tables import Results

_LOOK = {"gain": Look("gain", "#0072B2", "o")}
LOOKS = {
    "p": Look(SCORES["p"], "#000000", "s", ":"),
    "isotropic": Look(SCORES["isotropic"], "#0072B2", "o"),
    "logit_scaled": Look(SCORES["logit_scaled"], "#D55E00", "^"),
    "moderated": Look(SCORES["moderated"], "#117733", "D"),
    "router": Look(SCORES["router"], "#8C8C8C", "v", "--"),
}
"""Scores whose curves are drawn."""


def gains(results: Results) -> Figure:
    """Draw the gain of every score at every place.

    Raises
    ------
    NothingToDraw
        If no gain has two seeds.
    """
    rows = [(width, name) for width in results.widths for name in results.scores]

    def at(i: int, region: str, name: str) -> IntervalEnds:
        width, score = rows[i]
        interval = results.over((region, width), score, "gain").interval
        return interval.mean, interval.low, interval.high

    figure, axes = interval_panels(
        "Gain of passing on by a score: 0 at random, 1 an oracle",
        [f"{SCORES[score]}, cheap width {width}" for width, score in rows],
        [str(width) for width, _ in rows], results.problems, _LOOK, at,
    )  # fmt: skip
    for ax in axes:
        ax.axvline(0, color="#555555", linewidth=0.8)
        ax.set_xlabel("gain")
    return figure


def costs(results: Results) -> Figure:
    """Draw the cost of certified cascades against their target, a panel for each place.

    Raises
    ------
    NothingToDraw
        If no cascade keeps any target.
    """
    with styled():
        problems, widths = results.problems, results.widths
        size = (1.0 + 2.6 * len(widths), 0.8 + 2.3 * len(problems))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(
            len(problems), len(widths), sharex=True, sharey=True, squeeze=False
        )
        drawn: dict[str, object] = {}
        for ax, place in zip(panels.flat, itertools.product(problems, widths), strict=True):
            for shift, (name, look) in enumerate(LOOKS.items()):
                for i, target in enumerate(results.targets):
                    interval = results.over(place, name, "cost_share", target=target).interval
                    if interval.mean is None:
                        continue
                    x = i + 0.12 * (shift - 2)
                    if interval.low is not None and interval.high is not None:
                        ax.plot([x, x], [interval.low, interval.high], color=look.color, lw=1)
                    drawn[look.label] = ax.plot(
                        [x], [interval.mean], look.marker, color=look.color, ms=5
                    )[0]
            ax.axhline(1, color="#555555", lw=0.8)
            ax.set_xticks(np.arange(len(results.targets)), [f"{t:g}" for t in results.targets])
            ax.set_title(f"{place[0]}, cheap width {place[1]}", loc="left")
        if not drawn:
            raise NothingToDraw("no cascade keeps any target")
        for ax in panels[-1]:
            ax.set_xlabel("target risk")
        for ax in panels[:, 0]:
            ax.set_ylabel("cost / always expensive")
        panels[0, 0].set_ylim(0, None)
        legend_below(figure, drawn)
    return figure
