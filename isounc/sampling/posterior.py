"""Reference posteriors: warm-up, chains, streamed predictive moments, until a stated precision.

All chains of all problems (seeds, say) of one shape run in one compiled program, in coordinates in
which the posterior is close to N(0, I) (`isounc.sampling.coordinates`), by the driver of the
sampler (`isounc.sampling.drivers`). Sampling advances in blocks of draws: moments at every location
leave the device as block means, draws of the predictive quantity are kept at a few fixed locations
only, so memory grows neither with draws x locations nor with draws x parameters (but for the
particles of `isounc.sampling.smc`). After each block a checkpoint can be written, from which a
killed run goes on; blocks that take long are computed, reported on and stored in parts
(`isounc.sampling.parts`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Key, PRNGKeyArray
from threadpoolctl import threadpool_limits

from isounc.centring import Frame, make_frame
from isounc.checks import settings_from
from isounc.densities import on_device
from isounc.models import Model, check_inputs
from isounc.problems import Problem
from isounc.runs import unfinished
from isounc.runs.provenance import provenance
from isounc.sampling import stopping
from isounc.sampling.checkpoint import Checkpoint
from isounc.sampling.clock import Clock, TimeIsUp
from isounc.sampling.coordinates import candidates
from isounc.sampling.drivers import DRIVERS
from isounc.sampling.gate import Gate, add_modes, fail
from isounc.sampling.modes import modes_p_value, smc_settings
from isounc.sampling.moments import (
    Block,
    Posterior,
    Trial,
    fixed_locations,
    flat_locations,
    judge,
    kept_draws,
    kept_values,
    of_problem,
    predictive_moments,
)
from isounc.sampling.pilot import choose
from isounc.sampling.precision import Precision, check_precision
from isounc.sampling.run import LEAST_DRAWS, DrawnBlocks, Progress, Run, fetch, typed_key
from isounc.sampling.settings import GateSettings, SamplerSettings
from isounc.sampling.smc_driver import UNTEMPERED

MODES = 20260330
"""Folded into a key for the tempered run."""


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
    **fields: Any,
) -> Posterior:
    """Sample p(theta | data) and summarise its predictions.

        p(theta | data)  proportional to  p(y | X, theta) N(theta; 0, sigma_l^2)

    An interrupt (Ctrl-C) after warm-up ends sampling with the draws that there are, and their gate;
    so do `max_seconds`. `Posterior.stopped` tells. Moments weigh draws equally: the block that was
    cut short counts by its length in their standard errors, too.

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
        All sampler settings; or give some of them by keyword, e.g. `num_chains=4, num_draws=2000`.
    keep_values
        Also return every draw of the predictive quantity at the fixed locations.
    progress
        Called with (what is being done, done, total).
    checkpoint
        A folder: the run is stored in it block by block, and every half minute within a block. The
        same call goes on from it after a kill, an interrupt, or with more seconds, to the same
        bits.

    Raises
    ------
    ValueError
        For a `prior_sd` that is not positive, a setting out of its range, or a checkpoint folder of
        another run.
    """
    if settings is None and "num_draws" in fields:
        fields = {"max_draws": fields["num_draws"]} | fields
    settings = settings_from(SamplerSettings, settings, fields)
    return sample_posteriors(
        [problem],
        model,
        prior_sd=prior_sd,
        keys=[key],
        settings=settings,
        keep_values=keep_values,
        progress=progress,
        checkpoint=checkpoint,
        interruptible=True,
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
    interruptible: bool = False,
) -> list[Posterior]:
    """`sample_posterior` of several problems of one shape in one program.

    They sample until each passes the gate at the precision asked for, or `max_draws` or
    `max_seconds` are reached, and all stop together. Chains are spread over the devices if these
    divide their number. An interrupt ends the call, as a study wants it, unless it is
    `interruptible`.
    """
    clock = Clock(settings.max_seconds)
    check_inputs(problems, model, keys)
    locations = fixed_locations(problems[0], settings.locations_per_region)
    # On matrices this small threads of LAPACK only wait for each other, on a busy machine two
    # hundred times as long.
    with threadpool_limits(1, user_api="blas"):
        frame = make_frame(problems, model, prior_sd)
        run, trials = _prepare(
            problems, frame, locations, prior_sd=prior_sd, keys=keys, settings=settings,
            folder=checkpoint, report=progress or (lambda *_: None), clock=clock,
        )  # fmt: skip
        check = functools.partial(check_precision, run, problems, frame, prior_sd)
        sizes = {name: rows.size * problems[0].num_columns for name, rows in locations.items()}
        sampled = _sample(
            run, check, sizes, is_heard=progress is not None, interruptible=interruptible
        )
        checks_modes = settings.checks_modes(model.num_params)
        if checks_modes and any(gate.converged for gate in sampled.gates):

            def report(what: str, done: int, total: int) -> None:
                run.report(f"tempered run for the modes: {what}", done, total)

            try:
                report("coordinates", 0, settings.max_draws)
                tempered = sample_posteriors(
                    problems, model, prior_sd=prior_sd,
                    keys=[jax.random.fold_in(typed_key(key), MODES) for key in keys],
                    settings=smc_settings(settings, max_seconds=max(clock.left(), 1e-3)),
                    keep_values=True, progress=report,
                )  # fmt: skip
            except KeyboardInterrupt:
                if not interruptible:
                    raise
                tempered = None
            sampled = sampled._replace(gates=_check_modes(sampled, tempered, settings.gate))
        return [
            _posterior(
                problem, i, run, frame, sampled, locations, keep_values=keep_values, trials=trials
            )
            for i, problem in enumerate(problems)
        ]


def _check_modes(
    sampled: _Sampled, tempered: Sequence[Posterior] | None, bounds: GateSettings
) -> list[Gate]:
    """The verdicts, those of chains that converged with the agreement with a tempered run.

    They fail if it was interrupted (None), or the time was spent before its end.
    """
    gates = []
    for i, gate in enumerate(sampled.gates):
        other = tempered[i] if tempered else None
        if not gate.converged:
            pass
        elif not other or any(UNTEMPERED in reason for reason in other.gate.reasons):
            gate = fail(gate, "the tempered run that check_modes asks for was cut short")
        else:
            values = np.concatenate([block.values[i] for block in sampled.blocks], axis=1)
            # Region by region, location by location, column by column, as blocks have them.
            assert other.values is not None
            particles = [v.reshape(*v.shape[:2], -1) for v in other.values.values()]
            p_value = modes_p_value(values, np.concatenate(particles, axis=2))
            gate = add_modes(gate, p_value, bounds)
        gates.append(gate)
    return gates


def _prepare(
    problems: Sequence[Problem], frame: Frame, locations: Mapping[str, Int[np.ndarray, " Q"]],
    *, prior_sd: float, keys: Sequence[PRNGKeyArray], settings: SamplerSettings,
    folder: str | Path | None, report: Progress, clock: Clock,
) -> tuple[Run, tuple[Trial, ...]]:  # fmt: skip
    """The run, in its coordinates, with its checkpoint opened; and the pilots."""
    data = on_device(frame.data)
    points = np.stack([frame.locations(problem, i) for i, problem in enumerate(problems)])
    X = jnp.asarray(points.astype(data.X.dtype))
    fixed = jnp.asarray(flat_locations(problems[0], locations))
    typed_keys = [typed_key(key) for key in keys]
    start_keys, run_keys = (
        jnp.stack(parts) for parts in zip(*map(jax.random.split, typed_keys), strict=True)
    )
    checkpoint = None
    if folder or unfinished.is_kept():
        identity = _identity(problems, frame, typed_keys, settings)
        checkpoint = Checkpoint.open(folder or unfinished.place_of(identity), identity)
    report("coordinates", 0, settings.max_draws)
    tried = candidates(settings.coordinates, problems, frame, prior_sd, start_keys)
    run = Run(
        coordinates=tried[0],
        data=data,
        X=X,
        fixed=fixed,
        start_keys=start_keys,
        run_keys=run_keys,
        model=frame.model,
        # The clock has the seconds. Programs are compiled for each of their settings.
        settings=dataclasses.replace(settings, max_seconds=math.inf),
        checkpoint=checkpoint,
        report=report,
        clock=clock,
    )
    return choose(run, tried)


class _Sampled(NamedTuple):
    """All blocks of a run, on the host."""

    blocks: list[Block]
    """Blocks of all problems."""
    gates: list[Gate]
    """The verdict on each problem."""
    shift: Float[np.ndarray, "B N M"]
    """Moments of the blocks are about this."""
    step_size: Float[np.ndarray, "B K"]
    """Step size of each chain."""
    ended: str
    """Why the run ended before its budget of draws was spent; empty if it did not."""


Check = Callable[[Sequence[Block]], list[Precision | None]]
"""Works out the precision of each problem from blocks."""


def _sample(
    run: Run, check: Check, sizes: Mapping[str, int], *, is_heard: bool, interruptible: bool
) -> _Sampled:
    """Draw rounds of blocks until all problems meet their targets or the budget is spent.

    `sizes` has the number of fixed values of each region; `is_heard` says whether reports in between
    are worth what it costs to work out R-hat.
    """
    settings, driver, pace = run.settings, DRIVERS[run.settings.sampler], stopping.Pace()
    per_round = settings.block * driver.blocks_per_round(settings)
    wanted, most = (
        per_round * math.ceil(n / per_round) for n in (settings.num_draws, settings.max_draws)
    )
    blocks, faults, verdict = list[Block](), set[str](), list[str]()

    def report(what: str, done: int, total: int) -> None:
        """What drivers report, with what is known of the draws beside it."""
        if what == "sampling":
            pace.count(done)
            words = [*verdict, *pace.left(wanted)] or [f"{run.clock.seconds():.0f} s"]
            what = f"sampling ({', '.join(words)})"
        run.report(what, done, total)

    def judge_all(precision: list[Precision | None] | None = None) -> list[Gate]:
        gates = [
            judge(
                of_problem(blocks, i),
                settings.gate,
                has_energy=driver.has_energy,
                precision=None if precision is None else precision[i],
                regions=sizes,
            )
            for i in range(len(run.run_keys))
        ]
        for fault in sorted(faults):
            gates = [fail(gate, fault) for gate in gates]
        verdict[:] = [stopping.describe(max(gates, key=lambda g: stopping.growth(g, settings)))]
        return gates

    def num_drawn() -> int:
        return sum(block.energy.shape[2] for block in blocks)

    rounds, ended = driver.draw(run._replace(report=report)), ""
    drawn: DrawnBlocks | None = None
    try:
        while True:
            while num_drawn() < wanted:
                if run.clock.left() <= 0 and num_drawn() >= LEAST_DRAWS:
                    raise TimeIsUp
                drawn = next(rounds)
                blocks += drawn.blocks
                faults |= {drawn.fault} - {""}
                if is_heard and num_drawn() < wanted and pace.is_due():
                    judge_all()
                    pace.judged()
                    report("sampling", num_drawn(), most)
            run.report("checks", num_drawn(), most)
            gates = judge_all(check(blocks))
            growth = max(stopping.growth(gate, settings) for gate in gates)
            if growth <= 1 or num_drawn() >= most:
                break
            wanted = min(most, per_round * math.ceil(growth * num_drawn() / per_round))
            report("sampling", num_drawn(), most)
    except (KeyboardInterrupt, TimeIsUp) as error:
        is_interrupt = isinstance(error, KeyboardInterrupt)
        if num_drawn() < LEAST_DRAWS or (is_interrupt and not interruptible):
            raise
        why = (
            "interrupted" if is_interrupt else f"budget of {run.clock.max_seconds:g} seconds spent"
        )
        ended = f"{why} after {num_drawn()} draws a chain"
        ended += f", with {run.clock.cut_short}" if run.clock.cut_short else ""
        gates = judge_all(check(blocks))
    assert drawn is not None
    shift, step_size = fetch((drawn.shift, drawn.step_size))
    return _Sampled(blocks, gates, shift, step_size, ended)


def _posterior(
    problem: Problem, i: int, run: Run, frame: Frame, sampled: _Sampled,
    locations: Mapping[str, Int[np.ndarray, " Q"]], *, keep_values: bool,
    trials: tuple[Trial, ...],
) -> Posterior:  # fmt: skip
    """The posterior of the i-th problem."""
    blocks, gate = of_problem(sampled.blocks, i), sampled.gates[i]
    num_draws = sum(block.energy.shape[1] for block in blocks)
    return Posterior(
        model=frame.original,
        regions=predictive_moments(problem, frame.original, blocks, sampled.shift[i]),
        gate=gate,
        draws=frame.theta(kept_draws(blocks, run.settings.num_kept), i),
        values=kept_values(problem, blocks, locations) if keep_values else None,
        locations=locations,
        num_chains=run.settings.chains,
        num_draws=num_draws,
        num_gradients=int(sum(block.num_gradients.sum() for block in blocks)),
        step_size=sampled.step_size[i],
        acceptance=float(np.mean([block.acceptance.mean() for block in blocks])),
        coordinates=run.coordinates.name,
        sampler=run.settings.sampler,
        stopped=stopping.why_stopped(gate, num_draws, run.settings, sampled.ended),
        trials=trials,
    )


def _identity(
    problems: Sequence[Problem],
    frame: Frame,
    keys: Sequence[Key[jax.Array, ""]],
    settings: SamplerSettings,
) -> dict[str, Any]:
    """Everything that must agree for a checkpoint to be resumed."""
    digest = hashlib.sha256()
    regions = [a for p in problems for a in p.regions.values()]
    for array in (*frame.data, *regions, *map(jax.random.key_data, keys)):
        digest.update(repr(np.shape(array)).encode() + np.ascontiguousarray(array).tobytes())
    made_by = provenance()
    stored = dataclasses.asdict(settings) | {"num_chains": settings.chains}
    # A longer budget goes on from a shorter one.
    budget = ("max_draws", "max_seconds", "chains_per_device", "check_modes", "check_modes_up_to")
    for name in budget:
        del stored[name]
    return {
        "settings": stored,
        "model": dataclasses.asdict(frame.original),
        "data_and_keys": digest.hexdigest(),
        "versions": made_by["versions"],
        "device": {k: made_by["device"][k] for k in ("platform", "kind", "x64")},
    }
