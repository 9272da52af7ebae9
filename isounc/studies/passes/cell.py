"""A cell of the passes study: its posterior, its networks, and a row for each comparison."""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from isounc import densities
from isounc.models import Model
from isounc.problems import Problem
from isounc.runs.compute import Say
from isounc.runs.executors import Batch
from isounc.runs.folder import Record
from isounc.sampling.moments import Posterior, moment_arrays
from isounc.sampling.posterior import sample_posteriors
from isounc.studies.passes.estimates import ESTIMATES, quality
from isounc.studies.passes.networks import (
    Networks,
    last_layer_samples,
    posterior_draws,
    predict,
    seconds_of_passes,
    trained_ensemble,
)
from isounc.studies.passes.settings import Cell, Settings, cell_model, cell_problem
from isounc.training import disjoint_groups


def evaluate(batch: Batch, settings: Settings, say: Say) -> Iterator[Record]:
    """Evaluate a batch, whose cells differ in the seed alone; one record each."""
    problems = [cell_problem(cell, settings) for cell in batch.cells]
    model = cell_model(problems[0], settings)
    # The numbers of a cell depend on what the cell is, not on where it stands in the run.
    seeds = [zlib.crc32(f"passes/{cell.name}".encode()) for cell in batch.cells]
    keys = [jax.random.split(jax.random.key(seed), 3) for seed in seeds]
    begun = time.perf_counter()
    posteriors = sample_posteriors(
        problems,
        model,
        prior_sd=settings.prior_sd,
        keys=[key[0] for key in keys],
        settings=settings.sampling,
        progress=lambda what, done, total: say(f"{what} {done}/{total}" if done else what),
    )
    seconds = (time.perf_counter() - begun) / len(problems)
    for cell, problem, posterior, key, seed in zip(
        batch.cells, problems, posteriors, keys, seeds, strict=True
    ):
        say(f"networks of seed {cell.seed}")
        networks = _networks(problem, model, posterior, settings, key, seed, seconds)
        yield _record(cell, problem, model, posterior, networks, settings)


def _networks(
    problem: Problem,
    model: Model,
    posterior: Posterior,
    settings: Settings,
    keys: jax.Array,
    seed: int,
    seconds: float,
) -> dict[str, Networks]:
    """As many networks of each kind as the largest K asks for."""
    num = settings.counts[-1]
    ensemble = trained_ensemble(
        problem, model, num, key=keys[1], prior_sd=settings.prior_sd, settings=settings.train
    )
    return {
        "draws": posterior_draws(np.asarray(posterior.draws), num, seed=seed, seconds=seconds),
        "ensemble": ensemble,
        "last_layer": last_layer_samples(
            problem, model, ensemble, num, key=keys[2], prior_sd=settings.prior_sd
        ),
    }


def _record(
    cell: Cell,
    problem: Problem,
    model: Model,
    posterior: Posterior,
    networks: dict[str, Networks],
    settings: Settings,
) -> Record:
    counts = settings.counts
    data = densities.make_data(problem, model, settings.prior_sd)
    X = np.concatenate([*problem.regions.values(), problem.X])
    ends = np.cumsum([len(x) for x in problem.regions.values()])
    regions = {
        name: slice(end - len(x), end)
        for (name, x), end in zip(problem.regions.items(), ends.tolist(), strict=True)
    }
    training = slice(int(ends[-1]), len(X))
    timed = seconds_of_passes(
        model, networks["draws"].thetas, X, counts, num_timings=settings.num_timings
    )
    rows: list[dict[str, Any]] = []
    for kind, made in networks.items():
        predictions = predict(model, made.thetas, X, data)
        for i, count in enumerate(counts):
            for region, where in regions.items():
                reasons = dict.fromkeys((*posterior.gate.reasons_in(region), *made.reasons))
                found = quality(
                    predictions,
                    locations=where,
                    training=training,
                    groups=disjoint_groups(count, len(made.thetas), settings.num_groups),
                    reference=np.asarray(posterior.regions[region].var),
                    noise_sd=problem.noise_sd,
                )
                for (view, name), numbers in found.items():
                    estimate = ESTIMATES[name]
                    backward = count * model.out_features if estimate.backward else 0
                    rows.append({
                        "problem": cell.problem, "seed": cell.seed, "kind": kind,
                        "region": region, "class": view, "count": count, "estimate": name,
                        "gate": "fail" if reasons else "pass",
                        "gate_reasons": "; ".join(reasons),
                        "passes": count + backward, "forward": count, "backward": backward,
                        "seconds": timed[estimate.program][i],
                        "seconds_to_make": made.seconds + count * made.seconds_each,
                        **numbers,
                    })  # fmt: skip
    arrays = moment_arrays(problem, posterior)
    meta = {
        "cell": dataclasses.asdict(cell),
        "gate": posterior.gate._asdict(),
        "num_params": model.num_params,
        "rows": rows,
    }
    return Record(cell.name, meta, arrays)
