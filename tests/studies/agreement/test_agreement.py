"""isounc against NumPyro: equal models, a cell sampled twice, a planted fault, the command."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density as numpyro_log_density

from isounc import densities
from isounc.models import make_model
from isounc.problems import make_problem
from isounc.references import zscores
from isounc.runs.command import main
from isounc.runs.folder import RunFolder
from isounc.runs.settings import stored_settings
from isounc.runs.study import report_run, run_study
from isounc.sampling.gate import Gate
from isounc.sampling.moments import Moments
from isounc.sampling.settings import GateSettings, SamplerSettings
from isounc.studies.agreement import cell, report, tables
from isounc.studies.agreement import sides as agreement
from isounc.studies.agreement.settings import Cell, Pair, Settings
from isounc.studies.agreement.sides import NutsSettings, Side, Totals, isounc_side, numpyro_side
from isounc.studies.agreement.study import STUDY

PRIOR_SD = 1.5
PROBLEMS = {"bernoulli": "xor", "categorical": "clusters3", "gaussian": "nonlinear_regression"}
# A tiny cell is compared at a few hundred effective draws, whose R-hat is not yet below 1.01.
BOUNDS = GateSettings(ess_min=300, rhat_max=1.05)
# Its precision is out of reach: it goes on once.
NUTS = NutsSettings(num_warmup=200, num_draws=250, max_draws=500, target_var_se=0.001)
SAMPLING = SamplerSettings(
    coordinates="prior", num_warmup=200, num_draws=1000, max_draws=1000, gate=BOUNDS
)


def small_problem(name, **changes):
    return make_problem(
        name, **{"n": 12, "seed": 3, "num_test": 6, "num_far": 6, "grid_size": 2} | changes
    )


def sites(model, theta):
    """A flat parameter vector as the values of NumPyro's sites."""
    layers = model.unflatten(theta)["layers"]
    return {f"{name}{i}": layer[name] for i, layer in layers.items() for name in ("kernel", "bias")}


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("parameterisation", ["ntk", "fan_in", "standard"])
@pytest.mark.parametrize("likelihood", PROBLEMS)
def test_the_numpyro_model_has_the_same_density_and_predictions(
    x64, likelihood, parameterisation, depth
):
    problem = small_problem(PROBLEMS[likelihood])
    model = make_model(problem, width=5, depth=depth, parameterisation=parameterisation)
    data = densities.make_data(problem, model, PRIOR_SD)
    theirs = (*agreement.training_data(problem), PRIOR_SD)
    X = jnp.asarray(problem.regions["test"])

    @jax.jit
    def both(theta):
        values = sites(model, theta)
        joint, _ = numpyro_log_density(agreement.posterior_model, theirs, {"model": model}, values)
        drawn = {name: value[None, None] for name, value in values.items()}
        predicted = agreement.predict(drawn, X, model=model)[0, 0]
        return joint, densities.log_density(model, theta, data), predicted, model.predict(theta, X)

    for seed in range(2):
        theta = np.random.default_rng(seed).normal(size=model.num_params)
        theirs_joint, joint, their_p, p = both(1.3 * model.param_prior_sd(PRIOR_SD) * theta)
        # Not up to a constant only: both have all of theirs.
        np.testing.assert_allclose(theirs_joint, joint, rtol=1e-10)
        np.testing.assert_allclose(their_p, p, atol=1e-10)


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "silu"])
def test_activations_are_the_same(x64, activation):
    problem = small_problem("xor")
    model = make_model(problem, width=4, activation=activation)
    theta = model.sample_prior(jax.random.key(0), PRIOR_SD)
    drawn = {name: value[None, None] for name, value in sites(model, theta).items()}
    X = jnp.asarray(problem.regions["far"])
    ours = model.predict(theta, X)
    np.testing.assert_allclose(agreement.predict(drawn, X, model=model)[0, 0], ours, atol=1e-10)


