"""Samplers by name: the driver of each, and how another one is added."""

from __future__ import annotations

import math

from isounc.checks import check_name
from isounc.sampling.chain_driver import ChainDriver
from isounc.sampling.kernels import SAMPLERS, Sampler
from isounc.sampling.modes import smc_settings
from isounc.sampling.run import Driver, Forecast
from isounc.sampling.settings import AUTO, SAMPLER_NAMES, SamplerSettings
from isounc.sampling.smc_driver import SMCDriver

DRIVERS: dict[str, Driver] = {
    **{name: ChainDriver(sampler) for name, sampler in SAMPLERS.items()},
    "tempered_smc": SMCDriver(),
}
"""Drivers by the sampler's name."""


def driver_of(settings: SamplerSettings) -> Driver:
    """The driver of the sampler; of hmc where pilots choose it, from which others differ little."""
    return DRIVERS["hmc" if settings.sampler == AUTO else settings.sampler]


def forecast(settings: SamplerSettings, *, num_params: int) -> Forecast:
    """Forecast the cost of sampling a posterior, the tempered run of `check_modes` included.

    The tempered run moves particles of its own; they are converted to transitions of the sampler.
    """
    own = driver_of(settings).forecast(settings, num_params=num_params)
    if not settings.checks_modes(num_params):
        return own
    short = smc_settings(settings, max_seconds=math.inf)
    other = DRIVERS[short.sampler].forecast(short, num_params=num_params)
    transitions = math.ceil(other.num_transitions * short.chains / settings.chains)
    return Forecast(own.num_transitions + transitions, max(own.num_floats, other.num_floats))


def register_sampler(name: str, sampler: Sampler) -> None:
    """Make a sampler known, so that `SamplerSettings` and the experiments take its name.

    Raises
    ------
    ValueError
        If the name is taken, or is no name.
    """
    check_name("name", name)
    if name in SAMPLER_NAMES:
        raise ValueError(f"name must be one that no sampler has, got {name!r}")
    SAMPLERS[name] = sampler
    DRIVERS[name] = ChainDriver(sampler)
    SAMPLER_NAMES.append(name)
