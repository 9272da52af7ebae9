"""Candidates beside the default hmc on posteriors of many data and wide priors, by gradients.

    uv run benchmarks/candidates.py                              # all ways on all posteriors
    uv run benchmarks/candidates.py --posteriors moons-standard-10 --ways hmc tempering
    uv run benchmarks/candidates.py --check                      # are the moves exact?

All ways sample the same posterior with four chains in prior coordinates, and begin with the same
warm-up of `sample_posterior` (annealed, 300 transitions). Then each gets the same number of
gradients, over all its chains and temperatures, so that the load of the machine does not matter;
those that adapt the step size of a metric, or temperatures, are not among them. A row has the least
and the median effective draws of p and of (p - mean)^2 over 192 locations, for 1000 gradients, and
R-hat. A value of the likelihood without its gradient counts as half of one.

    hmc           the default
    scales        after each transition every unit's input weights and bias are multiplied by e^s and
                  its output weights by e^-s, or (by turns) its input weights and bias alone are
                  multiplied, s ~ N(0, size^2) for three sizes by turns: Metropolis steps with their
                  Jacobians
    scales 12     the same twelve times after each transition: both kinds in all sizes, twice
    curvature     hmc with the fixed metric (I + GGN at the MAP)^-1, of full rank
    low-rank      the same with the diagonal of that covariance and 8 directions beside it
    tempering     the tempered posteriors N(x; 0, I) exp(lambda r(x)) from the prior (lambda = 0) to
                  the posterior, hmc in each with a step of its own, and swaps of neighbours by even
                  and odd turns (non-reversible, Syed et al. 2022); temperatures of equal rejection

A table that exists already is continued: only the rows that it lacks are measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from candidates_scales import SWEEPS, Target, rescale_all, units_of
from candidates_tempering import AT_ONCE, HMC, begin_steps, tempered
from samplers_table import stored, write
from tqdm import tqdm

from isounc.covariance import gauss_newton
from isounc.densities import log_likelihood, make_data, on_device
from isounc.fit import fit_maps
from isounc.models import Model, make_model
from isounc.problems import make_problem
from isounc.sampling import chains
from isounc.sampling.adaptation import (
    Tuning,
    start_tuning,
)
from isounc.sampling.convergence import diagnose
from isounc.sampling.coordinates import Prior
from isounc.sampling.integrator import Metric
from isounc.sampling.kernels import ChainState, start_chains
from isounc.sampling.run import randomness
from isounc.sampling.settings import SamplerSettings

POSTERIORS = {
    "linear-standard-10": ("linear", "standard", 10.0),
    "moons-standard-10": ("moons", "standard", 10.0),
    "spirals3-standard-10": ("spirals3", "standard", 10.0),
    "moons-ntk-32": ("moons", "ntk", 32.0),
    "xor-standard-10": ("xor", "standard", 10.0),
    "rings-standard-10": ("rings", "standard", 10.0),
}
"""Problem, parameterisation and prior sd of each; all have n = 1000 and width 8."""
WAYS = ("hmc", "scales", "scales 12", "curvature", "low-rank", "tempering")
DIRECTIONS = 8
"""Number of curvature directions that the low-rank metric keeps."""


@dataclass
class Options:
    """Options of the benchmark: posteriors, candidates and budgets."""

    posteriors: tuple[str, ...] = tuple(POSTERIORS)
    """Posteriors, by name."""
    ways: tuple[str, ...] = WAYS
    """Ways, by name."""
    gradients: int = 2_000_000
    """Gradients of each way after warm-up."""
    seed: int = 0
    """Seed of the data and of the key."""
    check: bool = False
    """Check on closed forms that the moves leave the posterior as it is, and nothing else."""
    out: Path = Path("runs/candidates")
    """Folder for the table `candidates.csv`."""


def transition_way(target: Target, tuning: Tuning, settings: SamplerSettings, *, sweeps: int):
    """Hmc, with sweeps of scale moves after each transition, as a program of many transitions."""

    @jax.jit
    def many(state: ChainState, keys: Any, u: Any, turns: Any) -> tuple[ChainState, Any]:
        def one(state: ChainState, inputs: Any) -> tuple[ChainState, Any]:
            key, u, turn = inputs
            state, info, _ = HMC.transition(key, state, tuning, u, target.remainder, settings)
            spent = jnp.asarray(info.num_gradients).sum()
            if sweeps:
                state = rescale_all(jax.random.fold_in(key, 1), state, turn, target, sweeps)
                spent = spent + len(state.x) * (0.5 * sweeps * len(target.units[0]) + 1)
            return state, (jax.vmap(target.predict)(state.x), spent)

        return jax.lax.scan(one, state, (keys, u, turns))

    return many


def metric_at_map(way: str, problem: Any, model: Any, prior_sd: float, key: Any) -> Metric:
    """(I + GGN)^-1 at the MAP in prior coordinates; low-rank: D (I + U (L - I) U^T) D."""
    found = fit_maps([problem], model, prior_sd=prior_sd, keys=[key])[0]
    data = on_device(make_data(problem, model, prior_sd))
    laplace = gauss_newton(model, jnp.asarray(found.theta, jnp.float32), data)
    basis, shrink = np.asarray(laplace.basis, float), np.asarray(laplace.shrink, float)
    covariance = np.eye(len(basis)) - basis * (1 - (1 - shrink) ** 2) @ basis.T
    sd = np.ones(len(basis)) if way == "curvature" else np.sqrt(np.diag(covariance))
    eigenvalues, vectors = np.linalg.eigh(covariance / np.outer(sd, sd))
    if way == "low-rank":
        # Those that are furthest from 1, either way.
        kept = np.argsort(-np.abs(np.log(eigenvalues)))[:DIRECTIONS]
        eigenvalues, vectors = eigenvalues[kept], vectors[:, kept]
    return Metric(*(jnp.asarray(a, jnp.float32) for a in (sd, vectors, eigenvalues)))


def warmed_up(
    model: Any, data: Any, settings: SamplerSettings, key: Any, path: Path
) -> chains.RunState:
    """Chains after the windows of warm-up of `sample_posterior`, the first annealed.

    They are stored, since all ways begin with them.
    """
    X = jnp.zeros((1, 1, model.in_features), data.X.dtype)
    start_key, run_key = jax.random.split(key)
    static = {"model": model, "settings": settings, "sampler": HMC}
    state = chains.start(Prior(), data, X, start_key[None], **static)
    leaves, tree = jax.tree.flatten(state)
    if path.exists():
        with np.load(path) as stored_leaves:
            return tree.unflatten(
                [jnp.asarray(stored_leaves[f"arr_{i}"]) for i in range(len(leaves))]
            )
    static["serial"] = chains.is_serial(model, data)
    length = settings.num_warmup // 4
    for step in range(4):
        inputs = randomness(run_key[None], step, length, X.dtype)
        window = chains.begin_window(state, settings, length, anneal=step == 0)
        window = chains.warm_up(window, 0, length, data, X, *inputs, **static)
        state = chains.tune(
            window, settings=settings, adapt_metric=step in (1, 2), retries=step >= 2
        )
    np.savez(path, *map(np.asarray, jax.tree.leaves(state)))
    return state


def in_metric(
    warm: chains.RunState,
    metric: Metric,
    model: Any,
    data: Any,
    settings: SamplerSettings,
    key: Any,
) -> chains.RunState:
    """The chains with this metric, for which a further window of warm-up adapts the step size."""
    fixed = jax.tree.map(lambda a: a[None], metric)
    # The metric that they had is diagonal; steps begin short, since this one may be stiff.
    tuning = begin_steps(warm.tuning._replace(metric=fixed), np.full(1, 1e-3), settings)
    state, length = warm._replace(tuning=tuning), settings.num_warmup // 4
    X = jnp.zeros((1, 1, model.in_features), data.X.dtype)
    inputs = randomness(key[None], 4, length, X.dtype)
    window = chains.begin_window(state, settings, length)
    window = chains.warm_up(
        window, 0, length, data, X, *inputs, model=model, settings=settings, sampler=HMC,
        serial=chains.is_serial(model, data),
    )  # fmt: skip
    return chains.tune(window, settings=settings, adapt_metric=False, retries=True)


def measure(name: str, way: str, options: Options) -> dict[str, Any]:
    """The row of a way on a posterior."""
    problem_name, parameterisation, prior_sd = POSTERIORS[name]
    problem = make_problem(
        problem_name, n=1000, seed=options.seed, num_test=64, num_far=64, grid_size=8
    )
    model = make_model(problem, width=8, parameterisation=parameterisation)
    key = jax.random.key(options.seed)
    settings = SamplerSettings()
    data = on_device(make_data(problem, model, prior_sd))
    batch = jax.tree.map(lambda a: jnp.asarray(a)[None], data)
    warm = warmed_up(model, batch, settings, key, options.out / f"warm-{name}-{options.seed}.npz")
    if way in ("curvature", "low-rank"):
        metric = metric_at_map(way, problem, model, prior_sd, key)
        warm = in_metric(warm, metric, model, batch, settings, key)
    X = jnp.concatenate([jnp.asarray(a, jnp.float32) for a in problem.regions.values()])

    def remainder(x: Any) -> Any:
        return log_likelihood(model, data.prior_sd * x, data)

    def predict(x: Any) -> Any:
        return model.predict(data.prior_sd * x, X).ravel()

    target = Target(remainder, predict, units_of(model))
    run_key, notes = jax.random.fold_in(key, 99), ""
    if way == "tempering":
        values, spent, notes = tempered(target, warm, settings, run_key, options.gradients)
    else:
        state, tuning = (jax.tree.map(lambda a: a[0], part) for part in (warm.chains, warm.tuning))
        many = transition_way(target, tuning, settings, sweeps=SWEEPS.get(way, 0))
        blocks, spent, turn = [], 0, 0
        while spent < options.gradients:
            turns = jnp.arange(turn, turn + AT_ONCE)
            keys = jax.vmap(lambda t: jax.random.fold_in(run_key, t))(turns)
            u = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 7)))(keys)
            state, (p, costs) = many(state, keys, u, turns)
            blocks.append(np.asarray(p))
            spent, turn = spent + int(costs.sum()), turn + AT_ONCE
        values = np.concatenate(blocks).swapaxes(0, 1)
    found = diagnose(values)
    per = 1000 / spent
    ess = {"mean": np.nan_to_num(found.ess_bulk), "var": np.nan_to_num(found.ess_var)}
    row = {"draws": values.shape[1], "gradients": spent}
    row["rhat_max"] = round(float(np.nan_to_num(found.rhat, nan=np.inf).max()), 3)
    for moment, sizes in ess.items():
        row |= {
            f"ess_{moment}": round(float(sizes.min())),
            f"ess_{moment}_per_1000": float(f"{per * sizes.min():.3g}"),
            f"ess_{moment}_median_per_1000": float(f"{per * np.median(sizes):.3g}"),
        }
    return row | {"notes": notes}


def check() -> None:
    """Compare scale moves and tempering with closed forms; print how many standard errors apart."""
    # N(0, I/2): exact draws stay exact, in every coordinate.
    model = Model(in_features=2, out_features=3, likelihood="categorical", width=2)
    target, num = Target(lambda x: -0.5 * x @ x, lambda x: x, units_of(model)), 40_000
    move = jax.jit(lambda key, begun: rescale_all(key, begun, 0, target, 12))
    largest = 0.0
    for seed in range(6):
        x = jax.random.normal(jax.random.key(seed), (num, model.num_params)) / np.sqrt(2)
        begun = start_chains(x, target.remainder)
        state = move(jax.random.key(100 + seed), begun)
        moved = np.asarray((state.x != begun.x).any(0))
        squares = np.asarray(state.x)[:, moved] ** 2
        z = (squares.mean(0) - 0.5) / (squares.std(0) / np.sqrt(num))
        largest = max(largest, abs(z).max())
    print(
        f"scales: largest |z| of the squares of {moved.sum()} coordinates, six keys {largest:.1f}"
    )

    # Two modes of weights 0.8 and 0.2; all chains begin in the second.
    means, weights, sd = jnp.array([[3.0, 0.0], [-3.0, 0.0]]), jnp.array([0.8, 0.2]), 0.3

    def remainder(x: Any) -> Any:
        squares = ((x[None] - means) ** 2).sum(1) / sd**2
        return jax.nn.logsumexp(jnp.log(weights) - 0.5 * squares) + 0.5 * x @ x

    target = Target(remainder, lambda x: jnp.stack([x[0] > 0, x[1] ** 2]).astype(x.dtype))
    settings = SamplerSettings()
    x = jnp.tile(means[1][None], (8, 1)) + 0.1
    warm = chains.RunState(
        *(
            jax.tree.map(lambda a: a[None], part)
            for part in (
                Prior(), start_chains(x, remainder), start_tuning(2, x.dtype, settings), x,
            )
        )
    )  # fmt: skip
    values, _, notes = tempered(target, warm, settings, jax.random.key(1), 2_000_000)
    found = diagnose(values.astype(float))
    z = (values.mean((0, 1)) - [0.8, sd**2]) / found.mean_se
    print(f"tempering: share of a mode and square, z {z[0]:.1f} and {z[1]:.1f}; {notes}")


def page(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| posterior | way | draws, gradients | R-hat | effective draws of p, of (p - mean)² | least for"
        " 1000 gradients | median over the locations |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(rows, key=lambda r: (list(POSTERIORS).index(r["posterior"]), r["seed"])):
        per = [f"ess_{moment}_per_1000" for moment in ("mean", "var")]
        medians = [f"ess_{moment}_median_per_1000" for moment in ("mean", "var")]
        cells = (
            row["posterior"], row["way"], f"{row['draws']}, {row['gradients']:,}",
            f"{row['rhat_max']:.3f}", f"{row['ess_mean']}, {row['ess_var']}",
            *(", ".join(f"{row[name]:.3g}" for name in names) for names in (per, medians)),
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Measure all rows that the table lacks."""
    if options.check:
        check()
        return
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "candidates.csv"
    rows = stored(table, {})
    done = {(row["posterior"], row["way"], row["seed"]) for row in rows}
    jobs = [(name, way) for name in options.posteriors for way in options.ways]
    for name, way in tqdm([j for j in jobs if (*j, options.seed) not in done], unit="row"):
        row = {"posterior": name, "way": way, "seed": options.seed}
        rows.append(row | measure(name, way, options))
        tqdm.write(str(rows[-1]))
        write(rows, table)
        (options.out / "candidates.md").write_text(page(rows))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
