"""When, where and why isotropic gradient norms agree with Bayesian predictive uncertainty."""

from isounc import references
from isounc.estimates.estimate import estimate, laplace, link_aware, posterior_averaged
from isounc.estimates.estimators import ESTIMATORS, Estimate, register_estimator
from isounc.estimates.isotropic import isotropic
from isounc.fit import MapSettings, TrainSettings, fit_map, fit_trained
from isounc.models import Model, make_model
from isounc.problems import PROBLEMS, Problem, make_problem, register_problem
from isounc.sampling.moments import Posterior
from isounc.sampling.posterior import sample_posterior
from isounc.sampling.settings import GateSettings, SamplerSettings
from isounc.statistics import Comparison, compare, interval_over_seeds

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 (in the order of the pipeline)
    # problems and models
    "PROBLEMS",
    "Problem",
    "make_problem",
    "register_problem",
    "Model",
    "make_model",
    # point estimates and posterior
    "MapSettings",
    "TrainSettings",
    "fit_map",
    "fit_trained",
    "GateSettings",
    "Posterior",
    "SamplerSettings",
    "sample_posterior",
    # estimates and comparison
    "ESTIMATORS",
    "Estimate",
    "estimate",
    "isotropic",
    "link_aware",
    "laplace",
    "posterior_averaged",
    "register_estimator",
    "Comparison",
    "compare",
    "interval_over_seeds",
    "references",
]
