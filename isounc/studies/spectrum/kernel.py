"""Inner products of the gradients of an MLP, without a gradient ever being formed.

The gradient of an output by the kernel of a layer is the outer product of the layer's input a and
of the derivative d by its pre-activation, and that by the bias is d. In prior coordinates

    <g, g'> = sum_l (s_kernel^2 a . a' + s_bias^2) (d . d')

with the prior standard deviations s of layer l: n^2 products of vectors of the width, whatever the
number P of parameters.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isounc.densities import Data
from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model


class Factors(NamedTuple):
    """Gradients of M functions of the outputs at N locations, in factors for each layer."""

    inputs: tuple[Float[Array, "N _"], ...]
    """a: inputs of each layer."""
    deltas: tuple[Float[Array, "N M _"], ...]
    """d: derivatives by the pre-activations of each layer."""

    def weighted(self, weights: Float[Array, "N K M"]) -> Factors:
        """The gradients of K linear combinations of the functions."""
        mixed = (jnp.einsum("nkm,nmh->nkh", weights, d) for d in self.deltas)
        return Factors(self.inputs, tuple(mixed))


def factors(
    theta: Float[Array, " P"], X: Float[Array, "N D"], *, model: Model
) -> tuple[Float[Array, "N O"], Factors]:
    """The outputs before the link, and their gradients in factors."""
    module = model.module(theta)

    def at(x: Float[Array, " D"]) -> tuple[Array, Factors]:
        def outputs(shifts: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
            h, inputs = x[None], []
            for i, layer in enumerate(module.layers):
                h = h * module.input_scale[i]
                inputs.append(h[0])
                h = layer(h) + shifts[i][None]
                h = module.activation(h) if i < model.depth else h
            return h[0], tuple(inputs)

        zeros = tuple(jnp.zeros(b, theta.dtype) for _, b in model.layer_sizes)
        out, pullback, inputs = jax.vjp(outputs, zeros, has_aux=True)
        (deltas,) = jax.vmap(pullback)(jnp.eye(out.size, dtype=out.dtype))
        return out, Factors(inputs, deltas)

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(at, X, batch_size=min(64, len(X)))


def prior_vars(model: Model, data: Data) -> Float[Array, " L"]:
    """Prior variance of each group of parameters."""
    starts = [sum(model.group_sizes[:i]) for i in range(len(model.groups))]
    return data.prior_sd[jnp.asarray(starts)] ** 2


def inner(a: Factors, b: Factors, variances: Float[Array, " L"]) -> Float[Array, "N M K Q"]:
    """<g, g'> in prior coordinates for N x M gradients g and K x Q gradients g'."""
    total = None
    with jax.default_matmul_precision("highest"):
        for i in range(len(a.inputs)):
            gain = variances[2 * i] * (a.inputs[i] @ b.inputs[i].T) + variances[2 * i + 1]
            part = jnp.einsum("nmh,kqh->nmkq", a.deltas[i], b.deltas[i]) * gain[:, None, :, None]
            total = part if total is None else total + part
    assert total is not None
    return total


def sq_norms(a: Factors, variances: Float[Array, " L"]) -> Float[Array, "N M"]:
    """|g|^2 in prior coordinates."""
    total = jnp.zeros(a.deltas[0].shape[:2], a.deltas[0].dtype)
    for i, (inputs, deltas) in enumerate(zip(a.inputs, a.deltas, strict=True)):
        gain = variances[2 * i] * (inputs**2).sum(1) + variances[2 * i + 1]
        total = total + gain[:, None] * (deltas**2).sum(2)
    return total


@functools.partial(jax.jit, static_argnames="model")
def curvature_kernel(
    theta: Float[Array, " P"], data: Data, *, model: Model
) -> tuple[Factors, Float[Array, "R R"]]:
    """The R = n O rows of a factor G of the GGN (G^T G), and G G^T, in prior coordinates."""
    outputs, gradients = factors(theta, data.X, model=model)
    half = LIKELIHOODS[model.likelihood].curvature_factor(outputs, data.noise_sd)
    rows = gradients.weighted(half.mT)
    num_rows = outputs.size
    return rows, inner(rows, rows, prior_vars(model, data)).reshape(num_rows, num_rows)


@functools.partial(jax.jit, static_argnames="model")
def prediction_norms(
    theta: Float[Array, " P"], X: Float[Array, "N D"], data: Data, *, model: Model
) -> Float[Array, "N M"]:
    """|g|^2 in prior coordinates for the gradients g of the prediction."""
    return sq_norms(_of_predictions(theta, X, model), prior_vars(model, data))


@functools.partial(jax.jit, static_argnames="model")
def prediction_rows(
    theta: Float[Array, " P"], X: Float[Array, "N D"], rows: Factors, data: Data, *, model: Model
) -> tuple[Float[Array, "N M"], Float[Array, "N M R"]]:
    """|g|^2 and G g in prior coordinates, for rows G of the curvature."""
    gradients, variances = _of_predictions(theta, X, model), prior_vars(model, data)
    products = inner(gradients, rows, variances)
    return sq_norms(gradients, variances), products.reshape(*products.shape[:2], -1)


def _of_predictions(theta: Float[Array, " P"], X: Float[Array, "N D"], model: Model) -> Factors:
    outputs, gradients = factors(theta, X, model=model)
    return gradients.weighted(LIKELIHOODS[model.likelihood].predict_jacobian(outputs))
