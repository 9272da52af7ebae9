"""Small convolutional networks for images of eight by eight pixels, with a training of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PRNGKeyArray

from isounc.problems import Problem
from isounc.training import TrainSettings, constant_log_likelihood

SIDE = 8
"""Pixels of a side of an image."""


class ConvNet(nnx.Module):
    """Convolutions of three by three, each with a ReLU and a mean over two by two, and a read-out."""

    def __init__(self, width: int, depth: int, num_classes: int, *, rngs: nnx.Rngs):
        channels = [1, *[width] * depth]
        self.convolutions = nnx.List([nnx.Conv(a, width, (3, 3), rngs=rngs) for a in channels[:-1]])
        self.readout = nnx.Linear((SIDE >> depth) ** 2 * width, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N C"]:
        """Logits of flat images."""
        images = x.reshape(-1, SIDE, SIDE, 1)
        for convolution in self.convolutions:
            images = nnx.avg_pool(nnx.relu(convolution(images)), (2, 2), strides=(2, 2))
        return self.readout(images.reshape(len(images), -1))


@dataclass(frozen=True)
class CNN:
    """A `ConvNet` by its settings, with its functions on flat parameter vectors, as `isounc.Model`."""

    width: int
    """Channels of each convolution."""
    depth: int
    """Convolutions: one, two or three, each of which halves the image's sides."""
    out_features: int
    """Classes C."""

    @functools.cached_property
    def _parts(self) -> tuple[nnx.GraphDef, nnx.State, Callable[[Array], Any]]:
        """The module without its arrays, and the way from a flat vector to them."""
        graphdef, state = nnx.split(nnx.eval_shape(lambda: self._build(jax.random.key(0))))
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), nnx.to_pure_dict(state))
        return graphdef, state, ravel_pytree(zeros)[1]

    def _build(self, key: PRNGKeyArray) -> ConvNet:
        return ConvNet(self.width, self.depth, self.out_features, rngs=nnx.Rngs(key))

    def init(self, key: PRNGKeyArray) -> Float[Array, " P"]:
        """Parameters as Flax begins with them: kernels of variance 1/fan-in, zero biases."""
        _, state = nnx.split(self._build(key))
        return ravel_pytree(nnx.to_pure_dict(state))[0]

    def unflatten(self, theta: Float[Array | np.ndarray, " P"]) -> dict:
        """The flat vector as the nested dict that Flax calls the module's pure state."""
        return self._parts[2](jnp.asarray(theta))

    def apply(
        self, theta: Float[Array | np.ndarray, " P"], X: Float[Array | np.ndarray, "N D"]
    ) -> Float[Array, "N C"]:
        """Logits of flat images."""
        return self.apply_params(self.unflatten(theta), X)

    def apply_params(
        self, params: dict, X: Float[Array | np.ndarray, "N D"]
    ) -> Float[Array, "N C"]:
        """`apply` with the parameters as `unflatten` gives them."""
        graphdef, abstract, _ = self._parts
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        with jax.default_matmul_precision("highest"):
            return nnx.merge(graphdef, state)(jnp.asarray(X))


@functools.lru_cache(maxsize=64)
def cnn_of(width: int, depth: int, num_classes: int) -> CNN:
    """One instance for all cells of a shape: bound functions are equal only if it is the same."""
    return CNN(width, depth, num_classes)


class Trained(NamedTuple):
    """A trained network."""

    theta: Float[np.ndarray, " P"]
    """Its parameters."""
    reasons: tuple[str, ...]
    """Why its check failed; empty if it passed."""


def train_cnn(
    problem: Problem, network: CNN, *, key: PRNGKeyArray, settings: TrainSettings
) -> Trained:
    """Train by AdamW on the mean cross entropy, as `isounc.training.fit_trained` does an MLP.

    The check is the same: finite parameters, and a likelihood above that of a constant prediction.
    """
    start, order = jax.random.split(key)
    count, minibatch = len(problem.X), min(settings.minibatch, len(problem.X))
    steps = count // minibatch
    rng = np.random.default_rng(np.asarray(jax.random.key_data(order)))
    rows = np.tile(np.arange(count, dtype=np.int32), (settings.epochs, 1))
    rows = rng.permuted(rows, axis=1)[:, : steps * minibatch].reshape(-1, minibatch)
    X, y = np.asarray(problem.X, np.float32), np.asarray(problem.y, np.int32)
    theta, loss = jax.device_get(
        _train(network.init(start), X, y, rows, network=network, settings=settings)
    )
    log_likelihood, constant = -len(y) * float(loss), constant_log_likelihood(problem)
    reasons = ()
    if not np.isfinite(theta).all():
        reasons = ("Training diverged: parameters are not finite.",)
    elif not log_likelihood > constant:
        reasons = (
            f"Training is no better than a constant prediction: log likelihood {log_likelihood:.2f}, "
            f"constant {constant:.2f}.",
        )
    return Trained(theta, reasons)


@functools.partial(jax.jit, static_argnames=("network", "settings"))
def _train(
    theta: Float[Array, " P"],
    X: Float[Array | np.ndarray, "N D"],
    y: Int[Array | np.ndarray, " N"],
    rows: Int[Array | np.ndarray, "steps minibatch"],
    *,
    network: CNN,
    settings: TrainSettings,
) -> tuple[Float[Array, " P"], Float[Array, ""]]:
    """Parameters, and the mean loss of all examples."""
    adamw = optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay)
    X, y = jnp.asarray(X), jnp.asarray(y)

    def loss(theta, X, y):
        logits = network.apply(theta, X)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(carry, batch):
        theta, state = carry
        updates, state = adamw.update(jax.grad(loss)(theta, X[batch], y[batch]), state, theta)
        return (jnp.asarray(optax.apply_updates(theta, updates)), state), None

    (theta, _), _ = jax.lax.scan(step, (theta, adamw.init(theta)), jnp.asarray(rows))
    return theta, loss(theta, X, y)
