"""Costs of decisions: which of the thresholds that keep the promise is taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from isounc.checks import check_real


@dataclass(frozen=True)
class CostMatrix:
    """Cost of each decision about each kind of answer, in any one unit."""

    accept_wrong: float = 1.0
    """A wrong answer is accepted."""
    abstain_right: float = 0.1
    """A right answer is not accepted."""
    abstain_wrong: float = 0.1
    """A wrong answer is not accepted: somebody must look at it."""
    accept_right: float = 0.0
    """A right answer is accepted."""

    def __post_init__(self):
        for name in ("accept_wrong", "abstain_right", "abstain_wrong", "accept_right"):
            check_real(name, getattr(self, name))

    def mean(
        self, accepted: Bool[np.ndarray, "T N"], correct: Bool[np.ndarray, " N"]
    ) -> Float[np.ndarray, " T"]:
        """Mean cost of an answer, for each row of decisions."""
        of_accepted = np.where(correct, self.accept_right, self.accept_wrong)
        of_others = np.where(correct, self.abstain_right, self.abstain_wrong)
        return np.where(accepted, of_accepted, of_others).mean(axis=1)
