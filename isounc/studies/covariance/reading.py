"""Sentences, generated from the tables, that say what a run of the covariance study shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isounc.runs.words import interval, listed, ratio, ratio_interval, short, signed
from isounc.studies.covariance.cell import PRIOR
from isounc.studies.covariance.settings import ALL, POINTS
from isounc.studies.covariance.tables import OTHERS, Key, Place, Results, Row, failing
from isounc.studies.covariance.verdicts import CORRELATIONS, EVERY_PROXY, HYPOTHESES


class Tables:
    """The tables of a run, for look-ups."""

    def __init__(
        self,
        results: Results,
        rows: Sequence[Row],
        summary: Sequence[Row],
        verdicts: Sequence[Row],
    ):
        self.results, self.rows, self.summary, self.verdicts = results, rows, summary, verdicts
        self._lines = {tuple(line[name] for name in _LINE): line for line in summary}
        self._verdicts = {tuple(row[name] for name in _VERDICT): row for row in verdicts}

    def line(self, **where: Any) -> Row | None:
        """The line of the summary with these values of all of `_LINE`."""
        return self._lines.get(tuple(where[name] for name in _LINE))

    def verdict(self, **where: Any) -> Row | None:
        """The verdict with these values of all of `_VERDICT`."""
        return self._verdicts.get(tuple(where[name] for name in _VERDICT))

    def statistic(self, name: str, *, by_rank: bool = False) -> str:
        """The statistic of a hypothesis: a correlation, or a number of its own."""
        return HYPOTHESES[name].column or CORRELATIONS[by_rank]


_LINE = ("problem", "width", "point", "proxy", "form", "lam", "region")
_VERDICT = ("hypothesis", "problem", "width", "point", "proxy", "region", "statistic")


def reading(tables: Tables) -> list[str]:
    """Paragraphs: what was run, the correlations, each hypothesis by width, and the levels."""
    found = [_scope(tables)]
    for point in tables.results.points:
        found += [_correlations(tables, point), _single_proxies(tables, point)]
    found += [_hypothesis(tables, name) for name in HYPOTHESES]
    found += [_levels(tables), _directions(tables)]
    return [paragraph for paragraph in found if paragraph]


def _scope(tables: Tables) -> str:
    results = tables.results
    cells = {(row["problem"], row["width"], row["seed"]) for row in tables.rows}
    seeds = sorted({row["seed"] for row in tables.rows})
    failed = failing(tables.rows)
    words = (
        f"{len(cells)} cells: {listed(results.problems)} at width "
        f"{listed([str(width) for width in results.widths])}, seeds {seeds[0]} to {seeds[-1]}."
    )
    if not failed:
        return f"{words} Every one passed its gate and its checks."
    where: dict[tuple, dict[int, None]] = {}
    for row in failed:
        place = (row["problem"], row["width"], row["point"], row["region"])
        where.setdefault(place, {})[row["seed"]] = None
    names = [
        f"{problem} at width {width}, {point}, {region}: {len(of)}"
        for (problem, width, point, region), of in where.items()
    ]
    return f"{words} Failed, and in no number: {'; '.join(names)}."


def _own_regions(tables: Tables) -> list[str]:
    return [region for region in tables.results.regions if region != ALL]


def _correlations(tables: Tables, point: str) -> str:
    """Say the mean correlations over the problems, by width and region."""
    kinds = (
        ("the full Σ from training inputs", "full", "train"),
        ("from fresh ones", "full", "fresh"),
        ("from other data", "full", OTHERS),
        ("the diagonal from training inputs", "diagonal", "train"),
        ("from other data", "diagonal", OTHERS),
        ("isotropic", "isotropic", "train"),
    )
    sentences = []
    for width in tables.results.widths:
        parts = []
        for called, form, proxy in kinds:
            values = [
                short(mean_correlation(tables, width, point, region, proxy, form))
                for region in _own_regions(tables)
            ]
            if any(value != "undefined" for value in values):
                parts.append(f"{called} {' / '.join(values)}")
        if parts:
            sentences.append(f"width {width}: {'; '.join(parts)}")
    if not sentences:
        return ""
    regions = " / ".join(_own_regions(tables))
    return (
        f"Pearson's r with the MCMC variance at {POINTS[point]}, mean over the problems "
        f"({regions}). {'. '.join(s[0].upper() + s[1:] for s in sentences)}."
    )


def mean_correlation(
    tables: Tables, width: int, point: str, region: str, proxy: str, form: str
) -> float | None:
    """The mean of Pearson's r over the problems, also of the other data together."""
    place, key = Place(width, point, region), Key(point, proxy, form, PRIOR)
    return tables.results.mean_over(place, key, CORRELATIONS[0], ALL).interval.mean


