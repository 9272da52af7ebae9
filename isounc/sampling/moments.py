"""Predictive moments, kept draws and the gate's verdict, from blocks of draws.

NumPy on the host, one problem at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from isounc.checks import check_array, check_kind
from isounc.likelihoods import LIKELIHOODS
from isounc.metrics import class_views
from isounc.models import Model
from isounc.problems import Problem
from isounc.sampling.batch_means import batch_means_se, weighted_mean_and_se
from isounc.sampling.gate import Gate, gate
from isounc.sampling.settings import GateSettings


class Moments(NamedTuple):
    """Posterior predictive moments at the N locations of a region, M columns (classes) each."""

    mean: Float[np.ndarray, "N M"]
    """E[p(y|x, theta)], or E[f]."""
    mean_se: Float[np.ndarray, "N M"]
    """Its Monte Carlo standard error (batch means)."""
    var: Float[np.ndarray, "N M"]
    """Var[p(y|x, theta)], the epistemic reference."""
    var_se: Float[np.ndarray, "N M"]
    """Its Monte Carlo standard error (batch means)."""
    aleatoric: Float[np.ndarray, "N M"]
    """E[p (1 - p)] per class, the aleatoric reference; the noise variance for regression."""
    aleatoric_se: Float[np.ndarray, "N M"]
    """Its Monte Carlo standard error (batch means)."""
    expected_entropy: Float[np.ndarray, " N"]
    """E[H(y|x, theta)], nats."""
    expected_entropy_se: Float[np.ndarray, " N"]
    """Its Monte Carlo standard error (batch means)."""
    entropy: Float[np.ndarray, " N"]
    """H of the averaged prediction, nats; NaN where it has no closed form. Less `expected_entropy`
    it is the mutual information."""


class TwoValued(NamedTuple):
    """Where the posterior of a class probability is nearly two-valued; see `two_valued`."""

    mask: Bool[np.ndarray, " N"]
    """The locations at which it is."""
    undecided: Bool[np.ndarray, " N"]
    """The locations, of either kind, at which Monte Carlo error could decide otherwise: the two
    sides differ by less than a standard error."""

    @property
    def share(self) -> float:
        """The share of the locations at which it is; that of `undecided` says how sure it is."""
        return float(self.mask.mean())


class Trial(NamedTuple):
    """The pilot of chains in some coordinates, by some sampler."""

    coordinates: str
    """Name of the coordinates."""
    sampler: str
    """Name of the sampler."""
    metric: str
    """The metric of the run; none is adapted in a pilot."""
    step_size: float
    """Mean over the problems, as adapted."""
    num_gradients: float
    """Gradients of a transition of one chain."""
    gradient_seconds: float
    """Forecast for one of them on one core."""
    draws_per_transition: float
    """Independent draws that a transition is worth (`isounc.sampling.pilot`)."""

    @property
    def draws_per_second(self) -> float:
        """The most of them decides."""
        return self.draws_per_transition / (self.num_gradients * self.gradient_seconds)


@dataclass(frozen=True)
class Posterior:
    """A sampled posterior: moments at every region's locations, kept draws, the gate's verdict."""

    model: Model
    """The model that was sampled."""
    regions: Mapping[str, Moments]
    """Predictive moments by region."""
    gate: Gate
    """The convergence checks, at the fixed locations of all regions together."""
    draws: Float[np.ndarray, "T P"]
    """Kept parameter draws, chain-major, equally many from each chain."""
    values: Mapping[str, Float[np.ndarray, "K S Q M"]] | None
    """Every draw of the predictive quantity at the fixed locations; None without `keep_values`."""
    locations: Mapping[str, Int[np.ndarray, " Q"]]
    """Rows of each region that the fixed locations are."""
    num_chains: int
    """K."""
    num_draws: int
    """S, transitions of each chain after warm-up."""
    num_gradients: int
    """Gradients after warm-up, over all chains."""
    step_size: Float[np.ndarray, " K"]
    """Adapted step size of each chain, in the coordinates that were sampled."""
    acceptance: float
    """Mean acceptance probability after warm-up."""
    coordinates: str
    """Coordinates of the sampling: prior, curvature or readout."""
    sampler: str
    """Its sampler."""
    stopped: str
    """Why sampling ended: the target was met, or the budget of draws or seconds was spent, or an
    interrupt came; with the numbers."""
    trials: tuple[Trial, ...] = ()
    """Pilots in several coordinates, or by several samplers, if there were any."""


class Block(NamedTuple):
    """A block of S draws of K chains; the last of a run may have fewer.

    Drivers give blocks of all problems, whose fields have a leading axis B; `of_problem` takes one.
    """

    shifted_mean: Float[Array, "K N M"]
    """Block mean of p - shift."""
    shifted_square: Float[Array, "K N M"]
    """Block mean of (p - shift)^2."""
    aleatoric: Float[Array, "K N M"]
    """Block mean of the label variance."""
    entropy: Float[Array, "K N"]
    """Block mean of the label entropy."""
    values: Float[Array, "K S Q"]
    """Every draw of p at the fixed locations, flattened."""
    draws: Float[Array, "K T P"]
    """T thinned parameter draws."""
    energy: Float[Array, "K S"]
    """Hamiltonian of each transition."""
    divergent: Int[Array, " K"]
    """Number of divergent transitions."""
    saturated: Int[Array, " K"]
    """Number of trajectories cut at their longest."""
    acceptance: Float[Array, " K"]
    """Mean acceptance probability."""
    num_gradients: Int[Array, " K"]
    """Gradients of r."""
    position: Float[Array, "K P"] | None = None
    """x of the last draw of each chain, for `isounc.sampling.precision`; None if there is none."""
    log_density: Float[Array, " K"] | None = None
    """r there, as the sampler has it."""


def of_problem(blocks: Sequence[Block], i: int) -> list[Block]:
    """The blocks of the i-th problem."""
    # Not every driver tells positions. `tree.map` leaves None alone.
    return [jax.tree.map(lambda a: a[i], block) for block in blocks]


def fixed_locations(problem: Problem, per_region: int) -> dict[str, Int[np.ndarray, " Q"]]:
    """Evenly spaced rows of each region, the same for every problem of a shape."""
    return {
        name: np.unique(np.linspace(0, len(x) - 1, per_region).round().astype(int))
        for name, x in problem.regions.items()
    }


def flat_locations(
    problem: Problem, locations: Mapping[str, Int[np.ndarray, " Q"]]
) -> Int[np.ndarray, " total"]:
    """The fixed locations as rows of all regions one after the other."""
    starts = np.cumsum([0, *(len(x) for x in problem.regions.values())])
    return np.concatenate(
        [start + rows for start, rows in zip(starts[:-1], locations.values(), strict=True)]
    )


def judge(
    blocks: Sequence[Block],
    bounds: GateSettings,
    *,
    has_energy: bool = True,
    precision: tuple[float, float] | None = None,
    regions: Mapping[str, int] | None = None,
) -> Gate:
    """The gate over all draws of a problem so far."""
    energy = np.concatenate([b.energy for b in blocks], axis=1)
    return gate(
        np.concatenate([b.values for b in blocks], axis=1),
        energy=energy if has_energy else None,
        num_divergent=int(sum(b.divergent.sum() for b in blocks)),
        num_saturated=int(sum(b.saturated.sum() for b in blocks)),
        num_transitions=energy.size,
        precision=precision,
        regions=regions,
        settings=bounds,
    )


def predictive_moments(
    problem: Problem, model: Model, blocks: Sequence[Block], shift: Float[np.ndarray, "N M"]
) -> dict[str, Moments]:
    """Moments at every region's locations from block means about `shift`.

    Blocks count by their lengths: the last one is shorter where sampling ended early.
    """
    lengths = np.array([block.energy.shape[1] for block in blocks])

    def over_blocks(name: str) -> np.ndarray:
        return np.stack([getattr(b, name) for b in blocks], axis=1).astype(float)

    moments = batch_means_se(
        over_blocks("shifted_mean"), over_blocks("shifted_square"), shift=shift,
        lengths=lengths,
    )  # fmt: skip
    aleatoric, aleatoric_se = weighted_mean_and_se(over_blocks("aleatoric"), lengths)
    entropy, entropy_se = weighted_mean_and_se(over_blocks("entropy"), lengths)
    everywhere = Moments(
        mean=moments.mean,
        mean_se=moments.mean_se,
        var=moments.var,
        var_se=moments.var_se,
        aleatoric=aleatoric,
        aleatoric_se=aleatoric_se,
        expected_entropy=entropy,
        expected_entropy_se=entropy_se,
        entropy=LIKELIHOODS[model.likelihood].predictive_entropy(moments.mean),
    )
    regions, start = {}, 0
    for name, x in problem.regions.items():
        regions[name] = Moments(*(a[start : start + len(x)] for a in everywhere))
        start += len(x)
    return regions


def moment_arrays(problem: Problem, posterior: Posterior) -> dict[str, np.ndarray]:
    """The locations and the moments of every region, as a record of a run stores them.

    `test/X`, and in single precision `test/mcmc_mean`, `test/mcmc_var` and `test/mcmc_var_se`.
    """
    arrays: dict[str, np.ndarray] = {}
    for region, moments in posterior.regions.items():
        arrays[f"{region}/X"] = problem.regions[region]
        arrays |= {
            f"{region}/mcmc_{name}": np.asarray(getattr(moments, name), np.float32)
            for name in ("mean", "var", "var_se")
        }
    return arrays


def two_valued(
    moments: Moments, likelihood: str, *, p: Float[ArrayLike, "N M"] | None = None
) -> dict[str, TwoValued]:
    r"""Locations at which the posterior of p is nearly two-valued, by class.

    The variance of the label under the averaged prediction has an epistemic and an aleatoric part,

        mean p (1 - mean p) = Var p + E[p (1 - p)].

    Var p is all of it exactly where every draw of p is 0 or 1, as far from the data under a wide
    prior, whose units are saturated. A location counts as two-valued where Var p is more than half
    of it, Var p > E[p (1 - p)], for the trace where the sum over classes is. Where all of it is
    zero, p has one value, and the location does not count.

    Parameters
    ----------
    moments
        Moments of a region.
    likelihood
        A name of `isounc.likelihoods.LIKELIHOODS`.
    p
        Prediction whose largest is the class "predicted"; the posterior mean if not given.

    Returns
    -------
    dict
        By the names of `isounc.metrics.class_views`. Empty where the prediction is no probability,
        as in regression: a mean that is not bounded has no two values.

    Raises
    ------
    ValueError
        Unknown likelihood, shapes that do not fit it, or moments that are not finite.
    """
    check_kind("moments", moments, Moments)
    point = moments.mean if p is None else p
    # Errors of the two parts, and of classes, are correlated: adding them up bounds the error.
    var, aleatoric, se = (
        class_views(point, check_array("moments", values, ndim=2), likelihood)
        for values in (moments.var, moments.aleatoric, moments.var_se + moments.aleatoric_se)
    )
    if LIKELIHOODS[likelihood].quantity != "p":
        return {}
    return {
        name: TwoValued(v > aleatoric[name], np.abs(v - aleatoric[name]) < se[name])
        for name, v in var.items()
    }


def kept_draws(blocks: Sequence[Block], num_kept: int) -> Float[np.ndarray, "T P"]:
    """Evenly spaced parameter draws of each chain, at most `num_kept` in all, chain-major."""
    draws = np.concatenate([b.draws for b in blocks], axis=1)
    per_chain = min(draws.shape[1], max(1, num_kept // draws.shape[0]))
    chosen = np.linspace(0, draws.shape[1] - 1, per_chain).round().astype(int)
    return draws[:, chosen].reshape(-1, draws.shape[-1])


def kept_values(
    problem: Problem, blocks: Sequence[Block], locations: Mapping[str, Int[np.ndarray, " Q"]]
) -> dict[str, Float[np.ndarray, "K S Q M"]]:
    """Every draw of the predictive quantity at the fixed locations of each region."""
    values = np.concatenate([b.values for b in blocks], axis=1)
    sizes = [rows.size * problem.num_columns for rows in locations.values()]
    parts = np.split(values, np.cumsum(sizes)[:-1], axis=2)
    return {
        name: part.reshape(*part.shape[:2], -1, problem.num_columns)
        for name, part in zip(locations, parts, strict=True)
    }
