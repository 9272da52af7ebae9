"""Gaussian pseudo-observations of a network's outputs, for the coordinates `readout`.

The network is taken for a Gaussian process with the kernel of its prior; its variational Gaussian
approximation (Opper and Archambeau 2009) says which Gaussian observations the data are worth.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special
from jaxtyping import Array, Float, Key, PRNGKeyArray

from isounc.densities import Data
from isounc.models import Model
from isounc.problems import Problem

STEPS = 40
"""Steps of the damped iteration, which by then has converged to 1e-6; the sampled posterior does not
depend on it."""


class Spectrum(NamedTuple):
    """Pseudo-observations of one output along the eigenvectors of sqrt(Lambda) K sqrt(Lambda)."""

    precision: Float[np.ndarray, " N"]
    """Eigenvalues, largest first: what each tells over what the prior does."""
    directions: Float[np.ndarray, "N N"]
    """R, a row for each."""
    target: Float[np.ndarray, " N"]
    """tau."""


def spectra_of(problems: Sequence[Problem], kernels: Float[Array, "B N N"]) -> list[list[Spectrum]]:
    """The spectrum of each problem and output."""
    spectra = []
    for problem, kernel in zip(problems, np.asarray(kernels, float), strict=True):
        precision, target = pseudo_observations(problem, kernel)
        outputs = zip(precision.T, target.T, strict=True)
        spectra.append([_spectrum(kernel, *output) for output in outputs])
    return spectra


def _spectrum(
    kernel: Float[np.ndarray, "N N"],
    precision: Float[np.ndarray, " N"],
    target: Float[np.ndarray, " N"],
) -> Spectrum:
    root = np.sqrt(precision)
    values, vectors = scipy.linalg.eigh(root[:, None] * kernel * root)
    vectors = vectors[:, ::-1].T
    return Spectrum(values[::-1], vectors * root, vectors @ (root * target))


@functools.partial(jax.jit, static_argnames=("model", "num_draws"))
def prior_kernels(
    data: Data, keys: Key[Array, " B"], *, model: Model, num_draws: int = 128
) -> Float[Array, "B N N"]:
    """E[Phi Phi^T] over the prior of the hidden layers."""

    def kernel(data: Data, key: PRNGKeyArray) -> Float[Array, "N N"]:
        def draw(key: PRNGKeyArray) -> Float[Array, "N N"]:
            theta = data.prior_sd * jax.random.normal(key, data.prior_sd.shape, data.X.dtype)
            phi = model.features(theta, data.X)
            num_readout = phi.shape[1] * model.out_features
            phi = phi * data.prior_sd[-num_readout :: model.out_features][None]
            return jnp.matmul(phi, phi.T, precision=jax.lax.Precision.HIGHEST)

        return jax.lax.map(draw, jax.random.split(key, num_draws), batch_size=8).mean(0)

    return jax.vmap(kernel)(data, keys)


def has_pseudo_observations(problem: Problem) -> bool:
    """Whether the likelihood has them: Gaussian noise, or a link to classes."""
    return problem.noise_sd is not None or problem.num_classes > 0


def pseudo_observations(
    problem: Problem, kernel: Float[np.ndarray, "N N"]
) -> tuple[Float[np.ndarray, "N O"], Float[np.ndarray, "N O"]]:
    """Precisions Lambda and targets of the pseudo-observations of each output.

    The approximation q(f) = N(m, S) has precision E[-d2 log p / df2] and target
    m + E[d log p / df] / precision in each example; m and S follow from them, and a damped
    iteration finds both. For a Gaussian likelihood they are 1 / noise variance and y. Classes are
    taken as independent, which costs speed only.
    """
    n, outputs = len(problem.y), problem.num_outputs
    if problem.noise_sd is not None:
        return np.full((n, 1), float(problem.noise_sd) ** -2), np.asarray(problem.y, float)[:, None]
    labels = np.eye(max(2, outputs))[problem.y.astype(int)][:, -outputs:]
    mean, precision, gradient = np.zeros((n, outputs)), np.full((n, outputs), 0.25), labels - 0.5
    normal = np.random.default_rng(0).standard_normal((128, 1, outputs))
    normal = np.concatenate([normal, -normal])
    for _ in range(STEPS):
        variance = np.empty_like(mean)
        for o in range(outputs):
            root = np.sqrt(precision[:, o])
            chol = scipy.linalg.cholesky(np.eye(n) + root[:, None] * kernel * root, lower=True)
            half = scipy.linalg.solve_triangular(chol, root[:, None] * kernel, lower=True)
            variance[:, o] = np.maximum(np.diag(kernel) - (half**2).sum(0), 1e-10)
            natural = precision[:, o] * mean[:, o] + gradient[:, o]
            inner = scipy.linalg.cho_solve((chol, True), root * (kernel @ natural))
            mean[:, o] += 0.5 * (kernel @ (natural - root * inner) - mean[:, o])
        f = mean + np.sqrt(variance) * normal
        p = scipy.special.expit(f) if outputs == 1 else scipy.special.softmax(f, axis=-1)
        gradient = labels - p.mean(0)
        precision += 0.5 * (np.maximum((p * (1 - p)).mean(0), 1e-6) - precision)
    return precision, mean + gradient / precision