def _single_proxies(tables: Tables, point: str) -> str:
    """Name the proxies that distort beyond doubt, and those that do not, by width."""
    parts = []
    for width in tables.results.widths:
        for region in _own_regions(tables):
            found: dict[str, list[str]] = {}
            for proxy in tables.results.proxies:
                row = tables.verdict(
                    hypothesis="distorts", problem=ALL, width=width, point=point, proxy=proxy,
                    region=region, statistic=CORRELATIONS[0],
                )  # fmt: skip
                if row is not None and row["mean"] is not None:
                    found.setdefault(row["verdict"], []).append(f"{proxy} ({signed(row['mean'])})")
            confirmed, refuted = found.get("confirmed", []), found.get("refuted", [])
            if not found:
                continue
            words = f"worse with {listed(confirmed)}" if confirmed else "worse with none"
            if refuted:
                words += f", better with {listed(refuted)}"
            parts.append(f"width {width}, {region}: {words}")
    if not parts:
        return ""
    return (
        f"One proxy at a time at {POINTS[point]}, r of the full Σ less that from the training "
        f"inputs, beyond doubt: {'; '.join(parts)}."
    )


def _hypothesis(tables: Tables, name: str) -> str:
    """Say the verdicts of a hypothesis for the mean of other data, by point, width and region."""
    hypothesis = HYPOTHESES[name]
    proxy = "train" if name == EVERY_PROXY else OTHERS
    parts = []
    for point in tables.results.points:
        for width in tables.results.widths:
            said = []
            for region in tables.results.regions:
                where = {
                    "hypothesis": name, "problem": ALL, "width": width, "point": point,
                    "proxy": proxy, "region": region,
                }  # fmt: skip
                row = tables.verdict(**where, statistic=tables.statistic(name))
                if row is None or row["mean"] is None:
                    continue
                words = f"{row['verdict']} in {region} ({interval(row)}"
                rank = tables.verdict(**where, statistic=tables.statistic(name, by_rank=True))
                if not hypothesis.column and rank is not None:
                    words += f"; by rank {rank['verdict']}, {interval(rank)}"
                said.append(f"{words})")
            if said:
                parts.append(f"{point}, width {width}: {', '.join(said)}")
    if not parts:
        return ""
    of = "" if name == EVERY_PROXY else ", mean of the other data"
    return f"“{name.capitalize()}” ({hypothesis.claim}{of}). {'. '.join(parts)}."


def _levels(tables: Tables) -> str:
    """Say how the sums of the estimates compare with that of the variances."""
    parts = []
    for point in tables.results.points:
        for width in tables.results.widths:
            said = []
            for form, proxies in (
                ("full", ("train", "shifted_4", "tight")),
                ("isotropic", ("train",)),
            ):
                for proxy in proxies:
                    line = tables.line(
                        problem=ALL, width=width, point=point, proxy=proxy, form=form, lam=PRIOR,
                        region="test",
                    )  # fmt: skip
                    if line is not None and line.get("log2_level_mean") is not None:
                        said.append(f"{form} from {proxy} {ratio_interval(line)}")
            if said:
                parts.append(f"{point}, width {width}: {listed(said)}")
    if not parts:
        return ""
    return f"Level, sum of the estimates over that of the variances, on test. {'. '.join(parts)}."


def _directions(tables: Tables) -> str:
    """Say how stiff directions of Sigma lie to the posterior's."""
    parts = []
    for point in tables.results.points:
        for width in tables.results.widths:
            said = []
            for proxy in tables.results.proxies:
                line = tables.line(
                    problem=ALL, width=width, point=point, proxy=proxy, form="full", lam=PRIOR,
                    region=ALL,
                )  # fmt: skip
                if line is None or line.get("log2_stiff_mean") is None:
                    continue
                words = f"{proxy} {ratio(line['log2_stiff_mean'])}"
                if line.get("overlap_stiff_mean") is not None:
                    words += f" (overlap {short(line['overlap_stiff_mean'])})"
                said.append(words)
            if said:
                parts.append(f"{point}, width {width}: {listed(said)}")
    if not parts:
        return ""
    return (
        "Along the directions in which Σ is stiffest, the posterior's variance within chains over "
        "that of Σ (and mean squared cosine of the angles to the posterior's own stiffest "
        f"directions, where draws are enough). {'. '.join(parts)}."
    )
