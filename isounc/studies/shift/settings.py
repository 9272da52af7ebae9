"""Settings and cells of the shift study."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

from isounc.checks import check_choice, check_count, check_real
from isounc.problems import MOST_ROWS
from isounc.runs.executors import Batch, Group, grouped
from isounc.runs.settings import MOST_CELLS, MOST_SEED, RunSettings, check_cells
from isounc.sampling.drivers import driver_of
from isounc.sampling.settings import SamplerSettings
from isounc.studies.shift.detection import fewest
from isounc.studies.shift.networks import NETWORKS, Network, network_of
from isounc.studies.shift.scores import SCORES, Options
from isounc.studies.shift.shifts import IMAGES, PROBLEMS, SHIFTS, Sets, make_sets, shifts_of
from isounc.training import TrainSettings

ALL = "all"
"""Name of the mean over problems, networks or shifts."""
BASE = "isotropic"
"""The score that the others are compared with."""
LINEAR = ("linear", "clusters3")
"""Problems whose true log-odds are linear, on which there is logistic regression too."""


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of the shift study."""

    problems: tuple[str, ...] = ("digits", "wine", "moons", "linear")
    """Problems: digits wine breast_cancer linear xor rings moons clusters3 spirals3 rings3."""
    networks: tuple[str, ...] = tuple(NETWORKS)
    """Networks: mlp, cnn (of digits alone), logistic (of linear and clusters3 alone)."""
    shifts: tuple[str, ...] = tuple(SHIFTS)
    """Shifts, of which every problem has its own: classes rotated shuffled noise shifted permuted
    far."""
    scores: tuple[str, ...] = tuple(SCORES)
    """Scores, isotropic among them."""
    num_seeds: int = 5
    """Number of seeds; each draws new data (of digits and tables a new split) and new networks."""
    first_seed: int = 300
    """The seeds are this one and the next ones."""
    n: int = 100
    """Training examples."""
    n_digits: int = 400
    """Training examples of digits."""
    num_eval: int = 200
    """Inputs that set the threshold, inputs that judge, and inputs of each shift; of wine, which is
    small, 39."""
    width: int = 32
    """Units of the last hidden layer."""
    alarm: float = 0.05
    """Share of inputs in distribution that a threshold is to let through as alarms."""
    knn_k: int = 10
    """Which nearest neighbour counts in kNN."""
    temperature: float = 1000.0
    """T of ODIN."""
    epsilon: float = 0.0014
    """Step of ODIN, in units of the range of the training inputs."""
    num_members: int = 5
    """Networks of the ensemble; the first is the one that the other scores look at."""
    num_passes: int = 50
    """Passes with dropout."""
    dropout_rate: float = 0.5
    """Share of the features that dropout sets to zero."""
    sampled: tuple[str, ...] = ("wine", "moons", "linear")
    """Problems whose posterior is sampled as the ceiling; it may be empty. That of a CNN is not."""
    prior_sd: float = 2.0
    """Prior standard deviation of a weight of the posterior, before the parameterisation's scaling."""
    sampling: SamplerSettings = field(
        default_factory=lambda: SamplerSettings(
            num_warmup=200, num_draws=500, max_draws=2000, block=125, target_var_se=0.06,
            max_seconds=120.0,
        )
    )  # fmt: skip
    """Settings of the sampler of the posterior; the seeds of a problem share max_seconds."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """Settings of the training of MLPs and logistic regression."""
    train_cnn: TrainSettings = field(
        default_factory=lambda: TrainSettings(epochs=40, learning_rate=3e-3)
    )
    """Settings of the training of CNNs."""


_TEN = (
    *("digits", "wine", "breast_cancer", "linear", "xor", "rings", "moons", "clusters3"),
    *("spirals3", "rings3"),
)
PRESETS = {
    "quick": Settings(figures="shown"),
    "standard": Settings(
        preset="standard", problems=_TEN, sampled=_TEN[1:],
        sampling=SamplerSettings(max_draws=2000, target_var_se=0.06, max_seconds=120.0),
    ),
    "paper": Settings(
        preset="paper", problems=_TEN, sampled=_TEN[1:], num_seeds=10,
        sampling=SamplerSettings(num_draws=2000, max_draws=8000, num_kept=8000, check_modes=True),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A problem, a network and a seed."""

    problem: str
    """Name of the problem."""
    network: str
    """Name of the network."""
    seed: int
    """Seed of the data and of all random numbers."""

    @property
    def name(self) -> str:
        """Name of the record of the cell."""
        return f"{self.problem}-{self.network}-seed{self.seed}"


def has_network(problem: str, network: str) -> bool:
    """Whether a problem has a network."""
    only = {"cnn": IMAGES, "logistic": LINEAR}
    return problem in only.get(network, PROBLEMS)


