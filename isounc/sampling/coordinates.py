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
             which does this for regression). At depth 0 it is an affine map
             (`isounc.sampling.affine`).

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
from jax.scipy.linalg import solve_triangular
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from isounc import covariance, densities
from isounc.centring import Frame
from isounc.densities import Data, on_device
from isounc.fit import double_precision, fit_maps
from isounc.models import Model
from isounc.problems import Problem
from isounc.sampling.affine import Affine, observe_linear, whiten
from isounc.sampling.pseudo_observations import (
    Spectrum,
    has_pseudo_observations,
    prior_kernels,
    spectra_of,
)

RANK_THRESHOLD = 0.1
"""readout: pseudo-observations are kept in directions in which they tell at least this much more
than the prior."""
RANK_STEP = 8
"""readout: their number is rounded up to a multiple of this, so that problems of one shape share a
program."""
MAX_EXAMPLES = 2000
"""readout: most examples n for which the n x n kernel is factored."""
READOUT_PAYS = 1500.0
"""auto: largest eigenvalue of sqrt(Lambda) K sqrt(Lambda) from which on readout costs less than it
saves.

Steps in prior coordinates shorten with its root. In effective draws per second readout gave 1.7 to
2.5 times as many as prior at 6000 to 14,000 (the two regressions of results/samplers, widths 8 and
32), about half as many at 500 (moons, n = 1000).
"""


Keys = Key[Array, " B"]
"""A key for each problem."""


@runtime_checkable
class Coordinates(Protocol):
    """A pytree of arrays, so that one program takes those of all problems of a shape."""

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


class Readout(NamedTuple):
    """x = (w, xi): hidden layers w in prior coordinates, read-out v_o = mu_o(w) + S_o(w) xi_o.

    For each output o, with Phi (n, F) the features in prior coordinates and pseudo-observations
    tau_o = R_o Phi v_o + N(0, I), put G = R_o Phi and C C^T = I + G G^T (Cholesky, R x R). Then

        S = I - G^T C^-T (C + I)^-1 G,    mu = G^T C^-T C^-1 tau,

    is a square root of the covariance (I + G^T G)^-1 and the mean of v given the
    pseudo-observations, and

        r = log p(y | f) + |tau - R f|^2 / 2 - |C^-1 tau|^2 / 2 - log det C,    f = Phi v:

    the likelihood over the pseudo-likelihood, and the evidence of the hidden layers under the
    latter. Any R and tau give the same posterior; good ones make r flat.
    """

    directions: Float[Array, "O R N"]
    """R_o: directions of the outputs at the training examples, times the roots of precisions."""
    target: Float[Array, "O R"]
    """tau_o."""

    def start(self, z: Float[Array, " P"]) -> Float[Array, " P"]:
        """Hidden layers from their prior, the read-out from its pseudo-posterior given them."""
        return z

    def _readout(self, x: Float[Array, " P"], model: Model, data: Data) -> _Whitened:
        num_features = model.layer_sizes[-1][0] + 1
        num_hidden = model.num_params - num_features * model.out_features
        theta = data.prior_sd * x  # its hidden part; features() does not look at the rest
        xi = x[num_hidden:].reshape(num_features, -1).T
        sd = data.prior_sd[num_hidden:].reshape(num_features, -1)[:, 0]
        phi = model.features(theta, data.X) * sd[None]
        whiten = functools.partial(_whiten, phi)
        return _Whitened(theta, phi, *jax.vmap(whiten)(self.directions, self.target, xi))

    def theta(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, " P"]:
        """The hidden layers and the read-out that they whiten."""
        whitened = self._readout(x, model, data)
        v = whitened.readout
        return whitened.theta.at[-v.size :].set(data.prior_sd[-v.size :] * v.T.ravel())

    def remainder(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, ""]:
        """Likelihood over pseudo-likelihood, and the evidence of the pseudo-observations."""
        whitened = self._readout(x, model, data)
        outputs = jnp.matmul(
            whitened.features, whitened.readout.T, precision=jax.lax.Precision.HIGHEST
        )
        log_likelihood = densities.log_likelihood_terms(model, outputs, data).sum()
        return log_likelihood + (whitened.misfit + whitened.evidence).sum()

    def log_volume(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, ""]:
        """Sum over the outputs of log det S = -log det C."""
        return self._readout(x, model, data).log_det.sum()


