"""The coordinates `readout`: the last layer whitened given the hidden layers.

x = (w, xi): the hidden layers w are in prior coordinates, and the read-out of output o is

    v_o = mu_o(w) + S_o(w) xi_o

with the mean mu_o and a root S_o of the covariance that v_o would have under Gaussian
pseudo-observations of the output (`isounc.sampling.pseudo_observations`), in prior coordinates.
Whatever these are, the posterior is the same; good ones leave little in r.

There are two ways to factor, R x R for R observations (`Readout`) and F x F for F features
(`NarrowReadout`); `whitening` takes the cheaper one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from isounc import densities
from isounc.densities import Data
from isounc.models import Model
from isounc.sampling.pseudo_observations import Spectrum

RANK_THRESHOLD = 0.1
"""Pseudo-observations are kept in directions in which they tell at least this much more
than the prior."""
RANK_STEP = 8
"""Their number is rounded up to a multiple of this, so that problems of one shape share a
program."""
MOST_ROWS = 256
"""NarrowReadout: about so many examples, evenly spaced, stand for all of them in the covariance."""


class Readout(NamedTuple):
    """Few pseudo-observations: an R x R matrix is factored for each output.

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

    name = "readout"

    def start(self, z: Float[Array, " P"]) -> Float[Array, " P"]:
        """Hidden layers from their prior, the read-out from its pseudo-posterior given them."""
        return z

    def _readout(self, x: Float[Array, " P"], model: Model, data: Data) -> _Whitened:
        theta, xi, sd = _parts(x, model, data)
        phi = model.features(theta, data.X) * sd[None]
        whiten = functools.partial(_whiten, phi)
        return _Whitened(theta, phi, *jax.vmap(whiten)(self.directions, self.target, xi))

    def theta(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, " P"]:
        """The hidden layers and the read-out that they whiten."""
        whitened = self._readout(x, model, data)
        return _with_readout(whitened.theta, whitened.readout, data)

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


class NarrowReadout(NamedTuple):
    """Few features: an F x F matrix is factored for each output.

    With Phi (n, F) the features in prior coordinates, C C^T = I + Phi_m^T Lambda_m Phi_m (Cholesky)
    from every k-th example, each of k times its precision, and

        v = C^-T (C^-1 Phi^T Lambda tau + xi),
        r = log p(y | Phi v) + (|xi|^2 - |v|^2) / 2 - log det C.

    The gradient costs about three times that of prior coordinates.
    """

    precision: Float[Array, "O M"]
    """k times the precisions Lambda of every k-th example."""
    pull: Float[Array, "O N"]
    """Lambda tau of all examples."""

    name = "readout"

    def start(self, z: Float[Array, " P"]) -> Float[Array, " P"]:
        """Hidden layers from their prior, the read-out from its pseudo-posterior given them."""
        return z

    def _readout(
        self, x: Float[Array, " P"], model: Model, data: Data
    ) -> tuple[Float[Array, " P"], Float[Array, "F N"], Float[Array, "O F"], Float[Array, ""]]:
        """Parameters of which the hidden part alone is right, Phi^T, v, and log det S."""
        theta, xi, sd = _parts(x, model, data)
        phi = model.features_transposed(theta, data.X) * sd[:, None]
        num_rows = self.precision.shape[1]
        spacing = phi.shape[1] // num_rows
        few = phi[:, : num_rows * spacing : spacing]

        def whiten(
            precision: Float[Array, " M"], pull: Float[Array, " N"], xi: Float[Array, " F"]
        ) -> tuple[Float[Array, " F"], Float[Array, ""]]:
            with jax.default_matmul_precision("highest"):
                information = (few * precision[None]) @ few.T
                chol = jnp.linalg.cholesky(jnp.eye(len(xi), dtype=xi.dtype) + information)
                along = solve_triangular(chol, phi @ pull, lower=True) + xi
            v = solve_triangular(chol, along, lower=True, trans=1)
            return v, -jnp.log(jnp.diagonal(chol)).sum()

        v, log_det = jax.vmap(whiten)(self.precision, self.pull, xi)
        return theta, phi, v, log_det.sum()

    def theta(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, " P"]:
        """The hidden layers and the read-out that they whiten."""
        theta, _, v, _ = self._readout(x, model, data)
        return _with_readout(theta, v, data)

    def remainder(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, ""]:
        """Log likelihood, log prior of the read-out over that of xi, and log det S."""
        _, phi, v, log_det = self._readout(x, model, data)
        outputs = jnp.matmul(v, phi, precision=jax.lax.Precision.HIGHEST)
        log_likelihood = densities.log_likelihood_terms(model, outputs.T, data).sum()
        xi = x[-v.size :].reshape(v.T.shape).T
        return log_likelihood + 0.5 * ((xi - v) * (xi + v)).sum() + log_det

    def log_volume(self, x: Float[Array, " P"], model: Model, data: Data) -> Float[Array, ""]:
        """Sum over the outputs of log det S = -log det C."""
        return self._readout(x, model, data)[3]


def whitening(
    spectra: Sequence[Sequence[Spectrum]], model: Model, dtype: DTypeLike
) -> Readout | NarrowReadout:
    """Coordinates from the pseudo-observations of each problem and output.

    Those are kept that tell something, as many for each problem and output.
    """
    most = max((o.precision > RANK_THRESHOLD).sum() for outputs in spectra for o in outputs)
    num_examples = len(spectra[0][0].precision)
    rank = int(np.clip(-(-most // RANK_STEP) * RANK_STEP, 1, num_examples))
    if model.layer_sizes[-1][0] + 1 <= rank:
        return _narrow(spectra, dtype)
    directions = [[output.directions[:rank] for output in outputs] for outputs in spectra]
    targets = [[output.target[:rank] for output in outputs] for outputs in spectra]
    return Readout(jnp.asarray(np.array(directions, dtype)), jnp.asarray(np.array(targets, dtype)))


def _narrow(spectra: Sequence[Sequence[Spectrum]], dtype: DTypeLike) -> NarrowReadout:
    def over(of_output) -> Array:
        return jnp.asarray(
            np.array([[of_output(o) for o in outputs] for outputs in spectra], dtype)
        )

    num_examples = len(spectra[0][0].precision)
    spacing = max(1, num_examples // MOST_ROWS)
    rows = slice(0, num_examples // spacing * spacing, spacing)
    # With all directions, R^T R = Lambda and R^T times their targets is Lambda tau.
    return NarrowReadout(
        precision=over(lambda o: spacing * (o.directions**2).sum(0)[rows]),
        pull=over(lambda o: o.directions.T @ o.target),
    )


def _parts(
    x: Float[Array, " P"], model: Model, data: Data
) -> tuple[Float[Array, " P"], Float[Array, "O F"], Float[Array, " F"]]:
    """Parameters (the hidden part alone is right), xi, and prior sd of the read-out."""
    num_features = model.layer_sizes[-1][0] + 1
    num_hidden = model.num_params - num_features * model.out_features
    xi = x[num_hidden:].reshape(num_features, -1).T
    sd = data.prior_sd[num_hidden:].reshape(num_features, -1)[:, 0]
    return data.prior_sd * x, xi, sd


def _with_readout(
    theta: Float[Array, " P"], v: Float[Array, "O F"], data: Data
) -> Float[Array, " P"]:
    return theta.at[-v.size :].set(data.prior_sd[-v.size :] * v.T.ravel())
