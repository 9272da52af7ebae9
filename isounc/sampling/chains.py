"""Chains of a transition: their start, windows of warm-up, blocks of draws, as compiled programs.

Everything between two programs is one pytree, `RunState`, which is what a checkpoint holds. Data
and coordinates are arguments, so that one compilation serves all problems of a shape. The axes are
(problem B, chain K).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from isounc.densities import Data
from isounc.models import Model
from isounc.sampling.adaptation import Tuning, count_draws, end_window, start_tuning
from isounc.sampling.coordinates import Coordinates
from isounc.sampling.integrator import Remainder
from isounc.sampling.kernels import ChainState, Sampler, StepInfo, start_chains
from isounc.sampling.moments import Block
from isounc.sampling.run import (
    DrawnBlocks,
    Forecast,
    MomentSums,
    Run,
    fetch,
    observe,
    on_one_cpu,
    one_by_one,
    randomness,
    spread,
    thinning,
)
from isounc.sampling.settings import SamplerSettings

WARM_WINDOWS = 4
"""Windows of equal length: step size; step size and metric, twice; step size."""
SERIAL_WORK = 40_000
"""Examples times parameters from which on a CPU core is faster with one chain after the other."""
LOW_RANK_DRAWS = 256
"""About so many draws go into a low-rank metric."""


class RunState(NamedTuple):
    """The chains of a run between two programs."""

    coordinates: Coordinates
    """Coordinates of each problem."""
    chains: ChainState
    """Chains of each problem."""
    tuning: Tuning
    """Adapted quantities of each problem."""
    shift: Float[Array, "B N M"]
    """Moments are accumulated about this, near the mean, so that float32 does not cancel."""


def is_serial(model: Model, data: Data) -> bool:
    """Whether chains are moved one by one.

    Batched products of small matrices are slow on CPUs, and under `vmap` every tree waits for the
    deepest.
    """
    return on_one_cpu() and data.X.shape[1] * model.num_params >= SERIAL_WORK


def _mover(sampler: Sampler, settings: SamplerSettings, serial: bool) -> Callable[..., Any]:
    """The sampler's transition of all chains, at once or one by one."""

    def together(
        key: PRNGKeyArray, chains: ChainState, tuning: Tuning, u: Float[Array, ""],
        remainder: Remainder,
    ) -> tuple[ChainState, StepInfo, Any]:  # fmt: skip
        return sampler.transition(key, chains, tuning, u, remainder, settings)

    def apart(
        key: PRNGKeyArray, chains: ChainState, tuning: Tuning, u: Float[Array, ""],
        remainder: Remainder,
    ) -> tuple[ChainState, StepInfo, Any]:  # fmt: skip
        def move(key: PRNGKeyArray, chain: ChainState) -> tuple[ChainState, StepInfo, Any]:
            alone = jax.tree.map(lambda a: a[None], chain)
            moved = sampler.transition(key, alone, tuning, u, remainder, settings)
            return jax.tree.map(lambda a: a[0], moved)

        return one_by_one(move)(jax.random.split(key, len(chains.x)), chains)

    return apart if serial else together


@functools.partial(jax.jit, static_argnames=("model", "settings", "sampler"))
def start(
    coordinates: Coordinates, data: Data, X: Float[Array, "B N D"], keys: Key[Array, " B"],
    *, model: Model, settings: SamplerSettings, sampler: Sampler,
) -> RunState:  # fmt: skip
    """Chains where the coordinates start them, nothing adapted."""

    def start_problem(
        coordinates: Coordinates, data: Data, X: Float[Array, "N D"], key: PRNGKeyArray
    ) -> tuple[ChainState, Tuning, Float[Array, "N M"]]:
        z = jax.random.normal(key, (settings.chains, model.num_params), data.X.dtype)
        x = jax.vmap(coordinates.start)(z)
        chains = start_chains(x, lambda x: coordinates.remainder(x, model, data))
        extra = sampler.begin(model.num_params, settings)
        tuning = start_tuning(model.num_params, data.X.dtype, settings, extra=extra)
        return chains, tuning, _mean_prediction(chains, coordinates, data, X, model)

    return RunState(coordinates, *jax.vmap(start_problem)(coordinates, data, X, keys))


