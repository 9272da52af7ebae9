"""When, where and why isotropic gradient norms agree with Bayesian predictive uncertainty."""

from isounc import references
from isounc.estimates.estimate import estimate, laplace, link_aware, posterior_averaged
from isounc.estimates.estimators import Estimate, register_estimator
from isounc.estimates.isotropic import isotropic
from isounc.fit import MapSettings, PointEstimate, TrainSettings, fit_map, fit_trained
from isounc.likelihoods import register_likelihood
from isounc.models import Model, make_model
from isounc.problems import Problem, make_problem, register_problem
from isounc.sampling.drivers import register_sampler
from isounc.sampling.gate import Gate
from isounc.sampling.moments import Moments, Posterior
from isounc.sampling.posterior import sample_posterior
from isounc.sampling.settings import GateSettings, SamplerSettings
from isounc.statistics import Comparison, Interval, Trend, compare, interval_over_seeds, trend

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 (in the order of the pipeline)
    # problems and models
    "Problem",
    "make_problem",
    "register_problem",
    "register_likelihood",
    "Model",
    "make_model",
    # point estimates
    "MapSettings",
    "TrainSettings",
    "PointEstimate",
    "fit_map",
    "fit_trained",
    # posteriors
    "SamplerSettings",
    "GateSettings",
    "Gate",
    "Moments",
    "Posterior",
    "sample_posterior",
    "register_sampler",
    "references",
    # estimates
    "Estimate",
    "estimate",
    "isotropic",
    "laplace",
    "link_aware",
    "posterior_averaged",
    "register_estimator",
    # comparison
    "Comparison",
    "Interval",
    "Trend",
    "compare",
    "interval_over_seeds",
    "trend",
]
