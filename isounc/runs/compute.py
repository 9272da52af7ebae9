"""The part of a run that workers do: from a group of cells to its records in the run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from isounc.runs import process
from isounc.runs.executors import Batch, Event, Group, Tell
from isounc.runs.folder import Record, RunFolder

Say = Callable[[str], None]
"""Takes a text about the progress within a batch."""


class Session(NamedTuple):
    """Costs of computing a group."""

    compiled: int
    """Programs compiled."""
    cached: int
    """Programs taken from the compilation cache."""
    compilation_seconds: float
    """Time spent on both."""
    peak_mebibytes: float
    """Largest resident set so far of the process that computed it."""


def compute_group(
    group: Group,
    tell: Tell,
    *,
    evaluate: Callable[[Batch, Any, Say], Iterable[Record]],
    separable: bool,
    settings: Any,
    open_folder: Callable[[], RunFolder],
    most_mebibytes: float,
) -> Session:
    """Write the records of a group; a batch whose records are all there is skipped."""
    before = process.compilations()
    folder = open_folder()
    with jax.enable_x64(settings.dtype == "float64"):
        for batch in group:
            missing = {cell.name for cell in batch.cells if not folder.has(cell.name)}
            if missing:

                def say(text: str, label: str = batch.label) -> None:
                    tell(Event(os.getpid(), f"{label}: {text}", 0.0))

                if separable:
                    cells = tuple(cell for cell in batch.cells if cell.name in missing)
                    batch = batch._replace(cells=cells)
                for record in evaluate(batch, settings, say):
                    if record.name in missing:
                        folder.write(record)
            tell(Event(os.getpid(), batch.label, batch.seconds))
    # Programs of this shape only hold memory from here on; those that serve every shape save time.
    process.bound_memory(most_mebibytes)
    after = process.compilations()
    return Session(
        after.count - before.count,
        after.cached - before.cached,
        after.seconds - before.seconds,
        process.peak_mebibytes(),
    )
