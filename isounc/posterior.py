"""Reference posteriors by MCMC: warm-up, chains, streamed predictive moments. The only module that imports blackjax.

Sampling runs in prior coordinates z = theta / sigma, where the prior is N(0, I) whatever the parameterisation, with
all chains of all problems (seeds, say) of one shape in one vmapped, compiled program. It advances in blocks of draws:
moments at every location leave the device as block means, draws of the predictive quantity are kept at a few fixed
locations only, so memory grows neither with draws x locations nor with draws x parameters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.mcmc import hmc, nuts
from jax.typing import ArrayLike
from jaxtyping import Float, PRNGKeyArray

from isounc import densities, diagnostics
from isounc.checks import check_choice, check_count, check_real
from isounc.densities import stack_data
from isounc.models import Model
from isounc.predictive import (
    Block,
    Moments,
    Posterior,
    collect,
    fixed_locations,
    flat_locations,
    gate_of,
)
from isounc.problems import Problem

__all__ = [
    "KERNELS",
    "Kernel",
    "Moments",
    "Posterior",
    "SamplerSettings",
    "StepInfo",
    "sample_posterior",
    "sample_posteriors",
]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how far it is, and how far it may go."""


class StepInfo(NamedTuple):
    """What one transition of one chain reports."""

    energy: Float[ArrayLike, ""]
    """Hamiltonian at the start of the trajectory, after the momentum was drawn."""
    divergent: Float[ArrayLike, ""]
    """Whether the energy error exceeded 1000."""
    saturated: Float[ArrayLike, ""]
    """Whether the trajectory was cut at its longest."""
    acceptance: Float[ArrayLike, ""]
    """Acceptance probability (its mean over the trajectory for NUTS)."""
    num_gradients: Float[ArrayLike, ""]
    """Leapfrog steps."""


class Kernel(Protocol):
    """One transition of one chain: (key, state, log density, step size, metric, steps) -> (state, info)."""

    def __call__(
        self, key, state, log_density, step_size, inverse_mass_matrix, num_steps, settings
    ) -> tuple[hmc.HMCState, StepInfo]: ...


@dataclass(frozen=True)
class SamplerSettings:
    """How a posterior is sampled."""

    sampler: str = "hmc"
    """hmc (trajectories of jittered length) or nuts."""
    num_chains: int = 4
    """K, each from its own prior draw."""
    num_warmup: int = 500
    """Warm-up transitions of a chain: BlackJAX window adaptation of step size and diagonal metric."""
    num_draws: int = 1000
    """S, transitions of a chain after warm-up before the gate is first tried; rounded up to whole blocks."""
    max_draws: int = 1000
    """While the gate fails, S doubles up to this (rounded up to whole blocks)."""
    num_integration_steps: int = 8
    """hmc: leapfrog steps of a trajectory during warm-up, and the fewest on average after it."""
    trajectory_length: float = 2.0
    """hmc: mean integration time after warm-up, in prior standard deviations (a quarter period of the prior is
    pi/2); the number of steps is uniform between 1 and twice the mean."""
    max_integration_steps: int = 128
    """hmc: most leapfrog steps on average."""
    max_tree_depth: int = 10
    """nuts: trajectories of at most 2^this leapfrog steps."""
    target_acceptance: float = 0.8
    """Acceptance that the step size is adapted to."""
    block: int = 250
    """Draws between returns to the host; also the length of the batches behind streamed standard errors."""
    num_kept: int = 1000
    """Thinned parameter draws that are kept, over all chains."""
    locations_per_region: int = 64
    """Fixed locations of each region where function values are kept for R-hat and ESS."""
    gate: diagnostics.GateSettings = field(default_factory=diagnostics.GateSettings)
    """Bounds of the convergence checks."""

    def __post_init__(self):
        check_choice("sampler", self.sampler, KERNELS)
        for name, least in (
            ("num_chains", 2),
            ("num_warmup", 20),
            ("num_draws", 4),
            ("num_integration_steps", 1),
            ("max_integration_steps", self.num_integration_steps),
            ("max_tree_depth", 1),
            ("max_draws", 4),
            ("block", 2),
            ("num_kept", 2),
            ("locations_per_region", 1),
        ):
            check_count(name, getattr(self, name), least)
        check_real("trajectory_length", self.trajectory_length, positive=True)
        if not 0 < self.target_acceptance < 1:
            raise ValueError(
                f"target_acceptance must be between 0 and 1; got {self.target_acceptance}."
            )
        if self.max_draws < self.num_draws:
            raise ValueError(
                f"max_draws must be at least num_draws ({self.num_draws}); got {self.max_draws}."
            )


def _energy(state, momentum, inverse_mass_matrix):
    return -state.logdensity + 0.5 * jnp.sum(inverse_mass_matrix * momentum**2)


def _hmc_step(key, state, log_density, step_size, inverse_mass_matrix, num_steps, settings):
    new, info = hmc.build_kernel()(
        key, state, log_density, step_size, inverse_mass_matrix, num_steps
    )
    return new, StepInfo(
        _energy(state, info.momentum, inverse_mass_matrix),
        info.is_divergent,
        jnp.zeros_like(info.is_divergent),
        info.acceptance_rate,
        num_steps,
    )


