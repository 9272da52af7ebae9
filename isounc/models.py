"""Flax NNX multilayer perceptrons by width, depth, activation and parameterisation.

A `Model` is a hashable description; its functions work on one flat parameter vector `theta` (P,),
ordered layer by layer as (kernel row by row, then bias), so that samplers and covariances are plain
linear algebra. `Model.module` gives the Flax module itself.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, Real, Shaped

from isounc.checks import (
    check_choice,
    check_count,
    check_key,
    check_keys,
    check_kind,
    check_numbers,
    check_real,
)
from isounc.likelihoods import LIKELIHOODS
from isounc.problems import Problem

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": nnx.relu,
    "gelu": nnx.gelu,
    "silu": nnx.silu,
}
Theta = Float[Array | np.ndarray, " P"]
"""A flat parameter vector."""
Inputs = Real[Array | np.ndarray, "N D"]
"""Locations; they may hold integers."""
MOST_PARAMS = 10**8
"""Most parameters P: they are held as one vector, many times over while a fit searches."""
PARAMETERISATIONS = ("ntk", "fan_in", "standard")


class MLP(nnx.Module):
    """A multilayer perceptron: `depth` hidden layers of `width` units and a linear read-out.

    Under `ntk` every layer computes x W / sqrt(fan_in) + b, so that a prior of one standard
    deviation on every parameter keeps the function's prior variance finite as the width grows; the
    other two parameterisations compute x W + b and differ in the prior only
    (`Model.group_prior_sd`).

    Source: Jacot et al. 2018 (arXiv 1806.07572) for the NTK parameterisation.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int,
        depth: int,
        activation: str,
        parameterisation: str,
        rngs: nnx.Rngs,
    ):
        sizes = [in_features, *[width] * depth, out_features]
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.activation = ACTIVATIONS[activation]
        # Scaling a layer's input scales its kernel only: the parameterisation leaves the bias out.
        self.input_scale = tuple(
            1 / math.sqrt(a) if parameterisation == "ntk" else 1.0 for a in sizes[:-1]
        )

    def __call__(self, x: Real[Array, "N D"]) -> Float[Array, "N O"]:
        """Outputs before the link: one logit, C logits, or the regression function."""
        return self.layers[-1](self.hidden(x))

    def hidden(self, x: Real[Array, "N D"]) -> Real[Array, "N W"]:
        """Inputs of the read-out: the last hidden layer, scaled as the parameterisation asks."""
        for i, layer in enumerate(self.layers):
            x = x * self.input_scale[i] if self.input_scale[i] != 1.0 else x
            if i + 1 < len(self.layers):
                x = self.activation(layer(x))
        return x

    def transposed(self, x: Real[Array, "D N"]) -> Float[Array, "O N"]:
        """The outputs with the examples along the last axis, of inputs that have them there too.

        CPUs work along the last axis. `isounc.densities.in_units` says when that makes the gradient
        of a log likelihood faster.
        """
        return _affine(self.layers[-1], self.hidden_transposed(x))

    def hidden_transposed(self, x: Real[Array, "D N"]) -> Real[Array, "W N"]:
        """`hidden` with the examples along the last axis."""
        for i, layer in enumerate(self.layers):
            x = x * self.input_scale[i] if self.input_scale[i] != 1.0 else x
            if i + 1 < len(self.layers):
                x = self.activation(_affine(layer, x))
        return x


def _affine(layer: nnx.Linear, x: Real[Array, "D N"]) -> Float[Array, "W N"]:
    """A layer of inputs that have the examples along the last axis."""
    assert layer.bias is not None
    return layer.kernel[...].T @ x + layer.bias[...][:, None]


