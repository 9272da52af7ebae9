"""The executor `slurm`: jobs of an array, through submitit (extra `isounc[slurm]`).

submitit pickles what it submits into a file, from which the job reads it, and pickles what it
returns. isounc submits an `isounc.runs.part.Part`, that is the name of a class and plain texts, and
never reads what comes back: jobs write records into the run folder, and say in a JSON file how it
went. So the one pickle that is ever loaded is one that the same user's submission has just written,
beside the script of the job; it holds no code and no data, and is removed once all is computed.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from isounc.runs.batches import Event, Group, Lost, Tell, Work
from isounc.runs.extras import imported

CLUSTER = "slurm"
"""The scheduler that submitit uses: `slurm`, or `local` for processes of this machine, as in tests."""
MOST_JOBS = 1000
"""Most jobs of a run: Slurm, as it is set up by default, has no longer arrays."""
SECONDS_BETWEEN_LOOKS = 2.0
"""How often the files of the jobs are looked at."""
LOOKS_AFTER_THE_END = 5
"""How often the file of a job that has ended is looked at: over a network it may come late."""


class Job(NamedTuple):
    """The resources that a job requests from the queue."""

    partition: str = ""
    """Partition; empty means the cluster's default."""
    minutes: int = 60
    """Time limit, at which the job goes back to the queue, a few times."""
    cpus: int = 1
    """CPU cores."""
    gpus: int = 0
    """GPUs."""
    at_a_time: int = 0
    """Most jobs that run at a time; 0 means as many as the cluster allows."""

    def parameters(self) -> dict[str, Any]:
        """The reservation in the words of submitit's executor for Slurm."""
        # As for worker processes: two jobs of two threads each would fight for the same cores.
        single = "--xla_cpu_multi_thread_eigen=false " if self.cpus == 1 else ""
        setup = [
            f"export OMP_NUM_THREADS={self.cpus} OPENBLAS_NUM_THREADS={self.cpus} NPROC={self.cpus}",
            f'export XLA_FLAGS="{single}$XLA_FLAGS"',
        ]
        slurm = {
            "job_name": "isounc",
            "time": self.minutes,
            "cpus_per_task": self.cpus,
            "setup": setup,
            "additional_parameters": {"requeue": True},
        }
        slurm |= {"partition": self.partition} if self.partition else {}
        slurm |= {"gpus_per_node": self.gpus} if self.gpus else {}
        return slurm | {"array_parallelism": self.at_a_time or MOST_JOBS}


def run_slurm(
    groups: Sequence[Group],
    work: Work,
    tell: Tell,
    workers: int,
    *,
    parts: Sequence[Any] = (),
    folder: Path | None = None,
    job: Job | None = None,
) -> Iterator[Any]:
    """Submit the batches as an array of jobs, and wait for them.

    A job makes the work anew from what its part says, so that `work` and `workers` are not used. One
    that is preempted, or reaches its time limit, goes back to the queue, and finds there what is
    computed. A batch that raises an error costs itself alone. Jobs in the queue are cancelled if
    this process is interrupted.

    Parameters
    ----------
    parts
        What jobs compute (`isounc.runs.part.parts_of`).
    folder
        Folder of the jobs, which all machines see; it goes when nothing is lost.
    job
        What each job reserves.

    Raises
    ------
    ImportError
        Without the extra `isounc[slurm]`.
    ValueError
        Without parts.
    OSError
        Where Slurm is not there, or refuses the jobs.
    """
    if not parts or folder is None or job is None:
        raise ValueError("parts must be those of a study: executor slurm runs studies alone")
    by_name = {str(batch.cells[0].name): batch for group in groups for batch in group}
    jobs = _submit(parts, folder, job)
    live = list(zip(range(len(parts)), parts, jobs, strict=True))
    heard: set[str] = set()
    looks: dict[int, int] = {}
    num_lost = 0
    try:
        while live:
            tell(Event(0, f"{len(live)} jobs are in the queue or run", 0.0))
            for entry in list(live):
                index, part, one = entry
                has_ended = one.done()  # before the look: of a job that has ended no more comes
                for name, outcome in part.said().items():
                    if name not in heard:
                        heard.add(name)
                        batch = by_name[name]
                        if isinstance(outcome, str):
                            num_lost += 1
                            yield Lost(batch, outcome)
                        else:
                            tell(Event(index, batch.label, batch.seconds))
                            yield outcome
                missing = [name for name in part.batches if name not in heard]
                if not missing:
                    live.remove(entry)
                elif has_ended:
                    looks[index] = looks.get(index, 0) + 1
                    if looks[index] > LOOKS_AFTER_THE_END:
                        live.remove(entry)
                        num_lost += len(missing)
                        reason = f"its job ended ({one.state}); see {one.paths.stderr}"
                        yield from (Lost(by_name[name], reason) for name in missing)
            if live:
                time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        for *_, one in live:
            with contextlib.suppress(Exception):
                one.cancel()
        if not live and not num_lost:
            _wait_for(jobs)
            shutil.rmtree(folder, ignore_errors=True)


def script(folder: Path, job: Job, count: int) -> str:
    """The script that would be given to sbatch for an array of `count` jobs; Slurm is not needed."""
    imported("submitit", extra="slurm", what="executor slurm")
    from submitit import SlurmExecutor

    class Paper(SlurmExecutor):
        """One that needs no Slurm, since it submits nothing."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    paper = Paper(folder / "%j")
    paper.update_parameters(**job.parameters())
    if count > 1:
        paper.parameters["map_count"] = count
    return paper._make_submission_file_text(paper._submitit_command_str, "")


def _submit(parts: Sequence[Any], folder: Path, job: Job) -> list[Any]:
    submitit = imported("submitit", extra="slurm", what="executor slurm")
    try:
        executor = submitit.AutoExecutor(folder / "%j", cluster=CLUSTER)
        given = job.parameters()
        executor.update_parameters(
            **{f"slurm_{name}": value for name, value in given.items()},
            local_timeout_min=job.minutes,
            local_setup=given["setup"],
        )
        with executor.batch():
            return [executor.submit(part) for part in parts]
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise OSError(f"the jobs could not be submitted to Slurm: {error}") from error


def _wait_for(jobs: Sequence[Any]) -> None:
    """Let jobs that have said all end, for they write a last file into the folder."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not all(one.done() for one in jobs):
        time.sleep(0.2)
