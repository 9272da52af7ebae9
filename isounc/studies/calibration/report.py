"""Views of a run of the calibration study: tables, figures and sections of the page."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from scipy import stats

from isounc.runs.figures import Plot
from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile, Section
from isounc.runs.study import Report, TableFile
from isounc.runs.tables import table_of_rows
from isounc.studies.calibration.figures import Scores, geweke_figure, rank_figure
from isounc.studies.calibration.settings import Settings, jobs_of
from isounc.studies.calibration.tables import (
    GATE_COLUMNS,
    GEWEKE_COLUMNS,
    SBC_COLUMNS,
    SUMMARY_COLUMNS,
    Findings,
    gather,
    rows_of,
)


def make_report(folder: RunFolder, settings: Settings) -> Report:
    """Tables, figures and sections of a run of the calibration study.

    Raises
    ------
    ValueError
        If the run lacks a record.
    """
    findings = gather(
        folder,
        jobs_of(settings),
        num_ranked=settings.num_ranked,
        num_bins=settings.num_bins,
        level=settings.level,
    )
    tables = {
        "results.csv": TableFile(SBC_COLUMNS, findings.sbc),
        "geweke.csv": TableFile(GEWEKE_COLUMNS, findings.geweke),
        "gates.csv": TableFile(GATE_COLUMNS, findings.gates),
        "summary.csv": TableFile(SUMMARY_COLUMNS, findings.summary),
    }
    return Report(
        tables=tables,
        plots=plots(findings, settings),
        sections=functools.partial(_sections, findings),
        text=summary_text(findings) + "\n\np-values are corrected for their number (Holm).",
        checks=findings.summary,
    )


def plots(findings: Findings, settings: Settings) -> list[Plot]:
    """The ranks of each job, and the z-scores of each sampler."""
    ranked = [
        Plot(
            f"sbc-{job.name}",
            "ranks",
            f"Ranks of the truth among posterior draws, {job.title}.",
            functools.partial(_rank_figure, findings, job, settings),
        )
        for job in findings.ranks
    ]
    tested = [
        Plot(
            f"geweke-{sampler}",
            "geweke",
            f"z-scores of Geweke's joint-distribution test of {sampler}.",
            functools.partial(_geweke_figure, findings, sampler, settings.level),
        )
        for sampler in dict.fromkeys(job.sampler for job in findings.ranks)
    ]
    return ranked + tested


def _rank_figure(findings, job, settings):
    rows, ranks = rows_of(findings.sbc, job), findings.ranks[job]
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


def _geweke_figure(findings, sampler, level):
    tests, bounds = [], []
    for job in (job for job in findings.ranks if job.sampler == sampler):
        rows = rows_of(findings.geweke, job)
        passed = [row["verdict"] == "PASS" for row in rows]
        z = np.array([row["z"] for row in rows])
        tests.append(Scores(job.title, [row["moment"] for row in rows], z, passed))
        together = [other for other in findings.ranks if other.family == job.family]
        size = sum(len(rows_of(findings.geweke, other)) for other in together)
        bounds.append(float(stats.t.isf(level / 2 / size, rows[0]["num_chains"] - 1)))
    return geweke_figure(
        tests,
        bounds=bounds,
        title=f"Geweke's joint-distribution test of {sampler}: "
        "z = (chains − direct draws) / standard error",
    )


def _sections(findings: Findings, drawn: Sequence[FigureFile]) -> list[Section]:
    def figures(kind: str) -> tuple[FigureFile, ...]:
        return tuple(figure for figure in drawn if figure.kind == kind)

    where = {"sampler": "sampler", "case": "case", "control": "planted fault"}
    summary = {
        "num_replications": "replications", "num_failed_gate": "failed the gate",
        "sbc_p_adjusted": "SBC: smallest p", "sbc": "SBC",
        "geweke_p_adjusted": "Geweke: smallest p", "geweke": "Geweke", "expected": "expected",
    }  # fmt: skip
    quantities = {
        "quantity": "quantity", "ess_min": "smallest ESS", "difference": "largest difference",
        "p_value": "p", "p_adjusted": "p, corrected", "verdict": "verdict",
    }  # fmt: skip
    moments = {
        "moment": "moment", "chain_mean": "chains", "chain_se": "s.e.", "direct_mean": "direct",
        "direct_se": "s.e.", "z": "z", "p_adjusted": "p, corrected", "verdict": "verdict",
    }  # fmt: skip
    gates = {
        "replication": "replication", "rhat_max": "largest R-hat", "ess_bulk_min": "smallest ESS",
        "reasons": "failed checks",
    }  # fmt: skip
    note = (
        "p-values are corrected for their number (Holm). A control has a planted fault, which must "
        "be found."
    )
    failed = "Replications whose reference failed its gate. They are ranked all the same."
    return [
        Section("summary", "Summary", (), (),
                (table_of_rows("Verdicts", where | summary, findings.summary, note),)),
        Section("sbc", "Simulation-based calibration", (), figures("ranks"),
                (table_of_rows("Test quantities", where | quantities, findings.sbc),)),
        Section("geweke", "Geweke's test", (), figures("geweke"),
                (table_of_rows("Moments", where | moments, findings.geweke),)),
        Section("gates", "Failed gates", (failed,), (),
                (table_of_rows("Failed gates", where | gates, findings.gates),)),
    ]  # fmt: skip


def summary_text(findings: Findings) -> str:
    """The summary as lines for a terminal."""
    lines = [
        f"{'':<32}{'failed gate':>14}{'SBC, smallest p':>20}{'Geweke, smallest p':>20}{'expected':>10}"
    ]
    for row in findings.summary:
        control = "" if row["control"] == "none" else f", {row['control']}"
        gates = f"{row['num_failed_gate']} of {row['num_replications']}"
        lines.append(
            f"{row['case'] + ' ' + row['sampler'] + control:<32}{gates:>14}"
            f"{row['sbc_p_adjusted']:>15.2g} {row['sbc']}{row['geweke_p_adjusted']:>15.2g} "
            f"{row['geweke']}{row['expected']:>10}"
        )
    return "\n".join(lines)
