"""Paired differences, verdicts, figures and the reading of made up rows; the command in small."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from isounc.fields import Unreadable
from isounc.runs import publish
from isounc.runs.command import main
from isounc.runs.folder import Record, RunFolder
from isounc.runs.settings import stored_settings
from isounc.runs.study import report_run, run_study
from isounc.runs.style import NothingToDraw
from isounc.runs.tables import declared_rows
from isounc.sampling.settings import GateSettings, SamplerSettings
from isounc.statistics import Interval, verdict
from isounc.studies.confirmation import figures
from isounc.studies.confirmation.reading import Tables, reading
from isounc.studies.confirmation.settings import ALL, BASE, Settings
from isounc.studies.confirmation.study import STUDY
from isounc.studies.confirmation.tables import (
    ROW,
    Results,
    differences,
    summarise,
    verdicts,
)
from isounc.studies.confirmation.verdicts import HYPOTHESES
from isounc.training import TrainSettings

LEVELS = {
    "logit_scaled": 0.70, "logit_scaled_level": 0.68, "isotropic": 0.60, "null_aleatoric": 0.64,
    "null_squared": 0.6, "link_aware": 0.6, "laplace": 0.66, "ensemble_2": 0.40,
    "ensemble_4": 0.55, "ensemble_16": 0.72,
}  # fmt: skip
LINKS = {"xor": "sigmoid", "rings": "sigmoid", "line": "identity"}
CONDITIONS = ((BASE, ""), ("n", "30"), ("reference", "far"), ("point", "map"))


def made_up(
    problems=("xor", "rings", "line"), seeds=4, levels=LEVELS, regions=("test", "far"),
    change=lambda row: {},
):  # fmt: skip
    """Rows with about these correlations; logit_scaled differs from seed to seed."""
    rng = np.random.default_rng(0)
    rows = []
    for problem, condition in itertools.product(problems, CONDITIONS):
        factor, value = condition
        if LINKS[problem] == "identity" and factor == "n":
            continue
        shared = {"reference": ("isotropic", "null", "link", "laplace", "ensemble")}
        left_out = shared.get(factor, ()) or ("ensemble",) * (factor == "point")
        for seed, region, name in itertools.product(range(seeds), regions, levels):
            if name.startswith(left_out):
                continue
            r = levels[name] + 0.02 * rng.standard_normal()
            level = {"logit_scaled": 2.0, "logit_scaled_level": 0.1}.get(name, 0.0)
            row = {
                "problem": problem, "seed": 100 + seed, "link": LINKS[problem], "factor": factor,
                "value": value, "region": region, "estimate": name, "pearson": r, "spearman": r,
                "log2_level": level + 0.1 * rng.standard_normal(), "num_averaged": 4,
                "num_undefined": 0, "gate": "pass", "gate_reasons": "", "reason": "",
            }  # fmt: skip
            rows.append(row | change(row))
    return rows


def of(rows, **where):
    found = [r for r in rows if all(r[name] == value for name, value in where.items())]
    assert len(found) == 1, (where, len(found))
    return found[0]


def values(rows, problem, estimate, factor=BASE, region="test"):
    where = (problem, estimate, factor, region)
    names = ("problem", "estimate", "factor", "region")
    return np.array([r["pearson"] for r in rows if tuple(r[n] for n in names) == where])


PLACE = {"factor": BASE, "value": "", "region": "test"}


def test_differences_are_paired_and_agree_with_scipy():
    rows = made_up()
    found = differences(Results(rows))
    about = {"statistic": "pearson", "estimate": "logit_scaled", "rival": "isotropic", **PLACE}
    each = []
    for problem in ("xor", "rings"):
        pair = values(rows, problem, "logit_scaled"), values(rows, problem, "isotropic")
        row = of(found, problem=problem, **about)
        direct = stats.ttest_rel(*pair).confidence_interval(0.95)
        assert row["mean"] == pytest.approx((pair[0] - pair[1]).mean(), rel=1e-12)
        assert (row["low"], row["high"]) == pytest.approx((direct.low, direct.high), rel=1e-9)
        each.append(pair[0] - pair[1])
    row = of(found, problem=ALL, **about)
    # The mean of two means is half the difference from the other with its sign turned.
    direct = stats.ttest_ind(each[0], -each[1], equal_var=False).confidence_interval(0.95)
    assert (2 * row["low"], 2 * row["high"]) == pytest.approx((direct.low, direct.high), rel=1e-9)
    assert (row["num_seeds"], row["num_problems"]) == (8, 2)  # that without a link is not in it
    # Another scale is held against the base's rivals, another point against its own.
    about |= {"factor": "reference", "value": "far"}
    row = of(found, problem="xor", **about)
    pair = values(rows, "xor", "logit_scaled", "reference"), values(rows, "xor", "isotropic")
    assert row["mean"] == pytest.approx((pair[0] - pair[1]).mean(), rel=1e-12)
    about |= {"factor": "point", "value": "map"}
    row = of(found, problem="xor", **about)
    pair = [values(rows, "xor", name, "point") for name in ("logit_scaled", "isotropic")]
    assert row["mean"] == pytest.approx((pair[0] - pair[1]).mean(), rel=1e-12)
    row = of(found, problem="xor", **about | {"rival": "ensemble_4"})
    pair = values(rows, "xor", "logit_scaled", "point"), values(rows, "xor", "ensemble_4")
    assert row["mean"] == pytest.approx((pair[0] - pair[1]).mean(), rel=1e-12)


def test_failed_and_undefined_cells_are_left_out_and_counted():
    def change(row):
        where = row["problem"], row["seed"], row["estimate"], row["factor"]
        if where[:2] == ("xor", 101) and row["factor"] == BASE:
            return {"gate": "fail", "gate_reasons": "R-hat is 1.2", "pearson": -0.9}
        if where == ("xor", 102, "isotropic", BASE):
            return {"pearson": None, "num_undefined": 4, "reason": "estimate is constant"}
        if row["problem"] == "rings" and row["seed"] > 100 and row["factor"] == "n":
            return {"gate": "fail", "gate_reasons": "no draws"}
        return {}

    results = Results(made_up(change=change))
    summary, found = summarise(results), differences(results)
    line = of(summary, problem="xor", estimate="isotropic", **PLACE)
    counts = ("num_cells", "num_failed", "num_undefined", "num_seeds")
    assert tuple(line[name] for name in counts) == (4, 1, 1, 2)
    about = {"statistic": "pearson", "estimate": "logit_scaled", "rival": "isotropic"}
    assert of(found, problem="xor", **about, **PLACE)["num_seeds"] == 2
    # One seed of rings passed at n = 30: it has no interval and is in no mean over the problems.
    place = {"factor": "n", "value": "30", "region": "test"}
    alone = of(found, problem="rings", **about, **place)
    assert alone["num_seeds"] == 1 and alone["low"] is None and alone["mean"] is not None
    assert of(found, problem=ALL, **about, **place)["num_problems"] == 1
    # With the base's reference fails what shares it.
    place = {"factor": "reference", "value": "far", "region": "test"}
    assert of(found, problem="xor", **about, **place)["num_seeds"] == 2


@pytest.mark.parametrize(
    ("name", "low", "high", "expected"),
    [
        ("H1", 0.01, 0.2, "confirmed"),
        ("H1", -0.01, 0.2, "undecided"),
        ("H1", -0.2, -0.01, "refuted"),
        ("H1", 0.0, 0.0, "undecided"),
        ("H1", None, None, "undecided"),
        ("H3, 16", -0.04, -0.01, "confirmed"),
        ("H3, 16", -0.06, 0.1, "undecided"),
        ("H3, 16", -0.2, -0.06, "refuted"),
        ("H4", 0.1, 0.9, "confirmed"),
        ("H4", 0.9, 1.1, "undecided"),
        ("H4", 1.1, 3.0, "refuted"),
        ("H4, unit", 1.1, 3.0, "confirmed"),
        ("H4, unit", -3.0, -0.1, "refuted"),
    ],
)
def test_a_verdict_is_where_the_interval_lies(name, low, high, expected):
    hypothesis, interval = HYPOTHESES[name], Interval(0.0, low, high, 5)
    assert verdict(interval, hypothesis.bound, below=hypothesis.below) == expected


def test_planted_data_confirm_refute_and_stay_undecided():
    def said(rows, problem=ALL):
        found = verdicts(Results(rows))
        where = {"problem": problem, **PLACE}
        names = [n for n in HYPOTHESES if any(
            r["hypothesis"] == n and r["problem"] == problem for r in found)]  # fmt: skip
        found = [row for row in found if row["statistic"] != "spearman"]
        return {name: of(found, hypothesis=name, **where)["verdict"] for name in names}

    expected = {
        "H1": "confirmed", "H2": "confirmed", "H3, 4": "confirmed", "H3, 16": "confirmed",
        "H4": "confirmed", "H4, unit": "confirmed",
    }  # fmt: skip
    assert said(made_up()) == expected
    worse = LEVELS | {"logit_scaled": 0.40}
    refuted = said(made_up(levels=worse))
    assert {refuted[name] for name in ("H1", "H2", "H3, 4", "H3, 16")} == {"refuted"}
    equal = LEVELS | {"logit_scaled": 0.60, "ensemble_16": 0.65}
    undecided = said(made_up(levels=equal))
    assert (undecided["H1"], undecided["H3, 16"]) == ("undecided", "undecided")

    def off(row):
        return {"log2_level": 1.5 if row["seed"] % 2 else -1.5}

    levels = said(made_up(change=off))
    # Right on the geometric mean, and within a factor of two nowhere.
    assert (levels["H4"], levels["H4, unit"]) == ("refuted", "undecided")

    def linear_not_ordered(row):
        return {"spearman": 0.3} if row["estimate"] == "logit_scaled" else {}

    tables = tables_of(made_up(change=linear_not_ordered))
    by = {
        rank: tables.verdict(problem=ALL, hypothesis="H1", by_rank=rank, **PLACE)["verdict"]
        for rank in (False, True)
    }
    assert by == {False: "confirmed", True: "refuted"}
    assert "By rank (Spearman's): refuted in test" in reading(tables)[1]
    # Without a link the first two say nothing.
    assert set(said(made_up(), "line")) == {"H3, 4", "H3, 16", "H4", "H4, unit"}
    assert set(said(made_up(seeds=1)).values()) == {"undecided"}


def tables_of(rows):
    results = Results(rows)
    found = summarise(results), differences(results), verdicts(results)
    return Tables(results, rows, *found)


def test_the_reading_says_what_the_tables_say():
    def change(row):
        if (row["problem"], row["factor"], row["seed"]) == ("xor", "n", 101):
            return {"gate": "fail", "gate_reasons": "R-hat is 1.2"}
        if (row["problem"], row["factor"], row["seed"]) == ("xor", "n", 100):
            return {"gate": "fail", "gate_reasons": "rare draws"} if row["region"] == "far" else {}
        if row["problem"] == "rings" and row["estimate"] == "isotropic" and row["region"] == "far":
            return {"pearson": row["pearson"] + 0.3}
        return {}

    tables = tables_of(made_up(change=change))
    said = "\n".join(reading(tables))
    assert "1 of them failed their gate or a check and are in no number: 1 at n = 30." in said
    assert "1 passed but for regions, in which they are in no number: 1 at n = 30 (far)." in said
    row = of(tables.verdicts, problem=ALL, hypothesis="H2", statistic="pearson", **PLACE)
    assert (
        "H2, logit-scaled orders inputs better than p(1−p). By Pearson's r, at the base: confirmed "
        "in test "
        f"({row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]; of 2 problems "
    ) in said
    assert "beyond doubt behind on rings in far against isotropic ‖∇p‖² (-0.2" in said
    assert "line test" in said and "Without a link logit-scaled is ‖∇f‖² times a constant" in said
    row = of(tables.verdicts, problem=ALL, hypothesis="H4, unit", **PLACE)
    assert f"by a factor of {2 ** row['mean']:.2g} [" in said
    ahead = "\n".join(reading(tables_of(made_up(levels=LEVELS | {"ensemble_16": 0.6}))))
    assert "behind ‖∇p‖², p(1−p), Laplace or 16 networks on no problem in any region" in ahead


def test_figures_show_the_tables_and_say_why_not():
    tables = tables_of(made_up())
    figure = figures.by_condition(tables.differences)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["test", "far"]
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels[0] == "base  (2 problems, 8 cells)" and "at the MAP" in labels[3]
    partly = made_up(change=lambda row: {"gate": "fail"} if (
        row["problem"], row["factor"], row["region"]) == ("rings", "n", "far") else {})  # fmt: skip
    axes = figures.by_condition(tables_of(partly).differences).axes
    labels = [tick.get_text() for tick in axes[0].get_yticklabels()]
    assert "n = 30  (1–2 problems, 4–8 cells)" in labels
    about = {"problem": ALL, "statistic": "pearson", "estimate": "logit_scaled", **PLACE}
    row = of(tables.differences, rival="isotropic", **about)
    bars = [line.get_xdata() for line in figure.axes[0].lines]
    assert any(np.allclose(x, [row["low"], row["high"]]) for x in bars if len(x) == 2)
    of_problems = figures.by_problem(tables.differences, tables.results.linked).axes[0]
    labels = [tick.get_text() for tick in of_problems.get_yticklabels()]
    assert labels == ["mean of the problems", "xor", "rings"]
    levels = figures.levels(tables.summary)
    line = of(tables.summary, problem=ALL, estimate="logit_scaled", **PLACE)
    centres = [x.get_xdata()[0] for x in levels.axes[0].lines if len(x.get_xdata()) == 1]
    assert any(np.isclose(x, 2 ** line["log2_level_mean"]) for x in centres)
    failed = tables_of(made_up(change=lambda row: {"gate": "fail", "gate_reasons": "no draws"}))
    with pytest.raises(NothingToDraw, match="no place has two seeds that passed"):
        figures.by_condition(failed.differences)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pearson": 1.5}, r"pearson of row 0 of record 'xor' must be a finite number from"),
        ({"gate": "passed"}, "gate of row 0 .* must be one of pass, fail, got 'passed'"),
        ({"factor": "width"}, "factor of row 0 .* must be one of base, prior_sd"),
        ({"log2_level": float("nan")}, "log2_level of row 0 .* must be a finite number"),
        ({"seed": 1.5}, "seed of row 0 .* must be an integer"),
    ],
)
def test_edited_records_are_refused(change, message):
    row = made_up()[0] | change
    with pytest.raises(Unreadable, match=message):
        declared_rows([Record("xor", {"rows": [row]}, {})], ROW)
    with pytest.raises(Unreadable, match="rows of record 'xor' must be a list"):
        declared_rows([Record("xor", {}, {})], ROW)


def test_a_run_is_reported_and_published_with_the_same_reading(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("isounc.studies.confirmation.report._plots", lambda _: [])  # drawn above
    settings = Settings(problems=("xor", "rings"), num_seeds=4)
    folder = RunFolder.open(tmp_path / "run", stored_settings(settings), study="confirmation")
    rows = made_up(problems=("xor", "rings"))
    with pytest.raises(ValueError, match=r"has no results.csv"):
        report_run(STUDY, folder)
    for problem in ("xor", "rings"):
        mine = [row for row in rows if row["problem"] == problem]
        folder.write(Record(problem, {"rows": mine}, {}))
    assert report_run(STUDY, folder)
    assert "The run has 16 of 56 cells." in capsys.readouterr().out
    there = publish.publish(STUDY, folder, tmp_path / "published")
    said = (there / "reading.md").read_text()
    page = (folder.path / "report.md").read_text()
    first = said.split("\n\n")[2]
    assert first.startswith("H1, logit-scaled orders") and first.split(" (")[0] in page
    stored = RunFolder.load(there)
    assert reading(tables_of(rows))[1] == STUDY.report(stored, settings).reading[1]
    # The table by Pearson's r has the verdicts of the base as marks on their numbers.
    base = next(line for line in said.split("\n") if line.startswith("| base | 2 | 8 | "))
    table = stored.read_table("verdicts.csv").query(
        "problem == 'all' and factor == 'base' and hypothesis == 'H1' and statistic == 'pearson'"
    )
    marks = {"confirmed": "{:+.2f} ✓", "refuted": "{:+.2f} ✗", "undecided": "{:+.2f}"}
    pairs = zip(table["verdict"], table["mean"], strict=True)
    assert base.split(" | ")[3] == " ".join(marks[word].format(mean) for word, mean in pairs)
    assert set(stored.read_table("verdicts.csv")["verdict"]) <= {
        "confirmed", "refuted", "undecided",
    }  # fmt: skip


TINY = Settings(
    problems=("linear",), width=3, n=20, num_seeds=1, prior_sds=(), ns=(), activations=(),
    depths=(), reference_sizes=(), reference_shifts=(), counts=(4, 16), num_repeats=2, cache="",
    executor="serial",
    sampling=SamplerSettings(
        num_warmup=100, num_draws=500, max_draws=500, num_kept=8, coordinates="prior",
        gate=GateSettings(ess_min=100, rhat_max=1.2),
    ),
    train=TrainSettings(epochs=5),
)  # fmt: skip


def test_the_command_computes_a_cell_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("isounc.studies.confirmation.report._plots", lambda _: [])
    settings = dataclasses.replace(TINY, out=str(tmp_path / "run"))
    assert run_study(STUDY, settings)
    folder = RunFolder.load(tmp_path / "run")
    assert folder.names() == ["linear-n20-d1-tanh-seed100-sd2"]
    rows = folder.results
    # Trained: six one-pass estimates, Laplace, two ensembles; the MAP; draws without Laplace.
    assert len(rows) == 3 * (9 + 7 + 6)
    assert rows["pearson"].dropna().between(-1, 1).all()
    assert rows.query("factor == 'point'")["value"].unique().tolist() == ["map", "draw"]
    before = (tmp_path / "run" / "results.csv").read_bytes()
    run_study(STUDY, settings)
    assert (tmp_path / "run" / "results.csv").read_bytes() == before, "nothing is computed again"
    assert "The run has 1 of 1 cells." in capsys.readouterr().out


def test_help_states_the_protocol(capsys):
    with pytest.raises(SystemExit) as ended:
        main(STUDY, ["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for word in ("--num-varied-seeds", "Protocol, fixed before the first run", "*refuted*"):
        assert word in said
