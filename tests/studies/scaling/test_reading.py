"""The reading of a run has the numbers of its tables, says what they mean, and no more."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from isounc.runs.folder import RunFolder
from isounc.runs.publish import reading_page
from isounc.runs.study import settings_of_run
from isounc.studies import load
from isounc.studies.scaling import tables
from isounc.studies.scaling.reading import Number, mean_over, reading
from isounc.studies.scaling.results import Results

RESULTS = Path(__file__).parents[3] / "results"
KINDS = [
    *(("map", "isotropic"), ("map", "laplace"), ("trained", "isotropic"), ("draw", "isotropic")),
    ("posterior", "posterior_averaged"),
]
"""Points, and estimators there."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return RunFolder.open(tmp_path_factory.mktemp("reading") / "run", {}, study="scaling")


@pytest.fixture(scope="module")
def all_rows():
    """Rows of three problems, of which some cells failed and one estimate is constant."""
    rng = np.random.default_rng(0)
    sides = [("xor", "1"), ("rings3", "trace"), ("linear_regression", "f")]
    rows = []
    for (problem, name), width, seed, region, (point, estimator) in itertools.product(
        sides, (2, 8, 32), (0, 1, 2), ("test", "grid", "far"), KINDS
    ):
        failed = (problem, width, seed) in [("xor", 2, 0), ("xor", 2, 2), ("rings3", 32, 1)]
        constant = problem == "xor" and width == 32 and (point, estimator) == KINDS[0]
        rows.append({
            "problem": problem, "width": width, "depth": 1, "activation": "tanh",
            "parameterisation": "ntk", "prior_sd": 2.0, "seed": seed, "point": point,
            "region": region, "estimator": estimator, "quantity": "epistemic", "class": name,
            "gate": "fail" if failed else "pass",
            "pearson": np.nan if constant else np.tanh(0.5 + 0.4 * rng.normal()),
        })  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def rows(all_rows):
    return all_rows[all_rows["region"] == "test"]


def say(run, rows, **settings):
    stand_in = RunFolder(run.path, run.settings | settings, writable=False)
    return reading(Results(stand_in, rows, {}, "changed rows"))


def test_a_cell_may_pass_in_some_regions(run, all_rows):
    """Rows of a region that failed are in no number, and the others are."""
    rings = all_rows.query("problem == 'rings3'")
    gate, *others = reading(Results(run, rings, {}, "rows"))
    changed = rings.copy()
    far = changed.eval("width == 32 and seed != 0 and region == 'far'")
    changed.loc[far, "gate"] = "fail"
    now, *of_changed = reading(Results(run, changed, {}, "changed rows"))
    failed = "1 failed and is in no number below: rings3 at width 32 (1 seed)"
    assert gate == f"8 of 9 cells passed the gate of their reference; {failed}."
    assert now == (
        f"7 of 9 cells passed the gate of their reference; {failed}; 1 passed but for regions in which "
        "rare draws decide about the variance, and which are in no number below: rings3 at width 32, "
        "far (1 seed)."
    )
    assert of_changed[:2] == others[:2] and of_changed[2] != others[2]


def test_one_problem_has_the_numbers_of_its_tables(run, all_rows):
    results = Results(run, all_rows.query("problem == 'rings3'"), {}, "one problem")
    gate, test, grid, far, points = reading(results)
    assert gate.startswith("8 of 9 cells passed") and "rings3 at width 32 (1 seed)" in gate
    by_point = {row[2]: row for row in tables.trend_table(results).rows if row[1] == "isotropic"}
    columns = tables.trend_table(results).columns
    for region, sentence in (("test", test), ("grid", grid), ("far", far)):
        told = by_point["map"][columns.index(f"region {region}")]
        number, _, verdict = told.rpartition(" ")
        assert f"changes by {number} per doubling." in sentence
        assert f"at the MAP {verdict} with" in sentence or verdict == "undecided"
        for estimator, words in (("isotropic", "32, it is {}"), ("laplace", "{} for Laplace")):
            which = {"region": region, "point": "map", "estimator": estimator}
            row = results.at_width(results.setups[0], 32, **which)
            assert row is not None
            assert words.format(tables.interval_text(row, "pearson")) in sentence
    for point, word in (("trained", "trained network"), ("draw", "posterior draw")):
        number, _, _ = by_point[point][columns.index("region test")].rpartition(" ")
        assert f"{number} per doubling" in points.partition(word)[2]


def test_a_mean_over_problems_is_student_s():
    """Equal errors: their squares add up, and so do the degrees of freedom."""
    numbers = [(Number(m, m - 0.3, m + 0.3), 5) for m in (0.1, -0.2, 0.4)]
    se = 0.3 / stats.t.ppf(0.975, 4) / math.sqrt(3)
    reach = stats.t.ppf(0.975, 12) * se
    assert mean_over(numbers, correlations=False) == pytest.approx((0.1, 0.1 - reach, 0.1 + reach))
    assert mean_over(numbers[:1], correlations=True) is numbers[0][0]
    one_seed = (Number(0.7, None, None), 1)
    assert mean_over([*numbers, one_seed], correlations=False) == Number(0.25, None, None)
    same = [(Number(0.5, 0.5, 0.5), 2)] * 2
    assert mean_over(same, correlations=True) == pytest.approx((0.5, 0.5, 0.5))
    exact = [(Number(1.0, 0.9, 1.0), 3), (Number(-1.0, -1.0, -0.9), 3)]
    mean, low, high = mean_over(exact, correlations=True)
    assert low is not None and high is not None
    assert mean == pytest.approx(0) and -1 <= low < 0 < high <= 1


