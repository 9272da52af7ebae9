"""Correlations of an estimate with its reference over the locations of one region."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from isounc.checks import real_array, real_vector

MOST_REMEMBERED = 10_000
"""Length of arrays whose ranks are remembered, so that memory stays below 10 MiB."""
CONSTANT_RTOL = 1e-6
"""Relative spread (max - min) / max|.| up to which values computed in float32 count as constant."""
MIN_POINTS = 3
"""Fewest points that a correlation is computed from (two always give -1 or 1)."""
MIN_REST = 1e-4
"""Least share of a variance that must be left by a regression on `given` for a partial correlation:
less is what rounding and ties leave of values that follow from it."""


class Comparison(NamedTuple):
    """An estimate against a reference over the locations of one region."""

    n_points: int
    """Number of locations N."""
    pearson: float | None
    """Pearson correlation, in [-1, 1]."""
    spearman: float | None
    """Spearman rank correlation (ties share their mean rank), in [-1, 1]."""
    log10_pearson: float | None
    """Pearson correlation of log10, over the locations where both are positive."""
    n_dropped: int
    """Locations left out of `log10_pearson`: one of the two is not positive, or not finite."""
    slope: float | None
    """Level: the positive factor sigma^2 = sum reference / sum estimate that equates the sums."""
    attenuation: float | None
    """Factor in [0, 1] by which the reference's Monte Carlo error lowers Pearson; None without
    `reference_se`."""
    partial_pearson: float | None
    """Pearson correlation of what regressions on `given` leave of both; None without `given`."""
    partial_spearman: float | None
    """The same of the ranks."""
    reason: str
    """Reasons why other numbers are None; empty if all that were asked for are defined."""
    not_two_valued: Comparison | None = None
    """The same over the locations that are not two-valued; None without `two_valued`."""


def compare(
    estimate: Float[ArrayLike, " N"],
    reference: Float[ArrayLike, " N"],
    *,
    reference_se: Float[ArrayLike, " N"] | None = None,
    given: Float[ArrayLike, " N"] | None = None,
    two_valued: Bool[ArrayLike, " N"] | None = None,
) -> Comparison:
    r"""Correlations and level of an estimate against a reference, with reasons for undefined ones.

    With the reference known up to independent errors of variance se_n^2, its variance over the
    locations is the truth's plus mean(se^2), and an observed correlation is the true one times

        attenuation = sqrt(max(0, 1 - mean_n(se_n^2) / Var_n[reference_n])).

    Errors at different locations come from the same draws and are positively correlated. Their
    common part adds no variance over the locations, so the loss is smaller than this factor says.

    What the estimate says beyond a third quantity z that costs less is its partial correlation

        (r_er - r_ez r_rz) / sqrt((1 - r_ez^2) (1 - r_rz^2)),

    the correlation of what is left of estimate and reference once each is regressed on z; of the
    ranks likewise.

    Parameters
    ----------
    estimate, reference
        Variances or other values at the same N locations. The unit affects `Comparison.slope` only.
    reference_se
        Monte Carlo standard error of each reference value, in the reference's unit.
    given
        The third quantity z, such as p (1 - p) of the point prediction.
    two_valued
        Locations without which to compare as well (`isounc.two_valued` finds them), to see how much
        of a correlation comes from where the posterior of p is nearly two-valued.

    Raises
    ------
    ValueError
        If arrays are not one-dimensional or differ in length, a standard error is negative, or
        `two_valued` holds no truth values.

    Source: Spearman 1904, The proof and measurement of association between two things.
    """
    estimate, reference = real_vector("estimate", estimate), real_vector("reference", reference)
    _check_length("reference", reference, "estimate", estimate)
    n = len(estimate)
    reasons = [f"fewer than {MIN_POINTS} points ({n})"] if n < MIN_POINTS else []
    reasons += _why_undefined("estimate", estimate) + _why_undefined("reference", reference)

    positive = np.isfinite(estimate) & np.isfinite(reference) & (estimate > 0) & (reference > 0)
    slope, why_no_slope = _level(estimate, reference)
    pearson = spearman = log10_pearson = partial_pearson = partial_spearman = None
    if given is not None:
        given = real_vector("given", given)
        _check_length("given", given, "estimate", estimate)
    if not reasons:
        ranks = _ranks(estimate), _ranks(reference)
        pearson = _pearson(estimate, reference)
        spearman = _pearson(*ranks)
        if given is not None:
            partial_pearson, partial_spearman, why_no_partial = _partials(
                (pearson, estimate, reference, given), (spearman, *ranks, _ranks(given))
            )
            reasons += why_no_partial
        log10_pearson, why_no_log10 = _log10_pearson(estimate[positive], reference[positive])
        reasons += why_no_log10
    reasons += why_no_slope
    attenuation = se = rest = None
    if reference_se is not None:
        se = real_vector("reference_se", reference_se)
        _check_length("reference_se", se, "reference", reference)
        attenuation, why_no_attenuation = _attenuation(reference, se)
        reasons += why_no_attenuation
    if two_valued is not None:
        mask = real_array("two_valued", two_valued)
        if mask.dtype != bool or mask.shape != (n,):
            got = f"{mask.dtype} of shape {mask.shape}"
            raise ValueError(f"two_valued must be truth values of shape ({n},), got {got}")
        se = None if se is None else se[~mask]
        rest = compare(
            estimate[~mask], reference[~mask], reference_se=se,
            given=None if given is None else given[~mask],
        )  # fmt: skip
    return Comparison(
        n_points=n,
        pearson=pearson,
        spearman=spearman,
        log10_pearson=log10_pearson,
        n_dropped=n - int(positive.sum()),
        slope=slope,
        attenuation=attenuation,
        partial_pearson=partial_pearson,
        partial_spearman=partial_spearman,
        reason="; ".join(reasons),
        not_two_valued=rest,
    )


def _check_length(name: str, array: np.ndarray, other: str, like: np.ndarray) -> None:
    if len(array) != len(like):
        raise ValueError(f"{name} must be as long as {other}, {len(like)}, got {len(array)}")


def _why_undefined(name: str, values: np.ndarray) -> list[str]:
    """The reason why values correlate with nothing, if there is one."""
    bad = int((~np.isfinite(values)).sum())
    if bad:
        return [f"{bad} of {len(values)} {name} values not finite"]
    if len(values) > 0 and not values.any():
        return [f"{name} is zero everywhere"]
    if len(values) > 1 and _is_constant(values):
        return [f"{name} is constant ({values[0]:.4g} to within {CONSTANT_RTOL:g})"]
    return []


def _is_constant(values: np.ndarray) -> bool:
    # Halves, because the difference of two huge values may overflow.
    spread = values.max() / 2 - values.min() / 2
    return bool(spread <= CONSTANT_RTOL * np.abs(values).max() / 2)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of values known not to be constant."""
    return max(-1.0, min(1.0, float(_unit_vector(a) @ _unit_vector(b))))


