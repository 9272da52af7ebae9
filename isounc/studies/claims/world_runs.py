"""Evidence from the world study: small decoders, of which it is known what they were told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from isounc.statistics import interval_over_seeds
from isounc.studies.claims.evidence import Row, records, row_of
from isounc.studies.claims.rules import Condition
from isounc.studies.claims.sources import NEEDED, Source

BASELINES = ("log_p", "entropy", "p_true", "frequency")
"""Uncertainties that are no part of the sum and take no gradient."""
_DEPTH = 2

Numbers = dict[int, dict[tuple[str, str], Row]]


def world(
    sources: Sequence[Source], claims: Iterable[str], note: Callable[[str, Source, str], None]
) -> list[Row]:
    """Rows of claims 11 and 12, of every size after the longest training; worlds are the seeds.

    The best baseline is chosen in each world. That the sum is unlike P(True) is no evidence where
    P(True) does not rank wrong answers above chance itself (the 95% interval of its AUROC over the
    worlds does not lie above 1/2): such sizes are left out, and noted.
    """
    found = []
    for source in sources:
        table = source.table("results.csv", NEEDED["world"]["results.csv"])
        whole = table[
            table["part"].eq("all") & table["temperature"].eq(1)
            & table["epochs"].eq(table["epochs"].max())
        ]  # fmt: skip
        for (width, depth), of_size in whole.groupby(["width", "depth"]):
            point = f"a decoder of width {width}"
            point += f", {depth} layer{'' if depth == 1 else 's'}" if depth != _DEPTH else ""
            numbers: Numbers = {}
            for row in records(of_size):
                numbers.setdefault(row["world"], {})[row["condition"], row["score"]] = row
            found += [
                row for row in _of_size(point, numbers, source, note) if row["claim"] in claims
            ]
    return found


def _of_size(
    point: str, numbers: Numbers, source: Source, note: Callable[[str, Source, str], None]
) -> list[Row]:
    def values(condition: str, score: str, column: str) -> dict[int, float]:
        rows = {w: of.get((condition, score)) for w, of in numbers.items()}
        return {w: r[column] for w, r in rows.items() if r is not None and r[column] is not None}

    def row(claim: str, measure: str, region: str, of_worlds: Sequence[float]) -> Row:
        where = Condition(measure, point, region, "")
        return row_of(claim, where, "world", of_worlds, source) | {"num_cells": len(of_worlds)}

    total = values("conflict16", "total", "auroc")
    rivals = [values("conflict16", name, "auroc") for name in BASELINES]
    gains = [
        own - max(of[w] for of in rivals)
        for w, own in total.items()
        if all(w in of for of in rivals)
    ]
    recall = [auroc - 0.5 for auroc in values("recall", "total", "auroc").values()]
    rows = [
        row("11", "combined is best", "16 tellings in conflict", gains),
        row("11", "chance on recall", "recall of a world", recall),
    ]
    itself = list(values("all", "p_true", "auroc").values())
    judged = interval_over_seeds(itself, kind="mean") if len(itself) > 1 else None
    if judged is None or judged.low is None or judged.low <= 0.5:
        mean = "undefined" if judged is None or judged.mean is None else f"{judged.mean:.2f}"
        note(
            "12", source,
            f"P(True) of {point} is at chance (AUROC for a wrong answer {mean}), so that a signal "
            "unlike it says nothing",
        )  # fmt: skip
        return rows
    # The study correlates with 1 - P(True).
    unlike = [-r for r in values("all", "sq_norm", "with_p_true").values()]
    return [*rows, row("12", "unlike P(True)", "all questions of a world", unlike)]
