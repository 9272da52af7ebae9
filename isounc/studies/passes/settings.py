"""Settings and cells of the passes study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from isounc.checks import check_choice, check_count, check_real
from isounc.models import ACTIVATIONS, PARAMETERISATIONS, Model, make_model
from isounc.problems import MOST_ROWS, PROBLEMS, Problem, make_problem
from isounc.runs.executors import Batch, Group, grouped
from isounc.runs.settings import MOST_CELLS, RunSettings, check_cells
from isounc.sampling import drivers
from isounc.sampling.settings import SamplerSettings
from isounc.training import TrainSettings

KINDS = {
    "draws": "posterior draws",
    "ensemble": "trained networks",
    "last_layer": "last-layer Laplace samples",
}
"""Kinds of networks, with what people call them."""
ALL = "all"
"""Name, among the problems, of the mean over them."""
MOST_NETWORKS = 1024
"""Most networks of a kind; their predictions are all held at once."""
_BINARY = ("linear", "xor", "rings", "moons", "breast_cancer", "digits_3v8")


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of the passes study."""

    problems: tuple[str, ...] = ("xor", "moons", "rings")
    """Problems, by name (`isounc scaling --help` lists them)."""
    counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Numbers K of networks, ascending."""
    width: int = 32
    """Hidden units per layer."""
    depth: int = 1
    """Hidden layers; 0 is logistic, softmax or linear regression."""
    activation: str = "tanh"
    """Activation: tanh, relu, gelu or silu."""
    parameterisation: str = "ntk"
    """Parameterisation: ntk, fan_in or standard."""
    prior_sd: float = 2.0
    """Prior standard deviation of a weight, before the parameterisation's scaling."""
    num_seeds: int = 5
    """Number of seeds 0, 1, ...; each draws new data and new networks."""
    n: int = 100
    """Training examples."""
    num_groups: int = 8
    """Most disjoint groups of K networks whose correlations are averaged."""
    num_timings: int = 3
    """Measurements of the seconds of K passes, of which the shortest counts."""
    sampling: SamplerSettings = field(default_factory=SamplerSettings)
    """Settings of the sampler of the reference posterior, which draws are taken from."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """Settings of the training of the other networks."""


PRESETS = {
    "quick": Settings(),
    "standard": Settings(
        preset="standard", problems=_BINARY, sampling=SamplerSettings(max_draws=2000)
    ),
    "paper": Settings(
        preset="paper",
        problems=(*_BINARY, "clusters3", "spirals3", "rings3", "wine"),
        num_seeds=10,
        sampling=SamplerSettings(
            num_draws=2000, max_draws=8000, check_modes=True, check_modes_up_to=16
        ),
    ),
}


def check(settings: Settings) -> None:
    """Check that settings can be run.

    Raises
    ------
    ValueError
        If a name is unknown, a list is empty or repeats a value, or a number is out of its range.
    """
    _check_distinct("problems", settings.problems)
    _check_distinct("counts", settings.counts)
    for problem in settings.problems:
        check_choice("problems", problem, PROBLEMS.keys() - {ALL})
    for count in settings.counts:
        check_count("counts", count, 1, MOST_NETWORKS)
    if sorted(settings.counts) != list(settings.counts):
        raise ValueError(f"counts must be ascending, got {settings.counts}")
    if settings.sampling.num_kept < settings.counts[-1]:
        raise ValueError(
            f"counts must be at most sampling.num_kept, {settings.sampling.num_kept}, from which "
            f"draws are taken, got {settings.counts}"
        )
    check_choice("activation", settings.activation, ACTIVATIONS)
    check_choice("parameterisation", settings.parameterisation, PARAMETERISATIONS)
    check_real("prior_sd", settings.prior_sd, positive=True)
    for argument, least, most in (
        ("width", 1, 10**5),
        ("depth", 0, 1000),
        ("num_seeds", 1, MOST_CELLS),
        ("n", 2, MOST_ROWS),
        ("num_groups", 1, MOST_NETWORKS),
        ("num_timings", 1, 1000),
    ):
        check_count(argument, getattr(settings, argument), least, most)
    check_cells(settings.num_seeds * len(settings.problems), "num_seeds and problems")


def _check_distinct(argument: str, values: Sequence[object]) -> None:
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{argument} must have at least one value and none twice, got {values}")


@dataclass(frozen=True)
class Cell:
    """A problem and a seed."""

    problem: str
    """Name of the problem."""
    seed: int
    """Seed of the data and of all random numbers."""

    @property
    def name(self) -> str:
        """Name of the record of the cell."""
        return f"{self.problem}-seed{self.seed}"


def cell_problem(cell: Cell, settings: Settings) -> Problem:
    """Return the problem of a cell, whose data depend on the seed."""
    return make_problem(cell.problem, n=settings.n, seed=cell.seed)


def cell_model(problem: Problem, settings: Settings) -> Model:
    """Return the model of a cell with this problem."""
    return make_model(
        problem,
        width=settings.width,
        depth=settings.depth,
        activation=settings.activation,
        parameterisation=settings.parameterisation,
    )


def plan(settings: Settings) -> list[Group]:
    """Make a batch of the seeds of a problem, and a group of the batches of equal shapes."""
    keyed: list[tuple[Any, Batch]] = []
    for name in settings.problems:
        cells = tuple(Cell(name, seed) for seed in range(settings.num_seeds))
        problem = cell_problem(cells[0], settings)
        model = cell_model(problem, settings)
        seconds, mebibytes = _forecast(problem, model, settings)
        work = len(problem.X) * model.num_params
        batch = Batch(f"{name} width {settings.width}", cells, seconds, mebibytes, work)
        keyed.append(((problem.shape_key, model), batch))
    return grouped(keyed)


def _forecast(problem: Problem, model: Model, settings: Settings) -> tuple[float, float]:
    """Seconds and mebibytes of a batch on one core, roughly; nothing depends on them but the ETA."""
    sampler = settings.sampling
    forecast = drivers.forecast(sampler, num_params=model.num_params)
    chains = settings.num_seeds * sampler.chains
    sampling = forecast.seconds(model.num_params * len(problem.X) * chains)
    locations = len(problem.X) + sum(len(x) for x in problem.regions.values())
    floats = (
        sampler.max_draws * chains * sampler.locations_per_region * 3 * problem.num_columns
        + 9 * settings.counts[-1] * locations * problem.num_columns
        + settings.num_seeds * forecast.num_floats
    )
    # Measured: 1.5 s a cell for its networks and comparisons.
    return sampling + 1.5 * settings.num_seeds, 4 * floats / 2**20
