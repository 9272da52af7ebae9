"""The driver of tempered particles: round after round, each in parts along the temperatures."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from isounc.densities import Data
from isounc.sampling import smc
from isounc.sampling.clock import TimeIsUp
from isounc.sampling.coordinates import Coordinates
from isounc.sampling.cores import share_out
from isounc.sampling.moments import Block
from isounc.sampling.parts import Parts, Stage, wait
from isounc.sampling.run import (
    DrawnBlocks,
    Forecast,
    Run,
    fetch,
    on_one_cpu,
    randomness,
    spread,
)
from isounc.sampling.settings import SamplerSettings

TEMPERATURES = 8
"""Number of temperatures that forecasts assume: that of xor at width 2."""
CPU_WORK, WORK = 2**20, 2**28
"""Examples times parameters, over all particles that are moved together: a CPU's cache holds the
first, a device's memory the second."""
UNTEMPERED = "the time was spent before the particles had come from the prior to the posterior"
"""Fault of particles whose temperatures were cut short."""


def _together(run: Run, serial: bool) -> int:
    """How many particles of a run are moved at the same time; it divides S."""
    count = smc.num_particles(run.settings)
    work = run.data.X.shape[1] * run.model.num_params
    most = CPU_WORK / work if serial else WORK / (work * len(run.data.X) * run.settings.chains)
    return next(k for k in range(max(1, min(count, int(most))), 0, -1) if count % k == 0)


@dataclass(frozen=True)
class SMCDriver:
    """Rounds of K runs, each of fresh particles; a chain has one run of each round in turn."""

    has_energy: bool = False
    """Particles have no Hamiltonian that goes from draw to draw."""

    def blocks_per_round(self, settings: SamplerSettings) -> int:
        """The values of all S particles of a run."""
        return smc.num_particles(settings) // settings.block

    def forecast(self, settings: SamplerSettings, *, num_params: int) -> Forecast:
        """Transitions of all particles at all temperatures; in memory are particles and gradients.

        Both are there twice while they are resampled.
        """
        return Forecast(
            num_transitions=TEMPERATURES * settings.num_mutations * settings.num_draws,
            num_floats=4 * settings.num_draws * settings.chains * num_params,
        )

    def draw(self, run: Run) -> Iterator[DrawnBlocks]:
        """Round after round; a checkpoint has whole ones, and parts of the next.

        Where the time is spent within the first, its particles are not yet draws of the posterior:
        they are yielded with this fault.
        """
        settings, data, X, checkpoint = run.settings, run.data, run.X, run.checkpoint
        static: dict[str, Any] = {"model": run.model, "settings": settings.of_programs}
        size = smc.num_particles(settings)
        total = size * math.ceil(settings.max_draws / size)
        starts = range(0, size, settings.block)

        def collect(particles: Any, shift: Any, first: int | Int[Array, ""]) -> Block:
            return smc.collect_block(
                particles, run.coordinates, data, X, run.fixed, shift, first, **static
            )

        number, shift, fault = -1, jnp.zeros(()), ""
        if checkpoint:
            start_shape = functools.partial(smc.start, **static, together=size)
            like = jax.eval_shape(start_shape, run.coordinates, data, run.run_keys)
            center_shape = functools.partial(smc.center, model=run.model)
            shift = jax.eval_shape(center_shape, like, run.coordinates, data, X)
            blocks = [jax.eval_shape(collect, like, shift, first) for first in starts]
            number, (shift, step_size), rounds = checkpoint.load((shift, like.step_size), blocks, 0)
            for blocks in rounds:
                yield DrawnBlocks(blocks, shift, step_size)
        parts = Parts(run)
        while not fault:
            number += 1
            done = size * number
            try:
                particles = _temper(run, parts, number, done, total)
            except TimeIsUp:
                if number:
                    raise
                particles = parts.stage.state[0]
                reached = float(fetch(particles.temperature).min())
                fault = f"{UNTEMPERED} (on the way to lambda {reached:.2g})"

            def tell(done: int = done) -> None:
                run.report("sampling", done, total)

            if number == 0:
                shift = smc.center(particles, run.coordinates, data, X, model=run.model)
            blocks = [fetch(wait(collect(particles, shift, first), tell)) for first in starts]
            if checkpoint and not fault:
                checkpoint.save(number, fetch((shift, particles.step_size)), blocks)
            tell(size * (number + 1))
            yield DrawnBlocks(blocks, shift, particles.step_size, fault)
        raise TimeIsUp


