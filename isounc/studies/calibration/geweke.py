"""Geweke's joint-distribution test: whether a sampler's transitions leave p(theta|X, y) as it is, whatever the data.

A chain that alternates transitions at given data with a redraw of the data at given parameters,

    theta' ~ T(. | theta, y)  (a few times),    y' ~ p(y | X, theta'),

keeps (theta', y) distributed as p(theta) p(y|X, theta) if and only if T leaves p(theta|X, y) invariant for almost all
y. Its moments are held against those of direct draws of (theta, y). Test functions are evaluated at (theta', y), after
the transitions and before the redraw: after it, a sampler that ignores data could not be seen.

It knows nothing of ranks, gates, warm-up or thinning, and so fails for other reasons than
`isounc.studies.calibration.sbc`.

Source: Geweke 2004, "Getting it right: joint distribution tests of posterior simulators", JASA 99(467).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy import stats

from isounc import densities
from isounc.checks import check_choice, check_count, check_real
from isounc.densities import Data
from isounc.models import Model
from isounc.problems import Problem
from isounc.sampling.adaptation import start_tuning
from isounc.sampling.convergence import diagnose
from isounc.sampling.coordinates import Prior
from isounc.sampling.kernels import SAMPLERS, start_chains
from isounc.sampling.settings import SamplerSettings
from isounc.studies.calibration.sbc import (
    FAULTS,
    draw_joint,
    draw_labels,
    quantities,
    quantity_names,
    query_points,
)


@dataclass(frozen=True)
class GewekeSettings:
    """Size of a joint-distribution test."""

    num_chains: int = 64
    """K, each started from its own direct draw of (theta, y), so that no chain needs a warm-up."""
    num_iterations: int = 2000
    """Redraws of the data in each chain."""
    num_rows: int = 8
    """Rows of the problem's data that are used, at most: the more the data say of theta, the longer a chain stays."""
    num_transitions: int = 3
    """Transitions of the sampler between two redraws."""
    mean_steps: int = 8
    """Integration steps on average (not nuts), uniform between 1 and twice this less one."""
    num_direct: int = 100_000
    """Direct draws of (theta, y) that the chains are held against."""

    def __post_init__(self) -> None:
        for name, least in (
            ("num_chains", 2),
            ("num_iterations", 4),
            ("num_rows", 4),
            ("num_transitions", 1),
            ("mean_steps", 1),
            ("num_direct", 2),
        ):
            check_count(name, getattr(self, name), least)


class GewekeResult(NamedTuple):
    """Moments of the chains against those of direct draws; T = 2 Q moments, in units of the prior's mean and sd."""

    moments: tuple[str, ...]
    """Names: each of `quantity_names` with `mean` (of u = (g - prior mean) / prior sd) and `square` (of u^2)."""
    chain_mean: Float[np.ndarray, " T"]
    """Mean over all chains and iterations."""
    chain_se: Float[np.ndarray, " T"]
    """Its standard error, sd of the K chain means / sqrt(K): the chains are independent and, if the sampler is right,
    stationary from the start, so it holds whatever their autocorrelation."""
    direct_mean: Float[np.ndarray, " T"]
    """Mean over direct draws: 0 and 1 by the choice of units."""
    direct_se: Float[np.ndarray, " T"]
    """Its standard error, from independent draws."""
    ess: Float[np.ndarray, " T"]
    """Effective draws of the chains, from their autocorrelations."""
    z: Float[np.ndarray, " T"]
    """(chain_mean - direct_mean) / hypot(chain_se, direct_se)."""
    p_value: Float[np.ndarray, " T"]
    """Two-sided, of z, by Student's t of K - 1 degrees of freedom."""
    num_chains: int
    """K."""
    acceptance: float
    """Mean acceptance probability of the transitions."""


def _transition(
    key, theta, model: Model, data: Data, step_size, num_steps, settings: SamplerSettings
) -> tuple[Array, Any]:
    """One transition of the reference sampler at fixed step size and identity metric in prior coordinates.

    The only lines that know how a kernel is called. They take the sampler's own log density, for it is under test.
    """
    sampler = SAMPLERS[settings.sampler]

    def remainder(x):
        return Prior().remainder(x, model, data)

    chains = start_chains((theta / data.prior_sd)[None], remainder)
    extra = sampler.begin(theta.size, settings)
    tuning = start_tuning(theta.size, theta.dtype, settings, extra=extra)
    # Half a step less than asked for, so that rounding cannot make it one more; u = 1/2 is every sampler's mean length.
    tuning = tuning._replace(step_size=step_size, trajectory_length=(num_steps - 0.5) * step_size)
    chains, info, _ = sampler.transition(key, chains, tuning, 0.5, remainder, settings)  # pyright: ignore
    return data.prior_sd * chains.x[0], jnp.asarray(info.acceptance)[0]


