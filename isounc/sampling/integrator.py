"""The Hamiltonian flow of hmc, nuts and chees, with an energy error that float32 can hold.

    H(x, p) = |x|^2 / 2 - r(x) + p^T M^-1 p / 2

is integrated by a splitting: the Gaussian part x^T M x / 2 + p^T M^-1 p / 2 is a rotation and
exact, what is left gives kicks to the momentum (Strang). Where r is flat nothing limits the step
size, however many parameters there are (Beskos et al. 2011, "Hybrid Monte Carlo on Hilbert
spaces"). The energy error is added up kick by kick, since as a difference of two sums over P
parameters it would drown in float32.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

Remainder = Callable[[Float[Array, " P"]], Float[Array, ""]]
"""r(x): log density minus log N(x; 0, I), up to a constant."""


def blackjax(module: str) -> Any:
    """A module of BlackJAX, imported late: importing it computes, and so starts the device."""
    with (
        jax.ensure_compile_time_eval()
    ):  # else what it computes belongs to the trace that is going on
        return importlib.import_module(f"blackjax.{module}")


class Metric(NamedTuple):
    """M^-1 = D (I + U (diag(lam) - I) U^T) D, an estimate of the covariance of x."""

    sd: Float[Array, " P"]
    """The diagonal of D."""
    basis: Float[Array, "P R"]
    """U, orthonormal; R = 0 for a diagonal metric."""
    eigenvalues: Float[Array, " R"]
    """lam."""

    def _middle(self, y: Float[Array, " P"], power: int | float) -> Float[Array, " P"]:
        """(I + U (diag(lam) - I) U^T)^power y."""
        return y + self.basis @ ((self.eigenvalues**power - 1) * (y @ self.basis))

    def velocity(self, p: Float[Array, " P"]) -> Float[Array, " P"]:
        """M^-1 p."""
        return self.sd * self._middle(self.sd * p, 1)

    def mass(self, x: Float[Array, " P"]) -> Float[Array, " P"]:
        """M x."""
        return self._middle(x / self.sd, -1) / self.sd

    def momentum(self, key: PRNGKeyArray, x: Float[Array, " P"]) -> Float[Array, " P"]:
        """A draw from N(0, M)."""
        return self._middle(jax.random.normal(key, x.shape, x.dtype), -0.5) / self.sd

    def turning(
        self,
        momentum_left: Float[Array, " P"],
        momentum_right: Float[Array, " P"],
        momentum_sum: Float[Array, " P"],
        position_left: Float[Array, " P"] | None = None,
        position_right: Float[Array, " P"] | None = None,
    ) -> Bool[Array, ""]:
        """Whether the ends of a trajectory approach each other (nuts)."""
        between = momentum_sum - 0.5 * (momentum_left + momentum_right)
        left, right = self.velocity(momentum_left), self.velocity(momentum_right)
        return (left @ between <= 0) | (right @ between <= 0)


def splitting(
    remainder: Remainder, metric: Metric
) -> Callable[[Any, Float[Array, ""] | float], Any]:
    """Kick, rotation, kick, as BlackJAX calls an integrator.

    Two places of BlackJAX's state hold something else: that of the log density minus the energy
    error so far, that of the gradient (gradient of r, r). BlackJAX hands the latter from one step
    to the next and never looks.
    """
    value_and_gradient = jax.value_and_grad(remainder)

    def force(x: Float[Array, " P"], gradient: Float[Array, " P"]) -> Float[Array, " P"]:
        """Minus the gradient of |x|^2 / 2 - x^T M x / 2 - r."""
        return gradient - (x - metric.mass(x))

    state_of: Any = blackjax("mcmc.integrators").IntegratorState

    def step(state: Any, step_size: Float[Array, ""] | float) -> Any:
        x, p, minus_error, (gradient, r) = state
        kick = 0.5 * step_size * force(x, gradient)
        first = 0.5 * kick @ metric.velocity(2 * p + kick)
        p = p + kick
        # A rounded cosine would lengthen or shorten (x, p) by the same share in every step.
        sin, versine = jnp.sin(step_size), 2 * jnp.sin(0.5 * step_size) ** 2
        y = x + (sin * metric.velocity(p) - versine * x)
        p = p - (sin * metric.mass(x) + versine * p)
        s, gradient = value_and_gradient(y)
        kick = 0.5 * step_size * force(y, gradient)
        second = 0.5 * kick @ metric.velocity(2 * p + kick)
        total = x + y
        error = first + second + 0.5 * (y - x) @ (total - metric.mass(total)) - (s - r)
        return state_of(y, p + kick, minus_error - error, (gradient, s))

    return step


def euclidean(metric: Metric) -> Any:
    """BlackJAX's view of a metric, without kinetic energy: `splitting` has it in its error."""

    def kinetic_energy(momentum, position=None):
        return jnp.zeros((), momentum.dtype)

    def scale(position, element, *, inv, trans):
        raise NotImplementedError

    return blackjax("mcmc.metrics").Metric(metric.momentum, kinetic_energy, metric.turning, scale)
