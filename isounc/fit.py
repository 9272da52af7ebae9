"""Point estimates theta*, and the MAP among them, to a true stationary point.

Several problems of one shape (seeds, say) are fitted in one compiled, vmapped call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from isounc import densities
from isounc.centring import Frame, make_frame
from isounc.checks import check_count, check_real, settings_from
from isounc.covariance import gauss_newton_diagonal, hessian
from isounc.densities import Data, on_device
from isounc.models import Model, Theta, check_inputs
from isounc.precision import double_precision
from isounc.problems import Problem

DENSE_HESSIAN_MAX = 1100
"""Largest P whose Hessian is formed densely (10 MB, about a second on one core); Lanczos beyond."""


@dataclass(frozen=True)
class MapSettings:
    """How the MAP is searched for."""

    num_restarts: int = 4
    """Starts drawn from the prior; the highest log posterior is kept."""
    adam_steps: int = 300
    """Full-batch Adam steps before L-BFGS."""
    adam_learning_rate: float = 0.05
    """Adam's learning rate in prior standard deviations."""
    lbfgs_steps: int = 2000
    """At most this many L-BFGS iterations."""
    tolerance: float = 1e-5
    """The check: relative gradient norm below this. L-BFGS itself aims a hundred times lower."""

    def __post_init__(self):
        for name, most in (("num_restarts", 10**4), ("adam_steps", 10**7), ("lbfgs_steps", 10**7)):
            check_count(name, getattr(self, name), 1, most)
        for name in ("adam_learning_rate", "tolerance"):
            check_real(name, getattr(self, name), positive=True)


class PointEstimate(NamedTuple):
    """A point theta* with the checks that it passed or failed."""

    kind: str
    """map, trained, stopped (trained until a validation loss rose) or chain_mean."""
    theta: Float[np.ndarray, " P"]
    """The parameters."""
    log_density: float
    """Unnormalised log posterior at theta, nats."""
    log_likelihood: float
    """Summed log likelihood of the training data at theta, nats."""
    rel_grad_norm: float | None
    """||grad U|| / max(1, ||z||) in prior coordinates z = theta / sigma, with U minus the log
    posterior (map only); where inputs are off centre (`isounc.centring`) the gradient is by z over
    the posterior's scale."""
    hessian_min_eigenvalue: float | None
    """Smallest eigenvalue of the Hessian of U in prior coordinates, where the prior alone gives 1
    (map only)."""
    hessian_method: str | None
    """dense or lanczos."""
    hessian: Float[np.ndarray, "P P"] | None
    """Dense Hessian of U in theta, where it was formed."""
    restart_log_densities: tuple[float, ...]
    """Log posterior that each restart ended at."""
    passed: bool
    """All checks passed."""
    reasons: tuple[str, ...]
    """Why not, one sentence a failed check."""


def fit_map(
    problem: Problem,
    model: Model,
    *,
    prior_sd: float,
    key: PRNGKeyArray,
    settings: MapSettings | None = None,
    **fields: Any,
) -> PointEstimate:
    """Find maximum a posteriori parameters.

        theta* = argmax_theta  log p(y | X, theta) + log N(theta; 0, sigma_l^2)

    Adam then L-BFGS, full batch, in prior coordinates and float64, from several prior draws. The
    result reports the relative gradient norm and the smallest Hessian eigenvalue, and fails its
    check (`passed` False, with `reasons`) if it is no strict local maximum.

    Parameters
    ----------
    problem, model
        Training data, and a model from `make_model`.
    prior_sd
        Prior standard deviation; `Model.group_prior_sd` spreads it over the layers.
    key
        JAX random key; decides the starting points.
    settings
        All settings of the search; or give some of them by keyword, e.g. `num_restarts=8`.

    Raises
    ------
    ValueError
        If `prior_sd` is not positive, or settings are given as a whole and by keyword.
    """
    settings = settings_from(MapSettings, settings, fields)
    return fit_maps([problem], model, prior_sd=prior_sd, keys=[key], settings=settings)[0]


def fit_maps(
    problems: Sequence[Problem],
    model: Model,
    *,
    prior_sd: float,
    keys: Sequence[PRNGKeyArray],
    settings: MapSettings = MapSettings(),
) -> list[PointEstimate]:
    """Call `fit_map` on several problems of one shape, in one compiled program."""
    check_inputs(problems, model, keys)
    frame = make_frame(problems, model, prior_sd)
    with double_precision():
        data = on_device(frame.data)
        shape = (settings.num_restarts, model.num_params)
        starts = np.stack([generator(key).standard_normal(shape) for key in keys])
        # Off centre the curvature spans ten orders of magnitude and more.
        scale = np.ones((len(problems), model.num_params))
        if frame.centred:
            scale = np.asarray(_curvature_scale(data, starts, model=frame.model))
        z, values, norms = jax.device_get(
            _search(data, scale, starts, model=frame.model, settings=settings)
        )
        return [
            _checked_map(problem, frame, i, prior_sd, scale[i], z[i], values[i], norms[i], settings)
            for i, problem in enumerate(problems)
        ]


