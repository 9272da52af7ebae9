"""The cells of an experiment and the executors that run them.

Cells that differ in the seed alone form a batch, which is computed together; batches whose arrays have equal shapes
form a group, which one worker runs one after the other, so that each shape is compiled once in a run.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import os
import queue
import resource
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
from tqdm import tqdm

from isounc.checks import check_choice
from isounc.runs.folder import RunFolder
from isounc.sampling import smc
from isounc.studies.scaling import cell as evaluate
from isounc.studies.scaling.cell import Cell, EvaluationSettings


class Event(NamedTuple):
    """What a worker tells while it runs."""

    worker: int
    """Process number of the worker."""
    text: str
    """What is being done."""
    done: float
    """Estimated seconds of work that this event completes."""


class Compilation(NamedTuple):
    """Compilations of a process so far."""

    count: int
    """Programs compiled."""
    cached: int
    """Programs taken from the persistent cache instead."""
    seconds: float
    """Time spent on both."""


Batch = tuple[Cell, ...]
Group = tuple[Batch, ...]
Tell = Callable[[Event], None]
Work = Callable[[Group, Tell], Any]


class Executor(Protocol):
    """Runs groups of batches, each through ``work(group, tell)``, and yields what each returns."""

    def __call__(
        self, groups: Sequence[Group], work: Work, tell: Tell, workers: int
    ) -> Iterator[Any]: ...


def make_batches(
    *,
    problems: Sequence[str],
    widths: Sequence[int],
    depths: Sequence[int],
    activations: Sequence[str],
    parameterisations: Sequence[str],
    prior_sds: Sequence[float],
    num_seeds: int,
) -> list[Batch]:
    """Every combination as a batch of seeds 0 to num_seeds - 1. At depth 0 the width has no effect and is 1."""
    combinations = itertools.product(
        problems, widths, depths, activations, parameterisations, prior_sds
    )
    batches = {
        (p, w if d else 1, d, a, q, sd): tuple(
            Cell(p, w if d else 1, d, a, q, sd, seed) for seed in range(num_seeds)
        )
        for p, w, d, a, q, sd in combinations
    }
    return list(batches.values())


def make_groups(batches: Sequence[Batch], settings: EvaluationSettings) -> list[Group]:
    """Batches of equal shapes together, the most expensive group first so that workers end together."""
    groups: dict[Any, list[Batch]] = {}
    for batch in batches:
        problem = evaluate.cell_problem(batch[0], settings)
        model = evaluate.cell_model(batch[0], problem)
        groups.setdefault((problem.shape_key, model, len(batch)), []).append(batch)
    cost = {
        key: sum(estimate_cost(b, settings).seconds for b in group) for key, group in groups.items()
    }
    return [tuple(groups[key]) for key in sorted(groups, key=lambda k: -cost[k])]


class Cost(NamedTuple):
    """A rough forecast for a batch on one CPU core."""

    seconds: float
    """Sampling, fits and estimates, without compilation."""
    mebibytes: float
    """Peak memory of the worker above its 600 MiB of interpreter and compiler."""


# Seconds per (parameter x example x gradient) and per gradient call, measured on one core of a 2-core server with
# `experiments/scaling.py`; they order the work and feed the ETA, nothing depends on their accuracy.
_SECONDS_PER_TERM = 1.5e-9
_SECONDS_PER_CALL = 2e-5
TEMPERATURES = 8
"""tempered_smc: those of xor at width 2."""
COMPILE_SECONDS = 14.0
"""Compilation of one group of equal shapes, measured as above."""


def estimate_cost(batch: Batch, settings: EvaluationSettings) -> Cost:
    """Forecast of time and memory for a batch."""
    problem = evaluate.cell_problem(batch[0], settings)
    model = evaluate.cell_model(batch[0], problem)
    sampler = settings.sampler
    # Measured mean steps, in readout coordinates for a gaussian likelihood and in prior coordinates for the others.
    steps = 13 if problem.noise_sd is None else 20
    transitions = sampler.num_draws + sampler.num_warmup
    if sampler.sampler == smc.NAME:
        transitions = TEMPERATURES * sampler.num_mutations * sampler.num_draws
    calls = transitions * steps
    chains = len(batch) * sampler.chains
    terms = model.num_params * len(problem.X) * chains
    locations = sum(len(x) for x in problem.regions.values())
    sampling = calls * (_SECONDS_PER_CALL + _SECONDS_PER_TERM * terms)
    estimating = len(batch) * (1.0 + 1e-7 * locations * problem.num_columns * model.num_params)
    values = sampler.max_draws * chains * len(problem.regions) * sampler.locations_per_region
    floats = (
        4 * values * problem.num_columns
        + 4 * model.num_params * settings.n * chains
        + 6 * model.num_params**2
    )
    if sampler.sampler == smc.NAME:
        # Particles and gradients, twice while they are resampled.
        floats += 4 * sampler.num_draws * chains * model.num_params
    return Cost(sampling + estimating, 4 * floats / 2**20)


def run_group(
    group: Group,
    tell: Tell,
    *,
    out: str,
    settings_dict: dict[str, Any],
    settings: EvaluationSettings,
    dtype: str,
) -> Compilation:
    """Evaluate the batches of a group and write their records; batches that are complete are skipped."""
    before = compilations()
    run = RunFolder.open(out, settings_dict)
    with jax.enable_x64(dtype == "float64"):
        for batch in group:
            cost = estimate_cost(batch, settings).seconds
            label = f"{batch[0].problem} width {batch[0].width}"
            if not all(run.has(cell.name) for cell in batch):

                def report(what: str, label: str = label) -> None:
                    tell(Event(os.getpid(), f"{label}: {what}", 0.0))

                records = evaluate.evaluate_seeds(batch, settings, report)
                for record in records:
                    if not run.has(record.name):
                        run.write(record)
            tell(Event(os.getpid(), label, cost))
    # Programs of this shape only hold memory now, those that serve every shape save time: both go where it counts.
    if peak_mebibytes() > _CLEAR_ABOVE:
        jax.clear_caches()
    after = compilations()
    return Compilation(
        after.count - before.count, after.cached - before.cached, after.seconds - before.seconds
    )


def run_serial(groups: Sequence[Group], work: Work, tell: Tell, workers: int) -> Iterator[Any]:
    """One group after the other, in this process."""
    for group in groups:
        yield work(group, tell)


def run_processes(groups: Sequence[Group], work: Work, tell: Tell, workers: int) -> Iterator[Any]:
    """Groups on ``workers`` fresh processes of this machine, each with its share of the cores."""
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
                for process in list((pool._processes or {}).values()):
                    process.terminate()
                raise
            finally:
                stop.set()


EXECUTORS: dict[str, Executor] = {"serial": run_serial, "processes": run_processes}


@contextlib.contextmanager
def _environment_of_children() -> Iterator[None]:
    """Children inherit flags that keep each to one core: two workers with two threads each would fight for two."""
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
    """Flags of XLA that halve the time of compilation; these small programs run as fast with them.

    Only those that this JAX knows: a process that starts with an unknown one in XLA_FLAGS dies.
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


