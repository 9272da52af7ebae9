"""Covariances of the parameters: prior, curvature (Hessian, generalised Gauss-Newton) and posterior draws.

Each knows one thing: ``half(J)`` maps gradients (..., P) to (..., R) with half(J) half(J)^T = J Sigma J^T. Squares of
it are nonnegative whatever the rounding, and R may be smaller or larger than P.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isounc import densities
from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model


@runtime_checkable
class Covariance(Protocol):
    """What every covariance offers to the estimates."""

    def half(self, jacobian: Float[Array, "*B P"]) -> Float[Array, "*B R"]:
        """Gradients in coordinates where the covariance is the identity."""
        ...


def _scale(a: Float[Array, "*B P"], by: Float[Array, " P"]) -> Float[Array, "*B P"]:
    """Multiply the last axis, with the others written down."""
    return a * jnp.expand_dims(by, range(a.ndim - 1))


class Diagonal(NamedTuple):
    """Sigma = diag(sd^2): isotropic, prior, layer-scaled and every diagonal approximation."""

    sd: Float[Array, " P"]
    """Standard deviation of each parameter."""

    def half(self, jacobian: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """J diag(sd)."""
        return _scale(jacobian, self.sd)


class Factor(NamedTuple):
    """Sigma = F F^T."""

    factor: Float[Array, "P R"]
    """F."""

    def half(self, jacobian: Float[Array, "*B P"]) -> Float[Array, "*B R"]:
        """J F."""
        return jacobian @ self.factor


class PriorPlusLowRank(NamedTuple):
    """Sigma = (diag(1/sd^2) + G^T G)^-1 for a curvature G^T G of rank R at most n O (Woodbury).

    In prior coordinates G diag(sd) = V s U^T, hence Sigma = diag(sd) (I - U diag(s^2 / (1 + s^2)) U^T) diag(sd).
    """

    sd: Float[Array, " P"]
    """Prior standard deviation of each parameter."""
    basis: Float[Array, "P R"]
    """U, orthonormal columns."""
    shrink: Float[Array, " R"]
    """1 - (1 + s^2)^-1/2, between 0 and 1."""

    def half(self, jacobian: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """J diag(sd) (I - U diag(shrink) U^T), the symmetric square root applied to the gradients."""
        white = _scale(jacobian, self.sd)
        return white - _scale(white @ self.basis, self.shrink) @ self.basis.T

    @classmethod
    def from_factor(cls, sd: Float[Array, " P"], factor: Float[Array, "R P"]) -> PriorPlusLowRank:
        """From the prior and a factor G of the curvature."""
        _, singular, basis = jnp.linalg.svd(_scale(factor, sd), full_matrices=False)
        return cls(sd, basis.T, 1 - 1 / jnp.sqrt(1 + singular**2))


def gauss_newton_factor(
    model: Model, theta: Float[Array, " P"], data: densities.Data
) -> Float[Array, "R P"]:
    """G with G^T G = sum_n J_n^T (-d2 log p / df2) J_n, the generalised Gauss-Newton matrix; R = n O rows."""
    likelihood = LIKELIHOODS[model.likelihood]

    def one(x):
        output, pullback = jax.vjp(lambda t: model.apply(t, x[None])[0], theta)
        half = likelihood.curvature_factor(output[None], data.noise_sd)[0]
        return jax.vmap(lambda cotangent: pullback(cotangent)[0])(half.T)

    return jax.lax.map(one, data.X, batch_size=64).reshape(-1, theta.size)


def gauss_newton(model: Model, theta: Float[Array, " P"], data: densities.Data) -> PriorPlusLowRank:
    """Laplace covariance (prior precision + GGN)^-1 at theta, through the n O x n O side (Woodbury)."""
    return PriorPlusLowRank.from_factor(data.prior_sd, gauss_newton_factor(model, theta, data))


def gauss_newton_diagonal(
    model: Model, theta: Float[Array, " P"], data: densities.Data
) -> Diagonal:
    """Laplace with the diagonal of the precision only: sd = (1/prior_sd^2 + sum_r G_rp^2)^-1/2."""
    curvature = (gauss_newton_factor(model, theta, data) ** 2).sum(0)
    return Diagonal((1 / data.prior_sd**2 + curvature) ** -0.5)


def hessian(
    model: Model, theta: Float[Array, " P"], data: densities.Data, *, batch_size: int = 32
) -> Float[Array, "P P"]:
    """Dense Hessian of minus the log posterior, ``batch_size`` Hessian-vector products at a time."""
    gradient = jax.grad(lambda t: -densities.log_density(model, t, data))

    def column(v):
        return jax.jvp(gradient, (theta,), (v,))[1]

    matrix = jax.lax.map(column, jnp.eye(theta.size, dtype=theta.dtype), batch_size=batch_size)
    return 0.5 * (matrix + matrix.T)


def inverse_precision(precision: Float[Array, "P P"]) -> Factor:
    """Sigma = precision^-1 through its Cholesky factor L: F = L^-T. NaN where it is not positive definite."""
    cholesky = jnp.linalg.cholesky(precision)
    eye = jnp.eye(precision.shape[0], dtype=precision.dtype)
    return Factor(jax.scipy.linalg.solve_triangular(cholesky, eye, lower=True).T)


def from_draws(draws: Float[Array, "S P"], *, num_chains: int | None = None) -> Factor:
    """Sample covariance of posterior draws, as its centred factor.

    With ``num_chains`` the draws (chain-major, equally many each) are centred within their chain, which leaves out
    what lies between chains: sign and permutation modes of the network.
    """
    groups = draws.reshape(num_chains or 1, -1, draws.shape[-1])
    centred = (groups - groups.mean(1, keepdims=True)).reshape(draws.shape)
    return Factor(centred.T / jnp.sqrt(draws.shape[0] - groups.shape[0]))


def diagonal_from_draws(draws: Float[Array, "S P"]) -> Diagonal:
    """Variances of the draws, without their correlations."""
    return Diagonal(jnp.std(draws, axis=0, ddof=1))
