"""Geweke's joint-distribution test: a sampler's transitions must leave the posterior invariant.

A chain that alternates transitions at given data with a redraw of the data at given parameters,

    theta' ~ T(. | theta, y)  (a few times),    y' ~ p(y | X, theta'),

keeps (theta', y) distributed as p(theta) p(y|X, theta) if and only if T leaves p(theta|X, y)
invariant for almost all y. Its moments are compared with those of direct draws of (theta, y). Test
functions are evaluated at (theta', y), after the transitions and before the redraw: a later
evaluation could not detect a sampler that ignores the data.

The test involves no ranks, gates, warm-up or thinning, and so fails for other reasons than
`isounc.studies.calibration.sbc`.

Source: Geweke 2004, "Getting it right: joint distribution tests of posterior simulators",
JASA 99(467).
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from scipy import stats

from isounc.centring import make_frame
from isounc.checks import check_choice, check_count, check_real
from isounc.densities import Data, on_device
from isounc.models import Model
from isounc.problems import Problem
from isounc.sampling.adaptation import start_tuning
from isounc.sampling.convergence import diagnose
from isounc.sampling.coordinates import Coordinates, Prior, candidates
from isounc.sampling.kernels import SAMPLERS, start_chains
from isounc.sampling.settings import SamplerSettings
from isounc.studies.calibration.sbc import (
    FAULTS,
    draw_joint,
    draw_labels,
    quantities,
    quantity_names,
)


@dataclass(frozen=True)
class GewekeSettings:
    """Size of a joint-distribution test."""

    num_chains: int = 64
    """Number of chains K. Each starts from its own direct draw of (theta, y), without warm-up."""
    num_iterations: int = 2000
    """Redraws of the data in each chain."""
    num_rows: int = 8
    """Most rows of the problem's data that are used; more data slow the chains down."""
    num_transitions: int = 3
    """Transitions of the sampler between two redraws."""
    mean_steps: int = 8
    """Mean number of integration steps, uniform from 1 to twice this less one (not nuts)."""
    num_direct: int = 100_000
    """Direct draws of (theta, y) with which the chains are compared."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("num_chains", 2, 10**5),
            ("num_iterations", 4, 10**7),
            ("num_rows", 4, 10**6),
            ("num_transitions", 1, 10**5),
            ("mean_steps", 1, 10**6),
            ("num_direct", 2, 10**8),
        ):
            check_count(name, getattr(self, name), least, most)


class GewekeResult(NamedTuple):
    """T = 2 Q moments of the chains and of direct draws, in units of the prior's mean and sd."""

    moments: tuple[str, ...]
    """Names: a quantity g with `mean`, of u = (g - prior mean) / prior sd, or `square`, of u^2."""
    chain_mean: Float[np.ndarray, " T"]
    """Mean over all chains and iterations."""
    chain_se: Float[np.ndarray, " T"]
    """Its standard error, sd of the K chain means / sqrt(K). The chains are independent and, if the
    sampler is correct, stationary from the start, so that it holds for any autocorrelation."""
    direct_mean: Float[np.ndarray, " T"]
    """Mean over direct draws: 0 and 1 by the choice of units."""
    direct_se: Float[np.ndarray, " T"]
    """Its standard error, from independent draws."""
    ess: Float[np.ndarray, " T"]
    """Effective draws of the chains, from their autocorrelations."""
    z: Float[np.ndarray, " T"]
    """(chain_mean - direct_mean) / hypot(chain_se, direct_se)."""
    p_value: Float[np.ndarray, " T"]
    """Two-sided p-value of z under Student's t of K - 1 degrees of freedom."""
    num_chains: int
    """Number of chains K."""
    acceptance: float
    """Mean acceptance probability of the transitions."""


def _transition(
    key: PRNGKeyArray,
    x: Float[Array, " P"],
    coordinates: Coordinates,
    model: Model,
    data: Data,
    step_size: Float[Array, ""],
    num_steps: Int[Array, ""],
    settings: SamplerSettings,
) -> tuple[Float[Array, " P"], Float[Array, ""]]:
    """Make one transition of a sampler at fixed step size and identity metric.

    Only these lines know how a kernel is called. They use the sampler's own log density, which is
    under test.
    """
    sampler = SAMPLERS[settings.sampler]

    def remainder(x):
        return coordinates.remainder(x, model, data)

    chains = start_chains(x[None], remainder)
    extra = sampler.begin(x.size, settings)
    tuning = start_tuning(x.size, x.dtype, settings, extra=extra)
    # Half a step is subtracted so that rounding cannot add one; u = 1/2 gives every sampler's mean
    # length.
    tuning = tuning._replace(
        step_size=step_size,
        trajectory_length=(num_steps - 0.5) * step_size,
        retries=jnp.ones((), bool),
    )
    chains, info, _ = sampler.transition(key, chains, tuning, 0.5, remainder, settings)
    return chains.x[0], jnp.asarray(info.acceptance)[0]


def _position(
    theta: Float[Array, " P"], coordinates: Coordinates, model: Model, data: Data
) -> Float[Array, " P"]:
    """The x whose parameters are theta.

    Given the hidden layers, which all coordinates but `Curvature` leave in those of the prior, the
    map is affine, and so a single Newton step is exact.
    """
    x = theta / data.prior_sd
    jacobian = jax.jacfwd(lambda x: coordinates.theta(x, model, data))(x)
    return x + jnp.linalg.solve(jacobian, theta - coordinates.theta(x, model, data))


