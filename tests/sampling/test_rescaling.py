"""Moves along the scales of units: which parameters they take, that they are exact, and when."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc.models import Model
from isounc.sampling.adaptation import start_tuning
from isounc.sampling.coordinates import Curvature, Prior
from isounc.sampling.kernels import start_chains
from isounc.sampling.rescaling import num_rescalings, rescale, rescales, units_of
from isounc.sampling.settings import SamplerSettings

MODEL = Model(in_features=1, out_features=3, likelihood="categorical", width=2, depth=2)
SETTINGS = SamplerSettings()


def test_units_are_those_of_the_network():
    model = Model(in_features=3, out_features=2, likelihood="categorical", width=4, depth=2,
                  activation="relu")  # fmt: skip
    rng = np.random.default_rng(0)
    theta, X = rng.standard_normal(model.num_params), rng.standard_normal((20, 3))
    before, units = model.apply(theta, X), units_of(model)
    assert len(units.into) == len(units.out_of) == 8
    seen, alive = np.zeros(model.num_params + 1, int), 0
    for into, out_of in zip(*units, strict=True):
        # A ReLU is homogeneous: nothing changes but the scale of what is inside.
        scaled = np.append(theta, 0.0)
        scaled[into] *= 3.0
        alive += not np.allclose(model.apply(scaled[:-1], X), before, atol=1e-3)
        scaled[out_of] /= 3.0
        np.testing.assert_allclose(model.apply(scaled[:-1], X), before, atol=1e-5)
        seen[into] += 1
        seen[out_of] += 1
    assert alive >= 6
    # Weights between hidden layers belong to a unit on either side; the last bias to none.
    assert seen[: 3 * 4 + 4].tolist() == [1] * 16 and seen[16:32].tolist() == [2] * 16
    assert seen[-3:-1].tolist() == [0, 0]
    assert units_of(Model(in_features=3, out_features=1, depth=0)).into.size == 0


def test_exact_draws_stay_exact():
    units, num = units_of(MODEL), 20_000
    assert (units.into == MODEL.num_params).any(), "layers of different size"

    def remainder(x):
        return -0.5 * x @ x

    x = jax.random.normal(jax.random.key(0), (num, MODEL.num_params)) / np.sqrt(2)
    begun = start_chains(x, remainder)
    count = jnp.asarray(30)
    moved, cost = jax.jit(lambda key, chains: rescale(key, chains, count, units, remainder))(
        jax.random.key(1), begun
    )
    assert cost == 16
    assert (moved.x != begun.x).any(1).mean() > 0.99
    squares = np.asarray(moved.x, float) ** 2
    z = (squares.mean(0) - 0.5) / (squares.std(0) / np.sqrt(num))
    assert np.abs(z).max() < 4
    np.testing.assert_allclose(moved.remainder, -0.5 * (moved.x**2).sum(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved.gradient, -moved.x, atol=1e-6)


@pytest.mark.parametrize(
    ("step_size", "share", "count"), [(0.1, 0.1, 0), (0.002, 0.1, 160), (0.002, 0.0, 0)]
)
def test_how_many_moves_there_are(step_size, share, count):
    settings = SamplerSettings(rescaling=share)
    tuning = start_tuning(MODEL.num_params, jnp.float32, settings)
    tuning = tuning._replace(step_size=jnp.float32(step_size))
    assert abs(int(num_rescalings(tuning, settings)) - count) <= 1
    assert rescales(Prior(), tuning, MODEL, settings) == (count > 0)
    linear = Model(in_features=1, out_features=1, depth=0)
    assert not rescales(Prior(), tuning, linear, settings)
    whitened = Curvature(*(jnp.zeros(1),) * 3)
    assert not rescales(whitened, tuning, MODEL, settings)


def test_without_moves_nothing_changes():
    begun = start_chains(jnp.ones((2, MODEL.num_params)), lambda x: -0.5 * x @ x)
    moved, cost = rescale(
        jax.random.key(0), begun, jnp.asarray(0), units_of(MODEL), lambda x: -0.5 * x @ x
    )
    assert cost == 0
    jax.tree.map(np.testing.assert_array_equal, moved, begun)


@pytest.mark.parametrize("share", [-0.1, 11.0, float("nan"), "half"])
def test_shares_that_are_refused(share):
    with pytest.raises((ValueError, TypeError), match="rescaling must be"):
        SamplerSettings(rescaling=share)
