"""A model's answers to one benchmark with their scores, as tables and figures take them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from isounc.llm.answers.answer import MeasuredAnswer
from isounc.llm.answers.score_table import ScoreTable

HEADLINE_FAMILIES = (
    *("aleatoric", "epistemic", "total_sum", "link_aware", "link_aware_total"),
    *("epistemic_log", "moderated"),
)
"""Isotropic scores of the headline, for its estimand."""
MOST_UNDEFINED = 0.05
"""A baseline that is undefined at a larger share of the questions is in the tables, but not among
those of which the best is taken: a test uses the questions where all of them are defined."""


class ScoredAnswers(NamedTuple):
    """A model's answers to one benchmark."""

    model: str
    """Name of the model."""
    benchmark: str
    """Name of the benchmark."""
    estimand: str
    """The estimand that the headline is about."""
    answers: list[MeasuredAnswer]
    """The answers."""
    table: ScoreTable
    """Their scores."""

    @property
    def key(self) -> dict[str, str]:
        """Columns of a table that say whose answers these are."""
        return {"model": self.model, "benchmark": self.benchmark}

    @property
    def title(self) -> str:
        """Model and benchmark, for people, and whether it is judged by a proxy."""
        rules = {a.judgement.rule for a in self.answers if a.judgement and a.judgement.proxy}
        return ", ".join((self.model, self.benchmark, *(f"by {rule}, a proxy" for rule in rules)))

    @property
    def log_odds(self) -> Float[np.ndarray, " Q"]:
        """Log-odds of the answers by the headline's estimand; NaN where undefined."""
        odds = [answer.log_odds.get(self.estimand) for answer in self.answers]
        return np.array([np.nan if value is None else value for value in odds], float)

    @property
    def headline(self) -> list[str]:
        """Scores of the headline: isotropic ones of its estimand, and all baselines."""
        isotropic = (self.table.find(family, self.estimand) for family in HEADLINE_FAMILIES)
        return [*filter(None, isotropic), *self.table.baselines]

    @property
    def compared(self) -> list[str]:
        """Baselines of which the best is taken."""
        uncertainty = self.table.uncertainty
        return [
            name
            for name in self.table.baselines
            if np.isnan(uncertainty[name]).mean() <= MOST_UNDEFINED
        ]

    def rows_of(self, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The rows of a table that are about these answers."""
        return [row for row in rows if self.key.items() <= row.items()]
