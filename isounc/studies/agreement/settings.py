"""Settings and cells of the agreement study."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from isounc.checks import check_choice, check_count, check_real
from isounc.models import ACTIVATIONS, PARAMETERISATIONS
from isounc.problems import MOST_ROWS, PROBLEMS
from isounc.runs.executors import Batch, Group
from isounc.runs.settings import MOST_SEED, RunSettings
from isounc.sampling.settings import SamplerSettings
from isounc.studies.agreement.sides import FAULTS, NutsSettings
from isounc.studies.scaling.paper import TABLE1


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of the agreement study."""

    problems: tuple[str, ...] = ("xor", "clusters3")
    """Problems whose posteriors are sampled twice."""
    widths: tuple[int, ...] = (2, 8)
    """Hidden units per layer."""
    controls: tuple[str, ...] = ("prior",)
    """Faults planted in isounc's input, which the comparison must find: prior (the prior sd is a
    tenth too large). The list may be empty."""
    depth: int = 1
    """Hidden layers."""
    activation: str = "tanh"
    """Activation: tanh, relu, gelu or silu."""
    parameterisation: str = "ntk"
    """Parameterisation: ntk, fan_in or standard."""
    prior_sd: float = 2.0
    """Prior standard deviation."""
    n: int = 100
    """Training examples."""
    level: float = 0.01
    """Probability that two correct samplers get the verdict DISAGREES."""
    sampling: SamplerSettings = field(
        default_factory=lambda: SamplerSettings(num_draws=2000, max_draws=8000)
    )
    """Settings of isounc's sampler; its gate holds for both sides."""
    numpyro: NutsSettings = field(default_factory=NutsSettings)
    """Settings of NumPyro's sampler."""
    seed: int = 0
    """Seed of the data and of all random numbers."""


PRESETS = {
    "quick": Settings(),
    "standard": Settings(preset="standard", problems=tuple(TABLE1), widths=(2, 8, 32)),
    "paper": Settings(preset="paper", problems=tuple(TABLE1), widths=(2, 8, 32, 128)),
}


class Pair(NamedTuple):
    """A posterior that both sides sample."""

    problem: str
    """Name of the problem."""
    width: int
    """Hidden units per layer."""


class Cell(NamedTuple):
    """A posterior as one side samples it."""

    pair: Pair
    """The posterior."""
    side: str
    """`isounc` or `numpyro`."""
    control: str
    """Name of the planted fault, or `none`."""

    @property
    def name(self) -> str:
        """Name of the record; NumPyro never has a fault, so that one record serves all controls."""
        name = f"{self.side}-{self.pair.problem}-w{self.pair.width}"
        return name if self.side == "numpyro" else f"{name}-{self.control}"


def check(settings: Settings) -> None:
    """Check that settings can be run.

    Raises
    ------
    ValueError
        If a name is unknown, a list is empty or repeats a value, or a number is out of its range.
    """
    for argument in ("problems", "widths"):
        values = getattr(settings, argument)
        if not values or len(set(values)) < len(values):
            raise ValueError(
                f"{argument} must have at least one value and none twice, got {values}"
            )
    for problem in settings.problems:
        check_choice("problems", problem, PROBLEMS)
    for width in settings.widths:
        check_count("widths", width, 1, 10**5)
    for fault in settings.controls:
        check_choice("controls", fault, FAULTS.keys() - {"none"})
    check_choice("activation", settings.activation, ACTIVATIONS)
    check_choice("parameterisation", settings.parameterisation, PARAMETERISATIONS)
    check_real("prior_sd", settings.prior_sd, positive=True)
    for argument, least, most in (("depth", 0, 1000), ("n", 2, MOST_ROWS), ("seed", 0, MOST_SEED)):
        check_count(argument, getattr(settings, argument), least, most)
    check_count("sampling.locations_per_region", settings.sampling.locations_per_region, 64)
    if not 0 < settings.level < 1:
        raise ValueError(f"level must be between 0 and 1, got {settings.level}")


def pairs(settings: Settings) -> list[Pair]:
    """Return the posteriors in the order of the tables."""
    return [Pair(problem, width) for problem in settings.problems for width in settings.widths]


def plan(settings: Settings) -> list[Group]:
    """Sample each posterior by NumPyro once, and by isounc without a fault and with each.

    Problems of one width share their programs.
    """
    groups = []
    for width in settings.widths:
        cells = [
            cell
            for problem in settings.problems
            for cell in (
                Cell(Pair(problem, width), "numpyro", "none"),
                *(
                    Cell(Pair(problem, width), "isounc", control)
                    for control in ("none", *settings.controls)
                ),
            )
        ]
        groups.append(tuple(Batch(cell.name, (cell,)) for cell in cells))
    return groups
