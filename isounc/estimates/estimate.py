"""Estimates of epistemic and aleatoric uncertainty at a point theta*, from one Jacobian.

`link_aware`, `laplace` and `estimate` are one call each for a user (`isounc.estimates.isotropic`
has `isotropic`, for any model); `estimate_all` computes several at once for the studies.
`isounc.estimates.estimators` defines each.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from isounc import densities
from isounc.checks import check_array, check_choice, check_count, check_kind, check_real
from isounc.covariance import Diagonal, OutputVariance
from isounc.estimates.estimators import (
    ESTIMATORS,
    Estimate,
    Estimator,
    Evidence,
    Linearised,
    alike,
    isotropic_rule,
)
from isounc.estimates.grams import group_grams, output_grams
from isounc.estimates.points import Point, check_finite, check_points
from isounc.fit import PointEstimate
from isounc.likelihoods import LIKELIHOODS, Likelihood
from isounc.models import Model
from isounc.problems import Problem

_NO_EVIDENCE = Evidence()
_ARGUMENTS = {"data": "problem and prior_sd"}
"""Arguments of `estimate` that give a field of `Evidence` of another name."""


def layer_rms(model: Model, theta: Float[Array | np.ndarray, " P"]) -> Float[Array, " P"]:
    """rms(W_l) of each parameter's group: a scale where there is no prior."""
    squares = np.asarray(theta, float) ** 2
    groups = model.group_index
    means = np.bincount(groups, squares) / np.bincount(groups)
    return jnp.asarray(np.sqrt(means)[groups], jnp.asarray(theta).dtype)


