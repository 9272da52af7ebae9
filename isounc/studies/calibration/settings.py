"""Settings and cells of the calibration study."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from isounc.checks import check_choice, check_count, check_real
from isounc.problems import MOST_ROWS
from isounc.runs.executors import Batch, Group
from isounc.runs.settings import MOST_CELLS, MOST_SEED, RunSettings
from isounc.sampling.kernels import SAMPLERS
from isounc.sampling.settings import (
    COORDINATE_NAMES,
    SAMPLER_NAMES,
    UNSUITED,
    GateSettings,
    SamplerSettings,
)
from isounc.studies.calibration.geweke import GewekeSettings
from isounc.studies.calibration.sbc import FAULTS
from isounc.studies.calibration.uniformity import check_bins


@dataclass(frozen=True)
class Case:
    """A model and the problem that gives its inputs and likelihood; labels come from the prior."""

    problem: str
    """Name of the problem in the registry."""
    depth: int
    """Hidden layers."""
    width: int
    """Hidden units per layer."""
    step_size: float
    """Leapfrog step of Geweke's test, in prior standard deviations."""
    label_noise: float = 1.0
    """Factor on the noise sd of a regression problem."""
    origin: float = 0.0
    """What is added to the inputs, whose sd is about 1."""
    has_geweke: bool = True
    """Whether Geweke's test is run: not where labels of another draw lie 10^4 posterior standard
    deviations away, as float32 has no digits there, nor where a fixed step would have to be so
    short that nothing moves."""
    prior_factor: float = 1.0
    """Factor on the prior standard deviation."""
    parameterisation: str = "ntk"
    """Where 1/sqrt(fan-in) sits (`isounc.models.PARAMETERISATIONS`)."""


CASES = {
    "logistic": Case("linear", 0, 1, 0.3),
    "binary4": Case("xor", 1, 4, 0.25),
    "softmax8": Case("clusters3", 1, 8, 0.25),
    "regression8": Case("nonlinear_regression", 1, 8, 0.06, label_noise=2.5),
    "line2000": Case("linear_regression", 0, 1, 0.06, origin=2000.0, has_geweke=False),
    "regression8at30": Case("nonlinear_regression", 1, 8, 0.06, label_noise=2.5, origin=30.0),
    "wide8": Case(
        "linear", 1, 8, 0.01, has_geweke=False, prior_factor=5.0, parameterisation="standard"
    ),
}
SAMPLER_SETTINGS: dict[str, dict[str, Any]] = {
    "chees": {"num_chains": 16, "target_acceptance": 0.65},
    "adjusted_mclmc": {"target_acceptance": 0.9},
}
"""What samplers need to be as they are meant, in place of the run's settings."""
WHITENED_STEP = 0.2
"""Leapfrog step of Geweke's test in coordinates that whiten the posterior."""


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of the calibration study."""

    samplers: tuple[str, ...] = tuple(SAMPLER_NAMES)
    """Samplers to check, e.g. hmc nuts; Geweke's test has none of tempered_smc, which is no
    transition."""
    coordinates: tuple[str, ...] = ("auto",)
    """Coordinates to check, the first with every sampler, the others with the first sampler."""
    cases: tuple[str, ...] = ("logistic", "binary4")
    """Models: logistic (logistic regression, 2 inputs), binary4 (MLP of width 4, 2 classes),
    softmax8 (width 8, 3 classes), regression8 (width 8, 1 input, noise sd 0.5); and uncentred:
    line2000 (linear regression on inputs about 2000), regression8at30; and with a wide prior:
    wide8 (width 8, 2 classes, standard parameterisation, five times the prior sd)."""
    controls: tuple[str, ...] = ("prior",)
    """Faults planted in the first case, which the tests must find: prior (variance for sd), data (a
    quarter of the rows counted twice; SBC needs about 400 replications to find it)."""
    n: int = 20
    """Rows of data in a replication."""
    prior_sd: float = 2.0
    """Prior standard deviation."""
    num_replications: int = 100
    """Data sets drawn from the prior for each case, rounded up to whole batches."""
    batch: int = 50
    """Replications that are sampled together, in one program."""
    num_ranked: int = 99
    """Posterior draws among which the truth is ranked, evenly spaced over the chains; ranks go from
    0 to this."""
    num_bins: int = 10
    """Bins of the rank histograms."""
    level: float = 0.01
    """Chance of one or more false alarms in a family: all quantities of all cases, for one test of
    one sampler."""
    sampling: SamplerSettings = field(default_factory=SamplerSettings)
    """Settings of the samplers; each of `samplers` takes the place of its sampler."""
    geweke: GewekeSettings = field(default_factory=GewekeSettings)
    """Size of Geweke's test."""
    seed: int = 0
    """Seed of all random numbers."""


