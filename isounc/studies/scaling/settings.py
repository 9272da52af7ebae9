"""Settings and cells of the scaling study."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

from isounc.checks import check_choice, check_count, check_real
from isounc.fit import MapSettings
from isounc.models import ACTIVATIONS, PARAMETERISATIONS
from isounc.problems import MOST_ROWS, PROBLEMS
from isounc.runs.settings import MOST_CELLS, RunSettings, check_cells
from isounc.sampling.settings import SamplerSettings
from isounc.studies.scaling.paper import TABLE1
from isounc.training import TrainSettings

LISTS = ("problems", "widths", "depths", "activations", "parameterisations", "prior_sds")
"""Settings whose combinations are the cells; a run may be computed in parts that differ in them."""


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of the scaling study."""

    protocol: tuple[str, ...] = ()
    """Named protocols, or all: near wide depth params thesis early chain_mean examples prior
    parameterisation. Each brings problems, sizes and what is compared; what is given beside it holds
    for every one of them."""
    try_unreachable: bool = False
    """With protocols, also sample posteriors that are known to be out of reach."""
    problems: tuple[str, ...] = ("xor", "moons", "rings")
    """Problems, by name: linear xor rings moons clusters3 spirals3 rings3 linear_regression
    nonlinear_regression breast_cancer wine digits_3v8."""
    widths: tuple[int, ...] = (4, 8, 16, 32)
    """Hidden units per layer."""
    depths: tuple[int, ...] = (1,)
    """Hidden layers; 0 is logistic, softmax or linear regression."""
    activations: tuple[str, ...] = ("tanh",)
    """Activations: tanh, relu, gelu or silu."""
    parameterisations: tuple[str, ...] = ("ntk",)
    """Parameterisations: ntk, fan_in or standard. Under standard the prior variance of the function
    grows with the width."""
    prior_sds: tuple[float, ...] = (2.0,)
    """Prior standard deviations of a weight, before the parameterisation's scaling."""
    num_seeds: int = 5
    """Number of seeds 0, 1, ...; each draws new data and new starting points. Intervals are over
    seeds."""
    seeds_per_batch: int = 0
    """Seeds of a cell that are computed together; 0 means all. Fewer give more workers of a cluster
    something to do, cost more compilation, and round differently."""
    n: int = 100
    """Training examples; with protocols 0 is what each of them asks for."""
    label_noise: float = 1.0
    """Factor on the label noise of the synthetic classification problems; 0 is noise-free."""
    sampling: SamplerSettings = field(default_factory=SamplerSettings)
    """Settings of the sampler of the reference posterior."""
    retry: Literal["tempered_smc", "none"] = "tempered_smc"
    """Sampler of a cell whose reference failed its gate, before it is drawn hollow; none leaves it.
    Narrow networks with separate modes pass that way, in about a minute each."""
    map: MapSettings = field(default_factory=MapSettings)
    """Settings of the fit of the point estimate `map`."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """Settings of the fit of the point estimate `trained`."""
    stop: TrainSettings = field(default_factory=lambda: TrainSettings(epochs=1000, patience=20))
    """Settings of the fit of the point estimate `stopped`, which protocols have."""
    num_point_draws: int = 8
    """Single posterior draws that are taken as theta*; their comparisons are averaged."""
    num_averaged_draws: int = 64
    """Posterior draws that `posterior_averaged` averages over."""


PRESETS = {
    # Half the usual draws, which pass the gate in most cells; the others draw more by themselves.
    "quick": Settings(
        sampling=SamplerSettings(
            num_warmup=200, num_draws=500, max_draws=2000, block=125, target_var_se=0.06
        ),
        num_point_draws=4,
        figures="shown",
    ),
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
        sampling=SamplerSettings(
            num_draws=2000, max_draws=8000, check_modes=True, check_modes_up_to=16
        ),
    ),
}


@dataclass(frozen=True)
class Cell:
    """A problem, a model and a seed; and what a protocol changes of the problem."""

    problem: str
    width: int
    depth: int
    activation: str
    parameterisation: str
    prior_sd: float
    seed: int
    n: int | None = None
    """Training examples; None is what the run says."""
    grid_margin: float = 0.0
    """The grid reaches this far beyond the training inputs; 0 is the grid of the problem."""

    @property
    def name(self) -> str:
        """Name of the record of the cell."""
        return f"{self.label}-seed{self.seed}"

    @property
    def label(self) -> str:
        """The cell without its seed."""
        return (
            f"{self.problem}-w{self.width}-d{self.depth}-{self.activation}"
            f"-{self.parameterisation}-sd{self.prior_sd:g}"
            + ("" if self.n is None else f"-n{self.n}")
            + (f"-grid{self.grid_margin:g}" if self.grid_margin else "")
        )


def check(settings: Settings) -> None:
    """Check that settings can be run.

    Raises
    ------
    ValueError
        If a name is unknown, a list is empty or a number is out of its range.
    """
    for argument in LISTS:
        if not (getattr(settings, argument) or settings.protocol):
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
    for argument, least, most in (("widths", 1, 10**5), ("depths", 0, 1000)):
        for value in getattr(settings, argument):
            check_count(argument, value, least, most)
    for argument, least, most in (
        ("num_seeds", 1, MOST_CELLS),
        ("seeds_per_batch", 0, MOST_CELLS),
        ("n", 2, MOST_ROWS),
        ("num_point_draws", 1, 10**5),
        ("num_averaged_draws", 1, 10**5),
    ):
        if not (settings.protocol and argument == "n" and settings.n == 0):
            check_count(argument, getattr(settings, argument), least, most)
    check_real("label_noise", settings.label_noise)
    count = settings.num_seeds * math.prod(len(getattr(settings, argument)) for argument in LISTS)
    check_cells(count, "num_seeds and the lists of settings")


def cells_of_lists(settings: Settings) -> list[Cell]:
    """The cells of every combination of the lists of the settings, each of seed 0.

    The width has no effect at depth 0 and is 1 there.
    """
    combinations = itertools.product(
        settings.problems,
        settings.widths,
        settings.depths,
        settings.activations,
        settings.parameterisations,
        settings.prior_sds,
    )
    return list(
        dict.fromkeys(
            Cell(p, w if d else 1, d, a, q, sd, seed=0) for p, w, d, a, q, sd in combinations
        )
    )
