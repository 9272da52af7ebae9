"""One step of the driver on a folder of finished cells, measured in a process of its own.

    python benchmarks/scale_bookkeeping.py resume calibration FOLDER '{"num_replications": 1000}'

`scale.py` calls it. Steps: resume (plan, open the folder, find that nothing is left), verify (read and
verify up to 200 records, as for a folder without its list), report (tables, figures and page). The last
line of the output has the seconds, the seconds of CPU (user and system) and the peak of resident memory.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from isounc.runs import process
from isounc.runs.folder import RunFolder
from isounc.runs.settings import stored_settings
from isounc.runs.study import Study, remaining, report_run
from isounc.studies.calibration.settings import PRESETS as CALIBRATION
from isounc.studies.calibration.study import STUDY as CALIBRATION_STUDY
from isounc.studies.scaling.settings import PRESETS as SCALING
from isounc.studies.scaling.study import STUDY as SCALING_STUDY

STUDIES: dict[str, tuple[Study[Any], Any]] = {
    "calibration": (
        CALIBRATION_STUDY,
        dataclasses.replace(
            CALIBRATION["quick"], samplers=("hmc",), cases=("logistic",), controls=(), batch=1
        ),
    ),
    "scaling": (
        SCALING_STUDY,
        dataclasses.replace(SCALING["quick"], problems=("xor",), figures="shown"),
    ),
}
"""Studies whose records are copied, with their settings but for the number of cells."""
MOST_VERIFIED = 200
"""Records that are verified."""


def settings_of(name: str, changes: dict[str, Any]) -> Any:
    """Settings of a study, with a number of cells."""
    return dataclasses.replace(STUDIES[name][1], **changes)


def open_run(name: str, path: str, settings: Any) -> RunFolder:
    """Open the run folder as `isounc` does."""
    study = STUDIES[name][0]
    stored = stored_settings(settings, (*study.views, *study.growing))
    return RunFolder.open(path, stored, study=study.name)


def resume(name: str, path: str, settings: Any) -> dict[str, float]:
    """Find out what is left to compute, as a resumed command does; give the seconds of planning, too."""
    begun = time.perf_counter()
    groups = STUDIES[name][0].plan(settings)
    planned = time.perf_counter() - begun
    run = open_run(name, path, settings)
    STUDIES[name][0].prepare(settings, run)
    left, num_there = remaining(groups, run.untouched, separable=STUDIES[name][0].separable)
    if left:
        sys.exit(f"error: {path} lacks cells; {num_there} are there")
    return {"cells": num_there, "plan_seconds": planned}


def verify(name: str, path: str, settings: Any) -> dict[str, float]:
    """Verify some of the records, as a command does those that are not in the list."""
    run = RunFolder.load(path)
    names = run.names()
    chosen = names[:: max(1, len(names) // MOST_VERIFIED)]
    if not all(run.has(one) for one in chosen):
        sys.exit(f"error: a record of {path} does not verify")
    return {"cells": len(chosen)}


def report(name: str, path: str, settings: Any) -> dict[str, float]:
    """Make the report of the run, as `isounc report` does."""
    run = RunFolder.load(path, writable=True)
    report_run(STUDIES[name][0], run)
    return {"cells": len(run.names())}


STEPS = {"resume": resume, "verify": verify, "report": report}
"""Steps by name."""


def peak_mebibytes() -> float:
    """Largest resident set of this process; what a system call says may be that of its parent."""
    status = Path("/proc/self/status")
    if not status.exists():
        return process.peak_mebibytes()
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def main(step: str, name: str, path: str, changes: str) -> None:
    """Measure a step, and print the numbers as a line of JSON."""
    settings = settings_of(name, json.loads(changes))
    wall, cpu = time.perf_counter(), time.process_time()
    found = STEPS[step](name, path, settings)
    found |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps(found | {"peak_mebibytes": peak_mebibytes()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
