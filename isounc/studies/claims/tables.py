"""The tables of the claims: findings in conditions, verdicts on claims, and verdicts in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from isounc.fields import integer, number, text
from isounc.runs.page import Table
from isounc.runs.words import listed, short, signed
from isounc.studies.claims.evidence import Row, conditions
from isounc.studies.claims.measures import MEASURES, Measure
from isounc.studies.claims.rules import Condition, Finding, Verdict, find
from isounc.studies.claims.statements import CLAIMS, NARROW, WIDE, WORDS, Claim

SUMMARY_COLUMNS = (
    "claim", *Condition._fields, "state", "mean", "low", "high", "bound", "side", "num_problems",
    "num_seeds", "p_for", "p_against", "exceptions", "why",
)  # fmt: skip
"""Columns of `summary.csv`: a row for each condition."""
VERDICT_COLUMNS = (
    "claim", "title", "verdict", "words", "conditions", "short", "numbers", "num_conditions",
    "num_supported", "num_contradicted", "num_alone_for", "num_alone_against", "num_failed",
    "num_undefined", "sources", "command", "notes",
)  # fmt: skip
"""Columns of `verdicts.csv`: a row for each claim."""
NOTE_COLUMNS = ("claim", "source", "note")
"""Columns of `notes.csv`: what runs say nothing about, and why."""
_TEXT = text(longest=1000, default="")
ROW = {
    "claim": text(CLAIMS),
    "measure": text(MEASURES),
    **dict.fromkeys(("point", "region", "setting", "problem", "widths", "source"), _TEXT),
    "mean": number(default=None),
    "se": number(0, default=None),
    **dict.fromkeys(("num_seeds", "num_cells", "num_failed", "num_undefined"),
                    integer(0, 2**53, default=0)),
}  # fmt: skip
"""What a row of evidence must hold, which anybody may have edited."""
NOTE = {"claim": text(CLAIMS), "source": _TEXT, "note": text(longest=10_000)}
"""What a note must hold."""


class Settled(NamedTuple):
    """A claim with what follows from the evidence."""

    key: str
    """Its number."""
    claim: Claim
    """What the paper says."""
    findings: tuple[Finding, ...]
    """One for each condition."""
    verdict: Verdict
    """The verdict."""
    rows: tuple[Row, ...]
    """The evidence."""
    notes: tuple[str, ...]
    """What runs say nothing about, and why."""

    @property
    def counted(self) -> list[Finding]:
        """Findings that decide and are there."""
        return [
            f for f in self.findings
            if MEASURES[f.condition.measure].counted and f.mean is not None
        ]  # fmt: skip

    def of_state(self, state: str) -> list[Finding]:
        """Findings in a state."""
        return [f for f in self.findings if f.state == state]


def settle(
    rows: Iterable[Row], notes: Iterable[Mapping[str, str]], claims: Sequence[str]
) -> list[Settled]:
    """Settle claims by the rules, from rows of evidence."""
    rows, notes, settled = list(rows), list(notes), []
    for key in claims:
        claim = CLAIMS[key]
        findings, verdict = find(
            conditions(rows, key), planned=claim.planned, problems=claim.problems,
            least_points=claim.least_points, together=claim.together,
        )  # fmt: skip
        own = tuple(row for row in rows if row["claim"] == key)
        said = tuple(f"{n['source']}: {n['note']}" for n in notes if n["claim"] == key)
        settled.append(Settled(key, claim, tuple(findings), verdict, own, said))
    return settled


def summary_rows(settled: Iterable[Settled]) -> list[Row]:
    """A row for each condition of each claim."""
    rows = []
    for s in settled:
        for f in s.findings:
            measure = MEASURES[f.condition.measure]
            rows.append({
                "claim": s.key, **f.condition._asdict(),
                **{name: getattr(f, name) for name in Finding._fields[1:]},
                "exceptions": " ".join(f.exceptions),
                "bound": measure.bound, "side": measure.side,
            })  # fmt: skip
    return rows


def verdict_rows(settled: Iterable[Settled]) -> list[Row]:
    """A row for each claim."""
    return [
        {
            "claim": s.key, "title": s.claim.title, "verdict": s.verdict, "words": words(s),
            "conditions": where(s), "short": where(s, most=2), "numbers": numbers(s), "num_conditions": len(s.counted),
            "num_supported": len(s.of_state("supported")),
            "num_contradicted": len(s.of_state("contradicted")),
            **dict(zip(("num_alone_for", "num_alone_against"), alone(s), strict=True)),
            "num_failed": sum(row.get("num_failed") or 0 for row in s.rows),
            "num_undefined": sum(row.get("num_undefined") or 0 for row in s.rows),
            "sources": " ".join(sorted({row["source"] for row in s.rows})),
            "command": s.claim.command, "notes": "; ".join(s.notes),
        }
        for s in settled
    ]  # fmt: skip


def words(settled: Settled) -> str:
    """The verdict with its conditions counted."""
    n = len(settled.counted)
    yes, no = len(settled.of_state("supported")), len(settled.of_state("contradicted"))
    if settled.verdict == "not run":
        return f"not run ({settled.claim.command})"
    if settled.verdict == "supported":
        return f"supported (all {n} conditions)" if n > 1 else "supported"
    if settled.verdict == "contradicted":
        return f"contradicted ({no} of {n} conditions)"
    if settled.verdict == "undecided":
        if not n:
            return "undecided (no number counts)"
        yes, no = alone(settled)
        return f"undecided ({n} condition{'s' * (n != 1)}; 95% intervals: {yes} for, {no} against)"
    against = f", contradicted in {no}" if no else ""
    return f"supported under conditions ({yes} of {n}{against})"


def alone(settled: Settled) -> tuple[int, int]:
    """Conditions whose 95% interval by itself lies on the claimed side, and on the other."""
    p_values = [(f.p_for, f.p_against) for f in settled.counted]
    yes = sum(p is not None and p <= 0.025 for p, _ in p_values)
    return yes, sum(p is not None and p <= 0.025 for _, p in p_values)


def where(settled: Settled, most: int | None = None) -> str:
    """The conditions that are supported and those that are contradicted, in words.

    Parameters
    ----------
    most
        Groups of conditions that are named, and problems, of those that are supported or, if there
        are none, of those that are contradicted; None names all of both.
    """
    every = [f.condition for f in settled.counted]
    parts = []
    for state, said, other in (
        ("supported", "holds", "not on"), ("contradicted", "fails", "though not on"),
    ):  # fmt: skip
        found = settled.of_state(state)
        if not found:
            continue
        names = [of_widths(n, settled) for n in condensed([f.condition for f in found], every)]
        more = len(names) - (most or len(names))
        text_of = f"{said} everywhere" if len(found) == len(every) else (
            f"{said}: {'; '.join(names[:most])}{f'; {more} more' if more > 0 else ''}"
        )  # fmt: skip
        odd = sorted({problem for f in found for problem in f.exceptions})
        named = ", ".join(odd) if most is None or len(odd) <= most else f"{len(odd)} problems"
        parts.append(text_of + (f" ({other} {named} in some)" if odd else ""))
        if most is not None:
            break
    return ". ".join(part[0].upper() + part[1:] for part in parts)


def of_widths(said: str, settled: Settled) -> str:
    """With the width in place of a band of which there is one width alone."""
    for band in (NARROW, WIDE):
        found = {row.get("widths") or "" for row in settled.rows if row["setting"] == band} - {""}
        if len(found) == 1 and (width := found.pop()).isdecimal():
            said = said.replace(band, f"width {width}")
    return said


def condensed(chosen: Sequence[Condition], every: Sequence[Condition]) -> list[str]:
    """Conditions in few words: those that differ in one place alone are joined, the most first.

    A place that takes all the values that occur beside the others is left out.
    """
    groups = {tuple(frozenset([part]) for part in condition) for condition in chosen}
    for place in (3, 2, 1):
        merged: dict[tuple, frozenset[str]] = {}
        for group in groups:
            rest = group[:place] + group[place + 1 :]
            merged[rest] = merged.get(rest, frozenset()) | group[place]
        groups = {(*rest[:place], values, *rest[place:]) for rest, values in merged.items()}
    order = [list(dict.fromkeys(c[i] for c in every)) for i in range(4)]

    def rank(group: tuple[frozenset[str], ...]) -> tuple:
        size = math.prod(map(len, group))
        return -size, [min(map(o.index, v)) for o, v in zip(order, group, strict=True)]

    texts = []
    for group in sorted(groups, key=rank):
        parts = []
        for place, values in list(enumerate(group))[1:]:
            beside = {
                c[place] for c in every
                if all(c[i] in group[i] for i in range(4) if i != place)
            }  # fmt: skip
            if values < beside:
                parts.append(_joined([v for v in order[place] if v in values and v]))
        place_text = ", ".join(filter(None, parts))
        (measure,) = group[0]
        if len(order[0]) > 1:
            texts.append(f"{measure} ({place_text})" if place_text else measure)
        else:
            texts.append(place_text or "all conditions")
    return texts


def _joined(names: Sequence[str]) -> str:
    """Names in words; those that differ in the width alone are one."""
    widths: dict[str, list[str]] = {}
    for name in names:
        before, comma, width = name.rpartition(", width ")
        widths.setdefault(before if comma and width.isdecimal() else name, []).append(width)
    return " or ".join(
        f"{before}, width {' or '.join(own)}" if before not in names else _said(before)
        for before, own in widths.items()
    )


def _said(name: str) -> str:
    """A name in words, where it has any."""
    return WORDS.get(name, name)


def place(condition: Condition) -> str:
    """A condition without its measure, in words."""
    return ", ".join(_said(part) for part in condition[1:] if part)


def number_text(finding: Finding) -> str:
    """The number of a finding with its 95% interval."""
    measure = MEASURES[finding.condition.measure]
    # A sign says something where a number is a difference.
    is_difference = measure.scale == "plain" and (measure.bound <= 0 or measure.side == "within")
    spell = signed if is_difference else short
    if finding.mean is None:
        return "-"
    if finding.low is None or finding.high is None:
        return spell(finding.mean)
    return f"{spell(finding.mean)} [{spell(finding.low)}, {spell(finding.high)}]"


def bound_text(measure: Measure) -> str:
    """The bound of a measure."""
    if measure.side == "within":
        return f"within ±{measure.bound:g}"
    return f"{measure.side} {measure.bound:g}"


def numbers(settled: Settled, chosen: Sequence[Finding] | None = None) -> str:
    """For each measure the smallest and the largest number, with what was asked for.

    Parameters
    ----------
    chosen
        Findings that have a number; None takes those that decide.
    """
    parts = []
    chosen = settled.counted if chosen is None else chosen
    for name, found in itertools.groupby(
        sorted(chosen, key=lambda f: settled.claim.measures.index(f.condition.measure)),
        lambda f: f.condition.measure,
    ):
        ordered = sorted(found, key=lambda f: f.mean or 0.0)
        measure = MEASURES[name]
        ends = [
            number_text(f)
            for f in ((ordered[0],) if len(ordered) == 1 else (ordered[0], ordered[-1]))
        ]
        parts.append(f"{measure.label} ({bound_text(measure)}): {' to '.join(ends)}")
    return "; ".join(parts)


def verdict_table(verdicts: Iterable[Mapping[str, Any]], *, whole: bool = False) -> Table:
    """The table of verdicts, from rows of `verdicts.csv`.

    Parameters
    ----------
    whole
        Name all conditions, not the first few groups alone.
    """
    names = ("claim", "title", "words", "numbers", "conditions" if whole else "short")
    rows = [tuple("" if row[n] is None else str(row[n]) for n in names) for row in verdicts]
    headings = ("", "claim", "verdict", "numbers: lowest and highest condition", "where")
    return Table("Verdicts", headings, rows, "")


def sources_text(settled: Settled) -> str:
    """The run folders that a claim rests on."""
    names = sorted({row["source"] for row in settled.rows})
    return listed(names) if names else "nothing"
