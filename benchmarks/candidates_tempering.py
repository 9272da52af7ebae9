"""Non-reversible parallel tempering from the prior to the posterior (`candidates.py`).

Syed, Bouchard-Côté, Deligiannidis and Doucet 2022. BlackJAX has none.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from candidates_scales import Target

from isounc.sampling import chains
from isounc.sampling.adaptation import (
    Tuning,
    averaging,
    count_draws,
    end_window,
    strongly_typed,
)
from isounc.sampling.kernels import SAMPLERS, ChainState, start_chains
from isounc.sampling.retries import chain_by_chain
from isounc.sampling.settings import SamplerSettings

HMC = SAMPLERS["hmc"]
TEMPERATURES = 16
"""Including the posterior; without the prior, whose draws are exact."""
ROUNDS = (8, 16, 32)
"""Scans of the rounds after which tempering adapts its temperatures and steps."""
AT_ONCE = 25
"""Transitions (scans) between looks at the budget."""


def begin_steps(tunings: Tuning, steps: np.ndarray, settings: SamplerSettings) -> Tuning:
    """Tunings that adapt from these step sizes on."""
    init, *_ = averaging(settings)
    sizes = jnp.asarray(steps, tunings.step_size.dtype)
    begun = jax.vmap(lambda step: strongly_typed(init(step), step.dtype))(sizes)
    return tunings._replace(
        step_size=sizes, averaging=begun, retries=jnp.zeros_like(tunings.retries)
    )


def at_temperature(
    key: Any, state: ChainState, tuning: Tuning, u: Any, temperature: Any, target: Target,
    settings: SamplerSettings, *, adapt: bool,
) -> tuple[ChainState, Tuning, Any]:  # fmt: skip
    """A transition of hmc of the posterior at a temperature; chains hold r without it."""
    warm = ChainState(state.x, temperature * state.remainder, temperature * state.gradient)

    def remainder(x: Any) -> Any:
        return temperature * target.remainder(x)

    moved, info, proposal = HMC.transition(key, warm, tuning, u, remainder, settings)
    if adapt:
        tuning = HMC.adapt(tuning, warm, proposal, info, u, settings)
    stays = (moved.x == warm.x).all(1)
    divided = ChainState(moved.x, moved.remainder / temperature, moved.gradient / temperature)
    return chain_by_chain(stays, state, divided), tuning, jnp.asarray(info.num_gradients).sum()


def swap(key: Any, states: ChainState, temperatures: Any, turn: Any) -> tuple[ChainState, Any]:
    """Swap neighbours i, i + 1 of even or odd i, by turns; and the chance of a refusal of each pair.

    The axes of the states are (temperature, chain).
    """
    r, count = states.remainder, len(temperatures)
    log_ratio = (temperatures[:-1] - temperatures[1:])[:, None] * (r[1:] - r[:-1])
    uniform = jax.random.uniform(key, log_ratio.shape, r.dtype)
    chosen = (jnp.arange(count - 1) % 2 == turn % 2)[:, None] & (jnp.log(uniform) < log_ratio)
    above = jnp.concatenate([chosen, jnp.zeros_like(chosen[:1])])
    below = jnp.concatenate([jnp.zeros_like(chosen[:1]), chosen])
    source = jnp.arange(count)[:, None] + above - below

    def swapped(a: Any) -> Any:
        index = source.reshape(*source.shape, *[1] * (a.ndim - 2))
        return jnp.take_along_axis(a, index, 0)

    return jax.tree.map(swapped, states), 1 - jnp.exp(jnp.minimum(log_ratio, 0)).mean(1)


def tempering_way(target: Target, settings: SamplerSettings, *, adapt: bool):
    """A program of many scans: a transition at each temperature, exact draws of the prior, swaps."""

    @jax.jit
    def many(
        carry: Any, temperatures: Any, keys: Any, u: Any, turns: Any
    ) -> tuple[Any, tuple[Any, Any, Any]]:
        def one(carry: Any, inputs: Any) -> tuple[Any, Any]:
            states, tunings = carry
            key, u, turn = inputs
            key_prior, key_swap, key_moves = jax.random.split(key, 3)
            hot = jax.random.normal(key_prior, states.x.shape[1:], states.x.dtype)
            first = start_chains(hot, target.remainder)

            def explore(inputs: Any) -> Any:
                key, state, tuning, temperature = inputs
                return at_temperature(
                    key, state, tuning, u, temperature, target, settings, adapt=adapt
                )

            rest = jax.tree.map(lambda a: a[1:], states)
            move_keys = jax.random.split(key_moves, len(temperatures) - 1)
            rest, tunings, costs = jax.lax.map(
                explore, (move_keys, rest, tunings, temperatures[1:])
            )
            if adapt:
                tunings = jax.vmap(count_draws)(tunings, rest.x)
            states = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
            states, refused = swap(key_swap, states, temperatures, turn)
            posterior = jax.vmap(target.predict)(states.x[-1])
            return (states, tunings), (posterior, costs.sum() + len(hot), refused)

        return jax.lax.scan(one, carry, (keys, u, turns))

    return many


def equal_refusals(temperatures: np.ndarray, refused: np.ndarray) -> np.ndarray:
    """Temperatures between whose neighbours swaps are refused equally often, and as many."""
    barrier = np.concatenate([[0.0], np.cumsum(np.maximum(refused, 1e-3))])
    wanted = np.linspace(0, barrier[-1], len(temperatures))
    # In logarithms: powers of the likelihood span decades; the prior has none.
    floor = np.log(temperatures[1]) - 3
    logs = np.concatenate([[floor], np.log(temperatures[1:])])
    return np.concatenate([[0.0], np.exp(np.interp(wanted, barrier, logs))[1:-1], [1.0]])


def tempered(
    target: Target, warm: chains.RunState, settings: SamplerSettings, key: Any, gradients: int
) -> tuple[np.ndarray, int, str]:
    """Predictions (chain, draw, location), gradients and notes of tempering."""
    state, tuning = (jax.tree.map(lambda a: a[0], part) for part in (warm.chains, warm.tuning))
    starts = jax.vmap(target.remainder)(jax.random.normal(key, (64, state.x.shape[1])))
    depth = float(chains.mean_depth(np.asarray(starts, float)[None])[0])
    hottest = 1 / max(depth, 10.0)
    temperatures = np.concatenate([[0.0], np.geomspace(hottest, 1, TEMPERATURES)])
    steps = np.minimum(np.asarray(tuning.step_size) / np.sqrt(temperatures[1:]), 1.0)

    def repeated(a: Any, times: int) -> Any:
        return jnp.broadcast_to(a[None], (times, *a.shape))

    tunings = jax.tree.map(lambda a: repeated(a, TEMPERATURES), tuning)
    states = jax.tree.map(lambda a: repeated(a, TEMPERATURES + 1), state)
    carry, turn, spent_warm = (states, begin_steps(tunings, steps, settings)), 0, 0.0

    def scans(carry: Any, count: int, *, adapt: bool) -> Any:
        nonlocal turn
        turns = jnp.arange(turn, turn + count)
        keys = jax.vmap(lambda t: jax.random.fold_in(key, t))(turns)
        u = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 7)))(keys)
        turn += count
        program = adapting if adapt else sampling
        return program(carry, jnp.asarray(temperatures, jnp.float32), keys, u, turns)

    adapting = tempering_way(target, settings, adapt=True)
    sampling = tempering_way(target, settings, adapt=False)
    for count in ROUNDS:
        carry, (_, costs, refused) = scans(carry, count, adapt=True)
        spent_warm += float(costs.sum())
        states, tunings = carry
        tunings = jax.vmap(lambda t: end_window(t, None, None, settings))(tunings)
        old, temperatures = temperatures, equal_refusals(temperatures, np.asarray(refused).mean(0))
        logs = np.interp(
            np.log(temperatures[1:]), np.log(old[1:]), np.log(np.asarray(tunings.step_size))
        )
        carry = (states, begin_steps(tunings, np.exp(logs), settings))
    carry, (_, costs, _) = scans(carry, ROUNDS[-1], adapt=True)
    spent_warm += float(costs.sum())
    tunings = jax.vmap(lambda t: end_window(t, None, None, settings))(carry[1])
    carry = (carry[0], tunings._replace(retries=jnp.ones_like(tunings.retries)))
    values, spent, refusals = [], 0.0, []
    while spent < gradients:
        carry, (p, costs, refused) = scans(carry, AT_ONCE, adapt=False)
        values.append(np.asarray(p))
        spent += float(costs.sum())
        refusals.append(np.asarray(refused).mean(0))
    refused = np.mean(refusals, 0)
    notes = (
        f"refused swaps {refused.min():.2f} to {refused.max():.2f}, barrier {refused.sum():.1f}, "
        f"{spent_warm:.0f} gradients of warm-up"
    )
    return np.concatenate(values).swapaxes(0, 1), int(spent), notes
