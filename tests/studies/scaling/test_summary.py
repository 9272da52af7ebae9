"""Intervals, summaries and trends over seeds: closed forms, coverage by simulation, bad rows."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from isounc.runs.folder import RunFolder
from isounc.statistics import Interval, interval_over_seeds, interval_over_strata, trend
from isounc.studies.scaling.comparisons import RESULT_COLUMNS
from isounc.studies.scaling.summary import KEY_COLUMNS, SUMMARY_COLUMNS, summarise


def result_row(seed, pearson=0.5, gate="pass", **changes):
    row = {
        **{"problem": "moons", "width": 16, "depth": 1, "activation": "tanh"},
        **{"parameterisation": "ntk", "prior_sd": 2.0, "seed": seed, "point": "map"},
        **{"region": "grid", "estimator": "isotropic", "quantity": "epistemic", "class": "1"},
        **{"pearson": pearson, "spearman": pearson, "log10_pearson": pearson, "slope": 2.0},
        "gate": gate,
    }
    return row | changes


def test_interval_of_correlations_is_student_t_on_fisher_z():
    values = [0.3, 0.6, 0.5, 0.9]
    z = np.arctanh(values)
    low, high = stats.t.interval(0.9, 3, loc=z.mean(), scale=stats.sem(z))
    given = interval_over_seeds(values, kind="correlation", level=0.9)
    expected = (np.tanh(z.mean()), np.tanh(low), np.tanh(high), 4)
    np.testing.assert_allclose(given, expected, rtol=1e-12)


def test_interval_of_means_and_of_levels():
    values = [0.5, 2.0, 8.0]
    low, high = stats.t.interval(0.95, 2, loc=3.5, scale=stats.sem(values))
    np.testing.assert_allclose(interval_over_seeds(values, kind="mean"), (3.5, low, high, 3))
    low, high = stats.t.interval(0.95, 2, loc=np.log(2), scale=stats.sem(np.log(values)))
    expected = (2.0, np.exp(low), np.exp(high), 3)
    np.testing.assert_allclose(interval_over_seeds(values, kind="log"), expected)


@pytest.mark.parametrize("kind", ["correlation", "mean", "log"])
def test_interval_of_none_one_and_equal_values(kind):
    assert interval_over_seeds([], kind=kind) == Interval(None, None, None, 0)
    assert interval_over_seeds([0.3], kind=kind) == Interval(0.3, None, None, 1)
    assert interval_over_seeds([0.3] * 4, kind=kind) == Interval(0.3, 0.3, 0.3, 4)


def test_seeds_in_a_mapping_or_a_table_are_no_values():
    """A mapping would give its keys, and a table its headings: here 0 and 1, correlations both."""
    by_seed = {0: 0.9, 1: 0.8}
    for call in (interval_over_seeds, lambda values: interval_over_strata([values])):
        with pytest.raises(TypeError, match="one a seed, got a mapping"):
            call(by_seed)
        with pytest.raises(ValueError, match=r"values must have shape \(N,\), got \(2, 2\)"):
            call(pd.DataFrame({0: [0.9, 0.8], 1: [0.7, 0.6]}))
    assert interval_over_seeds(pd.Series(by_seed)) == interval_over_seeds(by_seed.values())


def test_correlations_of_exactly_one():
    assert interval_over_seeds([1.0, 1.0]) == Interval(1.0, 1.0, 1.0, 2)
    mean, low, high, _ = interval_over_seeds([1.0, 0.9, 0.95])
    assert mean is not None
    assert low is not None
    assert high is not None
    assert 0.9 < mean < 1
    assert -1 < low < mean < high <= 1
    assert interval_over_seeds([-1.0, 1.0]).mean == 0
    assert interval_over_seeds([1.0, 1 - 1e-9]).mean == pytest.approx(1, abs=1e-8)


def test_order_of_seeds_does_not_change_a_bit():
    values = [0.1, 0.77, -0.3, 0.512]
    for kind in ("correlation", "mean"):
        orders = itertools.permutations(values)
        assert len({interval_over_seeds(order, kind=kind) for order in orders}) == 1


def test_levels_far_apart_do_not_overflow():
    given = interval_over_seeds([1e-100, 1e100], kind="log")
    assert given.mean == pytest.approx(1)
    assert (given.low, given.high) == (0.0, math.inf)


@pytest.mark.parametrize("kind", ["correlation", "log"])
def test_interval_covers_its_target_as_often_as_it_says(kind):
    rng = np.random.default_rng(0)
    centre, repeats = 0.7, 3000
    z = centre + 0.3 * rng.normal(size=(repeats, 4))
    values, target = (
        (np.tanh(z), np.tanh(centre)) if kind == "correlation" else (np.exp(z), np.exp(centre))
    )
    for level in (0.8, 0.95):
        intervals = [interval_over_seeds(row, kind=kind, level=level) for row in values]
        covered = np.mean([i.low <= target <= i.high for i in intervals])
        assert covered == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / repeats))


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ([0.1, math.nan], "correlation", r"must be in \[-1, 1\], got nan"),
        ([0.1, 1.1], "correlation", r"must be in \[-1, 1\], got 1.1"),
        ([0.1, math.inf], "mean", "must be finite, got inf"),
        ([0.1, 0.0], "log", "must be positive and finite, got 0.0"),
        ([0.1], "correlations", "correlation"),
    ],
)
def test_interval_refuses_what_does_not_fit(values, kind, message):
    with pytest.raises(ValueError, match=message):
        interval_over_seeds(values, kind=kind)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_interval_refuses_an_impossible_level(level):
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        interval_over_seeds([0.1, 0.2], level=level)


def test_summary_counts_and_averages():
    rows = [
        result_row(0, 0.4, slope=1.0),
        result_row(1, 0.6, slope=4.0),
        result_row(2, 0.99, gate="fail"),
        result_row(3, None, reason="estimate is constant", slope=2.0),
        result_row(0, 0.1, estimator="link_aware"),
    ]
    summary = summarise(rows)
    assert tuple(summary.columns) == SUMMARY_COLUMNS
    first, second = summary.to_dict("records")
    assert {column: first[column] for column in KEY_COLUMNS} == {
        column: rows[0][column] for column in KEY_COLUMNS
    }
    assert (first["num_seeds"], first["num_failed_gate"], first["num_undefined"]) == (2, 1, 1)
    expected = interval_over_seeds([0.4, 0.6])
    for name in ("pearson", "spearman", "log10_pearson"):
        assert (first[f"{name}_mean"], first[f"{name}_low"]) == (expected.mean, expected.low)
        assert first[f"{name}_high"] == expected.high
    assert first["slope_mean"] == pytest.approx(2.0)
    assert math.isnan(first["nll_mean"])
    assert (second["estimator"], second["pearson_mean"]) == ("link_aware", 0.1)
    assert math.isnan(second["pearson_low"])


def test_summary_of_a_group_that_never_passed():
    row = summarise([result_row(0, gate="fail"), result_row(1, gate="fail")]).loc[0]
    assert (row["num_seeds"], row["num_failed_gate"], row["num_undefined"]) == (0, 2, 0)
    assert math.isnan(row["pearson_mean"])
    assert math.isnan(row["slope_mean"])


def test_summary_of_predictive_rows_counts_by_likelihood():
    blank = {"spearman": None, "log10_pearson": None, "slope": None, "quantity": "predictive"}
    calibration = {"ece": 0.1, "mcmc_nll": 0.2, "mcmc_ece": 0.05}
    rows = [result_row(s, None, nll=0.3 + s, **calibration, **blank) for s in range(3)]
    (row,) = summarise(rows).to_dict("records")
    assert (row["num_seeds"], row["num_undefined"]) == (3, 0)
    assert (row["nll_mean"], row["ece_mean"]) == (pytest.approx(1.3), 0.1)
    assert row["nll_low"] < 1.3 < row["nll_high"]
    assert math.isnan(row["pearson_mean"])


def test_summary_of_a_table_is_that_of_its_rows(tmp_path):
    rows = [result_row(0, 0.4), result_row(1, 0.6), result_row(2, None), result_row(0, width=8)]
    run = RunFolder.open(tmp_path, {})
    run.write_table("results.csv", rows, RESULT_COLUMNS)
    expected = summarise(rows)
    pd.testing.assert_frame_equal(summarise(run.results), expected, check_dtype=False)
    assert expected["num_undefined"].tolist() == [1, 0]


def test_summary_keeps_groups_in_order_whatever_the_order_of_seeds():
    names = ["rings", "moons", "xor"]
    rows = [result_row(s, 0.1 * s, problem=p) for p in names for s in range(4)]
    summary = summarise(rows)
    assert summary["problem"].tolist() == names
    by_seed = sorted(rows, key=lambda row: -row["seed"])
    pd.testing.assert_frame_equal(summarise(by_seed), summary, check_exact=True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([result_row(0), result_row(0)], "repeat a seed, got seed 0 again of problem=moons, width"),
        ([result_row(0, gate="maybe")], "gate must be 'pass' or 'fail', got {'maybe'}"),
        ([{"problem": "moons"}], "must have the columns problem, width.*got none of .*'width'"),
        ([result_row(0, math.inf)], "pearson of problem=moons"),
    ],
)
def test_summary_refuses_bad_rows(rows, message):
    with pytest.raises(ValueError, match=message):
        summarise(rows)


def test_trend_recovers_slopes_and_their_interval():
    widths = [2, 8, 16, 64]
    slopes = [0.05, 0.07, 0.03]
    values = {s: [0.1 * s + b * np.log2(w) for w in widths] for s, b in enumerate(slopes)}
    given = trend(widths, values)
    expected = interval_over_seeds(slopes, kind="mean")
    np.testing.assert_allclose(given[:4], expected, rtol=1e-9)
    assert given.verdict == "improves"
    down = trend(widths, [[-v for v in row] for row in values.values()])
    assert down.verdict == "declines"
    mirrored = -np.array([given.slope_mean, given.high, given.low])
    np.testing.assert_allclose(down[:3], mirrored)


def test_trend_is_least_squares():
    widths, values = [1, 2, 8, 32], [0.2, 0.5, 0.4, 0.6]
    expected = stats.linregress(np.log2(widths), values).slope
    given = trend(widths, [values])
    assert given.slope_mean == pytest.approx(expected, rel=1e-12)
    assert (given.low, given.high, given.num_seeds) == (None, None, 1)
    assert given.verdict == "undecided"


def test_trend_with_undefined_values():
    given = trend([2, 4, 8], {"a": [0.1, None, 0.3], "b": [None, 0.2, None], "c": [0.1, 0.2, 0.3]})
    assert given.num_seeds == 2
    assert given.slope_mean == pytest.approx(0.1)
    nothing = trend([2, 4], {0: [None, None]})
    assert nothing == (None, None, None, 0, "undecided")


def test_no_trend_where_nothing_changes_or_seeds_disagree():
    assert trend([2, 4, 8], [[0.9] * 3, [0.8] * 3]).verdict == "undecided"
    assert trend([2, 4], [[0.1, 0.9], [0.9, 0.1], [0.2, 0.3]]).verdict == "undecided"


@pytest.mark.parametrize(
    ("widths", "values", "message"),
    [
        ([2, 2], [[0.1, 0.2]], "widths must be positive, at least two different"),
        ([0, 2], [[0.1, 0.2]], "widths must be positive"),
        ([2, 4], [[0.1, 0.2, 0.3]], "must have a value for each of 2 widths"),
        ([2, 4], [[0.1, math.nan]], "must be finite, or None"),
    ],
)
def test_trend_refuses_what_does_not_fit(widths, values, message):
    with pytest.raises(ValueError, match=message):
        trend(widths, values)
