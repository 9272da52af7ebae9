"""Time and memory of exact squared gradient norms beside other ways to get them.

    uv run benchmarks/gradnorm.py     # everything: 20 minutes on two cores
    uv run benchmarks/gradnorm.py --models mlp --widths 1024 --batches 1024
    uv run benchmarks/gradnorm.py --models decoder --batches 1 8
    uv run benchmarks/gradnorm.py --models mlp cnn --ways backward norms
    uv run --with torch --with backpack-for-pytorch --with opacus \
        --with laplace-torch --with deltavar benchmarks/gradnorm.py --models mlp     # and PyTorch

Times are ratios to the forward pass of the same model on the same batch in the same process (for
PyTorch, to its own forward pass):

    forward       f of every example
    backward      one gradient of the batch's mean
    norms         `value_and_sq_grad_norm`
    vmap(grad)    the gradient of every example at once, then its sum of squares
    loop          the gradient of one example after the other
    matfree       an unbiased estimate from 16 random directions
    torch ...     PyTorch and its packages (if they are installed)

Each time is the least of several runs, in which the ways take turns; compilation is left out.
Memory is measured in a separate process: the most it held while the function ran, beyond what it
held before (Linux), and what XLA reports that it reserves. The decoder has 135 million random
parameters (30 layers of width 576, tied embedding).
"""

from __future__ import annotations

import csv
import ctypes
import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from gradnorm_models import Job, Task, Timing, make_task
from tqdm import tqdm

from isounc.gradnorm import value_and_sq_grad_norm


@dataclass
class Options:
    """Models, sizes and limits of the benchmark."""

    models: tuple[str, ...] = ("mlp", "cnn", "decoder")
    """Models to time: mlp, cnn, decoder."""
    ways: tuple[str, ...] = ()
    """Ways to time beside forward; empty for all. Those that fill memory slow the others down."""
    widths: tuple[int, ...] = (64, 256, 1024, 4096)
    """Hidden units of the MLPs (three hidden layers)."""
    batches: tuple[int, ...] = (1, 8, 64, 1024, 4096)
    """Numbers of examples; the decoder takes those up to 8."""
    tokens: int = 64
    """Length of the decoder's sequences."""
    layers: int = 30
    """Layers of the decoder."""
    seconds: float = 6.0
    """Seconds for which the runs of one task are repeated; there are at least two."""
    skip_above: float = 12.5
    """GiB of gradients above which the ways that hold all of them are left out."""
    skip_work: float = 1e10
    """Examples times parameters above which loop, matfree and deltavar are left out
    (laplace-torch: above a thousandth of it)."""
    torch_batches: tuple[int, ...] = (1024,)
    """Numbers of examples at which the MLPs are also run in PyTorch, if it is installed."""
    memory: bool = True
    """Whether to measure memory too, in a process for each task."""
    out: Path = Path("runs/gradnorm")
    """Folder for the table and the figure."""


MATFREE_PROBES = 16
"""Random directions: the relative error of each norm is then about sqrt(2/16)."""


def ways(task: Task, options: Options) -> dict[str, Callable[..., Any]]:
    """Functions of (params, batch) that are timed."""
    f = task.f

    def sq(gradient):
        return sum((g**2).sum() for g in jax.tree.leaves(gradient))

    def backward(params, batch):
        return jax.grad(lambda p: jax.vmap(f, (None, 0))(p, batch).mean())(params)

    candidates = {
        "forward": jax.vmap(f, (None, 0)),
        "backward": backward,
        "norms": lambda params, batch: value_and_sq_grad_norm(f, in_axes=0)(params, batch)[1],
    }
    size = sum(leaf.size for leaf in jax.tree.leaves(task.params))
    num = len(task.batch)
    if num * size <= options.skip_work:
        candidates["loop"] = lambda p, b: jax.lax.map(lambda x: sq(jax.grad(f)(p, x)), b)
        if 4 * size * MATFREE_PROBES <= 2**30:
            candidates["matfree"] = matfree_norms(f, task.params)
    if 4 * size * num <= options.skip_above * 2**30:
        candidates["vmap(grad)"] = lambda p, b: jax.vmap(lambda x: sq(jax.grad(f)(p, x)))(b)
    wanted = {"forward", *(options.ways or candidates)}
    return {name: way for name, way in candidates.items() if name in wanted}


