"""Nearly two-valued references: rows of a cell by hand, and what a report says of a run."""

from __future__ import annotations

import re

import numpy as np
import pytest

from isounc.estimates.estimators import Estimate
from isounc.runs.folder import RunFolder
from isounc.sampling.moments import Moments
from isounc.statistics import compare, interval_over_seeds
from isounc.studies.scaling import two_valued
from isounc.studies.scaling.comparisons import RESULT_COLUMNS, compare_classes
from isounc.studies.scaling.report import make_report
from isounc.studies.scaling.results import Results
from isounc.studies.scaling.settings import Settings
from isounc.studies.scaling.summary import SUMMARY_COLUMNS, summarise
from tests.studies.scaling.synthetic_run import FULL, write_run

RNG = np.random.default_rng(0)


def estimate_of(prob, epistemic):
    prob, epistemic = np.array(prob, float), np.array(epistemic, float)
    aleatoric = prob * (1 - prob)
    return Estimate(prob, epistemic, aleatoric, aleatoric, aleatoric - epistemic)


def moments_of(mean, share, se=0.0):
    """Moments of means (N, M), of whose label variance Var p is a share."""
    mean = np.array(mean, float)
    total, error = mean * (1 - mean), np.full(mean.shape, se)
    var = np.broadcast_to(np.array(share, float), mean.shape) * total
    return Moments(mean, error, var, error, total - var, error, *[np.zeros(len(mean))] * 3)


def test_rows_of_two_classes():
    mean = np.array([0.5, 0.4, 0.3, 0.2, 0.1, 0.5, 0.5])[:, None]
    share = np.array([0.1, 0.2, 0.3, 0.4, 0.1, 0.9, 0.55])[:, None]
    moments = moments_of(mean, share, se=0.01)
    estimate = estimate_of(mean, RNG.exponential(size=(7, 1)))
    (row,) = compare_classes(
        "bernoulli", [estimate], moments, "epistemic", per_class=True
    ).values()  # fmt: skip
    assert row["two_valued_share"] == pytest.approx(2 / 7)
    # Var p less half of the variance is .0125 at the last, .00675 at the fifth and so on, against
    # errors of .02 in Var p less the rest, which is twice that.
    differences = np.abs(2 * moments.var - mean * (1 - mean))
    assert row["two_valued_undecided"] == pytest.approx((differences < 0.02).mean())
    left = compare(estimate.epistemic[:5, 0], moments.var[:5, 0])
    assert row["n_points_not_two_valued"] == 5
    for name in ("pearson", "spearman", "log10_pearson", "slope"):
        assert row[f"{name}_not_two_valued"] == getattr(left, name)
    for name in ("pearson", "spearman"):
        assert row[f"{name}_from_two_valued"] == row[name] - getattr(left, name)
    assert set(row) <= set(RESULT_COLUMNS)
    # The variance of a Laplace approximation about a saddle is NaN: that is a reason, not an end.
    nowhere = estimate_of(mean, np.full((7, 1), np.nan))
    for quantity in ("epistemic", "epistemic_sd"):
        rows = compare_classes("bernoulli", [nowhere], moments, quantity, per_class=True)
        assert rows["1"]["pearson"] is rows["1"]["spearman"] is rows["1"]["slope"] is None
        assert "7 of 7 estimate values not finite" in rows["1"]["reason"]


def test_rows_without_a_location_left_give_the_reason():
    mean = RNG.uniform(0.2, 0.8, size=(6, 1))
    estimate = estimate_of(mean, RNG.exponential(size=(6, 1)))
    where = {"quantity": "epistemic", "per_class": True}
    everywhere = compare_classes("bernoulli", [estimate], moments_of(mean, 0.8), **where)["1"]
    assert everywhere["two_valued_share"] == 1
    assert everywhere["pearson"] is not None
    assert everywhere["pearson_not_two_valued"] is None
    assert "fewer than 3 points (0)" in everywhere["reason_not_two_valued"]
    assert "pearson_from_two_valued" not in everywhere
    # Its variance is a multiple of p(1-p).
    assert everywhere["reason"].startswith("partial Pearson undefined: given leaves nothing of the")
    nowhere = compare_classes("bernoulli", [estimate], moments_of(mean, 0.2), **where)["1"]
    assert (nowhere["two_valued_share"], nowhere["pearson_from_two_valued"]) == (0, 0)
    for name in ("n_points", "pearson", "spearman", "log10_pearson", "slope", "attenuation"):
        assert nowhere[f"{name}_not_two_valued"] == nowhere[name]


