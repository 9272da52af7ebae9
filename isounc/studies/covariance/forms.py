"""Forms of Sigma = (GGN + lambda diag(1 / prior_sd^2))^-1: what is kept of the GGN, by name.

All are made from a factor G of the GGN, G^T G = GGN, with R = n O rows for n inputs of any kind, so
that no P x P matrix is formed. With lambda = 1 the prior is that of the posterior; a lambda is the
same as a prior whose standard deviations are divided by its root.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isounc import densities
from isounc.covariance import Covariance, Diagonal, PriorPlusLowRank, gauss_newton_factor
from isounc.models import Model


class Curvature(NamedTuple):
    """The GGN of some inputs at theta*, beside a prior."""

    sd: Float[Array, " P"]
    """Prior standard deviation of each parameter, divided by the root of lambda."""
    factor: Float[Array, "R P"]
    """G."""
    full: PriorPlusLowRank
    """The whole of Sigma."""
    layer_inputs: tuple[Float[Array, "n F"], ...]
    """Inputs of each layer, with a column of ones for the bias."""
    layers: tuple[slice, ...]
    """The parameters of each layer."""
    rank: int
    """Directions that `low_rank` keeps."""


class Blocks(NamedTuple):
    """Independent blocks of parameters; those in none have no variance."""

    slices: tuple[slice, ...]
    """The parameters of each block."""
    blocks: tuple[Covariance, ...]
    """The covariance of each block."""

    def half(self, jacobian: Float[Array, "*B P"]) -> Float[Array, "*B R"]:
        """Return the blocks' halves side by side."""
        halves = [
            block.half(jacobian[..., where])
            for where, block in zip(self.slices, self.blocks, strict=True)
        ]
        return jnp.concatenate(halves, axis=-1)


