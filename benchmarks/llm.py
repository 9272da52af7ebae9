"""Time and memory of exact gradient norms of a language model's answers, against forward passes.

    uv run --extra llm --group smollm2 benchmarks/llm.py            # SmolLM2-135M, 64 tokens
    uv run --extra llm benchmarks/llm.py --model PATH --batches 1 --tokens 256
    uv run --extra llm benchmarks/llm.py --random 2048 24 --dtype bfloat16 --ways forward norm

For each batch the table has the seconds of the forward pass (log probability of every token), of
the exact norm of log p of the sequence over all parameters (`isounc.llm.answers.layerwise`), of
three estimands at once (a backward pass each), and of plain gradients (`value_and_grad`, which holds
a gradient of every parameter); the best of several runs after the first. `forward` and `norm` go
layer by layer, with one compiled block; `forward_whole`, `norm_whole` and `gradients` are one
compiled program each. What the first run takes beyond the best one is compilation. Each time is
given on the clock and as the CPU time of the process, which other work on the machine changes less.
Memory is, on Linux, the largest resident set of the process while the program runs, without
compilation. Sequences beyond --batch-size go one after the other, so that memory is bounded at any
batch.

--first-answer runs `isounc ask` twice instead, as a new process with an empty cache of compiled
programs and then with what it left there.
"""

from __future__ import annotations

import csv
import functools
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from isounc.gradnorm import value_and_sq_grad_norm
from isounc.llm import load_model
from isounc.llm.answers.estimands import token_log_odds
from isounc.llm.answers.layerwise import values, values_and_norms
from isounc.llm.answers.packing import PackedAnswers, pack, pad, shape_of
from isounc.llm.model.config import DecoderConfig, Rotary
from isounc.llm.model.decoder import Decoder
from isounc.runs.process import bound_memory, peak_mebibytes


@dataclass
class Options:
    """Options of the benchmark: the model, and what is measured of it."""

    model: str = "smollm2"
    """smollm2, a GGUF file or a folder with a checkpoint."""
    random: tuple[int, int] | None = None
    """Width and layers of a Llama with random weights instead, for instance the largest one that a
    device holds."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights."""
    batches: tuple[int, ...] = (1, 8, 64)
    """Sequences."""
    tokens: int = 64
    """Tokens of each, all but the first of which are the answer."""
    batch_size: int = 4
    """Sequences at a time; for 64 tokens the default is that of `answer_norms`."""
    seconds: float = 10.0
    """Time for the repetitions of each."""
    ways: tuple[str, ...] = ("forward", "norm", "norms", "gradients")
    """forward, norm, norms, gradients, forward_whole, norm_whole."""
    first_answer: bool = False
    """Time the first answer of `isounc ask`, from an empty cache and from a full one."""
    out: Path = Path("runs/llm")
    """Folder of the table."""


def log_p(tokens, packed, chosen):
    """Log p of the sequence."""
    return (-jax.nn.softplus(-tokens.log_odds)).sum()[None], ()


def three(tokens, packed, chosen):
    """Log p of the sequence, of the mean of its tokens (but for a constant), and of the first."""
    log_probs = -jax.nn.softplus(-tokens.log_odds)
    return jnp.stack([log_probs.sum(), jax.nn.logsumexp(log_probs), log_probs[0]]), ()


def functions(decoder: Decoder, batch_size: int) -> dict[str, Callable[[PackedAnswers], Any]]:
    """The programs to time, each a function of stacked sequences."""
    config, weights = decoder.config, decoder.weights()
    graphdef, params = nnx.split(decoder, nnx.Param)

    def sequence(params, packed):
        log_odds, _ = token_log_odds(nnx.merge(graphdef, params), packed)
        return -jax.nn.softplus(-log_odds).sum()

    def gradients(params, stacked):
        def sq_norm(packed):
            value, gradient = jax.value_and_grad(sequence)(params, packed)
            return value, sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient))

        return jax.lax.map(sq_norm, stacked)

    def forward_whole(params, stacked):
        return jax.lax.map(lambda packed: sequence(params, packed), stacked, batch_size=batch_size)

    def in_parts(function, columns):
        def run(stacked):
            results = []
            for start in range(0, len(stacked.tokens), batch_size):
                part = PackedAnswers(*(a[start : start + batch_size] for a in stacked))
                nothing = np.zeros(len(part.tokens), np.int32)
                results.append(function(config, weights, part, nothing, columns=columns))
                jax.block_until_ready(results[-1])  # Python must not run ahead: that holds memory
            return results

        return run

    def whole(function):
        return functools.partial(jax.jit(function), params)

    norm = value_and_sq_grad_norm(sequence, in_axes=0, batch_size=batch_size)
    return {
        "forward": in_parts(values, log_p),
        "norm": in_parts(values_and_norms, log_p),
        "norms": in_parts(values_and_norms, three),
        "gradients": whole(gradients),
        "forward_whole": whole(forward_whole),
        "norm_whole": whole(norm),
    }


