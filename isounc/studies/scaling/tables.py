"""Tables of a run, for its report and the console, are made from its folder alone.

Each function returns a `Table` of texts. A number over seeds is written mean [low, high], with the
interval of `isounc.studies.scaling.summary`; an undefined or failed one says so.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from isounc.estimates.estimators import ESTIMATORS, estimator_names
from isounc.runs.folder import RunFolder
from isounc.runs.page import Table
from isounc.studies.scaling.figures.looks import POINT_WORDS
from isounc.studies.scaling.paper import SOURCE, UNKNOWN, paper_value
from isounc.studies.scaling.results import CellRecord, Results, Setup, ordered, point_of

_SUMMARY = (
    ("isotropic", "epistemic", "isotropic"),
    ("null_aleatoric", "epistemic", "null p(1−p)"),
    ("null_distance", "epistemic", "distance"),
    ("logit_scaled", "epistemic", "logit_scaled"),
    ("laplace", "epistemic", "laplace"),
    ("isotropic", "aleatoric", "aleatoric"),
)
"""Estimators and quantities of `paper_table`, with their names there."""
_IN_CLASSIFICATION = ("null p(1−p)", "logit_scaled", "aleatoric")
"""Those that regression makes constant, or equal to another: its noise is known, it has no link."""


_MOST_SEEDS = 20
"""Seeds that a cell of a table spells."""


def paper_table(results: Results) -> Table:
    """Tabulate correlations at the largest width, beside those of the paper."""
    region = _main_region(results)
    rows = []
    for setup in results.setups:
        is_regression = results.main_class(setup) == "f"
        for estimator, quantity, name in _SUMMARY:
            if name in _IN_CLASSIFICATION if is_regression else name == "distance":
                continue
            width = max(results.widths(setup))
            which = {"region": region, "point": "map", "estimator": estimator, "quantity": quantity}
            row = results.at_width(setup, width, **which)
            if row is None:
                continue
            about = {"estimator": estimator, "quantity": quantity}
            pairs = []
            for statistic in ("pearson", "spearman"):
                value = paper_value(setup.problem, statistic, **about)
                pairs += [interval_text(row, statistic), "-" if value is None else f"{value:.2f}"]
            rows.append((results.label(setup), str(width), name, _seeds(row), *pairs))
    return Table(
        "Correlation with MCMC at the largest width, beside the paper",
        ("problem", "width", "estimate", "seeds", "Pearson", "paper", "Spearman", "paper"),
        rows,
        f"Region {region}, point map; mean [95% interval over seeds]. seeds: those with a "
        "correlation / all; the others failed the gate or are undefined. aleatoric is p(1−p) "
        "against E[p(1−p)]; all else is against the variance, and null p(1−p) (in regression, "
        "distance to the nearest training input) is what an estimate has to beat. Paper "
        f"(isotropic: GN, laplace: LA, aleatoric; {UNKNOWN}): {SOURCE}, transcribed at second hand.",
    )


_TREND = (
    *("isotropic", "null_aleatoric", "null_squared", "null_distance", "logit_scaled"),
    "posterior_averaged",
)


def trend_table(results: Results) -> Table:
    """Tabulate whether correlations improve with width, by problem, point and region."""
    regions = results.values("region")
    chosen = [(estimator, point) for estimator in _TREND for point in results.values("point")]
    rows = []
    for setup in results.setups:
        for estimator, point in chosen:
            cells = []
            for region in regions:
                trend = results.trend(setup, region=region, point=point, estimator=estimator)
                if trend is None or trend.slope_mean is None:
                    cells.append("-")
                elif trend.low is None or trend.high is None:
                    cells.append(f"{trend.slope_mean:+.3f} {trend.verdict} (one seed)")
                else:
                    interval = f"[{trend.low:+.3f}, {trend.high:+.3f}]"
                    cells.append(f"{trend.slope_mean:+.3f} {interval} {trend.verdict}")
            if set(cells) != {"-"}:
                rows.append((results.label(setup), estimator, point, *cells))
    note = (
        "Mean change of the Pearson correlation per doubling of the width, over the widths where a "
        "seed passed, with its 95% interval over seeds. improves, declines: the interval excludes "
        "0. The trend says nothing about the shape of the curve between its ends."
    )
    if any(setup.parameterisation == "standard" for setup in results.setups):
        note += (
            " Under the standard parameterisation the function's prior variance grows with width, "
            "which confounds any trend."
        )
    return Table(
        "Trend with width", ("problem", "estimate", "point", *map(_region, regions)), rows, note
    )


def gate_table(results: Results) -> Table:
    """Tabulate diagnostics of the reference by problem and width, and why seeds failed."""
    at_map = results.rows.query(
        "point == 'map' and quantity == 'epistemic' and estimator == 'isotropic'"
    )
    losses = at_map.groupby(["setup", "width"], observed=True)["attenuation"].min()
    rows = []
    for (setup, width), cells in _by_width(results).items():
        gates = [cell.meta.get("gate") or {} for cell in cells]
        loss = losses.get((results.label(setup), width))
        rows.append((
            results.label(setup), str(width),
            f"{sum(cell.passed for cell in cells)} of {len(cells)}",
            _worst(gates, "rhat_max", max, "{:.4f}"),
            *(_worst(gates, f"ess_{kind}_min", min, "{:.0f}") for kind in ("bulk", "var", "tail")),
            _worst(gates, "ebfmi_min", min, "{:.2f}"),
            _worst(gates, "divergences", max, "{:.0f}"),
            _worst(gates, "var_mcse_median", max, "{:.1%}"),
            _worst(gates, "khat_max", max, "{:.2f}", "not checked"),
            _worst(gates, "log_density_error", max, "{:.1g}", "not checked"),
            _worst(gates, "modes_p_value", min, "{:.2g}", "not checked"),
            "-" if pd.isna(loss) else f"{loss:.3f}",
            _reasons(cells, gates),
        ))  # fmt: skip
    return Table(
        "Gate of the reference posterior",
        (
            "problem", "width", "passed", "largest R-hat", "least bulk ESS",
            "least ESS of variance", "least tail ESS", "least E-BFMI", "most divergences",
            "error of variance (median)", "largest Pareto k", "error of log posterior",
            "p of tempered run", "least attenuation", "failed because",
        ),
        rows,
        "Each number is the worst of the seeds over the monitored locations. error of variance: "
        "Monte Carlo standard error of the predictive variance over the variance. Pareto k: of the "
        "tail of (p - mean)²; where it is too large (0.7), rare draws decide about the variance, "
        "and that error is not to be trusted. Where that is so at more than a third of a region, "
        "its rows fail, and those of the others do not. passed: in all regions. error of log "
        "posterior: of its differences, against float64, nats. p of tempered run: of the agreement "
        "with tempered SMC. attenuation: factor by which that error can lower a Pearson "
        "correlation, least over regions and seeds.",
    )  # fmt: skip


def point_table(results: Results) -> Table:
    """Tabulate checks of the point estimates by problem and width."""
    rows = []
    for (setup, width), cells in _by_width(results).items():
        points = [cell.meta.get("points") or {} for cell in cells]
        for point in ordered(dict.fromkeys(p for of_cell in points for p in of_cell), POINT_WORDS):
            checks = [of_cell.get(point) or {} for of_cell in points]
            curvature = ordered(dict.fromkeys(c["laplace"] for c in checks if "laplace" in c), ())
            rows.append((
                results.label(setup), str(width), point,
                f"{sum(check.get('passed') is True for check in checks)} of {len(checks)}",
                _worst(checks, "rel_grad_norm", max, "{:.1e}"),
                _worst(checks, "hessian_min_eigenvalue", min, "{:.3g}"),
                ", ".join(map(str, curvature)) or "-",
                _reasons(cells, checks),
            ))  # fmt: skip
    return Table(
        "Checks of the point estimates",
        (
            "problem", "width", "point", "passed", "largest relative gradient norm",
            "least Hessian eigenvalue", "Laplace covariance from", "failed because",
        ),
        rows,
        "Each number is the worst of the seeds. Rows of a cell whose point estimate failed its "
        "check count as failed.",
    )  # fmt: skip


def level_table(results: Results) -> Table:
    """Tabulate the factor sigma^2 that makes an estimate's sum equal the reference's."""
    region = _main_region(results)
    estimators = results.shown("levels")
    curves = results.curves
    curves = curves[(curves["region"] == region) & (curves["quantity"] == "epistemic")]
    points = {name: point_of(name, "map") for name in estimators}
    curves = curves[curves["point"] == curves["estimator"].astype(object).map(points)]
    rows = []
    for (setup, width), group in curves.groupby(["setup", "width"], observed=True):
        cells = {
            r["estimator"]: interval_text(r, "slope", "{:.3g}") for r in group.to_dict("records")
        }
        rows.append((setup, str(width), *(cells.get(name, "-") for name in estimators)))
    return Table(
        "Level of the estimates",
        ("problem", "width", *estimators),
        rows,
        f"Sum of the MCMC variance over the sum of the estimate, region {region}, point map (or "
        "over the posterior). An estimate of level 1 needs no scaling; a level below 1 means that "
        "it overstates. Geometric mean [95% interval over seeds].",
    )


def aleatoric_table(results: Results) -> Table:
    """Tabulate the paper's aleatoric part and the corrected one at the largest width."""
    numbers = [
        (statistic, quantity, form)
        for statistic, form in (("pearson", "{:.2f}"), ("slope", "{:.3g}"))
        for quantity in ("aleatoric", "aleatoric_corrected")
    ]
    widest = {results.label(setup): max(results.widths(setup)) for setup in results.setups}
    curves = results.curves[results.curves["estimator"] == "isotropic"]
    curves = curves[curves["width"] == curves["setup"].astype(object).map(widest)]
    places = ["setup", "width", "point", "region"]
    rows = []
    for (setup, width, point, region), group in curves.groupby(places, observed=True):
        pair = {row["quantity"]: row for row in group.to_dict("records")}
        cells = [interval_text(pair[q], s, form) if q in pair else "-" for s, q, form in numbers]
        if set(cells) != {"-"}:
            rows.append((setup, str(width), point, region, *cells))
    return Table(
        "Aleatoric part: p(1−p), and p(1−p) less the isotropic estimate",
        (
            "problem", "width", "point", "region", "Pearson, aleatoric", "Pearson, corrected",
            "level, aleatoric", "level, corrected",
        ),
        rows,
        "The reference is MCMC's E[p(1−p)]. p(1−p) at a point approximates the total, so that "
        "adding the epistemic part counts it twice; the corrected part subtracts it at level 1. "
        "level: sum of the reference over sum of the estimate, undefined unless that sum is "
        "positive.",
    )  # fmt: skip


