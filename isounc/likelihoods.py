"""Likelihoods: what the outputs f of a model say about a label y, by name.

`LIKELIHOODS` holds three; `register_likelihood` adds another, and everything else asks the object:

    bernoulli     y in {0, 1}       one logit       predicts p(y = 1) = sigmoid(f)
    categorical   y in 0..C-1       C logits        predicts p(y = c) = softmax(f)_c
    gaussian      y real            one mean        predicts f; y = f + noise of a known sd

Settings, problems and stored records hold a likelihood's name.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from isounc.checks import check_name

PROBABILITY_ATOL = 1e-6
"""How far outside of [0, 1] a probability computed in float32 may lie."""
PROBABILITY_SUM_ATOL = 1e-3
"""How far from 1 the sum of class probabilities computed in float32 may be."""
MIN_PROBABILITY = 2.0**-24
"""Where probabilities are clipped before their log: a float32 sigmoid reaches 0 and 1 exactly."""

NoiseSd = Float[Array | np.ndarray, ""] | float
"""Known standard deviation of y given x."""


@runtime_checkable
class Likelihood(Protocol):
    """p(y | f) for the O outputs f of a model, and the predictive quantity (M = O columns) of it.

    Methods on JAX arrays are called inside of compiled functions. A subclass inherits the defaults
    below, which are right for one output that does not stand for a class. Instances are hashable (a
    frozen dataclass is): they are static arguments of compiled functions.
    """

    quantity: str = "f"
    """Name of the predictive quantity: p for probabilities."""
    link: str = "identity"
    """Name of the function from outputs to the prediction (`isounc.estimates.links`)."""
    uses_noise_sd: bool = False
    """Whether y is the output plus Gaussian noise, whose standard deviation a problem must give."""
    num_classes: tuple[int, float] = (0, 0)
    """The fewest and the most classes; 0 where labels are no classes."""

    def num_outputs(self, num_classes: int) -> int:
        """O, the number of outputs that a model needs."""
        return 1

    def column_names(self, num_columns: int) -> tuple[str, ...]:
        """Names of the columns of the prediction in result rows."""
        return (self.quantity,)

    @abstractmethod
    def check_labels(
        self, argument: str, y: Shaped[np.ndarray, " n"], num_classes: int
    ) -> Shaped[np.ndarray, " n"]:
        """Return labels as int64 or float64; raise a ValueError unless all are possible."""
        ...

    def check_prediction(self, argument: str, p: Float[np.ndarray, "N M"]) -> None:
        """Raise a ValueError unless `p` can be predictions, or the truth."""

    @abstractmethod
    def log_prob(
        self, outputs: Float[Array, "N O"], y: Shaped[Array, " N"], noise_sd: NoiseSd
    ) -> Float[Array, " N"]:
        """Log p(y | f) of each example, in nats."""
        ...

    @abstractmethod
    def predict(self, outputs: Float[Array, "N O"]) -> Float[Array, "N M"]:
        """The predictive quantity, the mean of y or of its class indicators."""
        ...

    def predict_jacobian(self, outputs: Float[Array, "N O"]) -> Float[Array, "N M O"]:
        """Derivative of `predict`, dp_m / df_o."""
        return jax.vmap(jax.jacobian(lambda f: self.predict(f[None])[0]))(outputs)

    @abstractmethod
    def label_variance(
        self, outputs: Float[Array, "N O"], noise_sd: NoiseSd
    ) -> Float[Array, "N M"]:
        """Var[y | f], the aleatoric variance at fixed parameters."""
        ...

    def expected_label_variance(
        self, label_variance: Float[Array, "N M"], var: Float[Array, "N M"]
    ) -> Float[Array, "N M"]:
        """E[Var[y | f]] from its value at E[f] and the variance of the prediction.

        With Var[y | f] = V(p): V(p*) + V''(p*) Var[p] / 2 for p* = E[p], here with V'' = 0.
        """
        return label_variance

    def label_entropy(self, outputs: Float[Array, "N O"], noise_sd: NoiseSd) -> Float[Array, " N"]:
        """Entropy of y | f in nats (differential for real y); NaN where there is no closed form."""
        return jnp.full(outputs.shape[0], jnp.nan, outputs.dtype)

    @abstractmethod
    def curvature_factor(
        self, outputs: Float[Array, "N O"], noise_sd: NoiseSd
    ) -> Float[Array, "N O O"]:
        """B with B B^T = E_y[-d2 log p(y | f) / df2], the outputs' part of the GGN."""
        ...

    @abstractmethod
    def sample_labels(
        self, key: PRNGKeyArray, outputs: Float[Array, "N O"], noise_sd: NoiseSd
    ) -> Shaped[Array, " N"]:
        """One draw of y | f for each example.

        The simulation-based calibration of the sampler rests on it: it must share no line with
        `log_prob`.
        """
        ...

    @abstractmethod
    def predictive_log_prob(
        self,
        p: Float[np.ndarray, "N M"],
        y: Shaped[np.ndarray, " N"],
        *,
        noise_sd: float | None = None,
        p_var: Float[np.ndarray, "N M"] | None = None,
    ) -> Float[np.ndarray, " N"]:
        """Log p(y) under the mean `p` and, where it matters, the variance of the prediction."""
        ...

    def predictive_entropy(self, p: Float[np.ndarray, "N M"]) -> Float[np.ndarray, " N"]:
        """Entropy of y under the averaged prediction, in nats; NaN where that does not suffice."""
        return np.full(len(p), np.nan)

    def constant_prediction(
        self, y: Shaped[np.ndarray, " n"], num_columns: int
    ) -> Float[np.ndarray, " M"]:
        """The best prediction that ignores x: the mean of y, or the frequencies of the classes."""
        return np.array([y.mean()])


