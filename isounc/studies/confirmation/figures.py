"""Figures of intervals: a row for each condition or problem, a panel for each region."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from isounc.runs.panels import IntervalEnds, handles, interval_panels
from isounc.runs.style import Look, legend_below, styled
from isounc.studies.confirmation.settings import ALL, BASE, Condition
from isounc.studies.confirmation.tables import Row
from isounc.studies.confirmation.words import condition_name

RIVALS = {
    "isotropic": Look("‖∇p‖² of the same network", "#0072B2", "o"),
    "null_aleatoric": Look("null: p(1−p) of the same network", "#8C8C8C", "s"),
    "ensemble_4": Look("variance over 4 networks", "#E69F00", "^"),
    "ensemble_16": Look("variance over 16 networks", "#D55E00", "v"),
    "laplace": Look("Laplace at the same network", "#AA4499", "d"),
}
"""Looks of the rivals that are drawn; the tables have the others."""
SCALES = {
    "logit_scaled": Look("scale unit", "#009E73", "o"),
    "logit_scaled_level": Look("scale effective_dimension", "#332288", "s"),
}
"""Looks of the two scales."""
NAMES = {"pearson": "Pearson's r", "spearman": "Spearman's rank correlation"}
"""Correlations as titles and captions call them."""
_TITLE = "with the MCMC variance: logit-scaled, one pass at one trained network, less each rival"


def by_condition(differences: Sequence[Row], statistic: str = "pearson") -> Figure:
    """Draw a correlation of logit-scaled less each rival's, over the problems, by condition.

    Raises
    ------
    NothingToDraw
        If no condition has an interval over the problems.
    """
    rows = [row for row in _of_logit_scaled(differences, statistic) if row["problem"] == ALL]
    places = list(dict.fromkeys(Condition(row["factor"], row["value"]) for row in rows))
    labels = [f"{condition_name(place)}{_counts(rows, place)}" for place in places]

    def at(i: int, region: str, rival: str) -> IntervalEnds:
        return _found(rows, region, rival=rival, **places[i]._asdict())

    title = f"{NAMES[statistic]} {_TITLE}, by condition"
    return _order_figure(title, labels, [p.factor for p in places], rows, at)


def by_problem(
    differences: Sequence[Row], linked: Sequence[str], statistic: str = "pearson"
) -> Figure:
    """Draw a correlation of logit-scaled less each rival's, by problem with a link, at the base.

    Raises
    ------
    NothingToDraw
        If no problem has a difference.
    """
    rows = [
        row for row in _of_logit_scaled(differences, statistic)
        if row["factor"] == BASE and row["problem"] in (ALL, *linked)
    ]  # fmt: skip
    places = list(dict.fromkeys(row["problem"] for row in rows))

    def at(i: int, region: str, rival: str) -> IntervalEnds:
        return _found(rows, region, rival=rival, problem=places[i])

    labels = ["mean of the problems" if p == ALL else p.replace("_", " ") for p in places]
    title = f"{NAMES[statistic]} {_TITLE}, at the base"
    return _order_figure(title, labels, [str(p == ALL) for p in places], rows, at)


def levels(summary: Sequence[Row]) -> Figure:
    """Draw the sum of the estimate over that of the reference, over the problems, by condition.

    Raises
    ------
    NothingToDraw
        If no condition has a level over the problems.
    """
    rows = [row for row in summary if row["problem"] == ALL and row["estimate"] in SCALES]
    places = list(dict.fromkeys(Condition(row["factor"], row["value"]) for row in rows))

    def at(i: int, region: str, estimate: str) -> IntervalEnds:
        where = {"estimate": estimate, **places[i]._asdict()}
        found = _found(rows, region, prefix="log2_level_", **where)
        mean, low, high = (None if value is None else 2.0**value for value in found)
        return mean, low, high

    regions = list(dict.fromkeys(row["region"] for row in rows))
    labels = [condition_name(place) for place in places]
    title = "Sum of the estimated variances over that of the MCMC variances (1 is right)"
    figure, axes = interval_panels(title, labels, [p.factor for p in places], regions, SCALES, at)
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.axvspan(0.5, 2, color="#009E73", alpha=0.10, linewidth=0)
        ax.axvline(1, color="#444444", linewidth=0.8)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _ratio(x)))
        ax.set_xlabel("estimated / MCMC")
    with styled():
        entries = handles(SCALES)
        entries["within a factor of 2"] = Line2D([], [], color="#009E73", alpha=0.25, linewidth=8)
        legend_below(figure, entries)
    return figure


def _of_logit_scaled(differences: Sequence[Row], statistic: str) -> list[Row]:
    return [
        row for row in differences
        if row["estimate"] == "logit_scaled" and row["statistic"] == statistic
        and row["rival"] in RIVALS
    ]  # fmt: skip


def _found(rows: Sequence[Row], region: str, prefix: str = "", **where: str) -> IntervalEnds:
    """The interval of the row that has these values."""
    for row in rows:
        if row["region"] == region and all(row[name] == value for name, value in where.items()):
            return row[f"{prefix}mean"], row[f"{prefix}low"], row[f"{prefix}high"]
    return None, None, None


def _counts(rows: Sequence[Row], place: Condition) -> str:
    """Say how many problems and cells are behind a condition, from the least region to the most."""
    here = [row for row in rows if (row["factor"], row["value"]) == place]

    def span(name: str) -> str:
        of_regions: dict[str, int] = {}  # at most of any rival
        for row in here:
            of_regions[row["region"]] = max(of_regions.get(row["region"], 0), row[name])
        low, high = min(of_regions.values()), max(of_regions.values())
        return f"{high}" if low == high else f"{low}–{high}"

    problems = span("num_problems")
    return f"  ({problems} problem{'s' * (problems != '1')}, {span('num_seeds')} cells)"


def _order_figure(
    title: str,
    labels: Sequence[str],
    groups: Sequence[str],
    rows: Sequence[Row],
    at: Callable[[int, str, str], IntervalEnds],
) -> Figure:
    regions = list(dict.fromkeys(row["region"] for row in rows))
    figure, axes = interval_panels(title, labels, groups, regions, RIVALS, at)
    for ax in axes:
        ax.axvline(0, color="#444444", linewidth=0.8)
        ax.set_xlabel("← rival ahead     logit-scaled ahead →")
    with styled():
        legend_below(figure, handles(RIVALS))
    return figure


def _ratio(value: float) -> str:
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
