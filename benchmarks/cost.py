"""Measure what uncertainty estimates cost compared with a forward pass, for MLPs and a decoder.

    uv run benchmarks/cost.py                                  # one process, half an hour on one core
    uv run benchmarks/cost.py --process 1 --chains no          # another one, without chains
    uv run benchmarks/cost.py --models mlp --widths 256 --examples 1024

Each row is a way to get an uncertainty, with the seconds that it takes once (fits, kernels, chains)
and those for every example of a batch, as microseconds and as a ratio to the forward pass of the
same batch in the same process. Times are the least of several runs in which the ways take turns;
compilation is left out of all but `once`. Memory is the most that the process held while the way ran,
beyond what it held before (Linux), and beside it the compiler's plan for its temporary values and
results, of ways that are one program: what a process has freed it may hold on to. `flops` are those that
the compiler counts, of ways that are one program without a loop: a count that no clock has a part in.

    forward              the prediction
    backward             one gradient of the batch's mean loss: a forward-backward pass, as in training
    isotropic            the paper's estimate of the predicted class, compiled: one column
    isotropic, all       of every class
    call of isotropic    the same of the predicted class by `isounc.isotropic`, which checks its input
                         and computes the moments in float64
    call of logit_scaled the Gaussian logit, likewise (`method=`)
    ensemble             the variance over 5 networks, which are trained once
    dropout              the variance over 10 passes with masks of their own on the last hidden layer
    Laplace              g^T H^-1 g of every class with the GGN, in function space: `once` has the
                         kernel of the training gradients and its eigenvectors, fit included
    HMC                  the variance over 1000 draws of `sample_posterior`; `once` is sampling until
                         its gate passes, or until the time is over. In networks above `most_sampled`
                         parameters it is passes by count, and the note has the time of a gradient

The MLPs have three hidden layers and three classes (clusters3, 100 examples). The decoder has 135
million random parameters; its probability is that of a sequence of 64 tokens. Its ensemble and its
dropout are so many forward passes, by count; what trains or samples it is left out, and so is
Laplace, whose kernel is that of its training data.

The unit of replication is the process, each with compiled programs and memory of its own. A process
adds its rows to `processes.csv`, in place of rows of the same process, model and size; from all of
them `cost_table.py` makes `cost.csv`, `verdicts.csv` and the page, by the rules that it states.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from cost_table import add_rows, write_tables
from gradnorm import resident
from gradnorm_models import decoder
from tqdm import tqdm

import isounc
from isounc import densities
from isounc.gradnorm import value_and_sq_grad_norm, value_and_sq_grad_norms
from isounc.models import Model, make_model
from isounc.problems import Problem, make_problem
from isounc.sampling import sample_posterior
from isounc.studies.spectrum import curvature
from isounc.training import fit_ensemble, fit_trained

PRIOR_SD = 2.0
NUM_NETWORKS, NUM_MASKS, NUM_DRAWS = 5, 10, 1000


@dataclass
class Options:
    """Models, sizes and limits."""

    models: tuple[str, ...] = ("mlp", "decoder")
    """mlp, decoder."""
    widths: tuple[int, ...] = (32, 256, 1024)
    """Hidden units of each of the three layers of the MLPs."""
    examples: int = 1024
    """Examples of a batch of an MLP."""
    sequences: tuple[int, ...] = (1, 8)
    """Sequences of a batch of the decoder."""
    process: int = 0
    """Number of this process, which is the unit of replication."""
    chains: Literal["yes", "no"] = "yes"
    """Whether HMC is run."""
    most_sampled: int = 200_000
    """Parameters above which no chains are run."""
    seconds: float = 10.0
    """Seconds for which the ways of a model take turns; there are at least two rounds."""
    max_seconds: float = 120.0
    """Seconds after which HMC is stopped."""
    out: Path = Path("runs/cost")
    """Folder of the tables."""


class Way(NamedTuple):
    """A way to get an uncertainty."""

    run: Callable[[], Any]
    """Computes it for the batch."""
    once: float = 0.0
    """Seconds of what is done once."""
    flops: float | None = None
    """Floating-point operations by the compiler's count."""
    mebibytes: float | None = None
    """Memory of its temporary values and results by the compiler's plan."""
    times: float = 1.0
    """How many times `run` the way is, by count."""
    note: str = ""
    """A remark for the table, such as a gate that failed."""


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and its seconds."""
    begin = time.perf_counter()
    result = jax.block_until_ready(run())
    return result, time.perf_counter() - begin


def program(f: Callable[..., Any], *args: Any, once: float = 0.0, has_loop: bool = False) -> Way:
    """A way that is one compiled program; of a loop the compiler counts one turn, which is no count."""
    compiled = jax.jit(f).lower(*args).compile()
    counted, planned = compiled.cost_analysis() or {}, compiled.memory_analysis()
    held = planned.temp_size_in_bytes + planned.output_size_in_bytes if planned else None
    return Way(
        lambda: compiled(*args),
        once,
        flops=None if has_loop else counted.get("flops"),
        mebibytes=None if held is None else float(f"{held / 2**20:.4g}"),
    )


def hmc(problem: Problem, model: Model, key: jax.Array, options: Options) -> tuple[Any, float, str]:
    """A posterior, the seconds of its sampling, and what is to be said of it."""
    posterior, seconds = timed(
        lambda: sample_posterior(
            problem, model, prior_sd=PRIOR_SD, key=key, max_draws=8000, num_kept=NUM_DRAWS,
            max_seconds=options.max_seconds,
        )
    )  # fmt: skip
    gate = posterior.gate
    verdict = "gate passed" if gate.passed else f"gate failed: {'; '.join(gate.reasons)}"
    return posterior, seconds, f"{posterior.num_draws} draws of each chain, {verdict}"


def gradient_seconds(model: Model, theta: jax.Array, data: densities.Data) -> float:
    """Seconds of a gradient of the log posterior for 4 chains at a time."""
    gradient = jax.jit(jax.vmap(jax.grad(lambda t: densities.log_density(model, t, data))))
    thetas = jnp.tile(theta, (4, 1))
    jax.block_until_ready(gradient(thetas))  # compiles
    return min(timed(lambda: gradient(thetas))[1] for _ in range(10))


def mlp_ways(width: int, options: Options) -> dict[str, Way]:
    """The ways for an MLP."""
    problem = make_problem("clusters3", n=100, seed=0)
    model = make_model(problem, width=width, depth=3)
    key = jax.random.key(0)
    fit, fit_seconds = timed(lambda: fit_trained(problem, model, prior_sd=PRIOR_SD, key=key))
    theta = jnp.asarray(fit.theta, jnp.float32)
    rng = np.random.default_rng(0)
    low, high = problem.X.min(axis=0), problem.X.max(axis=0)
    X = rng.uniform(low, high, (options.examples, problem.num_features)).astype(np.float32)
    labels = jnp.asarray(rng.integers(0, problem.num_outputs, options.examples))

    def variance(thetas):
        return jax.lax.map(lambda t: model.predict(t, X), thetas).var(axis=0)

    def backward(theta):
        def loss(t):
            return -jnp.log(model.predict(t, X))[jnp.arange(len(X)), labels].mean()

        return jax.grad(loss)(theta)

    def dropout(key):
        read_out = theta.size - model.group_sizes[-2] - model.group_sizes[-1]

        def one(key):
            # To drop a unit is to drop the weights that read it.
            kept = jax.random.bernoulli(key, 0.9, (width,)) / 0.9
            masks = jnp.repeat(kept, problem.num_outputs)
            masked = theta.at[read_out : read_out + masks.size].multiply(masks)
            return model.predict(masked, X)

        return jax.lax.map(one, jax.random.split(key, NUM_MASKS)).var(axis=0)

    params = model.unflatten(theta)

    def log_odds(params, x):
        outputs = model.apply_params(params, x[None])[0]
        others = jnp.where(jnp.eye(outputs.size, dtype=bool), -jnp.inf, outputs)
        return outputs - jax.nn.logsumexp(others, axis=1)

    def isotropic(norms, pick):
        def run(params):
            d, sq_norms = norms(pick, in_axes=0)(params, X)
            return (jax.nn.sigmoid(d) * jax.nn.sigmoid(-d)) ** 2 * sq_norms

        return program(run, params, once=fit_seconds)

    def call(**how):
        return Way(
            lambda: isounc.isotropic(model, X, theta, target="predicted", **how), fit_seconds
        )

    scale = isounc.fit_logit_scale(model, problem.X, theta)
    networks, ensemble_seconds = timed(
        lambda: fit_ensemble(problem, model, NUM_NETWORKS, key=key, prior_sd=PRIOR_SD)
    )
    thetas = jnp.stack([jnp.asarray(network.theta, jnp.float32) for network in networks])
    ways = {
        "forward": program(lambda t: model.predict(t, X), theta),
        "backward": program(backward, theta),
        "isotropic": isotropic(value_and_sq_grad_norm, lambda p, x: log_odds(p, x).max()),
        "isotropic, all": isotropic(value_and_sq_grad_norms, log_odds),
        "call of isotropic": call(),
        "call of logit_scaled": call(method="logit_scaled", scale=scale),
        "ensemble": program(variance, thetas, once=ensemble_seconds, has_loop=True),
        "dropout": program(dropout, key, once=fit_seconds, has_loop=True),
    }
    data = densities.make_data(problem, model, PRIOR_SD)
    curvature.AtPoint.of(theta, data, model)  # compiles
    at_point, kernel_seconds = timed(lambda: curvature.AtPoint.of(theta, data, model))
    ways["Laplace"] = Way(
        lambda: curvature.laplace(at_point.project(X), at_point.spectrum),
        fit_seconds + kernel_seconds,
    )
    if options.chains == "yes" and model.num_params <= options.most_sampled:
        posterior, hmc_seconds, said = hmc(problem, model, key, options)
        draws = jnp.asarray(posterior.draws, jnp.float32)
        averaged = program(variance, draws, once=hmc_seconds, has_loop=True)
        ways["HMC"] = averaged._replace(times=NUM_DRAWS / len(draws), note=said)
    elif options.chains == "yes":
        seconds = gradient_seconds(model, theta, data)
        ways["HMC"] = ways["forward"]._replace(
            once=np.nan, flops=None, times=NUM_DRAWS,
            note=f"not sampled, a gradient for 4 chains takes {seconds:.2g} s; passes by count",
        )  # fmt: skip
    return ways


def decoder_ways(sequences: int) -> dict[str, Way]:
    """The ways for the decoder, whose networks all have the same random parameters."""
    task = decoder(sequences, 64, 30)
    params, batch = task.params, task.batch
    over_batch = jax.vmap(task.f, (None, 0))
    forward = program(over_batch, params, batch)
    backward = program(jax.grad(lambda p, ids: over_batch(p, ids).mean()), params, batch)
    norms = program(value_and_sq_grad_norm(task.f, in_axes=0), params, batch)
    count = "forward passes of one network, by count"
    return {
        "forward": forward,
        "backward": backward,
        "isotropic": norms,
        "ensemble": forward._replace(flops=None, times=NUM_NETWORKS, note=count),
        "dropout": forward._replace(flops=None, times=NUM_MASKS, note=count),
    }


def held(run: Callable[[], Any]) -> float | None:
    """MiB that the process holds at most while a way runs, beyond what it held before."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before goes back to the system
    clear.write_text("5")
    before = resident("VmRSS")
    jax.block_until_ready(run())
    return round(max(resident("VmHWM") - before, 0.0), 1)


