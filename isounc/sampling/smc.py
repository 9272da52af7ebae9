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

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from isounc.densities import Data
from isounc.models import Model
from isounc.sampling.adaptation import MAX_STEP, PRIOR_WEIGHT, start_tuning
from isounc.sampling.coordinates import Coordinates
from isounc.sampling.integrator import blackjax
from isounc.sampling.kernels import HMC, ChainState, StepInfo, start_chains
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

LEAST = -1e30
"""Remainder of a particle whose own is not finite: it has no descendants."""
GAIN = 1.5
"""By how much the log step size changes for each unit of acceptance above its target."""
TEMPERATURES = 8
"""Number of temperatures that forecasts assume: that of xor at width 2."""
CPU_WORK, WORK = 2**20, 2**28
"""Examples times parameters, over all particles that are moved together: a CPU's cache holds the
first, a device's memory the second."""


class Particles(NamedTuple):
    """The S particles of one run; compiled programs have the axes (problem B, run K) before."""

    chains: ChainState
    """Particles as the chains of a transition, with r itself (not lambda r) and its gradient."""
    temperature: Float[Array, ""]
    """lambda."""
    step_size: Float[Array, ""]
    """Step size of the next transition."""
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
            divergent=jnp.zeros(count, bool),
            acceptance=jnp.ones(count, dtype),
            num_gradients=jnp.ones((), jnp.int32),
        )

    def start_problem(coordinates: Coordinates, data: Data, key: PRNGKeyArray) -> Particles:
        keys = jax.random.split(key, settings.chains)
        return jax.vmap(functools.partial(start_run, coordinates, data))(keys)

    return jax.vmap(start_problem)(coordinates, data, keys)


