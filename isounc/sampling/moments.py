"""What sampling leaves: blocks of draws, gathered into predictive moments and the gate's verdict. NumPy on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model
from isounc.problems import Problem
from isounc.sampling import gate as diagnostics
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
    """H of the averaged prediction, nats; it minus expected_entropy is the mutual information. NaN where undefined."""


@dataclass(frozen=True)
class Posterior:
    """A sampled posterior: moments at every region's locations, kept draws, and the gate's verdict."""

    model: Model
    """The model that was sampled."""
    regions: Mapping[str, Moments]
    """Predictive moments by region."""
    gate: diagnostics.Gate
    """The convergence checks, at the fixed locations of all regions together."""
    draws: Float[np.ndarray, "S P"]
    """Kept parameter draws, chain-major, equally many from each chain."""
    values: Mapping[str, Float[np.ndarray, "K S N M"]] | None
    """Every draw of the predictive quantity at the fixed locations, where asked for (keep_values)."""
    locations: Mapping[str, np.ndarray]
    """Rows of each region that the fixed locations are."""
    num_chains: int
    """K."""
    num_draws: int
    """S, transitions of each chain after warm-up."""
    num_gradients: int
    """Leapfrog steps after warm-up, over all chains."""
    step_size: Float[np.ndarray, " K"]
    """Adapted step size of each chain (one for all), in the coordinates that were sampled."""
    acceptance: float
    """Mean acceptance probability after warm-up."""
    coordinates: str
    """Coordinates that were sampled in: prior, curvature or readout."""
    stopped: str
    """Why sampling ended: the target was met or the budget was spent, with the numbers."""


class Block(NamedTuple):
    """What a block of draws leaves, with leading axes (problem B, chain K)."""

    shifted_mean: Float[Array, "B K N M"]
    """Block mean of p - shift."""
    shifted_square: Float[Array, "B K N M"]
    """Block mean of (p - shift)^2."""
    aleatoric: Float[Array, "B K N M"]
    """Block mean of the label variance."""
    entropy: Float[Array, "B K N"]
    """Block mean of the label entropy."""
    values: Float[Array, "B K S Q"]
    """Every draw of p at the fixed locations, flattened."""
    draws: Float[Array, "B K S P"]
    """Thinned parameter draws."""
    energy: Float[Array, "B K S"]
    """Hamiltonian of each transition."""
    divergent: Float[Array, "B K"]
    """Number of divergent transitions."""
    saturated: Float[Array, "B K"]
    """Number of trajectories cut at their longest."""
    acceptance: Float[Array, "B K"]
    """Mean acceptance probability."""
    num_gradients: Float[Array, "B K"]
    """Leapfrog steps."""


def fixed_locations(problem: Problem, per_region: int) -> dict[str, np.ndarray]:
    """Evenly spaced rows of each region, the same for every problem of a shape."""
    return {
        name: np.unique(np.linspace(0, len(x) - 1, per_region).round().astype(int))
        for name, x in problem.regions.items()
    }


def flat_locations(problem: Problem, locations: Mapping[str, np.ndarray]) -> np.ndarray:
    """The fixed locations as rows of all regions one after the other."""
    starts = np.cumsum([0, *(len(x) for x in problem.regions.values())])
    return np.concatenate(
        [start + rows for start, rows in zip(starts[:-1], locations.values(), strict=True)]
    )


def gate_of(
    blocks: Sequence[Block], i: int, bounds: GateSettings, *, has_energy: bool = True
) -> diagnostics.Gate:
    """The gate of the i-th problem over all its draws so far."""
    energy = np.concatenate([b.energy[i] for b in blocks], axis=1)
    return diagnostics.gate(
        np.concatenate([b.values[i] for b in blocks], axis=1),
        energy=energy if has_energy else None,
        num_divergent=int(sum(b.divergent[i].sum() for b in blocks)),
        num_saturated=int(sum(b.saturated[i].sum() for b in blocks)),
        num_transitions=energy.size,
        settings=bounds,
    )


def collect(
    problem: Problem,
    model: Model,
    blocks: Sequence[Block],
    i: int,
    *,
    shift: Float[np.ndarray, "N M"],
    step_size: Float[np.ndarray, " K"],
    gate: diagnostics.Gate,
    stopped: str,
    coordinates: str,
    locations: Mapping[str, np.ndarray],
    num_kept: int,
    keep_values: bool,
) -> Posterior:
    """The posterior of the i-th problem from all blocks of draws."""

    def over_blocks(name):
        return np.stack([getattr(b, name)[i] for b in blocks], axis=1).astype(float)

    moments = diagnostics.batch_means_se(
        over_blocks("shifted_mean"), over_blocks("shifted_square"), shift=shift
    )
    aleatoric, aleatoric_se = _mean_and_se(over_blocks("aleatoric"))
    expected_entropy, expected_entropy_se = _mean_and_se(over_blocks("entropy"))
    everywhere = Moments(
        mean=moments.mean,
        mean_se=moments.mean_se,
        var=moments.var,
        var_se=moments.var_se,
        aleatoric=aleatoric,
        aleatoric_se=aleatoric_se,
        expected_entropy=expected_entropy,
        expected_entropy_se=expected_entropy_se,
        entropy=LIKELIHOODS[model.likelihood].predictive_entropy(moments.mean),
    )
    regions, start = {}, 0
    for name, x in problem.regions.items():
        regions[name] = Moments(*(a[start : start + len(x)] for a in everywhere))
        start += len(x)

    per_chain = np.concatenate([b.draws[i] for b in blocks], axis=1)
    kept = min(per_chain.shape[1], max(1, num_kept // per_chain.shape[0]))
    rows = np.linspace(0, per_chain.shape[1] - 1, kept).round().astype(int)
    values = None
    if keep_values:
        everything = np.concatenate([b.values[i] for b in blocks], axis=1)
        sizes = [rows_.size * problem.num_columns for rows_ in locations.values()]
        values = {
            name: part.reshape(*part.shape[:2], -1, problem.num_columns)
            for name, part in zip(
                locations, np.split(everything, np.cumsum(sizes)[:-1], axis=2), strict=True
            )
        }
    return Posterior(
        model=model,
        regions=regions,
        gate=gate,
        draws=per_chain[:, rows].reshape(-1, per_chain.shape[-1]),
        values=values,
        locations=locations,
        num_chains=per_chain.shape[0],
        num_draws=sum(b.energy.shape[2] for b in blocks),
        num_gradients=int(sum(b.num_gradients[i].sum() for b in blocks)),
        step_size=step_size,
        acceptance=float(np.mean([b.acceptance[i].mean() for b in blocks])),
        coordinates=coordinates,
        stopped=stopped,
    )


def _mean_and_se(batches: Float[np.ndarray, "K B *N"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over chains and batches, and its standard error from their spread."""
    count = batches.shape[0] * batches.shape[1]
    return batches.mean((0, 1)), batches.std((0, 1), ddof=1) / np.sqrt(count)
