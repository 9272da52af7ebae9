"""The report of a run of the calibration study: tables, figures and sections of the page."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from isounc.runs.figures import Plot
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section, Table
from isounc.runs.study import Report, TableFile
from isounc.runs.tables import table_of_rows
from isounc.studies.calibration.figures import MomentTest, geweke_figure, rank_figure
from isounc.studies.calibration.settings import Job, Settings, jobs_of
from isounc.studies.calibration.tables import (
    GATE_COLUMNS,
    GEWEKE_COLUMNS,
    HEADINGS,
    SBC_COLUMNS,
    SUMMARY_COLUMNS,
    Rows,
    Verdicts,
    gather,
    rows_of,
)


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Make the tables, figures and sections of a run of the calibration study.

    Raises
    ------
    ValueError
        If the run lacks a record.
    """
    verdicts = gather(
        folder,
        jobs_of(settings),
        num_ranked=settings.num_ranked,
        num_bins=settings.num_bins,
        level=settings.level,
    )
    tables = {
        "results.csv": TableFile(SBC_COLUMNS, verdicts.sbc),
        "geweke.csv": TableFile(GEWEKE_COLUMNS, verdicts.geweke),
        "gates.csv": TableFile(GATE_COLUMNS, verdicts.gates),
        "summary.csv": TableFile(SUMMARY_COLUMNS, verdicts.summary),
    }
    return Report(
        tables=tables,
        plots=plots(verdicts, settings),
        sections=functools.partial(_sections, verdicts),
        text=summary_text(verdicts) + "\n\np-values are corrected for their number (Holm).",
        checks=verdicts.summary,
    )


def plots(verdicts: Verdicts, settings: Settings) -> list[Plot]:
    """List a figure of ranks for each job, and one of z-scores for each sampler."""
    ranked = [
        Plot(
            f"sbc-{job.name}",
            "ranks",
            f"Ranks of the truth among posterior draws, {job.title}.",
            functools.partial(_rank_figure, verdicts, job, settings),
        )
        for job in verdicts.ranks
    ]
    tested = [
        Plot(
            f"geweke-{sampler}-{coordinates}",
            "geweke",
            f"z-scores of Geweke's joint-distribution test of {sampler} in {coordinates} "
            "coordinates.",
            functools.partial(_geweke_figure, verdicts, (sampler, coordinates), settings.level),
        )
        for sampler, coordinates in dict.fromkeys(
            job[:2] for job in verdicts.ranks if job.has_geweke
        )
    ]
    return ranked + tested


def _rank_figure(verdicts: Verdicts, job: Job, settings: Settings) -> Figure:
    rows, ranks = rows_of(verdicts.sbc, job), verdicts.ranks[job]
    failed = f"{rows[0]['num_failed_gate']} of {len(ranks)} references failed the gate"
    return rank_figure(
        ranks,
        [row["quantity"] for row in rows],
        num_ranked=settings.num_ranked,
        num_bins=settings.num_bins,
        p_adjusted=[row["p_adjusted"] for row in rows],
        passed=[row["verdict"] == "PASS" for row in rows],
        level=settings.level,
        title=f"Ranks of the truth among {settings.num_ranked} draws, {job.title}: {failed}, all "
        "are ranked",
    )


def _geweke_figure(verdicts: Verdicts, tested: tuple[str, str], level: float) -> Figure:
    tests, bounds = [], []
    for job in (job for job in verdicts.ranks if job[:2] == tested and job.has_geweke):
        rows = rows_of(verdicts.geweke, job)
        passed = [row["verdict"] == "PASS" for row in rows]
        z = np.array([row["z"] for row in rows])
        tests.append(MomentTest(job.title, [row["moment"] for row in rows], z, passed))
        family = [other for other in verdicts.ranks if other.family == job.family]
        size = sum(len(rows_of(verdicts.geweke, other)) for other in family)
        bounds.append(float(stats.t.isf(level / 2 / size, rows[0]["num_chains"] - 1)))
    return geweke_figure(
        tests,
        bounds=bounds,
        title=f"Geweke's joint-distribution test of {' in '.join(tested)}: "
        "z = (chains − direct draws) / standard error",
    )


def _table(title: str, columns: str, rows: Rows, note: str = "") -> Table:
    names = (*Job._fields, *columns.split())
    return table_of_rows(title, {name: HEADINGS.get(name, name) for name in names}, rows, note)


def _sections(verdicts: Verdicts, drawn: Sequence[FigureFile]) -> list[Section]:
    def figures(kind: str) -> tuple[FigureFile, ...]:
        return tuple(figure for figure in drawn if figure.kind == kind)

    summary = _table(
        "Verdicts",
        "num_replications num_failed_gate sbc_p_adjusted sbc geweke_p_adjusted geweke expected",
        verdicts.summary,
        "p-values are corrected for their number (Holm). A control has a planted fault, which the "
        "tests must find.",
    )
    quantities = _table(
        "Test quantities", "quantity ess_min difference p_value p_adjusted verdict", verdicts.sbc
    )
    moments = _table(
        "Moments",
        "moment chain_mean chain_se direct_mean direct_se z p_adjusted verdict",
        verdicts.geweke,
    )
    gates = _table("Failed gates", "replication rhat_max ess_bulk_min reasons", verdicts.gates)
    failed = "The references of these replications failed their gate. They are ranked all the same."
    return [
        Section("summary", "Summary", (), (), (summary,)),
        Section("sbc", "Simulation-based calibration", (), figures("ranks"), (quantities,)),
        Section("geweke", "Geweke's test", (), figures("geweke"), (moments,)),
        Section("gates", "Failed gates", (failed,), (), (gates,)),
    ]


def summary_text(verdicts: Verdicts) -> str:
    """Write the summary as lines for a terminal."""
    lines = [
        f"{'':<44}{'failed gate':>14}{'SBC, smallest p':>20}{'Geweke, smallest p':>20}"
        f"{'expected':>10}"
    ]
    for row in verdicts.summary:
        control = "" if row["control"] == "none" else f", {row['control']}"
        p = row["geweke_p_adjusted"]
        geweke = f"{'-' if p is None else format(p, '.2g'):>15} {row['geweke']}"
        gates = f"{row['num_failed_gate']} of {row['num_replications']}"
        lines.append(
            f"{' '.join((row['case'], row['sampler'], row['coordinates'])) + control:<44}"
            f"{gates:>14}{row['sbc_p_adjusted']:>15.2g} {row['sbc']}{geweke}{row['expected']:>10}"
        )
    return "\n".join(lines)
