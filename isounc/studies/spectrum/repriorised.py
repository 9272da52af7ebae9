"""How far the posterior is from the prior in coordinates that whiten the read-out, and in weights.

In the coordinates x of `isounc.sampling.readout` the posterior density is N(x; 0, I) exp(r) up to a
constant. Neither the root that makes x of theta nor its inverse is needed: with pseudo-observations
tau = R f + N(0, I) of an output f = Phi v and G = R Phi,

    r(theta) = log p(y | f) + sum over outputs of |tau - R f|^2 / 2 - tau^T A^-1 tau / 2 - log det A / 2,
    A = I + G G^T,    |xi|^2 = |v|^2 + |tau - G v|^2 - tau^T A^-1 tau,

and a draw of N(0, I) in x is one of the prior for the hidden layers, and of the Gaussian posterior
given them and the pseudo-observations for the read-out. Both r and the log likelihood have the same
integral, the evidence, under N(0, I) in their coordinates.

Source: Hron et al. 2022, Wide Bayesian neural networks have a simple weight posterior
(arXiv 2206.07673).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float, PRNGKeyArray

from isounc import densities
from isounc.densities import Data
from isounc.models import Model
from isounc.problems import Problem
from isounc.sampling.pseudo_observations import prior_kernels, spectra_of

LEAST_EFFECTIVE = 50.0
"""Fewest effective draws of the evidence with which a divergence is told from it."""


class Observations(NamedTuple):
    """Pseudo-observations of each output."""

    directions: Float[Array, "O N N"]
    """R."""
    target: Float[Array, "O N"]
    """tau."""


class Ratios(NamedTuple):
    """Log density ratios of the posterior to N(0, I), up to the evidence, at T draws."""

    readout: Float[Array, " T"]
    """r in x."""
    weights: Float[Array, " T"]
    """The log likelihood, which is r in prior coordinates."""
    sq_readout: Float[Array, " T"]
    """|xi|^2 over its number of entries: 1 in the mean where the coordinates are right."""
    sq_weights: Float[Array, " T"]
    """The same of the read-out in prior coordinates."""


def observe(problem: Problem, model: Model, data: Data, key: PRNGKeyArray) -> Observations:
    """The pseudo-observations of a problem, from the kernel of the network's prior."""
    stacked = jax.tree.map(lambda a: a[None], data)
    kernels = prior_kernels(stacked, key[None], model=model)
    (spectra,) = spectra_of([problem], kernels)
    dtype = data.X.dtype
    return Observations(
        jnp.asarray(np.stack([s.directions for s in spectra]), dtype),
        jnp.asarray(np.stack([s.target for s in spectra]), dtype),
    )


class _Readout(NamedTuple):
    features: Float[Array, "N F"]
    v: Float[Array, "O F"]


def _readout(theta: Float[Array, " P"], data: Data, model: Model) -> _Readout:
    """Features and read-out in prior coordinates."""
    num = (model.layer_sizes[-1][0] + 1) * model.out_features
    sd = data.prior_sd[-num:].reshape(-1, model.out_features)[:, 0]
    v = theta[-num:].reshape(-1, model.out_features).T / sd[None]
    return _Readout(model.features(theta, data.X) * sd[None], v)


@functools.partial(jax.jit, static_argnames="model")
def ratios(
    thetas: Float[Array, "T P"], observed: Observations, data: Data, *, model: Model
) -> Ratios:
    """Log density ratios at T draws."""

    def at(theta: Float[Array, " P"]) -> Ratios:
        phi, v = _readout(theta, data, model)
        with jax.default_matmul_precision("highest"):
            outputs = phi @ v.T
            log_likelihood = densities.log_likelihood_terms(model, outputs, data).sum()

            def of_output(directions: Array, target: Array, f: Array) -> tuple[Array, Array]:
                g = directions @ phi
                chol = jnp.linalg.cholesky(jnp.eye(len(g), dtype=g.dtype) + g @ g.T)
                white = jax.scipy.linalg.solve_triangular(chol, target, lower=True)
                misfit = ((target - directions @ f) ** 2).sum() - white @ white
                return 0.5 * misfit - jnp.log(jnp.diagonal(chol)).sum(), misfit

            gain, misfit = jax.vmap(of_output)(observed.directions, observed.target, outputs.T)
        squares = (v**2).sum()
        return Ratios(
            log_likelihood + gain.sum(),
            log_likelihood,
            (squares + misfit.sum()) / v.size,
            squares / v.size,
        )

    return jax.lax.map(at, thetas)


@functools.partial(jax.jit, static_argnames=("model", "num"))
def sample_readout(
    key: PRNGKeyArray, observed: Observations, data: Data, *, model: Model, num: int
) -> Float[Array, "T P"]:
    """Parameters at draws of N(0, I) in x."""

    def draw(key: PRNGKeyArray) -> Float[Array, " P"]:
        prior_key, noise_key = jax.random.split(key)
        z = jax.random.normal(prior_key, data.prior_sd.shape, data.X.dtype)
        theta = data.prior_sd * z
        phi, v = _readout(theta, data, model)
        noise = jax.random.normal(noise_key, observed.target.shape, v.dtype)

        def of_output(directions: Array, target: Array, noise: Array, v: Array) -> Array:
            # Matheron's rule: a draw of the prior, moved by what it misses of the observations.
            g = directions @ phi
            missed = target - g @ v - noise
            moved = jnp.linalg.solve(jnp.eye(len(g), dtype=g.dtype) + g @ g.T, missed)
            return v + moved @ g

        with jax.default_matmul_precision("highest"):
            v = jax.vmap(of_output)(observed.directions, observed.target, noise, v)
        num_readout = v.size
        sd = data.prior_sd[-num_readout:]
        return theta.at[-num_readout:].set(sd * v.T.ravel())

    return jax.lax.map(draw, jax.random.split(key, num))


def sample_prior(key: PRNGKeyArray, data: Data, num: int) -> Float[Array, "T P"]:
    """Draws of the prior."""
    return data.prior_sd[None] * jax.random.normal(key, (num, len(data.prior_sd)), data.X.dtype)


def divergences(posterior: Ratios, readout: Ratios, prior: Ratios) -> dict[str, Any]:
    """Divergences between the posterior and N(0, I) in both coordinates, in nats.

    `jeffreys_` is KL(posterior, N) + KL(N, posterior); `kl_` the former alone, for which the
    evidence is estimated from the draws of N(0, I) in x, and which is None where few of them count.

    Parameters
    ----------
    posterior, readout, prior
        Ratios at draws of the posterior, of N(0, I) in x and of the prior.
    """
    parts = {name: np.asarray(getattr(posterior, name), float) for name in Ratios._fields}
    of_readout = np.asarray(readout.readout, float)
    log_evidence = scipy.special.logsumexp(of_readout) - np.log(len(of_readout))
    weights = scipy.special.softmax(of_readout)
    effective = float(1 / (weights @ weights))
    found: dict[str, Any] = {
        "jeffreys_readout": float(parts["readout"].mean() - of_readout.mean()),
        "jeffreys_weights": float(
            parts["weights"].mean() - np.asarray(prior.weights, float).mean()
        ),
        "evidence_effective": effective,
        "kl_readout": None,
        "kl_weights": None,
        "sq_readout": float(parts["sq_readout"].mean()),
        "sq_weights": float(parts["sq_weights"].mean()),
    }
    if effective >= LEAST_EFFECTIVE:
        found["kl_readout"] = float(parts["readout"].mean() - log_evidence)
        found["kl_weights"] = float(parts["weights"].mean() - log_evidence)
    return found
