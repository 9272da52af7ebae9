"""Warm-up: adaptation of step size, trajectory length and metric, window by window."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from isounc.sampling.integrator import Metric, blackjax
from isounc.sampling.settings import SamplerSettings

FIRST_STEP = 0.1
"""Step size that warm-up begins with."""
MAX_STEP = math.pi / 2
"""Longest step: a longer one of the rotation comes back."""
PRIOR_WEIGHT = 20
"""Pseudo-draws of variance 1 in an adapted variance: good coordinates leave nothing to adapt."""


class Tuning(NamedTuple):
    """Adapted quantities of one problem; all its chains share them."""

    step_size: Float[Array, ""]
    """Time of an integration step; a quarter period of the Gaussian part is pi / 2."""
    trajectory_length: Float[Array, ""]
    """Mean integration time of a transition."""
    metric: Metric
    """M^-1."""
    averaging: Any
    """Dual averaging of the step size, as BlackJAX holds it."""
    count: Float[Array, ""]
    """Draws in the moments of this window."""
    mean: Float[Array, " P"]
    """Their mean."""
    squares: Float[Array, " P"]
    """Their summed squared distances from it."""
    retries: Bool[Array, ""]
    """Whether trajectories of large energy error are tried again: not while the step size is still
    far from what suits."""
    extra: Any = ()
    """Anything else that the sampler adapts."""


def start_tuning(
    num_params: int, dtype: DTypeLike, settings: SamplerSettings, *, extra: Any = ()
) -> Tuning:
    """The tuning before warm-up: identity metric; `extra` as the sampler begins it."""
    unit, zeros = jnp.ones((), dtype), jnp.zeros(num_params, dtype)
    rank = min(settings.metric_rank, num_params) if settings.metric == "low_rank" else 0
    metric = Metric(
        jnp.ones(num_params, dtype), jnp.zeros((num_params, rank), dtype), jnp.ones(rank, dtype)
    )
    init, *_ = averaging(settings)
    return Tuning(
        step_size=FIRST_STEP * unit,
        trajectory_length=settings.trajectory_length * unit,
        metric=metric,
        averaging=strongly_typed(init(FIRST_STEP * unit), dtype),
        count=0 * unit,
        mean=zeros,
        squares=zeros,
        retries=jnp.zeros((), bool),
        extra=extra,
    )


def averaging(settings: SamplerSettings) -> tuple[Callable, Callable, Callable]:
    """Init, update and final of BlackJAX's dual averaging of the step size."""
    return blackjax("adaptation.step_size").dual_averaging_adaptation(settings.target_acceptance)


def strongly_typed(tree: Any, dtype: DTypeLike) -> Any:
    """The tree without weak types, as a scan's carry must be: floats of `dtype`, the rest int32."""

    def convert(leaf):
        is_float = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf, dtype if is_float else jnp.int32)

    return jax.tree.map(convert, tree)


def count_draws(tuning: Tuning, x: Float[Array, "K P"]) -> Tuning:
    """Add a draw of each chain to the moments of the window (Chan et al. 1979)."""
    k, mean = len(x), x.mean(0)
    count = tuning.count + k
    apart = mean - tuning.mean
    squares = ((x - mean[None]) ** 2).sum(0) + apart**2 * (tuning.count * k / count)
    return tuning._replace(
        count=count, mean=tuning.mean + apart * (k / count), squares=tuning.squares + squares
    )


def end_window(
    tuning: Tuning,
    draws: Float[Array, "S P"] | None,
    gradients: Float[Array, "S P"] | None,
    settings: SamplerSettings,
) -> Tuning:
    """Take the metric from the draws of the window, and begin the next one.

    `diagonal` pools the variances of all chains. `low_rank` minimises the Fisher divergence of
    draws and gradients of the log density (Seyboldt et al. 2026, nutpie), as BlackJAX does it.

    Parameters
    ----------
    tuning
        At the end of the window.
    draws, gradients
        Positions x and gradients of the remainder r there; only the metric `low_rank` needs them.
    settings
        Metric and target acceptance.
    """
    metric = tuning.metric
    if settings.metric == "diagonal":
        variance = (tuning.squares + PRIOR_WEIGHT) / (tuning.count + PRIOR_WEIGHT)
        metric = metric._replace(sd=jnp.sqrt(variance))
    elif settings.metric == "low_rank":
        assert draws is not None and gradients is not None
        low_rank = blackjax("adaptation.metric_estimators").fisher_score_low_rank(
            draws, gradients - draws, max_rank=min(settings.metric_rank, draws.shape[1])
        )
        metric = strongly_typed(Metric(low_rank.sigma, low_rank.U, low_rank.lam), draws.dtype)
    init, _, final = averaging(settings)
    step_size = jnp.minimum(final(tuning.averaging), MAX_STEP).astype(tuning.step_size.dtype)
    return tuning._replace(
        metric=metric,
        step_size=step_size,
        averaging=strongly_typed(init(step_size), step_size.dtype),
        count=jnp.zeros_like(tuning.count),
        mean=jnp.zeros_like(tuning.mean),
        squares=jnp.zeros_like(tuning.squares),
    )
