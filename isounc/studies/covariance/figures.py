"""Figures: correlations by proxy and by width, lambda, slopes, and maps of the error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from isounc.runs.folder import Record
from isounc.runs.panels import IntervalEnds, handles, interval_panels
from isounc.runs.style import Look, NothingToDraw, legend_below, styled
from isounc.studies.covariance.cell import PRIOR
from isounc.studies.covariance.proxies import PROXIES, SAME
from isounc.studies.covariance.settings import ALL, POINTS
from isounc.studies.covariance.tables import OTHERS, Key, Place, Results

FORM_LOOKS = {
    "full": Look("full", "#D55E00", "o"),
    "low_rank": Look("low rank", "#E69F00", "v"),
    "block_diagonal": Look("block-diagonal by layer", "#AA4499", "d"),
    "kfac": Look("KFAC", "#882255", "P"),
    "last_layer": Look("last layer", "#999933", ">"),
    "diagonal": Look("diagonal", "#0072B2", "^"),
    "isotropic": Look("isotropic, ‖∇p‖²", "#009E73", "s"),
}
"""Looks of the forms."""
_TRAIN, _FRESH = Look("full, training inputs", "#000000", "o"), Look("full, fresh", "#8C8C8C", "o")
WIDTH_LOOKS = {
    ("full", "train"): _TRAIN,
    ("full", "fresh"): _FRESH,
    ("full", OTHERS): Look("full, other data", "#D55E00", "v"),
    ("diagonal", "train"): Look("diagonal, training inputs", "#56B4E9", "^", "--"),
    ("diagonal", OTHERS): Look("diagonal, other data", "#0072B2", "^"),
    ("isotropic", "train"): FORM_LOOKS["isotropic"],
}
"""Form and proxy of the curves against width, with their looks."""
LAM_LOOKS = {
    "train": _TRAIN,
    "fresh": _FRESH,
    "shifted_2": Look("full, shifted by 2 sd", "#0072B2", "v"),
    "shifted_4": Look("full, shifted by 4 sd", "#56B4E9", "^"),
    "tight": Look("full, tight noise", "#D55E00", "d"),
    "box": Look("full, uniform in the box", "#AA4499", ">"),
}
"""Proxies of the curves against lambda."""
NAMES = {"pearson": "Pearson's r", "spearman": "Spearman's rank correlation"}
"""Correlations as titles and captions call them."""
MOST_OCTAVES = 4.0
"""Where the colours of a map end, in factors of two."""
_MAPS = (("train", "full"), ("shifted_4", "full"), ("tight", "full"), ("train", "isotropic"))


def proxy_name(proxy: str) -> str:
    """A proxy as figures and tables call it."""
    return "other data (mean)" if proxy == OTHERS else PROXIES[proxy].label


def by_proxy(results: Results, width: int, point: str, statistic: str = "pearson") -> Figure:
    """Draw a correlation with the MCMC variance by proxy, for every form, over the problems.

    Raises
    ------
    NothingToDraw
        If no correlation has an interval over the problems.
    """
    regions = [region for region in results.regions if region != ALL]
    proxies = [*results.proxies, OTHERS]
    looks = {form: FORM_LOOKS[form] for form in results.forms}

    def at(i: int, region: str, form: str) -> IntervalEnds:
        key = Key(point, proxies[i], form, PRIOR)
        found = results.mean_over(Place(width, point, region), key, statistic, ALL).interval
        return found.mean, found.low, found.high

    title = f"{NAMES[statistic]} of gᵀΣg with the MCMC variance, width {width}, at {POINTS[point]}"
    groups = [str(proxy in SAME) + str(proxy == OTHERS) for proxy in proxies]
    labels = [proxy_name(proxy) for proxy in proxies]
    figure, axes = interval_panels(title, labels, groups, regions, looks, at)
    for ax in axes:
        ax.set_xlabel(NAMES[statistic])
        _within(ax.set_xlim, ax.get_xlim())
    with styled():
        legend_below(figure, handles(looks))
    return figure


def by_width(results: Results, point: str, statistic: str = "pearson") -> Figure:
    """Draw a correlation with the MCMC variance against width, over the problems.

    Raises
    ------
    NothingToDraw
        If there are fewer than two widths.
    """
    if len(results.widths) < 2:
        raise NothingToDraw("the run has one width")
    curves = {}
    for region in [region for region in results.regions if region != ALL]:
        curves[region] = {
            look: [
                _ends(results, Place(width, point, region), Key(point, proxy, form, PRIOR), statistic)
                for width in results.widths
            ]
            for (form, proxy), look in WIDTH_LOOKS.items()
        }  # fmt: skip
    title = f"{NAMES[statistic]} of gᵀΣg with the MCMC variance, at {POINTS[point]}"
    return _curves(title, "width", results.widths, curves, statistic)


def by_lam(results: Results, width: int, point: str, statistic: str = "pearson") -> Figure:
    """Draw a correlation of the full form against lambda, over the problems.

    Raises
    ------
    NothingToDraw
        If lambda has one value.
    """
    if len(results.lams) < 2:
        raise NothingToDraw("lambda has one value")
    curves = {}
    for region in [region for region in results.regions if region != ALL]:
        place = Place(width, point, region)
        curves[region] = {
            look: [
                _ends(results, place, Key(point, proxy, "full", lam), statistic)
                for lam in results.lams
            ]
            for proxy, look in LAM_LOOKS.items()
            if proxy in results.proxies
        }
        key = Key(point, "train", "isotropic", PRIOR)
        level = _ends(results, place, key, statistic)
        curves[region][FORM_LOOKS["isotropic"]] = [level] * len(results.lams)
    title = f"{NAMES[statistic]} of gᵀΣg with the MCMC variance, width {width}, at {POINTS[point]}"
    return _curves(title, "λ over the prior's precision", results.lams, curves, statistic)


def slopes(results: Results, width: int, point: str) -> Figure:
    """Draw the slopes of log2(estimate / variance) on both distances, by proxy.

    Raises
    ------
    NothingToDraw
        If no slope has an interval over the problems.
    """
    proxies = [*results.proxies, OTHERS]
    looks = {form: FORM_LOOKS[form] for form in results.forms}
    panels = {
        "distance to the proxy": "slope_proxy",
        "distance to the training data": "slope_train",
    }

    def at(i: int, panel: str, form: str) -> IntervalEnds:
        key = Key(point, proxies[i], form, PRIOR)
        return _ends(results, Place(width, point, ALL), key, panels[panel])

    title = f"log2(gᵀΣg / MCMC variance) against two distances, width {width}, at {POINTS[point]}"
    labels = [proxy_name(proxy) for proxy in proxies]
    figure, axes = interval_panels(title, labels, [""] * len(labels), list(panels), looks, at)
    for ax in axes:
        ax.axvline(0, color="#444444", linewidth=0.8)
        ax.set_xlabel("slope, factors of 2 per unit of distance")
    with styled():
        legend_below(figure, handles(looks))
    return figure


def maps(records: Sequence[Record], point: str) -> Figure:
    """Draw log2(gᵀΣg / MCMC variance) over the grid, for a few covariances and each record (a seed).

    Each map is relative to its median, as the level is another question.

    Raises
    ------
    NothingToDraw
        If the inputs are not two, or a record has none of these estimates.
    """
    shown = [record for record in records if len(record.meta["grid_shape"] or ()) == 2]
    if not shown:
        raise NothingToDraw("maps are drawn over two inputs")
    kinds = [pair for pair in _MAPS if f"grid/{point}/{pair[0]}/{pair[1]}" in shown[0].arrays]
    if not kinds:
        raise NothingToDraw("none of the covariances of the maps is in the run")
    with styled():
        size = (2.2 * len(kinds) + 0.9, 2.1 * len(shown) + 0.7)
        figure = Figure(figsize=size, layout="constrained")
        cell = shown[0].meta["cell"]
        title = f"Error of gᵀΣg on {cell['problem']}, width {cell['width']}, at {POINTS[point]}"
        figure.suptitle(title, x=0.01, ha="left")
        axes = figure.subplots(len(shown), len(kinds), squeeze=False, sharex="row", sharey="row")
        for line, record in zip(axes, shown, strict=True):
            for ax, (proxy, form) in zip(line, kinds, strict=True):
                mesh = _map(ax, record, point, proxy, form)
            line[0].set_ylabel(f"seed {record.meta['cell']['seed']}")
        for ax, (proxy, form) in zip(axes[0], kinds, strict=True):
            of = "" if form == "isotropic" else f",\n{PROXIES[proxy].label}"
            ax.set_title(f"{FORM_LOOKS[form].label}{of}", loc="left")
        bar = figure.colorbar(mesh, ax=axes.ravel().tolist(), shrink=0.8, extend="both")
        bar.set_label("log2(gᵀΣg / variance) − median")
    return figure


def _map(ax: Axes, record: Record, point: str, proxy: str, form: str):
    shape = record.meta["grid_shape"]
    estimate = record.arrays[f"grid/{point}/{proxy}/{form}"].astype(float)
    truth = record.arrays["grid/mcmc_var"].sum(axis=1).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        field = np.log2(estimate) - np.log2(truth)
    known = np.isfinite(field)
    field = np.where(known, field - np.median(field[known]), np.nan) if known.any() else field
    X: Float[np.ndarray, "N 2"] = record.arrays["grid/X"]
    mesh = ax.pcolormesh(
        X[:, 0].reshape(shape), X[:, 1].reshape(shape), field.reshape(shape), shading="nearest",
        cmap="RdBu_r", vmin=-MOST_OCTAVES, vmax=MOST_OCTAVES, rasterized=True,
    )  # fmt: skip
    ax.set_xlim(X[:, 0].min(), X[:, 0].max())
    ax.set_ylim(X[:, 1].min(), X[:, 1].max())
    train = record.arrays.get("proxies/train")
    if train is not None:
        ax.plot(train[:, 0], train[:, 1], ".", color="black", markersize=1.5, alpha=0.6)
    if proxy != "train":
        inputs = record.arrays[f"proxies/{proxy}"]
        ax.plot(inputs[:, 0], inputs[:, 1], "x", color="#117733", markersize=2.5, alpha=0.8)
    return mesh


def _within(set_limits: Callable[..., Any], limits: tuple[float, float]) -> None:
    """Cut an axis where correlations end; intervals of few seeds go beyond."""
    set_limits(max(limits[0], -1.02), min(limits[1], 1.02))


def _ends(results: Results, place: Place, key: Key, column: str) -> IntervalEnds:
    found = results.mean_over(place, key, column, ALL).interval
    return found.mean, found.low, found.high


def _curves(
    title: str,
    label: str,
    x: Sequence[float],
    curves: Mapping[str, Mapping[Look, Sequence[IntervalEnds]]],
    statistic: str,
) -> Figure:
    if all(m is None for lines in curves.values() for line in lines.values() for m, *_ in line):
        raise NothingToDraw("no place has two seeds that passed")
    with styled():
        figure = Figure(figsize=(1.0 + 2.9 * len(curves), 3.6), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left")
        axes = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        entries = {}
        for ax, (region, lines) in zip(axes, curves.items(), strict=True):
            ax.set_title(region, loc="left")
            for look, ends in lines.items():
                known = [(a, *e) for a, e in zip(x, ends, strict=True) if e[0] is not None]
                if not known:
                    continue
                at, mean, low, high = map(list, zip(*known, strict=True))
                style: dict[str, Any] = {
                    "color": look.color,
                    "marker": look.marker,
                    "linestyle": look.linestyle,
                }
                ax.plot(at, mean, **style)
                entries[look.label] = Line2D([], [], **style)
                if None not in low:
                    ax.fill_between(at, low, high, color=look.color, alpha=0.10, linewidth=0)
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(FixedLocator(list(x)))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.set_xlabel(label)
        axes[0].set_ylabel(NAMES[statistic])
        _within(axes[0].set_ylim, axes[0].get_ylim())
        legend_below(figure, entries)
    return figure
