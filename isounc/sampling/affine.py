"""Coordinates of models that are linear in their parameters: an affine map, worked out in float64.

At depth 0 nothing of the posterior's approximation depends on the parameters. So the map is made
once, on the host, and r takes the outputs at the data from it directly,

    v_o = m_o + S_o x_o,    f_o = a_o + A_o x_o,    a_o = Phi m_o,  A_o = Phi S_o,

with Phi (n, F) the features in prior coordinates, as many of them as digits ask for
(`isounc.centring`). A_o has no large entries where the data are sharp, whatever the condition
number of the posterior: float32 is enough for r.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from isounc import densities
from isounc.centring import Frame
from isounc.densities import Data
from isounc.models import Model
from isounc.problems import Problem
from isounc.sampling.pseudo_observations import pseudo_observations


class Affine(NamedTuple):
    """theta = sd (m + S x) for each output of a model of depth 0."""

    mean: Float[Array, "O F"]
    """m: mean of the read-out in prior coordinates."""
    root: Float[Array, "O F F"]
    """S: S S^T is its covariance."""
    offset: Float[Array, "O N"]
    """a."""
    slope: Float[Array, "O N F"]
    """A."""

    name = "affine"

    def _by_output(self, x: Float[Array, " P"]) -> Float[Array, "O F"]:
        return x.reshape(self.mean.shape[::-1]).T

    def start(self, z: Float[Array, " P"]) -> Float[Array, " P"]:
        """A draw of the approximation: depth 0 has the one mode."""
        return z

    def theta(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, " P"]:
        """The read-out."""
        v = self.mean + jnp.einsum("ofg,og->of", self.root, self._by_output(x))
        return data.prior_sd * v.T.ravel()

    def remainder(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, ""]:
        """Log likelihood - |m + S x|^2 / 2 + |x|^2 / 2 + |m|^2 / 2."""
        with jax.default_matmul_precision("highest"):
            by_output = self._by_output(x)
            outputs = self.offset + jnp.einsum("onf,of->on", self.slope, by_output)
            apart = jnp.einsum("ofg,og->of", self.root, by_output)
        log_likelihood = densities.log_likelihood_terms(model, outputs.T, data).sum()
        return log_likelihood + 0.5 * x @ x - (apart * (self.mean + 0.5 * apart)).sum()

    def log_volume(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, ""]:
        """The same everywhere."""
        return jnp.zeros((), x.dtype)


class Observed(NamedTuple):
    """Gaussian pseudo-observations of a problem's outputs."""

    phi: Float[np.ndarray, "N F"]
    """Features in prior coordinates."""
    precision: Float[np.ndarray, "N O"]
    """Lambda."""
    target: Float[np.ndarray, "N O"]
    """tau."""

    def sharpness(self) -> float:
        """Largest eigenvalue of sqrt(Lambda) Phi Phi^T sqrt(Lambda)."""
        return max(
            float(np.linalg.norm(np.sqrt(o)[:, None] * self.phi, 2)) ** 2 for o in self.precision.T
        )


def observe_linear(problems: Sequence[Problem], frame: Frame) -> list[Observed]:
    """Pseudo-observations of each problem, by the kernel of its linear model."""
    observed = []
    for i, problem in enumerate(problems):
        phi = frame.linear_features(frame.data.X[i], i)
        observed.append(Observed(phi, *pseudo_observations(problem, phi @ phi.T)))
    return observed


def whiten(observed: Sequence[Observed], dtype: DTypeLike) -> Affine:
    """The posterior under the pseudo-observations of each problem and output."""
    made = []
    for o in observed:
        outputs = zip(o.precision.T, o.target.T, strict=True)
        by_output = [_whiten(o.phi, *output, dtype) for output in outputs]
        made.append([np.stack(parts) for parts in zip(*by_output, strict=True)])
    return Affine(*(jnp.asarray(np.stack(parts), dtype) for parts in zip(*made, strict=True)))


def _whiten(
    phi: Float[np.ndarray, "N F"],
    precision: Float[np.ndarray, " N"],
    target: Float[np.ndarray, " N"],
    dtype: DTypeLike,
) -> tuple[np.ndarray, ...]:
    """The fields of `Affine` for one output, m and S already rounded to `dtype`."""
    root_precision = np.sqrt(precision)
    left, s, right = np.linalg.svd(
        root_precision[:, None] * phi, full_matrices=len(phi) < phi.shape[1]
    )
    along = s / (1 + s**2) * (left.T @ (root_precision * target))[: len(s)]
    shrink = np.ones(phi.shape[1])
    shrink[: len(s)] = (1 + s**2) ** -0.5
    # Any m and S give the same posterior, if a and A are theirs: so those as they are stored.
    mean = (right.T[:, : len(s)] @ along).astype(dtype).astype(float)
    root = (right.T * shrink).astype(dtype).astype(float)
    return mean, root, phi @ mean, phi @ root
