"""How runs grow: speed-up, schedules, bookkeeping of many cells, and forecasts of memory.

    uv run benchmarks/scale.py                                  # all but speed-up and the largest folder
    uv run benchmarks/scale.py --parts speedup                  # five minutes on two idle cores
    uv run benchmarks/scale.py --parts bookkeeping --cells 1000 10000 100000
    uv run benchmarks/scale.py --parts schedule --times results/standard

speedup: `isounc scaling` on the same cells with each executor and number of workers, one after the other,
with a warm cache of compiled programs (a first run fills it and is not counted). Speed-up is to the
executor serial; overhead is the part of the workers' time in which no cell was computed, for each cell:
(seconds * workers - sum of the cells' own seconds) / cells. It needs idle cores; nothing else does.

schedule: how long 1, 8, 64 and 512 workers would take for the cells of a published run, by its measured
seconds of each cell (compilation included), in the order of its plan, where what is computed by one
worker is a group of equal shapes (as it is), a batch of seeds, or a cell. The table says what share of
the time workers are idle, and where the largest unit alone bounds the makespan.

bookkeeping: folders of finished cells, of which a few are computed and the others are copies under other
names. `isounc calibration` has small records (one replication each); those of `isounc scaling` have 163
result rows. resume: plan, open the folder, find that nothing is left. verify: read and verify a record, as
is done for those that are not in the folder's list of verified records. report: tables, figures and page.
Each step is a process of its own; seconds of CPU are user and system, which other work on the machine
disturbs less than the clock. Imports are left out.

memory: the forecast of the largest batch of each preset of `isounc scaling`, the programs that move its
chains by the compiler's plan, and the peak of the largest process of the published run of that preset.

Tables are printed and written to --out as CSV.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pandas as pd
import tyro
from scale_bookkeeping import STUDIES, open_run, settings_of
from scale_cells import Template, fill
from scale_memory import program_mebibytes
from scale_schedule import simulate
from tqdm import tqdm

import isounc.runs
from isounc.runs.executors import Batch
from isounc.runs.folder import Record
from isounc.runs.settings import restored_settings, stored_settings
from isounc.runs.study import INTERPRETER_MEBIBYTES
from isounc.studies.scaling.cost import plan
from isounc.studies.scaling.settings import PRESETS, Cell

PARTS = ("speedup", "schedule", "bookkeeping", "memory")
HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
NUM_COMPUTED = 20
"""Cells of each place that are computed and then copied."""

Rows = list[dict[str, Any]]


@dataclass
class Options:
    """Parts, sizes and places."""

    parts: tuple[str, ...] = ("schedule", "bookkeeping", "memory")
    """Some of speedup, schedule, bookkeeping and memory."""
    executors: tuple[str, ...] = ("serial", "processes")
    """Executors, by name; of the others than serial each number of workers is measured."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of workers."""
    problems: tuple[str, ...] = ("xor", "moons")
    """Problems of the cells of the speed-up, at the widths and with the seeds of the preset quick."""
    times: Path = RESULTS / "paper"
    """A published run of `isounc scaling`, whose cells are scheduled."""
    simulated: tuple[int, ...] = (1, 8, 64, 512)
    """Numbers of workers of the simulated schedules."""
    cells: tuple[int, ...] = (1000, 10_000)
    """Numbers of finished cells."""
    studies: tuple[str, ...] = ("calibration", "scaling")
    """Studies whose folders are filled."""
    most_rows: int = 2_000_000
    """Result rows above which no folder of scaling is filled; each of its cells has 163."""
    presets: tuple[str, ...] = ("quick", "standard", "paper")
    """Presets of which memory is forecast."""
    scratch: str = ""
    """Folder for the runs, which are removed; empty means that of temporary files."""
    out: Path = Path("runs/scale")
    """Folder of the tables."""


