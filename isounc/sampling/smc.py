"""Tempered sequential Monte Carlo: for posteriors between whose modes no chain moves.

Particles are taken from N(0, I), of which they are exact draws, to the posterior along

    pi_lambda(x)  proportional to  N(x; 0, I) exp(lambda r(x)),    lambda from 0 to 1,

with the remainder r of `isounc.sampling.coordinates` (annealing, Neal 2001; SMC samplers, Del Moral, Doucet and Jasra
2006). At each temperature (Buchholz, Chopin and Jacob 2021)

1. the next lambda' is the one for which the weights w_i = exp((lambda' - lambda) r(x_i)) have the effective sample size
   (sum w)^2 / sum w^2 = ``tempering_ess`` S, or 1 if that keeps more;
2. S particles are drawn by these weights (systematic resampling), which is how modes get their mass;
3. ``num_mutations`` transitions of the sampler ``hmc`` with lambda' r in r's place move them, so that copies part. The
   metric has the variances of the particles; the step size goes with the acceptance of the transition before (Fearnhead
   and Taylor 2013).

K runs of S particles each know nothing of each other: R-hat and ESS between them show whether they agree about the mass
of each mode. Within a run the particles stay in the order in which resampling leaves them, descendants of one ancestor
side by side, so that what they share shows as autocorrelation and between batches (after Chan and Lai 2013).

The coordinates have to be wide: in those of the Laplace approximation all particles would start around one mode, and
``curvature`` is refused. Means over the particles of a run have a bias of order 1/S, which more rounds do not make
smaller, and a mode that not one particle of any run has found is in no diagnostic. The particles of all runs are in
memory at once, each with its gradient: 8 B K S P bytes in float32, and twice that while they are resampled.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.smc import ess, resampling, solver
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from isounc.densities import Data
from isounc.models import Model
from isounc.sampling import chains as sampling
from isounc.sampling.chains import Drawn, Run, fetch, observed
from isounc.sampling.coordinates import Coordinates
from isounc.sampling.kernels import (
    MAX_STEP,
    PRIOR_WEIGHT,
    SAMPLERS,
    Chains,
    start_chains,
    start_tuning,
)
from isounc.sampling.moments import Block
from isounc.sampling.settings import SamplerSettings

NAME = "tempered_smc"
"""As `SamplerSettings.sampler` has it."""

LEAST = -1e30
"""Remainder of a particle whose own is not finite: it has no descendants."""

GAIN = 1.5
"""By how much the log step size changes for each unit of acceptance above its target."""


class Particles(NamedTuple):
    """Where one run of S particles stands; compiled programs have the axes (problem B, run K) before these."""

    chains: Chains
    """Particles as the chains of a transition have them, with r itself (not lambda r) and its gradient."""
    temperature: Float[Array, ""]
    """lambda."""
    step_size: Float[Array, ""]
    """Of the next transition."""
    divergent: Bool[Array, " S"]
    """Whether the last transition of each diverged (those before had a step size that was still on its way)."""
    acceptance: Float[Array, " S"]
    """Its acceptance probability."""
    num_gradients: Int[Array, ""]
    """Gradients of r for each particle so far."""


def num_particles(settings: SamplerSettings) -> int:
    """S: ``num_draws`` rounded up to whole blocks."""
    return settings.block * math.ceil(settings.num_draws / settings.block)


@functools.partial(jax.jit, static_argnames=("model", "settings", "together"))
def begin(
    coordinates: Coordinates, data: Data, keys: PRNGKeyArray,
    *, model: Model, settings: SamplerSettings, together: int,
) -> Particles:  # fmt: skip
    """Draws of N(0, I). There no step is too long: the flow is a rotation."""
    count, dtype = num_particles(settings), data.X.dtype

    def one(coordinates, data, key):
        x = jax.random.normal(key, (count, model.num_params), dtype)
        parts = jax.lax.map(
            lambda x: start_chains(x, lambda x: coordinates.remainder(x, model, data)),
            x.reshape(-1, together, model.num_params),
        )
        chains = jax.tree.map(lambda a: a.reshape(count, *a.shape[2:]), parts)
        return Particles(
            chains, jnp.zeros((), dtype), jnp.full((), MAX_STEP, dtype), jnp.zeros(count, bool),
            jnp.ones(count, dtype), jnp.ones((), jnp.int32),
        )  # fmt: skip

    def runs(coordinates, data, key):
        return jax.vmap(functools.partial(one, coordinates, data))(
            jax.random.split(key, settings.chains)
        )

    return jax.vmap(runs)(coordinates, data, keys)


@functools.partial(jax.jit, static_argnames=("model", "settings", "serial", "together"))
def temper(
    particles: Particles, coordinates: Coordinates, data: Data, keys: PRNGKeyArray,
    u: Float[Array, " T"], *, model: Model, settings: SamplerSettings, serial: bool, together: int,
) -> Particles:  # fmt: skip
    """One temperature of all runs; of those that are at lambda = 1, a further move of the particles.

    ``together`` particles of a run are moved at a time. BlackJAX's own kernel for all this is not used: it finds the
    next lambda from particles that it has neither weighted nor moved yet, and moves them under the lambda before.
    """
    over = sampling.one_by_one if serial else jax.vmap
    hmc, count = SAMPLERS["hmc"], num_particles(settings)

    def one(coordinates, data, particles, key):
        chains, temperature = particles.chains, particles.temperature
        key_resample, *move_keys = jax.random.split(key, 1 + len(u))
        # BlackJAX takes a NaN for the best of all particles: it is the worst.
        r = jnp.where(jnp.isfinite(chains.remainder), chains.remainder, LEAST)
        r -= r.max()
        increment = ess.ess_solver(
            lambda r: r, r, settings.tempering_ess, 1 - temperature, solver.dichotomy
        )
        weights = jax.nn.softmax(increment * r)
        chosen = resampling.systematic(key_resample, weights, count)
        # Where lambda was 1 all weights are equal, but for rounding.
        chosen = jnp.where(increment > 0, chosen, jnp.arange(count))
        temperature = jnp.asarray(temperature + increment, chains.x.dtype)

        def tempered(x):
            return temperature * coordinates.remainder(x, model, data)

        chains = jax.tree.map(lambda a: a[chosen], chains)
        tuning = start_tuning(model.num_params, chains.x.dtype, hmc, settings)
        if settings.metric == "diagonal":
            squares = ((chains.x - chains.x.mean(0)[None]) ** 2).sum(0)
            sd = jnp.sqrt((squares + PRIOR_WEIGHT) / (count + PRIOR_WEIGHT))
            tuning = tuning._replace(metric=tuning.metric._replace(sd=sd))

        def transition(carry, xs):
            chains, step_size = carry
            key, u = xs
            tuned = tuning._replace(step_size=step_size)

            def move(xs):
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
        divergent = divergent[-1] | ~jnp.isfinite(chains.remainder)
        return Particles(
            chains, temperature, step_size, divergent, acceptance[-1],
            particles.num_gradients + num_gradients.sum(dtype=jnp.int32),
        )  # fmt: skip

    def runs(coordinates, data, particles, key):
        keys = jax.random.split(key, settings.chains)
        return over(functools.partial(one, coordinates, data))(particles, keys)

    return over(runs)(coordinates, data, particles, keys)


@functools.partial(jax.jit, static_argnames=("model",))
def center(particles: Particles, coordinates: Coordinates, data: Data, X, *, model: Model):
    """About what moments are accumulated: mean predictions of a few particles."""

    def one(coordinates, data, X, x):
        def predict(x):
            theta = coordinates.theta(x, model, data)
            return observed(theta, jnp.zeros((), X.dtype), X, model, data)[1]

        some = x[:, :: max(1, x.shape[1] // 8)].reshape(-1, x.shape[2])
        return jax.lax.map(predict, some).mean(0)

    return jax.vmap(one)(coordinates, data, X, particles.chains.x)


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def observe(
    particles: Particles, coordinates: Coordinates, data: Data, X, rows, shift, first,
    *, model: Model, settings: SamplerSettings,
) -> Block:  # fmt: skip
    """What `sampling.block` makes, of the particles from ``first`` on: one of each run at a time, as memory allows."""
    length = settings.block
    keep_every = sampling.thinning(settings, length)
    some: Any = jax.tree.map(
        lambda a: jax.lax.dynamic_slice_in_dim(a, first, length, axis=2),
        (particles.chains.x, particles.divergent, particles.acceptance),
    )

    def one(coordinates, data, X, shift, x):
        def theta(x):
            return coordinates.theta(x, model, data)

        def add(sums, x):
            new, p = jax.vmap(lambda x: observed(theta(x), shift, X, model, data))(x)
            return jax.tree.map(jnp.add, sums, new), p[:, rows].reshape(len(x), -1)

        shapes = jax.eval_shape(
            jax.vmap(lambda x: observed(theta(x), shift, X, model, data)[0]), x[:, 0]
        )
        sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        sums, values = jax.lax.scan(add, sums, jnp.moveaxis(x, 1, 0))
        draws = jax.vmap(jax.vmap(theta))(x[:, keep_every - 1 :: keep_every])
        means: Any = jax.tree.map(lambda s: s / length, sums)
        return means, jnp.moveaxis(values, 0, 1), draws

    x, divergent, acceptance = some
    (mean, square, aleatoric, entropy), values, draws = jax.vmap(one)(
        coordinates, data, X, shift, x
    )
    no_energy, none = jnp.full(x.shape[:3], jnp.nan, x.dtype), jnp.zeros(x.shape[:2], jnp.int32)
    return Block(
        mean, square, aleatoric, entropy, values, draws, no_energy, divergent.sum(2), none,
        acceptance.mean(2), length * particles.num_gradients,
    )  # fmt: skip


CPU_WORK, WORK = 2**20, 2**28
"""So many examples times parameters, over all particles that are moved at the same time: a cache, a device's memory."""