def matfree_norms(f: Callable[..., jax.Array], params: Any) -> Callable[..., jax.Array]:
    """Estimate E[(J v)^2] over random signs v, with the Jacobian J of all examples."""
    from matfree import stochtrace

    estimate = stochtrace.estimator_monte_carlo(
        stochtrace.monte_carlo_rownorms_squared(),
        stochtrace.sampler_signs(params, num=MATFREE_PROBES),
    )

    def norms(params, batch):
        def product(v):
            return jax.jvp(lambda p: jax.vmap(f, (None, 0))(p, batch), (params,), (v,))[1]

        return estimate(product, jax.random.key(0))

    return norms


def measure(job: Job, options: Options) -> list[dict[str, Any]]:
    """Time every way in turn, and compare its norms with the exact ones."""
    task = make_task(job, tokens=options.tokens, layers=options.layers)
    arguments = (task.params, task.batch)
    compiled = {
        name: jax.jit(way).lower(*arguments).compile() for name, way in ways(task, options).items()
    }
    results = {name: jax.block_until_ready(run(*arguments)) for name, run in compiled.items()}
    exact = results.get("vmap(grad)", results.get("loop"))
    best = dict.fromkeys(compiled, np.inf)
    begin, rounds = time.perf_counter(), 0
    # In turns, so that a machine that slows down slows all of them.
    while rounds < 2 or (time.perf_counter() - begin < options.seconds and rounds < 50):
        for name, run in compiled.items():
            # Twice: the first run may find the caches as a way that fills memory left them.
            for _ in range(2):
                start = time.perf_counter()
                jax.block_until_ready(run(*arguments))
                best[name] = min(best[name], time.perf_counter() - start)
        rounds += 1
    rows = []
    for name, run in compiled.items():
        error = None
        if exact is not None and name not in ("forward", "backward"):
            norms, truth = (np.asarray(values, float) for values in (results[name], exact))
            error = float(np.sqrt(np.mean((norms / truth - 1) ** 2)))
        row = make_row(job, Timing(name, best[name], error), best["forward"])
        if memory := run.memory_analysis():
            row["xla_mebibytes"] = round(memory.temp_size_in_bytes / 2**20, 1)
        rows.append(row)
    return rows


def make_row(job: Job, timing: Timing, forward: float) -> dict[str, Any]:
    """Row of the table for one way; `forward` is the time of the forward pass in seconds."""
    error = timing.relative_error
    return {
        "model": job.model,
        "width": job.width,
        "batch": job.batch,
        "way": timing.way,
        "milliseconds": round(1e3 * timing.seconds, 3),
        "ratio": round(timing.seconds / forward, 2),
        "relative_error": None if error is None else float(f"{error:.2g}"),
        "xla_mebibytes": None,
        "peak_mebibytes": None,
    }


def measure_in_torch(job: Job, options: Options) -> list[dict[str, Any]]:
    """Time PyTorch and its packages on the same MLP; ratios are to PyTorch's forward pass."""
    from gradnorm_torch import measure_torch

    timings = measure_torch(
        job,
        seconds=options.seconds,
        skip_above=options.skip_above,
        skip_work=options.skip_work,
    )
    return [make_row(job, timing, timings[0].seconds) for timing in timings]


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process in MiB."""
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith(field):
            return int(text.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def peaks(job: Job, options: Options) -> dict[str, float]:
    """Most MiB that this process holds in the first run of each way, beyond what it held before."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    task = make_task(job, tokens=options.tokens, layers=options.layers)
    held = {}
    for name, way in ways(task, options).items():
        run = jax.jit(way).lower(task.params, task.batch).compile()
        jax.block_until_ready(task)
        ctypes.CDLL(None).malloc_trim(0)  # returns what the way before has freed to the system
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = resident("VmRSS")
        jax.block_until_ready(run(task.params, task.batch))
        held[name] = round(resident("VmHWM") - before, 2)
    return held


