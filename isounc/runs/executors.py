"""Executors: where the groups of a plan are computed, and who is told how far they are.

`serial` is this process and `processes` are worker processes of this machine; `ray` and `slurm` use
several machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from isounc.checks import check_choice
from isounc.runs.batches import Batch, Event, Executor, Group, Lost, Tell, Work, grouped
from isounc.runs.folder import Record
from isounc.runs.ray_tasks import run_ray
from isounc.runs.slurm_jobs import run_slurm
from isounc.runs.worker_processes import run_processes

__all__ = [
    "EXECUTORS",
    "Batch",
    "Event",
    "Executor",
    "Group",
    "Lost",
    "Tell",
    "Work",
    "grouped",
    "run_groups",
    "run_serial",
]


def run_serial(groups: Sequence[Group], work: Work, tell: Tell, workers: int) -> Iterator[Any]:
    """Compute one group after the other, in this process."""
    for group in groups:
        yield work(group, tell)


EXECUTORS: dict[str, Executor] = {
    "serial": run_serial,
    "processes": run_processes,
    "ray": run_ray,
    "slurm": run_slurm,
}
"""Executors by the name that `--executor` takes; a user may add one."""


def run_groups(
    groups: Sequence[Group],
    work: Work,
    *,
    executor: str = "serial",
    workers: int = 1,
    keep: Callable[[Record], Any] | None = None,
    **options: Any,
) -> list[Any]:
    """Compute every group under a progress bar in forecast seconds, and return all results.

    Parameters
    ----------
    keep
        Stores a record that a worker could not write itself.
    options
        Further settings of the executor.

    Raises
    ------
    ValueError
        For an unknown executor.
    ChildProcessError
        Where batches were lost, once all else is computed; it names the cells that are missing, and
        says why.
    """
    check_choice("executor", executor, EXECUTORS)
    total = sum(batch.seconds for group in groups for batch in group)
    num_batches, num_finished = sum(map(len, groups)), 0
    text_of: dict[int, str] = {}
    layout = "{percentage:3.0f}% |{bar:20}| {elapsed} elapsed, {remaining} left | {desc}"
    # miniters: what is being done is news, too, however little of the total it adds.
    with tqdm(
        total=total, bar_format=layout, mininterval=0.5, miniters=0, dynamic_ncols=True
    ) as bar:

        def tell(event: Event | Record) -> None:
            nonlocal num_finished
            if isinstance(event, Record):
                assert keep is not None
                keep(event)
                return
            text_of[event.worker] = event.text
            num_finished += event.done > 0
            bar.set_description_str(
                f"{num_finished}/{num_batches} | {' & '.join(text_of.values())}", refresh=False
            )
            bar.update(min(event.done, total - bar.n))  # sums of floats may end a hair above

        run: Any = EXECUTORS[executor]
        results = list(run(groups, work, tell, workers, **options))
        lost = [result for result in results if isinstance(result, Lost)]
        if not lost:
            bar.update(total - bar.n)  # sums of floats may end a hair below
    if lost:
        raise ChildProcessError(
            "\n  ".join([f"{len(lost)} of {num_batches} batches are missing:", *_lines(lost)])
            + "\nAll others are computed and kept; the same command computes what is missing."
        )
    return results


def _lines(lost: Sequence[Lost]) -> list[str]:
    """Group the lost batches by the reason for which they were lost, in words."""
    named: dict[str, list[str]] = {}
    for batch, reason in lost:
        cells = ", ".join(str(getattr(cell, "name", cell)) for cell in batch.cells)
        named.setdefault(reason, []).append(f"{batch.label} ({cells})")
    return [
        "; ".join(labels) + ": " + reason.replace("\n", "\n    ")
        for reason, labels in named.items()
    ]
