"""Agreement: does isounc's sampler find the same posterior as NumPyro's NUTS, within Monte Carlo error?

Protocol, fixed before the run. Every cell (problem x width) is an MLP of one hidden layer in NTK parameterisation,
prior sd 2, n = 100, float32. NumPyro samples it as a NumPyro model of its own (priors, forward pass, likelihood and
link are written again in isounc/studies/agreement/cell.py), so that densities and predictions are compared, not
samplers alone. Both run four chains and go on until the convergence gate of isounc passes and the variance is known to
3% (NumPyro 4%: its draws cost more), or their draws run out; what is not in the settings is their default. Compared are
predictions at up to 64 locations near the data (test), on a grid and far away: mean and variance at each (z-scores and
bounds of `isounc.references.compare`), and in each region the mean prediction and the summed variance (`level`,
`var_sum`), with the Monte Carlo errors of both.

A cell where either side fails its gate is "not compared": it is shown with its z-scores and never counted as
agreement. Over the compared cells the verdict is by the z-scores of level and var_sum, at a level of 1% in all: half
of it for single z-scores, half for sums of their squares over cells (isounc/studies/agreement/report.py). Controls give
isounc a wrong prior, which has to be found. The run folder holds agreement.csv (a row a cell), regions.csv,
tests.csv, summary.csv and the figure; a killed run goes on where it was.

    uv run experiments/agreement.py                                minutes: two problems, widths 2 and 8
    uv run experiments/agreement.py --preset paper                 eight problems, widths 2 to 128
    uv run experiments/agreement.py --problems moons --widths 32 --controls --out runs/mine
"""

from __future__ import annotations

import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jax
from tqdm import tqdm

from isounc import sweep
from isounc.checks import check_choice, check_count, check_real
from isounc.models import ACTIVATIONS, PARAMETERISATIONS, make_model
from isounc.problems import PROBLEMS, make_problem
from isounc.runs.command import command, settings_of_run
from isounc.runs.folder import RunFolder
from isounc.runs.provenance import provenance
from isounc.sampling.settings import SamplerSettings
from isounc.studies.agreement import report
from isounc.studies.agreement.cell import FAULTS, NutsSettings, isounc_side, numpyro_side
from isounc.studies.agreement.report import Cell, record_name
from isounc.studies.scaling.paper import TABLE1

PAPER = tuple(TABLE1)
"""The paper's problems."""

LOCATIONS = {"num_test": 64, "num_far": 64, "grid_size": 8}
"""At most as many a region as isounc keeps every draw of, so that both sides have the same ones."""


@dataclass(frozen=True)
class Settings:
    """Settings of the agreement experiment; every one of them is stored with the run."""

    preset: Literal["quick", "paper"] = "quick"
    """Defaults of the other settings: quick (minutes) or paper (the committed evidence)."""
    problems: tuple[str, ...] = ("xor", "clusters3")
    """Problems whose posteriors are sampled twice."""
    widths: tuple[int, ...] = (2, 8)
    """Hidden units per layer."""
    controls: tuple[str, ...] = ("prior",)
    """Faults planted in what isounc is given, which must be found: prior (prior sd a tenth too wide); may be empty."""
    depth: int = 1
    """Hidden layers."""
    activation: str = "tanh"
    """tanh, relu, gelu or silu."""
    parameterisation: str = "ntk"
    """ntk, fan_in or standard."""
    prior_sd: float = 2.0
    """Prior standard deviation."""
    n: int = 100
    """Training examples."""
    level: float = 0.01
    """Chance that two right samplers are said to disagree."""
    isounc: SamplerSettings = field(
        default_factory=lambda: SamplerSettings(num_draws=2000, max_draws=8000)
    )
    """How isounc samples; its gate holds for both sides."""
    numpyro: NutsSettings = field(default_factory=NutsSettings)
    """How NumPyro samples."""
    seed: int = 0
    """Decides the data and every random number."""
    cache: str = "~/.cache/isounc/jax"
    """Folder of compiled programs that later runs reuse; empty for none."""
    out: str = ""
    """Run folder; empty is runs/agreement-PRESET."""


PRESETS = {
    "quick": Settings(),
    "paper": Settings(preset="paper", problems=PAPER, widths=(2, 8, 32, 128)),
}

NOT_PART_OF_A_RUN = ("cache", "out")
"""Settings that change no number and may differ when a run is resumed."""