def test_totals_of_independent_draws_have_the_errors_of_independent_draws():
    rng = np.random.default_rng(0)
    draws = rng.normal([[1.0, 0.0], [3.0, 0.0]], [[1.0, 2.0], [1.0, 3.0]], (4, 5000, 2, 2))
    totals = agreement.totals(draws)
    assert totals.level == pytest.approx(2.0, abs=4 * totals.level_se)
    assert totals.level_se == pytest.approx(np.sqrt(0.5 / 20000), rel=0.1)
    assert totals.var_sum == pytest.approx(15.0, abs=4 * totals.var_sum_se)
    # Var[x^2] = 2 sigma^4 for each of the four.
    assert totals.var_sum_se == pytest.approx(np.sqrt(2 * (1 + 16 + 1 + 81) / 20000), rel=0.1)


@pytest.fixture(scope="module")
def sampled():
    """Two problems of one shape, each sampled by isounc and by NumPyro."""
    sides = {}
    for name in ("linear", "xor"):
        problem = small_problem(name, n=20)
        model = make_model(problem, width=3)
        shared = {"prior_sd": 2.0, "key": jax.random.key(5)}
        theirs = numpyro_side(problem, model, settings=NUTS, bounds=BOUNDS, **shared)
        sides[name] = problem, isounc_side(problem, model, settings=SAMPLING, **shared), theirs
    return sides


@pytest.mark.parametrize("name", ["linear", "xor"])
def test_a_tiny_cell_agrees(sampled, name):
    # The second problem goes through the program that was compiled for the first.
    problem, ours, theirs = sampled[name]
    assert theirs.gate.passed and ours.gate.passed, (theirs.gate.reasons, ours.gate.reasons)
    assert {r: m.mean.shape for r, m in theirs.regions.items()} == {
        r: m.mean.shape for r, m in ours.regions.items()
    }
    assert zscores.compare(theirs, ours).agrees
    assert theirs.num_gradients > theirs.num_draws * NUTS.num_chains
    for region in problem.regions:
        assert ours.totals[region].var_sum == pytest.approx(
            ours.regions[region].var.sum(), rel=1e-4
        )
    # The two problems' posteriors are not each other's.
    other = sampled["xor" if name == "linear" else "linear"][2]
    assert not zscores.compare(other, ours).agrees


def test_numpyro_goes_on_until_the_gate_passes_or_the_draws_run_out(sampled):
    problem, _, side = sampled["xor"]
    model = make_model(problem, width=3)

    def num_draws(bounds, target_var_se):
        settings = dataclasses.replace(NUTS, target_var_se=target_var_se)
        again = numpyro_side(
            problem, model, prior_sd=2.0, key=jax.random.key(5), settings=settings, bounds=bounds
        )
        return again.num_draws, again.gate

    assert side.gate.passed and side.num_draws == 500, "the precision is not reached"
    easy = GateSettings(ess_min=1, rhat_max=2)
    once, gate = num_draws(easy, 9.0)
    assert once == 250
    # The second batch is new draws, not the first ones again.
    assert side.gate.ess_bulk_min > 1.4 * gate.ess_bulk_min
    twice, gate = num_draws(GateSettings(ess_min=10**5), 9.0)
    assert twice == 500 and not gate.passed


# What is made of two sides: made up ones, drawn with the errors that they state.


def made_up(rng, *, shift=0.0, factor=1.0, passed=True):
    def moments():
        noisy = np.array([[0.5], [0.6]]) + rng.normal(0, 0.01, (2, 1)) + shift * 0.01
        var = factor * np.full((2, 1), 0.04) + rng.normal(0, 0.001, (2, 1))
        nothing = np.full((2, 1), np.nan)
        return Moments(
            noisy, np.full((2, 1), 0.01), var, np.full((2, 1), 0.001),
            nothing, nothing, nothing[:, 0], nothing[:, 0], nothing[:, 0],
        )  # fmt: skip

    def totals():
        level, var_sum = rng.normal((0.55 + shift * 0.01, 0.08 * factor), (0.01, 0.001))
        return Totals(level, 0.01, var_sum, 0.001)

    reasons = () if passed else ("R-hat is 1.2",)
    numbers = (1.001, 2000.0, 1800.0, 1500.0, 0.9, 0, 0.0, 0, 0, 0, 0, 0.02, 6, 1)
    gate = Gate(passed, reasons, *numbers)
    regions = ("test", "far")
    return Side(
        {r: moments() for r in regions}, {r: totals() for r in regions}, gate, 2000, 10**5, 3.0
    )


