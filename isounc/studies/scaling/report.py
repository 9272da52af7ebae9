"""The report of a run of the scaling study: tables, figures and sections of the page."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section
from isounc.runs.study import Report, TableFile
from isounc.studies.scaling.comparisons import RESULT_COLUMNS
from isounc.studies.scaling.figures import plots
from isounc.studies.scaling.gates import gate_sentence, references
from isounc.studies.scaling.gathered import gather
from isounc.studies.scaling.null import null_section
from isounc.studies.scaling.paper import SOURCE
from isounc.studies.scaling.protocols import seed_batches
from isounc.studies.scaling.reading import reading
from isounc.studies.scaling.results import Results
from isounc.studies.scaling.settings import Settings
from isounc.studies.scaling.summary import SUMMARY_COLUMNS, summarise
from isounc.studies.scaling.tables import (
    aleatoric_table,
    cost_table,
    estimate_table,
    gate_table,
    level_table,
    paper_table,
    point_table,
    predictive_table,
    summary_table,
    trend_table,
    undefined_table,
)
from isounc.studies.scaling.two_valued import two_valued_section, two_valued_words


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Make the tables, figures and sections of a run of the scaling study.

    Rows come from the records or, in a folder without records (such as a committed one), from its
    `results.csv`.

    Raises
    ------
    ValueError
        If the run's results cannot be read.
    """
    names = [cell.name for cells in seed_batches(settings) for cell in cells]
    place = {name: i for i, name in enumerate(names)}
    records = folder.records(
        with_arrays=False, key=lambda name: (place.get(name, len(place)), name)
    )
    rows, metas, table = gather(records, f"the result rows of {folder.path}")
    if metas:
        source = f"{len(metas)} records"
        if not place.keys() <= metas.keys():
            source += f" of {len(place)}, since the run did not finish"
        summary = summarise(rows)
        results = Results(folder, rows, metas, source)
        results.summary = summary
        tables = {
            "results.csv": TableFile(RESULT_COLUMNS, table),
            "summary.csv": TableFile(SUMMARY_COLUMNS, results.summary.to_dict("records")),
        }
    else:
        results, tables = Results.of(folder), {}
    del rows  # which the results have
    verdicts = references(results)["gate"]
    passed, partly = (int((verdicts == verdict).sum()) for verdict in ("pass", "part"))
    return Report(
        tables=tables,
        plots=plots(results),
        sections=functools.partial(_sections, results),
        text=f"{summary_table(results)}\n{passed} of {len(verdicts)} cells passed the gate"
        + (f", {partly} in some regions." if partly else "."),
        checks={"cells": len(verdicts), "passed_gate": passed, "passed_in_part": partly},
        reading=reading(results),
        reading_tables=(paper_table(results), trend_table(results)),
    )


def _sections(results: Results, drawn: Sequence[FigureFile]) -> list[Section]:
    def of_kind(*kinds: str) -> tuple[FigureFile, ...]:
        return tuple(figure for figure in drawn if figure.kind in kinds and figure.paths)

    sections = [
        Section(
            "summary", "Summary", _overview(results), of_kind("headline"), (paper_table(results),)
        ),
        null_section(results),
        Section(
            "width", "Change with width",
            ("A panel shows the cells of one problem. The dashed line is the paper's value, whose "
             f"width, region and prior are not known ({SOURCE}).",),
            of_kind("scaling"), (trend_table(results),),
        ),
        Section(
            "budget", "Error budget",
            ("From averaged over draws to oracle Σ one linearises at a single point; from oracle Σ "
             "to isotropic the covariance of the draws gives way to the identity; link-aware keeps "
             "the link function. The null stands last. Differences need not add up.",),
            of_kind("budget"), (),
        ),
        Section("maps", "Uncertainty over the inputs", (), of_kind("maps"), ()),
        Section("level", "Estimate against reference", (), of_kind("scatter"),
                (level_table(results),)),
        two_valued_section(results),
        Section("aleatoric", "Aleatoric part", (), (), (aleatoric_table(results),)),
        Section("predictions", "Predictions", (), (), (predictive_table(results),)),
        Section(
            "checks", "Checks",
            ("A cell counts in means and trends only if its reference passed the gate and its "
             "point estimate passed its checks.",),
            (), (gate_table(results), point_table(results), undefined_table(results)),
        ),
        Section("estimates", "Estimates", (), (), (estimate_table(results),)),
        Section("cost", "Cost", (), (), (cost_table(results),)),
    ]  # fmt: skip
    kept = [s._replace(tables=tuple(t for t in s.tables if t.rows)) for s in sections]
    return [s for s in kept if s.figures or s.tables or s.key == "summary"]


def _overview(results: Results) -> tuple[str, ...]:
    if results.rows.empty and not results.cells:
        return ("The run holds no results yet.",)
    lines = [
        f"How well estimates of predictive uncertainty agree with MCMC, for {len(results.setups)} "
        f"problem settings; rows from {results.source}."
    ]
    if results.cells:
        lines.append(f"{gate_sentence(results)} What failed is drawn hollow.")
        if (references(results)["gate"] == "fail").all():
            lines.append("No reference can be trusted, so there is no correlation to report.")
        lines += two_valued_words(results)
    else:
        lines.append("There are no records, so no gate results, maps or scatter plots.")
    return tuple(lines)
