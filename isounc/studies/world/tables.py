"""The tables of a world run: means over worlds, sizes at equal accuracy, and verdicts.

The unit of replication is the world. `all` among the sizes is the mean of a world's widths at two
layers, all of which must be known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from isounc.fields import integer, number, text
from isounc.statistics import Interval, interval_over_seeds, trend, verdict
from isounc.studies.world.cell import CONDITIONS, NUMBERS, OF_CONDITION, OF_SCORE, PARTS
from isounc.studies.world.references import CHAINS, CHECKS
from isounc.studies.world.scores import SCORES
from isounc.studies.world.settings import DEPTH
from isounc.studies.world.verdicts import HYPOTHESES, Hypothesis

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]
ALL = "all"
"""The mean over widths."""
_CELL = ("world", "width", "depth", "epochs")
_WHAT = ("condition", "part", "temperature", "score")
RESULT_COLUMNS = (*_CELL, *_WHAT, *NUMBERS)
"""Columns of `results.csv`."""
_SUMMARISED = (*OF_CONDITION, *OF_SCORE)
SUMMARY_COLUMNS = (
    *("width", "depth", "epochs", *_WHAT, "num_worlds"),
    *(f"{name}_{part}" for name in _SUMMARISED for part in ("mean", "low", "high", "worlds")),
)
"""Columns of `summary.csv`; num_worlds have a row, and `*_worlds` of these have the number."""
VERDICT_COLUMNS = (
    *("hypothesis", "size", "epochs", "score", "rival", "condition", "part", "statistic", "bound"),
    *("mean", "low", "high", "num_worlds", "verdict"),
)
"""Columns of `verdicts.csv`."""
MATCHED_COLUMNS = ("world", "width", "score", "accuracy", "r_trace", "partial_trace", "auroc")
"""Columns of `matched.csv`."""
_SHARE = number(-1e-6, 1 + 1e-6, None)
_SIGNED = number(-1 - 1e-6, 1 + 1e-6, None)
ROW = {
    "world": integer(0, 2**63 - 1),
    **dict.fromkeys(("width", "depth", "epochs"), integer(1, 10**6)),
    "condition": text(CONDITIONS),
    "part": text(PARTS),
    "temperature": number(above=0),
    "score": text(SCORES),
    **dict.fromkeys(NUMBERS, _SIGNED),
    **dict.fromkeys(("accuracy", "share_below", "oracle", "most_told", "auroc"), _SHARE),
    **dict.fromkeys(("asked_accuracy", "asked_auroc", "taught_accuracy"), _SHARE),
    **dict.fromkeys(("members_accuracy", "premise_accuracy"), _SHARE),
    "members_low": number(default=None),
    # Stepped up, a negative correlation of halves may go far below -1.
    **{name: number(default=None) for name in NUMBERS if name.startswith("reliability")},
    **dict.fromkeys((f"{name}_passed" for name in CHAINS), _SHARE),
    "hmc_divergent": _SHARE,
    **{name: number(0, 1e9, None) for name in CHECKS if name.endswith(("rhat", "ess", "ratio"))},
    "num_questions": number(0, 1e9, None),
    **dict.fromkeys(("nearer", "nearer_var_p"), number(-2 - 1e-6, 2 + 1e-6, None)),
}
"""What a row must hold, which anybody may have edited."""


_NONE = Interval(None, None, None, 0)


class Size(NamedTuple):
    """The size of a decoder and its training."""

    width: int
    depth: int
    epochs: int

    @property
    def label(self) -> str:
        """The size in words, without the training."""
        layers = f", {self.depth} layer{'' if self.depth == 1 else 's'}"
        return f"width {self.width}" + (layers if self.depth != DEPTH else "")


class What(NamedTuple):
    """What a number is about."""

    condition: str = ALL
    part: str = "all"
    temperature: float = 1.0
    score: str = "log_p"


class Results:
    """Rows by what they are about, for means over worlds."""

    def __init__(self, rows: Iterable[Row]):
        self._rows: dict[tuple[Size, What], dict[int, Row]] = {}
        for row in rows:
            size = Size(row["width"], row["depth"], row["epochs"])
            what = What(*(row[name] for name in _WHAT))
            self._rows.setdefault((size, what), {})[row["world"]] = row
        self.sizes = sorted({size for size, _ in self._rows})
        self.worlds = sorted({world for rows in self._rows.values() for world in rows})
        self.epochs = sorted({size.epochs for size in self.sizes})
        self.widths = sorted({size.width for size in self.sizes if size.depth == DEPTH})
        whats = {what for _, what in self._rows}
        self.conditions = [name for name in CONDITIONS if any(w.condition == name for w in whats)]
        self.temperatures = sorted({what.temperature for what in whats})
        self.scores = [name for name in SCORES if any(what.score == name for what in whats)]

    @property
    def longest(self) -> list[Size]:
        """The sizes at the longest training."""
        return [size for size in self.sizes if size.epochs == self.epochs[-1]]

    def rows(self, size: Size, what: What) -> Mapping[int, Row]:
        """The rows of all worlds."""
        return self._rows.get((size, what), {})

    def values(self, size: Size, what: What, column: str, rival: str = "") -> dict[int, float]:
        """A number of each world that has it, or its difference to a rival's."""
        own = {w: row[column] for w, row in self.rows(size, what).items()}
        if rival:
            other = self.values(size, what._replace(score=rival), column)
            own = {
                w: value - other[w] for w, value in own.items() if value is not None and w in other
            }
        return {w: value for w, value in own.items() if value is not None}

    def over(self, size: Size, what: What, column: str, rival: str = "") -> Interval:
        """The interval over worlds of a number, or of its difference to a rival's."""
        values = self.values(size, what, column, rival).values()
        return interval_over_seeds(values, kind="mean") if values else _NONE

    def over_widths(self, epochs: int, what: What, column: str, rival: str = "") -> Interval:
        """The same of the mean of a world's widths."""
        found = [
            self.values(Size(width, DEPTH, epochs), what, column, rival) for width in self.widths
        ]
        worlds = set.intersection(*map(set, found)) if found else set()
        means = [math.fsum(of[w] for of in found) / len(found) for w in sorted(worlds)]
        return interval_over_seeds(means, kind="mean")

    def keys(self) -> Iterable[tuple[Size, What]]:
        """Everything that there are rows about."""
        return self._rows


