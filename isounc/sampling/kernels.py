"""Markov transitions of K chains: hmc, nuts, chees and adjusted_mclmc, through BlackJAX.

All sample x with density N(x; 0, I) exp(r(x)) (`isounc.sampling.coordinates`); hmc, nuts and chees
by the flow of `isounc.sampling.integrator`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from isounc.sampling.adaptation import FIRST_STEP, MAX_STEP, Tuning, averaging, strongly_typed
from isounc.sampling.integrator import Metric, Remainder, blackjax, euclidean, splitting
from isounc.sampling.retries import RETRIES, chain_by_chain, try_trajectories
from isounc.sampling.run import together
from isounc.sampling.settings import SamplerSettings

DIVERGENT = 1000.0
"""Energy error, in nats, from which a trajectory is divergent."""
CHEES_LEARNING_RATE = 0.025
"""chees: learning rate of Adam on the log of the trajectory length."""


class ChainState(NamedTuple):
    """Positions of K chains."""

    x: Float[Array, "K P"]
    """Positions."""
    remainder: Float[Array, " K"]
    """r at the positions."""
    gradient: Float[Array, "K P"]
    """Its gradient."""


class StepInfo(NamedTuple):
    """Report of one transition of each chain."""

    energy: Float[ArrayLike, " K"]
    """Hamiltonian at the start of the trajectory, with its momentum; NaN if there is none."""
    divergent: Bool[ArrayLike, " K"]
    """Whether the energy error exceeded 1000 nats (hmc, chees: that of the last retry, too)."""
    saturated: Bool[ArrayLike, " K"]
    """Whether the trajectory was cut at its longest."""
    acceptance: Float[ArrayLike, " K"]
    """Acceptance probability (nuts: its mean over the trajectory)."""
    num_gradients: Int[ArrayLike, " K"]
    """Gradients of r."""


@runtime_checkable
class Sampler(Protocol):
    """A transition of K chains and the adaptation of its step; instances are hashable."""

    has_energy: bool
    """Whether E-BFMI applies."""

    def transition(
        self, key: PRNGKeyArray, chains: ChainState, tuning: Tuning, u: Float[Array, ""] | float,
        remainder: Remainder, settings: SamplerSettings,
    ) -> tuple[ChainState, StepInfo, Any]:  # fmt: skip
        """Make one transition of each chain.

        Parameters
        ----------
        key
            Random key of this transition.
        chains, tuning
            Where the chains stand, and what warm-up has adapted so far.
        u
            Uniform on (0, 1) and the same for all chains.
        remainder
            r of one position.
        settings
            Settings of the run; those that decide when it ends and what is checked are at their
            defaults (`SamplerSettings.of_programs`).

        Returns
        -------
        The chains after it, its report, and a proposal for `adapt`.
        """
        ...

    def begin(self, num_params: int, settings: SamplerSettings) -> Any:
        """The first value of `Tuning.extra`."""
        ...

    def adapt(
        self, tuning: Tuning, before: ChainState, proposal: Any, info: StepInfo,
        u: Float[Array, ""] | float, settings: SamplerSettings,
    ) -> Tuning:  # fmt: skip
        """The tuning after a transition of the warm-up."""
        ...


def start_chains(x: Float[Array, "K P"], remainder: Remainder) -> ChainState:
    """Chains at x."""
    return ChainState(x, *jax.vmap(jax.value_and_grad(remainder))(x))


def _energy(
    chains: ChainState, momentum: Float[Array, "K P"], metric: Metric
) -> Float[Array, " K"]:
    def hamiltonian(
        x: Float[Array, " P"], r: Float[Array, ""], p: Float[Array, " P"]
    ) -> Float[Array, ""]:
        return 0.5 * (x @ x) - r + 0.5 * p @ metric.velocity(p)

    return jax.vmap(hamiltonian)(chains.x, chains.remainder, momentum)


def _to_blackjax(chains: ChainState) -> Any:
    """The chains as `splitting` wants them: the energy error starts at 0."""
    state = blackjax("mcmc.hmc").HMCState
    return state(chains.x, jnp.zeros_like(chains.remainder), (chains.gradient, chains.remainder))


def _from_blackjax(states: Any) -> ChainState:
    gradient, r = states.logdensity_grad
    return ChainState(states.position, r, gradient)


def _is_divergent(end: Any) -> Bool[Array, " K"]:
    """Whether the energy of trajectories rose beyond all bounds, or is undefined."""
    return ~(end.logdensity > -DIVERGENT)


class HMC:
    """Hamiltonian Monte Carlo (Neal 2011): jittered lengths, finer steps where errors are large.

    A trajectory is tried again at most `retries` times (`isounc.sampling.retries`).
    """

    has_energy = True

    def __init__(self, retries: int = RETRIES):
        self._retries = retries

    def begin(self, num_params: int, settings: SamplerSettings) -> Any:
        """Nothing else is adapted."""
        return ()

    def jitter(self, u: Float[Array, ""] | float) -> Float[Array, ""] | float:
        """Integration time over its mean: around a quarter period, where draws are least alike."""
        return 0.5 + u

    def transition(
        self, key: PRNGKeyArray, chains: ChainState, tuning: Tuning, u: Float[Array, ""] | float,
        remainder: Remainder, settings: SamplerSettings,
    ) -> tuple[ChainState, StepInfo, Any]:  # fmt: skip
        """Steps of equal size, at most the adapted one, that make up the trajectory."""
        num_steps, step_size = self._steps(tuning, u, settings)
        key_momentum, key_accept = jax.random.split(key)
        keys = jax.random.split(key_momentum, len(chains.x))
        momentum = jax.vmap(tuning.metric.momentum)(keys, chains.x)
        state_of: Any = blackjax("mcmc.integrators").IntegratorState
        start = state_of(
            chains.x, momentum, jnp.zeros_like(chains.remainder), _to_blackjax(chains)[2]
        )
        step = splitting(remainder, tuning.metric)
        first, tried = try_trajectories(
            step, start, num_steps, step_size, tuning.retries, most=self._retries
        )
        uniform = jax.random.uniform(key_accept, chains.remainder.shape, chains.x.dtype)
        accepted = ~tried.is_open & tried.returns & (jnp.log(uniform) < tried.end.logdensity)
        reported = StepInfo(
            energy=_energy(chains, momentum, tuning.metric),
            divergent=~accepted & _is_divergent(tried.end),
            saturated=jnp.zeros_like(accepted),
            acceptance=jnp.nan_to_num(jnp.exp(jnp.minimum(first.logdensity, 0))),
            num_gradients=tried.num_gradients,
        )
        return chain_by_chain(accepted, _from_blackjax(tried.end), chains), reported, first

    def _steps(
        self, tuning: Tuning, u: Float[Array, ""] | float, settings: SamplerSettings
    ) -> tuple[Int[Array, ""], Float[Array, ""]]:
        """Number and size of the steps of a trajectory."""
        time = tuning.trajectory_length * self.jitter(u)
        steps = jnp.ceil(time / tuning.step_size)
        num_steps = jnp.clip(steps, 1, settings.max_integration_steps).astype(jnp.int32)
        return num_steps, jnp.minimum(tuning.step_size, time / num_steps)

    def adapt(
        self, tuning: Tuning, before: ChainState, proposal: Any, info: StepInfo,
        u: Float[Array, ""] | float, settings: SamplerSettings,
    ) -> Tuning:  # fmt: skip
        """Dual averaging of the step size towards the mean acceptance of all chains.

        Source: Hoffman and Gelman 2014.
        """
        _, update, _ = averaging(settings)
        averaged = update(tuning.averaging, jnp.asarray(info.acceptance).mean())
        step_size = jnp.minimum(jnp.exp(averaged.log_step_size), MAX_STEP)
        return tuning._replace(
            averaging=strongly_typed(averaged, step_size.dtype),
            step_size=step_size.astype(before.x.dtype),
        )


class NUTS(HMC):
    """No-U-turn sampler, multinomial, from BlackJAX (Hoffman and Gelman 2014; Betancourt 2017)."""

    def transition(
        self, key: PRNGKeyArray, chains: ChainState, tuning: Tuning, u: Float[Array, ""] | float,
        remainder: Remainder, settings: SamplerSettings,
    ) -> tuple[ChainState, StepInfo, Any]:  # fmt: skip
        """A tree of at most 2^max_tree_depth steps."""
        nuts = blackjax("mcmc.nuts")
        kernel = nuts.build_kernel(lambda *_: splitting(remainder, tuning.metric))
        metric = euclidean(tuning.metric)

        def move(key: PRNGKeyArray, state: Any) -> Any:
            return kernel(key, state, remainder, tuning.step_size, metric, settings.max_tree_depth)

        keys = jax.random.split(key, len(chains.x))
        states, info = together(move)(keys, _to_blackjax(chains))
        # A tree that reached the last doubling without turning or diverging would have gone on.
        saturated = (
            (info.num_trajectory_expansions >= settings.max_tree_depth)
            & ~info.is_turning
            & ~info.is_divergent
        )
        reported = StepInfo(
            energy=_energy(chains, info.momentum, tuning.metric),
            divergent=info.is_divergent,
            saturated=saturated,
            acceptance=info.acceptance_rate,
            num_gradients=info.num_integration_steps,
        )
        return _from_blackjax(states), reported, None


class ChEES(HMC):
    """HMC whose trajectory length climbs the change of expected squares over many chains.

    Source: Hoffman et al. 2021.
    """

    def jitter(self, u: Float[Array, ""] | float) -> Float[Array, ""] | float:
        """Uniform between 0 and twice the mean, as published."""
        return 2 * u

    def _adaptation(self, settings: SamplerSettings) -> tuple[Callable, Callable]:
        """Init and update of BlackJAX."""
        return blackjax("adaptation.chees_adaptation").base(
            # BlackJAX's length is the longest of a trajectory; the state is what multiplies it.
            lambda fraction: fraction,
            lambda fraction: fraction,
            optax.adam(CHEES_LEARNING_RATE),
            settings.target_acceptance,
            0.5,
            settings.max_integration_steps,
        )

    def begin(self, num_params: int, settings: SamplerSettings) -> Any:
        """BlackJAX's state, its length at twice the mean."""
        init, _ = self._adaptation(settings)
        state = init(jnp.zeros(()), jnp.asarray(FIRST_STEP))
        length = 2 * settings.trajectory_length
        state = state._replace(
            trajectory_length=length,
            log_trajectory_length_moving_average=math.log(length),
            log_step_size_moving_average=math.log(FIRST_STEP),
        )
        return strongly_typed(state, jnp.result_type(float))

    def adapt(
        self, tuning: Tuning, before: ChainState, proposal: Any, info: StepInfo,
        u: Float[Array, ""] | float, settings: SamplerSettings,
    ) -> Tuning:  # fmt: skip
        """Dual averaging of the step, and Adam on the log of the length, both BlackJAX's."""
        _, update = self._adaptation(settings)
        # BlackJAX needs rank promotion, which a caller may have forbidden.
        with jax.numpy_rank_promotion("allow"):
            state = update(
                tuning.extra._replace(random_generator_arg=u),
                proposal.position,
                # BlackJAX turns the momentum round, which is the sign that its descent needs.
                -proposal.momentum,
                before.x,
                jnp.maximum(info.acceptance, 1e-6),
                _is_divergent(proposal),
                tuning.metric.sd**2,
            )
        dtype = tuning.step_size.dtype
        state = state._replace(step_size=jnp.minimum(state.step_size, MAX_STEP))
        state = strongly_typed(state, dtype)
        return tuning._replace(
            step_size=state.step_size,
            trajectory_length=0.5 * state.trajectory_length,
            averaging=tuning.averaging._replace(
                log_step_size_avg=state.log_step_size_moving_average
            ),
            extra=state,
        )


