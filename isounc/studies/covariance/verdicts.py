"""The hypotheses, as bounds on a number of each seed."""

from __future__ import annotations

from typing import NamedTuple

from isounc.studies.covariance.settings import ALL

MARGIN = 0.05
"""Loss of a correlation up to which "hardly" and "little" hold."""
CORRELATIONS = ("pearson", "spearman")
"""Statistics of the hypotheses about an order; the first is that of the protocol's verdicts."""


class Hypothesis(NamedTuple):
    """A claim that a number lies above a bound, or below it."""

    claim: str
    """The claim in words; "these data" are those of the proxy."""
    form: str
    """The form that it is about."""
    bound: float
    """Bound on the number."""
    rival: tuple[str, str] = ("", "")
    """Form and proxy of the row whose number is subtracted; the proxy "" is the same."""
    below: bool = False
    """Whether the number lies below the bound."""
    column: str = ""
    """The number; empty for the correlations."""
    region: str = ""
    """The one region in which there is the number; empty for all of those of the problem."""


HYPOTHESES = {
    "distorts": Hypothesis(
        "a full Σ from these data orders inputs worse than one from the training data", "full",
        0.0, ("full", "train"), below=True,
    ),
    "isotropic wins": Hypothesis(
        "an isotropic Σ orders inputs better than a full one from these data", "isotropic", 0.0,
        ("full", ""),
    ),
    "isotropic costs little": Hypothesis(
        "an isotropic Σ orders inputs at most .05 worse than a full one from the training data",
        "isotropic", -MARGIN, ("full", "train"),
    ),
    "diagonal suffers little": Hypothesis(
        "a diagonal Σ from these data orders inputs at most .05 worse than one from the training "
        "data", "diagonal", -MARGIN, ("diagonal", "train"),
    ),
    "structured": Hypothesis(
        "a full Σ's estimate grows with the distance from these data beside an isotropic one's, at "
        "equal distance from the training data", "full", 0.0, ("isotropic", ""),
        column="slope_proxy", region=ALL,
    ),
    "same place": Hypothesis(
        "what these data change of a full Σ's estimates is at the same places for every seed",
        "full", 0.0, column="alignment_change", region="grid",
    ),
}  # fmt: skip
"""Hypotheses by name; the study's docstring states them."""
EVERY_PROXY = "isotropic costs little"
"""The hypothesis that is about no proxy."""