def _nuts_step(key, state, log_density, step_size, inverse_mass_matrix, num_steps, settings):
    new, info = nuts.build_kernel()(
        key,
        state,
        log_density,
        step_size,
        inverse_mass_matrix,
        max_num_doublings=settings.max_tree_depth,
    )
    # A tree that reached the last doubling without turning or diverging would have gone on.
    saturated = (
        (info.num_trajectory_expansions >= settings.max_tree_depth)
        & ~info.is_turning
        & ~info.is_divergent
    )
    return new, StepInfo(
        _energy(state, info.momentum, inverse_mass_matrix),
        info.is_divergent,
        saturated,
        info.acceptance_rate,
        info.num_integration_steps,
    )


KERNELS: dict[str, Kernel] = {"hmc": _hmc_step, "nuts": _nuts_step}


def sample_posterior(
    problem: Problem,
    model: Model,
    *,
    prior_sd: float,
    key: PRNGKeyArray,
    settings: SamplerSettings | None = None,
    keep_values: bool = False,
    progress: Progress | None = None,
    **overrides,
) -> Posterior:
    """Sample p(theta | data) proportional to p(y|X, theta) N(theta; 0, sigma_l^2) and summarise its predictions.

    Parameters
    ----------
    problem
        Training data and the regions to predict in.
    model
        From `make_model`.
    prior_sd
        Prior standard deviation; `Model.group_prior_sd` spreads it over the layers.
    key
        JAX random key; the same key gives the same draws on the same machine.
    settings
        All sampler settings; or give some of them by keyword, e.g. ``num_chains=4, num_draws=2000``.
    keep_values
        Also return every draw of the predictive quantity at the fixed locations.
    progress
        Called with (what is being done, done, total).

    Raises
    ------
    ValueError
        For a prior_sd that is not positive, or a setting out of its range.
    """
    if settings is None:
        overrides.setdefault("max_draws", overrides.get("num_draws", SamplerSettings.num_draws))
        settings = SamplerSettings(**overrides)
    elif overrides:
        raise ValueError(f"Give settings or keywords, not both; got both ({', '.join(overrides)}).")
    return sample_posteriors(
        [problem],
        model,
        prior_sd=prior_sd,
        keys=[key],
        settings=settings,
        keep_values=keep_values,
        progress=progress,
    )[0]


def sample_posteriors(
    problems: Sequence[Problem],
    model: Model,
    *,
    prior_sd: float,
    keys: Sequence[PRNGKeyArray],
    settings: SamplerSettings,
    keep_values: bool = False,
    progress: Progress | None = None,
) -> list[Posterior]:
    """`sample_posterior` of several problems of one shape in one program.

    They sample until each passes the gate or ``max_draws`` is reached, and all stop together. Trajectory lengths of
    hmc are shared by all chains (they depend on no state, so each chain is a valid Markov chain), because a vmapped
    loop would otherwise wait for the longest.
    """
    report = progress or (lambda *_: None)
    data = stack_data(problems, model, prior_sd)
    locations = fixed_locations(problems[0], settings.locations_per_region)
    points = np.stack([np.concatenate(list(p.regions.values())) for p in problems])
    X = jnp.asarray(points.astype(data.X.dtype))
    kept_rows = jnp.asarray(flat_locations(problems[0], locations))
    pairs = [jax.random.split(jnp.asarray(key)) for key in keys]

    report("warm-up", 0, settings.max_draws)
    warm_keys = jnp.stack([pair[0] for pair in pairs])
    states, step_size, metric, shift = _warm_up(data, X, warm_keys, model=model, settings=settings)
    # One adaptation for all chains of a problem: a chain whose own adaptation went astray cannot lag behind.
    step_size, metric = (_median_of_chains(a) for a in jax.device_get((step_size, metric)))
    mean_steps = _mean_steps(step_size, metric, settings)

    blocks: list[Block] = []
    num_blocks, most = (
        math.ceil(n / settings.block) for n in (settings.num_draws, settings.max_draws)
    )
    while True:
        for i in range(len(blocks), num_blocks):
            block_keys = jnp.stack([jax.random.fold_in(pair[1], i) for pair in pairs])
            # NumPy's generator: a JAX key of the jitter's own could be a user's key or one derived from it.
            jitter = np.random.default_rng((_JITTER_SEED, i))
            num_steps = jnp.asarray(
                jitter.integers(1, 2 * mean_steps, settings.block, dtype=np.int32)
            )
            states, block = _sample_block(
                states, data, X, kept_rows, shift, step_size, metric, block_keys, num_steps,
                model=model, settings=settings,
            )  # fmt: skip
            blocks.append(jax.device_get(block))
            report("sampling", (i + 1) * settings.block, most * settings.block)
        gates = [gate_of(blocks, i, settings.gate) for i in range(len(problems))]
        if num_blocks >= most or all(g.passed for g in gates):
            break
        num_blocks = min(2 * num_blocks, most)

    return [
        collect(
            problem,
            model,
            blocks,
            i,
            shift=np.asarray(shift)[i],
            step_size=step_size[i],
            gate=gates[i],
            locations=locations,
            num_kept=settings.num_kept,
            keep_values=keep_values,
        )
        for i, problem in enumerate(problems)
    ]


