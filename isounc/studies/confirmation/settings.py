"""Settings, conditions and cells of the confirmation study: one factor at a time about a base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from isounc.checks import check_choice, check_count, check_real
from isounc.estimates.links import LINK_MOMENTS
from isounc.likelihoods import LIKELIHOODS
from isounc.models import ACTIVATIONS, PARAMETERISATIONS, Model, make_model
from isounc.problems import MOST_ROWS, PROBLEMS, Problem, make_problem
from isounc.runs.executors import Batch, Group, grouped
from isounc.runs.settings import MOST_CELLS, MOST_SEED, RunSettings, check_cells
from isounc.sampling import drivers
from isounc.sampling.settings import SamplerSettings
from isounc.studies.scaling.paper import TABLE1
from isounc.training import TrainSettings

ALL = "all"
"""Name, among the problems, of the mean over those that have a link."""
BASE = "base"
"""Name of the condition about which one factor at a time is varied."""
SAMPLED = {"prior_sd": "prior_sds", "n": "ns", "activation": "activations", "depth": "depths"}
"""Factors that change the posterior, with the settings that list their values beside the base."""
SHIFTS = {
    "far": "the inputs of the region far",
    "wide": "a Gaussian of twice the training inputs' spread",
}
"""Reference inputs from another distribution, with what people call them."""
POINTS = ("map", "draw")
"""Points beside the trained network, which the base has."""
FACTORS = (BASE, *SAMPLED, "reference", "point")
"""Factors in the order in which they are shown; reference and point share the base's posterior."""
MOST_NETWORKS = 1024
"""Most networks of an ensemble; their predictions are all held at once."""


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of the confirmation study."""

    problems: tuple[str, ...] = ("xor", "rings", "clusters3")
    """Problems, by name (`isounc scaling --help` lists them); those without a link, which are
    regressions, run at the base alone."""
    num_seeds: int = 2
    """Number of seeds at the base; each draws new data and new networks."""
    num_varied_seeds: int = 0
    """Number of seeds where a factor that changes the posterior is varied; 0 means num_seeds."""
    first_seed: int = 100
    """The seeds are this one and the next ones; nothing else has used those from 100 on."""
    n: int = 100
    """Base: training examples."""
    prior_sd: float = 2.0
    """Base: prior standard deviation of a weight, before the parameterisation's scaling."""
    depth: int = 1
    """Base: hidden layers."""
    activation: str = "tanh"
    """Base: activation (tanh, relu, gelu or silu)."""
    width: int = 64
    """Hidden units per layer, in every condition."""
    parameterisation: str = "ntk"
    """Parameterisation, in every condition: ntk, fan_in or standard."""
    prior_sds: tuple[float, ...] = (0.5, 10.0)
    """Prior standard deviations beside the base's."""
    depths: tuple[int, ...] = (2,)
    """Depths beside the base's."""
    activations: tuple[str, ...] = ("relu",)
    """Activations beside the base's."""
    ns: tuple[int, ...] = (30, 300)
    """Numbers of training examples beside the base's."""
    reference_sizes: tuple[int, ...] = (10, 30)
    """Numbers of training inputs that set the scale, beside all of them."""
    reference_shifts: tuple[str, ...] = tuple(SHIFTS)
    """Reference inputs from another distribution: far (the inputs of that region), wide (Gaussian,
    twice the spread of the training inputs)."""
    counts: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Numbers K of trained networks in the ensembles, ascending; 4 and 16 among them."""
    num_repeats: int = 4
    """Trained networks, or posterior draws, at each of which one-pass estimates are made, and most
    disjoint groups of K networks: correlations are averaged over them."""
    sampling: SamplerSettings = field(
        default_factory=lambda: SamplerSettings(
            num_warmup=200, num_draws=500, max_draws=2000, block=125, target_var_se=0.06,
            max_seconds=120.0,
        )
    )  # fmt: skip
    """Settings of the sampler of the reference posterior; the seeds of a cell share max_seconds."""
    train: TrainSettings = field(default_factory=TrainSettings)
    """Settings of the training of networks."""


_WHOLE: dict[str, Any] = {
    "problems": tuple(TABLE1),
    "prior_sds": (0.5, 1.0, 5.0, 10.0),
    "depths": (2, 3, 4),
    "activations": ("relu", "gelu"),
    "ns": (30, 300, 1000),
}
PRESETS = {
    "quick": Settings(),
    "standard": Settings(preset="standard", num_seeds=5, **_WHOLE),
    "paper": Settings(
        preset="paper",
        num_seeds=10,
        sampling=SamplerSettings(max_draws=8000, max_seconds=3600.0),
        **_WHOLE,
    ),
}


class Condition(NamedTuple):
    """The base, or the base with one factor changed."""

    factor: str
    """One of `FACTORS`."""
    value: str
    """The factor's value; empty for the base."""