def made_up_sides(seed, change=lambda i: {}, num_cells=20):
    """Sides of many cells by cell; `change(i)` gives isounc's side of the i-th its settings."""
    rng = np.random.default_rng(seed)
    return {Pair("xor", i + 1): (made_up(rng, **change(i)), made_up(rng)) for i in range(num_cells)}


def judged(*args, **settings):
    return tables.compare_sides({"none": made_up_sides(*args, **settings)}, level=0.01)


def test_right_sides_agree_and_false_alarms_are_as_rare_as_stated():
    runs = [judged(seed) for seed in range(100)]
    verdicts = [run.summary[0]["verdict"] for run in runs]
    assert verdicts.count("DISAGREES") <= 4
    # z-scores are in units of the joint error.
    z = [r["level_z"] for run in runs for r in run.regions]
    assert np.mean(np.square(z)) == pytest.approx(1, abs=0.1)


def test_one_cell_that_is_far_off_is_found_and_named():
    comparisons = judged(0, lambda i: {"shift": 12.0} if i == 4 else {})
    assert comparisons.summary[0]["verdict"] == "DISAGREES"
    assert comparisons.summary[0]["single_p_adjusted"] < 0.005
    assert [r["width"] for r in comparisons.cells if r["outcome"] == "disagrees"] == [5]


def test_many_cells_that_are_a_little_off_are_found_together():
    comparisons = judged(0, lambda i: {"shift": 1.4}, num_cells=60)
    assert (
        comparisons.summary[0]["together_p_adjusted"]
        < 0.005
        < comparisons.summary[0]["single_p_adjusted"]
    )
    assert comparisons.summary[0]["verdict"] == "DISAGREES"


def test_a_failed_gate_is_shown_and_never_counted(tmp_path):
    def change(i):
        return {"passed": False, "shift": 100.0} if i == 0 else {}

    sides = made_up_sides(0, change)
    settings = Settings(
        problems=tuple(dict.fromkeys(pair.problem for pair in sides)),
        widths=tuple(dict.fromkeys(pair.width for pair in sides)), controls=(),
    )  # fmt: skip
    folder = RunFolder.open(tmp_path / "run", stored_settings(settings))
    for pair, (ours, theirs) in sides.items():
        folder.write(theirs.to_record(Cell(pair, "numpyro", "none").name))
        folder.write(ours.to_record(Cell(pair, "isounc", "none").name))
    assert report_run(STUDY, restudied(folder, settings))
    comparisons = tables.compare_sides(report.read_sides(folder, settings), level=0.01)
    line = comparisons.summary[0]
    assert (line["num_cells"], line["num_compared"], line["verdict"]) == (20, 19, "AGREES")
    assert comparisons.cells[0]["outcome"] == "not compared: isounc failed"
    assert comparisons.cells[0]["mean_z_max"] > 50 and "rms" in comparisons.cells[0]["bounds"]
    assert "not compared: isounc failed" in report.summary_text(comparisons)
    rows = folder.results
    assert len(rows) == 20 and rows["isounc_reasons"][0] == "R-hat is 1.2"
    assert rows["p_adjusted"].isna()[0] and rows["p_adjusted"][1] > 0.005
    assert (folder.path / "figures" / "agreement.png").stat().st_size > 10_000
    assert "not compared: isounc failed" in (folder.path / "report.html").read_text()


def restudied(folder, settings):
    """The folder as a run with these settings."""
    return RunFolder(folder.path, stored_settings(settings), writable=True, study="agreement")


def test_nothing_compared_is_no_agreement():
    comparisons = judged(0, lambda i: {"passed": False}, num_cells=2)
    assert comparisons.summary[0]["verdict"] == "NOTHING COMPARED"
    assert "NOTHING COMPARED" in report.summary_text(comparisons)


def test_a_side_comes_back_from_its_record(sampled, tmp_path):
    folder = RunFolder.open(tmp_path / "run", {})
    for side in sampled["xor"][1:]:
        folder.write(side.to_record("side"))
        back = Side.from_record(folder.read("side"))
        assert (back.totals, back.gate, back.seconds) == (side.totals, side.gate, side.seconds)
        for region, field in itertools.product(side.regions, Moments._fields):
            np.testing.assert_array_equal(
                getattr(back.regions[region], field), getattr(side.regions[region], field)
            )


