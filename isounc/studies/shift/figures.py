"""Figures: AUROC by score, differences to the isotropic estimate, distributions, and false alarms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from isounc.runs.folder import Record
from isounc.runs.panels import IntervalEnds, handles, interval_panels
from isounc.runs.style import Look, NothingToDraw, legend_below, styled
from isounc.studies.shift.cell import IN_DISTRIBUTION
from isounc.studies.shift.networks import NETWORKS
from isounc.studies.shift.scores import SCORES
from isounc.studies.shift.settings import ALL, BASE
from isounc.studies.shift.shifts import KINDS, SHIFTS
from isounc.studies.shift.tables import Place, Results

NETWORK_LOOKS = {
    "mlp": Look("MLP", "#0072B2", "o"),
    "cnn": Look("CNN", "#D55E00", "s"),
    "logistic": Look("logistic regression", "#999933", "^"),
}
"""Looks of the networks."""
_DATA = {
    IN_DISTRIBUTION: Look("in distribution", "#000000", "o"),
    "classes": Look(SHIFTS["classes"].label, "#0072B2", "o", "--"),
    "rotated": Look(SHIFTS["rotated"].label, "#56B4E9", "o", "--"),
    "shuffled": Look(SHIFTS["shuffled"].label, "#E69F00", "o", "-."),
    "noise": Look(SHIFTS["noise"].label, "#D55E00", "o", "-."),
    "shifted": Look(SHIFTS["shifted"].label, "#0072B2", "o", "--"),
    "permuted": Look(SHIFTS["permuted"].label, "#56B4E9", "o", "--"),
    "far": Look(SHIFTS["far"].label, "#D55E00", "o", "-."),
}
SHOWN = ("isotropic", "log_norm", "logit_scaled", "gradnorm", "mcmc")
"""Scores whose distributions are drawn."""
_LEAST = 1e-30
"""Where a logarithmic axis ends."""
_WIDE = 100.0
"""Ratio of the ends of an axis from which it is logarithmic."""


def score_label(name: str) -> str:
    """A score with what its higher values are to mean."""
    score = SCORES[name]
    return f"{score.label} ({'↑' if score.higher == 'out' else '↓'} out)"


def by_score(results: Results) -> Figure:
    """Draw the AUROC of every score over the problems, by kind of shift and network.

    Raises
    ------
    NothingToDraw
        If no AUROC has two seeds.
    """
    looks = {name: NETWORK_LOOKS[name] for name in results.networks}

    def at(i: int, kind: str, network: str) -> IntervalEnds:
        return _ends(results, Place(ALL, network, kind), results.scores[i], "auroc")

    title = "AUROC by score and kind of shift, mean over the problems"
    return _score_panels(results, title, list(KINDS), looks, at)


def by_shift(results: Results, problem: str) -> Figure:
    """Draw the AUROC of every score on a problem, by shift and network.

    Raises
    ------
    NothingToDraw
        If no AUROC has a value.
    """
    networks = results.networks_of(problem)
    shifts = results.shifts_of(problem, networks[0])
    looks = {name: NETWORK_LOOKS[name] for name in networks}

    def at(i: int, label: str, network: str) -> IntervalEnds:
        shift = next(name for name in shifts if SHIFTS[name].label == label)
        return _ends(results, Place(problem, network, shift), results.scores[i], "auroc")

    title = f"AUROC by score on {problem}"
    return _score_panels(results, title, [SHIFTS[name].label for name in shifts], looks, at)


def differences(results: Results) -> Figure:
    """Draw the AUROC of the isotropic estimate less that of every other score, over the problems.

    Raises
    ------
    NothingToDraw
        If no difference has two seeds.
    """
    rivals = [name for name in results.scores if name != BASE]
    looks = {name: NETWORK_LOOKS[name] for name in results.networks}

    def at(i: int, kind: str, network: str) -> IntervalEnds:
        return _ends(results, Place(ALL, network, kind), BASE, "auroc", rivals[i])

    title = "AUROC of ‖∇p‖² less that of the score, mean over the problems"
    labels = [score_label(name) for name in rivals]
    figure, axes = interval_panels(title, labels, [""] * len(rivals), list(KINDS), looks, at)
    for ax in axes:
        ax.axvline(0, color="#444444", linewidth=0.8)
        ax.set_xlabel("difference of AUROC, above 0: ‖∇p‖² ahead")
    with styled():
        legend_below(figure, handles(looks))
    return figure


def rates(results: Results) -> Figure:
    """Draw the false alarms on new inputs of the distribution, by what set the threshold.

    Raises
    ------
    NothingToDraw
        If no rate has two seeds.
    """
    looks = {
        "alarms": Look("threshold from new inputs", "#0072B2", "o"),
        "alarms_train": Look("threshold from the training inputs", "#D55E00", "v"),
    }
    shown = {NETWORKS[name]: name for name in results.networks}

    def at(i: int, panel: str, column: str) -> IntervalEnds:
        place = Place(ALL, shown[panel], IN_DISTRIBUTION)
        return _ends(results, place, results.scores[i], column)

    title = "False alarms on further inputs of the same distribution"
    labels = [score_label(name) for name in results.scores]
    figure, axes = interval_panels(title, labels, [""] * len(labels), list(shown), looks, at)
    for ax, network in zip(axes, shown.values(), strict=True):
        expected = _ends(results, Place(ALL, network, IN_DISTRIBUTION), BASE, "expected")[0]
        if expected is not None:
            ax.axvline(expected, color="#444444", linewidth=0.8)
        ax.set_xlabel("rate")
    with styled():
        entries = handles(looks)
        entries["exact expectation"] = Line2D([], [], color="#444444", linewidth=0.8)
        legend_below(figure, entries)
    return figure


def distributions(records: Sequence[Record]) -> Figure:
    """Draw how scores are distributed in and out of distribution, over the seeds that passed.

    Where none did, all are drawn, faintly.

    Raises
    ------
    NothingToDraw
        If there are no records with scores.
    """
    records = [record for record in records if f"{IN_DISTRIBUTION}/{BASE}" in record.arrays]
    if not records:
        raise NothingToDraw("no record holds the values of scores")
    arrays = records[0].arrays
    scores = [name for name in SHOWN if f"{IN_DISTRIBUTION}/{name}" in arrays]
    sets = [name for name in _DATA if f"{name}/{BASE}" in arrays]
    cell = records[0].meta["cell"]
    with styled():
        figure = Figure(figsize=(0.6 + 2.5 * len(scores), 3.0), layout="constrained")
        title = f"Distributions on {cell['problem']}, {NETWORKS[cell['network']]}"
        figure.suptitle(f"{title}, {len(records)} seeds", x=0.01, ha="left")
        axes = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
        for ax, score in zip(axes, scores, strict=True):
            for name in sets:
                passed = [record for record in records if _passed(record, score, name)]
                values = [record.arrays[f"{name}/{score}"] for record in passed or records]
                _steps(ax, np.concatenate(values), _DATA[name], faint=not passed)
            ax.set_title(score_label(score), loc="left")
            left, right = ax.get_xlim()
            if right > _WIDE * max(left, _LEAST):
                ax.set_xscale("log")
                left, right = ax.get_xlim()
                ax.set_xlim(max(left, right * 1e-16), right)
        axes[0].set_ylabel("share below")
        entries = {}
        for name in sets:
            style: dict[str, Any] = {
                "color": _DATA[name].color,
                "linestyle": _DATA[name].linestyle,
            }
            entries[_DATA[name].label] = Line2D([], [], **style)
        legend_below(figure, entries)
    return figure


def _passed(record: Record, score: str, name: str) -> bool:
    return any(
        row["score"] == score and row["shift"] == name and row["gate"] == "pass"
        for row in record.meta["rows"]
    )


def _steps(ax: Axes, values: np.ndarray, look: Look, *, faint: bool) -> None:
    values = np.sort(np.maximum(values, _LEAST))
    share = np.arange(1, len(values) + 1) / len(values)
    ax.step(
        values, share, where="post", color=look.color, linestyle=look.linestyle, linewidth=1.3,
        alpha=0.35 if faint else 1.0,
    )  # fmt: skip


def _ends(results: Results, place: Place, score: str, column: str, rival: str = "") -> IntervalEnds:
    found = results.over(place, score, column, rival).interval
    return found.mean, found.low, found.high


def _score_panels(results: Results, title: str, panels: list[str], looks, at) -> Figure:
    labels = [score_label(name) for name in results.scores]
    figure, axes = interval_panels(title, labels, [""] * len(labels), panels, looks, at)
    for ax in axes:
        ax.axvline(0.5, color="#444444", linewidth=0.8)
        ax.set_xlabel("AUROC")
        left, right = ax.get_xlim()
        ax.set_xlim(max(left, -0.02), min(right, 1.02))
    with styled():
        legend_below(figure, handles(looks))
    return figure
