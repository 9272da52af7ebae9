"""Settings and cells of the guard study."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from isounc.checks import check_choice, check_count
from isounc.guard.sample import check_share
from isounc.runs.executors import Batch, Group
from isounc.runs.settings import RunSettings, check_cells
from isounc.studies.guard.scenarios import SCENARIOS

MOST_ANSWERS = 1_000_000
"""Largest calibration sample."""
_SIZES = (50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of the guard study."""

    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    """Scenarios: auroc_50 ... auroc_95, no_slack, few_errors, many_errors, ties, discrete,
    confident_errors, more_errors, worse_score."""
    sample_sizes: tuple[int, ...] = (50, 200, 1000)
    """Answers in a calibration sample."""
    targets: tuple[float, ...] = (0.1,)
    """Largest shares of wrong answers among the accepted ones."""
    confidence: float = 0.9
    """Probability with which a calibration sample is to give a threshold that keeps the target."""
    num_repetitions: int = 200
    """Calibration samples of each cell."""
    given_grids: tuple[str, ...] = ("auroc_80", "no_slack", "confident_errors")
    """Scenarios in which thresholds from other scores are tried as well; it may be empty."""
    num_checked: int = 1
    """Calibration samples of each cell that Guard.fit sees, too."""


PRESETS = {
    "quick": Settings(figures="shown"),
    "standard": Settings(
        preset="standard", sample_sizes=_SIZES, targets=(0.01, 0.05, 0.1, 0.2), num_repetitions=1000
    ),
    "paper": Settings(
        preset="paper", sample_sizes=_SIZES, targets=(0.01, 0.05, 0.1, 0.2), num_repetitions=10_000
    ),
}


@dataclass(frozen=True)
class Cell:
    """A scenario, a size of the calibration sample and a target."""

    scenario: str
    """Name of the scenario."""
    n: int
    """Answers in a calibration sample."""
    target: float
    """Largest share of wrong answers among the accepted ones."""

    @property
    def name(self) -> str:
        """Name of the record of the cell."""
        return f"{self.scenario}-n{self.n}-target{self.target:.12g}"

    @property
    def seed(self) -> int:
        """Seed of its samples, which targets share. It does not depend on its place in the run."""
        return zlib.crc32(f"guard/{self.scenario}-n{self.n}".encode())


def check(settings: Settings) -> None:
    """Check that settings can be run.

    Raises
    ------
    ValueError
        If a name is unknown, a list is empty or repeats a value, or a number is out of its range.
    """
    for argument in ("scenarios", "sample_sizes", "targets", "given_grids"):
        _check_distinct(
            argument, getattr(settings, argument), may_be_empty=argument == "given_grids"
        )
    for argument in ("scenarios", "given_grids"):
        for name in getattr(settings, argument):
            check_choice(argument, name, SCENARIOS)
    for n in settings.sample_sizes:
        check_count("sample_sizes", n, 1, MOST_ANSWERS)
    for target in settings.targets:
        check_share("targets", target)
        if target >= 0.999:  # else no error rate lies above it by a thousandth
            raise ValueError(f"targets must be below 0.999, got {target}")
    check_share("confidence", settings.confidence)
    check_count("num_repetitions", settings.num_repetitions, 2, 10**6)
    check_count("num_checked", settings.num_checked, 0, settings.num_repetitions)
    cells = len(settings.scenarios) * len(settings.sample_sizes) * len(settings.targets)
    check_cells(cells, "scenarios, sample_sizes and targets")


def _check_distinct(argument: str, values: Sequence[object], *, may_be_empty: bool) -> None:
    if not (values or may_be_empty) or len(set(values)) < len(values):
        raise ValueError(f"{argument} must have at least one value and none twice, got {values}")


def batches(settings: Settings) -> list[tuple[Cell, ...]]:
    """The cells of every scenario."""
    return [
        tuple(Cell(name, n, target) for n in settings.sample_sizes for target in settings.targets)
        for name in settings.scenarios
    ]


def plan(settings: Settings) -> list[Group]:
    """Make a batch of the cells of a scenario, all in one group, as nothing is compiled."""
    made = []
    for cells in batches(settings):
        grids = 1 + (cells[0].scenario in settings.given_grids)
        # Measured: 0.12 ms for 1000 answers and 0.1 ms a sample and target; 30 ms for a guard.
        answers = sum({cell.n: cell.n for cell in cells}.values())
        drawn = settings.num_repetitions * (1e-4 * len(cells) + 1.2e-7 * answers)
        seconds = grids * (drawn + 0.09 * settings.num_checked * len(cells))
        made.append(Batch(cells[0].scenario, cells, seconds, 100.0))
    return [tuple(made)]
