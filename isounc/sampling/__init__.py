"""Reference posteriors by MCMC and SMC: settings, samplers, predictive moments, convergence checks, checkpoints."""

from isounc.sampling.gate import Gate, GateSettings
from isounc.sampling.moments import Moments, Posterior
from isounc.sampling.posterior import SamplerSettings, sample_posterior, sample_posteriors

__all__ = [
    "Gate",
    "GateSettings",
    "Moments",
    "Posterior",
    "SamplerSettings",
    "sample_posterior",
    "sample_posteriors",
]
