"""Tests of the uniformity of ranks: ECDF differences with simultaneous bands, and histograms.

Source: Säilynoja, Bürkner and Vehtari, "Graphical test for discrete uniformity and its applications
in goodness-of-fit evaluation and multiple sample comparison", Statistics and Computing 32(32), 2022
(arXiv 2103.10522).

Axes: R replications, Q test quantities, S draws among which the truth is ranked: ranks are 0..S.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import special, stats

NUM_SIMULATIONS = 20_000
"""Simulated sets of ranks behind a band and its p-values; no p-value is below 1 / (this + 1)."""
_LEAST_FOR_TEST = 20
"""Fewest replications that are tested."""


class Judgement(NamedTuple):
    """The ranks of one test quantity against the uniform distribution."""

    quantity: str
    """Name of the test quantity."""
    difference: float
    """Largest |ECDF - uniform CDF|."""
    p_value: float
    """Share of uniform sets of ranks that leave the simultaneous band that these just leave."""
    p_chi_square: float
    """p-value of the histogram's chi-square statistic, for information."""
    p_gate_passed: float | None
    """The `p_value` of the replications that passed their gate, for information; None if they are
    fewer than 20."""


@functools.lru_cache(maxsize=64)
def _null(num_replications: int, num_ranked: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the two-sided tail probability of each count at each rank, and its null distribution.

    The number of R uniform ranks on 0..S that are k or less is Binomial(R, (k+1) / (S+1)). The null
    distribution is the sorted smallest tail probabilities of simulated sets of uniform ranks.
    """
    counts = np.arange(num_replications + 1)[:, None]
    z = np.arange(1, num_ranked + 1) / (num_ranked + 1)
    below = special.bdtr(counts, num_replications, z)
    above = np.where(counts > 0, special.bdtrc(np.maximum(counts - 1, 0), num_replications, z), 1.0)
    tail = np.minimum(1.0, 2 * np.minimum(below, above))
    rng = np.random.default_rng([num_replications, num_ranked])
    even = np.full(num_ranked + 1, 1 / (num_ranked + 1))
    smallest = []
    for _ in range(NUM_SIMULATIONS // 1000):
        cumulated = rng.multinomial(num_replications, even, 1000)[:, :-1].cumsum(axis=1)
        smallest.append(tail[cumulated, np.arange(num_ranked)].min(axis=1))
    return tail, np.sort(np.concatenate(smallest))


def _cumulated(ranks: Int[np.ndarray, " R"], num_ranked: int) -> Int[np.ndarray, " S"]:
    return np.bincount(ranks, minlength=num_ranked + 1)[:-1].cumsum()


def ecdf_band(
    num_replications: int, num_ranked: int, *, level: float = 0.05
) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"]]:
    """Return the simultaneous band of ECDF - CDF at (k+1)/(S+1), k = 0..S-1: low and high ends.

    Uniform ranks leave the band, at any k, with chance `level`. At every k it holds the counts
    whose two-sided binomial tail probability is at least gamma. Here gamma is the `level` quantile,
    over simulated uniform ranks, of the smallest tail probability of a set.

    Raises
    ------
    ValueError
        If `level` is below what the simulated sets can resolve, or not below 1.
    """
    if not 1 / NUM_SIMULATIONS < level < 1:
        raise ValueError(f"level must be between {1 / NUM_SIMULATIONS:g} and 1, got {level}")
    tail, smallest = _null(num_replications, num_ranked)
    inside = tail >= smallest[int(level * (len(smallest) + 1)) - 1]
    low = inside.argmax(axis=0)
    high = num_replications - inside[::-1].argmax(axis=0)
    z = np.arange(1, num_ranked + 1) / (num_ranked + 1)
    return low / num_replications - z, high / num_replications - z


def ecdf_difference(ranks: Int[np.ndarray, " R"], num_ranked: int) -> Float[np.ndarray, " S"]:
    """Return the ECDF of the ranks minus the uniform CDF at (k+1)/(S+1), k = 0..S-1."""
    z = np.arange(1, num_ranked + 1) / (num_ranked + 1)
    return _cumulated(ranks, num_ranked) / len(ranks) - z


def ecdf_p_value(ranks: Int[np.ndarray, " R"], num_ranked: int) -> float:
    """Return the chance that uniform ranks leave a simultaneous band that these ranks just leave.

    It is at most `level` if and only if the ranks leave `ecdf_band` of that level.
    """
    tail, smallest = _null(len(ranks), num_ranked)
    observed = tail[_cumulated(ranks, num_ranked), np.arange(num_ranked)].min()
    return float((1 + np.searchsorted(smallest, observed, side="right")) / (1 + len(smallest)))


def rank_histogram(
    ranks: Int[np.ndarray, " R"], num_ranked: int, num_bins: int
) -> tuple[Int[np.ndarray, " bins"], Float[np.ndarray, " bins"]]:
    """Count ranks in bins of neighbours; return also the share of the S + 1 ranks in each bin."""
    bin_of = np.arange(num_ranked + 1) * num_bins // (num_ranked + 1)
    return (
        np.bincount(bin_of[ranks], minlength=num_bins),
        np.bincount(bin_of, minlength=num_bins) / (num_ranked + 1),
    )


def judge(
    ranks: Int[np.ndarray, "R Q"],
    names: Sequence[str],
    *,
    num_ranked: int,
    num_bins: int,
    passed: Shaped[np.ndarray, " R"] | None = None,
) -> list[Judgement]:
    """Compare the ranks of every test quantity with the uniform distribution.

    Parameters
    ----------
    ranks
        Ranks of all replications, whether they passed their gate or not.
    num_bins
        Bins of the histogram, at most one per rank and one per 5 replications.
    passed
        Whether each replication passed its gate; by default all did.

    Raises
    ------
    ValueError
        If there are too many bins, ranks outside 0..num_ranked, or not as many names as columns.
    """
    ranks = np.asarray(ranks)
    if ranks.ndim != 2 or ranks.shape[1] != len(names):
        raise ValueError(f"ranks must be (replications, {len(names)}), got shape {ranks.shape}")
    if ranks.size == 0 or ranks.min() < 0 or ranks.max() > num_ranked:
        given = f"{ranks.min()} to {ranks.max()}" if ranks.size else "none"
        raise ValueError(f"ranks must be one or more numbers in 0..{num_ranked}, got {given}")
    check_bins(num_bins, len(ranks), num_ranked)
    passed = np.ones(len(ranks), bool) if passed is None else np.asarray(passed, bool)
    judgements = []
    for name, column in zip(names, ranks.T, strict=True):
        observed, share = rank_histogram(column, num_ranked, num_bins)
        judgements.append(
            Judgement(
                name,
                float(np.abs(ecdf_difference(column, num_ranked)).max()),
                ecdf_p_value(column, num_ranked),
                float(stats.chisquare(observed, len(column) * share).pvalue),
                ecdf_p_value(column[passed], num_ranked)
                if passed.sum() >= _LEAST_FOR_TEST
                else None,
            )
        )
    return judgements


def check_bins(num_bins: int, num_replications: int, num_ranked: int) -> None:
    """Check that each bin of a histogram has a rank, and 5 replications or more on average."""
    most = min(num_replications // 5, num_ranked + 1)
    if not 2 <= num_bins <= most:
        raise ValueError(
            f"num_bins must be from 2 to {most} for {num_replications} replications ranked among "
            f"{num_ranked} draws, got {num_bins}"
        )
