"""The executor `processes`: groups are computed in worker processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, resource_tracker
from typing import Any

import jax

from isounc.runs import worker
from isounc.runs.batches import Event, Group, Lost, Tell, Work
from isounc.runs.compilation import is_large, quick_compilation


def run_processes(groups: Sequence[Group], work: Work, tell: Tell, workers: int) -> Iterator[Any]:
    """Compute groups in `workers` fresh processes of this machine, each with a core of its own.

    A worker that is killed costs the batch that it was computing, which is yielded as `Lost`.
    Another one goes on with the rest of its group. Groups of large work come first: their workers
    compile in another way, and are replaced once no such group is left.
    """
    waiting = deque(sorted(groups, key=lambda group: not is_large(group)))
    idle, busy = list[_Worker](), list[_Worker]()
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                large = is_large(waiting[0])
                if idle and idle[-1].is_large != large:
                    idle.pop().pool.shutdown(wait=False)
                    continue
                busy.append(idle.pop() if idle else _Worker(is_large=large))
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
    flags = ["--xla_cpu_multi_thread_eigen=false", *([] if is_large else quick_compilation())]
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
