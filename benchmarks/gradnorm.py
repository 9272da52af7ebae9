"""Time and memory of exact squared gradient norms against what else gives them, in one table and one figure.

    uv run benchmarks/gradnorm.py                          # networks of all kinds: minutes
    uv run benchmarks/gradnorm.py --models mlp --widths 1024 --batches 1024
    uv run benchmarks/gradnorm.py --models decoder --batches 1 8

Each line is a ratio to the forward pass of the same model on the same batch in the same process: `backward` is one
gradient of the batch's mean, `norms` is `value_and_sq_grad_norm`, `vmap(grad)` holds every example's gradient, `loop`
takes one after the other. Times are the least of several runs, with compilation left out; memory is what XLA reserves
beside arguments and results. The decoder has 135 million random parameters (30 layers of 576, tied embedding).
"""

from __future__ import annotations

import csv
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from isounc.gradnorm import value_and_sq_grad_norm


@dataclass
class Options:
    """What is measured."""

    models: tuple[str, ...] = ("mlp", "cnn", "decoder")
    """mlp, cnn, decoder."""
    widths: tuple[int, ...] = (64, 256, 1024, 4096)
    """Hidden units of the MLPs (three hidden layers)."""
    batches: tuple[int, ...] = (1, 32, 1024)
    """Examples; the decoder takes those up to 8."""
    tokens: int = 64
    """Length of the decoder's sequences."""
    layers: int = 30
    """Layers of the decoder."""
    repetitions: int = 5
    """Runs of which the quickest counts."""
    skip_above: float = 4.0
    """GiB of gradients above which vmap(grad) is left out."""
    out: Path = Path("runs/gradnorm")
    """Folder for the table and the figure."""


class Task(NamedTuple):
    """A function of one example, its parameters, and a batch."""

    name: str
    f: Callable[..., jax.Array]
    params: Any
    batch: jax.Array


def mlp(width: int, batch: int) -> Task:
    """P(y=1) of a tanh network of three hidden layers."""
    rng = np.random.default_rng(0)
    sizes = [width, width, width, width, 1]
    params = [
        (
            jnp.asarray(rng.standard_normal((a, b)) / np.sqrt(a), jnp.float32),
            jnp.zeros(b, jnp.float32),
        )
        for a, b in itertools.pairwise(sizes)
    ]

    def f(params, x):
        for w, b in params[:-1]:
            x = jnp.tanh(x @ w + b)
        w, b = params[-1]
        return jax.nn.sigmoid(x @ w + b)[0]

    x = jnp.asarray(rng.standard_normal((batch, width)), jnp.float32)
    return Task(f"mlp {width}", f, params, x)


