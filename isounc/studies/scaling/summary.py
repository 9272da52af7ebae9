"""From result rows of single seeds to rows of means and intervals over seeds.

The unit of replication is the seed (new data, new initialisation). Intervals come from seeds alone,
never from resampling locations: those of a grid are near-copies of each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from isounc.statistics import IntervalKind, interval_over_seeds

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
