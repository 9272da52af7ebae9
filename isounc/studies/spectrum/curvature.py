"""The spectrum of the GGN, what of the gradients lies in it, and the Laplace approximation from both.

All is in prior coordinates z = theta / s, in which the prior's covariance is I and the Laplace
approximation's (I + G^T G)^-1.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float

from isounc import densities
from isounc.checks import check_count
from isounc.models import Model
from isounc.studies.spectrum.kernel import (
    Factors,
    curvature_kernel,
    prediction_norms,
    prediction_rows,
)

ZERO = 1e-12
"""Eigenvalues below this share of the largest are rounding, and count as zero; so does what is left
of |g|^2 below this share of it."""

Values = Float[np.ndarray, " N"]
"""A number at N locations, summed over columns."""


class Spectrum(NamedTuple):
    """Eigenpairs of the GGN, from its kernel; R = n O, of which some may be zero."""

    values: Float[np.ndarray, " R"]
    """Eigenvalues, largest first."""
    coefficients: Float[np.ndarray, "R R"]
    """Column i makes the i-th eigenvector u_i of the GGN from the rows of G: u_i = G^T c_i."""

    @property
    def shrink(self) -> Float[np.ndarray, " R"]:
        """The share l / (1 + l) of the prior's variance that the data take in each direction."""
        return self.values / (1 + self.values)


class Projected(NamedTuple):
    """Gradients of the prediction at N locations, and their parts in the eigenvectors."""

    sq_norm: Values
    """|g|^2."""
    parts: Float[np.ndarray, "N R"]
    """(g . u_i)^2."""


def spectrum_of(kernel: Float[np.ndarray, "R R"]) -> Spectrum:
    """The eigenpairs of G^T G from the kernel G G^T.

    Raises
    ------
    ValueError
        For a kernel that is not finite, as of a network whose outputs overflow.
    """
    if not np.isfinite(kernel).all():
        raise ValueError(
            "kernel must be finite, got NaN or infinity: the network's outputs overflow"
        )
    values, vectors = scipy.linalg.eigh(kernel)
    values, vectors = values[::-1], vectors[:, ::-1]
    real = values > ZERO * max(values[0], 0.0)
    values = np.where(real, values, 0.0)
    return Spectrum(values, vectors * np.where(real, np.where(real, values, 1.0) ** -0.5, 0.0))


class AtPoint(NamedTuple):
    """The curvature at theta*."""

    spectrum: Spectrum
    """Its eigenpairs."""
    rows: Factors
    """The rows of its factor."""
    theta: jax.Array
    """theta*."""
    data: densities.Data
    """Training data and prior."""
    model: Model
    """The model."""

    @classmethod
    def of(cls, theta: jax.Array, data: densities.Data, model: Model) -> AtPoint:
        """The curvature of the training data at theta."""
        rows, kernel = curvature_kernel(theta, data, model=model)
        return cls(spectrum_of(np.asarray(kernel)), rows, theta, data, model)

    def project(self, X: Float[np.ndarray, "N D"]) -> Projected:
        """Project the gradients of the prediction, summed over its columns."""
        points = jnp.asarray(X, self.theta.dtype)
        norms, products = prediction_rows(
            self.theta, points, self.rows, self.data, model=self.model
        )
        along = np.asarray(products) @ self.spectrum.coefficients
        return Projected(np.asarray(norms).sum(1), (along**2).sum(1))


def laplace(projected: Projected, spectrum: Spectrum, *, rank: int | None = None) -> Values:
    """g^T Sigma g of the Laplace approximation, of all directions or of the `rank` strongest."""
    return _floored(projected, projected.parts[:, :rank] @ spectrum.shrink[:rank])


def removed(projected: Projected, rank: int) -> Values:
    """|g|^2 less its part in the `rank` strongest directions, all of which the data determine."""
    _check_rank(projected, rank)
    return _floored(projected, projected.parts[:, :rank].sum(1))


def low_rank(projected: Projected, spectrum: Spectrum, rank: int) -> Values:
    """g^T Sigma g with the curvature's `rank` strongest directions, and the prior in all others."""
    _check_rank(projected, rank)
    return laplace(projected, spectrum, rank=rank)


def _check_rank(projected: Projected, rank: int) -> None:
    check_count("rank", rank, 1, projected.parts.shape[1])


def _floored(projected: Projected, taken: Values) -> Values:
    """|g|^2 less what is taken of it; 0 where all is taken, of which rounding would leave something."""
    left = projected.sq_norm - taken
    return np.where(left > ZERO * projected.sq_norm, left, 0.0)