def _unit_vector(values: np.ndarray) -> np.ndarray:
    """Values less their mean, divided by their norm."""
    return _remembered(_unit_vector_of, values)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, of which ties share the mean."""
    return _remembered(_ranks_of, values)


def _remembered(function: Any, values: np.ndarray) -> np.ndarray:
    """Compute a function of values, cached: many estimates are compared with one reference."""
    content = np.asarray(values, np.float64).tobytes()
    return (function if len(values) <= MOST_REMEMBERED else function.__wrapped__)(content)


@functools.lru_cache(maxsize=64)
def _unit_vector_of(content: bytes) -> np.ndarray:
    values = np.frombuffer(content)
    # Scaled before they are squared, where tiny values would underflow and huge ones overflow.
    values = values / np.abs(values).max()
    values -= values.mean()
    values /= math.sqrt(values @ values)
    values.flags.writeable = False
    return values


@functools.lru_cache(maxsize=64)
def _ranks_of(content: bytes) -> np.ndarray:
    # As scipy.stats.rankdata; importing scipy.stats takes each worker half a second.
    _, inverse, counts = np.unique(np.frombuffer(content), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    ranks.flags.writeable = False
    return ranks


def _partials(
    values: tuple[float, np.ndarray, np.ndarray, np.ndarray],
    ranks: tuple[float, np.ndarray, np.ndarray, np.ndarray],
) -> tuple[float | None, float | None, list[str]]:
    """Partial correlations of two arrays, from their correlation and them, given a third."""
    n, whys = len(values[1]), _why_undefined("given", values[3])
    if n <= MIN_POINTS:  # one more than for a correlation: the regression takes one away
        whys = [f"fewer than {MIN_POINTS + 1} points ({n})"]
    if whys:
        return None, None, [f"partial correlations undefined: {why}" for why in whys]
    found, reasons = [], []
    for name, (between, estimate, reference, given) in (("Pearson", values), ("Spearman", ranks)):
        along = _pearson(estimate, given), _pearson(reference, given)
        rest = [1 - r**2 for r in along]
        follows = [
            what for what, share in zip(("estimate", "reference"), rest, strict=True)
            if share < MIN_REST
        ]  # fmt: skip
        if follows:
            what = " and ".join(follows)
            reasons.append(f"partial {name} undefined: given leaves nothing of the {what}")
            found.append(None)
            continue
        partial = (between - along[0] * along[1]) / math.sqrt(rest[0] * rest[1])
        found.append(max(-1.0, min(1.0, partial)))
    return found[0], found[1], reasons


def _log10_pearson(a: np.ndarray, b: np.ndarray) -> tuple[float | None, list[str]]:
    if len(a) < MIN_POINTS:
        return None, [f"log10 undefined: fewer than {MIN_POINTS} positive pairs ({len(a)})"]
    for name, values in (("estimate", a), ("reference", b)):
        if _is_constant(values):
            return None, [f"log10 undefined: {name} is constant over {len(a)} positive pairs"]
    return _pearson(np.log10(a), np.log10(b)), []


def _level(estimate: np.ndarray, reference: np.ndarray) -> tuple[float | None, list[str]]:
    if not (np.isfinite(estimate).all() and np.isfinite(reference).all()):
        # The correlations are undefined for the same reason, which is given already.
        return None, []
    with np.errstate(over="ignore"):
        sums = float(estimate.sum()), float(reference.sum())
    slope = sums[1] / sums[0] if min(sums) > 0 else 0.0
    if not 0 < slope < math.inf:
        what = f"sums of estimate {sums[0]:.4g} and reference {sums[1]:.4g}"
        return None, [f"level undefined: {what} have no positive ratio"]
    return slope, []


def _attenuation(reference: np.ndarray, se: np.ndarray) -> tuple[float | None, list[str]]:
    if (se < 0).any():
        raise ValueError(f"reference_se must not be negative, got {se.min():g}")
    if len(reference) < MIN_POINTS or _why_undefined("reference", reference):
        # The correlations are undefined for the same reason, which is given already.
        return None, []
    bad = int((~np.isfinite(se)).sum())
    if bad:
        return None, [f"attenuation undefined: {bad} of {len(se)} reference_se values not finite"]
    unit = np.abs(reference).max()
    # ddof=1: this variance gains mean(se^2) from independent errors, exactly in expectation.
    noise_share = np.mean((se / unit) ** 2) / np.var(reference / unit, ddof=1)
    return math.sqrt(max(0.0, 1.0 - float(noise_share))), []
