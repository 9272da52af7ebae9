"""R-hat, effective sample sizes and Monte Carlo standard errors of draws, per location.

Written for many locations at a time: a cell of a sweep has hundreds of them, thousands of draws at
each. The work is done by NumPy and SciPy, in float64 whatever the draws' dtype.

Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner, "Rank-normalization, folding, and
localization: an improved R-hat", Bayesian Analysis 16(2), 2021. The numbers are ArviZ's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.fft
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped
from scipy.special import ndtri

from isounc.checks import real_array
from isounc.sampling.tails import pareto_khat

TAIL_PROBABILITIES = (0.05, 0.95)
"""The quantiles whose effective draws are the tail ESS."""
CHUNK_DRAWS = 2**16
"""Draws handled together: 512 KB in float64, so that the passes over a chunk stay in cache."""
WITHIN_FLOOR = 1e-24
"""Within-chain variance of normal scores below which chains stand still: one draw of n that differs
gives about n^-3, rounding 1e-32."""

EQUAL_SHARE = 0.1
"""Share of equal draws from which on two chains are suspected to be one."""


class Diagnostics(NamedTuple):
    """Convergence at each location; NaN where a draw is not finite or all draws are equal.

    Equal draws still have a mean, and variance 0. With two or three different values some of the
    other numbers may be NaN too. The standard errors are sd / sqrt(ESS), with the ESS of p and of
    (p - mean)^2 as they are, not rank-normalised.
    """

    rhat: Float[np.ndarray, "*Q"]
    """Rank-normalised split R-hat, the larger of bulk and folded; infinite where no chain moves."""
    ess_bulk: Float[np.ndarray, "*Q"]
    """Effective draws of rank-normalised p."""
    ess_var: Float[np.ndarray, "*Q"]
    """Effective draws of rank-normalised (p - mean)^2."""
    ess_tail: Float[np.ndarray, "*Q"]
    """Effective draws of the indicators p <= 5% and 95% quantile, the smaller of the two."""
    ess_mean: Float[np.ndarray, "*Q"]
    """Effective draws of p as it is."""
    mean: Float[np.ndarray, "*Q"]
    """Mean over all chains and draws."""
    mean_se: Float[np.ndarray, "*Q"]
    """Monte Carlo standard error of `mean`."""
    var: Float[np.ndarray, "*Q"]
    """Variance over all chains and draws, divisor K S."""
    var_se: Float[np.ndarray, "*Q"]
    """Monte Carlo standard error of `var`; not to be trusted where `khat` is large."""
    khat: Float[np.ndarray, "*Q"]
    """Pareto k of (p - mean)^2 (`isounc.sampling.tails`); infinite where more than half of the draws
    are equal, so that a few decide about the variance."""
    finite: Bool[np.ndarray, "*Q"]
    """Whether every draw is finite."""
    frozen: Bool[np.ndarray, "K *Q"]
    """Whether a chain has one value in all its draws."""
    equal: Bool[np.ndarray, "K K"]
    """Whether two chains have many draws in common, at the same time and at all locations: they are
    no independent chains. False on the diagonal."""


def diagnose(values: Float[ArrayLike, "K S *Q"]) -> Diagnostics:
    """R-hat, effective sample sizes, moments and their errors at every location.

    Parameters
    ----------
    values
        Draws of the predictive quantity, in its own units.

    Raises
    ------
    ValueError
        For anything but (chains, draws, ...), fewer than 2 chains or 4 draws, or no location.
    """
    draws = real_array("values", values)
    if draws.ndim < 2 or draws.shape[0] < 2 or draws.shape[1] < 4 or draws.size == 0:
        raise ValueError(
            "values must be (chains, draws, locations...) with 2 chains, 4 draws and 1 location or "
            f"more, got shape {draws.shape}"
        )
    shape = draws.shape[2:]
    draws = draws.reshape(*draws.shape[:2], -1)
    results = np.full((len(Diagnostics._fields) - 3, draws.shape[2]), np.nan)
    prints = np.zeros(draws.shape[:2], np.uint64)
    odd = np.random.default_rng(0).integers(2**63, size=draws.shape[2], dtype=np.uint64) * 2 + 1
    low, high = np.empty((2, len(draws), draws.shape[2]))
    finite = np.empty(draws.shape[2], dtype=bool)
    step = max(1, CHUNK_DRAWS // (draws.shape[0] * draws.shape[1]))
    for start in range(0, draws.shape[2], step):
        chunk = slice(start, start + step)
        x = draws[:, :, chunk].transpose(2, 0, 1).astype(np.float64, order="C")
        low[:, chunk], high[:, chunk] = x.min(axis=2).T, x.max(axis=2).T
        finite[chunk] = np.isfinite(x).all(axis=(1, 2))
        usable = finite[chunk] & (low[:, chunk].min(axis=0) < high[:, chunk].max(axis=0))
        if usable.any():
            # Equal draws have equal sums, and others all but never.
            bits = (x[usable] + 0.0).view(np.uint64)
            prints += (bits * odd[chunk][usable][:, None, None]).sum(axis=0)
            results[:, start + np.flatnonzero(usable)] = _diagnose_chunk(
                x if usable.all() else x[usable]
            )
    constant = finite & (low.min(axis=0) == high.max(axis=0))
    numbers = dict(zip(Diagnostics._fields, results, strict=False))
    numbers["mean"][constant] = low[0, constant]
    numbers["var"][constant] = 0.0
    return Diagnostics(
        **{name: column.reshape(shape) for name, column in numbers.items()},
        finite=finite.reshape(shape),
        frozen=(low == high).reshape(-1, *shape),
        equal=_equal_chains(prints),
    )


def _equal_chains(prints: Shaped[np.ndarray, "K S"]) -> Bool[np.ndarray, "K K"]:
    """Pairs of chains that share more draws than can be chance, given a number for each draw.

    Predictions that are saturated are equal by chance, but then they have few different values.
    """
    num_chains, num_draws = prints.shape
    equal = np.zeros((num_chains, num_chains), bool)
    for i in range(num_chains - 1):
        same = prints[i] == prints[i + 1 :]
        for j in np.flatnonzero(same.mean(axis=1) > EQUAL_SHARE):
            distinct = len(np.unique(prints[i, same[j]]))
            equal[i, i + 1 + j] = distinct >= max(3, EQUAL_SHARE * num_draws / 10)
    return equal | equal.T


def _diagnose_chunk(x: Float[np.ndarray, "q K S"]) -> tuple[Float[np.ndarray, " q"], ...]:
    """The fields of `Diagnostics` from `rhat` to `khat`."""
    halves = _split(x)
    z, in_order = _normal_scores(halves)
    n = in_order.shape[1]
    median = (in_order[:, n // 2 - 1] + in_order[:, n // 2]) / 2  # of 2K halves: n is even
    z_folded, _ = _normal_scores(np.abs(halves - median[:, None, None]))
    mean = x.mean(axis=(1, 2))
    d = x - mean[:, None, None]
    # In [-1, 1], or fourth powers could underflow where a network is almost sure.
    scale = np.maximum(d.max(axis=(1, 2)), -d.min(axis=(1, 2)))
    d /= scale[:, None, None]
    z_square, _ = _normal_scores(_split(np.abs(d)))
    square = d**2
    var = square.mean(axis=(1, 2))
    ess_mean = _ess(_split(d))
    return (
        np.fmax(_rhat(z), _rhat(z_folded)),
        _ess(z),
        _ess(z_square),
        _ess_tail(x, in_order),
        ess_mean,
        mean,
        scale * np.sqrt(var * x[0].size / (x[0].size - 1) / ess_mean),
        scale**2 * var,
        scale**2 * square.std(axis=(1, 2)) / np.sqrt(_ess(_split(square))),
        np.where(
            in_order[:, n // 4] == in_order[:, 3 * n // 4],
            np.inf,
            pareto_khat(square.reshape(len(x), -1)),
        ),
    )


def _split(x: Float[np.ndarray, "q K S"]) -> Float[np.ndarray, "q 2*K S//2"]:
    """Cut chains into halves, without the middle draw of an odd S."""
    half = x.shape[2] // 2
    if x.shape[2] % 2:
        x = np.concatenate([x[:, :, :half], x[:, :, -half:]], axis=2)
    return x.reshape(x.shape[0], -1, half)


@lru_cache(maxsize=8)
def _score_table(n: int) -> Float[np.ndarray, " {2*n+1}"]:
    """Normal scores Phi^-1((r - 3/8) / (n + 1/4)) of the ranks r = (-, -,) 1, 3/2, ... n."""
    ranks = np.maximum(np.arange(2 * n + 1) / 2, 1.0)
    table = ndtri((ranks - 0.375) / (n + 0.25))
    table.setflags(write=False)
    return table


def _normal_scores(
    x: Float[np.ndarray, "q K S"],
) -> tuple[Float[np.ndarray, "q K S"], Float[np.ndarray, "q K*S"]]:
    """Normal scores of the ranks within each column, and the columns in order.

    Equal draws, which rejected proposals leave behind, share their mean rank.
    """
    flat = x.reshape(len(x), -1)
    n = flat.shape[1]
    order = np.argsort(flat, axis=1)
    order += n * np.arange(len(x))[:, None]  # positions in all columns laid end to end
    in_order = flat.ravel()[order]
    first = np.ones(flat.shape, dtype=bool)
    np.not_equal(in_order[:, 1:], in_order[:, :-1], out=first[:, 1:])
    if first.all():
        scores = np.broadcast_to(_score_table(n)[2::2], flat.shape)
    else:
        start = np.flatnonzero(first)
        count = np.diff(start, append=first.size)
        # Ranks start + 1 to start + count, whose mean times two is the table's index.
        scores = np.repeat(_score_table(n)[2 * (start % n) + count + 1], count).reshape(flat.shape)
    z = np.empty(flat.size)
    z[order] = scores
    return z.reshape(x.shape), in_order


def _rhat(z: Float[np.ndarray, "q K n"]) -> Float[np.ndarray, " q"]:
    """R-hat of scores, sqrt((n-1)/n + var of means / mean of variances).

    Infinite if chains stand still at different values, NaN if at the same.
    """
    between = z.mean(axis=2).var(axis=1, ddof=1)
    within = z.var(axis=2, ddof=1).mean(axis=1)
    still = within < WITHIN_FLOOR
    rhat = np.sqrt((z.shape[2] - 1) / z.shape[2] + between / np.where(still, 1.0, within))
    return np.where(still, np.where(between < WITHIN_FLOOR, np.nan, np.inf), rhat)


def _ess_tail(
    x: Float[np.ndarray, "q K S"], in_order: Float[np.ndarray, "q n"]
) -> Float[np.ndarray, " q"]:
    """Smaller ESS of the two tail indicators of columns, given their halves in order."""
    size = float(in_order.shape[1])
    if x.shape[2] % 2:  # the halves lack a draw that the quantile counts
        in_order = np.sort(x.reshape(len(x), -1), axis=1)
    smaller = np.full(len(x), np.inf)
    for probability in TAIL_PROBABILITIES:
        position = (in_order.shape[1] - 1) * probability
        low, high = in_order[:, int(position)], in_order[:, int(position) + 1]
        quantile = low + (position - int(position)) * (high - low)
        ess = _ess(_split((x <= quantile[:, None, None]).astype(np.float64)))
        # An indicator that ties have made constant limits nothing.
        smaller = np.minimum(smaller, np.where(np.isnan(ess), size, ess))
    return smaller


def _ess(x: Float[np.ndarray, "q K n"]) -> Float[np.ndarray, " q"]:
    """Effective sample size for the mean of columns; NaN where all draws are equal.

    ESS = size / tau, tau = -1 + 2 x the sum of autocorrelations over Geyer's initial monotone
    sequence, at least 1 / log10(size).
    """
    num_chains, n = x.shape[1:]
    means = x.mean(axis=2)
    length = scipy.fft.next_fast_len(2 * n, real=True)  # zeros enough that nothing wraps round
    spectrum = np.asarray(scipy.fft.rfft(x - means[:, :, None], n=length, axis=2, workers=1))
    # The mean over chains commutes with the inverse transform: one a column instead of one a chain.
    parts = spectrum.view(np.float64)
    power = np.einsum("qkf,qkf->qf", parts, parts).reshape(len(x), -1, 2).sum(axis=2) / num_chains
    autocov = np.asarray(scipy.fft.irfft(power, n=length, axis=1, workers=1))[:, :n] / n
    constant = x.max(axis=(1, 2)) == x.min(axis=(1, 2))
    total = np.where(constant, 1.0, autocov[:, 0] + means.var(axis=1, ddof=1))
    rho = 1.0 - (autocov[:, :1] * (n / (n - 1)) - autocov) / total[:, None]
    rho[:, 0] = 1.0
    # Sums of neighbours at even and odd lags are positive and fall for a reversible chain: the sum
    # ends before the first that is not positive, and none may exceed the one before it.
    last = max(0, (n - 3) // 2)  # beyond, a lag has hardly any products
    even = rho[:, 0 : 2 * last + 1 : 2]
    pairs = even + rho[:, 1 : 2 * last + 2 : 2]
    ended = pairs <= 0
    ended[:, last] = True
    end = np.argmax(ended, axis=1)
    monotone = np.minimum.accumulate(pairs, axis=1)
    kept = np.where(np.arange(last + 1) < end[:, None], monotone, 0.0).sum(axis=1)
    # Half of the pair that ended the sum is still worth having where it is positive.
    rows = np.arange(len(x))
    half = np.where(pairs[rows, end] >= 0, even[rows, end], np.maximum(even[rows, end], 0.0))
    size = num_chains * n
    tau = np.maximum(-1.0 + 2.0 * kept + half, 1.0 / np.log10(size))
    return np.where(constant, np.nan, size / tau)
