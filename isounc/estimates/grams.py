"""Gram matrices of the gradients of a model's outputs, location by location.

The estimates never look at a gradient itself: they need, per location, the O x O matrix
J Sigma J^T of the output gradients J = df/dtheta under a covariance Sigma. Where Sigma is a
multiple of the identity on each group of parameters no gradient is formed at all (`group_grams`);
`output_grams` is the one place where they are, in chunks of locations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from isounc.covariance import Covariance
from isounc.gradnorm.api import value_and_grad_gram
from isounc.models import Model

Apply = Callable[[jax.Array, jax.Array], jax.Array]
"""Outputs before the link: apply(theta, X) -> (N, O)."""


def output_grams(
    apply: Apply,
    theta: Float[Array, " P"],
    X: Real[Array, "N D"],
    covariances: Mapping[str, Covariance],
    *,
    batch_size: int = 128,
) -> tuple[Float[Array, "N O"], dict[str, Float[Array, "N O O"]]]:
    """Outputs f(x, theta) and, for each covariance, the Gram matrices J Sigma J^T.

    Parameters
    ----------
    apply
        Outputs before the link, `apply(theta, X) -> (N, O)`.
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


def group_grams(
    model: Model, theta: Float[Array, " P"], X: Real[Array, "N D"], *, batch_size: int = 128
) -> tuple[Float[Array, "N O"], Float[Array, "L N O O"]]:
    """Outputs f(x, theta) and J_l J_l^T for the gradients J_l of each of L parameter groups.

    Gradients are not formed (`value_and_grad_gram`). J Sigma J^T = sum_l sigma_l^2 J_l J_l^T where
    Sigma is sigma_l^2 I on group l.
    """
    index = model.unflatten(model.group_index)
    at = {
        jax.tree_util.keystr(path): str(leaf.flat[0])
        for path, leaf in jax.tree_util.tree_leaves_with_path(index)
    }
    grams = value_and_grad_gram(
        lambda params, x: model.apply_params(params, x[None])[0],
        per_leaf=at.__getitem__,
        in_axes=0,
        batch_size=batch_size,
    )
    outputs, parts = grams(model.unflatten(theta), X)
    return outputs, jnp.stack([parts[str(i)] for i in range(len(model.groups))])
