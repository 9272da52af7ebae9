"""Estimates of epistemic and aleatoric uncertainty at a point theta*, all from one Jacobian of the outputs.

`link_aware`, `laplace` and `estimate` are one call each for a user (`isounc.estimates.isotropic` has `isotropic`, for
any model); `estimate_all` computes several at once for the experiments. `isounc.estimates.estimators` defines each.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from isounc import densities
from isounc.checks import check_array, check_choice, check_count, check_real
from isounc.estimates.estimators import (
    ESTIMATORS,
    Estimate,
    Evidence,
    Linearised,
    isotropic_rule,
)
from isounc.estimates.grams import group_grams, output_grams
from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model
from isounc.problems import Problem

_NO_EVIDENCE = Evidence()


def layer_rms(model: Model, theta: Float[Array, " P"]) -> Float[Array, " P"]:
    """rms(W_l) of each parameter's group: a scale where there is no prior."""
    squares = np.asarray(theta, float) ** 2
    groups = model.group_index
    means = np.bincount(groups, squares) / np.bincount(groups)
    return jnp.asarray(np.sqrt(means)[groups], jnp.asarray(theta).dtype)


def estimate_all(
    names: Sequence[str],
    model: Model,
    X: Float[Array, "N D"],
    theta: Float[Array, " P"],
    *,
    evidence: Evidence = _NO_EVIDENCE,
    num_chains: int = 1,
    noise_sd: float = 1.0,
    batch_size: int = 128,
) -> dict[str, Estimate]:
    """Several estimates at one point from one Jacobian.

    Parameters
    ----------
    names
        Keys of `ESTIMATORS`.
    model, X, theta
        Model, locations and point.
    evidence
        Prior, data, draws or Hessian, as the estimators need them.
    num_chains
        Chains in ``evidence.draws`` (chain-major, equally long).
    noise_sd
        Known noise of a regression; without effect otherwise.
    batch_size
        Locations whose Jacobian is held at a time.

    Raises
    ------
    ValueError
        For an unknown estimator (with near matches), one whose evidence is missing, or draws that ``num_chains``
        chains cannot have left.
    """
    if evidence.draws is not None:
        _check_draws(evidence.draws, model, num_chains)
    chosen = []
    for name in names:
        check_choice("estimator", name, ESTIMATORS)
        missing = [n for n in ESTIMATORS[name].needs if getattr(evidence, n) is None]
        if missing:
            raise ValueError(f"estimator {name!r} needs {', '.join(missing)}, which is not given.")
        chosen.append((name, ESTIMATORS[name]))
    theta, X = jnp.asarray(theta), jnp.asarray(X)
    # Not the type of X alone, which may hold integers.
    noise = jnp.asarray(noise_sd, jnp.result_type(theta, X))
    rules = tuple(chosen)
    outputs, grams = _grams(
        theta, X, evidence, rules=rules, model=model, num_chains=num_chains, batch_size=batch_size
    )
    likelihood = LIKELIHOODS[model.likelihood]
    return {
        name: _moments(outputs, grams[name], noise, rule=rule, likelihood=likelihood)
        for name, rule in rules
    }


def _check_draws(draws, model: Model, num_chains: int) -> None:
    check_count("num_chains", num_chains, 1)
    if draws.ndim != 2 or draws.shape[1] != model.num_params or draws.shape[0] % num_chains:
        raise ValueError(
            f"draws must have shape (S, {model.num_params}), S a multiple of num_chains={num_chains}; "
            f"got {draws.shape}"
        )
    if draws.shape[0] <= num_chains:
        raise ValueError(f"draws must be more than one per chain, got {draws.shape[0]}")


@functools.partial(jax.jit, static_argnames=("rules", "model", "num_chains", "batch_size"))
def _grams(theta, X, evidence, *, rules, model, num_chains, batch_size):
    covariances = {
        name: rule.covariance(model, theta, evidence, num_chains) for name, rule in rules
    }
    grouped = {name for name, rule in rules if rule.by_group}
    outputs, grams = None, {}
    if grouped:
        outputs, parts = group_grams(model, theta, X, batch_size=batch_size)
        first = np.unique(model.group_index, return_index=True)[1]
        for name in grouped:
            scales = covariances.pop(name).sd[first] ** 2
            grams[name] = jnp.tensordot(scales, parts, 1)
    if covariances:
        outputs, others = output_grams(model.apply, theta, X, covariances, batch_size=batch_size)
        grams |= others
    return outputs, grams


