"""Verdicts on a hypothesis from a confidence interval, over the seeds of one problem or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from isounc.statistics.intervals import Interval, interval_over_seeds, interval_over_strata

Verdict = Literal["confirmed", "refuted", "undecided"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""All verdicts, in the order in which they are counted."""


def verdict(interval: Interval, bound: float, *, below: bool = False) -> Verdict:
    """Decide from a confidence interval whether a number lies above a bound (or below it).

    Confirmed if all of it lies on the claimed side of the bound, refuted if all of it lies on the
    other, and undecided otherwise, also where there is none.
    """
    if interval.low is None or interval.high is None:
        return "undecided"
    above, under = interval.low > bound, interval.high < bound
    if below:
        above, under = under, above
    return "confirmed" if above else "refuted" if under else "undecided"


class Over(NamedTuple):
    """An interval over the seeds of one problem, or of several."""

    interval: Interval
    """The interval, and the number of seeds in it."""
    num_problems: int
    """The number of problems in it."""

    def columns(self) -> dict[str, float | int | None]:
        """Its numbers by the names of columns of a table."""
        return {**self.interval._asdict(), "num_problems": self.num_problems}


def over_seeds(values: Mapping[str, Sequence[float]], problem: str | None) -> Over:
    """The interval of a problem, or for None of those that have two seeds or more.

    Parameters
    ----------
    values
        A number of each seed, by problem.
    """
    if problem is not None:
        found = values.get(problem, [])
        return Over(interval_over_seeds(found, kind="mean"), int(bool(found)))
    strata = [v for v in values.values() if len(v) >= 2]
    return Over(interval_over_strata(strata), len(strata))
