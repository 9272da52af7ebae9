"""Reference posteriors by MCMC: warm-up, chains, streamed predictive moments, until a stated precision is reached.

All chains of all problems (seeds, say) of one shape run in one compiled program, in coordinates in which the posterior
is close to N(0, I) (`isounc.sampling.coordinates`), by one of the samplers of `isounc.sampling.kernels`. Sampling
advances in blocks of draws: moments at every location leave the device as block means, draws of the predictive
quantity are kept at a few fixed locations only, so memory grows neither with draws x locations nor with draws x
parameters (but for the particles of `isounc.sampling.smc`). After each block a checkpoint can be written, from which a
killed run goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from threadpoolctl import threadpool_limits

from isounc.densities import Data, stack_data
from isounc.models import Model
from isounc.problems import Problem
from isounc.runs.provenance import provenance
from isounc.sampling import chains as sampling
from isounc.sampling import smc as tempering
from isounc.sampling import stopping
from isounc.sampling.chains import Progress
from isounc.sampling.checkpoint import Checkpoint
from isounc.sampling.coordinates import COORDINATES, best
from isounc.sampling.gate import Gate
from isounc.sampling.kernels import SAMPLERS
from isounc.sampling.moments import (
    Block,
    Posterior,
    collect,
    fixed_locations,
    flat_locations,
    gate_of,
)
from isounc.sampling.settings import SamplerSettings


def sample_posterior(
    problem: Problem,
    model: Model,
    *,
    prior_sd: float,
    key: PRNGKeyArray,
    settings: SamplerSettings | None = None,
    keep_values: bool = False,
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
    **overrides,
) -> Posterior:
    """Sample p(theta | data) proportional to p(y|X, theta) N(theta; 0, sigma_l^2) and summarise its predictions.

    Parameters
    ----------
    problem
        Training data and the regions to predict in.
    model
        From `make_model`.
    prior_sd
        Prior standard deviation; `Model.group_prior_sd` spreads it over the layers.
    key
        JAX random key; the same key gives the same draws on the same machine.
    settings
        All sampler settings; or give some of them by keyword, e.g. ``num_chains=4, num_draws=2000``.
    keep_values
        Also return every draw of the predictive quantity at the fixed locations.
    progress
        Called with (what is being done, done, total).
    checkpoint
        A folder: the run is stored there block by block, and the same call goes on from there after a kill.

    Raises
    ------
    ValueError
        For a prior_sd that is not positive, a setting out of its range, or a checkpoint folder of another run.
    """
    if settings is None:
        overrides.setdefault("max_draws", overrides.get("num_draws", SamplerSettings.num_draws))
        settings = SamplerSettings(**overrides)
    elif overrides:
        raise ValueError(f"Give settings or keywords, not both; got both ({', '.join(overrides)}).")
    return sample_posteriors(
        [problem],
        model,
        prior_sd=prior_sd,
        keys=[key],
        settings=settings,
        keep_values=keep_values,
        progress=progress,
        checkpoint=checkpoint,
    )[0]


def sample_posteriors(
    problems: Sequence[Problem],
    model: Model,
    *,
    prior_sd: float,
    keys: Sequence[PRNGKeyArray],
    settings: SamplerSettings,
    keep_values: bool = False,
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
) -> list[Posterior]:
    """`sample_posterior` of several problems of one shape in one program.

    They sample until each passes the gate at the precision asked for, or ``max_draws`` is reached, and all stop
    together. Chains are spread over the devices where their number divides by that of the devices.
    """
    # Threads of LAPACK only wait for each other on matrices this small, on a busy machine two hundred times as long.
    with threadpool_limits(1, user_api="blas"):
        return _sample(problems, model, prior_sd, keys, settings, keep_values, progress, checkpoint)


def _sample(
    problems, model, prior_sd, keys, settings: SamplerSettings, keep_values, progress, checkpoint
) -> list[Posterior]:
    report = progress or (lambda *_: None)
    data = stack_data(problems, model, prior_sd)
    locations = fixed_locations(problems[0], settings.locations_per_region)
    points = np.stack([np.concatenate(list(p.regions.values())) for p in problems])
    X = jnp.asarray(points.astype(data.X.dtype))
    rows = jnp.asarray(flat_locations(problems[0], locations))
    start_keys, run_keys = (
        jnp.stack(parts)
        for parts in zip(*(jax.random.split(jnp.asarray(key)) for key in keys), strict=True)
    )
    first, most = (math.ceil(n / settings.block) for n in (settings.num_draws, settings.max_draws))
    smc = settings.sampler == tempering.NAME
    most = first * math.ceil(most / first) if smc else most
    saved = checkpoint and Checkpoint.open(
        checkpoint, _identity(problems, model, data, keys, settings)
    )
    report("coordinates", 0, settings.max_draws)
    choose = COORDINATES.get(settings.coordinates, best)
    coordinates = choose(problems, data, model, prior_sd, list(start_keys))
    run = sampling.Run(
        coordinates, data, X, rows, start_keys, run_keys, model, settings, saved or None, report
    )
    has_energy = not smc and SAMPLERS[settings.sampler].has_energy
    drawing = (tempering if smc else sampling).draw(run)
    blocks, wanted, pace = list[Block](), first, stopping.Pace()

    def judge() -> tuple[list[Gate], float]:
        gates = [
            gate_of(blocks, i, settings.gate, has_energy=has_energy) for i in range(len(problems))
        ]
        return gates, max(stopping.more(gate, settings) for gate in gates)

    def tell(gates: list[Gate]) -> None:
        words = [stopping.words(max(gates, key=lambda gate: stopping.more(gate, settings)))]
        words += pace.left(wanted - len(blocks), f"to {wanted * settings.block} draws")
        done, total = (count * settings.block for count in (len(blocks), most))
        report(f"sampling ({', '.join(words)})", done, total)

    while True:
        while len(blocks) < wanted:
            drawn = next(drawing)
            blocks += drawn.blocks
            pace.count(drawn)
            if progress and len(blocks) < wanted and pace.is_due():
                tell(judge()[0])
                pace.told()
        gates, more = judge()
        if more <= 1 or len(blocks) >= most:
            break
        wanted = math.ceil(more * len(blocks))
        wanted = min(most, first * math.ceil(wanted / first) if smc else wanted)
        tell(gates)

    shift, step_size = sampling.fetch((drawn.shift, drawn.step_size))
    return [
        collect(
            problem, model, blocks, i,
            shift=shift[i],
            step_size=step_size[i],
            gate=gates[i],
            stopped=stopping.stopped(gates[i], len(blocks), settings),
            coordinates=type(coordinates).__name__.lower(),
            locations=locations,
            num_kept=settings.num_kept,
            keep_values=keep_values,
        )
        for i, problem in enumerate(problems)
    ]  # fmt: skip


def _identity(
    problems: Sequence[Problem], model: Model, data: Data, keys: Any, settings: SamplerSettings
) -> dict[str, Any]:
    """What must agree for a checkpoint to be gone on with."""
    digest = hashlib.sha256()
    regions = [a for p in problems for a in p.regions.values()]
    for array in (*jax.tree.leaves(data), *regions, *map(jax.random.key_data, map(_typed, keys))):
        digest.update(repr(np.shape(array)).encode() + np.ascontiguousarray(array).tobytes())
    made_by = provenance()
    stored = dataclasses.asdict(settings) | {"num_chains": settings.chains}
    del (
        stored["max_draws"],
        stored["chains_per_device"],
    )  # a longer budget goes on from a shorter one
    return {
        "settings": stored,
        "model": dataclasses.asdict(model),
        "data_and_keys": digest.hexdigest(),
        "versions": made_by["versions"],
        "device": {k: made_by["device"][k] for k in ("platform", "kind", "x64")},
    }


def _typed(key: Any) -> PRNGKeyArray:
    key = jnp.asarray(key)
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
