"""Figures of a run: scaling curves, the error budget, maps and scatter plots.

`plots` lists all of them. Everything is drawn from a run folder alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from isounc.runs.figures import Plot
from isounc.studies.scaling.figures.curves import error_budget, scaling_curves, scaling_headline
from isounc.studies.scaling.figures.looks import POINT_WORDS
from isounc.studies.scaling.figures.maps import uncertainty_maps
from isounc.studies.scaling.figures.scatter import scatter
from isounc.studies.scaling.results import Results

__all__ = [
    "error_budget",
    "plots",
    "scaling_curves",
    "scaling_headline",
    "scatter",
    "uncertainty_maps",
]


def plots(results: Results) -> list[Plot]:
    """List every figure that a run may have: curves, budgets, then maps and scatter plots."""
    return [*_run_plots(results), *_cell_plots(results)]


def _run_plots(results: Results) -> Iterator[Plot]:
    if len(results.rows):
        regions = results.values("region")
        points = [p for p in results.values("point") if p != "posterior"]
        caption = (
            "Pearson correlation of the isotropic estimate with the MCMC predictive variance "
            "against width, for each kind of point estimate, beside that of the null (dotted): "
            "p(1−p) of the same point, which a forward pass gives for nothing, or the distance to "
            f"the nearest training input in regression; region {regions[0]}."
        )
        yield Plot("scaling", "headline", caption, lambda: scaling_headline(results))
        for region in regions:
            for point in points:
                caption = (
                    "Pearson correlation of epistemic estimates with the MCMC predictive "
                    f"variance against width, {POINT_WORDS.get(point, point)}; region {region}."
                )
                yield Plot(
                    f"scaling_{region}_{point}", "scaling", caption,
                    lambda r=region, p=point: scaling_curves(results, region=r, point=p),
                )  # fmt: skip
        for region in regions:
            caption = (
                "Error budget: what linearising at the MAP, isotropy and the link cost, as Pearson "
                f"correlations with the MCMC predictive variance; region {region}."
            )
            yield Plot(
                f"error_budget_{region}", "budget", caption,
                lambda r=region: error_budget(results, region=r),
            )  # fmt: skip


def _cell_plots(results: Results) -> Iterator[Plot]:
    for setup in results.setups:
        cell = results.shown_cell(setup)
        if cell is None:
            continue
        where = f"{results.label(setup)}, width {cell.width}, seed {cell.seed}"
        yield Plot(
            f"maps_{results.slug(setup)}", "maps",
            f"Uncertainty over the input space, MCMC and estimates at the MAP: {where}.",
            lambda n=cell.name: uncertainty_maps(results, n),
        )  # fmt: skip
        yield Plot(
            f"scatter_{results.slug(setup)}", "scatter",
            f"Estimates at the MAP against the MCMC predictive variance: {where}.",
            lambda n=cell.name: scatter(results, n),
        )  # fmt: skip
