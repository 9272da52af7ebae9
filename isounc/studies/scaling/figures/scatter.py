"""Scatter plots show the estimates of one cell against their reference, on log axes.

Classes are summed (the trace). The level of an estimate is fitted on region `test`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from isounc.estimates.estimators import estimator_names
from isounc.runs.folder import RunFolder
from isounc.runs.style import NothingToDraw, legend_below, region_look, styled
from isounc.statistics import compare
from isounc.studies.scaling.figures.looks import estimator_look
from isounc.studies.scaling.figures.maps import cell_heading, cell_record, reference_variance
from isounc.studies.scaling.results import REGIONS, Results, ordered

_MAX_DECADES = 6
"""Axes of `scatter` reach this far below the largest value; saturated predictions give 1e-38."""


def scatter(run: RunFolder | Results, cell_name: str, *, point: str = "map") -> Figure:
    """Draw estimates against the MCMC variance: a panel per estimator, a colour per region.

    Faint bars are one Monte Carlo standard error of the reference (for C classes the sum of theirs,
    which bounds it). The dashed line is the level fitted on region `test`, reference = sigma^2 x
    estimate. Values that are not positive, or far below the others, are counted and not shown; the
    correlations in the titles are over all values.

    Raises
    ------
    ValueError
        If there is no such cell (it names near matches), or the cell has no estimates at the point.
    """
    results, record = cell_record(run, cell_name)
    arrays = record.arrays
    keys = [key.split("/") for key in arrays if "/epistemic/" in key]
    wanted = [key for key in keys if len(key) == 4 and key[1] in (point, "posterior")]
    estimators = list(dict.fromkeys((key[3], key[1]) for key in wanted))
    names = ordered(dict.fromkeys(name for name, _ in estimators), estimator_names())
    estimators.sort(key=lambda pair: names.index(pair[0]))
    regions = ordered(dict.fromkeys(key[0] for key in wanted), REGIONS)
    regions = [region for region in regions if f"{region}/mcmc_var" in arrays]
    if not estimators or not regions:
        raise NothingToDraw(f"cell {cell_name} has no estimates at point {point!r}")
    columns = min(3, len(estimators))
    rows = math.ceil(len(estimators) / columns)
    with styled():
        figure = Figure(
            figsize=({1: 5.0, 2: 7.2}.get(columns, 10.0), 2.75 * rows + 0.9), layout="constrained"
        )
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for ax in panels.ravel()[len(estimators) :]:
            ax.remove()
        for ax, (estimator, of_point) in zip(panels.ravel(), estimators, strict=False):
            _scatter_panel(ax, arrays, regions, estimator, of_point)
        limits = _log_limits([reference_variance(arrays, region) for region in regions])
        for ax in panels.ravel()[: len(estimators)]:
            if limits is not None:
                ax.set_ylim(*limits)
            _plain_log_axis(ax)
            ax.set_xlabel("estimate")
        handles: dict[str, object] = {}
        for ax in panels.ravel()[: len(estimators)]:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        legend_below(figure, handles, markerscale=1.5)
        figure.supylabel("MCMC predictive variance", fontsize=9)
        figure.suptitle(cell_heading(results, record, point))
    return figure


def _scatter_panel(
    ax: Axes, arrays: Mapping[str, np.ndarray], regions: list[str], estimator: str, point: str
) -> None:
    correlations, hidden, shown = [], 0, []
    level = None
    pairs = {}
    for region in regions:
        key = f"{region}/{point}/epistemic/{estimator}"
        if key in arrays:
            pairs[region] = (arrays[key].sum(axis=1), reference_variance(arrays, region))
    limits = _log_limits([estimate for estimate, _ in pairs.values()])
    y_limits = _log_limits([reference_variance(arrays, region) for region in regions])
    for spare, region in enumerate(regions):
        if region not in pairs:
            continue
        estimate, reference = pairs[region]
        fit = compare(estimate, reference)
        value = "undef." if fit.pearson is None else f"{fit.pearson:.2f}"
        correlations.append(f"{region} {value}")
        if region == "test" or level is None:
            level = fit.slope
        if limits is None or y_limits is None:
            continue
        visible = (estimate >= limits[0]) & (reference >= y_limits[0])
        hidden += int((~visible).sum())
        look = region_look(region, position=spare)
        order = 2 if region == "grid" else 3  # the most points, so under the others
        se = arrays.get(f"{region}/mcmc_var_se")
        if se is not None:
            # Errors of classes are positively correlated: their sum is the safe side.
            se = np.nan_to_num(se.sum(axis=1))[visible]
            middle = reference[visible]
            ends = np.stack(
                [np.maximum(middle - se, 1e-3 * middle), middle + se, np.full(len(se), np.nan)]
            )
            # One broken line for all bars: a collection of lines takes longer than all the rest.
            ax.plot(
                np.repeat(estimate[visible], 3), ends.T.ravel(), color=look.color, alpha=0.25,
                linewidth=0.6, zorder=order - 1, rasterized=True, label=f"_error {region}",
            )  # fmt: skip
        ax.plot(
            estimate[visible], reference[visible], linestyle="none", marker=look.marker,
            markersize=3.2, color=look.color, markeredgewidth=0, alpha=0.6, zorder=order,
            label=f"region {region}", rasterized=True,
        )  # fmt: skip
        shown.append(region)
    if limits is None or not shown:
        ax.text(0.5, 0.5, "no positive values", ha="center", transform=ax.transAxes)
    else:
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(*limits)
        if level is not None:
            line = np.array(limits)
            ax.plot(
                line, level * line, "--", color="#333333", linewidth=1, zorder=4,
                label="reference = σ² × estimate, σ² from region test"
                if "test" in pairs else "reference = σ² × estimate",
            )  # fmt: skip
    title = estimator_look(estimator).label
    if level is not None:
        title += f", σ² = {level:.2g}"
    notes = ["r: " + ", ".join(correlations)]
    if hidden:
        notes.append(f"{hidden} not shown")
    ax.set_title(title, loc="left", fontweight="bold", pad=13)
    ax.annotate(
        "; ".join(notes), (0, 1), xycoords="axes fraction", xytext=(0, 3),
        textcoords="offset points", fontsize=7.5, color="#444444",
    ).set_in_layout(False)  # fmt: skip


def _plain_log_axis(ax: Axes) -> None:
    """Label a log axis as 0.02 or 1e-5; mathematical text would take longer than all the rest."""
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        if axis.get_scale() != "log":
            continue
        decades = math.log10(high / low)
        steps = (1, 2, 5) if decades < 1.6 else (1, 3) if decades < 3 else (1,)
        axis.set_major_locator(LogLocator(subs=steps, numticks=6))
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())


def _short(value: float) -> str:
    if 1e-3 < value < 1e4:
        return f"{value:g}"
    digits, exponent = f"{value:.0e}".split("e")
    return f"{digits}e{int(exponent)}"


def _log_limits(values: list[np.ndarray]) -> tuple[float, float] | None:
    """Return limits of a log axis that hold all positive values, within `_MAX_DECADES`."""
    every = np.concatenate([v.ravel() for v in values]) if values else np.empty(0)
    positive = every[np.isfinite(every) & (every > 0)]
    if not len(positive):
        return None
    high = float(positive.max())
    low = max(float(positive.min()), high * 10.0**-_MAX_DECADES)
    # A decade at least, for the sake of the tick labels.
    margin = max(1.5, math.sqrt(10 * low / high))
    return low / margin, high * margin
