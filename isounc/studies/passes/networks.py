"""The networks that a cell compares: posterior draws, an ensemble, samples around one network."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Real

from isounc import densities
from isounc.covariance import PriorPlusLowRank, gauss_newton_factor
from isounc.estimates import Evidence
from isounc.estimates.estimate import estimate_all
from isounc.fit import PointEstimate
from isounc.models import Model
from isounc.problems import Problem
from isounc.training import TrainSettings, fit_ensemble

T = TypeVar("T")


class Networks(NamedTuple):
    """S networks of one kind, with what it took to make them."""

    thetas: Float[np.ndarray, "S P"]
    """Their parameters."""
    seconds: float
    """Seconds that making them took whatever their number."""
    seconds_each: float
    """Seconds that each took on top."""
    failed: tuple[str, ...] = ()
    """Why each network that was trained fails its check; empty where it passes."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why they fail as a whole, which they do if one of them does."""
        failed = [reason for reason in self.failed if reason]
        if not failed:
            return ()
        return (f"{len(failed)} of {len(self.failed)} trained networks failed: {failed[0]}",)


def posterior_draws(
    draws: Float[np.ndarray, "T P"], num: int, *, seed: int, seconds: float
) -> Networks:
    """Choose `num` of the kept draws at random, none twice, so that groups of them mix the chains.

    Parameters
    ----------
    seconds
        Seconds that sampling took, as many for few draws as for many.
    """
    chosen = np.random.default_rng(seed).choice(len(draws), num, replace=False)
    return Networks(draws[chosen], seconds, 0.0)


def trained_ensemble(
    problem: Problem,
    model: Model,
    num: int,
    *,
    key: PRNGKeyArray,
    prior_sd: float,
    settings: TrainSettings,
) -> Networks:
    """Train `num` networks from different starting points, vmapped in one program.

    They fail if one of them does.
    """

    def train() -> list[PointEstimate]:
        return fit_ensemble(problem, model, num, key=key, prior_sd=prior_sd, settings=settings)

    fits, seconds = _timed_again(train)
    failed = tuple("; ".join(fit.reasons) for fit in fits)
    return Networks(np.stack([fit.theta for fit in fits]), 0.0, seconds / num, failed)


def _timed_again(make: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and the seconds of a second one, which compiles nothing."""
    made = make()
    begun = time.perf_counter()
    make()
    return made, time.perf_counter() - begun


def last_layer_samples(
    problem: Problem,
    model: Model,
    trained: Networks,
    num: int,
    *,
    key: PRNGKeyArray,
    prior_sd: float,
) -> Networks:
    """Draw the last layer from its Laplace approximation; the others stay as they were trained.

        theta_last ~ N(theta*_last, (1 / prior_sd^2 + GGN_last)^-1)

    theta* is the first of the trained networks, whose check and seconds count here as well.

    Source: Daxberger et al. 2021, "Laplace Redux" (arXiv 2106.14806), section 2. Its library is
    written for PyTorch, and laplax, for JAX, stands at 0.0.2 of June 2025; the Gauss-Newton factor
    and the draws of a prior plus low rank are here already.
    """
    data = densities.make_data(problem, model, prior_sd)
    theta = jnp.asarray(trained.thetas[0], data.X.dtype)

    def sample() -> np.ndarray:
        return np.asarray(_last_layer_samples(theta, data, key, model=model, num=num))

    samples, seconds = _timed_again(sample)
    return Networks(samples, trained.seconds_each + seconds, 0.0, trained.failed[:1])


@functools.partial(jax.jit, static_argnames=("model", "num"))
def _last_layer_samples(
    theta: Float[Array, " P"],
    data: densities.Data,
    key: PRNGKeyArray,
    *,
    model: Model,
    num: int,
) -> Float[Array, "S P"]:
    last = sum(model.group_sizes[-2:])  # kernel and bias
    factor = gauss_newton_factor(model, theta, data)[:, -last:]
    half = PriorPlusLowRank.from_factor(data.prior_sd[-last:], factor).half(jnp.eye(last))
    noise = jax.random.normal(key, (num, half.shape[1]), theta.dtype)
    rest = jnp.broadcast_to(theta[:-last], (num, theta.size - last))
    return jnp.concatenate([rest, theta[None, -last:] + noise @ half.T], axis=1)


class Predictions(NamedTuple):
    """What each of K networks says at N locations, in M columns (classes)."""

    p: Float[np.ndarray, "K N M"]
    """p(y|x, theta_k), or f of a regression."""
    norm: Float[np.ndarray, "K N M"]
    """||grad p||^2."""
    logit_scaled: Float[np.ndarray, "K N M"]
    """Variance of p under Gaussian outputs, scale "unit" of the same network."""

    def at(self, networks: slice, locations: slice) -> Predictions:
        """Those of some networks at some locations."""
        return Predictions(*(values[networks, locations] for values in self))


def predict(
    model: Model,
    thetas: Float[np.ndarray, "K P"],
    X: Real[np.ndarray, "N D"],
    data: densities.Data,
) -> Predictions:
    """One pass through each network, forward and backward, in the precision of the data."""
    parts = []
    for theta in thetas:
        found = estimate_all(
            ("isotropic", "logit_scaled"), model, X.astype(data.X.dtype),
            jnp.asarray(theta, data.X.dtype), evidence=Evidence(data),
            noise_sd=float(data.noise_sd),
        )  # fmt: skip
        norm, scaled = found["isotropic"], found["logit_scaled"]
        parts.append(jax.device_get((norm.prob, norm.epistemic, scaled.epistemic)))
    return Predictions(*(np.stack(values).astype(float) for values in zip(*parts, strict=True)))


PROGRAMS = ("forward", "norm", "logit_scaled")
"""What is timed: a forward pass, one with ||grad p||^2, and one with logit_scaled at a known
scale."""


def seconds_of_passes(
    model: Model,
    thetas: Float[np.ndarray, "S P"],
    X: Real[np.ndarray, "N D"],
    counts: tuple[int, ...],
    *,
    num_timings: int,
) -> dict[str, list[float]]:
    """Seconds that K networks take for 1000 locations, for each K of `counts`, by program.

    The networks go one after the other through one compiled program; the shortest of
    `num_timings` measurements counts.
    """
    dtype = jnp.result_type(float)
    points, networks = jnp.asarray(X, dtype), [jnp.asarray(t, dtype) for t in thetas]
    ones = jnp.ones(model.num_params, dtype)
    # With a scale that is known, logit_scaled is what link_aware is under a prior of that scale.
    runs = {
        "forward": lambda theta: _forward(theta, points, model=model),
        "norm": lambda theta: estimate_all(("isotropic",), model, points, theta),
        "logit_scaled": lambda theta: estimate_all(
            ("link_aware",), model, points, theta, evidence=Evidence(prior_sd=ones)
        ),
    }
    seconds = {}
    for name in PROGRAMS:
        run = runs[name]
        jax.block_until_ready(run(networks[0]))  # compiles
        seconds[name] = [
            min(_timed(run, networks[:count]) for _ in range(num_timings)) / len(X) * 1000
            for count in counts
        ]
    return seconds


def _timed(run: Callable[[Array], Any], networks: list[Array]) -> float:
    begun = time.perf_counter()
    jax.block_until_ready([run(theta) for theta in networks])
    return time.perf_counter() - begun


@functools.partial(jax.jit, static_argnames="model")
def _forward(
    theta: Float[Array, " P"], X: Float[Array, "N D"], *, model: Model
) -> Float[Array, "N M"]:
    return model.predict(theta, X)