class _Whitened(NamedTuple):
    """The network at a point of `Readout` coordinates."""

    theta: Float[Array, " P"]
    """Parameters, of which the hidden part alone is right."""
    features: Float[Array, "N F"]
    """Phi, in prior coordinates of the read-out."""
    readout: Float[Array, "O F"]
    """v_o."""
    misfit: Float[Array, " O"]
    """|tau_o - R_o f_o|^2 / 2."""
    evidence: Float[Array, " O"]
    """Log evidence of tau_o up to a constant."""
    log_det: Float[Array, " O"]
    """log det S_o."""


def _whiten(
    phi: Float[Array, "N F"],
    directions: Float[Array, "R N"],
    target: Float[Array, " R"],
    xi: Float[Array, " F"],
) -> tuple[Float[Array, " F"], Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Read-out, misfit, evidence and determinant of one output, as in `_Whitened`."""
    with jax.default_matmul_precision("highest"):
        g = directions @ phi
        eye = jnp.eye(len(directions), dtype=g.dtype)
        chol = jnp.linalg.cholesky(eye + g @ g.T)
        mean = solve_triangular(chol, target, lower=True)
        shift = solve_triangular(chol + eye, g @ xi, lower=True)
        v = xi + solve_triangular(chol, mean - shift, lower=True, trans=1) @ g
        misfit = 0.5 * ((target - g @ v) ** 2).sum()
        log_det = -jnp.log(jnp.diagonal(chol)).sum()
        return v, misfit, -0.5 * mean @ mean + log_det, log_det


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
) -> Readout | Affine:
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
    return _whitening(spectra_of(problems, kernels), dtype)


def auto(problems: Sequence[Problem], frame: Frame, prior_sd: float, keys: Keys) -> Coordinates:
    """Readout where the data determine the outputs sharply, prior elsewhere.

    In prior coordinates a step is about as long as the narrowest direction of the posterior is
    wide, (1 + lambda)^-1/2 with the largest eigenvalue lambda of the pseudo-observations.
    """
    if len(problems[0].y) > MAX_EXAMPLES or not has_pseudo_observations(problems[0]):
        return Prior()
    dtype = jnp.result_type(float)
    if frame.model.depth == 0:
        observed = observe_linear(problems, frame)
        is_sharp = max(o.sharpness() for o in observed) > READOUT_PAYS
        return whiten(observed, dtype) if is_sharp else Prior()
    kernels = prior_kernels(on_device(frame.data), keys, model=frame.model)
    # A label tells at most 1/4 about a logit: with few labels the iteration is not needed.
    most = max(0.25 if p.noise_sd is None else float(p.noise_sd) ** -2 for p in problems)
    if most * np.linalg.eigvalsh(np.asarray(kernels, float)).max() <= READOUT_PAYS:
        return Prior()
    spectra = spectra_of(problems, kernels)
    largest = max(output.precision[0] for outputs in spectra for output in outputs)
    return _whitening(spectra, dtype) if largest > READOUT_PAYS else Prior()


Maker = Callable[[Sequence[Problem], Frame, float, Keys], Coordinates]
"""(problems, frame, prior_sd, keys) -> coordinates with a leading axis over the problems."""

COORDINATES: dict[str, Maker] = {
    "auto": auto,
    "prior": prior,
    "curvature": curvature,
    "readout": readout,
}
"""Makers of coordinates by name."""


def _whitening(spectra: list[list[Spectrum]], dtype: DTypeLike) -> Readout:
    """The directions that tell something, as many for each problem and output."""
    most = max((o.precision > RANK_THRESHOLD).sum() for outputs in spectra for o in outputs)
    num_examples = len(spectra[0][0].precision)
    rank = int(np.clip(-(-most // RANK_STEP) * RANK_STEP, 1, num_examples))
    directions = [[output.directions[:rank] for output in outputs] for outputs in spectra]
    targets = [[output.target[:rank] for output in outputs] for outputs in spectra]
    return Readout(jnp.asarray(np.array(directions, dtype)), jnp.asarray(np.array(targets, dtype)))
