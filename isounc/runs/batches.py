"""Batches of cells and groups of them, the events that executors report, and the Protocol of executors.

A *batch* is what is computed together (the seeds of a cell, say). Batches whose arrays have equal
shapes form a *group*, which one worker computes one after the other, so that each shape is
compiled once in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from isounc.runs.folder import Record


class Batch(NamedTuple):
    """Cells that are computed together."""

    label: str
    """Name in the progress bar and in a dry run."""
    cells: tuple[Any, ...]
    """The cells; each has a `name`, which is the name of its record."""
    seconds: float = 1.0
    """Forecast of the time that one CPU core takes, without compilation."""
    mebibytes: float = 0.0
    """Forecast of the memory beyond that of the interpreter and the compiler."""
    work: int = 0
    """Examples times parameters of a gradient; the worker's compiler is chosen by it."""


Group = tuple[Batch, ...]


class Event(NamedTuple):
    """News from a worker."""

    worker: int
    """Process number of the worker."""
    text: str
    """The step that is being computed."""
    done: float
    """Forecast seconds of the work that this event completes."""


class Lost(NamedTuple):
    """A batch without a result: its worker was ended from outside, or it raised an error."""

    batch: Batch
    """The batch."""
    reason: str
    """How the worker ended, or the traceback of the error."""


Tell = Callable[[Event | Record], None]
"""Takes news: an event, or a record that could not be written where it was computed."""
Work = Callable[[Group, Tell], Any]


def grouped(batches: Iterable[tuple[Hashable, Batch]]) -> list[Group]:
    """Make a group of the batches of equal keys, such as shapes, which share their programs.

    Groups come in the order of their first batch.
    """
    groups: dict[Hashable, list[Batch]] = {}
    for key, batch in batches:
        groups.setdefault(key, []).append(batch)
    return [tuple(group) for group in groups.values()]


class Executor(Protocol):
    """Computes each group by `work(group, tell)` and yields what it returns, in any order.

    `Lost` in place of a result is a batch that could not be computed. Settings of an executor's own
    are further arguments by keyword, with defaults.
    """

    def __call__(
        self, groups: Sequence[Group], work: Work, tell: Tell, workers: int
    ) -> Iterator[Any]: ...