@functools.partial(jax.jit, static_argnames=("model", "prior_sd", "sampler_settings", "settings"))
def _chains(
    key, data, rows, sampled_sd, X_query, step_size, num_steps,
    *, model, prior_sd, sampler_settings, settings,
):  # fmt: skip
    """Test quantities (K, S, Q) along the chains, and the mean acceptance (K, S).

    The transitions are given the rows ``rows`` of the data and the prior sds ``sampled_sd`` (P,), which a planted fault
    may have changed.
    """
    X, noise_sd = data.X, data.noise_sd

    def one_chain(key):
        key_start, key_run = jax.random.split(key)

        def iterate(carry, xs):
            theta, y = carry
            key, steps = xs
            key_moves, key_y = jax.random.split(key)
            seen = Data(X[rows], y[rows], noise_sd, sampled_sd)

            def move(theta, xs):
                return _transition(xs[0], theta, model, seen, step_size, xs[1], sampler_settings)

            keys = jax.random.split(key_moves, settings.num_transitions)
            theta, acceptance = jax.lax.scan(move, theta, (keys, steps))
            values = quantities(model, theta, Data(X, y, noise_sd, data.prior_sd), X_query)
            y = draw_labels(key_y, model, theta, X, noise_sd)
            return (theta, y), (values, acceptance.mean())

        start = draw_joint(key_start, model, X, noise_sd, prior_sd=prior_sd)
        keys = jax.random.split(key_run, settings.num_iterations)
        return jax.lax.scan(iterate, start, (keys, num_steps))[1]

    return jax.vmap(one_chain)(jax.random.split(key, settings.num_chains))


@functools.partial(jax.jit, static_argnames=("model", "prior_sd", "settings"))
def _direct(key, data, X_query, *, model, prior_sd, settings):
    """Test quantities (num_direct, Q) at independent draws of (theta, y)."""

    def one(key):
        theta, y = draw_joint(key, model, data.X, data.noise_sd, prior_sd=prior_sd)
        return quantities(model, theta, data._replace(y=y), X_query)

    return jax.vmap(one)(jax.random.split(key, settings.num_direct))


def geweke(
    key: PRNGKeyArray,
    problem: Problem,
    model: Model,
    *,
    prior_sd: float,
    sampler: str,
    step_size: float,
    settings: GewekeSettings | None = None,
    fault: str = "none",
) -> GewekeResult:
    """Run the joint-distribution test of one model's transitions.

    Parameters
    ----------
    key
        Decides every number drawn.
    problem
        Gives X, the likelihood and the query locations; its labels are not used. Data of one class only are kept here.
    sampler
        A name of `isounc.sampling.kernels.SAMPLERS`.
    step_size
        Integration step in prior standard deviations; fixed, because a step that is adapted to the state would leave
        another distribution invariant.
    fault
        One of `isounc.studies.calibration.sbc.FAULTS`, planted in what the transitions are given.

    Raises
    ------
    ValueError
        For an unknown sampler or fault, or a prior_sd or step_size that is not positive.
    """
    settings = GewekeSettings() if settings is None else settings
    check_choice("sampler", sampler, SAMPLERS)
    check_choice("fault", fault, FAULTS)
    check_real("step_size", step_size, positive=True)
    data = densities.make_data(problem, model, prior_sd)
    data = data._replace(X=data.X[: settings.num_rows], y=data.y[: settings.num_rows])
    X_query = jnp.asarray(query_points(problem), data.X.dtype)
    key_chains, key_direct, key_steps = jax.random.split(key, 3)
    # All chains share the lengths of their trajectories: they depend on no state, and none waits for the longest.
    num_steps = jax.random.randint(
        key_steps, (settings.num_iterations, settings.num_transitions), 1, 2 * settings.mean_steps
    )
    rows, sampled_sd = FAULTS[fault](len(data.X), prior_sd)
    values, acceptance = _chains(
        key_chains, data, rows, model.param_prior_sd(sampled_sd).astype(data.X.dtype), X_query,
        jnp.asarray(step_size, data.X.dtype), num_steps,
        model=model, prior_sd=prior_sd, sampler_settings=SamplerSettings(sampler=sampler),
        settings=settings,
    )  # fmt: skip
    direct = _direct(key_direct, data, X_query, model=model, prior_sd=prior_sd, settings=settings)
    values, direct = np.asarray(values, float), np.asarray(direct, float)
    mean, sd = direct.mean(0), direct.std(0)
    chain_u, direct_u = (values - mean) / sd, (direct - mean) / sd
    chain_u = np.concatenate([chain_u, chain_u**2], axis=2)
    direct_u = np.concatenate([direct_u, direct_u**2], axis=1)
    direct_se = direct_u.std(0) / np.sqrt(len(direct_u))
    # Not sd / sqrt(ESS), whose ESS is itself an estimate, and a poor one where the data hold theta fast.
    chain_se = chain_u.mean(1).std(0, ddof=1) / np.sqrt(settings.num_chains)
    chain_mean = chain_u.mean((0, 1))
    z = (chain_mean - direct_u.mean(0)) / np.hypot(chain_se, direct_se)
    names = quantity_names(problem)
    return GewekeResult(
        moments=tuple(f"{name}, {moment}" for moment in ("mean", "square") for name in names),
        chain_mean=chain_mean,
        chain_se=chain_se,
        direct_mean=direct_u.mean(0),
        direct_se=direct_se,
        ess=diagnose(chain_u).ess_mean,
        z=z,
        p_value=2 * stats.t.sf(np.abs(z), settings.num_chains - 1),
        num_chains=settings.num_chains,
        acceptance=float(np.asarray(acceptance).mean()),
    )
