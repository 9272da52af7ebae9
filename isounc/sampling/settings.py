"""Settings of sampling: sampler, coordinates, budget, precision, and the bounds of the gate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import jax

from isounc.checks import check_choice, check_count, check_real

SAMPLER_NAMES = ["hmc", "nuts", "chees", "adjusted_mclmc", "tempered_smc"]
"""Samplers; `isounc.sampling.register_sampler` adds to them."""
COORDINATE_NAMES = ("auto", "prior", "curvature", "readout")
"""Coordinates (`isounc.sampling.coordinates`); `auto` chooses prior or readout."""
METRIC_NAMES = ("identity", "diagonal", "low_rank")
"""Metrics that warm-up adapts."""
AUTO = "auto"
"""As a sampler: hmc, unless short pilots find another one faster."""
UNSUITED = {"tempered_smc": {"metric": "low_rank", "coordinates": "curvature"}}
"""By sampler, the value of other settings that it cannot work with."""


@dataclass(frozen=True)
class GateSettings:
    """The bounds of the gate."""

    ess_min: float = 1000.0
    """Least bulk ESS of p and of (p - mean)^2 at any location."""
    rhat_max: float = 1.01
    """R-hat is below this at every location."""
    ebfmi_min: float = 0.3
    """E-BFMI is above this in every chain."""
    divergence_rate_max: float = 0.001
    """The share of divergent transitions is below this (or zero)."""
    saturated_max: int = 0
    """Most trajectories that may end at the sampler's step limit."""
    khat_max: float = 0.7
    """Pareto k of (p - mean)^2 above which rare draws decide about a location's variance; with few
    draws it is 1 - 1 / log10(draws) where that is less (Vehtari et al. 2024)."""
    heavy_tails_max: float = 1 / 3
    """Largest share of a region's locations at which they may; `Gate.num_heavy_tails` counts those of
    all regions."""
    log_density_error_max: float = 0.1
    """Most nats by which differences of the sampler's log posterior may err from float64."""
    prediction_error_max: float = 0.1
    """Most posterior standard deviations by which a prediction may err from float64."""
    modes_p_min: float = 0.01
    """check_modes: least p-value of the agreement with the tempered run, and so the share of sound
    posteriors that fail."""

    def __post_init__(self) -> None:
        check_real("ess_min", self.ess_min, positive=True)
        check_real("ebfmi_min", self.ebfmi_min)
        check_real("khat_max", self.khat_max, positive=True)
        check_real("log_density_error_max", self.log_density_error_max, positive=True)
        check_real("prediction_error_max", self.prediction_error_max, positive=True)
        check_count("saturated_max", self.saturated_max, 0)
        for name, bound, least, most in (
            ("rhat_max", "above 1", 1 + 1e-12, math.inf),
            ("divergence_rate_max", "between 0 and 1", 0, 1),
            ("heavy_tails_max", "between 0 and 1", 0, 1),
            ("modes_p_min", "between 0 and 1", 0, 1),
        ):
            if not least <= check_real(name, getattr(self, name)) <= most:
                raise ValueError(f"{name} must be {bound}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class SamplerSettings:
    """How a posterior is sampled."""

    sampler: str = "hmc"
    """hmc (trajectories of jittered length, tried again in finer steps where their energy error is
    large), nuts, chees (adapts that length over many chains: 16 or more), adjusted_mclmc, or
    tempered_smc for modes that do not mix (a chain is a run of num_draws particles, without
    warm-up). auto: hmc, unless short pilots find adjusted_mclmc or a registered sampler faster,
    which are made where the run is so long that they take less than a tenth of it."""
    coordinates: str = "auto"
    """prior, curvature (Laplace at the MAP), readout (last layer whitened given the hidden layers),
    or auto: prior, unless short pilots find readout faster, which are made where the data determine
    the outputs sharply and the run is long."""
    metric: str = "diagonal"
    """identity, diagonal or low_rank (plus diagonal), adapted during warm-up."""
    metric_rank: int = 16
    """low_rank: its rank, or P if that is less."""
    num_chains: int = 4
    """K, each from its own draw of the prior (readout: of the hidden layers' prior)."""
    chains_per_device: int = 0
    """If not 0, K is this many for each device, whatever num_chains says."""
    num_warmup: int = 300
    """Warm-up transitions of a chain; rounded up to four equal windows."""
    anneal_above: float = 3000.0
    """The first window of warm-up anneals chains from the prior to the posterior (the log
    likelihood counts more from transition to transition) where those of their starts lie so many
    nats below the best of them, on average; inf: nowhere. With less, chains find their way."""
    num_draws: int = 1000
    """S, transitions of a chain after warm-up before the gate is first tried; rounded up to whole
    blocks."""
    max_draws: int = 1000
    """While the gate or the precision fails, S grows up to this, rounded up to whole blocks
    (tempered_smc: to whole rounds of num_draws)."""
    max_seconds: float = math.inf
    """Seconds after which a call ends with the draws that there are (inf: no limit); their checks
    come on top. Warm-up gets at most half of them. tempered_smc has no draws before its first round
    ends: particles that are not there in time fail the gate."""
    target_var_se: float = 0.03
    """Precision: standard error of the predictive variance over the variance, median over the fixed
    locations."""
    trajectory_length: float = 1.6
    """Mean integration time of a transition (chees: before adaptation). A quarter period of
    N(0, I) is pi / 2, after which its draws are independent."""
    max_integration_steps: int = 4096
    """Most integration steps of a trajectory; sharp data under a wide prior need thousands.
    tempered_smc makes at most 128."""
    max_tree_depth: int = 10
    """nuts: trajectories of at most 2^this integration steps."""
    num_mutations: int = 10
    """tempered_smc: transitions of each particle at each temperature."""
    tempering_ess: float = 0.5
    """tempered_smc: share of the particles that stays effective from one temperature to the next;
    more is slower."""
    target_acceptance: float = 0.8
    """Acceptance that the step size is adapted to."""
    block: int = 250
    """Draws between returns to the host; also the length of the batches behind streamed standard
    errors."""
    num_kept: int = 1000
    """Thinned parameter draws that are kept, over all chains."""
    locations_per_region: int = 64
    """Fixed locations of each region where function values are kept for R-hat and ESS."""
    check_modes: bool = False
    """Compare chains that pass the gate with a short tempered SMC run, which finds other modes, at
    ten to twenty times the cost of 2000 draws a chain."""
    check_modes_up_to: int = 0
    """Most parameters P of the models that check_modes is about, since modes between which no chain
    moves are those of narrow networks; 0 is all models."""
    gate: GateSettings = field(default_factory=GateSettings)
    """Bounds of the convergence checks."""

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, [*SAMPLER_NAMES, AUTO])
        check_choice("coordinates", self.coordinates, COORDINATE_NAMES)
        check_choice("metric", self.metric, METRIC_NAMES)
        for name, least, most in (
            ("num_chains", 2, 10**5),
            ("chains_per_device", 0, 10**5),
            ("num_warmup", 20, 10**7),
            ("num_draws", 4, 10**8),
            ("metric_rank", 1, 10**6),
            ("max_integration_steps", 1, 10**6),
            ("max_tree_depth", 1, 20),
            ("num_mutations", 1, 10**5),
            ("max_draws", 4, 10**8),
            ("block", 2, 10**6),
            ("num_kept", 2, 10**7),
            ("locations_per_region", 1, 10**5),
        ):
            check_count(name, getattr(self, name), least, most)
        for name in ("trajectory_length", "target_var_se"):
            check_real(name, getattr(self, name), positive=True)
        for name, limit in (("max_seconds", "for no limit"), ("anneal_above", "for nowhere")):
            value = getattr(self, name)
            if not (isinstance(value, float) and value == math.inf):
                is_positive = name == "max_seconds"
                check_real(f"{name} (finite, or inf {limit})", value, positive=is_positive)
        if not 0 < check_real("target_acceptance", self.target_acceptance) < 1:
            raise ValueError(
                f"target_acceptance must be between 0 and 1, got {self.target_acceptance}"
            )
        if not 0 < check_real("tempering_ess", self.tempering_ess) <= 0.99:
            # Above it, float32 cannot tell a temperature from the next.
            raise ValueError(
                f"tempering_ess must be above 0 and at most 0.99, got {self.tempering_ess}"
            )
        if not isinstance(self.check_modes, bool):
            raise TypeError(f"check_modes must be True or False, got {self.check_modes!r}")
        check_count("check_modes_up_to", self.check_modes_up_to, 0)
        choices = {"coordinates": COORDINATE_NAMES, "metric": METRIC_NAMES}
        for name, unsuited in UNSUITED.get(self.sampler, {}).items():
            if getattr(self, name) == unsuited:
                suited = ", ".join(choice for choice in choices[name] if choice != unsuited)
                raise ValueError(
                    f"{name} must be one of {suited} for sampler {self.sampler!r}, got {unsuited!r}"
                )
        if self.max_draws < self.num_draws:
            raise ValueError(
                f"max_draws must be at least num_draws ({self.num_draws}), got {self.max_draws}"
            )

    @property
    def chains(self) -> int:
        """K on the devices that JAX sees."""
        if not self.chains_per_device:
            return self.num_chains
        return max(2, self.chains_per_device * jax.device_count())

    @property
    def of_programs(self) -> SamplerSettings:
        """The settings that compiled programs may depend on, with all others at their defaults.

        The others say when a run ends and what is checked; what programs need of the coordinates and
        of the locations comes as arrays. A run that differs in them alone takes the programs that
        were traced for another.
        """
        others = (
            "coordinates", "anneal_above", "max_seconds", "target_var_se", "locations_per_region",
            "check_modes", "check_modes_up_to",
        )  # fmt: skip
        defaults = {name: type(self).__dataclass_fields__[name].default for name in others}
        return replace(self, max_draws=self.num_draws, gate=GateSettings(), **defaults)

    def checks_modes(self, num_params: int) -> bool:
        """Whether chains of a model with P parameters are compared with a tempered run."""
        return self.check_modes and num_params <= (self.check_modes_up_to or math.inf)
