"""Scaling curves and the error budget show correlations with the reference, a panel per problem.

Lines and bars are means over the seeds that passed the gate of their reference, with the interval
of `isounc.studies.scaling.summary`. A seed that failed is a hollow marker of its own and in no
mean. An undefined correlation leaves a gap, and the panel says so.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator

from isounc.checks import check_choice
from isounc.runs.folder import RunFolder
from isounc.runs.style import Look, styled
from isounc.studies.scaling.figures.looks import (
    CORRELATIONS,
    LOOKS,
    PAPER_COLOR,
    POINT_LOOKS,
    POINT_WORDS,
    edge_width,
    estimator_look,
)
from isounc.studies.scaling.figures.panels import (
    BAR_EDGE,
    Line,
    check_figure,
    finish_panels,
    gate_note,
    lines_for,
    panel_grid,
    rows_of,
    setups_with,
    thinned,
    title_panels,
)
from isounc.studies.scaling.paper import UNKNOWN, paper_value
from isounc.studies.scaling.results import Results, Setup, point_of

_BUDGET = (
    *("posterior_averaged", "oracle", "oracle_within_chain", "isotropic", "link_aware"),
    *("logit_scaled", "null_aleatoric", "null_distance"),
)
"""Estimators of `error_budget`, from the first-order approximation alone to the cheap ones."""
_NULLS = {"null_aleatoric": False, "null_distance": True}
"""The null that stands beside an estimate, and whether it is one of regressions, whose p(1-p) is
constant."""
_CLASSIFICATION: dict[str, bool] = dict.fromkeys(
    ("null_aleatoric", "null_squared", "logit_scaled", "logit_scaled_level"), False
)
"""Estimators that regression makes constant, or to correlate as isotropic does."""
_LAYER_TOLERANCE = 1e-4
"""Up to this difference everywhere, `layer_scaled` equals `isotropic` (equal prior sds) and is left
out."""


def scaling_curves(
    run: RunFolder | Results,
    *,
    region: str,
    point: str,
    statistic: str = "pearson",
    quantity: str = "epistemic",
) -> Figure:
    """Draw correlations with the reference against width, a panel per problem.

    Each estimator has a line.

    Parameters
    ----------
    run
        A run folder.
    region, point
        Region where predictions are compared, and the point estimate. Estimators that need no point
        estimate (`posterior_averaged`) are always drawn.
    statistic
        `pearson`, `spearman` or `log10_pearson`.
    quantity
        `epistemic`, `aleatoric`, `aleatoric_corrected` or `total`.

    Raises
    ------
    ValueError
        If the run lacks the region, point, statistic or quantity (with near matches).
    """
    results = Results.of(run)
    check_figure(results, region=region, point=point, statistic=statistic)
    check_choice("quantity", quantity, [q for q in results.values("quantity") if q != "predictive"])
    lines = _lines(results, region, point, statistic, quantity)
    words = quantity.replace("_", " ")
    title = f"How {words} estimates {POINT_WORDS.get(point, point)} correlate with MCMC"
    return _curves(results, lines, region, statistic, quantity, f"{title} (region: {region})")


def scaling_headline(
    run: RunFolder | Results, *, region: str | None = None, statistic: str = "pearson"
) -> Figure:
    """Draw correlations of the isotropic estimate beside the null, by kind of point, against width.

    The null is p(1-p) at the same point, dotted; in regression, where that is constant, it is the
    distance to the nearest training input. A further line averages the estimate over draws. The
    default region is `test` if the run has it, else the run's first.

    Raises
    ------
    ValueError
        See `scaling_curves`.
    """
    results = Results.of(run)
    region = results.values("region")[0] if region is None and len(results.rows) else region
    check_figure(results, region=region, statistic=statistic)
    assert region is not None
    lines = [
        Line(look, point, point, "isotropic")
        for point, look in POINT_LOOKS.items()
        if point in results.values("point")
    ]
    if "posterior_averaged" in results.values("estimator"):
        look = estimator_look("posterior_averaged")._replace(label="isotropic averaged over draws")
        lines.append(Line(look, "averaged", "posterior", "posterior_averaged"))
    nulls = _null_lines(results)
    what = "The isotropic estimate beside the null" if nulls else "The isotropic estimate"
    title = f"{what}, against width (region: {region})"
    return _curves(results, lines + nulls, region, statistic, "epistemic", title)


def error_budget(
    run: RunFolder | Results, *, region: str, point: str = "map", statistic: str = "pearson"
) -> Figure:
    """Draw the cost of each approximation: bars at the smallest, the middle and the largest width.

    From `posterior_averaged` to `oracle` the model is linearised at a single point; from `oracle`
    to `isotropic` the identity replaces the covariance of the draws; `link_aware` keeps the link
    function. The null stands last. Differences need not add up.

    Raises
    ------
    ValueError
        See `scaling_curves`.
    """
    results = Results.of(run)
    check_figure(results, region=region, point=point, statistic=statistic)
    estimators = results.values("estimator")
    lines = [
        Line(estimator_look(e), e, point_of(e, point), e, (_CLASSIFICATION | _NULLS).get(e))
        for e in _BUDGET
        if e in estimators
    ]
    setups = setups_with(results, lines, region, "epistemic")
    with styled():
        figure, panels = panel_grid(len(setups))
        values, notes = [], []
        for ax, setup in zip(panels, setups, strict=True):
            drawn, note = _bars(ax, results, setup, lines, region, statistic)
            values += drawn
            notes.append(note)
        title_panels(panels, results, setups, notes)
        whisker = Line2D([], [], color="#333333", linewidth=1)
        finish_panels(
            figure, panels, values, f"{CORRELATIONS[statistic]} with MCMC variance",
            {"95% t interval over seeds": whisker},
        )  # fmt: skip
        figure.suptitle(f"Error budget {POINT_WORDS.get(point, point)} (region: {region})")
    return figure


def _lines(results: Results, region: str, point: str, statistic: str, quantity: str) -> list[Line]:
    """Make a line per estimator with rows at a point or at none, without a redundant one."""
    lines, num_spare = [], 0
    for estimator in results.shown("curves"):
        look = estimator_look(estimator, position=num_spare)
        num_spare += estimator not in LOOKS
        if (estimator, quantity) == ("isotropic", "aleatoric"):
            look = look._replace(label="p(1−p) of the point estimate")  # no gradient is in it
        for name in dict.fromkeys((point, "posterior")):
            which = {"region": region, "point": name, "quantity": quantity, "estimator": estimator}
            if any(len(results.select(setup, **which)) for setup in results.setups):
                regression = _CLASSIFICATION.get(estimator)
                lines.append(Line(look, estimator, name, estimator, regression))
    if any(line.estimator == "isotropic" for line in lines):
        lines = [
            line for line in lines
            if line.estimator != "layer_scaled"
            or _differs(results, region, line.point, statistic, quantity)
        ]  # fmt: skip
    return lines


def _differs(results: Results, region: str, point: str, statistic: str, quantity: str) -> bool:
    which = {"region": region, "point": point, "quantity": quantity}
    for setup in results.setups:
        plain, scaled = (
            results.select(setup, estimator=e, **which).set_index(["width", "seed"])[statistic]
            for e in ("isotropic", "layer_scaled")
        )
        plain = plain.reindex(scaled.index)
        if (plain.isna() != scaled.isna()).any() or (plain - scaled).abs().max() > _LAYER_TOLERANCE:
            return True
    return False


def _curves(
    results: Results, lines: Sequence[Line], region: str, statistic: str, quantity: str, title: str
) -> Figure:
    setups = setups_with(results, lines, region, quantity)
    with styled():
        figure, panels = panel_grid(len(setups))
        values: list[float] = []
        notes: list[list[str]] = []
        for ax, setup in zip(panels, setups, strict=True):
            for line in lines_for(results, setup, lines):
                values += _line(ax, results, setup, line, region, statistic, quantity)
            _width_axis(ax, results.widths(setup))
            value = paper_value(setup.problem, statistic, quantity=quantity)
            if value is not None:
                values.append(value)
                name = "GN" if quantity == "epistemic" else quantity
                ax.axhline(
                    value, color=PAPER_COLOR, linestyle=(0, (5, 3)), linewidth=1.2, zorder=1.5,
                    label=f"paper ({name}; {UNKNOWN})",
                )  # fmt: skip
            rows = rows_of(results, setup, lines, region, quantity)
            mine = lines_for(results, setup, lines)
            notes.append([*gate_note(rows), *_undefined_note(rows, mine, statistic)])
        reference = "variance" if quantity == "epistemic" else quantity.replace("_", " ")
        band = Patch(color="#555555", alpha=0.2, linewidth=0)
        dot = Line2D([], [], linestyle="none", marker=".", markersize=5, color="#555555", alpha=0.7)
        wide = ", very wide for two" if len(results.values("seed")) == 2 else ""
        title_panels(panels, results, setups, notes)
        finish_panels(
            figure, panels, values, f"{CORRELATIONS[statistic]} with MCMC {reference}",
            {f"band: 95% t interval over seeds{wide}": band, "dots: isotropic, each seed": dot},
        )  # fmt: skip
        if any(setup.parameterisation == "standard" for setup in setups):
            title += "\nstandard parameterisation: the function's prior variance grows with width"
        figure.suptitle(title)
    return figure


def _line(
    ax: Axes,
    results: Results,
    setup: Setup,
    line: Line,
    region: str,
    statistic: str,
    quantity: str,
) -> list[float]:
    """Draw a mean with its band, and a hollow marker per failed seed; return the values drawn."""
    which = {
        "region": region, "point": line.point, "estimator": line.estimator, "quantity": quantity,
    }  # fmt: skip
    color, marker = line.look.color, line.look.marker
    is_null = line.look.linestyle != "-"
    drawn: list[float] = []
    curve = results.curve(setup, **which)
    if len(curve):
        columns = ["width", *(f"{statistic}_{part}" for part in ("mean", "low", "high"))]
        x, mean, low, high = curve[columns].to_numpy(float).T
        strong = line.estimator == "isotropic"
        if not is_null:  # whose intervals are in the tables: fewer bands can be told apart
            ax.fill_between(x, low, high, color=color, alpha=0.11 if strong else 0.06, linewidth=0)
        alone = np.isfinite(low) & ~(_neighbour(low, 1) | _neighbour(low, -1))
        if alone.any() and not is_null:
            ax.vlines(x[alone], low[alone], high[alone], color=color, alpha=0.35, linewidth=1.2)
        ax.plot(
            x, mean, color=color, marker=marker, label=line.look.label,
            markeredgewidth=edge_width(marker), linestyle=line.look.linestyle,
            markersize=7 if marker == "*" else 5, zorder=4 if strong else 3,
            linewidth=2.0 if strong else 1.3,
        )  # fmt: skip
        drawn += mean.tolist()
    rows = results.select(setup, **which)
    seeds, gate = rows[["width", statistic]].to_numpy(float), rows["gate"].to_numpy()
    defined = np.isfinite(seeds[:, 1])
    passed, failed = (seeds[defined & (gate == verdict)] for verdict in ("pass", "fail"))
    if len(passed) and line.estimator == "isotropic":
        # The seeds themselves: an interval of two or three says little about where they are.
        ax.plot(
            *thinned(passed).T, linestyle="none", marker=".", markersize=4, color=color,
            alpha=0.6, markeredgewidth=0, label=f"_seeds {line.look.label}",
        )  # fmt: skip
        drawn += passed[:, 1].tolist()
    if len(failed):
        ax.plot(
            *thinned(failed).T, linestyle="none", marker=marker, markersize=5,
            markerfacecolor="white", markeredgecolor=color, markeredgewidth=0.9, zorder=2.5,
            label=f"_failed {line.look.label}",
        )  # fmt: skip
        drawn += failed[:, 1].tolist()
    return drawn


def _null_lines(results: Results) -> list[Line]:
    """Make a line of the null for each point, in the colour of the estimate beside it."""
    points = [point for point in POINT_LOOKS if point in results.values("point")]
    lines = []
    for null, regression in _NULLS.items():
        own = estimator_look(null)
        # The distance to the data is the same at every point.
        for point in points[:1] if regression else points:
            beside = POINT_LOOKS[point]
            look = Look(
                beside.label.replace("isotropic", own.label),
                beside.color,
                own.marker,
                own.linestyle,
            )
            lines.append(Line(own if regression else look, null, point, null, regression))
    return [line for line in lines if line.estimator in results.values("estimator")]


def _bars(
    ax: Axes, results: Results, setup: Setup, lines: Sequence[Line], region: str, statistic: str
) -> tuple[list[float], list[str]]:
    """Draw groups of bars at up to three widths; return the values drawn and the panel's notes."""
    drawn: list[float] = []
    widths = results.widths(setup)
    shown = sorted({widths[0], widths[len(widths) // 2], widths[-1]})
    lines = lines_for(results, setup, lines)
    step = 0.82 / len(lines)
    for place, width in enumerate(shown):
        for slot, line in enumerate(lines):
            x = place + (slot - (len(lines) - 1) / 2) * step
            which = {"region": region, "point": line.point, "estimator": line.estimator}
            row = results.at_width(setup, width, **which)
            if row is None:
                continue
            mean, low, high = (row[f"{statistic}_{part}"] for part in ("mean", "low", "high"))
            color = line.look.color
            if pd.notna(mean):
                ax.bar(x, mean, step * 0.92, color=color, label=line.look.label)
                drawn.append(mean)
            else:
                why = "undefined" if row["num_undefined"] else "gate failed"
                ax.text(
                    x, 0.03, why, rotation=90, ha="center", va="bottom", fontsize=6.5, color=color
                )
            if pd.notna(low):
                ax.errorbar(
                    x, mean, [[mean - low], [high - mean]], elinewidth=0.9, capsize=1.5,
                    ecolor="#999999" if color == "#000000" else "#333333", fmt="none", zorder=4,
                )  # fmt: skip
            rows = results.select(setup, quantity="epistemic", **which)
            rows = rows[(rows["width"] == width) & (rows["gate"] == "fail")]
            failed = rows[statistic].dropna().tolist()
            if failed:
                shown_here = thinned(np.array(failed))
                ax.plot(
                    [x] * len(shown_here), shown_here, linestyle="none", marker="o", markersize=4,
                    markerfacecolor="white", markeredgecolor=BAR_EDGE, markeredgewidth=0.9,
                    zorder=5, label=f"_failed {line.look.label}",
                )  # fmt: skip
                drawn += failed
    ax.set_xticks(range(len(shown)), [f"width {w}" for w in shown])
    ax.axhline(0, color="#333333", linewidth=0.8)
    rows = rows_of(results, setup, lines, region, "epistemic")
    return drawn, gate_note(rows[rows["width"].isin(shown)])


def _width_axis(ax: Axes, widths: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(widths))
    ax.xaxis.set_minor_locator(NullLocator())
    # More labels than this would touch.
    every = 1 if len(widths) <= 8 else 2
    ax.set_xticks(widths, [f"{w}" if i % every == 0 else "" for i, w in enumerate(widths)])
    ax.set_xlabel("width", labelpad=1)


def _undefined_note(rows: pd.DataFrame, lines: Sequence[Line], statistic: str) -> list[str]:
    """Say which correlations are undefined in cells that passed."""
    undefined = rows[(rows["gate"] == "pass") & rows[statistic].isna()]
    cells = collections.Counter(zip(undefined["estimator"], undefined["point"], strict=True))
    counts = {ln.short: n for ln in lines if (n := cells[ln.estimator, ln.point])}
    if not counts:
        return []
    name, most = max(counts.items(), key=lambda item: item[1])
    more = f" (and {len(counts) - 1} more)" if len(counts) > 1 else ""
    return [f"undefined in {most} cells: {name}{more}"]


def _neighbour(values: np.ndarray, shift: int) -> np.ndarray:
    """Tell for each value whether the one before it (shift 1) or after it (-1) is finite."""
    padded = np.concatenate([[math.nan], values, [math.nan]])
    return np.isfinite(np.roll(padded, shift)[1:-1])
