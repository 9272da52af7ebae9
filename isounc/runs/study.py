"""A study, and what every study has in common: it is planned, computed, resumed and reported on.

A study says what its cells are, how a batch of them becomes records, and how records become
tables, figures and a page. This module does the rest in the same way for all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import textwrap
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

from isounc.runs import process
from isounc.runs.cluster import compute_elsewhere, show_jobs, without_devices
from isounc.runs.compute import WORKER_MEBIBYTES, Say, work_of
from isounc.runs.csv_tables import Encoder
from isounc.runs.executors import Batch, Group, run_groups
from isounc.runs.folder import Record, RunFolder
from isounc.runs.page import FigureFile, Section, Table, write_page
from isounc.runs.place import check_place
from isounc.runs.provenance import provenance
from isounc.runs.settings import (
    ON_MACHINES,
    S,
    check_run_settings,
    executor_and_workers,
    folder_of_run,
    restored_settings,
    stored_settings,
    use_device,
)
from isounc.runs.tables import environment_section

if TYPE_CHECKING:
    from isounc.runs.figures import Plot

COMPILE_SECONDS = 14.0
"""Compilation of a group of equal shapes on one core of a 2-core server, for forecasts."""
INTERPRETER_MEBIBYTES = 600
"""Memory of a worker before it computes anything, for forecasts."""
MEMORY_SHARE = 0.25
"""Share of the machine's memory above which a run in one process drops its programs."""


class TableFile(NamedTuple):
    """A table of a run as a CSV file."""

    columns: Sequence[str]
    """Headings."""
    rows: Sequence[Mapping[Any, Any]] | Encoder
    """Rows; a missing key is an empty cell. Those of a long table may be encoded already."""


class Report(NamedTuple):
    """Views of the records of a run."""

    tables: Mapping[str, TableFile]
    """Tables by file name; every study has `results.csv` and `summary.csv`."""
    plots: Sequence[Plot]
    """Figures."""
    sections: Callable[[Sequence[FigureFile]], list[Section]]
    """Sections of the page, from the figures that were drawn."""
    text: str
    """Conclusion for the terminal."""
    checks: Any
    """Conclusion for `info.json`."""
    passed: bool = True
    """Whether the outcome is as it should be; the exit status says so."""
    reading: Sequence[str] = ()
    """Sentences that say what the tables show, made from their numbers."""
    reading_tables: Sequence[Table] = ()
    """Tables that `isounc publish` writes below them; the page has its own."""


def _no_preparation(settings: Any, folder: RunFolder) -> None:
    """Most studies need nothing but their settings."""


def _preset_itself(preset: Any, arguments: Sequence[str] | None) -> Any:
    """In most studies a preset says all."""
    return preset


def _no_remarks(settings: Any) -> Sequence[str]:
    """Most studies leave nothing out."""
    return ()


@dataclass(frozen=True)
class Study(Generic[S]):
    """An experiment: settings, cells, a function from cells to records, and their views."""

    name: str
    """Name on the command line."""
    description: str
    """Text of `--help`: the question, the protocol, examples."""
    presets: Mapping[str, S]
    """Settings by the name that `--preset` takes: quick, standard, paper."""
    unit: str
    """Name of a cell, in the plural."""
    check: Callable[[S], None]
    """Refuses settings that cannot be run, with a ValueError, before anything is computed."""
    plan: Callable[[S], Sequence[Group]]
    """The cells, in batches and groups."""
    evaluate: Callable[[Batch, S, Say], Iterable[Record]]
    """The records of a batch. It lives in a module of its own, which worker processes import."""
    report: Callable[[RunFolder, S], Report]
    """Views of the records, from the run folder alone."""
    prepare: Callable[[S, RunFolder], None] = _no_preparation
    """Called once before anything is computed, with the opened run folder."""
    executor: str = "serial"
    """The executor that `auto` means on CPU."""
    views: tuple[str, ...] = ()
    """Settings that change tables and figures but no record; they may differ on resumption."""
    separable: bool = False
    """Whether the cells of a batch may be evaluated without those whose records are there already.
    Where numbers depend on what is computed together, they may not."""
    growing: tuple[str, ...] = ()
    """Settings that add records to a run and change none, so that they may differ on resumption."""
    defaults: Callable[[S, Sequence[str] | None], S] = _preset_itself
    """Defaults of the options of a command line, from its preset and its arguments."""
    remarks: Callable[[S], Sequence[str]] = _no_remarks
    """Lines about the plan, such as what it leaves out, which are said before it is computed."""