def measure_speedup(options: Options, scratch: Path) -> Rows:
    """Run the same cells in several ways."""
    cache = scratch / "cache"
    ways = [(name, n) for name in options.executors for n in options.workers]
    ways = list(dict.fromkeys((name, 1 if name == "serial" else n) for name, n in ways))
    # Executors compile differently: the first run of each fills the cache and is not counted.
    fillers = list(dict(ways).items())
    rows: Rows = []
    for number, (executor, workers) in enumerate([*fillers, *ways]):
        out = scratch / f"run-{number}"
        command = [
            sys.executable, "-m", "isounc", "scaling", "--problems", *options.problems,
            "--executor", executor, "--workers", str(workers), "--cache", str(cache),
            "--figures", "shown", "--out", str(out),
        ]  # fmt: skip
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - begun
        run = isounc.runs.load(out)
        own = [record.meta["seconds"]["total"] for record in run.records(with_arrays=False)]
        about = {"executor": executor, "workers": workers, "cells": len(own)}
        session = run.read_info()["last_session"]
        rows.append(
            about
            | {
                "seconds": seconds,
                "cell_seconds": sum(own),
                "overhead_per_cell": (seconds * workers - sum(own)) / len(own),
                "compiled": session["compiled"],
                "peak_mebibytes": session["peak_mebibytes"],
            }
        )
        shutil.rmtree(out)
    rows = rows[len(fillers) :]
    alone = next((row["seconds"] for row in rows if row["executor"] == "serial"), None)
    return [row | {"speedup": alone and alone / row["seconds"]} for row in rows]


def measured_units(folder: Path) -> dict[str, list[float]]:
    """Seconds of the groups, the batches and the cells of a published run, in the order of its plan."""
    run = isounc.runs.load(folder)
    preset = PRESETS[run.settings["preset"]]
    settings = restored_settings(preset, {**run.settings, **run.read_info().get("views", {})})
    fields = [field.name for field in dataclasses.fields(Cell)][:7]
    table = run.results[[*fields, "seconds"]].drop_duplicates(fields)
    seconds = {
        Cell(*row[:7]).name: float(row[7]) for row in table.itertuples(index=False, name=None)
    }
    groups = [[[seconds[c.name] for c in b.cells] for b in group] for group in plan(settings)]
    return {
        "group": [sum(map(sum, group)) for group in groups],
        "batch": [sum(batch) for group in groups for batch in group],
        "cell": [cell for group in groups for batch in group for cell in batch],
    }


def schedules(options: Options) -> Rows:
    """Simulate the schedules of a published run."""
    rows: Rows = []
    for unit, seconds in measured_units(options.times).items():
        for workers in options.simulated:
            found = simulate(seconds, workers)
            rows.append(
                {"unit": unit, "units": len(seconds), "workers": workers,
                 "makespan": found.makespan, "speedup": sum(seconds) / found.makespan,
                 "idle_share": found.idle_share, "largest": max(seconds), "least": found.least,
                 "bound": "largest unit" if found.is_bound_by_largest else "sum of all"}
            )  # fmt: skip
    return rows


def computed(name: str) -> tuple[list[Record], list[tuple[str, Record]]]:
    """A few computed records of a study: those that are kept, and those to copy, with a pattern."""
    study = STUDIES[name][0]
    changes = {"num_replications": NUM_COMPUTED} if name == "calibration" else {"num_seeds": 5}
    settings = settings_of(name, changes)
    kept: list[Record] = []
    copied: list[tuple[str, Record]] = []
    batches = [batch for group in study.plan(settings) for batch in group]
    for batch in tqdm(batches, desc=f"cells of {name}", leave=False):
        for record in study.evaluate(batch, settings, lambda _: None):
            if name == "scaling":
                stem, _, _ = record.name.rpartition("-seed")
                copied.append((stem + "-seed{}", record))
            elif record.name.startswith("sbc-"):
                copied.append((record.name.rpartition("-")[0] + "-{:04d}", record))
            else:
                kept.append(record)
    return kept, copied


