"""References that are known to be out of reach, with the evidence: the table `unreachable.csv`.

A row is a posterior that was sampled for some time and was far from passing its gate. Protocols skip
such cells by name, and say so. Rows are added by hand, from tables of `benchmarks/reach.py` or from
runs of this study.
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import NamedTuple

from isounc.studies.scaling.settings import Cell

TABLE = Path(__file__).with_name("unreachable.csv")


class Unreachable(NamedTuple):
    """A row of the table: posteriors of one hidden layer, and what is known of them."""

    problem: str
    """Name of the problem."""
    activation: str
    """Activation of the networks."""
    parameterisation: str
    """Their parameterisation."""
    prior_sd: float
    """Prior standard deviation of a weight."""
    n: int
    """Training examples."""
    widths: tuple[int, ...]
    """Hidden units of the networks that were tried."""
    why: str
    """What goes wrong, in words."""
    rhat: float
    """Largest R-hat that was reached."""
    ess: float
    """Smallest effective number of draws, of p and of (p - mean)^2, that was reached."""
    seconds: float
    """Seconds that it took."""
    source: str
    """Where this was measured."""

    @property
    def evidence(self) -> str:
        """The row in words."""
        return (
            f"{self.why}; R-hat {self.rhat:g} and {self.ess:g} effective draws after "
            f"{self.seconds:g} s ({self.source})"
        )


@functools.cache
def table(path: Path = TABLE) -> tuple[Unreachable, ...]:
    """The rows of the table.

    Raises
    ------
    ValueError
        If its columns are others, or a value is no number where one is needed.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != Unreachable._fields:
            raise ValueError(
                f"{path} must have the columns {', '.join(Unreachable._fields)}, got "
                f"{', '.join(rows.fieldnames or ())}"
            )
        return tuple(_row(row, f"{path}, line {rows.line_num}") for row in rows)


def _row(row: dict[str, str], where: str) -> Unreachable:
    numbers = {"prior_sd": float, "n": int, "rhat": float, "ess": float, "seconds": float}
    try:
        converted = {name: kind(row[name]) for name, kind in numbers.items()}
        widths = tuple(int(width) for width in row["widths"].split())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} must have numbers in their columns, got {error}") from error
    return Unreachable(**{**row, **converted, "widths": widths})


def why_out_of_reach(cell: Cell, n: int) -> str:
    """The evidence that the reference of a cell of `n` examples is out of reach; empty if none."""
    for row in table():
        model = (row.problem, row.activation, row.parameterisation, row.prior_sd, row.n)
        if (
            model == (cell.problem, cell.activation, cell.parameterisation, cell.prior_sd, n)
            and cell.depth == 1
            and cell.width in row.widths
        ):
            return row.evidence
    return ""