def run_study(study: Study[S], settings: S) -> bool:
    """Compute what a run lacks, write its tables, figures and page, and print its conclusion.

    Returns
    -------
    bool
        Whether the outcome is as it should be (`Report.passed`).

    Raises
    ------
    ValueError
        For settings that cannot be run, or a run folder of another run.
    OSError
        If the run folder cannot be written; records that are there are kept.
    """
    check_run_settings(settings)
    out = folder_of_run(settings, study.name)
    check_place(out)  # before a plan, which may read much, and before anything is computed
    study.check(settings)
    process.use_compilation_cache(settings.cache)
    if settings.executor in ON_MACHINES:
        with without_devices():
            return _run(study, settings, out)
    use_device(settings.device)
    return _run(study, settings, out)


def _run(study: Study[S], settings: S, out: str) -> bool:
    groups = study.plan(settings)
    executor, workers = executor_and_workers(settings, study.executor, len(groups))
    if remarks := study.remarks(settings):
        print("\n".join(remarks), flush=True)
    if settings.dry_run:
        print(forecast(groups, study.unit, max(1, workers)))
        if executor == "slurm":
            print(f"\n{show_jobs(settings, out, groups)}")
        return True

    started = time.perf_counter()
    stored = stored_settings(settings, (*study.views, *study.growing))
    folder = RunFolder.open(out, stored, study=study.name)
    study.prepare(settings, folder)
    if executor != "serial":  # while others compute, this process has nothing to do
        threading.Thread(target=_import_what_draws, daemon=True).start()
    if executor in ON_MACHINES:
        sessions = compute_elsewhere(study, settings, folder, groups)
        computed_on = [session.device for session in sessions]
        device = computed_on[0] if computed_on else folder.read_info().get("device")
    else:
        left, num_there = remaining(groups, folder.untouched, separable=study.separable)
        if num_there:
            print(f"{num_there} {study.unit} are there already.", flush=True)
        share = MEMORY_SHARE * process.machine_mebibytes()
        most = WORKER_MEBIBYTES if executor == "processes" else share
        work = work_of(study, dataclasses.replace(settings, out=out), most_mebibytes=most)
        sessions = run_groups(left, work, executor=executor, workers=workers) if left else []
        device = None
    open_settings = {k: v for k, v in stored_settings(settings).items() if k not in stored}
    folder.write_info(provenance(device) | {"views": open_settings})
    report, page = _write_report(study, folder, settings)
    seconds = time.perf_counter() - started
    compiled, cached = (sum(getattr(s, name) for s in sessions) for name in ("compiled", "cached"))
    peak = max([process.peak_mebibytes(), *(s.peak_mebibytes for s in sessions)])
    folder.write_info(
        {
            "last_session": {
                "executor": executor,
                "workers": workers,
                "seconds": round(seconds, 1),
                "compiled": compiled,
                "compilation_cache_hits": cached,
                "compilation_seconds": round(sum(s.compilation_seconds for s in sessions), 1),
                "peak_mebibytes": round(peak, 1),
            }
        }
    )
    print(
        f"\n{report.text}\n\n{seconds:.0f} seconds, {compiled} programs compiled, {cached} taken "
        f"from the cache, {peak:.0f} MiB in the largest process.\n{_reading_text(report)}"
        f"Report: {page}"
    )
    return report.passed


