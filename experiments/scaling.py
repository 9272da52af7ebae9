"""Scaling curves: how well the isotropic estimate and its rivals track MCMC variance as the model grows.

Trains MLPs of increasing width on synthetic problems, samples their posteriors with HMC, computes every estimate and
correlates it with the posterior predictive variance, cell by cell, with intervals over seeds. The run folder holds
records, tables, figures and report.html; a killed run goes on where it was.

    uv run experiments/scaling.py                                  three problems, two seeds: a few minutes
    uv run experiments/scaling.py --preset standard                all problems, widths to 256, three seeds
    uv run experiments/scaling.py --preset paper                   the paper's problems, widths to 512, ten seeds
    uv run experiments/scaling.py --problems xor moons --widths 8 64 --num-seeds 5 --out runs/mine
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jax

from isounc import sweep
from isounc.checks import check_choice, check_real
from isounc.models import ACTIVATIONS, PARAMETERISATIONS
from isounc.problems import PROBLEMS
from isounc.runs.command import command, settings_of_run
from isounc.runs.folder import RunFolder
from isounc.runs.provenance import provenance
from isounc.sampling.posterior import SamplerSettings
from isounc.studies.scaling.cell import EvaluationSettings
from isounc.studies.scaling.comparisons import RESULT_COLUMNS
from isounc.studies.scaling.paper import TABLE1
from isounc.studies.scaling.results import Results
from isounc.studies.scaling.summary import SUMMARY_COLUMNS, summarise

PAPER = tuple(TABLE1)
"""The paper's problems."""


@dataclass(frozen=True)
class Settings:
    """Settings of the scaling experiment; every one of them is stored with the run."""

    preset: Literal["quick", "standard", "paper"] = "quick"
    """Defaults of the other settings: quick (minutes), standard (all problems), paper (its eight, ten seeds)."""
    problems: tuple[str, ...] = ("xor", "moons", "rings")
    """Problems, by name: linear xor rings moons clusters3 spirals3 rings3 linear_regression nonlinear_regression
    breast_cancer wine digits_3v8."""
    widths: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    """Hidden units per layer."""
    depths: tuple[int, ...] = (1,)
    """Hidden layers; 0 is logistic, softmax or linear regression."""
    activations: tuple[str, ...] = ("tanh",)
    """tanh, relu, gelu or silu."""
    parameterisations: tuple[str, ...] = ("ntk",)
    """ntk, fan_in or standard (under standard the function's prior variance grows with the width)."""
    prior_sds: tuple[float, ...] = (2.0,)
    """Prior standard deviations."""
    num_seeds: int = 2
    """Seeds 0, 1, ...: each draws new data and new starting points. Intervals are over seeds."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """What is done in every cell."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of sampling and estimates; the MAP is always found in float64 where the device has it."""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Where to run; auto is JAX's choice."""
    workers: int = 0
    """Worker processes; 0 is one a core on CPU (at most 8) and one on GPU and TPU."""
    cache: str = "~/.cache/isounc/jax"
    """Folder of compiled programs that later runs reuse; empty for none."""
    out: str = ""
    """Run folder; empty is runs/scaling-PRESET."""
    dry_run: bool = False
    """List the cells with an estimate of time and memory, and stop."""


PRESETS = {
    "quick": Settings(),
    "standard": Settings(
        preset="standard",
        problems=tuple(PROBLEMS),
        widths=(2, 4, 8, 16, 32, 64, 128, 256),
        num_seeds=3,
        evaluation=EvaluationSettings(sampler=SamplerSettings(max_draws=2000)),
    ),
    "paper": Settings(
        preset="paper",
        problems=PAPER,
        widths=(2, 4, 8, 16, 32, 64, 128, 256, 512),
        num_seeds=10,
        evaluation=EvaluationSettings(sampler=SamplerSettings(num_draws=2000, max_draws=8000)),
    ),
}

NOT_PART_OF_A_RUN = ("workers", "cache", "out", "dry_run")
"""Settings that change no number and may differ when a run is resumed."""


def check(settings: Settings) -> None:
    """Refuse what cannot be run before anything is computed."""
    for argument, values, choices in (
        ("problems", settings.problems, PROBLEMS),
        ("activations", settings.activations, ACTIVATIONS),
        ("parameterisations", settings.parameterisations, PARAMETERISATIONS),
    ):
        for value in values:
            check_choice(argument, value, choices)
    for argument in (
        "problems", "widths", "depths", "activations", "parameterisations", "prior_sds",
    ):  # fmt: skip
        if not getattr(settings, argument):
            raise ValueError(f"{argument} must have at least one value.")
    for prior_sd in settings.prior_sds:
        check_real("prior_sds", prior_sd, positive=True)
    for argument, least in (("num_seeds", 1), ("workers", 0)):
        if getattr(settings, argument) < least:
            raise ValueError(
                f"{argument} must be at least {least}; got {getattr(settings, argument)}."
            )