class _Classes(Likelihood):
    """Labels that are classes 0..C-1, whose probabilities are predicted."""

    quantity = "p"

    def check_labels(self, argument, y, num_classes):
        if not np.isin(y, np.arange(num_classes)).all():
            seen = np.unique(y)
            shown = ", ".join(f"{label:g}" for label in seen[:8]) + ", ..." * (len(seen) > 8)
            raise ValueError(
                f"{argument} must hold labels 0..{num_classes - 1} for {num_classes} classes, got "
                f"{shown}; recode with np.unique(y, return_inverse=True)[1], or for regression "
                "pass likelihood='gaussian' and noise_sd"
            )
        return y.astype(np.int64)

    def check_prediction(self, argument, p):
        # A negated test, so that NaN is caught too.
        if not (p.min() >= -PROBABILITY_ATOL and p.max() <= 1 + PROBABILITY_ATOL):
            raise ValueError(f"{argument} must hold probabilities, got {p.min():g} to {p.max():g}")
        sums = class_probabilities(p).sum(axis=1)
        worst = sums[np.abs(sums - 1).argmax()]
        if abs(worst - 1) > PROBABILITY_SUM_ATOL:
            raise ValueError(
                f"{argument} must hold probabilities that sum to 1 in each row, got {worst:g}"
            )

    def expected_label_variance(self, label_variance, var):
        """To first order E[p (1 - p)] = p* (1 - p*) - Var[p]."""
        return label_variance - var

    def predictive_log_prob(self, p, y, *, noise_sd=None, p_var=None):
        """Log p[n, y_n], which is the whole predictive; a sure mistake costs 16.6 nats."""
        chosen = class_probabilities(p)[np.arange(len(p)), y]
        return np.log(np.clip(chosen, MIN_PROBABILITY, 1.0))

    def predictive_entropy(self, p):
        p = np.clip(class_probabilities(p), 0, 1)
        return -(p * np.log(np.where(p > 0, p, 1))).sum(1)


@dataclass(frozen=True)
class Bernoulli(_Classes):
    """Two classes through one logit, p(y = 1) = sigmoid(f). Nothing cancels at saturation."""

    link = "sigmoid"
    num_classes = (2, 2)

    def column_names(self, num_columns):
        """The class whose probability it is."""
        return ("1",)

    def log_prob(self, outputs, y, noise_sd):
        # y f - softplus(f) in the form that does not cancel where the label is all but certain.
        return -jax.nn.softplus((1 - 2 * y) * outputs[:, 0])

    def predict(self, outputs):
        return jax.nn.sigmoid(outputs)

    def predict_jacobian(self, outputs):
        """P (1 - p)."""
        return (jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs))[..., None]

    def label_variance(self, outputs, noise_sd):
        """P (1 - p)."""
        return jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs)

    def label_entropy(self, outputs, noise_sd):
        # Even in f, and a sum of positive terms for f >= 0.
        f = jnp.abs(outputs[:, 0])
        return jax.nn.softplus(-f) + f * jax.nn.sigmoid(-f)

    def curvature_factor(self, outputs, noise_sd):
        """sqrt(p (1 - p))."""
        return jnp.sqrt(self.label_variance(outputs, noise_sd))[..., None]

    def sample_labels(self, key, outputs, noise_sd):
        p = 1 / (1 + jnp.exp(-outputs[:, 0]))
        return jax.random.bernoulli(key, p).astype(jnp.int32)