def shares(projected: Projected, rank: int) -> Values:
    """The share of |g|^2 in the `rank` strongest directions, where the gradient is not zero."""
    _check_rank(projected, rank)
    there = projected.sq_norm > 0
    return projected.parts[there, :rank].sum(1) / projected.sq_norm[there]


def kl_to_prior(
    values: Float[np.ndarray, " R"], mean: Float[np.ndarray, " P"]
) -> tuple[float, float]:
    """KL of N(mean, (I + GGN)^-1) from N(0, I), nats: the part of the covariance, and of the mean.

    KL = 1/2 sum_i (log(1 + l_i) - l_i / (1 + l_i)) + 1/2 |mean|^2
    """
    return (
        float(0.5 * (np.log1p(values) - values / (1 + values)).sum()),
        float(0.5 * mean @ mean),
    )


def summary(
    spectrum: Spectrum, *, num_params: int, num_outliers: int, mean: Float[np.ndarray, " P"]
) -> dict[str, float | None]:
    """Numbers of a spectrum; a logarithm of nothing is None.

    Parameters
    ----------
    num_outliers
        C: so many eigenvalues are taken for outliers, the other nonzero ones for the bulk.
    mean
        theta* in prior coordinates.
    """
    values = spectrum.values
    top, trace = float(values[0]), float(values.sum())
    bulk = values[num_outliers:]
    bulk = bulk[bulk > 0]
    dimension = float(spectrum.shrink.sum())
    of_covariance, of_mean = kl_to_prior(values, mean)
    return {
        "log2_top": log2(top),
        "log2_over_mean": log2(top * num_params / trace) if trace else None,
        "log2_over_bulk": log2(top / bulk.mean()) if len(bulk) else None,
        "log2_over_rest": log2(top / bulk.sum()) if len(bulk) else None,
        "num_nonzero": float((values > 0).sum()),
        "outlier_share": float(values[:num_outliers].sum() / trace) if trace else None,
        "num_beyond_prior": float((values > 1).sum()),
        "dimension": dimension,
        "dimension_share": dimension / num_params,
        "kl_covariance": of_covariance / num_params,
        "kl_mean": of_mean / num_params,
    }


def log2(value: float) -> float | None:
    """The logarithm, or None where there is none."""
    return float(np.log2(value)) if 0 < value < np.inf else None


def seconds(
    at: AtPoint, X: Float[np.ndarray, "N D"], rank: int, *, num_timings: int
) -> dict[str, float]:
    """Shortest of some measurements, in seconds: both estimates at 1000 locations, and the set-up.

    Both go through the same code, in the precision of the point, up to what one has on top.
    """
    points = jnp.asarray(X, at.theta.dtype)
    coefficients = at.spectrum.coefficients[:, :rank]

    def isotropic() -> Any:
        return np.asarray(prediction_norms(at.theta, points, at.data, model=at.model))

    def corrected() -> Any:
        norms, products = prediction_rows(at.theta, points, at.rows, at.data, model=at.model)
        return np.asarray(norms) - ((np.asarray(products) @ coefficients) ** 2).sum(-1)

    def set_up() -> Any:
        return AtPoint.of(at.theta, at.data, at.model)

    scale = 1000 / len(X)
    return {
        "seconds_isotropic": scale * _shortest(isotropic, num_timings),
        "seconds_removed": scale * _shortest(corrected, num_timings),
        "seconds_set_up": _shortest(set_up, num_timings),
    }


def _shortest(run: Callable[[], Any], num_timings: int) -> float:
    run()  # compiles
    found = []
    for _ in range(num_timings):
        begun = time.perf_counter()
        run()
        found.append(time.perf_counter() - begun)
    return min(found)


def spread(values: Values, sq_norm: Values) -> dict[str, float | None]:
    """Mean and coefficient of variation over locations of the ratio to |g|^2."""
    there = sq_norm > 0
    if not there.any():
        return {"ratio_mean": None, "ratio_cv": None}
    ratio = values[there] / sq_norm[there]
    mean = float(ratio.mean())
    return {"ratio_mean": mean, "ratio_cv": float(ratio.std() / mean) if mean > 0 else None}


@functools.cache
def ranks_shown(num: int) -> Sequence[int]:
    """Ranks of eigenvalues, from 1, that a table has of a spectrum of `num`; about 24."""
    return tuple(np.unique(np.geomspace(1, num, 24).round().astype(int)).tolist())
