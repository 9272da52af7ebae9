"""The compiled programs of a sampling run: start, a window of warm-up, a block of draws; where they run; and the run.

Everything between two programs is one pytree, `State`, which is what a checkpoint holds. Data and coordinates are
arguments, so that one compilation serves all problems of a shape. The axes are (problem B, chain K).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from isounc.densities import Data
from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model
from isounc.sampling.checkpoint import Checkpoint
from isounc.sampling.coordinates import Coordinates
from isounc.sampling.kernels import (
    SAMPLERS,
    Chains,
    Sampler,
    Tuning,
    count_draws,
    end_window,
    start_chains,
    start_tuning,
)
from isounc.sampling.moments import Block
from isounc.sampling.settings import SamplerSettings

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how far it is, and how far it may go."""

WARM_WINDOWS = 4
"""Of equal length: step size; step size and metric, twice; step size."""


class Run(NamedTuple):
    """What is to be sampled, how, and who is told."""

    coordinates: Coordinates
    """Coordinates of each problem."""
    data: Data
    """Data of each problem, stacked."""
    X: Float[Array, "B N D"]
    """Locations of each problem, all regions one after the other."""
    rows: Array
    """Those of them where every value is kept."""
    start_keys: PRNGKeyArray
    """A key of each problem for where chains begin."""
    run_keys: PRNGKeyArray
    """Another for all that follows."""
    model: Model
    """The model."""
    settings: SamplerSettings
    """`isounc.sampling.posterior.SamplerSettings`."""
    saved: Checkpoint | None
    """Where the run is stored."""
    report: Progress
    """Who is told."""


class Drawn(NamedTuple):
    """Blocks of draws, and what else the result needs."""

    blocks: list[Block]
    """One or more, on the host."""
    shift: Float[Array, "B N M"]
    """Their moments are about this; the same for all blocks of a run."""
    step_size: Float[Array, "B K"]
    """Step size of each chain."""
    stored: bool = False
    """Whether they come from a checkpoint."""


class State(NamedTuple):
    """Where the chains of a sampling run stand."""

    coordinates: Coordinates
    """Coordinates of each problem."""
    chains: Chains
    """Chains of each problem."""
    tuning: Tuning
    """What warm-up has adapted, of each problem."""
    shift: Float[Array, "B N M"]
    """Moments are accumulated about this, near the mean, so that float32 does not cancel."""


SERIAL_WORK = 40_000
"""Examples times parameters from which on a CPU core is better off with one chain after the other."""


def is_serial(model: Model, data: Data) -> bool:
    """Whether chains are moved one by one: batched products of small matrices are slow on CPUs, and trees wait."""
    return on_one_cpu() and data.X.shape[1] * model.num_params >= SERIAL_WORK


def on_one_cpu() -> bool:
    """Whether nothing is gained by doing things at the same time."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def one_by_one(function):
    """`jax.vmap` over the first axis, one after the other."""
    return lambda *args: jax.lax.map(lambda xs: function(*xs), args)


def _mover(sampler: Sampler, settings: SamplerSettings, serial: bool):
    """The sampler's transition of all chains, at once or one by one."""

    def together(key, chains, tuning, u, remainder):
        return sampler.transition(key, chains, tuning, u, remainder, settings)

    def apart(key, chains, tuning, u, remainder):
        def one(key, chain):
            alone = jax.tree.map(lambda a: a[None], chain)
            moved = sampler.transition(key, alone, tuning, u, remainder, settings)
            return jax.tree.map(lambda a: a[0], moved)

        return one_by_one(one)(jax.random.split(key, len(chains.x)), chains)

    return apart if serial else together


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def start(coordinates, data: Data, X, keys, *, model: Model, settings: SamplerSettings) -> State:
    """Chains where the coordinates start them, nothing adapted."""

    def one(coordinates, data, X, key):
        z = jax.random.normal(key, (settings.chains, model.num_params), data.X.dtype)
        x = jax.vmap(coordinates.start)(z)
        chains = start_chains(x, lambda x: coordinates.remainder(x, model, data))
        tuning = start_tuning(model.num_params, data.X.dtype, SAMPLERS[settings.sampler], settings)
        return chains, tuning, _mean_prediction(chains, coordinates, data, X, model)

    return State(coordinates, *jax.vmap(one)(coordinates, data, X, keys))