def summarise(results: Results) -> Rows:
    """Means and intervals over worlds of every number."""
    lines = []
    for size, what in results.keys():
        line: dict[str, Any] = {**size._asdict(), **what._asdict()}
        line["num_worlds"] = len(results.rows(size, what))
        for name in _SUMMARISED:
            interval = results.over(size, what, name)
            line |= {f"{name}_{part}": getattr(interval, part) for part in interval._fields[:3]}
            line[f"{name}_worlds"] = interval.num_seeds
        lines.append(line)
    return lines


def matched(results: Results, accuracy: float) -> Rows:
    """Numbers of every width at an accuracy on recall of what was told, by world and score.

    They are interpolated linearly between the first two consecutive training lengths on either side.

    Raises
    ------
    ValueError
        If no decoder passes that accuracy.
    """
    lines: Rows = []
    reached: list[float] = []
    for width, score in itertools.product(results.widths, results.scores):
        sizes = [Size(width, DEPTH, epochs) for epochs in results.epochs]
        told = [results.values(size, What("told"), "accuracy") for size in sizes]
        reached += [value for of_world in told for value in of_world.values()]
        for world in results.worlds:
            line: dict[str, Any] = {"world": world, "width": width, "score": score}
            between = _between([of_world.get(world) for of_world in told], accuracy)
            if between is None:
                continue
            i, share = between
            for column in MATCHED_COLUMNS[4:]:
                ends = [
                    results.values(size, What(score=score), column).get(world)
                    for size in (sizes[i], sizes[i + 1])
                ]
                if ends[0] is not None and ends[1] is not None:
                    line[column] = (1 - share) * ends[0] + share * ends[1]
            lines.append(line | {"accuracy": accuracy})
    if not lines:
        span = f"{min(reached):.2f} to {max(reached):.2f}" if reached else "none"
        raise ValueError(
            f"match must be an accuracy that a decoder passes between two training lengths (those "
            f"of this run reach {span}), got {accuracy:g}"
        )
    return lines


def _between(reached: Sequence[float | None], accuracy: float) -> tuple[int, float] | None:
    """The first step of training that passes an accuracy, and how far into it."""
    for i, (low, high) in enumerate(itertools.pairwise(reached)):
        if low is not None and high is not None and low <= accuracy <= high and low < high:
            return i, (accuracy - low) / (high - low)
    return None


def verdicts(results: Results, at_match: Rows) -> Rows:
    """What the intervals say about each hypothesis, for every size and over the widths."""
    rows = []
    for name, hypothesis in HYPOTHESES.items():
        if hypothesis.column == "slope":
            rows += _slopes(name, hypothesis, results, at_match)
            continue
        if hypothesis.column == "auroc_turn" and len(results.temperatures) < 2:
            continue
        places = itertools.product(
            hypothesis.scores, hypothesis.rivals, hypothesis.conditions, hypothesis.parts
        )
        for score, rival, condition, part in places:
            if score not in results.scores:
                continue
            what = What(condition, part, 1.0, score)
            found: list[tuple[str, Interval]] = [
                (size.label, results.over(size, what, hypothesis.column, rival))
                for size in results.longest
            ]
            if results.epochs:
                over = results.over_widths(results.epochs[-1], what, hypothesis.column, rival)
                found.insert(0, (ALL, over))
            for size, interval in found:
                if interval.num_seeds:
                    rows.append(
                        _verdict(name, hypothesis, size, score, interval)
                        | {
                            "epochs": results.epochs[-1], "rival": rival, "condition": condition,
                            "part": part,
                        }
                    )  # fmt: skip
    return rows


def _verdict(
    name: str, of: Hypothesis, size: str, score: str, interval: Interval
) -> dict[str, Any]:
    mean, low, high, count = interval
    return {
        "hypothesis": name, "size": size, "score": score, "rival": "", "statistic": of.column,
        "bound": of.bound, "mean": mean, "low": low, "high": high, "num_worlds": count,
        "verdict": verdict(interval, of.bound, below=of.below),
    }  # fmt: skip


def _slopes(name: str, hypothesis: Hypothesis, results: Results, at_match: Rows) -> Rows:
    """Verdicts on the change of a correlation with width, at equal accuracy."""
    rows = []
    if len(results.widths) < 2:
        return rows
    for score in hypothesis.scores:
        found = {
            (r["world"], r["width"]): r.get("r_trace") for r in at_match if r["score"] == score
        }
        by_world = {
            str(world): [found.get((world, width)) for width in results.widths]
            for world in results.worlds
        }
        change = trend(results.widths, by_world)
        if change.num_seeds:
            interval = Interval(change.slope_mean, change.low, change.high, change.num_seeds)
            row = _verdict(name, hypothesis, ALL, score, interval)
            rows.append(row | {"condition": ALL, "part": "all"})
    return rows
