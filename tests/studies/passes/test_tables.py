"""Tables, reading and figures of made up rows; the command in small; refusals."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from isounc.fields import Unreadable
from isounc.runs import publish
from isounc.runs.command import main
from isounc.runs.folder import Record, RunFolder
from isounc.runs.settings import stored_settings
from isounc.runs.study import report_run, run_study
from isounc.runs.style import NothingToDraw
from isounc.runs.tables import declared_rows
from isounc.sampling.settings import GateSettings, SamplerSettings
from isounc.studies.passes import report, tables
from isounc.studies.passes.estimates import ESTIMATES
from isounc.studies.passes.figures import quality_figure
from isounc.studies.passes.reading import reading
from isounc.studies.passes.settings import ALL, KINDS, Settings
from isounc.studies.passes.study import STUDY
from isounc.studies.passes.tables import ROW, Quality, crossings, differences, summarise
from isounc.training import TrainSettings

COUNTS = (1, 2, 4, 8)
LEVELS = {
    "mean_norm": (0.60, 0.61, 0.62, 0.63),
    "mean_logit_scaled": (0.66, 0.66, 0.67, 0.68),
    "variance": (None, 0.40, 0.65, 0.80),
    "label_variance": (0.55, 0.55, 0.55, 0.55),
    "combined": (0.66, 0.66, 0.68, 0.81),
}


def made_up(
    problems=("xor", "moons"), seeds=3, levels=LEVELS, regions=("test", "far"), outputs=1,
    kinds=("draws",), change=lambda row: {},
):  # fmt: skip
    """Rows with these correlations, which differ a little from seed to seed."""
    rows = []
    for kind, problem, seed, region in itertools.product(kinds, problems, range(seeds), regions):
        for name, values in levels.items():
            for count, value in zip(COUNTS, values, strict=True):
                if value is None and count == 1:
                    continue
                backward = count * outputs if ESTIMATES[name].backward else 0
                r = None if value is None else value + 0.001 * (seed - (seeds - 1) / 2)
                row = {
                    "problem": problem, "seed": seed, "kind": kind, "region": region,
                    "count": count, "estimate": name, "gate": "pass", "gate_reasons": "",
                    "passes": count + backward, "forward": count, "backward": backward,
                    "seconds": 1e-3 * (count + backward), "seconds_to_make": 1.0,
                    "pearson": r, "spearman": r, "partial_pearson": r, "partial_spearman": r,
                    "num_groups": 1, "num_groups_undefined": 0, "reason": "",
                }  # fmt: skip
                rows.append(row | change(row))
    return rows


def of(rows, **where):
    found = [r for r in rows if all(r[name] == value for name, value in where.items())]
    assert len(found) == 1, (where, len(found))
    return found[0]


PLACE = {"problem": ALL, "kind": "draws", "region": "test", "statistic": "pearson"}


def crossing(rows, **where):
    found = of(crossings(differences(Quality(rows))), **PLACE | where)
    return found["crossing"], found["beyond_doubt"]


def test_the_crossing_is_where_it_was_planted():
    rows = made_up()
    pair = {"estimate": "variance", "rival": "mean_norm"}
    # Seeds shift both alike: their differences are exact.
    assert crossing(rows, **pair, terms="same K") == (4, 4)
    assert crossing(rows, **pair, terms="same passes") == (4, 4)
    logit = {"estimate": "variance", "rival": "mean_logit_scaled"}
    assert crossing(rows, **logit, terms="same K") == (8, 8)
    assert crossing(rows, **logit, terms="one network") == (8, 8)
    behind = {"estimate": "combined", "rival": "mean_norm", "terms": "same K"}
    assert crossing(rows, **behind) == (1, 1)
    never = made_up(levels=LEVELS | {"variance": (None, 0.1, 0.2, 0.3)})
    assert crossing(never, **pair, terms="same K") == (None, None)


def test_as_many_passes_buy_fewer_gradients():
    # With three outputs a gradient takes four passes: eight forward ones buy two, four buy one.
    levels = LEVELS | {"mean_norm": (0.62, 0.70, 0.9, 0.9), "variance": (None, 0.5, 0.65, 0.75)}
    pair = {"estimate": "variance", "rival": "mean_norm"}
    rows = made_up(levels=levels, outputs=3)
    found = differences(Quality(rows))
    equal = [r for r in found if all(r[k] == v for k, v in PLACE.items()) and
             (r["estimate"], r["rival"], r["terms"]) == ("variance", "mean_norm", "same passes")]  # fmt: skip
    means = {r["count"]: r["mean"] for r in equal}
    assert means == {2: None, 4: pytest.approx(0.03), 8: pytest.approx(0.05)}
    assert crossing(rows, **pair, terms="same passes") == (4, 4)
    assert crossing(rows, **pair, terms="same K") == (None, None)
    # With one output two forward passes buy one.
    assert crossing(made_up(levels=levels), **pair, terms="same passes") == (None, None)


@pytest.mark.parametrize(
    ("means", "lows", "expected"),
    [
        ([-1, 1, 1], [-2, -1, 0.5], (4, 8)),
        ([1, -1, 1], [0.5, -2, -1], (8, None)),  # ahead for a while only
        ([1, 1, 0], [1, 1, 0], (None, None)),  # level at the end
        ([1, 1, 1], [None, None, None], (2, None)),  # one seed has no interval
        ([-1, 1, None], [-2, 0.5, None], (4, 4)),  # undefined at the end
        ([None, None, None], [None, None, None], (None, None)),
    ],
)
def test_ahead_means_from_some_count_on(means, lows, expected):
    where = dict.fromkeys(tables._WHERE, "x")
    rows = [
        where | {"count": count, "mean": mean, "low": low}
        for count, mean, low in zip((2, 4, 8), means, lows, strict=True)
    ]
    found = crossings(rows[::-1])[0]
    assert (found["crossing"], found["beyond_doubt"]) == expected


def test_noise_between_seeds_leaves_doubt():
    def noisy(row):
        if row["estimate"] != "variance" or row["count"] < 4:
            return {}
        return {"pearson": row["pearson"] + (0.2, -0.05, -0.1)[row["seed"]]}

    pair = {"estimate": "variance", "rival": "mean_norm", "terms": "same K"}
    assert crossing(made_up(change=noisy), **pair) == (4, None)
    assert "up to K = 8 not beyond doubt" in read(made_up(change=noisy))


def test_means_over_problems_leave_failed_cells_out():
    def fails(row):
        bad = row["problem"] == "moons" and (row["seed"] == 1 or row["kind"] == "ensemble")
        wrong = {"gate": "fail", "gate_reasons": "R-hat is 1.2", "pearson": -0.9}
        shifted = {"pearson": row["pearson"] + 0.1} if row["problem"] == "moons" else {}
        return wrong if bad else shifted if row["pearson"] is not None else {}

    summary = summarise(Quality(made_up(change=fails, kinds=("draws", "ensemble"))))
    where = {"region": "test", "estimate": "mean_norm", "count": 1}
    line = of(summary, problem=ALL, kind="draws", **where)
    # Seed 1 is in no mean over the problems, those of the others are (.60 + .70) / 2.
    assert (line["num_seeds"], line["num_failed_gate"]) == (2, 1)
    assert line["pearson_mean"] == pytest.approx(0.65, abs=1e-3)
    assert of(summary, problem="xor", kind="draws", **where)["num_seeds"] == 3
    # No seed of moons has an ensemble that passed: the mean is that of the other problem.
    line = of(summary, problem=ALL, kind="ensemble", **where)
    assert (line["num_seeds"], line["num_failed_gate"]) == (3, 3)
    assert line["pearson_mean"] == pytest.approx(0.60, abs=1e-3)
    line = of(summary, problem="moons", kind="ensemble", **where)
    assert (line["num_seeds"], line["pearson_mean"], line["num_failed_gate"]) == (0, None, 3)


def test_problems_without_a_region_do_not_empty_it():
    rows = made_up()
    rows = [r for r in rows if (r["problem"], r["region"]) != ("moons", "far")]
    summary = summarise(Quality(rows))
    where = {"problem": ALL, "kind": "draws", "estimate": "mean_norm", "count": 1}
    assert of(summary, region="far", **where)["num_seeds"] == 3


def test_intervals_are_over_seeds():
    summary = summarise(Quality(made_up(problems=("xor",))))
    line = of(summary, problem="xor", kind="draws", region="far", estimate="variance", count=8)
    z = np.arctanh([0.799, 0.8, 0.801])
    half = 4.302652729911275 * z.std(ddof=1) / np.sqrt(3)  # Student's t, two degrees of freedom
    assert line["pearson_low"] == pytest.approx(np.tanh(z.mean() - half), rel=1e-9)
    assert line["passes"] == 8 and line["seconds"] == pytest.approx(8e-3)


def read(rows):
    quality = Quality(rows)
    differing = differences(quality)
    return "\n".join(reading(summarise(quality), differing, crossings(differing)))


def test_the_reading_says_what_the_tables_say():
    said = read(made_up(seeds=2))
    assert (
        "In test, the variance of p overtakes the mean of ‖∇p‖² at K = 4 (Pearson 0.65 against "
        "0.62, difference +0.03 [+0.03, +0.03]; beyond doubt from K = 4 on); where both have as "
        "many passes, at K = 4."
    ) in said
    assert "overtaken by the variance over K of them at K = 8 in test and far." in said
    assert "8 networks in place of one change r of the mean of ‖∇p‖² by +0.03" in said
    assert "At K = 8 the highest r is that of the combination in test and far (0.81, 0.81)." in said
    assert "‖∇p‖² takes 2.0 times as long" in said
    never = read(made_up(levels=LEVELS | {"variance": (None, 0.1, 0.2, 0.3)}))
    assert "does not overtake the mean of ‖∇p‖² up to K = 8, where Pearson's r differs by " in never
    assert "-0.33" in never
    failed = read(made_up(change=lambda row: {"gate": "fail"}))
    assert "In test, no seed has both the variance of p and the mean of ‖∇p‖²." in failed


def test_figures_are_drawn_and_say_why_not():
    quality = Quality(made_up())
    summary, found = summarise(quality), crossings(differences(quality))
    figure = quality_figure(summary, found, kind="draws")
    assert len(figure.axes) == 4
    assert (
        figure.axes[0].get_title(loc="left").startswith("test\nvariance overtakes ‖∇p‖² at K = 4")
    )
    lines = {line.get_color(): line.get_xydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["#D55E00"], [[2, 0.40], [4, 0.65], [8, 0.80]], atol=1e-4)
    np.testing.assert_allclose(lines["#0072B2"][:, 0], [2, 4, 8, 16])
    quality = Quality(made_up(change=lambda row: {"gate": "fail"}))
    with pytest.raises(NothingToDraw, match="no seed of all passed with posterior draws"):
        quality_figure(summarise(quality), [], kind="draws")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pearson": 1.5}, r"pearson of row 0 of record 'xor-seed0' must be a finite number from"),
        ({"gate": "passed"}, "gate of row 0 .* must be one of pass, fail, got 'passed'"),
        ({"count": 0}, "count of row 0 .* must be an integer from 1"),
        ({"kind": "bagged"}, "kind of row 0 .* must be one of draws, ensemble, last_layer"),
    ],
)
def test_edited_records_are_refused(change, message):
    rows = made_up()
    with pytest.raises(Unreadable, match=message):
        declared_rows([Record("xor-seed0", {"rows": [rows[0] | change]}, {})], ROW)
    with pytest.raises(Unreadable, match="rows of record 'xor-seed0' must be a list"):
        declared_rows([Record("xor-seed0", {}, {})], ROW)


@pytest.fixture
def one_figure(monkeypatch):
    """A report with the first of its figures, which take seconds each."""
    plots = report._plots
    monkeypatch.setattr(report, "_plots", lambda *arguments: plots(*arguments)[:1])


def test_a_run_shows_what_failed_and_what_is_missing(tmp_path, capsys, one_figure):
    settings = Settings(problems=("xor", "moons"), num_seeds=3, counts=COUNTS)
    folder = RunFolder.open(tmp_path / "run", stored_settings(settings), study="passes")
    fails = {"gate": "fail", "gate_reasons": "R-hat is 1.2"}
    failing = {("moons", 1, "test"), ("moons", 1, "far"), ("xor", 0, "far")}
    rows = made_up(
        change=lambda r: fails if (r["problem"], r["seed"], r["region"]) in failing else {}
    )
    for problem, seed in itertools.product(("xor", "moons"), range(2)):
        mine = [r for r in rows if (r["problem"], r["seed"]) == (problem, seed)]
        folder.write(Record(f"{problem}-seed{seed}", {"rows": mine}, {}))
    assert report_run(STUDY, folder)
    said = capsys.readouterr().out
    words = (
        "Failed, and in no mean: xor seed 0 in far, moons seed 1. The run has 4 of 6 cells so far."
    )
    assert words in said
    page = (tmp_path / "run" / "report.html").read_text()
    assert "R-hat is 1.2" in page and "3 cells failed" not in page
    assert len(folder.results) == len([r for r in rows if r["seed"] < 2])
    crossing = folder.read_table("crossings.csv")
    assert set(crossing["terms"]) == set(tables.TERMS)
    assert set(crossing["class"]) == {"trace"}
    # What is published has no records, and says the same.
    there = publish.publish(STUDY, folder, tmp_path / "published")
    assert words in (there / "reading.md").read_text()
    stored = RunFolder.load(there)
    assert not stored.names()
    assert STUDY.report(stored, settings).reading == STUDY.report(folder, settings).reading


def test_the_predicted_class_has_tables_and_sentences_of_its_own(tmp_path, capsys, one_figure):
    settings = Settings(problems=("xor", "wine"), num_seeds=2, counts=COUNTS)
    folder = RunFolder.open(tmp_path / "run", stored_settings(settings), study="passes")
    trace = made_up(("xor", "wine"), 2)
    predicted = made_up(("wine",), 2, levels=LEVELS | {"variance": (None, 0.9, 0.9, 0.9)})
    for problem, seed in itertools.product(("xor", "wine"), range(2)):
        mine = [
            row | {"class": view}
            for view, rows in (("trace", trace), ("predicted", predicted))
            for row in rows
            if (row["problem"], row["seed"]) == (problem, seed)
        ]
        folder.write(Record(f"{problem}-seed{seed}", {"rows": mine}, {}))
    assert report_run(STUDY, folder)
    said = " ".join(capsys.readouterr().out.split())
    words = "the variance of p overtakes the mean of ‖∇p‖² at K = "
    assert f"Posterior draws. In test, {words}4" in said
    several = "Of the class that is predicted, where there are several: "
    assert f"{several}Posterior draws. In test, {words}2" in said
    assert said.count("a forward pass through one network takes") == 1
    table = folder.summary.query("estimate == 'variance' and count == 2 and region == 'test'")
    means = {(r["class"], r["problem"]): r["pearson_mean"] for r in table.to_dict("records")}
    assert means == {
        ("trace", "all"): pytest.approx(0.4, abs=1e-4),
        ("trace", "xor"): pytest.approx(0.4, abs=1e-4),
        ("trace", "wine"): pytest.approx(0.4, abs=1e-4),
        ("predicted", "all"): pytest.approx(0.9, abs=1e-4),
        ("predicted", "wine"): pytest.approx(0.9, abs=1e-4),
    }
    assert (
        "variance, of the predicted class, region test" in (folder.path / "report.md").read_text()
    )


TINY = Settings(
    problems=("linear",), counts=(1, 2), width=3, num_seeds=1, n=20, num_timings=1, cache="",
    sampling=SamplerSettings(
        num_warmup=100, num_draws=500, max_draws=500, num_kept=8, coordinates="prior",
        gate=GateSettings(ess_min=100, rhat_max=1.2),
    ),
    train=TrainSettings(epochs=5),
)  # fmt: skip


def test_the_command_computes_all_kinds_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "_plots", lambda *_: [])  # drawn in the test above
    settings = dataclasses.replace(TINY, out=str(tmp_path / "run"))
    assert run_study(STUDY, settings)
    folder = RunFolder.load(tmp_path / "run")
    assert folder.names() == ["linear-seed0"]
    rows = folder.results
    assert set(rows["kind"]) == set(KINDS) and set(rows["region"]) == {"test", "grid", "far"}
    # At K = 1 there is no variance.
    assert len(rows) == 3 * 3 * (4 + 5)
    assert rows.query("estimate == 'variance'")["count"].tolist() == [2] * 9
    assert rows["pearson"].between(-1, 1).all() and (rows["seconds"] > 0).all()
    assert "Posterior draws. In test, " in capsys.readouterr().out
    before = (tmp_path / "run" / "results.csv").read_bytes()
    run_study(STUDY, settings)
    assert (tmp_path / "run" / "results.csv").read_bytes() == before, "nothing is computed again"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problems": ("xorr",)}, "problems must be one of .*did you mean 'xor'"),
        ({"problems": ("xor", "xor")}, "problems must have at least one value and none twice"),
        ({"counts": ()}, "counts must have at least one value"),
        ({"counts": (0, 2)}, "counts must be an integer from 1 to"),
        ({"counts": (4, 2)}, r"counts must be ascending, got \(4, 2\)"),
        ({"counts": (1, 16)}, r"counts must be at most sampling.num_kept, 8, .*got \(1, 16\)"),
        ({"width": 0}, "width must be an integer from 1 to"),
        ({"activation": "sine"}, "activation must be one of"),
        ({"parameterisation": "mup"}, "parameterisation must be one of"),
        ({"prior_sd": 0.0}, "prior_sd must be a positive"),
        ({"num_seeds": 0}, "num_seeds must be an integer from 1 to"),
        ({"num_groups": 0}, "num_groups must be an integer from 1 to"),
        ({"num_timings": 0}, "num_timings must be an integer from 1 to"),
        ({"n": 1}, "n must be an integer from 2 to"),
    ],
)
def test_bad_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_study(STUDY, dataclasses.replace(TINY, out=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


def test_presets_can_be_run_and_help_states_the_protocol(capsys):
    for settings in STUDY.presets.values():
        STUDY.check(settings)
        cells = [cell.name for group in STUDY.plan(settings) for b in group for cell in b.cells]
        assert len(set(cells)) == len(settings.problems) * settings.num_seeds
    with pytest.raises(SystemExit) as ended:
        main(STUDY, ["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for word in ("--counts", "Protocol, fixed before", "moderated variance", "shown as failing"):
        assert word in said
