"""Settings and cells of the spectrum study: one factor at a time about a base."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from isounc.checks import check_choice, check_count, check_real
from isounc.fit import MapSettings
from isounc.models import ACTIVATIONS, PARAMETERISATIONS, Model, make_model
from isounc.problems import MOST_ROWS, PROBLEMS, Problem, make_problem
from isounc.runs.executors import Batch, Group, grouped
from isounc.runs.settings import MOST_CELLS, MOST_SEED, RunSettings, check_cells
from isounc.sampling import drivers
from isounc.sampling.settings import SamplerSettings
from isounc.training import TrainSettings

ALL = "all"
"""Name, among the problems, of the mean over them, and among the regions of what has none."""
TRAIN = "train"
"""The region of the training inputs."""
POINTS = {"map": "the MAP", "trained": "a trained network", "draw": "a posterior draw"}
"""Points theta*, with what people call them."""
POSTERIOR = "posterior"
"""In the place of a point: numbers of the posterior as a whole."""


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of the spectrum study."""

    problems: tuple[str, ...] = ("moons", "nonlinear_regression")
    """Problems, by name (`isounc scaling --help` lists them)."""
    width: int = 16
    """Base: hidden units per layer."""
    depth: int = 1
    """Base: hidden layers."""
    n: int = 100
    """Base: training examples."""
    widths: tuple[int, ...] = (16, 128)
    """Widths, under each parameterisation."""
    depths: tuple[int, ...] = (1, 3)
    """Depths, under each parameterisation."""
    parameterisations: tuple[str, ...] = ("ntk",)
    """Parameterisations: ntk, fan_in or standard; n varies under the first."""
    ns: tuple[int, ...] = (100, 300)
    """Numbers of training examples."""
    regression_noise: float = 5.0
    """Factor on the noise of a regression: sharp data take very long to sample."""
    num_seeds: int = 3
    """Number of seeds; each draws new data and new networks."""
    first_seed: int = 300
    """The seeds are this one and the next ones."""
    activation: str = "tanh"
    """Activation: tanh, relu, gelu or silu."""
    prior_sd: float = 2.0
    """Prior standard deviation of a weight, before the parameterisation's scaling."""
    points: tuple[str, ...] = tuple(POINTS)
    """Points theta*: map, trained, draw."""
    ranks: tuple[int, ...] = (1, 3, 10, 30)
    """Numbers k of directions, of n times the outputs that the GGN has."""
    rank: int = 10
    """The k of the verdicts, one of ranks."""
    lanczos_steps: int = 60
    """Products with the Hessian, where it is not formed."""
    num_draws: int = 400
    """Draws of the posterior, and of N(0, I), from which divergences are made, and most from which
    the covariance of the form draws is."""
    num_timings: int = 3
    """Measurements of the seconds, of which the shortest counts."""
    sampling: SamplerSettings = field(
        default_factory=lambda: SamplerSettings(
            num_warmup=200, num_draws=500, max_draws=1000, block=125, target_var_se=0.06,
            max_seconds=120.0,
        )
    )  # fmt: skip
    """Settings of the sampler of the posterior; the seeds of a cell share max_seconds."""
    map: MapSettings = field(default_factory=MapSettings)
    """Settings of the fit of the MAP."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """Settings of the training of networks."""


PRESETS = {
    "quick": Settings(figures="shown"),
    "standard": Settings(
        preset="standard",
        problems=("moons", "clusters3", "nonlinear_regression"),
        width=32,
        widths=(4, 32, 256),
        depths=(1, 3),
        parameterisations=("ntk", "standard"),
        ns=(30, 100, 300),
        num_seeds=5,
        sampling=SamplerSettings(max_draws=2000, target_var_se=0.06, max_seconds=60.0),
    ),
    "paper": Settings(
        preset="paper",
        width=64,
        problems=(
            *("moons", "rings", "xor", "clusters3", "spirals3", "rings3"),
            *("nonlinear_regression", "linear_regression"),
        ),
        widths=(2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
        depths=(1, 2, 3, 4),
        parameterisations=("ntk", "standard"),
        ns=(30, 100, 300, 1000),
        num_seeds=10,
        regression_noise=1.0,
        sampling=SamplerSettings(
            num_draws=2000, max_draws=8000, num_kept=4000, check_modes=True, check_modes_up_to=16
        ),
    ),
}


class Condition(NamedTuple):
    """A network and a number of training examples."""

    width: int
    """Hidden units per layer."""
    depth: int
    """Hidden layers."""
    parameterisation: str
    """Parameterisation."""
    n: int
    """Training examples."""

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{self.parameterisation}, width {self.width}, depth {self.depth}, n {self.n}"


@dataclass(frozen=True)
class Cell:
    """A problem, a condition and a seed."""

    problem: str
    """Name of the problem."""
    condition: Condition
    """The network and the number of training examples."""
    seed: int
    """Seed of the data and of all random numbers."""

    @property
    def name(self) -> str:
        """Name of the record of the cell."""
        width, depth, parameterisation, n = self.condition
        return f"{self.problem}-{parameterisation}-w{width}-d{depth}-n{n}-seed{self.seed}"


def check(settings: Settings) -> None:
    """Check that settings can be run.

    Raises
    ------
    ValueError
        If a name is unknown, a list is empty or repeats a value, or a number is out of its range.
    """
    for argument, choices, most in (
        ("problems", [name for name in PROBLEMS if name != ALL], 0),
        ("parameterisations", PARAMETERISATIONS, 0),
        ("points", POINTS, 0),
        ("widths", None, 10**5),
        ("depths", None, 1000),
        ("ns", None, MOST_ROWS),
        ("ranks", None, 10**9),
    ):
        values = getattr(settings, argument)
        if not values or len(set(values)) < len(values):
            raise ValueError(
                f"{argument} must have at least one value and none twice, got {values}"
            )
        for value in values:
            if choices is None:
                check_count(argument, value, 2 if argument == "ns" else 1, most)
            else:
                check_choice(argument, value, choices)
    check_choice("activation", settings.activation, ACTIVATIONS)
    for argument in ("prior_sd", "regression_noise"):
        check_real(argument, getattr(settings, argument), positive=True)
    for argument, least, most in (
        ("width", 1, 10**5),
        ("depth", 1, 1000),
        ("n", 2, MOST_ROWS),
        ("num_seeds", 1, MOST_CELLS),
        ("lanczos_steps", 2, 10**4),
        ("num_timings", 1, 1000),
        ("num_draws", 2 * settings.sampling.num_chains, settings.sampling.num_kept),
    ):
        check_count(argument, getattr(settings, argument), least, most)
    check_count("first_seed", settings.first_seed, 0, MOST_SEED - settings.num_seeds)
    if settings.rank not in settings.ranks:
        raise ValueError(f"rank must be one of ranks, {settings.ranks}, got {settings.rank!r}")
    found = conditions(settings)
    cells = settings.num_seeds * len(settings.problems) * len(found)
    check_cells(cells, "num_seeds, problems, widths, depths, parameterisations and ns")
    for name in settings.problems:
        for n in sorted({condition.n for condition in found}):
            problem = make_problem(name, n=n)
            directions = len(problem.X) * problem.num_outputs
            if max(settings.ranks) > directions:
                raise ValueError(
                    f"ranks must be at most {directions}, the directions that the data of {name} "
                    f"have with n {n}, got {settings.ranks}"
                )


def conditions(settings: Settings) -> list[Condition]:
    """The conditions, the base's parameterisation first."""
    found: dict[Condition, None] = {}
    for i, parameterisation in enumerate(settings.parameterisations):
        base = Condition(settings.width, settings.depth, parameterisation, settings.n)
        found |= dict.fromkeys(base._replace(width=width) for width in settings.widths)
        found |= dict.fromkeys(base._replace(depth=depth) for depth in settings.depths)
        if i == 0:
            found |= dict.fromkeys(base._replace(n=n) for n in settings.ns)
    return list(found)


