"""Gather the evidence of all claims from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from isounc.studies.claims import evidence
from isounc.studies.claims.evidence import Row
from isounc.studies.claims.sources import Source
from isounc.studies.claims.statements import CLAIMS


class Gathered(NamedTuple):
    """What the tables say."""

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
        *evidence.scaling(of("scaling"), claims, note),
        *evidence.covariance(of("covariance")),
        *evidence.spectrum(of("spectrum")),
        *evidence.shift(of("shift")),
        *evidence.qa(of("qa"), claims),
    ]
    rows = evidence.best(row for row in rows if row["claim"] in claims)
    order = {claim: i for i, claim in enumerate(CLAIMS)}
    return Gathered(sorted(rows, key=lambda row: order[row["claim"]]), notes)
