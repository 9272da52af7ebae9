"""The networks of the study, MLPs and a small CNN, as functions of their parameters; training.

Every network ends in a linear read-out of C >= 2 classes, logits = h(x) V + b with the features h(x):
its inputs for `logistic`, otherwise the last hidden layer. Parameters are the nested dict that Flax
calls a pure state; `layers` are the dense ones, the read-out last.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from isounc.models import MLP, Model
from isounc.training import TrainSettings

NETWORKS = {
    "mlp": "an MLP of one hidden layer",
    "cnn": "a small CNN",
    "logistic": "logistic regression",
}
"""Networks, with what people call them."""
SIDE = 8
"""Rows and columns of an image."""
_CHANNELS = (8, 16)


class Cnn(nnx.Module):
    """Two convolutions of 3 x 3 with ReLU and average pooling, a dense layer, and a read-out."""

    def __init__(self, width: int, num_classes: int, *, rngs: nnx.Rngs):
        first, second = _CHANNELS
        self.first = nnx.Conv(1, first, (3, 3), rngs=rngs)
        self.second = nnx.Conv(first, second, (3, 3), rngs=rngs)
        left = second * (SIDE // 4) ** 2
        sizes = ((left, width), (width, num_classes))
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in sizes])

    def hidden(self, x: Float[Array, "N D"]) -> Float[Array, "N F"]:
        """Features of images whose pixels come row by row."""
        x = x.reshape(len(x), SIDE, SIDE, 1)
        for convolution in (self.first, self.second):
            x = nnx.avg_pool(nnx.relu(convolution(x)), (2, 2), strides=(2, 2))
        return nnx.relu(self.layers[0](x.reshape(len(x), -1)))


@dataclass(frozen=True)
class Network:
    """A network by its settings; equal ones share compiled programs."""

    kind: str
    """A name of `NETWORKS`."""
    in_features: int
    """Input dimension D."""
    num_classes: int
    """Classes C."""
    width: int
    """Units of the last hidden layer."""

    @property
    def num_features(self) -> int:
        """F, the length of h(x)."""
        return self.in_features if self.kind == "logistic" else self.width

    @functools.cached_property
    def model(self) -> Model:
        """The MLP as `isounc.models` and the samplers know it (tanh, NTK parameterisation)."""
        return Model(
            self.in_features, self.num_classes, "categorical", width=self.width,
            depth=0 if self.kind == "logistic" else 1,
        )  # fmt: skip

    @functools.cached_property
    def _abstract(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(nnx.eval_shape(lambda: self._build(nnx.Rngs(0))))

    def _build(self, rngs: nnx.Rngs) -> MLP | Cnn:
        if self.kind == "cnn":
            return Cnn(self.width, self.num_classes, rngs=rngs)
        model = self.model
        return MLP(
            self.in_features, self.num_classes, width=model.width, depth=model.depth,
            activation=model.activation, parameterisation=model.parameterisation, rngs=rngs,
        )  # fmt: skip

    @property
    def num_params(self) -> int:
        """P."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._abstract[1]))

    def init(self, key: PRNGKeyArray) -> dict:
        """A practitioner's initialisation: kernels of variance 1 / fan-in, zero biases."""
        if self.kind == "cnn":
            return nnx.to_pure_dict(nnx.state(self._build(nnx.Rngs(key))))
        return self.model.unflatten(self.model.init(key))

    def hidden(self, params: Any, X: Float[Array, "N D"]) -> Float[Array, "N F"]:
        """The features h(x), which the read-out multiplies."""
        graphdef, abstract = self._abstract
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        with jax.default_matmul_precision("highest"):
            return nnx.merge(graphdef, state).hidden(X)

    def read_out(self, params: Any) -> tuple[Float[Array, "F C"], Float[Array, " C"]]:
        """V and b."""
        layer = params["layers"][max(params["layers"])]
        return layer["kernel"], layer["bias"]

    def logits(self, params: Any, X: Float[Array, "N D"]) -> Float[Array, "N C"]:
        """The logits."""
        return self.of_hidden(params, self.hidden(params, X))

    def of_hidden(self, params: Any, hidden: Float[Array, "N F"]) -> Float[Array, "N C"]:
        """The logits from the features."""
        kernel, bias = self.read_out(params)
        return jnp.matmul(hidden, kernel, precision="highest") + bias[None, :]


@functools.lru_cache(maxsize=64)
def network_of(kind: str, in_features: int, num_classes: int, width: int) -> Network:
    """One instance for all cells of a shape: bound functions are equal only if it is the same."""
    return Network(kind, in_features, num_classes, width)


class Training(NamedTuple):
    """What one network is trained on."""

    data: Int[Array, ""]
    """Which of the data sets."""
    key: Shaped[Array, "*key"]
    """Random key of its initialisation, the order of the examples and its dropout."""
    rate: Float[Array, ""]
    """Share of the features that dropout sets to zero in every step."""


@functools.partial(jax.jit, static_argnames=("network", "settings"))
def train(
    trainings: Training,
    X: Float[Array, "S n D"],
    y: Int[Array, "S n"],
    *,
    network: Network,
    settings: TrainSettings,
) -> Any:
    """Train B networks by AdamW on the mean cross-entropy, one after the other.

    Parameters
    ----------
    trainings
        Arrays with one entry for each of the B networks.
    X, y
        S data sets of equal size.

    Returns
    -------
    pytree
        Their parameters, each with a first axis of length B.
    """
    num, minibatch = X.shape[1], min(settings.minibatch, X.shape[1])
    adamw = optax.adamw(settings.learning_rate, weight_decay=settings.weight_decay)

    def one(training: Training):
        inputs, labels = X[training.data], y[training.data]

        def loss(params, rows, key):
            kept = jax.random.bernoulli(key, 1 - training.rate, (minibatch, network.num_features))
            hidden = network.hidden(params, inputs[rows]) * kept / (1 - training.rate)
            logits = network.of_hidden(params, hidden)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

        def step(carry, rows_and_key):
            params, state = carry
            updates, state = adamw.update(jax.grad(loss)(params, *rows_and_key), state, params)
            return (optax.apply_updates(params, updates), state), None

        def epoch(carry, key):
            order, dropout = jax.random.split(key)
            rows = jax.random.permutation(order, num)[: num // minibatch * minibatch]
            rows = rows.reshape(-1, minibatch)
            return jax.lax.scan(step, carry, (rows, jax.random.split(dropout, len(rows))))

        start, rest = jax.random.split(training.key)
        params = network.init(start)
        keys = jax.random.split(rest, settings.epochs)
        (params, _), _ = jax.lax.scan(epoch, (params, adamw.init(params)), keys)
        return params

    return jax.lax.map(one, trainings)