@dataclass(frozen=True)
class Cell:
    """A problem, a condition that has a posterior of its own, and a seed."""

    problem: str
    """Name of the problem."""
    factor: str
    """`BASE`, or the key of `SAMPLED` that differs from the base."""
    value: str
    """The factor's value; empty for the base."""
    n: int
    """Training examples."""
    prior_sd: float
    """Prior standard deviation of a weight."""
    depth: int
    """Hidden layers."""
    activation: str
    """Activation."""
    seed: int
    """Seed of the data and of all random numbers."""

    @property
    def networks(self) -> str:
        """Name of its trained networks, which no prior decides."""
        return f"{self.problem}-n{self.n}-d{self.depth}-{self.activation}-seed{self.seed}"

    @property
    def name(self) -> str:
        """Name of the record of the cell."""
        return f"{self.networks}-sd{self.prior_sd:g}"


def check(settings: Settings) -> None:
    """Check that settings can be run.

    Raises
    ------
    ValueError
        If a name is unknown, a list repeats a value or the base's, or a number is out of its range.
    """
    if not settings.problems:
        raise ValueError(f"problems must have at least one value, got {settings.problems}")
    for problem in settings.problems:
        check_choice("problems", problem, PROBLEMS.keys() - {ALL})
    for name, listed in {**SAMPLED, "reference": "reference_sizes"}.items():
        # As texts, which name the conditions.
        base = settings.n if name == "reference" else getattr(settings, name)
        values = [_spelled(value) for value in (base, *getattr(settings, listed))]
        if len(set(values)) < len(values):
            raise ValueError(
                f"{listed} must not repeat a value or the base's, {values[0]}, got "
                f"{getattr(settings, listed)}"
            )
    for argument in ("problems", "reference_shifts"):
        values = getattr(settings, argument)
        if len(set(values)) < len(values):
            raise ValueError(f"{argument} must not repeat a value, got {values}")
    for count in settings.counts:
        check_count("counts", count, 2, MOST_NETWORKS)
    if list(settings.counts) != sorted({*settings.counts, 4, 16}):
        raise ValueError(
            f"counts must be ascending, with 4 and 16 among them, got {settings.counts}"
        )
    for argument, values in (
        ("activation", [settings.activation]),
        ("activations", settings.activations),
    ):
        for value in values:
            check_choice(argument, value, ACTIVATIONS)
    check_choice("parameterisation", settings.parameterisation, PARAMETERISATIONS)
    for shift in settings.reference_shifts:
        check_choice("reference_shifts", shift, SHIFTS)
    for argument, reals in (("prior_sd", [settings.prior_sd]), ("prior_sds", settings.prior_sds)):
        for real in reals:
            check_real(argument, real, positive=True)
    for argument, least, most in (
        ("n", 2, MOST_ROWS),
        ("ns", 2, MOST_ROWS),
        ("depth", 1, 1000),
        ("depths", 1, 1000),
        ("width", 1, 10**5),
        ("num_seeds", 1, MOST_CELLS),
        ("num_varied_seeds", 0, MOST_CELLS),
        ("reference_sizes", 2, settings.n),
        ("num_repeats", 1, settings.counts[-1]),
    ):
        values = getattr(settings, argument)
        for value in values if isinstance(values, tuple) else [values]:
            check_count(argument, value, least, most)
    most = max(settings.num_seeds, settings.num_varied_seeds)
    check_count("first_seed", settings.first_seed, 0, MOST_SEED - most)
    cells = most * len(settings.problems) * len(conditions(settings))
    check_cells(cells, "num_seeds, problems and conditions")


