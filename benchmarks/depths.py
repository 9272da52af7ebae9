"""How far draws of the prior lie from the best of them, and whether warm-up then anneals.

    uv run benchmarks/depths.py                                  # n = 30 to 1000, prior sd 0.5 to 10
    uv run benchmarks/depths.py --problems linear xor --widths 2 128

`SamplerSettings.anneal_above` says from which depth on warm-up anneals: the mean distance of the log
likelihood of the other chains from that of the best, where they begin. A row has that depth over
many draws of the prior taken together, its quartiles over groups of four of them (the chains of a
run), and the share of groups above the bound. Tables `depths.csv` and `depths.md`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from samplers_table import write
from tqdm import tqdm

from isounc.densities import log_likelihood, make_data
from isounc.models import make_model
from isounc.problems import make_problem
from isounc.sampling.chains import mean_depth
from isounc.sampling.settings import SamplerSettings

ABOVE = SamplerSettings().anneal_above
CHAINS = SamplerSettings().num_chains


@dataclass
class Options:
    """The posteriors, and how many draws of their priors."""

    problems: tuple[str, ...] = ("moons", "spirals3", "nonlinear_regression")
    """Problems, by name."""
    widths: tuple[int, ...] = (8, 32)
    """Hidden units."""
    sizes: tuple[int, ...] = (30, 100, 300, 1000)
    """Training examples."""
    prior_sds: tuple[float, ...] = (0.5, 2.0, 10.0)
    """Prior standard deviations."""
    parameterisations: tuple[str, ...] = ("ntk", "standard")
    """ntk, fan_in or standard."""
    num_draws: int = 64
    """Draws of each prior, a multiple of the chains of a run."""
    seed: int = 0
    """Seed of the data and of the draws."""
    out: Path = Path("runs/depths")
    """Folder for the tables."""


def measure(cell: dict[str, Any], options: Options) -> dict[str, Any]:
    """The row of one posterior."""
    problem = make_problem(cell["problem"], n=cell["n"], seed=options.seed)
    model = make_model(problem, width=cell["width"], parameterisation=cell["parameterisation"])
    data = make_data(problem, model, cell["prior_sd"])
    keys = jax.random.split(jax.random.key(options.seed), options.num_draws)
    theta = jax.vmap(lambda key: model.sample_prior(key, cell["prior_sd"]))(keys)
    log_likelihoods = jax.jit(jax.vmap(lambda t: log_likelihood(model, t, data)))(theta)
    r = np.asarray(log_likelihoods, float)
    of_runs = mean_depth(r.reshape(-1, CHAINS))
    low, middle, high = np.quantile(of_runs, (0.25, 0.5, 0.75))
    return {
        "depth": float(f"{mean_depth(r[None])[0]:.3g}"),
        "of_four_low": float(f"{low:.3g}"),
        "of_four": float(f"{middle:.3g}"),
        "of_four_high": float(f"{high:.3g}"),
        "annealed": float((of_runs > ABOVE).mean()),
    }


def page(rows: list[dict[str, Any]]) -> str:
    """Depths of four chains (median) by n and prior sd, with the share of runs that anneal."""
    columns = list(dict.fromkeys((row["n"], row["prior_sd"]) for row in rows))
    columns.sort(key=lambda column: column[::-1])
    cells = {}
    for row in rows:
        share = f" ({row['annealed']:.0%})" if row["annealed"] else ""
        place = (row["problem"], row["parameterisation"], row["width"])
        cells[(*place, row["n"], row["prior_sd"])] = f"{row['of_four']:,.0f}{share}"
    lines = [
        "| posterior | " + " | ".join(f"sd {sd:g}, n = {n}" for n, sd in columns) + " |",
        "| --- " * (1 + len(columns)) + "|",
    ]
    for place in dict.fromkeys(key[:3] for key in cells):
        shown = [cells.get((*place, *column), "") for column in columns]
        lines.append(f"| {place[0]}, {place[1]}, width {place[2]} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def main(options: Options) -> None:
    """Measure all posteriors and write the tables."""
    options.out.mkdir(parents=True, exist_ok=True)
    names = ("problem", "parameterisation", "width", "n", "prior_sd")
    cells = itertools.product(
        options.problems, options.parameterisations, options.widths, options.sizes,
        options.prior_sds,
    )  # fmt: skip
    rows = []
    for values in tqdm(list(cells), unit="posterior"):
        cell: dict[str, Any] = dict(zip(names, values, strict=True))
        rows.append(cell | {"seed": options.seed} | measure(cell, options))
    write(rows, options.out / "depths.csv")
    (options.out / "depths.md").write_text(page(rows))
    print(page(rows))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
