"""A study of two groups whose cells wait, kill their process or fail, as a program of its own.

    python tests/runs/tiny_study.py EVENTS [options of the study]

Steps are files in the folder EVENTS, which a test looks for and makes: a busy machine changes the
time that things take and not what happens.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cell:
    name: str


def evaluate(batch, settings, say):
    from isounc.runs.folder import Record

    events = Path(os.environ["TINY_EVENTS"])
    for cell in batch.cells:
        say(cell.name)
        (events / f"began-{cell.name}-{os.getpid()}").touch()
        if (events / f"wait-{cell.name}").exists():
            time.sleep(60)
        if (events / f"kill-{cell.name}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        yield Record(cell.name, {"process": os.getpid()}, {})


def study():
    from isounc.runs.executors import Batch
    from isounc.runs.settings import RunSettings
    from isounc.runs.study import Report, Study, TableFile

    def batch(name):
        return Batch(name, (Cell(name),))

    def report(folder, settings):
        table = TableFile(("cell",), [{"cell": record.name} for record in folder.records()])
        tables = {"results.csv": table, "summary.csv": table}
        text = f"{len(table.rows)} cells, θ ± 1"
        return Report(tables, [], lambda drawn: [], text, {})

    return Study(
        name="tiny", description="A study for tests.", presets={"quick": RunSettings()},
        unit="cells", check=lambda settings: None,
        plan=lambda settings: [(batch("a"), batch("b"), batch("c")), (batch("d"),)],
        evaluate=evaluate, report=report,
    )  # fmt: skip


def run():
    from isounc.runs import command

    command.main(study(), sys.argv[2:])


if __name__ == "__main__":
    from isounc.doorway import end

    os.environ["TINY_EVENTS"] = sys.argv[1]
    end(run, kept="records")