@functools.partial(jax.jit, static_argnames=("model", "settings", "serial"))
def window(
    state: State, data: Data, X, keys: PRNGKeyArray, u: Float[Array, " S"],
    *, model: Model, settings: SamplerSettings, serial: bool,
) -> tuple[State, Any]:  # fmt: skip
    """A window of warm-up, in which the step size adapts; and the draws and gradients that a metric needs."""
    sampler = SAMPLERS[settings.sampler]
    # The low-rank metric needs draws and gradients; the others pooled moments only.
    thin = max(1, len(u) * settings.chains // LOW_RANK_DRAWS)
    over = one_by_one if serial else jax.vmap
    move = _mover(sampler, settings, serial)

    def one(coordinates, chains, tuning, data, X, keys):
        def remainder(x):
            return coordinates.remainder(x, model, data)

        def transition(carry, xs):
            chains, tuning = carry
            key, u = xs
            new, info, proposal = move(key, chains, tuning, u, remainder)
            tuning = sampler.adapt(tuning, chains, proposal, info, u, settings)
            seen = (new.x, new.gradient) if settings.metric == "low_rank" else None
            return (new, count_draws(tuning, new.x)), seen

        (chains, tuning), seen = jax.lax.scan(transition, (chains, tuning), (keys, u))
        if seen is not None:
            seen = tuple(a[::thin].reshape(-1, a.shape[-1]) for a in seen)
        return chains, tuning, _mean_prediction(chains, coordinates, data, X, model), seen

    parts = (state.coordinates, state.chains, state.tuning, data, X, keys)
    chains, tuning, shift, seen = over(one)(*parts)
    return State(state.coordinates, chains, tuning, shift), seen


@functools.partial(jax.jit, static_argnames=("settings", "adapt_metric"))
def tune(state: State, seen: Any, *, settings: SamplerSettings, adapt_metric: bool) -> State:
    """The end of a window: the step size, and the metric if asked to, are taken over."""

    def one(tuning, seen):
        draws, gradients = seen or (None, None)
        tuned = end_window(tuning, draws, gradients, settings)
        return tuned if adapt_metric else tuned._replace(metric=tuning.metric)

    return state._replace(tuning=jax.vmap(one)(state.tuning, seen))


LOW_RANK_DRAWS = 256
"""About so many draws go into a low-rank metric."""


def _mean_prediction(chains, coordinates, data, X, model):
    def one(x):
        return model.predict(coordinates.theta(x, model, data), X)

    return jax.vmap(one)(chains.x).mean(0)


def thinning(settings: SamplerSettings, length: int) -> int:
    """Every how many draws theta is kept, in blocks of that length."""
    keep_every = max(1, settings.num_draws * settings.chains // settings.num_kept)
    return next(k for k in range(keep_every, 0, -1) if length % k == 0)


def observed(theta, shift, X, model: Model, data: Data) -> tuple[Any, Float[Array, "N M"]]:
    """What a draw adds to the moments at X, in the order of `Block`, and what it predicts there."""
    outputs, likelihood = model.apply(theta, X), LIKELIHOODS[model.likelihood]
    p = likelihood.predict(outputs)
    sums = (
        p - shift,
        (p - shift) ** 2,
        likelihood.label_variance(outputs, data.noise_sd),
        likelihood.label_entropy(outputs, data.noise_sd),
    )
    return sums, p


@functools.partial(jax.jit, static_argnames=("model", "settings", "serial"))
def block(
    state: State, data: Data, X, rows, keys: PRNGKeyArray, u: Float[Array, " S"],
    *, model: Model, settings: SamplerSettings, serial: bool,
) -> tuple[State, Block]:  # fmt: skip
    """A block of draws: means of what is predicted at X, every value at its ``rows``, thinned draws of theta."""
    sampler = SAMPLERS[settings.sampler]
    keep_every = thinning(settings, len(u))
    over = one_by_one if serial else jax.vmap
    move = _mover(sampler, settings, serial)

    def one(coordinates, chains, tuning, shift, data, X, keys):
        def remainder(x):
            return coordinates.remainder(x, model, data)

        def observe(x):
            theta = coordinates.theta(x, model, data)
            sums, p = observed(theta, shift, X, model, data)
            return sums, p[rows].ravel()

        def transition(carry, xs):
            chains, sums = carry
            key, u = xs
            chains, info, _ = move(key, chains, tuning, u, remainder)
            new, values = over(observe)(chains.x)
            return (chains, jax.tree.map(jnp.add, sums, new)), (values, info)

        def stretch(carry, xs):
            carry, seen = jax.lax.scan(transition, carry, xs)
            theta = jax.vmap(lambda x: coordinates.theta(x, model, data))(carry[0].x)
            return carry, (seen, theta)

        shapes = jax.eval_shape(lambda x: jax.vmap(observe)(x)[0], chains.x)
        sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        xs = jax.tree.map(lambda a: a.reshape(-1, keep_every, *a.shape[1:]), (keys, u))
        (chains, sums), ((values, info), draws) = jax.lax.scan(stretch, (chains, sums), xs)
        mean, square, aleatoric, entropy = (s / len(u) for s in sums)
        # (stretches, transitions, K, ...) to (K, draws, ...)
        values, info = jax.tree.map(
            lambda a: jnp.moveaxis(a.reshape(len(u), *a.shape[2:]), 0, 1), (values, info)
        )
        return chains, Block(
            mean, square, aleatoric, entropy, values, jnp.moveaxis(draws, 0, 1), info.energy,
            info.divergent.sum(1), info.saturated.sum(1), info.acceptance.mean(1),
            info.num_gradients.sum(1),
        )  # fmt: skip

    coordinates, chains, tuning, shift = state
    chains, found = over(one)(coordinates, chains, tuning, shift, data, X, keys)
    return state._replace(chains=chains), found


def randomness(
    keys: PRNGKeyArray, step: int, length: int, dtype: Any
) -> tuple[PRNGKeyArray, Float[Array, " S"]]:
    """Keys (B, S) of a step's transitions, and the uniform numbers that all chains share in each.

    The numbers jitter trajectory lengths. They are the same for all chains, since a vmapped loop waits for the
    longest, and depend on no state, so that each chain is a valid Markov chain.
    """
    keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, step), length))(keys)
    # NumPy's generator: a JAX key of the jitter's own could be a user's key or one derived from it.
    u = np.random.default_rng((_JITTER_SEED, step)).random(length)
    return keys, jnp.asarray(u, dtype)


