"""Hamiltonian Monte Carlo with all sentences: the exact counterpart of stochastic gradient chains.

The density is that of `isounc.studies.world.local`, with its prior and its tether. Their two Gaussian
factors, of precisions 1 / s^2 and t = 1 / (m epsilon), multiply to N(c, v I) with

    1 / v = 1 / s^2 + t,     c = v t theta*,

so that x = (theta - c) / sqrt(v) has the density N(x; 0, I) exp(r(x)), r minus the summed losses of all
sentences: the form that the transitions of `isounc.sampling` take. Their flow is exact in the Gaussian
factor, and Metropolis' rule removes the error of the rest; nothing is left of minibatches and step sizes.
A sentence that was told k times is computed once and counts k times, which makes a gradient six times
cheaper.

With a tether all chains start at theta*. Without one (memory 0) the target is the posterior N(0, s^2 I)
exp(r), which knows no theta*: chain i starts at the i-th member, so that R-hat sees whether chains find
from one to the other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from isounc.checks import check_count
from isounc.sampling.adaptation import Tuning, end_window, start_tuning
from isounc.sampling.checkpoint import Checkpoint
from isounc.sampling.kernels import HMC, ChainState, StepInfo, start_chains
from isounc.sampling.settings import GateSettings, SamplerSettings
from isounc.studies.world.corpus import World
from isounc.studies.world.local import LocalChains
from isounc.studies.world.scores import answer_log_probs
from isounc.studies.world.train import Members, nll_of_facts, nll_of_replies

WINDOWS = 2
"""Windows of warm-up, after each of which the averaged step size is taken over."""
AT_A_TIME = 10
"""Transitions between two reports of progress."""
SECONDS_PER_SENTENCE = 3e-6
"""Seconds of a gradient of width 8 on one core of a 2-core server, for each sentence told: a sixth of
them are different."""
_SAMPLER = HMC()


@dataclass(frozen=True)
class HMCChains:
    """Hamiltonian Monte Carlo of the judged decoders of `local.num_members`, where they are small."""

    num_chains: int = 0
    """Chains; at least 2, or 0 for none."""
    num_warmup: int = 200
    """Transitions of a chain that are left out."""
    num_draws: int = 200
    """Transitions of a chain after them, each of which gives a draw."""
    max_params: int = 4000
    """Decoders with more parameters have no chains."""

    def __post_init__(self):
        if self.num_chains != 0:
            check_count("num_chains", self.num_chains, 2, 1000)
        for name, least in (("num_warmup", 20), ("num_draws", 8), ("max_params", 1)):
            check_count(name, getattr(self, name), least, 10**7)

    def seconds(self, local: LocalChains, num_sentences: float) -> float:
        """About how long the chains take on one core.

        A trajectory is a quarter period of the Gaussian factor, in steps that the sharpest direction
        of the losses allows; its curvature is about 1000 for each sentence.
        """
        precision = 1 / local.prior_sd**2 + local.tether(round(num_sentences))
        steps = math.sqrt(1 + 1000 * num_sentences / precision)
        transitions = self.num_chains * (self.num_warmup + self.num_draws)
        return transitions * steps * SECONDS_PER_SENTENCE * num_sentences + 40

    @property
    def sampler(self) -> SamplerSettings:
        """The settings of the transitions and their adaptation.

        Most directions are those of the Gaussian factor, in which the identity is the right metric;
        one estimated from some hundred draws would only add noise in each of them.
        """
        return SamplerSettings(
            num_chains=self.num_chains, num_warmup=self.num_warmup, metric="identity"
        )


class Draws(NamedTuple):
    """Draws of chains, by either sampler."""

    log_probs: Float[np.ndarray, "K S Q C"]
    """Log probabilities of all answers at the draws."""
    divergent: float | None = None
    """Share of divergent transitions; None for stochastic gradients, which know none."""
    acceptance: float | None = None
    """Mean acceptance probability of Hamiltonian Monte Carlo."""

    @property
    def is_sound(self) -> bool:
        """Whether divergent transitions are as rare as the gate of `isounc.sampling` asks."""
        return (self.divergent or 0.0) <= GateSettings().divergence_rate_max


class Target(NamedTuple):
    """The density in coordinates x, of which a chain's position is a vector."""

    center: PyTree[Array]
    """c."""
    sd: Float[Array, ""]
    """sqrt(v)."""
    facts: Int[Array, "U 5"]
    """Different sentences of fact."""
    told: Float[Array, " U"]
    """How often each was told."""
    claims: Int[Array, "U2 7"]
    """Different sentences of self-assessment."""
    claimed: Float[Array, " U2"]
    """How often each was told."""

    @classmethod
    def of(cls, theta: PyTree[Array], world: World, local: LocalChains) -> Target:
        """The density around a decoder, or without a tether its posterior."""
        tether = local.tether(len(world.facts))
        var = 1 / (1 / local.prior_sd**2 + tether)
        facts, told = np.unique(world.facts, axis=0, return_counts=True)
        claims, claimed = np.unique(world.claims, axis=0, return_counts=True)
        return cls(
            jax.tree.map(lambda leaf: var * tether * leaf, theta), jnp.float32(math.sqrt(var)),
            *(jnp.asarray(facts), jnp.asarray(told, jnp.float32)),
            *(jnp.asarray(claims), jnp.asarray(claimed, jnp.float32)),
        )  # fmt: skip

    def params(self, x: Float[Array, " P"]) -> PyTree[Array]:
        """Theta at a position."""
        flat, unravel = ravel_pytree(self.center)
        return unravel(flat + self.sd * x)

    def position(self, theta: PyTree[Array]) -> Float[Array, " P"]:
        """The position of theta."""
        return (ravel_pytree(theta)[0] - ravel_pytree(self.center)[0]) / self.sd

    def remainder(self, x: Float[Array, " P"], graphdef: nnx.GraphDef) -> Float[Array, ""]:
        """R(x), nats: minus the losses of all sentences."""
        decoder = nnx.merge(graphdef, self.params(x))
        of_facts = nll_of_facts(decoder, self.facts, self.told)
        return -of_facts - nll_of_replies(decoder, self.claims, self.claimed)


