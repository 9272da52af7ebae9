"""Settings of the scaling study, and its cells."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field

from isounc.checks import check_choice, check_count, check_real
from isounc.fit import MapSettings, TrainSettings
from isounc.models import ACTIVATIONS, PARAMETERISATIONS
from isounc.problems import PROBLEMS
from isounc.runs.settings import RunSettings
from isounc.sampling.settings import SamplerSettings
from isounc.studies.scaling.paper import TABLE1


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of the scaling study."""

    problems: tuple[str, ...] = ("xor", "moons", "rings")
    """Problems, by name: linear xor rings moons clusters3 spirals3 rings3 linear_regression
    nonlinear_regression breast_cancer wine digits_3v8."""
    widths: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    """Hidden units per layer."""
    depths: tuple[int, ...] = (1,)
    """Hidden layers; 0 is logistic, softmax or linear regression."""
    activations: tuple[str, ...] = ("tanh",)
    """tanh, relu, gelu or silu."""
    parameterisations: tuple[str, ...] = ("ntk",)
    """ntk, fan_in or standard. Under standard the prior variance of the function grows with the
    width."""
    prior_sds: tuple[float, ...] = (2.0,)
    """Prior standard deviations."""
    num_seeds: int = 2
    """Number of seeds 0, 1, ...: each draws new data and new starting points. Intervals are over
    seeds."""
    n: int = 100
    """Training examples."""
    label_noise: float = 1.0
    """Label noise of the synthetic problems relative to their own; 0 is noise-free
    (classification)."""
    sampling: SamplerSettings = field(default_factory=SamplerSettings)
    """How the reference posterior is sampled."""
    map: MapSettings = field(default_factory=MapSettings)
    """How the point estimate `map` is found."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """How the point estimate `trained` is found."""
    num_point_draws: int = 8
    """Single posterior draws taken as theta*; their comparisons are averaged."""
    num_averaged_draws: int = 64
    """Posterior draws that `posterior_averaged` averages over."""


PRESETS = {
    "quick": Settings(),
    "standard": Settings(
        preset="standard",
        problems=tuple(PROBLEMS),
        widths=(2, 4, 8, 16, 32, 64, 128, 256),
        num_seeds=3,
        sampling=SamplerSettings(max_draws=2000),
    ),
    "paper": Settings(
        preset="paper",
        problems=tuple(TABLE1),
        widths=(2, 4, 8, 16, 32, 64, 128, 256, 512),
        num_seeds=10,
        sampling=SamplerSettings(num_draws=2000, max_draws=8000),
    ),
}


@dataclass(frozen=True)
class Cell:
    """A problem, a model and a seed."""

    problem: str
    width: int
    depth: int
    activation: str
    parameterisation: str
    prior_sd: float
    seed: int

    @property
    def name(self) -> str:
        """Name of the record of the cell."""
        return (
            f"{self.problem}-w{self.width}-d{self.depth}-{self.activation}"
            f"-{self.parameterisation}-sd{self.prior_sd:g}-seed{self.seed}"
        )


def check(settings: Settings) -> None:
    """Refuse settings that cannot be run.

    Raises
    ------
    ValueError
        For a name that is not known, an empty list, or a number out of its range.
    """
    lists = ("problems", "widths", "depths", "activations", "parameterisations", "prior_sds")
    for argument in lists:
        if not getattr(settings, argument):
            raise ValueError(f"{argument} must have at least one value, got none")
    for argument, choices in (
        ("problems", PROBLEMS),
        ("activations", ACTIVATIONS),
        ("parameterisations", PARAMETERISATIONS),
    ):
        for value in getattr(settings, argument):
            check_choice(argument, value, choices)
    for prior_sd in settings.prior_sds:
        check_real("prior_sds", prior_sd, positive=True)
    check_count("num_seeds", settings.num_seeds, 1)


def seed_batches(settings: Settings) -> list[tuple[Cell, ...]]:
    """Every combination of the settings, as the cells of its seeds.

    At depth 0 the width has no effect and is 1.
    """
    combinations = itertools.product(
        settings.problems,
        settings.widths,
        settings.depths,
        settings.activations,
        settings.parameterisations,
        settings.prior_sds,
    )
    firsts = dict.fromkeys(
        Cell(p, w if d else 1, d, a, q, sd, seed=0) for p, w, d, a, q, sd in combinations
    )
    seeds = range(settings.num_seeds)
    return [tuple(dataclasses.replace(cell, seed=seed) for seed in seeds) for cell in firsts]
