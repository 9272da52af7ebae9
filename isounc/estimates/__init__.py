"""Estimates of a model's uncertainty, and the oracles that explain their errors.

Names are imported when they are first used: scores of language models need some of the arithmetic
here, and none of the networks.
"""

from typing import TYPE_CHECKING

from isounc.lazy import importer

if TYPE_CHECKING:
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

_HOMES = {
    "isounc.estimates.estimate": ("laplace", "link_aware", "posterior_averaged"),
    "isounc.estimates.estimators": (
        "ESTIMATORS",
        "Estimate",
        "Estimator",
        "Evidence",
        "register_estimator",
    ),
}

if not TYPE_CHECKING:
    __getattr__ = importer(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