def in_process(work: Callable[[Job, Options], Any], job: Job, options: Options) -> Any:
    """Result of `work` in a fresh process, or None if the system killed it (for want of memory)."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(work, job, options).result()
        except BrokenProcessPool:
            tqdm.write(f"{work.__name__} of {job} was killed")
            return None


STYLES = {
    "forward": ("#999999", "-"), "backward": ("#332288", "-"), "norms": ("#CC3311", "-"),
    "vmap(grad)": ("#117733", "-"), "loop": ("#DDAA33", "-"), "matfree": ("#88CCEE", "-"),
}  # fmt: skip


def figure_columns(rows: list[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Title, column on the horizontal axis and rows for each column of the figure's panels."""

    def rows_of(model: str, **values: int) -> list[dict[str, Any]]:
        values_of_row = {"model": model} | values
        return [row for row in rows if values_of_row.items() <= row.items()]

    columns = []
    widths = sorted({row["width"] for row in rows_of("mlp")})
    batches = sorted({row["batch"] for row in rows_of("mlp")})
    if len(widths) > 1:
        batch = max([b for b in batches if b <= 1024], default=batches[0])
        columns.append((f"MLP, {batch} examples", "width", rows_of("mlp", batch=batch)))
    if widths:
        width = max([w for w in widths if w <= 1024], default=widths[0])
        columns.append((f"MLP, width {width}", "batch", rows_of("mlp", width=width)))
    for model, title in (("cnn", "CNN"), ("decoder", "decoder, 135M")):
        if rows_of(model):
            columns.append((title, "batch", rows_of(model)))
    return columns


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the ratio to the forward pass and, where it was measured, the memory below it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    columns = figure_columns(rows)
    quantities = {"ratio": "time / forward pass", "peak_mebibytes": "memory while running, MiB"}
    quantities = {q: label for q, label in quantities.items() if any(row[q] for row in rows)}
    fig, axes = pyplot.subplots(
        len(quantities), len(columns), squeeze=False, layout="constrained",
        figsize=(3.1 * len(columns) + 1.6, 2.8 * len(quantities)),
    )  # fmt: skip
    lines: dict[str, Any] = {}
    for (title, axis, column_rows), panels in zip(columns, axes.T, strict=True):
        ticks = sorted({row[axis] for row in column_rows})
        for way in dict.fromkeys(row["way"] for row in column_rows):
            if way == "torch forward":
                continue
            color, dash = STYLES.get(way, (None, "--"))
            if way in lines:  # the same colour in every panel
                color = lines[way].get_color()
            for quantity, panel in zip(quantities, panels, strict=True):
                points = [
                    # Below a MiB lies the noise of the allocator.
                    (row[axis], row[quantity] if quantity == "ratio" else max(1, row[quantity]))
                    for row in column_rows
                    if row["way"] == way and row[quantity] is not None
                ]
                (line,) = panel.plot(
                    *zip(*sorted(points), strict=True) if points else ((), ()),
                    color=color, linestyle=dash, marker="o", markersize=4,
                )  # fmt: skip
                color = line.get_color()
                lines.setdefault(way, line)
        panels[0].axhline(2, color="#999999", linewidth=0.8, linestyle=":")
        panels[0].set_title(title)
        panels[-1].set_xlabel({"width": "hidden units", "batch": "examples"}[axis])
        for panel in panels:
            panel.set(xscale="log", yscale="log")
            panel.set_xticks(ticks, map(str, ticks))
            panel.set_xticks([], minor=True)
            panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=8))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter(ticker.NullFormatter())
    for label, panel in zip(quantities.values(), axes[:, 0], strict=True):
        panel.set_ylabel(label)
    fig.legend(lines.values(), lines.keys(), loc="outside right center", frameon=False)
    fig.savefig(path, dpi=130)
    pyplot.close(fig)


def main(options: Options) -> None:
    """Measure every task, and write the table and the figure."""
    jobs = [
        Job(model, width, batch)
        for model in options.models
        for batch in options.batches
        for width in (options.widths if model == "mlp" else (0,))
        if model != "decoder" or batch <= 8
    ]
    device = jax.devices()[0].device_kind
    print(f"{device}, JAX {jax.__version__}, float32")
    about = {"device": device, "jax": jax.__version__}
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for job in tqdm(jobs, unit="task"):
        task_rows = measure(job, options)
        if options.memory and device == "cpu":
            held = in_process(peaks, job, options) or {}
            for row in task_rows:
                row["peak_mebibytes"] = held.get(row["way"])
        in_torch = job.model == "mlp" and job.batch in options.torch_batches and not options.ways
        if in_torch and importlib.util.find_spec("torch"):
            task_rows += in_process(measure_in_torch, job, options) or []
        for row in task_rows:
            memory = row["peak_mebibytes"]
            memory = "" if memory is None else f"{memory:>10.1f} MiB"
            error = row["relative_error"]
            tqdm.write(
                f"{row['model']:<8}{row['width'] or '':>5}{row['batch']:>6}  {row['way']:<20}"
                f"{row['milliseconds']:>12.2f} ms{row['ratio']:>9.2f} x{memory}"
                f"{'' if error is None else f'   error {error:.1e}'}"
            )
        rows += [row | about for row in task_rows]
        # After every task, so that nothing measured is lost if a later task fails.
        with (options.out / "gradnorm.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        figure(rows, options.out / "gradnorm.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
