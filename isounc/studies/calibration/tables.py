"""The verdicts of a calibration run are made from its records, as rows of tables.

A verdict is PASS if a quantity's p-value, corrected for the number in its family (Holm), is at
least the level. A family is one test of one sampler: all quantities of all cases. Each control, in
which a fault was planted, is a family of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from isounc.fields import Field, Unreadable, declared, integer, items, number, section, text, truth
from isounc.runs.folder import Record, RunFolder
from isounc.statistics import holm
from isounc.studies.calibration.settings import Job
from isounc.studies.calibration.uniformity import judge

Rows = list[dict[str, Any]]

SBC_COLUMNS = tuple(
    "sampler coordinates case control quantity num_replications num_failed_gate num_few_draws ess_min "
    "ess_median difference p_value p_adjusted p_chi_square p_gate_passed verdict".split()
)
GEWEKE_COLUMNS = tuple(
    "sampler coordinates case control moment chain_mean chain_se direct_mean direct_se ess z p_value "
    "p_adjusted num_chains acceptance verdict".split()
)
GATE_COLUMNS = tuple(
    "sampler coordinates case control replication rhat_max ess_bulk_min reasons".split()
)
SUMMARY_COLUMNS = tuple(
    "sampler coordinates case control num_replications num_failed_gate num_few_draws sbc_p_adjusted sbc "
    "geweke_p_adjusted geweke expected".split()
)
HEADINGS = {
    "control": "planted fault",
    "num_replications": "replications",
    "num_failed_gate": "failed the gate",
    "sbc_p_adjusted": "SBC: smallest p",
    "sbc": "SBC",
    "geweke_p_adjusted": "Geweke: smallest p",
    "geweke": "Geweke",
    "ess_min": "smallest ESS",
    "difference": "largest difference",
    "p_value": "p",
    "p_adjusted": "p, corrected",
    "chain_mean": "chains",
    "chain_se": "s.e.",
    "direct_mean": "direct",
    "direct_se": "s.e.",
    "rhat_max": "largest R-hat",
    "ess_bulk_min": "smallest ESS",
    "reasons": "failed checks",
}
"""Headings on the page of the columns that are not headed by their own name."""


_REAL = number(default=None)
_GATE = {
    "passed": truth(),
    "reasons": items(text(), 10_000),
    "rhat_max": _REAL,
    "ess_bulk_min": _REAL,
}
_SBC = {
    "quantities": items(text(), 10_000, least=1),
    "gates": items(section(_GATE), 10**5, least=1),
}
_GEWEKE = {
    "moments": items(text(), 10_000, least=1),
    "acceptance": number(default=None),
    "num_chains": integer(1),
}
"""What the meta of records must hold."""


class Verdicts(NamedTuple):
    """Rows of the tables of a run, with the verdict of each test, and the ranks behind them."""

    sbc: Rows
    """A row for each test quantity of each job, `SBC_COLUMNS`."""
    geweke: Rows
    """A row for each moment of each job, `GEWEKE_COLUMNS`."""
    gates: Rows
    """A row for each replication whose reference failed its gate, `GATE_COLUMNS`."""
    summary: Rows
    """A row for each job, `SUMMARY_COLUMNS`."""
    ranks: dict[Job, Int[np.ndarray, "R Q"]]
    """Ranks of each job."""


def gather(
    folder: RunFolder, jobs: Sequence[Job], *, num_ranked: int, num_bins: int, level: float
) -> Verdicts:
    """Judge the ranks and moments of every job.

    Parameters
    ----------
    folder
        A run folder with the records `sbc-<job>-<batch>` and `geweke-<job>` of every job.
    num_ranked, num_bins
        Ranked draws and histogram bins, as in `isounc.studies.calibration.uniformity.judge`.
    level
        Chance of one or more false alarms in a family.
    """
    verdicts = Verdicts([], [], [], [], {})
    for job in jobs:
        _gather_ranks(verdicts, folder, job, num_ranked, num_bins)
        if not job.has_geweke:
            continue
        record = folder.require(f"geweke-{job.name}")
        _check(record, _GEWEKE, ())
        for i, moment in enumerate(record.meta["moments"]):
            row = {name: float(array[i]) for name, array in record.arrays.items()}
            row |= {name: record.meta[name] for name in ("acceptance", "num_chains")}
            row["moment"] = moment
            verdicts.geweke.append(job._asdict() | row)
    for rows in (verdicts.sbc, verdicts.geweke):
        _add_verdicts(rows, level)
    for job in jobs:
        sbc, geweke = rows_of(verdicts.sbc, job), rows_of(verdicts.geweke, job)
        line = {name: sbc[0][name] for name in ("num_replications", "num_failed_gate")}
        line["num_few_draws"] = max(row["num_few_draws"] for row in sbc)
        line |= {"geweke_p_adjusted": None, "geweke": "none"}
        for test, rows in (("sbc", sbc), ("geweke", geweke)):
            if not rows:
                continue
            line[f"{test}_p_adjusted"] = min(row["p_adjusted"] for row in rows)
            line[test] = "PASS" if all(row["verdict"] == "PASS" for row in rows) else "FAIL"
        line["expected"] = "PASS" if job.control == "none" else "FAIL"
        verdicts.summary.append(job._asdict() | line)
    return verdicts


def _check(record: Record, table: Mapping[str, Field], arrays: Sequence[str]) -> None:
    """Raise an `Unreadable` unless a record, which anybody may have edited, is what is read."""
    where = f"record {record.name!r}"
    meta = declared(record.meta, table, where)
    if missing := [name for name in arrays if name not in record.arrays]:
        raise Unreadable(f"{where} must have the array {missing[0]!r}, got none")
    length = len(meta["gates"]) if "gates" in meta else len(meta["moments"])
    for name, array in record.arrays.items():
        if array.dtype.kind not in "biuf" or array.ndim < 1 or len(array) != length:
            raise Unreadable(
                f"array {name!r:.80} of {where} must be numbers, {length} of them or rows, got "
                f"{array.dtype} of shape {array.shape}"
            )


def rows_of(rows: Rows, job: Job) -> Rows:
    """Return the rows of one job."""
    return [row for row in rows if tuple(row[name] for name in Job._fields) == job]


def _gather_ranks(
    verdicts: Verdicts, folder: RunFolder, job: Job, num_ranked: int, num_bins: int
) -> None:
    # Batches in the order of their numbers, which have four digits or more.
    found = folder.records(prefix=f"sbc-{job.name}-", key=lambda name: (len(name), name))
    records = list(found)
    if not records:
        raise ValueError(f"{folder.path} lacks the records of {job.title}; run the command again")
    for record in records:
        _check(record, _SBC, ("ranks", "ess"))
    ranks, ess = (np.concatenate([r.arrays[name] for r in records]) for name in ("ranks", "ess"))
    gates = [gate for r in records for gate in r.meta["gates"]]
    passed = np.array([gate["passed"] for gate in gates])
    verdicts.ranks[job] = ranks
    for i, gate in enumerate(gates):
        if not gate["passed"]:
            row = {name: gate[name] for name in ("rhat_max", "ess_bulk_min")}
            row |= {"replication": i, "reasons": "; ".join(gate["reasons"])}
            verdicts.gates.append(job._asdict() | row)
    judgements = judge(
        ranks, records[0].meta["quantities"],
        num_ranked=num_ranked, num_bins=num_bins, passed=passed,
    )  # fmt: skip
    for judgement, column in zip(judgements, ess.T, strict=True):
        row = {
            "num_replications": len(ranks),
            "num_failed_gate": int((~passed).sum()),
            # Draws that never move have an ESS of NaN, which counts as too few.
            "num_few_draws": int((~(column >= 2 * num_ranked)).sum()),
            "ess_min": float(column.min()),
            "ess_median": float(np.median(column)),
        }
        verdicts.sbc.append(job._asdict() | judgement._asdict() | row)


def _add_verdicts(rows: Rows, level: float) -> None:
    families: dict[tuple, Rows] = {}
    for row in rows:
        job = Job(*(row[name] for name in Job._fields))
        families.setdefault(job.family, []).append(row)
    for family in families.values():
        for row, p in zip(family, holm([row["p_value"] for row in family]), strict=True):
            row |= {"p_adjusted": float(p), "verdict": "PASS" if p >= level else "FAIL"}
