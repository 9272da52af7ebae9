r"""Rankings of wrong and right answers: AUROC, AURC, PRR and Spearman in many bootstrap resamples.

Questions are resampled with replacement. A resample is a row of weights w_q, how often question q
was drawn; row 0 is the sample itself, all ones. Every statistic is computed from weights after one
sort per score, so that thousands of resamples cost a few passes over an array, and all scores see
the same resamples, which makes differences paired. Unlike the grid locations of the scaling study,
questions are drawn from a population and are replications.

scikit-learn and SciPy compute AUROC and Spearman for one sample at a time. Calling `roc_auc_score`
with the weights of each resample takes 140 times as long for 1000 questions, `spearmanr` (which
takes no weights) 12 times as long for ten scores, and the last digits differ. The tests compare
with both.

Axes: Q questions, R the sample (first) and its resamples, F scores, G groups of equal values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from isounc.checks import check_count

BLOCK = 32
"""Resamples handled at a time, so that the arrays of one pass stay in the processor's cache."""


class Ranking(NamedTuple):
    """Statistics of one score in the sample (index 0) and in each resample.

    They are NaN if there is no wrong or no right answer.
    """

    auroc: Float[np.ndarray, " R"]
    """Probability that a wrong answer is more uncertain than a right one; ties count half."""
    aurc: Float[np.ndarray, " R"]
    """Area under the risk-coverage curve, lower is better; see `ranking`."""
    eaurc: Float[np.ndarray, " R"]
    """The same less that of the best possible ranking; 0 is best."""
    prr: Float[np.ndarray, " R"]
    """Prediction rejection ratio; 1 is best, 0 is chance."""


class Estimated(NamedTuple):
    """A statistic with its bootstrap error; an undefined number is None, with a reason."""

    value: float | None
    """The statistic in the sample."""
    se: float | None
    """Its standard deviation over the resamples."""
    low: float | None
    """Lower end of the percentile interval."""
    high: float | None
    """Upper end."""
    reason: str
    """Why a number is None; empty if there is none."""

    def cells(self, name: str) -> dict[str, float | None]:
        """The numbers as cells of a row: `<name>`, `<name>_se`, `<name>_low`, `<name>_high`."""
        parts = {"": self.value, "_se": self.se, "_low": self.low, "_high": self.high}
        return {name + part: number for part, number in parts.items()}


def draw_weights(num_questions: int, num_resamples: int, *, seed: int) -> Int[np.ndarray, "R Q"]:
    """Weights of the sample (row 0, all 1) and of resamples of Q questions.

    The weights of a resample are multinomial counts with sum Q.

    Raises
    ------
    ValueError
        A count is below 1, or the seed is negative.
    """
    check_count("num_questions", num_questions, 1)
    check_count("num_resamples", num_resamples, 1)
    check_count("seed", seed, 0)
    rng = np.random.default_rng(seed)
    weights = np.ones((num_resamples + 1, num_questions), np.int32)
    for row in weights[1:]:
        row[:] = np.bincount(
            rng.integers(num_questions, size=num_questions), minlength=num_questions
        )
    return weights