def step(what: str, name: str, folder: Path, changes: dict[str, int]) -> dict[str, float]:
    """A step on a folder, in a process of its own."""
    command = [sys.executable, str(HERE / "scale_bookkeeping.py"), what, name, str(folder)]
    said = subprocess.run(
        [*command, json.dumps(changes)], check=True, capture_output=True, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    return json.loads(said.stdout.splitlines()[-1])


def bookkeeping(options: Options, scratch: Path) -> Iterator[dict[str, Any]]:
    """Measure the driver on folders of finished cells."""
    for name in options.studies:
        kept, copied = computed(name)
        places = len({pattern for pattern, _ in copied})
        for count in options.cells:
            of_one = len(copied[0][1].meta.get("rows", ())) or 1
            if count * of_one > options.most_rows:
                continue
            number = count // places
            changes = {"num_replications" if name == "calibration" else "num_seeds": number}
            folder = scratch / f"{name}-{count}"
            settings = settings_of(name, changes)
            run = open_run(name, str(folder), settings)
            stored = stored_settings(settings)
            run.write_info({"views": {k: v for k, v in stored.items() if k not in run.settings}})
            for record in kept:
                run.write(record)
            templates = [Template(record, run, pattern) for pattern, record in copied]
            num_bytes = fill(run, templates, range(number), linked=name == "scaling")
            for what in ("resume", "verify", "report"):
                found = step(what, name, folder, changes)
                yield {
                    "study": name, "cells": number * places, "rows_per_cell": of_one,
                    "kibibytes_per_cell": num_bytes / (number * places) / 1024, "step": what,
                    "seconds": found["seconds"], "cpu_seconds": found["cpu_seconds"],
                    "milliseconds_per_cell": 1e3 * found["cpu_seconds"] / found["cells"],
                    "plan_seconds": found.get("plan_seconds"),
                    "peak_mebibytes": found["peak_mebibytes"],
                }  # fmt: skip
            shutil.rmtree(folder)


def memory(options: Options) -> Iterator[dict[str, Any]]:
    """Hold forecasts of memory against compiled programs and published runs."""
    for name in options.presets:
        settings = PRESETS[name]
        batches: list[Batch] = [batch for group in plan(settings) for batch in group]
        largest = max(batches, key=lambda batch: batch.mebibytes)
        programs = program_mebibytes(largest, settings)
        published = RESULTS / name
        session = isounc.runs.load(published).read_info().get("last_session", {})
        yield {
            "preset": name, "batch": largest.label, "cells": len(largest.cells),
            "forecast_mebibytes": largest.mebibytes,
            **{f"{program}_mebibytes": value for program, value in programs.items()},
            "forecast_worker_mebibytes": INTERPRETER_MEBIBYTES + largest.mebibytes,
            "published_peak_mebibytes": session.get("peak_mebibytes"),
        }  # fmt: skip
        jax.clear_caches()


def keep(rows: Rows, name: str, out: Path) -> None:
    """Print a table and write it."""
    table = pd.DataFrame(rows)
    print(f"\n{name}\n{table.to_string(index=False, float_format=lambda v: f'{v:.4g}')}")
    table.to_csv(out / f"{name}.csv", index=False, float_format="%.4g", lineterminator="\n")


def main(options: Options) -> None:
    """Measure, print and write."""
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        sys.exit(f"error: parts must be some of {', '.join(PARTS)}, got {sorted(unknown)[0]}")
    options.out.mkdir(parents=True, exist_ok=True)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"JAX {jax.__version__}, {jax.devices()[0].device_kind}"
    )
    with tempfile.TemporaryDirectory(dir=options.scratch or None) as scratch:
        if "schedule" in options.parts:
            keep(schedules(options), "schedule", options.out)
        if "bookkeeping" in options.parts:
            rows: Rows = []
            for row in bookkeeping(options, Path(scratch)):
                rows.append(row)
                keep(rows, "bookkeeping", options.out)
        if "memory" in options.parts:
            keep(list(memory(options)), "memory", options.out)
        if "speedup" in options.parts:
            keep(measure_speedup(options, Path(scratch)), "speedup", options.out)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
