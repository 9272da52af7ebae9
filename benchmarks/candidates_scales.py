"""Metropolis moves along the scales of units, between transitions of hmc (`candidates.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isounc.models import Model
from isounc.sampling.kernels import ChainState

SWEEPS = {"scales": 1, "scales 12": 12}
"""Sweeps over all units after a transition."""
SCALES = (0.1, 0.5, 2.0)
"""Standard deviations of the s of scale moves."""


class Target(NamedTuple):
    """A posterior in prior coordinates."""

    remainder: Callable[[Any], Any]
    """Log likelihood of x."""
    predict: Callable[[Any], Any]
    """Predictions of x at the locations."""
    units: tuple[np.ndarray, np.ndarray] = (np.zeros((0, 0), int), np.zeros((0, 0), int))
    """Indices into x, by unit: of its input weights and bias, and of its output weights."""


def units_of(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Indices of what goes into and out of each unit of the hidden layer."""
    (inputs, width), (_, outputs) = model.layer_sizes
    into = np.arange((inputs + 1) * width).reshape(inputs + 1, width).T
    return into, (inputs + 1) * width + np.arange(width * outputs).reshape(width, outputs)


def rescale(
    key: Any, x: Any, r: Any, remainder: Callable[[Any], Any], rows: Any, both: Any, size: Any
) -> tuple[Any, Any]:
    """One Metropolis step of a chain: (w, b) to e^s (w, b), and v to e^-s v if `both`.

    s is as likely as -s, which leads back, so that what is left is the ratio of the densities times
    the Jacobian e^(s (D + 1 - O)), or e^(s (D + 1)).
    """
    into, out_of = rows
    key_s, key_accept = jax.random.split(key)
    s = size * jax.random.normal(key_s, (), x.dtype)
    y = x.at[into].multiply(jnp.exp(s))
    y = y.at[out_of].multiply(jnp.where(both, jnp.exp(-s), 1.0))
    log_jacobian = s * (len(into) - jnp.where(both, len(out_of), 0))
    after = remainder(y)
    log_ratio = after - r - 0.5 * (y - x) @ (y + x) + log_jacobian
    accept = jnp.log(jax.random.uniform(key_accept, (), x.dtype)) < log_ratio
    return jnp.where(accept, y, x), jnp.where(accept, after, r)


def rescale_all(
    key: Any, state: ChainState, turn: Any, target: Target, sweeps: int = 1
) -> ChainState:
    """Steps of each unit of each chain, sweep by sweep of both sides or one, in one of the sizes."""
    into, out_of = map(jnp.asarray, target.units)

    def of_chain(key: Any, x: Any, r: Any) -> tuple[Any, Any, Any]:
        def sweep(carry: Any, number: Any) -> tuple[Any, None]:
            both, size = number % 2 == 0, jnp.asarray(SCALES)[(number // 2) % len(SCALES)]

            def step(carry: Any, inputs: Any) -> tuple[Any, None]:
                (key, rows), (x, r) = inputs, carry
                return rescale(key, x, r, target.remainder, rows, both, size), None

            keys = jax.random.split(jax.random.fold_in(key, number), len(into))
            return jax.lax.scan(step, carry, (keys, (into, out_of)))[0], None

        (y, _), _ = jax.lax.scan(sweep, (x, r), turn * sweeps + jnp.arange(sweeps))
        return y, *jax.value_and_grad(target.remainder)(y)

    return ChainState(*jax.vmap(of_chain)(jax.random.split(key, len(state.x)), *state[:2]))
