"""Tables as CSV: six significant digits, empty cells for what is undefined, types by column."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isounc import untrusted

if TYPE_CHECKING:
    import pandas  # at run time where it is used: it takes a second to import


def table_bytes(
    rows: pandas.DataFrame | Iterable[Mapping[str, Any]], columns: Sequence[str], *, name: str
) -> tuple[bytes, list[str]]:
    """Encode a table as CSV; also give the names of the columns that hold text.

    Floats keep 6 significant digits; None, NaN and NA are empty.

    Raises
    ------
    ValueError
        If a key is no column, or a cell is not a single number, truth value or text.
    """
    import pandas as pd

    if not isinstance(columns, list | tuple) or not all(isinstance(c, str) for c in columns):
        raise TypeError(f"columns must be a list of names, got {columns!r:.80}")
    if not isinstance(rows, pd.DataFrame):
        rows = list(rows) if isinstance(rows, Iterable) else [rows]
        if wrong := [row for row in rows if not isinstance(row, Mapping)]:
            raise TypeError(f"rows must be a DataFrame or mappings, got {wrong[0]!r:.80}")
        rows = pd.DataFrame(rows, dtype=object)
    frame = rows
    unknown = [key for key in frame.columns if key not in columns]
    if unknown:
        raise ValueError(f"the columns of {name} must be {', '.join(columns)}, got also {unknown}")
    # As objects, because a count beside an empty cell would turn into a float.
    frame = frame.reindex(columns=list(columns)).astype(object)
    frame = frame.where(frame.notna(), None)
    # Most cells are empty, floats or texts; a call for each would take half of the time.
    cells = {
        c: [
            "" if v is None else f"{v:.6g}" if type(v) is float
            else v if type(v) is str else _cell_text(v, f"{name}, column {c!r},")
            for v in frame[c]
        ]
        for c in columns
    }  # fmt: skip
    text_columns = [c for c in columns if any(isinstance(value, str) for value in frame[c])]
    csv_text = pd.DataFrame(cells, dtype=object).to_csv(index=False, lineterminator="\n")
    return csv_text.encode(), text_columns


def table_frame(data: bytes, text_columns: Iterable[str], *, name: str) -> pandas.DataFrame:
    """Decode the CSV of `table_bytes`; an `Unreadable` says what is wrong with it."""
    import pandas as pd

    untrusted.parse_csv(data, name)  # pandas would fill a short line up
    return pd.read_csv(
        io.BytesIO(data), dtype=dict.fromkeys(text_columns, "string"),
        dtype_backend="numpy_nullable", keep_default_na=False, na_values=[""], low_memory=False,
    )  # fmt: skip


def _cell_text(value: Any, where: str) -> str:
    if getattr(value, "ndim", None) == 0:  # NumPy and JAX scalars
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool | int | str):
        return str(value)
    raise ValueError(f"{where} must hold single numbers or texts, got a {type(value).__name__}")
