"""The hypotheses, as bounds on a number of each seed."""

from __future__ import annotations

from typing import NamedTuple

MARGIN = 0.05
"""Loss of Pearson's r against an ensemble up to which "at least as well" holds."""


class Hypothesis(NamedTuple):
    """A claim that a number lies above a bound, or below it."""

    claim: str
    """The claim in words, with one trained network and one pass as its subject."""
    estimate: str
    """The estimate that it is about."""
    rival: str
    """The estimate whose Pearson correlation is subtracted; empty where the level is asked for."""
    bound: float
    """Bound on the difference, or on log2 of the level."""
    below: bool = False
    """Whether the absolute value lies below the bound, in place of the number above it."""

    def number(self, value: float) -> float:
        """The number that is bounded, from a difference or log2 of the level."""
        return abs(value) if self.below else value


HYPOTHESES = {
    "H1": Hypothesis(
        "logit-scaled orders inputs better than ‖∇p‖²", "logit_scaled", "isotropic", 0.0
    ),
    "H2": Hypothesis(
        "logit-scaled orders inputs better than p(1−p)", "logit_scaled", "null_aleatoric", 0.0
    ),
    "H3, 4": Hypothesis(
        "logit-scaled orders inputs at least as well as 4 networks", "logit_scaled", "ensemble_4",
        -MARGIN,
    ),
    "H3, 16": Hypothesis(
        "logit-scaled orders inputs at least as well as 16 networks", "logit_scaled",
        "ensemble_16", -MARGIN,
    ),
    "H4": Hypothesis(
        "scale effective_dimension gets the summed variance within a factor of 2",
        "logit_scaled_level", "", 1.0, below=True,
    ),
    "H4, unit": Hypothesis("scale unit overstates the summed variance", "logit_scaled", "", 0.0),
}  # fmt: skip
"""Hypotheses by name; the study's docstring states them."""
OF_LINK = ("H1", "H2")
"""Those that say nothing without a link, where logit_scaled and isotropic are one."""
