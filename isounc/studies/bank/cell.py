"""A cell of the bank study makes one reference, sampled or exact."""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Mapping
from typing import Any

import jax

from isounc.models import make_model
from isounc.problems import make_problem
from isounc.references import (
    Reference,
    Thinning,
    from_exact,
    from_posterior,
    linear_gaussian,
    logistic_by_quadrature,
)
from isounc.runs.compute import Say
from isounc.runs.executors import Batch
from isounc.runs.folder import Record
from isounc.runs.provenance import provenance
from isounc.sampling.posterior import sample_posteriors
from isounc.sampling.settings import GateSettings, SamplerSettings
from isounc.studies.bank.settings import Settings


def evaluate(batch: Batch, settings: Settings, say: Say) -> list[Record]:
    """Make the reference of each cell; one record each."""
    records = []
    for cell in batch.cells:
        started = time.perf_counter()
        meta, arrays = make(cell.name, cell.recipe, say).to_record()
        seconds = round(time.perf_counter() - started, 1)
        records.append(Record(cell.name, {"reference": meta, "seconds": seconds}, arrays))
    return records


def make(name: str, recipe: Mapping[str, Any], say: Say) -> Reference:
    """Make a reference from the settings that are stored with it."""
    problem = make_problem(recipe["problem"], n=recipe["n"], seed=recipe["seed"])
    model = make_model(
        problem,
        **{k: recipe[k] for k in ("width", "depth", "activation", "parameterisation")},
    )
    prior_sd = recipe["prior_sd"]
    shared: dict[str, Any] = {
        "prior_sd": prior_sd,
        "settings": recipe,
        "versions": provenance(),
        "thinning": Thinning(**recipe["thinning"]),
    }
    # The randomness of a reference depends on what it is, not on where it stands in the run.
    seed = zlib.crc32(f"{name}/{recipe['key']}".encode())
    if recipe["kind"] != "sampled":
        solve = {"logistic": logistic_by_quadrature, "gaussian": linear_gaussian}[recipe["kind"]]
        say(solve.__name__)
        exact = solve(problem, model, prior_sd=prior_sd, seed=seed)
        return from_exact(name, problem, model, exact, **shared)
    sampler = sampler_settings(recipe["sampler"])
    posterior = sample_posteriors(
        [problem],
        model,
        prior_sd=prior_sd,
        keys=[jax.random.key(seed)],
        settings=sampler,
        keep_values=True,
        progress=lambda what, done, total: say(f"{what} {done}/{total}" if done else what),
    )[0]
    return from_posterior(name, problem, posterior, method=sampler.sampler, **shared)


def sampler_settings(stored: Mapping[str, Any]) -> SamplerSettings:
    """Read stored sampler settings, without those that this version of isounc does not have."""
    known = {f.name for f in dataclasses.fields(SamplerSettings)}
    unknown = sorted(set(stored) - known)
    if unknown:
        print(f"These stored settings are unknown and are ignored: {', '.join(unknown)}")
    chosen = {k: v for k, v in stored.items() if k in known}
    return SamplerSettings(**{**chosen, "gate": GateSettings(**stored["gate"])})
