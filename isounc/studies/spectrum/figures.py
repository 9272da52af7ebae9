"""Figures of a spectrum run: eigenvalues, gradients in them, trends, and the correction."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from isounc.runs.panels import IntervalEnds, handles, interval_panels
from isounc.runs.style import SPARE, Look, NothingToDraw, legend_below, region_look, styled
from isounc.studies.spectrum.cell import DRAWS, LAPLACE
from isounc.studies.spectrum.settings import ALL, POINTS, POSTERIOR, TRAIN, Condition
from isounc.studies.spectrum.tables import Row, size_of
from isounc.studies.spectrum.verdicts import HYPOTHESES

POINT_LOOKS = {
    "map": Look("MAP", "#0072B2", "o"),
    "trained": Look("trained network", "#D55E00", "^"),
    "draw": Look("posterior draw", "#009E73", "s"),
    POSTERIOR: Look("posterior", "#444444", "d"),
}
"""Looks of the points."""
_SHADES = ("#9ECAE1", "#4292C6", "#08519C", "#08306B")
"""Colours from small to large."""
_STYLES = ("-", "--", ":")


def _where(rows: Iterable[Row], **values: object) -> list[Row]:
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def _ends(rows: Sequence[Row]) -> IntervalEnds:
    if not rows:
        return (None, None, None)
    row = rows[0]
    return (row["mean"], row["low"], row["high"])


def look_of_region(name: str) -> Look:
    """The look of a region, the training inputs among them."""
    if name == TRAIN:
        return Look("train", SPARE[2][0], SPARE[2][1])
    return region_look(name)


def spectra(eigenvalues: Sequence[Row], conditions: Sequence[Condition], problem: str) -> Figure:
    """Draw the eigenvalues of a problem under conditions, geometric means over the seeds.

    Raises
    ------
    NothingToDraw
        If there are no eigenvalues.
    """
    rows = _where(eigenvalues, problem=problem)
    points = [point for point in POINTS if any(row["point"] == point for row in rows)]
    if not rows or not points:
        raise NothingToDraw(f"there are no eigenvalues of {problem}")
    with styled():
        figure = Figure(figsize=(1.0 + 2.7 * (len(points) + 1), 3.9), layout="constrained")
        figure.suptitle(f"Eigenvalues in prior coordinates, {problem}", x=0.01, ha="left")
        axes = figure.subplots(1, len(points) + 1, squeeze=False)[0]
        for ax, point in zip(axes, [*points, POSTERIOR], strict=True):
            kinds = ("draws", "null") if point == POSTERIOR else ("ggn", "hessian")
            for i, condition in enumerate(conditions):
                here = _where(rows, point=point, **condition._asdict())
                for kind, style in zip(kinds, _STYLES, strict=False):
                    ranks, values = _by_rank(_where(here, kind=kind))
                    ax.plot(ranks, values, style, color=_shade(i, len(conditions)))
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_xlabel("rank")
            ax.axhline(1, color="#444444", linewidth=0.6)
            title = "covariance of the draws" if point == POSTERIOR else POINT_LOOKS[point].label
            ax.set_title(title, loc="left")
        axes[0].set_ylabel("eigenvalue (1: the prior's)")
        entries = {
            condition.label: Line2D([], [], color=_shade(i, len(conditions)))
            for i, condition in enumerate(conditions)
        }
        entries["GGN, or draws"] = Line2D([], [], color="#444444")
        entries["Hessian, or Marchenko-Pastur"] = Line2D([], [], color="#444444", ls=_STYLES[1])
        legend_below(figure, entries)
    return figure


def _by_rank(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Geometric means over the seeds, at ranks up to which all of them have positive eigenvalues.

    Seeds with other numbers of eigenvalues have other ranks in the table, between which the
    logarithms are interpolated.
    """
    by_seed: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if row["value"] > 0:
            by_seed.setdefault(row["seed"], []).append((np.log(row["rank"]), np.log(row["value"])))
    if not by_seed:
        return [], []
    most = min(max(rank for rank, _ in pairs) for pairs in by_seed.values())
    ranks = sorted({rank for pairs in by_seed.values() for rank, _ in pairs if rank <= most})
    lines = []
    for pairs in by_seed.values():
        x, y = np.array(sorted(pairs)).T
        lines.append(np.interp(ranks, x, y))
    return np.exp(ranks).tolist(), np.exp(np.mean(lines, axis=0)).tolist()


