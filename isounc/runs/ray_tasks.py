"""The executor `ray`: each batch is a task of a Ray cluster (extra `isounc[ray]`).

The driver, which is the process that was started, plans, hands out tasks and gathers news. It
computes nothing with JAX. A task imports what it needs, computes a batch and writes its records into
the run folder where its machine sees it, and sends them to the driver otherwise.

Ray moves functions and their arguments between its processes with cloudpickle, as `multiprocessing`
does with pickle. Nothing of it is stored, and no file is ever read that way.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from isounc.runs.batches import Batch, Event, Group, Lost, Tell, Work
from isounc.runs.compilation import is_large, quick_compilation_asked
from isounc.runs.extras import imported

RETRIES = 3
"""How often a batch is computed again whose worker or machine was lost."""
TASKS_PER_WORKER = 20
"""Tasks of a worker on CPUs before a fresh one takes its place, so that none grows for days. With
GPUs it is one: Ray may give the next task another GPU, and JAX keeps the first."""
SECONDS_BETWEEN_EVENTS = 0.5
"""Least time between two texts that a task sends about its progress."""
_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent home
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # `uv run` must not make an environment for each worker
}
_OF_A_LOCAL_CLUSTER = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # whatever the name says: it listens on loopback alone
}


def run_ray(
    groups: Sequence[Group],
    work: Work,
    tell: Tell,
    workers: int,
    *,
    address: str = "",
    cpus_per_cell: float = 1.0,
    gpus_per_cell: float = 0.0,
    device: str = "auto",
    cache: str = "",
) -> Iterator[Any]:
    """Compute each batch as a task of its own.

    A batch whose worker or machine is lost, or that runs out of memory, is computed again up to
    `RETRIES` times, which is harmless: records are whole or absent. One that raises an error is
    not. Either is yielded as `Lost` in the end, with the traceback of an error, and all others are
    computed.

    Parameters
    ----------
    workers
        Most tasks at a time; 0 means as many as the cluster has room for.
    address
        Address of a cluster, or `auto` for the one of this machine. Empty starts one here, of as
        many CPU cores as there are (or as `workers` reserve), unless `ray.init` was called before.
    cpus_per_cell, gpus_per_cell
        CPU cores and GPUs that a task reserves; shares of a GPU are possible, such as 0.25.
    device
        Device that computes, as the setting of that name; `auto` is the CPU where no GPUs are
        reserved, and otherwise JAX's choice.
    cache
        Folder of compiled programs, on each machine or shared by all; empty means none.

    Raises
    ------
    ImportError
        Without the extra `isounc[ray]`.
    ValueError
        If the cluster that is started here cannot have what a task reserves.
    OSError
        If the cluster cannot be reached.
    """
    for name, value in (_DEFAULTS | ({} if address else _OF_A_LOCAL_CLUSTER)).items():
        os.environ.setdefault(name, value)  # Ray reads them when it is imported
    ray = imported("ray", extra="ray", what="executor ray")
    with _cluster(ray, address, workers, cpus_per_cell, gpus_per_cell):
        task = ray.remote(
            num_cpus=cpus_per_cell,
            num_gpus=gpus_per_cell,
            num_returns="streaming",
            max_calls=1 if gpus_per_cell else TASKS_PER_WORKER,
            max_retries=0,  # of a stream Ray repeats what comes after the part that arrived
        )(lambda *given: (yield from compute(*given)))  # Ray looks whether it is a generator itself
        given = ray.put((work, cache))

        def start(batch: Batch, large: bool) -> Any:
            variables = environment_of_tasks(cpus_per_cell, gpus_per_cell, device, is_large=large)
            options = {"name": batch.label, "runtime_env": {"env_vars": variables}}
            return task.options(**options).remote(given, batch)

        def room() -> int:
            """Tasks handed out at a time: twice what the cluster has room for now."""
            has = ray.cluster_resources()
            wanted = {"CPU": cpus_per_cell, "GPU": gpus_per_cell}
            fits = [has.get(name, 0.0) // amount for name, amount in wanted.items() if amount]
            return workers or max(2, 2 * int(min(fits, default=1.0)))

        yield from _run(ray, start, groups, tell, room)


def environment_of_tasks(
    cpus_per_cell: float, gpus_per_cell: float, device: str = "auto", *, is_large: bool = True
) -> dict[str, str]:
    """Environment variables of a worker, which JAX reads when it starts.

    CUDA_VISIBLE_DEVICES is Ray's. Several tasks on a GPU share its memory: none takes it all at
    once, and each at most its share. On CPUs small work is compiled as worker processes compile it.
    """
    if device == "auto":
        device = "" if gpus_per_cell else "cpu"
    cores = max(1, math.ceil(cpus_per_cell))
    # As for worker processes: two tasks of two threads each would fight for two cores.
    flags = ["--xla_cpu_multi_thread_eigen=false"] if cores == 1 else []
    flags += quick_compilation_asked() if device == "cpu" and not is_large else []
    variables = {
        "XLA_FLAGS": " ".join([*flags, *os.environ.get("XLA_FLAGS", "").split()]),
        "NPROC": str(cores),  # threads of XLA on CPUs
        "OMP_NUM_THREADS": str(cores),
        "OPENBLAS_NUM_THREADS": str(cores),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    if gpus_per_cell:
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 * min(1.0, gpus_per_cell):.3f}"
    if device:
        variables["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(device, device)
    return variables


def compute(work_and_cache: tuple[Work, str], batch: Batch) -> Iterator[tuple[str, Any]]:
    """Compute a batch in a task, and yield what happens, the result or the traceback at last.

    The work has a thread of its own, for what it says reaches the driver from this one alone.
    """
    work, cache = work_and_cache
    news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            from isounc.runs import process

            process.use_compilation_cache(cache)
            news.put(("result", work((batch,), lambda said: news.put(("news", said)))))
        except BaseException:
            news.put(("failure", traceback.format_exc().rstrip()))

    threading.Thread(target=run, daemon=True).start()
    last = -math.inf
    while True:
        kind, content = news.get()
        if isinstance(content, Event):
            now = time.monotonic()
            if now - last < SECONDS_BETWEEN_EVENTS:
                continue
            last = now
        yield kind, content
        if kind != "news":
            return


@contextlib.contextmanager
def _cluster(
    ray: Any, address: str, workers: int, cpus_per_cell: float, gpus_per_cell: float
) -> Iterator[None]:
    """Connect to a cluster, or start one; whoever has called `ray.init` before keeps theirs."""
    if ray.is_initialized():
        yield
        return
    how: dict[str, Any] = {"address": address or "local", "log_to_driver": False}
    if not address:
        cores = os.cpu_count() or 1
        how |= {
            "num_cpus": math.ceil(workers * cpus_per_cell) if workers else cores,
            "include_dashboard": False,
        }
    with _own_handler_of_sigterm():
        try:
            ray.init(configure_logging=False, **how)
        except (ConnectionError, RuntimeError, ValueError) as error:
            says = str(error).partition("\n")[0]
            if not address:
                raise OSError(f"Ray could not start on this machine: {says}") from error
            raise OSError(
                f"ray_address must be that of a running cluster, got {address!r} (Ray says: {says})"
            ) from error
    try:
        if not address:
            has = ray.cluster_resources()
            for name, key, asked in (
                ("cpus_per_cell", "CPU", cpus_per_cell),
                ("gpus_per_cell", "GPU", gpus_per_cell),
            ):
                if asked > has.get(key, 0.0):
                    raise ValueError(
                        f"{name} must be at most {has.get(key, 0.0):g}, which is what this machine "
                        f"has, got {asked:g}; give --ray-address of a larger cluster"
                    )
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own_handler_of_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM, in whose place Ray puts one that ends without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(
    ray: Any,
    start: Callable[[Batch, bool], Any],
    groups: Sequence[Group],
    tell: Tell,
    room: Callable[[], int],
) -> Iterator[Any]:
    """Hand out batches, a few more than there is room for, and yield their results."""
    waiting = deque((batch, is_large(group)) for group in groups for batch in group)
    tries: Counter[int] = Counter()
    live: list[
        tuple[int, tuple[Batch, bool], Any]
    ] = []  # a place in the progress bar, batch, stream
    try:
        while waiting or live:
            most = room() if waiting else 0
            while waiting and len(live) < most:
                taken = {place for place, *_ in live}
                place = next(i for i in range(most) if i not in taken)
                batch, large = waiting.popleft()
                live.append((place, (batch, large), start(batch, large)))
            ready, _ = ray.wait([stream for *_, stream in live], timeout=1.0)
            for entry in [entry for entry in live if any(entry[2] is one for one in ready)]:
                place, (batch, large), stream = entry
                try:
                    kind, content = ray.get(next(stream))
                except (ray.exceptions.RayError, StopIteration) as error:
                    live.remove(entry)
                    reason = _reason(ray, error)
                    tries[id(batch)] += 1
                    if _is_loss(ray, error) and tries[id(batch)] <= RETRIES:
                        tell(Event(place, f"{batch.label}: again, as {reason}", 0.0))
                        waiting.append((batch, large))
                    else:
                        yield Lost(batch, reason)
                    continue
                if kind == "news":
                    # That a batch is done is said when its task is: it may be computed again.
                    is_event = isinstance(content, Event)
                    tell(Event(place, content.text, 0.0) if is_event else content)
                    continue
                live.remove(entry)
                if kind == "failure":
                    yield Lost(batch, content)
                else:
                    tell(Event(place, batch.label, batch.seconds))
                    yield content
    finally:
        for *_, stream in live:  # of a cluster that goes on without this process
            with contextlib.suppress(Exception):
                ray.cancel(stream, force=True)


def _is_loss(ray: Any, error: BaseException) -> bool:
    """Whether a worker or machine was lost, rather than an error raised by what was computed."""
    own = (ray.exceptions.RayTaskError, ray.exceptions.RuntimeEnvSetupError)
    return not isinstance(error, own)


def _reason(ray: Any, error: BaseException) -> str:
    """Say in words why a task ended."""
    if not _is_loss(ray, error):
        return str(error).rstrip()
    memory = ", as the system does where memory runs out: try more --cpus-per-cell"
    ends = {
        "WorkerCrashedError": f"its worker was killed{memory}",
        "OutOfMemoryError": f"Ray ended its worker{memory}",
        "NodeDiedError": "its machine was lost",
        "LocalRayletDiedError": "its machine was lost",
    }
    name = type(error).__name__
    return ends.get(name, f"its worker was lost ({name})")
