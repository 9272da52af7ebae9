"""Scaling curves and the error budget: correlations with the reference, a panel per problem.

Lines and bars are means over the seeds that passed the gate of their reference, with the interval
of `isounc.summary`; a seed that failed is a hollow marker of its own and in no mean. What is
undefined leaves a gap, and the panel says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from isounc.checks import check_choice
from isounc.paper import UNKNOWN, paper_value
from isounc.records import RunFolder
from isounc.results import ESTIMATORS, Results, Setup
from isounc.style import (
    PAPER_COLOR,
    POINT_LOOKS,
    POINT_WORDS,
    STATISTICS,
    Look,
    NothingToDraw,
    estimator_look,
    styled,
)

SCALING_ESTIMATORS = (
    *("isotropic", "link_aware", "layer_scaled", "laplace", "laplace_diagonal", "oracle"),
    "posterior_averaged",
)
"""Drawn as lines where a run has them, and any estimator that is not built in."""
BUDGET_ESTIMATORS = (
    *("posterior_averaged", "oracle", "oracle_within_chain", "isotropic", "link_aware"),
)
"""From no approximation but the first order, to what is cheap."""
_LAYERED_SAME = 1e-4
"""Up to this difference everywhere, `layer_scaled` is `isotropic` (equal prior sds) and left out."""


class _Line(NamedTuple):
    """One line of every panel."""

    look: Look
    point: str
    estimator: str


def scaling_curves(
    run: RunFolder | Results,
    *,
    region: str,
    point: str,
    statistic: str = "pearson",
    quantity: str = "epistemic",
) -> Figure:
    """Correlation with the reference against width: a panel per problem, a line per estimator.

    Parameters
    ----------
    run
        A run folder.
    region, point
        Where predictions are compared, and at which point estimate. Estimators that need none
        (`posterior_averaged`) are drawn whatever the point.
    statistic
        `pearson`, `spearman` or `log10_pearson`.
    quantity
        `epistemic`, `aleatoric`, `aleatoric_corrected` or `total`.

    Raises
    ------
    ValueError
        A region, point, statistic or quantity that the run does not have (with near matches).
    """
    results = Results.of(run)
    _check(results, region=region, point=point, statistic=statistic, quantity=quantity)
    lines = _lines(results, region, point, statistic, quantity)
    what = quantity.replace("_", " ")
    title = f"How {what} estimates {POINT_WORDS.get(point, point)} correlate with MCMC"
    return _curves(results, lines, region, statistic, quantity, f"{title} (region: {region})")


def scaling_headline(
    run: RunFolder | Results, *, region: str | None = None, statistic: str = "pearson"
) -> Figure:
    """The isotropic estimate at each kind of point, and averaged over draws, against width.

    `region` is `test` if none is given and the run has it, else the run's first.

    Raises
    ------
    ValueError
        As `scaling_curves`.
    """
    results = Results.of(run)
    region = results.values("region")[0] if region is None and results.rows else region
    _check(results, region=region, statistic=statistic)
    assert region is not None
    lines = [
        _Line(look, point, "isotropic")
        for point, look in POINT_LOOKS.items()
        if point in results.values("point")
    ]
    if "posterior_averaged" in results.values("estimator"):
        look = estimator_look("posterior_averaged")._replace(label="isotropic averaged over draws")
        lines.append(_Line(look, "posterior", "posterior_averaged"))
    title = f"Does the isotropic estimate improve with width? (region: {region})"
    return _curves(results, lines, region, statistic, "epistemic", title)


def error_budget(
    run: RunFolder | Results, *, region: str, point: str = "map", statistic: str = "pearson"
) -> Figure:
    """What each approximation costs: bars at the smallest, the middle and the largest width.

    From `posterior_averaged` to `oracle` one linearises at one point; from `oracle` to `isotropic`
    the covariance of the draws gives way to the identity; `link_aware` keeps the link function.
    Differences need not add up.

    Raises
    ------
    ValueError
        As `scaling_curves`.
    """
    results = Results.of(run)
    _check(results, region=region, point=point, statistic=statistic)
    there = set(results.values("estimator"))
    lines = [
        _Line(estimator_look(e), "posterior" if e == "posterior_averaged" else point, e)
        for e in BUDGET_ESTIMATORS
        if e in there
    ]
    setups = _setups_with(results, lines, region, "epistemic")
    with styled():
        figure, panels = _panels(len(setups))
        values = []
        for ax, setup in zip(panels, setups, strict=True):
            values += _bars(ax, results, setup, lines, region, statistic)
        _finish(figure, panels, setups, values, f"{STATISTICS[statistic]} with MCMC variance")
        figure.suptitle(f"Error budget {POINT_WORDS.get(point, point)} (region: {region})")
    return figure


def _check(results: Results, *, statistic: str, **wanted: str | None) -> None:
    check_choice("statistic", statistic, STATISTICS)
    if not results.rows:
        raise NothingToDraw(f"{results.run.path} holds no result rows yet")
    for argument, value in wanted.items():
        check_choice(argument, value, results.values(argument))


def _lines(
    results: Results, region: str, point: str, statistic: str, quantity: str
) -> list[_Line]:
    """Estimators with rows at a point, or at none; `layer_scaled` only where it differs."""
    lines, spare = [], 0
    for estimator in results.values("estimator"):
        if estimator in ESTIMATORS and estimator not in SCALING_ESTIMATORS:
            continue
        look = estimator_look(estimator, position=spare)
        spare += estimator not in ESTIMATORS
        for at in dict.fromkeys((point, "posterior")):
            which = {"region": region, "point": at, "quantity": quantity, "estimator": estimator}
            if any(results.select(setup, **which) for setup in results.setups):
                lines.append(_Line(look, at, estimator))
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
            {(r["width"], r["seed"]): r.get(statistic) for r in rows}
            for rows in (
                results.select(setup, estimator=e, **which) for e in ("isotropic", "layer_scaled")
            )
        )
        for key, value in scaled.items():
            other = plain.get(key)
            if (value is None) != (other is None):
                return True
            if value is not None and other is not None and abs(value - other) > _LAYERED_SAME:
                return True
    return False


def _setups_with(
    results: Results, lines: Sequence[_Line], region: str, quantity: str
) -> list[Setup]:
    setups = [s for s in results.setups if _rows(results, s, lines, region, quantity)]
    if not setups:
        raise NothingToDraw(f"no {quantity} rows in region {region} at this point")
    return setups


def _rows(
    results: Results, setup: Setup, lines: Sequence[_Line], region: str, quantity: str
) -> list[dict[str, Any]]:
    found = []
    for line in lines:
        found += results.select(
            setup, region=region, point=line.point, quantity=quantity, estimator=line.estimator
        )
    return found


def _curves(
    results: Results, lines: Sequence[_Line], region: str, statistic: str, quantity: str, title: str
) -> Figure:
    setups = _setups_with(results, lines, region, quantity)
    with styled():
        figure, panels = _panels(len(setups))
        values: list[float] = []
        for ax, setup in zip(panels, setups, strict=True):
            for line in lines:
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
            rows = _rows(results, setup, lines, region, quantity)
            notes = [*_gate_note(rows), *_undefined_note(rows, lines, statistic)]
            _title(ax, results, setup, notes)
        reference = "variance" if quantity == "epistemic" else quantity.replace("_", " ")
        _finish(figure, panels, setups, values, f"{STATISTICS[statistic]} with MCMC {reference}")
        confounded = any(setup.parameterisation == "standard" for setup in setups)
        note = " (standard parameterisation: the function's prior variance grows with it)"
        figure.supxlabel(f"width{note if confounded else ''}", fontsize=9)
        figure.suptitle(title)
    return figure


def _line(
    ax: Axes, results: Results, setup: Setup, line: _Line, region: str, statistic: str, quantity: str
) -> list[float]:
    """A mean line with its band, a hollow marker for each seed that failed; the values drawn."""
    which = {
        "region": region, "point": line.point, "estimator": line.estimator, "quantity": quantity,
    }  # fmt: skip
    color, marker = line.look.color, line.look.marker
    drawn: list[float] = []
    curve = results.curve(setup, **which)
    if curve:
        x = np.array([row["width"] for row in curve], dtype=float)
        mean, low, high = (
            np.array([_nan(row[f"{statistic}_{part}"]) for row in curve])
            for part in ("mean", "low", "high")
        )
        strong = line.estimator == "isotropic"
        ax.fill_between(x, low, high, color=color, alpha=0.16 if strong else 0.09, linewidth=0)
        alone = np.isfinite(low) & ~(_neighbour(low, 1) | _neighbour(low, -1))
        if alone.any():
            ax.vlines(x[alone], low[alone], high[alone], color=color, alpha=0.35, linewidth=1.2)
        ax.plot(
            x, mean, color=color, marker=marker, label=line.look.label, markeredgewidth=0,
            markersize=7 if marker == "*" else 5, zorder=4 if strong else 3,
            linewidth=2.0 if strong else 1.3,
        )  # fmt: skip
        drawn += mean.tolist()
    failed = [
        (row["width"], row[statistic])
        for row in results.select(setup, **which)
        if row["gate"] == "fail" and row.get(statistic) is not None
    ]
    if failed:
        ax.plot(
            *zip(*failed, strict=True), linestyle="none", marker=marker, markersize=5,
            markerfacecolor="white", markeredgecolor=color, markeredgewidth=0.9, zorder=2.5,
            label=f"_failed {line.look.label}",
        )  # fmt: skip
        drawn += [value for _, value in failed]
    return drawn


def _bars(
    ax: Axes, results: Results, setup: Setup, lines: Sequence[_Line], region: str, statistic: str
) -> list[float]:
    """Groups of bars at up to three widths, with intervals and failed seeds; the values drawn."""
    drawn: list[float] = []
    widths = results.widths(setup)
    shown = sorted({widths[0], widths[len(widths) // 2], widths[-1]})
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
            if mean is not None:
                ax.bar(
                    x, mean, step * 0.92, color=color,
                    label=line.look.label if place == 0 else None,
                )  # fmt: skip
                drawn.append(mean)
            else:
                why = "undefined" if row["num_undefined"] else "gate failed"
                ax.text(
                    x, 0.03, why, rotation=90, ha="center", va="bottom", fontsize=6.5, color=color
                )
            if low is not None and mean is not None:
                ax.errorbar(
                    x, mean, [[mean - low], [high - mean]], color="#333333", elinewidth=0.9,
                    capsize=1.5, fmt="none", zorder=4,
                )  # fmt: skip
            rows = results.select(setup, quantity="epistemic", **which)
            failed = [
                r[statistic] for r in rows
                if r["width"] == width and r["gate"] == "fail" and r.get(statistic) is not None
            ]  # fmt: skip
            if failed:
                ax.plot(
                    [x] * len(failed), failed, linestyle="none", marker="o", markersize=4,
                    markerfacecolor="white", markeredgecolor=color, markeredgewidth=0.9, zorder=5,
                    label=f"_failed {line.look.label}",
                )  # fmt: skip
                drawn += failed
    ax.set_xticks(range(len(shown)), [f"width {w}" for w in shown])
    ax.axhline(0, color="#333333", linewidth=0.8)
    rows = [r for r in _rows(results, setup, lines, region, "epistemic") if r["width"] in shown]
    _title(ax, results, setup, _gate_note(rows))
    return drawn


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels that share their y axis; four to a row, or fewer."""
    columns = 4 if count > 6 else min(3, count)
    rows = math.ceil(count / columns)
    size = ({1: 5.6, 2: 8.0}.get(columns, 10.0), 2.35 * rows + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.05)  # pyright: ignore
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for ax in grid[count:]:
        ax.remove()
    return figure, list(grid[:count])


