"""The bank: exact entries against independent computations, damaged files, every entry."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import sys
import warnings
from pathlib import Path

import arviz as az
import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.special import expit, softmax

import isounc
import isounc_bank
from isounc import references
from isounc.models import Model, make_model
from isounc.problems import Problem, make_problem
from isounc.references.bank import bank_page
from isounc.references.exact import linear_gaussian
from isounc.references.quadrature import logistic_by_quadrature
from isounc.runs.folder import RunFolder
from isounc.runs.study import run_study
from isounc.runs.values import json_digest, pack
from isounc.sampling.moments import Moments
from isounc.sampling.settings import SamplerSettings
from isounc.studies.bank import cell
from isounc.studies.bank.install import check_again, install
from isounc.studies.bank.settings import Settings
from isounc.studies.bank.study import STUDY
from tests.exact import load_exact

ROOT = Path(__file__).resolve().parents[2]
PRIOR_SD = 1.5
ENTRIES = {entry.name: entry for entry in references.list()}
NAMES = list(ENTRIES)


def rms(z):
    return np.sqrt((np.asarray(z) ** 2).mean())


# Exact posteriors


@pytest.fixture(scope="module")
def one_input():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((12, 1))
    y = (X[:, 0] + rng.logistic(size=12) > 0).astype(int)
    query = np.array([[-6.0], [-1.0], [0.3], [2.0], [6.0]])
    return Problem.from_arrays(X, y, regions={"query": query})


def test_quadrature_agrees_with_adaptive_quadrature(one_input):
    model = make_model(one_input, depth=0, parameterisation="standard")
    exact = logistic_by_quadrature(one_input, model, prior_sd=PRIOR_SD, spacing=0.1)
    moments = exact.regions["query"]
    assert exact.method == "quadrature" and exact.reasons == ()
    sign = 2 * one_input.y - 1

    def integral(g):
        def integrand(b, w):
            f = w * one_input.X[:, 0] + b
            log_density = -np.logaddexp(0, -sign * f).sum() - (w**2 + b**2) / (2 * PRIOR_SD**2)
            return np.exp(log_density) * g(w, b)

        return dblquad(integrand, -12, 12, -12, 12, epsabs=1e-12, epsrel=1e-9)[0]

    evidence = integral(lambda w, b: 1.0)
    for i in (4,):
        x = one_input.regions["query"][i, 0]
        mean = integral(lambda w, b, x=x: expit(w * x + b)) / evidence
        square = integral(lambda w, b, x=x: expit(w * x + b) ** 2) / evidence
        assert moments.mean[i, 0] == pytest.approx(mean, rel=1e-7)
        assert moments.var[i, 0] == pytest.approx(square - mean**2, rel=1e-6)
        assert moments.aleatoric[i, 0] == pytest.approx(mean - square, rel=1e-6)
        assert moments.entropy[i] == pytest.approx(
            -mean * np.log(mean) - (1 - mean) * np.log(1 - mean), rel=1e-6
        )


@pytest.mark.parametrize("parameterisation", ["ntk", "fan_in"])
def test_quadrature_over_three_parameters_agrees_with_importance_sampling(parameterisation):
    problem = make_problem("linear", n=20, num_test=6, num_far=6, grid_size=2)
    model = make_model(problem, depth=0, parameterisation=parameterisation)
    grid = {"prior_sd": PRIOR_SD, "half_width": 8.0, "num_draws": 2000}
    exact = logistic_by_quadrature(problem, model, **grid, spacing=0.45)
    fine = logistic_by_quadrature(problem, model, **grid, spacing=0.36)
    scale = 1 / np.sqrt(2) if parameterisation == "ntk" else 1.0
    sd = PRIOR_SD * (np.array([1 / np.sqrt(2)] * 2 + [1]) if parameterisation == "fan_in" else 1)
    theta = sd * np.random.default_rng(1).standard_normal((100_000, 3))

    def outputs(x):
        return theta[:, :2] @ x.T * scale + theta[:, 2:]

    weights = np.exp(-np.logaddexp(0, (1 - 2 * problem.y) * outputs(problem.X)).sum(1))
    weights /= weights.sum()
    assert 1 / (weights**2).sum() > 1500
    for name, x in problem.regions.items():
        moments, p = exact.regions[name], expit(outputs(x))
        mean = weights @ p
        for ours, values in (
            (moments.mean[:, 0], p),
            (moments.var[:, 0], (p - mean) ** 2),
            (moments.aleatoric[:, 0], p * (1 - p)),
        ):
            estimate = weights @ values
            se = np.sqrt(weights**2 @ (values - estimate) ** 2)
            assert np.abs((ours - estimate) / se).max() < 4
        # No error is larger than what is reported.
        assert (np.abs(fine.regions[name].var - moments.var) <= moments.var_se + 1e-9).all()
        # The draws are of the same posterior, and independent.
        q = expit(exact.draws[:, :2] @ x.T * scale + exact.draws[:, 2:])
        z = (q.mean(0) - moments.mean[:, 0]) / np.sqrt(moments.var[:, 0] / len(q))
        assert np.abs(z).max() < 4
        # Elsewhere a variance is owed to few draws.
        wide = moments.var[:, 0] > 0.005
        assert wide.any() and np.abs(q.var(0) / moments.var[:, 0] - 1)[wide].max() < 0.3


def test_quadrature_agrees_with_an_independent_one():
    truth = load_exact("logistic_2d.npz")
    problem = Problem.from_arrays(truth["X"], truth["y"], regions={"q": truth["Xq"]})
    model = make_model(problem, depth=0, parameterisation="standard")
    exact = logistic_by_quadrature(
        problem, model, prior_sd=float(truth["prior_sd"]), spacing=0.45, half_width=8.0
    )
    moments = exact.regions["q"]
    for ours, error, theirs in (
        (moments.mean[:, 0], moments.mean_se[:, 0], truth["p_mean"]),
        (moments.var[:, 0], moments.var_se[:, 0], truth["p_var"]),
        (moments.expected_entropy, moments.expected_entropy_se, truth["exp_entropy"]),
    ):
        # Not location by location, where a difference of two grids may happen to vanish.
        assert np.abs(ours - theirs.ravel()).max() <= error.max() < 1e-4


@pytest.mark.parametrize("parameterisation", ["ntk", "fan_in"])
def test_linear_regression_agrees_with_one_example_at_a_time(parameterisation):
    rng = np.random.default_rng(2)
    X, query = rng.standard_normal((9, 2)), rng.standard_normal((7, 2))
    y = 1 + X @ [1.0, -0.5] + 0.5 * rng.standard_normal(9)
    problem = Problem.from_arrays(X, y, noise_sd=0.5, regions={"query": query})
    model = make_model(problem, depth=0, parameterisation=parameterisation)
    exact = linear_gaussian(problem, model, prior_sd=PRIOR_SD, num_draws=4000)
    root = np.sqrt(2)
    # Under both the kernel's prior is N(0, PRIOR_SD^2 / 2) as a function of x.
    mean, cov = np.zeros(3), PRIOR_SD**2 * np.diag([1 / 2, 1 / 2, 1])
    for x, target in zip(X, y, strict=True):
        phi = np.append(x, 1)
        gain = cov @ phi / (phi @ cov @ phi + 0.25)
        mean, cov = mean + gain * (target - phi @ mean), cov - np.outer(gain, phi @ cov)
    phi = np.concatenate([query, np.ones((7, 1))], axis=1)
    moments = exact.regions["query"]
    var = np.einsum("np,pq,nq->n", phi, cov, phi)
    np.testing.assert_allclose(moments.mean[:, 0], phi @ mean, rtol=1e-10)
    np.testing.assert_allclose(moments.var[:, 0], var, rtol=1e-10)
    np.testing.assert_allclose(moments.aleatoric, 0.25)
    np.testing.assert_allclose(moments.entropy, 0.5 * np.log(2 * np.pi * np.e * (var + 0.25)))
    assert moments.var_se.max() < 1e-12 and exact.reasons == ()
    units = np.array([root, root, 1]) if parameterisation == "ntk" else np.ones(3)
    z = (exact.draws.mean(0) - mean * units) / (units * np.sqrt(np.diag(cov) / 4000))
    assert np.abs(z).max() < 4
    np.testing.assert_allclose(np.cov(exact.draws.T) / np.outer(units, units), cov, atol=0.01)


def test_exact_posteriors_refuse_what_they_cannot_do(one_input):
    network, linear = make_model(one_input), make_model(one_input, depth=0)
    three = Problem.from_arrays(np.eye(3), [0, 1, 1])
    for call, message in (
        (
            lambda: logistic_by_quadrature(one_input, network, prior_sd=1.0),
            "linear .depth 0.*got depth 1",
        ),
        (
            lambda: linear_gaussian(one_input, linear, prior_sd=1.0),
            "likelihood 'gaussian', got 'bern",
        ),
        (
            lambda: logistic_by_quadrature(one_input, linear, prior_sd=0.0),
            "prior_sd must be a positive",
        ),
        (
            lambda: logistic_by_quadrature(three, make_model(three, depth=0), prior_sd=1.0),
            "at most 2 inputs.*got 3",
        ),
        (
            lambda: logistic_by_quadrature(
                one_input, linear, prior_sd=1.0, spacing=1.0, half_width=1.0
            ),
            "half_width must be at least twice",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_grid_that_is_too_coarse_fails_with_its_error(one_input):
    model = make_model(one_input, depth=0)
    exact = logistic_by_quadrature(one_input, model, prior_sd=PRIOR_SD, spacing=1.5, num_draws=1)
    assert "numerical error of a variance" in exact.reasons[0]


# One small bank, made by the experiment itself


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    sampling = SamplerSettings(num_warmup=100, num_draws=400, max_draws=400, block=50, num_kept=64)
    return Settings(
        problems=("linear_regression",), widths=(3,), logistic=(), n=12, sampling=sampling,
        cache="", out=str(folder / "run"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def bank(settings):
    assert run_study(STUDY, settings)
    folder = Path(settings.out).parent / "bank"
    install(settings.out, folder)
    return folder


SAMPLED, GAUSSIAN = "linear_regression-ntk-w3-v1", "linear_regression-gaussian-v1"


def loaded(name, bank):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", references.FailedReferenceWarning)
        return references.load(name, bank)


def test_the_study_resumes_and_installs(settings, bank, monkeypatch):
    assert [entry.name for entry in references.list(bank)] == [GAUSSIAN, SAMPLED]
    page = (bank / "README.md").read_text(encoding="utf-8")
    assert f"`{SAMPLED}` | hmc | 10 |" in page and "closed form" in page
    monkeypatch.setattr(cell, "make", None)  # nothing is made again
    assert run_study(STUDY, settings)
    install(settings.out, bank)  # the same content may be installed twice
    folder = RunFolder.load(settings.out)
    assert folder.results["name"].tolist() == [GAUSSIAN, SAMPLED]
    assert (folder.path / "figures" / "checks.png").exists()
    other = dataclasses.replace(settings, n=13)
    with pytest.raises(ValueError, match=r"n: 12 in the folder, 13 asked for"):
        run_study(STUDY, other)
    with pytest.raises(ValueError, match=r"parameterisations must be one of.*'ntk'"):
        run_study(STUDY, dataclasses.replace(settings, parameterisations=("nkt",)))


def test_an_unfinished_run_is_not_installed(settings, tmp_path, monkeypatch):
    calls = []

    def stop(*arguments):
        calls.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(cell, "make", stop)
    other = dataclasses.replace(settings, out=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        run_study(STUDY, other)
    with pytest.raises(
        ValueError, match=r"run must be finished \(repeat its command\), got .*run, which is not"
    ):
        install(other.out, tmp_path / "bank")
    assert len(calls) == 1 and not (tmp_path / "bank").exists()


def test_settings_of_another_version_are_read(capsys):
    stored = dataclasses.asdict(SamplerSettings(num_chains=3)) | {"forgotten": 1}
    assert cell.sampler_settings(stored) == SamplerSettings(num_chains=3)
    assert "forgotten" in capsys.readouterr().out


def test_check_makes_it_again_and_compares(bank, capsys):
    assert check_again((GAUSSIAN, SAMPLED), bank)
    printed = capsys.readouterr().out
    assert printed.count("agrees") == 2 and "rms z mean" in printed and SAMPLED in printed
    # A reference whose variances are three times as large is seen.
    reference = loaded(SAMPLED, bank)
    wrong = bank.parent / "wrong"
    regions = {k: m._replace(var=3 * m.var) for k, m in reference.regions.items()}
    references.save(dataclasses.replace(reference, regions=regions), wrong)
    assert not check_again((SAMPLED,), wrong)


def test_round_trip(bank, tmp_path):
    for name in (GAUSSIAN, SAMPLED):
        reference = loaded(name, bank)
        again = loaded(name, tmp_path) if references.save(reference, tmp_path) else None
        for a in dataclasses.fields(reference):
            left, right = getattr(reference, a.name), getattr(again, a.name)
            if a.name in ("problem", "regions", "draws", "values", "locations"):
                continue
            assert left == right, a.name
        assert again.gate is None or isinstance(again.gate.reasons, tuple)
        np.testing.assert_array_equal(again.draws, reference.draws)
        for region, moments in reference.regions.items():
            assert isinstance(again.regions[region], Moments)
            for one, other in zip(moments, again.regions[region], strict=True):
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(again.values[region], reference.values[region])
            np.testing.assert_array_equal(again.locations[region], reference.locations[region])
        for field in ("X", "y", "noise_sd", "grid_shape", "likelihood", "name", "num_classes"):
            one, other = getattr(reference.problem, field), getattr(again.problem, field)
            assert np.array_equal(one, other) and type(one) is type(other)
        assert again.problem.shape_key == reference.problem.shape_key
        assert len(again.checksum) == 64


def test_what_is_published_is_not_replaced(bank, tmp_path):
    reference = loaded(GAUSSIAN, bank)
    references.save(reference, tmp_path)
    other = dataclasses.replace(reference, prior_sd=3.0)
    with pytest.raises(
        ValueError,
        match=rf"name that is new in .*got '{GAUSSIAN}'.*version",
    ):
        references.save(other, tmp_path)
    references.save(other, tmp_path, overwrite=True)
    assert references.load(GAUSSIAN, tmp_path).prior_sd == 3.0


def test_damage_is_one_clear_error(bank, tmp_path):
    npz, info = tmp_path / f"{GAUSSIAN}.npz", tmp_path / f"{GAUSSIAN}.info.json"

    def fresh():
        references.save(loaded(GAUSSIAN, bank), tmp_path, overwrite=True)

    def refused(message):
        with pytest.raises(
            ValueError, match=f"'{GAUSSIAN}' is damaged .*{message}.*reference_bank"
        ):
            references.load(GAUSSIAN, tmp_path)

    fresh()
    data = bytearray(npz.read_bytes())
    data[len(data) // 2] ^= 1
    npz.write_bytes(bytes(data))
    refused(r"checksum of .*\.npz")
    npz.unlink()
    refused("npz is missing")
    fresh()
    info.write_text(info.read_text().replace('"prior_sd": 2.0', '"prior_sd": 2.5'))
    refused("checksum of the meta")
    with pytest.raises(ValueError, match="damaged"):
        references.list(tmp_path)
    info.write_text("{")
    refused("not valid JSON")
    fresh()
    payload = json.loads(info.read_text())
    info.write_text(json.dumps(payload | {"format_version": 99}))
    with pytest.raises(ValueError, match="newer"):
        references.load(GAUSSIAN, tmp_path)
    # A check that was not made yet when the entry was written is no damage.
    meta, arrays = loaded(SAMPLED, bank).to_record()
    newer = ("num_frozen", "log_density_error", "khat_max", "num_heavy_tails", "num_equal_chains")
    for name in newer:
        del meta["gate"][name]
    old = references.from_record(SAMPLED, meta, arrays)
    assert all(getattr(old.gate, name) is None for name in newer)
    assert old.card.count("| not checked |") == 5
    # Checksums hold, but an array is missing, or one that only pickle could read is there.
    reference = loaded(GAUSSIAN, bank)
    meta, arrays = reference.to_record()
    del arrays["test/var"]
    with pytest.raises(
        ValueError, match=r"meta and arrays must be those of .*KeyError: 'test/var'"
    ):
        references.from_record(GAUSSIAN, meta, arrays)
    # Checksums hold, and a field is of another kind.
    fresh()
    payload = json.loads(info.read_text())
    for field, value in (("model", "x"), ("reasons", 3), ("regions", None), ("gate", "passed")):
        meta = payload["meta"] | {field: value}
        digest = json_digest(meta)
        info.write_text(json.dumps(payload | {"meta": meta, "meta_sha256": digest}))
        refused("must be")
    info.unlink()
    info.symlink_to("/dev/zero")
    refused("must be a regular file, got a device")
    with pytest.raises(ValueError, match="without pickle"):
        pack({"X": np.array([object()])}, compress=True)


def test_unknown_names_and_folders(bank, tmp_path):
    with pytest.raises(ValueError, match=f"name must be one of.*did you mean '{SAMPLED}'"):
        references.load("linear_regression-ntk-w4-v1", bank)
    with pytest.raises(ValueError, match="folder must be a folder"):
        references.load(SAMPLED, tmp_path / "none")
    with pytest.raises(ValueError, match="name must be one of"):
        isounc.references.load("../../etc/passwd")


def test_a_failing_reference_is_shown_and_warned_about(bank, tmp_path):
    reference = dataclasses.replace(loaded(GAUSSIAN, bank), reasons=("R-hat is 1.3",))
    assert not reference.passed
    references.save(reference, tmp_path)
    (entry,) = references.list(tmp_path)
    assert not entry.passed and entry.reasons == ("R-hat is 1.3",)
    with pytest.warns(UserWarning, match=f"'{GAUSSIAN}' did not pass.*R-hat is 1.3") as caught:
        # Checks of shapes, where tests are run with them, call the function from elsewhere.
        assert inspect.unwrap(references.load)(GAUSSIAN, tmp_path).card.count("FAILED") == 1
    assert caught[0].filename == __file__
    page = bank_page([entry], num_bytes=1000)
    assert "0 of which passed" in page and "**fail**" in page and "R-hat is 1.3" in page


def test_the_card_says_how_it_was_made_and_what_was_checked(bank):
    reference = loaded(SAMPLED, bank)
    card, gate = reference.card, reference.gate
    for text in (
        f"# {SAMPLED}", "4 chains", "100 transitions of warm-up", "P = 10", "12 training examples",
        f"{gate.rhat_max:.4f} | below 1.01", f"{gate.ess_bulk_min:.0f} | 1000 or more",
        "layer0/kernel 2", f"references check {SAMPLED}", "blackjax 1.",
        reference.checksum, "float32",
        "FAILED" if gate.reasons else "Passed",
    ):  # fmt: skip
        assert text in card, text
    assert all(reason in card for reason in gate.reasons)
    assert str(Path.home()) not in card and str(ROOT) not in card
    exact = loaded(GAUSSIAN, bank).card
    assert "closed form" not in exact.splitlines()[0] and "linear algebra" in exact
    assert "var_relative_error_max" in exact and "at most 1e-06" in exact and "float64" in exact


@pytest.mark.parametrize("name", [SAMPLED, GAUSSIAN])
def test_arviz_and_netcdf(bank, tmp_path, name):
    reference = loaded(name, bank)
    tree = reference.to_arviz()
    path = tmp_path / "reference.nc"
    tree.to_netcdf(path)
    back = az.from_netcdf(path)
    for data in (tree, back):
        f = data["posterior"]["f"]
        assert f.dims == ("chain", "draw", "location", "column")
        assert f.shape == (4, 200, 12, 1)
        at = int(reference.locations["grid"][1])
        one = np.asarray(f.sel(location=f"grid[{at}]"))[..., 0]
        np.testing.assert_array_equal(one, reference.values["grid"][:, :, 1, 0])
        theta = np.asarray(data["unconstrained_posterior"]["theta"])
        np.testing.assert_array_equal(
            theta.reshape(reference.draws.shape), reference.draws.astype(theta.dtype)
        )
        np.testing.assert_array_equal(data["observed_data"]["y"], reference.problem.y)
        assert data["posterior"].attrs["reference"] == name
        assert "layer0/kernel[0]" in data["unconstrained_posterior"]["parameter"].values
        # ArviZ takes the same axis for the chains, or they would not agree.
        assert float(az.rhat(one)) < 1.1
    if hasattr(back, "close"):
        back.close()


def test_a_bank_that_is_missing_is_said(bank, monkeypatch):
    monkeypatch.setitem(sys.modules, "isounc_bank", None)
    for act in (references.list, lambda: references.load(GAUSSIAN)):
        with pytest.raises(ImportError, match=r"isounc-bank: pip install isounc\[bank\]"):
            act()
    assert loaded(GAUSSIAN, bank).passed


def test_arviz_that_is_missing_is_said(bank, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"isounc\[arviz\]"):
        loaded(GAUSSIAN, bank).to_arviz()


def test_thinning():
    thin = references.Thinning()
    assert thin.num_draws(33) == 256 and thin.num_draws(1539) == 64 and thin.num_draws(257) == 124
    with pytest.raises(ValueError, match="max_draws must be an integer from 64 to 10000000, got 8"):
        references.Thinning(max_draws=8)


# Comparison


def gaussian_case(num_draws=4000, sd=1.0, shift=0.0):
    rng = np.random.default_rng(7)
    draws = rng.standard_normal((4, num_draws, 30, 1)) * sd + shift
    zeros, ones = np.zeros((30, 1)), np.ones((30, 1))
    exact = Moments(
        zeros, 0 * ones, ones, 0 * ones, ones, 0 * ones, ones[:, 0], zeros[:, 0], ones[:, 0]
    )
    return dataclasses.make_dataclass("Holder", ["regions"])({"a": exact, "b": exact}), draws


def test_draws_of_the_right_posterior_agree():
    reference, draws = gaussian_case()
    agreement = references.compare(reference, {"a": draws})
    assert agreement.agrees and list(agreement.regions) == ["a"]
    z = agreement.regions["a"]
    # Independent draws, independent locations: z is standard normal.
    assert 0.7 < rms(z.mean_z) < 1.35 and 0.7 < rms(z.var_z) < 1.35
    assert z.var_ratio == pytest.approx(1, abs=0.02)
    assert str(agreement).endswith("agrees") and "a " in str(agreement)


@pytest.mark.parametrize(("change", "what"), [({"sd": 1.1}, "var"), ({"shift": 0.1}, "mean")])
def test_draws_of_another_posterior_do_not(change, what):
    reference, draws = gaussian_case(**change)
    agreement = references.compare(reference, {"b": draws})
    assert not agreement.agrees and any(f"{what}_z_rms" in reason for reason in agreement.reasons)
    assert any(f"b: {what}_z_rms is" in line for line in str(agreement).splitlines())


def test_a_variance_that_rare_draws_decide_is_not_judged():
    reference, draws = gaussian_case()
    exact = reference.regions["a"]
    mean, var = exact.mean.copy(), exact.var.copy()
    # Log-normal draws: their variance is far below the truth, and so is its error.
    draws[:, :, 3] = np.exp(3 * draws[:, :, 3])
    mean[3], var[3] = np.exp(4.5), (np.exp(9) - 1) * np.exp(9)
    skewed = dataclasses.replace(reference, regions={"a": exact._replace(mean=mean, var=var)})
    agreement = references.compare(skewed, {"a": draws})
    region = agreement.regions["a"]
    assert np.flatnonzero(region.rare).tolist() == [3] and abs(region.var_z[3, 0]) > 6
    assert agreement.agrees and "variance at 1 of 30 locations, which are left out" in str(
        agreement
    )
    none_left = references.compare(skewed, {"a": np.repeat(draws[:, :, 3:4], 30, axis=2)})
    assert "a: rare draws decide about the variance at every location" in none_left.reasons


def test_errors_of_both_sides_count():
    reference, _ = gaussian_case()
    exact = reference.regions["a"]
    other = exact._replace(mean=exact.mean + 0.5, mean_se=exact.mean + 0.4)
    uncertain = dataclasses.replace(
        reference, regions={"a": exact._replace(mean_se=exact.mean + 0.3)}
    )
    z = references.compare(uncertain, {"a": other}).regions["a"].mean_z
    np.testing.assert_allclose(z, 1.0)
    np.testing.assert_allclose(references.compare(uncertain, {"a": exact}).regions["a"].mean_z, 0)
    # A last digit of float32 is no disagreement, where both errors are smaller.
    near_one = exact._replace(mean=exact.var, mean_se=0 * exact.var)
    rounded = near_one._replace(mean=near_one.mean - 2.0**-24)
    holder = dataclasses.replace(reference, regions={"a": near_one})
    assert references.compare(holder, {"a": rounded}).agrees


def test_what_cannot_be_compared(unchecked):
    reference, draws = gaussian_case(num_draws=50)
    for other, message in (
        ({"c": draws}, "a region of other must be one of a, b, got 'c'"),
        ({}, "must have regions"),
        ({"a": draws[0]}, r"draws \(chains, draws, 30, 1\), got shape \(50, 30, 1\)"),
        ({"a": draws[:, :, :9]}, "must hold 30 locations and 1 columns"),
        ({"a": draws[:1]}, "number of chains"),
        ({"a": draws[:, :3]}, r"number of draws of other\['a'\] must be an integer of at least 4"),
    ):
        with pytest.raises(ValueError, match=message):
            references.compare(reference, other)
    classifier = dataclasses.make_dataclass("WithModel", ["regions", "model"])(
        reference.regions, Model(2, 1)
    )
    with pytest.raises(ValueError, match=r"other\['a'\] must hold probabilities, got -"):
        references.compare(classifier, {"a": draws})
    still = draws.copy()
    still[:, :, 3] = 0
    agreement = references.compare(reference, {"a": still})
    assert any("1 of 30 z-scores of the mean are undefined" in r for r in agreement.reasons)


def test_draws_that_are_all_equal_have_a_mean_that_is_judged():
    reference, draws = gaussian_case()
    exact = reference.regions["a"]
    mean, var = exact.mean.copy(), exact.var.copy()
    mean[3], var[3] = 1 - 1e-10, 1e-20
    sure = dataclasses.replace(reference, regions={"a": exact._replace(mean=mean, var=var)})
    for value, agrees in ((1.0, True), (0.5, False)):
        draws[:, :, 3] = value
        agreement = references.compare(sure, {"a": draws})
        assert agreement.agrees == agrees and agreement.regions["a"].rare[3]
        assert agrees or any("a: mean_z_max is" in reason for reason in agreement.reasons)


# The bank that is a package


def test_the_bank_is_listed_and_small():
    assert isounc.references is references
    folder = Path(isounc_bank.__file__).parent / "data"
    assert sum(path.stat().st_size for path in folder.rglob("*")) <= 20_000_000
    assert {"linear-logistic-v1", "linear_regression-gaussian-v1"} <= set(NAMES)
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in NAMES)
    contents = {path.name for path in folder.iterdir()} - {"README.md"}
    assert contents == {name + end for name in NAMES for end in (".npz", ".info.json")}


@pytest.mark.parametrize(
    "name", [n for n in NAMES if "-ntk-" in n and n.replace("-ntk-", "-fan_in-") in NAMES]
)
def test_two_parameterisations_of_one_posterior_agree(name):
    # x W / sqrt(D) + b with W ~ N(0, s^2) is x W + b with W ~ N(0, s^2 / D).
    pair = [loaded(twin, None) for twin in (name, name.replace("-ntk-", "-fan_in-"))]
    if all(reference.passed for reference in pair):
        agreement = references.compare(*pair)
        assert agreement.agrees, str(agreement)


def forward(model, theta, X):
    """Predictions of draws (S, P) at X by plain NumPy."""
    sizes = [model.in_features, *[model.width] * model.depth, model.out_features]
    h, at = np.broadcast_to(X, (len(theta), *X.shape)), 0
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        kernel = theta[:, at : at + a * b].reshape(-1, a, b)
        bias = theta[:, None, at + a * b : at + a * b + b]
        at += (a + 1) * b
        h = h @ kernel / (np.sqrt(a) if model.parameterisation == "ntk" else 1) + bias
        h = np.tanh(h) if i < model.depth else h
    link = {"bernoulli": expit, "categorical": lambda f: softmax(f, axis=-1)}
    return link.get(model.likelihood, lambda f: f)(h)


@pytest.mark.parametrize("name", NAMES)
def test_every_entry(name):
    entry = ENTRIES[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reference = references.load(name)
    assert len(caught) == (not reference.passed) and entry.passed == reference.passed
    model, problem = reference.model, reference.problem
    assert (
        model.num_params == entry.num_params and problem.regions.keys() == reference.regions.keys()
    )
    assert reference.draws.shape[1] == model.num_params
    assert len(reference.draws) % reference.num_chains == 0 and np.isfinite(reference.draws).all()
    # The data are those that the package makes today.
    today = make_problem(problem.name, n=len(problem.X), seed=reference.settings["seed"])
    np.testing.assert_array_equal(problem.y, today.y)
    np.testing.assert_allclose(problem.X, today.X, rtol=1e-12)
    for region, moments in reference.regions.items():
        np.testing.assert_allclose(problem.regions[region], today.regions[region], rtol=1e-12)
        size = len(problem.regions[region])
        for field, a in moments._asdict().items():
            assert a.shape == ((size,) if "entropy" in field else (size, problem.num_columns))
            undefined = field == "entropy" and reference.gate and model.likelihood == "gaussian"
            assert np.isnan(a).all() if undefined else np.isfinite(a).all(), field
            assert field in ("mean", "entropy", "expected_entropy") or (a >= 0).all(), field
        assert (moments.var > 0).all()
        if model.likelihood != "gaussian":
            assert (moments.mean >= 0).all() and (moments.mean <= 1).all()
            total = moments.aleatoric + moments.var
            np.testing.assert_allclose(total, moments.mean * (1 - moments.mean), atol=2e-5)
        # The draws and the kept predictions are of this posterior: at least about 60 effective.
        p = forward(model, reference.draws.astype(float), problem.regions[region])
        sd = np.sqrt(moments.var.astype(float))
        assert rms((p.mean(0) - moments.mean) / sd) < (0.35 if reference.passed else 3)
        rows = reference.locations[region]
        values = reference.values[region]
        assert values.shape[0] == reference.num_chains and values.shape[2] == len(rows)
        centred = (values.astype(float).mean((0, 1)) - moments.mean[rows]) / sd[rows]
        assert rms(centred) < (0.2 if reference.passed else 3)
    text = reference.card
    assert name in text and ("Passed" if reference.passed else "FAILED") in text