class _State(NamedTuple):
    """Chains and what they have drawn so far, as a checkpoint keeps it."""

    chains: ChainState
    tuning: Tuning
    draws: Float[np.ndarray, "S K P"]
    divergent: Bool[np.ndarray, "S K"]
    acceptance: Float[np.ndarray, "S K"]


def sample_by_hmc(
    members: Members,
    first: int,
    world: World,
    local: LocalChains,
    settings: HMCChains,
    seed: int,
    say: Callable[[str], Any] = lambda text: None,
    store: Checkpoint | None = None,
) -> Draws:
    """Draws of chains around member `first`, or without a tether of the posterior.

    Parameters
    ----------
    members
        Trained decoders; without a tether the chains start at the first ones.
    first
        The member theta* of a tether.
    local
        The density: `memory` and `step` of its tether, and `prior_sd`.
    say
        Told how far it is.
    store
        Where the chains stand is kept in it, and read from it to go on with equal bits.

    Raises
    ------
    ValueError
        If there are more chains than members to start at.
    """
    graphdef, count = members.graphdef, settings.num_chains
    target = Target.of(members.member(first), world, local)
    starts = [first] * count if local.memory else list(range(count))
    check_starts(settings, local, len(jax.tree.leaves(members.params)[0]))
    x = jnp.stack([target.position(members.member(i)) for i in starts])
    shape = settings.num_draws, count
    state = _State(
        _start(x, target, graphdef=graphdef),
        start_tuning(x.shape[1], x.dtype, settings.sampler),
        np.zeros((*shape, x.shape[1]), np.float32), np.zeros(shape, bool),
        np.zeros(shape, np.float32),
    )  # fmt: skip
    plan, step = _plan(settings), -1
    if store is not None:
        step, kept, _ = store.load(state, None, len(plan))
        state = jax.tree.map(np.array, kept)
    keys = jax.random.split(jax.random.key(seed), plan[-1])
    chains, tuning = jax.tree.map(jnp.asarray, state[:2])
    for i in range(step + 1, len(plan)):
        begin, end = plan[i - 1] if i else 0, plan[i]
        is_warm = begin >= settings.num_warmup
        chains, tuning, drawn, info = _transitions(
            chains, tuning, keys[begin:end], target,
            graphdef=graphdef, settings=settings.sampler, adapts=not is_warm,
        )  # fmt: skip
        if is_warm:
            rows = slice(begin - settings.num_warmup, end - settings.num_warmup)
            state.draws[rows] = drawn
            state.divergent[rows] = info.divergent
            state.acceptance[rows] = info.acceptance
        elif end in _window_ends(settings):
            # Trajectories are tried again from the second window on.
            tuning = _end_window(tuning, settings=settings.sampler)
        state = state._replace(chains=chains, tuning=tuning)
        if store is not None:
            store.save(i, jax.device_get(state))
        say(f"HMC, transition {end}/{plan[-1]}")
    log_probs = [
        [answer_log_probs(graphdef, target.params(jnp.asarray(x)), world) for x in chain]
        for chain in state.draws.transpose(1, 0, 2)
    ]
    return Draws(
        np.asarray(log_probs), float(state.divergent.mean()),
        float(state.acceptance.mean(dtype=float)),
    )  # fmt: skip