@dataclass(frozen=True)
class Model:
    """An MLP by its settings, with its functions on flat parameter vectors.

    Instances are hashable and equal when their settings are, so that a compiled function is shared
    by every problem of one shape.
    """

    in_features: int
    """Input dimension D."""
    out_features: int
    """Outputs O: C logits for `categorical`, otherwise 1."""
    likelihood: str = "bernoulli"
    """How outputs become p(y|x): a name of `isounc.likelihoods.LIKELIHOODS`."""
    width: int = 32
    """Hidden units per layer (without effect at depth 0)."""
    depth: int = 1
    """Hidden layers; 0 is logistic, softmax or linear regression."""
    activation: str = "tanh"
    """tanh, relu, gelu or silu."""
    parameterisation: str = "ntk"
    """ntk, fan_in or standard: where 1/sqrt(fan-in) sits (`MLP`, `group_prior_sd`)."""

    def __post_init__(self):
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("parameterisation", self.parameterisation, PARAMETERISATIONS)
        check_choice("likelihood", self.likelihood, LIKELIHOODS)
        for name, least, most in (
            ("in_features", 1, MOST_PARAMS),
            ("out_features", 1, MOST_PARAMS),
            ("width", 1, MOST_PARAMS),
            ("depth", 0, 1000),
        ):
            check_count(name, getattr(self, name), least, most)
        if self.num_params > MOST_PARAMS:
            raise ValueError(
                f"width and depth must make at most {MOST_PARAMS} parameters, got {self.num_params}"
            )
        outputs = LIKELIHOODS[self.likelihood].num_outputs(self.out_features)
        check_count(
            f"out_features of a {self.likelihood} model", self.out_features, outputs, outputs
        )

    @functools.cached_property
    def _abstract(self) -> tuple[nnx.GraphDef, nnx.State]:
        """The module without its arrays: building it costs more than the rest of a trace."""
        return nnx.split(nnx.eval_shape(lambda: self._build(nnx.Rngs(0))))

    def _build(self, rngs: nnx.Rngs) -> MLP:
        return MLP(
            self.in_features,
            self.out_features,
            width=self.width,
            depth=self.depth,
            activation=self.activation,
            parameterisation=self.parameterisation,
            rngs=rngs,
        )

    @property
    def layer_sizes(self) -> tuple[tuple[int, int], ...]:
        """(fan-in, fan-out) of each layer."""
        sizes = (self.in_features, *(self.width,) * self.depth, self.out_features)
        return tuple(itertools.pairwise(sizes))

    @property
    def num_params(self) -> int:
        """P."""
        return sum((a + 1) * b for a, b in self.layer_sizes)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the L parameter groups, in the order of `theta`: kernel and bias of a layer."""
        return tuple(f"layer{i}/{n}" for i in range(self.depth + 1) for n in ("kernel", "bias"))

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Parameters in each group; they add up to P."""
        return tuple(s for a, b in self.layer_sizes for s in (a * b, b))

    @property
    def group_index(self) -> Int[np.ndarray, " P"]:
        """The group of each parameter."""
        return np.repeat(np.arange(len(self.groups)), self.group_sizes)

    def group_prior_sd(self, prior_sd: float) -> Float[np.ndarray, " L"]:
        """Prior standard deviation of each group.

        `ntk` and `standard`: prior_sd for every parameter. `fan_in`: prior_sd / sqrt(fan_in) for
        kernels, prior_sd for biases. Under `standard` the prior variance of the function grows with
        the width, which confounds any trend with width.

        Raises
        ------
        ValueError
            If `prior_sd` is not a positive number.
        """
        prior_sd = check_real("prior_sd", prior_sd, positive=True)
        fan_in = self.parameterisation == "fan_in"
        sds = [
            s
            for a, _ in self.layer_sizes
            for s in (prior_sd / math.sqrt(a) if fan_in else prior_sd, prior_sd)
        ]
        return np.asarray(sds, float)

    def param_prior_sd(self, prior_sd: float) -> Float[np.ndarray, " P"]:
        """`group_prior_sd` spread over the parameters."""
        return np.repeat(self.group_prior_sd(prior_sd), self.group_sizes)

    def unflatten(self, theta: Shaped[Array | np.ndarray, " P"]) -> dict:
        """The flat vector as the nested dict that Flax calls the module's pure state.

        Raises
        ------
        ValueError
            If it does not have P entries.
        """
        check_numbers("theta", theta, f"({self.num_params},)", (self.num_params,))
        layers, at = {}, 0
        for i, (a, b) in enumerate(self.layer_sizes):
            layers[i] = {
                "kernel": theta[at : at + a * b].reshape(a, b),
                "bias": theta[at + a * b : at + a * b + b],
            }
            at += (a + 1) * b
        return {"layers": layers}

    def module(self, theta: Theta) -> MLP:
        """The Flax NNX module with parameters `theta`."""
        return self._module(self.unflatten(theta))

    def _module(self, params: dict) -> MLP:
        graphdef, abstract = self._abstract
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graphdef, state)

    def apply(self, theta: Theta, X: Inputs) -> Float[Array, "N O"]:
        """Outputs at X, before the link; no device rounds the matrix products (no TF32)."""
        return self.apply_params(self.unflatten(theta), X)

    def apply_params(self, params: dict, X: Inputs) -> Float[Array, "N O"]:
        """`apply` with the parameters as `unflatten` gives them, a leaf per group."""
        self._check_inputs(X)
        with jax.default_matmul_precision("highest"):
            return self._module(params)(jnp.asarray(X))

    def apply_transposed(self, theta: Theta, X: Inputs) -> Float[Array, "O N"]:
        """`apply` with a row for each output; faster on CPUs (`MLP.transposed`)."""
        self._check_inputs(X)
        with jax.default_matmul_precision("highest"):
            return self._module(self.unflatten(theta)).transposed(jnp.asarray(X).T)

    def predict(self, theta: Theta, X: Inputs) -> Float[Array, "N M"]:
        """The predictive quantity at X: probabilities, or the function itself."""
        return LIKELIHOODS[self.likelihood].predict(self.apply(theta, X))

    def _check_inputs(self, X: Any) -> None:
        check_numbers("X", X, f"(N, {self.in_features})", (None, self.in_features))

    def features(self, theta: Theta, X: Inputs) -> Float[Array, "N F"]:
        """Phi with outputs = Phi V for the read-out V (F, O), the last F O entries of theta.

        F is the width (or D at depth 0) and 1 for the bias.
        """
        self._check_inputs(X)
        with jax.default_matmul_precision("highest"):
            hidden = self._module(self.unflatten(theta)).hidden(jnp.asarray(X))
        return jnp.concatenate([hidden, jnp.ones((len(X), 1), hidden.dtype)], axis=1)

    def features_transposed(self, theta: Theta, X: Inputs) -> Float[Array, "F N"]:
        """`features` with a row for each feature; faster on CPUs (`MLP.transposed`)."""
        self._check_inputs(X)
        with jax.default_matmul_precision("highest"):
            hidden = self._module(self.unflatten(theta)).hidden_transposed(jnp.asarray(X).T)
        return jnp.concatenate([hidden, jnp.ones((1, len(X)), hidden.dtype)])

    def sample_prior(self, key: PRNGKeyArray, prior_sd: float) -> Float[Array, " P"]:
        """One draw of theta from N(0, sigma_l^2)."""
        check_key("key", key)
        sd = jnp.asarray(self.param_prior_sd(prior_sd), jnp.result_type(float))
        return sd * jax.random.normal(key, (self.num_params,), sd.dtype)

    def init(self, key: PRNGKeyArray) -> Float[Array, " P"]:
        """A practitioner's initialisation: zero biases, kernels of variance 1/fan_in.

        That is N(0, 1) under `ntk`, where the forward pass divides by sqrt(fan_in), and
        N(0, 1/fan_in) otherwise (LeCun et al. 1998).
        """
        check_key("key", key)
        ntk = self.parameterisation == "ntk"
        sds = [s for a, _ in self.layer_sizes for s in (1.0 if ntk else 1 / math.sqrt(a), 0.0)]
        sd = jnp.asarray(np.repeat(sds, self.group_sizes), jnp.result_type(float))
        return sd * jax.random.normal(key, (self.num_params,), sd.dtype)


