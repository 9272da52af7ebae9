"""Small tables below the sentences of a reading, with points, widths and regions side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from isounc.runs.page import Table
from isounc.runs.words import short, signed
from isounc.studies.covariance import figures
from isounc.studies.covariance.figures import proxy_name
from isounc.studies.covariance.reading import Tables, mean_correlation
from isounc.studies.covariance.settings import ALL, POINTS
from isounc.studies.covariance.tables import OTHERS
from isounc.studies.covariance.verdicts import CORRELATIONS, EVERY_PROXY, HYPOTHESES

_MARKS = {"confirmed": " ✓", "refuted": " ✗"}
_EACH = ("distorts", "isotropic wins")
"""Hypotheses that are tabulated for every kind of data."""


def reading_tables(tables: Tables) -> tuple[Table, ...]:
    """Tabulate correlations by form, each hypothesis, and two of them by kind of data."""
    found = [_means(tables), *(_verdicts(tables, by_rank=rank) for rank in (False, True))]
    found += [_by_proxy(tables, name) for name in _EACH]
    return tuple(found)


def _table(
    tables: Tables,
    title: str,
    first: str,
    lines: Iterable[tuple[str, Callable[..., str], str]],
    note: str,
) -> Table:
    """A table with a column for each point and width; a cell has what is said in each region."""
    places = [(point, width) for point in tables.results.points for width in tables.results.widths]
    own = [region for region in tables.results.regions if region != ALL]
    rows = []
    for name, say, region in lines:
        cells = []
        for point, width in places:
            # Each region in its place, where one may have none.
            there = [region] if region else own
            said = [say(point=point, width=width, region=r) for r in there]
            cells.append(" ".join(text or "-" for text in said) if any(said) else "-")
        if set(cells) != {"-"}:
            rows.append((name, *cells))
    columns = (first, *(f"{POINTS[point]}, width {width}" for point, width in places))
    return Table(title, columns, rows, f"{note} The regions are {', '.join(own)}, in this order.")


def _means(tables: Tables) -> Table:
    def say(form: str, proxy: str) -> Callable[..., str]:
        def of(point: str, width: int, region: str) -> str:
            mean = mean_correlation(tables, width, point, region, proxy, form)
            return "" if mean is None else short(mean)

        return of

    lines = [
        (f"{figures.FORM_LOOKS[form].label}, {proxy_name(proxy)}", say(form, proxy), "")
        for form in tables.results.forms
        for proxy in (("train",) if form == "isotropic" else ("train", "fresh", OTHERS))
    ]
    return _table(
        tables, "Pearson's r of gᵀΣg with the MCMC variance", "Σ", lines, "Means over the problems."
    )


def _verdicts(tables: Tables, *, by_rank: bool) -> Table:
    names = [name for name, h in HYPOTHESES.items() if not (by_rank and h.column)]
    lines = [
        (
            name,
            _said(tables, name, "train" if name == EVERY_PROXY else OTHERS, by_rank=by_rank),
            HYPOTHESES[name].region,
        )
        for name in names
    ]
    called = figures.NAMES[CORRELATIONS[by_rank]]
    note = (
        "Over the problems, for the mean of the other data; ✓ is confirmed, ✗ is refuted. "
        + "; ".join(f"{name}: {HYPOTHESES[name].claim}" for name in names)
        + "."
    )
    return _table(tables, f"Verdicts by {called}", "hypothesis", lines, note)


def _by_proxy(tables: Tables, name: str) -> Table:
    proxies = [proxy for proxy in tables.results.proxies if proxy not in ("train", OTHERS)]
    lines = [(proxy_name(proxy), _said(tables, name, proxy), "") for proxy in proxies]
    note = f"{HYPOTHESES[name].claim[0].upper()}{HYPOTHESES[name].claim[1:]}. ✓ is confirmed, ✗ is refuted."
    return _table(tables, f"“{name.capitalize()}” by kind of data", "Σ from", lines, note)


def _said(tables: Tables, name: str, proxy: str, *, by_rank: bool = False) -> Callable[..., str]:
    def of(**where: Any) -> str:
        row = tables.verdict(
            hypothesis=name, problem=ALL, proxy=proxy,
            statistic=tables.statistic(name, by_rank=by_rank), **where,
        )  # fmt: skip
        if row is None or row["mean"] is None:
            return ""
        return signed(row["mean"]) + _MARKS.get(row["verdict"], "")

    return of
