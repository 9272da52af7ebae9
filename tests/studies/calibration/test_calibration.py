"""Calibration: bands cover as stated, exact draws pass, planted faults fail, and the study runs.

Keys and seeds are fixed, so that a test which passes once always passes on one machine. Verdicts on
correct samplers have a level of 1e-3, so that another machine's rounding is no false alarm.
"""

from __future__ import annotations

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc import densities
from isounc.models import make_model
from isounc.problems import Problem
from isounc.runs.command import main
from isounc.runs.executors import Batch
from isounc.runs.folder import RunFolder
from isounc.runs.study import run_study
from isounc.sampling.settings import SamplerSettings
from isounc.statistics import holm
from isounc.studies.calibration import cell, uniformity
from isounc.studies.calibration.geweke import GewekeSettings, geweke
from isounc.studies.calibration.sbc import (
    draw_replications,
    quantities,
    quantity_names,
    query_points,
    rank,
    rank_batch,
)
from isounc.studies.calibration.settings import PRESETS, Cell, Job, Settings
from isounc.studies.calibration.study import STUDY
from isounc.studies.calibration.uniformity import (
    ecdf_band,
    ecdf_difference,
    ecdf_p_value,
    judge,
)

LEVEL = 1e-3
KEY = jax.random.key(11)
PRIOR_SD = 2.0
SAMPLING = SamplerSettings(
    num_warmup=150, num_draws=400, max_draws=400, block=100, num_kept=400, locations_per_region=4
)
NUM_RANKED = 39
BATCH = 20
GEWEKE = GewekeSettings(num_chains=64, num_iterations=800, num_direct=20_000)
LIKELIHOODS = {
    "bernoulli": {"likelihood": "bernoulli"},
    "categorical": {"likelihood": "categorical", "num_classes": 3},
    "gaussian": {"likelihood": "gaussian", "noise_sd": 0.5},
}


def smallest(judgements):
    """The smallest p-value, corrected for how many there are."""
    return holm([j.p_value for j in judgements]).min()


# Ranks and bands, in NumPy alone.


@pytest.mark.parametrize(("num_replications", "num_ranked"), [(48, 39), (200, 99)])
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_the_band_covers_simultaneously(num_replications, num_ranked, level):
    rng = np.random.default_rng(1)
    low, high = ecdf_band(num_replications, num_ranked, level=level)
    sets = rng.integers(0, num_ranked + 1, (2000, num_replications))
    left = []
    for ranks in sets:
        d = ecdf_difference(ranks, num_ranked)
        left.append(((d < low - 1e-12) | (d > high + 1e-12)).any())
        # The p-value and the band are one test.
        assert (ecdf_p_value(ranks, num_ranked) <= level) == left[-1]
    # Ties make it a little conservative; 4 standard errors above would be anti-conservative.
    error = np.sqrt(level * (1 - level) / len(sets))
    assert 0.75 * level - 4 * error < np.mean(left) < level + 4 * error
    # The same band taken point by point would be left several times as often.
    assert np.mean(left) < 0.5 * (1 - (1 - level) ** 10)


def conjugate_ranks(fault="none", *, num_replications=2000, num_ranked=99, dim=8, seed=5):
    """Rank (theta_1, log likelihood, log prior) among exact draws of a conjugate posterior.

    The model is y_i ~ N(theta_i, 1) with theta_i ~ N(0, 2^2).
    """
    rng = np.random.default_rng(seed)
    theta = 2.0 * rng.standard_normal((num_replications, 1, dim))
    y = theta + rng.standard_normal(theta.shape)
    prior_var, temperature = {"prior": (16.0, 1.0), "temperature": (4.0, 1.1)}.get(fault, (4.0, 1))
    precision = 1 / prior_var + 1 / temperature
    noise = rng.standard_normal((num_replications, num_ranked, dim))
    draws = y / temperature / precision + noise / np.sqrt(precision)
    if fault == "no data":
        draws = 2.0 * noise
    everyone = np.concatenate([theta, draws], axis=1)
    g = np.stack(
        [everyone[..., 0], -((y - everyone) ** 2).sum(-1), -(everyone**2).sum(-1)], axis=-1
    )
    return np.stack([rank(values[0], values[1:], rng) for values in g])


