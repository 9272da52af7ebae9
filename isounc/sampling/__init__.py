"""Reference posteriors by MCMC and SMC, their predictive moments and convergence checks."""

from isounc.sampling.drivers import register_sampler
from isounc.sampling.gate import Gate
from isounc.sampling.moments import Moments, Posterior
from isounc.sampling.posterior import sample_posterior, sample_posteriors
from isounc.sampling.settings import GateSettings, SamplerSettings

__all__ = [
    "Gate",
    "GateSettings",
    "Moments",
    "Posterior",
    "SamplerSettings",
    "register_sampler",
    "sample_posterior",
    "sample_posteriors",
]
