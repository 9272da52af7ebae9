"""Correlations of an estimate with its reference, and intervals and trends over seeds.

These are computations with NumPy on finished results. An undefined number is None with a reason,
never NaN. The unit of replication is the seed (new data, new initialisation): intervals never come
from resampling locations, which are near-copies of each other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float
from scipy.special import stdtrit

from isounc.checks import check_choice, check_unmasked, real_array

IntervalKind = Literal["correlation", "mean", "log"]

MAX_ABS_CORRELATION = 1 - 1e-6
"""Where |r| is clipped before Fisher's z, which is infinite at 1: z = 7.25."""
CONSTANT_RTOL = 1e-6
"""Relative spread (max - min) / max|.| up to which values computed in float32 count as constant."""
MIN_POINTS = 3
"""Fewest points that a correlation is computed from (two always give -1 or 1)."""


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
    reason: str
    """Reasons why numbers above are None; empty if all that were asked for are defined."""
    not_two_valued: Comparison | None = None
    """The same over the locations that are not two-valued; None without `two_valued`."""


class Interval(NamedTuple):
    """A mean over seeds and its confidence interval."""

    mean: float | None
    """Mean on the scale of its kind, transformed back; None for no values."""
    low: float | None
    """Lower end; None for fewer than two values."""
    high: float | None
    """Upper end; None for fewer than two values."""
    num_seeds: int
    """Number of values."""


class Trend(NamedTuple):
    """Change of a correlation with model size."""

    slope_mean: float | None
    """Mean over seeds of the change of the correlation per doubling of the width."""
    low: float | None
    """Lower end of its Student-t interval; None for fewer than two seeds."""
    high: float | None
    """Upper end; None for fewer than two seeds."""
    num_seeds: int
    """Seeds with a slope: those with defined values at two different widths or more."""
    verdict: Literal["improves", "declines", "undecided"]
    """`improves` if the interval lies above 0, `declines` if below, else `undecided`."""


