"""Chains of a transition: their start, windows of warm-up, blocks of draws, as compiled programs.

Everything between two programs is one pytree, `RunState`, which is what a checkpoint holds. Data
and coordinates are arguments, so that one compilation serves all problems of a shape. The axes are
(problem B, chain K).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from isounc.densities import Data
from isounc.models import Model
from isounc.sampling.adaptation import Tuning, count_draws, end_window, start_tuning
from isounc.sampling.coordinates import Coordinates
from isounc.sampling.integrator import Remainder
from isounc.sampling.kernels import ChainState, Sampler, StepInfo, start_chains
from isounc.sampling.moments import Block
from isounc.sampling.retries import chain_by_chain
from isounc.sampling.run import (
    MomentSums,
    fetch,
    observe,
    on_one_cpu,
    one_by_one,
    spread,
    thinning,
    together,
)
from isounc.sampling.settings import SamplerSettings

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

    def at_once(
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

    return apart if serial else at_once


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


class Window(NamedTuple):
    """A window of warm-up so far."""

    state: RunState
    """The chains, and what they have adapted."""
    draws: Float[Array, "B K T P"]
    """Thinned positions, with T = 0 unless the metric needs them (the others need pooled moments)."""
    gradients: Float[Array, "B K T P"]
    """Gradients of the remainder there."""
    log_first: Float[Array, " B"]
    """log lambda_1 of each problem, with which the window begins; 0 where it does not anneal."""


def _kept_for_metric(settings: SamplerSettings, length: int) -> tuple[int, int]:
    """The thinning interval of a window's draws, and the number of draws that it keeps."""
    thin = max(1, length * settings.chains // LOW_RANK_DRAWS)
    return thin, math.ceil(length / thin) if settings.metric == "low_rank" else 0


def begin_window(
    state: RunState, settings: SamplerSettings, length: int, *, anneal: bool = False
) -> Window:
    """A window before its first transition; `anneal` those problems that are far away."""
    x = state.chains.x
    kept = jnp.zeros((*x.shape[:2], _kept_for_metric(settings, length)[1], x.shape[2]), x.dtype)
    log_first = np.zeros(len(x))
    if anneal:
        depth = mean_depth(np.asarray(fetch(state.chains.remainder), float))
        is_far = depth > settings.anneal_above
        log_first = np.where(is_far, -np.log(np.maximum(depth, 1)), 0.0)
    return Window(state, spread(kept), spread(kept), jnp.asarray(log_first, x.dtype))


def mean_depth(r: Float[np.ndarray, "B K"]) -> Float[np.ndarray, " B"]:
    """Mean distance of the finite r of chains from that of the best; 0 where there are no two."""
    finite = np.isfinite(r)
    best = np.where(finite, r, -np.inf).max(1, keepdims=True)
    below = np.where(finite, np.where(np.isfinite(best), best, 0.0) - np.where(finite, r, 0.0), 0.0)
    return below.sum(1) / np.maximum(finite.sum(1) - 1, 1)


@functools.partial(jax.jit, static_argnames=("model", "settings", "sampler", "serial"))
def warm_up(
    window: Window, first: int | Int[Array, ""], count: int | Int[Array, ""], data: Data,
    X: Float[Array, "B N D"], keys: Key[Array, "B S"], u: Float[Array, " S"],
    *, model: Model, settings: SamplerSettings, sampler: Sampler, serial: bool,
) -> Window:  # fmt: skip
    """Transitions `first` to `first + count` of a window of warm-up; the step size adapts.

    A chain that begins at a draw of the prior falls into whatever is near: by thousands of tiny
    steps, and sometimes for good into a place without mass. So transitions t = 1, ..., T of a
    window that anneals take it from the prior to the posterior along (Neal 1996)

        N(x; 0, I) exp(lambda_t r(x)),    lambda_t = lambda_1^((T - t) / (T - 1)).

    Temperatures are geometric, for which a posterior that is about Gaussian changes at an even
    pace.
    """
    thin, num_kept = _kept_for_metric(settings, len(u))
    put = jax.lax.dynamic_update_index_in_dim
    over = one_by_one if serial else together
    move = _mover(sampler, settings, serial)

    def warm_up_problem(
        window: Window, data: Data, X: Float[Array, "N D"], keys: Key[Array, " S"]
    ) -> Window:
        coordinates = window.state.coordinates

        def transition(i: Int[Array, ""], carry: tuple[ChainState, Tuning, Array, Array]):
            chains, tuning, *kept = carry
            temperature = jnp.exp(window.log_first * ((len(u) - 1 - i) / max(len(u) - 1, 1)))

            def remainder(x: Float[Array, " P"]) -> Float[Array, ""]:
                return temperature * coordinates.remainder(x, model, data)

            before = ChainState(
                chains.x, temperature * chains.remainder, temperature * chains.gradient
            )
            moved, info, proposal = move(keys[i], before, tuning, u[i], remainder)
            tuning = sampler.adapt(tuning, before, proposal, info, u[i], settings)
            # Where a chain stays r stays as it is, so that rounding does not add up.
            stays = (moved.x == before.x).all(1)
            warm = ChainState(moved.x, moved.remainder / temperature, moved.gradient / temperature)
            moved = chain_by_chain(stays, chains, warm)
            if num_kept:
                seen = (moved.x, moved.gradient)
                kept = [put(a, b, i // thin, 1) for a, b in zip(kept, seen, strict=True)]
            return moved, count_draws(tuning, moved.x), *kept

        carry = (window.state.chains, window.state.tuning, window.draws, window.gradients)
        chains, tuning, *kept = jax.lax.fori_loop(first, first + count, transition, carry)
        draws, gradients = kept
        shift = _mean_prediction(chains, coordinates, data, X, model)
        state = RunState(coordinates, chains, tuning, shift)
        return Window(state, draws, gradients, window.log_first)

    return over(warm_up_problem)(window, data, X, keys)


@functools.partial(jax.jit, static_argnames=("settings", "adapt_metric", "retries"))
def tune(
    window: Window, *, settings: SamplerSettings, adapt_metric: bool, retries: bool
) -> RunState:
    """The end of a window: the step size is taken over, and if asked to the metric.

    `retries` says whether trajectories are tried again from now on.
    """

    def tune_problem(
        tuning: Tuning, draws: Float[Array, "K T P"], gradients: Float[Array, "K T P"]
    ) -> Tuning:
        draws, gradients = (a.reshape(-1, a.shape[-1]) for a in (draws, gradients))
        tuned = end_window(tuning, draws, gradients, settings)
        tuned = tuned if adapt_metric else tuned._replace(metric=tuning.metric)
        return tuned._replace(retries=jnp.full((), retries))

    state = window.state
    tuning = jax.vmap(tune_problem)(state.tuning, window.draws, window.gradients)
    return state._replace(tuning=tuning)


def _mean_prediction(
    chains: ChainState, coordinates: Coordinates, data: Data, X: Float[Array, "N D"], model: Model
) -> Float[Array, "N M"]:
    """Mean over the chains of what they predict at X."""

    def predict(x: Float[Array, " P"]) -> Float[Array, "N M"]:
        return model.predict(coordinates.theta(x, model, data), X)

    return jax.vmap(predict)(chains.x).mean(0)


def begin_block(
    state: RunState, X: Float[Array, "B N D"], fixed: Int[Array, " Q"], settings: SamplerSettings
) -> Block:
    """A block before its first draw; until its last one it has sums in the place of means."""
    chains, (*_, columns) = state.chains.x.shape[:2], state.shift.shape
    everywhere, num_params = (X.shape[1], columns), state.chains.x.shape[2]

    def zeros(*shape: int, dtype: DTypeLike = X.dtype) -> Array:
        return spread(jnp.zeros((*chains, *shape), dtype))

    return Block(
        shifted_mean=zeros(*everywhere),
        shifted_square=zeros(*everywhere),
        aleatoric=zeros(*everywhere),
        entropy=zeros(X.shape[1]),
        values=zeros(settings.block, len(fixed) * columns),
        draws=zeros(settings.block // thinning(settings), num_params),
        energy=zeros(settings.block),
        divergent=zeros(dtype=jnp.int32),
        saturated=zeros(dtype=jnp.int32),
        acceptance=zeros(),
        num_gradients=zeros(dtype=jnp.int32),
    )


@functools.partial(jax.jit, static_argnames=("model", "settings", "sampler"))
def draw(
    begun: tuple[ChainState, Block], first: int | Int[Array, ""], count: int | Int[Array, ""],
    coordinates: Coordinates, tuning: Tuning, shift: Float[Array, "B N M"], data: Data,
    X: Float[Array, "B N D"], fixed: Int[Array, " Q"], keys: Key[Array, "B S"],
    u: Float[Array, " S"], group: int | Int[Array, ""] | None,
    *, model: Model, settings: SamplerSettings, sampler: Sampler,
) -> tuple[ChainState, Block]:  # fmt: skip
    """Draws `first` to `first + count` of a block of S, of all chains or a group of them.

    They are mean predictions at X, all predictions at its rows `fixed`, and thinned theta.
    """
    keep_every = thinning(settings)
    put = jax.lax.dynamic_update_index_in_dim

    def draw_problem(
        begun: tuple[ChainState, Block], coordinates: Coordinates, tuning: Tuning,
        shift: Float[Array, "N M"], data: Data, X: Float[Array, "N D"], keys: Key[Array, " S"],
    ) -> tuple[ChainState, Block]:  # fmt: skip
        def remainder(x: Float[Array, " P"]) -> Float[Array, ""]:
            return coordinates.remainder(x, model, data)

        def predict(
            x: Float[Array, " P"],
        ) -> tuple[MomentSums, Float[Array, " QM"], Float[Array, " P"]]:
            theta = coordinates.theta(x, model, data)
            sums, p = observe(theta, shift, X, model, data)
            return sums, p[fixed].ravel(), theta

        def transition(i: Int[Array, ""], carry: tuple[ChainState, Block]):
            chains, block = carry
            key = keys[i] if group is None else jax.random.fold_in(keys[i], group)
            chains, info, _ = sampler.transition(key, chains, tuning, u[i], remainder, settings)
            sums, values, theta = together(predict)(chains.x)
            mean, square, aleatoric, entropy = sums
            added = block._replace(
                shifted_mean=block.shifted_mean + mean,
                shifted_square=block.shifted_square + square,
                aleatoric=block.aleatoric + aleatoric,
                entropy=block.entropy + entropy,
                values=put(block.values, values, i, 1),
                # The last of each stretch stays.
                draws=put(block.draws, theta, i // keep_every, 1),
                energy=put(block.energy, jnp.asarray(info.energy), i, 1),
                divergent=block.divergent + info.divergent,
                saturated=block.saturated + info.saturated,
                acceptance=block.acceptance + info.acceptance,
                num_gradients=block.num_gradients + info.num_gradients,
            )
            return chains, jax.tree.map(lambda a, b: a.astype(b.dtype), added, block)

        return jax.lax.fori_loop(first, first + count, transition, begun)

    return together(draw_problem)(begun, coordinates, tuning, shift, data, X, keys)


def end_block(state: RunState, block: Block, done: int, settings: SamplerSettings) -> Block:
    """The block on the host, after its last draw; those after `done` are missing."""
    block, chains = fetch((block, state.chains))
    return block._replace(
        shifted_mean=block.shifted_mean / done,
        shifted_square=block.shifted_square / done,
        aleatoric=block.aleatoric / done,
        entropy=block.entropy / done,
        values=block.values[:, :, :done],
        draws=block.draws[:, :, : math.ceil(done / thinning(settings))],
        energy=block.energy[:, :, :done],
        acceptance=block.acceptance / done,
        position=chains.x,
        log_density=chains.remainder,
    )
