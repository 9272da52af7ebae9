"""Settings and cells of the bank study: the references to make, by name."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from isounc.checks import check_choice, check_count, check_real
from isounc.models import ACTIVATIONS, PARAMETERISATIONS
from isounc.problems import MOST_ROWS, PROBLEMS
from isounc.references import Thinning
from isounc.runs.executors import Batch, Group, grouped
from isounc.runs.settings import MOST_SEED, RunSettings
from isounc.sampling.settings import SamplerSettings
from isounc.studies.scaling.paper import TABLE1

# Batches of 500 draws are far longer than the autocorrelation of a posterior that passes the gate,
# and there are at least 32 of them, so that standard errors are known to an eighth. Steps are
# shorter than by default: a bank is made once, and no narrow part of a posterior may be missed.
SAMPLING = SamplerSettings(
    num_warmup=1000,
    num_draws=4000,
    max_draws=32000,
    target_acceptance=0.9,
    block=500,
    num_kept=Thinning.max_draws,
    check_modes=True,
)


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of the bank study; each reference is stored with those that decide its numbers."""

    problems: tuple[str, ...] = ("xor", "linear_regression")
    """Problems whose posteriors are sampled."""
    widths: tuple[int, ...] = (8,)
    """Hidden units per layer."""
    parameterisations: tuple[str, ...] = ("ntk",)
    """Parameterisations: ntk, fan_in or standard."""
    logistic: tuple[str, ...] = ("linear",)
    """Binary problems with two inputs whose logistic regression is solved by quadrature."""
    gaussian: tuple[str, ...] = ("linear_regression",)
    """Regression problems whose Bayesian linear regression is solved in closed form."""
    depth: int = 1
    """Hidden layers."""
    activation: str = "tanh"
    """Activation: tanh, relu, gelu or silu."""
    prior_sd: float = 2.0
    """Prior standard deviation."""
    n: int = 100
    """Training examples."""
    seed: int = 0
    """Seed of the problems."""
    version: int = 1
    """Version in the names of references; raise it whenever anything that is stored changes."""
    key: int = 0
    """Key of the sampler's randomness, together with the name of the reference."""
    sampling: SamplerSettings = SAMPLING
    """Settings of the sampler."""
    thinning: Thinning = field(default_factory=Thinning)
    """Settings that decide how many draws of each posterior are kept."""


PRESETS = {
    "quick": Settings(sampling=dataclasses.replace(SAMPLING, max_draws=8000)),
    "standard": Settings(preset="standard", problems=tuple(TABLE1), widths=(8, 64)),
    "paper": Settings(
        preset="paper",
        problems=tuple(TABLE1),
        widths=(8, 64, 256),
        parameterisations=("ntk", "fan_in"),
    ),
}


class Cell(NamedTuple):
    """A reference to make."""

    name: str
    """Name in the bank, and of the record."""
    recipe: dict[str, Any]
    """Settings that are stored with the reference and from which it can be made again."""


def check(settings: Settings) -> None:
    """Check that settings can be run.

    Raises
    ------
    ValueError
        If a name is unknown or a number is out of its range.
    """
    check_choice("activation", settings.activation, ACTIVATIONS)
    for value in settings.parameterisations:
        check_choice("parameterisations", value, PARAMETERISATIONS)
    for argument in ("problems", "logistic", "gaussian"):
        for value in getattr(settings, argument):
            check_choice(argument, value, PROBLEMS)
    check_real("prior_sd", settings.prior_sd, positive=True)
    for argument, least, most in (
        ("depth", 0, 1000),
        ("n", 2, MOST_ROWS),
        ("seed", 0, MOST_SEED),
        ("version", 1, 10**6),
        ("key", 0, MOST_SEED),
    ):
        check_count(argument, getattr(settings, argument), least, most)
    for width in settings.widths:
        check_count("widths", width, 1, 10**5)


def recipes(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the settings from which each reference is made, by name; both are stored with it."""
    shared = {
        "prior_sd": settings.prior_sd,
        "n": settings.n,
        "seed": settings.seed,
        "activation": settings.activation,
        "key": settings.key,
        "thinning": dataclasses.asdict(settings.thinning),
    }
    by_name: dict[str, dict[str, Any]] = {}
    for kind, problems in (("logistic", settings.logistic), ("gaussian", settings.gaussian)):
        for problem in problems:
            by_name[f"{problem}-{kind}-v{settings.version}"] = shared | {
                "kind": kind, "problem": problem, "width": 1, "depth": 0,
                "parameterisation": "standard",
            }  # fmt: skip
    # One shape follows the other, so that its program is compiled once and then reused.
    cells = itertools.product(settings.widths, settings.parameterisations, settings.problems)
    for width, parameterisation, problem in cells:
        name = f"{problem}-{parameterisation}-w{width}"
        name += "" if settings.depth == 1 else f"-d{settings.depth}"
        by_name[f"{name}-v{settings.version}"] = shared | {
            "kind": "sampled", "problem": problem, "width": width, "depth": settings.depth,
            "parameterisation": parameterisation, "sampler": dataclasses.asdict(settings.sampling),
        }  # fmt: skip
    return by_name


def plan(settings: Settings) -> list[Group]:
    """Make a batch of each reference, and a group of each shape, which shares its program."""
    return grouped(
        (
            tuple(recipe[k] for k in ("kind", "width", "parameterisation")),
            Batch(name, (Cell(name, recipe),)),
        )
        for name, recipe in recipes(settings).items()
    )
