"""Calibration: is the reference sampler right? Two tests of it that need no other sampler to compare with.

Simulation-based calibration draws parameters from the prior and data from them, samples the posterior of each data set
and ranks the parameters among its draws: a correct sampler gives uniform ranks, for predictions at fixed locations, for
the log likelihood of the data and for the log prior. Geweke's joint-distribution test alternates the sampler's
transitions with redraws of the data and compares moments with direct draws. Both repeat on the first case with planted
faults (controls), which they have to find. The verdict of each quantity is by its p-value, corrected for how many
there are (Holm). The run folder holds sbc.csv, geweke.csv, gates.csv (every reference that failed its gate; all
replications are ranked) and figures; a killed run goes on where it was.

    uv run experiments/calibration.py                              minutes: few replications of the smallest models
    uv run experiments/calibration.py --preset paper               all cases, 400 replications each
    uv run experiments/calibration.py --sampler hmc nuts --cases logistic binary4 --out runs/mine
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from tqdm import tqdm

from isounc import sweep
from isounc.checks import check_choice, check_count, check_real
from isounc.models import Model, make_model
from isounc.problems import Problem, make_problem
from isounc.runs.command import command, settings_of_run
from isounc.runs.folder import Record, RunFolder
from isounc.runs.provenance import provenance
from isounc.sampling.kernels import SAMPLERS
from isounc.sampling.settings import SamplerSettings
from isounc.studies.calibration import report
from isounc.studies.calibration.cell import FAULTS, quantity_names, rank_batch
from isounc.studies.calibration.geweke import GewekeSettings, geweke
from isounc.studies.calibration.report import Job
from isounc.studies.calibration.uniformity import check_bins


@dataclass(frozen=True)
class Case:
    """A model, and the problem whose inputs and likelihood it takes; labels come from the prior."""

    problem: str
    """Name in the registry of problems."""
    depth: int
    """Hidden layers."""
    width: int
    """Hidden units per layer."""
    step_size: float
    """Leapfrog step of Geweke's test, in prior standard deviations."""
    label_noise: float = 1.0
    """Regression: multiplies the problem's noise sd."""


CASES = {
    "logistic": Case("linear", 0, 1, 0.3),
    "binary4": Case("xor", 1, 4, 0.25),
    "softmax8": Case("clusters3", 1, 8, 0.25),
    "regression8": Case("nonlinear_regression", 1, 8, 0.06, label_noise=2.5),
}


@dataclass(frozen=True)
class Settings:
    """Settings of the calibration experiment; every one of them is stored with the run."""

    preset: Literal["quick", "paper"] = "quick"
    """Defaults of the other settings: quick (minutes) or paper (the committed evidence)."""
    sampler: tuple[str, ...] = ("hmc",)
    """Samplers to check: hmc nuts."""
    cases: tuple[str, ...] = ("logistic", "binary4")
    """Models: logistic (logistic regression, 2 inputs), binary4 (MLP of width 4, 2 classes), softmax8 (width 8, 3
    classes), regression8 (width 8, 1 input, noise sd 0.5)."""
    controls: tuple[str, ...] = ("prior",)
    """Faults planted in the first case, which must be found: prior (variance for sd), data (a quarter of the rows
    counted twice; 100 replications are too few for SBC to see it, 400 are enough)."""
    n: int = 20
    """Rows of data of a replication."""
    prior_sd: float = 2.0
    """Prior standard deviation."""
    num_replications: int = 100
    """R, data sets drawn from the prior for each case; rounded up to whole batches."""
    batch: int = 50
    """Replications that are sampled together, in one program."""
    num_ranked: int = 99
    """Posterior draws that a rank is taken among (ranks are 0 to this), evenly spaced over the chains."""
    num_bins: int = 10
    """Bins of the rank histograms."""
    level: float = 0.01
    """Chance of one or more false alarms in a family: all quantities of all cases, for one test and sampler."""
    sampling: SamplerSettings = field(default_factory=SamplerSettings)
    """How posteriors are sampled (its own sampler is replaced by those above)."""
    geweke: GewekeSettings = field(default_factory=GewekeSettings)
    """Size of Geweke's test."""
    seed: int = 0
    """Decides every random number."""
    cache: str = "~/.cache/isounc/jax"
    """Folder of compiled programs that later runs reuse; empty for none."""
    out: str = ""
    """Run folder; empty is runs/calibration-PRESET."""


PRESETS = {
    "quick": Settings(geweke=GewekeSettings(num_iterations=1000)),
    "paper": Settings(
        preset="paper",
        cases=tuple(CASES),
        controls=("prior", "data"),
        num_replications=400,
        num_bins=20,
        sampling=SamplerSettings(max_draws=4000),
        geweke=GewekeSettings(num_iterations=4000),
    ),
}

NOT_PART_OF_A_RUN = ("cache", "out")
"""Settings that change no number and may differ when a run is resumed."""


