"""Quality against cost: a column of panels a region, passes above and measured seconds below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from isounc.runs.style import Look, NothingToDraw, legend_below, styled
from isounc.studies.passes.estimates import ESTIMATES
from isounc.studies.passes.settings import ALL, KINDS
from isounc.studies.passes.tables import Row

_STYLES = {
    "mean_norm": ("#0072B2", "o", "-"),
    "mean_logit_scaled": ("#009E73", "s", "-"),
    "variance": ("#D55E00", "^", "-"),
    "label_variance": ("#8C8C8C", ".", ":"),
    "combined": ("#AA4499", "d", "--"),
}
LOOKS = {name: Look(ESTIMATES[name].label, *style) for name, style in _STYLES.items()}
"""Looks of the estimates."""
_CROSSING = "#444444"


def quality_figure(
    summary: Sequence[Row], crossings: Sequence[Row], *, kind: str, problem: str = ALL
) -> Figure:
    """Draw Pearson's r with the MCMC variance against passes, and against seconds.

    Bands are intervals over seeds. Titles say at which K the variance of p overtakes the mean
    gradient norm of as many networks, and of as many passes, where a vertical line is.

    Parameters
    ----------
    summary, crossings
        Rows of the tables of a run.
    kind
        Kind of networks.
    problem
        A problem, or `all`.

    Raises
    ------
    NothingToDraw
        If no seed passed.
    """
    rows = [row for row in summary if (row["problem"], row["kind"]) == (problem, kind)]
    if all(row["pearson_mean"] is None for row in rows):
        raise NothingToDraw(f"no seed of {problem} passed with {KINDS[kind]}")
    regions = list(dict.fromkeys(row["region"] for row in rows))
    with styled():
        figure = Figure(figsize=(1.2 + 2.5 * len(regions), 6.0), layout="constrained")
        figure.suptitle(_title(rows, kind, problem), x=0.01, ha="left")
        axes = figure.subplots(2, len(regions), sharey=True, squeeze=False)
        for column, region in zip(axes.T, regions, strict=True):
            here = [row for row in rows if row["region"] == region]
            _draw(column[0], here, "passes")
            _draw(column[1], here, "seconds")
            same, equal = (
                _crossing(crossings, problem, kind, region, terms)
                for terms in ("same K", "same passes")
            )
            column[0].set_title(f"{region}\n{_overtaken(same, equal)}", loc="left")
            if equal:
                column[0].axvline(equal, color=_CROSSING, linewidth=0.8, linestyle="-.")
        for ax in axes[0]:
            ax.set_xlabel("passes, forward + backward")
        for ax in axes[1]:
            ax.set_xlabel("seconds for 1000 locations")
        for ax in axes[:, 0]:
            ax.set_ylabel("Pearson's r with MCMC variance")
        legend: dict[str, Any] = {
            look.label: Line2D([], [], color=look.color, marker=look.marker, ls=look.linestyle)
            for look in LOOKS.values()
        }
        legend["variance of p overtakes mean ‖∇p‖² of as many passes"] = Line2D(
            [], [], color=_CROSSING, linewidth=0.8, linestyle="-."
        )
        legend_below(figure, legend)
    return figure


def _title(rows: Sequence[Row], kind: str, problem: str) -> str:
    seeds = max(row["num_seeds"] for row in rows)
    failed = max(row["num_failed_gate"] for row in rows)
    scope = "mean of the problems" if problem == ALL else problem
    words = f"What K {KINDS[kind]} buy ({scope}, {seeds} seeds)"
    if failed:
        words += f"; {failed} cell{'s' * (failed > 1)} failed and {'are' if failed > 1 else 'is'} left out"
    return words


def _overtaken(same: int | None, equal: int | None) -> str:
    if not same and not equal:
        return "variance does not overtake ‖∇p‖²"
    words = "variance overtakes ‖∇p‖² at K = "
    return f"{words}{same or '–'}\n(of as many passes: at K = {equal or '–'})"


def _crossing(
    crossings: Sequence[Row], problem: str, kind: str, region: str, terms: str
) -> int | None:
    """K of the variance, and its passes, which are forward ones alone."""
    where = (problem, kind, region, "pearson", "variance", "mean_norm", terms)
    names = ("problem", "kind", "region", "statistic", "estimate", "rival", "terms")
    found = (row for row in crossings if tuple(row[name] for name in names) == where)
    return next(found, {"crossing": None})["crossing"]


def _draw(ax: Axes, rows: Sequence[Row], cost: str) -> None:
    ticks = set()
    for name, look in LOOKS.items():
        line = [r for r in rows if r["estimate"] == name and r["pearson_mean"] is not None]
        line.sort(key=lambda row: row["count"])
        x = [row[cost] for row in line]
        ticks |= set(x)
        ax.plot(
            x, [row["pearson_mean"] for row in line], color=look.color, marker=look.marker,
            linestyle=look.linestyle,
        )  # fmt: skip
        known = [row for row in line if row["pearson_low"] is not None]
        ax.fill_between(
            [row[cost] for row in known], [row["pearson_low"] for row in known],
            [row["pearson_high"] for row in known], color=look.color, alpha=0.10, linewidth=0,
        )  # fmt: skip
    if not ticks:  # a log axis needs a value
        ax.text(0.5, 0.5, "no seed passed", ha="center", transform=ax.transAxes)
        ax.set_xticks([])
        return
    ax.set_xscale("log", base=2 if cost == "passes" else 10)
    if cost == "passes":
        shown = sorted(ticks)
        powers = [x for x in shown if math.log2(x).is_integer()] or shown
        ax.xaxis.set_major_locator(FixedLocator(powers))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
