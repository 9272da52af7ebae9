"""Per-example gradients of a model's outputs, and the quadratic forms that the estimates need of them.

The estimates never look at a gradient itself: they need, per location, the O x O matrix J Sigma J^T of the output
gradients J = df/dtheta under a covariance Sigma. `output_grams` is the one place where gradients are formed, in
chunks of locations, so that memory does not grow with N.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isounc.covariance import Covariance

Apply = Callable[[jax.Array, jax.Array], jax.Array]
"""Outputs before the link: apply(theta, X) -> (N, O)."""


def output_jacobian(
    apply: Apply, theta: Float[Array, " P"], X: Float[Array, "N D"]
) -> Float[Array, "N O P"]:
    """df_o(x_n, theta)/dtheta for each location and output (reverse mode, one location at a time under vmap)."""
    return jax.vmap(jax.jacrev(lambda t, x: apply(t, x[None])[0]), in_axes=(None, 0))(theta, X)


def output_grams(
    apply: Apply,
    theta: Float[Array, " P"],
    X: Float[Array, "N D"],
    covariances: Mapping[str, Covariance],
    *,
    batch_size: int = 128,
) -> tuple[Float[Array, "N O"], dict[str, Float[Array, "N O O"]]]:
    """Outputs f(x, theta) and, for each covariance, the Gram matrices J Sigma J^T.

    Parameters
    ----------
    apply
        Outputs before the link, ``apply(theta, X) -> (N, O)``.
    theta
        Where the gradients are taken.
    X
        Locations.
    covariances
        Sigma by name; all of them share one Jacobian.
    batch_size
        Locations whose Jacobian is held at a time: memory is batch_size x O x P.
    """

    def at_location(x):
        output, pullback = jax.vjp(lambda t: apply(t, x[None])[0], theta)
        jacobian = jax.vmap(lambda cotangent: pullback(cotangent)[0])(
            jnp.eye(output.size, dtype=output.dtype)
        )
        grams = {}
        for name, covariance in covariances.items():
            half = covariance.half(jacobian)
            grams[name] = half @ half.T
        return output, grams

    # Reduced precision (TF32 on GPUs) would cost the norms three of their digits.
    with jax.default_matmul_precision("highest"):
        return jax.lax.map(at_location, X, batch_size=min(batch_size, X.shape[0]))
