"""The choice of the default sampler: candidates over the paper's problems and widths 2 to 512.

    uv run benchmarks/samplers_choice.py                                # all of it
    uv run benchmarks/samplers_choice.py --problems moons --widths 32   # a corner of it

A table that exists already is continued: only the cells that it lacks are measured.

A candidate is `SamplerSettings` with some changes, at its default budget. Its figure in a cell
(problem, width) is the smaller of the two effective sample sizes of `benchmarks/samplers.py` (of p
and of (p - mean)^2, least over locations), per second of warm-up and sampling. Candidates are
ranked by the geometric mean of that figure relative to the first's, over the cells in which both
pass R-hat < 1.01 and the bound on divergences (an effective sample size of chains that do not agree
means nothing), and by how many cells they pass. The fastest of those that pass the most is the
default. Its cost where it loses is the column `worst`: its figure over that of the cell's best.
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from samplers import Job, Options, isounc_way, measure
from samplers_table import line, stored, write
from tqdm import tqdm

from isounc.checks import check_choice
from isounc.models import make_model
from isounc.problems import make_problem
from isounc.studies.scaling.paper import TABLE1

SHORT: dict[str, Any] = {"trajectory_length": 1.2}

CANDIDATES: dict[str, dict[str, Any]] = {
    "hmc 1.6": {"trajectory_length": 1.6},
    "hmc 1.2": SHORT,
    "hmc 2.4": {"trajectory_length": 2.4},
    "hmc 1.6, acceptance .9": {"trajectory_length": 1.6, "target_acceptance": 0.9},
    "hmc 2.4, acceptance .9": {"trajectory_length": 2.4, "target_acceptance": 0.9},
    "hmc prior": SHORT | {"coordinates": "prior"},
    "hmc prior low-rank": SHORT | {"coordinates": "prior", "metric": "low_rank"},
    "hmc readout": SHORT | {"coordinates": "readout"},
    "hmc readout low-rank": SHORT | {"coordinates": "readout", "metric": "low_rank"},
    "hmc curvature": SHORT | {"coordinates": "curvature"},
    "nuts": {"sampler": "nuts"},
    "chees": SHORT | {"sampler": "chees", "num_chains": 16, "target_acceptance": 0.65},
    "mclmc": SHORT | {"sampler": "adjusted_mclmc", "target_acceptance": 0.9},
}
"""A number is the mean trajectory length, which is 1.2 for names without one."""


@dataclass
class Choice:
    """The candidates and cells that are measured."""

    problems: tuple[str, ...] = tuple(TABLE1)
    """Problems, by name; the paper's."""
    widths: tuple[int, ...] = (2, 8, 32, 128, 512)
    """Hidden units."""
    n: int = 100
    """Training examples."""
    chains: int = 4
    """Chains; those of chees are 16 at least."""
    candidates: tuple[str, ...] = ()
    """Only these; empty is all."""
    seed: int = 0
    """Seed of the data and the keys."""
    out: Path = Path("runs/samplers-choice")
    """Folder for the table; one that exists already is continued."""


def effective(row: dict[str, Any]) -> float:
    """The smaller effective sample size per second."""
    return min(row["ess_mean"], row["ess_var"]) / row["seconds"]


def ranking(rows: list[dict[str, Any]]) -> str:
    """Candidates by their geometric mean relative to the first, over cells in which both pass."""
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        passed = cells.setdefault((row["problem"], row["width"]), {})
        if row["gate"] == "pass":
            passed[row["way"]] = effective(row)
    names = [name for name in CANDIDATES if any(row["way"] == name for row in rows)]
    widths = sorted({width for _, width in cells})
    head = f"{'candidate':<24}{'passed':>8}{'all':>7}{'worst':>7}" + "".join(
        f"{f'W={width}':>8}" for width in widths
    )
    lines = []
    for name in names:
        both = {c: by for c, by in cells.items() if name in by and names[0] in by}
        gains = {c: np.log(by[name] / by[names[0]]) for c, by in both.items()}
        by_width = [[g for (_, w), g in gains.items() if w == width] for width in widths]
        worst = min((by[name] / max(by.values()) for by in both.values()), default=np.nan)
        mean = float(np.exp(np.mean(list(gains.values())))) if gains else np.nan
        shown = "".join(f"{np.exp(np.mean(g)):>8.2f}" if g else f"{'':>8}" for g in by_width)
        count = f"{sum(name in by for by in cells.values())}/{sum(r['way'] == name for r in rows)}"
        lines.append((mean, f"{name:<24}{count:>8}{mean:>7.2f}{worst:>7.2f}{shown}"))
    lines.sort(key=lambda pair: -np.nan_to_num(pair[0], nan=-1))
    return "\n".join([head, *(text for _, text in lines)])


def main(choice: Choice) -> None:
    """Measure all cells, print the rows and write the table and the ranking."""
    # Programs of a shape serve all of its problems; the first run of a cell compiles new ones.
    cache = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", cache.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    names = choice.candidates or tuple(CANDIDATES)
    for name in names:
        check_choice("candidates", name, CANDIDATES)
    choice.out.mkdir(parents=True, exist_ok=True)
    wanted = {name: getattr(choice, name) for name in ("n", "chains", "seed")}
    rows = stored(choice.out / "choice.csv", wanted)
    done = {(row["problem"], row["width"], row["way"]) for row in rows}
    device = jax.devices()[0].device_kind
    for width, problem_name in tqdm(
        list(itertools.product(choice.widths, choice.problems)), unit="posterior"
    ):
        problem = make_problem(
            problem_name, n=choice.n, seed=choice.seed, num_test=64, num_far=64, grid_size=8
        )
        model = make_model(problem, width=width)
        job = Job(problem_name, width, choice.n, choice.chains)
        for name in names:
            if (problem_name, width, name) in done:
                continue
            way = isounc_way(problem, model, job, Options(), **CANDIDATES[name])
            row = {**job._asdict(), "seed": choice.seed, "way": name, **measure(way, choice.seed)}
            rows.append(row | {"device": device, "jax": jax.__version__})
            tqdm.write(line(row))
            write(rows, choice.out / "choice.csv")
    print(ranking(rows))
    (choice.out / "choice.txt").write_text(ranking(rows) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Choice, description=__doc__))
