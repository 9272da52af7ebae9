"""Verdicts, figures and the reading of made up rows; a cell with made up draws, start to end."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from isounc.fields import Unreadable
from isounc.models import Model
from isounc.runs import publish
from isounc.runs.command import main
from isounc.runs.folder import Record, RunFolder
from isounc.runs.settings import stored_settings
from isounc.runs.study import run_study
from isounc.runs.style import NothingToDraw
from isounc.runs.tables import rows_of_run
from isounc.sampling.gate import fail, gate
from isounc.sampling.moments import Moments, Posterior
from isounc.statistics import compare
from isounc.studies.covariance import cell, figures
from isounc.studies.covariance.cell import PRIOR, STRUCTURE, Key
from isounc.studies.covariance.reading import Tables, reading
from isounc.studies.covariance.reading_tables import reading_tables
from isounc.studies.covariance.report import make_report
from isounc.studies.covariance.settings import ALL, PRESETS, Settings, batches
from isounc.studies.covariance.study import STUDY
from isounc.studies.covariance.tables import (
    OTHERS,
    ROW,
    Place,
    Results,
    summarise,
    verdicts,
)
from isounc.training import TrainSettings

R = {
    ("full", "train"): 0.8, ("full", "fresh"): 0.79, ("full", "shifted_4"): 0.3,
    ("full", "tight"): 0.4, ("diagonal", "train"): 0.7, ("diagonal", "fresh"): 0.7,
    ("diagonal", "shifted_4"): 0.69, ("diagonal", "tight"): 0.5,
    **dict.fromkeys(itertools.product(["isotropic"], ["train", "fresh", "shifted_4", "tight"]), 0.75),
}  # fmt: skip


FEW = {kind: level for kind, level in R.items() if "fresh" not in kind and "diagonal" not in kind}


def made_up(problems=("moons", "xor"), seeds=4, change=lambda row: {}, r=R):
    """Rows with about these correlations; isotropic has the same for every proxy."""
    rng, rows = np.random.default_rng(0), []
    for problem, seed, region in itertools.product(problems, range(seeds), ("test", "grid", ALL)):
        noise = {form: 0.02 * rng.standard_normal() for form in ("isotropic",)}
        for (form, proxy), level in r.items():
            e = noise.get(form, 0.02 * rng.standard_normal())
            row = {
                "problem": problem, "width": 8, "seed": seed, "point": "map", "proxy": proxy,
                "form": form, "lam": 1.0, "region": region, "pearson": level + e,
                "spearman": level + e, "log2_level": 1.0 + e, **dict.fromkeys(STRUCTURE),
                "gate": "pass", "gate_reasons": "", "reason": "",
            }  # fmt: skip
            if region == ALL:
                row["slope_train"] = -0.5 + e
                if proxy != "train":
                    row["slope_proxy"] = {"full": 1.0, "isotropic": 0.2}.get(form, 0.5) + e
            if region == "grid" and proxy != "train":
                row["alignment_change"] = 0.6 + e
            rows.append(row | change(row))
    return rows


def of(rows, **where):
    found = [r for r in rows if all(r[name] == value for name, value in where.items())]
    assert len(found) == 1, (where, len(found))
    return found[0]


def values(rows, problem, form, proxy, region="test"):
    where = (problem, form, proxy, region)
    names = ("problem", "form", "proxy", "region")
    return np.array([r["pearson"] for r in rows if tuple(r[n] for n in names) == where])


ABOUT = {"width": 8, "point": "map", "region": "test", "statistic": "pearson"}


def test_verdicts_are_paired_and_agree_with_scipy():
    rows = made_up()
    found = verdicts(Results(rows))
    row = of(found, hypothesis="distorts", problem="moons", proxy="tight", **ABOUT)
    pair = values(rows, "moons", "full", "tight"), values(rows, "moons", "full", "train")
    direct = stats.ttest_rel(*pair).confidence_interval(0.95)
    assert row["mean"] == pytest.approx((pair[0] - pair[1]).mean(), rel=1e-12)
    assert (row["low"], row["high"]) == pytest.approx((direct.low, direct.high), rel=1e-9)
    row = of(found, hypothesis="isotropic wins", problem="xor", proxy=OTHERS, **ABOUT)
    others = [values(rows, "xor", "full", p) for p in ("shifted_4", "tight")]
    differences = values(rows, "xor", "isotropic", "tight") - np.mean(others, axis=0)
    direct = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((direct.low, direct.high), rel=1e-9)
    row = of(found, hypothesis="distorts", problem=ALL, proxy=OTHERS, **ABOUT)
    assert (row["num_problems"], row["num_seeds"], row["verdict"]) == (2, 8, "confirmed")
    # Slopes of the full form less those of the isotropic one, over all locations alone.
    slopes = [r for r in found if r["hypothesis"] == "structured"]
    assert {r["region"] for r in slopes} == {ALL}
    row = of(slopes, problem=ALL, proxy=OTHERS)
    assert row["mean"] == pytest.approx(0.8, abs=0.05) and row["verdict"] == "confirmed"


def test_planted_rows_confirm_refute_and_stay_undecided():
    def said(changes):
        rows = [row for row in made_up(r=R | changes) if row["region"] == "test"]
        found = verdicts(Results(rows))
        return lambda name, proxy=OTHERS: of(
            found, problem=ALL, hypothesis=name, proxy=proxy, **ABOUT
        )["verdict"]

    verdict = said({})
    assert verdict("distorts", "fresh") == "undecided"
    assert verdict("diagonal suffers little", "shifted_4") == "confirmed"
    assert verdict("diagonal suffers little", "tight") == "refuted"
    verdict = said({("full", "shifted_4"): 0.95, ("full", "tight"): 0.9})
    assert verdict("distorts") == "refuted" and verdict("isotropic wins") == "refuted"
    verdict = said(dict.fromkeys([("isotropic", p) for _, p in list(R)[:4]], 0.2))
    assert verdict("isotropic costs little", "train") == "refuted"


def tables_of(rows):
    results = Results(rows)
    return Tables(results, rows, summarise(results), verdicts(results))


def test_failed_and_undefined_rows_are_in_no_number_and_counted():
    def change(row):
        failed = row["problem"] == "moons" and row["seed"] == 0
        undefined = row["seed"] == 1 and row["proxy"] == "tight" and row["form"] == "full"
        gate = {"gate": "fail", "gate_reasons": "R-hat is 2", "pearson": -1.0} if failed else {}
        return gate | ({"pearson": None} if undefined else {})

    rows = made_up(change=change, r=FEW)
    tables = tables_of(rows)
    line = of(tables.summary, problem="moons", proxy="tight", form="full", region="test", lam=1.0)
    assert (line["num_cells"], line["num_failed"], line["num_seeds"]) == (4, 1, 2)
    kept = [v for v in values(rows, "moons", "full", "tight") if v is not None and v > -1]
    assert line["pearson_mean"] == pytest.approx(np.mean(kept), rel=1e-12)
    row = of(tables.verdicts, hypothesis="distorts", problem=ALL, proxy=OTHERS, **ABOUT)
    assert row["num_seeds"] == 2 + 3  # seed 1 lacks one of the proxies
    assert "Failed, and in no number: moons at width 8, map, test: 1;" in reading(tables)[0]
    every = [dict(row, gate="fail") for row in rows if row["region"] == "test"]
    assert verdicts(Results(every)) == []
    with pytest.raises(NothingToDraw):
        figures.by_proxy(Results(every), 8, "map")


def test_figures_and_the_reading_show_the_tables():
    rows = made_up(r=FEW)
    tables = tables_of(rows)
    results = tables.results
    said = "\n".join(reading(tables))
    assert "the full Σ from training inputs 0.80 / 0.80" in said.replace("0.79", "0.80")
    row = of(tables.verdicts, hypothesis="distorts", problem=ALL, proxy=OTHERS, **ABOUT)
    assert f"confirmed in test ({row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}];" in said
    first, column, *_ = reading_tables(tables)[1].rows[0]
    assert first == "distorts" and column.startswith(f"{row['mean']:+.2f} ✓ ")
    # A region without a number keeps its place.
    gone = [dict(row, gate="fail") if row["region"] == "test" else row for row in rows]
    lost = reading_tables(tables_of(gone))[1].rows[0][1]
    assert lost == "- " + column.split(" ✓ ", 1)[1]
    figure = figures.by_proxy(results, 8, "map")
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels[:2] == ["training inputs", "shifted by 4 sd"]
    key, place = Key("map", "tight", "full", PRIOR), Place(8, "map", "test")
    mean = results.mean_over(place, key, "pearson", ALL).interval.mean
    centres = [x.get_xdata()[0] for x in figure.axes[0].lines if len(x.get_xdata()) == 1]
    assert any(np.isclose(x, mean) for x in centres)
    assert figures.slopes(results, 8, "map").axes[0].lines
    with pytest.raises(NothingToDraw, match="one width"):
        figures.by_width(results, "map")
    with pytest.raises(NothingToDraw, match="one value"):
        figures.by_lam(results, 8, "map")
    with pytest.raises(NothingToDraw, match="two inputs"):
        figures.maps([], "map")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problems": ("xorr",)}, "problems must be one of .*did you mean 'xor'"),
        ({"proxies": ("train", "shifted")}, "proxies must be one of .*shifted_1"),
        ({"proxies": ("fresh",)}, "proxies must have train among them"),
        ({"forms": ("full", "kfak")}, "forms must be one of .*did you mean 'kfac'"),
        ({"forms": ("diagonal",)}, "forms must have full among them"),
        ({"forms": ("full", "full")}, "forms must have at least one value and none twice"),
        ({"points": ("draw",)}, "points must be one of"),
        ({"widths": ()}, "widths must have at least one value"),
        ({"widths": (0,)}, "widths must be an integer from 1"),
        ({"lams": (0.0,)}, "lams must be a positive"),
        ({"lams": (float("nan"),)}, "lams must be a"),
        ({"lams": (-1.0,)}, "lams must be a positive"),
        ({"lams": (1.0,)}, "lams must not repeat a value or 1"),
        (
            {"widths": (2,), "rank": 10},
            "rank must be an integer from 1 to 9, as moons at width 2 has",
        ),
        ({"rank": 0}, "rank must be an integer from 1 to 65"),
        ({"n": 8}, "rank must be an integer from 1 to 8, .* the GGN of its 8 inputs"),
        ({"num_directions": 65}, "num_directions must be an integer from 1 to 64"),
        ({"prior_sd": 0.0}, "prior_sd must be a positive"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        STUDY.check(dataclasses.replace(Settings(), **changes))


def test_presets_can_be_run_and_have_names_of_their_own():
    assert [settings.num_seeds for settings in PRESETS.values()] == [5, 5, 10]
    STUDY.check(PRESETS["paper"])
    for settings in PRESETS.values():
        names = [one.name for batch in batches(settings) for one in batch]
        assert len(set(names)) == len(names)
    planned = [cells for group in STUDY.plan(PRESETS["quick"]) for _, cells, *_ in group]
    assert sorted(planned, key=str) == sorted(batches(PRESETS["quick"]), key=str)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pearson": 1.5}, r"pearson of row 0 of record 'a' must be a finite number from"),
        ({"proxy": "near"}, "proxy of row 0 .* must be one of train"),
        ({"lam": 0.0}, "lam of row 0 .* must be a finite number"),
        ({"r2": float("inf")}, "r2 of row 0 .* must be a finite number"),
    ],
)
def test_edited_records_are_refused(tmp_path, change, message):
    folder = RunFolder.open(tmp_path / "run", stored_settings(Settings()), study="covariance")
    with pytest.raises(ValueError, match=r"no results.csv"):
        rows_of_run(folder, ROW)
    folder.write(Record("a", {"rows": [made_up()[0] | change]}, {}))
    with pytest.raises(Unreadable, match=message):
        rows_of_run(folder, ROW)


def drawn(problems, model: Model, **_):
    """Posteriors made from random draws in place of sampling; one fails, one in one region alone."""
    found = []
    for problem in problems:
        draws = np.random.default_rng(0).standard_normal((60, model.num_params))
        X = np.concatenate(list(problem.regions.values()))
        p = np.asarray(jax.vmap(lambda draw, X=X: model.predict(draw, X))(draws), float)
        ends = np.cumsum([len(x) for x in problem.regions.values()])[:-1]
        mean, var = (np.split(a, ends) for a in (p.mean(0), p.var(0)))
        regions = {
            name: Moments(m, 0 * m, v, 0 * v, v, 0 * v, m[:, 0], m[:, 0], m[:, 0])
            for name, m, v in zip(problem.regions, mean, var, strict=True)
        }
        verdict = gate(
            p[:, :5, 0].reshape(2, 30, 5), energy=None, num_divergent=0, num_saturated=0,
            num_transitions=60,
        )._replace(passed=True, reasons=())  # fmt: skip
        found.append(
            Posterior(
                model, regions, verdict, draws, None, {}, 2, 30, 1, np.ones(2), 0.8,
                "prior", "hmc", "made up",
            )
        )  # fmt: skip
    found[-1] = dataclasses.replace(found[-1], gate=fail(found[-1].gate, "made to fail"))
    alone = fail(found[0].gate, "far is poor")._replace(of_regions={"far": "far is poor"})
    found[0] = dataclasses.replace(found[0], gate=alone)
    return found


def test_a_run_is_computed_reported_and_published(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cell, "sample_posteriors", drawn)
    monkeypatch.setattr("isounc.studies.covariance.report._plots", lambda *_: [])  # drawn above
    settings = Settings(
        problems=("moons",), widths=(3,), num_seeds=4, n=20, points=("trained",), lams=(10.0,),
        proxies=("train", "fresh", "tight", "permuted"), rank=2, num_directions=2, cache="",
        executor="serial", forms=("full", "kfac", "isotropic"), train=TrainSettings(epochs=60),
        out=str(tmp_path / "run"),
    )  # fmt: skip
    assert run_study(STUDY, settings)
    folder = RunFolder.load(tmp_path / "run")
    assert folder.names() == [f"moons-w3-seed{seed}" for seed in (200, 201, 202, 203)]
    rows = folder.results
    assert len(rows) == 4 * 3 * (3 + 1) * (3 + 1)  # seeds, proxies, forms and lambda, regions
    assert set(rows.query("seed == 203")["gate"]) == {"fail"}
    first = rows.query("seed == 200 and gate == 'fail'")
    assert set(first["region"]) == {"far", "all"} and set(first["gate_reasons"]) == {"far is poor"}
    record = folder.require("moons-w3-seed200")
    # Rows are those of the arrays.
    estimate, truth = record.arrays["far/trained/tight/kfac"], record.arrays["far/mcmc_var"][:, 0]
    where = "seed == 200 and proxy == 'tight' and form == 'kfac' and region == 'far' and lam == 1"
    (row,) = rows.query(where).to_dict("records")
    assert row["pearson"] == pytest.approx(compare(estimate, truth).pearson, rel=1e-3, abs=1e-4)
    # An isotropic form is one estimate for every proxy, but for its level.
    one, two = (record.arrays[f"grid/trained/{p}/isotropic"] for p in ("train", "tight"))
    np.testing.assert_allclose(one / two, one[0] / two[0], rtol=1e-5)
    # What seeds agree on is over those that passed.
    known = rows.query("region == 'grid' and form == 'full' and proxy == 'tight' and lam == 1")
    assert known["alignment_change"].notna().sum() == 3
    spaces = rows.query("region == 'all' and form == 'full' and proxy == 'fresh' and lam == 1")
    assert spaces["log2_stiff"].notna().all() and spaces["slope_proxy"].notna().all()
    assert "The run has 4 of 4 cells." in capsys.readouterr().out
    figure = figures.maps(list(folder.records())[:2], "trained")
    assert len(figure.axes) == 2 * 3 + 1  # two seeds, three of the covariances, the colours
    there = publish.publish(STUDY, folder, tmp_path / "published")
    said = (there / "reading.md").read_text()
    assert "\n\n4 cells: moons at width 3, seeds 200 to 203. Failed" in said
    assert said == publish.reading_page(there.name, STUDY, make_report(folder, settings))


def test_help_states_the_protocol(capsys):
    with pytest.raises(SystemExit) as ended:
        main(STUDY, ["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for word in ("--num-directions", "Protocol, fixed before the first run", "*refuted*"):
        assert word in said