_JITTER_SEED = 20260329


def _median_of_chains(adapted: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.median(adapted, axis=1, keepdims=True), adapted.shape)


def _mean_steps(step_size: np.ndarray, metric: np.ndarray, settings: SamplerSettings) -> int:
    """Leapfrog steps that cover ``trajectory_length``: a step moves a coordinate by step_size x sqrt(metric)."""
    stride = np.median(step_size * np.sqrt(np.median(metric, axis=-1)))
    steps = math.ceil(settings.trajectory_length / max(float(stride), 1e-6))
    return int(np.clip(steps, settings.num_integration_steps, settings.max_integration_steps))


def _white_log_density(model: Model, data: densities.Data):
    def log_density(z):
        # The prior's constants are left out: they would cost digits of the energy differences in float32.
        return densities.log_likelihood(model, data.prior_sd * z, data) - 0.5 * z @ z

    return log_density


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def _warm_up(data, X, keys, *, model: Model, settings: SamplerSettings):
    algorithm = blackjax.hmc if settings.sampler == "hmc" else blackjax.nuts
    extra: dict[str, Any] = (
        {"num_integration_steps": settings.num_integration_steps}
        if settings.sampler == "hmc"
        else {"max_num_doublings": settings.max_tree_depth}
    )

    def one_problem(data, X, key):
        warm_up = blackjax.window_adaptation(
            algorithm,
            _white_log_density(model, data),
            target_acceptance_rate=settings.target_acceptance,
            adaptation_info_fn=lambda *_: None,
            **extra,
        )

        def one_chain(key):
            key_start, key_run = jax.random.split(key)
            start = jax.random.normal(key_start, (model.num_params,), data.X.dtype)
            result, _ = warm_up.run(key_run, start, settings.num_warmup)  # pyright: ignore
            parameters = result.parameters
            return result.state, parameters["step_size"], parameters["inverse_mass_matrix"]

        states, step_size, metric = jax.vmap(one_chain)(jax.random.split(key, settings.num_chains))
        # Moments are accumulated about this, near the mean, so that float32 does not cancel.
        outputs = jax.vmap(lambda z: model.apply(data.prior_sd * z, X))(states.position)
        shift = jax.vmap(functools.partial(densities.predict, model))(outputs).mean(0)
        return states, step_size, metric, shift

    return jax.vmap(one_problem)(data, X, keys)


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def _sample_block(
    states, data, X, locations, shift, step_size, metric, keys, num_steps,
    *, model, settings,
):  # fmt: skip
    step = KERNELS[settings.sampler]
    keep_every = max(1, settings.num_draws * settings.num_chains // settings.num_kept)
    keep_every = next(k for k in range(keep_every, 0, -1) if settings.block % k == 0)

    def one_chain(state, data, X, shift, step_size, metric, key):
        log_density = _white_log_density(model, data)

        def transition(carry, xs):
            state, sums = carry
            key, steps = xs
            state, info = step(key, state, log_density, step_size, metric, steps, settings)
            outputs = model.apply(data.prior_sd * state.position, X)
            p = densities.predict(model, outputs)
            new = (
                p - shift,
                (p - shift) ** 2,
                densities.label_variance(model, outputs, data.noise_sd),
                densities.label_entropy(model, outputs, data.noise_sd),
            )
            sums = jax.tree.map(jnp.add, sums, new)
            return (state, sums), (p[locations].ravel(), info)

        def stretch(carry, xs):
            carry, seen = jax.lax.scan(transition, carry, xs)
            return carry, (seen, data.prior_sd * carry[0].position)

        zeros = jax.eval_shape(lambda: densities.predict(model, model.apply(state.position, X)))
        zero = jnp.zeros(zeros.shape, zeros.dtype)
        sums = (zero, zero, zero, zero[:, 0])
        xs = jax.tree.map(
            lambda a: a.reshape(-1, keep_every, *a.shape[1:]),
            (jax.random.split(key, settings.block), num_steps),
        )
        (state, sums), ((values, info), draws) = jax.lax.scan(stretch, (state, sums), xs)
        mean, square, aleatoric, entropy = (s / settings.block for s in sums)
        values, info = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (values, info))
        return state, Block(
            mean, square, aleatoric, entropy, values, draws, info.energy,
            info.divergent.sum(), info.saturated.sum(), info.acceptance.mean(),
            info.num_gradients.sum(),
        )  # fmt: skip

    def one_problem(states, data, X, shift, step_size, metric, key):
        chains = jax.vmap(one_chain, in_axes=(0, None, None, None, 0, 0, 0))
        keys = jax.random.split(key, settings.num_chains)
        return chains(states, data, X, shift, step_size, metric, keys)

    return jax.vmap(one_problem)(states, data, X, shift, step_size, metric, keys)