def dry_run(groups: list[sweep.Group], settings: Settings, workers: int) -> None:
    """Print the batches with a rough estimate of time and memory."""
    costs = []
    print(f"{'problem':<22}{'width':>6}{'depth':>6}{'seeds':>6}{'seconds':>9}{'MiB':>7}")
    for group in groups:
        for batch in group:
            cost = sweep.estimate_cost(batch, settings.evaluation)
            costs.append(cost)
            print(
                f"{batch[0].problem:<22}{batch[0].width:>6}{batch[0].depth:>6}{len(batch):>6}"
                f"{cost.seconds:>9.1f}{cost.mebibytes:>7.0f}"
            )
    compiling = sweep.COMPILE_SECONDS * len(groups)
    computing = sum(c.seconds for c in costs)
    print(
        f"\n{sum(len(b) for g in groups for b in g)} cells in {len(costs)} batches and {len(groups)} shapes; "
        f"about {(compiling + computing) / workers / 60:.0f} minutes on {workers} worker(s) "
        f"({compiling / workers / 60:.1f} of them compiling, none where the cache has the programs); "
        f"about {600 + max(c.mebibytes for c in costs):.0f} MiB per worker.\n"
        "These are forecasts for CPU cores of a small server; a posterior that is slow to mix takes up to "
        f"{settings.evaluation.sampler.max_draws // settings.evaluation.sampler.num_draws} times as long."
    )


def run(settings: Settings) -> Path:
    """Run what is missing of the experiment and write its tables, figures and report."""
    check(settings)
    out = Path(settings.out or f"runs/scaling-{settings.preset}")
    sweep.use_compilation_cache(settings.cache)
    if settings.device != "auto":
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(settings.device, settings.device))
    on_cpu = jax.default_backend() == "cpu"
    workers = settings.workers or (min(8, os.cpu_count() or 1) if on_cpu else 1)
    batches = sweep.make_batches(
        problems=settings.problems,
        widths=settings.widths,
        depths=settings.depths,
        activations=settings.activations,
        parameterisations=settings.parameterisations,
        prior_sds=settings.prior_sds,
        num_seeds=settings.num_seeds,
    )
    groups = sweep.make_groups(batches, settings.evaluation)
    workers = min(workers, len(groups))
    if settings.dry_run:
        dry_run(groups, settings, workers)
        return out

    started = time.perf_counter()
    stored = settings_of_run(settings, NOT_PART_OF_A_RUN)
    folder = RunFolder.open(out, stored)
    work = functools.partial(
        sweep.run_group,
        out=str(out),
        settings_dict=stored,
        settings=settings.evaluation,
        dtype=settings.dtype,
    )
    compiled = sweep.run_sweep(
        groups,
        work,
        settings=settings.evaluation,
        # On CPU also a single worker is a process of its own, so that numbers do not depend on how many there are.
        executor="processes" if on_cpu else "serial",
        workers=workers,
    )
    records = [folder.read(cell.name) for batch in batches for cell in batch]
    rows = [row for record in records if record for row in record.meta["rows"]]
    folder.write_table("results.csv", rows, RESULT_COLUMNS)
    folder.write_table("summary.csv", summarise(rows), SUMMARY_COLUMNS)
    gates = [record.meta["gate"]["passed"] for record in records if record]
    folder.write_info(
        provenance()
        | {
            "checks": {"cells": len(gates), "passed_gate": sum(gates)},
            "last_session": {
                "workers": workers,
                "seconds": round(time.perf_counter() - started, 1),
                "compiled": sum(c.count for c in compiled),
                "compilation_cache_hits": sum(c.cached for c in compiled),
                "compilation_seconds": round(sum(c.seconds for c in compiled), 1),
                "peak_mebibytes": round(sweep.peak_mebibytes(), 1),
            },
        }
    )
    print("Figures and report ...", flush=True)
    from isounc.studies.scaling import (
        report,  # not above, where every worker would import Matplotlib with it
    )

    results = Results.of(folder)
    page = report.make_report(results)
    print(report.summary_table(results))
    seconds = time.perf_counter() - started
    print(
        f"\n{sum(gates)} of {len(gates)} cells passed the gate; {seconds / 60:.1f} minutes, "
        f"{sum(c.count for c in compiled)} programs compiled, "
        f"{sum(c.cached for c in compiled)} taken from the cache, "
        f"{sweep.peak_mebibytes():.0f} MiB in the largest process.\nReport: {page}"
    )
    return out


if __name__ == "__main__":
    command(PRESETS, run, description=__doc__, parts="cells")