def _finish(
    figure: Figure, panels: Sequence[Axes], setups: Sequence[Setup], values: Iterable[float],
    label: str,
) -> None:  # fmt: skip
    """Common limits and grid lines, the y label, one legend for all panels."""
    lowest = min([v for v in values if math.isfinite(v)], default=0.0)
    # Intervals of two or three seeds may reach to -1 and are cut; means and seeds never are.
    low = max(-1.05, math.floor(10 * min(0.0, lowest - 0.03)) / 10)
    legend: dict[str, Any] = {}
    for ax in panels:
        ax.set_ylim(low, 1.04)
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            legend.setdefault(name, handle)
    figure.supylabel(label, fontsize=9)
    if any(a.get_label().startswith("_failed") for ax in panels for a in ax.lines):
        hollow = Line2D(
            [], [], linestyle="none", marker="o", markerfacecolor="white",
            markeredgecolor="#333333", markersize=5,
        )  # fmt: skip
        legend["a seed that failed the gate (in no mean)"] = hollow
    figure.legend(
        list(legend.values()), list(legend), loc="outside lower center",
        ncols=min(len(legend), 4 if figure.get_figwidth() > 9 else 2),
    )  # fmt: skip


def _width_axis(ax: Axes, widths: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(widths))
    ax.xaxis.set_minor_locator(NullLocator())
    # More labels than this would touch.
    every = 1 if len(widths) <= 8 else 2
    ax.set_xticks(widths, [f"{w}" if i % every == 0 else "" for i, w in enumerate(widths)])