def _temper(run: Run, parts: Parts, number: int, done: int, total: int) -> smc.Particles:
    """The particles of a round, at lambda = 1."""
    settings, serial = run.settings, on_one_cpu()
    static: dict[str, Any] = {
        "model": run.model,
        "settings": settings.of_programs,
        "together": _together(run, serial),
    }
    keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(run.run_keys)
    start_keys, _ = randomness(keys, 0, 1, run.X.dtype)
    reached, num_moves = 0.0, 1

    def tell(moves: int) -> None:
        words = f"{moves / num_moves:.0%}, {run.clock.seconds():.0f} s"
        run.report(f"tempering to lambda {reached:.2g} ({words})", done, total)

    tell(0)
    particles = spread(smc.start(run.coordinates, run.data, start_keys[:, 0], **static))
    wait(particles, lambda: tell(0))
    num_moves = smc.num_moves(settings, together=static["together"])
    # The step is the number of temperatures that the particles have begun.
    (particles, step), moves = parts.begin(number, (particles, jnp.zeros((), jnp.int32)))
    reached = float(fetch(particles.temperature).min())
    if moves == 0:
        moves = num_moves
    while moves < num_moves or reached < 1:
        if moves == num_moves:
            if not jnp.isfinite(particles.chains.remainder).any(-1).all():
                raise ValueError(
                    "the log likelihood must be finite at some particle of each run, got none at "
                    f"lambda {reached:.3g}"
                )
            step += 1
        step_keys, u = randomness(keys, int(step), settings.num_mutations, run.X.dtype)
        step_keys = step_keys[:, 0]
        if moves == num_moves:
            moves = 0
            particles = smc.reweigh(particles, step_keys, settings=static["settings"])
            before, reached = reached, float(fetch(particles.temperature).min())
            if not reached > before:
                raise ValueError(
                    "tempering_ess must be low enough for lambda to rise, got "
                    f"{settings.tempering_ess} at lambda {before:.3g}"
                )
            parts.stage = Stage((particles, step), 0)

        def more(state: Any, first: int, count: int, keys: Any = step_keys, u: Any = u) -> Any:
            given = (state[0], run.coordinates, run.data, smc.mutation_keys(keys, settings))
            return mutate_all(given, first, count, u, serial=serial, **static), state[1]

        try:
            particles, step = parts.work(more, num_moves, tell=tell, until=run.clock.max_seconds)
        except (KeyboardInterrupt, TimeIsUp):
            parts.store()
            raise
        moves = num_moves
        tell(moves)
    return particles


def mutate_all(
    given: tuple[smc.Particles, Coordinates, Data, Key[Array, "B K"]], first: int, count: int,
    u: Float[Array, " T"], *, serial: bool, **static: Any,
) -> smc.Particles:  # fmt: skip
    """`smc.mutate` of all runs at once, or, if `serial`, of each by itself, on all cores."""
    particles, coordinates, data, keys = given
    if not serial:
        return smc.mutate(particles, first, count, coordinates, data, keys, u, **static)
    particles, coordinates, data = fetch((particles, coordinates, data))

    def one(i: int) -> smc.Particles:
        b, k = divmod(i, keys.shape[1])
        its, *of_problem = (
            jax.tree.map(lambda a, at=at: a[at], tree)
            for tree, at in ((particles, (b, k)), (coordinates, b), (data, b))
        )
        return smc.mutate(its, first, count, *of_problem, keys[b, k], u, **static)

    moved = share_out(one, keys.size)
    return jax.tree.map(lambda *runs: jnp.stack(runs).reshape(*keys.shape, *runs[0].shape), *moved)