def _shade(i: int, count: int) -> str:
    return _SHADES[round(i * (len(_SHADES) - 1) / max(1, count - 1))]


def shares(summary: Sequence[Row], base: Condition, ranks: Sequence[int], problem: str) -> Figure:
    """Draw the share of |g|^2 in the k strongest directions against k, by region.

    Raises
    ------
    NothingToDraw
        If the base was not run.
    """
    where = {"problem": problem, "statistic": "share", **base._asdict()}
    rows = _where(summary, **where)
    points = [point for point in POINTS if any(row["point"] == point for row in rows)]
    if not points:
        raise NothingToDraw(f"the base was not run on {problem}")
    regions = list(dict.fromkeys(row["region"] for row in rows))
    with styled():
        figure = Figure(figsize=(1.0 + 2.7 * len(points), 3.4), layout="constrained")
        title = f"Share of ‖g‖² in the k strongest directions of the GGN, {problem}, {base.label}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=9.5)
        axes = figure.subplots(1, len(points), sharey=True, squeeze=False)[0]
        for ax, point in zip(axes, points, strict=True):
            for region in regions:
                here = _where(rows, point=point, region=region)
                series = [(k, _ends(_where(here, form=f"removed_{k}"))) for k in sorted(ranks)]
                _line(ax, series, look_of_region(region))
            ax.set_title(POINT_LOOKS[point].label, loc="left")
            ax.set_xscale("log")
            ax.set_xlabel("k")
            ax.set_ylim(0, 1.02)
        axes[0].set_ylabel("share (1: all of the gradient)")
        legend_below(figure, handles({region: look_of_region(region) for region in regions}))
    return figure


def ratios(summary: Sequence[Row], groups: Sequence[Sequence[Condition]], problem: str) -> Figure:
    """Draw mean and coefficient of variation of the ratio against the width, by region.

    Raises
    ------
    NothingToDraw
        If there are no widths to compare.
    """
    rows = _where(summary, problem=problem, form=LAPLACE)
    points = [p for p in POINTS if any(row["point"] == p for row in rows)]
    if not groups or not points:
        raise NothingToDraw("there are no two widths")
    columns = [(point, group) for group in groups for point in points]
    bound = HYPOTHESES["isotropic"].bound
    regions = list(dict.fromkeys(row["region"] for row in rows if row["region"] != ALL))
    with styled():
        figure = Figure(figsize=(1.0 + 2.1 * len(columns), 5.0), layout="constrained")
        title = f"gᵀΣg over s²‖g‖², Laplace approximation, {problem} (1 is isotropic)"
        figure.suptitle(title, x=0.01, ha="left")
        axes = figure.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False)
        names = {"ratio_mean": "mean", "ratio_cv": "coefficient of variation"}
        for row_axes, (statistic, called) in zip(axes, names.items(), strict=True):
            for ax, (point, group) in zip(row_axes, columns, strict=True):
                here = _where(rows, statistic=statistic, point=point)
                for region in regions:
                    series = _series(_where(here, region=region), group, lambda c: c.width)
                    _line(ax, series, look_of_region(region))
                ax.set_xscale("log", base=2)
                ax.set_title(f"{POINT_LOOKS[point].label}\n{group[0].parameterisation}", loc="left")
            row_axes[0].set_ylabel(called)
        for ax in axes[1]:
            ax.axhline(bound, color="#444444", linewidth=0.6)
            ax.set_xlabel("width")
        entries = handles({region: look_of_region(region) for region in regions})
        entries[f"{bound:g}, below which “isotropic” holds"] = Line2D(
            [], [], color="#444444", linewidth=0.6
        )
        legend_below(figure, entries)
    return figure


TRENDS = (
    ("log2_over_mean", "width", LAPLACE, "largest eigenvalue over the mean of all, log2"),
    ("log2_over_bulk", "depth", LAPLACE, "largest eigenvalue over the bulk's mean, log2"),
    ("dimension_share", "width", LAPLACE, "effective dimension per parameter"),
    ("jeffreys_weights", "width", DRAWS, "divergence from N(0, I), weights (nats)"),
    ("jeffreys_readout", "width", DRAWS, "the same, read-out whitened (nats)"),
)
"""Panels of `trends`: statistic, axis, form and label."""


