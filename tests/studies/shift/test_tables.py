"""Verdicts, figures and the reading of made up rows; data of every problem; a run, start to end."""

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
from isounc.studies.shift import cell, figures
from isounc.studies.shift.cell import IN_DISTRIBUTION, NUMBERS
from isounc.studies.shift.detection import detect
from isounc.studies.shift.reading import Tables, reading
from isounc.studies.shift.report import make_report
from isounc.studies.shift.scores import SCORES
from isounc.studies.shift.settings import ALL, PRESETS, Settings, batches
from isounc.studies.shift.shifts import SHIFTS, make_sets
from isounc.studies.shift.study import STUDY
from isounc.studies.shift.tables import ROW, Results, summarise, verdicts
from isounc.training import TrainSettings

LEVELS = {"isotropic": 0.7, "gradnorm": 0.3, "gradnorm_output": 0.25, "energy": 0.9, "mcmc": 0.68}
PLACES = (
    ("digits", "mlp", ("classes", "noise")),
    ("digits", "cnn", ("classes", "noise")),
    ("wine", "mlp", ("shifted", "permuted")),
    ("linear", "mlp", ("far",)),
    ("linear", "logistic", ("far",)),
)


def made_up(seeds=4, change=lambda row: {}):
    """Rows with about these AUROCs; far shifts are .1 easier, and logistic regression is mistaken."""
    rng, rows = np.random.default_rng(0), []
    for (problem, network, shifts), seed, score in itertools.product(PLACES, range(seeds), LEVELS):
        if score == "mcmc" and problem == "digits":
            continue
        for shift in (IN_DISTRIBUTION, *shifts):
            e = 0.02 * rng.standard_normal()
            row = {
                "problem": problem, "network": network, "seed": seed, "score": score,
                "higher": SCORES[score].higher, "shift": shift, **dict.fromkeys(NUMBERS),
                "kind": SHIFTS[shift].kind if shift in SHIFTS else "in",
                "alarms": 0.05 + e / 10, "gate": "pass", "gate_reasons": "", "reason": "",
            }  # fmt: skip
            if shift == IN_DISTRIBUTION:
                row |= {"expected": 0.05, "excess": e / 10, "excess_train": 0.1 + e / 10}
                row["alarms_train"] = 0.15 + e / 10
            else:
                level = LEVELS[score] + 0.1 * (SHIFTS[shift].kind == "far") + e
                level = 1 - level if network == "logistic" else min(level, 1.0)
                row |= dict.fromkeys(("auroc", "aupr", "fpr95"), level)
                row["log2_ratio"] = (-3.0 if network == "logistic" else 2.0) + e
            rows.append(row | change(row))
    return rows


def of(rows, **where):
    found = [r for r in rows if all(r[name] == value for name, value in where.items())]
    assert len(found) == 1, (where, len(found))
    return found[0]


def values(rows, problem, network, score, shift, column="auroc"):
    where = (problem, network, score, shift)
    names = ("problem", "network", "score", "shift")
    return np.array([r[column] for r in rows if tuple(r[n] for n in names) == where])


def tables_of(rows):
    results = Results(rows)
    return Tables(results, rows, summarise(results), verdicts(results))


def test_verdicts_are_paired_and_agree_with_scipy():
    rows = made_up()
    found = verdicts(Results(rows))
    where = {"hypothesis": "isotropic wins", "score": "isotropic"}
    row = of(found, problem="wine", network="mlp", rival="energy", shift="shifted", **where)
    pair = [values(rows, "wine", "mlp", score, "shifted") for score in ("isotropic", "energy")]
    direct = stats.ttest_rel(*pair).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((direct.low, direct.high), rel=1e-9)
    assert row["verdict"] == "refuted"
    # Over the problems: a seed of digits is the mean of its networks, one of wine that of its shifts.
    row = of(found, problem=ALL, network=ALL, rival="gradnorm", shift="near", **where)
    digits = np.mean([
        values(rows, "digits", network, "isotropic", "classes")
        - values(rows, "digits", network, "gradnorm", "classes")
        for network in ("mlp", "cnn")
    ], axis=0)  # fmt: skip
    wine = np.mean([
        values(rows, "wine", "mlp", "isotropic", shift)
        - values(rows, "wine", "mlp", "gradnorm", shift)
        for shift in ("shifted", "permuted")
    ], axis=0)  # fmt: skip
    assert row["mean"] == pytest.approx((digits.mean() + wine.mean()) / 2, rel=1e-12)
    assert (row["num_problems"], row["num_seeds"], row["verdict"]) == (2, 8, "confirmed")
    row = of(found, problem=ALL, network="mlp", rival="energy", shift=ALL, **where)
    assert (row["num_problems"], row["num_seeds"]) == (3, 12)


