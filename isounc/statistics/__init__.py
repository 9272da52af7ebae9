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
from isounc.statistics.verdicts import VERDICTS, Over, Verdict, over_seeds, verdict

__all__ = [
    "CONSTANT_RTOL",
    "MAX_ABS_CORRELATION",
    "MIN_POINTS",
    "MIN_REST",
    "VERDICTS",
    "Comparison",
    "Interval",
    "IntervalKind",
    "Over",
    "Trend",
    "Verdict",
    "compare",
    "holm",
    "interval_over_seeds",
    "interval_over_strata",
    "over_seeds",
    "trend",
    "verdict",
]
