"""What records and tables of the scaling study must hold for a report; anybody may have edited them.

A value of another kind is an error that names the record (or the table), the field and what would
be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from isounc.fields import (
    Field,
    Unreadable,
    declared,
    entries,
    integer,
    items,
    number,
    section,
    shortened,
    text,
    truth,
)
from isounc.studies.scaling.comparisons import TEXT_COLUMNS
from isounc.studies.scaling.summary import STATISTICS

if TYPE_CHECKING:
    import pandas

_NAME = text(longest=10_000)
_REASONS = items(text(), 10_000, default=None)
_REAL = Field(  # also one that is not finite, as of a fit that diverged
    "a number",
    lambda v, _: v if isinstance(v, int | float) and not isinstance(v, bool) else NotImplemented,
    None,
)
_GATE = {
    "passed": truth(None),
    "reasons": _REASONS,
    "of_regions": entries(text(longest=10_000), 100, None),
} | dict.fromkeys(
    ("rhat_max", "ess_bulk_min", "ess_var_min", "ess_tail_min", "ebfmi_min", "divergences",
     "var_mcse_median"), _REAL,
)  # fmt: skip
_POINT = {
    "passed": truth(None),
    "reasons": _REASONS,
    "rel_grad_norm": _REAL,
    "hessian_min_eigenvalue": _REAL,
    "laplace": text(default=None),
}
_CELL = {
    "problem": _NAME,
    "width": integer(1, 10**9),
    "depth": integer(0, 10**6),
    "activation": _NAME,
    "parameterisation": _NAME,
    "prior_sd": number(above=0),
    "seed": integer(0, 2**63 - 1),
    "n": integer(0, 10**9, 0),
    "grid_margin": number(0, default=0.0),
}
_META = {
    "cell": section(_CELL, None),
    "gate": section(_GATE, None),
    "points": entries(section(_POINT), 100, None),
    "seconds": entries(_REAL, 100, None),
}
_WHOLE = ("width", "depth", "seed")
_LATER = ("n", "grid_margin", "num_params")
"""Columns of numbers that tables of earlier versions do not have; 0 is unknown, or as usual."""
TYPES: dict[str, Any] = {
    **{"width": int, "depth": int, "prior_sd": float, "seed": int},
    **dict.fromkeys(_LATER, float),
    **dict.fromkeys(TEXT_COLUMNS, object),
    **dict.fromkeys([*STATISTICS, "attenuation"], float),
}
"""Columns of result rows that are read, and their NumPy types, in which small frames are fast."""


def check_meta(meta: Mapping[str, Any], where: str) -> None:
    """Raise an `Unreadable` unless the meta of a record is what a report reads."""
    declared(meta, _META, where)


def rows_of(meta: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The result rows of a record; one without any has none."""
    rows = meta.get("rows") or []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Unreadable(f"rows of {where} must be a list of mappings, got {shortened(rows)}")
    return rows


def check_arrays(arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Raise an `Unreadable` unless each array of a region is numbers, a row for each location."""
    for name, array in arrays.items():
        region = name.partition("/")[0]
        if region == name or f"{region}/X" not in arrays:
            continue
        length = len(arrays[f"{region}/X"]) if arrays[f"{region}/X"].ndim == 2 else "N"
        if array.dtype.kind not in "biuf" or array.ndim != 2 or len(array) != length:
            raise Unreadable(
                f"array {name!r:.80} of {where} must be numbers of shape ({length}, columns), got "
                f"{array.dtype} of shape {array.shape}"
            )


def typed_rows(rows: pandas.DataFrame, where: str, *, first: int = 0) -> pandas.DataFrame:
    """Result rows with the columns and types of `TYPES`.

    Parameters
    ----------
    first
        Number of the first row, for errors.

    Raises
    ------
    Unreadable
        Naming the column, the row and the value that is of another kind.
    """
    import pandas as pd

    rows = rows.reindex(columns=list(TYPES)).reset_index(drop=True)
    rows = rows.fillna(dict.fromkeys(_LATER, 0))
    for column, kind in TYPES.items():
        if kind is float and rows[column].dtype == np.float64:
            continue  # whatever it holds is a number
        if kind is int and rows[column].dtype == np.int64:
            if column not in _WHOLE or rows[column].between(0, 2**62).all():
                continue
        values = rows[column].astype(object)
        if kind is object and pd.api.types.infer_dtype(values) in ("string", "empty"):
            continue  # and here text, or nothing
        if kind is object:
            good, right = values.map(lambda v: isinstance(v, str)) | values.isna(), "text"
        else:
            good, right = values.isna(), "a number"
            if rows[column].dtype.kind in "iuf":
                good |= True
            else:
                numbers = values.map(lambda v: isinstance(v, int | float | np.number))
                good |= numbers & ~values.map(lambda v: isinstance(v, bool | np.bool_))
            if column in _WHOLE:
                in_range = pd.to_numeric(values.where(good), errors="coerce").between(0, 2**62)
                good = good & in_range & values.notna()
                right = "an integer of at least 0"
        if not good.all():
            row = int(np.flatnonzero(~good.to_numpy(bool))[0])
            raise Unreadable(
                f"{column} of row {first + row} of {where} must be {right}, got {shortened(values[row])}"
            )
    return rows.astype(TYPES)
