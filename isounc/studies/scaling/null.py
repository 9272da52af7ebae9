"""What estimates say beyond the null baselines, which a forward pass gives for nothing.

For a binary model ||grad p||^2 = (p (1 - p))^2 ||grad f||^2, so that a correlation with the
posterior variance may come from the link alone. The nulls are p (1 - p) and its square, and in
regression, where these are constant, the distance to the nearest training input.
"""

from __future__ import annotations

from isounc.runs.page import Section, Table
from isounc.studies.scaling.results import Results, point_of
from isounc.studies.scaling.tables import interval_text

_EXPLAINED = (
    "For a binary model ‖∇p‖² = (p(1−p))² ‖∇f‖²: a correlation may come from p(1−p) alone, which a "
    "forward pass gives for nothing. null_aleatoric is p(1−p), null_squared (p(1−p))² (for C "
    "classes by the Jacobian of the softmax with a unit covariance of the logits), null_distance "
    "the same with the distance to the nearest training input as the variance of the logits, and "
    "in regression that distance itself, where the others are constant. A partial correlation is "
    "that of what regressions on p(1−p) at the point leave of estimate and MCMC variance: of their "
    "values (Pearson) or their ranks (Spearman)."
)
_STATISTICS = {
    "pearson": "Pearson correlation with the MCMC variance, beside the null",
    "partial_pearson": "Partial Pearson correlation, given p(1−p)",
    "spearman": "Spearman correlation with the MCMC variance, beside the null",
    "partial_spearman": "Partial Spearman correlation, given p(1−p)",
}


def null_section(results: Results) -> Section:
    """The tables of this module; they are empty for runs without null baselines."""
    known = any(name.startswith("null_") for name in results.values("estimator"))
    tables = tuple(beside_null_table(results, name) for name in _STATISTICS if known)
    return Section("null", "Beside the null", (_EXPLAINED,), (), tables)


def beside_null_table(results: Results, statistic: str) -> Table:
    """Tabulate a correlation at the largest width, by problem, region and point."""
    estimators = results.shown("curves")
    widest = {results.label(setup): max(results.widths(setup)) for setup in results.setups}
    curves = results.curves[results.curves["quantity"] == "epistemic"]
    curves = curves[curves["width"] == curves["setup"].astype(object).map(widest)]
    cells = {
        (row["setup"], row["region"], row["point"], row["estimator"]): interval_text(row, statistic)
        for row in curves.to_dict("records")
    }
    points = [point for point in results.values("point") if point != "posterior"]
    rows = []
    for setup, width in widest.items():
        for region in results.values("region"):
            for point in points:
                found = [
                    cells.get((setup, region, point_of(name, point), name), "-")
                    for name in estimators
                ]
                if set(found) != {"-"}:
                    rows.append((setup, str(width), region, point, *found))
    return Table(
        _STATISTICS[statistic],
        ("problem", "width", "region", "point", *estimators),
        rows,
        "Largest width, epistemic estimates; mean [95% interval over seeds]. posterior_averaged "
        "has no point, and p(1−p) averaged over the draws for its null. A partial correlation is "
        "undefined where p(1−p) is constant, as in regression, and for what follows from p(1−p); "
        "results.csv has the reasons, every class and every width.",
    )
