"""Microseconds of a gradient of the log likelihood by how the network is laid out in memory.

    taskset -c 0 uv run benchmarks/layouts.py
    taskset -c 0 uv run benchmarks/layouts.py --problems clusters3 --sizes 100 --widths 32 --depths 2 3

`examples` has a row for each example (`Model.apply`), `units` one for each unit
(`Model.apply_transposed`); both are exact. A number is that of one chain, of one alone and of four
under `vmap`, the best of several rounds in which the candidates take turns. `isounc.densities` chooses
by the rule in `in_units`, whose choice is marked.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import tyro

from isounc import densities
from isounc.models import make_model
from isounc.problems import make_problem

WORK = 3e7
"""Examples times parameters times gradients of a measurement."""


@dataclass
class Options:
    """The networks, all combinations of these."""

    problems: tuple[str, ...] = ("moons", "clusters3")
    """Problems, by name."""
    sizes: tuple[int, ...] = (30, 100, 1000)
    """Training examples."""
    widths: tuple[int, ...] = (2, 8, 16, 32, 48, 64, 128, 512)
    """Hidden units."""
    depths: tuple[int, ...] = (1,)
    """Hidden layers."""
    rounds: int = 5
    """Rounds."""


def candidate(problem: str, n: int, width: int, depth: int, chains: int, units: bool) -> tuple:
    """A loop of gradients, its arguments, and the number of gradients of a measurement."""
    data_of = make_problem(problem, n=n, seed=0)
    model = make_model(data_of, width=width, depth=depth)
    data = densities.make_data(data_of, model, 2.0)

    def log_likelihood(x: jax.Array, data: densities.Data) -> jax.Array:
        theta = data.prior_sd * x
        outputs = model.apply_transposed(theta, data.X).T if units else model.apply(theta, data.X)
        return densities.log_likelihood_terms(model, outputs, data).sum()

    gradient: Callable[..., Any] = jax.grad(log_likelihood)
    gradient = gradient if chains == 1 else jax.vmap(gradient, (0, None))

    @jax.jit
    def loop(x: jax.Array, data: densities.Data, steps: int) -> jax.Array:
        return jax.lax.fori_loop(0, steps, lambda _, x: x + 1e-5 * gradient(x, data), x)

    shape = (model.num_params,) if chains == 1 else (chains, model.num_params)
    x = jax.random.normal(jax.random.key(0), shape)
    steps = max(20, int(WORK / (n * model.num_params * chains)))
    jax.block_until_ready(loop(x, data, 1))
    return loop, x, data, steps, densities.in_units(model, n)


def main(options: Options) -> None:
    """Print a line for each network."""
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, microseconds; * is the choice")
    for problem, depth, n, width in itertools.product(
        options.problems, options.depths, options.sizes, options.widths
    ):
        keys = [(chains, units) for chains in (1, 4) for units in (False, True)]
        loops = {key: candidate(problem, n, width, depth, *key) for key in keys}
        best = dict.fromkeys(keys, float("inf"))
        for _ in range(options.rounds):
            for key, (loop, x, data, steps, _chosen) in loops.items():
                start = time.perf_counter()
                jax.block_until_ready(loop(x, data, steps))
                each = 1e6 * (time.perf_counter() - start) / steps / key[0]
                best[key] = min(best[key], each)
        texts = []
        for (chains, units), value in best.items():
            mark = "*" if units == loops[chains, units][-1] else " "
            texts.append(f"{chains} {'units' if units else 'examples'}{mark}{value:9.2f}")
        print(
            f"{problem:<22} depth {depth} n {n:<6} width {width:<5} {'   '.join(texts)}", flush=True
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
