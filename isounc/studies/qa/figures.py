"""Figures of a report on question answering.

AUROC by score, ROC and risk-coverage curves, and scores of right and wrong answers.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.stats import rankdata
from sklearn.metrics import roc_curve

from isounc.llm.answers.scores import ScoreInfo
from isounc.runs import style
from isounc.runs.figures import Plot
from isounc.statistics.risk_coverage import risk_coverage
from isounc.studies.qa.scored_answers import ScoredAnswers

_COLORS = {
    "epistemic": "#0072B2",
    "aleatoric": "#E69F00",
    "total_sum": "#009E73",
    "link_aware": "#D55E00",
    "link_aware_total": "#CC79A7",
    "epistemic_log": "#56B4E9",
    "moderated": "#332288",
}
_BASELINE = "#8C8C8C"
_RIGHT, _WRONG = "#56B4E9", "#D55E00"
_SHOWN = ("epistemic", "aleatoric", "total_sum", "link_aware", "moderated")
"""Isotropic scores whose curves and boxes are drawn, beside some baselines."""
_CURVE_BASELINES = {"p_true": "#000000", "semantic_entropy": "#8C8C8C", "log_prob": "#882255"}
_BOX_BASELINES = ("p_true", "semantic_entropy")


def plots(scored: Sequence[ScoredAnswers], results: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """All figures of a run, those of each model apart.

    Parameters
    ----------
    scored
        The answers of every model to every benchmark.
    results
        Rows of `isounc.studies.qa.evaluation.evaluate_scores` with their model and benchmark.
    """
    figures = []
    for model in dict.fromkeys(answers.model for answers in scored):
        of_model = [answers for answers in scored if answers.model == model]
        for kind, make, caption in (
            ("auroc", functools.partial(_aurocs, results=results),
             "AUROC for a wrong answer, with 95% bootstrap intervals over questions; the dashed "
             "line is chance. Coloured: isotropic scores of the headline's estimand; grey: "
             "baselines."),
            ("curves", _curves,
             "Above: ROC curves for a wrong answer. Below: error rate of the answers that are "
             "kept, most certain first; dotted is the best possible order."),
            ("distributions", _distributions,
             "Scores of right and wrong answers, as ranks among all (higher is more uncertain). A "
             "score that says nothing has two equal boxes."),
        ):  # fmt: skip
            draw = functools.partial(_draw, make, of_model)
            figures.append(Plot(f"{kind}-{model}", kind, caption, draw))
    return figures


def _draw(make: Callable[..., Figure], of_model: Sequence[ScoredAnswers]) -> Figure:
    with style.styled(), warnings.catch_warnings():
        # Few questions give intervals whose bars touch; that is what they show.
        warnings.simplefilter("ignore", UserWarning)
        return make(of_model)


def _title(answers: ScoredAnswers) -> str:
    right = 1 - answers.table.wrong.mean()
    return f"{answers.benchmark}\n{len(answers.answers)} questions, {right:.1%} right"


def _label(score: ScoreInfo) -> str:
    return score.family if score.estimand is None else f"{score.family}, {score.estimand}"


def _aurocs(scored: Sequence[ScoredAnswers], results: Sequence[Mapping[str, Any]]) -> Figure:
    most = max(len(answers.headline) for answers in scored)
    columns = min(4, len(scored))
    lines = -(-len(scored) // columns)
    figure = Figure(
        figsize=(3.9 * columns + 0.4, lines * (0.21 * most + 1.1)), layout="constrained"
    )
    # One scale: .6 must not look like .9 of the next panel.
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for ax in axes.ravel()[len(scored) :]:
        ax.set_visible(False)
    for answers, ax in zip(scored, axes.ravel(), strict=False):
        by_score = {row["score"]: row for row in answers.rows_of(results)}
        shown = [name for name in answers.headline if by_score[name]["auroc"] is not None]
        scores = [answers.table.scores[name] for name in shown]
        for i, (name, score) in enumerate(zip(shown, scores, strict=True)):
            row, color = by_score[name], _COLORS.get(score.family, _BASELINE)
            ax.plot([row["auroc_low"], row["auroc_high"]], [i, i], color=color)
            ax.plot(row["auroc"], i, "o", color=color)
        ax.axvline(0.5, color="#555555", linestyle="--", linewidth=0.8)
        ax.set_yticks(range(len(shown)), [_label(score) for score in scores])
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.set_xlabel("AUROC for a wrong answer")
        ax.set_title(_title(answers))
    return figure


def _curves(scored: Sequence[ScoredAnswers]) -> Figure:
    figure = Figure(figsize=(2.6 * len(scored) + 0.6, 5.6), layout="constrained")
    axes = figure.subplots(2, len(scored), squeeze=False)
    lines: dict[str, Any] = {}
    for answers, (above, below) in zip(scored, axes.T, strict=True):
        drawn = {(family, answers.estimand): _COLORS[family] for family in _SHOWN}
        drawn |= {(family, None): color for family, color in _CURVE_BASELINES.items()}
        for (family, estimand), color in drawn.items():
            name = answers.table.find(family, estimand)
            if name is None:
                continue
            values = answers.table.uncertainty[name]
            defined = ~np.isnan(values)
            wrong = answers.table.wrong[defined]
            if wrong.all() or not wrong.any():
                continue
            false, hits, _ = roc_curve(wrong, rankdata(values[defined]))
            (line,) = above.plot(false, hits, color=color, linewidth=1.2)
            lines.setdefault(family, line)
            curve = risk_coverage(values[defined], wrong)
            below.plot(curve.coverage, curve.risk, color=color, linewidth=1.2)
        best = risk_coverage(answers.table.wrong.astype(float), answers.table.wrong)
        below.plot(best.coverage, best.risk, color="#555555", linestyle=":", linewidth=1)
        above.plot([0, 1], [0, 1], color="#555555", linestyle="--", linewidth=0.8)
        above.set(
            xlabel="right answers flagged", ylabel="wrong answers flagged", title=_title(answers)
        )
        below.set(xlabel="answers kept", ylabel="error rate", xlim=(0, 1), ylim=(0, 1))
    style.legend_below(figure, lines)
    return figure


def _distributions(scored: Sequence[ScoredAnswers]) -> Figure:
    figure = Figure(figsize=(2.6 * len(scored) + 0.6, 3.4), layout="constrained")
    axes = figure.subplots(1, len(scored), squeeze=False)[0]
    for answers, ax in zip(scored, axes, strict=True):
        isotropic = [answers.table.find(family, answers.estimand) for family in _SHOWN]
        baselines = [answers.table.find(family) for family in _BOX_BASELINES]
        names = [name for name in (*isotropic, *baselines) if name is not None]
        for i, name in enumerate(names):
            _boxes(ax, i, answers, name)
        families = [answers.table.scores[name].family for name in names]
        ax.set_xticks(
            range(len(names)), [f.replace("_", " ") for f in families], rotation=60, ha="right"
        )
        ax.set_title(_title(answers))
        ax.set_ylabel("rank of uncertainty")
    patches = [Patch(facecolor=c, alpha=0.7, edgecolor="black") for c in (_RIGHT, _WRONG)]
    figure.legend(patches, ["right", "wrong"], loc="outside lower center", ncols=2)
    return figure


def _boxes(ax: Axes, place: int, answers: ScoredAnswers, name: str) -> None:
    """Ranks of a score at right and at wrong answers, side by side."""
    values = answers.table.uncertainty[name]
    defined = ~np.isnan(values)
    ranks = (rankdata(values[defined]) - 1) / max(defined.sum() - 1, 1)
    wrong = answers.table.wrong[defined]
    for mask, shift, color in ((~wrong, -0.18, _RIGHT), (wrong, 0.18, _WRONG)):
        if mask.any():
            ax.boxplot(
                ranks[mask], positions=[place + shift], widths=0.3, showfliers=False,
                patch_artist=True, boxprops={"facecolor": color, "alpha": 0.7},
                medianprops={"color": "black"},
            )  # fmt: skip