def compare(
    estimate: Float[ArrayLike, " N"],
    reference: Float[ArrayLike, " N"],
    *,
    reference_se: Float[ArrayLike, " N"] | None = None,
    two_valued: Bool[ArrayLike, " N"] | None = None,
) -> Comparison:
    r"""Correlations and level of an estimate against a reference, with reasons for undefined ones.

    With the reference known up to independent errors of variance se_n^2, its variance over the
    locations is the truth's plus mean(se^2), and an observed correlation is the true one times

        attenuation = sqrt(max(0, 1 - mean_n(se_n^2) / Var_n[reference_n])).

    Errors at different locations come from the same draws and are positively correlated. Their
    common part adds no variance over the locations, so the loss is smaller than this factor says.

    Parameters
    ----------
    estimate, reference
        Variances or other values at the same N locations. The unit affects `Comparison.slope` only.
    reference_se
        Monte Carlo standard error of each reference value, in the reference's unit.
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
    estimate, reference = _vector("estimate", estimate), _vector("reference", reference)
    _check_length("reference", reference, "estimate", estimate)
    n = len(estimate)
    reasons = [f"fewer than {MIN_POINTS} points ({n})"] if n < MIN_POINTS else []
    reasons += _why_undefined("estimate", estimate) + _why_undefined("reference", reference)

    positive = np.isfinite(estimate) & np.isfinite(reference) & (estimate > 0) & (reference > 0)
    slope, why_no_slope = _level(estimate, reference)
    pearson = spearman = log10_pearson = None
    if not reasons:
        from scipy.stats import rankdata  # here, because it takes two seconds to import

        pearson = _pearson(estimate, reference)
        spearman = _pearson(rankdata(estimate), rankdata(reference))
        log10_pearson, why_no_log10 = _log10_pearson(estimate[positive], reference[positive])
        reasons += why_no_log10
    reasons += why_no_slope
    attenuation = se = rest = None
    if reference_se is not None:
        se = _vector("reference_se", reference_se)
        _check_length("reference_se", se, "reference", reference)
        attenuation, why_no_attenuation = _attenuation(reference, se)
        reasons += why_no_attenuation
    if two_valued is not None:
        mask = real_array("two_valued", two_valued)
        if mask.dtype != bool or mask.shape != (n,):
            got = f"{mask.dtype} of shape {mask.shape}"
            raise ValueError(f"two_valued must be truth values of shape ({n},), got {got}")
        se = None if se is None else se[~mask]
        rest = compare(estimate[~mask], reference[~mask], reference_se=se)
    return Comparison(
        n_points=n,
        pearson=pearson,
        spearman=spearman,
        log10_pearson=log10_pearson,
        n_dropped=n - int(positive.sum()),
        slope=slope,
        attenuation=attenuation,
        reason="; ".join(reasons),
        not_two_valued=rest,
    )


def interval_over_seeds(
    values: Iterable[float], *, kind: IntervalKind = "correlation", level: float = 0.95
) -> Interval:
    r"""Mean over seeds with a Student-t interval, on a scale where seeds are nearly normal.

        z_s = h(value_s),   h^-1( mean(z) +- t[S - 1, (1 + level) / 2] sd(z) / sqrt(S) )

    h is Fisher's atanh for `correlation` (Pearson or Spearman), the identity for `mean`, and log
    for `log` (geometric mean, for levels). Correlations are first clipped to
    +-`MAX_ABS_CORRELATION`, since atanh(1) is infinite: a seed at exactly 1 counts as z = 7.25,
    large but finite. Equal values give an interval of width zero, and a single value gives none.
    The order of the values does not change a bit of the result.

    Raises
    ------
    ValueError
        If the kind is unknown, the level outside (0, 1), a value not finite, a correlation outside
        [-1, 1], or a value of kind `log` not positive. Leave undefined values out, and count them.

    Source: Fisher 1921, On the "probable error" of a coefficient of correlation deduced from a
    small sample.
    """
    check_choice("kind", kind, ("correlation", "mean", "log"))
    _check_level(level)
    try:
        array = values if isinstance(values, np.ndarray) else list(values)
    except TypeError as error:
        raise TypeError(f"values must be numbers, one a seed, got {values!r:.60}") from error
    numbers: list[float] = _vector("values", array).tolist()
    for value in numbers:
        if not _fits_kind(value, kind):
            wanted = {"correlation": "in [-1, 1]", "mean": "finite", "log": "positive and finite"}
            raise ValueError(f"values of kind {kind!r} must be {wanted[kind]}, got {value!r}")
    if not numbers:
        return Interval(None, None, None, 0)
    smallest, largest, n = min(numbers), max(numbers), len(numbers)
    if n == 1:
        return Interval(numbers[0], None, None, 1)
    if smallest == largest:
        return Interval(smallest, smallest, smallest, n)

    transform, inverse = {
        "correlation": (_fisher_z, math.tanh),
        "mean": (float, float),
        "log": (math.log, _exp),
    }[kind]
    z = [transform(value) for value in numbers]
    # fsum rounds once, so the order of the seeds cannot change a digit.
    centre = math.fsum(z) / n
    sd = math.sqrt(math.fsum((value - centre) ** 2 for value in z) / (n - 1))
    half_width = _t_quantile(n - 1, level) * sd / math.sqrt(n)
    # Clipping and rounding must not carry the mean outside its values, nor an end past the mean.
    mean = max(smallest, min(largest, inverse(centre)))
    low, high = inverse(centre - half_width), inverse(centre + half_width)
    return Interval(mean, min(low, mean), max(high, mean), n)


def trend(
    widths: Sequence[int],
    values_by_seed: Mapping[Any, Sequence[float | None]] | Sequence[Sequence[float | None]],
    *,
    level: float = 0.95,
) -> Trend:
    r"""Change of a correlation with model size: slope on log2(width), with an interval over seeds.

        slope_s = sum_w (x_w - mean x) r_sw / sum_w (x_w - mean x)^2,   x_w = log2(width_w)

    The correlation itself is used, not Fisher's z, so that the slope reads as change per doubling
    of the width. The mean over seeds carries a Student-t interval. A slope says nothing about the
    shape of the curve between its ends.

    Parameters
    ----------
    widths
        Positive widths, of which at least two differ.
    values_by_seed
        A value of each seed for each of `widths`, in their order; None if the cell failed its gate
        or the correlation is undefined. A seed's slope is over the widths with a value.
    level
        Confidence level of the interval that decides the verdict.

    Raises
    ------
    ValueError
        If widths are not positive or all the same, a seed has another number of values, or a value
        is not finite.
    """
    _check_level(level)
    x = _vector("widths", widths)
    if not (np.isfinite(x) & (x > 0)).all() or len(set(x)) < 2:
        raise ValueError(f"widths must be positive, at least two different, got {list(widths)}")
    x = np.log2(x).tolist()
    named = isinstance(values_by_seed, Mapping)
    if not (named or isinstance(values_by_seed, Sequence) or np.ndim(values_by_seed) == 2):
        raise TypeError(f"values_by_seed must hold sequences, got {values_by_seed!r:.60}")
    slopes = []
    for seed, values in values_by_seed.items() if named else enumerate(values_by_seed):
        name = f"values_by_seed[{seed!r}]"
        if not isinstance(values, Sequence | np.ndarray) or len(values) != len(x):
            raise ValueError(f"{name} must have a value for each of {len(x)} widths, got {values}")
        check_unmasked(name, values)
        given = [(a, r) for a, r in zip(x, values, strict=True) if r is not None]
        pairs = [
            (a, float(r)) for a, r in given if isinstance(r, int | float | np.integer | np.floating)
        ]
        if len(pairs) < len(given) or not all(math.isfinite(r) for _, r in pairs):
            raise ValueError(f"{name} must be finite, or None where undefined, got {values}")
        if len({a for a, _ in pairs}) < 2:
            continue
        mean_x = math.fsum(a for a, _ in pairs) / len(pairs)
        # Differences from the first value make the slope of a constant exactly zero.
        rise = math.fsum((a - mean_x) * (r - pairs[0][1]) for a, r in pairs)
        slopes.append(rise / math.fsum((a - mean_x) ** 2 for a, _ in pairs))
    mean, low, high, num_seeds = interval_over_seeds(slopes, kind="mean", level=level)
    verdict = "undecided"
    if low is not None and low > 0:
        verdict = "improves"
    elif high is not None and high < 0:
        verdict = "declines"
    return Trend(mean, low, high, num_seeds, verdict)


def holm(p_values: Sequence[float] | Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    r"""Adjust p-values for their number, so that a level bounds the chance of any false rejection.

        p'_(i) = max_{j <= i} min(1, (T - j + 1) p_(j)) of the sorted p-values

    The bound holds for any dependence between the T tests.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    # SciPy corrects false discovery rates alone, and statsmodels is no dependency.
    p = _vector("p_values", p_values)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values must lie in [0, 1], got {p[~((p >= 0) & (p <= 1))][0]:g}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def _check_level(level: Any) -> None:
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1 (for example 0.95), got {level!r}")


def _vector(name: str, values: Any) -> np.ndarray:
    array = real_array(name, values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (N,), got {array.shape}")
    return array.astype(np.float64)


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
    # Scaled before they are squared, where tiny values would underflow and huge ones overflow.
    # `scipy.stats.pearsonr` gives the same number, with a p-value that takes ten times as long.
    return float(np.corrcoef(a / np.abs(a).max(), b / np.abs(b).max())[0, 1])


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


def _fits_kind(value: float, kind: str) -> bool:
    if kind == "correlation":
        # Rounding may carry a correlation past 1 by a few float32 digits.
        return abs(value) <= 1 + 1e-6
    return math.isfinite(value) and (kind == "mean" or value > 0)


def _fisher_z(value: float) -> float:
    return math.atanh(max(-MAX_ABS_CORRELATION, min(MAX_ABS_CORRELATION, value)))


def _exp(value: float) -> float:
    # Two seeds far apart give an upper end that no float holds.
    return math.exp(value) if value < 709 else math.inf


@functools.lru_cache(maxsize=1024)
def _t_quantile(degrees_of_freedom: int, level: float) -> float:
    return float(stdtrit(degrees_of_freedom, (1 + level) / 2))
