"""Effective draws per second and per gradient of isounc's, NumPyro's and BlackJAX's samplers.

    uv run benchmarks/samplers.py                               # widths 2 to 1024, n, chains
    uv run benchmarks/samplers.py --problems moons --widths 32 512 --sizes --chains
    uv run benchmarks/samplers.py --problems linear --widths 8 --sizes 1000 --prior-sds 2 10
                                                                # all combinations of these
    uv run --with pyro-ppl benchmarks/samplers.py --widths 32   # Pyro's NUTS in PyTorch beside them

All sample the same posterior of an MLP with as many chains, and but for `numpyro model` and `pyro`
through the same log density. A
sampler's figure is the least effective sample size over all locations, of p (`ess_mean`) or of
(p - mean)^2 (`ess_var`), divided by the seconds of warm-up and sampling together. Every run is made
twice with other keys: the first also compiles, the second is timed. A first run of more than two
minutes is not repeated, and its time has the compilation in it. A way that took more than
`--skip-above` seconds is left out at greater widths. A table that exists already is continued: only
the rows that it lacks are measured.
isounc's time covers all that `sample_posterior` does (predictions at the locations, checks of
convergence); for the others the sampling alone is timed. `gate` says whether R-hat is below 1.01
and divergences are within bounds.

    hmc ...        `sample_posterior`, by coordinates and metric; auto is its default
    nuts           the same with trees
    chees          the same with adapted trajectory lengths, 16 chains at least
    mclmc          the same with adjusted microcanonical trajectories
    tempered smc   independent runs of particles (as many as draws) from the prior to the posterior
    numpyro        NUTS, all chains vectorised
    numpyro model  the same with the posterior written in NumPyro's words: the density of the
                   others is faster where examples are many
    blackjax       NUTS with window adaptation, chains under vmap, as BlackJAX documents it
    pyro           NUTS, chains one after the other, if pyro-ppl is installed
"""

from __future__ import annotations

import importlib.util
import itertools
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jaxtyping import PRNGKeyArray
from samplers_rivals import Budget, Job, Sampled, Way, blackjax_way, numpyro_way, pyro_way
from samplers_table import figure, line, pairs, stored, write
from tqdm import tqdm

from isounc.models import Model, make_model
from isounc.problems import Problem, make_problem
from isounc.sampling.convergence import diagnose
from isounc.sampling.posterior import sample_posterior
from isounc.sampling.settings import GateSettings, SamplerSettings

WAYS: dict[str, dict[str, Any]] = {
    "hmc auto": {},
    "hmc prior": {"coordinates": "prior"},
    "hmc prior low-rank": {"coordinates": "prior", "metric": "low_rank"},
    "hmc readout": {"coordinates": "readout"},
    "hmc readout low-rank": {"coordinates": "readout", "metric": "low_rank"},
    "hmc curvature": {"coordinates": "curvature"},
    "nuts": {"sampler": "nuts"},
    "chees": {"sampler": "chees", "num_chains": 16, "target_acceptance": 0.65},
    "mclmc": {"sampler": "adjusted_mclmc", "target_acceptance": 0.9},
    "tempered smc": {"sampler": "tempered_smc"},
}


@dataclass
class Options:
    """The posteriors and samplers that are measured."""

    problems: tuple[str, ...] = ("moons", "nonlinear_regression")
    """Problems, by name."""
    widths: tuple[int, ...] = (2, 8, 32, 128, 512, 1024)
    """Hidden units, at n = 100 and 4 chains."""
    sizes: tuple[int, ...] = (30, 1000)
    """Further n, at width 64; none to leave them out."""
    chains: tuple[int, ...] = (16, 64)
    """Further numbers of chains, at width 64; none to leave them out."""
    prior_sds: tuple[float, ...] = ()
    """Prior standard deviations: if there are any, the posteriors are all combinations of problems,
    widths, sizes, these and `parameterisations`; otherwise it is 2."""
    parameterisations: tuple[str, ...] = ("ntk",)
    """ntk, fan_in or standard, for `prior_sds`."""
    ways: tuple[str, ...] = ()
    """Only these; empty is all."""
    num_draws: int = 1000
    """Draws of a chain."""
    num_warmup: int = 500
    """Warm-up transitions of the others' chains; isounc takes its default."""
    skip_above: float = 600.0
    """Seconds of a run from which on a way is left out at greater widths."""
    seed: int = 0
    """Seed of the data and the keys."""
    out: Path = Path("runs/samplers")
    """Folder for the table and the figure; a table that exists already is continued."""


def isounc_way(problem: Problem, model: Model, job: Job, options: Options, **changes: Any) -> Way:
    """`sample_posterior` with some settings."""
    budget = {"num_draws": options.num_draws, "max_draws": options.num_draws}
    num_chains = max(job.chains, changes.get("num_chains", 0))
    settings = SamplerSettings(**{**budget, **changes, "num_chains": num_chains})

    def run(key: PRNGKeyArray) -> Sampled:
        start = time.perf_counter()
        posterior = sample_posterior(
            problem, model, prior_sd=job.prior_sd, key=key, settings=settings, keep_values=True
        )
        seconds = time.perf_counter() - start
        assert posterior.values is not None
        values = [v.reshape(*v.shape[:2], -1) for v in posterior.values.values()]
        return Sampled(
            values=np.concatenate(values, axis=2),
            seconds=seconds,
            num_gradients=posterior.num_gradients,
            num_divergent=posterior.gate.divergences,
            coordinates=posterior.coordinates,
        )

    return run


