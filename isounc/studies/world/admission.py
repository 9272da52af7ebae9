"""Whether the condition `rule` enters the tables: only for sizes of decoders that have learnt the rule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from isounc.runs.words import short
from isounc.statistics import Interval
from isounc.studies.world.corpus import NUM_ANSWERS
from isounc.studies.world.tables import Results, Size, What

CHANCE = 1 / NUM_ANSWERS
"""Accuracy of replies that do not depend on the premise."""
MARGIN = 0.1
"""What the lower bound is to exceed chance by: then 13 of the 96 questions of three relations are
right, and an AUROC, which needs ten, is defined."""
RULE = What("rule")


class Admission(NamedTuple):
    """What a size of decoders has learnt of the rule after its longest training."""

    size: Size
    """The size."""
    accuracy: Interval
    """Accuracy of all members, over worlds, or in a single world over its members."""
    premises: float | None
    """Accuracy on the premises."""

    @property
    def is_admitted(self) -> bool:
        """Whether the lower 95% bound is above chance by more than the margin; unknown is not."""
        return self.accuracy.low is not None and self.accuracy.low > CHANCE + MARGIN


def admissions(results: Results) -> list[Admission]:
    """The decision for every size that was asked questions of a rule.

    The interval is over worlds. A single world has none, and its members stand in, which says
    something of that world alone.
    """
    found = []
    for size in results.longest:
        accuracy = results.over(size, RULE, "members_accuracy")
        if accuracy.mean is None:
            continue
        if accuracy.num_seeds == 1:
            (low,) = results.values(size, RULE, "members_low").values() or (None,)
            accuracy = accuracy._replace(low=low)
        premises = results.over(size, RULE, "premise_accuracy").mean
        found.append(Admission(size, accuracy, premises))
    return found


def without_dropped(
    rows: Iterable[dict[str, Any]], decided: Sequence[Admission]
) -> list[dict[str, Any]]:
    """The rows but those of `rule` of the sizes that are not admitted, after every training."""
    admitted = {(of.size.width, of.size.depth) for of in decided if of.is_admitted}
    return [
        row
        for row in rows
        if row["condition"] != RULE.condition or (row["width"], row["depth"]) in admitted
    ]


def sentence(decided: Sequence[Admission], num_worlds: int) -> str:
    """Say of every size whether its questions of a rule enter the tables; empty without a rule."""
    if not decided:
        return ""
    said = []
    for of in decided:
        low = "none" if of.accuracy.low is None else f"{of.accuracy.low:.3f}"
        said.append(
            f"{of.size.label} {'admitted' if of.is_admitted else 'dropped'}, right for "
            f"{of.accuracy.mean:.3f} (lower bound {low}), of the premises for {short(of.premises)}"
        )
    unit = "worlds" if num_worlds > 1 else "members of one world"
    return (
        "Answers that were never told and follow by a rule enter the tables of a size whose lower 95% "
        f"bound on their accuracy, over {unit}, is above {CHANCE + MARGIN:.3f}, which is chance "
        f"({CHANCE:.3f}) and {MARGIN:g}: {'; '.join(said)}."
    )
