"""Simulation-based calibration of a sampler: ranks of the truth among posterior draws, under data from the prior.

If theta_0 ~ p(theta) and y ~ p(y|X, theta_0), then theta_0 is itself a draw of p(theta|X, y). So among S independent
draws of a correct sampler the rank of any number g(theta_0, y) is uniform on 0..S over replications of (theta_0, y),
whatever the model. The numbers ranked here are predictions at fixed locations, the log likelihood of the replication's
own data (a sampler that ignores the data keeps the ranks of all predictions uniform, but not this one's), and the log
prior.

Source: Talts, Betancourt, Simpson, Vehtari and Gelman 2018 (arXiv 1804.06788); quantities that see the data: Modrák et
al. 2022 (arXiv 2211.02383). What is made of the ranks is in `isounc.studies.calibration.uniformity`.

Axes: R replications, Q test quantities, S ranked draws, N query locations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from isounc import densities
from isounc.checks import check_choice, check_count
from isounc.densities import Data
from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model
from isounc.problems import Problem
from isounc.sampling.convergence import diagnose
from isounc.sampling.gate import Gate
from isounc.sampling.posterior import sample_posteriors
from isounc.sampling.run import Progress
from isounc.sampling.settings import SamplerSettings

FAULTS: dict[str, Callable[[int, float], tuple[np.ndarray, float]]] = {
    "none": lambda n, prior_sd: (np.arange(n), prior_sd),
    "prior": lambda n, prior_sd: (np.arange(n), prior_sd**2),
    "data": lambda n, prior_sd: (np.concatenate([np.arange(n), np.arange(n // 4)]), prior_sd),
}
"""Faults that can be planted in what the sampler is given, as controls: (n, prior sd) -> (rows of the data, prior sd).
`prior`: the variance in place of the sd. `data`: a quarter of the rows counted twice."""

_MAX_REDRAWS = 1000


class Replications(NamedTuple):
    """R parameters drawn from the prior and the data drawn from each."""

    theta: Float[np.ndarray, "R P"]
    """Parameters that made the data."""
    problems: list[Problem]
    """The template with the labels of each replication."""
    num_redrawn: int
    """Pairs (theta, y) that were drawn again because y held one class only."""


class Ranked(NamedTuple):
    """What a batch of replications leaves."""

    ranks: Int[np.ndarray, "R Q"]
    """Number of the S posterior draws below the parameters that made the data, 0..S."""
    ess: Float[np.ndarray, "R Q"]
    """Bulk effective sample size of the kept draws that the S were thinned from."""
    gates: list[Gate]
    """The reference's own verdict on each posterior."""
    num_redrawn: int
    """As in `Replications`."""


def draw_labels(
    key: PRNGKeyArray, model: Model, theta: Float[Array, " P"], X: Float[Array, "n D"], noise_sd
) -> Shaped[Array, " n"]:
    """Draw y ~ p(y|X, theta) from the outputs: no line is shared with the densities."""
    return LIKELIHOODS[model.likelihood].sample_labels(key, model.apply(theta, X), noise_sd)


def draw_joint(key, model: Model, X, noise_sd, *, prior_sd: float) -> tuple[Array, Array]:
    """Draw (theta, y) from p(theta) p(y|X, theta): shapes (P,) and (n,)."""
    key_theta, key_y = jax.random.split(key)
    theta = model.sample_prior(key_theta, prior_sd)
    return theta, draw_labels(key_y, model, theta, X, noise_sd)


@functools.partial(jax.jit, static_argnames=("model", "prior_sd"))
def _draw_joints(keys, X, noise_sd, *, model, prior_sd):
    return jax.vmap(lambda key: draw_joint(key, model, X, noise_sd, prior_sd=prior_sd))(keys)


def draw_replications(
    keys: Sequence[PRNGKeyArray], problem: Problem, model: Model, *, prior_sd: float
) -> Replications:
    """Draw parameters from the prior and labels from each, at the inputs of a template.

    A `Problem` needs two classes in y. A pair whose y has one is drawn again, theta and all: whether that happens
    depends on y alone, given which theta_0 is still a draw of the posterior, so ranks stay uniform.

    Parameters
    ----------
    keys
        One for each replication.
    problem
        Gives X, the likelihood and the query locations; its labels are replaced.
    """
    data = densities.make_data(problem, model, prior_sd)
    theta = np.empty((len(keys), model.num_params), data.X.dtype)
    problems: list[Problem | None] = [None] * len(keys)
    num_redrawn = 0
    for attempt in range(_MAX_REDRAWS):
        tried = jnp.stack([jax.random.fold_in(key, attempt) for key in keys])
        thetas, labels = jax.device_get(
            _draw_joints(tried, data.X, data.noise_sd, model=model, prior_sd=prior_sd)
        )
        for i in (i for i, done in enumerate(problems) if done is None):
            if problem.num_classes and len(np.unique(labels[i])) == 1:
                num_redrawn += 1
                continue
            theta[i] = thetas[i]
            problems[i] = replace(problem, y=labels[i], targets={}, p_true={})
        done = [p for p in problems if p is not None]
        if len(done) == len(keys):
            return Replications(theta, done, num_redrawn)
    raise ValueError(
        f"problem {problem.name!r} gave labels of one class in {_MAX_REDRAWS} draws from the prior; "
        "give it more rows or a smaller prior_sd"
    )


