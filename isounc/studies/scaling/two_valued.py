"""Where references are nearly two-valued, and what correlations are without those locations.

Far from the data a wide prior saturates the units of a network, and every posterior draw of p is
close to 0 or 1 there (`isounc.two_valued`). The variance is then p̄(1−p̄), a function of the mean.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from isounc.runs.page import Section, Table
from isounc.studies.scaling.results import Results, point_of
from isounc.studies.scaling.tables import interval_text

_EXPLAINED = (
    "The variance of a label under the averaged prediction is p̄(1−p̄) = Var p + E[p(1−p)]. At a "
    "nearly two-valued location more than half of it is Var p: the posterior draws disagree about "
    "the label, and most are sure of it. In the limit each draw is 0 or 1, Var p is p̄(1−p̄), and a "
    "correlation with it is one with the mean."
)


def two_valued_words(results: Results) -> tuple[str, ...]:
    """Say how many locations are nearly two-valued; nothing for runs that do not know."""
    shares = results.curves.dropna(subset="two_valued_share_mean")
    if shares.empty:
        return ()
    row = max(shares.to_dict("records"), key=lambda row: row["two_valued_share_mean"])
    if row["two_valued_share_mean"] == 0:
        return ("No location of a cell that passed is nearly two-valued, Var p > ½ p̄(1−p̄).",)
    return (
        f"Up to {row['two_valued_share_mean']:.0%} of the locations of a region are nearly "
        f"two-valued, Var p > ½ p̄(1−p̄): {row['setup']}, width {row['width']}, region "
        f"{row['region']}. A section below shows correlations without them.",
    )


def two_valued_section(results: Results) -> Section:
    """The tables of this module, which are empty where no location is nearly two-valued."""
    tables = (share_table(results), without_table(results))
    return Section("two-valued", "Nearly two-valued predictions", (_EXPLAINED,), (), tables)


def share_table(results: Results) -> Table:
    """Tabulate the share of nearly two-valued locations by problem, width and region."""
    curves = results.curves[results.curves["quantity"] == "epistemic"]
    known = curves.dropna(subset="two_valued_share_mean")["setup"].unique()
    # Each estimate has the same reference, but a point that failed its check has fewer seeds.
    curves = curves[curves["setup"].isin(known)].sort_values("two_valued_share_mean")
    curves = curves.assign(passed=curves["num_seeds"] + curves["num_undefined"])
    curves = curves.sort_values("passed", ascending=False, kind="stable")
    curves = curves.drop_duplicates(["setup", "width", "region"])
    regions = results.values("region") if (curves["two_valued_share_mean"] > 0).any() else []
    rows = []
    for (setup, width), group in curves.groupby(["setup", "width"], observed=True):
        cells = {row["region"]: _share_text(row) for row in group.to_dict("records")}
        rows.append((setup, str(width), *(cells.get(region, "-") for region in regions)))
    return Table(
        "Share of nearly two-valued locations",
        ("problem", "width", *(f"region {region}" for region in regions)),
        rows if regions else [],
        "Mean [95% interval over seeds] of the cells that passed the gate, for three classes or "
        "more by sums over classes. undecided: the share of the locations at which Var p and "
        "E[p(1−p)] differ by less than a Monte Carlo standard error. Undefined for regression, "
        "whose mean has no bounds.",
    )


def without_table(results: Results) -> Table:
    """Tabulate correlations over all locations, and over those that are not nearly two-valued."""
    widest = {results.label(setup): max(results.widths(setup)) for setup in results.setups}
    curves = results.curves[results.curves["quantity"] == "epistemic"]
    curves = curves[curves["two_valued_share_mean"] > 0]
    curves = curves[curves["width"] == curves["setup"].astype(object).map(widest)]
    points = {name: point_of(name, "map") for name in results.shown("levels")}
    main = curves["estimator"].astype(object).map(points) == curves["point"].astype(object)
    curves = curves[main | (curves["estimator"] == "isotropic")]
    place = ["setup", "width", "region", "point", "estimator"]
    passed = results.rows.query("quantity == 'epistemic' and gate == 'pass'")
    both = passed.groupby(place, observed=True)["pearson_from_two_valued"].agg(["count", "size"])
    seeds = {where: f"{count} of {size}" for where, count, size in both.itertuples(name=None)}
    rows = []
    for row in curves.sort_values(place).to_dict("records"):
        numbers = []
        for statistic in ("pearson", "spearman"):
            numbers += [
                interval_text(row, statistic),
                interval_text(row, f"{statistic}_not_two_valued"),
                interval_text(row, f"{statistic}_from_two_valued", "{:+.2f}"),
            ]
        where = tuple(row[column] for column in place)
        left = f"{row['n_points_not_two_valued_mean']:.0f}"
        rows.append((*map(str, where), left, seeds[where], *numbers))
    return Table(
        "Correlations without the nearly two-valued locations",
        (
            "problem", "width", "region", "point", "estimate", "locations left", "seeds",
            "Pearson", "without", "difference", "Spearman", "without", "difference",
        ),
        rows,
        "Epistemic estimates with the MCMC variance at the largest width, in regions that have "
        "such locations. without: over the locations left. difference: what the correlation owes "
        "to the nearly two-valued locations and to their contrast with the others, seed by seed. "
        "seeds: those in which both are defined, of those that passed. Mean [95% interval over "
        "seeds]. results.csv has every class, quantity and measure, and "
        "the reasons of undefined ones (reason_not_two_valued).",
    )  # fmt: skip


def _share_text(row: Mapping[Hashable, Any]) -> str:
    mean, low, high = (row[f"two_valued_share_{part}"] for part in ("mean", "low", "high"))
    if pd.isna(mean):
        return "gate failed"
    interval = "" if pd.isna(low) else f" [{max(low, 0):.0%}, {min(high, 1):.0%}]"
    undecided = row["two_valued_undecided_mean"]
    return f"{mean:.0%}{interval}" + (f", {undecided:.1%} undecided" if undecided else "")