def predictive_table(results: Results) -> Table:
    """Tabulate the calibration of the point's and of MCMC's predictions, on labelled regions."""
    curves = results.curves[results.curves["quantity"] == "predictive"]
    rows = []
    for row in curves.sort_values(["setup", "point", "region", "width"]).to_dict("records"):
        cells = [
            interval_text(row, statistic) for statistic in ("nll", "mcmc_nll", "ece", "mcmc_ece")
        ]
        place = (row["setup"], str(row["width"]), row["point"], row["region"])
        rows.append((*place, _seeds(row), *cells))
    return Table(
        "Calibration of the predictions",
        ("problem", "width", "point", "region", "seeds", "NLL", "MCMC NLL", "ECE", "MCMC ECE"),
        rows,
        "Negative log likelihood in nats, expected calibration error of the predicted class (none "
        "for regression); mean [95% interval over seeds].",
    )


def undefined_table(results: Results) -> Table:
    """Tabulate correlations that are undefined in cells that passed, with their reasons."""
    undefined = results.rows.query("quantity == 'epistemic' and gate == 'pass' and pearson.isna()")
    undefined = undefined.replace({"reason": {"": "no reason given"}})
    places = ["setup", "point", "region", "estimator", "reason"]
    rows = []
    for (*place, reason), cells in undefined.groupby(places, observed=True):
        widths = ", ".join(map(str, sorted(set(cells["width"]))))
        rows.append((*place, widths, str(len(cells)), reason))
    return Table(
        "Undefined correlations",
        ("problem", "point", "region", "estimate", "widths", "cells", "reason"),
        rows,
        "Correlations of epistemic estimates with the MCMC variance in cells that passed the gate.",
    )