def test_rows_of_classes_follow_the_class_that_each_draw_predicts():
    mean = RNG.dirichlet(np.ones(3), size=40)
    moments = moments_of(mean, [0.8, 0.1, 0.3])
    flipped = mean[:, [1, 0, 2]]
    alternatives = [estimate_of(p, RNG.exponential(size=(40, 3))) for p in (mean, flipped)]
    rows = compare_classes("categorical", alternatives, moments, "epistemic", per_class=True)
    assert [rows[name]["two_valued_share"] for name in ("0", "1", "2")] == [1, 0, 0]
    shares = [(p.argmax(1) == 0).mean() for p in (mean, flipped)]
    assert 0 < shares[0] != shares[1] > 0
    assert rows["predicted"]["two_valued_share"] == pytest.approx(np.mean(shares))
    assert rows["predicted"]["n_points_not_two_valued"] == 40 * (1 - np.mean(shares))
    total = mean * (1 - mean)
    assert rows["trace"]["two_valued_share"] == pytest.approx(
        (moments.var.sum(1) > total.sum(1) / 2).mean()
    )
    left = moments.var.sum(1) <= total.sum(1) / 2
    expected = [compare(a.epistemic.sum(1)[left], moments.var.sum(1)[left]) for a in alternatives]
    found = rows["trace"]["spearman_not_two_valued"]
    assert found == pytest.approx(np.mean([c.spearman for c in expected]))
    of_all = rows["trace"]["spearman"]
    assert rows["trace"]["spearman_from_two_valued"] == pytest.approx(of_all - found)


def test_rows_of_a_regression_have_no_share():
    x = RNG.normal(size=(9, 1))
    estimate = Estimate(x, x**2, np.ones((9, 1)), 1 + x**2, np.ones((9, 1)))
    moments = moments_of(x, 0.0)._replace(var=x**2 + 5, aleatoric=np.ones((9, 1)))
    row = compare_classes("gaussian", [estimate], moments, "epistemic", per_class=True)["f"]
    assert row["pearson"] == pytest.approx(1)
    assert not [name for name in row if "two_valued" in name]