@functools.partial(jax.jit, static_argnames=("model", "settings", "sampler", "serial"))
def warm_up(
    state: RunState, data: Data, X: Float[Array, "B N D"], keys: Key[Array, "B S"],
    u: Float[Array, " S"],
    *, model: Model, settings: SamplerSettings, sampler: Sampler, serial: bool,
) -> tuple[RunState, tuple[Float[Array, "B T P"], Float[Array, "B T P"]] | None]:  # fmt: skip
    """A window of warm-up, in which the step size adapts; and draws and gradients for a metric.

    Only the low-rank metric needs these, T of each problem; the others need pooled moments.
    """
    thin = max(1, len(u) * settings.chains // LOW_RANK_DRAWS)
    over = one_by_one if serial else jax.vmap
    move = _mover(sampler, settings, serial)

    def warm_up_problem(
        coordinates: Coordinates, chains: ChainState, tuning: Tuning, data: Data,
        X: Float[Array, "N D"], keys: Key[Array, " S"],
    ) -> tuple[ChainState, Tuning, Float[Array, "N M"], Any]:  # fmt: skip
        def remainder(x: Float[Array, " P"]) -> Float[Array, ""]:
            return coordinates.remainder(x, model, data)

        def transition(carry: tuple[ChainState, Tuning], xs: tuple[PRNGKeyArray, Array]):
            chains, tuning = carry
            key, u = xs
            moved, info, proposal = move(key, chains, tuning, u, remainder)
            tuning = sampler.adapt(tuning, chains, proposal, info, u, settings)
            seen = (moved.x, moved.gradient) if settings.metric == "low_rank" else None
            return (moved, count_draws(tuning, moved.x)), seen

        (chains, tuning), seen = jax.lax.scan(transition, (chains, tuning), (keys, u))
        if seen is not None:
            seen = tuple(a[::thin].reshape(-1, a.shape[-1]) for a in seen)
        return chains, tuning, _mean_prediction(chains, coordinates, data, X, model), seen

    parts = (state.coordinates, state.chains, state.tuning, data, X, keys)
    chains, tuning, shift, seen = over(warm_up_problem)(*parts)
    return RunState(state.coordinates, chains, tuning, shift), seen


@functools.partial(jax.jit, static_argnames=("settings", "adapt_metric"))
def tune(
    state: RunState, seen: tuple[Float[Array, "B T P"], Float[Array, "B T P"]] | None,
    *, settings: SamplerSettings, adapt_metric: bool,
) -> RunState:  # fmt: skip
    """The end of a window: the step size, and the metric if asked to, are taken over."""

    def tune_problem(
        tuning: Tuning, seen: tuple[Float[Array, "T P"], Float[Array, "T P"]] | None
    ) -> Tuning:
        draws, gradients = seen or (None, None)
        tuned = end_window(tuning, draws, gradients, settings)
        return tuned if adapt_metric else tuned._replace(metric=tuning.metric)

    return state._replace(tuning=jax.vmap(tune_problem)(state.tuning, seen))


def _mean_prediction(
    chains: ChainState, coordinates: Coordinates, data: Data, X: Float[Array, "N D"], model: Model
) -> Float[Array, "N M"]:
    """Mean over the chains of what they predict at X."""

    def predict(x: Float[Array, " P"]) -> Float[Array, "N M"]:
        return model.predict(coordinates.theta(x, model, data), X)

    return jax.vmap(predict)(chains.x).mean(0)


@functools.partial(jax.jit, static_argnames=("model", "settings", "sampler", "serial"))
def draw_block(
    state: RunState, data: Data, X: Float[Array, "B N D"], fixed: Int[Array, " Q"],
    keys: Key[Array, "B S"], u: Float[Array, " S"],
    *, model: Model, settings: SamplerSettings, sampler: Sampler, serial: bool,
) -> tuple[RunState, Block]:  # fmt: skip
    """A block of S draws: mean predictions at X, all of them at its rows `fixed`, thinned theta."""
    keep_every = thinning(settings)
    over = one_by_one if serial else jax.vmap
    move = _mover(sampler, settings, serial)

    def draw_problem(
        coordinates: Coordinates, chains: ChainState, tuning: Tuning, shift: Float[Array, "N M"],
        data: Data, X: Float[Array, "N D"], keys: Key[Array, " S"],
    ) -> tuple[ChainState, Block]:  # fmt: skip
        def remainder(x: Float[Array, " P"]) -> Float[Array, ""]:
            return coordinates.remainder(x, model, data)

        def predict(x: Float[Array, " P"]) -> tuple[MomentSums, Float[Array, " QM"]]:
            theta = coordinates.theta(x, model, data)
            sums, p = observe(theta, shift, X, model, data)
            return sums, p[fixed].ravel()

        def transition(carry: tuple[ChainState, Any], xs: tuple[PRNGKeyArray, Array]):
            chains, sums = carry
            key, u = xs
            chains, info, _ = move(key, chains, tuning, u, remainder)
            added, values = over(predict)(chains.x)
            return (chains, jax.tree.map(jnp.add, sums, added)), (values, info)

        def stretch(carry: tuple[ChainState, Any], xs: tuple[Key[Array, " T"], Array]):
            """Transitions up to the next theta that is kept."""
            carry, seen = jax.lax.scan(transition, carry, xs)
            theta = jax.vmap(lambda x: coordinates.theta(x, model, data))(carry[0].x)
            return carry, (seen, theta)

        shapes = jax.eval_shape(lambda x: jax.vmap(predict)(x)[0], chains.x)
        sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        xs = jax.tree.map(lambda a: a.reshape(-1, keep_every, *a.shape[1:]), (keys, u))
        (chains, sums), ((values, info), draws) = jax.lax.scan(stretch, (chains, sums), xs)
        mean, square, aleatoric, entropy = (s / len(u) for s in sums)
        # (stretches, transitions, K, ...) to (K, draws, ...)
        values, info = jax.tree.map(
            lambda a: jnp.moveaxis(a.reshape(len(u), *a.shape[2:]), 0, 1), (values, info)
        )
        return chains, Block(
            shifted_mean=mean,
            shifted_square=square,
            aleatoric=aleatoric,
            entropy=entropy,
            values=values,
            draws=jnp.moveaxis(draws, 0, 1),
            energy=info.energy,
            divergent=info.divergent.sum(1),
            saturated=info.saturated.sum(1),
            acceptance=info.acceptance.mean(1),
            num_gradients=info.num_gradients.sum(1),
            position=chains.x,
            log_density=chains.remainder,
        )

    coordinates, chains, tuning, shift = state
    chains, block = over(draw_problem)(coordinates, chains, tuning, shift, data, X, keys)
    return state._replace(chains=chains), block


@dataclass(frozen=True)
class ChainDriver:
    """K chains of a transition: four windows of warm-up, then block after block."""

    sampler: Sampler
    """The transition."""

    @property
    def has_energy(self) -> bool:
        """As the transition says."""
        return self.sampler.has_energy

    def blocks_per_round(self, settings: SamplerSettings) -> int:
        """One: chains can stop after any block."""
        return 1

    def forecast(self, settings: SamplerSettings, *, num_params: int) -> Forecast:
        """Transitions of warm-up and draws; in memory are the draws alone."""
        return Forecast(num_transitions=settings.num_warmup + settings.num_draws, num_floats=0)

    def draw(self, run: Run) -> Iterator[DrawnBlocks]:
        """Block after block of the chains; a checkpoint has every window and block."""
        settings, data, X, checkpoint = run.settings, run.data, run.X, run.checkpoint
        total = settings.block * math.ceil(settings.max_draws / settings.block)
        static: dict[str, Any] = {
            "model": run.model,
            "settings": settings,
            "sampler": self.sampler,
        }
        serial = is_serial(run.model, data)
        make_block = functools.partial(draw_block, **static, serial=serial)
        state = start(run.coordinates, data, X, run.start_keys, **static)
        step, blocks = -1, []
        if checkpoint:
            xs = randomness(run.run_keys, 0, settings.block, X.dtype)
            like = jax.eval_shape(make_block, state, data, X, run.fixed, *xs)[1]
            step, state, blocks = checkpoint.load(state, like, WARM_WINDOWS)
            state = jax.tree.map(jnp.asarray, state)
        state = state._replace(chains=spread(state.chains))

        while step + 1 < WARM_WINDOWS:
            step += 1
            run.report("warm-up", 0, settings.max_draws)
            length = math.ceil(settings.num_warmup / WARM_WINDOWS)
            xs = randomness(run.run_keys, step, length, X.dtype)
            state, seen = warm_up(state, data, X, *xs, **static, serial=serial)
            state = tune(state, seen, settings=settings, adapt_metric=0 < step < WARM_WINDOWS - 1)
            if checkpoint:
                checkpoint.save(step, fetch(state))

        step_size = jnp.repeat(state.tuning.step_size[:, None], settings.chains, 1)
        for block in blocks:
            yield DrawnBlocks([block], state.shift, step_size, stored=True)
        while True:
            step += 1
            xs = randomness(run.run_keys, step, settings.block, X.dtype)
            state, block = make_block(state, data, X, run.fixed, *xs)
            block = fetch(block)
            if checkpoint:
                checkpoint.save(step, fetch(state), block)
            run.report("sampling", (step + 1 - WARM_WINDOWS) * settings.block, total)
            yield DrawnBlocks([block], state.shift, step_size)
