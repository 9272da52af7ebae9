"""Figures of a run: scaling curves and the error budget; `make_figures` draws all there are.

Everything is drawn from a run folder alone. Lines and bars are means over the seeds that passed
the gate of their reference, with the interval of `isounc.studies.scaling.summary`; a seed that failed is a hollow
marker of its own and in no mean. What is undefined leaves a gap, and the panel says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.figure import Figure

from isounc.runs.folder import RunFolder
from isounc.runs.page import FigureFile
from isounc.runs.style import POINT_WORDS, NothingToDraw, save
from isounc.studies.scaling.figures.curves import error_budget, scaling_curves, scaling_headline
from isounc.studies.scaling.figures.maps import uncertainty_maps
from isounc.studies.scaling.figures.scatter import scatter
from isounc.studies.scaling.results import Results

__all__ = [
    "draw_figures",
    "error_budget",
    "make_figures",
    "scaling_curves",
    "scaling_headline",
    "scatter",
    "uncertainty_maps",
]

_log = logging.getLogger(__name__)


def make_figures(run: RunFolder | Results) -> list[Path]:
    """Draw everything that a run has into its folder `figures`; the files written, in order.

    What cannot be drawn is skipped; `draw_figures` says why (and so does the log).

    Raises
    ------
    ValueError
        If the run's results cannot be read.
    OSError
        If a figure cannot be written.
    """
    return [path for drawn in draw_figures(run) for path in drawn.paths]


def draw_figures(run: RunFolder | Results) -> list[FigureFile]:
    """As `make_figures`, with captions, and with reasons for what was skipped."""
    results = Results.of(run)
    folder = results.run.path / "figures"
    done = []
    for name, kind, caption, draw in _plan(results):
        try:
            paths = tuple(save(draw(), folder / name))
        except NothingToDraw as error:
            _log.info("figure %s skipped: %s", name, error)
            done.append(FigureFile(name, kind, caption, (), str(error)))
        else:
            done.append(FigureFile(name, kind, caption, paths, ""))
    return done


def _plan(results: Results) -> Iterator[tuple[str, str, str, Callable[[], Figure]]]:
    """Name, kind, caption and drawing function of every figure that a run may have."""
    if len(results.rows):
        regions = results.values("region")
        points = [p for p in results.values("point") if p != "posterior"]
        caption = (
            "Pearson correlation of the isotropic estimate with the MCMC predictive variance "
            f"against width, for each kind of point estimate; region {regions[0]}."
        )
        yield "scaling", "scaling", caption, lambda: scaling_headline(results)
        for region in regions:
            for point in points:
                caption = (
                    "Pearson correlation of epistemic estimates with the MCMC predictive "
                    f"variance against width, {POINT_WORDS.get(point, point)}; region {region}."
                )
                yield (
                    f"scaling_{region}_{point}", "scaling", caption,
                    lambda r=region, p=point: scaling_curves(results, region=r, point=p),
                )  # fmt: skip
        for region in regions:
            caption = (
                "Error budget: what linearising at the MAP, isotropy and the link cost, as Pearson "
                f"correlations with the MCMC predictive variance; region {region}."
            )
            yield (
                f"error_budget_{region}", "budget", caption,
                lambda r=region: error_budget(results, region=r),
            )  # fmt: skip
    for setup in results.setups:
        cell = results.shown_cell(setup)
        if cell is None:
            continue
        where = f"{results.label(setup)}, width {cell.width}, seed {cell.seed}"
        yield (
            f"maps_{results.slug(setup)}", "maps",
            f"Uncertainty over the input space, MCMC and estimates at the MAP: {where}.",
            lambda n=cell.name: uncertainty_maps(results, n),
        )  # fmt: skip
        yield (
            f"scatter_{results.slug(setup)}", "scatter",
            f"Estimates at the MAP against the MCMC predictive variance: {where}.",
            lambda n=cell.name: scatter(results, n),
        )  # fmt: skip
