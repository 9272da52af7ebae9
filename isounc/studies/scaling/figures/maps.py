"""Maps show the uncertainty of one cell over the input space.

Class columns are summed (the trace) wherever one number stands for several classes. An estimate of
a variance is known up to a factor, its level, which is fitted on region `test` where it matters.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from isounc.checks import check_choice
from isounc.runs.folder import Record, RunFolder
from isounc.runs.style import NothingToDraw, legend_below, styled
from isounc.statistics import compare
from isounc.studies.scaling.figures.looks import POINT_WORDS, class_look, estimator_look
from isounc.studies.scaling.results import Results, point_of
from isounc.studies.scaling.stored import check_arrays


def uncertainty_maps(run: RunFolder | Results, cell_name: str, *, point: str = "map") -> Figure:
    """Draw MCMC and point estimates over the input space of one cell, with the training data.

    With two inputs, maps show the prediction, the epistemic and the aleatoric part (summed over
    classes), each with a colour scale of its own. With one input, one panel shows the predictive
    mean with two standard deviations, and another the standard deviations. There an estimate is
    multiplied by the level that fits it to MCMC on region `test`.

    Raises
    ------
    ValueError
        If there is no such cell (it names near matches), or the cell has no grid.
    """
    results, record = cell_record(run, cell_name)
    arrays = record.arrays
    if "grid/X" not in arrays or "grid/mcmc_var" not in arrays:
        raise NothingToDraw(f"cell {cell_name} has no region 'grid' (only 1-D and 2-D problems do)")
    if f"grid/{point}/p" not in arrays:
        raise NothingToDraw(f"cell {cell_name} has no estimates at point {point!r} on its grid")
    dimension, columns = arrays["grid/X"].shape[1], arrays["grid/mcmc_var"].shape[1]
    with styled():
        if dimension == 2:
            figure = _two_inputs(results, record, point)
        elif dimension == 1 and columns == 1:
            figure = _one_input(results, record, point)
        else:
            raise NothingToDraw(
                f"cell {cell_name} has {dimension} inputs and {columns} outputs; maps need two "
                "inputs, or one input and one output"
            )
        figure.suptitle(cell_heading(results, record, point))
    return figure


def cell_record(run: RunFolder | Results, cell_name: str) -> tuple[Results, Record]:
    """Read the record of a cell; a missing one is a ValueError with near matches."""
    results = Results.of(run)
    names = [cell.name for cell in results.cells]
    if not names:
        raise NothingToDraw(f"{results.run.path} has no records of cells")
    check_choice("cell_name", cell_name, names)
    record = results.run.read(cell_name)
    if record is None:
        raise NothingToDraw(f"the record of cell {cell_name} is damaged")
    check_arrays(record.arrays, f"record {cell_name!r} of {results.run.path}")
    return results, record


def cell_heading(results: Results, record: Record, point: str) -> str:
    """Return the title of a figure of one cell, with the checks that it failed."""
    cell = next(cell for cell in results.cells if cell.name == record.name)
    regions = [name.split("/")[0] for name in record.arrays if name.endswith("/mcmc_var")]
    failing = [name for name in regions if not cell.passed_in(name)]
    where = "" if failing == regions else f" in region {', '.join(failing)}"
    failed = f" (MCMC failed its gate{where})" if failing else ""
    if ((cell.meta.get("points") or {}).get(point) or {}).get("passed") is False:
        failed += f" ({point} failed its check)"
    name = f"{results.label(cell.setup)}, width {cell.width}, seed {cell.seed}"
    return f"{name}: estimates {POINT_WORDS.get(point, point)}{failed}"


def _two_inputs(results: Results, record: Record, point: str) -> Figure:
    """Draw rows of prediction, epistemic and aleatoric part, with MCMC in the first column.

    The epistemic row has up to three estimates, the null among them.
    """
    a = record.arrays
    try:
        axes, order = _mesh(a["grid/X"])
    except ValueError as error:
        raise NothingToDraw(f"cell {record.name}: {error}") from None

    def image(key: str) -> np.ndarray | None:
        return a[key][order].reshape(len(axes[0]), len(axes[1]), -1) if key in a else None

    reference = a["grid/mcmc_var"].sum(axis=1)
    aleatoric = a["grid/mcmc_aleatoric"].sum(axis=1) if "grid/mcmc_aleatoric" in a else None
    multiclass = a["grid/mcmc_mean"].shape[1] > 1
    output = "class probabilities" if multiclass else "p(y = 1)"
    rows: list[list[tuple[str, str, np.ndarray | None]]] = [
        [
            (f"MCMC mean, {output}", "p", image("grid/mcmc_mean")),
            (f"Point estimate, {output}", "p", image(f"grid/{point}/p")),
            (f"Truth, {output}", "p", image("grid/p_true")),
        ],
        [("MCMC epistemic (variance)", "epistemic", image("grid/mcmc_var"))],
        [("MCMC aleatoric, E[p(1−p)]", "aleatoric", image("grid/mcmc_aleatoric"))],
    ]
    for estimator in results.shown("maps")[:3]:
        key = f"grid/{point}/epistemic/{estimator}"
        title = f"{estimator_look(estimator).label}{_r(a, key, reference)}"
        rows[1].append((title, "epistemic", image(key)))
    for name, words in (("aleatoric", "p(1−p)"), ("aleatoric_corrected", "p(1−p) − epistemic")):
        key = f"grid/{point}/{name}"
        rows[2].append((f"Point {words}{_r(a, key, aleatoric)}", "aleatoric", image(key)))
    columns = max(map(len, rows))
    figure = Figure(figsize=(10.0 if columns == 3 else 12.5, 9.0), layout="constrained")
    panels = figure.subplots(3, columns, sharex=True, sharey=True)
    for i, row in enumerate(rows):
        for ax in panels[i][len(row) :]:
            ax.set_axis_off()
        for ax, (title, kind, values) in zip(panels[i], row, strict=False):
            if values is None:
                ax.set_axis_off()
                ax.set_title(f"{title}: not in the record", fontsize=8, color="#444444")
                continue
            ax.set_title(title, loc="left")
            _image(figure, ax, axes, values, kind)
            _training_data(ax, record)
    handles, labels = panels[0][0].get_legend_handles_labels()
    entries = {f"training data, {n}": h for n, h in zip(labels, handles, strict=True)}
    note = "Each map has a colour scale of its own. r: Pearson correlation with MCMC over the grid."
    legend_below(figure, entries, markerscale=1.4, title=note, title_fontsize=8.5)
    return figure


def _image(
    figure: Figure, ax: Axes, axes: tuple[np.ndarray, np.ndarray], values: np.ndarray, kind: str
) -> None:
    """Draw one map of `values` (n1, n2, M) in "ij" order."""
    half = [(axis[-1] - axis[0]) / (len(axis) - 1) / 2 for axis in axes]
    extent = (
        *(axes[0][0] - half[0], axes[0][-1] + half[0]),
        *(axes[1][0] - half[1], axes[1][-1] + half[1]),
    )
    settings = {"origin": "lower", "extent": extent, "aspect": "auto", "interpolation": "nearest"}
    if kind == "p" and values.shape[2] > 1:
        colors = np.array([to_rgb(class_look(c).color) for c in range(values.shape[2])])
        shown = np.clip(np.transpose(values, (1, 0, 2)) @ colors, 0, 1)
        ax.imshow(shown, **settings)
        return
    shown = values.sum(axis=2).T
    if kind == "p":
        limits = {"vmin": 0.0, "vmax": 1.0, "cmap": "RdBu_r"}
    else:
        # From zero, so that a constant map is seen to be one; only a corrected one goes below.
        limits = {"vmin": np.min(shown, where=np.isfinite(shown), initial=0.0), "cmap": "viridis"}
    drawn = ax.imshow(shown, **settings, **limits)
    bar = figure.colorbar(drawn, ax=ax, pad=0.02, aspect=18)
    bar.locator = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])
    bar.formatter = FuncFormatter(lambda value, _: f"{value:.3g}")
    bar.update_ticks()
    bar.outline.set_visible(False)  # pyright: ignore


def _training_data(ax: Axes, record: Record) -> None:
    X, y = record.arrays.get("X"), record.arrays.get("y")
    if X is None or y is None:
        return
    for c in np.unique(y).astype(int).tolist():
        look = class_look(c)
        ax.plot(
            *X[y == c].T, linestyle="none", marker=look.marker, markersize=3.8, color=look.color,
            markeredgecolor="white", markeredgewidth=0.6, label=look.label,
        )  # fmt: skip


def _one_input(results: Results, record: Record, point: str) -> Figure:
    """Draw means with two standard deviations, and below them the standard deviations."""
    a = record.arrays
    order = np.argsort(a["grid/X"][:, 0])
    x, mean, var = (a[f"grid/{k}"][order, 0] for k in ("X", "mcmc_mean", "mcmc_var"))
    sd = np.sqrt(np.maximum(var, 0))
    figure = Figure(figsize=(9.0, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    top.fill_between(
        x, mean - 2 * sd, mean + 2 * sd, color="#999999", alpha=0.35, linewidth=0,
        label="MCMC mean ± 2 sd",
    )  # fmt: skip
    top.plot(x, mean, color="#555555", linewidth=1.4)
    if "grid/p_true" in a:
        top.plot(x, a["grid/p_true"][order, 0], ":", color="black", label="truth")
    p = a[f"grid/{point}/p"][order, 0]
    top.plot(x, p, color=estimator_look("isotropic").color, label="point estimate", linewidth=1.4)
    bottom.plot(x, sd, color="#555555", linewidth=2.4, alpha=0.7, label="MCMC")
    fitted_on = "test" if "test/mcmc_var" in a else "grid"
    for estimator in results.shown("bands"):
        key = f"{point_of(estimator, point)}/epistemic/{estimator}"
        if f"grid/{key}" not in a or f"{fitted_on}/{key}" not in a:
            continue
        look = estimator_look(estimator)
        fitted = compare(a[f"{fitted_on}/{key}"].sum(axis=1), reference_variance(a, fitted_on))
        if fitted.slope is None:
            continue
        scaled = np.sqrt(np.maximum(fitted.slope * a[f"grid/{key}"][order, 0], 0))
        label = f"{look.label} × level{_r(a, f'grid/{key}', reference_variance(a, 'grid'))}"
        bottom.plot(x, scaled, "--", color=look.color, label=label, linewidth=1.4)
        if estimator == "isotropic":
            for sign in (-1, 1):
                top.plot(
                    x, p + sign * 2 * scaled, "--", color=look.color, linewidth=1.2,
                    label="point estimate ± 2 sd, isotropic × level" if sign > 0 else None,
                )  # fmt: skip
    if "X" in a and "y" in a:
        top.plot(
            a["X"][:, 0], a["y"], "o", color="black", markersize=3, alpha=0.6, label="training data"
        )
    top.set_ylabel("prediction")
    bottom.set_ylabel("sd of the prediction")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel(
        f"input x  (levels fitted on region {fitted_on}; r: Pearson of variances over the grid)"
    )
    for ax in (top, bottom):
        # Beside the axes, where it covers nothing.
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, fontsize=8)
    return figure


def reference_variance(arrays: Mapping[str, np.ndarray], region: str) -> Float[np.ndarray, " N"]:
    """Return the MCMC predictive variance at the locations of a region, summed over classes."""
    return arrays[f"{region}/mcmc_var"].sum(axis=1)


def _r(
    arrays: Mapping[str, np.ndarray], key: str, reference: Float[np.ndarray, " N"] | None
) -> str:
    """Write a correlation over the grid for a title."""
    if key not in arrays or reference is None:
        return ""
    r = compare(arrays[key].sum(axis=1), reference).pearson
    return ", r undefined" if r is None else f", r = {r:.2f}"


def _mesh(points: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Find the axes of a regular mesh, and the order that puts its points in "ij" indexing."""
    axes = (np.unique(points[:, 0]), np.unique(points[:, 1]))
    order = np.lexsort((points[:, 1], points[:, 0]))
    mesh = np.stack([m.ravel() for m in np.meshgrid(*axes, indexing="ij")], axis=1)
    if min(len(axis) for axis in axes) < 2 or not np.array_equal(points[order], mesh):
        raise ValueError("its grid is not a mesh of two axes")
    return axes, order
