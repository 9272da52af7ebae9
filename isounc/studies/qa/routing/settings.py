"""Settings of the second answerer, and of how passing on to it is judged."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from isounc.checks import check_count, check_real
from isounc.guard.sample import check_share
from isounc.llm.model.load import model_name


@dataclass(frozen=True)
class SecondSettings:
    """A second answerer of the same questions."""

    num_samples: int = 0
    """Its answers to a question, of which the most frequent counts; 1 is the one of the most probable
    tokens. 0 asks nobody a second time."""
    model: str = ""
    """Its model, as in models; empty is the one that answers first."""
    num_examples: int = 5
    """Questions and answers that it is shown before a short answer."""
    temperature: float = 0.7
    """Temperature of its samples (that of Wang et al. 2022)."""

    def __post_init__(self):
        check_count("second.num_samples", self.num_samples, 0, 10**4)
        check_count("second.num_examples", self.num_examples, 0, 1000)
        check_real("second.temperature", self.temperature, positive=True)

    def source(self, first: str) -> str:
        """The model that answers after one."""
        return self.model or first

    def name(self, first: str) -> str:
        """Name of this answerer in records and tables."""
        way = f"{self.num_examples}shot"
        if self.num_samples > 1:
            way += f"-{self.num_samples}votes-t{self.temperature:g}"
        name = f"{model_name(self.source(first))}-{way}"
        return re.sub(r"[^A-Za-z0-9._-]", "-", name)


@dataclass(frozen=True)
class RoutingSettings:
    """How passing on to the second answerer is judged."""

    num_splits: int = 10
    """Random splits of the questions: what is fitted (routers, the best score, cascades) is fitted to the
    guard questions and judged on the test questions."""
    guard_share: float = 0.5
    """Share of the questions that are guard questions."""
    target_risks: tuple[float, ...] = (0.8, 0.85, 0.9, 0.95)
    """Shares of wrong answers that a cascade is to keep, rising."""
    budget_share: float = 0.5
    """Mean cost that a cascade with a budget may have, as a share of the second answerer's."""
    confidence: float = 0.9
    """Confidence of the cascade's promise."""
    clock: Literal["wall", "cpu"] = "wall"
    """Seconds that are costs: wall, or cpu (the processor's, where a machine has other work too)."""
    num_components: int = 16
    """Principal components of the prompt's state that the router is fitted to."""
    num_resamples: int = 1000
    """Bootstrap resamples of the questions, for intervals."""

    def __post_init__(self):
        check_count("routing.num_splits", self.num_splits, 1, 10**4)
        check_count("routing.num_components", self.num_components, 1, 10**4)
        check_count("routing.num_resamples", self.num_resamples, 2, 10**6)
        for name in ("guard_share", "budget_share", "confidence"):
            check_share(f"routing.{name}", getattr(self, name))
        for target in self.target_risks:
            check_share("routing.target_risks", target)
        if not self.target_risks or list(self.target_risks) != sorted(set(self.target_risks)):
            raise ValueError(
                f"routing.target_risks must be one or more and rise, got {self.target_risks}"
            )