def check_starts(settings: HMCChains, local: LocalChains, num_members: int) -> None:
    """Check that every chain has a member to start at.

    Raises
    ------
    ValueError
        If there are more chains than members, and no tether.
    """
    if not local.memory and settings.num_chains > num_members:
        raise ValueError(
            f"hmc.num_chains must be at most num_members ({num_members}) without a tether "
            "(local.memory 0), as each chain starts at a member of its own, got "
            f"{settings.num_chains}"
        )


def _window_ends(settings: HMCChains) -> list[int]:
    return [round(settings.num_warmup * (i + 1) / WINDOWS) for i in range(WINDOWS)]


def _plan(settings: HMCChains) -> list[int]:
    """The transitions after which the host has a look: ends of windows, and some in between."""
    total = settings.num_warmup + settings.num_draws
    plan = []
    for end in (*_window_ends(settings), total):
        begin = plan[-1] if plan else 0
        plan += [*range(begin + AT_A_TIME, end, AT_A_TIME), end]
    return plan


@functools.partial(jax.jit, static_argnames="graphdef")
def _start(x: Float[Array, "K P"], target: Target, *, graphdef: nnx.GraphDef) -> ChainState:
    return start_chains(x, functools.partial(target.remainder, graphdef=graphdef))


@functools.partial(jax.jit, static_argnames=("graphdef", "settings", "adapts"))
def _transitions(
    chains: ChainState,
    tuning: Tuning,
    keys: Key[Array, " S"],
    target: Target,
    *,
    graphdef: nnx.GraphDef,
    settings: SamplerSettings,
    adapts: bool,
) -> tuple[ChainState, Tuning, Float[Array, "S K P"], StepInfo]:
    """Transitions of all chains, in warm-up with the adaptation of the step size."""
    remainder = functools.partial(target.remainder, graphdef=graphdef)

    def one(carry, key):
        chains, tuning = carry
        of_jitter, of_move = jax.random.split(key)
        u = jax.random.uniform(of_jitter, dtype=chains.x.dtype)
        moved, info, proposal = _SAMPLER.transition(of_move, chains, tuning, u, remainder, settings)
        if adapts:
            tuning = _SAMPLER.adapt(tuning, chains, proposal, info, u, settings)
        return (moved, tuning), (moved.x, info)

    (chains, tuning), (draws, info) = jax.lax.scan(one, (chains, tuning), keys)
    return chains, tuning, draws, info


@functools.partial(jax.jit, static_argnames="settings")
def _end_window(tuning: Tuning, *, settings: SamplerSettings) -> Tuning:
    tuned = end_window(tuning, None, None, settings)
    return tuned._replace(retries=jnp.ones((), bool))
