"""Time and memory of exact squared gradient norms against what else gives them, in one table and one figure.

    uv run --group benchmarks benchmarks/gradnorm.py               # everything: about 20 minutes on two cores
    uv run benchmarks/gradnorm.py --models mlp --widths 1024 --batches 1024
    uv run benchmarks/gradnorm.py --models decoder --batches 1 8
    uv run benchmarks/gradnorm.py --models mlp cnn --ways backward norms
    uv run --group benchmarks --with torch --with backpack-for-pytorch --with opacus --with laplace-torch \
        --with deltavar benchmarks/gradnorm.py --models mlp        # with the packages of PyTorch beside it

Times are ratios to the forward pass of the same model on the same batch in the same process (PyTorch's to its own):

    forward       f of every example
    backward      one gradient of the batch's mean
    norms         `value_and_sq_grad_norm`
    vmap(grad)    every example's gradient, then its square sum
    loop          one example's gradient after the other
    matfree       an unbiased estimate of the norms from 16 random directions (matfree, where installed)
    torch ...     PyTorch and its packages, where installed

They are the least of several runs, turn by turn, with compilation left out. Memory is measured in another process:
what it held at most while the function ran beyond what it held before (Linux), and what XLA says that it reserves.
The decoder has 135 million random parameters (30 layers of 576, tied embedding).
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
from gradnorm_models import Job, Task, make_task
from tqdm import tqdm

from isounc.gradnorm import value_and_sq_grad_norm


@dataclass
class Options:
    """What is measured."""

    models: tuple[str, ...] = ("mlp", "cnn", "decoder")
    """mlp, cnn, decoder."""
    ways: tuple[str, ...] = ()
    """Only these ways (forward always); empty is all. The greedy ones slow the others down beside them."""
    widths: tuple[int, ...] = (64, 256, 1024, 4096)
    """Hidden units of the MLPs (three hidden layers)."""
    batches: tuple[int, ...] = (1, 8, 64, 1024, 4096)
    """Examples; the decoder takes those up to 8."""
    tokens: int = 64
    """Length of the decoder's sequences."""
    layers: int = 30
    """Layers of the decoder."""
    seconds: float = 6.0
    """Runs of one task go on for about that long, two at least."""
    skip_above: float = 12.5
    """GiB of gradients above which those who hold them all are left out."""
    skip_work: float = 1e10
    """Examples times parameters above which loops and matfree are left out (laplace-torch: a thousandth of it)."""
    torch_batches: tuple[int, ...] = (1024,)
    """Batches at which the MLPs are also run in PyTorch, where it is installed."""
    memory: bool = True
    """Also measure memory, in a process for each task."""
    out: Path = Path("runs/gradnorm")
    """Folder for the table and the figure."""


MATFREE_PROBES = 16
"""Random directions: the relative error of each norm is then about sqrt(2/16)."""


def ways(task: Task, options: Options) -> dict[str, Callable[..., Any]]:
    """Functions of (params, batch) to be timed."""
    f = task.f

    def sq(gradient):
        return sum((g**2).sum() for g in jax.tree.leaves(gradient))

    def backward(params, batch):
        return jax.grad(lambda p: jax.vmap(f, (None, 0))(p, batch).mean())(params)

    found = {
        "forward": jax.vmap(f, (None, 0)),
        "backward": backward,
        "norms": lambda params, batch: value_and_sq_grad_norm(f, in_axes=0)(params, batch)[1],
    }
    size = sum(leaf.size for leaf in jax.tree.leaves(task.params))
    num = len(task.batch)
    if num * size <= options.skip_work:
        found["loop"] = lambda p, b: jax.lax.map(lambda x: sq(jax.grad(f)(p, x)), b)
        if importlib.util.find_spec("matfree") and 4 * size * MATFREE_PROBES <= 2**30:
            found["matfree"] = matfree_norms(f, task.params)
    if 4 * size * num <= options.skip_above * 2**30:
        found["vmap(grad)"] = lambda p, b: jax.vmap(lambda x: sq(jax.grad(f)(p, x)))(b)
    wanted = {"forward", *(options.ways or found)}
    return {name: way for name, way in found.items() if name in wanted}


def matfree_norms(f: Callable[..., jax.Array], params: Any) -> Callable[..., jax.Array]:
    """E[(J v)^2] over random signs v, row by row of the Jacobian J of all examples."""
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
    """Milliseconds of every way, and how far its norms are from the exact ones."""
    task = make_task(job, tokens=options.tokens, layers=options.layers)
    arguments = (task.params, task.batch)
    compiled = {
        name: jax.jit(way).lower(*arguments).compile() for name, way in ways(task, options).items()
    }
    results = {name: jax.block_until_ready(run(*arguments)) for name, run in compiled.items()}
    exact = results.get("vmap(grad)", results.get("loop"))
    best = dict.fromkeys(compiled, np.inf)
    begin, runs = time.perf_counter(), 0
    # Turn by turn, so that a machine that slows down slows all of them.
    while runs < 2 or (time.perf_counter() - begin < options.seconds and runs < 50):
        for name, run in compiled.items():
            for _ in range(
                2
            ):  # the first may find the caches and the allocator as a greedier one left them
                start = time.perf_counter()
                jax.block_until_ready(run(*arguments))
                best[name] = min(best[name], time.perf_counter() - start)
        runs += 1
    rows = []
    for name, run in compiled.items():
        error = None
        if exact is not None and name not in ("forward", "backward"):
            found, truth = (np.asarray(norms, float) for norms in (results[name], exact))
            error = float(np.sqrt(np.mean((found / truth - 1) ** 2)))
        rows.append(
            line(job, name, best[name], best["forward"], error)
            | {"xla_mebibytes": round(run.memory_analysis().temp_size_in_bytes / 2**20, 1)}
        )
    return rows