class AdjustedMCLMC(HMC):
    """Microcanonical Langevin trajectories with a Metropolis step; no energy, hence no E-BFMI.

    Source: Robnik et al. 2025.
    """

    has_energy = False

    def transition(
        self, key: PRNGKeyArray, chains: ChainState, tuning: Tuning, u: Float[Array, ""] | float,
        remainder: Remainder, settings: SamplerSettings,
    ) -> tuple[ChainState, StepInfo, Any]:  # fmt: skip
        """Unit speed: times are in units of sqrt(P), which makes them those of hmc."""
        num_steps, step_size = self._steps(tuning, u, settings)
        step_size = step_size * math.sqrt(chains.x.shape[1])
        kernel = blackjax("mcmc.adjusted_mclmc_dynamic").build_kernel(
            lambda n: n, next_random_arg_fn=lambda n: n
        )

        start = blackjax("mcmc.dynamic_hmc").DynamicHMCState

        def log_density(x: Float[Array, " P"]) -> Float[Array, ""]:
            return remainder(x) - 0.5 * x @ x

        def move(
            key: PRNGKeyArray,
            x: Float[Array, " P"],
            r: Float[Array, ""],
            gradient: Float[Array, " P"],
        ) -> tuple[ChainState, Any]:
            state = start(x, r - 0.5 * x @ x, gradient - x, num_steps)
            after, info = kernel(
                key, state, log_density, step_size, inverse_mass_matrix=tuning.metric.sd**2
            )
            y = after.position
            moved = ChainState(y, after.logdensity + 0.5 * y @ y, after.logdensity_grad + y)
            # Without a move r stays as it is, so that rounding does not add up.
            stayed = ChainState(x, r, gradient)
            chosen = jax.tree.map(functools.partial(jnp.where, info.is_accepted), moved, stayed)
            return chosen, info

        chains, info = together(move)(jax.random.split(key, len(chains.x)), *chains)
        reported = StepInfo(
            energy=jnp.full_like(info.acceptance_rate, jnp.nan),
            divergent=info.is_divergent,
            saturated=jnp.zeros_like(info.is_divergent),
            acceptance=info.acceptance_rate,
            # The integrator (McLachlan) takes two gradients a step.
            num_gradients=jnp.broadcast_to(2 * num_steps, info.is_divergent.shape),
        )
        return chains, reported, None


SAMPLERS: dict[str, Sampler] = {
    "hmc": HMC(),
    "nuts": NUTS(),
    "chees": ChEES(),
    "adjusted_mclmc": AdjustedMCLMC(),
}
"""Transitions by the sampler's name; `isounc.sampling.register_sampler` adds to them."""