_JITTER_SEED = 20260329


def spread(tree: Any) -> Any:
    """Arrays (B, K, ...) over all devices (of all hosts), where the number of chains divides by that of the devices."""
    devices = jax.devices()
    if len(devices) == 1 or jax.tree.leaves(tree)[0].shape[1] % len(devices):
        return tree
    mesh = jax.sharding.Mesh(np.array(devices), ("chains",))
    return jax.device_put(
        tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "chains"))
    )


def fetch(tree: Any) -> Any:
    """Arrays of all hosts on this one."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def gather(leaf):
        # What every host has whole must not be joined: it would come back once a host.
        if getattr(leaf, "is_fully_addressable", True):
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(gather, tree)


def draw(run: Run) -> Iterator[Drawn]:
    """Block after block of the chains, after their warm-up; those of a checkpoint come first."""
    settings, saved, report = run.settings, run.saved, run.report
    data, X, most = run.data, run.X, math.ceil(settings.max_draws / settings.block)
    fixed = {"model": run.model, "settings": settings}
    serial = is_serial(run.model, data)
    make_block = functools.partial(block, **fixed, serial=serial)
    state = start(run.coordinates, data, X, run.start_keys, **fixed)
    step, blocks = -1, []
    if saved:
        xs = randomness(run.run_keys, 0, settings.block, X.dtype)
        like = jax.eval_shape(make_block, state, data, X, run.rows, *xs)[1]
        step, state, blocks = saved.load(state, like, WARM_WINDOWS)
        state = jax.tree.map(jnp.asarray, state)
    state = state._replace(chains=spread(state.chains))

    while step + 1 < WARM_WINDOWS:
        step += 1
        report("warm-up", 0, settings.max_draws)
        length = math.ceil(settings.num_warmup / WARM_WINDOWS)
        xs = randomness(run.run_keys, step, length, X.dtype)
        state, seen = window(state, data, X, *xs, **fixed, serial=serial)
        state = tune(state, seen, settings=settings, adapt_metric=0 < step < WARM_WINDOWS - 1)
        if saved:
            saved.save(step, fetch(state))

    step_size = jnp.repeat(state.tuning.step_size[:, None], settings.chains, 1)
    yield from (Drawn([found], state.shift, step_size, stored=True) for found in blocks)
    while True:
        step += 1
        xs = randomness(run.run_keys, step, settings.block, X.dtype)
        state, found = make_block(state, data, X, run.rows, *xs)
        found = fetch(found)
        if saved:
            saved.save(step, fetch(state), found)
        done = step + 1 - WARM_WINDOWS
        report("sampling", done * settings.block, most * settings.block)
        yield Drawn([found], state.shift, step_size)
