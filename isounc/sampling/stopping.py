"""When sampling stops, and what is reported until then."""

from __future__ import annotations

import math
import time

import numpy as np

from isounc.sampling.gate import RARE_DRAWS, TOO_COARSE, Gate
from isounc.sampling.settings import SamplerSettings

REPORT_EVERY = 5.0
"""Least number of seconds between reports of R-hat and ESS."""

PATIENCE = 10.0
"""Times the least ESS at which no more is drawn for the sake of rare draws alone."""


class Pace:
    """How fast draws come, for whoever waits for them."""

    def __init__(self):
        self._begun = self._due = math.nan
        self._first = self._done = 0

    def count(self, done: int) -> None:
        """Take note of the draws of a chain so far."""
        if math.isnan(self._begun) and done > self._done:
            # An unknown part of the first draws' time was compilation: they start the clock.
            self._begun = self._due = time.monotonic()
            self._first = done
        self._done = done

    def is_due(self) -> bool:
        """Whether it is time to work out R-hat and ESS."""
        return time.monotonic() >= self._due

    def judged(self) -> None:
        """Take note that they are worked out."""
        # R-hat is worked out from all draws: with many of them reports must not become the work.
        now = time.monotonic()
        self._due = now + max(REPORT_EVERY, 0.1 * (now - self._begun))

    def left(self, wanted: int) -> list[str]:
        """The time to so many draws, in words; none before that is known."""
        drawn = self._done - self._first
        if drawn <= 0 or wanted <= self._done:
            return []
        seconds = (time.monotonic() - self._begun) / drawn * (wanted - self._done)
        return [f"{seconds:.0f} s to {wanted} draws"]


def is_too_coarse(gate: Gate) -> bool:
    """Whether the numbers have too few digits, which no further draw mends."""
    return any(TOO_COARSE in reason for reason in gate.reasons)


def is_stuck_on_rare_draws(gate: Gate, settings: SamplerSettings) -> bool:
    """Whether rare draws alone fail the gate, and still do with many times the draws it asks for.

    The tail of a saturated p is nearly that of a log-normal variable: its Pareto k falls so slowly
    with the number of draws that waiting for it has no end.
    """
    if gate.passed or not gate.converged:
        return False
    least = min(gate.ess_bulk_min or 0.0, gate.ess_var_min or 0.0)
    return least >= PATIENCE * settings.gate.ess_min


def growth(gate: Gate, settings: SamplerSettings) -> float:
    """By how much to multiply the draws: 1 where the targets are met, else between 1.2 and 2."""
    precise = gate.var_mcse_median is not None and gate.var_mcse_median <= settings.target_var_se
    if (gate.passed or is_stuck_on_rare_draws(gate, settings)) and precise:
        return 1.0
    if is_too_coarse(gate):
        return 1.0
    least = min(gate.ess_bulk_min or 1.0, gate.ess_var_min or 1.0)
    short = max(
        settings.gate.ess_min / least, ((gate.var_mcse_median or 1.0) / settings.target_var_se) ** 2
    )
    # R-hat falls with the number of draws too, but nobody can say how fast.
    return float(np.clip(1.1 * short, 1.2 if gate.rhat_max is None or short > 1 else 1.5, 2.0))


def describe(gate: Gate) -> str:
    """R-hat and the smaller least ESS, in words."""

    def shown(value: float | None, form: str) -> str:
        return "?" if value is None else format(value, form)

    ess = min((e for e in (gate.ess_bulk_min, gate.ess_var_min) if e is not None), default=None)
    return f"R-hat {shown(gate.rhat_max, '.3f')}, ESS {shown(ess, '.0f')}"


def why_stopped(gate: Gate, num_draws: int, settings: SamplerSettings, ended: str = "") -> str:
    """Why sampling ended, in words; `ended` says what ended it before the draws were spent."""
    error = "undefined" if gate.var_mcse_median is None else f"{gate.var_mcse_median:.1%}"
    target = f"{settings.target_var_se:.1%}"
    if gate.num_heavy_tails:
        target += (
            f"; not to be trusted at {gate.num_heavy_tails} of {gate.num_locations} locations, where "
            "rare draws decide"
        )
    precision = f"standard error of the variance {error}, target {target}"
    if is_too_coarse(gate):
        return f"more draws would not help: {TOO_COARSE}"
    if gate.modes_p_value is not None and gate.modes_p_value < settings.gate.modes_p_min:
        return "target met, but the chains disagree with a tempered run"
    if growth(gate, settings) <= 1:
        if not gate.passed:
            return f"more draws would hardly help: {RARE_DRAWS}, {precision}"
        return f"target met: gate passed, {precision}"
    verdict = "gate passed" if gate.passed else "gate failed"
    spent = ended or f"budget of {num_draws} draws a chain spent"
    return f"{spent}: {verdict}, {precision}"