def judged(ranks, **changes):
    settings = {"num_ranked": 99, "num_bins": 20} | changes
    return judge(ranks, ("theta", "log likelihood", "log prior"), **settings)


def test_exact_draws_pass():
    judgements = judged(conjugate_ranks())
    assert smallest(judgements) > 0.01
    assert min(j.p_chi_square for j in judgements) > LEVEL
    assert all(j.difference < 0.04 for j in judgements)


@pytest.mark.parametrize("fault", ["temperature", "prior"])
def test_doctored_draws_fail(fault):
    assert smallest(judged(conjugate_ranks(fault))) < LEVEL


def test_the_log_likelihood_catches_a_sampler_that_ignores_the_data():
    theta, log_likelihood, _ = judged(conjugate_ranks("no data"))
    assert theta.p_value > LEVEL > log_likelihood.p_value


def test_replications_that_failed_their_gate_are_counted_and_judged_apart():
    ranks = conjugate_ranks(num_replications=400)
    bad = np.arange(400) < 100
    ranks[bad] = 0  # the truth lies outside of all that those samplers found
    with_all, without = judged(ranks)[0], judged(ranks, passed=~bad)[0]
    assert with_all.p_value == without.p_value < LEVEL, "all are ranked, whatever their gate said"
    assert (without.p_gate_passed or 0) > LEVEL
    assert judged(ranks, passed=np.arange(400) < 19)[0].p_gate_passed is None


def test_ties_are_broken_at_random():
    rng = np.random.default_rng(0)
    tied = np.array([rank(np.ones(1), np.ones((9, 1)), rng)[0] for _ in range(2000)])
    assert set(tied) == set(range(10))
    assert ecdf_p_value(tied, 9) > LEVEL
    assert rank(np.array([0.5]), np.array([[0.1], [0.2], [0.9]]), rng)[0] == 2


