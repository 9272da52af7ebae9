# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""A program outside of the package: it runs, and a strict type checker knows all of its types.

`check.py` runs and checks it against each installed wheel, `uv run pyright` against the source.
"""

from __future__ import annotations

from typing import assert_type

import jax
import numpy as np
from flax import nnx

import isounc
from isounc.gradnorm import value_and_sq_grad_norm
from isounc.guard import Certificate, Guard


def own_network() -> isounc.Estimate:
    """The estimate of a network written here."""
    rngs = nnx.Rngs(0)
    network = nnx.Sequential(nnx.Linear(2, 4, rngs=rngs), nnx.tanh, nnx.Linear(4, 3, rngs=rngs))
    x = jax.random.normal(jax.random.key(1), (5, 2))
    return isounc.isotropic(network, x, task="multiclass")


def own_function() -> float:
    """The relative error of the squared gradient norm of a function written here, ||2 w||^2."""

    def length(w: jax.Array) -> jax.Array:
        return (w**2).sum()

    w = jax.random.normal(jax.random.key(2), (3,))
    norm = value_and_sq_grad_norm(length)(w)[1]
    return abs(float(norm) / float((4 * w**2).sum()) - 1)


def correlation() -> float:
    """Pearson's correlation of the estimate with the variance of a posterior."""
    problem = isounc.make_problem("moons", n=20, grid_size=5, num_test=10, num_far=10)
    model = isounc.make_model(problem, width=2)
    key_fit, key_sample = jax.random.split(jax.random.key(0))
    point = isounc.fit_map(problem, model, prior_sd=2.0, key=key_fit)
    settings = isounc.SamplerSettings(num_warmup=100, num_draws=250, max_draws=250)
    posterior = isounc.sample_posterior(
        problem, model, prior_sd=2.0, key=key_sample, settings=settings
    )
    assert_type(posterior, isounc.Posterior)
    assert_type(posterior.gate.rhat_max, float | None)
    moments = posterior.regions["test"]
    assert_type(moments, isounc.Moments)
    found = isounc.isotropic(model, problem.regions["test"], point)
    comparison = isounc.compare(np.asarray(found.epistemic)[:, 0], moments.var[:, 0])
    assert_type(comparison.pearson, float | None)
    assert comparison.pearson is not None, comparison.reason
    return comparison.pearson


def reference() -> str:
    """How a reference of the bank was made."""
    loaded = isounc.references.load("xor-ntk-w64-v1")
    assert_type(loaded.passed, bool)
    assert_type(loaded.regions["grid"], isounc.Moments)
    return loaded.card


def threshold() -> float | None:
    """The threshold of a guard whose score sorts right answers before wrong ones."""
    scores = np.linspace(0, 1, 200)
    guard = Guard.fit(scores, scores < 0.7, target_risk=0.1)
    assert_type(guard.certificate, Certificate)
    return guard.certificate.threshold


def mistakes() -> None:
    """Never called: a type checker that knew no types would find these comments unnecessary."""
    isounc.make_problem("moons", n="20")  # pyright: ignore[reportArgumentType]
    print(isounc.make_modell)  # pyright: ignore
    print(own_network().epistemics)  # pyright: ignore


def main() -> None:
    """Run all of it but the mistakes."""
    estimate = own_network()
    assert estimate.epistemic.shape == (5, 3) and bool((np.asarray(estimate.epistemic) > 0).all())
    assert own_function() < 1e-5
    print(f"Pearson's correlation {correlation():.2f}")
    for part in (reference, threshold):  # both need an extra
        try:
            print(f"{part.__name__}: {str(part()).splitlines()[0]}")
        except ImportError as error:
            print(f"{part.__name__}: {error}")


if __name__ == "__main__":
    main()