@functools.partial(jax.jit, static_argnames=("model", "settings", "serial", "together"))
def temper(
    particles: Particles, coordinates: Coordinates, data: Data, keys: Key[Array, " B"],
    u: Float[Array, " T"],
    *, model: Model, settings: SamplerSettings, serial: bool, together: int,
) -> Particles:  # fmt: skip
    """One temperature of all runs; those that are at lambda = 1 have their particles moved again.

    `together` particles of a run are moved at a time, T times one after the other. BlackJAX's own
    kernel for all this is not used: it finds the next lambda from particles that it has neither
    weighted nor moved yet, and moves them under the lambda before.
    """
    over = one_by_one if serial else jax.vmap
    hmc, count = HMC(), num_particles(settings)
    ess, resampling, solver = (blackjax(f"smc.{name}") for name in ("ess", "resampling", "solver"))

    def temper_run(
        coordinates: Coordinates, data: Data, particles: Particles, key: PRNGKeyArray
    ) -> Particles:
        chains, temperature = particles.chains, particles.temperature
        key_resample, *move_keys = jax.random.split(key, 1 + len(u))
        # BlackJAX takes a NaN for the best of all particles: it is the worst.
        r = jnp.where(jnp.isfinite(chains.remainder), chains.remainder, LEAST)
        r -= r.max()
        increment = ess.ess_solver(
            lambda r: r, r, settings.tempering_ess, 1 - temperature, solver.dichotomy
        )
        weights = jax.nn.softmax(increment * r)
        ancestors = resampling.systematic(key_resample, weights, count)
        # Where lambda was 1 all weights are equal, but for rounding.
        ancestors = jnp.where(increment > 0, ancestors, jnp.arange(count))
        temperature = jnp.asarray(temperature + increment, chains.x.dtype)

        def tempered(x: Float[Array, " P"]) -> Float[Array, ""]:
            return temperature * coordinates.remainder(x, model, data)

        chains = jax.tree.map(lambda a: a[ancestors], chains)
        tuning = start_tuning(model.num_params, chains.x.dtype, settings)
        if settings.metric == "diagonal":
            squares = ((chains.x - chains.x.mean(0)[None]) ** 2).sum(0)
            sd = jnp.sqrt((squares + PRIOR_WEIGHT) / (count + PRIOR_WEIGHT))
            tuning = tuning._replace(metric=tuning.metric._replace(sd=sd))

        def transition(carry: tuple[ChainState, Array], xs: tuple[PRNGKeyArray, Array]):
            chains, step_size = carry
            key, u = xs
            tuned = tuning._replace(step_size=step_size)

            def move(xs: tuple[PRNGKeyArray, ChainState]) -> tuple[ChainState, StepInfo]:
                return hmc.transition(xs[0], xs[1], tuned, u, tempered, settings)[:2]

            parts = jax.tree.map(lambda a: a.reshape(-1, together, *a.shape[1:]), chains)
            chains, info = jax.tree.map(
                lambda a: a.reshape(count, *a.shape[2:]),
                jax.lax.map(move, (jax.random.split(key, count // together), parts)),
            )
            change = GAIN * (info.acceptance.mean() - settings.target_acceptance)
            step_size = jnp.minimum(step_size * jnp.exp(change), MAX_STEP)
            return (chains, step_size), (info.divergent, info.acceptance, info.num_gradients[0])

        chains = chains._replace(
            remainder=temperature * chains.remainder, gradient=temperature * chains.gradient
        )
        (chains, step_size), (divergent, acceptance, num_gradients) = jax.lax.scan(
            transition, (chains, particles.step_size), (jnp.stack(move_keys), u)
        )
        chains = chains._replace(
            remainder=chains.remainder / temperature, gradient=chains.gradient / temperature
        )
        return Particles(
            chains=chains,
            temperature=temperature,
            step_size=step_size,
            divergent=divergent[-1] | ~jnp.isfinite(chains.remainder),
            acceptance=acceptance[-1],
            num_gradients=particles.num_gradients + num_gradients.sum(dtype=jnp.int32),
        )

    def temper_problem(
        coordinates: Coordinates, data: Data, particles: Particles, key: PRNGKeyArray
    ) -> Particles:
        keys = jax.random.split(key, settings.chains)
        return over(functools.partial(temper_run, coordinates, data))(particles, keys)

    return over(temper_problem)(coordinates, data, particles, keys)


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
    """A block of the particles from `first` on, like those of `isounc.sampling.chains.draw_block`.

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


def _together(run: Run, serial: bool) -> int:
    """How many particles of a run are moved at the same time; it divides S."""
    count = num_particles(run.settings)
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
        return num_particles(settings) // settings.block

    def forecast(self, settings: SamplerSettings, *, num_params: int) -> Forecast:
        """Transitions of all particles at all temperatures; in memory are particles and gradients.

        Both are there twice while they are resampled.
        """
        return Forecast(
            num_transitions=TEMPERATURES * settings.num_mutations * settings.num_draws,
            num_floats=4 * settings.num_draws * settings.chains * num_params,
        )

    def draw(self, run: Run) -> Iterator[DrawnBlocks]:
        """Round after round; a checkpoint has whole ones, and a killed one is done again."""
        settings, data, X, checkpoint = run.settings, run.data, run.X, run.checkpoint
        static: dict[str, Any] = {"model": run.model, "settings": settings}
        size = num_particles(settings)
        total = size * math.ceil(settings.max_draws / size)
        starts = range(0, size, settings.block)

        def collect(particles: Any, shift: Any, first: int | Int[Array, ""]) -> Block:
            return collect_block(
                particles, run.coordinates, data, X, run.fixed, shift, first, **static
            )

        number, shift = -1, jnp.zeros(())
        if checkpoint:
            start_shape = functools.partial(start, **static, together=size)
            like = jax.eval_shape(start_shape, run.coordinates, data, run.run_keys)
            center_shape = functools.partial(center, model=run.model)
            shift = jax.eval_shape(center_shape, like, run.coordinates, data, X)
            blocks = [jax.eval_shape(collect, like, shift, first) for first in starts]
            number, (shift, step_size), rounds = checkpoint.load((shift, like.step_size), blocks, 0)
            for blocks in rounds:
                yield DrawnBlocks(blocks, shift, step_size, stored=True)
        while True:
            number += 1
            particles = _sample_round(run, number, size * number, total)
            if number == 0:
                shift = center(particles, run.coordinates, data, X, model=run.model)
            blocks = [fetch(collect(particles, shift, first)) for first in starts]
            if checkpoint:
                checkpoint.save(number, fetch((shift, particles.step_size)), blocks)
            run.report("sampling", size * (number + 1), total)
            yield DrawnBlocks(blocks, shift, particles.step_size)


def _sample_round(run: Run, number: int, done: int, total: int) -> Particles:
    """The particles of a round, at lambda = 1."""
    static: dict[str, Any] = {"model": run.model, "settings": run.settings}
    serial = on_one_cpu()
    together = _together(run, serial)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(run.run_keys)
    start_keys, _ = randomness(keys, 0, 1, run.X.dtype)
    particles = spread(
        start(run.coordinates, run.data, start_keys[:, 0], **static, together=together)
    )
    step, reached = 0, 0.0
    while reached < 1:
        if not jnp.isfinite(particles.chains.remainder).any(-1).all():
            raise ValueError(
                "the log likelihood must be finite at some particle of each run, got none at "
                f"lambda {reached:.3g}"
            )
        step += 1
        step_keys, u = randomness(keys, step, run.settings.num_mutations, run.X.dtype)
        particles = temper(
            particles, run.coordinates, run.data, step_keys[:, 0], u,
            **static, serial=serial, together=together,
        )  # fmt: skip
        before, reached = reached, float(fetch(particles.temperature).min())
        if not reached > before:
            raise ValueError(
                "tempering_ess must be low enough for lambda to rise, got "
                f"{run.settings.tempering_ess} at lambda {before:.3g}"
            )
        run.report(f"tempering (lambda {reached:.2g})", done, total)
    return particles