def test_summary_has_paired_differences():
    key = {
        "problem": "xor", "width": 2, "depth": 1, "activation": "tanh", "parameterisation": "ntk",
        "prior_sd": 10.0, "point": "map", "region": "far", "estimator": "isotropic",
        "quantity": "epistemic", "class": "1", "gate": "pass",
    }  # fmt: skip
    numbers = [(0.8, 0.5, 0.4), (0.6, 0.2, 0.2), (0.7, None, 1.0)]
    rows = [
        key | {
            "seed": seed, "pearson": r, "pearson_not_two_valued": left, "two_valued_share": share,
            "pearson_from_two_valued": None if left is None else r - left,
        }
        for seed, (r, left, share) in enumerate(numbers)
    ]  # fmt: skip
    (summary,) = summarise(rows).to_dict("records")
    for name, values in (
        ("two_valued_share", [0.4, 0.2, 1.0]), ("pearson_from_two_valued", [0.3, 0.4])
    ):  # fmt: skip
        expected = interval_over_seeds(values, kind="mean")[:3]
        assert [summary[f"{name}_{p}"] for p in ("mean", "low", "high")] == pytest.approx(expected)
    left = interval_over_seeds([0.5, 0.2]).mean
    assert summary["pearson_not_two_valued_mean"] == pytest.approx(left)
    assert summary["num_seeds"] == 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(
        tmp_path_factory.mktemp("two-valued") / "run", problems=("rings3", "nonlinear_regression"),
        widths=(2, 8), regions=("test", "far"), points=("map", "draw", "posterior"), failed=(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(run):
    return Results.of(run)


def cells(table, *start):
    """The cells of one row after its first ones."""
    (row,) = (row for row in table.rows if row[: len(start)] == start)
    return row[len(start) :]


def of_three(row, name, form):
    mean, low, high = (form.format(row[f"{name}_{part}"]) for part in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def test_share_table_has_every_classification_at_every_width(run, results):
    table = two_valued.share_table(results)
    assert table.columns == ("problem", "width", "region test", "region far")
    assert [row[:2] for row in table.rows] == [("rings3", "2"), ("rings3", "8")]
    values = run.results.query(
        "problem == 'rings3' and width == 8 and region == 'far' and estimator == 'isotropic' and "
        "quantity == 'epistemic' and point == 'map' and `class` == 'trace'"
    )["two_valued_share"]
    mean, low, high, _ = interval_over_seeds(values.tolist(), kind="mean")
    assert mean is not None
    assert low is not None
    assert high is not None
    assert 0.2 < mean < 0.8
    near, far = cells(table, "rings3", "8")
    assert near == "0% [0%, 0%], 10.0% undecided"
    assert far == f"{mean:.0%} [{max(low, 0):.0%}, {min(high, 1):.0%}], 10.0% undecided"
    rows = results.rows.assign(gate=results.rows["gate"].mask(results.rows["width"] == 8, "fail"))
    failed = two_valued.share_table(Results(run, rows, {}, "gates"))
    assert cells(failed, "rings3", "8") == ("gate failed", "gate failed")
    assert cells(failed, "rings3", "2") == cells(table, "rings3", "2")


def test_table_without_two_valued_locations_is_that_of_the_summary(results):
    table = two_valued.without_table(results)
    expected = {("map", estimator) for estimator in FULL if estimator in results.shown("levels")}
    expected |= {("draw", "isotropic"), ("posterior", "posterior_averaged")}
    assert {row[:5] for row in table.rows} == {("rings3", "8", "far", *e) for e in expected}
    setup = next(s for s in results.setups if s.problem == "rings3")
    row = results.at_width(setup, 8, region="far", point="map", estimator="laplace")
    assert row is not None
    numbers = [
        of_three(row, f"{statistic}{over}", form)
        for statistic in ("pearson", "spearman")
        for over, form in (
            ("", "{:.2f}"),
            ("_not_two_valued", "{:.2f}"),
            ("_from_two_valued", "{:+.2f}"),
        )
    ]
    left, seeds, *shown = cells(table, "rings3", "8", "far", "map", "laplace")
    assert shown == numbers
    assert seeds == "3 of 3"
    assert left == f"{50 * (1 - row['two_valued_share_mean']):.0f}"


def test_report_has_a_section_where_a_location_is_two_valued(run, results):
    report = make_report(run, Settings())
    section = next(s for s in report.sections([]) if s.key == "two-valued")
    assert all(table.rows for table in section.tables)
    (words,) = two_valued.two_valued_words(results)
    assert words in report.sections([])[0].text
    assert re.match(r"Up to \d+% of the locations .*: rings3, width [28], region far\.", words)
    near = Results(run, results.rows.query("region == 'test'"), {}, "one region")
    assert two_valued.two_valued_words(near) == (
        "No location of a cell that passed is nearly two-valued, Var p > ½ p̄(1−p̄).",
    )
    assert [table.rows for table in two_valued.two_valued_section(near).tables] == [[], []]


def test_report_of_a_run_that_does_not_know(run, tmp_path):
    """Records and tables from before there were such columns."""
    old = [column for column in RESULT_COLUMNS if "two_valued" not in column]
    table = RunFolder.open(tmp_path / "table", {}, study="scaling")
    table.write_table("results.csv", run.results[old], old)
    records = RunFolder.open(tmp_path / "records", {}, study="scaling")
    for record in run.records():
        rows = [{k: row[k] for k in row if k in old} for row in record.meta["rows"]]
        records.write(record._replace(meta=record.meta | {"rows": rows}))
    for folder in (table, records):
        report = make_report(folder, Settings())
        assert "two-valued" not in [section.key for section in report.sections([])]
        results = Results.of(folder)
        assert two_valued.two_valued_words(results) == ()
        assert results.curves["pearson_mean"].notna().any()
    summary = make_report(records, Settings()).tables["summary.csv"]
    assert tuple(summary.columns) == SUMMARY_COLUMNS
