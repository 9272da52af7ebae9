"""Figures of `experiments/qa.py`: AUROC by score, ROC and risk-coverage curves, scores of right and wrong answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.stats import rankdata
from sklearn.metrics import roc_curve

from isounc.runs import style
from isounc.runs.page import FigureFile
from isounc.studies.qa.evaluation import curves
from isounc.studies.qa.scored_answers import Part

_COLORS = {
    "epistemic": "#0072B2",
    "aleatoric": "#E69F00",
    "total_sum": "#009E73",
    "link_aware": "#D55E00",
    "link_aware_total": "#CC79A7",
}
_BASELINE = "#8C8C8C"
_SHOWN = ("epistemic", "aleatoric", "total_sum", "link_aware")
"""Isotropic scores whose curves are drawn, beside two baselines."""
_CURVE_BASELINES = {"p_true": "#000000", "semantic_entropy": "#8C8C8C", "log_prob": "#882255"}


def draw(
    folder: Path, parts: Sequence[Part], results: Sequence[Mapping[str, Any]]
) -> list[FigureFile]:
    """Draw all figures of a run into a folder, those of each model apart."""
    drawn = []
    for model in dict.fromkeys(part.model for part in parts):
        own = [part for part in parts if part.model == model]
        rows = [row for row in results if row["model"] == model]
        for kind, make, caption in (
            ("auroc", _aurocs,
             "AUROC for a wrong answer, with 95% bootstrap intervals over questions; the dashed line is chance. "
             "Coloured: isotropic scores of the headline's estimand; grey: baselines."),
            ("curves", _curves,
             "Above: ROC curves for a wrong answer. Below: error rate of the answers that are kept, most certain "
             "first; dotted is the best possible order."),
            ("distributions", _distributions,
             "Scores of right and wrong answers, as ranks among all (higher is more uncertain). A score that says "
             "nothing has two equal boxes."),
        ):  # fmt: skip
            with style.styled():
                figure = make(own, rows)
            name = f"{kind}-{model}"
            paths = style.save(figure, folder / name)
            drawn.append(FigureFile(name, kind, caption, tuple(paths), ""))
    return drawn


def _title(part: Part) -> str:
    right = 1 - part.scores.wrong.mean()
    return f"{part.benchmark}\n{len(part.measured)} questions, {right:.1%} right"


def _color(name: str) -> str:
    return _COLORS.get(name.split("/")[0], _BASELINE) if "/" in name else _BASELINE


def _aurocs(parts: Sequence[Part], rows: Sequence[Mapping[str, Any]]) -> Figure:
    most = max(len(part.headline) for part in parts)
    columns = min(4, len(parts))
    lines = -(-len(parts) // columns)
    figure = Figure(
        figsize=(3.9 * columns + 0.4, lines * (0.21 * most + 1.1)), layout="constrained"
    )
    # One scale: .6 must not look like .9 of the next panel.
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for ax in axes.ravel()[len(parts) :]:
        ax.set_visible(False)
    for part, ax in zip(parts, axes.ravel(), strict=False):
        mine = {r["score"]: r for r in rows if r["benchmark"] == part.benchmark}
        shown = [name for name in part.headline if mine[name]["auroc"] is not None]
        for i, name in enumerate(shown):
            row, color = mine[name], _color(name)
            ax.plot([row["auroc_low"], row["auroc_high"]], [i, i], color=color)
            ax.plot(row["auroc"], i, "o", color=color)
        ax.axvline(0.5, color="#555555", linestyle="--", linewidth=0.8)
        ax.set_yticks(range(len(shown)), [name.replace("/", ", ") for name in shown])
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.set_xlabel("AUROC for a wrong answer")
        ax.set_title(_title(part))
    return figure


def _curves(parts: Sequence[Part], rows: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(2.6 * len(parts) + 0.6, 5.6), layout="constrained")
    axes = figure.subplots(2, len(parts), squeeze=False)
    entries: dict[str, Any] = {}
    for part, (above, below) in zip(parts, axes.T, strict=True):
        names = {f"{kind}/{part.estimand}": (kind, _COLORS[kind]) for kind in _SHOWN}
        names |= {name: (name, color) for name, color in _CURVE_BASELINES.items()}
        for name, (label, color) in names.items():
            values = part.scores.uncertainty.get(name)
            if values is None:
                continue
            there = ~np.isnan(values)
            wrong = part.scores.wrong[there]
            if wrong.all() or not wrong.any():
                continue
            false, hits, _ = roc_curve(wrong, rankdata(values[there]))
            (line,) = above.plot(false, hits, color=color, linewidth=1.2)
            entries.setdefault(label, line)
            found = curves(values[there], wrong)
            below.plot(found.coverage, found.risk, color=color, linewidth=1.2)
        best = curves(part.scores.wrong.astype(float), part.scores.wrong)
        below.plot(best.coverage, best.risk, color="#555555", linestyle=":", linewidth=1)
        above.plot([0, 1], [0, 1], color="#555555", linestyle="--", linewidth=0.8)
        above.set(
            xlabel="right answers flagged", ylabel="wrong answers flagged", title=_title(part)
        )
        below.set(xlabel="answers kept", ylabel="error rate", xlim=(0, 1), ylim=(0, 1))
    style.legend_below(figure, entries)
    return figure


def _distributions(parts: Sequence[Part], rows: Sequence[Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(2.6 * len(parts) + 0.6, 3.4), layout="constrained")
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for part, ax in zip(parts, axes, strict=True):
        names = [*(f"{kind}/{part.estimand}" for kind in _SHOWN), "p_true", "semantic_entropy"]
        names = [name for name in names if name in part.scores.uncertainty]
        for i, name in enumerate(names):
            values = part.scores.uncertainty[name]
            there = ~np.isnan(values)
            ranks = (rankdata(values[there]) - 1) / max(there.sum() - 1, 1)
            wrong = part.scores.wrong[there]
            for which, shift, color in ((~wrong, -0.18, "#56B4E9"), (wrong, 0.18, "#D55E00")):
                if which.any():
                    ax.boxplot(
                        ranks[which], positions=[i + shift], widths=0.3, showfliers=False,
                        patch_artist=True, boxprops={"facecolor": color, "alpha": 0.7},
                        medianprops={"color": "black"},
                    )  # fmt: skip
        ax.set_xticks(
            range(len(names)),
            [n.split("/")[0].replace("_", " ") for n in names],
            rotation=60,
            ha="right",
        )
        ax.set_title(_title(part))
        ax.set_ylabel("rank of uncertainty")
    figure.legend(
        [Patch(facecolor=c, alpha=0.7, edgecolor="black") for c in ("#56B4E9", "#D55E00")], ["right", "wrong"],
        loc="outside lower center", ncols=2,
    )  # fmt: skip
    return figure
