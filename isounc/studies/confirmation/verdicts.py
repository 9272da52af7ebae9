"""The hypotheses, as bounds on a number of each seed, and what an interval says about them."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from isounc.statistics import Interval

Verdict = Literal["confirmed", "refuted", "undecided"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""All verdicts, in the order in which they are counted."""
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


def verdict(interval: Interval, hypothesis: Hypothesis) -> Verdict:
    """What an interval of the hypothesis's number says.

    Confirmed if all of it lies on the claimed side of the bound, refuted if all of it lies on the
    other, and undecided otherwise, also where there is none.
    """
    if interval.low is None or interval.high is None:
        return "undecided"
    above, under = interval.low > hypothesis.bound, interval.high < hypothesis.bound
    if hypothesis.below:
        above, under = under, above
    return "confirmed" if above else "refuted" if under else "undecided"
