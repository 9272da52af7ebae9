"""From results of single seeds to means, intervals and trends.

The unit of replication is the seed (new data, new initialisation). Intervals come from seeds alone,
never from resampling locations: those of a grid are near-copies of each other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from scipy.special import stdtrit

from isounc.checks import check_choice

IntervalKind = Literal["correlation", "mean", "log"]

MAX_ABS_CORRELATION = 1 - 1e-6
"""Where |r| is clipped before Fisher's z, which is infinite at 1: z = 7.25."""
KEY_COLUMNS = (
    *("problem", "width", "depth", "activation", "parameterisation", "prior_sd"),
    *("point", "region", "estimator", "quantity", "class"),
)
"""What identifies a row of ``summary.csv``: the key of a result row without its seed."""
_STATISTICS: dict[str, IntervalKind] = {
    "pearson": "correlation",
    "spearman": "correlation",
    "log10_pearson": "correlation",
    "slope": "log",
    "nll": "mean",
    "ece": "mean",
    "mcmc_nll": "mean",
    "mcmc_ece": "mean",
}
SUMMARY_COLUMNS = (
    *KEY_COLUMNS,
    *("num_seeds", "num_failed_gate", "num_undefined"),
    *(f"{statistic}_{part}" for statistic in _STATISTICS for part in ("mean", "low", "high")),
)
"""Columns of ``summary.csv``, in order."""


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
    """``improves`` if the interval lies above 0, ``declines`` if below, else ``undecided``."""


def interval_over_seeds(
    values: Iterable[float], *, kind: IntervalKind = "correlation", level: float = 0.95
) -> Interval:
    r"""Mean over seeds with a Student-t interval, on a scale where seeds are nearly normal.

        z_s = h(value_s),   h^-1( mean(z) +- t[S - 1, (1 + level) / 2] sd(z) / sqrt(S) )

    h is Fisher's atanh for ``correlation`` (Pearson or Spearman), the identity for ``mean``, and
    log for ``log`` (geometric mean, for levels). Correlations are first clipped to
    +-`MAX_ABS_CORRELATION`, since atanh(1) is infinite: a seed at exactly 1 counts as z = 7.25,
    large but finite. Equal values give an interval of no width, one value gives none. The order of
    the values does not matter, to the last bit.

    Raises
    ------
    ValueError
        Unknown kind, a level outside (0, 1), a value that is not finite, a correlation outside
        [-1, 1], a nonpositive value of kind ``log``. Leave undefined values out, and count them.

    Source: Fisher 1921, On the "probable error" of a coefficient of correlation deduced from a
    small sample.
    """
    check_choice("kind", kind, ("correlation", "mean", "log"))
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1 (for example 0.95); got {level!r}")
    values = [float(value) for value in values]
    for value in values:
        if not _fits_kind(value, kind):
            wanted = {"correlation": "in [-1, 1]", "mean": "finite", "log": "positive and finite"}
            raise ValueError(f"values of kind {kind!r} must be {wanted[kind]}; got {value!r}")
    if not values:
        return Interval(None, None, None, 0)
    smallest, largest, n = min(values), max(values), len(values)
    if n == 1:
        return Interval(values[0], None, None, 1)
    if smallest == largest:
        return Interval(smallest, smallest, smallest, n)

    transform, inverse = {
        "correlation": (_fisher_z, math.tanh),
        "mean": (float, float),
        "log": (math.log, _exp),
    }[kind]
    z = [transform(value) for value in values]
    # fsum rounds once, so the order of the seeds cannot change a digit.
    centre = math.fsum(z) / n
    sd = math.sqrt(math.fsum((value - centre) ** 2 for value in z) / (n - 1))
    half_width = _t_quantile(n - 1, level) * sd / math.sqrt(n)
    # Clipping and rounding must not carry the mean outside its values, nor an end past the mean.
    mean = max(smallest, min(largest, inverse(centre)))
    low, high = inverse(centre - half_width), inverse(centre + half_width)
    return Interval(mean, min(low, mean), max(high, mean), n)