def test_planted_rows_get_their_verdicts():
    found = verdicts(Results(made_up()))

    def said(hypothesis, network=ALL, **where):
        of_one = {"problem": ALL, "network": network, "score": "isotropic", "rival": ""} | where
        return of(found, hypothesis=hypothesis, **of_one)["verdict"]

    assert said("detects", shift="near") == "confirmed"
    # A stated sign that is wrong is refuted, never turned round.
    assert said("detects", shift="near", score="gradnorm") == "refuted"
    assert said("detects", network="logistic", shift="far") == "refuted"
    assert said("larger out", shift="far") == "confirmed"
    assert said("larger out", network="logistic", shift="far") == "refuted"
    assert said("near the ceiling", shift="near", rival="mcmc") == "confirmed"
    both = {"score": "gradnorm", "rival": "gradnorm_output"}
    assert said("features help", shift="near", **both) == "confirmed"
    assert said("keeps its rate", shift=IN_DISTRIBUTION) == "confirmed"
    assert said("keeps its rate from training", shift=IN_DISTRIBUTION) == "refuted"
    ceiling = [row for row in found if row["hypothesis"] == "near the ceiling"]
    assert {row["problem"] for row in ceiling} == {ALL, "wine", "linear"}


def test_failed_and_undefined_rows_are_in_no_number_and_counted():
    def change(row):
        if (row["problem"], row["seed"], row["score"]) == ("wine", 0, "mcmc"):
            return {"gate": "fail", "gate_reasons": "R-hat is 2", "auroc": 0.0}
        undefined = (row["problem"], row["seed"], row["shift"]) == ("wine", 1, "shifted")
        return {"auroc": None, "reason": "it is not finite"} if undefined else {}

    rows = made_up(change=change)
    tables = tables_of(rows)
    line = of(tables.summary, problem="wine", network="mlp", score="mcmc", shift="permuted")
    assert (line["num_cells"], line["num_failed"], line["num_seeds"]) == (4, 1, 3)
    kept = values(rows, "wine", "mlp", "mcmc", "permuted")[1:]
    assert line["auroc_mean"] == pytest.approx(kept.mean(), rel=1e-12)
    row = of(
        tables.verdicts, hypothesis="near the ceiling", problem="wine", shift="shifted",
        network="mlp",
    )  # fmt: skip
    assert row["num_seeds"] == 2  # seed 0 failed, seed 1 lacks the number
    assert "no number there: the posterior of wine (mlp): 1 of the seeds" in reading(tables)[0]
    assert "energy on wine (mlp), it is not finite: 1 of the seeds" in reading(tables)[0]
    every = [dict(row, gate="fail") for row in rows]
    assert verdicts(Results(every)) == []
    with pytest.raises(NothingToDraw):
        figures.by_score(Results(every))


