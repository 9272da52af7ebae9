"""A study whose cells compute a little with JAX, and meet faults that a test asks for by files.

    python -m tests.runs.cluster_study [options of the study]

The files lie in the folder `events`, a setting that is no part of the run: `fail-NAME` lets a cell
raise, `kill-NAME` ends its process once, `preempt-NAME` sends the signal of a queue once, `full-NAME`
lets what is written fail as on a full disk, and `wait-NAME` lets it wait until the file is gone.
"""

from __future__ import annotations

import atexit
import os
import resource
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from isounc.runs.batches import Batch
from isounc.runs.folder import Record
from isounc.runs.settings import RunSettings
from isounc.runs.study import Report, Study, TableFile


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    names: tuple[str, ...] = ("a", "b", "c", "d")
    """Names of the cells."""
    events: str = ""
    """Folder of the faults."""


@dataclass(frozen=True)
class Cell:
    name: str


def evaluate(batch, settings, say):
    import jax
    import jax.numpy as jnp

    events = Path(settings.events)
    for cell in batch.cells:
        say(cell.name)
        (events / f"began-{cell.name}-{os.getpid()}").touch()
        if _once(events / f"kill-{cell.name}"):
            os.kill(os.getpid(), signal.SIGKILL)
        if _once(events / f"preempt-{cell.name}"):
            os.kill(os.getpid(), signal.SIGUSR2)
        while (events / f"wait-{cell.name}").exists():
            time.sleep(0.05)
        if (events / f"fail-{cell.name}").exists():
            raise ValueError(f"{cell.name} cannot be computed")
        x = jax.random.normal(jax.random.key(ord(cell.name[0])), (40, 30))
        record = Record(cell.name, {"sum": float(x.sum())}, {"product": jnp.tanh(x @ x.T)})
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if (events / f"full-{cell.name}").exists():
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        try:
            yield record
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def _once(path):
    """Whether a file is there, which is taken away."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def plan(settings):
    batches = [Batch(name, (Cell(name),)) for name in settings.names]
    return [tuple(batches[:2]), tuple(batches[2:])]


def report(folder, settings):
    table = TableFile(("cell",), [{"cell": record.name} for record in folder.records()])
    tables = {"results.csv": table, "summary.csv": table}
    return Report(tables, [], lambda drawn: [], f"{len(table.rows)} cells", {})


STUDY = Study(
    name="cluster", description="A study for tests.", presets={"quick": Settings()}, unit="cells",
    check=lambda settings: None, plan=plan, evaluate=evaluate, report=report, views=("events",),
)  # fmt: skip


def records_of(folder):
    """The files of the records of a run, byte by byte."""
    return {path.name: path.read_bytes() for path in (folder / "cells").glob("*.*")}


def _say_whether_jax_has_started():
    from jax._src import xla_bridge

    started = "a" if xla_bridge.backends_are_initialized() else "no"
    print(f"this process has started {started} device")


if __name__ == "__main__":
    from isounc.runs import command
    from tests.runs import cluster_study  # by the name that other processes find it under

    atexit.register(_say_whether_jax_has_started)
    command.main(cluster_study.STUDY)
