"""Simulate how long workers take for units of measured times, each of which one worker computes.

A unit goes to the worker that is idle first, in the order given, as the executor `processes` does it:

    makespan = max over workers of the end of their last unit
    idle share = 1 - sum of the times / (workers * makespan)

No schedule is shorter than the longest unit, nor than the sum over the number of workers; which of the
two is larger is what bounds it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple


class Schedule(NamedTuple):
    """The outcome of a simulation."""

    makespan: float
    """Seconds from the start to the end of the last unit."""
    idle_share: float
    """Share of the workers' time in which they have nothing to do."""
    least: float
    """Seconds that no schedule can go below: the longest unit, or the sum over the workers."""
    is_bound_by_largest: bool
    """Whether the longest unit alone takes longer than the sum over the workers."""


def simulate(seconds: Sequence[float], workers: int) -> Schedule:
    """Let so many workers compute units in their order.

    Raises
    ------
    ValueError
        If there are no units, or less than one worker.
    """
    if not seconds or workers < 1:
        raise ValueError(f"there must be units and workers, got {len(seconds)} and {workers}")
    free = [0.0] * min(workers, len(seconds))
    for of_unit in seconds:
        heapq.heapreplace(free, free[0] + of_unit)
    makespan, total = max(free), sum(seconds)
    largest, shared = max(seconds), total / workers
    idle_share = max(0.0, 1 - total / (workers * makespan)) if makespan > 0 else 0.0
    return Schedule(makespan, idle_share, max(largest, shared), largest > shared)