def check(settings: Settings) -> None:
    """Check that settings can be run.

    Raises
    ------
    ValueError
        If a name is unknown, a list is empty or repeats a value, a problem has no network or no
        shift, or a number is out of its range.
    """
    for argument, choices in (
        ("problems", PROBLEMS),
        ("networks", NETWORKS),
        ("shifts", SHIFTS),
        ("scores", SCORES),
        ("sampled", PROBLEMS),
    ):
        values = getattr(settings, argument)
        if (not values and argument != "sampled") or len(set(values)) < len(values):
            raise ValueError(
                f"{argument} must have at least one value and none twice, got {values}"
            )
        for value in values:
            check_choice(argument, value, choices)
    if BASE not in settings.scores:
        raise ValueError(
            f"scores must have {BASE} among them, which the others are compared with, got "
            f"{settings.scores}"
        )
    for argument, least, most in (
        ("num_seeds", 1, MOST_CELLS),
        ("n", 2, MOST_ROWS),
        ("n_digits", 2, MOST_ROWS),
        ("num_eval", 1, MOST_ROWS),
        ("width", 2, 10**5),
        ("num_members", 2, 1000),
        ("num_passes", 2, 10**5),
    ):
        check_count(argument, getattr(settings, argument), least, most)
    check_count("first_seed", settings.first_seed, 0, MOST_SEED - settings.num_seeds)
    for argument in ("temperature", "epsilon", "prior_sd"):
        check_real(argument, getattr(settings, argument), positive=True)
    for argument in ("alarm", "dropout_rate"):
        if not 0 < check_real(argument, getattr(settings, argument)) < 1:
            raise ValueError(
                f"{argument} must be between 0 and 1, got {getattr(settings, argument)}"
            )
    for argument in ("train", "train_cnn"):
        check_count(f"{argument}.patience", getattr(settings, argument).patience, 0, 0)
    check_cells(settings.num_seeds * len(settings.problems) * len(settings.networks), "num_seeds")
    for problem in settings.problems:
        if not any(has_network(problem, network) for network in settings.networks):
            raise ValueError(
                f"networks must have one that {problem} has, got {', '.join(settings.networks)}"
            )
        if not shifts_of(problem, settings.shifts):
            raise ValueError(
                f"shifts must have one that {problem} has, got {', '.join(settings.shifts)}"
            )
        sets = cell_sets(Cell(problem, "mlp", settings.first_seed), settings)
        if len(sets.validation) < (least := fewest(settings.alarm)):
            raise ValueError(
                f"num_eval must leave {problem} {least} inputs or more for an alarm rate of "
                f"{settings.alarm:g}, got {len(sets.validation)}"
            )
        check_count(f"knn_k of {problem}", settings.knn_k, 1, len(sets.X) - 1)


def cell_sets(cell: Cell, settings: Settings) -> Sets:
    """The data of a cell, which depend on the problem and the seed."""
    n = settings.n_digits if cell.problem in IMAGES else settings.n
    return make_sets(cell.problem, settings.shifts, n=n, num_eval=settings.num_eval, seed=cell.seed)


def cell_network(sets: Sets, cell: Cell, settings: Settings) -> Network:
    """The network of a cell."""
    return network_of(cell.network, sets.X.shape[1], sets.num_classes, settings.width)


def score_options(settings: Settings) -> Options:
    """The numbers of the scores."""
    return Options(settings.knn_k, settings.temperature)


def is_sampled(cell: Cell, settings: Settings) -> bool:
    """Whether the posterior of a cell is sampled."""
    return cell.network != "cnn" and cell.problem in settings.sampled and "mcmc" in settings.scores


def seed_of(cell: Cell, purpose: str) -> int:
    """A seed for one purpose. It depends on what the cell is, not on its place in the run."""
    return zlib.crc32(f"shift/{cell.name}/{purpose}".encode())


def batches(settings: Settings) -> list[tuple[Cell, ...]]:
    """The cells of every problem and network, a tuple of seeds each."""
    seeds = range(settings.first_seed, settings.first_seed + settings.num_seeds)
    return [
        tuple(Cell(problem, network, seed) for seed in seeds)
        for network in settings.networks
        for problem in settings.problems
        if has_network(problem, network)
    ]


def plan(settings: Settings) -> list[Group]:
    """Make a batch of the seeds of a problem and network, and a group of those of equal shapes."""
    keyed: list[tuple[Any, Batch]] = []
    for cells in batches(settings):
        sets = cell_sets(cells[0], settings)
        network = cell_network(sets, cells[0], settings)
        shapes = len(sets.X), len(sets.test), tuple(len(x) for x in sets.shifted.values())
        work = len(sets.X) * network.num_params
        steps = len(cells) * (settings.num_members + 1) * settings.train.epochs * len(sets.X) / 32
        seconds = 2 * len(cells) + steps * (1e-4 + 5e-8 * network.num_params)
        mebibytes = 700.0  # measured: programs and scikit-learn
        if is_sampled(cells[0], settings):
            sampler = settings.sampling
            forecast = driver_of(sampler).forecast(sampler, num_params=network.num_params)
            chains = len(cells) * sampler.chains
            seconds += min(forecast.seconds(work * chains), sampler.max_seconds)
            mebibytes += 4e-6 * len(cells) * forecast.num_floats
        batch = Batch(f"{cells[0].problem} {cells[0].network}", cells, seconds, mebibytes, work)
        keyed.append(((network, shapes), batch))
    return grouped(keyed)
