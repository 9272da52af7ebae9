"""Conditions, verdicts of planted rows, bad settings, and the command in small."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from isounc.fields import Unreadable
from isounc.problems import make_problem
from isounc.runs import publish
from isounc.runs.command import main
from isounc.runs.folder import Record, RunFolder
from isounc.runs.settings import stored_settings
from isounc.runs.study import report_run, run_study
from isounc.runs.style import NothingToDraw
from isounc.runs.tables import rows_of_run
from isounc.sampling.settings import GateSettings, SamplerSettings
from isounc.studies.spectrum import figures, report
from isounc.studies.spectrum.cell import (
    DRAWS,
    ISOTROPIC,
    LAPLACE,
    OF_POINT,
    OF_POSTERIOR,
    _compared,
)
from isounc.studies.spectrum.curvature import Projected
from isounc.studies.spectrum.reading import Tables, reading
from isounc.studies.spectrum.settings import (
    ALL,
    PRESETS,
    TRAIN,
    Cell,
    Condition,
    Settings,
    cell_problem,
    check,
    conditions,
)
from isounc.studies.spectrum.study import STUDY
from isounc.studies.spectrum.tables import (
    EIGENVALUE_COLUMNS,
    NUMBERS,
    ROW,
    Results,
    axes_of,
    failing,
    passing,
    slope,
    summarise,
    verdicts,
)
from isounc.studies.spectrum.verdicts import HYPOTHESES

SMALL = Settings(ns=(100,), parameterisations=("ntk",), points=("map",))


def planted(change=lambda row: {}, seeds=4):
    """Rows that confirm what is claimed, up to a little noise; `change` plants something else."""
    rng = np.random.default_rng(0)
    rows = []
    for problem, condition, seed in itertools.product(
        ("moons", "xor"), conditions(SMALL), range(seeds)
    ):
        size, depth = np.log2(condition.width), condition.depth
        noise = 1e-3 * rng.standard_normal()
        identity = {
            "problem": problem, **condition._asdict(), "seed": seed, "gate": "pass",
            "gate_reasons": "", "check": "pass", "check_reasons": "", "reason": "",
            **dict.fromkeys(NUMBERS),
        }  # fmt: skip
        point = identity | {
            "point": "map", "region": ALL, "form": LAPLACE, **dict.fromkeys(OF_POINT, 1.0),
            "outlier_share": 0.8 + noise, "log2_hessian": -0.1 + noise,
            "log2_over_mean": 1.5 * size + noise, "log2_over_bulk": 0.5 * depth + noise,
            "log2_over_rest": 0.4 * depth + noise,
            "dimension_share": 0.02 + noise,
        }  # fmt: skip
        posterior = identity | {
            "point": "posterior", "region": ALL, "form": DRAWS,
            **dict.fromkeys(OF_POSTERIOR, 1.0), "draws_over_edge": noise,
            "jeffreys_readout": 9 - size + noise, "jeffreys_weights": 9 + noise + 0.1 * size,
        }  # fmt: skip
        rows += [point, posterior]
        levels = {ISOTROPIC: 0.6, "removed_10": 0.7, "low_rank_10": 0.8, LAPLACE: 0.8}
        for region, (form, level) in itertools.product((TRAIN, "far"), levels.items()):
            rows.append(identity | {
                "point": "map", "region": region, "form": form,
                "log10_pearson": level + noise, "pearson": level, "spearman": level,
                "ratio_cv": 0.05 + noise, "order": 0.95 + noise,
                "ratio_mean": (0.2 if region == TRAIN else 0.9) + noise,
                "share": 0.5 if form == "removed_10" else None,
            })  # fmt: skip
    return [row | change(row) for row in rows]


def found(said, name, **where):
    where = {"problem": ALL, "hypothesis": name, **where}
    return [row for row in said if all(row[k] == v for k, v in where.items())]


def test_planted_rows_are_confirmed_but_for_the_weights():
    rows = verdicts(Results(planted()), 10)
    for name in HYPOTHESES:
        said = {row["verdict"] for row in found(rows, name)}
        assert said == ({"refuted"} if name == "repriorises, weights" else {"confirmed"}), name
    (width,) = found(rows, "grows with width")
    assert (width["width"], width["depth"]) == (None, 1)
    assert width["mean"] == pytest.approx(1.5, abs=0.01)
    (depth,) = found(rows, "grows with depth")
    assert (depth["depth"], depth["width"]) == (None, SMALL.width)
    assert depth["mean"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("isotropic", "ratio_cv", 0.4),
        ("outliers", "outlier_share", 0.2),
        ("outliers, Hessian", "log2_hessian", -3.0),
        ("isotropic in trace", "dimension_share", 0.5),
        ("order kept", "order", 0.1),
        ("no wider than prior", "draws_over_edge", 2.0),
        ("grows with width", "log2_over_mean", 1.0),
    ],
)
def test_planted_rows_are_refuted(name, column, value):
    rng = np.random.default_rng(1)

    def change(row):
        if column == "log2_over_mean" and row[column] is not None:
            return {column: -row[column]}
        known = row[column] is not None
        return {column: value + 1e-3 * rng.standard_normal()} if known else {}

    rows = verdicts(Results(planted(change, seeds=2)), 10)
    assert {row["verdict"] for row in found(rows, name)} == {"refuted"}


def test_what_fails_counts_where_nothing_rests_on_it():
    def change(row):
        gate = {"gate": "fail", "gate_reasons": "R-hat is 2"} if row["seed"] == 3 else {}
        check = {"check": "fail", "check_reasons": "did not converge"} if row["seed"] == 2 else {}
        return gate | check

    rows = planted(change)
    results = Results(rows)
    said = verdicts(results, 10)
    assert {row["num_seeds"] for row in found(said, "cure", problem="moons")} == {2}
    assert {row["num_seeds"] for row in found(said, "isotropic", problem="moons")} == {3}
    summary = summarise(results)
    lines = [
        row for row in summary
        if row["problem"] == "moons" and row["statistic"] == "pearson"
    ]  # fmt: skip
    assert {(line["num_cells"], line["num_failed"], line["num_seeds"]) for line in lines} == {
        (4, 2, 2)
    }
    whats = {(f["seed"], f["what"], f["region"]) for f in failing(rows)}
    assert whats == {
        (2, "map", ""), (2, "posterior", ""), (3, "reference", TRAIN), (3, "reference", "far")
    }  # fmt: skip
    values = [
        {**{name: row[name] for name in EIGENVALUE_COLUMNS[:-3]}, "kind": "ggn"}
        for row in rows
        if row["region"] == ALL
    ]
    kept = passing(values, rows)
    assert {row["seed"] for row in kept} == {0, 1, 3} and len(kept) == len(values) * 3 / 4
    by_gate = {"form": DRAWS, "check": "fail", "check_reasons": "R-hat is 2"}
    assert failing([{**rows[0], **by_gate, "region": "far"}]) == []
    tables = Tables(results, rows, summary, said, SMALL)
    assert "2 cells" not in reading(tables)[0] and "6 cells, and" in reading(tables)[0]


def test_one_factor_at_a_time_is_varied_about_the_base():
    for settings in PRESETS.values():
        check(settings)
        listed = conditions(settings)
        assert len(set(listed)) == len(listed)
        base = Condition(settings.width, settings.depth, settings.parameterisations[0], settings.n)
        for condition in listed:
            changed = sum(a != b for a, b in zip(condition, base, strict=True))
            assert changed - (condition.parameterisation != base.parameterisation) <= 1
        widths = {tuple(c.width for c in group) for group in axes_of(listed, "width")}
        assert widths == {
            tuple(
                sorted(
                    {*settings.widths, *((settings.width,) * (settings.depth in settings.depths))}
                )
            )
        }
    paper = conditions(PRESETS["paper"])
    assert {2, 1024} <= {c.width for c in paper} and {1, 2, 3, 4} == {c.depth for c in paper}
    assert {30, 1000} <= {c.n for c in paper} and PRESETS["paper"].num_seeds == 10
    problem = cell_problem(Cell("moons", paper[0]._replace(n=40), 3), SMALL)
    np.testing.assert_array_equal(problem.regions[TRAIN], problem.X)
    noisy = cell_problem(Cell("linear_regression", paper[0], 3), SMALL)
    assert noisy.noise_sd == pytest.approx(5 * make_problem("linear_regression").noise_sd)


def test_correlations_are_those_of_logarithms_at_all_locations_or_none():
    sq_norm = np.geomspace(1e-3, 10, 12)
    projected = Projected(sq_norm, 0.5 * sq_norm[:, None])
    row = _compared(sq_norm**3, projected, sq_norm**2, LAPLACE)
    assert row["log10_pearson"] == pytest.approx(1) == row["order"] and row["reason"] == ""
    assert row["pearson"] < 0.999
    some = np.where(np.arange(12) < 2, 0.0, sq_norm)
    row = _compared(some, projected, sq_norm, LAPLACE)
    assert row["log10_pearson"] is row["order"] is None and row["pearson"] is not None
    assert row["reason"] == "log10 undefined: 2 of 12 locations have no positive value"


def test_a_slope_is_over_the_sizes_that_have_a_value():
    assert slope([1.0, 2.0, 4.0], [3.0, None, 9.0]) == pytest.approx(2)
    assert slope([1.0, 2.0], [3.0, None]) is None
    assert slope([1.0, 2.0], [1e9 + 0.1, 1e9 + 0.1]) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ranks": (10, 200)}, "ranks must be at most 100, the directions .* of moons"),
        ({"ranks": (10,), "ns": (5,)}, "ranks must be at most 5"),
        ({"ranks": (1, 3)}, r"rank must be one of ranks, \(1, 3\), got 10"),
        ({"parameterisations": ("mup",)}, "parameterisations must be one of .*, got 'mup'"),
        ({"points": ("mean",)}, "points must be one of"),
        ({"problems": ("moon",)}, "problems must be one of"),
        ({"widths": (8, 8)}, "widths must have at least one value and none twice"),
        ({"widths": (0,)}, "widths must be an integer from 1"),
        ({"depths": ()}, "depths must have at least one value"),
        ({"ns": (1,)}, "ns must be an integer from 2"),
        ({"num_draws": 5000}, "num_draws must be an integer from 8 to 1000, got 5000"),
        ({"prior_sd": -1.0}, "prior_sd must be"),
        ({"lanczos_steps": 1}, "lanczos_steps must be"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        check(dataclasses.replace(Settings(), **change))


def test_figures_of_nothing_say_so():
    for draw in (
        lambda: figures.spectra([], [], "moons"),
        lambda: figures.shares([], conditions(SMALL)[0], (1,), "moons"),
        lambda: figures.ratios([], [], "moons"),
        lambda: figures.trends([], {"width": [], "depth": []}, "moons"),
        lambda: figures.correction([], "cure", ""),
    ):
        with pytest.raises(NothingToDraw):
            draw()


def test_figures_are_drawn_of_planted_rows():
    rows = planted(seeds=2)
    results, listed = Results(rows), conditions(SMALL)
    groups = {axis: axes_of(listed, axis) for axis in ("width", "depth")}
    summary = summarise(results)
    assert len(figures.trends(summary, groups, "moons").axes) == len(figures.TRENDS)
    ratios = figures.ratios(summary, groups["width"], "moons")
    assert len(ratios.axes) == 2
    (legend,) = ratios.legends
    assert "0.1, below which" in legend.get_texts()[-1].get_text()  # the line
    assert len(figures.shares(summary, listed[0], (10,), "moons").axes) == 1
    assert len(figures.correction(verdicts(results, 10), "cure", "r").axes) == 2


def test_the_command_in_small(tmp_path, capsys, monkeypatch):
    plots = report._plots
    monkeypatch.setattr(report, "_plots", lambda *given: plots(*given)[:1])  # others: see above
    sampling = SamplerSettings(
        num_warmup=20, num_draws=40, max_draws=40, block=20, num_kept=80, locations_per_region=4,
        gate=GateSettings(ess_min=1, rhat_max=100, khat_max=100),
    )  # fmt: skip
    settings = Settings(
        problems=("moons",), width=3, widths=(3,), depths=(1,), ns=(30,), n=30,
        parameterisations=("ntk",), num_seeds=2, points=("draw",), num_draws=40,
        ranks=(1, 10), sampling=sampling,
        out=str(tmp_path / "run"), executor="serial", figures="shown",
    )  # fmt: skip
    assert run_study(STUDY, settings)
    said = capsys.readouterr().out
    assert "2 of 2 cells" in said and "Karakida" not in said  # a single width has no slope
    folder = RunFolder.load(tmp_path / "run")
    rows = rows_of_run(folder, ROW)
    names = [ISOTROPIC, "removed_1", "low_rank_1", "removed_10", "low_rank_10", LAPLACE, DRAWS]
    at = {(r["seed"], r["point"], r["region"], r["form"]): r for r in rows}
    regions = ("train", "test", "grid", "far")
    expected = set(itertools.product((300, 301), ["draw"], regions, names))
    expected |= set(itertools.product((300, 301), ["draw"], [ALL], [LAPLACE]))
    expected |= set(itertools.product((300, 301), ["posterior"], [ALL], [DRAWS]))
    assert set(at) == expected
    for seed in (300, 301):
        isotropic = at[seed, "draw", "test", ISOTROPIC]
        assert isotropic["ratio_mean"] == 1 and isotropic["ratio_cv"] == 0
        assert isotropic["ratio_pearson"] is None
        laplace = at[seed, "draw", "train", LAPLACE]
        assert 0 < laplace["ratio_mean"] < at[seed, "draw", "far", LAPLACE]["ratio_mean"] <= 1
        assert (
            at[seed, "draw", "test", "removed_10"]["share"]
            > at[seed, "draw", "test", "removed_1"]["share"]
        )
    drawn = {path.stem for path in (folder.path / "figures").glob("*.png")}
    assert drawn == {"spectra-moons"}
    there = publish.publish(STUDY, folder, tmp_path / "small")
    published = RunFolder.load(there)
    assert rows_of_run(published, ROW) == rows  # six digits, in records and tables alike
    said = (there / "reading.md").read_text()
    assert said.startswith("# Reading of small") and "“Outliers, Hessian” (the" in said
    again = STUDY.report(published, settings)
    assert said == publish.reading_page(there.name, STUDY, again)
    with pytest.raises(ValueError, match=r"has no results\.csv"):
        empty = RunFolder.open(tmp_path / "none", stored_settings(settings), study="spectrum")
        report_run(STUDY, empty)
    with pytest.raises(SystemExit) as ended:
        main(STUDY, ["--parameterisations", "mup", "--out", str(tmp_path / "bad")])
    assert "parameterisations must be one of" in str(ended.value.code)


def test_rows_that_somebody_edited_are_refused(tmp_path):
    folder = RunFolder.open(tmp_path / "run", stored_settings(SMALL), study="spectrum")
    rows = planted(lambda row: {"pearson": 3.0})
    folder.write(Record("moons", {"rows": rows}, {}))
    with pytest.raises(Unreadable, match=r"pearson of row .* must be"):
        rows_of_run(folder, ROW)
