"""A cell of the agreement study samples one posterior by isounc or by NumPyro."""

from __future__ import annotations

import zlib

import jax

from isounc.models import make_model
from isounc.problems import make_problem
from isounc.runs.compute import Say
from isounc.runs.executors import Batch
from isounc.runs.folder import Record
from isounc.studies.agreement.settings import Cell, Settings
from isounc.studies.agreement.sides import isounc_side, numpyro_side

LOCATIONS = {"num_test": 64, "num_far": 64, "grid_size": 8}
"""Sizes of the regions. isounc keeps every draw at so many locations, so that both sides have the
same ones."""


def evaluate(batch: Batch, settings: Settings, say: Say) -> list[Record]:
    """Sample the posterior of each cell."""
    return [_sample(cell, settings, say) for cell in batch.cells]


def _sample(cell: Cell, settings: Settings, say: Say) -> Record:
    problem = make_problem(cell.pair.problem, n=settings.n, seed=settings.seed, **LOCATIONS)
    model = make_model(
        problem,
        width=cell.pair.width,
        depth=settings.depth,
        activation=settings.activation,
        parameterisation=settings.parameterisation,
    )
    # The key depends on what is sampled, not on where it stands in the run.
    key = jax.random.fold_in(jax.random.key(settings.seed), zlib.crc32(cell.name.encode()))
    shared = {
        "prior_sd": settings.prior_sd,
        "key": key,
        "progress": lambda what, done, total: say(f"{what} {done}/{total}"),
    }
    if cell.side == "numpyro":
        bounds = settings.sampling.gate
        side = numpyro_side(problem, model, settings=settings.numpyro, bounds=bounds, **shared)
    else:
        side = isounc_side(problem, model, settings=settings.sampling, fault=cell.control, **shared)
    return side.to_record(cell.name)
