"""Correlations of an estimate with its reference, and intervals and trends over seeds.

These are computations with NumPy on finished results. An undefined number is None with a reason,
never NaN.
"""

from isounc.statistics.comparison import (
    CONSTANT_RTOL,
    MIN_POINTS,
    MIN_REST,
    Comparison,
    compare,
)
from isounc.statistics.intervals import (
    MAX_ABS_CORRELATION,
    Interval,
    IntervalKind,
    Trend,
    holm,
    interval_over_seeds,
    interval_over_strata,
    trend,
)

__all__ = [
    "CONSTANT_RTOL",
    "MAX_ABS_CORRELATION",
    "MIN_POINTS",
    "MIN_REST",
    "Comparison",
    "Interval",
    "IntervalKind",
    "Trend",
    "compare",
    "holm",
    "interval_over_seeds",
    "interval_over_strata",
    "trend",
]