def query_points(problem: Problem) -> Float[np.ndarray, "N D"]:
    """The locations of all regions, one region after the other."""
    return np.concatenate(list(problem.regions.values()))


def quantity_names(problem: Problem) -> tuple[str, ...]:
    """The Q test quantities: a prediction at each location (the class changes with it), log likelihood, log prior."""
    likelihood = LIKELIHOODS[problem.likelihood]
    names = likelihood.column_names(problem.num_columns)
    predictions = [
        f"p(y={names[i % len(names)]}|x{i})"
        if problem.num_classes
        else f"{likelihood.quantity}(x{i})"
        for i in range(len(query_points(problem)))
    ]
    return (*predictions, "log likelihood", "log prior")


def quantities(
    model: Model, theta: Float[Array, " P"], data: Data, X_query: Float[Array, "N D"]
) -> Float[Array, " Q"]:
    """The test quantities at one theta, given the data, in the order of `quantity_names`."""
    p = model.predict(theta, X_query)
    columns = jnp.arange(len(X_query)) % p.shape[1]
    terms = densities.log_likelihood_terms(model, model.apply(theta, data.X), data)
    return jnp.concatenate(
        [
            jnp.take_along_axis(p, columns[:, None], axis=1)[:, 0],
            jnp.stack([terms.sum(), densities.log_prior(theta, data)]),
        ]
    )


@functools.partial(jax.jit, static_argnames=("model",))
def _quantities_of_draws(theta, data, X_query, *, model):
    """(R, S, P) to (R, S, Q); one program, so that equal parameters give equal bits and are ties."""

    def one(theta, data):
        return jax.vmap(lambda t: quantities(model, t, data, X_query))(theta)

    return jax.vmap(one)(theta, data)


def rank(
    truth: Float[np.ndarray, " Q"], draws: Float[np.ndarray, "S Q"], rng: np.random.Generator
) -> Int[np.ndarray, " Q"]:
    """Number of draws below the truth, ties (a saturated probability is exactly 1) broken at random.

    Raises
    ------
    ValueError
        If any number is not finite: it has no rank.
    """
    for name, values in (("truth", truth), ("draws", draws)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"{name} must be finite; {(~np.isfinite(values)).sum()} numbers are not"
            )
    ties = (draws == truth).sum(0)
    return (draws < truth).sum(0) + rng.integers(0, ties + 1)


def rank_batch(
    keys: Sequence[PRNGKeyArray],
    problem: Problem,
    model: Model,
    *,
    prior_sd: float,
    settings: SamplerSettings,
    num_ranked: int,
    fault: str = "none",
    progress: Progress | None = None,
) -> Ranked:
    """Replicate, sample all posteriors in one program, and rank.

    The S ranked draws are evenly spaced among the ``settings.num_kept`` that the sampler keeps, themselves evenly
    spaced over its chains. `Ranked.ess` says how many independent draws the kept ones are worth; the autocorrelation
    of neighbours among the ranked is about exp(-2 ESS / S), 2% where ESS is 2 S.

    Parameters
    ----------
    keys
        One for each of R replications; equal keys give equal data, whatever the sampler.
    problem
        Template, as in `draw_replications`.
    num_ranked
        S, at most ``settings.num_kept``.
    fault
        One of `FAULTS`, planted in what the sampler is given.

    Raises
    ------
    ValueError
        For an unknown fault, a num_ranked out of range, or what `sample_posteriors` refuses.
    """
    check_choice("fault", fault, FAULTS)
    if num_ranked > settings.num_kept:
        raise ValueError(
            f"num_ranked must be at most num_kept ({settings.num_kept}); got {num_ranked}"
        )
    check_count("num_ranked", num_ranked, 1)
    drawn = draw_replications(keys, problem, model, prior_sd=prior_sd)
    rows, sampled_sd = FAULTS[fault](len(problem.X), prior_sd)
    posteriors = sample_posteriors(
        [replace(p, X=p.X[rows], y=p.y[rows]) for p in drawn.problems],
        model,
        prior_sd=sampled_sd,
        keys=[jax.random.fold_in(key, _MAX_REDRAWS) for key in keys],
        settings=settings,
        progress=progress,
    )
    kept = np.stack([p.draws for p in posteriors])
    values = np.asarray(
        _quantities_of_draws(
            np.concatenate([drawn.theta[:, None], kept], axis=1),
            densities.stack_data(drawn.problems, model, prior_sd),
            jnp.asarray(query_points(problem), kept.dtype),
            model=model,
        )
    )
    chosen = 1 + np.linspace(0, kept.shape[1] - 1, num_ranked).round().astype(int)
    ranks, ess = [], []
    for key, value, posterior in zip(keys, values, posteriors, strict=True):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        ranks.append(rank(value[0], value[chosen], rng))
        ess.append(diagnose(value[1:].reshape(posterior.num_chains, -1, value.shape[1])).ess_bulk)
    return Ranked(
        np.stack(ranks), np.stack(ess), [p.gate for p in posteriors], drawn.num_redrawn
    )  # fmt: skip
