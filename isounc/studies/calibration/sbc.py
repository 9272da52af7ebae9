"""Simulation-based calibration ranks the true parameters among draws of their posterior.

If theta_0 ~ p(theta) and y ~ p(y|X, theta_0), then theta_0 is itself a draw of p(theta|X, y). So
among S independent draws of a correct sampler the rank of any number g(theta_0, y) is uniform on
0..S over replications of (theta_0, y), whatever the model. The numbers ranked here are predictions
at fixed locations, the log likelihood of the replication's own data (a sampler that ignores the
data keeps the ranks of all predictions uniform, but not those of this one), and the log prior.
`isounc.studies.calibration.uniformity` judges the ranks.

Source: Talts, Betancourt, Simpson, Vehtari and Gelman 2018 (arXiv 1804.06788); for quantities that
depend on the data, Modrák et al. 2022 (arXiv 2211.02383).

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
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, Shaped

from isounc import densities
from isounc.checks import check_choice, check_count
from isounc.densities import Data
from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model
from isounc.precision import double_precision
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
"""Faults that can be planted in the sampler's input, as controls: (n, prior sd) -> (rows of the
data, prior sd). `prior` gives the variance in place of the sd, `data` counts a quarter of the rows
twice."""

_MAX_REDRAWS = 1000
"""Most draws of a pair (theta, y) before data that hold a single class are an error."""


class Replications(NamedTuple):
    """R parameters drawn from the prior, and the data drawn from each."""

    theta: Float[np.ndarray, "R P"]
    """Parameters that made the data."""
    problems: list[Problem]
    """The template with the labels of each replication."""
    num_redrawn: int
    """Number of pairs (theta, y) that were drawn again because y held a single class."""


class Ranked(NamedTuple):
    """The ranks of a batch of replications, with the checks of their posteriors."""

    ranks: Int[np.ndarray, "R Q"]
    """Number of the S posterior draws below the parameters that made the data, 0..S."""
    ess: Float[np.ndarray, "R Q"]
    """Bulk effective sample size of the kept draws from which the S were thinned."""
    gates: list[Gate]
    """Convergence checks of each posterior."""
    num_redrawn: int
    """Number of pairs (theta, y) that were drawn again, as in `Replications`."""


def draw_labels(
    key: PRNGKeyArray,
    model: Model,
    theta: Float[Array, " P"],
    X: Float[Array, "n D"],
    noise_sd: Float[Array, ""],
) -> Shaped[Array, " n"]:
    """Draw y ~ p(y|X, theta) from the outputs, without any code of the densities."""
    return LIKELIHOODS[model.likelihood].sample_labels(key, model.apply(theta, X), noise_sd)


def draw_joint(
    key: PRNGKeyArray,
    model: Model,
    X: Float[Array, "n D"],
    noise_sd: Float[Array, ""],
    *,
    prior_sd: float,
) -> tuple[Float[Array, " P"], Shaped[Array, " n"]]:
    """Draw (theta, y) from p(theta) p(y|X, theta)."""
    key_theta, key_y = jax.random.split(key)
    theta = model.sample_prior(key_theta, prior_sd)
    return theta, draw_labels(key_y, model, theta, X, noise_sd)


@functools.partial(jax.jit, static_argnames=("model", "prior_sd"))
def _draw_joints(
    keys: Key[Array, " R"],
    X: Float[Array, "n D"],
    noise_sd: Float[Array, ""],
    *,
    model: Model,
    prior_sd: float,
) -> tuple[Float[Array, "R P"], Shaped[Array, "R n"]]:
    return jax.vmap(lambda key: draw_joint(key, model, X, noise_sd, prior_sd=prior_sd))(keys)


def draw_replications(
    keys: Sequence[PRNGKeyArray], problem: Problem, model: Model, *, prior_sd: float
) -> Replications:
    """Draw parameters from the prior and labels from each, at the inputs of a template.

    A `Problem` needs two classes in y. If y has a single one, the whole pair (theta, y) is drawn
    again. Whether that happens depends on y alone, given which theta_0 is still a draw of the
    posterior, so that ranks stay uniform.

    Parameters
    ----------
    keys
        One key for each replication.
    problem
        Source of X, of the likelihood and of the query locations; its labels are replaced.

    Raises
    ------
    ValueError
        If the labels of a replication still hold a single class after 1000 draws.
    """
    data = densities.make_data(problem, model, prior_sd)
    theta = np.empty((len(keys), model.num_params), data.X.dtype)
    problems: list[Problem | None] = [None] * len(keys)
    num_redrawn = 0
    for attempt in range(_MAX_REDRAWS):
        attempt_keys = jnp.stack([jax.random.fold_in(key, attempt) for key in keys])
        thetas, labels = jax.device_get(
            _draw_joints(attempt_keys, data.X, data.noise_sd, model=model, prior_sd=prior_sd)
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
        "problem must give labels of two classes or more (with more rows or a smaller prior_sd), "
        f"got a single class in {_MAX_REDRAWS} draws of {problem.name!r} from the prior"
    )


def query_points(problem: Problem) -> Float[np.ndarray, "N D"]:
    """Return the locations of all regions, one region after the other."""
    return np.concatenate(list(problem.regions.values()))


def quantity_names(problem: Problem) -> tuple[str, ...]:
    """Name the Q test quantities: a prediction at each location, log likelihood and log prior.

    The predictions are of one class after the other.
    """
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
    """Evaluate the test quantities at one theta in the order of `quantity_names`."""
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
def _quantities_of_draws(
    theta: Float[Array, "R draws P"], data: Data, X_query: Float[Array, "N D"], *, model: Model
) -> Float[Array, "R draws Q"]:
    """Evaluate all draws in one program, so that equal parameters give equal bits and are ties."""

    def of_replication(theta, data):
        return jax.vmap(lambda t: quantities(model, t, data, X_query))(theta)

    return jax.vmap(of_replication)(theta, data)


def rank(
    truth: Float[np.ndarray, " Q"], draws: Float[np.ndarray, "S Q"], rng: np.random.Generator
) -> Int[np.ndarray, " Q"]:
    """Count the draws below the truth.

    Ties are broken at random; a saturated probability, for instance, is exactly 1.

    Raises
    ------
    ValueError
        If any number is not finite, since it has no rank.
    """
    for name, values in (("truth", truth), ("draws", draws)):
        if not np.isfinite(values).all():
            count = (~np.isfinite(values)).sum()
            raise ValueError(f"{name} must be finite, got {count} numbers that are not")
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

    The S ranked draws are evenly spaced among the `settings.num_kept` that the sampler keeps, which
    are themselves evenly spaced over its chains. `Ranked.ess` is the effective number of kept
    draws; the autocorrelation of neighbours among the ranked is about exp(-2 ESS / S), 2% if ESS is
    2 S.

    Parameters
    ----------
    keys
        One key for each of R replications; equal keys give equal data, whatever the sampler.
    problem
        Template, as in `draw_replications`.
    num_ranked
        Number of ranked draws S, at most `settings.num_kept`.
    fault
        One of `FAULTS`, planted in the sampler's input.

    Raises
    ------
    ValueError
        If the fault is unknown or `num_ranked` is out of range, or as in `draw_replications` and
        `sample_posteriors`.
    """
    check_choice("fault", fault, FAULTS)
    check_count("num_ranked", num_ranked, 1, settings.num_kept)
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
    # Inputs far from zero leave float32 no digits, and draws come in float64 for that reason.
    with double_precision():
        values = np.asarray(
            _quantities_of_draws(
                jnp.asarray(np.concatenate([drawn.theta[:, None], kept], axis=1), float),
                densities.stack_data(drawn.problems, model, prior_sd),
                jnp.asarray(query_points(problem), float),
                model=model,
            )
        )
    # The first of the values are those of the truth.
    chosen = 1 + np.linspace(0, kept.shape[1] - 1, num_ranked).round().astype(int)
    ranks, ess = [], []
    for key, value, posterior in zip(keys, values, posteriors, strict=True):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        ranks.append(rank(value[0], value[chosen], rng))
        ess.append(diagnose(value[1:].reshape(posterior.num_chains, -1, value.shape[1])).ess_bulk)
    gates = [posterior.gate for posterior in posteriors]
    return Ranked(np.stack(ranks), np.stack(ess), gates, drawn.num_redrawn)
