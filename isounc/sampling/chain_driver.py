"""The driver of chains: four windows of warm-up, then block after block of draws, all in parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from isounc.sampling import chains
from isounc.sampling.clock import TimeIsUp
from isounc.sampling.cores import BlockProgram
from isounc.sampling.kernels import Sampler
from isounc.sampling.parts import Parts
from isounc.sampling.run import (
    LEAST_DRAWS,
    DrawnBlocks,
    Forecast,
    Run,
    fetch,
    randomness,
    spread,
)
from isounc.sampling.settings import SamplerSettings

WARM_WINDOWS = 4
"""Windows of equal length: step size; step size and metric, twice; step size again.

The first anneals chains that start far from the posterior. From the last on trajectories of large
energy error are tried again.
"""


@dataclass(frozen=True)
class ChainDriver:
    """K chains of a transition: four windows of warm-up, then block after block."""

    sampler: Sampler
    """The transition."""

    @property
    def has_energy(self) -> bool:
        """As the transition says."""
        return self.sampler.has_energy

    def blocks_per_round(self, settings: SamplerSettings) -> int:
        """One: chains can stop after any block."""
        return 1

    def forecast(self, settings: SamplerSettings, *, num_params: int) -> Forecast:
        """Transitions of warm-up and draws; in memory are the draws alone."""
        return Forecast(num_transitions=settings.num_warmup + settings.num_draws, num_floats=0)

    def draw(self, run: Run) -> Iterator[DrawnBlocks]:
        """Block after block of the chains; a checkpoint has every window and block, and parts.

        The last block is shorter where the time is spent or an interrupt comes; the first has at
        least `LEAST_DRAWS` draws.
        """
        settings, data, X, checkpoint = run.settings, run.data, run.X, run.checkpoint
        static: dict[str, Any] = {
            "model": run.model,
            "settings": settings.of_programs,
            "sampler": self.sampler,
        }
        state, step, blocks = (
            chains.start(run.coordinates, data, X, run.start_keys, **static),
            -1,
            [],
        )
        if checkpoint:
            like = chains.begin_block(state, X, run.fixed, settings)
            like = like._replace(position=state.chains.x, log_density=state.chains.remainder)
            step, state, blocks = checkpoint.load(state, like, WARM_WINDOWS)
            state = jax.tree.map(jnp.asarray, state)
        state = state._replace(chains=spread(state.chains))
        static["serial"] = chains.is_serial(run.model, data)
        if step + 1 < WARM_WINDOWS:
            state = self._warm_up(run, state, step, static)
            step = WARM_WINDOWS - 1
            if run.clock.cut_short:
                # A checkpoint has nothing that depends on the clock: it goes on with the warm-up.
                run = run._replace(checkpoint=None)

        step_size = jnp.repeat(state.tuning.step_size[:, None], settings.chains, 1)
        for block in blocks:
            yield DrawnBlocks([block], state.shift, step_size)
        total = settings.block * math.ceil(settings.max_draws / settings.block)
        parts, program = Parts(run), BlockProgram(run, self.sampler)
        empty, constant = chains.begin_block(state, X, run.fixed, settings), state
        while True:
            step += 1
            before = (step - WARM_WINDOWS) * settings.block
            keys, u = randomness(run.run_keys, step, settings.block, X.dtype)

            def more(begun: Any, first: int, count: int, keys: Any = keys, u: Any = u) -> Any:
                return program.draw(begun, first, count, constant, keys, u)

            def tell(done: int, before: int = before) -> None:
                run.report("sampling", before + done, total)

            stage = parts.begin(step, program.begin(state, empty))
            if before + stage.done == 0:
                tell(0)
            try:
                begun = parts.work(
                    more, settings.block, tell=tell,
                    least=LEAST_DRAWS - before, until=run.clock.max_seconds,
                )  # fmt: skip
            except (KeyboardInterrupt, TimeIsUp):
                parts.store()
                begun, done = parts.stage
                if done and before + done >= LEAST_DRAWS:
                    state, block = program.end(begun, state)
                    block = chains.end_block(state, block, done, settings)
                    yield DrawnBlocks([block], state.shift, step_size)
                raise
            state, block = program.end(begun, state)
            block = chains.end_block(state, block, settings.block, settings)
            if run.checkpoint:
                run.checkpoint.save(step, fetch(state), block)
            tell(settings.block)
            yield DrawnBlocks([block], state.shift, step_size)

    def _warm_up(
        self, run: Run, state: chains.RunState, step: int, static: dict[str, Any]
    ) -> chains.RunState:
        """The chains after their warm-up, which is cut short where it takes half of the time."""
        settings, clock = run.settings, run.clock
        length = math.ceil(settings.num_warmup / WARM_WINDOWS)
        total = length * WARM_WINDOWS
        until = (clock.seconds() + clock.max_seconds) / 2
        parts = Parts(run)
        while step + 1 < WARM_WINDOWS:
            step += 1
            keys, u = randomness(run.run_keys, step, length, run.X.dtype)

            def more(window: Any, first: int, count: int, keys: Any = keys, u: Any = u) -> Any:
                return chains.warm_up(window, first, count, run.data, run.X, keys, u, **static)

            def tell(done: int, before: int = step * length) -> None:
                words = f"{before + done} of {total} transitions, {clock.seconds():.0f} s"
                run.report(f"warm-up ({words})", 0, settings.max_draws)

            window = chains.begin_window(state, settings, length, anneal=step == 0)
            tell(parts.begin(step, window).done)
            try:
                window = parts.work(more, length, tell=tell, until=until)
            except KeyboardInterrupt:
                parts.store()
                raise
            except TimeIsUp:
                parts.store()
                window, done = parts.stage
                state = chains.tune(
                    window, settings=static["settings"], adapt_metric=False, retries=True
                )
                clock.cut_short = f"{step * length + done} of {total} transitions of warm-up"
                return state if done else window.state
            adapt_metric = 0 < step < WARM_WINDOWS - 1
            retries = step >= WARM_WINDOWS - 2
            state = chains.tune(
                window, settings=static["settings"], adapt_metric=adapt_metric, retries=retries
            )
            if run.checkpoint:
                run.checkpoint.save(step, fetch(state))
        return state