def cnn(batch: int) -> Task:
    """A small convolutional classifier with GroupNorm on 32 x 32 images; log probability of class 0."""
    rng = np.random.default_rng(0)
    channels = [3, 32, 64, 128]
    params = {
        "kernels": [
            jnp.asarray(rng.standard_normal((3, 3, a, b)) / np.sqrt(9 * a), jnp.float32)
            for a, b in itertools.pairwise(channels)
        ],
        "scales": [jnp.ones(c, jnp.float32) for c in channels[1:]],
        "head": jnp.asarray(rng.standard_normal((128, 10)) / 11, jnp.float32),
    }

    def f(params, x):
        x = x[None]
        for kernel, scale in zip(params["kernels"], params["scales"], strict=True):
            x = jax.lax.conv_general_dilated(
                x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            groups = x.reshape(*x.shape[:3], 8, -1)
            groups -= groups.mean((1, 2, 4), keepdims=True)
            groups /= jnp.sqrt((groups**2).mean((1, 2, 4), keepdims=True) + 1e-5)
            x = jax.nn.relu(groups.reshape(x.shape) * scale)
        return jax.nn.log_softmax(x.mean((1, 2))[0] @ params["head"])[0]

    x = jnp.asarray(rng.standard_normal((batch, 32, 32, 3)), jnp.float32)
    return Task("cnn", f, params, x)


def decoder(batch: int, tokens: int, layers: int) -> Task:
    """A Llama-like decoder of SmolLM2-135M's shape; log probability of a sequence."""
    d, heads, kv, ff, vocabulary = 576, 9, 3, 1536, 49152
    k = d // heads
    rng = np.random.default_rng(0)

    def draw(*shape):
        scale = 1 / np.sqrt(shape[0] if len(shape) == 2 else d)
        return jnp.asarray(scale * rng.standard_normal(shape, np.float32))

    params = {
        "embed": draw(vocabulary, d),
        "final": jnp.ones(d, jnp.float32),
        "layers": [
            {
                "n1": jnp.ones(d, jnp.float32), "n2": jnp.ones(d, jnp.float32),
                "q": draw(d, heads * k), "k": draw(d, kv * k), "v": draw(d, kv * k), "o": draw(heads * k, d),
                "gate": draw(d, ff), "up": draw(d, ff), "down": draw(ff, d),
            }
            for _ in range(layers)
        ],
    }  # fmt: skip

    def norm(x, scale):
        return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale

    def rotate(x):
        angle = jnp.arange(x.shape[0])[:, None, None] / 10000.0 ** (jnp.arange(k // 2) / (k // 2))
        a, b = x[..., : k // 2], x[..., k // 2 :]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def f(params, ids):
        x, t = params["embed"][ids[:-1]], ids.size - 1
        mask = jnp.tril(jnp.ones((t, t), bool))
        for p in params["layers"]:
            y = norm(x, p["n1"])
            q = rotate((y @ p["q"]).reshape(t, heads, k)).reshape(t, kv, heads // kv, k)
            key = rotate((y @ p["k"]).reshape(t, kv, k))
            value = (y @ p["v"]).reshape(t, kv, k)
            scores = jnp.einsum("tghk,sgk->ghts", q, key) / np.sqrt(k)
            weights = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1)
            x = x + jnp.einsum("ghts,sgk->tghk", weights, value).reshape(t, d) @ p["o"]
            y = norm(x, p["n2"])
            x = x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
        logits = norm(x, params["final"]) @ params["embed"].T
        return jnp.take_along_axis(jax.nn.log_softmax(logits), ids[1:, None], axis=1).sum()

    ids = jnp.asarray(rng.integers(0, vocabulary, (batch, tokens + 1)))
    return Task(f"decoder {tokens} tokens", f, params, ids)


def ways(task: Task, skip_above: float) -> dict[str, Callable[..., Any]]:
    """Functions of (params, batch) to be timed."""
    f = task.f

    def sq(gradient):
        return sum((g**2).sum() for g in jax.tree.leaves(gradient))

    def backward(params, batch):
        return jax.grad(lambda p: jax.vmap(f, (None, 0))(p, batch).mean())(params)

    def loop(params, batch):
        return jax.lax.map(lambda x: sq(jax.grad(f)(params, x)), batch)

    found = {
        "forward": jax.vmap(f, (None, 0)),
        "backward": backward,
        "norms": value_and_sq_grad_norm(f, in_axes=0),
        "loop": loop,
    }
    size = sum(leaf.size for leaf in jax.tree.leaves(task.params))
    if 4 * size * len(task.batch) / 2**30 <= skip_above:
        found["vmap(grad)"] = lambda p, b: jax.vmap(lambda x: sq(jax.grad(f)(p, x)))(b)
    return found


def measure(task: Task, options: Options) -> list[dict[str, Any]]:
    """Seconds and MiB of every way."""
    rows = []
    compiled = {
        name: jax.jit(way).lower(task.params, task.batch).compile()
        for name, way in ways(task, options.skip_above).items()
    }
    best = dict.fromkeys(compiled, np.inf)
    # Turn by turn, so that a machine that slows down slows all of them.
    for _ in range(options.repetitions):
        for name, run in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(run(task.params, task.batch))
            best[name] = min(best[name], time.perf_counter() - start)
    for name, run in compiled.items():
        memory = run.memory_analysis()
        rows.append(
            {
                "model": task.name,
                "batch": len(task.batch),
                "way": name,
                "milliseconds": round(1e3 * best[name], 3),
                "ratio": round(best[name] / best["forward"], 2),
                "temporary_mebibytes": round(memory.temp_size_in_bytes / 2**20, 1),
            }
        )
    return rows


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratios to the forward pass against the batch, a panel a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(row["model"] for row in rows))
    fig, axes = pyplot.subplots(
        1, len(models), figsize=(3 * len(models), 3.4), sharey=True, squeeze=False, layout="constrained"
    )  # fmt: skip
    for axis, model in zip(axes[0], models, strict=True):
        for way in dict.fromkeys(row["way"] for row in rows):
            here = [row for row in rows if row["model"] == model and row["way"] == way]
            axis.plot([r["batch"] for r in here], [r["ratio"] for r in here], "o-", label=way)
        axis.set(title=model, xscale="log", yscale="log", xlabel="examples")
    axes[0, 0].set_ylabel("time / forward pass")
    axes[0, -1].legend()
    fig.savefig(path)


def main(options: Options) -> None:
    """Measure, print, write."""
    makers: list[Callable[[], Task]] = []
    for model in options.models:
        for batch in options.batches:
            if model == "mlp":
                makers += [lambda w=w, b=batch: mlp(w, b) for w in options.widths]
            elif model == "cnn":
                makers.append(lambda b=batch: cnn(b))
            elif batch <= 8:
                makers.append(lambda b=batch: decoder(b, options.tokens, options.layers))
    rows = []
    device = jax.devices()[0].device_kind
    print(f"{device}, JAX {jax.__version__}, float32")
    for maker in tqdm(makers, unit="task"):
        for row in measure(maker(), options):
            rows.append(row | {"device": device, "jax": jax.__version__})
            tqdm.write(
                f"{row['model']:<20}{row['batch']:>6}  {row['way']:<11}{row['milliseconds']:>12.2f} ms"
                f"{row['ratio']:>9.2f} x{row['temporary_mebibytes']:>10.1f} MiB"
            )
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "gradnorm.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    figure(rows, options.out / "gradnorm.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
