"""Closed forms against simulation and enumeration; a broken promise is found; the command in small."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom, norm

from isounc.fields import Unreadable
from isounc.guard.certificate import METHODS
from isounc.guard.control import Promise, certified, quantile_thresholds
from isounc.runs import publish
from isounc.runs.command import main
from isounc.runs.folder import Record, RunFolder
from isounc.runs.study import run_study
from isounc.runs.style import NothingToDraw
from isounc.runs.tables import declared_rows
from isounc.studies.guard import cell as cells
from isounc.studies.guard import figures
from isounc.studies.guard.cell import draw_samples, pick
from isounc.studies.guard.reading import reading
from isounc.studies.guard.scenarios import SCENARIOS, Answers, Scenario, separation
from isounc.studies.guard.settings import Cell, Settings
from isounc.studies.guard.study import STUDY
from isounc.studies.guard.tables import ROW, Tables


def measure(cell, settings):
    return cells.measure(cell, *draw_samples([cell], settings), settings)


BINARY = Answers(0.8, 0.4, cuts=(0.0,))
"""A score of two values."""


@pytest.mark.parametrize("name", SCENARIOS)
def test_risk_and_coverage_are_those_of_a_large_sample(name):
    scenario = SCENARIOS[name]
    for answers in (scenario.calibration, scenario.shifted):
        if answers is None:
            continue
        answers = answers.of_target(0.1)
        n = 400_000
        scores, wrong = answers.draw(n, np.random.default_rng(3))
        for t in np.quantile(scores, [0.03, 0.2, 0.5, 0.9]):
            accepted = scores <= t
            coverage, risk = answers.coverage(np.array([t]))[0], answers.risk(np.array([t]))[0]
            assert abs(accepted.mean() - coverage) < 5 * math.sqrt(coverage / n)
            few = max(risk, 1e-3) / accepted.sum()
            assert abs(wrong[accepted].mean() - risk) < 5 * math.sqrt(few)


def test_the_auroc_is_that_of_the_name():
    scores, wrong = Answers(0.8, 0.5).draw(4000, np.random.default_rng(0))
    pairs = scores[wrong][:, None] > scores[~wrong][None]
    assert abs(pairs.mean() - 0.8) < 0.03
    assert separation(0.5) == 0 and separation(0.8) == pytest.approx(1.190233)


def test_the_best_threshold_is_the_largest_that_keeps_the_target():
    binormal = Answers(0.8)
    t = binormal.best(0.1)
    assert binormal.risk(np.array([t]))[0] == pytest.approx(0.1, abs=1e-9)
    wrong = 0.3 * norm.cdf(t - separation(0.8))
    assert wrong / (wrong + 0.7 * norm.cdf(t)) == pytest.approx(0.1, abs=1e-9)
    # Risk falls below the target, and rises above it again: the second crossing counts.
    hump = SCENARIOS["confident_errors"].calibration
    t = hump.best(0.1)
    around = hump.risk(np.array([-2.0, t - 0.1, t + 0.1]))
    assert around[0] > 0.1 and around[1] < 0.1 < around[2]
    assert Answers(0.8, 0.02).best(0.05) == np.inf and not Answers(0.8, 0.02).can_exceed(0.05)
    assert math.isnan(Answers(0.5).best(0.1)) and Answers(0.5).can_exceed(0.1)
    assert SCENARIOS["discrete"].calibration.best(0.1) == 1
    none = np.array([np.nan])
    assert binormal.coverage(none)[0] == 0 and np.isnan(binormal.risk(none)[0])


def enumerated(answers: Answers, n: int, target: float, method: str) -> float:
    """The probability of a violation, summed over all samples of n discrete answers."""
    levels = np.arange(len(answers.cuts) + 1.0)
    ends = np.array([-np.inf, *answers.cuts, np.inf])
    right = (1 - answers.error) * np.diff(norm.cdf(ends))
    wrong = answers.error * np.diff(norm.cdf(ends - separation(answers.auroc)))
    chances = {(level, bad): p for bad, parts in ((False, right), (True, wrong))
               for level, p in zip(levels, parts, strict=True)}  # fmt: skip
    risk = np.cumsum(wrong) / np.cumsum(wrong + right)
    total = 0.0
    # Samples in another order are the same one.
    for sample in itertools.combinations_with_replacement(chances, n):
        chosen = None
        if method == "plug_in":
            for level in levels:
                accepted = [bad for score, bad in sample if score <= level]
                if accepted and sum(accepted) <= target * len(accepted):
                    chosen = level
        else:
            chosen = certified_by(method, *zip(*sample, strict=True), target)
        if chosen is not None and risk[int(chosen)] > target:
            orders = math.factorial(n)
            for count in Counter(sample).values():
                orders //= math.factorial(count)
            total += orders * math.prod(chances[answer] for answer in sample)
    return total


def certified_by(method: str, scores, bad, target: float) -> float | None:
    promise = Promise(target, None, 0.9, method)
    certainty, correct = -np.array(scores), ~np.array(bad)
    tried = quantile_thresholds(certainty, promise)
    valid = certified(certainty, correct, tried, promise) if len(tried) else tried
    return -valid.min() if len(valid) else None


@pytest.mark.parametrize("method", ["plug_in", "fixed_sequence", "holm"])
def test_violations_are_those_of_enumeration(method, monkeypatch):
    monkeypatch.setitem(SCENARIOS, "discrete", Scenario("two values", BINARY))
    target, repetitions = 0.35, 3000
    settings = Settings(num_repetitions=repetitions, num_checked=0)
    rows = measure(Cell("discrete", 10, target), settings)
    row = next(row for row in rows if row["method"] == method)
    p = enumerated(BINARY, 10, target, method)
    assert p > 0.03  # something is there to be found
    assert abs(row["num_violations"] / repetitions - p) < 4 * math.sqrt(p * (1 - p) / repetitions)


@pytest.mark.parametrize("name", ["auroc_90", "ties", "discrete", "confident_errors"])
def test_samples_together_are_as_guards_one_by_one(name):
    settings = Settings(num_repetitions=6, num_checked=6, given_grids=(name,))
    rows = measure(Cell(name, 150, 0.15), settings)
    assert len(rows) == 7
    for row in rows:
        assert row["num_checked"] == (0 if row["method"] == "plug_in" else 6)
        assert row["num_unlike"] == 0


def test_a_guard_unlike_the_library_s_is_counted(monkeypatch):
    monkeypatch.setattr(cells, "pick", lambda thresholds, *_: thresholds[:, -1])
    settings = Settings(num_repetitions=3, num_checked=3)
    rows = measure(Cell("auroc_70", 100, 0.1), settings)
    assert sum(row["num_unlike"] for row in rows) == 3 * len(METHODS)


def test_methods_by_hand():
    thresholds = np.array([[1.0, 2, 2, 3, 4]])
    p_values = np.array([[0.02, 0.03, 0.03, 0.2, 0.04]])
    found = {method: pick(thresholds, p_values, method, 0.1)[0] for method in METHODS}
    # Four distinct ones: Holm rejects .02 <= .1 / 4 and .03 <= .1 / 3, and .04 <= .1 / 2.
    assert found == {"fixed_sequence": 2, "bonferroni": 1, "holm": 4}
    assert np.isnan(pick(thresholds, 10 * p_values, "holm", 0.1))
    assert np.isnan(pick(thresholds[:, :0], p_values[:, :0], "holm", 0.1))


@pytest.mark.parametrize("name", ["ties", "no_slack"])
def test_numbers_depend_on_the_cell_alone(name):
    settings = Settings(num_repetitions=40, num_checked=0)
    group = [Cell(name, 60, target) for target in (0.1, 0.2)]
    together = [
        cells.measure(c, s, settings)
        for c, s in zip(group, draw_samples(group, settings), strict=True)
    ]
    assert together == [measure(cell, settings) for cell in group]
    assert together[0] != together[1]
    assert Cell(name, 60, 0.2).seed != Cell(name, 61, 0.2).seed


def test_coverage_is_paired_and_beside_the_best():
    rows = measure(Cell("auroc_95", 200, 0.1), Settings(num_repetitions=50, num_checked=0))
    by_method = {row["method"]: row for row in rows}
    holm, sequence = by_method["holm"], by_method["fixed_sequence"]
    assert holm["gain_mean"] == pytest.approx(sequence["coverage_mean"] - holm["coverage_mean"])
    assert 0 < holm["gain_se"] < math.hypot(holm["coverage_se"], sequence["coverage_se"])
    assert sequence["gain_mean"] == 0
    assert 0.6 < holm["best_coverage"] < 0.8
    # Accepted is what is judged: after a shift other answers are.
    moved = measure(Cell("more_errors", 1000, 0.1), Settings(num_repetitions=50, num_checked=0))
    plug_in = next(row for row in moved if row["method"] == "plug_in")
    assert plug_in["is_shifted"] and plug_in["num_violations"] > 45


def made_up(violations, method="fixed_sequence", total=1000, **changes):
    rows = []
    for n, count in zip((50, 100, 200, 500), violations, strict=True):
        rows.append({
            "scenario": "auroc_80", "n": n, "target": 0.1, "confidence": 0.9,
            "grid": "scores" if method == "plug_in" else "quantiles", "method": method,
            "is_shifted": False, "can_exceed": True, "num_repetitions": total,
            "num_violations": count, "num_without": 100, "num_checked": 1, "num_unlike": 0,
            "risk_mean": 0.09, "risk_se": 0.001, "excess_mean": 0.02, "coverage_mean": 0.3,
            "coverage_se": 0.01, "gain_mean": 0.0, "gain_se": 0.0, "best_coverage": 0.4,
        } | changes)  # fmt: skip
    return rows


def test_verdicts_are_those_of_the_rule():
    kept, near, broken = (made_up(v, method) for v, method in (
        ([10, 20, 0, 70], "holm"), ([10, 95, 0, 121], "bonferroni"), ([10, 20, 0, 160], "fixed_sequence"),
    ))  # fmt: skip
    tables = Tables.of(kept + near + broken)
    said = {row["method"]: row for row in tables.verdicts}
    assert [said[m]["verdict"] for m in ("holm", "bonferroni", "fixed_sequence")] == [
        "confirmed", "undecided", "refuted",
    ]  # fmt: skip
    # One interval above the nominal rate is no refutation: chance does that, too.
    row = said["bonferroni"]
    assert (row["confirmed"], row["undecided"], row["refuted"]) == (2, 1, 1)
    assert (row["num_answering"], row["confirmed_answering"], row["num_silent"]) == (4, 2, 0)
    assert row["p_adjusted"] == pytest.approx(11 * binom.sf(120, 1000, 0.1))
    assert said["fixed_sequence"]["p_adjusted"] == pytest.approx(12 * binom.sf(159, 1000, 0.1))
    line = tables.found(method="holm", n=50)[0]
    assert line["high"] == pytest.approx(0.018319, abs=1e-5)  # Clopper-Pearson, 10 of 1000
    assert line["of_best"] == pytest.approx(0.75)
    sentences = reading(tables)
    assert "Guard.fit has the same threshold in 12 of 12 samples that it saw." in sentences
    text = " ".join(sentences)
    assert "Holm, quantiles of the sample: confirmed." in text and "0.160 [0.138, 0.184]" in text


def test_what_cannot_be_broken_or_is_not_promised_does_not_count():
    for changes in ({"can_exceed": False}, {"is_shifted": True}, {"method": "plug_in"}):
        tables = Tables.of(made_up([500] * 4, **changes))
        assert not tables.verdicts and tables.summary[0]["p_adjusted"] is None
        assert tables.summary[0]["rate"] == 0.5
    plug_in = reading(Tables.of(made_up([500] * 4, "plug_in")))
    assert any(
        "in 4 of 4 of these cells, with a mean rate of 0.50, 40 points" in s for s in plug_in
    )


def test_without_a_signal_the_first_threshold_decides():
    """Whatever is accepted breaks the promise: the rate is the chance that the first test rejects."""
    target, repetitions = 0.1, 1000
    rows = measure(
        Cell("no_slack", 300, target), Settings(num_repetitions=repetitions, num_checked=0)
    )
    row = next(row for row in rows if row["method"] == "fixed_sequence")
    k = cells._ranks(300, target, 0.9)[0]
    most = np.flatnonzero(binom.cdf(np.arange(k), k, target) <= 0.1)[-1]
    p = binom.cdf(most, k, 1.001 * target)
    assert 0.09 < p < 0.1
    assert abs(row["num_violations"] / repetitions - p) < 4 * math.sqrt(p * (1 - p) / repetitions)


def test_a_planted_method_that_breaks_the_promise_is_refuted(monkeypatch):
    planted = cells.pick
    monkeypatch.setattr(cells, "pick", lambda t, p, m, delta: planted(t, p, m, 2.5 * delta))
    settings = Settings(num_repetitions=300, num_checked=0, given_grids=())
    rows = measure(Cell("no_slack", 200, 0.1), settings)
    said = {row["method"]: row["verdict"] for row in Tables.of(rows).verdicts}
    assert said["fixed_sequence"] == "refuted"


TINY = Settings(
    scenarios=("auroc_80", "auroc_90", "few_errors"), sample_sizes=(30, 60),
    targets=(0.1,), num_repetitions=20, given_grids=("auroc_80",), num_checked=1, cache="",
    figures="shown",
)  # fmt: skip


def test_the_command_in_small(tmp_path, capsys):
    settings = dataclasses.replace(TINY, out=str(tmp_path / "run"))
    assert run_study(STUDY, settings)
    folder = RunFolder.load(tmp_path / "run")
    said = capsys.readouterr().out
    assert "The run has 6 of 6 cells." in said
    table = folder.results
    assert len(table) == 2 * (7 + 2 * 4)
    assert set(table["grid"]) == {"scores", "quantiles", "given"}
    counts = folder.summary.query("counts")
    assert set(counts["scenario"]) == {"auroc_80", "auroc_90"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<img") == 3 and "best possible" in page
    before = (tmp_path / "run" / "results.csv").read_bytes()
    assert run_study(STUDY, settings), "nothing is computed again"
    assert (tmp_path / "run" / "results.csv").read_bytes() == before
    # What is published has no records, and says the same.
    stored = RunFolder.load(publish.publish(STUDY, folder, tmp_path / "published"))
    assert not stored.names()
    assert STUDY.report(stored, settings).reading == STUDY.report(folder, settings).reading


def test_figures_are_drawn_and_say_why_not():
    rows = made_up([60, 50, 40, 30]) + made_up([500] * 4, "plug_in")
    tables = Tables.of(rows)
    figure = figures.violations_figure(tables, 0.1)
    lines = {line.get_color(): line.get_ydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["#0072B2"], [0.06, 0.05, 0.04, 0.03])
    np.testing.assert_allclose(lines["#D55E00"], 0.5)
    with pytest.raises(NothingToDraw, match=r"no cell with target 0\.3"):
        figures.coverage_figure(tables, 0.3)
    with pytest.raises(NothingToDraw, match="no two qualities"):
        figures.quality_figure(tables, 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenarios": ("auroc_81",)}, "scenarios must be one of .*did you mean 'auroc_80'"),
        ({"scenarios": ()}, "scenarios must have at least one value and none twice"),
        ({"targets": (0.1, 0.1)}, "targets must have at least one value and none twice"),
        ({"targets": (0.0,)}, "targets must be above 0 and below 1, got 0.0"),
        ({"targets": (0.9995,)}, "targets must be below 0.999, got 0.9995"),
        ({"sample_sizes": (0,)}, "sample_sizes must be an integer from 1 to"),
        ({"confidence": 1.0}, "confidence must be above 0 and below 1, got 1.0"),
        ({"num_repetitions": 1}, "num_repetitions must be an integer from 2 to"),
        ({"num_checked": 21}, "num_checked must be an integer from 0 to 20, got 21"),
        ({"given_grids": ("none",)}, "given_grids must be one of"),
    ],
)
def test_bad_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_study(STUDY, dataclasses.replace(TINY, out=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scenario": "auroc_81"}, "scenario of row 0 of record 'a' must be one of"),
        ({"num_violations": -1}, "num_violations of row 0 .* must be an integer from 0"),
        ({"coverage_mean": 1.5}, "coverage_mean of row 0 .* must be a finite number from"),
        ({"method": "luck"}, "method of row 0 .* must be one of fixed_sequence, holm"),
    ],
)
def test_edited_records_are_refused(change, message):
    row = made_up([1, 2, 3, 4])[0]
    with pytest.raises(Unreadable, match=message):
        declared_rows([Record("a", {"rows": [row | change]}, {})], ROW)


def test_presets_can_be_run_and_help_states_the_protocol(capsys):
    for settings in STUDY.presets.values():
        STUDY.check(settings)
        names = [cell.name for group in STUDY.plan(settings) for b in group for cell in b.cells]
        assert len(set(names)) == 14 * len(settings.sample_sizes) * len(settings.targets)
    with pytest.raises(SystemExit) as ended:
        main(STUDY, ["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for word in ("--given-grids", "Protocol, fixed before", "plug-in", "Clopper-Pearson"):
        assert word in said
