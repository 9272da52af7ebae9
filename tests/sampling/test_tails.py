"""Pareto k of a tail is ArviZ's number."""

from __future__ import annotations

import importlib
import json

import arviz
import jax
import numpy as np
import pytest
from scipy.special import expit

from isounc.models import make_model
from isounc.problems import Problem
from isounc.references import logistic_by_quadrature
from isounc.sampling import GateSettings, sample_posterior
from isounc.sampling.convergence import diagnose
from isounc.sampling.gate import Gate, gate
from isounc.sampling.tails import khat_bound, pareto_khat


def arviz_khat(x):
    if arviz.__version__.startswith("0."):
        return arviz.psislw(np.log(x))[1]
    # ArviZ 1 takes the negative of what ArviZ 0 takes.
    return importlib.import_module("arviz_stats.base").array_stats.psislw(-np.log(x))[1]


@pytest.mark.parametrize("n", [25, 100, 1000, 4000, 20_000])
def test_k_is_that_of_arviz(n):
    rng = np.random.default_rng(n)
    normal = rng.standard_normal((3, n))
    x = np.stack(
        [
            normal[0] ** 2,
            1e-30 * normal[1] ** 2,
            np.exp(3 * normal[2]),
            rng.random(n),
            *(rng.pareto(alpha, n) for alpha in (0.5, 1.0, 2.0)),
        ]
    )
    # From ArviZ 1 on the tail has a draw less.
    atol = 1e-10 if arviz.__version__.startswith("0.") else 0.03
    np.testing.assert_allclose(pareto_khat(x), arviz_khat(x), atol=atol)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_k_is_the_index_of_the_tail(alpha):
    x = np.random.default_rng(0).pareto(alpha, (20, 50_000))
    assert np.median(pareto_khat(x)) == pytest.approx(1 / alpha, abs=0.1)


def test_ties_at_the_cutoff_are_not_in_the_tail():
    x = np.round(np.random.default_rng(1).exponential(size=(1, 2000)) * 3) + 0.1
    if arviz.__version__.startswith("0."):
        np.testing.assert_allclose(pareto_khat(x), arviz_khat(x), atol=1e-10)
    two = np.zeros((1, 1000))
    two[0, :3] = 1.0
    assert pareto_khat(two) == np.inf


def test_equal_draws_beyond_the_cutoff_have_the_k_of_nearly_equal_ones():
    """Between 100 and 120 of them a node of the fit is at 0, where its formula is 0 / 0."""
    equal = np.repeat([0.0, 1.0], [1230, 110])
    nearly = equal + 1e-6 * np.random.default_rng(0).random(1340)
    k, of_others = pareto_khat(np.stack([equal, nearly]))
    assert k == pytest.approx(of_others, abs=1e-2)


def test_the_bound_is_that_of_the_source():
    assert [khat_bound(n, 0.7) for n in (100, 1000, 10_000)] == pytest.approx([0.5, 2 / 3, 0.7])
    assert khat_bound(10**6, 0.5) == 0.5


def test_rare_draws_that_decide_about_variances_fail_the_gate():
    # Separable labels under a wide prior: in the corners p is all but certain, and once in a
    # thousand draws it is not. Every other check passes.
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20, 2))
    axis = np.linspace(-2, 2, 9)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    labels = (X[:, 0] + 0.5 * X[:, 1] > 0).astype(int)
    problem = Problem.from_arrays(X, labels, regions={"grid": grid})
    posterior = sample_posterior(
        problem, make_model(problem, depth=0), prior_sd=10.0, key=jax.random.key(0),
        num_draws=2000, locations_per_region=81, keep_values=True,
    )  # fmt: skip
    gate = posterior.gate
    assert len(gate.reasons) == 1 and "rare draws decide about the variance" in gate.reasons[0]
    assert "draw more" in gate.reasons[0] and f"at {gate.num_heavy_tails} of" in posterior.stopped
    exact = logistic_by_quadrature(problem, posterior.model, prior_sd=10.0).regions["grid"]
    moments = posterior.regions["grid"]
    z = ((moments.var - exact.var) / moments.var_se)[:, 0]
    assert z.min() < -15, "standard errors are wrong by far"
    assert posterior.values is not None
    d = diagnose(posterior.values["grid"][..., 0])
    assert np.abs(z[d.khat < 0.7]).max() < 4.5, "and right where they are to be trusted"