# The command.


def tiny(out, **changes):
    settings = {
        "problems": ("linear",), "widths": (3,), "n": 20, "sampling": SAMPLING, "numpyro": NUTS,
        "cache": "", "out": str(out),
    }  # fmt: skip
    return Settings(**settings | changes)


def test_a_killed_run_goes_on_and_finds_the_planted_fault(tmp_path, monkeypatch, capsys):
    # This fault shows at this size; that of the command, a tenth, needs a full run.
    monkeypatch.setitem(agreement.FAULTS, "prior", lambda prior_sd: 2 * prior_sd)
    right, calls = cell.isounc_side, []

    def dies_at_the_second(*args, **settings):
        calls.append(settings["fault"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return right(*args, **settings)

    monkeypatch.setattr(cell, "isounc_side", dies_at_the_second)
    settings = tiny(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run_study(STUDY, settings)
    assert RunFolder.load(tmp_path / "run").names() == [
        "isounc-linear-w3-none",
        "numpyro-linear-w3",
    ]
    assert run_study(STUDY, settings), "the planted fault is found"
    out = tmp_path / "run"
    assert calls == ["none", "prior", "prior"], "what was done is not done again"
    folder = RunFolder.load(out)
    summary = folder.summary[["control", "num_compared", "verdict"]]
    assert summary.to_numpy().tolist() == [["none", 1, "AGREES"], ["prior", 1, "DISAGREES"]]
    cells = folder.results
    assert cells["outcome"].tolist() == ["agrees", "disagrees"]
    assert cells["var_ratio"][1] > 1.1, "a wider prior gives wider predictions"
    assert len(folder.read_table("regions.csv")) == 6
    assert {p.name for p in (out / "figures").glob("*.png")} == {
        "agreement.png", "agreement-prior.png",
    }  # fmt: skip
    assert "planted fault prior: DISAGREES" in capsys.readouterr().out
    with pytest.raises(ValueError, match="prior_sd"):
        run_study(STUDY, dataclasses.replace(settings, prior_sd=1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problems": ("xorr",)}, "problems must be one of .*did you mean 'xor'"),
        ({"problems": ()}, "problems must have at least one value"),
        ({"widths": (8, 8)}, "widths must have at least one value and none twice"),
        ({"widths": (0,)}, "widths must be an integer from 1 to"),
        ({"controls": ("none",)}, "controls must be one of"),
        ({"parameterisation": "mup"}, "parameterisation must be one of"),
        ({"prior_sd": -1.0}, "prior_sd must be a positive"),
        ({"level": 0.0}, "level must be between 0 and 1"),
        (
            {"sampling": SamplerSettings(locations_per_region=8)},
            "sampling.locations_per_region must be an integer of at least 64",
        ),
    ],
)
def test_bad_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_study(STUDY, tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_too_few_draws_are_refused():
    with pytest.raises(ValueError, match="max_draws must be an integer from 1000 to"):
        NutsSettings(num_draws=1000, max_draws=500)


def test_bad_arguments_end_in_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(STUDY, ["--problems", "xorr", "--cache", ""])
    assert str(ended.value.code).startswith("error: problems must be one of")


def test_help_teaches_the_settings(capsys):
    with pytest.raises(SystemExit) as ended:
        main(STUDY, ["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for word in ("--problems", "--controls", "--numpyro.num-draws", "NUTS", "not compared"):
        assert word in shown


# Last: it drops every compiled program.


def test_numpyro_can_be_traced_again(sampled):
    """A program whose caches were cleared, by memory or by a new likelihood, is the same again."""
    problem, _, side = sampled["linear"]
    model, key = make_model(problem, width=3), jax.random.key(5)
    jax.clear_caches()
    again = numpyro_side(problem, model, prior_sd=2.0, key=key, settings=NUTS, bounds=BOUNDS)
    assert again.num_draws == side.num_draws
    for region, moments in side.regions.items():
        np.testing.assert_allclose(again.regions[region].mean, moments.mean, atol=1e-6)
