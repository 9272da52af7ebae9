"""How far a posterior of several classes stays from N(0, I) when each class is whitened by itself.

    uv run benchmarks/repriorised.py
    uv run benchmarks/repriorised.py --problems clusters3 spirals3 rings3 --sizes 30 100 300
    uv run benchmarks/repriorised.py --problems clusters3 --standard-width 256

The coordinates `readout` take classes as independent: q has a Gaussian precision diag(p_c (1 - p_c)) in
each example, where the likelihood has diag(p) - p p^T, which couples them. In the limit of infinite
width the features have the kernel of the prior, and both make a Gaussian of the outputs. The number is
the Jeffreys divergence of one from the other, of equal means,

    (tr S1^-1 S2 + tr S2^-1 S1) / 2 - N C    nats,

with the Hessian averaged over draws of the former. It is 0 but for that average for one output.
`jeffreys_readout` of `isounc spectrum` is the same of a network's posterior and N(0, I).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
import scipy.special
import tyro

from isounc.problems import make_problem
from isounc.sampling.pseudo_observations import pseudo_observations

FEATURES = 200_000
"""Hidden units that stand for infinitely many."""


@dataclass
class Options:
    """The posteriors."""

    problems: tuple[str, ...] = ("clusters3", "moons")
    """Problems with classes, by name."""
    sizes: tuple[int, ...] = (100,)
    """Training examples."""
    prior_sd: float = 2.0
    """Prior standard deviation of every parameter, one hidden layer."""
    standard_width: int = 0
    """Width whose prior kernel is taken in the parameterisation `standard`, where it grows with the
    width; 0 is NTK, where it does not."""
    num_seeds: int = 3
    """Seeds of the data: 300, 301, ... as in the study `spectrum`."""
    num_draws: int = 300
    """Draws of the outputs over which the Hessian is averaged."""


def divergence(problem: str, n: int, seed: int, options: Options) -> float:
    """The Jeffreys divergence for one data set, in nats."""
    data = make_problem(problem, n=n, seed=seed)
    rng = np.random.default_rng(seed)
    X, sd = np.asarray(data.X, float), options.prior_sd
    fan_in, width = (1, options.standard_width) if options.standard_width else (X.shape[1], 1)
    weights = rng.standard_normal((X.shape[1], FEATURES)) / np.sqrt(fan_in)
    hidden = np.tanh(sd * (X @ weights + rng.standard_normal(FEATURES)))
    kernel = sd**2 * (width * hidden @ hidden.T / FEATURES + 1)
    precision, target = pseudo_observations(data, kernel)
    n, outputs = precision.shape
    prior = np.kron(np.eye(outputs), kernel + 1e-9 * np.eye(n))
    apart = np.diag(precision.T.ravel())
    cov_apart = _posterior(prior, apart)
    mean = cov_apart @ (precision * target).T.ravel()
    root = np.linalg.cholesky(cov_apart + 1e-10 * np.eye(n * outputs))
    coupled, rows = np.zeros((outputs, n, outputs, n)), np.arange(n)
    for _ in range(options.num_draws):
        f = (mean + root @ rng.standard_normal(n * outputs)).reshape(outputs, n)
        p = scipy.special.expit(f) if outputs == 1 else scipy.special.softmax(f, axis=0)
        for a, b in np.ndindex(outputs, outputs):
            coupled[a, rows, b, rows] += p[a] * ((a == b) - p[b]) / options.num_draws
    cov_coupled = _posterior(prior, coupled.reshape(apart.shape))
    traces = (
        np.trace(np.linalg.solve(cov_apart, cov_coupled)),
        np.trace(np.linalg.solve(cov_coupled, cov_apart)),
    )
    return float(sum(traces)) / 2 - n * outputs


def _posterior(prior: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """(prior^-1 + precision)^-1, without the inverse of an ill-conditioned prior."""
    return np.linalg.solve(np.eye(len(prior)) + prior @ precision, prior)


def main(options: Options) -> None:
    """Print a line for each problem and size."""
    jax.config.update("jax_enable_x64", True)
    for problem in options.problems:
        for n in options.sizes:
            seeds = range(300, 300 + options.num_seeds)
            values = [divergence(problem, n, seed, options) for seed in seeds]
            shown = " ".join(f"{value:.3g}" for value in values)
            print(f"{problem:<12} n = {n:<5} {shown} nats (mean {np.mean(values):.3g})")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
