"""Conditions against their definition, and the estimates of a cell against direct computations."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import isounc
from isounc.estimates.estimate import estimate
from isounc.problems import make_problem
from isounc.sampling.gate import Gate
from isounc.statistics import compare
from isounc.studies.confirmation.cell import (
    Made,
    averaged,
    compared,
    ensemble_variances,
    estimates,
    reference_inputs,
)
from isounc.studies.confirmation.settings import (
    BASE,
    PRESETS,
    SAMPLED,
    Cell,
    Condition,
    Settings,
    batches,
    cell_model,
    cell_problem,
    conditions,
)
from isounc.studies.confirmation.study import STUDY
from isounc.studies.confirmation.tables import Results, verdicts
from isounc.training import TrainSettings, fit_ensemble

SMALL = Settings(
    width=3, n=20, reference_sizes=(5,), counts=(2, 4, 16), num_repeats=3, num_seeds=2,
    train=TrainSettings(epochs=3),
)  # fmt: skip


def test_one_factor_at_a_time_is_varied_about_the_base():
    settings = PRESETS["standard"]
    found = batches(settings)
    by_problem = {name: [c for c in found if c[0].problem == name] for name in settings.problems}
    regressions = {"linear_regression", "nonlinear_regression"}
    for name, of_problem in by_problem.items():
        base = of_problem[0][0]
        fixed = (base.n, base.prior_sd, base.depth, base.activation)
        assert fixed == (100, 2.0, 1, "tanh") and base.factor == BASE
        assert len(of_problem) == (1 if name in regressions else 1 + 4 + 3 + 2 + 3)
        for batch in of_problem:
            assert [cell.seed for cell in batch] == [100, 101, 102, 103, 104]
            for cell in batch:
                changed = [f for f in SAMPLED if getattr(cell, f) != getattr(base, f)]
                assert changed == ([] if cell.factor == BASE else [cell.factor])
                if changed:
                    assert cell.value == format(getattr(cell, cell.factor), "g" * (
                        cell.factor == "prior_sd"
                    ))  # fmt: skip
    assert regressions < set(by_problem) and len(by_problem) == 8
    values = {(c.factor, c.value) for c in conditions(settings)}
    assert {f"{v:g}" for v in (0.5, 1, 5, 10)} == {v for f, v in values if f == "prior_sd"}
    assert {"30", "300", "1000"} == {v for f, v in values if f == "n"}
    assert {"2", "3", "4"} == {v for f, v in values if f == "depth"}
    assert {"relu", "gelu"} == {v for f, v in values if f == "activation"}
    assert {"10", "30", "far", "wide"} == {v for f, v in values if f == "reference"}
    assert {"map", "draw"} == {v for f, v in values if f == "point"}
    fewer = batches(dataclasses.replace(settings, num_varied_seeds=3))
    assert {len(b) for b in fewer if b[0].factor == BASE} == {5}
    assert {len(b) for b in fewer if b[0].factor != BASE} == {3}


def test_presets_have_seeds_of_their_own_and_can_be_run():
    assert [settings.num_seeds for settings in PRESETS.values()] == [2, 5, 10]
    for settings in PRESETS.values():
        STUDY.check(settings)
        names = [cell.name for batch in batches(settings) for cell in batch]
        assert len(set(names)) == len(names)
    planned = [cells for group in STUDY.plan(PRESETS["quick"]) for _, cells, *_ in group]
    assert sorted(planned, key=str) == sorted(batches(PRESETS["quick"]), key=str)
    assert planned[0][0].factor == BASE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problems": ()}, "problems must have at least one value"),
        ({"problems": ("xorr",)}, "problems must be one of .*did you mean 'xor'"),
        ({"problems": ("xor", "xor")}, "problems must not repeat a value"),
        ({"prior_sds": (1.0, 2.0)}, r"prior_sds must not repeat a value or the base's, 2, got"),
        ({"ns": (30, 30)}, "ns must not repeat a value or the base's, 100"),
        ({"reference_sizes": (100,)}, "reference_sizes must not repeat a value or the base's"),
        ({"reference_sizes": (101,)}, "reference_sizes must be an integer from 2 to 100, got 101"),
        ({"reference_shifts": ("near",)}, "reference_shifts must be one of"),
        ({"depths": (0,)}, "depths must be an integer from 1"),
        ({"activations": ("sine",)}, "activations must be one of"),
        ({"counts": (2, 8, 16)}, "counts must be ascending, with 4 and 16 among them"),
        ({"counts": (4, 2, 16)}, "counts must be ascending"),
        ({"num_repeats": 33}, "num_repeats must be an integer from 1 to 32"),
        ({"prior_sd": 0.0}, "prior_sd must be a positive"),
        ({"first_seed": 2**32}, "first_seed must be an integer from 0"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        STUDY.check(dataclasses.replace(Settings(), **changes))


def test_estimates_are_those_of_the_public_functions(x64):
    cell = Cell("clusters3", BASE, "", 20, 1.5, 1, "tanh", 100)
    problem = make_problem("clusters3", n=20, num_test=8, num_far=20, grid_size=2)
    model, key = cell_model(cell, problem, SMALL), jax.random.key(0)
    networks = fit_ensemble(problem, model, 16, key=key, settings=SMALL.train)
    networks = [network._replace(passed=True, reasons=()) for network in networks]
    networks[0] = networks[0]._replace(passed=False, reasons=("It diverged.",))
    point = networks[1]._replace(kind="map", reasons=("It is no maximum.",))
    draws = np.stack([model.sample_prior(k, 1.0) for k in jax.random.split(key, 7)])
    found = estimates(cell, problem, model, networks, point, draws, SMALL)
    made = {(m.condition, m.estimate): m for m in found}
    X = np.concatenate(list(problem.regions.values()))
    thetas = [network.theta.astype(float) for network in networks]
    base, theta = Condition(BASE, ""), thetas[2]
    wide = reference_inputs(cell, problem, SMALL)["wide"]
    assert wide.shape == problem.X.shape
    assert (0.5 < wide.std(axis=0) / problem.X.std(axis=0) / 2).all()
    for condition, reference in {
        base: problem.X,
        Condition("reference", "far"): problem.regions["far"],
        Condition("reference", "wide"): wide,
        Condition("reference", "5"): problem.X[:5],
    }.items():
        for name, given in {
            "logit_scaled": {"scale": "unit"},
            "logit_scaled_level": {"scale": "effective_dimension", "prior_sd": 1.5},
        }.items():
            got = made[condition, name].alternatives
            assert len(got) == 3
            direct = isounc.isotropic(
                model, X, theta, method="logit_scaled", reference=reference, **given
            )
            np.testing.assert_allclose(got[2], direct.epistemic.sum(axis=1), rtol=1e-4)
    for estimator in ("isotropic", "null_aleatoric", "laplace"):
        direct = estimate(estimator, model, X, theta, problem=problem, prior_sd=1.5)
        got = made[base, estimator].alternatives[2]
        np.testing.assert_allclose(got, np.asarray(direct.epistemic).sum(axis=1), rtol=1e-6)
    draw = made[Condition("point", "draw"), "isotropic"].alternatives
    direct = estimate("isotropic", model, X, draws[3])
    np.testing.assert_allclose(draw[1], np.asarray(direct.epistemic).sum(axis=1), rtol=1e-6)
    assert (Condition("point", "draw"), "laplace") not in made
    at_map = made[Condition("point", "map"), "laplace"]
    assert at_map.reasons == ("It is no maximum.",) and len(at_map.alternatives) == 1
    assert made[base, "ensemble_2"].reasons == ("1 of 16 networks: It diverged.",)

    # Ensembles by a loop over networks and classes.
    p = np.stack([np.asarray(model.predict(theta, X)) for theta in thetas])
    four = made[base, "ensemble_4"].alternatives
    assert len(four) == 3 and len(made[base, "ensemble_16"].alternatives) == 1
    for k, group in enumerate((range(4), range(4, 8), range(8, 12))):
        for n in (0, len(X) - 1):
            total = 0.0
            for m in range(3):
                values = [p[i, n, m] for i in group]
                middle = sum(values) / 4
                total += sum((v - middle) ** 2 for v in values) / 3
            assert four[k][n] == pytest.approx(total, rel=1e-6)


def test_identical_networks_have_no_variance_and_tiny_ones_keep_their_digits():
    p = np.full((16, 5, 1), 0.3, np.float32)
    for values in ensemble_variances(p, SMALL).values():
        assert not np.concatenate(values).any()
    p = 1e-20 * np.random.default_rng(0).random((16, 5, 2))
    got = ensemble_variances(p, SMALL)[16][0]
    np.testing.assert_allclose(got[0], np.trace(np.cov(p[:, 0].T)), rtol=1e-9)


def test_numbers_are_averaged_where_they_are_defined():
    rng = np.random.default_rng(0)
    a, b, truth = rng.random((3, 30))
    both = averaged([compare(a, truth), compare(b, truth), compare(np.zeros(30), truth)])
    r = [np.corrcoef(x, truth)[0, 1] for x in (a, b)]
    assert both["pearson"] == pytest.approx(np.mean(r), rel=1e-12)
    ratios = [x.sum() / truth.sum() for x in (a, b)]
    assert both["log2_level"] == pytest.approx(np.log2(ratios).mean(), rel=1e-9)
    assert (both["num_averaged"], both["num_undefined"]) == (3, 1)
    assert both["reason"].startswith("1 of 3: estimate is zero everywhere")
    none = averaged([compare(np.zeros(30), truth)])
    assert none["pearson"] is None and none["log2_level"] is None


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (lambda truth: truth, {"H1": "confirmed", "H2": "confirmed", "H3, 4": "confirmed"}),
        # Planted: the wrong way round, the rival's own values, and a level that is off.
        (lambda truth: 0.3 - truth, {"H1": "refuted", "H2": "refuted", "H3, 16": "refuted"}),
        (lambda truth: 3 * truth, {"H1": "confirmed", "H4": "refuted", "H4, unit": "confirmed"}),
        (lambda truth: truth / 3, {"H1": "confirmed", "H4": "refuted", "H4, unit": "refuted"}),
        (lambda truth: 1.5 * truth, {"H4": "confirmed", "H4, unit": "confirmed"}),
        (lambda truth: 0 * truth, {"H1": "undecided", "H4": "undecided"}),
    ],
)
def test_a_wrong_estimate_is_caught(estimate, expected):
    problem = make_problem("xor", n=20, num_test=30, num_far=9, grid_size=2)
    rows = []
    for seed in range(100, 104):
        cell, rng = Cell("xor", BASE, "", 20, 2.0, 1, "tanh", seed), np.random.default_rng(seed)
        truth = rng.uniform(0.01, 0.2, 30 + 4 + 9)
        noisy = truth * rng.uniform(0.2, 2, truth.shape)
        values = dict.fromkeys(("logit_scaled", "logit_scaled_level"), estimate(truth))
        values |= dict.fromkeys(("isotropic", "null_aleatoric", "ensemble_4", "ensemble_16"), noisy)
        variances = dict(zip(problem.regions, np.split(truth[:, None], (30, 34)), strict=True))
        made = (Made(Condition(BASE, ""), name, [v], ()) for name, v in values.items())
        rows += compared(cell, problem, made, variances, Gate.of({"passed": True}))
    found = verdicts(Results(rows))
    where = ("xor", BASE, "test")
    said = {
        row["hypothesis"]: row["verdict"]
        for row in found
        if (row["problem"], row["factor"], row["region"]) == where
        and row["statistic"] != "spearman"
    }
    assert said | expected == said and len(said) == 6


def test_a_region_is_used_that_the_gate_trusts():
    problem = make_problem("xor", n=20, num_test=30, num_far=9, grid_size=2)
    cell, rng = Cell("xor", BASE, "", 20, 2.0, 1, "tanh", 100), np.random.default_rng(0)
    truth = rng.uniform(0.01, 0.2, (43, 1))
    variances = dict(zip(problem.regions, np.split(truth, (30, 34)), strict=True))
    rare = "rare draws decide in region far"
    gate = Gate.of({"passed": False, "reasons": [rare], "of_regions": {"far": rare}})
    made = Made(Condition(BASE, ""), "isotropic", [truth[:, 0]], ())
    rows = compared(cell, problem, iter([made]), variances, gate)
    said = {row["region"]: (row["gate"], row["gate_reasons"]) for row in rows}
    assert said == {"test": ("pass", ""), "grid": ("pass", ""), "far": ("fail", rare)}


def test_networks_do_not_depend_on_the_prior():
    cell = Cell("xor", BASE, "", 100, 2.0, 1, "tanh", 100)
    other = dataclasses.replace(cell, factor="prior_sd", value="10", prior_sd=10.0)
    assert cell.networks == other.networks and cell.name != other.name
    assert dataclasses.replace(cell, n=30).networks != cell.networks
    assert cell_problem(cell).X.shape == (100, 2)