@functools.partial(jax.jit, static_argnames=("rule", "likelihood"))
def _moments(outputs, gram, noise_sd, *, rule, likelihood):
    p = likelihood.predict(outputs)
    aleatoric = likelihood.label_variance(outputs, noise_sd)
    epistemic, corrected = rule.moments(likelihood, outputs, gram, noise_sd)
    return Estimate(p, epistemic, aleatoric, epistemic + aleatoric, corrected)


def posterior_averaged(
    model: Model,
    X: Float[Array, "N D"],
    draws: Float[Array, "S P"],
    *,
    noise_sd: float = 1.0,
    batch_size: int = 128,
) -> Estimate:
    """E_draws[||grad p(x, theta)||^2]: the isotropic estimate without its linearisation at one point.

    An oracle that needs the posterior: its distance to `isotropic` is what one point theta* costs. ``p`` and
    ``aleatoric`` are averaged over the draws too, so that ``aleatoric`` estimates E[p(1-p)] and needs no correction.

    Parameters
    ----------
    model, X, draws
        Model, locations and posterior draws (``Posterior.draws``).
    noise_sd
        Known noise of a regression; without effect otherwise.
    batch_size
        Locations whose Jacobian is held at a time.
    """
    draws, X = jnp.asarray(draws), jnp.asarray(X)
    noise = jnp.asarray(noise_sd, jnp.result_type(draws, X))
    return _posterior_averaged(draws, X, noise, model=model, batch_size=batch_size)


@functools.partial(jax.jit, static_argnames=("model", "batch_size"))
def _posterior_averaged(draws, X, noise_sd, *, model, batch_size):
    rule, likelihood = Linearised(isotropic_rule), LIKELIHOODS[model.likelihood]

    def add(total, theta):
        outputs, parts = group_grams(model, theta, X, batch_size=batch_size)
        epistemic, _ = rule.moments(likelihood, outputs, parts.sum(0), noise_sd)
        one = (
            likelihood.predict(outputs),
            epistemic,
            likelihood.label_variance(outputs, noise_sd),
        )
        return jax.tree.map(jnp.add, total, one), None

    zero = jnp.zeros((X.shape[0], model.out_features), noise_sd.dtype)
    total, _ = jax.lax.scan(add, (zero, zero, zero), draws)
    p, epistemic, aleatoric = (t / draws.shape[0] for t in total)
    return Estimate(p, epistemic, aleatoric, epistemic + aleatoric, aleatoric)


def check_points(
    model: Model, X: Float[Array | np.ndarray, "N D"], theta: Float[Array | np.ndarray, " P"]
) -> tuple[Float[Array, "N D"], Float[Array, " P"]]:
    """X and theta in JAX's float type; a ValueError unless they are finite and of the model's shapes."""
    dtype = jnp.result_type(float)
    points = jnp.asarray(check_array("X", X, ndim=2), dtype)
    if points.shape[1] != model.in_features or points.shape[0] == 0:
        raise ValueError(
            f"X must have {model.in_features} columns and at least one row, got shape {points.shape}"
        )
    theta = jnp.asarray(check_array("theta", theta, ndim=1), dtype)
    if theta.shape != (model.num_params,):
        raise ValueError(f"theta must have shape ({model.num_params},), got {theta.shape}")
    return points, theta


