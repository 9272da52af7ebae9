"""Executors: where the groups of a plan are computed, and who is told how far they are.

A *batch* is what is computed together (the seeds of a cell, say). Batches whose arrays have equal
shapes form a *group*, which one worker computes one after the other, so that each shape is
compiled once in a run.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any, NamedTuple, Protocol

import jax
from tqdm import tqdm

from isounc.checks import check_choice
from isounc.runs import process


class Batch(NamedTuple):
    """Cells that are computed together."""

    label: str
    """Name in the progress bar and in a dry run."""
    cells: tuple[Any, ...]
    """The cells; each has a `name`, which is the name of its record."""
    seconds: float = 1.0
    """Forecast of the time that one CPU core takes, without compilation."""
    mebibytes: float = 0.0
    """Forecast of the memory beyond that of the interpreter and the compiler."""


Group = tuple[Batch, ...]


class Event(NamedTuple):
    """News from a worker."""

    worker: int
    """Process number of the worker."""
    text: str
    """The step that is being computed."""
    done: float
    """Forecast seconds of the work that this event completes."""


Tell = Callable[[Event], None]
Work = Callable[[Group, Tell], Any]


class Executor(Protocol):
    """Computes each group by `work(group, tell)` and yields what it returns, in any order."""

    def __call__(
        self, groups: Sequence[Group], work: Work, tell: Tell, workers: int
    ) -> Iterator[Any]: ...


def run_serial(groups: Sequence[Group], work: Work, tell: Tell, workers: int) -> Iterator[Any]:
    """Compute one group after the other, in this process."""
    for group in groups:
        yield work(group, tell)


def run_processes(groups: Sequence[Group], work: Work, tell: Tell, workers: int) -> Iterator[Any]:
    """Compute groups in `workers` fresh processes of this machine, each with a core of its own."""
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    stop = threading.Event()

    def listen() -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Empty):
                tell(Event(*events.get(timeout=0.2)))

    listener = threading.Thread(target=listen, daemon=True)
    cache = jax.config.jax_compilation_cache_dir  # pyright: ignore
    with _environment_of_children():
        pool = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(events, cache)
        )
        with pool:
            listener.start()
            pending = {pool.submit(_work_in_child, work, group) for group in groups}
            try:
                while pending:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in list((pool._processes or {}).values()):
                    child.terminate()
                raise
            finally:
                stop.set()


EXECUTORS: dict[str, Executor] = {"serial": run_serial, "processes": run_processes}
"""Executors by the name that `--executor` takes; a user may add one."""


def run_groups(
    groups: Sequence[Group], work: Work, *, executor: str = "serial", workers: int = 1
) -> list[Any]:
    """Compute every group under a progress bar in forecast seconds, and return all results.

    Raises
    ------
    ValueError
        For an unknown executor.
    """
    check_choice("executor", executor, EXECUTORS)
    total = sum(batch.seconds for group in groups for batch in group)
    num_batches, num_finished = sum(map(len, groups)), 0
    text_of: dict[int, str] = {}
    layout = "{percentage:3.0f}% |{bar:20}| {elapsed} elapsed, {remaining} left | {desc}"
    with tqdm(total=total, bar_format=layout, mininterval=0.5, dynamic_ncols=True) as bar:

        def tell(event: Event) -> None:
            nonlocal num_finished
            text_of[event.worker] = event.text
            num_finished += event.done > 0
            bar.set_description_str(
                f"{num_finished}/{num_batches} | {' & '.join(text_of.values())}", refresh=False
            )
            bar.update(min(event.done, total - bar.n))  # sums of floats may end a hair above

        results = list(EXECUTORS[executor](groups, work, tell, workers))
        # Events of the last batches may arrive after their results.
        bar.update(total - bar.n)
    return results


@contextlib.contextmanager
def _environment_of_children() -> Iterator[None]:
    """Let children inherit flags that keep each to one core.

    Two workers with two threads each would fight for two cores.
    """
    flags = ["--xla_cpu_multi_thread_eigen=false", *_quick_compilation()]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    given = os.environ.get("XLA_FLAGS", "").split()
    wanted = {"XLA_FLAGS": " ".join(flags + given), **threads}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _quick_compilation() -> list[str]:
    """XLA's flags that halve the time of compilation, where this JAX knows them.

    The small programs of an experiment run as fast with them. A process that starts with an
    unknown flag in XLA_FLAGS dies.
    """
    known = []
    for name, value in (
        ("xla_cpu_use_fusion_emitters", False),
        ("xla_backend_optimization_level", 1),
    ):
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
            known.append(f"--{name}={str(value).lower()}")
    return known


_events: Any = None
"""In a worker: the queue that its events go to."""


def _start_worker(events: Any, cache: str | None) -> None:
    global _events
    _events = events
    process.use_compilation_cache(cache)
    parent = os.getppid()

    def watch() -> None:
        # A parent that was killed cannot stop its workers: they notice that their parent changed.
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work_in_child(work: Work, group: Group) -> Any:
    return work(group, lambda event: _events.put(tuple(event)))
