"""Markov transitions of K chains, and how warm-up tunes them: hmc, nuts, chees, adjusted_mclmc. Through BlackJAX.

All sample x with density N(x; 0, I) exp(r(x)) (`isounc.sampling.coordinates`); hmc, nuts and chees by the flow of
`isounc.sampling.integrator`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from blackjax.adaptation import chees_adaptation, metric_estimators
from blackjax.adaptation.step_size import DualAveragingAdaptationState, dual_averaging_adaptation
from blackjax.mcmc import adjusted_mclmc_dynamic, hmc, nuts
from blackjax.mcmc.dynamic_hmc import DynamicHMCState
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from isounc.sampling.integrator import Metric, Remainder, euclidean, splitting


class Chains(NamedTuple):
    """Where K chains stand."""

    x: Float[Array, "K P"]
    """Positions."""
    remainder: Float[Array, " K"]
    """r there."""
    gradient: Float[Array, "K P"]
    """Its gradient."""


class Tuning(NamedTuple):
    """What warm-up adapts, for one problem; all chains share it."""

    step_size: Float[Array, ""]
    """Time of an integration step; a quarter period of the Gaussian part is pi / 2."""
    trajectory_length: Float[Array, ""]
    """Mean integration time of a transition."""
    metric: Metric
    """M^-1."""
    averaging: DualAveragingAdaptationState
    """Of the step size."""
    count: Float[Array, ""]
    """Draws in the moments of this window."""
    mean: Float[Array, " P"]
    """Their mean."""
    squares: Float[Array, " P"]
    """Their summed squared distances from it."""
    extra: Any = ()
    """What else a sampler adapts."""


class StepInfo(NamedTuple):
    """What one transition of each chain reports."""

    energy: Float[ArrayLike, " K"]
    """Hamiltonian at the start of the trajectory, after the momentum was drawn; NaN where there is none."""
    divergent: Bool[ArrayLike, " K"]
    """Whether the energy error exceeded 1000."""
    saturated: Bool[ArrayLike, " K"]
    """Whether the trajectory was cut at its longest."""
    acceptance: Float[ArrayLike, " K"]
    """Acceptance probability (its mean over the trajectory for nuts)."""
    num_gradients: Int[ArrayLike, " K"]
    """Gradients of r."""


@runtime_checkable
class Sampler(Protocol):
    """A transition of K chains and the adaptation of its step."""

    has_energy: bool
    """Whether E-BFMI applies."""

    def transition(
        self, key: PRNGKeyArray, chains: Chains, tuning: Tuning, u: Float[Array, ""],
        remainder: Remainder, settings: Any,
    ) -> tuple[Chains, StepInfo, Any]:  # fmt: skip
        """One transition; u is uniform on (0, 1) and the same for all chains. The last result goes to `adapt`."""
        ...

    def begin(self, num_params: int, settings: Any) -> Any:
        """The first value of `Tuning.extra`."""
        ...

    def adapt(
        self, tuning: Tuning, before: Chains, proposal: Any, info: StepInfo, u: Float[Array, ""],
        settings: Any,
    ) -> Tuning:  # fmt: skip
        """The tuning after a transition of the warm-up."""
        ...


def start_chains(x: Float[Array, "K P"], remainder: Remainder) -> Chains:
    """Chains at x."""
    return Chains(x, *jax.vmap(jax.value_and_grad(remainder))(x))


def _averaging(settings):
    return dual_averaging_adaptation(settings.target_acceptance)


FIRST_STEP = 0.1


def start_tuning(num_params: int, dtype: Any, sampler: Sampler, settings: Any) -> Tuning:
    """The tuning before warm-up: identity metric."""
    one, zeros = jnp.ones((), dtype), jnp.zeros(num_params, dtype)
    rank = settings.metric_rank if settings.metric == "low_rank" else 0
    metric = Metric(
        jnp.ones(num_params, dtype), jnp.zeros((num_params, rank), dtype), jnp.ones(rank, dtype)
    )
    extra = sampler.begin(num_params, settings)
    return Tuning(
        FIRST_STEP * one, settings.trajectory_length * one, metric,
        _as(dtype, _averaging(settings)[0](FIRST_STEP * one)), 0 * one, zeros, zeros, extra,
    )  # fmt: skip


def _as(dtype, tree):
    """Strong types throughout, as a scan's carry must have."""
    return jax.tree.map(
        lambda a: jnp.asarray(
            a, dtype if jnp.issubdtype(jnp.result_type(a), jnp.floating) else jnp.int32
        ),
        tree,
    )


def count_draws(tuning: Tuning, x: Float[Array, "K P"]) -> Tuning:
    """Add a draw of each chain to the moments of the window (Chan et al. 1979)."""
    k, mean = len(x), x.mean(0)
    count = tuning.count + k
    apart = mean - tuning.mean
    squares = ((x - mean[None]) ** 2).sum(0) + apart**2 * (tuning.count * k / count)
    return tuning._replace(
        count=count, mean=tuning.mean + apart * (k / count), squares=tuning.squares + squares
    )


