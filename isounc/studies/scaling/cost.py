"""The plan of the scaling study puts its cells in batches and groups, with forecasts of cost."""

from __future__ import annotations

from typing import Any, NamedTuple

from isounc.runs.executors import Batch, Group, grouped
from isounc.sampling import drivers
from isounc.studies.scaling.cell import cell_model, cell_problem
from isounc.studies.scaling.protocols import seed_batches, settings_of_cells
from isounc.studies.scaling.settings import Cell, Settings


class Cost(NamedTuple):
    """A rough forecast for a batch on one CPU core. It orders the work and feeds the ETA."""

    seconds: float
    """Sampling, fits and estimates, without compilation."""
    mebibytes: float
    """Peak memory of the worker above that of the interpreter and the compiler."""


def plan(settings: Settings) -> list[Group]:
    """Make batches of seeds that are computed together, and groups of batches of equal shapes.

    The most expensive group comes first, which lets workers end together.
    """
    keyed: list[tuple[Any, Batch]] = []
    for cells in seed_batches(settings):
        problem = cell_problem(cells[0], settings)
        model = cell_model(cells[0], problem)
        seconds, mebibytes = estimate_cost(cells, settings)
        label = f"{cells[0].problem} width {cells[0].width}"
        label = cells[0].label if settings.protocol else label
        if len(cells) < settings.num_seeds:
            first, last = cells[0].seed, cells[-1].seed
            label += f" seed {first}" if first == last else f" seeds {first} to {last}"
        batch = Batch(label, cells, seconds, mebibytes, len(problem.X) * model.num_params)
        keyed.append(((problem.shape_key, model, len(cells)), batch))
    return sorted(grouped(keyed), key=lambda group: -sum(batch.seconds for batch in group))


def estimate_cost(cells: tuple[Cell, ...], settings: Settings) -> Cost:
    """Forecast time and memory for the cells of a batch."""
    problem = cell_problem(cells[0], settings)
    model = cell_model(cells[0], problem)
    limited = settings_of_cells(cells, settings)
    sampler = limited.sampling
    # Measured mean steps, in readout coordinates for a Gaussian likelihood and in prior coordinates
    # for the others, where narrow networks need more of them, and more draws.
    steps = 11 * (1 + 8 / cells[0].width) if problem.noise_sd is None else 20
    forecast = drivers.forecast(sampler, num_params=model.num_params)
    chains = len(cells) * sampler.chains
    terms = model.num_params * len(problem.X) * chains
    locations = sum(len(x) for x in problem.regions.values())
    sampling = forecast.seconds(terms, steps=steps)
    if limited is not settings or sampling > sampler.max_seconds:
        sampling = sampler.max_seconds  # protocols limit cells of far more steps than these
    estimating = len(cells) * (1.0 + 1e-7 * locations * problem.num_columns * model.num_params)
    values = sampler.max_draws * chains * len(problem.regions) * sampler.locations_per_region
    floats = (
        4 * values * problem.num_columns
        + 4 * model.num_params * len(problem.X) * chains
        + 6 * model.num_params**2
        + len(cells) * forecast.num_floats
    )
    return Cost(sampling + estimating, 4 * floats / 2**20)