def _title(ax: Axes, results: Results, setup: Setup, notes: Sequence[str]) -> None:
    """The problem, and under it in small what a reader must know about the panel."""
    name = results.label(setup)
    if results.main_class(setup) == "trace":
        name += ", trace"
    ax.set_title(name, loc="left", fontweight="bold", pad=3 + 9.5 * len(notes))
    for line, note in enumerate(reversed(notes)):
        ax.annotate(
            note, (0, 1), xycoords="axes fraction", xytext=(0, 3 + 9.5 * line),
            textcoords="offset points", fontsize=7.5, color="#444444",
        )  # fmt: skip


def _gate_note(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How many cells failed; nothing where none did."""
    cells = {(row["width"], row["seed"]) for row in rows}
    failed = {(row["width"], row["seed"]) for row in rows if row["gate"] == "fail"}
    return [f"{len(failed)} of {len(cells)} cells failed the gate"] if failed else []


def _undefined_note(
    rows: Sequence[dict[str, Any]], lines: Sequence[_Line], statistic: str
) -> list[str]:
    """Which correlations are undefined in cells that passed."""
    counts: dict[str, int] = {}
    for line in lines:
        count = sum(
            row["gate"] == "pass" and row.get(statistic) is None
            for row in rows
            if (row["estimator"], row["point"]) == (line.estimator, line.point)
        )
        if count:
            counts[line.look.label] = count
    if not counts:
        return []
    name, most = max(counts.items(), key=lambda item: item[1])
    more = f" (and {len(counts) - 1} more)" if len(counts) > 1 else ""
    return [f"undefined in {most}: {name}{more}"]


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _neighbour(values: np.ndarray, shift: int) -> np.ndarray:
    """Whether the value before (shift 1) or after (-1) each is finite."""
    padded = np.concatenate([[math.nan], values, [math.nan]])
    return np.isfinite(np.roll(padded, shift)[1:-1])
