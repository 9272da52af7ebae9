"""Settings and cells of the covariance study."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from isounc.checks import check_choice, check_count, check_real
from isounc.fit import MapSettings
from isounc.models import ACTIVATIONS, PARAMETERISATIONS, Model, make_model
from isounc.problems import MOST_ROWS, PROBLEMS, Problem, make_problem
from isounc.runs.executors import Batch, Group, grouped
from isounc.runs.settings import MOST_CELLS, MOST_SEED, RunSettings, check_cells
from isounc.sampling import drivers
from isounc.sampling.settings import SamplerSettings
from isounc.studies.covariance.forms import FORMS
from isounc.studies.covariance.proxies import PROXIES
from isounc.training import TrainSettings

ALL = "all"
"""Name of the mean over the problems, and of all regions together."""
TEST = "test"
"""The region from whose distribution the proxy `fresh` is drawn."""
NUM_TEST = 100
"""Locations of that region, and fewest fresh inputs that are drawn."""
POINTS = {"map": "the MAP", "trained": "a trained network"}
"""Points theta*, with what people call them."""


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of the covariance study."""

    problems: tuple[str, ...] = ("moons", "xor")
    """Problems, by name (`isounc scaling --help` lists them)."""
    widths: tuple[int, ...] = (16, 128)
    """Hidden units per layer."""
    num_seeds: int = 5
    """Number of seeds; each draws new data and new networks."""
    first_seed: int = 200
    """The seeds are this one and the next ones."""
    n: int = 100
    """Training examples, and inputs of every proxy."""
    depth: int = 1
    """Hidden layers."""
    activation: str = "tanh"
    """Activation: tanh, relu, gelu or silu."""
    parameterisation: str = "ntk"
    """Parameterisation: ntk, fan_in or standard."""
    prior_sd: float = 2.0
    """Prior standard deviation of a weight, before the parameterisation's scaling."""
    points: tuple[str, ...] = tuple(POINTS)
    """Points theta*: map, trained."""
    proxies: tuple[str, ...] = tuple(PROXIES)
    """Inputs that the covariance is built from, train among them: train fresh shifted_1 shifted_2
    shifted_4 rotated scaled tight box other permuted (permuted: of the real sets alone)."""
    forms: tuple[str, ...] = tuple(FORMS)
    """Forms of the covariance: full low_rank block_diagonal kfac last_layer diagonal isotropic."""
    lams: tuple[float, ...] = (0.01, 0.1, 10.0, 100.0)
    """Values of lambda for the full form, in units of the prior's precision, beside 1."""
    rank: int = 10
    """Directions that the form low_rank keeps."""
    num_directions: int = 5
    """Dimension k of the eigenspaces that are compared."""
    sampling: SamplerSettings = field(
        default_factory=lambda: SamplerSettings(
            num_warmup=200, num_draws=500, max_draws=2000, block=125, target_var_se=0.06,
            max_seconds=120.0,
        )
    )  # fmt: skip
    """Settings of the sampler of the reference posterior; the seeds of a cell share max_seconds."""
    map: MapSettings = field(default_factory=MapSettings)
    """Settings of the fit of the MAP."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """Settings of the training of networks."""


_SIX = ("moons", "xor", "rings", "clusters3", "nonlinear_regression", "breast_cancer")
PRESETS = {
    "quick": Settings(figures="shown"),
    "standard": Settings(
        preset="standard",
        problems=_SIX,
        widths=(16, 64, 256),
        sampling=SamplerSettings(max_draws=2000, target_var_se=0.06, max_seconds=120.0),
    ),
    "paper": Settings(
        preset="paper",
        problems=(*_SIX, "linear", "spirals3", "rings3", "wine", "digits_3v8"),
        widths=(8, 32, 128, 512),
        num_seeds=10,
        sampling=SamplerSettings(
            num_draws=2000, max_draws=8000, num_kept=8000, check_modes=True, check_modes_up_to=16
        ),
    ),
}


@dataclass(frozen=True)
class Cell:
    """A problem, a width and a seed."""

    problem: str
    """Name of the problem."""
    width: int
    """Hidden units per layer."""
    seed: int
    """Seed of the data and of all random numbers."""

    @property
    def name(self) -> str:
        """Name of the record of the cell."""
        return f"{self.problem}-w{self.width}-seed{self.seed}"


def check(settings: Settings) -> None:
    """Check that settings can be run.

    Raises
    ------
    ValueError
        If a name is unknown, a list is empty or repeats a value, or a number is out of its range.
    """
    for argument, choices in (
        ("problems", [name for name in PROBLEMS if name != ALL]),
        ("points", POINTS),
        ("proxies", PROXIES),
        ("forms", FORMS),
        ("widths", None),
    ):
        values = getattr(settings, argument)
        if not values or len(set(values)) < len(values):
            raise ValueError(
                f"{argument} must have at least one value and none twice, got {values}"
            )
        for value in values if choices else ():
            check_choice(argument, value, choices or ())
    for argument, needed, why in (
        ("proxies", "train", "which the other proxies are compared with"),
        ("forms", "full", "whose error is looked into"),
    ):
        if needed not in getattr(settings, argument):
            raise ValueError(
                f"{argument} must have {needed} among them, {why}, got "
                f"{getattr(settings, argument)}"
            )
    for lam in settings.lams:
        check_real("lams", lam, positive=True)
    if len({1.0, *settings.lams}) < len(settings.lams) + 1:
        raise ValueError(f"lams must not repeat a value or 1, the prior's, got {settings.lams}")
    check_choice("activation", settings.activation, ACTIVATIONS)
    check_choice("parameterisation", settings.parameterisation, PARAMETERISATIONS)
    check_real("prior_sd", settings.prior_sd, positive=True)
    for width in settings.widths:
        check_count("widths", width, 1, 10**5)
    for argument, least, most in (
        ("depth", 1, 1000),
        ("num_seeds", 1, MOST_CELLS),
        ("n", 2, MOST_ROWS),
    ):
        check_count(argument, getattr(settings, argument), least, most)
    check_count("first_seed", settings.first_seed, 0, MOST_SEED - settings.num_seeds)
    cells = settings.num_seeds * len(settings.problems) * len(settings.widths)
    check_cells(cells, "num_seeds, problems and widths")
    for name in settings.problems:
        problem = make_problem(name, n=settings.n)
        model = cell_model(problem, min(settings.widths), settings)
        params, rows = model.num_params, len(problem.X) * problem.num_outputs
        for argument, most in (
            ("rank", min(params, rows)),
            ("num_directions", min(params - 1, rows)),
        ):
            given = getattr(settings, argument)
            if not (isinstance(given, int) and 1 <= given <= most):
                raise ValueError(
                    f"{argument} must be an integer from 1 to {most}, as {name} at width "
                    f"{model.width} has {params} parameters and the GGN of its {len(problem.X)} "
                    f"inputs a rank of {rows} at most, got {given!r}"
                )


class CellData(NamedTuple):
    """The problem of a cell, and inputs of its distribution that are in no region."""

    problem: Problem
    """The problem."""
    fresh: Float[np.ndarray, "m D"]
    """Fresh inputs."""


def cell_data(cell: Cell, settings: Settings) -> CellData:
    """Return the data of a cell, which depend on the seed.

    Raises
    ------
    ValueError
        If the problem has no region `test` with two locations, from which fresh inputs are taken.
    """
    wanted = max(NUM_TEST, settings.n)
    whole = make_problem(cell.problem, n=settings.n, seed=cell.seed, num_test=NUM_TEST + wanted)
    drawn = whole.regions.get(TEST, np.empty((0, whole.num_features)))
    half = min(NUM_TEST, len(drawn) // 2)
    if not half:
        raise ValueError(
            f"problems must have a region {TEST} with two locations or more, from which fresh inputs "
            f"are taken, got {cell.problem!r}"
        )
    cut = {
        name: {
            region: values[:half] if region == TEST else values
            for region, values in getattr(whole, name).items()
        }
        for name in ("regions", "targets", "p_true")
    }
    return CellData(replace(whole, **cut), drawn[half : half + wanted])


def cell_model(problem: Problem, width: int, settings: Settings) -> Model:
    """Return the model of a cell."""
    return make_model(
        problem,
        width=width,
        depth=settings.depth,
        activation=settings.activation,
        parameterisation=settings.parameterisation,
    )


def seed_of(cell: Cell, purpose: str) -> int:
    """A seed for one purpose. It depends on what the cell is, not on its place in the run."""
    return zlib.crc32(f"covariance/{cell.name}/{purpose}".encode())


def batches(settings: Settings) -> list[tuple[Cell, ...]]:
    """The cells of every width and problem, a tuple of seeds each."""
    seeds = range(settings.first_seed, settings.first_seed + settings.num_seeds)
    return [
        tuple(Cell(problem, width, seed) for seed in seeds)
        for width in settings.widths
        for problem in settings.problems
    ]


def plan(settings: Settings) -> list[Group]:
    """Make a batch of the seeds of a problem and width, and a group of those of equal shapes."""
    keyed: list[tuple[Any, Batch]] = []
    for cells in batches(settings):
        problem = cell_data(cells[0], settings).problem
        model = cell_model(problem, cells[0].width, settings)
        seconds, mebibytes = _forecast(cells, problem, model, settings)
        label = f"{cells[0].problem} width {cells[0].width}"
        batch = Batch(label, cells, seconds, mebibytes, len(problem.X) * model.num_params)
        keyed.append(((problem.shape_key, model), batch))
    return grouped(keyed)


def _forecast(
    cells: Sequence[Cell], problem: Problem, model: Model, settings: Settings
) -> tuple[float, float]:
    """Seconds and mebibytes of a batch on one core, roughly; nothing depends on them but the ETA."""
    sampler = settings.sampling
    forecast = drivers.forecast(sampler, num_params=model.num_params)
    chains = len(cells) * sampler.chains
    sampling = forecast.seconds(model.num_params * len(problem.X) * chains)
    rows = problem.num_columns * (len(problem.X) + sum(len(x) for x in problem.regions.values()))
    covariances = len(cells) * len(settings.points) * len(settings.proxies)
    # Measured: what fits and comparisons cost, and products of gradients with directions.
    estimates = covariances * (0.05 + 4e-9 * rows * model.num_params * len(problem.X))
    floats = (
        sampler.max_draws * chains * sampler.locations_per_region * 3 * problem.num_columns
        + len(cells) * forecast.num_floats
        + 10 * rows * model.num_params
    )
    seconds = min(sampling, sampler.max_seconds) + 1.5 * len(cells) + estimates
    return seconds, 4 * floats / 2**20
