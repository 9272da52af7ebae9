"""Chains and runs of particles on several cores of a CPU.

XLA runs the loops of a program one after the other, but programs that several threads have begun at
the same time. So each group of chains of each problem, and each run of particles, is a call of one
compiled program, and the calls are shared out among threads; no bit depends on the number of
threads.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from isounc.sampling import chains
from isounc.sampling.kernels import ChainState, Sampler
from isounc.sampling.moments import Block
from isounc.sampling.run import Run, fetch, on_one_cpu

GROUP_WORK = 20_000
"""Examples times parameters from which chains are moved two by two. One core alone takes a tenth
longer for four chains then, since what a step does beside the gradient is done twice."""

Begun = tuple[ChainState, Block]
"""Chains, and what there is of their block."""


def num_threads() -> int:
    """Cores that this process may use; one in a worker process, whose neighbours have the others."""
    if multiprocessing.parent_process() is not None:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_out(call: Callable[[int], Any], count: int) -> tuple[Any, ...]:
    """`call(0)`, ..., `call(count - 1)`, begun by as many threads as there are cores."""
    # The first call may compile, which several threads would do several times.
    done = {0: call(0)}
    threads = min(num_threads(), count)
    shares = [range(count)[t::threads] for t in range(threads)]

    def work(share: range) -> None:
        done.update((i, call(i)) for i in share if i not in done)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        if pool.submit(_jax_settings).result() != _jax_settings():
            shares = [range(count)]
        others = [pool.submit(work, share) for share in shares[1:]]
        work(shares[0])
    for other in others:
        other.result()
    return tuple(done[i] for i in range(count))


class BlockProgram:
    """`chains.draw` of all chains: in one call, or group by group where that is faster."""

    def __init__(self, run: Run, sampler: Sampler):
        self._run = run
        self._static: dict[str, Any] = {
            "model": run.model,
            "settings": run.settings.of_programs,
            "sampler": sampler,
        }
        num_chains, size = run.settings.chains, _group_size(run)
        self._apart = size < num_chains
        self._groups = [slice(k, k + size) for k in range(0, num_chains, size)]
        self._of_problem = [(run.data, run.X)]
        if self._apart:
            known = fetch((run.data, run.X))
            self._of_problem = [_at(known, slice(b, b + 1)) for b in self._problems]

    @property
    def _problems(self) -> range:
        return range(len(self._run.run_keys))

    def begin(self, state: chains.RunState, block: Block) -> tuple[Begun, ...]:
        """The parts that are computed apart: group after group, of problem after problem."""
        begun = (state.chains, block)
        if not self._apart:
            return (begun,)
        begun = fetch(begun)
        return tuple(
            jax.tree.map(jnp.asarray, _at(begun, slice(b, b + 1), group))
            for b in self._problems
            for group in self._groups
        )

    def draw(
        self, begun: tuple[Begun, ...], first: int, count: int, state: chains.RunState,
        keys: Key[Array, "B S"], u: Float[Array, " S"],
    ) -> tuple[Begun, ...]:  # fmt: skip
        """Begin draws `first` to `first + count`; the caller waits for their arrays."""
        constant = (state.coordinates, state.tuning, state.shift)
        if not self._apart:
            ((data, X),) = self._of_problem
            part = chains.draw(
                begun[0], first, count, *constant, data, X, self._run.fixed, keys, u, None,
                **self._static,
            )  # fmt: skip
            return (part,)
        constant = fetch(constant)
        constants = [_at(constant, slice(b, b + 1)) for b in self._problems]

        def one(i: int) -> Begun:
            b, g = divmod(i, len(self._groups))
            return chains.draw(
                begun[i], first, count, *constants[b], *self._of_problem[b], self._run.fixed,
                keys[b : b + 1], u, g, **self._static,
            )  # fmt: skip

        return share_out(one, len(begun))

    def end(
        self, begun: tuple[Begun, ...], state: chains.RunState
    ) -> tuple[chains.RunState, Block]:
        """The state of all chains, and their block."""
        if not self._apart:
            ((moved, block),) = begun
            return state._replace(chains=moved), block

        def join(*parts: np.ndarray) -> np.ndarray:
            of_problems = np.split(np.concatenate(parts, axis=1), len(self._problems), axis=1)
            return np.concatenate(of_problems)

        moved, block = jax.tree.map(join, *fetch(begun))
        return state._replace(chains=moved), block


def _group_size(run: Run) -> int:
    """Number of chains in a call; all of them where more devices than one core compute them."""
    num_chains = run.settings.chains
    if chains.is_serial(run.model, run.data):
        return 1
    work = run.data.X.shape[1] * run.model.num_params
    in_pairs = on_one_cpu() and work >= GROUP_WORK and num_chains % 2 == 0
    return 2 if in_pairs else num_chains


def _jax_settings() -> dict[str, Any]:
    """JAX's settings in this thread: those of a context manager (`jax.enable_x64`) hold in one."""
    return {name: getattr(jax.config, name, None) for name in jax.config.values}


def _at(tree: Any, *index: slice) -> Any:
    """A part of arrays along their first axes."""
    return jax.tree.map(lambda a: a[index], tree)
