"""The numbers that README.md here quotes, from a run's summary.csv.

uv run results/reading.py                                              isotropic at every theta*, region test
uv run results/reading.py --region far --point map --estimator laplace
uv run results/reading.py --run runs/mine --intervals
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import tyro

_CLASSES = ("trace", "f", "1")
"""Trace over three classes and more, the function in regression, p(y=1) otherwise."""


@dataclass
class Options:
    """What is printed."""

    run: Path = Path(__file__).parent / "standard"
    """Folder with a summary.csv."""
    region: str = "test"
    """test, grid or far."""
    point: str = ""
    """map, trained, draw or posterior; empty for all of them."""
    estimator: str = "isotropic"
    """Any estimator; at the point posterior it is posterior_averaged."""
    quantity: str = "epistemic"
    """epistemic, aleatoric, aleatoric_corrected or total."""
    intervals: bool = False
    """With the 95% intervals over seeds."""


def main(options: Options) -> None:
    """Pearson correlation with MCMC, a line per problem and a column per width."""
    with (options.run / "summary.csv").open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["region"] == options.region
            and row["quantity"] == options.quantity
            and row["class"] in _CLASSES
        ]
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    for point in [options.point] if options.point else ["map", "trained", "draw", "posterior"]:
        estimator = "posterior_averaged" if point == "posterior" else options.estimator
        here = [row for row in rows if row["point"] == point and row["estimator"] == estimator]
        widths = sorted({int(row["width"]) for row in here})
        here.sort(key=lambda row: -_CLASSES.index(row["class"]))  # the trace replaces class 1
        found = {(row["problem"], int(row["width"])): row for row in here}
        print(f"{estimator} at {point}, {options.quantity}, region {options.region}")
        print(f"{'':<22}" + "".join(f"{w:>{21 if options.intervals else 7}}" for w in widths))
        for problem in problems:
            cells = [_cell(found.get((problem, w)), options.intervals) for w in widths]
            print(f"{problem:<22}" + "".join(cells))
        print()


def _cell(row: dict[str, str] | None, intervals: bool) -> str:
    if row is None or not row["pearson_mean"]:
        return " " * (20 if intervals else 6) + "-"
    mean = f"{float(row['pearson_mean']):7.2f}"
    if not intervals:
        return mean
    low, high = (row[f"pearson_{side}"] for side in ("low", "high"))
    return mean + (f" [{float(low):5.2f},{float(high):5.2f}]" if low else " " * 14)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