def estimate_all(
    names: Sequence[str],
    model: Model,
    X: Real[Array | np.ndarray, "N D"],
    theta: Float[Array | np.ndarray, " P"],
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
        Chains in `evidence.draws` (chain-major, equally long).
    noise_sd
        Known noise of a regression; without effect otherwise.
    batch_size
        Locations whose Jacobian is held at a time.

    Raises
    ------
    ValueError
        For an unknown estimator (with near matches), one whose evidence is missing, or draws that
        `num_chains` chains cannot have left.
    """
    if evidence.draws is not None:
        _check_draws(evidence.draws, model, num_chains)
    for name in names:
        check_choice("estimator", name, ESTIMATORS)
        for field in ESTIMATORS[name].needs:
            if getattr(evidence, field) is None:
                argument = _ARGUMENTS.get(field, field)
                raise ValueError(f"{argument} must be given for estimator {name!r}, got None")
    theta, X = jnp.asarray(theta), jnp.asarray(X)
    # Not the type of X alone, which may hold integers.
    noise = jnp.asarray(noise_sd, jnp.result_type(theta, X))
    rules = tuple((name, ESTIMATORS[name]) for name in names)
    outputs, grams = _grams(
        theta, X, evidence, rules=rules, model=model, num_chains=num_chains, batch_size=batch_size
    )
    likelihood = LIKELIHOODS[model.likelihood]
    return {
        name: _moments(outputs, grams[name], noise, rule=alike(rule), likelihood=likelihood)
        for name, rule in rules
    }


def _check_draws(draws: Array | np.ndarray, model: Model, num_chains: int) -> None:
    check_count("num_chains", num_chains, 1)
    if draws.ndim != 2 or draws.shape[1] != model.num_params or draws.shape[0] % num_chains:
        raise ValueError(
            f"draws must have shape (S, {model.num_params}), S a multiple of "
            f"num_chains={num_chains}, got {draws.shape}"
        )
    if draws.shape[0] <= num_chains:
        raise ValueError(f"draws must be more than one per chain, got {draws.shape[0]}")


@functools.partial(jax.jit, static_argnames=("rules", "model", "num_chains", "batch_size"))
def _grams(
    theta: Float[Array, " P"],
    X: Real[Array, "N D"],
    evidence: Evidence,
    *,
    rules: tuple[tuple[str, Estimator], ...],
    model: Model,
    num_chains: int,
    batch_size: int,
) -> tuple[Float[Array, "N O"], dict[str, Float[Array, "N O O"]]]:
    """Outputs, and J Sigma J^T for each estimator."""
    covariances = {
        name: rule.covariance(model, theta, evidence, num_chains) for name, rule in rules
    }
    on_outputs = {n: c for n, c in covariances.items() if isinstance(c, OutputVariance)}
    covariances = {n: c for n, c in covariances.items() if not isinstance(c, OutputVariance)}
    grouped = [name for name, rule in rules if rule.by_group and name in covariances]
    outputs, grams = None, {}
    if grouped:
        outputs, parts = group_grams(model, theta, X, batch_size=batch_size)
        first = np.unique(model.group_index, return_index=True)[1]
        for name in grouped:
            sigma = covariances.pop(name)
            if not isinstance(sigma, Diagonal):
                raise TypeError(f"covariance of {name!r} must be a Diagonal, got {type(sigma)}")
            grams[name] = jnp.tensordot(sigma.sd[first] ** 2, parts, 1)
    if covariances:
        outputs, others = output_grams(model.apply, theta, X, covariances, batch_size=batch_size)
        grams |= others
    if on_outputs:
        if outputs is None:
            outputs = model.apply(theta, X)
        eye = jnp.eye(outputs.shape[1], dtype=outputs.dtype)[None]
        at = X.astype(outputs.dtype)
        grams |= {name: v.at(at)[:, None, None] * eye for name, v in on_outputs.items()}
    assert outputs is not None, "there must be at least one estimator"
    return outputs, grams


@functools.partial(jax.jit, static_argnames=("rule", "likelihood"))
def _moments(
    outputs: Float[Array, "N O"],
    gram: Float[Array, "N O O"],
    noise_sd: Float[Array, ""],
    *,
    rule: Estimator,
    likelihood: Likelihood,
) -> Estimate:
    p = likelihood.predict(outputs)
    aleatoric = likelihood.label_variance(outputs, noise_sd)
    epistemic, corrected = rule.moments(likelihood, outputs, gram, noise_sd)
    return Estimate(p, epistemic, aleatoric, epistemic + aleatoric, corrected)


def posterior_averaged(
    model: Model,
    X: Real[Array | np.ndarray, "N D"],
    draws: Float[Array | np.ndarray, "S P"] | PointEstimate | Sequence[PointEstimate],
    *,
    noise_sd: float = 1.0,
    batch_size: int = 128,
) -> Estimate:
    """E_draws[||grad p(x, theta)||^2]: the isotropic estimate without linearising at one point.

    An oracle that needs the posterior: its distance to `isotropic` is what one point theta* costs.
    `prob` and `aleatoric` are averaged over the draws too, so that `aleatoric` estimates E[p(1-p)]
    and needs no correction.

    Parameters
    ----------
    model, X
        Model and locations.
    draws
        Posterior draws (`Posterior.draws`), or what `fit_map` or `fit_trained` returned, once or
        several times.
    noise_sd
        Known noise of a regression; without effect otherwise.
    batch_size
        Locations whose Jacobian is held at a time.

    Raises
    ------
    ValueError
        For draws that are not the model's.
    """
    if isinstance(draws, PointEstimate):
        draws = [draws]
    if isinstance(draws, list | tuple) and draws and isinstance(draws[0], PointEstimate):
        for point in draws:
            check_kind("draws", point, PointEstimate)
        draws = np.stack([point.theta for point in draws]).astype(jnp.result_type(float))
    check_kind("model", model, Model, "make_model")
    dtype = jnp.result_type(float)
    draws = jnp.asarray(check_array("draws", draws, ndim=2), dtype)
    X = jnp.asarray(check_array("X", X, ndim=2), dtype)
    noise_sd = check_real("noise_sd", noise_sd, positive=True)
    check_count("batch_size", batch_size, 1)
    if draws.ndim != 2 or draws.shape[1] != model.num_params:
        raise ValueError(f"draws must have shape (S, {model.num_params}), got {draws.shape}")
    noise = jnp.asarray(noise_sd, jnp.result_type(draws, X))
    return _posterior_averaged(draws, X, noise, model=model, batch_size=batch_size)


@functools.partial(jax.jit, static_argnames=("model", "batch_size"))
def _posterior_averaged(
    draws: Float[Array, "S P"],
    X: Real[Array, "N D"],
    noise_sd: Float[Array, ""],
    *,
    model: Model,
    batch_size: int,
) -> Estimate:
    rule, likelihood = Linearised(isotropic_rule), LIKELIHOODS[model.likelihood]

    def add(total, theta):
        outputs, parts = group_grams(model, theta, X, batch_size=batch_size)
        epistemic, _ = rule.moments(likelihood, outputs, parts.sum(0), noise_sd)
        at_draw = (
            likelihood.predict(outputs),
            epistemic,
            likelihood.label_variance(outputs, noise_sd),
        )
        return jax.tree.map(jnp.add, total, at_draw), None

    zero = jnp.zeros((X.shape[0], model.out_features), noise_sd.dtype)
    total, _ = jax.lax.scan(add, (zero, zero, zero), draws)
    p, epistemic, aleatoric = (t / draws.shape[0] for t in total)
    return Estimate(p, epistemic, aleatoric, epistemic + aleatoric, aleatoric)


def estimate(
    name: str,
    model: Model,
    X: Real[Array | np.ndarray, "N D"],
    theta: Point,
    *,
    problem: Problem | None = None,
    prior_sd: float | None = None,
    draws: Float[Array | np.ndarray, "S P"] | None = None,
    num_chains: int = 1,
    hessian: Float[Array | np.ndarray, "P P"] | None = None,
    noise_sd: float | None = None,
) -> Estimate:
    """Compute one estimate by name, from what a user has at hand.

    Parameters
    ----------
    name
        A key of `ESTIMATORS` that is computed at a point.
    model, X
        Model and locations, which are used as given.
    theta
        Parameters, or what `fit_map` or `fit_trained` returned.
    problem
        Training data, with prior_sd, for laplace, laplace_diagonal, null_distance, logit_scaled and
        logit_scaled_level; in regression its noise. `isotropic` has logit_scaled without either.
    prior_sd
        Prior sd, for those and link_aware. layer_scaled takes rms(W_l) of each
        layer without it.
    draws, num_chains
        Posterior draws (`Posterior.draws`) and the number of their chains, for the oracles.
    hessian
        Dense Hessian of minus the log posterior at theta, for laplace and laplace_diagonal. Left
        out, it is the one that `fit_map` found, and without one the GGN takes its place.
    noise_sd
        Known noise sd of a regression, where no problem gives it.

    Raises
    ------
    ValueError
        For an unknown name, missing evidence, a problem that is not the model's, arrays of other
        shapes, or a Hessian that is not positive definite.
    """
    check_choice("estimator", name, ESTIMATORS)
    estimator = ESTIMATORS[name]
    if estimator.points == ("posterior",):
        raise ValueError(f"estimator must be one at a point, got {name!r}; call it by its own name")
    if "hessian" in estimator.uses and hessian is None and isinstance(theta, PointEstimate):
        hessian = theta.hessian
    points, theta = check_points(model, X, theta)
    dtype = points.dtype
    if problem is not None:
        check_kind("problem", problem, Problem, "make_problem")
        expected = (model.likelihood, model.in_features, model.out_features)
        given = (problem.likelihood, problem.num_features, problem.num_outputs)
        if given != expected:
            raise ValueError(
                f"problem must have the model's likelihood, inputs and outputs {expected}, "
                f"got {given}"
            )
        noise_sd = problem.noise_sd
    if LIKELIHOODS[model.likelihood].uses_noise_sd:
        noise_sd = check_real("noise_sd", noise_sd, positive=True)
    data, prior = None, None
    if prior_sd is not None:
        prior = jnp.asarray(model.param_prior_sd(prior_sd), dtype)
        data = None if problem is None else densities.make_data(problem, model, prior_sd)
    evidence = Evidence(
        data=data,
        prior_sd=prior,
        layer_sd=layer_rms(model, theta) if prior is None else prior,
        draws=None if draws is None else jnp.asarray(check_array("draws", draws, ndim=2), dtype),
        hessian=None
        if hessian is None
        else jnp.asarray(check_array("hessian", hessian, ndim=2), dtype),
    )
    if evidence.hessian is not None and evidence.hessian.shape != (theta.size, theta.size):
        raise ValueError(
            f"hessian must have shape {(theta.size, theta.size)}, got {evidence.hessian.shape}"
        )
    result = estimate_all(
        [name], model, points, theta,
        evidence=evidence, num_chains=num_chains, noise_sd=noise_sd or 1.0,
    )[name]  # fmt: skip
    if evidence.hessian is not None and "hessian" in estimator.uses:
        check_finite(
            result,
            f"hessian must be positive definite for estimator {name!r}, as at a strict maximum "
            "(give theta as an array and no hessian to take the GGN, which always is)",
        )
    check_finite(result, "theta and X must give finite gradients")
    return result


def link_aware(
    model: Model,
    X: Real[Array | np.ndarray, "N D"],
    theta: Point,
    *,
    prior_sd: float,
    problem: Problem | None = None,
    noise_sd: float | None = None,
) -> Estimate:
    """Estimate with Gaussian logits, f ~ N(f(x, theta*), s^2), through the sigmoid or softmax.

        s^2 = sum_l sigma_l^2 ||df/dtheta_l||^2

    Parameters and errors are those of `estimate`.
    """
    return estimate(
        "link_aware", model, X, theta, prior_sd=prior_sd, problem=problem, noise_sd=noise_sd
    )


def laplace(
    model: Model,
    X: Real[Array | np.ndarray, "N D"],
    theta: Point,
    *,
    problem: Problem,
    prior_sd: float,
    hessian: Float[Array | np.ndarray, "P P"] | None = None,
) -> Estimate:
    """Estimate g^T H^-1 g with the Hessian H of minus the log posterior, or the GGN without one.

    Parameters and errors are those of `estimate`.
    """
    return estimate("laplace", model, X, theta, problem=problem, prior_sd=prior_sd, hessian=hessian)


def by_region(estimate: Estimate, regions: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
    """Split an estimate at the concatenated locations of several regions."""
    parts, start = {}, 0
    for name, x in regions.items():
        rows = slice(start, start + len(x))
        parts[name] = jax.tree.map(lambda a, rows=rows: np.asarray(a)[rows], estimate)
        start += len(x)
    return parts
