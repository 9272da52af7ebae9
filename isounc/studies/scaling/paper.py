"""Table 1 of the paper holds the numbers that this project is compared with.

Source: Grünefeld, Frellsen, Hardmeier 2026, arXiv 2603.29466v1, Table 1. They were transcribed at
second hand: check against the paper before quoting them. What Table 1 leaves open is the width of
the networks, the region where the correlations are taken, and the prior.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SOURCE = "Grünefeld, Frellsen, Hardmeier 2026, arXiv 2603.29466v1, Table 1"
UNKNOWN = "width, region, prior unknown"


class Correlations(NamedTuple):
    """Two correlations of an estimate with the paper's MCMC reference."""

    pearson: float
    """Pearson's r."""
    spearman: float
    """Spearman's rho."""


TABLE1: Mapping[str, Mapping[str, Correlations]] = {
    problem: {name: Correlations(*pair) for name, pair in row.items()}
    for problem, row in {
        "linear": {"GN": (0.95, 0.99), "LA": (0.95, 0.99), "aleatoric": (0.99, 1.00)},
        "xor": {"GN": (0.65, 0.68), "LA": (0.68, 0.70), "aleatoric": (0.76, 0.74)},
        "rings": {"GN": (0.86, 0.44), "LA": (0.86, 0.46), "aleatoric": (0.95, 0.58)},
        "clusters3": {"GN": (0.86, 0.97), "aleatoric": (0.95, 0.99)},
        "spirals3": {"GN": (0.76, 0.91), "aleatoric": (0.96, 0.97)},
        "rings3": {"GN": (0.88, 0.97), "aleatoric": (0.96, 0.98)},
        "linear_regression": {"GN": (0.98, 0.99), "LA": (1.00, 1.00)},
        "nonlinear_regression": {"GN": (0.73, 0.81), "LA": (0.93, 0.97)},
    }.items()
}
"""Correlations by this project's names of the problems. `GN` is the squared gradient norm, `LA` is
Laplace's gᵀH⁻¹g (both epistemic), `aleatoric` is p(1-p)."""

_ROWS = {"isotropic": "GN", "laplace": "LA"}


def paper_value(
    problem: str, statistic: str, *, estimator: str = "isotropic", quantity: str = "epistemic"
) -> float | None:
    """Return the paper's correlation for an estimator, or None where the paper gives none."""
    row = "aleatoric" if quantity == "aleatoric" else _ROWS.get(estimator)
    if quantity not in ("epistemic", "aleatoric") or row is None:
        return None
    return getattr(TABLE1.get(problem, {}).get(row), statistic, None)