def check(settings: Settings) -> None:
    """Refuse what cannot be run before anything is computed."""
    for argument in ("problems", "widths"):
        values = getattr(settings, argument)
        if not values or len(set(values)) < len(values):
            raise ValueError(
                f"{argument} must have at least one value and none twice; got {values}"
            )
    for problem in settings.problems:
        check_choice("problems", problem, PROBLEMS)
    for width in settings.widths:
        check_count("widths", width, 1)
    for fault in settings.controls:
        check_choice("controls", fault, FAULTS.keys() - {"none"})
    check_choice("activation", settings.activation, ACTIVATIONS)
    check_choice("parameterisation", settings.parameterisation, PARAMETERISATIONS)
    check_real("prior_sd", settings.prior_sd, positive=True)
    for argument, least in (("depth", 0), ("n", 2), ("seed", 0)):
        check_count(argument, getattr(settings, argument), least)
    check_count("isounc.locations_per_region", settings.isounc.locations_per_region, 64)
    if not 0 < settings.level < 1:
        raise ValueError(f"level must be between 0 and 1; got {settings.level}")


def compute(folder: RunFolder, settings: Settings) -> None:
    """Sample what the run folder lacks: for each cell NumPyro once, isounc without a fault and with each."""
    root = jax.random.key(settings.seed)
    controls = ("none", *settings.controls)
    # Width by width: problems of one shape share their programs.
    cells = [Cell(problem, width) for width in settings.widths for problem in settings.problems]
    with tqdm(total=len(cells) * (1 + len(controls)), unit="posterior", dynamic_ncols=True) as bar:
        for cell in cells:
            problem = make_problem(cell.problem, n=settings.n, seed=settings.seed, **LOCATIONS)
            model = make_model(
                problem, width=cell.width, depth=settings.depth, activation=settings.activation,
                parameterisation=settings.parameterisation,
            )  # fmt: skip
            jobs = [("numpyro", "none"), *(("isounc", control) for control in controls)]
            for side, control in jobs:
                name = record_name(side, cell, control)
                if not folder.has(name):
                    bar.set_description(name)

                    def tell(what: str, done: int, total: int, name: str = name) -> None:
                        bar.set_description(f"{name}: {what} {done}/{total}")

                    # Of what is sampled, not of where it stands in the run.
                    key = jax.random.fold_in(root, zlib.crc32(name.encode()))
                    shared = {"prior_sd": settings.prior_sd, "key": key, "progress": tell}
                    if side == "numpyro":
                        bounds = settings.isounc.gate
                        sampled = numpyro_side(
                            problem, model, settings=settings.numpyro, bounds=bounds, **shared
                        )
                    else:
                        sampled = isounc_side(
                            problem, model, settings=settings.isounc, fault=control, **shared
                        )
                    folder.write(sampled.to_record(name))
                    passed = "passed" if sampled.gate.passed else "FAILED"
                    reasons = "".join(f"; {reason}" for reason in sampled.gate.reasons)
                    bar.write(f"{name}: gate {passed}{reasons}; {sampled.seconds:.1f} s")
                bar.update()


def run(settings: Settings) -> bool:
    """Run what is missing of the experiment, write its tables and figures, and say whether all is as it should be."""
    check(settings)
    out = Path(settings.out or f"runs/agreement-{settings.preset}")
    sweep.use_compilation_cache(settings.cache)
    stored = settings_of_run(settings, NOT_PART_OF_A_RUN)
    started = time.perf_counter()
    # What was sampled can be judged again at another level.
    folder = RunFolder.open(out, stored, identity=("level",))
    compute(folder, settings)
    cells = [Cell(problem, width) for problem in settings.problems for width in settings.widths]
    found = report.gather(folder, cells, settings.controls, level=settings.level)
    report.write_tables(folder, found)
    report.write_figures(folder, found, level=settings.level)
    seconds = round(time.perf_counter() - started, 1)
    folder.write_info(
        provenance() | {"checks": found.summary, "last_session": {"seconds": seconds}}
    )
    print("\n" + report.summary_text(found))
    print(f"\n{seconds / 60:.1f} minutes; p-values are corrected for their number (Holm). {out}")
    return all(line["verdict"] == line["expected"] for line in found.summary)


if __name__ == "__main__":
    command(PRESETS, run, description=__doc__, parts="posteriors")