def _together(run: Run, serial: bool) -> int:
    """How many particles of a run are moved at the same time; it divides S."""
    count = num_particles(run.settings)
    work = run.data.X.shape[1] * run.model.num_params
    most = CPU_WORK / work if serial else WORK / (work * len(run.data.X) * run.settings.chains)
    return next(k for k in range(max(1, min(count, int(most))), 0, -1) if count % k == 0)


def draw(run: Run) -> Iterator[Drawn]:
    """Round after round of K runs, each of fresh particles; a chain has those of one run of each round in turn.

    A checkpoint has whole rounds: one that was killed is done again, from its keys.
    """
    settings, data, X, saved = run.settings, run.data, run.X, run.saved
    fixed = {"model": run.model, "settings": settings}
    size = num_particles(settings)
    total = size * math.ceil(settings.max_draws / size)
    starts = range(0, size, settings.block)

    def see(particles, shift, first):
        return observe(particles, run.coordinates, data, X, run.rows, shift, first, **fixed)

    number, found, shift = -1, [], jnp.zeros(())
    if saved:
        start = functools.partial(begin, **fixed, together=size)
        like = jax.eval_shape(start, run.coordinates, data, run.run_keys)
        shift = jax.eval_shape(
            functools.partial(center, model=run.model), like, run.coordinates, data, X
        )
        blocks = [jax.eval_shape(see, like, shift, first) for first in starts]
        number, (shift, step_size), found = saved.load((shift, like.step_size), blocks, 0)
        yield from (Drawn(blocks, shift, step_size, stored=True) for blocks in found)
    while True:
        number += 1
        particles = _sample(run, number, size * number, total)
        if number == 0:
            shift = center(particles, run.coordinates, data, X, model=run.model)
        blocks = [fetch(see(particles, shift, first)) for first in starts]
        if saved:
            saved.save(number, fetch((shift, particles.step_size)), blocks)
        run.report("sampling", size * (number + 1), total)
        yield Drawn(blocks, shift, particles.step_size)


def _sample(run: Run, number: int, done: int, total: int) -> Particles:
    """The particles of a round, at lambda = 1."""
    fixed = {"model": run.model, "settings": run.settings}
    serial = sampling.on_one_cpu()
    together = _together(run, serial)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(run.run_keys)
    start_keys, _ = sampling.randomness(keys, 0, 1, run.X.dtype)
    particles = sampling.spread(
        begin(run.coordinates, run.data, start_keys[:, 0], **fixed, together=together)
    )
    step, reached = 0, 0.0
    while reached < 1:
        if not jnp.isfinite(particles.chains.remainder).any(-1).all():
            raise ValueError(
                f"the log likelihood is not finite at any particle of a run, at lambda {reached:.3g}"
            )
        step += 1
        step_keys, u = sampling.randomness(keys, step, run.settings.num_mutations, run.X.dtype)
        particles = temper(
            particles, run.coordinates, run.data, step_keys[:, 0], u,
            **fixed, serial=serial, together=together,
        )  # fmt: skip
        before, reached = reached, float(fetch(particles.temperature).min())
        if not reached > before:
            raise ValueError(f"tempering stays at lambda {before:.3g}; lower tempering_ess")
        run.report(f"tempering (lambda {reached:.2g})", done, total)
    return particles
