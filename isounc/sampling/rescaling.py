"""Moves along the scales of hidden units, between trajectories that take many steps.

A unit of a hidden layer has weights and a bias going in, (w, b), and weights v going out. Its part
v tanh(w x + b) changes little along (w, b) -> e^s (w, b), v -> e^-s v where the unit is nearly
linear, and along (w, b) -> e^s (w, b) alone where it is saturated. Under a wide prior such
directions are longer by orders of magnitude than what the data fix, and steps that are short enough
for the latter take long to go along them. A Metropolis step with s ~ N(0, size^2) does it at the
price of a value of the likelihood: s is as likely as -s, which leads back, so that it is accepted
with probability

    min(1, p(x') / p(x) e^(s (I - O))),    or e^(s I) where v stays,

where I and O count the parameters going in and out (Liu and Sabatti 2000, "Generalised Gibbs
sampler and multigrid Monte Carlo"). Units, sizes and the kind of move are drawn anew for each
step. The number of steps follows from the adapted step size and never from where chains stand,
which would not be exact.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from isounc.models import Model
from isounc.sampling.adaptation import Tuning
from isounc.sampling.coordinates import Coordinates, Prior
from isounc.sampling.integrator import Remainder
from isounc.sampling.kernels import ChainState
from isounc.sampling.run import fetch
from isounc.sampling.settings import SamplerSettings

SIZES = (0.1, 0.5, 2.0)
"""Standard deviations of s."""
LONG = 100
"""Steps of a trajectory from which on units are rescaled: with fewer the moves would cost more than
they bring, and a longer program."""


class Units(NamedTuple):
    """Indices into the parameters, by hidden unit; P, beyond all of them, where a row has fewer."""

    into: Int[np.ndarray, "U I"]
    """Weights and bias going into each unit."""
    out_of: Int[np.ndarray, "U O"]
    """Weights going out of it."""


def units_of(model: Model) -> Units:
    """The units of all hidden layers."""
    sizes, first = model.layer_sizes, 0
    kernels, biases = [], []
    for rows, columns in sizes:
        kernels.append(first + np.arange(rows * columns).reshape(rows, columns))
        biases.append(first + rows * columns + np.arange(columns))
        first += (rows + 1) * columns
    into = [
        np.concatenate([kernel, bias[None]]).T
        for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True)
    ]

    def padded(parts: list[np.ndarray]) -> np.ndarray:
        most = max((part.shape[1] for part in parts), default=0)
        filled = [
            np.pad(part, ((0, 0), (0, most - part.shape[1])), constant_values=first)
            for part in parts
        ]
        return np.concatenate(filled) if filled else np.zeros((0, 0), int)

    return Units(padded(into), padded(kernels[1:]))


def num_rescalings(tuning: Tuning, settings: SamplerSettings) -> Int[Array | np.ndarray, ""]:
    """Steps after each transition, whose values cost a share of its gradients; 0 if it is short."""
    steps = tuning.trajectory_length / tuning.step_size
    steps = jnp.minimum(steps, settings.max_integration_steps)
    # A value costs about half of a gradient.
    count = jnp.where(steps < LONG, 0, 2 * settings.rescaling * steps)
    return count.astype(jnp.int32)


def rescales(
    coordinates: Coordinates, tuning: Tuning, model: Model, settings: SamplerSettings
) -> bool:
    """Whether units of any problem are rescaled: in prior coordinates, where trajectories are long."""
    if not isinstance(coordinates, Prior) or model.depth == 0:
        return False
    return bool(np.asarray(fetch(num_rescalings(tuning, settings))).any())


def rescale(
    key: PRNGKeyArray, chains: ChainState, count: Int[Array, ""], units: Units,
    remainder: Remainder,
) -> tuple[ChainState, Int[Array, ""]]:  # fmt: skip
    """`count` steps of each chain, and the gradients that they cost it.

    Parameters
    ----------
    key
        Random key of this transition.
    chains
        Where the chains stand.
    count
        Number of steps; the same for all chains, and independent of where they stand.
    units
        What is rescaled.
    remainder
        Log density of x minus that of N(x; 0, I).
    """
    num_params = chains.x.shape[1]
    all_into, all_out_of = (jnp.asarray(indices) for indices in units)
    sizes = jnp.asarray(SIZES, chains.x.dtype)

    def move(
        i: Int[Array, ""], carry: tuple[PRNGKeyArray, Array, Array]
    ) -> tuple[PRNGKeyArray, Array, Array]:
        key, x, r = carry
        key_unit, key_size, key_both, key_s, key_accept = jax.random.split(
            jax.random.fold_in(key, i), 5
        )
        unit = jax.random.randint(key_unit, (), 0, len(all_into))
        size = sizes[jax.random.randint(key_size, (), 0, len(SIZES))]
        both = jax.random.bernoulli(key_both)
        s = size * jax.random.normal(key_s, (), x.dtype)
        into, out_of = all_into[unit], all_out_of[unit]
        y = x.at[into].multiply(jnp.exp(s), mode="drop")
        y = y.at[out_of].multiply(jnp.where(both, jnp.exp(-s), 1), mode="drop")
        going_in, going_out = ((indices < num_params).sum() for indices in (into, out_of))
        log_jacobian = s * (going_in - jnp.where(both, going_out, 0)).astype(x.dtype)
        after = remainder(y)
        # As differences: sums over all parameters would drown what changes.
        log_ratio = after - r - 0.5 * (y - x) @ (y + x) + log_jacobian
        uniform = jax.random.uniform(key_accept, (), x.dtype)
        accept = jnp.log(uniform) < log_ratio
        return key, jnp.where(accept, y, x), jnp.where(accept, after, r)

    def of_chain(
        key: PRNGKeyArray, x: Float[Array, " P"], r: Float[Array, ""], gradient: Float[Array, " P"]
    ) -> ChainState:
        _, y, s = jax.lax.fori_loop(0, count, move, (key, x, r))
        # None where there were no steps, which is not known before.
        again = (count > 0).astype(jnp.int32)
        gradient = jax.lax.fori_loop(0, again, lambda *_: jax.grad(remainder)(y), gradient)
        return ChainState(y, s, gradient)

    moved = jax.vmap(of_chain)(jax.random.split(key, len(chains.x)), *chains)
    return moved, jnp.where(count > 0, count // 2 + 1, 0)