PRIOR_WEIGHT = 20
"""Pseudo-draws of variance 1 in an adapted variance: in good coordinates nothing is left to adapt."""


def end_window(
    tuning: Tuning,
    draws: Float[Array, "S P"] | None,
    gradients: Float[Array, "S P"] | None,
    settings: Any,
) -> Tuning:
    """Take the metric from the draws of the window, and begin the next one.

    ``diagonal``: pooled variances of all chains. ``low_rank``: the metric that minimises the Fisher divergence of
    draws and gradients of the log density (Seyboldt et al. 2026, nutpie), as BlackJAX has it.
    """
    metric = tuning.metric
    if settings.metric == "diagonal":
        variance = (tuning.squares + PRIOR_WEIGHT) / (tuning.count + PRIOR_WEIGHT)
        metric = metric._replace(sd=jnp.sqrt(variance))
    elif settings.metric == "low_rank":
        assert draws is not None and gradients is not None
        found = metric_estimators.fisher_score_low_rank(
            draws, gradients - draws, max_rank=settings.metric_rank
        )
        metric = _as(draws.dtype, Metric(found.sigma, found.U, found.lam))
    init, _, final = _averaging(settings)
    step_size = jnp.minimum(final(tuning.averaging), MAX_STEP).astype(tuning.step_size.dtype)
    return tuning._replace(
        metric=metric,
        step_size=step_size,
        averaging=_as(step_size.dtype, init(step_size)),
        count=jnp.zeros_like(tuning.count),
        mean=jnp.zeros_like(tuning.mean),
        squares=jnp.zeros_like(tuning.squares),
    )


def _energy(chains: Chains, momentum, metric: Metric):
    def one(x, r, p):
        return 0.5 * (x @ x) - r + 0.5 * p @ metric.velocity(p)

    return jax.vmap(one)(chains.x, chains.remainder, momentum)


def _states(chains: Chains) -> Any:
    """As BlackJAX has it; the energy error starts at 0."""
    state: Any = hmc.HMCState
    return state(chains.x, jnp.zeros_like(chains.remainder), (chains.gradient, chains.remainder))


def _chains(states: Any) -> Chains:
    gradient, r = states.logdensity_grad
    return Chains(states.position, r, gradient)


class HMC:
    """Hamiltonian Monte Carlo with trajectories of jittered length (Neal 2011)."""

    has_energy = True

    def begin(self, num_params, settings):
        """Nothing else is adapted."""
        return ()

    def jitter(self, u):
        """Integration time over its mean: around a quarter period, where draws are least alike."""
        return 0.5 + u

    def transition(self, key, chains, tuning, u, remainder, settings):
        """Steps of equal size, at most the adapted one, that make up the trajectory."""
        time = tuning.trajectory_length * self.jitter(u)
        steps = jnp.ceil(time / tuning.step_size)
        num_steps = jnp.clip(steps, 1, settings.max_integration_steps).astype(jnp.int32)
        step_size = jnp.minimum(tuning.step_size, time / num_steps)
        kernel: Any = hmc.build_kernel(lambda *_: splitting(remainder, tuning.metric))
        metric = euclidean(tuning.metric)

        def one(key, state):
            return kernel(key, state, remainder, step_size, metric, num_steps)

        states, info = jax.vmap(one)(jax.random.split(key, len(chains.x)), _states(chains))
        return (
            _chains(states),
            StepInfo(
                _energy(chains, info.momentum, tuning.metric),
                info.is_divergent,
                jnp.zeros_like(info.is_divergent),
                info.acceptance_rate,
                jnp.broadcast_to(num_steps, info.is_divergent.shape),
            ),
            info.proposal,
        )

    def adapt(self, tuning, before, proposal, info, u, settings):
        """Dual averaging of the step size towards the mean acceptance of all chains (Hoffman and Gelman 2014)."""
        averaging = _averaging(settings)[1](tuning.averaging, info.acceptance.mean())
        step_size = jnp.minimum(jnp.exp(averaging.log_step_size), MAX_STEP)
        return tuning._replace(
            averaging=_as(step_size.dtype, averaging), step_size=step_size.astype(before.x.dtype)
        )


MAX_STEP = math.pi / 2
"""A longer step of the rotation comes back."""


class NUTS(HMC):
    """No-U-turn sampler, multinomial, as BlackJAX has it (Hoffman and Gelman 2014; Betancourt 2017)."""

    def transition(self, key, chains, tuning, u, remainder, settings):
        """A tree of at most 2^max_tree_depth steps."""
        kernel: Any = nuts.build_kernel(lambda *_: splitting(remainder, tuning.metric))
        metric = euclidean(tuning.metric)

        def one(key, state):
            return kernel(key, state, remainder, tuning.step_size, metric, settings.max_tree_depth)

        states, info = jax.vmap(one)(jax.random.split(key, len(chains.x)), _states(chains))
        # A tree that reached the last doubling without turning or diverging would have gone on.
        saturated = (
            (info.num_trajectory_expansions >= settings.max_tree_depth)
            & ~info.is_turning
            & ~info.is_divergent
        )
        return (
            _chains(states),
            StepInfo(
                _energy(chains, info.momentum, tuning.metric),
                info.is_divergent,
                saturated,
                info.acceptance_rate,
                info.num_integration_steps,
            ),
            None,
        )