@dataclass(frozen=True)
class Categorical(_Classes):
    """C classes through as many logits, p(y = c) = softmax(f)_c. Nothing cancels at saturation."""

    link = "softmax"
    num_classes = (2, math.inf)

    def num_outputs(self, num_classes):
        """C."""
        return num_classes

    def column_names(self, num_columns):
        """The classes."""
        return tuple(str(c) for c in range(num_columns))

    def log_prob(self, outputs, y, noise_sd):
        log_p = jax.nn.log_softmax(outputs, axis=1)
        return jnp.take_along_axis(log_p, y[:, None], axis=1)[:, 0]

    def predict(self, outputs):
        return jax.nn.softmax(outputs, axis=-1)

    def predict_jacobian(self, outputs):
        """diag(p) - p p^T."""
        p = jax.nn.softmax(outputs, axis=-1)
        return p[..., :, None] * _identity_minus_rows(p)

    def label_variance(self, outputs, noise_sd):
        """P (1 - p) of each class."""
        p = jax.nn.softmax(outputs, axis=-1)
        return p * _complement(p)

    def label_entropy(self, outputs, noise_sd):
        log_p = jax.nn.log_softmax(outputs, axis=-1)
        return -(jnp.exp(log_p) * log_p).sum(-1)

    def curvature_factor(self, outputs, noise_sd):
        """B_ck = (1[c=k] - p_c) sqrt(p_k), since B B^T = diag(p) - p p^T."""
        p = jax.nn.softmax(outputs, axis=-1)
        return _identity_minus_rows(p).mT * jnp.sqrt(p)[..., None, :]

    def sample_labels(self, key, outputs, noise_sd):
        return jax.random.categorical(key, outputs, axis=1).astype(jnp.int32)

    def constant_prediction(self, y, num_columns):
        return np.bincount(y, minlength=num_columns) / len(y)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Regression: y = f + N(0, noise_sd^2)."""

    uses_noise_sd = True

    def check_labels(self, argument, y, num_classes):
        """Any real number is possible."""
        return y.astype(np.float64)

    def log_prob(self, outputs, y, noise_sd):
        residual = (y - outputs[:, 0]) / noise_sd
        return -0.5 * residual**2 - jnp.log(noise_sd) - 0.5 * jnp.log(2 * jnp.pi)

    def predict(self, outputs):
        return outputs

    def predict_jacobian(self, outputs):
        """1."""
        return jnp.ones((*outputs.shape, 1), outputs.dtype)

    def label_variance(self, outputs, noise_sd):
        """The noise variance."""
        return jnp.full_like(outputs, noise_sd**2)

    def label_entropy(self, outputs, noise_sd):
        entropy = 0.5 * jnp.log(2 * jnp.pi * jnp.e * noise_sd**2)
        return jnp.full(outputs.shape[0], entropy, outputs.dtype)

    def curvature_factor(self, outputs, noise_sd):
        """1 / noise_sd."""
        return jnp.ones((*outputs.shape, 1), outputs.dtype) / noise_sd

    def sample_labels(self, key, outputs, noise_sd):
        return outputs[:, 0] + noise_sd * jax.random.normal(key, outputs.shape[:1], outputs.dtype)

    def predictive_log_prob(self, p, y, *, noise_sd=None, p_var=None):
        """Log N(y; p, noise_sd^2 + p_var)."""
        assert noise_sd is not None
        var = noise_sd**2 + (np.zeros(len(p)) if p_var is None else p_var[:, 0])
        return -0.5 * (np.log(2 * np.pi * var) + (y - p[:, 0]) ** 2 / var)


def class_probabilities(p: Float[np.ndarray, "N M"]) -> Float[np.ndarray, "N C"]:
    """The probability of each class: (1 - p, p) where there is one column."""
    return np.concatenate([1 - p, p], axis=1) if p.shape[1] == 1 else p


def _complement(p: Float[Array, "N C"]) -> Float[Array, "N C"]:
    """1 - p_c as the sum of the other probabilities, which keeps its digits where p_c is near 1."""
    others = 1 - jnp.eye(p.shape[-1], dtype=p.dtype)
    return jnp.matmul(p, others, precision=jax.lax.Precision.HIGHEST)


def _identity_minus_rows(p: Float[Array, "N C"]) -> Float[Array, "N C C"]:
    """1[c=k] - p_k for each row c."""
    eye = jnp.eye(p.shape[-1], dtype=p.dtype)[None]
    return eye * _complement(p)[:, None, :] - (1 - eye) * p[:, None, :]


LIKELIHOODS: dict[str, Likelihood] = {
    "bernoulli": Bernoulli(),
    "categorical": Categorical(),
    "gaussian": Gaussian(),
}
"""Likelihoods by name."""


def register_likelihood(name: str, likelihood: Likelihood, *, overwrite: bool = False) -> None:
    """Add a likelihood to `LIKELIHOODS`, so that problems and models can be given its name.

    Raises
    ------
    ValueError
        If the name is taken and `overwrite` is False, or is no name, or the likelihood lacks a
        member of `Likelihood`.
    """
    check_name("name", name)
    if not isinstance(likelihood, Likelihood):
        raise ValueError(f"likelihood must have every member of Likelihood, got {likelihood!r}")
    if name in LIKELIHOODS:
        if not overwrite:
            raise ValueError(
                f"name {name!r} is already registered; choose another or pass overwrite=True"
            )
        # Compiled functions know a likelihood by its name.
        jax.clear_caches()
    LIKELIHOODS[name] = likelihood
