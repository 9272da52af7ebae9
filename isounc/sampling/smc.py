"""Tempered sequential Monte Carlo: for posteriors between whose modes no chain moves.

Particles are taken from N(0, I), of which they are exact draws, to the posterior along

    pi_lambda(x)  proportional to  N(x; 0, I) exp(lambda r(x)),    lambda from 0 to 1,

with the remainder r of `isounc.sampling.coordinates` (annealing, Neal 2001; SMC samplers, Del
Moral, Doucet and Jasra 2006). At each temperature (Buchholz, Chopin and Jacob 2021)

1. the next lambda' is the one for which the weights w_i = exp((lambda' - lambda) r(x_i)) have the
   effective sample size (sum w)^2 / sum w^2 = `tempering_ess` S, or 1 if that keeps more;
2. S particles are drawn by these weights (systematic resampling), which is how modes get their
   mass;
3. `num_mutations` transitions of the sampler `hmc` with lambda' r in r's place move them, so that
   copies part. The metric has the variances of the particles; the step size goes with the
   acceptance of the transition before (Fearnhead and Taylor 2013).

K runs of S particles each know nothing of each other: R-hat and ESS between them show whether they
agree about the mass of each mode. Within a run the particles stay in the order in which resampling
leaves them, descendants of one ancestor side by side, so that what they share shows as
autocorrelation and between batches (after Chan and Lai 2013).

The coordinates have to be wide: in those of the Laplace approximation all particles would start
around one mode, and `curvature` is refused. Means over the particles of a run have a bias of order
1/S, which more rounds do not make smaller, and a mode that not one particle of any run has found is
in no diagnostic. The particles of all runs are in memory at once, each with its gradient: 8 B K S P
bytes in float32, and twice that while they are resampled.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from isounc.densities import Data
from isounc.models import Model
from isounc.sampling.adaptation import MAX_STEP, PRIOR_WEIGHT, start_tuning
from isounc.sampling.coordinates import Coordinates
from isounc.sampling.integrator import blackjax
from isounc.sampling.kernels import HMC, ChainState, start_chains
from isounc.sampling.moments import Block
from isounc.sampling.run import MomentSums, observe, thinning
from isounc.sampling.settings import SamplerSettings

LEAST = -1e30
"""Remainder of a particle whose own is not finite: it has no descendants."""
MOST_STEPS = 128
"""Most integration steps of a mutation: many short ones move particles as well as few long ones."""
GAIN = 1.5
"""By how much the log step size changes for each unit of acceptance above its target."""
MUTATION = 20260401
"""Folded into the keys of a temperature for its transitions."""


class Particles(NamedTuple):
    """The S particles of one run; compiled programs have the axes (problem B, run K) before."""

    chains: ChainState
    """Particles as the chains of a transition, with r itself (not lambda r) and its gradient."""
    temperature: Float[Array, ""]
    """lambda."""
    step_size: Float[Array, ""]
    """Step size of the next transition."""
    sd: Float[Array, " P"]
    """Standard deviations of the particles, which are the metric."""
    divergent: Bool[Array, " S"]
    """Whether the last transition of each diverged; before it the step size was on its way."""
    acceptance: Float[Array, " S"]
    """Acceptance probability of the last transition."""
    num_gradients: Int[Array, ""]
    """Gradients of r for each particle so far."""


def num_particles(settings: SamplerSettings) -> int:
    """S: `num_draws` rounded up to whole blocks."""
    return settings.block * math.ceil(settings.num_draws / settings.block)


@functools.partial(jax.jit, static_argnames=("model", "settings", "together"))
def start(
    coordinates: Coordinates, data: Data, keys: Key[Array, " B"],
    *, model: Model, settings: SamplerSettings, together: int,
) -> Particles:  # fmt: skip
    """Draws of N(0, I). There no step is too long: the flow is a rotation."""
    count, dtype = num_particles(settings), data.X.dtype

    def start_run(coordinates: Coordinates, data: Data, key: PRNGKeyArray) -> Particles:
        def start_part(x: Float[Array, "T P"]) -> ChainState:
            return start_chains(x, lambda x: coordinates.remainder(x, model, data))

        x = jax.random.normal(key, (count, model.num_params), dtype)
        parts = jax.lax.map(start_part, x.reshape(-1, together, model.num_params))
        return Particles(
            chains=jax.tree.map(lambda a: a.reshape(count, *a.shape[2:]), parts),
            temperature=jnp.zeros((), dtype),
            step_size=jnp.full((), MAX_STEP, dtype),
            sd=jnp.ones(model.num_params, dtype),
            divergent=jnp.zeros(count, bool),
            acceptance=jnp.ones(count, dtype),
            num_gradients=jnp.ones((), jnp.int32),
        )

    def start_problem(coordinates: Coordinates, data: Data, key: PRNGKeyArray) -> Particles:
        keys = jax.random.split(key, settings.chains)
        return jax.vmap(functools.partial(start_run, coordinates, data))(keys)

    return jax.vmap(start_problem)(coordinates, data, keys)


@functools.partial(jax.jit, static_argnames=("settings",))
def reweigh(
    particles: Particles, keys: Key[Array, " B"], *, settings: SamplerSettings
) -> Particles:
    """The next temperature of each run, and the particles that have descendants there.

    BlackJAX's own kernel for all this is not used: it finds the next lambda from particles that it
    has neither weighted nor moved yet, and moves them under the lambda before.
    """
    count = num_particles(settings)
    ess, resampling, solver = (blackjax(f"smc.{name}") for name in ("ess", "resampling", "solver"))

    def reweigh_run(particles: Particles, key: PRNGKeyArray) -> Particles:
        chains, temperature = particles.chains, particles.temperature
        # BlackJAX takes a NaN for the best of all particles: it is the worst.
        r = jnp.where(jnp.isfinite(chains.remainder), chains.remainder, LEAST)
        r -= r.max()
        increment = ess.ess_solver(
            lambda r: r, r, settings.tempering_ess, 1 - temperature, solver.dichotomy
        )
        weights = jax.nn.softmax(increment * r)
        ancestors = resampling.systematic(key, weights, count)
        # Where lambda was 1 all weights are equal, but for rounding.
        ancestors = jnp.where(increment > 0, ancestors, jnp.arange(count))
        chains, sd = jax.tree.map(lambda a: a[ancestors], chains), particles.sd
        if settings.metric == "diagonal":
            squares = ((chains.x - chains.x.mean(0)[None]) ** 2).sum(0)
            sd = jnp.sqrt((squares + PRIOR_WEIGHT) / (count + PRIOR_WEIGHT))
        temperature = jnp.asarray(temperature + increment, chains.x.dtype)
        return particles._replace(chains=chains, temperature=temperature, sd=sd)

    run_keys = jax.vmap(lambda key: jax.random.split(key, settings.chains))(keys)
    return jax.vmap(jax.vmap(reweigh_run))(particles, run_keys)


def num_moves(settings: SamplerSettings, *, together: int) -> int:
    """Moves at a temperature: all mutations of all particles, `together` of a run at a time."""
    return settings.num_mutations * (num_particles(settings) // together)


def mutation_keys(keys: Key[Array, " B"], settings: SamplerSettings) -> Key[Array, "B K"]:
    """Keys of the runs at a temperature for their transitions; those of `reweigh` are others."""
    return jax.vmap(
        lambda key: jax.random.split(jax.random.fold_in(key, MUTATION), settings.chains)
    )(keys)


@functools.partial(jax.jit, static_argnames=("model", "settings", "together"))
def mutate(
    particles: Particles, first: int | Int[Array, ""], count: int | Int[Array, ""],
    coordinates: Coordinates, data: Data, keys: Key[Array, "*B_K"], u: Float[Array, " T"],
    *, model: Model, settings: SamplerSettings, together: int,
) -> Particles:  # fmt: skip
    """Moves `first` to `first + count` at a temperature, of one run or of all.

    One run has one key, and no axes before those of `Particles`. Runs that are at lambda = 1 are
    moved again.
    """
    # Retries would move all particles wherever one of them needs it.
    hmc, num_parts = HMC(retries=0), num_particles(settings) // together
    most = min(settings.max_integration_steps, MOST_STEPS)
    settings = dataclasses.replace(settings, max_integration_steps=most)

    def move(
        particles: Particles, key: PRNGKeyArray, coordinates: Coordinates, data: Data,
        t: Int[Array, ""], part: Int[Array, ""],
    ) -> Particles:  # fmt: skip
        """A transition of `together` particles of a run."""
        temperature, start = particles.temperature, part * together

        def tempered(x: Float[Array, " P"]) -> Float[Array, ""]:
            return temperature * coordinates.remainder(x, model, data)

        def put(whole: Array, moved: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(whole, moved.astype(whole.dtype), start, 0)

        tuning = start_tuning(model.num_params, data.X.dtype, settings)
        tuning = tuning._replace(
            step_size=particles.step_size, metric=tuning.metric._replace(sd=particles.sd)
        )
        x, r, gradient = (
            jax.lax.dynamic_slice_in_dim(a, start, together) for a in particles.chains
        )
        before = ChainState(x, temperature * r, temperature * gradient)
        key = jax.random.fold_in(jax.random.fold_in(key, t), part)
        (x, r, gradient), info, _ = hmc.transition(key, before, tuning, u[t], tempered, settings)
        moved = ChainState(x, r / temperature, gradient / temperature)
        acceptance = put(particles.acceptance, jnp.asarray(info.acceptance))
        change = GAIN * (acceptance.mean() - settings.target_acceptance)
        step_size = jnp.minimum(particles.step_size * jnp.exp(change), MAX_STEP)
        num_gradients = jnp.asarray(info.num_gradients)[0].astype(jnp.int32)
        return particles._replace(
            chains=jax.tree.map(put, particles.chains, moved),
            # The next transition is tuned by this one, after the last of its particles.
            step_size=jnp.where(part == num_parts - 1, step_size, particles.step_size),
            divergent=put(
                particles.divergent, jnp.asarray(info.divergent) | ~jnp.isfinite(moved.remainder)
            ),
            acceptance=acceptance,
            num_gradients=particles.num_gradients + jnp.where(part == 0, num_gradients, 0),
        )

    if keys.ndim:
        over_runs = jax.vmap(move, (0, 0, None, None, None, None))
        move = jax.vmap(over_runs, (0, 0, 0, 0, None, None))

    def one_move(i: Int[Array, ""], particles: Particles) -> Particles:
        return move(particles, keys, coordinates, data, i // num_parts, i % num_parts)

    return jax.lax.fori_loop(first, first + count, one_move, particles)


@functools.partial(jax.jit, static_argnames=("model",))
def center(
    particles: Particles, coordinates: Coordinates, data: Data, X: Float[Array, "B N D"],
    *, model: Model,
) -> Float[Array, "B N M"]:  # fmt: skip
    """Mean predictions of a few particles: moments are accumulated about them."""

    def center_problem(
        coordinates: Coordinates, data: Data, X: Float[Array, "N D"], x: Float[Array, "K S P"]
    ) -> Float[Array, "N M"]:
        def predict(x: Float[Array, " P"]) -> Float[Array, "N M"]:
            theta = coordinates.theta(x, model, data)
            return observe(theta, jnp.zeros((), X.dtype), X, model, data)[1]

        few = x[:, :: max(1, x.shape[1] // 8)].reshape(-1, x.shape[2])
        return jax.lax.map(predict, few).mean(0)

    return jax.vmap(center_problem)(coordinates, data, X, particles.chains.x)


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def collect_block(
    particles: Particles, coordinates: Coordinates, data: Data, X: Float[Array, "B N D"],
    fixed: Int[Array, " Q"], shift: Float[Array, "B N M"], first: int | Int[Array, ""],
    *, model: Model, settings: SamplerSettings,
) -> Block:  # fmt: skip
    """A block of the particles from `first` on, like those of `isounc.sampling.chains.end_block`.

    One particle of each run predicts at a time, so that memory suffices.
    """
    length = settings.block
    keep_every = thinning(settings)
    in_block: Any = jax.tree.map(
        lambda a: jax.lax.dynamic_slice_in_dim(a, first, length, axis=2),
        (
            particles.chains.x,
            particles.divergent,
            particles.acceptance,
            particles.chains.remainder,
        ),
    )

    def collect_problem(
        coordinates: Coordinates, data: Data, X: Float[Array, "N D"], shift: Float[Array, "N M"],
        x: Float[Array, "K S P"],
    ):  # fmt: skip
        def theta(x: Float[Array, " P"]) -> Float[Array, " P"]:
            return coordinates.theta(x, model, data)

        def predict(x: Float[Array, " P"]) -> tuple[MomentSums, Float[Array, "N M"]]:
            return observe(theta(x), shift, X, model, data)

        def add(sums: MomentSums, x: Float[Array, "K P"]):
            added, p = jax.vmap(predict)(x)
            return jax.tree.map(jnp.add, sums, added), p[:, fixed].reshape(len(x), -1)

        shapes = jax.eval_shape(jax.vmap(lambda x: predict(x)[0]), x[:, 0])
        sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        sums, values = jax.lax.scan(add, sums, jnp.moveaxis(x, 1, 0))
        draws = jax.vmap(jax.vmap(theta))(x[:, keep_every - 1 :: keep_every])
        means: Any = jax.tree.map(lambda s: s / length, sums)
        return means, jnp.moveaxis(values, 0, 1), draws

    x, divergent, acceptance, remainder = in_block
    (mean, square, aleatoric, entropy), values, draws = jax.vmap(collect_problem)(
        coordinates, data, X, shift, x
    )
    return Block(
        shifted_mean=mean,
        shifted_square=square,
        aleatoric=aleatoric,
        entropy=entropy,
        values=values,
        draws=draws,
        energy=jnp.full(x.shape[:3], jnp.nan, x.dtype),
        divergent=divergent.sum(2),
        saturated=jnp.zeros(x.shape[:2], jnp.int32),
        acceptance=acceptance.mean(2),
        num_gradients=length * particles.num_gradients,
        position=x[:, :, -1],
        log_density=remainder[:, :, -1],
    )
