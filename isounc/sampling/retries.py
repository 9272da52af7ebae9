"""Trajectories that are tried again in finer steps where their energy error is large.

No step size suits all parts of a posterior that is stiffer here than there: chains never enter what
is too stiff for theirs, and neither R-hat nor ESS tells. So a trajectory from (x, p) whose energy
error is above `LARGE_ERROR` or below -`LARGE_ERROR` is tried again in steps `FINER` times as short,
at most `RETRIES` times. The first with a smaller error leads to (y, q), which is accepted with
probability min(1, exp(H(x, p) - H(y, q))) if from (y, -q), too, the steps of all attempts before
have large errors. That keeps detailed balance: the way back takes the same steps.

After delayed rejection (Modi, Barnett and Carpenter 2023) and the involutive choice of a step size
(autoMALA, Biron-Lattes et al. 2024).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun
from jaxtyping import Array, Bool, Float, Int

from isounc.sampling.run import on_one_cpu, together

LARGE_ERROR = 3.0
"""Energy error, in nats, above which a trajectory is tried again; where steps suit it is rare."""
FINER = 3
"""Its steps are so many times shorter then."""
RETRIES = 2
"""It is tried again at most so many times."""


class Attempts(NamedTuple):
    """Trajectories of K chains, on the way to one with a small energy error."""

    end: Any
    """Where the last from the start has led; minus its energy error is in the place of the log
    density, as `isounc.sampling.integrator.splitting` has it."""
    is_open: Bool[Array, " K"]
    """Whether the errors of all so far were large."""
    is_new: Bool[Array, " K"]
    """Whether that of the last one was the first to be small."""
    returns: Bool[Array, " K"]
    """Whether the steps of all before have large errors from the end back, too."""
    num_gradients: Int[Array, " K"]
    """Gradients of all."""


def chain_by_chain(condition: Bool[Array, " K"], yes: Any, no: Any) -> Any:
    """`jnp.where` for trees of arrays (K, ...)."""

    def choose(a: Array, b: Array) -> Array:
        return jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, yes, no)


def try_trajectories(
    step: Callable[[Any, Any], Any], start: Any, num_steps: Int[Array, ""],
    step_size: Float[Array, ""], enabled: Bool[Array, ""], *, most: int = RETRIES,
) -> tuple[Any, Attempts]:  # fmt: skip
    """Trajectories of K chains.

    Parameters
    ----------
    step
        Step of a chain, of a size.
    start
        Positions and momenta, with energy errors of 0.
    num_steps, step_size
        Those of the first attempts.
    enabled, most
        Whether there are others, and how many at most. Otherwise all errors count as small.

    Returns
    -------
    Where the first attempts end, and all attempts.
    """

    def integrate(states: Any, finer: Any, wanted: Bool[Array, " K"]) -> tuple[Any, Array]:
        count = jnp.where(wanted.any(), num_steps * finer, 0).astype(jnp.int32)

        def of_chain(state: Any) -> Any:
            return jax.lax.fori_loop(0, count, lambda _, s: step(s, step_size / finer), state)

        return together(of_chain)(states), jnp.where(wanted, count, 0)

    def is_small(states: Any) -> Bool[Array, " K"]:
        return jnp.abs(states.logdensity) <= LARGE_ERROR

    def attempt(tried: Attempts, plan: tuple[Array, Array]) -> tuple[Attempts, None]:
        finer, is_back = plan
        choose = functools.partial(jax.tree.map, functools.partial(jnp.where, is_back))
        turned = tried.end._replace(
            momentum=-tried.end.momentum, logdensity=jnp.zeros_like(tried.end.logdensity)
        )
        wanted = jnp.where(is_back, tried.is_new, tried.is_open)
        reached, count = integrate(choose(turned, start), finer, wanted)
        small = is_small(reached)
        back = tried._replace(returns=tried.returns & ~(wanted & small))
        on = tried._replace(
            end=chain_by_chain(wanted, reached, tried.end),
            is_open=tried.is_open & ~small,
            is_new=wanted & small,
        )
        return choose(back, on)._replace(num_gradients=tried.num_gradients + count), None

    everywhere = jnp.ones(len(start.position), bool)
    first, num_gradients = integrate(start, 1, everywhere)
    is_open = ~is_small(first) & enabled if most else ~everywhere
    tried = Attempts(first, is_open, ~everywhere, everywhere, num_gradients)
    # How many times shorter steps are, and whether they go back, attempt after attempt.
    plan = [
        (FINER**level, level < retry)
        for retry in range(1, most + 1)
        for level in (retry, *range(retry))
    ]
    if plan:
        finer, is_back = (jnp.array(column) for column in zip(*plan, strict=True))
        tried = _where_open(lambda tried: jax.lax.scan(attempt, tried, (finer, is_back))[0], tried)
    return first, tried


def _where_open(retry: Callable[[Attempts], Attempts], tried: Attempts) -> Attempts:
    """`retry(tried)` if the trajectory of any chain is open.

    Of a batch of problems those with such a chain are retried one after the other: all of them
    together would go wherever one of them needs it, with every step of the finest trajectory.
    """
    if not on_one_cpu():
        return jax.lax.cond(tried.is_open.any(), retry, lambda tried: tried, tried)
    # The rule sees as arguments what the function closes over: data, say.
    closed = jax.make_jaxpr(retry)(tried)

    @jax.custom_batching.custom_vmap
    def retried(consts: list[Any], tried: Attempts) -> Attempts:
        leaves, tree = jax.tree.flatten(tried)
        return jax.lax.cond(
            tried.is_open.any(),
            lambda: tree.unflatten(jaxpr_as_fun(closed.replace(consts=consts))(*leaves)),
            lambda: tried,
        )

    @retried.def_vmap
    def one_by_one(
        size: int, is_batched: Any, consts: list[Any], tried: Attempts
    ) -> tuple[Attempts, Attempts]:
        given = jax.tree.map(
            lambda a, batched: a if batched else jnp.broadcast_to(a, (size, *a.shape)),
            (consts, tried), tuple(is_batched),
        )  # fmt: skip
        is_open = given[1].is_open.any(1)
        order = jnp.argsort(~is_open)

        def one(k: Int[Array, ""], all_tried: Attempts) -> Attempts:
            its_consts, its_tried = jax.tree.map(lambda a: a[order[k]], (given[0], all_tried))
            return jax.tree.map(
                lambda a, new: a.at[order[k]].set(new), all_tried, retried(its_consts, its_tried)
            )

        done = jax.lax.fori_loop(0, is_open.sum(), one, given[1])
        return done, jax.tree.map(lambda _: True, done)

    return retried(closed.consts, tried)