def test_figures_and_the_reading_show_the_tables():
    tables = tables_of(made_up())
    results, said = tables.results, "\n".join(reading(tables))
    line = of(tables.summary, problem=ALL, network="cnn", score="energy", shift="near")
    assert f"a small CNN. Near: energy {line['auroc_mean']:.2f}, isotropic" in said
    row = of(
        tables.verdicts, hypothesis="larger out", problem="linear", network="logistic",
        score="isotropic", shift="far",
    )  # fmt: skip
    ends = f"{row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
    assert f"linear, isotropic ‖∇p‖²: factors of 2 {ends}, refuted; AUROC 0.2" in said
    figure = figures.by_score(results)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["near", "far"]
    centres = [x.get_xdata()[0] for x in figure.axes[0].lines if len(x.get_xdata()) == 1]
    assert any(np.isclose(x, line["auroc_mean"]) for x in centres)
    labels = [tick.get_text() for tick in figures.differences(results).axes[0].get_yticklabels()]
    assert labels[0] == "GradNorm (↓ out)" and len(labels) == 4
    assert len(figures.rates(results).axes) == 3
    assert len(figures.by_shift(results, "wine").axes) == 2
    with pytest.raises(NothingToDraw, match="no record"):
        figures.distributions([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problems": ("moon",)}, "problems must be one of .*did you mean 'moons'"),
        ({"problems": ("nonlinear_regression",)}, "problems must be one of"),
        ({"shifts": ("rotatd",)}, "shifts must be one of .*did you mean 'rotated'"),
        ({"scores": ("isotropic", "odn")}, "scores must be one of .*did you mean 'odin'"),
        ({"scores": ("msp",)}, "scores must have isotropic among them"),
        (
            {"scores": ("isotropic", "isotropic")},
            "scores must have at least one value and none twi",
        ),
        ({"networks": ("cnn",)}, "networks must have one that wine has, got cnn"),
        ({"shifts": ("noise",)}, "shifts must have one that wine has, got noise"),
        ({"sampled": ("moon",)}, "sampled must be one of"),
        ({"n": 1}, "n must be an integer from 2"),
        ({"n": 177}, "n of wine must be an integer from 2 to 176"),
        (
            {"n": 150},
            "num_eval must leave wine 19 inputs or more for an alarm rate of 0.05, got 14",
        ),
        ({"knn_k": 100}, "knn_k of wine must be an integer from 1 to 99"),
        ({"knn_k": 0}, "knn_k of wine must be an integer from 1"),
        ({"alarm": 0.0}, "alarm must be between 0 and 1"),
        ({"dropout_rate": 1.0}, "dropout_rate must be between 0 and 1"),
        ({"temperature": 0.0}, "temperature must be a positive"),
        ({"epsilon": float("nan")}, "epsilon must be a"),
        ({"num_members": 1}, "num_members must be an integer from 2"),
        ({"train": TrainSettings(patience=3)}, "train.patience must be 0, got 3"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        STUDY.check(dataclasses.replace(Settings(problems=("wine",)), **changes))


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
        ({"auroc": 1.5}, r"auroc of row 0 of record 'a' must be a finite number from"),
        ({"higher": "up"}, "higher of row 0 .* must be one of out, in"),
        ({"score": "odn"}, "score of row 0 .* must be one of"),
        ({"log2_ratio": float("inf")}, "log2_ratio of row 0 .* must be a finite number"),
    ],
)
def test_edited_records_are_refused(tmp_path, change, message):
    folder = RunFolder.open(tmp_path / "run", stored_settings(Settings()), study="shift")
    with pytest.raises(ValueError, match=r"no results.csv"):
        rows_of_run(folder, ROW)
    folder.write(Record("a", {"rows": [made_up()[0] | change]}, {}))
    with pytest.raises(Unreadable, match=message):
        rows_of_run(folder, ROW)


def test_data_are_split_and_shifted_as_stated():
    how = {"n": 300, "num_eval": 100, "seed": 1}
    sets = make_sets("digits", tuple(SHIFTS), **how)
    assert (
        list(sets.shifted) == ["classes", "rotated", "shuffled", "noise"] and sets.num_classes == 5
    )
    assert len(sets.X) == 300 and {len(x) for x in sets.shifted.values()} == {100}
    again = make_sets("digits", ("rotated",), **how)
    np.testing.assert_array_equal(again.test, sets.test)
    rows = [{tuple(x) for x in part} for part in (sets.X, sets.validation, sets.test)]
    assert not rows[0] & rows[1] and not rows[1] & rows[2] and not rows[0] & rows[2]
    assert not {tuple(x) for x in sets.shifted["classes"]} & set().union(*rows)
    turned = np.rot90(sets.shifted["rotated"].reshape(-1, 8, 8), k=-1, axes=(1, 2))
    np.testing.assert_array_equal(turned.reshape(100, 64), sets.test)
    (order,) = [np.sort(sets.shifted["shuffled"], axis=1)]
    np.testing.assert_array_equal(order, np.sort(sets.test, axis=1))
    levels = np.unique(np.round((sets.shifted["noise"] - sets.shifted["noise"].min()) * 1e6))
    assert len(levels) == 17  # pixels from 0 to 16, in one unit
    wine = make_sets("wine", tuple(SHIFTS), n=100, num_eval=200, seed=0)
    assert len(wine.validation) == len(wine.test) == len(wine.test_y) == 39
    np.testing.assert_allclose(wine.X.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(np.abs(wine.shifted["shifted"] - wine.test), 1.0, rtol=1e-9)
    permuted = wine.shifted["permuted"]
    np.testing.assert_array_equal(np.sort(permuted, axis=0), np.sort(wine.test, axis=0))
    assert (permuted != wine.test).any(axis=0).all()
    for call, message in (
        (lambda: make_sets("digit", (), **how), "problem must be one of .*did you mean 'digits'"),
        (lambda: make_sets("wine", ("fair",), **how), "shifts must be one of .*did you mean 'far'"),
        (
            lambda: make_sets("wine", (), **how),
            "n of wine must be an integer from 2 to 176, got 300",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_rows_of_few_training_inputs_and_of_no_values():
    ends = {"train": 6, "validation": 25, "test": 45, "far": 65}
    starts = [0, *ends.values()]
    places = {name: slice(a, b) for (name, b), a in zip(ends.items(), starts, strict=False)}
    values = np.r_[np.zeros(25), np.arange(20.0), np.full(20, 30.0)]
    test, far = cell.rows_of("isotropic", values, places, 0.05)
    # Nineteen equal values set the threshold; six cannot set one.
    assert (test["alarms"], test["expected"], test["excess"]) == (0.95, 0.05, 0.95 - 0.05)
    assert test["alarms_train"] is far["alarms_train"] is None
    assert (far["auroc"], far["fpr95"], far["alarms"], far["kind"]) == (1.0, 0.0, 1.0, "far")
    assert far["log2_ratio"] == pytest.approx(np.log2(30 / 9.5))
    # GradNorm is to be smaller out of distribution, and is not turned round where it is larger.
    assert cell.rows_of("gradnorm", values, places, 0.05)[1]["auroc"] == 0.0
    zero = cell.rows_of("isotropic", 0 * values, places, 0.05)[1]
    assert (zero["auroc"], zero["log2_ratio"]) == (0.5, None)
    trained = np.r_[np.inf, np.zeros(20), values[6:]]  # enough of them, of which one is not finite
    more = {name: slice(p.start + 15 * (p.start > 0), p.stop + 15) for name, p in places.items()}
    assert cell.rows_of("isotropic", trained, more, 0.05)[0]["alarms_train"] is None
    none = cell.rows_of("isotropic", None, places, 0.05)
    assert all(row[name] is None for row in none for name in NUMBERS)


def drawn(problems, model: Model, **_):
    """Posteriors made from random draws in place of sampling; one fails in one region alone."""
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
    alone = fail(found[0].gate, "far is poor")._replace(of_regions={"far": "far is poor"})
    found[0] = dataclasses.replace(found[0], gate=alone)
    return found


def test_a_run_is_computed_reported_and_published(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cell, "sample_posteriors", drawn)
    monkeypatch.setattr("isounc.studies.shift.report._plots", lambda *_: [])  # drawn above
    settings = Settings(
        problems=("moons",), num_seeds=3, n=24, num_eval=20, width=4, cache="", num_passes=3,
        num_members=2, executor="serial", train=TrainSettings(epochs=60), out=str(tmp_path / "run"),
        sampled=("moons",),
        scores=("isotropic", "log_norm", "gradnorm", "knn", "dropout", "ensemble", "mcmc"),
    )  # fmt: skip
    assert run_study(STUDY, settings)
    folder = RunFolder.load(tmp_path / "run")
    assert folder.names() == [f"moons-mlp-seed{seed}" for seed in (300, 301, 302)]
    rows = folder.results
    assert len(rows) == 3 * 7 * 2  # seeds, scores, test and far
    failed = rows.query("gate == 'fail'")
    assert failed[["score", "seed", "shift"]].to_numpy().tolist() == [["mcmc", 300, "far"]]
    record = folder.require("moons-mlp-seed301")
    assert record.meta["accuracy"] > 0.7
    for name in ("isotropic", "gradnorm", "mcmc"):
        # Rows are those of the arrays, and the sign is the score's.
        inside, outside = (record.arrays[f"{part}/{name}"] for part in ("test", "far"))
        (row,) = rows.query(f"seed == 301 and score == '{name}' and shift == 'far'").to_dict(
            "records"
        )
        assert row["higher"] == SCORES[name].higher
        found = detect(inside, outside, higher=row["higher"])
        assert row["auroc"] == pytest.approx(found.auroc, rel=1e-5)
        ratio = np.log2(np.median(outside)) - np.log2(np.median(inside))
        assert row["log2_ratio"] == pytest.approx(ratio, rel=1e-5)
    test = rows.query("shift == 'test'")
    np.testing.assert_allclose(test["expected"], 1 / 21, rtol=1e-5)
    assert test["auroc"].isna().all()
    assert test.query("score == 'mcmc'")["excess_train"].isna().all()
    assert "The run has 3 of 3 cells." in capsys.readouterr().out
    figure = figures.distributions(list(folder.records()))
    assert len(figure.axes) == 4  # the norms that are shown, and the reference
    assert [len(line.get_xdata()) for line in figure.axes[-1].lines] == [60, 40]  # one seed failed
    there = publish.publish(STUDY, folder, tmp_path / "published")
    said = (there / "reading.md").read_text().split("\n\n")[1:-1]
    assert said[0].startswith("3 cells: moons; mlp; seeds 300 to 302. Failed, in one region")
    assert said == list(make_report(folder, settings).reading)


def test_help_states_the_protocol(capsys):
    with pytest.raises(SystemExit) as ended:
        main(STUDY, ["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for word in ("--knn-k", "Protocol, fixed before the first run", "*Confirmed*"):
        assert word in said