class Kronecker(NamedTuple):
    """Sigma = (diag(1/sd^2) + A (x) B)^-1 for a layer with parameters (F, W), kernel above bias.

    In prior coordinates A is a second moment of what the layer multiplies its parameters by, and B
    that of the gradients by what comes out.

    Source: Martens, Grosse 2015, Optimizing neural networks with Kronecker-factored approximate
    curvature (arXiv 1503.05671); eigenvalues instead of their factored damping, as in George et al.
    2018 (arXiv 1806.03884).
    """

    sd: Float[Array, " P"]
    """Prior standard deviation of each parameter of the layer."""
    left: Float[Array, "F F"]
    """Eigenvectors of A."""
    right: Float[Array, "W W"]
    """Eigenvectors of B."""
    values: Float[Array, "F W"]
    """Products of their eigenvalues."""

    def half(self, jacobian: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
        """Return J diag(sd) in the eigenvectors, over the root of 1 + eigenvalue."""
        shape = jacobian.shape[:-1]
        white = jacobian.reshape(-1, self.sd.size) * self.sd[None, :]
        matrices = white.reshape(-1, *self.values.shape)
        turned = self.left.T @ matrices @ self.right / jnp.sqrt(1 + self.values)[None]
        return turned.reshape(*shape, -1)


def _block(curvature: Curvature, where: slice) -> PriorPlusLowRank:
    return PriorPlusLowRank.from_factor(curvature.sd[where], curvature.factor[:, where])


def _block_diagonal(curvature: Curvature) -> Covariance:
    blocks = tuple(_block(curvature, where) for where in curvature.layers)
    return Blocks(curvature.layers, blocks)


def _last_layer(curvature: Curvature) -> Covariance:
    last = curvature.layers[-1]
    return Blocks((last,), (_block(curvature, last),))


def _diagonal(curvature: Curvature) -> Covariance:
    return Diagonal((1 / curvature.sd**2 + (curvature.factor**2).sum(0)) ** -0.5)


def _low_rank(curvature: Curvature) -> Covariance:
    # Singular values come in descending order.
    sd, basis, shrink = curvature.full
    return PriorPlusLowRank(sd, basis[:, : curvature.rank], shrink[: curvature.rank])


def _isotropic(curvature: Curvature) -> Covariance:
    sd, basis, shrink = curvature.full
    trace = ((sd[:, None] * basis * (1 - shrink)[None, :]) ** 2).sum()
    if basis.shape[1] < sd.size:  # what the directions of the GGN leave keeps the prior
        trace = trace + (sd**2 * jnp.maximum(0, 1 - (basis**2).sum(1))).sum()
    return Diagonal(jnp.full_like(sd, jnp.sqrt(trace / sd.size)))


def _kfac(curvature: Curvature) -> Covariance:
    blocks = []
    for inputs, where in zip(curvature.layer_inputs, curvature.layers, strict=True):
        width = (where.stop - where.start) // inputs.shape[1]
        sd = curvature.sd[where]
        white = inputs * sd.reshape(-1, width)[:, 0][None, :]
        # The gradients by the bias are those by what comes out of the layer.
        out = curvature.factor[:, where][:, -width:]
        a, left = jnp.linalg.eigh(white.T @ white / len(white))
        b, right = jnp.linalg.eigh(out.T @ out)
        values = jnp.maximum(a, 0)[:, None] * jnp.maximum(b, 0)[None, :]
        blocks.append(Kronecker(sd, left, right, values))
    return Blocks(curvature.layers, tuple(blocks))


Form = Callable[[Curvature], Covariance]
FORMS: dict[str, Form] = {
    "full": lambda curvature: curvature.full,
    "low_rank": _low_rank,
    "block_diagonal": _block_diagonal,
    "kfac": _kfac,
    "last_layer": _last_layer,
    "diagonal": _diagonal,
    "isotropic": _isotropic,
}
"""Forms by name.

    full             all of the GGN
    low_rank         its strongest directions; the complement keeps the prior
    block_diagonal   the blocks of each layer, kernel and bias together
    kfac             these as Kronecker products
    last_layer       the block of the last layer; the others have no variance
    diagonal         its diagonal
    isotropic        a multiple of the identity with the trace of the full form"""


def layers_of(model: Model) -> tuple[slice, ...]:
    """The parameters of each layer, kernel and bias."""
    ends = [0]
    for a, b in model.layer_sizes:
        ends.append(ends[-1] + (a + 1) * b)
    return tuple(slice(a, b) for a, b in itertools.pairwise(ends))


def layer_inputs(
    model: Model, theta: Float[Array, " P"], X: Float[Array, "n D"]
) -> tuple[Float[Array, "n F"], ...]:
    """Inputs of each layer, with a last column of ones for the bias."""
    module, found, x = model.module(theta), [], X
    for layer, scale in zip(module.layers, module.input_scale, strict=True):
        x = x * scale
        found.append(jnp.concatenate([x, jnp.ones((len(x), 1), x.dtype)], axis=1))
        x = module.activation(layer(x))
    return tuple(found)


def make_curvature(
    model: Model,
    theta: Float[Array, " P"],
    data: densities.Data,
    lam: Float[Array, ""] | float = 1.0,
    *,
    rank: int = 1,
) -> Curvature:
    """The GGN at theta* of the inputs of `data`, whose labels it does not depend on."""
    factor, sd = gauss_newton_factor(model, theta, data), data.prior_sd / jnp.sqrt(lam)
    return Curvature(
        sd, factor, PriorPlusLowRank.from_factor(sd, factor), layer_inputs(model, theta, data.X),
        layers_of(model), rank,
    )  # fmt: skip


class Estimated(NamedTuple):
    """What is computed of the GGN of some inputs."""

    forms: dict[str, Float[Array, " N"]]
    """g^T Sigma g by form for lambda = 1, summed over the columns of the prediction."""
    lams: Float[Array, "L N"]
    """The same of the full form for each other lambda."""
    basis: Float[Array, "P R"]
    """Eigenvectors of the GGN in prior coordinates, the strongest first."""
    strengths: Float[Array, " R"]
    """Their eigenvalues, where the prior has 1."""


@functools.partial(jax.jit, static_argnames="model")
def gradients(
    theta: Float[Array, " P"], X: Float[Array, "N D"], *, model: Model
) -> Float[Array, "N M P"]:
    """Gradients g of the prediction at N locations, one for each column."""

    def at(x: Float[Array, " D"]) -> Float[Array, "M P"]:
        return jax.jacrev(lambda t: model.predict(t, x[None])[0])(theta)

    return jax.lax.map(at, X, batch_size=64)


@functools.partial(jax.jit, static_argnames=("model", "forms", "rank"))
def estimate_forms(
    theta: Float[Array, " P"],
    g: Float[Array, "N M P"],
    data: densities.Data,
    lams: Float[Array, " L"],
    *,
    model: Model,
    forms: tuple[str, ...],
    rank: int,
) -> Estimated:
    """g^T Sigma g at N locations, for each form and for each lambda.

    Parameters
    ----------
    theta
        theta*.
    g
        Gradients of the prediction there.
    data
        The inputs of the GGN, and the prior; labels are not read.
    lams
        Values of lambda beside 1, in units of the prior's precision.
    forms
        Keys of `FORMS`.
    rank
        Directions that `low_rank` keeps.
    """
    curvature = make_curvature(model, theta, data, rank=rank)
    basis = curvature.full.basis
    strengths = (1 - curvature.full.shrink) ** -2 - 1

    def spread(covariance: Covariance) -> Float[Array, " N"]:
        return (covariance.half(g) ** 2).sum((1, 2))

    def at(lam: Float[Array, ""]) -> Float[Array, " N"]:
        # The directions are the same for every lambda.
        shrink = 1 - 1 / jnp.sqrt(1 + strengths / lam)
        return spread(PriorPlusLowRank(curvature.sd / jnp.sqrt(lam), basis, shrink))

    found = {form: spread(FORMS[form](curvature)) for form in forms}
    return Estimated(found, jax.lax.map(at, lams), basis, strengths)
