"""The summary of result rows gives means and intervals over seeds.

The unit of replication is the seed (new data, new initialisation). Intervals come from seeds alone,
never from resampling locations: those of a grid are near-copies of each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from isounc.statistics import Interval, IntervalKind, interval_over_seeds

if TYPE_CHECKING:
    import pandas

KEY_COLUMNS = (
    *("problem", "width", "depth", "activation", "parameterisation", "prior_sd"),
    *("point", "region", "estimator", "quantity", "class"),
)
"""The key of a row of `summary.csv`: that of a result row without its seed."""
LATER_KEYS = ("n", "grid_margin")
"""The rest of the key, which tables of earlier versions do not have: it was the same for all rows."""
STATISTICS: dict[str, IntervalKind] = {
    "pearson": "correlation",
    "spearman": "correlation",
    "log10_pearson": "correlation",
    "slope": "log",
    "partial_pearson": "correlation",
    "partial_spearman": "correlation",
    "nll": "mean",
    "ece": "mean",
    "mcmc_nll": "mean",
    "mcmc_ece": "mean",
    "two_valued_share": "mean",
    "two_valued_undecided": "mean",
    "pearson_from_two_valued": "mean",
    "spearman_from_two_valued": "mean",
    "n_points_not_two_valued": "mean",
    "pearson_not_two_valued": "correlation",
    "spearman_not_two_valued": "correlation",
    "log10_pearson_not_two_valued": "correlation",
    "slope_not_two_valued": "log",
}
"""Statistics of result rows, and the scale on which each is averaged over seeds."""
_KINDS = tuple(STATISTICS.items())
_PARTS = ("mean", "low", "high")
SUMMARY_COLUMNS = (
    *KEY_COLUMNS,
    *LATER_KEYS,
    *("num_seeds", "num_failed_gate", "num_undefined"),
    *(f"{statistic}_{part}" for statistic in STATISTICS for part in _PARTS),
)
"""Columns of `summary.csv`, in order."""


def summarise(
    rows: pandas.DataFrame | Iterable[dict[str, Any]], *, level: float = 0.95
) -> pandas.DataFrame:
    """Summarise result rows over seeds: means and intervals for each value of the key columns.

    Rows whose `gate` is `fail` are counted in `num_failed_gate` and used for nothing else. The main
    statistic (Pearson; NLL if `quantity` is `predictive`) is defined in `num_seeds` of the others
    and undefined in `num_undefined`. Every statistic is over the rows where it is itself defined: a
    constant estimate has no correlation but has a level. Levels are averaged geometrically. `low`
    and `high` are undefined for fewer than two values.

    Parameters
    ----------
    rows
        A table with `KEY_COLUMNS`, maybe `LATER_KEYS`, `seed`, `gate` and statistics, or dicts.
        An undefined statistic is NA, None or absent.
    level
        Confidence level of the intervals.

    Returns
    -------
    DataFrame
        Columns `SUMMARY_COLUMNS`; rows in the order in which their keys first appear. An undefined
        number is NA.

    Raises
    ------
    ValueError
        If a key column is missing, a gate is neither pass nor fail, a number is infinite or outside
        the range of its statistic, or a row repeats the key and seed of another (seeds are the
        unit of replication).
    """
    import pandas as pd

    rows = pd.DataFrame(rows)
    needed = [*KEY_COLUMNS, "seed", "gate"]
    missing = [] if rows.empty else [column for column in needed if column not in rows]
    if missing:
        raise ValueError(f"rows must have the columns {', '.join(needed)}, got none of {missing}")
    rows = rows.reindex(columns=[*needed, *LATER_KEYS, *STATISTICS]).reset_index(drop=True)
    rows = rows.fillna(dict.fromkeys(LATER_KEYS, 0))
    keys = [*KEY_COLUMNS, *LATER_KEYS]
    verdicts = set(rows["gate"])
    if not verdicts <= {"pass", "fail"}:
        raise ValueError(f"gate must be 'pass' or 'fail', got {verdicts - {'pass', 'fail'}}")
    repeated = rows.duplicated([*keys, "seed"])
    if repeated.any():
        *key, seed, _ = rows.loc[repeated, needed].iloc[0]
        raise ValueError(f"rows must not repeat a seed, got seed {seed} again of {_describe(key)}")
    passed = (rows["gate"] == "pass").to_numpy(bool)
    values = rows[list(STATISTICS)].to_numpy(float, na_value=np.nan)
    groups: Any = rows.groupby(keys, sort=False, dropna=False).indices
    summary = [_summary_row(key, passed[i], values[i], level) for key, i in groups.items()]
    frame = pd.DataFrame(summary, columns=list(SUMMARY_COLUMNS))
    return frame.astype({f"{s}_{part}": float for s in STATISTICS for part in _PARTS})


def _summary_row(
    key: tuple, passed: Bool[np.ndarray, " seeds"], values: Float[np.ndarray, "seeds statistics"],
    level: float,
) -> dict[str, Any]:  # fmt: skip
    """Make a row of the summary from one key's values of `STATISTICS`, in that order."""
    summary: dict[str, Any] = dict(zip([*KEY_COLUMNS, *LATER_KEYS], key, strict=True))
    intervals = dict.fromkeys(STATISTICS, Interval(None, None, None, 0))
    values = values[passed]
    # Most rows have most statistics undefined: a prediction has no correlation, and so on.
    for i in np.flatnonzero(~np.isnan(values).all(axis=0)):
        statistic, kind = _KINDS[i]
        defined = values[~np.isnan(values[:, i]), i]
        try:
            intervals[statistic] = interval_over_seeds(defined, kind=kind, level=level)
        except ValueError as error:
            raise ValueError(f"{statistic} of {_describe(key)}: {error}") from None
    main = intervals["nll" if summary["quantity"] == "predictive" else "pearson"]
    summary["num_seeds"] = main.num_seeds
    summary["num_failed_gate"] = int((~passed).sum())
    summary["num_undefined"] = int(passed.sum()) - main.num_seeds
    for statistic, interval in intervals.items():
        summary |= {f"{statistic}_{part}": getattr(interval, part) for part in _PARTS}
    return summary


def _describe(key: Iterable[Any]) -> str:
    return ", ".join(f"{column}={value}" for column, value in zip(KEY_COLUMNS, key, strict=False))