def ways(problem: Problem, model: Model, job: Job, options: Options) -> dict[str, Way]:
    """Every way that is asked for and can be run, by name."""
    by_name = {
        name: isounc_way(problem, model, job, options, **changes) for name, changes in WAYS.items()
    }
    given = (problem, model, job, Budget(options.num_warmup, options.num_draws))
    by_name["numpyro"] = numpyro_way(*given)
    by_name["numpyro model"] = numpyro_way(*given, in_its_words=True)
    by_name["blackjax"] = blackjax_way(*given)
    if importlib.util.find_spec("pyro") and problem.num_outputs == 1:
        by_name["pyro"] = pyro_way(*given)
    return {name: way for name, way in by_name.items() if not options.ways or name in options.ways}


LONG = 120.0
"""Seconds of a first run that is not repeated."""


def measure(way: Way, seed: int) -> dict[str, Any]:
    """One row of the table."""
    first, second = jax.random.split(jax.random.key(seed))
    start = time.perf_counter()
    sampled = way(first)
    cold = time.perf_counter() - start
    compiling = None
    if cold < LONG:
        start = time.perf_counter()
        sampled = way(second)
        compiling = round(max(cold - (time.perf_counter() - start), 0.0), 2)
    diagnostics, bounds = diagnose(sampled.values), GateSettings()
    share = sampled.num_divergent / np.prod(sampled.values.shape[:2])
    ess_mean, ess_var = (
        float(np.nan_to_num(ess).min()) for ess in (diagnostics.ess_bulk, diagnostics.ess_var)
    )
    rhat = float(np.nan_to_num(diagnostics.rhat, nan=np.inf).max())
    gradients = sampled.num_gradients
    return {
        "coordinates": sampled.coordinates,
        "gate": "pass" if rhat < bounds.rhat_max and share < bounds.divergence_rate_max else "fail",
        "rhat_max": round(rhat, 4),
        "ess_mean": round(ess_mean),
        "ess_var": round(ess_var),
        "seconds": round(sampled.seconds, 3),
        "compile_seconds": compiling,
        "gradients": gradients,
        "ess_mean_per_second": round(ess_mean / sampled.seconds, 4),
        "ess_var_per_second": round(ess_var / sampled.seconds, 4),
        "ess_mean_per_1000_gradients": gradients and round(1e3 * ess_mean / gradients, 4),
        "ess_var_per_1000_gradients": gradients and round(1e3 * ess_var / gradients, 4),
    }


def jobs_of(options: Options) -> list[tuple[str, Job]]:
    """The posteriors, each with the name of the sweep that it belongs to."""
    if options.prior_sds:
        combinations = itertools.product(
            options.problems, options.widths, options.sizes, options.prior_sds,
            options.parameterisations,
        )  # fmt: skip
        return [("prior", Job(p, w, n, 4, sd, where)) for p, w, n, sd, where in combinations]
    jobs = [("width", Job(p, w, 100, 4)) for p in options.problems for w in options.widths]
    jobs += [("n", Job(p, 64, n, 4)) for p in options.problems for n in options.sizes]
    return jobs + [("chains", Job(p, 64, 100, k)) for p in options.problems for k in options.chains]


def main(options: Options) -> None:
    """Measure all jobs, print the rows and write the table and the figure."""
    warnings.filterwarnings("ignore", message="There are not enough devices")
    # NumPyro traces anew in every run; with a cache the second one does not compile anew.
    cache = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", cache.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jobs = jobs_of(options)
    device = jax.devices()[0].device_kind
    print(f"{device}, JAX {jax.__version__}, float32, {options.num_draws} draws a chain")
    options.out.mkdir(parents=True, exist_ok=True)
    rows = stored(options.out / "samplers.csv", {"seed": options.seed})
    rows = [Job._field_defaults | row for row in rows]  # older tables lack these columns
    done = {tuple(row[name] for name in (*Job._fields, "way")) for row in rows}
    slow = {(r["problem"], r["way"]) for r in rows if r["seconds"] > options.skip_above}
    for sweep, job in tqdm(jobs, unit="posterior"):
        problem = make_problem(
            job.problem, n=job.n, seed=options.seed, num_test=64, num_far=64, grid_size=8
        )
        model = make_model(problem, width=job.width, parameterisation=job.parameterisation)
        for name, way in ways(problem, model, job, options).items():
            if (*job, name) in done or (sweep == "width" and (job.problem, name) in slow):
                continue
            row = {"sweep": sweep, **job._asdict(), "seed": options.seed, "way": name}
            row |= measure(way, options.seed) | {"device": device, "jax": jax.__version__}
            rows.append(row)
            tqdm.write(line(row))
            # After every row: what is measured is kept when a later one fails.
            write(rows, options.out / "samplers.csv")
            (options.out / "pairs.md").write_text(pairs(rows))
            if row["seconds"] > options.skip_above:
                slow.add((job.problem, name))
        jax.clear_caches()
    if any(r["sweep"] == "width" for r in rows):
        figure(rows, options.out / "samplers.png")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
