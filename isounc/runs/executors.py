"""Executors: where the groups of a plan are computed, and who is told how far they are.

A *batch* is what is computed together (the seeds of a cell, say). Batches whose arrays have equal
shapes form a *group*, which one worker computes one after the other, so that each shape is
compiled once in a run.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, resource_tracker
from typing import Any, NamedTuple, Protocol

import jax
from tqdm import tqdm

from isounc.checks import check_choice
from isounc.runs import worker


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
    work: int = 0
    """Examples times parameters of a gradient; the worker's compiler is chosen by it."""


Group = tuple[Batch, ...]

LARGE_WORK = 30_000
"""Examples times parameters from which programs of a group are worth XLA's full optimization. On a
CPU gradients are 1.3 times as fast with it at 33,000 and 1.6 times at 500,000; four at once at
13,000 are not."""


class Event(NamedTuple):
    """News from a worker."""

    worker: int
    """Process number of the worker."""
    text: str
    """The step that is being computed."""
    done: float
    """Forecast seconds of the work that this event completes."""


class Lost(NamedTuple):
    """A batch without a result: the worker that computed it was ended from outside."""

    batch: Batch
    """The batch."""
    reason: str
    """Reason for which the worker process ended."""


Tell = Callable[[Event], None]
Work = Callable[[Group, Tell], Any]


def grouped(batches: Iterable[tuple[Hashable, Batch]]) -> list[Group]:
    """Make a group of the batches of equal keys, such as shapes, which share their programs.

    Groups come in the order of their first batch.
    """
    groups: dict[Hashable, list[Batch]] = {}
    for key, batch in batches:
        groups.setdefault(key, []).append(batch)
    return [tuple(group) for group in groups.values()]


class Executor(Protocol):
    """Computes each group by `work(group, tell)` and yields what it returns, in any order.

    `Lost` in place of a result is a batch that could not be computed.
    """

    def __call__(
        self, groups: Sequence[Group], work: Work, tell: Tell, workers: int
    ) -> Iterator[Any]: ...


def run_serial(groups: Sequence[Group], work: Work, tell: Tell, workers: int) -> Iterator[Any]:
    """Compute one group after the other, in this process."""
    for group in groups:
        yield work(group, tell)


def run_processes(groups: Sequence[Group], work: Work, tell: Tell, workers: int) -> Iterator[Any]:
    """Compute groups in `workers` fresh processes of this machine, each with a core of its own.

    A worker that is killed costs the batch that it was computing, which is yielded as `Lost`.
    Another one goes on with the rest of its group. Groups of large work come first: their workers
    compile in another way, and are replaced once no such group is left.
    """
    waiting = deque(sorted(groups, key=lambda group: not _is_large(group)))
    idle, busy = list[_Worker](), list[_Worker]()
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                is_large = _is_large(waiting[0])
                if idle and idle[-1].is_large != is_large:
                    idle.pop().pool.shutdown(wait=False)
                    continue
                busy.append(idle.pop() if idle else _Worker(is_large=is_large))
                busy[-1].begin(work, waiting.popleft())
            connection.wait([w.events for w in busy if not w.events.closed], timeout=0.05)
            for one in list(busy):
                is_done = one.future.done()
                one.hear(tell)  # after the look: of a process that is done there is no more news
                if not is_done:
                    continue
                busy.remove(one)
                if not isinstance(one.future.exception(), BrokenProcessPool):
                    idle.append(one)
                    yield one.future.result()
                    continue
                reason = one.why_it_ended()
                if not one.has_started:
                    raise ChildProcessError(f"a worker process ended while it started: {reason}")
                left = one.group[one.num_done :]
                if len(left) > 1:
                    waiting.appendleft(left[1:])
                if left:
                    yield Lost(left[0], reason)
    finally:
        for one in busy:
            one.kill()
        for one in idle:
            one.pool.shutdown(wait=False)


def _is_large(group: Group) -> bool:
    return max((batch.work for batch in group), default=0) >= LARGE_WORK