def summarise(rows: Iterable[Mapping[str, Any]], *, level: float = 0.95) -> list[dict[str, Any]]:
    """Means and intervals over seeds of result rows: one row for each value of `KEY_COLUMNS`.

    Rows whose ``gate`` is ``fail`` are counted in ``num_failed_gate`` and used for nothing else. Of
    the others, ``num_seeds`` have their main statistic (Pearson; NLL where ``quantity`` is
    ``predictive``) and ``num_undefined`` have not. Every statistic is over the rows where it is
    itself defined: a constant estimate has no correlation but has a level. Levels are averaged
    geometrically. ``low`` and ``high`` are None for fewer than two values.

    Parameters
    ----------
    rows
        Mappings with the key columns, ``seed``, ``gate`` and statistics as numbers; undefined is
        None, absent, or "" (as a CSV file is read).
    level
        Confidence level of the intervals.

    Returns
    -------
    list of dict
        Keys `SUMMARY_COLUMNS`, undefined is None; in the order in which keys first appear in rows.

    Raises
    ------
    ValueError
        A row without a key column, with a gate other than pass or fail, with a number that is not
        finite, or that repeats the key and seed of another (seeds are the unit of replication).
    """
    groups: dict[tuple, dict[str, Mapping[str, Any]]] = {}
    for number, row in enumerate(rows):
        for column in (*KEY_COLUMNS, "seed", "gate"):
            if column not in row:
                raise ValueError(f"rows[{number}] must have a column {column!r}; got {list(row)}")
        key, seed, gate = tuple(row[c] for c in KEY_COLUMNS), str(row["seed"]), row["gate"]
        if gate not in ("pass", "fail"):
            raise ValueError(f"gate of rows[{number}] must be 'pass' or 'fail'; got {gate!r}")
        seeds = groups.setdefault(key, {})
        if seed in seeds:
            raise ValueError(f"rows[{number}] must not repeat seed {seed} of {_describe(key)}")
        seeds[seed] = row
    return [_summary_row(key, list(seeds.values()), level) for key, seeds in groups.items()]


def trend(
    widths: Sequence[float],
    values_by_seed: Mapping[Any, Sequence[float | None]] | Sequence[Sequence[float | None]],
    *,
    level: float = 0.95,
) -> Trend:
    r"""Whether a correlation improves with model size: slope on log2(width), interval over seeds.

        slope_s = sum_w (x_w - mean x) r_sw / sum_w (x_w - mean x)^2,   x_w = log2(width_w)

    The correlation itself is used, not Fisher's z, so that the slope reads as change per doubling
    of the width. The mean over seeds carries a Student-t interval. A slope says nothing about the
    shape of the curve between its ends.

    Parameters
    ----------
    widths
        Positive widths, at least two different ones.
    values_by_seed
        For each seed one value for each of ``widths``, in their order; None where the cell failed
        its gate or the correlation is undefined. A seed's slope is over the widths that it has.
    level
        Confidence level of the interval that decides the verdict.

    Raises
    ------
    ValueError
        Widths that are not positive or all the same, a seed with another number of values, a value
        that is not finite.
    """
    if not all(width > 0 for width in widths) or len(set(widths)) < 2:
        raise ValueError(f"widths must be positive, at least two different; got {list(widths)}")
    x = [math.log2(width) for width in widths]
    named = isinstance(values_by_seed, Mapping)
    slopes = []
    for seed, values in values_by_seed.items() if named else enumerate(values_by_seed):
        name = f"values_by_seed[{seed!r}]"
        if len(values) != len(x):
            raise ValueError(f"{name} must have a value for each of {len(x)} widths; got {values}")
        pairs = [(a, float(r)) for a, r in zip(x, values, strict=True) if r is not None]
        if not all(math.isfinite(r) for _, r in pairs):
            raise ValueError(f"{name} must be finite, or None where undefined; got {values}")
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


def _summary_row(key: tuple, rows: list[Mapping[str, Any]], level: float) -> dict[str, Any]:
    passed = [row for row in rows if row["gate"] == "pass"]
    intervals = {}
    for statistic, kind in _STATISTICS.items():
        defined = [float(v) for row in passed if (v := row.get(statistic)) not in (None, "")]
        try:
            intervals[statistic] = interval_over_seeds(defined, kind=kind, level=level)
        except ValueError as error:
            raise ValueError(f"{statistic} of {_describe(key)}: {error}") from None
    summary: dict[str, Any] = dict(zip(KEY_COLUMNS, key, strict=True))
    main = intervals["nll" if summary["quantity"] == "predictive" else "pearson"]
    summary["num_seeds"] = main.num_seeds
    summary["num_failed_gate"] = len(rows) - len(passed)
    summary["num_undefined"] = len(passed) - main.num_seeds
    for statistic, interval in intervals.items():
        for part in ("mean", "low", "high"):
            summary[f"{statistic}_{part}"] = getattr(interval, part)
    return summary


def _describe(key: tuple) -> str:
    return ", ".join(f"{column}={value}" for column, value in zip(KEY_COLUMNS, key, strict=True))


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