def ranking(
    uncertainty: Float[np.ndarray, " Q"],
    wrong: Bool[np.ndarray, " Q"],
    weights: Int[np.ndarray, "R Q"],
) -> Ranking:
    r"""AUROC, AURC, excess AURC and PRR of an uncertainty, in each row of weights.

    With n = sum_q w_q answers in order of increasing uncertainty, E_k of the first k wrong and
    E = E_n:

        AUROC = sum over pairs of a wrong and a right answer of (1 if the wrong one is more
                uncertain, 1/2 if equally uncertain, 0 otherwise) / (E (n - E))
        AURC  = (1/n) sum_{k=1}^n E_k / k              mean error rate of the k most certain answers
        best  = (1/n) sum_{k=n-E+1}^n (k - (n - E)) / k     AURC if all wrong answers come last
        PRR   = (random - area) / (random - oracle),
                area = (1/n^2) sum_{k=1}^n (E_{k-1} + E_k) / 2

    PRR's area is that under the share of errors left, E_k / n, when all but the k most certain
    answers are replaced by right ones; at random it is E / (2n), with errors rejected first
    E^2 / (2 n^2). The order within equal uncertainties is random: E_k is then its expectation, and
    a constant score has AURC E/n, AUROC 1/2 and PRR 0.

    **PRR = 2 AUROC - 1, exactly,** for answers that are right or wrong (summing ranks of wrong
    answers gives either). It is kept because papers report it; it is no second opinion. The AURC
    is one: it weighs the most certain answers most.

    Parameters
    ----------
    uncertainty
        Higher is more uncertain; not NaN.
    wrong
        Whether the answer is wrong.
    weights
        Counts, as from `draw_weights`.

    Source: Hanley and McNeil 1982; Geifman and El-Yaniv 2017 (arXiv 1705.08500) and Geifman et al.
    2019 (arXiv 1805.08206) for (excess) AURC; Malinin et al. 2020 (arXiv 1905.00076) for PRR.
    """
    order = np.argsort(uncertainty, kind="stable")
    ranked = uncertainty[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    ranked_wrong, parts = wrong[order], []
    # H_k = 1 + 1/2 + ... + 1/k, up to the size of a resample.
    harmonic = np.r_[0.0, np.cumsum(1.0 / np.arange(1, weights.sum(axis=1).max(initial=0) + 1))]
    for block in _blocks(len(weights), BLOCK):
        drawn = weights[block].take(order, axis=1).astype(np.int64)
        errors = drawn * ranked_wrong
        rate = ranked_wrong
        if len(starts) < len(order):
            drawn = np.add.reduceat(drawn, starts, axis=1)
            errors = np.add.reduceat(errors, starts, axis=1)
            rate = np.divide(errors, drawn, out=np.zeros(drawn.shape), where=drawn > 0)
        parts.append(_statistics(drawn, errors, rate, harmonic))
    auroc, aurc, best = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Ranking(auroc, aurc, aurc - best, 2 * auroc - 1)


def _statistics(
    drawn: Int[np.ndarray, "R G"],
    errors: Int[np.ndarray, "R G"],
    rate: Float[np.ndarray, "R G"] | Bool[np.ndarray, " G"],
    harmonic: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """AUROC, AURC and the best AURC from counts of answers and wrong answers, and their ratio.

    The G groups of equal uncertainty are in rising order.
    """
    counts, mistakes = np.cumsum(drawn, axis=1), np.cumsum(errors, axis=1)
    n, total = counts[:, -1], mistakes[:, -1]
    right = n - total
    undefined = (total == 0) | (right == 0)
    before, wrong_before = counts - drawn, mistakes - errors
    # Twice the right answers below each group, and those in it.
    below = (counts - mistakes) + (before - wrong_before)
    auroc = np.einsum("bg,bg->b", errors, below) / np.where(undefined, np.nan, 2.0 * total * right)
    # In a group that begins after K answers with E wrong, and has m answers with e wrong, the
    # expected E_k is E + (k - K) e / m: the sum of E_k / k over its k is
    # e + (E - K e / m) (H_{K+m} - H_K).
    whole = np.maximum(n, 1)
    steps = harmonic.take(counts)
    steps[:, 1:] -= steps[:, :-1]
    aurc = (total + np.einsum("bg,bg->b", wrong_before - before * rate, steps)) / whole
    best = (total - right * (harmonic[n] - harmonic[right])) / whole
    return auroc, np.where(undefined, np.nan, aurc), best


def spearman(
    values: Float[np.ndarray, "F Q"], weights: Int[np.ndarray, "R Q"]
) -> Float[np.ndarray, "R F F"]:
    r"""Spearman correlations of all pairs of scores in each row of weights.

        rho = Pearson correlation of the mid-ranks of the resample, in which a question drawn w
              times stands w times

    NaN if a score is constant in a resample.

    Source: Spearman 1904, The proof and measurement of association between two things.
    """
    orders = np.argsort(values, axis=1, kind="stable")
    parts = []
    for block in _blocks(len(weights), BLOCK):
        drawn = weights[block].astype(np.float64)
        ranks = np.empty((len(drawn), *values.shape))
        for s, order in enumerate(orders):
            ranked = values[s, order]
            new = np.r_[True, ranked[1:] != ranked[:-1]]
            sizes = drawn.take(order, axis=1)
            if not new.all():
                sizes = np.add.reduceat(sizes, np.flatnonzero(new), axis=1)
            middle = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
            back = np.empty_like(order)
            back[order] = np.cumsum(new) - 1
            ranks[:, s] = middle.take(back, axis=1)
        # A resample may hold none of a few questions: its products are 0, its correlation NaN.
        ranks -= (ranks @ drawn[:, :, None]) / np.maximum(drawn.sum(axis=1), 1)[:, None, None]
        ranks *= np.sqrt(drawn)[:, None]
        products = ranks @ ranks.transpose(0, 2, 1)
        spread = np.sqrt(np.einsum("bss->bs", products))
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(np.clip(products / (spread[:, :, None] * spread[:, None, :]), -1.0, 1.0))
    return np.concatenate(parts)


def estimated(
    statistics: Float[np.ndarray, " R"], *, level: float = 0.95, why: str = ""
) -> Estimated:
    """Value, standard error and percentile interval of a statistic from its resamples.

    Resamples in which the statistic is undefined are left out. If they are more than one in twenty,
    there is no interval.

    Parameters
    ----------
    statistics
        The statistic in the sample, then in the resamples; NaN is undefined.
    level
        Confidence level.
    why
        Reason to give if the sample's statistic is undefined.

    Raises
    ------
    ValueError
        The level is outside (0, 1).

    Source: Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 13.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, as 0.95 does, got {level!r}")
    value, resampled = float(statistics[0]), statistics[1:]
    if not np.isfinite(value):
        return Estimated(None, None, None, None, why or "undefined in the sample")
    defined = resampled[np.isfinite(resampled)]
    if len(defined) < 2 or len(defined) < 0.95 * len(resampled):
        lost = len(resampled) - len(defined)
        reason = f"no interval: undefined in {lost} of {len(resampled)} resamples"
        return Estimated(value, None, None, None, reason)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimated(value, float(defined.std(ddof=1)), float(low), float(high), "")


def p_value(
    differences: Float[np.ndarray, " R"], *, alternative: str = "two-sided"
) -> float | None:
    r"""Bootstrap p-value that a difference is 0 (or not above 0), from its values in B resamples.

        p_greater = (1 + #{d_b <= 0}) / (B + 1),   p_two-sided = min(1, 2 min(p_greater, p_less))

    That is the level at which the percentile interval just touches 0; it cannot fall below
    2 / (B + 1). It is None if the sample's difference is undefined. Resamples in which the
    difference is undefined count for neither side.

    Source: Efron and Tibshirani 1993, chapter 15; Davison and Hinkley 1997 for the 1 that is added.
    """
    resampled = differences[1:][np.isfinite(differences[1:])]
    if not np.isfinite(differences[0]) or not len(resampled):
        return None
    # Rounding must not break a tie: equal scores have differences of 1e-17.
    greater = (1 + np.sum(resampled <= 1e-12)) / (len(resampled) + 1)
    less = (1 + np.sum(resampled >= -1e-12)) / (len(resampled) + 1)
    return float(greater if alternative == "greater" else min(1.0, 2 * min(greater, less)))


def _blocks(num_rows: int, size: int) -> Iterator[slice]:
    for start in range(0, num_rows, size):
        yield slice(start, start + size)
