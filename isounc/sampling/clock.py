"""The clock of a run, and its budget of seconds."""

from __future__ import annotations

import math
import time

import jax
import numpy as np


class TimeIsUp(Exception):
    """The budget of seconds is spent."""


class Clock:
    """Seconds since the beginning of a run: the same on all its hosts, which must decide alike."""

    def __init__(self, max_seconds: float = math.inf):
        self.max_seconds = max_seconds
        self.saved = 0.0
        """Reading at the last checkpoint."""
        self.cut_short = ""
        """The stage before the draws that ended early for lack of time, in words; empty if none did."""
        self._begun = time.monotonic()

    def seconds(self) -> float:
        """Seconds so far, those of the first host."""
        now = time.monotonic() - self._begun
        if jax.process_count() == 1:
            return now
        from jax.experimental import multihost_utils

        return float(multihost_utils.broadcast_one_to_all(np.float32(now)))

    def left(self) -> float:
        """Seconds until the budget is spent; negative where more are."""
        return self.max_seconds - self.seconds()
