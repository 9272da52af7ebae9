"""Covariances Sigma of the parameters: from the prior, from curvature and from posterior draws.

Each has one method: `half` maps gradients J (..., P) to J Sigma^(1/2) (..., R), so that

    half(J) half(J)^T = J Sigma J^T.

Its squares are nonnegative whatever the rounding, and R may be smaller or larger than P. Curvature
is the Hessian of minus the log posterior or the generalised Gauss-Newton matrix (GGN). O is the
number of model outputs.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isounc import densities
from isounc.checks import check_count, check_numbers
from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model


@runtime_checkable
class Covariance(Protocol):
    """Covariance of the parameters."""

    def half(self, jacobian: Float[Array, "*B P"]) -> Float[Array, "*B R"]:
        """Return gradients in coordinates in which the covariance is the identity."""
        ...


def _scale(a: Float[Array, "*B P"], by: Float[Array, " P"]) -> Float[Array, "*B P"]:
    """Multiply the last axis; silent rank promotion is an error in the tests."""
    return a * jnp.expand_dims(by, range(a.ndim - 1))


class Diagonal(NamedTuple):
    """Sigma = diag(sd^2): isotropic, prior, layer-scaled and every diagonal approximation."""

    sd: Float[Array, " P"]
    """Standard deviation of each parameter."""

    def half(self, jacobian: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Return J diag(sd)."""
        return _scale(jacobian, self.sd)


class Factor(NamedTuple):
    """Sigma = F F^T for a factor F."""

    factor: Float[Array, "P R"]
    """F."""

    def half(self, jacobian: Float[Array, "*B P"]) -> Float[Array, "*B R"]:
        """Return J F."""
        return jacobian @ self.factor