def estimate_table(results: Results) -> Table:
    """Say what each estimate of the run computes, in the order of the figures."""
    found = set(results.rows["estimator"]) if len(results.rows) else set()
    named = [(name, ESTIMATORS[name]) for name in estimator_names() if name in found]
    return Table(
        "What the estimates are",
        ("name", "in figures", "Var[p] is estimated by"),
        [
            (name, estimator.label or name, estimator.about)
            for name, estimator in named
            if estimator.about
        ],
        "θ is the vector of all parameters and p the prediction. A covariance Σ of θ reaches p through "
        "∂p/∂θ or, where outputs are Gaussian, through the distribution of the logits.",
    )


def cost_table(results: Results) -> Table:
    """Tabulate seconds by phase, summed over the cells of a problem."""
    phases = dict.fromkeys(p for cell in results.cells for p in cell.meta.get("seconds") or {})
    rows = []
    for setup in results.setups:
        cells = [cell.meta.get("seconds") or {} for cell in results.cells if cell.setup == setup]
        sums = [math.fsum(float(c.get(phase) or 0) for c in cells) for phase in phases]
        rows.append((results.label(setup), str(len(cells)), *(f"{s:.1f}" for s in sums)))
    return Table(
        "Seconds of computation",
        ("problem", "cells", *phases),
        rows if phases else [],
        "Sums over cells, compilation included; cells may have run side by side.",
    )