def generator(key: PRNGKeyArray) -> np.random.Generator:
    """NumPy's generator from a JAX key, as JAX would compile a program for each shape of draws."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _potential(
    model: Model, data: Data, scale: Float[Array, " P"] | None = None
) -> Callable[[jax.Array], jax.Array]:
    """U(z) = -log posterior at theta = sigma z, without constants, which would cost digits.

    With a scale it is a function of z / scale.
    """

    def potential(z):
        z = z if scale is None else scale * z
        return 0.5 * z @ z - densities.log_likelihood(model, data.prior_sd * z, data)

    return potential


@functools.partial(jax.jit, static_argnames="model")
def _curvature_scale(
    data: Data, starts: Float[Array | np.ndarray, "B R P"], *, model: Model
) -> Float[Array, "B P"]:
    """(1 + mean diagonal of the GGN at the starts)^-1/2 in prior coordinates."""

    def at(data: Data, z: Float[Array, " P"]) -> Float[Array, " P"]:
        laplace = gauss_newton_diagonal(model, data.prior_sd * z, data)
        return (data.prior_sd / laplace.sd) ** 2

    over_starts = jax.vmap(at, in_axes=(None, 0))
    return jax.vmap(lambda data, zs: over_starts(data, zs).mean(0) ** -0.5)(data, starts)


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def _search(
    data: Data,
    scales: Float[Array | np.ndarray, "B P"],
    starts: Float[Array | np.ndarray, "B R P"],
    *,
    model: Model,
    settings: MapSettings,
) -> tuple[Float[Array, "B R P"], Float[Array, "B R"], Float[Array, "B R"]]:
    """z, U(z) and the relative gradient norm that each of R restarts of B problems ends at.

    The search is for z / scale.
    """

    def search_from(data, scale, z):
        potential, z = _potential(model, data, scale), z / scale
        adam = optax.adam(
            optax.cosine_decay_schedule(settings.adam_learning_rate, settings.adam_steps)
        )

        def adam_step(carry, _):
            z, state = carry
            updates, state = adam.update(jax.grad(potential)(z), state)
            return (optax.apply_updates(z, updates), state), None

        (z, _), _ = jax.lax.scan(adam_step, (z, adam.init(z)), length=settings.adam_steps)

        lbfgs = optax.lbfgs(memory_size=20)

        def relative(z, gradient):
            return jnp.linalg.norm(gradient) / jnp.maximum(1.0, jnp.linalg.norm(scale * z))

        def unfinished(carry):
            z, _, gradient, _, count = carry
            target = 1e-2 * settings.tolerance
            return (count < settings.lbfgs_steps) & (relative(z, gradient) > target)

        def lbfgs_step(carry):
            z, value, gradient, state, count = carry
            updates, state = lbfgs.update(
                gradient, state, z, value=value, grad=gradient, value_fn=potential
            )
            # The line search leaves the value and gradient of the point that it accepted.
            value, gradient = (optax.tree_utils.tree_get(state, name) for name in ("value", "grad"))
            return optax.apply_updates(z, updates), value, gradient, state, count + 1

        start = (z, *jax.value_and_grad(potential)(z), lbfgs.init(z), 0)
        z, value, gradient, _, _ = jax.lax.while_loop(unfinished, lbfgs_step, start)
        return jnp.asarray(scale * z), jnp.asarray(value), relative(z, gradient)

    def search_problem(data, scale, starts):
        return over(lambda z: search_from(data, scale, z), starts)

    # At once, a search that has converged computes on until the slowest has: on a CPU that is lost.
    over = jax.lax.map if jax.default_backend() == "cpu" else _at_once
    return over(lambda given: search_problem(*given), (data, scales, starts))


def _at_once(f: Callable[[Any], Any], xs: Any) -> Any:
    """`jax.lax.map`, but over all xs at once."""
    return jax.vmap(f)(xs)


def _checked_map(
    problem: Problem,
    frame: Frame,
    i: int,
    prior_sd: float,
    scale: Float[np.ndarray, " P"],
    restarts: Float[np.ndarray, "R P"],
    values: Float[np.ndarray, " R"],
    norms: Float[np.ndarray, " R"],
    settings: MapSettings,
) -> PointEstimate:
    """The best restart of the i-th problem, with its checks."""
    # A restart that has not converged may sit higher by rounding: of near-ties the converged one is
    # taken.
    rank = values + np.where(norms < settings.tolerance, 0, 1e-3)
    if not (np.isfinite(rank) & np.isfinite(restarts).all(1)).any():
        raise ValueError(
            f"problem {problem.name!r} must have a finite log posterior where it is searched for "
            f"the MAP, got none in {len(rank)} restarts: standardise X, which goes from "
            f"{problem.X.min():.3g} to {problem.X.max():.3g}, and y"
        )
    best = int(np.argmin(np.where(np.isnan(rank), np.inf, rank)))
    z, value, norm = restarts[best], values[best], norms[best]
    model = frame.original
    data = densities.make_data(problem, model, prior_sd)
    in_frame = jax.tree.map(lambda a: jnp.asarray(a[i]), frame.data)
    sd = np.asarray(data.prior_sd)
    theta = frame.theta(z * frame.data.prior_sd[i], i)
    dense = model.num_params <= DENSE_HESSIAN_MAX
    matrix = np.asarray(_hessian(theta, data, model=model)) if dense else None
    if not dense:
        eigenvalue = _lanczos_min_eigenvalue(frame.model, in_frame, z)
    elif frame.centred:
        theta_in_frame = z * frame.data.prior_sd[i]
        curvature = np.asarray(_hessian(theta_in_frame, in_frame, model=frame.model))
        eigenvalue = _graded_min_eigenvalue(curvature, np.asarray(frame.data.prior_sd[i]), scale)
    else:
        eigenvalue = float(np.linalg.eigvalsh(matrix * sd * sd[:, None])[0])
    reasons = []
    if not norm < settings.tolerance:
        reasons.append(
            f"The MAP did not converge: relative gradient norm {norm:.1e}, "
            f"bound {settings.tolerance:.0e}."
        )
    if eigenvalue is None:
        reasons.append("Lanczos did not find the Hessian's smallest eigenvalue.")
    elif not eigenvalue > 0:
        reasons.append(
            f"The MAP is no strict maximum: smallest Hessian eigenvalue {eigenvalue:.1e}."
        )
    # The search leaves out the constants of the log prior.
    log_densities = -(values + np.log(sd).sum() + 0.5 * sd.size * np.log(2 * np.pi))
    return PointEstimate(
        kind="map",
        theta=theta,
        log_density=float(log_densities[best]),
        log_likelihood=float(0.5 * z @ z - value),
        rel_grad_norm=float(norm),
        hessian_min_eigenvalue=eigenvalue,
        hessian_method="dense" if dense else "lanczos",
        hessian=matrix,
        restart_log_densities=tuple(map(float, log_densities)),
        passed=not reasons,
        reasons=tuple(reasons),
    )


@functools.partial(jax.jit, static_argnames="model")
def _hessian(theta: Float[Array, " P"], data: Data, *, model: Model) -> Float[Array, "P P"]:
    return hessian(model, theta, data)


@functools.partial(jax.jit, static_argnames="model")
def _hessian_vector_product(
    z: Float[Array, " P"], v: Float[Array, " P"], data: Data, *, model: Model
) -> Float[Array, " P"]:
    return jax.jvp(jax.grad(_potential(model, data)), (z,), (v,))[1]


def _graded_min_eigenvalue(
    hessian: Float[np.ndarray, "P P"], sd: Float[np.ndarray, " P"], scale: Float[np.ndarray, " P"]
) -> float:
    """Smallest eigenvalue in prior coordinates of a Hessian of entries of very different size.

    The inverse has it as its largest, which keeps its digits.
    """
    even = hessian * np.outer(sd * scale, sd * scale)
    if np.linalg.eigvalsh(even)[0] > 0:
        return float(1 / np.linalg.eigvalsh(np.linalg.inv(even) * np.outer(scale, scale))[-1])
    return float(np.linalg.eigvalsh(hessian * np.outer(sd, sd))[0])


def _lanczos_min_eigenvalue(model: Model, data: Data, z: Theta) -> float | None:
    """Smallest eigenvalue of the Hessian in prior coordinates by ARPACK; None if not converged."""
    # A third of a second to import, for large networks alone.
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    def product(v):
        return np.asarray(_hessian_vector_product(z, jnp.asarray(v.ravel()), data, model=model))

    # SciPy's stubs know neither the keywords of LinearOperator nor a fractional tolerance.
    shape, dtype = (z.size, z.size), np.asarray(z).dtype
    operator = LinearOperator(shape, matvec=product, dtype=dtype)  # pyright: ignore
    start = np.random.default_rng(0).standard_normal(z.size)
    settings: dict[str, Any] = {"which": "SA", "tol": 1e-3, "v0": start}
    try:
        return float(eigsh(operator, k=1, return_eigenvectors=False, **settings)[0])
    except ArpackNoConvergence:
        return None
