"""A cell of the calibration study ranks a batch of replications, or runs Geweke's test."""

from __future__ import annotations

import dataclasses
import zlib

import jax
import numpy as np

from isounc.models import Model, make_model
from isounc.problems import Problem, make_problem
from isounc.runs.compute import Say
from isounc.runs.executors import Batch
from isounc.runs.folder import Record
from isounc.studies.calibration.geweke import geweke
from isounc.studies.calibration.sbc import quantity_names, rank_batch
from isounc.studies.calibration.settings import (
    CASES,
    SAMPLER_SETTINGS,
    WHITENED_STEP,
    Case,
    Cell,
    Settings,
)


def evaluate(batch: Batch, settings: Settings, say: Say) -> list[Record]:
    """Evaluate each cell of a batch; one record each."""
    return [
        _geweke(cell, settings, say) if cell.batch is None else _ranks(cell, settings, say)
        for cell in batch.cells
    ]


def template(case: Case, settings: Settings) -> tuple[Problem, Model]:
    """Return a case's inputs, with two locations near them and two far from them, and its model."""
    source = make_problem(
        case.problem, n=settings.n, seed=settings.seed, label_noise=case.label_noise,
        num_test=2, num_far=2, grid_size=2,
    )  # fmt: skip
    query = case.origin + np.concatenate([source.regions["test"], source.regions["far"]])
    problem = Problem.from_arrays(
        case.origin + source.X, source.y, likelihood=source.likelihood, noise_sd=source.noise_sd,
        num_classes=source.num_classes, regions={"query": query}, name=case.problem,
    )  # fmt: skip
    model = make_model(
        problem, width=case.width, depth=case.depth, parameterisation=case.parameterisation
    )
    return problem, model


def _key(settings: Settings, name: str) -> jax.Array:
    """Make a key that depends on what is computed, not on where it stands in the run."""
    return jax.random.fold_in(jax.random.key(settings.seed), zlib.crc32(name.encode()))


def _ranks(cell: Cell, settings: Settings, say: Say) -> Record:
    job = cell.job
    problem, model = template(CASES[job.case], settings)
    # The same data for every sampler and control: the case and the batch alone decide them.
    keys = jax.random.split(_key(settings, f"{job.case}/{cell.batch}"), settings.batch)
    ranked = rank_batch(
        list(keys),
        problem,
        model,
        prior_sd=CASES[job.case].prior_factor * settings.prior_sd,
        settings=dataclasses.replace(
            settings.sampling,
            sampler=job.sampler,
            coordinates=job.coordinates,
            **SAMPLER_SETTINGS.get(job.sampler, {}),
        ),
        num_ranked=settings.num_ranked,
        fault=job.control,
        progress=lambda what, done, total: say(f"{what} {done}/{total}"),
    )
    meta = {
        "quantities": list(quantity_names(problem)),
        "gates": [gate._asdict() for gate in ranked.gates],
        "num_redrawn": ranked.num_redrawn,
    }
    return Record(cell.name, meta, {"ranks": ranked.ranks, "ess": ranked.ess})


def _geweke(cell: Cell, settings: Settings, say: Say) -> Record:
    job = cell.job
    problem, model = template(CASES[job.case], settings)
    say(f"{settings.geweke.num_iterations} iterations")
    result = geweke(
        _key(settings, f"geweke/{job.case}"),
        problem,
        model,
        prior_sd=CASES[job.case].prior_factor * settings.prior_sd,
        sampler=job.sampler,
        step_size=CASES[job.case].step_size,
        coordinates=job.coordinates,
        whitened_step=WHITENED_STEP,
        settings=settings.geweke,
        fault=job.control,
    )
    meta = {name: getattr(result, name) for name in ("acceptance", "num_chains")}
    meta["moments"] = list(result.moments)
    arrays = {name: value for name, value in result._asdict().items() if name not in meta}
    return Record(cell.name, meta, arrays)
