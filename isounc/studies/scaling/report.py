"""The report of a run: one self-contained HTML page and a Markdown file, from the folder alone.

    python -m isounc.studies.scaling.report RUN

draws the figures anew and writes `report.html` and `report.md` into RUN (`isounc.runs.page`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section, settings_table, write_page
from isounc.studies.scaling.figures import draw_figures
from isounc.studies.scaling.paper import SOURCE
from isounc.studies.scaling.results import Results
from isounc.studies.scaling.tables import (
    aleatoric_table,
    cost_table,
    gate_table,
    level_table,
    paper_table,
    point_table,
    predictive_table,
    summary_table,
    trend_table,
    undefined_table,
)

__all__ = ["main", "make_report", "summary_table"]


def make_report(run: RunFolder | Results) -> Path:
    """Draw the figures and write `report.html` and `report.md`; the path of the page.

    Parts that the run does not have are left out, and the report says which and why.

    Raises
    ------
    ValueError
        If the run's results cannot be read.
    OSError
        If a file cannot be written.
    """
    results = Results.of(run)
    sections = _sections(results, draw_figures(results))
    name = results.run.path.resolve().name
    return write_page(results.run.path, name, sections)


def _sections(results: Results, drawn: Sequence[FigureFile]) -> list[Section]:
    def of_kind(*kinds: str) -> tuple[FigureFile, ...]:
        return tuple(figure for figure in drawn if figure.kind in kinds and figure.paths)

    headline, curves = of_kind("scaling")[:1], of_kind("scaling")[1:]
    info = results.run.read_info()
    skipped = [f"{figure.name}: {figure.reason}" for figure in drawn if not figure.paths]
    about = settings_table({"rows from": results.source, "not drawn": skipped}, "This report")
    sections = [
        Section("summary", "Summary", _overview(results), headline, (paper_table(results),)),
        Section(
            "width", "Change with width",
            ("A panel shows the cells of one problem. The dashed line is the paper's value, whose "
             f"width, region and prior are not known ({SOURCE}).",),
            curves, (trend_table(results),),
        ),
        Section(
            "budget", "Error budget",
            ("From averaged over draws to oracle Σ one linearises at a single point; from oracle Σ "
             "to isotropic the covariance of the draws gives way to the identity; link-aware keeps "
             "the link function. Differences need not add up.",),
            of_kind("budget"), (),
        ),
        Section("maps", "Uncertainty over the inputs", (), of_kind("maps"), ()),
        Section(
            "level", "Estimate against reference", (), of_kind("scatter"), (level_table(results),)
        ),
        Section("aleatoric", "Aleatoric part", (), (), (aleatoric_table(results),)),
        Section("predictions", "Predictions", (), (), (predictive_table(results),)),
        Section(
            "checks", "Checks",
            ("A cell counts in means and trends only if its reference passed the gate and its "
             "point estimate passed its checks.",),
            (), (gate_table(results), point_table(results), undefined_table(results)),
        ),
        Section(
            "settings", "Settings and environment", (), (),
            (
                settings_table(results.run.settings, "Settings"),
                settings_table(info, "Environment and checks"),
                cost_table(results),
                about,
            ),
        ),
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
        passed = sum(cell.passed for cell in results.cells)
        failed = len(results.cells) - passed
        lines.append(
            f"{passed} of {len(results.cells)} cells passed the gate of their reference"
            + (f"; {failed} failed, are drawn hollow and are in no mean." if failed else ".")
        )
        if passed == 0:
            lines.append("No reference can be trusted, so there is no correlation to report.")
    else:
        lines.append("There are no records, so no gate results, maps or scatter plots.")
    return tuple(lines)


@dataclass(frozen=True)
class _Command:
    """Draw the figures of a run anew and write its report.

    Needs the run folder alone: RUN/figures, RUN/report.html (one self-contained file) and
    RUN/report.md are written; nothing is computed and no record is changed.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder: it holds settings.json, as experiments/scaling.py writes it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0, or 2 with one line on standard error if RUN cannot be used."""
    command = tyro.cli(_Command, args=arguments, prog="python -m isounc.studies.scaling.report")
    try:
        results = Results.of(RunFolder.load(command.run))
        page = make_report(results)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(summary_table(results))
    print(f"Report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
