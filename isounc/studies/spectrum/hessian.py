"""Eigenvalues of the Hessian of minus the log likelihood, in prior coordinates."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from matfree import decomp

from isounc import densities
from isounc.densities import Data
from isounc.fit import DENSE_HESSIAN_MAX
from isounc.models import Model

RESIDUAL = 1e-3
"""Largest residual of a Ritz pair that counts, as a share of its value: values that are small beside
the largest may have others between them that were not found."""


class HessianSpectrum(NamedTuple):
    """Eigenvalues of the Hessian, all of them or the largest ones."""

    values: Float[np.ndarray, " K"]
    """Largest first; with lanczos down to the first that has not converged."""
    lowest: float | None
    """The smallest; None where it has not converged."""
    method: str
    """dense or lanczos."""


def hessian_spectrum(
    theta: Float[Array, " P"],
    data: Data,
    *,
    model: Model,
    key: PRNGKeyArray,
    steps: int,
    dense_max: int = DENSE_HESSIAN_MAX,
) -> HessianSpectrum:
    """Eigenvalues at theta: by a dense matrix for few parameters, else by Lanczos' method.

    Parameters
    ----------
    key
        Decides where Lanczos' method starts.
    steps
        Its number of products with the Hessian. Vectors are orthogonalised against all others.
    dense_max
        Most parameters for which the matrix is formed.
    """
    if model.num_params <= max(dense_max, steps):
        values = np.linalg.eigvalsh(np.asarray(_dense(theta, data, model=model)))
        return HessianSpectrum(values[::-1], float(values[0]), "dense")
    start = jax.random.normal(key, theta.shape, theta.dtype)
    tridiagonal, rest = _lanczos(theta, data, start, model=model, steps=steps)
    tridiagonal = np.asarray(tridiagonal)
    if not np.isfinite(tridiagonal).all():
        return HessianSpectrum(np.empty(0), None, "lanczos")
    values, vectors = np.linalg.eigh(tridiagonal)
    # |H u - l u| of a Ritz pair is the last entry of its vector times what the last product left.
    residuals = float(jnp.linalg.norm(rest)) * np.abs(vectors[-1])
    good = residuals <= RESIDUAL * np.abs(values)
    num_top = int(np.cumprod(good[::-1]).sum())
    lowest = float(values[0]) if good[0] else None
    return HessianSpectrum(values[::-1][:num_top], lowest, "lanczos")


def _potential(theta: Float[Array, " P"], data: Data, model: Model):
    """Minus the log likelihood as a function of a step from theta in prior coordinates."""
    return lambda z: -densities.log_likelihood(model, theta + data.prior_sd * z, data)


@functools.partial(jax.jit, static_argnames="model")
def _dense(theta: Float[Array, " P"], data: Data, *, model: Model) -> Float[Array, "P P"]:
    gradient, zero = jax.grad(_potential(theta, data, model)), jnp.zeros_like(theta)

    def column(v: Float[Array, " P"]) -> Float[Array, " P"]:
        return jax.jvp(gradient, (zero,), (v,))[1]

    matrix = jax.lax.map(column, jnp.eye(theta.size, dtype=theta.dtype), batch_size=32)
    return 0.5 * (matrix + matrix.T)


@functools.partial(jax.jit, static_argnames=("model", "steps"))
def _lanczos(
    theta: Float[Array, " P"], data: Data, start: Float[Array, " P"], *, model: Model, steps: int
) -> tuple[Float[Array, "K K"], Float[Array, " P"]]:
    gradient, zero = jax.grad(_potential(theta, data, model)), jnp.zeros_like(theta)

    def product(v: Float[Array, " P"]) -> Float[Array, " P"]:
        return jax.jvp(gradient, (zero,), (v,))[1]

    found = decomp.tridiag_sym(steps, custom_vjp=False)(product, start)
    return jnp.asarray(found.J_small), found.residual
