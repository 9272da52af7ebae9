"""Which uncertainty predicts a wrong answer: AUROC, risk-coverage, tests between scores, correlations.

The input is a table of scores of the answers to Q questions (`isounc.llm.answers.score_table`); results are rows
for a CSV file. A score may be undefined at some questions. Every number says over how many it was computed, and
whatever compares two scores uses the questions where both are defined. What is undefined is None, with a reason.

All intervals are percentile intervals of one bootstrap over questions (`isounc.studies.qa.ranking`), shared by all
scores. DeLong's test would do for two AUROCs; the bootstrap does as well for areas under risk-coverage curves,
correlations and the best of several baselines, and gives the interval and the p-value of one procedure. Questions are
the population: intervals say nothing about other models, prompts or benchmarks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Shaped

from isounc.checks import check_choice, check_count
from isounc.llm.answers.score_table import ScoreTable
from isounc.studies.qa.ranking import (
    Ranking,
    draw_weights,
    estimated,
    p_value,
    ranking,
    spearman,
)

STATISTICS = Ranking._fields
"""Statistics of a score: ``auroc``, ``aurc``, ``eaurc``, ``prr``."""
EVALUATION_COLUMNS = (
    *("score", "num_questions", "num_undefined", "num_wrong"),
    *(f"{name}{part}" for name in STATISTICS for part in ("", "_se", "_low", "_high")),
    "reason",
)
"""Columns of the rows of `evaluate`."""
TEST_COLUMNS = (
    *("score", "against", "best", "statistic", "num_questions", "value", "value_against"),
    *("gain", "gain_se", "gain_low", "gain_high", "alternative", "p", "p_adjusted", "reason"),
)
"""Columns of the rows of `paired_tests`."""
CORRELATION_COLUMNS = (
    *("score", "other", "num_questions"),
    *("spearman", "spearman_se", "spearman_low", "spearman_high", "reason"),
)
"""Columns of the rows of `correlations`."""


@dataclass(frozen=True)
class BootstrapSettings:
    """The bootstrap over questions."""

    num_resamples: int = 2000
    """Resamples; p-values cannot fall below 2 / (num_resamples + 1)."""
    level: float = 0.95
    """Confidence level of the intervals."""
    seed: int = 0
    """Seed of the resamples, which depend on it and on the number of questions only."""

    def __post_init__(self):
        check_count("num_resamples", self.num_resamples, 2)
        check_count("seed", self.seed, 0)
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1 (for example 0.95); got {self.level}")


DEFAULT_BOOTSTRAP = BootstrapSettings()
"""What the functions below do unless told otherwise."""


class RiskCoverage(NamedTuple):
    """The curves behind AURC and PRR; see `curves`."""

    coverage: Float[np.ndarray, " Q"]
    """k / Q for k = 1..Q: share of the answers kept, most certain first."""
    risk: Float[np.ndarray, " Q"]
    """Error rate of the answers kept."""
    best_risk: Float[np.ndarray, " Q"]
    """The same if all wrong answers came last."""
    rejected: Float[np.ndarray, " Q1"]
    """Share of the answers rejected, 0..1, most uncertain first; Q1 = Q + 1."""
    errors: Float[np.ndarray, " Q1"]
    """Share of wrong answers left among all Q when the rejected ones are replaced by right ones."""
    random_errors: Float[np.ndarray, " Q1"]
    """The same for rejection at random."""
    best_errors: Float[np.ndarray, " Q1"]
    """The same if wrong answers are rejected first."""


def evaluate(
    scores: ScoreTable, *, settings: BootstrapSettings = DEFAULT_BOOTSTRAP
) -> list[dict[str, Any]]:
    """Every score on its own: `STATISTICS` with errors and intervals; one row of `EVALUATION_COLUMNS` a score.

    AUROC is that of predicting that an answer is wrong from its uncertainty, which is that of predicting that it is
    right from its certainty. `isounc.studies.qa.ranking.ranking` has the definitions.
    """
    table, rows = _Table(scores, settings), []
    for name in scores.uncertainty:
        mask = table.defined([name])
        found, why = table.ranking(name, mask), table.why(mask, [name])
        row: dict[str, Any] = {
            "score": name,
            "num_questions": int(mask.sum()),
            "num_undefined": int((~mask).sum()),
            "num_wrong": int(scores.wrong[mask].sum()),
        }
        numbers = [estimated(column, level=settings.level, why=why) for column in found]
        for statistic, number in zip(STATISTICS, numbers, strict=True):
            row |= number.cells(statistic)
        partly = (
            f"{row['num_undefined']} undefined: {scores.reasons[name]}" if not mask.all() else ""
        )
        row["reason"] = "; ".join(
            dict.fromkeys(filter(None, [*(n.reason for n in numbers), partly]))
        )
        rows.append(row)
    return rows


def paired_tests(
    scores: ScoreTable,
    against: str | Sequence[str],
    *,
    statistic: str = "auroc",
    settings: BootstrapSettings = DEFAULT_BOOTSTRAP,
) -> list[dict[str, Any]]:
    r"""Every other score against one baseline, or against the best of several; rows of `TEST_COLUMNS`.

        gain = statistic(score) - statistic(baseline)      auroc, prr
        gain = statistic(baseline) - statistic(score)      aurc, eaurc, where lower is better

    A positive gain favours the score. Against one baseline the p-value is two-sided.

    Which of several baselines is best must be found on the same questions. It is therefore found anew in every
    resample, gain_b = value_b - max_j baseline_jb, so that the uncertainty of the choice is in the interval. The
    largest of several noisy values is too large on average, in the resamples still more than in the sample: errors
    favour the baselines. So the test is one-sided, ``greater`` (is the score better than every baseline?): its
    p-value is at least the largest of the one-sided p-values against each baseline, hence valid without knowing which
    is best. That a score is worse than the best baseline cannot be tested so, and no p-value says it.

    p-values are adjusted over the rows of one call (Benjamini and Hochberg).

    Parameters
    ----------
    against
        Name of a baseline, or several names, the best of which counts.
    statistic
        One of `STATISTICS`.

    Raises
    ------
    ValueError
        An unknown score or statistic, no baseline.

    Source: Efron and Tibshirani 1993 for the paired bootstrap; Berger 1982 for the test against all of several;
    Benjamini and Hochberg 1995.
    """
    from scipy.stats import false_discovery_control  # seconds to import

    check_choice("statistic", statistic, STATISTICS)
    several = not isinstance(against, str)
    baselines = list(against) if several else [against]
    if not baselines:
        raise ValueError("against must name a baseline; got none")
    for name in baselines:
        check_choice("against", name, scores.uncertainty)
    sign = -1.0 if statistic in ("aurc", "eaurc") else 1.0
    table, rows = _Table(scores, settings), []
    for name in scores.uncertainty:
        if name in baselines:
            continue
        mask = table.defined([name, *baselines])
        value = getattr(table.ranking(name, mask), statistic)
        others = np.stack([getattr(table.ranking(b, mask), statistic) for b in baselines])
        top = (sign * others).max(axis=0)
        gain = estimated(
            sign * value - top, level=settings.level, why=table.why(mask, [name, *baselines])
        )
        alternative = "greater" if several else "two-sided"
        defined = gain.value is not None
        rows.append(
            {
                "score": name,
                "against": "best of " + ", ".join(baselines) if several else baselines[0],
                "best": baselines[int((sign * others[:, 0]).argmax())] if defined else None,
                "statistic": statistic,
                "num_questions": int(mask.sum()),
                "value": float(value[0]) if defined else None,
                "value_against": float(sign * top[0]) if defined else None,
                **gain.cells("gain"),
                "alternative": alternative,
                "p": p_value(sign * value - top, alternative=alternative),
                "p_adjusted": None,
                "reason": gain.reason,
            }
        )
    tested = [row for row in rows if row["p"] is not None]
    if tested:
        for row, p in zip(
            tested, false_discovery_control([row["p"] for row in tested]), strict=True
        ):
            row["p_adjusted"] = float(p)
    return rows


def correlations(
    scores: ScoreTable, *, settings: BootstrapSettings = DEFAULT_BOOTSTRAP
) -> list[dict[str, Any]]:
    """Spearman correlation of every pair of scores, one row of `CORRELATION_COLUMNS` a pair.

    Scores are compared as uncertainties: P(True), say, with its sign turned, so that two scores that agree about what
    is uncertain correlate positively. Two signals of wrong answers correlate through the questions' difficulty alone.
    """
    table = _Table(scores, settings)
    names = list(scores.uncertainty)
    complete = [name for name in names if table.defined([name]).all()]
    # Most scores have all values: one pass for all their pairs.
    whole = (
        _stacked(scores, complete, np.ones(len(scores), bool), table.weights) if complete else None
    )
    rows = []
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            mask = table.defined([name, other])
            if whole is not None and name in complete and other in complete:
                found = whole[:, complete.index(name), complete.index(other)]
            else:
                found = _stacked(scores, [name, other], mask, table.weights)[:, 0, 1]
            why = "fewer than 3 questions where both are defined" if mask.sum() < 3 else ""
            flat = [n for n in (name, other) if len(set(scores.uncertainty[n][mask])) < 2]
            why = why or (f"{' and '.join(flat)} constant" if flat else "")
            number = estimated(np.full(2, np.nan) if why else found, level=settings.level, why=why)
            row = {"score": name, "other": other, "num_questions": int(mask.sum())}
            rows.append(row | number.cells("spearman") | {"reason": number.reason})
    return rows


def curves(uncertainty: Float[ArrayLike, " Q"], wrong: Shaped[ArrayLike, " Q"]) -> RiskCoverage:
    """Risk-coverage and rejection curves; within equal uncertainties errors are spread evenly (random order).

    The mean of ``risk`` is the AURC; PRR is the area between ``random_errors`` and ``errors`` (trapezoids in
    ``rejected``) over that between ``random_errors`` and ``best_errors``.

    Raises
    ------
    ValueError
        Lengths that differ, no question, an undefined uncertainty.
    """
    u, bad = np.asarray(uncertainty, np.float64), np.asarray(wrong).astype(np.float64)
    if u.ndim != 1 or u.shape != bad.shape or not len(u):
        raise ValueError(
            f"uncertainty and wrong must have shape (Q,); got {u.shape} and {bad.shape}"
        )
    if np.isnan(u).any():
        raise ValueError(
            f"uncertainty must be defined; {np.isnan(u).sum()} of {len(u)} values are NaN"
        )
    _, which, sizes = np.unique(u, return_inverse=True, return_counts=True)
    rates = np.bincount(which, weights=bad) / sizes
    left = np.r_[0.0, np.cumsum(np.repeat(rates, sizes))]
    n, total = len(u), bad.sum()
    best = np.maximum(0.0, np.arange(n + 1) - (n - total))
    kept = np.arange(1, n + 1)
    rejected = np.arange(n + 1) / n
    return RiskCoverage(
        kept / n, left[1:] / kept, best[1:] / kept,
        rejected, left[::-1] / n, total / n * (1 - rejected), best[::-1] / n,
    )  # fmt: skip


class _Table:
    """The resamples of a table of scores, and the rankings computed so far."""

    def __init__(self, scores: ScoreTable, settings: BootstrapSettings):
        self.scores = scores
        self.weights = draw_weights(len(scores), settings.num_resamples, seed=settings.seed)
        self._found: dict[tuple[str, bytes], Ranking] = {}

    def defined(self, names: Collection[str]) -> Bool[np.ndarray, " Q"]:
        """Where all of some scores are."""
        return np.all([~np.isnan(self.scores.uncertainty[name]) for name in names], axis=0)

    def ranking(self, name: str, mask: Bool[np.ndarray, " Q"]) -> Ranking:
        """Statistics of a score over some questions, in each resample."""
        key = name, mask.tobytes()
        if key not in self._found:
            if mask.any():
                u, wrong = self.scores.uncertainty[name][mask], self.scores.wrong[mask]
                self._found[key] = ranking(u, wrong, self.weights[:, mask])
            else:
                self._found[key] = Ranking(
                    *(np.full(len(self.weights), np.nan) for _ in STATISTICS)
                )
        return self._found[key]

    def why(self, mask: Bool[np.ndarray, " Q"], names: Sequence[str]) -> str:
        """Why nothing is defined over some questions."""
        if not mask.any():
            return f"no question where {', '.join(names)} {'is' if len(names) == 1 else 'are all'} defined"
        kind = "wrong" if self.scores.wrong[mask].all() else "right"
        return f"one class only: all {mask.sum()} answers are {kind}"


def _stacked(
    scores: ScoreTable, names: Sequence[str], mask: Bool[np.ndarray, " Q"], weights: np.ndarray
) -> Float[np.ndarray, "B S S"]:
    return spearman(np.stack([scores.uncertainty[name][mask] for name in names]), weights[:, mask])