def cell_problem(cell: Cell, settings: Settings) -> Problem:
    """Return the problem of a cell, of whose regions the training inputs are one."""
    n = cell.condition.n
    problem = make_problem(cell.problem, n=n, seed=cell.seed)
    if problem.noise_sd is not None:
        noise = settings.regression_noise
        problem = make_problem(cell.problem, n=n, seed=cell.seed, label_noise=noise)
    return replace(problem, regions={**problem.regions, TRAIN: problem.X})


def cell_model(problem: Problem, condition: Condition, settings: Settings) -> Model:
    """Return the model of a cell."""
    return make_model(
        problem,
        width=condition.width,
        depth=condition.depth,
        activation=settings.activation,
        parameterisation=condition.parameterisation,
    )


def seed_of(cell: Cell, purpose: str) -> int:
    """A seed for one purpose. It depends on what the cell is, not on its place in the run."""
    return zlib.crc32(f"spectrum/{cell.name}/{purpose}".encode())


def batches(settings: Settings) -> list[tuple[Cell, ...]]:
    """The cells of every condition and problem, a tuple of seeds each."""
    seeds = range(settings.first_seed, settings.first_seed + settings.num_seeds)
    return [
        tuple(Cell(problem, condition, seed) for seed in seeds)
        for condition in conditions(settings)
        for problem in settings.problems
    ]


def plan(settings: Settings) -> list[Group]:
    """Make a batch of the seeds of a problem and condition, and a group of those of equal shapes."""
    keyed: list[tuple[Any, Batch]] = []
    for cells in batches(settings):
        problem, condition = cell_problem(cells[0], settings), cells[0].condition
        model = cell_model(problem, condition, settings)
        seconds, mebibytes = _forecast(cells, problem, model, settings)
        work = len(problem.X) * model.num_params
        label = f"{cells[0].problem} {condition.label}"
        batch = Batch(label, cells, seconds, mebibytes, work)
        keyed.append(((problem.shape_key, model), batch))
    return grouped(keyed)


def _forecast(
    cells: Sequence[Cell], problem: Problem, model: Model, settings: Settings
) -> tuple[float, float]:
    """Seconds and mebibytes of a batch on one core, roughly; nothing depends on them but the ETA."""
    sampler = settings.sampling
    forecast = drivers.forecast(sampler, num_params=model.num_params)
    chains = len(cells) * sampler.chains
    n, params = len(problem.X), model.num_params
    sampling = forecast.seconds(params * n * chains)
    rows = n * problem.num_outputs
    locations = sum(len(x) for x in problem.regions.values()) * problem.num_columns
    points = len(settings.points) * (0.2 + 1e-8 * rows**3 / 30 + 2e-9 * rows * params * 60)
    divergences = 3 * settings.num_draws * problem.num_outputs * 2e-10 * n**3
    along = len(settings.points) * settings.num_draws * 4e-9 * locations * params
    floats = (
        sampler.max_draws * chains * sampler.locations_per_region * 4 * problem.num_columns
        + len(cells) * forecast.num_floats
        + 4 * rows * (rows + locations)
    )
    seconds = min(sampling, sampler.max_seconds) + len(cells) * (points + divergences + along + 1)
    return seconds, 4 * floats / 2**20
