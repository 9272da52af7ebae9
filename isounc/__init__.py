"""When, where and why isotropic gradient norms agree with Bayesian predictive uncertainty.

Names are imported when they are first used: `import isounc` takes no time and starts no device, so
that the command line can say where JAX computes before JAX looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isounc.lazy import importer

if TYPE_CHECKING:
    from isounc import references
    from isounc.estimates.estimate import estimate, laplace, link_aware, posterior_averaged
    from isounc.estimates.estimators import Estimate, register_estimator
    from isounc.estimates.isotropic import isotropic
    from isounc.estimates.logit_scale import LogitScale, fit_logit_scale
    from isounc.fit import MapSettings, PointEstimate, fit_map
    from isounc.likelihoods import register_likelihood
    from isounc.models import Model, make_model
    from isounc.problems import Problem, make_problem, register_problem
    from isounc.sampling.drivers import register_sampler
    from isounc.sampling.gate import Gate
    from isounc.sampling.moments import Moments, Posterior, two_valued
    from isounc.sampling.posterior import sample_posterior
    from isounc.sampling.settings import GateSettings, SamplerSettings
    from isounc.statistics import Comparison, Interval, Trend, compare, interval_over_seeds, trend
    from isounc.training import TrainSettings, fit_trained

__version__ = "0.2.0"

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
    "two_valued",
    "register_sampler",
    "references",
    # estimates
    "Estimate",
    "estimate",
    "isotropic",
    "LogitScale",
    "fit_logit_scale",
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

_HOMES = {
    "isounc.estimates.estimate": ("estimate", "laplace", "link_aware", "posterior_averaged"),
    "isounc.estimates.estimators": ("Estimate", "register_estimator"),
    "isounc.estimates.isotropic": ("isotropic",),
    "isounc.estimates.logit_scale": ("LogitScale", "fit_logit_scale"),
    "isounc.fit": ("MapSettings", "PointEstimate", "fit_map"),
    "isounc.likelihoods": ("register_likelihood",),
    "isounc.models": ("Model", "make_model"),
    "isounc.problems": ("Problem", "make_problem", "register_problem"),
    "isounc.sampling.drivers": ("register_sampler",),
    "isounc.sampling.gate": ("Gate",),
    "isounc.sampling.moments": ("Moments", "Posterior", "two_valued"),
    "isounc.sampling.posterior": ("sample_posterior",),
    "isounc.sampling.settings": ("GateSettings", "SamplerSettings"),
    "isounc.statistics": (
        "Comparison",
        "Interval",
        "Trend",
        "compare",
        "interval_over_seeds",
        "trend",
    ),
    "isounc.training": ("TrainSettings", "fit_trained"),
}

if not TYPE_CHECKING:
    __getattr__ = importer(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
