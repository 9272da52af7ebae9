"""Measure what uncertainty estimates cost compared with a forward pass, for MLPs and a decoder.

    uv run benchmarks/cost.py                                  # MLPs and the decoder: 10 minutes on two cores
    uv run benchmarks/cost.py --models mlp --widths 256 --examples 1024

Each row is a way to get an uncertainty, with the seconds that it takes once (fits, factors, chains)
and those for every example of a batch, as microseconds and as a ratio to the forward pass of the
same batch in the same process. Times are the least of several runs in which the ways take turns;
compilation is left out of all but `once`. Memory is the most that the process held while the way ran,
beyond what it held before (Linux).

    forward              the prediction
    backward             one gradient of the batch's mean loss
    isotropic            the paper's estimate of the predicted class, compiled: one column
    isotropic, all       of every class
    call of isotropic    the same of the predicted class by `isounc.isotropic`, which checks its input
                         and computes the moments in float64
    call of logit_scaled the Gaussian logit, likewise (`method=`)
    ensemble             the variance over 5 networks, which are trained once
    dropout              the variance over 10 passes with masks of their own on the last hidden layer
    Laplace              g^T H^-1 g with the GGN, whose factor is made in each call: `once` is that of
                         one example, fits included
    HMC                  the variance over 1000 draws of `sample_posterior`, until its gate passes

The MLPs have three hidden layers and three classes (clusters3, 100 examples). The decoder has 135
million random parameters; its probability is that of a sequence of 64 tokens, and what trains or
samples it is left out.
"""

from __future__ import annotations

import csv
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from gradnorm import resident
from gradnorm_models import decoder
from tqdm import tqdm

import isounc
from isounc.gradnorm import value_and_sq_grad_norm, value_and_sq_grad_norms
from isounc.models import make_model
from isounc.problems import make_problem
from isounc.sampling import sample_posterior
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
    most_params: int = 200_000
    """Parameters above which Laplace, which holds the gradients of the training data, and HMC are
    left out."""
    seconds: float = 10.0
    """Seconds for which the ways of a model take turns; there are at least two rounds."""
    max_seconds: float = 120.0
    """Seconds after which HMC is stopped."""
    out: Path = Path("runs/cost")
    """Folder of the table `cost.csv`."""


class Way(NamedTuple):
    """A way to get an uncertainty."""

    run: Callable[[], Any]
    """Computes it for the batch."""
    once: float = 0.0
    """Seconds of what is done once."""
    note: str = ""
    """A remark for the table, such as a gate that failed."""


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and its seconds."""
    begin = time.perf_counter()
    result = jax.block_until_ready(run())
    return result, time.perf_counter() - begin


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

    predict = jax.jit(model.predict)
    variance = jax.jit(
        lambda thetas: jax.lax.map(lambda t: model.predict(t, X), thetas).var(axis=0)
    )

    @jax.jit
    def backward(theta):
        def loss(t):
            return -jnp.log(model.predict(t, X))[jnp.arange(len(X)), labels].mean()

        return jax.grad(loss)(theta)

    @jax.jit
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

        compiled = jax.jit(run)
        return Way(lambda: compiled(params), fit_seconds)

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
        "forward": Way(lambda: predict(theta, X)),
        "backward": Way(lambda: backward(theta)),
        "isotropic": isotropic(value_and_sq_grad_norm, lambda p, x: log_odds(p, x).max()),
        "isotropic, all": isotropic(value_and_sq_grad_norms, log_odds),
        "call of isotropic": call(),
        "call of logit_scaled": call(method="logit_scaled", scale=scale),
        "ensemble": Way(lambda: variance(thetas), ensemble_seconds),
        "dropout": Way(lambda: dropout(key), fit_seconds),
    }
    if model.num_params <= options.most_params:
        about: dict[str, Any] = {"problem": problem, "prior_sd": PRIOR_SD}
        one = X[:1]
        isounc.laplace(model, one, theta, **about)  # compiles
        _, laplace_seconds = timed(lambda: isounc.laplace(model, one, theta, **about))
        ways["Laplace"] = Way(
            lambda: isounc.laplace(model, X, theta, **about), fit_seconds + laplace_seconds
        )
        posterior, hmc_seconds = timed(
            lambda: sample_posterior(
                problem, model, prior_sd=PRIOR_SD, key=key, max_draws=8000, num_kept=NUM_DRAWS,
                max_seconds=options.max_seconds,
            )
        )  # fmt: skip
        draws = jnp.asarray(posterior.draws, jnp.float32)
        gate = "" if posterior.gate.passed else f"gate failed: {'; '.join(posterior.gate.reasons)}"
        ways["HMC"] = Way(lambda: variance(draws), hmc_seconds, gate)
    return ways


def decoder_ways(sequences: int) -> dict[str, Way]:
    """The ways for the decoder, whose networks all have the same random parameters."""
    task = decoder(sequences, 64, 30)
    forward = jax.jit(jax.vmap(task.f, (None, 0)))
    backward = jax.jit(jax.grad(lambda p, batch: jax.vmap(task.f, (None, 0))(p, batch).mean()))
    norms = jax.jit(value_and_sq_grad_norm(task.f, in_axes=0))

    def passes(count: int) -> Callable[[], Any]:
        return lambda: [
            jax.block_until_ready(forward(task.params, task.batch)) for _ in range(count)
        ]

    return {
        "forward": Way(passes(1)),
        "backward": Way(lambda: backward(task.params, task.batch)),
        "isotropic": Way(lambda: norms(task.params, task.batch)),
        "ensemble": Way(passes(NUM_NETWORKS), note="passes of one network, one after the other"),
        "dropout": Way(passes(NUM_MASKS), note="passes without masks, one after the other"),
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
    for way in ways.values():
        jax.block_until_ready(way.run())  # compiles
    best = dict.fromkeys(ways, np.inf)
    begin, rounds = time.perf_counter(), 0
    while rounds < 2 or (time.perf_counter() - begin < seconds and rounds < 50):
        for name, way in ways.items():
            best[name] = min(best[name], timed(way.run)[1], timed(way.run)[1])
        rounds += 1
    return [
        {
            "way": name,
            "once_seconds": round(way.once, 2),
            "microseconds": float(f"{1e6 * best[name] / count:.4g}"),
            "to_forward": round(best[name] / best["forward"], 2),
            "mebibytes": held(way.run),
            "note": way.note,
        }
        for name, way in ways.items()
    ]


def main(options: Options) -> None:
    """Measure all models, print the rows and write the table after each."""
    device = jax.devices()[0].device_kind
    print(f"{device}, JAX {jax.__version__}, float32")
    jobs = [("mlp", width, options.examples) for width in options.widths]
    jobs += [("decoder", 576, count) for count in options.sequences]
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for model, width, count in tqdm(
        [job for job in jobs if job[0] in options.models], unit="model"
    ):
        ways = mlp_ways(width, options) if model == "mlp" else decoder_ways(count)
        for row in measure(ways, count, options.seconds):
            about = {"model": model, "width": width, "examples": count}
            rows.append(about | row | {"device": device, "jax": jax.__version__})
            tqdm.write(
                f"{model:<8}{width:>5}{count:>6}  {row['way']:<21}{row['once_seconds']:>8.2f} s once"
                f"{row['microseconds']:>12.1f} us{row['to_forward']:>9.2f} x"
                f"{row['mebibytes'] or 0:>9.1f} MiB  {row['note']:.80}"
            )
        with (options.out / "cost.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        jax.clear_caches()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