def test_bins_of_unequal_size_expect_their_share():
    counts, share = uniformity.rank_histogram(np.array([0, 1, 2, 9, 9]), 9, 4)
    np.testing.assert_array_equal(counts, [3, 0, 0, 2])
    np.testing.assert_allclose(share, [0.3, 0.2, 0.3, 0.2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank(np.zeros(1), np.full((3, 1), np.nan), None), "draws must be finite, got 3"),
        (lambda: ecdf_band(100, 9, level=0.0), "level must be between"),
        (
            lambda: judged(np.zeros((400, 2), int)),
            r"ranks must be \(replications, 3\), got shape \(400, 2\)",
        ),
        (
            lambda: judged(np.full((400, 3), 100)),
            r"ranks must be one or more numbers in 0\.\.99, got 100 to 100",
        ),
        (lambda: judged(np.zeros((400, 3), int), num_bins=81), "num_bins must be from 2 to 80"),
        (lambda: GewekeSettings(num_chains=1), "num_chains must be"),
        (lambda: GewekeSettings(mean_steps=0), "mean_steps must be"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Data from the prior.


def make_case(likelihood, width, depth, n=12, origin=0.0):
    rng = np.random.default_rng(3)
    X, query = origin + rng.standard_normal((n, 2)), origin + 2 * rng.standard_normal((4, 2))
    y = rng.standard_normal(n) if likelihood == "gaussian" else np.arange(n) % 2
    problem = Problem.from_arrays(X, y, regions={"q": query}, **LIKELIHOODS[likelihood])
    return problem, make_model(problem, width=width, depth=depth)


@pytest.mark.parametrize("likelihood", list(LIKELIHOODS))
def test_labels_are_drawn_from_the_likelihood(likelihood):
    problem, model = make_case(likelihood, 3, 1)
    keys = list(jax.random.split(KEY, 400))
    drawn = draw_replications(keys, problem, model, prior_sd=PRIOR_SD)
    assert drawn.theta.shape == (400, model.num_params)
    X = jnp.asarray(problem.X)
    p = jax.jit(jax.vmap(lambda t: model.predict(t, X)))(drawn.theta)
    y = np.stack([q.y for q in drawn.problems])
    if likelihood == "gaussian":
        residual = (y - np.asarray(p)[..., 0]) / 0.5
        assert abs(residual.mean()) < 4 / np.sqrt(residual.size)
        assert abs(residual.var() - 1) < 4 * np.sqrt(2 / residual.size)
        assert abs(drawn.theta.std() / PRIOR_SD - 1) < 4 / np.sqrt(2 * drawn.theta.size)
        return
    # Redrawing data that held a single class tilts p(y|theta) a little, so that all data are
    # compared together.
    is_one = y == 1
    p_one = np.asarray(p)[..., 1 if likelihood == "categorical" else 0]
    assert drawn.num_redrawn > 0 and all(len(np.unique(labels)) > 1 for labels in y)
    excess = (is_one - p_one).sum(1)
    z = excess.mean() / (excess.std() / 20)
    assert abs(z) < 4
    again = draw_replications(keys, problem, model, prior_sd=PRIOR_SD)
    np.testing.assert_array_equal(again.problems[7].y, y[7])


def test_quantities_are_named_in_order():
    problem, model = make_case("categorical", 2, 1)
    data = densities.make_data(problem, model, PRIOR_SD)
    query = jnp.asarray(query_points(problem))

    @jax.jit
    def compute(key):
        theta = model.sample_prior(key, PRIOR_SD)
        p, p_data = (model.predict(theta, x) for x in (query, data.X))
        return quantities(model, theta, data, query), p, p_data

    values, p, p_data = jax.device_get(compute(KEY))
    assert quantity_names(problem) == (
        "p(y=0|x0)", "p(y=1|x1)", "p(y=2|x2)", "p(y=0|x3)", "log likelihood", "log prior",
    )  # fmt: skip
    np.testing.assert_allclose(values[:4], p[range(4), [0, 1, 2, 0]], rtol=1e-6)
    np.testing.assert_allclose(values[4], np.log(p_data[range(12), problem.y]).sum(), rtol=1e-5)


# The samplers.


def sbc(fault="none"):
    problem, model = make_case("bernoulli", 1, 0)
    ranks = []
    for key in jax.random.split(KEY, 2):
        ranked = rank_batch(
            list(jax.random.split(key, BATCH)), problem, model, prior_sd=PRIOR_SD,
            settings=SAMPLING, num_ranked=NUM_RANKED, fault=fault,
        )  # fmt: skip
        assert ranked.ranks.shape == ranked.ess.shape == (BATCH, 6)
        assert len(ranked.gates) == BATCH and np.median(ranked.ess) > 2 * NUM_RANKED
        ranks.append(ranked.ranks)
    return judge(np.concatenate(ranks), quantity_names(problem), num_ranked=NUM_RANKED, num_bins=8)


def test_the_reference_sampler_is_calibrated_and_a_wrong_prior_is_not():
    assert smallest(sbc()) > LEVEL
    assert smallest(sbc("prior")) < LEVEL


def joint(
    likelihood="bernoulli", width=1, depth=0, sampler="hmc", origin=0.0, accepted=0.5, **changes
):
    problem, model = make_case(likelihood, width, depth, origin=origin)
    settings = {"step_size": 0.3, "settings": GEWEKE} | changes
    result = geweke(KEY, problem, model, prior_sd=PRIOR_SD, sampler=sampler, **settings)
    assert len(result.moments) == len(result.z) == 12 and accepted < result.acceptance <= 1
    return result


@pytest.mark.parametrize(
    ("likelihood", "width", "depth", "sampler", "step_size"),
    [("categorical", 3, 1, "hmc", 0.15), ("gaussian", 1, 0, "nuts", 0.06)],
)
def test_transitions_keep_the_joint_distribution(likelihood, width, depth, sampler, step_size):
    settings = dataclasses.replace(GEWEKE, num_iterations=200)
    result = joint(likelihood, width, depth, sampler, settings=settings, step_size=step_size)
    assert holm(result.p_value).min() > LEVEL and result.ess.min() > 50


@pytest.mark.parametrize(
    ("likelihood", "depth", "coordinates"),
    [
        ("gaussian", 0, "readout"),
        pytest.param("bernoulli", 1, "curvature", marks=pytest.mark.slow),
    ],
)
def test_transitions_in_any_coordinates_keep_it_far_from_the_origin(likelihood, depth, coordinates):
    settings = dataclasses.replace(GEWEKE, num_iterations=200)
    result = joint(
        likelihood, 2, depth, settings=settings, coordinates=coordinates, step_size=0.06,
        whitened_step=0.2, origin=100.0, accepted=0.1,
    )  # fmt: skip
    assert holm(result.p_value).min() > LEVEL


def test_transitions_at_the_wrong_posterior_are_caught():
    right = joint()
    assert holm(right.p_value).min() > LEVEL and np.sqrt((right.z**2).mean()) < 2
    for fault in ("prior", "data"):
        assert holm(joint(fault=fault).p_value).min() < LEVEL


def test_geweke_refuses_what_it_cannot_run():
    with pytest.raises(ValueError, match=r"sampler must be one of .*'hmcc'"):
        joint(sampler="hmcc")
    with pytest.raises(ValueError, match="step_size must be a positive"):
        joint(step_size=0.0)
    with pytest.raises(ValueError, match=r"fault must be one of .*'priors'"):
        joint(fault="priors")


# The experiment.


def tiny(out, **changes):
    settings = {
        "samplers": ("hmc",), "cases": ("logistic",), "controls": ("prior",), "n": 12, "num_replications": 40,
        "batch": BATCH, "num_ranked": NUM_RANKED, "num_bins": 8, "sampling": SAMPLING,
        "geweke": GewekeSettings(num_chains=16, num_iterations=200, num_direct=4000),
        "cache": "", "out": str(out),
    }  # fmt: skip
    return Settings(**settings | changes)


def test_a_killed_run_goes_on_and_ends_with_tables_and_figures(tmp_path, monkeypatch, capsys):
    right, calls = cell.rank_batch, []

    def dies_at_the_third(*args, **settings):
        calls.append(settings["fault"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return right(*args, **settings)

    monkeypatch.setattr(cell, "rank_batch", dies_at_the_third)
    settings = tiny(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run_study(STUDY, settings)
    assert RunFolder.load(tmp_path / "run").names() == [
        "geweke-hmc-auto-logistic-none",
        "sbc-hmc-auto-logistic-none-0000",
        "sbc-hmc-auto-logistic-none-0001",
    ]
    out = tmp_path / "run"
    assert run_study(STUDY, settings)
    assert calls == ["none", "none", "prior", "prior", "prior"], "what was done is not done again"
    folder = RunFolder.load(out)
    summary = folder.summary
    assert summary[["control", "sbc", "expected"]].to_numpy().tolist() == [
        ["none", "PASS", "PASS"],
        ["prior", "FAIL", "FAIL"],
    ]
    assert len(folder.results) == 12 and set(folder.results["num_replications"]) == {40}
    assert len(folder.read_table("geweke.csv")) == 24
    # 400 draws per chain are too few for the gate's R-hat: failures are listed, all 40 are ranked.
    gates = folder.read_table("gates.csv")
    assert len(gates) == summary["num_failed_gate"].sum() > 0
    assert gates["reasons"].notna().all()
    figures = {path.name for path in (out / "figures").glob("*.png")}
    assert figures == {
        "sbc-hmc-auto-logistic-none.png", "sbc-hmc-auto-logistic-prior.png", "geweke-hmc-auto.png",
    }  # fmt: skip
    assert "logistic hmc auto, prior" in capsys.readouterr().out
    with pytest.raises(ValueError, match="prior_sd"):
        run_study(STUDY, dataclasses.replace(settings, prior_sd=1.0))


def test_the_wide_case_has_a_prior_sd_of_10_on_every_parameter(monkeypatch):
    seen = {}

    def looked_at(keys, problem, model, *, prior_sd, **settings):
        seen.update(model=model, prior_sd=prior_sd, origin=problem.X.mean())
        raise StopIteration

    monkeypatch.setattr(cell, "rank_batch", looked_at)
    job = Job("hmc", "auto", "wide8", "none")
    with pytest.raises(StopIteration):
        cell.evaluate(Batch("wide8", (Cell(job, 0),)), PRESETS["paper"], lambda *_: None)
    assert (seen["prior_sd"], seen["model"].width) == (10.0, 8)
    np.testing.assert_array_equal(seen["model"].param_prior_sd(seen["prior_sd"]), 10.0)
    assert not job.has_geweke


@pytest.mark.skipif(not os.environ.get("ISOUNC_SLOW"), reason="takes long: set ISOUNC_SLOW=1")
def test_a_case_without_geweke_leaves_the_figures_of_the_others(tmp_path):
    settings = tiny(
        tmp_path, cases=("logistic", "line2000"), controls=(), num_bins=4, num_replications=20
    )
    assert run_study(STUDY, settings)
    assert {path.name for path in (tmp_path / "figures").glob("*.png")} == {
        "sbc-hmc-auto-logistic-none.png", "sbc-hmc-auto-line2000-none.png", "geweke-hmc-auto.png",
    }  # fmt: skip
    tested = RunFolder.load(tmp_path).read_table("geweke.csv")
    assert set(tested["case"]) == {"logistic"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cases": ("logistik",)}, "cases must be one of .*did you mean 'logistic'"),
        ({"cases": ()}, "cases must have at least one value"),
        ({"coordinates": ("readut",)}, "coordinates must be one of .*did you mean 'readout'"),
        ({"samplers": ("nutz",)}, "samplers must be one of .*did you mean 'nuts'"),
        ({"controls": ("none",)}, "controls must be one of"),
        ({"n": 3}, "n must be an integer from 4 to"),
        ({"num_ranked": 401}, "num_ranked must be"),
        ({"num_bins": 9}, "num_bins must be from 2 to 8"),
        ({"prior_sd": -1.0}, "prior_sd must be a positive"),
        ({"level": 0.0}, "level must be at least 0.001"),
        ({"batch": 0}, "batch must be"),
    ],
)
def test_bad_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_study(STUDY, tiny(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_help_teaches_the_settings(capsys):
    with pytest.raises(SystemExit) as ended:
        main(STUDY, ["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for word in ("--samplers", "--controls", "--num-replications", "Geweke", "logistic"):
        assert word in shown


# Wrong likelihoods, last: they drop every compiled program.


@pytest.fixture
def faulty_likelihood(monkeypatch):
    """Plant a factor on the log likelihood; no program compiled with it outlives the test."""
    right = densities.log_likelihood

    def plant(factor):
        jax.clear_caches()
        monkeypatch.setattr(densities, "log_likelihood", lambda *args: factor * right(*args))

    yield plant
    monkeypatch.undo()
    jax.clear_caches()


def test_a_mean_in_place_of_the_sum_is_caught(faulty_likelihood):
    faulty_likelihood(1 / 12)
    judgements = {j.quantity: j.p_value for j in sbc()}
    assert judgements["log likelihood"] < LEVEL


def test_a_temperature_of_1_1_is_caught(faulty_likelihood):
    faulty_likelihood(1 / 1.1)
    assert holm(joint().p_value).min() < LEVEL
