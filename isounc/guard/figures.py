"""Figures of a guard: its risk-coverage curve, and wrong answers by score."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from isounc.guard.certificate import Certificate, Share
from isounc.guard.sample import Sample
from isounc.runs.style import NothingToDraw, styled
from isounc.statistics.risk_coverage import risk_coverage

_BLUE, _GREY, _RED = "#0072B2", "#8C8C8C", "#D55E00"
BINS = 10
"""Bins of equal numbers of answers."""


def curve(sample: Sample, certificate: Certificate) -> Figure:
    """Draw the share of wrong answers among the most certain ones, and where the guard stops."""
    found = risk_coverage(-sample.certainty, ~sample.correct)
    kept = np.arange(1, len(sample.correct) + 1)
    with styled():
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(found.coverage, found.risk, color=_BLUE, label="this score")
        low, high = _band(found.risk * kept, kept)
        axes.fill_between(found.coverage, low, high, color=_BLUE, alpha=0.15, lw=0)
        axes.plot(found.coverage, found.best_risk, color=_GREY, ls=":", label="wrong answers last")
        axes.axhline(found.risk[-1], color=_GREY, lw=0.8, label="any order, on average")
        axes.axhline(certificate.target_risk, color=_RED, ls="--", label="target")
        coverage, risk = certificate.coverage.value, certificate.risk.value
        if coverage is not None and risk is not None:
            axes.plot([coverage], [risk], "o", color=_RED, ms=7, label="threshold")
        axes.set(
            xlabel="coverage: share of the answers accepted", ylabel="share of wrong among them",
            xlim=(0, 1.01),
            ylim=(0, min(1, 1.6 * max(found.risk[len(found.risk) // 20 :].max(), certificate.target_risk))),
        )  # fmt: skip
        axes.legend(frameon=False, fontsize=8)
    return figure


def by_score(sample: Sample, certificate: Certificate) -> Figure:
    """Draw the share of wrong answers by score, in bins of equal numbers of answers."""
    scores = -sample.certainty if certificate.higher_is_uncertain else sample.certainty
    if not np.isfinite(scores).all():
        raise NothingToDraw("some scores are infinite")
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, BINS + 1)))
    if len(edges) < 3:
        raise NothingToDraw("the score has too few values")
    where = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, len(edges) - 2)
    with styled():
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axes = figure.subplots()
        for i in range(len(edges) - 1):
            share = Share.of_counts(
                int((~sample.correct[where == i]).sum()), int((where == i).sum())
            )
            if share.value is None:
                continue
            middle = float(np.median(scores[where == i]))
            axes.plot([middle] * 2, [share.low, share.high], color=_BLUE, lw=1)
            axes.plot([middle], [share.value], "o", color=_BLUE)
        if certificate.threshold is not None:
            axes.axvline(certificate.threshold, color=_RED, ls="--", label="threshold")
            axes.legend(frameon=False, fontsize=8)
        axes.set(xlabel=certificate.score or "score", ylabel="share of wrong answers", ylim=(0, 1))
    return figure


def _band(wrong: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% Clopper-Pearson ends at each coverage by itself; ties give fractions of wrong answers."""
    from scipy.stats import beta

    low = np.where(wrong > 0, beta.ppf(0.025, np.maximum(wrong, 1e-12), kept - wrong + 1), 0.0)
    right = kept - wrong
    high = np.where(right > 0, beta.ppf(0.975, wrong + 1, np.maximum(right, 1e-12)), 1.0)
    return low, high