def test_an_interval_over_problems_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, sds, count = np.array([0.0, 0.5, 1.0]), np.array([0.05, 0.2, 0.4]), 5
    held = 0
    for _ in range(600):
        seeds = truth + sds * rng.normal(size=(count, 3))
        half = stats.t.ppf(0.975, count - 1) * seeds.std(0, ddof=1) / math.sqrt(count)
        means = seeds.mean(0)
        numbers = [(Number(m, m - h, m + h), count) for m, h in zip(means, half, strict=True)]
        _, low, high = mean_over(numbers, correlations=False)
        assert low is not None and high is not None
        held += low <= truth.mean() <= high
    assert 0.92 < held / 600 < 0.98  # three standard errors, and Welch's approximation


def test_verdicts_are_those_of_the_numbers(run, rows):
    changed = rows.eval("estimator == 'isotropic' and quantity == 'epistemic'")
    rising = rows["problem"] != "xor"
    for sign, word in ((1, "improves"), (-1, "declines")):
        slopes = sign * np.where(rising, 0.10, 0.02)
        pearson = 0.05 * sign + slopes * np.log2(rows["width"]) + 0.001 * rows["seed"]
        new = rows.assign(pearson=rows["pearson"].mask(changed, pearson), gate="pass")
        gate, test, *_ = say(run, new)
        assert gate == "27 of 27 cells passed the gate of their reference."
        assert f"at the MAP {word} with width" in test
        assert f"{word}: xor {sign * 0.02:+.3f}" in test and f"rings3 {sign * 0.1:+.3f}" in test
        assert f"by {sign * 0.22 / 3:+.3f} [" in test and "mean of 3 problems" in test


def test_others_stand_beside_by_name_and_where_they_are(run, rows):
    for name, words in (("null_aleatoric", "p(1−p)"), ("logit_scaled", "logit-scaled")):
        assert words not in " ".join(say(run, rows))
        more = rows[rows["estimator"] == "laplace"].assign(estimator=name)
        assert f" for {words}" in say(run, _with(rows, more))[1]
        at_rings3 = more[more["problem"] == "rings3"]
        assert f" for {words} (of rings3 alone)" in say(run, _with(rows, at_rings3))[1]


def _with(rows, more):
    return pd.concat([rows, more], ignore_index=True)


def test_what_is_missing_is_said(run, rows):
    failed = say(run, rows.assign(gate="fail"))
    assert failed[0].startswith("0 of 27 cells passed") and "27 failed" in failed[0]
    assert failed[1].endswith(
        "at the MAP has no correlation at the largest width: the cells failed the gate, or it is "
        "undefined."
    )
    narrow = say(run, rows.query("width == 8"))[1]
    assert "per doubling" not in narrow and "at the largest width, 8" in narrow
    one = say(run, rows.query("seed == 1 and problem == 'rings3' and width < 32"))[1]
    assert one.count("(one seed)") >= 2 and "[" not in one
    two = say(run, rows.query("seed < 2"))
    assert "over two seeds" in two[1] and "over two seeds" not in " ".join(say(run, rows))
    no_xor = say(run, rows)[1]  # whose estimate is constant at width 32
    assert "; xor has no value there." in no_xor
    nothing = RunFolder(run.path, {}, writable=False)
    assert reading(Results(nothing, rows.iloc[:0], {}, "nothing")) == ()


def test_cells_that_were_sampled_again_are_counted(run, rows):
    again = (rows["problem"] == "rings3") & (rows["seed"] == 0)
    new = rows.assign(gate="pass", sampler=np.where(again, "tempered_smc", "hmc"))
    gate = say(run, new, sampling={"sampler": "hmc"})[0]
    assert "(3 of these failed at first and were sampled again by tempered_smc)" in gate
    untold = say(run, new.drop(columns="sampler"), sampling={"sampler": "hmc"})[0]
    assert untold == "27 of 27 cells passed the gate of their reference."


# A smaller publication of the same study is always made again; these only where time is no matter.
# The world's large table is read again by the test of that study, from a smaller run.
LARGER = {
    "standard", "covariance", "covariance/standard", "spectrum/standard",
    "spectrum/standard_parameterisation", "world", "protocols", "paper",
}  # fmt: skip
PUBLISHED = [
    pytest.param(path, id=name)
    for path in sorted(RESULTS.rglob("reading.md"))
    if (name := path.parent.relative_to(RESULTS).as_posix()) not in LARGER
    or os.environ.get("ISOUNC_SLOW")
]


@pytest.mark.parametrize("path", PUBLISHED)
def test_a_published_reading_is_that_of_its_tables(path):
    run = RunFolder.load(path.parent)
    study = load(run.study or "scaling")  # a run from before version 0.1 does not say
    report = study.report(run, settings_of_run(study, run))
    assert report.reading
    assert path.read_text() == reading_page(path.parent.name, study, report)
