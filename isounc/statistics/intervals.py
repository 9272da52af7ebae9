"""Means, intervals and trends over seeds.

The unit of replication is the seed (new data, new initialisation): intervals never come from
resampling locations, which are near-copies of each other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

from isounc.checks import check_choice, check_unmasked, real_vector

IntervalKind = Literal["correlation", "mean", "log"]

MAX_ABS_CORRELATION = 1 - 1e-6
"""Where |r| is clipped before Fisher's z, which is infinite at 1: z = 7.25."""


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
    array = _vector(values)
    numbers = array.tolist()
    fits = _fits_kind(array, kind)
    if not fits.all():
        wanted = {"correlation": "in [-1, 1]", "mean": "finite", "log": "positive and finite"}
        misfit = numbers[int(np.argmin(fits))]
        raise ValueError(f"values of kind {kind!r} must be {wanted[kind]}, got {misfit!r}")
    if not numbers:
        return Interval(None, None, None, 0)
    smallest, largest, n = min(numbers), max(numbers), len(numbers)
    if n == 1:
        return Interval(numbers[0], None, None, 1)
    if smallest == largest:
        return Interval(smallest, smallest, smallest, n)

    inverse = {"correlation": math.tanh, "mean": float, "log": _exp}[kind]
    z = numbers
    if kind == "correlation":
        clipped = np.minimum(np.maximum(array, -MAX_ABS_CORRELATION), MAX_ABS_CORRELATION)
        z = list(map(math.atanh, clipped.tolist()))
    elif kind == "log":
        z = list(map(math.log, numbers))
    # fsum rounds once, so the order of the seeds cannot change a digit.
    centre = math.fsum(z) / n
    sd = math.sqrt(math.fsum([(value - centre) ** 2 for value in z]) / (n - 1))
    half_width = _t_quantile(n - 1, level) * sd / math.sqrt(n)
    # Clipping and rounding must not carry the mean outside its values, nor an end past the mean.
    mean = max(smallest, min(largest, inverse(centre)))
    low, high = inverse(centre - half_width), inverse(centre + half_width)
    return Interval(mean, min(low, mean), max(high, mean), n)


def interval_over_strata(
    values: Iterable[Sequence[float] | Float[np.ndarray, " _"]], *, level: float = 0.95
) -> Interval:
    r"""Mean of the means of several strata (problems, say) with an interval over their seeds.

        mean = sum_p m_p / P,   se^2 = sum_p v_p,   v_p = s_p^2 / (P^2 n_p)
        mean +- t[nu, (1 + level) / 2] se,   nu = se^4 / sum_p (v_p^2 / (n_p - 1))

    Every stratum weighs the same, whatever its number of seeds, and has a variance of its own. The
    interval is about new seeds of the same strata, not about other strata.

    Parameters
    ----------
    values
        For each stratum the values of its seeds, at least two.
    level
        Confidence level.

    Returns
    -------
    Interval
        `num_seeds` counts the values of all strata; without any stratum all else is None.

    Raises
    ------
    ValueError
        If a stratum has fewer than two values, a value is not finite, or the level outside (0, 1).

    Source: Welch 1947, The generalization of "Student's" problem when several different population
    variances are involved.
    """
    _check_level(level)
    strata = [_numbers(v) for v in values]
    for stratum in strata:
        if len(stratum) < 2 or not all(math.isfinite(value) for value in stratum):
            raise ValueError(f"values must be two finite numbers or more, got {stratum}")
    if not strata:
        return Interval(None, None, None, 0)
    count = sum(map(len, strata))
    means = [math.fsum(stratum) / len(stratum) for stratum in strata]
    mean = math.fsum(means) / len(strata)
    shares = [
        math.fsum((value - m) ** 2 for value in stratum)
        / ((len(stratum) - 1) * len(stratum) * len(strata) ** 2)
        for stratum, m in zip(strata, means, strict=True)
    ]
    largest = max(shares)
    if largest == 0:
        return Interval(mean, mean, mean, count)
    # Relative to the largest, as squares of tiny variances would underflow.
    parts = [share / largest for share in shares]
    squares = math.fsum(p**2 / (len(s) - 1) for p, s in zip(parts, strata, strict=True))
    freedom = math.fsum(parts) ** 2 / squares
    half_width = _t_quantile(freedom, level) * math.sqrt(math.fsum(shares))
    return Interval(mean, mean - half_width, mean + half_width, count)


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
    x = real_vector("widths", widths)
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
    p = real_vector("p_values", p_values)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values must lie in [0, 1], got {p[~((p >= 0) & (p <= 1))][0]:g}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def _numbers(values: Any) -> list[float]:
    """Values as floats, one a seed."""
    return _vector(values).tolist()


def _vector(values: Any) -> np.ndarray:
    """Values as an array of floats, one a seed."""
    if isinstance(values, Mapping):  # which would give its keys
        raise TypeError(f"values must be numbers, one a seed, got a mapping ({values!r:.60})")
    try:
        # A table would give its headings.
        array = values if hasattr(values, "__array__") else list(values)
    except TypeError as error:
        raise TypeError(f"values must be numbers, one a seed, got {values!r:.60}") from error
    return real_vector("values", array)


def _check_level(level: Any) -> None:
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1 (for example 0.95), got {level!r}")


def _fits_kind(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "correlation":
        # Rounding may carry a correlation past 1 by a few float32 digits.
        return np.abs(values) <= 1 + 1e-6
    return np.isfinite(values) & ((kind == "mean") | (values > 0))


def _exp(value: float) -> float:
    # Two seeds far apart give an upper end that no float holds.
    return math.exp(value) if value < 709 else math.inf


@functools.lru_cache(maxsize=1024)
def _t_quantile(degrees_of_freedom: float, level: float) -> float:
    return float(stdtrit(degrees_of_freedom, (1 + level) / 2))
