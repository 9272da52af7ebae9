"""Coordinates in which a posterior is sampled: maps theta = T(x) that bring it close to N(0, I).

The density of x is N(x; 0, I) exp(r(x)) up to a constant: every kind of coordinates knows T and the
*remainder* r, the part that is not the standard normal. Kept apart, r stays small whatever the
number of parameters, and float32 is enough for the differences of energy that decide about
acceptance.

`prior`      theta = sd x, r = log likelihood.
`curvature`  theta = MAP + (prior precision + GGN)^(-1/2) x, the Laplace approximation, exact at
             rank n O.
`readout`    the last layer V, given the hidden layers, is whitened by the posterior that it would
             have under Gaussian pseudo-observations of the outputs; the hidden layers stay in prior
             coordinates. As the width grows the posterior of x tends to N(0, I), whatever the data
             (Hron et al. 2022, "Wide Bayesian neural networks have a simple weight posterior",
             which does this for regression). It is in `isounc.sampling.readout`; at depth 0 it is
             an affine map (`isounc.sampling.affine`).

All are made on the host in float64 as far as that matters, in the frame in which inputs are centred
(`isounc.centring`). What float32 then still loses, `isounc.sampling.precision` finds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from isounc import covariance, densities
from isounc.centring import Frame
from isounc.densities import Data, on_device
from isounc.fit import fit_maps
from isounc.models import Model
from isounc.precision import double_precision
from isounc.problems import Problem
from isounc.sampling.affine import Affine, observe_linear, whiten
from isounc.sampling.pseudo_observations import (
    has_pseudo_observations,
    prior_kernels,
    spectra_of,
)
from isounc.sampling.readout import NarrowReadout, Readout, whitening

MAX_EXAMPLES = 2000
"""readout: most examples n for which the n x n kernel is factored."""
SHARP = 1500.0
"""auto: largest eigenvalue of sqrt(Lambda) K sqrt(Lambda) above which coordinates other than prior
may pay. Steps in prior coordinates shorten with its root."""


Keys = Key[Array, " B"]
"""A key for each problem."""


@runtime_checkable
class Coordinates(Protocol):
    """A pytree of arrays, so that one program takes those of all problems of a shape."""

    @property
    def name(self) -> str:
        """Name of the kind of coordinates, as results give it."""
        ...

    def theta(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, " P"]:
        """The parameters at x."""
        ...

    def remainder(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, ""]:
        """Log posterior density of x minus log N(x; 0, I), up to a constant."""
        ...

    def log_volume(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, ""]:
        """Log |det dtheta/dx| up to a constant: the check of `remainder` rests on it."""
        ...

    def start(self, z: Float[Array, " P"]) -> Float[Array, " P"]:
        """The start of a chain from a draw of N(0, I): dispersed, not around a mode."""
        ...


class Prior(NamedTuple):
    """theta = sd x."""

    name = "prior"

    def start(self, z: Float[Array, " P"]) -> Float[Array, " P"]:
        """A draw of the prior."""
        return z

    def theta(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, " P"]:
        """Whitened by the prior."""
        return data.prior_sd * x

    def remainder(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, ""]:
        """The log likelihood."""
        return densities.log_likelihood(model, data.prior_sd * x, data)

    def log_volume(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, ""]:
        """The same everywhere."""
        return jnp.zeros((), x.dtype)


class Curvature(NamedTuple):
    """theta = sd (m + S x), S = I - U diag(shrink) U^T the symmetric root of (I + sd GGN sd)^-1."""

    mean: Float[Array, " P"]
    """m: the MAP in prior coordinates."""
    basis: Float[Array, "P R"]
    """U: orthonormal eigenvectors of the GGN at the MAP in prior coordinates."""
    shrink: Float[Array, " R"]
    """1 - (1 + s^2)^-1/2 with s^2 its eigenvalues."""

    name = "curvature"

    def start(self, z: Float[Array, " P"]) -> Float[Array, " P"]:
        """A draw of the prior.

        Chains that all start around the MAP would agree without having seen another mode.
        """
        apart = z - self.mean
        return apart + self.basis @ (self.shrink / (1 - self.shrink) * (apart @ self.basis))

    def theta(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, " P"]:
        """Whitened by the Laplace approximation at the MAP."""
        return data.prior_sd * (self.mean + x - self.basis @ (self.shrink * (x @ self.basis)))

    def remainder(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, ""]:
        """Log likelihood - |m + S x|^2 / 2 + |x|^2 / 2, without the parts that cancel."""
        along = x @ self.basis
        shrunk = x - self.basis @ (self.shrink * along)
        gain = 0.5 * (1 - (1 - self.shrink) ** 2) @ along**2
        log_likelihood = densities.log_likelihood(model, data.prior_sd * (self.mean + shrunk), data)
        return log_likelihood + gain - self.mean @ shrunk

    def log_volume(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, ""]:
        """The same everywhere."""
        return jnp.zeros((), x.dtype)


def prior(problems: Sequence[Problem], frame: Frame, prior_sd: float, keys: Keys) -> Prior:
    """Prior coordinates: nothing to prepare."""
    return Prior()


def curvature(problems: Sequence[Problem], frame: Frame, prior_sd: float, keys: Keys) -> Curvature:
    """The Laplace approximation at the MAP of each problem."""
    maps = fit_maps(problems, frame.original, prior_sd=prior_sd, keys=list(keys))
    theta = np.stack([frame.parameters(m.theta, i) for i, m in enumerate(maps)])
    dtype = jnp.result_type(float)
    with double_precision():
        laplace = jax.device_get(_laplace(theta, frame.data, model=frame.model))
    mean = theta / frame.data.prior_sd
    return Curvature(*(jnp.asarray(a, dtype) for a in (mean, laplace.basis, laplace.shrink)))


@functools.partial(jax.jit, static_argnames="model")
def _laplace(
    theta: Float[Array | np.ndarray, "B P"], data: Data, *, model: Model
) -> covariance.PriorPlusLowRank:
    return jax.vmap(functools.partial(covariance.gauss_newton, model))(jnp.asarray(theta), data)


def readout(
    problems: Sequence[Problem], frame: Frame, prior_sd: float, keys: Keys
) -> Readout | NarrowReadout | Affine:
    """Pseudo-observations for each problem and output.

    They are those of the variational Gaussian approximation of a Gaussian process with the prior's
    kernel (`isounc.sampling.pseudo_observations`).

    Raises
    ------
    ValueError
        For more than `MAX_EXAMPLES` examples, or a likelihood without such observations.
    """
    if not has_pseudo_observations(problems[0]):
        raise ValueError(
            "coordinates must be 'prior' or 'curvature' for likelihood "
            f"{problems[0].likelihood!r}, got 'readout'"
        )
    if len(problems[0].y) > MAX_EXAMPLES:
        raise ValueError(
            f"coordinates must be 'prior' or 'curvature' for more than {MAX_EXAMPLES} examples, "
            f"whose n x n matrix 'readout' would factor, got 'readout' and {len(problems[0].y)}"
        )
    dtype = jnp.result_type(float)
    if frame.model.depth == 0:
        return whiten(observe_linear(problems, frame), dtype)
    kernels = prior_kernels(on_device(frame.data), keys, model=frame.model)
    return whitening(spectra_of(problems, kernels), frame.model, dtype)


Maker = Callable[[Sequence[Problem], Frame, float, Keys], Coordinates]
"""(problems, frame, prior_sd, keys) -> coordinates with a leading axis over the problems."""

COORDINATES: dict[str, Maker] = {
    "prior": prior,
    "curvature": curvature,
    "readout": readout,
}
"""Makers of coordinates by name; for `auto` there are `candidates`."""


def candidates(
    name: str, problems: Sequence[Problem], frame: Frame, prior_sd: float, keys: Keys
) -> list[Coordinates]:
    """The coordinates of that name; for `auto` those that are worth a trial, prior ones first.

    In prior coordinates a step is about as long as the narrowest direction of the posterior is
    wide, (1 + lambda)^-1/2 with the largest eigenvalue lambda of the pseudo-observations.
    """
    if name != "auto":
        return [COORDINATES[name](problems, frame, prior_sd, keys)]
    if len(problems[0].y) > MAX_EXAMPLES or not has_pseudo_observations(problems[0]):
        return [Prior()]
    dtype = jnp.result_type(float)
    if frame.model.depth == 0:
        observed = observe_linear(problems, frame)
        is_sharp = max(o.sharpness() for o in observed) > SHARP
        return [whiten(observed, dtype) if is_sharp else Prior()]
    kernels = prior_kernels(on_device(frame.data), keys, model=frame.model)
    # A label tells at most 1/4 about a logit: with few labels the iteration is not needed.
    most = max(0.25 if p.noise_sd is None else float(p.noise_sd) ** -2 for p in problems)
    if most * np.linalg.eigvalsh(np.asarray(kernels, float)).max() <= SHARP:
        return [Prior()]
    spectra = spectra_of(problems, kernels)
    largest = max(output.precision[0] for outputs in spectra for output in outputs)
    if largest <= SHARP:
        return [Prior()]
    return [Prior(), whitening(spectra, frame.model, dtype)]
