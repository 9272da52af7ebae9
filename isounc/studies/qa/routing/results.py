"""When the first of two answerers should pass a question on: every policy, split by split.

Axes: Q questions, R the sample (first) and its resamples, S splits.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from isounc.guard.cost_risk import break_even, checked_answerers
from isounc.runs.folder import Record
from isounc.studies.qa.ranking import Estimated, draw_weights, estimated
from isounc.studies.qa.routing.paths import Gains, Paths, gains, oracle_paths, paths
from isounc.studies.qa.routing.routers import question_features, worth
from isounc.studies.qa.routing.settings import RoutingSettings
from isounc.studies.qa.scored_answers import ScoredAnswers

SCORES = {
    "p": "1 − p",
    "log_p": "−log p of the answer",
    "entropy": "token entropy",
    "isotropic": "‖∇p‖²",
    "total": "the sum",
    "isotropic_log": "‖∇ log p‖²",
    "moderated": "moderated",
    "p_true": "1 − P(True)",
    "best": "best on guard",
    "router_question": "router, question",
    "router": "router, state",
}
"""Policies with their labels."""
ROUTERS = ("router_question", "router")
"""Policies that decide before anybody has answered."""
GRADIENT = ("isotropic", "total", "isotropic_log", "moderated")
"""Scores that take a backward pass of the first model."""
SHARES = np.linspace(0, 1, 21)
"""Shares that are passed on, along a curve."""
_FAMILIES = {
    "log_p": ("log_prob", False),
    "entropy": ("mean_token_entropy", False),
    "isotropic": ("epistemic", True),
    "total": ("total_sum", True),
    "isotropic_log": ("epistemic_log", True),
    "moderated": ("moderated", True),
    "p_true": ("p_true", False),
}
"""Family of each score among those of the study, and whether it is about an estimand."""
Row = dict[str, Any]


class Pair(NamedTuple):
    """Two answerers of the same questions."""

    model: str
    """The model that answers first."""
    benchmark: str
    """Where the questions come from."""
    second: str
    """The second answerer."""
    scores: Mapping[str, Float[np.ndarray, " Q"]]
    """Uncertainty of the first answers; infinite where undefined."""
    correct: Bool[np.ndarray, "Q 2"]
    """Whether each answer is right."""
    questions: Sequence[str]
    """The questions."""
    states: Float[np.ndarray, "Q W"]
    """State of the first model at the last token of each prompt."""
    seconds: Mapping[str, float]
    """Seconds of a question of each step."""

    @property
    def key(self) -> dict[str, str]:
        """Columns that say whose numbers these are."""
        return {"model": self.model, "benchmark": self.benchmark, "second": self.second}

    def first_cost(self, score: str) -> float:
        """Seconds of the first answer with a score."""
        more = {"p_true": "P(True)", **dict.fromkeys(GRADIENT, "gradient norms")}.get(score)
        return self.seconds["answers"] + (self.seconds[more] if more else 0.0)

    @property
    def second_cost(self) -> float:
        """Seconds of the second answer."""
        return self.seconds["second answers"]

    def line(self, policy: str) -> tuple[float, float]:
        """The cost a + b e of a policy that passes a share e on, as a and b."""
        if policy not in ROUTERS:
            return self.first_cost(policy), self.second_cost
        reading = self.seconds["prompt's states"] if policy == "router" else 0.0
        first = self.first_cost("p")
        return reading + first, self.second_cost - first


def make_pair(
    scored: ScoredAnswers, second: str, records: Sequence[Record | None], *, clock: str = "wall"
) -> Pair | None:
    """The answers of both to the questions that both have answered; None where there are none.

    First answers whose seconds were not noted, of an earlier version, are left out. Costs are medians over
    the questions of the seconds of their chunk, by a clock.
    """
    answered = zip(scored.answers, records, strict=True)
    both = [i for i, (a, r) in enumerate(answered) if r is not None and a.seconds is not None]
    there = [record for record in (records[i] for i in both) if record is not None]
    if not both:
        return None
    with np.errstate(over="ignore"):
        scores = {"p": 1 / (1 + np.exp(scored.log_odds))}
    for name, (family, is_about) in _FAMILIES.items():
        found = scored.table.find(family, scored.estimand if is_about else None)
        if found is not None:
            scores[name] = scored.table.uncertainty[found]
    steps = [
        {**(scored.answers[i].seconds or {})[clock], **record.meta["seconds"][clock]}
        for i, record in zip(both, there, strict=True)
    ]
    seconds = {s: float(np.median([of.get(s, np.nan) for of in steps])) for s in steps[0]}
    return Pair(
        scored.model, scored.benchmark, second,
        {name: np.where(np.isnan(v), np.inf, v)[both] for name, v in scores.items()},
        np.stack([~scored.table.wrong[both], [bool(r.meta["correct"]) for r in there]], axis=1),
        [scored.answers[i].question for i in both],
        np.stack([record.arrays["state"] for record in there]), seconds,
    )  # fmt: skip


def splits(pair: Pair, settings: RoutingSettings) -> list[tuple[np.ndarray, np.ndarray]]:
    """Numbers of the guard and of the test questions of each split."""
    count = len(pair.questions)
    found = []
    for split in range(settings.num_splits):
        order = np.random.default_rng(seed_of(pair, split)).permutation(count)
        cut = round(settings.guard_share * count)
        found.append((np.sort(order[:cut]), np.sort(order[cut:])))
    return found


def seed_of(pair: Pair, split: int) -> int:
    """Seed of a split, the same for every first and second answerer."""
    return zlib.crc32(f"qa/routing/{pair.benchmark}/{split}".encode())


def policies(
    pair: Pair, guard: Int[np.ndarray, " G"], settings: RoutingSettings
) -> tuple[dict[str, Float[np.ndarray, " Q"]], str]:
    """Every policy's order of all questions, fitted to the guard questions; and the best score's name."""
    known = pair.correct[guard]
    ones = np.ones((1, len(guard)), int)

    def guard_gain(name: str) -> float:
        found = gains(paths(pair.scores[name][guard], known, ones), known, ones).gain[0]
        return -np.inf if np.isnan(found) else float(found)

    best = max(pair.scores, key=guard_gain)
    number = min(settings.num_components, len(guard), pair.states.shape[1])
    return {
        **pair.scores,
        "best": pair.scores[best],
        "router_question": worth(question_features(pair.questions), pair.correct, guard),
        "router": worth(pair.states, pair.correct, guard, num_components=number),
    }, best


class Policy(NamedTuple):
    """A policy over all splits; arrays are (S, R)."""

    gains: Gains
    """Gains."""
    area: Float[np.ndarray, "S R"]
    """Mean risk between the ends of the costs; NaN where they do not rise."""
    mixture: Float[np.ndarray, "S R"]
    """The same of asking one of both at random."""
    oracle: Float[np.ndarray, "S R"]
    """The same of a cascade that knows who is right and pays for the first answer."""
    costs: Float[np.ndarray, "S E"]
    """Seconds along the curve."""
    curve: Float[np.ndarray, "S R E"]
    """Risk along the curve."""
    auroc: list[float | None]
    """AUROC of the score for wrong answers of the first answerer, for each split."""
    chosen: list[str]
    """The score that each split takes."""


class Evaluation(NamedTuple):
    """All policies of a pair."""

    pair: Pair
    """The pair."""
    halves: list[tuple[np.ndarray, np.ndarray]]
    """The splits."""
    weights: Int[np.ndarray, "R Q"]
    """The sample and its resamples."""
    ends: tuple[float, float]
    """Costs between which areas lie."""
    policies: dict[str, Policy]
    """Policies by name."""
    stronger: Estimated
    """Risk of the second less that of the first, over all questions."""

    def over(self, statistics: Float[np.ndarray, "S R"]) -> Estimated:
        """The mean over splits of a number, with its interval."""
        return estimated(mean_over_splits(statistics))


def mean_over_splits(statistics: Float[np.ndarray, "S R"]) -> Float[np.ndarray, " R"]:
    """Mean over the splits that have the number; NaN where none has."""
    known = ~np.isnan(statistics)
    count = known.sum(axis=0)
    sums = np.where(known, statistics, 0.0).sum(axis=0)
    return np.divide(sums, count, out=np.full(len(count), np.nan), where=count > 0)


def evaluate_pair(pair: Pair, settings: RoutingSettings, *, seed: int = 0) -> Evaluation:
    """Judge every policy on the test questions of each split."""
    weights = draw_weights(len(pair.questions), settings.num_resamples, seed=seed)
    halves = splits(pair, settings)
    fitted = [policies(pair, guard, settings) for guard, _ in halves]
    names = [name for name in SCORES if name in fitted[0][0]]
    low = max(pair.line(name)[0] for name in names if name != "best")
    ends = (low, pair.second_cost)
    found: dict[str, Policy] = {}
    for name in names:
        parts = []
        for (_, test), (orders, best) in zip(halves, fitted, strict=True):
            chosen = best if name == "best" else name
            parts.append((*_on_test(pair, chosen, orders[name][test], test, weights, ends), chosen))
        gained, area, mixture, oracle, costs, curve, auroc, chosen = zip(*parts, strict=True)
        found[name] = Policy(
            Gains(*(np.stack(columns) for columns in zip(*gained, strict=True))),
            np.stack(area), np.stack(mixture), np.stack(oracle), np.stack(costs), np.stack(curve),
            list(auroc), list(chosen),
        )  # fmt: skip
    wrong = (~pair.correct).astype(float)
    stronger = estimated(weights @ (wrong[:, 1] - wrong[:, 0]) / len(wrong))
    return Evaluation(pair, halves, weights, ends, found, stronger)


def _on_test(
    pair: Pair,
    name: str,
    score: Float[np.ndarray, " T"],
    test: Int[np.ndarray, " T"],
    weights: Int[np.ndarray, "R Q"],
    ends: tuple[float, float],
) -> tuple[Any, ...]:
    """Numbers of a policy on the test questions of one split."""
    from scipy.stats import rankdata
    from sklearn.metrics import roc_auc_score

    correct, drawn = pair.correct[test], weights[:, test]
    found, best = paths(score, correct, drawn), oracle_paths(correct, drawn)
    fixed, slope = pair.line(name)
    first, second = pair.first_cost("p"), pair.second_cost
    low, high = ends
    nothing = np.full(len(drawn), np.nan)
    area = mixture = oracle = nothing
    if low < high:
        area = _area(found, fixed, slope, ends)
        oracle = _area(best, first, second, ends)
        part = ((low + high) / 2 - first) / (second - first)
        mixture = found.risk[:, 0] + part * (found.risk[:, -1] - found.risk[:, 0])
    wrong = ~correct[:, 0]
    auroc = None
    if wrong.any() and not wrong.all():
        auroc = float(roc_auc_score(wrong, rankdata(score)))  # it takes no infinity
    return (
        gains(found, correct, drawn), area, mixture, oracle, fixed + slope * SHARES,
        found.at(SHARES), auroc,
    )  # fmt: skip


def _area(
    found: Paths, fixed: float, slope: float, ends: tuple[float, float]
) -> Float[np.ndarray, " R"]:
    return found.mean(*((end - fixed) / slope for end in ends))


def break_even_share(pair: Pair, score: str) -> float:
    """Largest share that a cascade may pass on and still cost less than the second answerer."""
    costs = (pair.first_cost(score), pair.second_cost)
    return break_even(checked_answerers(pair.correct, costs))
