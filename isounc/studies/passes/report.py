"""The report of a run of the passes study: tables, figures and sections of the page."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from isounc.runs.figures import Plot
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section, Table
from isounc.runs.study import Report, TableFile
from isounc.runs.tables import rows_of_run
from isounc.studies.passes.estimates import ESTIMATES, VIEWS
from isounc.studies.passes.figures import quality_figure
from isounc.studies.passes.reading import reading
from isounc.studies.passes.settings import ALL, KINDS, Settings
from isounc.studies.passes.tables import (
    CROSSING_COLUMNS,
    DIFFERENCE_COLUMNS,
    RESULT_COLUMNS,
    ROW,
    SUMMARY_COLUMNS,
    TERMS,
    Quality,
    Row,
    Rows,
    crossings,
    differences,
    summarise,
)


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Make the tables, figures and sections of a run of the passes study.

    Rows come from the records or, in a folder without records (such as a committed one), from its
    `results.csv`.

    Raises
    ------
    ValueError
        If the run has no results yet, or some that cannot be read.
    """
    rows = rows_of_run(folder, ROW)
    place = {name: i for i, name in enumerate(settings.problems)}
    rows.sort(key=lambda row: place.get(row["problem"], len(place)))
    views = {view: _Tables.of([row for row in rows if row["class"] == view]) for view in VIEWS}
    quality, summary, differing, crossing = views["trace"]
    failures = failing(rows)
    sentences = [_state(rows, failures, settings), *reading(summary, differing, crossing)]
    of_predicted = views["predicted"]
    if of_predicted.summary:
        sentences += [
            f"Of the class that is predicted, where there are several: {sentence}"
            for sentence in reading(*of_predicted[1:])[:-1]  # seconds are the same
        ]
    failed = len({(row["problem"], row["seed"]) for row in failures})
    return Report(
        tables={
            "results.csv": TableFile(RESULT_COLUMNS, rows),
            "summary.csv": _both(SUMMARY_COLUMNS, {v: t.summary for v, t in views.items()}),
            "differences.csv": _both(
                DIFFERENCE_COLUMNS, {v: t.differences for v, t in views.items()}
            ),
            "crossings.csv": _both(CROSSING_COLUMNS, {v: t.crossings for v, t in views.items()}),
        },
        plots=_plots(quality, summary, crossing),
        sections=functools.partial(
            _sections, quality, summary, crossing, of_predicted.summary, failures
        ),
        text=f"{failed} cells failed a check." if failed else "All cells passed their checks.",
        checks={"failing": failures},
        reading=sentences,
    )


class _Tables(NamedTuple):
    """The tables of one view of the classes."""

    quality: Quality
    """The rows that they are made from."""
    summary: Rows
    """See `summarise`."""
    differences: Rows
    """See `differences`."""
    crossings: Rows
    """See `crossings`."""

    @classmethod
    def of(cls, rows: Rows) -> _Tables:
        quality = Quality(rows)
        differing = differences(quality)
        return cls(quality, summarise(quality), differing, crossings(differing))


def _both(columns: Sequence[str], tables: Mapping[str, Rows]) -> TableFile:
    """One table of those of all views."""
    return TableFile(columns, [{"class": v} | row for v, rows in tables.items() for row in rows])


def failing(rows: Sequence[Row]) -> Rows:
    """The cells that fail, by region and kind of networks, with the reasons."""
    failed = {
        (row["problem"], row["seed"], row["region"], row["kind"]): row["gate_reasons"]
        for row in rows
        if row["gate"] == "fail"
    }
    return [
        {"problem": problem, "seed": seed, "region": region, "kind": kind, "reasons": reasons}
        for (problem, seed, region, kind), reasons in failed.items()
    ]


def _state(rows: Sequence[Row], failures: Rows, settings: Settings) -> str:
    """Say which cells failed, and whether there are all of them."""
    words = "Every cell passed its gate and every trained network its check."
    if failures:
        cells: dict[tuple[str, int], dict[str, None]] = {}
        for row in failures:
            cells.setdefault((row["problem"], row["seed"]), {})[row["region"]] = None
        total = len({row["region"] for row in rows})
        parts = [
            f"{problem} seed {seed}" + (f" in {' and '.join(regions)}" * (len(regions) < total))
            for (problem, seed), regions in cells.items()
        ]
        words = f"Failed, and in no mean: {', '.join(parts)}."
    done = len({(row["problem"], row["seed"]) for row in rows})
    planned = len(settings.problems) * settings.num_seeds
    return words if done >= planned else f"{words} The run has {done} of {planned} cells so far."


def _plots(quality: Quality, summary: Rows, crossing: Rows) -> list[Plot]:
    plots = []
    for problem in [ALL, *quality.problems]:
        for kind in quality.kinds if problem == ALL else quality.kinds[:1]:
            scope = "averaged over the problems" if problem == ALL else f"on {problem}"
            caption = (
                f"Correlation with the MCMC variance against cost, from K {KINDS[kind]}, {scope}. "
                "Bands are 95% intervals over seeds."
            )
            draw = functools.partial(quality_figure, summary, crossing, kind=kind, problem=problem)
            plots.append(Plot(f"quality-{kind}-{problem}", kind, caption, draw))
    return plots


