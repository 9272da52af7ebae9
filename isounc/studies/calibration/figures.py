"""Figures of a calibration run: rank histograms, ECDF differences, z-scores of Geweke's test.

A test quantity whose verdict is PASS is blue, one whose verdict is FAIL is orange; the panel also
has the word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy import stats

from isounc.runs.style import legend_below, styled
from isounc.studies.calibration.uniformity import ecdf_band, ecdf_difference, rank_histogram

PASS, FAIL, BAND = "#0072B2", "#D55E00", "#D9D9D9"
BAND_LEVEL = 0.05
"""Chance that uniform ranks leave a band: the customary 95% bands. Verdicts have another level."""
Z_SHOWN = 8.0
"""Larger z-scores are drawn at the edge, with their number."""


class MomentTest(NamedTuple):
    """The z-scores of one joint-distribution test."""

    title: str
    """The sampler, the case and the planted fault, for people."""
    moments: Sequence[str]
    """Names of the T moments."""
    z: Float[np.ndarray, " T"]
    """Their z-scores."""
    passed: Sequence[bool]
    """Their verdicts."""


def rank_figure(
    ranks: Int[np.ndarray, "R Q"],
    names: Sequence[str],
    *,
    num_ranked: int,
    num_bins: int,
    p_adjusted: Sequence[float],
    passed: Sequence[bool],
    level: float,
    title: str,
) -> Figure:
    """Draw a histogram of the ranks of each test quantity, above its ECDF minus the uniform CDF.

    Both have 95% bands. The ECDF's is simultaneous over all ranks; the histogram's is binomial,
    with the level divided by the number of bins (Bonferroni).
    """
    with styled():
        figure = Figure(figsize=(2.0 * len(names) + 0.8, 4.9), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left")
        axes = figure.subplots(2, len(names), sharey="row", sharex=True, squeeze=False)
        low, high = ecdf_band(len(ranks), num_ranked, level=BAND_LEVEL)
        z = np.arange(1, num_ranked + 1) / (num_ranked + 1)
        for i, (name, ok) in enumerate(zip(names, passed, strict=True)):
            color = PASS if ok else FAIL
            top, bottom = axes[:, i]
            _histogram(top, ranks[:, i], num_ranked, num_bins, color)
            top.set_title(
                f"{name}\n{'PASS' if ok else 'FAIL'}, adjusted p {_p_text(p_adjusted[i])}",
                fontsize=8.5,
            )
            bottom.fill_between(z, low, high, color=BAND, linewidth=0, step="mid")
            bottom.axhline(0, color="#777777", linewidth=0.7)
            bottom.plot(
                z, ecdf_difference(ranks[:, i], num_ranked), color=color, drawstyle="steps-mid"
            )
            bottom.set_xlim(0, 1)
            bottom.set_xticks([0, 0.5, 1], ["0", "½", "1"])
            bottom.set_xlabel(f"rank / {num_ranked}")
        axes[0, 0].set_ylabel("replications in bin")
        axes[1, 0].set_ylabel("ECDF − uniform CDF")
        legend = {
            f"PASS (adjusted p ≥ {level:g})": Patch(color=PASS),
            f"FAIL (adjusted p < {level:g})": Patch(color=FAIL),
            "uniform ranks: expected value and simultaneous 95% band": Patch(
                facecolor=BAND, edgecolor="#777777", linewidth=0.7
            ),
        }
        legend_below(figure, legend)
    return figure


def _histogram(
    ax: Axes, ranks: Int[np.ndarray, " R"], num_ranked: int, num_bins: int, color: str
) -> None:
    counts, share = rank_histogram(ranks, num_ranked, num_bins)
    edges = np.concatenate([[0], np.cumsum(share)])
    tail = BAND_LEVEL / 2 / num_bins
    low, high = (stats.binom.ppf(q, len(ranks), share) for q in (tail, 1 - tail))
    ax.stairs(high, edges, baseline=low, fill=True, color=BAND)
    ax.stairs(counts, edges, color=color, linewidth=1.4)
    ax.stairs(len(ranks) * share, edges, color="#777777", linewidth=0.7, baseline=None)


def geweke_figure(tests: Sequence[MomentTest], *, bounds: Sequence[float], title: str) -> Figure:
    """Draw a panel per test: the z-score of each moment, and the bound beyond which it fails.

    Parameters
    ----------
    bounds
        Largest |z| that a moment may reach, for each test; it depends on the size of its family.
    """
    columns = min(3, len(tests))
    rows = math.ceil(len(tests) / columns)
    with styled():
        figure = Figure(figsize=(3.7 * columns, 2.9 * rows + 0.8), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax in grid[len(tests) :]:
            ax.remove()
        for ax, test, bound in zip(grid, tests, bounds, strict=False):
            heights = np.arange(len(test.moments))[::-1]
            ax.axvspan(-bound, bound, color=BAND, linewidth=0)
            ax.axvline(0, color="#777777", linewidth=0.7)
            for y, z, ok in zip(heights, test.z, test.passed, strict=True):
                color = PASS if ok else FAIL
                if abs(z) <= Z_SHOWN:
                    ax.plot(z, y, "o" if ok else "X", color=color)
                    continue
                side = math.copysign(1, z)
                ax.plot(side * Z_SHOWN, y, ">" if z > 0 else "<", color=color)
                ax.annotate(
                    f"{z:.0f}".replace("-", "−"), (side * Z_SHOWN, y), xytext=(-6 * side, 0),
                    fontsize=7.5, textcoords="offset points", va="center",
                    ha="right" if z > 0 else "left",
                )  # fmt: skip
            ax.set_yticks(heights, test.moments, fontsize=7)
            ax.set_xlim(-Z_SHOWN - 0.6, Z_SHOWN + 0.6)
            ax.set_xticks([-8, -4, 0, 4, 8])
            ax.set_xlabel("z-score")
            ax.set_title(test.title, fontsize=9, loc="left")
        legend = {
            "PASS": Line2D([], [], linestyle="none", marker="o", color=PASS),
            "FAIL (a triangle with its number: beyond ±8)": Line2D(
                [], [], linestyle="none", marker="X", color=FAIL
            ),
            "a z-score outside of the band fails": Patch(facecolor=BAND),
        }
        legend_below(figure, legend)
    return figure


def _p_text(p: float) -> str:
    return f"{p:.2f}" if p >= 0.1 else f"{p:.2g}"
