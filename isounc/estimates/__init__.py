"""Estimates of a model's uncertainty, and the oracles that explain their errors."""

from isounc.estimates.estimate import laplace, link_aware, posterior_averaged
from isounc.estimates.estimators import (
    ESTIMATORS,
    Estimate,
    Estimator,
    Evidence,
    register_estimator,
)

__all__ = [
    "ESTIMATORS",
    "Estimate",
    "Estimator",
    "Evidence",
    "laplace",
    "link_aware",
    "posterior_averaged",
    "register_estimator",
]