def check_inputs(
    problems: Sequence[Problem], model: Model, keys: Sequence[PRNGKeyArray] | None = None
) -> None:
    """Refuse anything but problems, a model and (if there are keys) a key for each problem.

    Raises
    ------
    TypeError, ValueError
        Naming the argument.
    """
    for problem in problems:
        check_kind("problem", problem, Problem, "make_problem")
    check_kind("model", model, Model, "make_model")
    if keys is not None and len(problems) == len(keys) == 1:
        check_key("key", keys[0])
    elif keys is not None:
        check_keys("keys", keys, len(problems))


def make_model(
    problem: Problem,
    *,
    width: int = 32,
    depth: int = 1,
    activation: str = "tanh",
    parameterisation: str = "ntk",
) -> Model:
    """Make the MLP with the inputs, outputs and likelihood that a problem asks for.

    Raises
    ------
    ValueError
        For a width below 1, a negative depth, or an unknown activation or parameterisation (with
        near matches).
    TypeError
        For anything but a problem.
    """
    check_kind("problem", problem, Problem, "make_problem")
    return Model(
        in_features=problem.num_features,
        out_features=problem.num_outputs,
        likelihood=problem.likelihood,
        width=width,
        depth=depth,
        activation=activation,
        parameterisation=parameterisation,
    )