def measure(ways: dict[str, Way], count: int, seconds: float) -> list[dict[str, Any]]:
    """Time the ways in turn, for a batch of `count` examples."""
    # Ways that are forward passes by count are not run again.
    own = [n for n, way in ways.items() if n == "forward" or way.run is not ways["forward"].run]
    for name in own:
        jax.block_until_ready(ways[name].run())  # compiles
    best = dict.fromkeys(own, np.inf)
    begin, rounds = time.perf_counter(), 0
    while rounds < 2 or (time.perf_counter() - begin < seconds and rounds < 200):
        for name in best:
            best[name] = min(best[name], timed(ways[name].run)[1])
        rounds += 1
    memory = {name: held(ways[name].run) for name in best}
    rows = []
    for name, way in ways.items():
        of = name if name in best else "forward"
        spent = way.times * best[of]
        rows.append({
            "way": name, "once_seconds": round(way.once, 2),
            "microseconds": float(f"{1e6 * spent / count:.4g}"),
            "to_forward": float(f"{spent / best['forward']:.5g}"),
            "mebibytes": memory[of], "program_mebibytes": way.mebibytes, "flops": way.flops,
            "rounds": rounds, "note": way.note,
        })  # fmt: skip
    return rows


def main(options: Options) -> None:
    """Measure all models, print the rows and write the tables after each."""
    device = jax.devices()[0].device_kind
    print(f"{device}, JAX {jax.__version__}, float32, process {options.process}")
    jobs = [("mlp", width, options.examples) for width in options.widths]
    jobs += [("decoder", 576, count) for count in options.sequences]
    for model, width, count in tqdm(
        [job for job in jobs if job[0] in options.models], unit="model"
    ):
        ways = mlp_ways(width, options) if model == "mlp" else decoder_ways(count)
        about = {"process": options.process, "model": model, "width": width, "examples": count}
        rows = [
            about | row | {"device": device, "jax": jax.__version__}
            for row in measure(ways, count, options.seconds)
        ]
        for row in rows:
            tqdm.write(
                f"{model:<8}{width:>5}{count:>6}  {row['way']:<21}{row['once_seconds']:>8.2f} s once"
                f"{row['microseconds']:>12.1f} us{row['to_forward']:>9.2f} x"
                f"{row['program_mebibytes'] or row['mebibytes'] or 0:>9.1f} MiB  {row['note']:.80}"
            )
        add_rows(rows, options.out)
        write_tables(options.out)
        jax.clear_caches()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
