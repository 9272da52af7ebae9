"""The point theta* and the locations of an estimate, as users give them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from isounc.checks import check_array, check_kind
from isounc.estimates.estimators import Estimate
from isounc.fit import PointEstimate
from isounc.models import Model

Point = Float[Array | np.ndarray, " P"] | PointEstimate
"""theta*, or what `fit_map` or `fit_trained` returned."""


def check_points(
    model: Model, X: Any, theta: Any, *, argument: str = "X"
) -> tuple[Float[Array, "N D"], Float[Array, " P"]]:
    """Return X, which messages call `argument`, and theta in JAX's float type.

    Raises
    ------
    ValueError
        Unless they are finite and of the model's shapes.
    """
    check_kind("model", model, Model, "make_model")
    dtype = jnp.result_type(float)
    points = jnp.asarray(check_array(argument, X, ndim=2), dtype)
    if points.shape[1] != model.in_features or points.shape[0] == 0:
        raise ValueError(
            f"{argument} must have {model.in_features} columns and at least one row, got "
            f"{points.shape}"
        )
    if isinstance(theta, PointEstimate):
        theta = theta.theta
    theta = jnp.asarray(check_array("theta", theta, ndim=1), dtype)
    if theta.shape != (model.num_params,):
        raise ValueError(f"theta must have shape ({model.num_params},), got {theta.shape}")
    return points, theta


def check_finite(estimate: Estimate, what: str) -> None:
    """Raise a ValueError with what must be finite, or have another property, unless it is so."""
    if not np.isfinite(np.asarray(estimate.epistemic)).all():
        raise ValueError(f"{what}, got an estimate that is not finite")
