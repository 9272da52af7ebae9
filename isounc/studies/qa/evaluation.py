"""Which score predicts a wrong answer: AUROC and others, tests between scores, correlations.

The input is a table of scores of the answers to Q questions (`isounc.llm.answers.score_table`);
results are rows for a CSV file. A score may be undefined at some questions: every number says over
how many it was computed, and whatever compares two scores uses the questions where both are
defined. An undefined number is None and comes with a reason.

All intervals are percentile intervals of one bootstrap over questions
(`isounc.studies.qa.ranking`), which all scores share. DeLong's test would do for two AUROCs. The
bootstrap does as well for areas under risk-coverage curves, correlations and the best of several
baselines, and gives the interval and the p-value of one procedure. Questions are the population:
intervals say nothing about other models, prompts or benchmarks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

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
"""Statistics of a score: `auroc`, `aurc`, `eaurc`, `prr`."""
EVALUATION_COLUMNS = (
    *("score", "num_questions", "num_undefined", "num_wrong"),
    *(f"{name}{part}" for name in STATISTICS for part in ("", "_se", "_low", "_high")),
    "reason",
)
"""Columns of the rows of `evaluate_scores`."""
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
    """Number of resamples; p-values cannot fall below 2 / (num_resamples + 1)."""
    level: float = 0.95
    """Confidence level of the intervals."""
    seed: int = 0
    """Seed of the resamples, which depend on it and on the number of questions only."""

    def __post_init__(self):
        check_count("num_resamples", self.num_resamples, 2, 10**6)
        check_count("seed", self.seed, 0, 2**63 - 1)
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1, as 0.95 does, got {self.level}")


DEFAULT_BOOTSTRAP = BootstrapSettings()
"""Settings that are used unless others are given."""


def evaluate_scores(
    table: ScoreTable, *, settings: BootstrapSettings = DEFAULT_BOOTSTRAP
) -> list[dict[str, Any]]:
    """`STATISTICS` of each score with errors and intervals, one row of `EVALUATION_COLUMNS` each.

    The AUROC is that of predicting that an answer is wrong from its uncertainty, which equals that
    of predicting that it is right from its certainty. `isounc.studies.qa.ranking.ranking` has the
    definitions.
    """
    resamples, rows = _Resamples(table, settings), []
    for name in table.uncertainty:
        mask = resamples.defined([name])
        why = resamples.why_undefined(mask, [name])
        row: dict[str, Any] = {
            "score": name,
            "num_questions": int(mask.sum()),
            "num_undefined": int((~mask).sum()),
            "num_wrong": int(table.wrong[mask].sum()),
        }
        reasons = []
        for statistic, values in zip(STATISTICS, resamples.ranking(name, mask), strict=True):
            number = estimated(values, level=settings.level, why=why)
            row |= number.cells(statistic)
            reasons.append(number.reason)
        if not mask.all():
            reasons.append(f"{row['num_undefined']} undefined: {table.scores[name].why_undefined}")
        row["reason"] = "; ".join(dict.fromkeys(filter(None, reasons)))
        rows.append(row)
    return rows


def paired_tests(
    table: ScoreTable,
    against: str | Sequence[str],
    *,
    statistic: str = "auroc",
    settings: BootstrapSettings = DEFAULT_BOOTSTRAP,
) -> list[dict[str, Any]]:
    r"""Every other score against one baseline or the best of several; rows of `TEST_COLUMNS`.

        gain = statistic(score) - statistic(baseline)      auroc, prr
        gain = statistic(baseline) - statistic(score)      aurc, eaurc, where lower is better

    A positive gain favours the score. Against one baseline the p-value is two-sided.

    Which of several baselines is best must be found on the same questions. It is therefore found
    anew in every resample, gain_b = value_b - max_j baseline_jb, so that the interval holds the
    uncertainty of the choice. The largest of several noisy values is too large on average, in the
    resamples still more than in the sample: errors favour the baselines. So the test is one-sided,
    `greater` (is the score better than every baseline?). Its p-value is at least the largest of
    the one-sided p-values against each baseline, hence valid without knowing which is best. That a
    score is worse than the best baseline cannot be tested in this way, and no p-value says it.

    p-values are adjusted over the rows of one call (Benjamini and Hochberg).

    Parameters
    ----------
    table
        Scores of Q answers.
    against
        Name of a baseline, or several names, the best of which counts.
    statistic
        One of `STATISTICS`.
    settings
        The bootstrap.

    Raises
    ------
    ValueError
        A score or the statistic is unknown, or there is no baseline.

    Source: Efron and Tibshirani 1993 for the paired bootstrap; Berger 1982 for the test against
    all of several; Benjamini and Hochberg 1995.
    """
    from scipy.stats import false_discovery_control  # takes a second to import

    check_choice("statistic", statistic, STATISTICS)
    several = not isinstance(against, str)
    baselines = list(against) if several else [against]
    if not baselines:
        raise ValueError("against must name a baseline, got none")
    for name in baselines:
        check_choice("against", name, table.uncertainty)
    sign = -1.0 if statistic in ("aurc", "eaurc") else 1.0
    alternative = "greater" if several else "two-sided"
    resamples, rows = _Resamples(table, settings), []
    for name in table.uncertainty:
        if name in baselines:
            continue
        mask = resamples.defined([name, *baselines])
        value = getattr(resamples.ranking(name, mask), statistic)
        others = np.stack([getattr(resamples.ranking(b, mask), statistic) for b in baselines])
        top = (sign * others).max(axis=0)
        why = resamples.why_undefined(mask, [name, *baselines])
        gain = estimated(sign * value - top, level=settings.level, why=why)
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
    if tested := [row for row in rows if row["p"] is not None]:
        adjusted = false_discovery_control([row["p"] for row in tested])
        for row, p in zip(tested, adjusted, strict=True):
            row["p_adjusted"] = float(p)
    return rows


def correlations(
    table: ScoreTable, *, settings: BootstrapSettings = DEFAULT_BOOTSTRAP
) -> list[dict[str, Any]]:
    """Spearman correlation of every pair of scores, one row of `CORRELATION_COLUMNS` a pair.

    Scores are compared as uncertainties (P(True), say, with its sign turned), so that two scores
    that agree about what is uncertain correlate positively. Two signals of wrong answers correlate
    through the questions' difficulty alone.
    """
    resamples = _Resamples(table, settings)
    names = list(table.uncertainty)
    complete = [name for name in names if resamples.defined([name]).all()]
    # Most scores have all values: one pass for all their pairs.
    whole = resamples.spearman(complete, np.ones(len(table), bool)) if complete else None
    rows = []
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            mask = resamples.defined([name, other])
            if whole is not None and name in complete and other in complete:
                values = whole[:, complete.index(name), complete.index(other)]
            else:
                values = resamples.spearman([name, other], mask)[:, 0, 1]
            why = "fewer than 3 questions where both are defined" if mask.sum() < 3 else ""
            flat = [n for n in (name, other) if len(set(table.uncertainty[n][mask])) < 2]
            why = why or (f"{' and '.join(flat)} constant" if flat else "")
            number = estimated(np.full(2, np.nan) if why else values, level=settings.level, why=why)
            row = {"score": name, "other": other, "num_questions": int(mask.sum())}
            rows.append(row | number.cells("spearman") | {"reason": number.reason})
    return rows


class _Resamples:
    """The resamples of a table of scores, and the rankings computed so far."""

    def __init__(self, table: ScoreTable, settings: BootstrapSettings):
        self.table = table
        self.weights: Int[np.ndarray, "R Q"] = draw_weights(
            len(table), settings.num_resamples, seed=settings.seed
        )
        self._rankings: dict[tuple[str, bytes], Ranking] = {}

    def defined(self, names: Collection[str]) -> Bool[np.ndarray, " Q"]:
        """Questions where all of some scores are defined."""
        return np.all([~np.isnan(self.table.uncertainty[name]) for name in names], axis=0)

    def ranking(self, name: str, mask: Bool[np.ndarray, " Q"]) -> Ranking:
        """Statistics of a score over some questions, in each resample."""
        key = name, mask.tobytes()
        if key not in self._rankings:
            if mask.any():
                uncertainty, wrong = self.table.uncertainty[name][mask], self.table.wrong[mask]
                self._rankings[key] = ranking(uncertainty, wrong, self.weights[:, mask])
            else:
                self._rankings[key] = Ranking(
                    *(np.full(len(self.weights), np.nan) for _ in STATISTICS)
                )
        return self._rankings[key]

    def spearman(
        self, names: Sequence[str], mask: Bool[np.ndarray, " Q"]
    ) -> Float[np.ndarray, "R F F"]:
        """Correlations of F scores over some questions, in each resample."""
        values = np.stack([self.table.uncertainty[name][mask] for name in names])
        return spearman(values, self.weights[:, mask])

    def why_undefined(self, mask: Bool[np.ndarray, " Q"], names: Sequence[str]) -> str:
        """Why nothing is defined over some questions."""
        if not mask.any():
            verb = "is" if len(names) == 1 else "are all"
            return f"no question where {', '.join(names)} {verb} defined"
        kind = "wrong" if self.table.wrong[mask].all() else "right"
        return f"one class only: all {mask.sum()} answers are {kind}"
