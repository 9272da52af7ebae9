"""Trajectories that are tried again in finer steps: exact, and able to enter what is stiff."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from isounc.sampling.adaptation import start_tuning
from isounc.sampling.kernels import HMC, start_chains
from isounc.sampling.settings import SamplerSettings

NARROW = 0.05
"""Standard deviation of the stiff part; the soft one has 1."""
SETTINGS = SamplerSettings(num_chains=8)


def remainder(x):
    """Of an equal mixture of N(0, I) and N(0, NARROW^2 I), in two dimensions."""
    soft = -0.5 * x @ x
    stiff = -0.5 * x @ x / NARROW**2 - 2 * np.log(NARROW)
    return jnp.logaddexp(soft, stiff) + 0.5 * x @ x


def radii(sampler, step_size, *, num_draws=20_000, num_chains=8, seed=0):
    """Distances from 0 along chains that begin in the mixture, and the reports."""
    rng = np.random.default_rng(seed)
    scale = np.where(np.arange(num_chains) % 2, NARROW, 1.0)[:, None]
    x = jnp.asarray(scale * rng.standard_normal((num_chains, 2)), jnp.result_type(float))
    tuning = start_tuning(2, x.dtype, SETTINGS)
    tuning = tuning._replace(step_size=jnp.asarray(step_size, x.dtype), retries=jnp.ones((), bool))

    @jax.jit
    def run(x, key, u):
        def move(chains, inputs):
            key, u = inputs
            chains, info, _ = sampler.transition(key, chains, tuning, u, remainder, SETTINGS)
            return chains, (jnp.linalg.norm(chains.x, axis=1), info)

        start = start_chains(x, remainder)
        return jax.lax.scan(move, start, (jax.random.split(key, num_draws), u))[1]

    u = jnp.asarray(rng.random(num_draws), x.dtype)
    return jax.tree.map(np.asarray, run(x, jax.random.key(seed), u))


def cdf(squares):
    return 0.5 * stats.chi2.cdf(squares, 2) + 0.5 * stats.chi2.cdf(squares / NARROW**2, 2)


def test_draws_of_a_mixture_of_scales_are_exact():
    # Chains need finer steps where the density is narrow, and the coarse ones where it is not.
    distances, info = radii(HMC(), 0.25)
    assert np.ptp(info.num_gradients) > 100 and not info.divergent.any(), "both happen"
    squares = distances[500:] ** 2
    for quantile in (NARROW**2, 16 * NARROW**2, 1.0):
        of_chains = (squares < quantile).mean(0)
        error = of_chains.std(ddof=1) / np.sqrt(len(of_chains))
        assert error < 0.025 and abs(of_chains.mean() - cdf(quantile)) < 4 * error
    assert stats.kstest(squares[::150].ravel(), cdf).pvalue > 0.01


def test_an_attempt_uses_no_more_gradients_than_its_chain_wants():
    _, info = radii(HMC(), 0.25, num_draws=200)
    once = np.minimum.reduce(info.num_gradients, axis=1)
    tries = info.num_gradients / once[:, None]
    # First; finer and back; finer still and back twice.
    assert set(np.unique(tries)) <= {1, 1 + 3 + 1, 1 + 3 + 9, 1 + 3 + 9 + 1 + 3}
    assert (info.acceptance[tries == 1] > 0.04).all()


def test_a_problem_of_a_batch_is_retried_alone():
    narrow = np.array([1.0, NARROW, 1.0, 1.0, 2 * NARROW, 1.0])
    begin = np.random.default_rng(1).standard_normal((6, 1, 2)) * narrow[:, None, None]
    counts = []

    def transition(x, narrow, is_heard):
        def remainder(x):
            if is_heard:
                jax.debug.callback(counts.append, x)
            return 0.5 * x @ x - 0.5 * x @ x / narrow**2

        tuning = start_tuning(2, x.dtype, SETTINGS)
        size = jnp.asarray(0.25, x.dtype)
        tuning = tuning._replace(step_size=size, retries=jnp.ones((), bool))
        start = start_chains(x, remainder)
        return HMC().transition(jax.random.key(0), start, tuning, 0.5, remainder, SETTINGS)[:2]

    x, narrow = (jnp.asarray(a, jnp.result_type(float)) for a in (begin, narrow))
    together = jax.jit(jax.vmap(lambda *args: transition(*args, is_heard=True)))
    chains, info = jax.block_until_ready(together(x, narrow))
    jax.effects_barrier()
    gradients = np.asarray(info.num_gradients).ravel()
    first = gradients.min()
    assert (gradients > 2 * first).tolist() == [False, True, False, False, True, False]
    assert len(counts) == 6 + gradients.sum(), "one for each start; none that nobody wants"
    one = jax.jit(lambda *args: transition(*args, is_heard=False))
    for i in range(6):
        alone, its_info = one(x[i], narrow[i])
        np.testing.assert_allclose(chains.x[i], alone.x, atol=1e-5)
        assert its_info.num_gradients == gradients[i]