def _sections(
    quality: Quality, summary: Rows, crossing: Rows, predicted: Rows, failures: Rows,
    drawn: Sequence[FigureFile],
) -> list[Section]:  # fmt: skip
    shown = [figure for figure in drawn if figure.paths]
    main = tuple(figure for figure in shown if figure.name.endswith(f"-{ALL}"))
    rest = tuple(figure for figure in shown if figure not in main)
    kinds = [
        Section(
            kind,
            f"K {KINDS[kind]}",
            (),
            (),
            tuple(
                quality_table(of_view, kind, region, words)
                for of_view, words in ((summary, ""), (predicted, ", of the predicted class"))
                for region in (quality.regions if of_view else ())
            ),
        )
        for kind in quality.kinds
    ]
    return [
        Section("summary", "Summary", (), main, (crossing_table(crossing),)),
        *kinds,
        Section("problems", "Problem by problem", (), rest, ()),
        Section("cost", "Cost", (), (), (cost_table(summary),)),
        Section("failing", "Cells that failed", (), (), (_failing_table(failures),)),
    ]


def quality_table(summary: Sequence[Row], kind: str, region: str, words: str = "") -> Table:
    """Tabulate the correlations of each estimate by K, over all problems.

    The title ends with `words`.
    """
    rows = [
        row for row in summary
        if (row["problem"], row["kind"], row["region"]) == (ALL, kind, region)
    ]  # fmt: skip
    counts = sorted({row["count"] for row in rows})
    lines = []
    for name, estimate in ESTIMATES.items():
        found = {row["count"]: row for row in rows if row["estimate"] == name}
        for statistic in ("pearson", "spearman", "partial_pearson"):
            cells = [
                _interval(found[count], f"{statistic}_") if count in found else "-"
                for count in counts
            ]
            lines.append((estimate.label, statistic.replace("_", " "), *cells))
    return Table(
        f"Correlation with the MCMC variance{words}, region {region}",
        ("estimate", "correlation", *(f"K = {count}" for count in counts)),
        lines,
        "Mean over the problems [95% interval over seeds]. Partial: given p̄(1−p̄) of the same "
        "networks, from which nothing is left of the null.",
    )


def crossing_table(crossing: Sequence[Row]) -> Table:
    """Tabulate the K at which one estimate overtakes another, over all problems."""
    rows = [row for row in crossing if row["problem"] == ALL]
    lines = [
        (
            KINDS[row["kind"]], row["region"], row["statistic"], ESTIMATES[row["estimate"]].label,
            ESTIMATES[row["rival"]].label + TERMS[row["terms"]],
            str(row["crossing"] or "never"), str(row["beyond_doubt"] or "never"),
        )
        for row in rows
    ]  # fmt: skip
    return Table(
        "Where one estimate overtakes another",
        ("networks", "region", "correlation", "estimate", "overtakes", "at K", "beyond doubt at K"),
        lines,
        "The smallest K from which on, up to the largest, the mean over seeds of the difference of "
        "the correlations is above zero; beyond doubt, its 95% interval. never: not up to the "
        "largest K.",
    )


def cost_table(summary: Sequence[Row]) -> Table:
    """Tabulate passes and seconds by K, over all problems."""
    rows = [row for row in summary if row["problem"] == ALL]
    region = rows[0]["region"]
    lines = [
        (
            KINDS[row["kind"]], ESTIMATES[row["estimate"]].label, str(row["count"]),
            f"{row['forward']:g}", f"{row['backward']:g}", f"{row['seconds']:.2g}",
            f"{row['seconds_to_make']:.2g}",
        )
        for row in rows if row["region"] == region
    ]  # fmt: skip
    return Table(
        "Passes and seconds",
        (
            "networks", "estimate", "K", "forward", "backward", "seconds for 1000 locations",
            "seconds to make the networks",
        ),
        lines,
        "Medians over cells. Draws cost all the sampling whatever K, compilation included; the "
        "others are timed without it. mean logit-scaled and combined also take one pass over the "
        "training inputs when networks are made, which is in neither column.",
    )  # fmt: skip


def _failing_table(failures: Rows) -> Table:
    lines = [
        (r["problem"], str(r["seed"]), r["region"], KINDS[r["kind"]], r["reasons"])
        for r in failures
    ]
    return Table("Failed checks", ("problem", "seed", "region", "networks", "reasons"), lines, "")


def _interval(row: Row, prefix: str) -> str:
    mean, low, high = (row[f"{prefix}{part}"] for part in ("mean", "low", "high"))
    if mean is None:
        return "undefined"
    return f"{mean:.2f}" if low is None else f"{mean:.2f} [{low:.2f}, {high:.2f}]"