class PriorPlusLowRank(NamedTuple):
    """Sigma = (diag(1/sd^2) + G^T G)^-1 for a curvature G^T G of rank R (Woodbury).

    With the singular value decomposition G diag(sd) = V diag(s) U^T in prior coordinates,

        Sigma = diag(sd) (I - U diag(s^2 / (1 + s^2)) U^T) diag(sd).
    """

    sd: Float[Array, " P"]
    """Prior standard deviation of each parameter."""
    basis: Float[Array, "P R"]
    """U, with orthonormal columns."""
    shrink: Float[Array, " R"]
    """1 - (1 + s^2)^-1/2, between 0 and 1."""

    def half(self, jacobian: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Return J diag(sd) (I - U diag(shrink) U^T), with a symmetric square root."""
        white = _scale(jacobian, self.sd)
        return white - _scale(white @ self.basis, self.shrink) @ self.basis.T

    @classmethod
    def from_factor(cls, sd: Float[Array, " P"], factor: Float[Array, "R P"]) -> PriorPlusLowRank:
        """Make it from the prior and a factor G of the curvature."""
        _, singular, basis = jnp.linalg.svd(_scale(factor, sd), full_matrices=False)
        return cls(sd, basis.T, 1 - 1 / jnp.sqrt(1 + singular**2))


class OutputVariance(NamedTuple):
    """Cov[f(x)] = v(x) I on a model's outputs, whatever its parameters: of null baselines.

    v(x) is 1, or the distance of x to the nearest of some inputs. It is no `Covariance`.
    """

    nearest: Float[Array, "n D"] | None = None
    """These inputs."""

    def at(self, X: Float[Array, "N D"]) -> Float[Array, " N"]:
        """Return v at N locations."""
        if self.nearest is None:
            return jnp.ones(X.shape[0], X.dtype)
        # Differences, where |x|^2 - 2 x z + |z|^2 would lose the digits of short distances.
        return jax.lax.map(
            lambda x: jnp.sqrt(((self.nearest - x[None]) ** 2).sum(1).min()), X, batch_size=64
        )


def gauss_newton_factor(
    model: Model, theta: Float[Array, " P"], data: densities.Data
) -> Float[Array, "R P"]:
    """Return a factor G of the GGN, with R = n O rows for n examples.

    G^T G = sum_n J_n^T (-d^2 log p(y_n | f_n) / df^2) J_n
    """
    likelihood = LIKELIHOODS[model.likelihood]

    def rows_of_example(x: Float[Array, " D"]) -> Float[Array, "O P"]:
        output, pullback = jax.vjp(lambda t: model.apply(t, x[None])[0], theta)
        half = likelihood.curvature_factor(output[None], data.noise_sd)[0]
        return jax.vmap(lambda cotangent: pullback(cotangent)[0])(half.T)

    return jax.lax.map(rows_of_example, data.X, batch_size=64).reshape(-1, theta.size)


def gauss_newton(model: Model, theta: Float[Array, " P"], data: densities.Data) -> PriorPlusLowRank:
    """Return the Laplace covariance (prior precision + GGN)^-1 at theta, by n O rows of the GGN."""
    return PriorPlusLowRank.from_factor(data.prior_sd, gauss_newton_factor(model, theta, data))


def gauss_newton_diagonal(
    model: Model, theta: Float[Array, " P"], data: densities.Data
) -> Diagonal:
    """Return the Laplace covariance for the diagonal of the precision alone.

    sd_p = (1 / prior_sd_p^2 + sum_r G_rp^2)^-1/2
    """
    curvature = (gauss_newton_factor(model, theta, data) ** 2).sum(0)
    return Diagonal((1 / data.prior_sd**2 + curvature) ** -0.5)


def hessian(
    model: Model, theta: Float[Array, " P"], data: densities.Data, *, batch_size: int = 32
) -> Float[Array, "P P"]:
    """Return the dense Hessian of minus the log posterior at theta.

    Parameters
    ----------
    model
        The model.
    theta
        Parameters.
    data
        Training data and prior.
    batch_size
        Number of Hessian-vector products at a time, which bounds the memory.
    """
    gradient = jax.grad(lambda t: -densities.log_density(model, t, data))

    def column(v: Float[Array, " P"]) -> Float[Array, " P"]:
        return jax.jvp(gradient, (theta,), (v,))[1]

    matrix = jax.lax.map(column, jnp.eye(theta.size, dtype=theta.dtype), batch_size=batch_size)
    return 0.5 * (matrix + matrix.T)


def inverse_precision(precision: Float[Array, "P P"]) -> Factor:
    """Return Sigma = precision^-1 by the Cholesky factor L of the precision, as F = L^-T.

    All numbers are NaN if the precision is not positive definite.
    """
    cholesky = jnp.linalg.cholesky(precision)
    eye = jnp.eye(precision.shape[0], dtype=precision.dtype)
    return Factor(jax.scipy.linalg.solve_triangular(cholesky, eye, lower=True).T)


def from_draws(draws: Float[Array, "S P"], *, num_chains: int | None = None) -> Factor:
    """Return the sample covariance of posterior draws, as its centred factor.

    With `num_chains` the draws (chain-major, equally many for each chain) are centred within their
    chain. That leaves out the variance between chains, to which the sign and permutation modes of a
    network contribute.

    Raises
    ------
    ValueError
        For masked draws, or fewer than two a chain, of which there is no covariance.
    """
    check_numbers("draws", draws, "(S, P)", (None, None))
    chains = 1 if num_chains is None else num_chains
    check_count("num_chains", chains, 1)
    draws = jnp.asarray(draws)
    if draws.shape[0] % chains or draws.shape[0] <= chains:
        raise ValueError(
            f"draws must have shape (S, P), two rows or more for each of {chains} chains, equally "
            f"many, got {draws.shape}"
        )
    groups = draws.reshape(chains, -1, draws.shape[-1])
    centred = (groups - groups.mean(1, keepdims=True)).reshape(draws.shape)
    return Factor(centred.T / jnp.sqrt(draws.shape[0] - groups.shape[0]))


def diagonal_from_draws(draws: Float[Array, "S P"]) -> Diagonal:
    """Return the variances of posterior draws, without their correlations."""
    check_numbers("draws", draws, "(S, P)", (None, None))
    draws = jnp.asarray(draws)
    if draws.shape[0] < 2:
        raise ValueError(f"draws must have shape (S, P), two rows or more, got {draws.shape}")
    return Diagonal(jnp.std(draws, axis=0, ddof=1))