# Short chains, whose gate asks for what the ranks need: twice as many effective draws as are ranked.
# Nobody asks for their variances, so tails may be heavy.
SAMPLING = SamplerSettings(
    num_warmup=200,
    num_draws=250,
    max_draws=250,
    gate=GateSettings(ess_min=200, rhat_max=1.05, heavy_tails_max=1.0),
)

PRESETS = {
    "quick": Settings(
        cases=("logistic", "line2000"),
        num_replications=50,
        sampling=SAMPLING,
        geweke=GewekeSettings(num_iterations=200, num_direct=20_000),
    ),
    "standard": Settings(
        preset="standard",
        coordinates=COORDINATE_NAMES,
        cases=("logistic", "binary4", "line2000", "regression8at30"),
        sampling=SAMPLING,
        geweke=GewekeSettings(num_iterations=500),
    ),
    "paper": Settings(
        preset="paper",
        coordinates=COORDINATE_NAMES,
        cases=tuple(CASES),
        controls=("prior", "data"),
        num_bins=20,
        sampling=SAMPLING,
        geweke=GewekeSettings(num_iterations=1000),
    ),
}


class Job(NamedTuple):
    """One sampler on one case, with a planted fault or none."""

    sampler: str
    """Name of the sampler."""
    coordinates: str
    """Coordinates in which it samples."""
    case: str
    """Name of the case."""
    control: str
    """Name of the planted fault, or `none`."""

    @property
    def name(self) -> str:
        """Part of the name of a record."""
        return "-".join(self)

    @property
    def title(self) -> str:
        """The job in words."""
        planted = "" if self.control == "none" else f", planted fault: {self.control}"
        return f"{self.case} ({self.sampler}, {self.coordinates}{planted})"

    @property
    def has_geweke(self) -> bool:
        """Whether the case has Geweke's test, and the sampler is a transition, which that needs."""
        return self.sampler in SAMPLERS and CASES[self.case].has_geweke

    @property
    def family(self) -> tuple[str, ...]:
        """Jobs whose p-values are corrected together."""
        return self[:2] if self.control == "none" else tuple(self)


def check(settings: Settings) -> None:
    """Check that settings can be run.

    Raises
    ------
    ValueError
        If a name is unknown, a list is empty or a number is out of its range.
    """
    for argument in ("samplers", "coordinates", "cases"):
        if not getattr(settings, argument):
            raise ValueError(f"{argument} must have at least one value, got none")
    for sampler in settings.samplers:
        check_choice("samplers", sampler, SAMPLER_NAMES)
    for coordinates in settings.coordinates:
        check_choice("coordinates", coordinates, COORDINATE_NAMES)
    for case in settings.cases:
        check_choice("cases", case, CASES)
    for fault in settings.controls:
        check_choice("controls", fault, FAULTS.keys() - {"none"})
    for argument, least, most in (
        ("n", 4, MOST_ROWS),
        ("num_replications", 20, MOST_CELLS),
        ("batch", 1, 10**4),
        ("seed", 0, MOST_SEED),
    ):
        check_count(argument, getattr(settings, argument), least, most)
    check_count("num_ranked", settings.num_ranked, 1, settings.sampling.num_kept)
    check_real("prior_sd", settings.prior_sd, positive=True)
    check_bins(settings.num_bins, settings.num_replications, settings.num_ranked)
    if not 0.001 <= settings.level < 1:
        raise ValueError(f"level must be at least 0.001 and below 1, got {settings.level}")


def jobs_of(settings: Settings) -> list[Job]:
    """Every sampler in the first coordinates, and the first sampler in the others, on every case.

    Each fault is planted in the first case of the first sampler.
    """
    first, *others = settings.coordinates
    pairs = [(sampler, first) for sampler in settings.samplers]
    pairs += [(settings.samplers[0], coordinates) for coordinates in others]
    jobs = [
        Job(sampler, coordinates, case, "none")
        for sampler, coordinates in pairs
        if UNSUITED.get(sampler, {}).get("coordinates") != coordinates
        for case in settings.cases
    ]
    return jobs + [Job(*jobs[0][:3], control) for control in settings.controls]


class Cell(NamedTuple):
    """A batch of replications of simulation-based calibration, or Geweke's test."""

    job: Job
    """The sampler, the case and the planted fault."""
    batch: int | None
    """Number of the batch of replications; None for Geweke's test."""

    @property
    def name(self) -> str:
        """Name of the record."""
        if self.batch is None:
            return f"geweke-{self.job.name}"
        return f"sbc-{self.job.name}-{self.batch:04d}"


def plan(settings: Settings) -> list[Group]:
    """Make a group of each job: its batches of replications, then Geweke's test."""
    num_batches = -(-settings.num_replications // settings.batch)
    return [
        tuple(
            Batch(f"{job.title}{'' if i is not None else ', Geweke'}", (Cell(job, i),))
            for i in (*range(num_batches), *([None] if job.has_geweke else []))
        )
        for job in jobs_of(settings)
    ]
