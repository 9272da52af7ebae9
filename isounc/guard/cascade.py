"""A cascade: the cheapest answerer answers, or passes the question on to the next."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from isounc import fields
from isounc.checks import check_count, check_real, real_array
from isounc.guard import control
from isounc.guard.certificate import Share, share_field
from isounc.guard.cost_risk import Answerers, checked_answerers, costs_and_errors
from isounc.guard.sample import check_share
from isounc.runs.files import store_json, stored_json

STEPS = 50
"""Quantiles of each score at which the path of a cascade may turn."""


@dataclass(frozen=True)
class Cascade:
    """Thresholds of a cascade, and what is promised of the whole: see `Cascade.fit`."""

    thresholds: tuple[float, ...] | None
    """Uncertainty up to which each answerer but the last keeps a question; None where no thresholds
    keep the promise. -inf passes every question on."""
    costs: tuple[float, ...]
    """Mean cost of an answer of each answerer."""
    confidence: float
    """Probability, over calibration samples, that what is promised holds."""
    promised_risk: float
    """Largest share of wrong answers among all questions: the target, or with a budget an upper bound."""
    budget: float | None
    """Mean cost that was allowed, if it was a budget that was given."""
    risk: Share
    """Wrong answers on the certifying half of the sample."""
    mean_cost: float | None
    """Mean cost of a question on that half."""
    mean_cost_se: float | None
    """Its standard error."""
    reason: str = ""
    """Why there are no thresholds; empty if there are."""
    names: tuple[str, ...] = ()
    """Names of the answerers."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of what computed it."""

    @classmethod
    def fit(
        cls,
        scores: Any,
        correct: Any,
        costs: Any,
        *,
        target_risk: float | None = None,
        budget: float | None = None,
        confidence: float = 0.9,
        names: Sequence[str] = (),
        seed: int = 0,
    ) -> Cascade:
        r"""Find the cheapest cascade of a given risk, or the least risky one of a given budget.

            P( P(the cascade's answer is wrong) <= promised_risk ) >= confidence

        A random half of the questions designs a path of cascades from the safest (the last answerer
        answers all) to the cheapest (the first does): at each step the threshold is raised that adds
        the fewest errors for each unit of cost that it saves. The other half certifies. With a target
        risk the path is tested from its safe end (fixed sequence, exact binomial tests) and the last
        cascade that passes is taken. With a budget the least risky cascade that the designing half
        says is within it is taken, and its promised risk is an exact upper bound.

        Parameters
        ----------
        scores
            Uncertainty of each answerer but the last about its own answer, (N, J - 1); high is
            uncertain.
        correct
            Whether the answer of each answerer is right, (N, J).
        costs
            Mean cost of an answer of each answerer, (J,); a cascade pays for all that it tries.
        target_risk, budget
            One of them: the largest share of wrong answers among all questions, or the largest mean
            cost.
        confidence
            Probability of keeping the promise.
        names
            Names of the answerers.
        seed
            Seed of the split.

        Raises
        ------
        ValueError
            Tables that do not fit, undefined scores, fewer than four questions, or neither or both of
            target_risk and budget.
        """
        answerers = checked_answerers(correct, costs)
        table = checked_scores(scores, answerers)
        if (target_risk is None) == (budget is None):
            raise ValueError(
                "target_risk or budget must be given, and not both, got "
                f"{target_risk!r} and {budget!r}"
            )
        check_share("confidence", confidence)
        check_count("seed", seed, 0)
        if names and len(names) != len(answerers.costs):
            raise ValueError(
                f"names must be one for each of {len(answerers.costs)} answerers, got {len(names)}"
            )
        if len(table) < 4:
            raise ValueError(f"scores must be of four questions or more, got {len(table)}")
        order = np.random.default_rng(seed).permutation(len(table))
        design, certify = order[: len(order) // 2], order[len(order) // 2 :]
        path = _path(table[design], _rows(answerers, design))
        held = _rows(answerers, certify)
        stages = stages_of(table[certify], path)
        wrong = ~held.correct[np.arange(len(certify)), stages]
        if target_risk is not None:
            promised = check_share("target_risk", target_risk)
            chosen, reason = _last_certified(wrong.sum(axis=1), len(certify), promised, confidence)
        else:
            chosen, reason = _within(
                check_real("budget", budget, positive=True),
                table[design],
                _rows(answerers, design),
                path,
            )
            promised = (
                1.0
                if chosen is None
                else _upper(int(wrong[chosen].sum()), len(certify), confidence)
            )
        paid = None if chosen is None else np.cumsum(answerers.costs)[stages[chosen]]
        found = (0, 0) if chosen is None else (int(wrong[chosen].sum()), len(certify))
        return cls(
            thresholds=None if chosen is None else tuple(path[chosen].tolist()),
            costs=tuple(answerers.costs.tolist()), confidence=float(confidence),
            promised_risk=float(promised), budget=None if budget is None else float(budget),
            risk=Share.of_counts(*found),
            mean_cost=None if paid is None else float(paid.mean()),
            mean_cost_se=None if paid is None else float(paid.std(ddof=1) / np.sqrt(len(paid))),
            reason=reason, names=tuple(map(str, names)),
            versions=dict(control.versions()),
        )  # fmt: skip

    def choose(self, scores: Any) -> Int[np.ndarray, " N"]:
        """Number of the answerer of each question, from the uncertainties of all but the last.

        Scores after the one that keeps a question are not looked at, and may be NaN. Without
        thresholds the last answerer answers all.

        Raises
        ------
        ValueError
            If scores are no table with a column for each answerer but the last.
        """
        table = real_array("scores", scores).astype(np.float64)
        if table.ndim != 2 or table.shape[1] != len(self.costs) - 1:
            raise ValueError(
                f"scores must have shape (N, {len(self.costs) - 1}), got {table.shape}"
            )
        if self.thresholds is None:
            return np.full(len(table), len(self.costs) - 1)
        return stages_of(table, np.array([self.thresholds]))[0]

    def keeps(self, stage: int, score: float) -> bool:
        """Whether the answerer of a number keeps its answer of this uncertainty.

        Raises
        ------
        ValueError
            If there is no such answerer.
        """
        check_count("stage", stage, 0, len(self.costs) - 1)
        if stage == len(self.costs) - 1:
            return True
        return self.thresholds is not None and bool(score <= self.thresholds[stage])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a JSON file, which `load` reads."""
        content = asdict(self)
        if self.thresholds is not None:  # JSON has no -inf
            content["thresholds"] = [None if t == -np.inf else t for t in self.thresholds]
        store_json(path, content, "cascade")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Cascade:
        """Read a file of `save`.

        Raises
        ------
        ValueError
            If it holds anything else; the message names the file and the field.
        OSError
            If it is absent or may not be read.
        """
        content, what = stored_json(path)
        values = fields.declared(content, _FIELDS, what)
        thresholds = values["thresholds"]
        if thresholds is not None and len(thresholds) != len(values["costs"]) - 1:
            raise fields.Unreadable(
                f"thresholds of {what} must be one fewer than costs, got {len(thresholds)} and "
                f"{len(values['costs'])}"
            )
        values["thresholds"] = (
            None if thresholds is None else tuple(-np.inf if t is None else t for t in thresholds)
        )
        values |= {name: tuple(values[name]) for name in ("costs", "names")}
        values["risk"] = Share(**values["risk"])
        return cls(**values)

    def __str__(self) -> str:
        names = self.names or tuple(f"answerer {i + 1}" for i in range(len(self.costs)))
        promise = f"at most {self.promised_risk:.3g} of all answers are wrong"
        lines = [f"Promise: {promise}, with confidence {self.confidence:g}."]
        if self.thresholds is None:
            return (
                f"{lines[0]}\nNo cascade keeps it: {self.reason}. {names[-1]} answers everything."
            )
        kept = [
            f"{name} keeps an uncertainty of at most {t:.6g}"
            for name, t in zip(names[:-1], self.thresholds, strict=True)
        ]
        lines.append("; ".join(kept) + f"; {names[-1]} answers the rest.")
        lines.append(
            f"On the certifying half: wrong {self.risk}, mean cost {self.mean_cost:.4g} "
            f"(standard error {self.mean_cost_se:.2g}), always {names[-1]} {self.costs[-1]:.4g}."
        )
        return "\n".join(lines)


def checked_scores(scores: Any, answerers: Answerers) -> Float[np.ndarray, "N S"]:
    """Uncertainties of the S = J - 1 answerers before the last.

    Raises
    ------
    ValueError
        If the table does not fit the answers, or has undefined scores.
    """
    table = real_array("scores", scores).astype(np.float64)
    questions, number = answerers.correct.shape
    if table.shape != (questions, number - 1) or np.isnan(table).any():
        raise ValueError(
            f"scores must have shape ({questions}, {number - 1}), one for each answerer but the last, "
            f"and no NaN, got shape {table.shape} with {int(np.isnan(table).sum())} NaN"
        )
    return table


def stages_of(
    scores: Float[np.ndarray, "N S"], thresholds: Float[np.ndarray, "T S"]
) -> Int[np.ndarray, "T N"]:
    """Number of the answerer of each question, for each row of thresholds; NaN is passed on."""
    keeps = scores[None] <= thresholds[:, None, :]
    return np.where(keeps.any(axis=2), keeps.argmax(axis=2), scores.shape[1])


def _rows(answerers: Answerers, rows: Int[np.ndarray, " R"]) -> Answerers:
    return Answerers(answerers.correct[rows], answerers.costs)


def _path(scores: Float[np.ndarray, "N S"], answerers: Answerers) -> Float[np.ndarray, "T S"]:
    """Thresholds from the safest cascade to the cheapest, each with one of them raised by a step.

    The step is the one with the fewest added errors for the cost that it saves; one that saves nothing
    on this sample is taken only where no other is left.
    """
    ladders = [
        np.unique(
            np.r_[-np.inf, np.quantile(column, np.linspace(0, 1, STEPS), method="inverted_cdf")]
        )
        for column in scores.T
    ]
    ladders = [ladder[ladder < np.inf] for ladder in ladders]  # such answers are never kept
    place = np.zeros(len(ladders), int)
    now = np.array([ladder[0] for ladder in ladders])
    path = [now]
    (cost,), (errors,) = costs_and_errors(stages_of(scores, now[None]), answerers)
    while (place < [len(ladder) - 1 for ladder in ladders]).any():
        movable = [j for j, ladder in enumerate(ladders) if place[j] < len(ladder) - 1]
        tried = np.repeat(now[None], len(movable), axis=0)
        for row, j in enumerate(movable):
            tried[row, j] = ladders[j][place[j] + 1]
        costs, wrong = costs_and_errors(stages_of(scores, tried), answerers)
        saved = cost - costs
        rate = np.where(saved > 0, (wrong - errors) / np.where(saved > 0, saved, 1), np.inf)
        best = int(np.argmin(rate))
        place[movable[best]] += 1
        now, cost, errors = tried[best], costs[best], wrong[best]
        path.append(now)
    return np.array(path)


def _last_certified(
    wrong: Int[np.ndarray, " T"], questions: int, target: float, confidence: float
) -> tuple[int | None, str]:
    """The last cascade of the path up to which all are shown to keep the target."""
    from scipy.stats import binom

    p_values = binom.cdf(wrong, questions, target)
    valid = control.mapie("risk_control").control_fwer(p_values, 1 - confidence, "fixed_sequence")
    if len(valid):
        return int(valid[-1]), ""
    return None, (
        f"the last answerer alone is wrong in {int(wrong[0])} of {questions} questions, which is no "
        "proof"
    )


def _within(
    budget: float, scores: Float[np.ndarray, "N S"], answerers: Answerers, path: np.ndarray
) -> tuple[int | None, str]:
    """The least risky cascade of the path within a budget, on the designing half."""
    costs, wrong = costs_and_errors(stages_of(scores, path), answerers)
    within = np.flatnonzero(costs <= budget)
    if not len(within):
        return None, f"the cheapest costs {costs.min():.4g} for each question"
    return int(within[np.argmin(wrong[within])]), ""


def _upper(wrong: int, questions: int, confidence: float) -> float:
    """Exact one-sided upper bound of a share."""
    from scipy.stats import beta

    return 1.0 if wrong == questions else float(beta.ppf(confidence, wrong + 1, questions - wrong))


_NUMBER = fields.number(default=None)
_FIELDS = {
    "thresholds": fields.items(fields.one_of(fields.number(), fields.nothing()), 100, None),
    "costs": fields.items(fields.number(above=0), 100, least=2),
    "confidence": fields.number(0, 1),
    "promised_risk": fields.number(0, 1),
    "budget": _NUMBER,
    "risk": share_field(),
    "mean_cost": _NUMBER,
    "mean_cost_se": _NUMBER,
    "reason": fields.text(longest=1000),
    "names": fields.items(fields.text(longest=1000), 100),
    "versions": fields.entries(fields.text(longest=100), 20),
}
