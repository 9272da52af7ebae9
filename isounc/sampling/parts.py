"""Long work in short parts: how long they are, who hears of them, and when the time is spent.

A compiled program makes as many transitions as it is told, so that one compilation serves parts of
every length, and no bit of a result depends on where the work was cut. Between two parts progress
is reported, checkpoints are written and the clock is looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from isounc.sampling.clock import TimeIsUp
from isounc.sampling.run import Run, fetch

SECONDS = 2.0
"""About so long is a part, or as long as one transition if that takes longer."""
GROWTH = 4
"""Most that a part may exceed the longest before: warm-up changes what a transition costs."""
SHORT = 0.25
"""Seconds below which a part is waited for without looking whether it is long."""
TELL_EVERY = 1.0
"""Least number of seconds between reports of parts."""
SILENCE = 5.0
"""Seconds after which a part that takes long is reported on, though it has not ended."""
SAVE_EVERY = 30.0
"""Seconds between checkpoints within a block of draws, a window of warm-up or a temperature."""


class Stage(NamedTuple):
    """How far a step of a run is; both at once, so that an interrupt finds them in agreement."""

    state: Any
    """The state that one program passes to the next; a pytree."""
    done: int
    """Pieces of work that it has."""


class Parts:
    """A compiled program in parts, each as long as those before suggest."""

    stage: Stage
    """After the last part that is whole."""

    def __init__(self, run: Run):
        self._run = run
        self._step = -1
        self._longest = 0
        self._pace = math.nan
        self._told = -math.inf

    def begin(self, step: int, state: Any) -> Stage:
        """Begin a step of the run, or go on where the checkpoint has it."""
        self._step, self.stage = step, Stage(state, 0)
        checkpoint = self._run.checkpoint
        found = checkpoint.load_part(step, self.stage) if checkpoint else None
        if found is not None:
            # Each array goes to the devices that it has at the beginning.
            placed = jax.tree.map(lambda a, like: jax.device_put(a, like.sharding), found[0], state)
            self.stage = Stage(placed, int(found[1]))
        return self.stage

    def work(
        self,
        program: Callable[[Any, int, int], Any],
        length: int,
        *,
        tell: Callable[[int], None],
        least: int = 0,
        until: float = math.inf,
    ) -> Any:
        """Do all the pieces of work that are left, and return the state after them.

        Parameters
        ----------
        program
            From a state, the pieces before it and the number of those to do, the next state.
        length
            Number of all pieces.
        tell
            Called with the pieces that are done.
        least
            So many are done whatever the clock says.
        until
            Reading of the clock at which the time is spent.

        Raises
        ------
        TimeIsUp
            If the time is spent before all is done.
        """
        clock = self._run.clock
        while (done := self.stage.done) < length:
            begun = clock.seconds()
            if done >= least and begun >= until:
                raise TimeIsUp
            count = self._size(length - done)
            state = program(self.stage.state, done, count)
            if not count * self._pace < SHORT:
                wait(state, lambda done=done: tell(done))
            state = jax.block_until_ready(state)
            self.stage = Stage(state, done + count)
            now = clock.seconds()
            self._took(count, now - begun)
            if self.stage.done == length:
                break
            if now - self._told >= TELL_EVERY:
                self._told = now
                tell(self.stage.done)
            if now - clock.saved >= SAVE_EVERY:
                self.store()
        return self.stage.state

    def store(self) -> None:
        """Write the stage to the checkpoint, if the run has one."""
        if self._run.checkpoint and self.stage.done:
            self._run.checkpoint.save_part(self._step, fetch(self.stage))
            self._run.clock.saved = self._run.clock.seconds()

    def _size(self, left: int) -> int:
        """Length of the next part."""
        if math.isnan(self._pace):
            return 1
        fitting = SECONDS / max(self._pace, 1e-9)
        return max(1, int(min(left, GROWTH * self._longest, fitting)))

    def _took(self, count: int, seconds: float) -> None:
        """Take note of a part. The time of the first tells nothing: it was compiled."""
        if self._longest:
            self._pace = seconds / count
        self._longest = max(self._longest, count)


def wait(tree: Any, tell: Callable[[], None]) -> Any:
    """The arrays once they are computed. While that takes long `tell` is called now and then.

    An interrupt ends the waiting at once, where JAX sees it after the computation.
    """
    arrays: list[Any] = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    begun = told = time.monotonic()
    while not all(array.is_ready() for array in arrays):
        now = time.monotonic()
        if now - told >= SILENCE:
            told = now
            tell()
        time.sleep(min(0.05, 1e-3 + 0.01 * (now - begun)))
    return jax.block_until_ready(tree)