class _Worker:
    """A process that computes one group after the other.

    It has a pool and a pipe of its own: a pool of several is lost as a whole with one of them, and
    a worker that is killed with the lock of a shared queue would stop all others.
    """

    def __init__(self, *, is_large: bool):
        self.is_large = is_large
        context = multiprocessing.get_context("spawn")
        self.events, self._far_end = context.Pipe(duplex=False)
        config: Any = jax.config
        given = (self._far_end, config.jax_compilation_cache_dir, config.jax_platforms)
        with _signals_held_back():
            self.pool = ProcessPoolExecutor(
                1, mp_context=context, initializer=worker.start, initargs=given
            )
        self.has_started = False

    def begin(self, work: Work, group: Group) -> None:
        """Give it a group."""
        self.group, self.num_done = group, 0
        if self._far_end.closed:
            try:
                self.future = self.pool.submit(worker.compute, work, group)
            except BrokenProcessPool as error:  # it was killed while it had nothing to do
                self.future = Future()
                self.future.set_exception(error)
            return
        with _environment_of_children(is_large=self.is_large), _signals_held_back():
            self.future = self.pool.submit(worker.compute, work, group)
            (self._process,) = self.pool._processes.values()
        self._far_end.close()  # so that its end of the pipe is the only one

    def hear(self, tell: Tell) -> None:
        """Pass on its news."""
        with contextlib.suppress(EOFError, OSError):
            while not self.events.closed and self.events.poll():
                event = self.events.recv()
                self.has_started = True
                if event is not None:
                    self.num_done += event[2] > 0
                    tell(Event(*event))
            return
        self.events.close()  # the process is gone

    def why_it_ended(self) -> str:
        """Return why the worker process ended: the signal or the exit status."""
        self.pool.shutdown(wait=True)
        code = self._process.exitcode
        if code is None or code >= 0:
            return f"it ended with status {code}"
        name = signal.Signals(-code).name
        memory = ", as the system does where memory runs out: try fewer --workers"
        return f"it was ended by {name}{memory if name == 'SIGKILL' else ''}"

    def kill(self) -> None:
        """End it at once: its records are whole or absent."""
        for process in list((self.pool._processes or {}).values()):
            process.kill()
        self.pool.shutdown(wait=False, cancel_futures=True)


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
    ChildProcessError
        Where workers were killed, once all else is computed; it names the cells that are missing.
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

        def tell(event: Event) -> None:
            nonlocal num_finished
            text_of[event.worker] = event.text
            num_finished += event.done > 0
            bar.set_description_str(
                f"{num_finished}/{num_batches} | {' & '.join(text_of.values())}", refresh=False
            )
            bar.update(min(event.done, total - bar.n))  # sums of floats may end a hair above

        results = list(EXECUTORS[executor](groups, work, tell, workers))
        lost = [result for result in results if isinstance(result, Lost)]
        if not lost:
            bar.update(total - bar.n)  # sums of floats may end a hair below
    if lost:
        lines = [
            f"{batch.label} ({', '.join(str(getattr(c, 'name', c)) for c in batch.cells)}): {reason}"
            for batch, reason in lost
        ]
        raise ChildProcessError(
            "\n  ".join([f"{len(lost)} of {num_batches} batches are missing:", *lines])
            + "\nAll others are computed and kept; the same command computes what is missing."
        )
    return results


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let children be born deaf to signals that a whole group of processes gets, as by Ctrl-C.

    Their parent hears them, says so once, and ends its children. It hears them after the block:
    another thread may take a signal that this one blocks, and Python would interrupt this one
    between the birth of a child and what the child reads first.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    heard = list[int]()
    handlers = {}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        # It outlives the others, to clean up after them; it ignores two of the signals by itself,
        # and forgets that they were held back when it starts.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    handlers[number] = handler
                    signal.signal(number, lambda number, _: heard.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in dict.fromkeys(heard):
            signal.raise_signal(number)


@contextlib.contextmanager
def _environment_of_children(*, is_large: bool) -> Iterator[None]:
    """Let children inherit flags that keep each to one core, and choose how they compile.

    Two workers with two threads each would fight for two cores.
    """
    flags = ["--xla_cpu_multi_thread_eigen=false", *([] if is_large else _quick_compilation())]
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


@functools.cache
def _quick_compilation() -> list[str]:
    """XLA's flags that halve the time of compilation, where this JAX knows them.

    Small programs run as fast with them; those of large work do not. A process that starts with an
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
