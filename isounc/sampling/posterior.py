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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from threadpoolctl import threadpool_limits

from isounc.checks import check_choice, check_count, check_real
from isounc.densities import Data, stack_data
from isounc.models import Model
from isounc.problems import Problem
from isounc.runs.provenance import provenance
from isounc.sampling import chains as sampling
from isounc.sampling import gate as diagnostics
from isounc.sampling import smc as tempering
from isounc.sampling import stopping
from isounc.sampling.chains import Progress
from isounc.sampling.checkpoint import Checkpoint
from isounc.sampling.coordinates import COORDINATES, best
from isounc.sampling.gate import Gate
from isounc.sampling.kernels import SAMPLERS
from isounc.sampling.moments import (
    Block,
    Moments,
    Posterior,
    collect,
    fixed_locations,
    flat_locations,
    gate_of,
)

__all__ = ["Moments", "Posterior", "SamplerSettings", "sample_posterior", "sample_posteriors"]

METRICS = ("identity", "diagonal", "low_rank")


@dataclass(frozen=True)
class SamplerSettings:
    """How a posterior is sampled."""

    sampler: str = "hmc"
    """hmc (trajectories of jittered length), nuts, chees (its length adapted over many chains: 16 or more),
    adjusted_mclmc, or tempered_smc where modes do not mix (a chain is a run of num_draws particles; no warm-up)."""
    coordinates: str = "auto"
    """prior, curvature (Laplace at the MAP), readout (last layer whitened given the hidden layers), or auto: readout
    where the data determine the outputs sharply, prior elsewhere."""
    metric: str = "diagonal"
    """identity, diagonal or low_rank (plus diagonal), adapted during warm-up."""
    metric_rank: int = 16
    """low_rank: its rank."""
    num_chains: int = 4
    """K, each from its own draw of the prior (readout: of the hidden layers' prior)."""
    chains_per_device: int = 0
    """If not 0, K is this many for each device, whatever num_chains says."""
    num_warmup: int = 300
    """Warm-up transitions of a chain; rounded up to four equal windows."""
    num_draws: int = 1000
    """S, transitions of a chain after warm-up before the gate is first tried; rounded up to whole blocks."""
    max_draws: int = 1000
    """While the gate or the precision fails, S grows up to this, rounded up to whole blocks (tempered_smc: to whole
    rounds of num_draws)."""
    target_var_se: float = 0.03
    """Precision: standard error of the predictive variance over the variance, median over the fixed locations."""
    trajectory_length: float = 1.6
    """Mean integration time of a transition (chees: before adaptation). A quarter period of N(0, I) is pi / 2, after
    which its draws are independent."""
    max_integration_steps: int = 128
    """Most integration steps of a trajectory."""
    max_tree_depth: int = 10
    """nuts: trajectories of at most 2^this integration steps."""
    num_mutations: int = 10
    """tempered_smc: transitions of each particle at each temperature."""
    tempering_ess: float = 0.5
    """tempered_smc: share of the particles that stays effective from one temperature to the next; more is slower."""
    target_acceptance: float = 0.8
    """Acceptance that the step size is adapted to."""
    block: int = 250
    """Draws between returns to the host; also the length of the batches behind streamed standard errors."""
    num_kept: int = 1000
    """Thinned parameter draws that are kept, over all chains."""
    locations_per_region: int = 64
    """Fixed locations of each region where function values are kept for R-hat and ESS."""
    gate: diagnostics.GateSettings = field(default_factory=diagnostics.GateSettings)
    """Bounds of the convergence checks."""

    def __post_init__(self):
        check_choice("sampler", self.sampler, (*SAMPLERS, tempering.NAME))
        check_choice("coordinates", self.coordinates, ("auto", *COORDINATES))
        check_choice("metric", self.metric, METRICS)
        for name, least in (
            ("num_chains", 2),
            ("chains_per_device", 0),
            ("num_warmup", 20),
            ("num_draws", 4),
            ("metric_rank", 1),
            ("max_integration_steps", 1),
            ("max_tree_depth", 1),
            ("num_mutations", 1),
            ("max_draws", 4),
            ("block", 2),
            ("num_kept", 2),
            ("locations_per_region", 1),
        ):
            check_count(name, getattr(self, name), least)
        for name in ("trajectory_length", "target_var_se"):
            check_real(name, getattr(self, name), positive=True)
        if not 0 < self.target_acceptance < 1:
            raise ValueError(
                f"target_acceptance must be between 0 and 1; got {self.target_acceptance}."
            )
        if not 0 < self.tempering_ess <= 0.99:
            # With more, a temperature is not told from the next in float32.
            raise ValueError(
                f"tempering_ess must be above 0 and at most 0.99; got {self.tempering_ess}."
            )
        if self.sampler == tempering.NAME:
            for name, wrong in (("metric", "low_rank"), ("coordinates", "curvature")):
                if getattr(self, name) == wrong:
                    raise ValueError(
                        f"sampler 'tempered_smc' does not take {name} '{wrong}'; leave the default."
                    )
        if self.max_draws < self.num_draws:
            raise ValueError(
                f"max_draws must be at least num_draws ({self.num_draws}); got {self.max_draws}."
            )

    @property
    def chains(self) -> int:
        """K on the devices that there are."""
        return (
            max(2, self.chains_per_device * jax.device_count())
            if self.chains_per_device
            else self.num_chains
        )


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
