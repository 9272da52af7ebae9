"""Runs on other machines: what a study gives to the executors `ray` and `slurm`.

The process that was started plans and gathers; it starts no device, and JAX in it sees the CPU alone,
so that it takes no memory of a GPU that a task is to have. Records come through the run folder where
it is shared. Batches that are there already are not handed out.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from isounc.runs import files, slurm_jobs
from isounc.runs.batches import Group
from isounc.runs.compute import (
    MARK,
    WORKER_MEBIBYTES,
    Session,
    open_if_shared,
    what_is_left,
    work_of,
)
from isounc.runs.executors import run_groups
from isounc.runs.folder import RunFolder
from isounc.runs.part import UNFINISHED, parts_of
from isounc.runs.settings import RunSettings

JOBS = "jobs"
"""Folder of a run with what jobs read and write, a folder for each start; it goes in the end."""


@contextlib.contextmanager
def without_devices() -> Iterator[None]:
    """Let JAX in this process see the CPU alone."""
    before = jax.config.jax_platforms  # pyright: ignore
    jax.config.update("jax_platforms", "cpu")
    try:
        yield
    finally:
        jax.config.update("jax_platforms", before)


def compute_elsewhere(
    study: Any, settings: RunSettings, folder: RunFolder, groups: Sequence[Group]
) -> list[Session]:
    """Compute what a run lacks by the executor `ray` or `slurm`.

    Raises
    ------
    ImportError
        Without the executor's extra.
    ValueError
        If what is asked for cannot be had, or jobs cannot find the study.
    ChildProcessError
        Where batches were lost, once all else is computed.
    """
    # A machine that does not see the folder cannot leave out cells of a batch by itself.
    separable = study.separable and settings.executor == "ray"
    left = what_is_left(groups, folder, separable=separable)
    if not left:
        return []
    settings = replace(settings, out=str(folder.path.absolute()))
    on = {"ray": _on_ray, "slurm": _on_slurm}[settings.executor]
    return on(study, settings, folder, left)


def _on_ray(
    study: Any, settings: RunSettings, folder: RunFolder, groups: Sequence[Group]
) -> list[Session]:
    token, mark = secrets.token_hex(16), folder.path / MARK
    work = work_of(study, settings, most_mebibytes=WORKER_MEBIBYTES, is_remote=True)
    is_it = functools.partial(open_if_shared, work.keywords["open_folder"], settings.out, token)
    with files.locked(folder.path, create=True):
        files.write_atomic({mark: token.encode()}, MARK)  # in place of a link, not through it
    try:
        return run_groups(
            groups,
            functools.partial(work, open_folder=is_it),
            executor="ray",
            workers=settings.workers,
            keep=folder.write,
            address=settings.ray_address,
            cpus_per_cell=settings.cpus_per_cell,
            gpus_per_cell=settings.gpus_per_cell,
            device=settings.device,
            cache=settings.cache,
        )
    finally:
        mark.unlink(missing_ok=True)


def _on_slurm(
    study: Any, settings: RunSettings, folder: RunFolder, groups: Sequence[Group]
) -> list[Session]:
    jobs = Path(settings.out) / JOBS / secrets.token_hex(4)
    work = work_of(study, settings, most_mebibytes=WORKER_MEBIBYTES)
    try:
        return run_groups(
            groups,
            work,
            executor="slurm",
            workers=settings.workers,
            parts=parts_of(study, settings, groups, jobs, most=slurm_jobs.MOST_JOBS),
            folder=jobs,
            job=job_of(settings),
        )
    finally:
        for place in (jobs.parent / UNFINISHED, jobs.parent):
            with contextlib.suppress(OSError):  # what was lost is explained there
                place.rmdir()


def job_of(settings: RunSettings) -> slurm_jobs.Job:
    """Resources that each job of a run reserves."""
    return slurm_jobs.Job(
        partition=settings.partition,
        minutes=settings.time,
        cpus=int(settings.cpus_per_cell),
        gpus=settings.gpus,
        at_a_time=settings.workers,
    )


def show_jobs(settings: RunSettings, out: str, groups: Sequence[Group]) -> str:
    """The script of the jobs of a plan, for a dry run."""
    folder = Path(out).absolute() / JOBS / "ID"
    count = min(sum(map(len, groups)), slurm_jobs.MOST_JOBS)
    return slurm_jobs.script(folder, job_of(settings), count)
