"""Inputs far from zero (calendar years, Unix seconds): an exact change of the first layer.

A column whose mean c is many times its spread makes kernel and bias of the first layer cancel:
float32 loses every digit of a slope, and a posterior over both is so narrow that no map to it has
digits either. Nothing needs the parameters in which that happens. With the kernel's prior sd s_w,
the bias's s_b and k the factor on the inputs (1 / sqrt(D) under `ntk`, otherwise 1), put for each
hidden unit, n^2 = s_b^2 + k^2 s_w^2 |c|^2 and a = k s_w c / n,

    W = s_w (a u_0 + L u_w),    b = n u_0 - k c . W,    L L^T = I - a a^T,

with u = (u_w, u_0) ~ N(0, I): a rotation of the prior. The unit's input is then

    k x . W + b = u_0 (n + k s_w (x - c) . a) + u_w . k s_w L^T (x - c),

in which nothing cancels. So the model is kept and takes other features of the inputs, worked out
once in float64, and parameters u with the prior N(0, I) in its first layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from isounc.densities import Data, host_data
from isounc.models import MLP, Inputs, Model, Theta
from isounc.problems import Problem

OFF_CENTRE = 10.0
"""Mean of a column of X over its standard deviation from which on the first layer is changed."""


def _fields(model: Model) -> dict[str, Any]:
    return {field.name: getattr(model, field.name) for field in fields(Model)}


@dataclass(frozen=True)
class CentredModel(Model):
    """A model whose first layer has the parameters u and the D + 1 features of `Centred.features`.

    The order of its parameters is the model's: u_w in place of the kernel, u_0 of the bias.
    """

    def _of_features(self) -> Model:
        """The network on the features, with a bias more in each unit than it needs."""
        changed: dict[str, Any] = {"in_features": self.in_features + 1}
        return Model(**_fields(self) | changed)

    def _module(self, params: dict) -> MLP:
        """The network on the features; u_0 belongs to one of them."""
        first = params["layers"][0]
        kernel = jnp.concatenate([first["kernel"], first["bias"][None]])
        changed = {"kernel": kernel, "bias": jnp.zeros_like(first["bias"])}
        return self._of_features()._module({"layers": params["layers"] | {0: changed}})

    def _check_inputs(self, X: Any) -> None:
        self._of_features()._check_inputs(X)

    def group_prior_sd(self, prior_sd: float) -> Float[np.ndarray, " L"]:
        """1 in the first layer."""
        sds = super().group_prior_sd(prior_sd)
        sds[:2] = 1.0
        return sds

    def features(self, theta: Theta, X: Inputs) -> Float[Array, "N F"]:
        """Inputs of the read-out, as `Model.features`; at depth 0 the features X themselves."""
        if self.depth == 0:
            scale = 1 / math.sqrt(self.in_features + 1) if self.parameterisation == "ntk" else 1.0
            return jnp.asarray(X) * scale
        return super().features(theta, X)

    def features_transposed(self, theta: Theta, X: Inputs) -> Float[Array, "F N"]:
        """`features` with a row for each feature."""
        return (
            self.features(theta, X).T if self.depth == 0 else super().features_transposed(theta, X)
        )


class Centred(NamedTuple):
    """The change of one problem's first layer, in float64."""

    centre: Float[np.ndarray, " D"]
    """c."""
    to_features: Float[np.ndarray, "D E"]
    """Features = offset + (x - c) times this."""
    offset: Float[np.ndarray, " E"]
    """Features at c."""
    to_theta: Float[np.ndarray, "E E"]
    """Kernel and bias of a unit from its u."""
    kernel_sd: float
    """s_w."""
    bias_sd: float
    """s_b."""

    def features(self, X: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N E"]:
        """The features of inputs."""
        return self.offset + (X - self.centre) @ self.to_features

    def parameters(self, theta: Float[np.ndarray, " P"], model: Model) -> Float[np.ndarray, " P"]:
        """Parameters u from kernel and bias: the inverse of a rotation is its transpose."""
        sd = np.append(np.full(len(self.centre), self.kernel_sd), self.bias_sd)
        return _rotate_first_layer(self.to_theta.T / sd**2, theta, model)


def is_off_centre(X: Float[np.ndarray, "n D"]) -> bool:
    """Whether a column's mean is so far from zero that float32 has trouble."""
    return bool((np.abs(X.mean(0)) > OFF_CENTRE * X.std(0)).any())


def centre(problem: Problem, model: Model, prior_sd: float) -> Centred:
    """The change of the first layer that the inputs of a problem ask for."""
    ntk = model.parameterisation == "ntk"
    kernel_sd, bias_sd = model.group_prior_sd(prior_sd)[:2]
    c = problem.X.mean(0)
    k = 1 / math.sqrt(len(c)) if ntk else 1.0
    squares = np.append((k * kernel_sd * c) ** 2, bias_sd**2)
    # Sums of squares from each entry on, from the end: nothing is subtracted, so that the smallest
    # keeps its digits.
    tails = squares[::-1].cumsum()[::-1]
    n = math.sqrt(tails[0])
    a, rho = k * kernel_sd * c / n, tails / tails[0]
    # Cholesky's factor of I - a a^T in closed form.
    L = -np.tril(np.outer(a, a / np.sqrt(rho[1:] * rho[:-1])), -1) + np.diag(
        np.sqrt(rho[1:] / rho[:-1])
    )
    bias_row = np.append(-n * rho[-1] * a / np.sqrt(rho[1:] * rho[:-1]), bias_sd**2 / n)
    to_theta = np.vstack([kernel_sd * np.column_stack([L, a]), bias_row])
    # The network on the features divides them by sqrt(D + 1) under `ntk`.
    scale = math.sqrt(len(c) + 1) if ntk else 1.0
    return Centred(
        centre=c,
        to_features=scale * k * kernel_sd * np.column_stack([L, a]),
        offset=scale * np.append(np.zeros(len(c)), n),
        to_theta=to_theta,
        kernel_sd=float(kernel_sd),
        bias_sd=float(bias_sd),
    )


class Frame(NamedTuple):
    """Problems of one shape in the parameters in which they are computed."""

    original: Model
    """The model as it was given."""
    model: Model
    """The same, or its `CentredModel`."""
    data: Data
    """Its data, float64 on the host, stacked along a leading axis."""
    centred: tuple[Centred, ...]
    """The change of each problem; empty if no inputs are off centre."""

    def locations(self, problem: Problem, i: int) -> Float[np.ndarray, "N E"]:
        """Inputs of the model at the locations of the i-th problem's regions, one by one."""
        X = np.concatenate(list(problem.regions.values()))
        return self.centred[i].features(X) if self.centred else X

    def linear_features(
        self, X: Float[np.ndarray | Array, "N E"], i: int
    ) -> Float[np.ndarray, "N F"]:
        """Phi of a model of depth 0 at its inputs X: outputs = Phi V with V ~ N(0, I)."""
        ntk = self.original.parameterisation == "ntk"
        scale = 1 / math.sqrt(X.shape[1]) if ntk else 1.0
        X = np.asarray(X)
        if self.centred:
            return scale * X
        sd = np.asarray(self.data.prior_sd[i]).reshape(X.shape[1] + 1, -1)[:, 0]
        return np.column_stack([scale * X, np.ones(len(X))]) * sd

    def theta(self, u: Float[np.ndarray, "*T P"], i: int) -> Float[np.ndarray, "*T P"]:
        """Parameters of the original model in the i-th problem, from those of `model`."""
        if not self.centred:
            return u
        return _rotate_first_layer(self.centred[i].to_theta, u, self.original)

    def parameters(self, theta: Float[np.ndarray, " P"], i: int) -> Float[np.ndarray, " P"]:
        """Parameters of `model` in the i-th problem, from those of the original one."""
        return self.centred[i].parameters(theta, self.original) if self.centred else theta


def _rotate_first_layer(
    matrix: Float[np.ndarray, "E E"], theta: Float[np.ndarray, "*T P"], model: Model
) -> Float[np.ndarray, "*T P"]:
    rows, units = len(matrix), model.layer_sizes[0][1]
    rotated = np.array(theta, float)
    first = rotated[..., : rows * units].reshape(*rotated.shape[:-1], rows, units)
    rotated[..., : rows * units] = (matrix @ first).reshape(*rotated.shape[:-1], -1)
    return rotated


def make_frame(problems: Sequence[Problem], model: Model, prior_sd: float) -> Frame:
    """Change the first layer if the inputs of any problem are off centre.

    Raises
    ------
    ValueError
        As `isounc.densities.stack_data`.
    """
    data = host_data(problems, model, prior_sd, np.float64)
    if not any(is_off_centre(problem.X) for problem in problems):
        return Frame(model, model, data, ())
    centred = tuple(centre(problem, model, prior_sd) for problem in problems)
    X = np.stack([c.features(p.X) for c, p in zip(centred, problems, strict=True)])
    changed = CentredModel(**_fields(model))
    sd = np.broadcast_to(changed.param_prior_sd(prior_sd), data.prior_sd.shape)
    return Frame(model, changed, data._replace(X=X, prior_sd=sd), centred)
