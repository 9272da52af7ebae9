"""Sentences, generated from the tables, that say what a run of the study passes shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isounc.runs.words import listed
from isounc.studies.passes.settings import ALL, KINDS
from isounc.studies.passes.tables import Row, Rows

_NAMES = {
    "mean_norm": "the mean of ‖∇p‖²",
    "mean_logit_scaled": "the mean logit-scaled estimate",
    "variance": "the variance of p",
    "label_variance": "the null p̄(1−p̄)",
    "combined": "the combination",
}


def reading(
    summary: Sequence[Row], differences: Sequence[Row], crossings: Sequence[Row]
) -> list[str]:
    """Sentences on the mean over all problems: crossings, averaging, nulls, and one pass.

    Parameters
    ----------
    summary, differences, crossings
        Rows of the tables of a run.
    """
    table = _Table(summary, differences, crossings)
    paragraphs = []
    for kind in table.kinds:
        sentences = [table.crossing(kind, region) for region in table.regions]
        sentences += [table.one_pass(kind), table.averaging(kind), table.best(kind)]
        paragraphs.append(f"{_capital(KINDS[kind])}. " + " ".join(filter(None, sentences)))
    return [*paragraphs, table.seconds()]


class _Table:
    def __init__(
        self, summary: Sequence[Row], differences: Sequence[Row], crossings: Sequence[Row]
    ):
        def of_all(rows: Sequence[Row]) -> Rows:
            return [dict(row) for row in rows if row["problem"] == ALL]

        self._summary, self._differences = of_all(summary), of_all(differences)
        self._crossings = of_all(crossings)
        self.kinds = list(dict.fromkeys(row["kind"] for row in self._summary))
        self.regions = list(dict.fromkeys(row["region"] for row in self._summary))
        self.counts = sorted({row["count"] for row in self._summary})

    def crossing(self, kind: str, region: str) -> str:
        """Say from which K on the variance is ahead of the mean gradient norm."""
        where = {
            "kind": kind, "region": region, "statistic": "pearson", "estimate": "variance",
            "rival": "mean_norm",
        }  # fmt: skip
        found = _one(self._crossings, **where, terms="same K")
        if found is None or found["largest"] is None:
            return f"In {region}, no seed has both {_NAMES['variance']} and {_NAMES['mean_norm']}."
        at = found["crossing"]
        if at is None:
            last = _one(self._differences, **where, terms="same K", count=found["largest"])
            sentence = (
                f"In {region}, the variance of p does not overtake the mean of ‖∇p‖² up to "
                f"K = {found['largest']}, where Pearson's r differs by {_signed(last)}"
            )
        else:
            first = _one(self._differences, **where, terms="same K", count=at)
            pair = [self._r(kind, region, name, at) for name in ("variance", "mean_norm")]
            sure = found["beyond_doubt"]
            doubt = f"beyond doubt from K = {sure} on"
            if sure is None:
                doubt = f"up to K = {found['largest']} not beyond doubt"
            sentence = (
                f"In {region}, the variance of p overtakes the mean of ‖∇p‖² at K = {at} "
                f"(Pearson {pair[0]} against {pair[1]}, difference {_signed(first)}; {doubt})"
            )
        equal = _one(self._crossings, **where, terms="same passes")
        if equal is None or equal["crossing"] is None:
            return f"{sentence}."
        return f"{sentence}; where both have as many passes, at K = {equal['crossing']}."

    def one_pass(self, kind: str) -> str:
        """Say from which K on the variance is ahead of one pass through one network."""
        found = {
            region: _one(
                self._crossings, kind=kind, region=region, statistic="pearson",
                estimate="variance", rival="mean_logit_scaled", terms="one network",
            )
            for region in self.regions
        }  # fmt: skip
        at = {
            region: f"K = {row['crossing']}" if row["crossing"] else f"no K up to {row['largest']}"
            for region, row in found.items()
            if row is not None and row["largest"] is not None
        }
        if not at:
            return ""
        return (
            "One pass, the logit-scaled estimate of a single network, is overtaken by the variance "
            f"over K of them at {_by_value(at)}."
        )

    def averaging(self, kind: str) -> str:
        """Say what the mean gradient norm gains from the most networks in place of one."""
        largest = self.counts[-1]
        parts = []
        for region in self.regions:
            row = _one(
                self._differences, kind=kind, region=region, statistic="pearson",
                estimate="mean_norm", rival="mean_norm", terms="one network", count=largest,
            )  # fmt: skip
            if row is not None and row["mean"] is not None:
                parts.append(f"{_signed(row)} in {region}")
        if not parts:
            return ""
        return f"{largest} networks in place of one change r of the mean of ‖∇p‖² by " + (
            f"{listed(parts)}."
        )

    def best(self, kind: str) -> str:
        """Name the estimate with the highest correlation for the fewest and the most networks."""
        parts = []
        for count in dict.fromkeys((self.counts[0], self.counts[-1])):
            best, height = {}, []
            for region in self.regions:
                rows = [
                    row for row in self._summary
                    if (row["kind"], row["region"], row["count"]) == (kind, region, count)
                    and row["pearson_mean"] is not None
                ]  # fmt: skip
                if rows:
                    # Of equal ones the first: at K = 1 the combination is logit-scaled.
                    top = max(rows, key=lambda row: row["pearson_mean"])
                    best[region] = f"that of {_NAMES[top['estimate']]}"
                    height.append(_short(top["pearson_mean"]))
            if best:
                parts.append(
                    f"At K = {count} the highest r is {_by_value(best)} ({', '.join(height)})."
                )
        return " ".join(parts)

    def seconds(self) -> str:
        """Say how long a pass takes, by what is computed in it, for the most networks."""
        rows = {row["estimate"]: row for row in self._summary if row["count"] == self.counts[-1]}
        each = {name: row["seconds"] / row["count"] for name, row in rows.items()}
        forward = each["label_variance"]
        if not forward:
            return ""
        return (
            f"Measured, a forward pass through one network takes {1000 * forward:.2g} ms for 1000 "
            f"locations; ‖∇p‖² takes {_times(each['mean_norm'] / forward)} times as long and the "
            f"logit-scaled estimate {_times(each['mean_logit_scaled'] / forward)} times, of which the "
            "integral over the link is a part."
        )

    def _r(self, kind: str, region: str, estimate: str, count: int) -> str:
        row = _one(self._summary, kind=kind, region=region, estimate=estimate, count=count)
        return "undefined" if row is None else _short(row["pearson_mean"])


def _one(rows: Sequence[Row], **where: Any) -> Row | None:
    return next((r for r in rows if all(r[name] == value for name, value in where.items())), None)


def _short(value: float | None) -> str:
    return "undefined" if value is None else f"{_round(value):.2f}"


def _signed(row: Row | None) -> str:
    if row is None or row["mean"] is None:
        return "undefined"
    mean, low, high = (row[part] for part in ("mean", "low", "high"))
    if low is None:
        return f"{_round(mean):+.2f}"
    return f"{_round(mean):+.2f} [{_round(low):+.2f}, {_round(high):+.2f}]"


def _round(value: float) -> float:
    """The value to two decimals, without the sign of a zero."""
    return round(value, 2) + 0.0


def _times(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def _by_value(by_region: Mapping[str, str]) -> str:
    """Name each value once, with its regions: "K = 8 in test, and K = 4 in grid and far"."""
    regions: dict[str, list[str]] = {}
    for region, value in by_region.items():
        regions.setdefault(value, []).append(region)
    parts = [f"{value} in {listed(names)}" for value, names in regions.items()]
    return ", and ".join(parts)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
