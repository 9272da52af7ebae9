"""Sentences, generated from the tables, that say what a run of the confirmation study shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from isounc.runs.words import interval, listed, ratio, ratio_interval, short, signed
from isounc.statistics import VERDICTS
from isounc.studies.confirmation.settings import ALL, BASE, Condition
from isounc.studies.confirmation.tables import LEVEL, STATISTICS, Key, Results, Row, failing
from isounc.studies.confirmation.verdicts import HYPOTHESES
from isounc.studies.confirmation.words import condition_name, estimate_name

FEW = 6
"""Places that a sentence names one by one; of more it gives the number."""


class Tables:
    """The tables of a run, for look-ups."""

    def __init__(
        self,
        results: Results,
        rows: Sequence[Row],
        summary: Sequence[Row],
        differences: Sequence[Row],
        verdicts: Sequence[Row],
    ):
        self.results, self.rows = results, rows
        self.summary, self.differences, self.verdicts = summary, differences, verdicts

    def verdict(self, *, by_rank: bool = False, **where: Any) -> Row | None:
        """The verdict with these values, by Pearson's r or by Spearman's; a level has one alone."""
        statistics = (STATISTICS[1],) if by_rank else (STATISTICS[0], LEVEL)
        rows = [row for row in self.verdicts if row["statistic"] in statistics]
        return _one(rows, where)

    def line(self, **where: Any) -> Row | None:
        """The line of the summary with these values."""
        return _one(self.summary, where)


def _one(rows: Sequence[Row], where: dict[str, Any]) -> Row | None:
    return next((r for r in rows if all(r[name] == value for name, value in where.items())), None)


def reading(tables: Tables) -> list[str]:
    """Paragraphs: what was run, each hypothesis, where it loses and with what, and the levels."""
    found = [_scope(tables)]
    found += [_hypothesis(tables, name) for name in HYPOTHESES]
    found += [_behind(tables), _why(tables), _regressions(tables)]
    return [paragraph for paragraph in found if paragraph]


def _scope(tables: Tables) -> str:
    cells = {(r["problem"], r["factor"], r["value"], r["seed"]) for r in _own(tables.rows)}
    failed = [row for row in failing(tables.rows) if row["factor"] not in ("reference", "point")]
    seeds = sorted({row["seed"] for row in tables.rows})
    words = (
        f"{len(cells)} cells with a posterior of their own, seeds {seeds[0]} to {seeds[-1]}, on "
        f"{listed(tables.results.problems)}."
    )
    if not failed:
        return f"{words} Every one passed its gate and its checks."
    everywhere = [row for row in failed if not row["regions"]]
    partly = [row for row in failed if row["regions"]]
    said = []
    if everywhere:
        said.append(
            f"{len(everywhere)} of them failed their gate or a check and are in no number: "
            f"{_counted(everywhere)}."
        )
    if partly:
        said.append(
            f"{len(partly)} passed but for regions, in which they are in no number: "
            f"{_counted(partly)}."
        )
    return " ".join([words, *said])


def _counted(failed: Sequence[Row]) -> str:
    """How many cells of each condition, and regions, there are."""
    counts = Counter((row["factor"], row["value"], row["regions"]) for row in failed)
    return listed(
        f"{count} at {condition_name(Condition(factor, value))}{where and f' ({where})'}"
        for (factor, value, where), count in counts.items()
    )


def _own(rows: Sequence[Row]) -> list[Row]:
    """Rows of conditions that have a posterior of their own."""
    return [row for row in rows if row["factor"] not in ("reference", "point")]


def _hypothesis(tables: Tables, name: str) -> str:
    hypothesis = HYPOTHESES[name]
    at_base = _at_base(tables, name)
    if not at_base:
        return ""
    by = " By Pearson's r" if hypothesis.rival else " At the base"
    words = f"{name}, {hypothesis.claim}.{by}{', at the base' * bool(hypothesis.rival)}: {at_base}."
    if hypothesis.rival:
        words += f" By rank (Spearman's): {_at_base(tables, name, by_rank=True)}."
    return " ".join([words, *_elsewhere(tables, name)])


def _at_base(tables: Tables, name: str, *, by_rank: bool = False) -> str:
    """The verdicts of a hypothesis at the base, over the problems and by their number."""
    parts = []
    for region in tables.results.regions:
        where = {"hypothesis": name, "region": region, "factor": BASE, "value": ""}
        row = tables.verdict(problem=ALL, by_rank=by_rank, **where)
        if row is None:
            continue
        singles = [
            found["verdict"] for problem in tables.results.linked
            if (found := tables.verdict(problem=problem, by_rank=by_rank, **where)) is not None
        ]  # fmt: skip
        counts = [f"{n} {word}" for word in VERDICTS if (n := singles.count(word))]
        parts.append(
            f"{row['verdict']} in {region} ({_number(name, row)}; of {len(singles)} problems "
            f"{', '.join(counts)})"
        )
    return listed(parts) if parts else ""


def _number(name: str, row: Row, *, alone: bool = False) -> str:
    """The number of a verdict: a difference, or a level as a factor; alone, without its interval."""
    hypothesis = HYPOTHESES[name]
    if hypothesis.rival:
        return signed(row["mean"]) if alone else interval(row)
    words = "off by a factor of" if hypothesis.below else "by a factor of"
    return f"{words} {ratio(row['mean']) if alone else ratio_interval(row, '')}"


def _elsewhere(tables: Tables, name: str) -> list[str]:
    """Say under which other conditions the verdict is confirmed, refuted and undecided."""
    sentences = []
    for region in tables.results.regions:
        rows = [
            row for row in tables.verdicts
            if (row["problem"], row["hypothesis"], row["region"]) == (ALL, name, region)
            and row["factor"] != BASE and row["mean"] is not None
            and row["statistic"] != STATISTICS[1]
        ]  # fmt: skip
        if not rows:
            continue
        parts = []
        for word in VERDICTS:
            these = [row for row in rows if row["verdict"] == word]
            if not these:
                continue
            names = [
                f"{condition_name(Condition(row['factor'], row['value']))} "
                f"({_number(name, row, alone=True)})"
                for row in these
            ]
            few = word != "confirmed" and len(these) <= FEW
            parts.append(f"{len(these)} {word}{': ' + listed(names) if few else ''}")
        sentences.append(f"In {region}, of {len(rows)} other conditions {'; '.join(parts)}.")
    return sentences


def _behind(tables: Tables) -> str:
    """Name the problems at the base in which logit-scaled is behind beyond doubt."""
    parts = []
    for row in tables.differences:
        if (
            row["problem"] == ALL or row["factor"] != BASE or row["statistic"] != "pearson"
            or row["estimate"] != "logit_scaled" or row["high"] is None or row["high"] >= 0
            or row["rival"] not in ("isotropic", "null_aleatoric", "ensemble_16", "laplace")
            or row["problem"] not in tables.results.linked
        ):  # fmt: skip
            continue
        where = {name: row[name] for name in ("problem", "factor", "value", "region")}
        mine = tables.line(estimate="logit_scaled", **where)
        other = tables.line(estimate=row["rival"], **where)
        assert mine is not None and other is not None
        parts.append(
            f"{row['problem']} in {row['region']} against {estimate_name(row['rival'])} "
            f"({interval(row)}; r {short(mine['pearson_mean'])} against "
            f"{short(other['pearson_mean'])}, level of unit {ratio(mine['log2_level_mean'])})"
        )
    if not parts:
        return (
            "At the base logit-scaled is beyond doubt behind ‖∇p‖², p(1−p), Laplace or 16 networks "
            "on no problem in any region."
        )
    return f"Where it does not win: at the base it is beyond doubt behind on {listed(parts)}."


def _why(tables: Tables) -> str:
    """Say with what the lead over the norm goes, cell by cell at the base."""
    results, leads = tables.results, []
    for region in results.regions:
        mine, norm, null = (
            {(r["problem"], r["seed"]): r for r in results.rows(Key(BASE, "", region, name), ALL)}
            for name in ("logit_scaled", "isotropic", "null_aleatoric")
        )
        for cell, row in mine.items():
            others = norm.get(cell), null.get(cell)
            if None in others or row["gate"] != "pass":
                continue
            values = [row["pearson"], *(other["pearson"] for other in others)]  # pyright: ignore
            if None not in values and row["log2_level"] is not None:
                leads.append((values[0] - values[1], values[2] - values[1], row["log2_level"]))
    if len(leads) < 5:
        return ""
    lead, null_lead, level = np.array(leads).T
    same = int((np.sign(lead) == np.sign(null_lead)).sum())
    return (
        f"Why, as far as the tables show: over {len(leads)} cells and regions at the base, "
        "logit-scaled's lead over ‖∇p‖² has the sign of p(1−p)'s lead over it in "
        f"{same} (correlation of both {_correlation(lead, null_lead)}), as it should for a Gaussian "
        "logit that is wide, which saturates and leaves what p says. With the level of scale unit, "
        f"which says how much too wide it is, the lead has correlation {_correlation(lead, level)}."
    )


def _correlation(a: np.ndarray, b: np.ndarray) -> str:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return "undefined"
    return short(float(np.corrcoef(a, b)[0, 1]))


def _regressions(tables: Tables) -> str:
    """Say what the problems without a link show."""
    names = [name for name in tables.results.problems if name not in tables.results.linked]
    if not names:
        return ""

    def each(words: Callable[[dict[str, Any]], str]) -> str:
        regions = tables.results.regions
        places = [(name, region) for name in names for region in regions]
        where = [
            {"problem": name, "factor": BASE, "value": "", "region": region}
            for name, region in places
        ]
        found = [(w, words(w)) for w in where]
        return listed([f"{w['problem']} {w['region']} {text}" for w, text in found if text])

    def correlation(where: dict[str, Any]) -> str:
        line = tables.line(estimate="logit_scaled", **where)
        return "" if line is None else short(line["pearson_mean"])

    def level(where: dict[str, Any]) -> str:
        line = tables.line(estimate="logit_scaled_level", **where)
        return "" if line is None else ratio_interval(line)

    return (
        "Without a link logit-scaled is ‖∇f‖² times a constant: it orders inputs as the isotropic "
        f"estimate does, well or badly (r: {each(correlation)}). What it adds is the level, by "
        f"effective_dimension {each(level)}."
    )
