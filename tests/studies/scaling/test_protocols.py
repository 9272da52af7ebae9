"""Protocols: each against its definition, its verdicts against other libraries, and what is skipped."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from isounc import densities
from isounc.models import make_model
from isounc.problems import PROBLEMS, make_problem
from isounc.runs.command import settings_of
from isounc.runs.folder import Record, RunFolder
from isounc.runs.study import run_study
from isounc.sampling.moments import Posterior
from isounc.statistics import interval_over_seeds
from isounc.studies.scaling.cell import cell_problem
from isounc.studies.scaling.paper import TABLE1
from isounc.studies.scaling.points import chain_mean, with_grid
from isounc.studies.scaling.protocols import (
    PROTOCOLS,
    cells,
    cells_of,
    check,
    num_examples,
    seed_batches,
    settings_of_cells,
    skipped_lines,
)
from isounc.studies.scaling.settings import PRESETS, Cell, Settings
from isounc.studies.scaling.stored import typed_rows
from isounc.studies.scaling.study import STUDY
from isounc.studies.scaling.unreachable import table, why_out_of_reach
from isounc.studies.scaling.verdicts import by_cell, closest_rows, verdict_rows

SLOW = os.environ.get("ISOUNC_SLOW") == "1"
POINTS = ("map", "trained", "draw")
DEFINED = {
    # axis, points, region, depths, prior sds, parameterisations, n, moment, view
    "near": ("width", POINTS, "test", {1}, {2}, {"ntk"}, {100}, "variance", "trace"),
    "wide": ("width", POINTS, "grid", {1}, {2}, {"ntk"}, {100}, "variance", "trace"),
    "depth": ("depth", POINTS, "test", {1, 2, 3, 4}, {2}, {"ntk"}, {100}, "variance", "trace"),
    "params": ("params", POINTS, "test", {1, 2, 3, 4}, {2}, {"ntk"}, {100}, "variance", "trace"),
    "thesis": (
        *("width", ("chain_mean",), "grid", {1}, {10}, {"standard"}, {1000}, "sd", "predicted"),
    ),
    "early": ("width", ("stopped",), "test", {1}, {2}, {"ntk"}, {100}, "variance", "trace"),
    "chain_mean": ("width", ("chain_mean",), "test", {1}, {2}, {"ntk"}, {100}, "variance", "trace"),
    "examples": (
        *("width", POINTS, "test", {1}, {2}, {"ntk"}, {30, 100, 300, 1000}, "variance", "trace"),
    ),
    "prior": (
        *("width", POINTS, "test", {1}, {0.5, 1, 2, 5, 10}, {"ntk"}, {100}, "variance", "trace"),
    ),
    "parameterisation": (
        *("width", POINTS, "test", {1}, {2}, {"ntk", "fan_in", "standard"}, {100}),
        *("variance", "trace"),
    ),
}


@functools.cache
def num_classes(problem):
    return make_problem(problem).num_classes


def given(*arguments):
    settings = settings_of(STUDY, arguments)
    check(settings)
    return settings


@pytest.mark.parametrize("preset", list(PRESETS))
def test_protocols_are_what_they_are_said_to_be(preset):
    assert list(DEFINED) == list(PROTOCOLS) and all(n in STUDY.description for n in DEFINED)
    settings = given("--preset", preset, "--protocol", "all", "--try-unreachable")
    for name, (axis, points, region, *fixed, moment, view) in DEFINED.items():
        protocol, found = PROTOCOLS[name], cells_of(name, settings)
        assert (protocol.axis, protocol.points, protocol.regions) == (axis, points, (region,))
        assert (protocol.moment, protocol.view) == (moment, view)
        depths, prior_sds, parameterisations, ns = fixed
        sets = [
            {getattr(cell, f) for cell in found} for f in ("depth", "prior_sd", "parameterisation")
        ]
        sets.append({num_examples(cell, settings) for cell in found})
        for values, wanted in zip(sets, (depths, prior_sds, parameterisations, ns), strict=True):
            assert values <= wanted if preset == "quick" else values == wanted
        assert len({getattr(cell, axis) for cell in found}) > 1 if axis != "params" else True
        for cell in found:
            classes = num_classes(cell.problem)
            of_thesis = name == "thesis"
            assert cell.activation == ("relu" if of_thesis and classes > 2 else "tanh")
            margin = (5.5 if classes == 2 else 1.5) if of_thesis else 0
            assert cell.grid_margin == margin and cell.problem in TABLE1
    if preset == "paper":
        widths = {cell.width for cell in cells_of("near", settings)}
        assert widths == {2, 4, 8, 16, 32, 64, 128, 256, 512}
        assert {cell.width for cell in cells_of("thesis", settings)} == widths - {2, 4}
    # Protocols share the records of equal cells.
    assert cells_of("near", settings) == cells_of("early", settings)
    assert set(cells_of("near", settings)) | set(cells_of("depth", settings)) == set(
        cells_of("params", settings)
    )
    names = [cell.name for cell in cells(settings)]
    assert len(set(names)) == len(names)


def test_without_protocols_the_run_is_what_it_was():
    settings = given()
    assert settings == PRESETS["quick"] and not skipped_lines(settings)
    first = cells(settings)[0]
    assert first == Cell("xor", 4, 1, "tanh", "ntk", 2.0, seed=0)
    assert first.name == "xor-w4-d1-tanh-ntk-sd2-seed0"
    assert settings_of_cells([first], settings) is settings
    assert len(cells(settings)) == 12
    # A cell that is out of reach is computed where somebody asks for it by settings alone.
    one = given("--problems", "spirals3", "--widths", "8", "--parameterisations", "standard",
                "--prior-sds", "10", "--n", "1000")  # fmt: skip
    assert len(cells(one)) == 1


@pytest.mark.parametrize("begun", [("--n", "100"), ("--n", "100", "--protocol", "near")])
def test_cells_without_the_points_of_protocols_are_not_taken_for_theirs(tmp_path, begun):
    folder, points = RunFolder.open(tmp_path / "run", {}), {"map": {}, "trained": {}}
    protocols = ("--n", "100", "--protocol", "early")
    for arguments in (begun, protocols, ("--n", "100")):
        STUDY.prepare(given(*arguments), folder)  # of a run that has no cell, any may come
    points |= {"stopped": {}} if "--protocol" in begun else {}
    folder.write(Record("xor-w4", {"points": points}, {}))
    STUDY.prepare(given(*begun), folder)
    with pytest.raises(ValueError, match="protocol must be given to a run from its start or never"):
        STUDY.prepare(given(*(("--n", "100") if "--protocol" in begun else protocols)), folder)


def test_what_is_given_beside_holds_for_every_protocol():
    settings = given(
        "--protocol", "thesis", "near", "--problems", "moons", "--widths", "4", "--prior-sds", "3",
        "--n", "50", "--num-seeds", "2", "--activations", "gelu",
    )  # fmt: skip
    near, thesis = cells_of("near", settings), cells_of("thesis", settings)
    assert [cell.label for cell in near] == ["moons-w4-d1-gelu-ntk-sd3"]
    assert [cell.label for cell in thesis] == ["moons-w4-d1-gelu-standard-sd3-grid5.5"]
    assert num_examples(near[0], settings) == len(cell_problem(thesis[0], settings).X) == 50
    assert settings.num_seeds == 2 and settings.out == "runs/scaling-protocols-quick"
    assert given("--protocol", "near", "--out", "a").out == "a"


def test_bad_names_and_lists_are_refused():
    for arguments, words in (
        (("--protocol", "neer"), "protocol must be one of near.*got 'neer'; did you mean 'near'"),
        (("--try-unreachable",), "try_unreachable must be left out without a protocol"),
        (("--protocol", "near", "--widths", "0"), "widths must be an integer"),
        (("--protocol", "near", "--n", "1"), "n must be an integer from 2"),
        (
            ("--protocol", "thesis", "--problems", "linear_regression", "--widths", "8"),
            "must leave a cell that can be run, got none:\n  linear_regression-w8",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            given(*arguments)
    with pytest.raises(ValueError, match="n must be an integer from 2"):
        check(Settings(n=0))


def test_seconds_limit_the_cells_of_the_thesis_alone():
    settings = given("--protocol", "all")
    near, thesis = (cells_of(name, settings)[0] for name in ("near", "thesis"))
    assert settings_of_cells([near, near], settings) is settings
    limited = settings_of_cells([thesis] * 3, settings)
    assert limited.sampling.max_seconds == 3 * 60 and limited.retry == "none"
    told = given("--protocol", "all", "--sampling.max-seconds", "7")
    assert settings_of_cells([thesis] * 3, told).sampling.max_seconds == 7


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_seeds_are_split_into_batches_and_none_is_lost(size):
    settings = Settings(problems=("xor",), widths=(4, 8), num_seeds=5, seeds_per_batch=size)
    whole = seed_batches(dataclasses.replace(settings, seeds_per_batch=0))
    assert [len(cells) for cells in whole] == [5, 5]
    parts = seed_batches(settings)
    assert [cell for cells in parts for cell in cells] == [
        cell for cells in whole for cell in cells
    ]
    assert max(len(cells) for cells in parts) == min(size, 5)
    assert len(parts) == 2 * math.ceil(5 / size)
    batches = [batch for group in STUDY.plan(settings) for batch in group]
    assert len({batch.label for batch in batches}) == len(batches) == len(parts)


def test_cells_out_of_reach_are_skipped_with_their_evidence():
    arguments = ("--protocol", "thesis", "--problems", "spirals3", "xor", "--activations", "tanh",
                 "--widths", "8", "16")  # fmt: skip
    settings = given(*arguments)
    (line,) = skipped_lines(settings)
    assert line.startswith("spirals3-w8-d1-tanh-standard-sd10-n1000-grid1.5 is not run: chains of ")
    assert "R-hat 1.4746 and 8 effective draws after 182.9 s (results/samplers/many/" in line
    assert {(c.problem, c.width) for c in cells(settings)} == {
        ("spirals3", 16), ("xor", 8), ("xor", 16),
    }  # fmt: skip
    asked = given(*arguments, "--try-unreachable")
    assert len(cells(asked)) == 4 and not skipped_lines(asked)


def test_the_table_of_what_is_out_of_reach_names_real_posteriors(tmp_path):
    reach = pd.read_csv(Path(__file__).parents[3] / "results/samplers/many/reach.csv")
    for row in table():
        make_model(
            make_problem(row.problem), width=row.widths[0], activation=row.activation,
            parameterisation=row.parameterisation,
        )  # fmt: skip
        assert row.problem in PROBLEMS and row.why and row.source and row.ess < 1000
        cell = Cell(row.problem, row.widths[0], 1, row.activation, row.parameterisation,
                    row.prior_sd, seed=3)  # fmt: skip
        assert why_out_of_reach(cell, row.n) == row.evidence
        assert not why_out_of_reach(cell, row.n + 1)
        assert not why_out_of_reach(dataclasses.replace(cell, depth=2), row.n)
        if row.source == "results/samplers/many/reach.csv":
            of_row = {f: getattr(row, f) for f in ("problem", "activation", "parameterisation",
                                                   "prior_sd", "n")}  # fmt: skip
            of_row |= {"width": row.widths[0], "sampler": "hmc"}
            (measured,) = reach[
                (reach[list(of_row)] == list(of_row.values())).all(axis=1)
            ].itertuples()
            assert measured.gate == "fail" and len(row.widths) == 1
            assert (row.rhat, row.seconds) == (measured.rhat_max, measured.seconds)
            assert row.ess == min(measured.ess_mean, measured.ess_var)
    bad = tmp_path / "bad.csv"
    bad.write_text("problem,why\nxor,slow\n")
    with pytest.raises(ValueError, match="must have the columns problem, activation"):
        table(bad)
    bad.write_text(",".join(type(table()[0])._fields) + "\nxor,tanh,ntk,2,many,8,slow,1,2,3,here\n")
    with pytest.raises(ValueError, match="line 2 must have numbers"):
        table(bad)


def test_a_grid_with_a_margin_reaches_beyond_the_data():
    for name, dim in (("xor", 2), ("linear_regression", 1)):
        problem = make_problem(name, n=50, seed=3)
        wide = with_grid(problem, 5.5)
        assert list(wide.regions) == ["test", "grid"] and set(wide.p_true) <= {"test"}
        grid = wide.regions["grid"]
        assert grid.shape == problem.regions["grid"].shape and grid.shape[1] == dim
        np.testing.assert_allclose(grid.min(0), problem.X.min(0) - 5.5)
        np.testing.assert_allclose(grid.max(0), problem.X.max(0) + 5.5)
        step = np.diff(np.unique(grid[:, 0]))
        np.testing.assert_allclose(step, step[0])
        np.testing.assert_array_equal(wide.regions["test"], problem.regions["test"])
        assert wide.grid_shape == problem.grid_shape
    real = make_problem("wine")
    assert with_grid(real, 1.0) is real
    for margin in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="margin must be a positive"):
            with_grid(problem, margin)


def test_chain_mean_is_the_mean_of_the_draws_of_the_first_chain():
    problem = make_problem("xor", n=20)
    model = make_model(problem, width=3)
    draws = np.random.default_rng(0).normal(size=(12, model.num_params)).astype(np.float32)
    posterior = object.__new__(Posterior)
    for name, value in (("model", model), ("draws", draws), ("num_chains", 4)):
        object.__setattr__(posterior, name, value)
    point = chain_mean(posterior, problem, prior_sd=2.0)
    mean = (draws[0].astype(float) + draws[1] + draws[2]) / 3
    np.testing.assert_allclose(point.theta, mean, rtol=1e-12)
    data = densities.make_data(problem, model, 2.0)
    expected = densities.log_likelihood(model, jnp.asarray(mean, data.X.dtype), data)
    assert point.log_likelihood == pytest.approx(float(expected), rel=1e-5)
    prior = -0.5 * np.sum((mean / 2) ** 2) - len(mean) * np.log(2 * np.sqrt(2 * np.pi))
    assert point.log_density - point.log_likelihood == pytest.approx(prior, rel=1e-4)
    assert point.kind == "chain_mean" and point.passed
    object.__setattr__(posterior, "draws", np.full_like(draws, np.inf))
    assert not chain_mean(posterior, problem, prior_sd=2.0).passed


# verdicts


def made_up(settings, correlation, *, quantity="epistemic", failed=()):
    """Rows of all cells of a run with correlations as told."""
    rows = []
    for cell, seed in itertools.product(cells(settings), range(settings.num_seeds)):
        classes = num_classes(cell.problem)
        names = {0: ("f",), 2: ("1",)}.get(classes, ("trace", "predicted"))
        for name, point, estimator in itertools.product(
            names,
            ("map", "trained", "draw", "stopped", "chain_mean"),
            ("isotropic", "logit_scaled"),
        ):
            for region, sign in (("test", 1), ("grid", -1)):
                rows.append({
                    **dataclasses.asdict(cell), "seed": seed, "n": num_examples(cell, settings),
                    "num_params": 4 * cell.width * cell.depth + 1, "point": point, "region": region,
                    "estimator": estimator, "quantity": quantity, "class": name,
                    "gate": "fail" if (cell.width, seed) in failed else "pass", "reason": "",
                    "pearson": sign * correlation(cell, seed, name),
                    "spearman": sign * correlation(cell, seed, name) / 2,
                })  # fmt: skip
    return typed_rows(pd.DataFrame(rows), "made-up rows")


def verdict_of(rows, settings, **which):
    found = [
        r for r in verdict_rows(by_cell(rows), settings) if all(r[k] == v for k, v in which.items())
    ]
    assert len(found) == 1
    return found[0]


def rising(cell, seed, name):
    rng = np.random.default_rng([cell.width, cell.depth, seed])
    size = 4 * cell.width * cell.depth + 1
    return 0.03 * np.log2(size) + 0.05 * rng.normal() + (0.1 if name == "predicted" else 0)


@pytest.mark.parametrize(
    ("name", "axis"), [("near", "width"), ("depth", "depth"), ("params", None)]
)
def test_slopes_are_those_of_least_squares(name, axis):
    settings = given("--protocol", name, "--problems", "xor", "clusters3", "--num-seeds", "4")
    rows = made_up(settings, rising)
    for problem, view in (("xor", "1"), ("clusters3", "trace")):
        row = verdict_of(rows, settings, problem=problem, point="map", estimator="isotropic")
        slopes, largest = [], []
        chosen = rows[(rows["problem"] == problem) & (rows["class"] == view)]
        chosen = chosen.query("point == 'map' and region == 'test' and estimator == 'isotropic'")
        for _, of_seed in chosen.groupby("seed"):
            x = np.log2(of_seed[axis or "num_params"].astype(float))
            slopes.append(np.polyfit(x, of_seed["pearson"], 1)[0])
            assert slopes[-1] == pytest.approx(stats.linregress(x, of_seed["pearson"]).slope)
            largest.append(of_seed["pearson"].to_numpy()[np.argmax(x)])
        mean, half = np.mean(slopes), stats.t.ppf(0.975, 3) * np.std(slopes, ddof=1) / 2
        assert row["slope_mean"] == pytest.approx(mean)
        assert (row["slope_low"], row["slope_high"]) == pytest.approx((mean - half, mean + half))
        assert row["spearman_slope_mean"] == pytest.approx(mean / 2)
        assert row["verdict"] == ("improves" if mean > half else "undecided")
        expected = interval_over_seeds(largest)
        shown = [row[f"pearson_{part}"] for part in ("mean", "low", "high")]
        assert shown == pytest.approx(list(expected[:3]))
        assert (row["num_passed"], row["num_cells"]) == (len(chosen), len(chosen))


def test_verdicts_say_why_there_is_none():
    settings = given("--protocol", "near", "--problems", "xor", "--widths", "4", "8",
                     "--num-seeds", "2")  # fmt: skip
    which = {"point": "map", "estimator": "isotropic"}
    for failed, verdict, why in (
        (((4, 0), (4, 1), (8, 0), (8, 1)), "undefined", "no cell passed its gate"),
        (((4, 0), (4, 1)), "undefined", "cells passed their gate at 1 of 2 sizes"),
        (((4, 0), (8, 1)), "undefined", "no seed passed its gate at two sizes"),
        (((4, 0),), "undecided", "one seed has no interval"),
    ):
        row = verdict_of(made_up(settings, rising, failed=failed), settings, **which)
        assert (row["verdict"], row["why"]) == (verdict, why)
    falling = made_up(settings, lambda c, seed, _: -0.1 * np.log2(c.width) + 0.001 * seed)
    assert verdict_of(falling, settings, **which)["verdict"] == "gets worse"
    constant = falling.assign(pearson=np.nan, spearman=np.nan, reason="estimate is constant (1)")
    row = verdict_of(constant, settings, **which)
    assert (row["verdict"], row["why"]) == ("undefined", "estimate is constant (1)")
    no_null = verdict_of(falling, settings, point="map", estimator="null_aleatoric")
    assert no_null["verdict"] == "undefined" and no_null["why"].startswith("no rows there")
    thesis = given("--protocol", "thesis", "near", "--problems", "linear_regression",
                   "--widths", "8")  # fmt: skip
    row = verdict_of(falling, thesis, protocol="thesis", estimator="isotropic")
    assert row["verdict"] == "not run" and row["why"].startswith("chains of linear_regression move")


def test_the_thesis_compares_the_predicted_class_and_the_sd():
    settings = given("--protocol", "thesis", "--problems", "clusters3", "--widths", "4", "16",
                     "--num-seeds", "2")  # fmt: skip
    which = {"problem": "clusters3", "point": "chain_mean", "estimator": "isotropic"}
    assert verdict_of(made_up(settings, rising), settings, **which)["verdict"] == "undefined"
    row = verdict_of(made_up(settings, rising, quantity="epistemic_sd"), settings, **which)
    last = next(cell for cell in cells(settings) if cell.width == 16)
    values = [-rising(last, seed, "predicted") for seed in (0, 1)]
    assert row["pearson_mean"] == pytest.approx(interval_over_seeds(values).mean)
    assert row["compared"] == "‖∇p‖, MCMC sd, predicted class"


def test_the_closest_reading_is_the_one_with_the_least_difference():
    settings = given("--protocol", "near", "wide", "early", "--problems", "xor", "rings", "moons",
                     "--widths", "4", "8", "--num-seeds", "2")  # fmt: skip
    paper = {name: TABLE1[name]["GN"] for name in ("xor", "rings")} | {"moons": (0.1, 0.1)}

    def correlation(cell, seed, name):
        off = 0.0 if cell.width == 8 else -0.2
        return paper[cell.problem][0] + off

    rows = made_up(settings, correlation)
    rows.loc[(rows["point"] == "trained"), "pearson"] *= 0.9
    first, *others = closest_rows(by_cell(rows), settings)
    assert (first["protocol"], first["point"], first["width"]) == ("near", "map", 8)
    assert first["pearson_difference"] == pytest.approx(0, abs=1e-12)
    assert first["problems"] == "xor rings" and first["num_problems"] == 2
    spearman = np.mean([abs(0.5 * g.pearson - g.spearman) for g in (paper["xor"], paper["rings"])])
    assert first["spearman_difference"] == pytest.approx(spearman)
    by = {(r["protocol"], r["point"], r["width"]): r["pearson_difference"] for r in others}
    assert by["near", "map", 4] == pytest.approx(0.2)
    assert by["near", "trained", 8] == pytest.approx(0.1 * np.mean([0.65, 0.86]))
    assert by["wide", "map", 8] == pytest.approx(2 * np.mean([0.65, 0.86]))
    one = made_up(settings, correlation, failed=[(8, 0), (8, 1)])
    assert closest_rows(by_cell(one), settings)[0]["width"] == 4


# Programs are those of `test_registry`, which the compilation cache has where that test ran before.
TINY = (
    "--num-seeds", "1", "--sampling.num-draws", "40", "--sampling.max-draws", "40",
    "--sampling.block", "20", "--sampling.num-warmup", "40", "--sampling.num-kept", "16",
    "--train.epochs", "2", "--stop.epochs", "5", "--map.num-restarts", "1",
    "--num-point-draws", "2", "--num-averaged-draws", "4", "--retry", "none",
    "--executor", "serial", "--figures", "shown",
    "--sampling.gate.ess-min", "1", "--sampling.gate.rhat-max", "9",
    "--sampling.gate.heavy-tails-max", "1",
)  # fmt: skip


def run_tiny(out, *arguments):
    settings = given(*arguments, *TINY, "--out", str(out))
    run_study(STUDY, settings)
    return RunFolder.load(out), settings


def check_run(run, settings):
    """Rows of every point, and correlations of sds that follow from the stored arrays."""
    for record in run.records():
        rows = pd.DataFrame(record.meta["rows"])
        assert {"map", "trained", "stopped", "chain_mean", "draw"} <= set(rows["point"])
        assert set(rows["n"]) == {len(record.arrays["y"])}
        region = "grid" if "grid/X" in record.arrays else "test"
        for point in ("chain_mean", "map"):
            sd = rows.query(
                f"point == '{point}' and region == '{region}' and quantity == 'epistemic_sd' "
                "and estimator == 'isotropic'"
            )
            row = sd[sd["class"].isin(["1", "f", "trace"])].iloc[0]
            estimate, var = (
                np.sqrt(record.arrays[f"{region}/{name}"].astype(float).sum(axis=1))
                for name in (f"{point}/epistemic/isotropic", "mcmc_var")
            )
            if row["pearson"] is not None and not pd.isna(row["pearson"]):
                assert row["pearson"] == pytest.approx(np.corrcoef(estimate, var)[0, 1], abs=1e-4)
        predicted = rows.query("point == 'chain_mean' and quantity == 'predictive'")
        assert len(predicted) == 1 and predicted["nll"].notna().all()
    verdicts = run.read_table("verdicts.csv")
    assert len(verdicts) and set(verdicts["estimator"]) == {
        "isotropic", "null_aleatoric", "logit_scaled",
    }  # fmt: skip
    names = [r["protocol"] for r in verdicts.to_dict("records")]
    assert set(names) == set(settings.protocol)


@pytest.mark.slow
def test_a_run_of_protocols_is_extended_by_others(tmp_path, capsys):
    out, base = tmp_path / "run", ("--problems", "moons", "--widths", "2", "--n", "24")
    run_tiny(out, "--protocol", "near", *base)
    (record,) = (out / "cells").glob("*.npz")
    before = record.stat().st_mtime_ns
    capsys.readouterr()
    run, settings = run_tiny(out, "--protocol", "chain_mean", "wide", *base)
    said = " ".join(capsys.readouterr().out.split())
    check_run(run, settings)
    # Their cells are those of the first, whose record has what they compare.
    assert [p.name for p in (out / "cells").glob("*.npz")] == ["moons-w2-d1-tanh-ntk-sd2-seed0.npz"]
    assert record.stat().st_mtime_ns == before
    assert "Protocol chain_mean: Near the data" in said and "Protocol near" not in said
    page = (out / "report.html").read_text()
    assert "Does it improve with size?" in page and "there is one size" in page
    assert (out / "figures" / "verdicts.png").is_file()


@pytest.mark.skipif(not SLOW, reason="takes minutes: set ISOUNC_SLOW=1")
@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_one_cell_of_each_protocol_runs(tmp_path, name):
    settings = given("--protocol", name)
    cell = cells_of(name, settings)[0]
    sizes = ("--problems", cell.problem, "--widths", str(cell.width), "--depths", str(cell.depth))
    run, settings = run_tiny(
        tmp_path / "run", "--protocol", name, *sizes, "--parameterisations",
        cell.parameterisation, "--prior-sds", str(cell.prior_sd),
        "--n", str(num_examples(cell, settings)),
        *(("--sampling.max-seconds", "5") if name == "thesis" else ()),  # few draws, maybe one
    )  # fmt: skip
    check_run(run, settings)


def test_keys_of_cells_differ():
    """The key of a cell follows from its name, which tells n and the grid."""
    plain = Cell("xor", 4, 1, "tanh", "ntk", 2.0, seed=0)
    others = [plain, dataclasses.replace(plain, n=30), dataclasses.replace(plain, grid_margin=1.5)]
    assert len({cell.name for cell in others}) == 3