def _spelled(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def conditions(settings: Settings) -> list[Condition]:
    """The base, and every value of every factor, one factor at a time."""
    found = [Condition(BASE, "")]
    for factor, listed in SAMPLED.items():
        found += [Condition(factor, _spelled(value)) for value in getattr(settings, listed)]
    references = (*map(str, settings.reference_sizes), *settings.reference_shifts)
    found += [Condition("reference", value) for value in references]
    return found + [Condition("point", value) for value in POINTS]


def batches(settings: Settings) -> list[tuple[Cell, ...]]:
    """The cells of every problem and condition with a posterior of its own, a tuple of seeds each.

    A problem without a link has the base alone: there logit_scaled orders as isotropic does.
    """
    base = {name: getattr(settings, name) for name in SAMPLED}
    found = []
    for problem in settings.problems:
        changes: list[tuple[str, Any]] = [(BASE, None)]
        if has_link(make_problem(problem)):
            changes += [(f, v) for f, listed in SAMPLED.items() for v in getattr(settings, listed)]
        for factor, value in changes:
            fields = base if factor == BASE else base | {factor: value}
            spelled = "" if factor == BASE else _spelled(value)
            varied = factor != BASE and settings.num_varied_seeds
            seeds = range(settings.first_seed, settings.first_seed + (varied or settings.num_seeds))
            found.append(
                tuple(Cell(problem, factor, spelled, seed=seed, **fields) for seed in seeds)
            )
    return found


def has_link(problem: Problem) -> bool:
    """Whether Gaussian outputs go through a link whose moments are known."""
    return LIKELIHOODS[problem.likelihood].link in LINK_MOMENTS


def cell_problem(cell: Cell) -> Problem:
    """Return the problem of a cell, whose data depend on the seed and n."""
    return make_problem(cell.problem, n=cell.n, seed=cell.seed)


def cell_model(cell: Cell, problem: Problem, settings: Settings) -> Model:
    """Return the model of a cell."""
    return make_model(
        problem,
        width=settings.width,
        depth=cell.depth,
        activation=cell.activation,
        parameterisation=settings.parameterisation,
    )


def plan(settings: Settings) -> list[Group]:
    """Make a batch of the seeds of a problem and condition, and a group of those of equal shapes.

    Groups come in the order of their first condition, so that a run that is ended early has the
    base of every problem.
    """
    found = batches(settings)
    found.sort(key=lambda cells: FACTORS.index(cells[0].factor))
    keyed: list[tuple[Any, Batch]] = []
    for cells in found:
        problem = cell_problem(cells[0])
        model = cell_model(cells[0], problem, settings)
        seconds, mebibytes = _forecast(cells, problem, model, settings)
        value = f" {cells[0].factor} {cells[0].value}" if cells[0].value else f" {BASE}"
        work = len(problem.X) * model.num_params
        batch = Batch(f"{cells[0].problem}{value}", cells, seconds, mebibytes, work)
        keyed.append(((problem.shape_key, model), batch))
    return grouped(keyed)


def _forecast(
    cells: Sequence[Cell], problem: Problem, model: Model, settings: Settings
) -> tuple[float, float]:
    """Seconds and mebibytes of a batch on one core, roughly; nothing depends on them but the ETA."""
    sampler = settings.sampling
    forecast = drivers.forecast(sampler, num_params=model.num_params)
    chains = len(cells) * sampler.chains
    terms = model.num_params * len(problem.X)
    sampling = forecast.seconds(terms * chains)
    # Measured: what a cell costs beside its posterior.
    training = settings.train.epochs * settings.counts[-1] * terms * 2e-9 * len(cells)
    locations = len(problem.X) + sum(len(x) for x in problem.regions.values())
    floats = (
        sampler.max_draws * chains * sampler.locations_per_region * 3 * problem.num_columns
        + settings.counts[-1] * locations * problem.num_columns
        + len(cells) * forecast.num_floats
    )
    seconds = min(sampling, sampler.max_seconds) + training + 1.5 * len(cells)
    return seconds, 4 * floats / 2**20