def check(settings: Settings) -> None:
    """Refuse what cannot be run before anything is computed."""
    for argument in ("sampler", "cases"):
        if not getattr(settings, argument):
            raise ValueError(f"{argument} must have at least one value.")
    for sampler in settings.sampler:
        check_choice("sampler", sampler, SAMPLERS)  # Geweke's test needs transitions
    for case in settings.cases:
        check_choice("cases", case, CASES)
    for fault in settings.controls:
        check_choice("controls", fault, FAULTS.keys() - {"none"})
    for argument, least in (("n", 4), ("num_replications", 20), ("batch", 1), ("seed", 0)):
        check_count(argument, getattr(settings, argument), least)
    check_count("num_ranked", settings.num_ranked, 1, settings.sampling.num_kept)
    check_real("prior_sd", settings.prior_sd, positive=True)
    check_bins(settings.num_bins, settings.num_replications, settings.num_ranked)
    if not 0.001 <= settings.level < 1:
        raise ValueError(f"level must be from 0.001 to below 1; got {settings.level}")


def jobs_of(settings: Settings) -> list[Job]:
    """Every sampler on every case, and on the first case with each planted fault."""
    return [
        Job(sampler, case, control)
        for sampler in settings.sampler
        for case in settings.cases
        for control in ("none", *(settings.controls if case == settings.cases[0] else ()))
    ]


def template(case: Case, settings: Settings) -> tuple[Problem, Model]:
    """Inputs of a problem, two locations near them and two far from them, and the model."""
    source = make_problem(
        case.problem, n=settings.n, seed=settings.seed, label_noise=case.label_noise,
        num_test=2, num_far=2, grid_size=2,
    )  # fmt: skip
    query = np.concatenate([source.regions["test"], source.regions["far"]])
    problem = Problem.from_arrays(
        source.X, source.y, likelihood=source.likelihood, noise_sd=source.noise_sd,
        num_classes=source.num_classes, regions={"query": query}, name=case.problem,
    )  # fmt: skip
    return problem, make_model(problem, width=case.width, depth=case.depth)


def compute(folder: RunFolder, settings: Settings) -> None:
    """Do what the run folder lacks, a record for each batch of replications and for each of Geweke's tests."""
    num_batches = -(-settings.num_replications // settings.batch)
    jobs = jobs_of(settings)
    root = jax.random.key(settings.seed)
    with tqdm(total=len(jobs) * (num_batches + 1), unit="batch", dynamic_ncols=True) as bar:
        for job in jobs:
            problem, model = template(CASES[job.case], settings)
            sampling = dataclasses.replace(settings.sampling, sampler=job.sampler)

            def tell(what: str, done: int, total: int, job: Job = job) -> None:
                bar.set_description(f"{job.title}: {what} {done}/{total}")

            for batch in range(num_batches):
                name = f"sbc-{job.name}-{batch:04d}"
                if not folder.has(name):
                    # The same data for every sampler and control: the case and the batch alone decide them.
                    key = jax.random.fold_in(root, zlib.crc32(f"{job.case}/{batch}".encode()))
                    ranked = rank_batch(
                        list(jax.random.split(key, settings.batch)), problem, model,
                        prior_sd=settings.prior_sd, settings=sampling,
                        num_ranked=settings.num_ranked, fault=job.control, progress=tell,
                    )  # fmt: skip
                    meta = {
                        "quantities": list(quantity_names(problem)),
                        "gates": [gate._asdict() for gate in ranked.gates],
                        "num_redrawn": ranked.num_redrawn,
                    }
                    arrays = {"ranks": ranked.ranks, "ess": ranked.ess}
                    folder.write(Record(name, meta, arrays))
                bar.update()
            name = f"geweke-{job.name}"
            if not folder.has(name):
                tell("Geweke's test", 0, settings.geweke.num_iterations)
                result = geweke(
                    jax.random.fold_in(root, zlib.crc32(f"geweke/{job.case}".encode())),
                    problem, model, prior_sd=settings.prior_sd, sampler=job.sampler,
                    step_size=CASES[job.case].step_size, settings=settings.geweke,
                    fault=job.control,
                )  # fmt: skip
                meta = {name: getattr(result, name) for name in ("acceptance", "num_chains")}
                meta["moments"] = list(result.moments)
                arrays = {k: v for k, v in result._asdict().items() if k not in meta}
                folder.write(Record(name, meta, arrays))
            bar.update()


def run(settings: Settings) -> Path:
    """Run what is missing of the experiment and write its tables and figures."""
    check(settings)
    out = Path(settings.out or f"runs/calibration-{settings.preset}")
    sweep.use_compilation_cache(settings.cache)
    stored = settings_of_run(settings, NOT_PART_OF_A_RUN)
    started = time.perf_counter()
    folder = RunFolder.open(out, stored)
    compute(folder, settings)
    ranked = {"num_ranked": settings.num_ranked, "num_bins": settings.num_bins}
    found = report.gather(folder, jobs_of(settings), **ranked, level=settings.level)
    report.write_tables(folder, found)
    report.write_figures(folder, found, **ranked, level=settings.level)
    seconds = round(time.perf_counter() - started, 1)
    folder.write_info(
        provenance() | {"checks": found.summary, "last_session": {"seconds": seconds}}
    )
    print("\n" + report.summary_text(found))
    print(f"\n{seconds / 60:.1f} minutes; p-values are corrected for their number (Holm). {out}")
    return out


if __name__ == "__main__":
    command(PRESETS, run, description=__doc__, parts="batches")
