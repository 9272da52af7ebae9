"""A model's answers to one benchmark with their scores, as tables and figures take them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isounc.llm.answers.measure import Measured
from isounc.llm.answers.score_table import ScoreTable
from isounc.llm.answers.scores import baselines, same_words

KINDS = ("aleatoric", "epistemic", "total_sum", "link_aware", "link_aware_total")
"""Isotropic scores of the headline, for its estimand."""
BASELINES = tuple(score.name for score in baselines(same_words))
MOST_UNDEFINED = 0.05
"""A baseline that is undefined at a larger share of the questions is in the tables, but not among those of which the
best is taken: a test uses the questions where all of them are defined."""


class Part(NamedTuple):
    """A model's answers to one benchmark."""

    model: str
    """Its name."""
    benchmark: str
    """Its name."""
    estimand: str
    """The one of the headline."""
    measured: list[Measured]
    """Answers."""
    scores: ScoreTable
    """Their scores."""

    @property
    def where(self) -> dict[str, str]:
        """Columns that say which this is."""
        return {"model": self.model, "benchmark": self.benchmark}

    @property
    def headline(self) -> list[str]:
        """Scores of the headline that are defined here."""
        wanted = [*(f"{kind}/{self.estimand}" for kind in KINDS), *BASELINES]
        return [name for name in wanted if name in self.scores.uncertainty]

    @property
    def compared(self) -> list[str]:
        """Baselines of which the best is taken."""
        return [
            name
            for name in BASELINES
            if name in self.scores.uncertainty
            and np.isnan(self.scores.uncertainty[name]).mean() <= MOST_UNDEFINED
        ]