def estimate(
    name: str,
    model: Model,
    X: Float[Array, "N D"],
    theta: Float[Array, " P"],
    *,
    problem: Problem | None = None,
    prior_sd: float | None = None,
    draws: Float[Array, "S P"] | None = None,
    num_chains: int = 1,
    hessian: Float[Array, "P P"] | None = None,
    noise_sd: float | None = None,
) -> Estimate:
    """One estimate by name, from what a user has at hand.

    Parameters
    ----------
    name
        A key of `ESTIMATORS`.
    model, X, theta
        Model, locations, used as given, and point (``fit_map(...).theta``, a trained network's parameters).
    problem
        Training data; for laplace and laplace_diagonal, and in regression for its noise.
    prior_sd
        Prior sd; for link_aware, laplace and laplace_diagonal, and layer_scaled, which takes rms(W_l) without it.
    draws, num_chains
        Posterior draws (``Posterior.draws``); for the oracles.
    hessian
        Dense Hessian at theta (``PointEstimate.hessian``) for laplace and laplace_diagonal, which take the GGN
        without it.
    noise_sd
        Known noise sd of a regression, where no problem says it.

    Raises
    ------
    ValueError
        For an unknown name, missing evidence, a problem that is not the model's, arrays of other shapes, or a
        hessian that is not positive definite.
    """
    check_choice("estimator", name, ESTIMATORS)
    points, theta = check_points(model, X, theta)
    dtype = points.dtype
    if problem is not None:
        given = (problem.likelihood, problem.num_features, problem.num_outputs)
        if given != (model.likelihood, model.in_features, model.out_features):
            raise ValueError(
                f"the model must have the problem's likelihood, inputs and outputs {given}; got {model}"
            )
        noise_sd = problem.noise_sd
    if not LIKELIHOODS[model.likelihood].uses_noise_sd:
        noise_sd = 1.0
    elif noise_sd is None:
        raise ValueError("a regression needs its noise: give problem or noise_sd.")
    noise_sd = check_real("noise_sd", noise_sd, positive=True)
    layer_sd = layer_rms(model, theta)
    data = None
    if prior_sd is not None:
        sd = jnp.asarray(model.param_prior_sd(prior_sd), dtype)
        layer_sd = sd
        if problem is not None:
            data = densities.make_data(problem, model, prior_sd)
        elif name == "link_aware":
            # It reads the prior alone; the data that share its tuple are not looked at.
            data = densities.Data(points[:0], points[:0, 0], jnp.ones((), dtype), sd)
    if data is None and "data" in ESTIMATORS[name].needs:
        needed = "prior_sd" if name == "link_aware" else "problem and prior_sd"
        raise ValueError(f"estimator {name!r} needs {needed}.")
    evidence = Evidence(
        data,
        layer_sd,
        None if draws is None else jnp.asarray(draws, dtype),
        None if hessian is None else jnp.asarray(hessian, dtype),
    )
    if evidence.hessian is not None and evidence.hessian.shape != (theta.size, theta.size):
        raise ValueError(
            f"hessian must have shape {(theta.size, theta.size)}, got {evidence.hessian.shape}"
        )
    results = estimate_all(
        [name], model, points, theta, evidence=evidence, num_chains=num_chains, noise_sd=noise_sd
    )
    if not np.isfinite(np.asarray(results[name].epistemic)).all():
        if evidence.hessian is not None and name.startswith("laplace"):
            raise ValueError(
                f"estimator {name!r} needs a positive definite hessian, which a strict maximum has; "
                "leave hessian out to take the GGN, which always is."
            )
        raise ValueError(f"estimator {name!r} is not finite at this theta; check theta and X.")
    return results[name]


def link_aware(
    model: Model,
    X: Float[Array, "N D"],
    theta: Float[Array, " P"],
    *,
    prior_sd: float,
    problem: Problem | None = None,
    noise_sd: float | None = None,
) -> Estimate:
    """Gaussian logits with variance s^2 = sum_l sigma_l^2 ||df/dtheta_l||^2, through the sigmoid or softmax."""
    return estimate(
        "link_aware", model, X, theta, prior_sd=prior_sd, problem=problem, noise_sd=noise_sd
    )


def laplace(
    model: Model,
    X: Float[Array, "N D"],
    theta: Float[Array, " P"],
    *,
    problem: Problem,
    prior_sd: float,
    hessian: Float[Array, "P P"] | None = None,
) -> Estimate:
    """g^T H^-1 g with the Hessian of minus the log posterior where it is given, and the GGN otherwise."""
    return estimate("laplace", model, X, theta, problem=problem, prior_sd=prior_sd, hessian=hessian)


def by_region(estimate: Estimate, regions: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """Split an estimate at the concatenated locations of several regions."""
    parts, start = {}, 0
    for name, x in regions.items():
        rows = slice(start, start + len(x))
        parts[name] = jax.tree.map(lambda a, rows=rows: np.asarray(a)[rows], estimate)
        start += len(x)
    return parts