def test_few_heavy_tails_are_counted_and_pass():
    rng = np.random.default_rng(4)
    mean, sd = np.repeat([[-12.0, 0.0], [3.0, 1.0]], [3, 9], axis=1)
    p = expit(mean + sd * rng.standard_normal((4, 2000, 12)))
    counts = {"num_divergent": 0, "num_saturated": 0, "num_transitions": 8000}
    verdict = gate(p, energy=None, **counts)
    assert verdict.passed and verdict.num_heavy_tails == 3
    strict = gate(p, energy=None, settings=GateSettings(heavy_tails_max=0.2), **counts)
    assert not strict.passed and "at 3 of 12 locations" in strict.reasons[0]
    assert gate(p, energy=None, settings=GateSettings(heavy_tails_max=0.25), **counts).passed


def test_rare_draws_are_a_matter_of_the_region():
    rng = np.random.default_rng(4)
    mean, sd = np.repeat([[3.0, -12.0], [1.0, 3.0]], [8, 4], axis=1)
    p = expit(mean + sd * rng.standard_normal((4, 2000, 12)))
    counts = {"num_divergent": 0, "num_saturated": 0, "num_transitions": 8000}
    # A third of all locations, but all of the last region's.
    assert gate(p, energy=None, **counts).passed
    sizes = {"test": 4, "grid": 4, "far": 4}
    verdict = gate(p, energy=None, regions=sizes, **counts)
    assert not verdict.passed and verdict.converged
    (reason,) = verdict.reasons
    assert "at 4 of 4 locations of region far" in reason
    worst = int(diagnose(p).khat.argmax())
    assert f"at location {worst};" in reason and worst >= 8
    assert verdict.reasons_in("far") == verdict.reasons
    assert verdict.reasons_in("test") == verdict.reasons_in("grid") == ()
    # Chains that have not converged at one location are trusted at none.
    p[0, :, 11] = p[0, ::-1, 0]
    failed = gate(p, energy=None, regions=sizes, **counts)
    assert not failed.converged
    assert any(reason.startswith("R-hat") for reason in failed.reasons_in("test"))
    with pytest.raises(ValueError, match=r"regions must have 12 locations in all, .*'far': 3"):
        gate(p, energy=None, regions=sizes | {"far": 3}, **counts)


def test_a_gate_survives_json():
    p = np.random.default_rng(1).random((4, 500, 2))
    counts = {"num_divergent": 0, "num_saturated": 0, "num_transitions": 2000}
    p[..., 1] **= 200
    verdict = gate(p, energy=None, regions={"test": 1, "far": 1}, **counts)
    assert verdict.of_regions and not verdict.passed
    stored = json.loads(json.dumps(verdict._asdict(), allow_nan=False))
    assert Gate.of(stored) == verdict
    # A version that knew neither regions nor tails.
    older = {"passed": False, "reasons": ["R-hat is 1.2"], "rhat_max": 1.2, "gone": 3}
    read = Gate.of(older)
    assert read.reasons_in("test") == ("R-hat is 1.2",) and not read.converged
    assert not Gate.of({}).passed and not Gate.of({}).converged


def test_a_variance_that_few_different_draws_decide_is_not_trusted():
    x = np.ones((4, 500, 1))
    x[:, ::7] += 1e-7 * np.random.default_rng(5).standard_normal((4, 72, 1))
    assert diagnose(x).khat[0] == np.inf
