"""Transfer between sizes: fitted on the answers of decoders of all other widths, tested on one width's.

The unit of replication is the world. All widths of a world are asked the same questions, so that their
errors are not independent of each other; as features are scores alone, no question is learnt by heart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit

from isounc.fields import integer, number, text
from isounc.llm.answers.logistic import (
    LogisticSettings,
    has_enough_of_both,
    log_odds_from_others,
    normal_scores,
    out_of_fold_log_odds,
)
from isounc.runs.folder import Record
from isounc.runs.page import Table
from isounc.runs.words import short
from isounc.statistics import Interval, interval_over_seeds
from isounc.studies.world.measures import auroc
from isounc.studies.world.scores import SCORES
from isounc.studies.world.settings import DEPTH

FEATURES = {
    "log_p": ("log_p",),
    "entropy": ("entropy",),
    "sq_norm": ("sq_norm",),
    "log_sq_norm": ("log_sq_norm",),
    "moderated": ("moderated",),
    "sq_norm null": ("sq_norm", "null"),
    "log_sq_norm log_p": ("log_sq_norm", "log_p"),
}
"""Scores that enter a regression, by their names in tables; the last but one is the paper's pair."""
FORMS = ("log", "rank")
"""Logarithms, of one shift and scale for all widths; normal scores within each width."""
COVERAGE = 0.8
"""Share of the answers that a threshold is to keep."""
TRANSFER_COLUMNS = (
    *("world", "left_out", "features", "form", "num_train", "num_test", "wrong"),
    *("auroc", "auroc_own", "expected_wrong", "kept", "wrong_kept"),
)
"""Columns of `transfer.csv`.

    wrong           share of wrong answers of the width left out
    auroc           for a wrong answer, fitted on the other widths
    auroc_own       of a regression fitted on its own answers, out of fold
    expected_wrong  mean probability of a wrong answer, fitted on the other widths
    kept            share of its answers below the threshold that keeps `COVERAGE` of theirs
    wrong_kept      share of wrong answers among these
"""
_SHARE = number(0, 1, None)
TRANSFER_ROW = {
    "world": integer(0, 2**63 - 1),
    "left_out": integer(1, 10**6),
    "features": text(FEATURES),
    "form": text(FORMS),
    **dict.fromkeys(("num_train", "num_test"), integer(0, 10**9)),
    **dict.fromkeys(TRANSFER_COLUMNS[6:], _SHARE),
}
"""What a row must hold, which anybody may have edited."""
_SETTINGS = LogisticSettings(num_repeats=1)
_SMALLEST = 1e-30
"""Scores below are taken for it by logarithms; some underflow in float32."""
Rows = list[dict[str, Any]]


def transfer(records: Iterable[Record], epochs: int) -> Rows:
    """Rows of `TRANSFER_COLUMNS` of the widths of each world after a training length."""
    return [
        _row(world, width, name, form, by_width)
        for world, by_width in widths_of_worlds(records, epochs).items()
        if len(by_width) > 1
        for width in sorted(by_width)
        for name in FEATURES
        for form in FORMS
    ]


def widths_of_worlds(records: Iterable[Record], epochs: int) -> dict[int, dict[int, Record]]:
    """Records by world and width, of two layers after a training length; those with scores alone."""
    worlds: dict[int, dict[int, Record]] = {}
    for record in records:
        cell = record.meta["cell"]
        is_asked = (cell["depth"], cell["epochs"]) == (DEPTH, epochs)
        if is_asked and f"score/{next(iter(SCORES))}" in record.arrays:
            worlds.setdefault(cell["world"], {})[cell["width"]] = record
    return dict(sorted(worlds.items()))


def _row(
    world: int, width: int, name: str, form: str, by_width: Mapping[int, Record]
) -> dict[str, Any]:
    data = {other: _data(record, FEATURES[name], form) for other, record in by_width.items()}
    test, wrong = data.pop(width)
    train, labels = (np.concatenate([parts[i] for parts in data.values()]) for i in (0, 1))
    row: dict[str, Any] = dict.fromkeys(TRANSFER_COLUMNS)
    row |= {"world": world, "left_out": width, "features": name, "form": form}
    row |= {"num_train": len(train), "num_test": len(test), "wrong": float(wrong.mean())}
    if not (has_enough_of_both(labels) and has_enough_of_both(wrong)):
        return row
    log_odds, of_train = np.split(
        log_odds_from_others(train, labels, np.concatenate([test, train])), [len(test)]
    )
    kept = log_odds <= np.quantile(of_train, COVERAGE)
    row |= {
        "auroc": auroc(log_odds, wrong),
        "auroc_own": auroc(out_of_fold_log_odds(test, wrong, settings=_SETTINGS), wrong),
        "expected_wrong": float(expit(log_odds).mean()),
        "kept": float(kept.mean()),
        "wrong_kept": float(wrong[kept].mean()) if kept.any() else None,
    }
    return row


def _data(
    record: Record, names: Sequence[str], form: str
) -> tuple[Float[np.ndarray, "Q F"], Bool[np.ndarray, " Q"]]:
    """The features of the judged answers, and whether these are wrong."""
    judged = record.arrays["judged"]
    found = np.stack([record.arrays[f"score/{name}"][judged] for name in names], axis=1)
    found = np.maximum(found.astype(float), _SMALLEST)
    found = np.log(found) if form == "log" else normal_scores(found, found)
    return found, record.arrays["wrong"][judged]


def transfer_table(rows: Rows) -> Table:
    """Tabulate the means over worlds."""
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault((row["left_out"], row["features"], row["form"]), []).append(row)
    lines = []
    for (width, name, form), of_worlds in groups.items():
        label = ", ".join(SCORES[feature].label for feature in FEATURES[name])
        columns = [over_worlds(of_worlds, column) for column in TRANSFER_COLUMNS[6:]]
        less = over_worlds(of_worlds, "auroc", "auroc_own")
        lines.append((f"width {width}", label, form, *columns[1:3], less, columns[0], *columns[3:]))
    return Table(
        "Fitted on the other widths",
        (
            "left out", "scores", "form", "AUROC", "fitted on its own", "less", "wrong",
            "wrong, as predicted", "kept", "wrong among these",
        ),
        lines,
        "Logistic regression of the scores of all other widths of the world, judged on the width left "
        f"out; means over worlds with 95% intervals. The threshold keeps {COVERAGE:.0%} of the other "
        "widths' answers.",
    )  # fmt: skip


def over_worlds(rows: Rows, column: str, less: str = "") -> str:
    """A mean over worlds with its interval, in words; of a difference if `less` is a column, too."""
    values = [
        row[column] - (row[less] if less else 0)
        for row in rows
        if row[column] is not None and (not less or row[less] is not None)
    ]
    if not values:
        return "-"
    found: Interval = interval_over_seeds(values, kind="mean")
    ends = "" if found.low is None else f" [{short(found.low)}, {short(found.high)}]"
    return f"{short(found.mean)}{ends}"