def _start_worker(events: Any, cache: str | None) -> None:
    global _events
    _events = events
    use_compilation_cache(cache)
    parent = os.getppid()

    def watch() -> None:
        # A parent that was killed cannot stop its workers: they notice that they were handed to another.
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work_in_child(work: Work, group: Group) -> Any:
    return work(group, lambda event: _events.put(tuple(event)))


def run_sweep(
    groups: Sequence[Group],
    work: Work,
    *,
    settings: EvaluationSettings,
    executor: str = "serial",
    workers: int = 1,
) -> list[Any]:
    """Run every group with a progress bar in estimated seconds of work, and return what each gave.

    Raises
    ------
    ValueError
        For an unknown executor.
    """
    check_choice("executor", executor, EXECUTORS)
    total = sum(estimate_cost(batch, settings).seconds for group in groups for batch in group)
    doing: dict[int, str] = {}
    num_batches, finished = sum(map(len, groups)), 0
    layout = "{percentage:3.0f}% |{bar:20}| {elapsed} elapsed, {remaining} left | {desc}"
    with tqdm(total=total, bar_format=layout, mininterval=0.5, dynamic_ncols=True) as bar:

        def tell(event: Event) -> None:
            nonlocal finished
            doing[event.worker] = event.text
            finished += event.done > 0
            bar.set_description_str(
                f"{finished}/{num_batches} | {' & '.join(doing.values())}", refresh=False
            )
            bar.update(min(event.done, total - bar.n))  # sums of floats may end a hair above

        results = list(EXECUTORS[executor](groups, work, tell, workers))
        # Events of the last batches may arrive after their results.
        bar.update(total - bar.n)
    return results


_compiled = {"count": 0, "cached": 0, "seconds": 0.0}


def _on_duration(event: str, duration_secs: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled["count"] += 1
        _compiled["seconds"] += duration_secs


def _on_event(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _compiled["cached"] += 1


jax.monitoring.register_event_duration_secs_listener(_on_duration)
jax.monitoring.register_event_listener(_on_event)


def compilations() -> Compilation:
    """Compilations of this process since it started."""
    cached = _compiled["cached"]
    return Compilation(int(_compiled["count"] - cached), int(cached), _compiled["seconds"])


_CLEAR_ABOVE = 800
"""MiB of a process from which on programs are dropped after a group; two workers then stay below 2 GiB."""


def peak_mebibytes() -> float:
    """Largest resident set so far of this process or of any child that has ended."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    sides = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(side).ru_maxrss for side in sides) / unit


def bound_memory(most: float) -> None:
    """Give freed memory back to the system; drop compiled programs where this process still has more than ``most`` MiB.

    What is needed again comes back from the compilation cache in seconds. (glibc keeps much of what compiling took.)
    """
    _trim()
    if resident_mebibytes() > most:
        jax.clear_caches()
        gc.collect()
        _trim()


def _trim() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def resident_mebibytes() -> float:
    """Resident set of this process now; its peak where the system does not say."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return peak_mebibytes()
    return int(pages.read_text().split()[1]) * resource.getpagesize() / 2**20


def machine_mebibytes() -> float:
    """Physical memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * resource.getpagesize() / 2**20


def use_compilation_cache(folder: str | Path | None) -> None:
    """Keep compiled programs in ``folder`` across processes and runs; None or "" leaves JAX as it is."""
    if not folder:
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # An entry torn by a kill is recompiled, which JAX mentions; it is no news to a user.
    warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