def line(job: Job, way: str, seconds: float, forward: float, error: float | None) -> dict[str, Any]:
    """A row of the table."""
    return {
        "model": job.model,
        "width": job.width,
        "batch": job.batch,
        "way": way,
        "milliseconds": round(1e3 * seconds, 3),
        "ratio": round(seconds / forward, 2),
        "relative_error": None if error is None else float(f"{error:.2g}"),
        "xla_mebibytes": None,
        "peak_mebibytes": None,
    }


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process, MiB."""
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith(field):
            return int(text.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def peaks(job: Job, options: Options) -> dict[str, float]:
    """MiB that this process holds at most during the first run of each way, beyond what it held before."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    task = make_task(job, tokens=options.tokens, layers=options.layers)
    found = {}
    for name, way in ways(task, options).items():
        run = jax.jit(way).lower(task.params, task.batch).compile()
        jax.block_until_ready(task)
        ctypes.CDLL(None).malloc_trim(0)  # what the way before has freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = resident("VmRSS")
        jax.block_until_ready(run(task.params, task.batch))
        found[name] = round(resident("VmHWM") - before, 2)
    return found


def in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a fresh process, or None where the system killed it (for want of memory)."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool:
            tqdm.write(f"{work.__name__} of {arguments[0]} {arguments[2:]} was killed")
            return None


STYLES = {
    "forward": ("#999999", "-"), "backward": ("#332288", "-"), "norms": ("#CC3311", "-"),
    "vmap(grad)": ("#117733", "-"), "loop": ("#DDAA33", "-"), "matfree": ("#88CCEE", "-"),
}  # fmt: skip


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratio to the forward pass (above) and memory (below), a column a way to grow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    widths = sorted({r["width"] for r in rows if r["model"] == "mlp"})
    batches = sorted({r["batch"] for r in rows if r["model"] == "mlp"})
    columns: list[tuple[str, str, list[dict[str, Any]]]] = []
    if len(widths) > 1:
        most = max(b for b in batches if b <= 1024)
        here = [r for r in rows if r["model"] == "mlp" and r["batch"] == most]
        columns.append((f"MLP, {most} examples", "width", here))
    if widths:
        most = max([w for w in widths if w <= 1024], default=widths[0])
        here = [r for r in rows if r["model"] == "mlp" and r["width"] == most]
        columns.append((f"MLP, width {most}", "batch", here))
    for model, title in (("cnn", "CNN"), ("decoder", "decoder, 135M")):
        here = [r for r in rows if r["model"] == model]
        if here:
            columns.append((title, "batch", here))
    fig, axes = pyplot.subplots(
        2, len(columns), figsize=(3.1 * len(columns) + 1.6, 5.6), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    seen: dict[str, Any] = {}
    for (title, by, here), (top, bottom) in zip(columns, axes.T, strict=True):
        for way in dict.fromkeys(r["way"] for r in here):
            color, dash = STYLES.get(way, (None, "--"))
            if way in seen:  # one colour in every panel
                color = seen[way].get_color()
            if way == "torch forward":
                continue
            mine = sorted((r for r in here if r["way"] == way), key=lambda r: r[by])
            style = {"color": color, "linestyle": dash, "marker": "o", "markersize": 4}
            (seen[way],) = top.plot([r[by] for r in mine], [r["ratio"] for r in mine], **style)
            style["color"] = seen[way].get_color()
            held = [r for r in mine if r["peak_mebibytes"] is not None]
            # Below a MiB lies the noise of the allocator.
            memory = [max(1, r["peak_mebibytes"]) for r in held]
            bottom.plot([r[by] for r in held], memory, **style)
        top.axhline(2, color="#999999", linewidth=0.8, linestyle=":")
        top.set_title(title)
        for panel in (top, bottom):
            panel.set(xscale="log", yscale="log")
        ticks = sorted({r[by] for r in here})
        for panel in (top, bottom):
            panel.set_xticks(ticks, map(str, ticks))
            panel.set_xticks([], minor=True)
            panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=8))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter(ticker.NullFormatter())
        words = {"width": "hidden units", "batch": "examples"}[by]
        bottom.set_xlabel(words)
    axes[0, 0].set_ylabel("time / forward pass")
    axes[1, 0].set_ylabel("memory while running, MiB")
    fig.legend(seen.values(), seen.keys(), loc="outside right center", frameon=False)
    fig.savefig(path, dpi=130)
    pyplot.close(fig)


def main(options: Options) -> None:
    """Measure, print, write."""
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
        found = measure(job, options)
        if options.memory and device == "cpu":
            held = in_process(peaks, job, options) or {}
            for row in found:
                row["peak_mebibytes"] = held.get(row["way"])
        beside = job.model == "mlp" and job.batch in options.torch_batches and not options.ways
        if beside and importlib.util.find_spec("torch"):
            from gradnorm_torch import measure_torch

            found += in_process(measure_torch, job, options) or []
        for row in found:
            memory = row["peak_mebibytes"]
            memory = "" if memory is None else f"{memory:>10.1f} MiB"
            error = row["relative_error"]
            tqdm.write(
                f"{row['model']:<8}{row['width'] or '':>5}{row['batch']:>6}  {row['way']:<20}"
                f"{row['milliseconds']:>12.2f} ms{row['ratio']:>9.2f} x{memory}"
                f"{'' if error is None else f'   error {error:.1e}'}"
            )
        rows += [row | about for row in found]
        # After every task: what is measured is kept when a later one fails.
        with (options.out / "gradnorm.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        figure(rows, options.out / "gradnorm.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