def remaining(
    groups: Sequence[Group], there: Collection[str], *, separable: bool
) -> tuple[list[Group], int]:
    """The part of a plan that is to be computed, and the number of cells that are not.

    Parameters
    ----------
    there
        Names of the records that are whole.
    separable
        Whether the cells of a batch may be computed without the others; see `Study`.
    """
    left: list[Group] = []
    num_there = 0
    for group in groups:
        batches = []
        for batch in group:
            missing = tuple(cell for cell in batch.cells if cell.name not in there)
            if separable or not missing:
                num_there += len(batch.cells) - len(missing)
            if missing:
                batches.append(batch._replace(cells=missing) if separable else batch)
        if batches:
            left.append(tuple(batches))
    return left, num_there


def report_run(study: Study[S], folder: RunFolder) -> bool:
    """Write the tables, figures and page of a run anew, and print its conclusion."""
    settings = dataclasses.replace(settings_of_run(study, folder), figures="all")
    report, page = _write_report(study, folder, settings)
    print(f"{report.text}\n{_reading_text(report)}Report: {page}")
    return report.passed


def settings_of_run(study: Study[S], folder: RunFolder) -> S:
    """The settings that a run was made with; those that it did not store are the preset's."""
    preset = folder.settings.get("preset", next(iter(study.presets)))
    default = study.presets.get(preset, next(iter(study.presets.values())))
    stored = {**folder.settings, **folder.read_info().get("views", {})}
    return restored_settings(default, stored)


def forecast(groups: Sequence[Group], unit: str, workers: int) -> str:
    """The cells of a plan with a forecast of time and memory, as text."""
    batches = [batch for group in groups for batch in group]
    longest = max([39, *(len(batch.label) for batch in batches)]) + 1
    lines = [f"{'batch':<{longest}}{unit:>14}{'seconds':>9}{'MiB':>7}"]
    lines += [
        f"{batch.label:<{longest}}{len(batch.cells):>14}{batch.seconds:>9.1f}{batch.mebibytes:>7.0f}"
        for batch in batches
    ]
    compiling = COMPILE_SECONDS * len(groups)
    computing = sum(batch.seconds for batch in batches)
    minutes = (compiling + computing) / workers / 60
    digits = 0 if minutes >= 10 else 1
    memory = INTERPRETER_MEBIBYTES + max((batch.mebibytes for batch in batches), default=0)
    lines.append(
        f"\n{sum(len(batch.cells) for batch in batches)} {unit} in {len(batches)} batches and "
        f"{len(groups)} shapes; about {minutes:.{digits}f} minutes on "
        f"{workers} worker(s) ({compiling / workers / 60:.1f} of them for compilation, none where "
        f"the cache has the programs); about {memory:.0f} MiB per worker.\n"
        "The forecast is for CPU cores of a small server. A posterior that mixes slowly takes up "
        "to max_draws / num_draws times as long."
    )
    return "\n".join(lines)


def _import_what_draws() -> None:
    """Load pandas and matplotlib, which take a second.

    A run that ends meanwhile leaves modules that cannot be loaded any more; whoever needs one that
    failed for another reason meets its error again.
    """
    with contextlib.suppress(Exception):
        importlib.import_module("isounc.runs.figures")
        importlib.import_module("pandas")


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python look for cycles of garbage a tenth as often, and not among what is there now.

    Tables and figures make many objects, which made that search an eighth of a report's time.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(10 * before[0], *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@_rare_collections()
def _write_report(study: Study[S], folder: RunFolder, settings: S) -> tuple[Report, Path]:
    from isounc.runs.figures import draw_plots  # here, because matplotlib takes a second to import

    report = study.report(folder, settings)
    for name, table in report.tables.items():
        folder.write_table(name, table.rows, table.columns)
    folder.write_info({"checks": report.checks})
    print("Figures and page ...", flush=True)
    shown_alone = settings.figures == "shown"
    drawn = draw_plots(report.plots, folder.path / "figures", shown_alone=shown_alone)
    sections = [*report.sections(drawn), environment_section(folder, drawn)]
    if report.reading:
        sections.insert(0, Section("reading", "Reading", tuple(report.reading), (), ()))
    page = write_page(folder.path, folder.path.resolve().name, sections)
    return report, page


def _reading_text(report: Report) -> str:
    """The reading for a terminal, a paragraph for each sentence."""
    return "".join(f"\n{textwrap.fill(sentence, 98)}\n" for sentence in report.reading) + "\n"