def random_decoder(width: int, num_layers: int, dtype: str) -> Decoder:
    """A decoder in the proportions of SmolLM2-1.7B, with four query heads to a key head.

    Width 2048 and 24 layers have 1.5 billion parameters.
    """
    heads = width // 64
    config = DecoderConfig(
        "llama", vocab_size=49152, width=width, num_layers=num_layers, num_heads=heads,
        num_kv_heads=max(1, heads // 4), head_width=64, mlp_width=4 * width, context_length=8192,
        rotary=Rotary(1e5, 64),
    )  # fmt: skip
    return Decoder.random(config, dtype=dtype)


def reset_peak() -> bool:
    """Reset the largest resident set of this process, if the system can."""
    bound_memory(float("inf"))  # gives back what compilation took, and keeps the programs
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def random_sequences(num_sequences: int, num_tokens: int, vocab_size: int, rng) -> PackedAnswers:
    """Random token ids, of which all but the first are the answer."""
    ids = rng.integers(0, vocab_size, (num_sequences, num_tokens + 1)).tolist()
    packed = [pack(tokens[:1], [tokens[1:]]) for tokens in ids]
    padded = [pad(sequence, *shape_of(sequence)[:2]) for sequence in packed]
    return PackedAnswers(*map(np.stack, zip(*padded, strict=True)))


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a call, on the clock and of the CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(function())
    return time.perf_counter() - wall, time.process_time() - cpu


def measured(function: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """Time and memory of a function, from its first call on."""
    first = timed(function)
    has_peak = reset_peak()
    times, until = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        times.append(timed(function))
    best = np.min(times, axis=0)
    return {
        "seconds": round(best[0], 4),
        "cpu_seconds": round(best[1], 4),
        "compile_seconds": round(first[0] - best[0], 2),
        "compile_cpu_seconds": round(first[1] - best[1], 2),
        "runs": len(times),
        "process_mebibytes": round(peak_mebibytes()) if has_peak else None,
    }


def first_answers(model: str) -> list[dict[str, Any]]:
    """Seconds of `isounc ask` as a new process, from an empty cache and from a full one."""
    question = "What is the capital of France?"
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for state in ("empty", "full"):
            command = [sys.executable, "-m", "isounc", "ask", question, "--model", model]
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            answer_at = None
            with subprocess.Popen(
                [*command, "--cache", cache], stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith("A:"):
                        answer_at = time.perf_counter() - start
            if process.returncode or answer_at is None:
                raise RuntimeError(f"isounc ask must give an answer, got {process.returncode}")
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = sum(getattr(after, k) - getattr(before, k) for k in ("ru_utime", "ru_stime"))
            row = {
                "cache": state, "answer_seconds": round(answer_at, 1), "seconds": round(wall, 1),
                "cpu_seconds": round(cpu, 1),
            }  # fmt: skip
            rows.append(row)
            print(
                f"{state} cache: the answer after {answer_at:.1f} s, all after {wall:.1f} s "
                f"({cpu:.1f} s of CPU time)"
            )
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(options: Options) -> None:
    """Measure, print, write."""
    if options.first_answer:
        write(options.out / "first_answer.csv", first_answers(options.model))
        return
    if options.random:
        decoder = random_decoder(*options.random, options.dtype)
        name = "random-{}x{}".format(*options.random)
    else:
        model = load_model(options.model, dtype=options.dtype)
        decoder, name = model.decoder, model.name
    rng = np.random.default_rng(0)
    leaves = jax.tree.leaves(nnx.state(decoder, nnx.Param))
    size, weights = sum(leaf.size for leaf in leaves), sum(leaf.nbytes for leaf in leaves) / 2**20
    device = jax.devices()[0].device_kind
    print(
        f"{name}: {size / 1e6:.0f}M parameters, {weights:.0f} MiB; {device}, JAX {jax.__version__}"
    )
    rows, programs = [], functions(decoder, options.batch_size)
    for batch in options.batches:
        stacked = random_sequences(batch, options.tokens, decoder.config.vocab_size, rng)
        forward = None
        for way in options.ways:
            jax.clear_caches()
            numbers = measured(functools.partial(programs[way], stacked), options.seconds)
            forward = forward or (numbers["seconds"], numbers["cpu_seconds"])
            row = {
                "model": name, "dtype": options.dtype, "tokens": options.tokens, "batch": batch,
                "way": way, **numbers,
                "to_forward": round(numbers["seconds"] / forward[0], 2),
                "cpu_to_forward": round(numbers["cpu_seconds"] / forward[1], 2),
                "device": device, "jax": jax.__version__,
            }  # fmt: skip
            rows.append(row)
            peak = row["process_mebibytes"]
            print(
                f"batch {batch:>4} {way:<14}{row['seconds']:>8.3f} s{row['to_forward']:>6.2f} x "
                f"forward{row['compile_seconds']:>7.1f} s to compile; CPU time "
                f"{row['cpu_seconds']:>7.3f} s{row['cpu_to_forward']:>6.2f} x"
                f"{row['compile_cpu_seconds']:>7.1f} s" + (f"{peak:>7} MiB" if peak else "")
            )
            write(options.out / "llm.csv", rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