def trends(
    summary: Sequence[Row],
    groups: Mapping[str, Sequence[Sequence[Condition]]],
    problem: str,
) -> Figure:
    """Draw what theory speaks of against width and depth, by point and parameterisation.

    Parameters
    ----------
    groups
        Conditions that differ in the width alone, and in the depth alone.

    Raises
    ------
    NothingToDraw
        If there are no two widths or depths.
    """
    rows = _where(summary, problem=problem, region=ALL)
    shown = [panel for panel in TRENDS if groups[panel[1]]]
    if not shown or not rows:
        raise NothingToDraw("there are no two widths, and no two depths")
    with styled():
        figure = Figure(figsize=(1.0 + 2.5 * len(shown), 3.6), layout="constrained")
        figure.suptitle(f"Trends that theory speaks of, {problem}", x=0.01, ha="left")
        axes = figure.subplots(1, len(shown), squeeze=False)[0]
        styles: dict[str, str] = {}
        for ax, (statistic, axis, form, label) in zip(axes, shown, strict=True):
            for group in groups[axis]:
                name = group[0].parameterisation
                style = styles.setdefault(name, _STYLES[len(styles) % len(_STYLES)])
                for point, look in POINT_LOOKS.items():
                    here = _where(rows, statistic=statistic, point=point, form=form)
                    series = _series(here, group, lambda c, axis=axis: size_of(c, axis))
                    _line(ax, series, look._replace(linestyle=style))
            if statistic in ("dimension_share", "jeffreys_weights", "jeffreys_readout"):
                ax.set_yscale("log")
            ax.set_xlabel("log2 of the width" if axis == "width" else "hidden layers")
            if axis == "depth":
                ax.set_xticks(sorted({c.depth for group in groups[axis] for c in group}))
            ax.set_title(textwrap.fill(label, 27), loc="left")
        entries = handles(POINT_LOOKS)
        entries |= {name: Line2D([], [], color="#444444", ls=ls) for name, ls in styles.items()}
        legend_below(figure, entries)
    return figure


def correction(verdicts: Sequence[Row], hypothesis: str, title: str) -> Figure:
    """Draw the differences of correlations of a hypothesis, by problem and condition."""
    rows = _where(verdicts, hypothesis=hypothesis)
    found = {(r["problem"], *(r[name] for name in Condition._fields)) for r in rows}
    places = sorted(found, key=lambda place: (place[0] != ALL, place))
    labels = [f"{problem}: {Condition(*condition).label}" for problem, *condition in places]
    regions = list(dict.fromkeys(row["region"] for row in rows))
    looks = {p: look for p, look in POINT_LOOKS.items() if any(r["point"] == p for r in rows)}

    def at(i: int, region: str, point: str) -> IntervalEnds:
        problem, *condition = places[i]
        where = dict(zip(Condition._fields, condition, strict=True))
        return _ends(_where(rows, problem=problem, region=region, point=point, **where))

    figure, axes = interval_panels(title, labels, [p[0] for p in places], regions, looks, at)
    for ax in axes:
        ax.axvline(0, color="#444444", linewidth=0.8)
        ax.set_xlim(-2.05, 2.05)  # correlations differ by 2 at most; intervals may go beyond
        ax.set_xlabel("difference of r")
    with styled():
        legend_below(figure, handles(looks))
    return figure


def _series(
    rows: Sequence[Row], group: Sequence[Condition], size: Callable[[Condition], float]
) -> list[tuple[float, IntervalEnds]]:
    return [(size(c), _ends(_where(rows, **c._asdict()))) for c in group]


def _line(ax: Axes, series: Sequence[tuple[float, IntervalEnds]], look: Look) -> None:
    known = [(x, *ends) for x, ends in series if ends[0] is not None]
    if not known:
        return
    x, mean, low, high = zip(*known, strict=True)
    ax.plot(x, mean, color=look.color, marker=look.marker, linestyle=look.linestyle)
    if None not in low:
        ax.fill_between(x, low, high, color=look.color, alpha=0.10, linewidth=0)
