"""Sampled posteriors against quadrature, closed forms, exact references and NumPyro.

Agreement is judged by z, the difference over its Monte Carlo standard error, never by relative
tolerances. Keys are fixed, so a test that passes once passes always on one machine; the bounds
leave room for another's rounding.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc.models import make_model
from isounc.problems import Problem, make_problem
from isounc.sampling import chains, stopping
from isounc.sampling.convergence import diagnose
from isounc.sampling.drivers import DRIVERS
from isounc.sampling.posterior import sample_posterior, sample_posteriors
from isounc.sampling.settings import GateSettings, SamplerSettings
from tests.exact import load_exact
from tests.exact.accept import score

slow = pytest.mark.skipif(
    os.environ.get("ISOUNC_SLOW") != "1", reason="takes a minute or more: set ISOUNC_SLOW=1"
)
ROOT = str(Path(__file__).resolve().parents[2])
KEY = jax.random.key(3)
PRIOR_SD = 1.5
EVERYWHERE = 1000  # locations_per_region: more than any region here has
# A batch of 250 draws, 32 batches in all: their standard error is itself known to an eighth.
SETTINGS = SamplerSettings(num_draws=2000, max_draws=2000, locations_per_region=EVERYWHERE)


def assert_agree(z, rms=2.5, largest=5.0):
    """Locations share their draws: the rms of z has few degrees of freedom, at worst one."""
    z = np.asarray(z)
    assert np.isfinite(z).all()
    assert np.sqrt((z**2).mean()) < rms and np.abs(z).max() < largest, z


def z_between(a, b):
    """z of the mean and the variance between two independent samplings."""
    mean = (a.mean - b.mean) / np.hypot(a.mean_se, b.mean_se)
    var = (a.var - b.var) / np.hypot(a.var_se, b.var_se)
    return np.stack([mean, var])


# One input, slope and bias: two parameters, so that the test integrates the posterior itself.


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((12, 1))
    y = (X[:, 0] + rng.logistic(size=12) * 0.7 > 0).astype(int)
    near, far = np.linspace(-2, 2, 9)[:, None], np.array([[-5.0], [0.5], [5.0]])
    return Problem.from_arrays(X, y, regions={"near": near, "far": far})


@pytest.fixture(scope="module")
def model(problem):
    return make_model(problem, depth=0, parameterisation="standard")


@pytest.fixture(scope="module")
def runs(problem, model):
    """One posterior for each set of settings that a test asks for."""
    done = {}

    def run(**changes):
        settings = dataclasses.replace(SETTINGS, **changes)
        if settings not in done:
            done[settings] = sample_posterior(
                problem, model, prior_sd=PRIOR_SD, key=KEY, settings=settings, keep_values=True
            )
        return done[settings]

    return run


def by_quadrature(problem):
    """Mean, variance, E[p(1-p)] and E[H] by the trapezoid rule over (slope, bias)."""
    axis = np.linspace(-9, 9, 401)
    w, b = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))
    f = w * problem.X + b  # (n, grid)
    log_density = -np.logaddexp(0, (1 - 2 * problem.y[:, None]) * f).sum(0)
    log_density -= 0.5 * (w**2 + b**2) / PRIOR_SD**2
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    edge = (np.abs(w) > 8.9) | (np.abs(b) > 8.9)
    assert weight[edge].sum() < 1e-8
    truth = {}
    for name, x in problem.regions.items():
        f = w * x + b
        p = 1 / (1 + np.exp(-f))
        mean = p @ weight
        entropy = np.logaddexp(0, -f) + f * (1 - p)
        truth[name] = (
            mean,
            (p - mean[:, None]) ** 2 @ weight,
            (p * (1 - p)) @ weight,
            entropy @ weight,
        )
    return truth


@pytest.mark.parametrize("sampler", DRIVERS)
def test_logistic_regression_agrees_with_quadrature(runs, problem, sampler):
    posterior = runs(sampler=sampler, num_chains=16 if sampler == "chees" else 4)
    for name, (mean, var, aleatoric, expected_entropy) in by_quadrature(problem).items():
        moments = posterior.regions[name]
        assert_agree((moments.mean[:, 0] - mean) / moments.mean_se[:, 0])
        assert_agree((moments.var[:, 0] - var) / moments.var_se[:, 0])
        # E[p(1-p)] and E[H] come without errors of their own: those of the kept draws.
        # In float32 a far p may be 1.
        p = np.clip(np.asarray(posterior.values[name][..., 0], float), 1e-12, 1 - 1e-12)
        entropy = -p * np.log(p) - (1 - p) * np.log1p(-p)
        for draws, streamed, truth in (
            (p * (1 - p), moments.aleatoric[:, 0], aleatoric),
            (entropy, moments.expected_entropy, expected_entropy),
        ):
            assert_agree((streamed - truth) / diagnose(draws).mean_se)
        total = -mean * np.log(mean) - (1 - mean) * np.log(1 - mean)
        np.testing.assert_allclose(moments.entropy, total, atol=0.02)
        # The parts of p(1-p), whose sum is exact draw by draw.
        p_mean = moments.mean[:, 0]
        together = moments.aleatoric[:, 0] + moments.var[:, 0]
        np.testing.assert_allclose(together, p_mean * (1 - p_mean), atol=1e-5)
    assert posterior.gate.passed, posterior.gate.reasons
    assert 0.6 < posterior.acceptance <= 1


@pytest.mark.parametrize("sampler", ["hmc", "nuts"])
def test_chains_moved_one_by_one_agree_with_quadrature(monkeypatch, problem, model, sampler):
    # As a CPU moves those of wide networks; two problems, so that both axes are mapped.
    monkeypatch.setattr(chains, "SERIAL_WORK", 0)
    settings = dataclasses.replace(SETTINGS, sampler=sampler)
    both = sample_posteriors(
        [problem, problem], model, prior_sd=PRIOR_SD, keys=list(jax.random.split(KEY)),
        settings=settings,
    )  # fmt: skip
    for name, (mean, var, *_) in by_quadrature(problem).items():
        for posterior in both:
            moments = posterior.regions[name]
            assert_agree((moments.mean[:, 0] - mean) / moments.mean_se[:, 0])
            assert_agree((moments.var[:, 0] - var) / moments.var_se[:, 0])
    assert not np.isin(both[0].draws, both[1].draws).any()


@pytest.mark.parametrize("sampler", ["hmc", "nuts"])
def test_streamed_moments_are_those_of_the_kept_values(runs, problem, sampler):
    posterior = runs(sampler=sampler)
    assert posterior.num_chains == 4 and posterior.num_draws == 2000
    for name, x in problem.regions.items():
        np.testing.assert_array_equal(posterior.locations[name], np.arange(len(x)))
        values, moments = np.asarray(posterior.values[name], float), posterior.regions[name]
        assert values.shape == (4, 2000, len(x), 1)
        np.testing.assert_allclose(moments.mean, values.mean((0, 1)), rtol=1e-5)
        np.testing.assert_allclose(moments.var, values.var((0, 1)), rtol=1e-4)
        np.testing.assert_allclose(
            moments.aleatoric, (values * (1 - values)).mean((0, 1)), rtol=1e-4
        )
        batches = values.reshape(4 * 8, 250, len(x), 1).mean(1)
        np.testing.assert_allclose(moments.mean_se, batches.std(0, ddof=1) / np.sqrt(32), rtol=1e-3)


def test_kept_draws_are_those_that_made_the_values(runs, problem, model):
    posterior = runs()
    assert posterior.draws.shape == (1000, 2)
    p = jax.vmap(lambda t: model.predict(t, jnp.asarray(problem.regions["near"])))(
        jnp.asarray(posterior.draws)
    )
    p = np.asarray(p).reshape(4, 250, -1)
    values = posterior.values["near"][..., 0]
    for chain in range(4):
        # Chain-major, in order, and as evenly spaced as blocks allow: 2000 / 250 is 8, of which
        # blocks of 250 make 5, and of those every one or two are kept. Where a proposal was
        # refused, several draws are the same.
        distance = np.abs(values[chain, None, 4::5] - p[chain][:, None]).max(-1)
        at = distance.argmin(1)
        assert distance.min(1).max() < 1e-6
        assert (np.diff(at) >= 0).all() and np.diff(at).max() <= 3 and at[-1] > 390


def test_the_same_key_gives_the_same_bits(runs, problem, model):
    first = runs()
    again = sample_posterior(
        problem, model, prior_sd=PRIOR_SD, key=KEY, settings=SETTINGS, keep_values=True
    )
    np.testing.assert_array_equal(again.draws, first.draws)
    np.testing.assert_array_equal(again.values["far"], first.values["far"])
    np.testing.assert_array_equal(again.regions["near"].var, first.regions["near"].var)
    assert again.gate == first.gate
    other = sample_posterior(
        problem, model, prior_sd=PRIOR_SD, key=jax.random.key(4), settings=SETTINGS
    )
    assert other.values is None and not np.isin(other.draws, first.draws).all(axis=1).any()
    assert_agree(z_between(other.regions["near"], first.regions["near"]))


def test_the_block_size_changes_nothing_but_the_draws(runs):
    posterior, blocks = runs(), runs(block=100)
    assert blocks.num_draws == 2000
    assert blocks.values["near"].shape == posterior.values["near"].shape
    assert blocks.draws.shape == posterior.draws.shape
    assert_agree(z_between(blocks.regions["near"], posterior.regions["near"]))


def test_runs_that_end_or_are_checked_otherwise_share_their_programs(runs):
    first = runs()
    programs = (chains.start, chains.warm_up, chains.tune, chains.draw)
    sizes = [program._cache_size() for program in programs]
    other = runs(
        gate=GateSettings(ess_min=10.0), target_var_se=1.0, max_draws=4000, max_seconds=1e4,
        coordinates="prior", locations_per_region=9, anneal_above=4000.0, check_modes_up_to=1,
    )  # fmt: skip
    assert [program._cache_size() for program in programs] == sizes
    np.testing.assert_array_equal(other.draws, first.draws)


def test_draws_are_rounded_up_to_blocks(runs):
    posterior = runs(block=100, num_draws=150, max_draws=150)
    assert posterior.num_draws == 200 and posterior.values["far"].shape[:2] == (4, 200)


def test_float64_agrees_with_float32(problem, model, runs, x64):
    double = sample_posterior(
        problem, model, prior_sd=PRIOR_SD, key=jax.random.key(8), settings=SETTINGS
    )
    assert double.draws.dtype == np.float64
    assert_agree(z_between(double.regions["near"], runs().regions["near"]))
    mean, var, *_ = by_quadrature(problem)["near"]
    assert_agree((double.regions["near"].mean[:, 0] - mean) / double.regions["near"].mean_se[:, 0])
    assert_agree((double.regions["near"].var[:, 0] - var) / double.regions["near"].var_se[:, 0])


def test_draws_grow_until_the_gate_passes_or_they_run_out(problem, model):
    calls = []
    bounds = GateSettings(ess_min=700.0, rhat_max=1.1)
    settings = SamplerSettings(
        num_draws=200, max_draws=1500, block=100, gate=bounds, target_var_se=1.0
    )
    posterior = sample_posterior(
        problem, model, prior_sd=PRIOR_SD, key=KEY, settings=settings,
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    assert posterior.gate.passed and 200 < posterior.num_draws < 1500
    assert calls[0][0] == "coordinates" and calls[1][0].startswith("warm-up (0 of 300 transitions")
    assert any("ESS" in what for what, *_ in calls), "what is missing is told while it runs"
    chains = [call for call in calls if call[0].startswith("sampling")]
    at_ends = {done for _, done, _ in chains if done % 100 == 0}
    assert at_ends == set(range(0, posterior.num_draws + 1, 100))
    assert [done for _, done, _ in chains] == sorted(done for _, done, _ in chains)
    assert {total for _, _, total in chains} == {1500}
    assert float(posterior.gate.ess_bulk_min) >= 700
    # What was drawn before is kept: 200 draws alone had not been enough.
    few = sample_posterior(
        problem, model, prior_sd=PRIOR_SD, key=KEY,
        settings=dataclasses.replace(settings, max_draws=200),
    )  # fmt: skip
    assert not few.gate.passed and "ESS" in few.gate.reasons[0] and few.num_draws == 200
    assert posterior.stopped.startswith("target met") and few.stopped.startswith("budget of 200")


def test_r_hat_and_time_left_are_told_while_it_samples(problem, model, monkeypatch):
    monkeypatch.setattr(stopping, "REPORT_EVERY", 0.0)
    told = []
    settings = SamplerSettings(num_draws=300, max_draws=300, block=100)
    sample_posterior(
        problem, model, prior_sd=PRIOR_SD, key=KEY, settings=settings,
        progress=lambda what, done, total: told.append((what, done)),
    )  # fmt: skip
    # The last words at each number of draws.
    words = {done: what for what, done in told if what.startswith("sampling")}
    assert re.fullmatch(r"sampling \(\d+ s\)", words[0]), "nothing is known before the first draw"
    for done in (100, 200):
        assert re.fullmatch(
            r"sampling \(R-hat \d\.\d{3}, ESS \d+, \d+ s to 300 draws\)", words[done]
        )
    assert re.fullmatch(r"sampling \(R-hat \d\.\d{3}, ESS \d+\)", words[300])


def test_draws_grow_until_the_variance_is_known_well_enough(problem, model):
    settings = SamplerSettings(
        num_draws=200, max_draws=4000, block=200, gate=GateSettings(ess_min=100.0, rhat_max=1.1)
    )
    posterior = sample_posterior(problem, model, prior_sd=PRIOR_SD, key=KEY, settings=settings)
    assert posterior.stopped.startswith("target met") and 600 <= posterior.num_draws < 4000
    assert float(posterior.gate.var_mcse_median or 1) <= 0.03


def test_a_problem_that_does_not_mix_fails_with_reasons():
    xor = make_problem("xor", seed=0, n=200, num_test=5, num_far=5, grid_size=5)
    posterior = sample_posterior(
        xor, make_model(xor, width=2), prior_sd=2.0, key=KEY, num_draws=250, max_draws=1000
    )
    gate = posterior.gate
    assert posterior.num_draws == 1000, "all draws are spent while the gate fails"
    assert not gate.passed and any("R-hat" in reason for reason in gate.reasons)
    assert gate.num_locations == 5 + 25 + 5
    assert set(posterior.regions) == {"test", "grid", "far"}
    assert posterior.regions["grid"].var.shape == (25, 1)


def test_bayesian_linear_regression_has_its_closed_form():
    rng = np.random.default_rng(5)
    X, Xq = rng.standard_normal((10, 2)), rng.standard_normal((15, 2))
    targets = [1 + X @ [1.0, -0.5] + 0.5 * rng.standard_normal(10), -X @ [2.0, 1.0]]
    problems = [Problem.from_arrays(X, y, noise_sd=0.5, regions={"q": Xq}) for y in targets]
    model = make_model(problems[0], depth=0, parameterisation="fan_in")
    # Both in one program, each with its own data and key.
    posteriors = sample_posteriors(
        problems, model, prior_sd=2.0, keys=list(jax.random.split(KEY)), settings=SETTINGS
    )

    def features(x):
        return np.concatenate([x, np.ones((len(x), 1))], axis=1)

    sd = 2.0 * np.array([1 / np.sqrt(2), 1 / np.sqrt(2), 1])
    cov = np.linalg.inv(features(X).T @ features(X) / 0.25 + np.diag(1 / sd**2))
    var = np.einsum("np,pq,nq->n", features(Xq), cov, features(Xq))
    for y, posterior in zip(targets, posteriors, strict=True):
        mean = features(Xq) @ cov @ features(X).T @ y / 0.25
        moments = posterior.regions["q"]
        assert_agree((moments.mean[:, 0] - mean) / moments.mean_se[:, 0])
        assert_agree((moments.var[:, 0] - var) / moments.var_se[:, 0])
        np.testing.assert_allclose(moments.aleatoric, 0.25, rtol=1e-6)
        entropy = 0.5 * np.log(2 * np.pi * np.e * 0.25)
        np.testing.assert_allclose(moments.expected_entropy, entropy, rtol=1e-5)
        assert np.isnan(moments.entropy).all()
        # The covariance of the parameters as well, in their own units.
        error = np.cov(posterior.draws.T) / np.sqrt(np.outer(np.diag(cov), np.diag(cov)))
        corr = cov / np.sqrt(np.outer(np.diag(cov), np.diag(cov)))
        np.testing.assert_allclose(error, corr, atol=0.2)


@pytest.mark.parametrize(
    ("name", "depth"), [("logistic_2d.npz", 0), ("softmax_1d.npz", 0), ("mlp_1_1_1.npz", 1)]
)
def test_exact_references(name, depth):
    reference = load_exact(name)
    problem = Problem.from_arrays(reference["X"], reference["y"], regions={"q": reference["Xq"]})
    model = make_model(problem, width=1, depth=depth, parameterisation="standard")
    posterior = sample_posterior(
        problem, model, prior_sd=float(reference["prior_sd"]), key=jax.random.key(1),
        num_draws=2000, locations_per_region=EVERYWHERE, keep_values=True,
    )  # fmt: skip
    assert posterior.gate.passed, posterior.gate.reasons
    result = score(reference, posterior.values["q"])
    assert result["passed"], result
    moments = posterior.regions["q"]
    assert_agree((moments.mean - reference["p_mean"].reshape(moments.mean.shape)) / moments.mean_se)
    p = np.asarray(posterior.values["q"], float)
    p = p if p.shape[-1] > 1 else np.concatenate([1 - p, p], axis=-1)
    entropy = -(p * np.log(np.maximum(p, 1e-30))).sum(-1)
    z = (moments.expected_entropy - reference["exp_entropy"]) / diagnose(entropy).mean_se
    assert_agree(z)


@slow
@pytest.mark.parametrize("name", ["fbm_2_10_1", "fbm_4_8_3"])
def test_published_references(name, shared):
    reference = np.load(shared(f"exact/published/{name}.npz"), allow_pickle=False)
    problem = Problem.from_arrays(reference["X"], reference["y"], regions={"q": reference["Xq"]})
    width = int(name.split("_")[2])
    model = make_model(problem, width=width, parameterisation="standard")
    posterior = sample_posterior(
        problem, model, prior_sd=float(reference["prior_sd"]), key=jax.random.key(0),
        num_draws=8000, locations_per_region=EVERYWHERE, keep_values=True,
    )  # fmt: skip
    result = score(reference, posterior.values["q"])
    assert result["passed"], result


@slow
def test_german_credit(shared):
    reference = np.load(shared("exact/published/german_credit.npz"), allow_pickle=False)
    problem = Problem.from_arrays(reference["X_std"], reference["y"].astype(int))
    model = make_model(problem, depth=0, parameterisation="standard")
    posterior = sample_posterior(
        # So many that the largest of 25 errors of an sd stays below the 2% that are allowed.
        problem,
        model,
        prior_sd=1.0,
        key=jax.random.key(0),
        num_draws=16000,
        num_kept=64000,
    )
    draws = posterior.draws.reshape(4, -1, model.num_params)
    mean, sd = draws.mean((0, 1), dtype=float), draws.std((0, 1), dtype=float)
    error = np.hypot(reference["logistic_gt_mean_se"], diagnose(draws).mean_se)
    assert (np.abs(mean - reference["logistic_gt_mean"]) < 4 * error).all()
    np.testing.assert_allclose(sd, reference["logistic_gt_sd"], rtol=0.02)


@slow  # the study `agreement` is tested with a cell that NumPyro samples, too
def test_numpyro_samples_the_same_posterior():
    from numpyro import infer

    rng = np.random.default_rng(2)
    X = rng.standard_normal((16, 1))
    y = (np.abs(X[:, 0]) + 0.3 * rng.standard_normal(16) > 0.7).astype(int) + (X[:, 0] > 1)
    xq = np.linspace(-2, 2, 11)[:, None]
    problem = Problem.from_arrays(X, y, num_classes=3, likelihood="categorical", regions={"q": xq})
    model = make_model(problem, width=2)
    moments = sample_posterior(
        problem, model, prior_sd=PRIOR_SD, key=KEY, settings=SETTINGS
    ).regions["q"]

    # The network written out again, with nothing of the package in it.
    def outputs(t, x):
        hidden = jnp.tanh(x @ t[:2].reshape(1, 2) + t[2:4][None])
        return hidden @ t[4:10].reshape(2, 3) / jnp.sqrt(2.0) + t[10:13][None]

    def potential(t):
        log_p = jax.nn.log_softmax(outputs(t, jnp.asarray(X, jnp.float32)))
        return -log_p[jnp.arange(16), y].sum() + 0.5 * t @ t / PRIOR_SD**2

    mcmc = infer.MCMC(
        infer.NUTS(potential_fn=potential), num_warmup=500, num_samples=2000, num_chains=4,
        chain_method="vectorized", progress_bar=False,
    )  # fmt: skip
    mcmc.run(jax.random.key(0), init_params=jax.random.normal(jax.random.key(1), (4, 13)))
    draws = mcmc.get_samples(group_by_chain=True).reshape(-1, 13)
    p = jax.nn.softmax(jax.vmap(lambda t: outputs(t, jnp.asarray(xq, jnp.float32)))(draws))
    theirs = diagnose(np.asarray(p).reshape(4, 2000, 11, 3))
    assert theirs.rhat.max() < 1.03
    mean = np.asarray(p, float).mean(0)
    assert_agree((moments.mean - mean) / np.hypot(moments.mean_se, theirs.mean_se))
    assert_agree((moments.var - theirs.var) / np.hypot(moments.var_se, theirs.var_se))
    np.testing.assert_allclose(moments.mean.sum(1), 1, atol=1e-5)


def test_settings_or_keywords_but_not_both(problem, model):
    with pytest.raises(ValueError, match=r"as a whole or by keyword, got both \(num_draws\)"):
        sample_posterior(
            problem, model, prior_sd=1.0, key=KEY, settings=SamplerSettings(), num_draws=10
        )
    with pytest.raises(TypeError, match="num_drawz"):
        sample_posterior(problem, model, prior_sd=1.0, key=KEY, num_drawz=10)


@pytest.mark.parametrize("prior_sd", [0.0, -1.0, np.nan])
def test_the_prior_sd_must_be_positive(problem, model, prior_sd):
    with pytest.raises(ValueError, match="prior_sd must be a positive finite number"):
        sample_posterior(problem, model, prior_sd=prior_sd, key=KEY)


def test_a_model_of_another_problem_is_refused(problem):
    other = make_model(make_problem("xor"), width=2)
    with pytest.raises(
        ValueError,
        match=r"model must have the inputs, outputs and likelihood of problem 'user'.*make_model",
    ):
        sample_posterior(problem, other, prior_sd=1.0, key=KEY)


SHARDED = """
import sys, jax, numpy as np
sys.path.insert(0, sys.argv[2])
from tests.sampling.test_posterior import few_draws
assert jax.device_count() == 4
np.savez(sys.argv[1], values=few_draws().values["test"])
"""


def few_draws():
    xor = make_problem("xor", seed=0, n=20, num_test=5, num_far=5, grid_size=3)
    return sample_posterior(
        xor, make_model(xor, width=3), prior_sd=1.0, key=KEY, num_chains=8, num_warmup=20,
        num_draws=20, block=10, keep_values=True,
    )  # fmt: skip


def test_chains_on_four_devices_are_those_of_one(tmp_path):
    flags = "--xla_force_host_platform_device_count=4 " + os.environ["XLA_FLAGS"]
    subprocess.run(
        [sys.executable, "-c", SHARDED, str(tmp_path / "v.npz"), ROOT],
        env=os.environ | {"XLA_FLAGS": flags}, check=True, timeout=300,
    )  # fmt: skip
    with np.load(tmp_path / "v.npz") as archive:
        # Sums over the chains are rounded in another order, and trajectories let that grow.
        np.testing.assert_allclose(archive["values"], few_draws().values["test"], atol=1e-3)


HOST = """
import sys, jax, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[3], 2, int(sys.argv[4]))
sys.path.insert(0, sys.argv[2])
from tests.sampling.test_posterior import few_draws
assert jax.process_count() == jax.device_count() == 2
np.savez(sys.argv[1], values=few_draws().values["test"])
"""


@slow
def test_chains_on_two_hosts_are_those_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    paths = [tmp_path / f"host{i}.npz" for i in range(2)]
    hosts = [
        subprocess.Popen([
            sys.executable, "-c", HOST, str(path), ROOT, address, str(i),
        ])
        for i, path in enumerate(paths)
    ]  # fmt: skip
    try:
        assert [host.wait(timeout=300) for host in hosts] == [0, 0]
    finally:
        for host in hosts:
            host.kill()
    first, second = (np.load(path)["values"] for path in paths)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, few_draws().values["test"], atol=1e-3)