class ChEES(HMC):
    """HMC whose trajectory length climbs the change of expected squares over many chains (Hoffman et al. 2021)."""

    def jitter(self, u):
        """Uniform between 0 and twice the mean, as published."""
        return 2 * u

    def _base(self, settings):
        return chees_adaptation.base(
            # BlackJAX's length is the longest of a trajectory; what it multiplies is handed over as the state.
            lambda fraction: fraction,
            lambda fraction: fraction,
            optax.adam(CHEES_LEARNING_RATE),
            settings.target_acceptance,
            0.5,
            settings.max_integration_steps,
        )

    def begin(self, num_params, settings):
        """BlackJAX's state, its length at twice the mean."""
        state = self._base(settings)[0](jnp.zeros(()), jnp.asarray(FIRST_STEP))
        length = 2 * settings.trajectory_length
        return _as(
            jnp.result_type(float),
            state._replace(
                trajectory_length=length,
                log_trajectory_length_moving_average=math.log(length),
                log_step_size_moving_average=math.log(FIRST_STEP),
            ),
        )

    def adapt(self, tuning, before, proposal, info, u, settings):
        """Dual averaging of the step, and Adam on the log of the length, both BlackJAX's."""
        with jax.numpy_rank_promotion(
            "allow"
        ):  # which BlackJAX needs, and a caller may have forbidden
            state = self._base(
                settings
            )[
                1
            ](
                tuning.extra._replace(random_generator_arg=u),
                proposal.position,
                proposal.momentum,  # turned round by BlackJAX, which is the sign that its descent needs
                before.x,
                jnp.maximum(info.acceptance, 1e-6),
                info.divergent,
                tuning.metric.sd**2,
            )
        dtype = tuning.step_size.dtype
        state = _as(dtype, state._replace(step_size=jnp.minimum(state.step_size, MAX_STEP)))
        return tuning._replace(
            step_size=state.step_size,
            trajectory_length=0.5 * state.trajectory_length,
            averaging=tuning.averaging._replace(
                log_step_size_avg=state.log_step_size_moving_average
            ),
            extra=state,
        )


CHEES_LEARNING_RATE = 0.025


class AdjustedMCLMC(HMC):
    """Microcanonical Langevin trajectories with a Metropolis step (Robnik et al. 2025); no energy, hence no E-BFMI."""

    has_energy = False

    def transition(self, key, chains, tuning, u, remainder, settings):
        """Unit speed: times are in units of sqrt(P), which makes them those of hmc."""
        root = math.sqrt(chains.x.shape[1])
        time = tuning.trajectory_length * self.jitter(u)
        steps = jnp.ceil(time / tuning.step_size)
        num_steps = jnp.clip(steps, 1, settings.max_integration_steps).astype(jnp.int32)
        step_size = jnp.minimum(tuning.step_size, time / num_steps) * root
        kernel: Any = adjusted_mclmc_dynamic.build_kernel(
            lambda n: n, next_random_arg_fn=lambda n: n
        )

        def log_density(x):
            return remainder(x) - 0.5 * x @ x

        def one(key, x, r, gradient):
            state = DynamicHMCState(x, r - 0.5 * x @ x, gradient - x, num_steps)  # pyright: ignore
            new, info = kernel(
                key, state, log_density, step_size, inverse_mass_matrix=tuning.metric.sd**2
            )
            y = new.position
            moved = Chains(y, new.logdensity + 0.5 * y @ y, new.logdensity_grad + y)  # pyright: ignore
            # Without a move r stays as it is, so that rounding does not add up.
            kept = Chains(x, r, gradient)
            return jax.tree.map(functools.partial(jnp.where, info.is_accepted), moved, kept), info

        new, info = jax.vmap(one)(jax.random.split(key, len(chains.x)), *chains)
        # The integrator (McLachlan) takes two gradients a step.
        count = jnp.broadcast_to(2 * num_steps, info.is_divergent.shape)
        nothing = jnp.zeros_like(info.is_divergent)
        return (
            new,
            StepInfo(
                jnp.full_like(info.acceptance_rate, jnp.nan),
                info.is_divergent,
                nothing,
                info.acceptance_rate,
                count,
            ),
            None,
        )


SAMPLERS: dict[str, Sampler] = {
    "hmc": HMC(),
    "nuts": NUTS(),
    "chees": ChEES(),
    "adjusted_mclmc": AdjustedMCLMC(),
}