def summary_table(run: RunFolder | Results) -> str:
    """Write `paper_table` as plain text of at most 100 columns, which a run prints at its end.

    Raises
    ------
    ValueError
        If the run's results cannot be read.
    """
    results = Results.of(run)
    if results.rows.empty:
        return f"{results.run.path} holds no result rows yet.\n"
    table = paper_table(results)
    widths, right = (18, 5, 12, 5, 18, 5, 18, 5), (1, 3, 5, 7)

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    lines = [line(table.columns)]
    lines.append("-" * len(lines[0]))
    last = None
    for row in table.rows:
        shown = row if row[:2] != last else ("", "", *row[2:])  # each problem is named once
        last = row[:2]
        if len(shown[0]) > widths[0]:
            lines += textwrap.wrap(shown[0], 98)
            shown = ("", *shown[1:])
        lines.append(line(shown))
    return "\n".join([table.title, "", *lines, "", *textwrap.wrap(table.note, 98)]) + "\n"


def _main_region(results: Results) -> str:
    return next(iter(results.values("region")), "test")


def _region(name: str) -> str:
    return f"region {name}"


def _by_width(results: Results) -> dict[tuple[Setup, int], list[CellRecord]]:
    groups: dict[tuple[Setup, int], list[CellRecord]] = {}
    for cell in results.cells:
        groups.setdefault((cell.setup, cell.width), []).append(cell)
    return groups


def interval_text(row: Mapping[Hashable, Any], statistic: str, form: str = "{:.2f}") -> str:
    """Write mean [low, high], or why there is none."""
    mean, low, high = (row[f"{statistic}_{part}"] for part in ("mean", "low", "high"))
    if pd.isna(mean):
        passed = row["num_seeds"] + row["num_undefined"]
        return "undefined" if passed else "gate failed"
    if pd.isna(low):
        return form.format(mean)
    return f"{form.format(mean)} [{form.format(low)}, {form.format(high)}]"


def _seeds(row: Mapping[Hashable, Any]) -> str:
    total = row["num_seeds"] + row["num_undefined"] + row["num_failed_gate"]
    return f"{row['num_seeds']}/{total}"


def _worst(
    checks: Iterable[Mapping[str, Any]],
    name: str,
    worst: Callable[..., float],
    form: str,
    without: str = "-",
) -> str:
    values = [float(v) for check in checks if pd.notna(v := check.get(name))]
    return form.format(worst(values)) if values else without


def _reasons(cells: Sequence[CellRecord], checks: Sequence[Mapping[str, Any]]) -> str:
    seeds: dict[str, list[int]] = {}
    for cell, check in zip(cells, checks, strict=True):
        for reason in check.get("reasons") or ():
            seeds.setdefault(str(reason), []).append(cell.seed)
    return "; ".join(f"{why} (seed {_some(who)})" for why, who in seeds.items())


def _some(seeds: Sequence[int]) -> str:
    """Seeds as a list, of which no more are spelled than can be read."""
    shown = ", ".join(map(str, seeds[:_MOST_SEEDS]))
    more = len(seeds) - _MOST_SEEDS
    return f"{shown} and {more} more" if more > 0 else shown
