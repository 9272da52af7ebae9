"""Gather the evidence of all claims from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from isounc.studies.claims import other_runs, routing_runs, scaling_runs, world_runs
from isounc.studies.claims.evidence import Row, best
from isounc.studies.claims.sources import Source
from isounc.studies.claims.statements import CLAIMS


class Gathered(NamedTuple):
    """The evidence that was read from the tables of all runs."""

    rows: list[Row]
    """Evidence, `isounc.studies.claims.evidence.ROW_COLUMNS`."""
    notes: list[dict[str, str]]
    """What a run says nothing about, and why."""


def gather(sources: Sequence[Source], claims: Sequence[str]) -> Gathered:
    """The evidence of some claims.

    Raises
    ------
    ValueError
        If a table is absent, or of another version than this one reads.
    """
    notes: list[dict[str, str]] = []

    def note(claim: str, source: Source, why: str) -> None:
        if claim in claims:
            notes.append({"claim": claim, "source": source.name, "note": why})

    def of(study: str) -> list[Source]:
        return [source for source in sources if source.study == study]

    rows = [
        *scaling_runs.scaling(of("scaling"), claims, note),
        *other_runs.covariance(of("covariance")),
        *other_runs.spectrum(of("spectrum")),
        *other_runs.shift(of("shift")),
        *other_runs.cost(of("cost")),
        *other_runs.qa(of("qa"), claims, note),
        *world_runs.world(of("world"), claims, note),
        *routing_runs.routing(of("routing")),
        *routing_runs.second_answerers(of("qa")),
    ]
    said = {(row["claim"], row["source"]) for row in rows}
    said |= {(other["claim"], other["source"]) for other in notes}
    for source in sources:
        for claim in (key for key in claims if CLAIMS[key].study == source.study):
            if (claim, source.name) not in said:
                note(claim, source, "its tables have no row that the claim is about")
    rows = best(row for row in rows if row["claim"] in claims and _asked_for(row))
    order = {claim: i for i, claim in enumerate(CLAIMS)}
    return Gathered(sorted(rows, key=lambda row: order[row["claim"]]), notes)


def _asked_for(row: Row) -> bool:
    """Whether the protocol of a claim is about a row, where it says what it is about."""
    claim = CLAIMS[row["claim"]]
    if claim.problems and row["problem"] not in claim.problems:
        return False
    where = {(c.point, c.region, c.setting) for c in claim.planned}
    return not where or (row["point"], row["region"], row["setting"]) in where