@functools.partial(jax.jit, static_argnames=("model", "prior_sd", "sampler_settings", "settings"))
def _chains(
    key: PRNGKeyArray,
    coordinates: Coordinates,
    data: Data,
    rows: Int[Array, " rows"],
    sampled_sd: Float[Array, " P"],
    X_query: Float[Array, "queries D"],
    step_size: Float[Array, ""],
    num_steps: Int[Array, "S transitions"],
    *,
    model: Model,
    prior_sd: float,
    sampler_settings: SamplerSettings,
    settings: GewekeSettings,
) -> tuple[Float[Array, "K S Q"], Float[Array, "K S"]]:
    """Run the chains; return the test quantities along them, and the mean acceptance.

    The transitions are given the rows `rows` of the data and the prior sds `sampled_sd`, either of
    which a planted fault may have changed.
    """
    X, noise_sd = data.X, data.noise_sd

    def parameters(x: Float[Array, " P"]) -> Float[Array, " P"]:
        return coordinates.theta(x, model, data._replace(prior_sd=sampled_sd))

    def run_chain(key):
        key_start, key_run = jax.random.split(key)

        def iterate(carry, xs):
            x, y = carry
            key, lengths = xs
            key_moves, key_y = jax.random.split(key)
            given = Data(X[rows], y[rows], noise_sd, sampled_sd)

            def move(x, xs):
                return _transition(
                    xs[0], x, coordinates, model, given, step_size, xs[1], sampler_settings
                )

            keys = jax.random.split(key_moves, settings.num_transitions)
            x, acceptance = jax.lax.scan(move, x, (keys, lengths))
            theta = parameters(x)
            values = quantities(model, theta, Data(X, y, noise_sd, data.prior_sd), X_query)
            y = draw_labels(key_y, model, theta, X, noise_sd)
            return (x, y), (values, acceptance.mean())

        theta, y = draw_joint(key_start, model, X, noise_sd, prior_sd=prior_sd)
        start = _position(theta, coordinates, model, data._replace(prior_sd=sampled_sd)), y
        keys = jax.random.split(key_run, settings.num_iterations)
        return jax.lax.scan(iterate, start, (keys, num_steps))[1]

    return jax.vmap(run_chain)(jax.random.split(key, settings.num_chains))


@functools.partial(jax.jit, static_argnames=("model", "prior_sd", "settings"))
def _direct(
    key: PRNGKeyArray,
    data: Data,
    X_query: Float[Array, "queries D"],
    *,
    model: Model,
    prior_sd: float,
    settings: GewekeSettings,
) -> Float[Array, "draws Q"]:
    """Evaluate the test quantities at independent draws of (theta, y)."""

    def draw(key):
        theta, y = draw_joint(key, model, data.X, data.noise_sd, prior_sd=prior_sd)
        return quantities(model, theta, data._replace(y=y), X_query)

    return jax.vmap(draw)(jax.random.split(key, settings.num_direct))


def geweke(
    key: PRNGKeyArray,
    problem: Problem,
    model: Model,
    *,
    prior_sd: float,
    sampler: str,
    step_size: float,
    coordinates: str = "prior",
    whitened_step: float | None = None,
    settings: GewekeSettings | None = None,
    fault: str = "none",
) -> GewekeResult:
    """Run the joint-distribution test of one model's transitions.

    Parameters
    ----------
    key
        Source of all randomness.
    problem
        Source of X, of the likelihood and of the query locations; its labels are not used. Unlike
        in SBC, data that hold a single class are kept.
    sampler
        A name of `isounc.sampling.kernels.SAMPLERS`.
    step_size
        Integration step in prior standard deviations. It is fixed, since a step that adapts to the
        state would leave another distribution invariant.
    coordinates
        A name as in `SamplerSettings`; `auto` takes the first candidate. They are made once, from
        the problem's labels: no labels make them wrong for others.
    whitened_step
        Integration step in coordinates other than the prior's; None is `step_size`.
    fault
        One of `isounc.studies.calibration.sbc.FAULTS`, planted in the input of the transitions.

    Raises
    ------
    ValueError
        If the sampler or the fault is unknown, or `prior_sd` or `step_size` is not positive.
    """
    settings = GewekeSettings() if settings is None else settings
    check_choice("sampler", sampler, SAMPLERS)
    check_choice("fault", fault, FAULTS)
    check_real("step_size", step_size, positive=True)
    few = problem.X[: settings.num_rows]
    problem = dataclasses.replace(problem, X=few, y=problem.y[: settings.num_rows])
    frame = make_frame([problem], model, prior_sd)
    key, key_coordinates = jax.random.split(key)
    made = candidates(coordinates, [problem], frame, prior_sd, key_coordinates[None])[0]
    if whitened_step is not None and not isinstance(made, Prior):
        step_size = check_real("whitened_step", whitened_step, positive=True)
    model, names = frame.model, quantity_names(problem)
    made, data = jax.tree.map(lambda a: a[0], (made, on_device(frame.data)))
    X_query = jnp.asarray(frame.locations(problem, 0), data.X.dtype)
    key_chains, key_direct, key_steps = jax.random.split(key, 3)
    # All chains share the lengths of their trajectories, which depend on no state: none has to wait
    # for the longest.
    num_steps = jax.random.randint(
        key_steps, (settings.num_iterations, settings.num_transitions), 1, 2 * settings.mean_steps
    )
    rows, sampled_sd = FAULTS[fault](len(data.X), prior_sd)
    values, acceptance = _chains(
        key_chains, made, data, rows, model.param_prior_sd(sampled_sd).astype(data.X.dtype), X_query,
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
    # sd / sqrt(ESS) would rest on an ESS that is itself an estimate, and a poor one if the data
    # hold theta fast.
    chain_se = chain_u.mean(1).std(0, ddof=1) / np.sqrt(settings.num_chains)
    chain_mean = chain_u.mean((0, 1))
    z = (chain_mean - direct_u.mean(0)) / np.hypot(chain_se, direct_se)
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
