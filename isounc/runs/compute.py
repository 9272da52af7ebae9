"""The part of a run that workers do: from a group of cells to its records in the run folder."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from isounc import untrusted
from isounc.fields import Unreadable
from isounc.runs import process
from isounc.runs.batches import Batch, Event, Group, Tell
from isounc.runs.folder import Record, RunFolder
from isounc.runs.provenance import device
from isounc.runs.settings import RunSettings, stored_settings

WORKER_MEBIBYTES = 800
"""Above this a worker process drops its programs after a group: two workers stay below 2 GiB."""

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
    device: dict[str, Any] | None = None
    """The device that computed it, if on another machine."""


def compute_group(
    group: Group,
    tell: Tell,
    *,
    evaluate: Callable[[Batch, Any, Say], Iterable[Record]],
    separable: bool,
    settings: Any,
    open_folder: Callable[[], RunFolder | None],
    most_mebibytes: float,
    is_remote: bool = False,
) -> Session:
    """Write the records of a group; a batch whose records are all there is skipped.

    Parameters
    ----------
    open_folder
        Opens the run folder; None where this machine does not see it: records are told.
    is_remote
        Whether records that cannot be written, as on a machine whose disk is full, are told, too.
    """
    before = process.compilations()
    folder = open_folder()
    with jax.enable_x64(settings.dtype == "float64"):
        for batch in group:
            missing = {c.name for c in batch.cells if folder is None or not folder.has(c.name)}
            if missing:

                def say(text: str, label: str = batch.label) -> None:
                    tell(Event(os.getpid(), f"{label}: {text}", 0.0))

                if separable:
                    cells = tuple(cell for cell in batch.cells if cell.name in missing)
                    batch = batch._replace(cells=cells)
                for record in evaluate(batch, settings, say):
                    if record.name in missing:
                        _store(record, folder, tell, is_remote=is_remote)
            tell(Event(os.getpid(), batch.label, batch.seconds))
    # Programs of this shape only hold memory from here on; those that serve every shape save time.
    process.bound_memory(most_mebibytes)
    after = process.compilations()
    return Session(
        after.count - before.count,
        after.cached - before.cached,
        after.seconds - before.seconds,
        process.peak_mebibytes(),
        device() if is_remote else None,
    )


def _store(record: Record, folder: RunFolder | None, tell: Tell, *, is_remote: bool) -> None:
    if folder is not None:
        try:
            folder.write(record)
            return
        except OSError:
            if not is_remote:
                raise
    # Arrays of a device would start that device in the process that takes the record.
    meta, arrays = jax.device_get((record.meta, record.arrays))
    tell(Record(record.name, meta, arrays))


def work_of(study: Any, settings: RunSettings, **options: Any) -> functools.partial[Session]:
    """The function from a group to its costs, which writes the records into `settings.out`.

    Parameters
    ----------
    options
        Further arguments of `compute_group`.
    """
    stored = stored_settings(settings, (*study.views, *study.growing))
    return functools.partial(
        compute_group,
        evaluate=study.evaluate,
        separable=study.separable,
        settings=settings,
        open_folder=functools.partial(RunFolder.open, settings.out, stored, study=study.name),
        **options,
    )


MARK = "shared-folder"
"""File of a run folder by whose content other machines know that they see the same folder."""


def open_if_shared(open_folder: Callable[[], RunFolder], path: str, token: str) -> RunFolder | None:
    """The run folder, or None on a machine that does not see it, or cannot write there.

    Parameters
    ----------
    path
        The folder, which may exist on a machine that does not share it: from a run of before.
    token
        What the process that started the run has written into its file `MARK`.
    """
    with contextlib.suppress(OSError, Unreadable):
        if untrusted.read_bytes(Path(path) / MARK, most=len(token)) == token.encode():
            return open_folder()
    return None


def what_is_left(groups: Sequence[Group], folder: RunFolder, *, separable: bool) -> list[Group]:
    """The groups without batches whose records are all there, and separable ones without cells."""
    left = []
    for group in groups:
        batches = []
        for batch in group:
            cells = tuple(cell for cell in batch.cells if not folder.has(cell.name))
            if cells:
                batches.append(batch._replace(cells=cells) if separable else batch)
        if batches:
            left.append(tuple(batches))
    return left
