"""Input that could be taken for something else is refused, with a message that names it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import isounc
from isounc import covariance, metrics
from isounc.checks import check_key, check_real, check_unmasked
from isounc.estimates.isotropic import isotropic
from isounc.fit import fit_maps
from isounc.llm.answers.measure import MeasureSettings
from isounc.runs.settings import RunSettings, check_run_settings, use_device
from isounc.sampling.adaptation import end_window, start_tuning
from isounc.sampling.batch_means import batch_means_se
from isounc.sampling.convergence import diagnose
from isounc.sampling.gate import ebfmi
from isounc.statistics import holm
from isounc.studies.agreement.sides import NutsSettings
from isounc.studies.calibration.geweke import GewekeSettings
from isounc.studies.calibration.settings import Settings as Calibration
from isounc.studies.calibration.settings import check as check_calibration
from isounc.studies.qa.evaluation import BootstrapSettings
from isounc.studies.qa.settings import Settings as QA
from isounc.studies.qa.settings import check as check_qa
from isounc.studies.scaling import settings as scaling_settings
from isounc.studies.scaling.settings import check as check_scaling

ROOT = Path(__file__).resolve().parents[1]
X = np.arange(8.0).reshape(4, 2)
Y = np.array([0, 1, 0, 1])


def masked(values):
    """The values with the first one masked: what is below is a placeholder such as 1e20."""
    array = np.ma.array(np.array(values), mask=False)
    array[(0,) * array.ndim] = np.ma.masked
    return array


@pytest.fixture(scope="module")
def model():
    return isounc.Model(2, 1, width=2)


MASKED = {
    "X": lambda m, t: isounc.Problem.from_arrays(masked(X), Y),
    "y": lambda m, t: isounc.Problem.from_arrays(X, masked(Y)),
    "regions['a']": lambda m, t: isounc.Problem.from_arrays(X, Y, regions={"a": masked(X)}),
    "X in a list": lambda m, t: isounc.Problem.from_arrays([masked(row) for row in X], Y),
    "estimate": lambda m, t: isounc.compare(masked(X[:, 0]), X[:, 1]),
    "reference": lambda m, t: isounc.compare(X[:, 0], masked(X[:, 1])),
    "reference_se": lambda m, t: isounc.compare(X[:, 0], X[:, 1], reference_se=masked(X[:, 1])),
    "two_valued": lambda m, t: isounc.compare(X[:, 0], X[:, 1], two_valued=masked(X[:, 0] > 0)),
    "values": lambda m, t: isounc.interval_over_seeds(masked([0.5, 0.6])),
    "p_values": lambda m, t: holm(masked([0.5, 0.6])),
    "x": lambda m, t: isotropic(lambda p, x: x @ p, masked(X), np.ones(2), task="binary"),
    "x of a tree": lambda m, t: isotropic(
        lambda p, x: x["a"] @ p, {"a": masked(X)}, np.ones(2), task="binary"
    ),
    "X of a model": lambda m, t: isotropic(m, masked(X), t),
    "theta": lambda m, t: isotropic(m, X, masked(t)),
    "X of a location": lambda m, t: isounc.estimate("isotropic", m, masked(X), t),
    "draws": lambda m, t: isounc.posterior_averaged(m, X, masked(np.stack([t, t]))),
    "draws of a covariance": lambda m, t: covariance.from_draws(masked(np.stack([t, t]))),
    "X of outputs": lambda m, t: m.apply(t, masked(X)),
    "p": lambda m, t: metrics.expected_calibration_error(masked(X[:, :1] / 8), Y),
    "energy": lambda m, t: ebfmi(masked(X)),
    "batch_means": lambda m, t: batch_means_se(masked(X), X),
    "values of locations": lambda m, t: diagnose(masked(np.ones((2, 4, 1)))),
}  # fmt: skip


@pytest.mark.parametrize("what", MASKED)
def test_masked_values_do_not_lose_their_mask(what, model):
    theta = np.linspace(-1, 1, model.num_params)
    argument = what.split(" ")[0].replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ValueError, match=rf"{argument}.* must have no masked values, got 1 of "):
        MASKED[what](model, theta)


def test_a_mask_that_hides_nothing_is_no_mask():
    check_unmasked("X", np.ma.array(X, mask=False))
    assert isounc.compare(np.ma.array(X[:, 0], mask=False), X[:, 1]).pearson == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda z: isounc.compare(z, X[:, 0]),
        lambda z: isounc.compare(X[:, 0], z),
        lambda z: isounc.compare(X[:, 0], X[:, 1], reference_se=z),
        lambda z: isounc.interval_over_seeds(z),
        lambda z: isounc.trend([1, 2, 4, 8], [z]),
        lambda z: holm(z),
        lambda z: ebfmi([z, z]),
        lambda z: isounc.Problem.from_arrays(z[:, None], Y),
        lambda z: check_real("sigma", z[0]),
        lambda z: check_real("sigma", np.array(z[0])),
    ],
)
def test_imaginary_parts_are_not_dropped(call):
    with pytest.raises(ValueError, match=r"must .*(real|finite)"):
        call(np.array([1 + 2j, 2, 3, 4]))


@pytest.mark.parametrize(
    "call",
    [
        lambda z, m: isotropic(lambda p, x: x @ p, z, np.ones(2, np.float32), task="regression"),
        lambda z, m: m.apply(np.zeros(m.num_params), z),
    ],
)
def test_integers_that_jax_would_wrap(call, model):
    for kind, most in ((np.int64, 2**31), (np.uint64, 2**32)):
        with pytest.raises(ValueError, match=f"must hold integers from .*, got {most}; "):
            call(np.array([[1, 2], [most, 3]], kind), model)


@pytest.mark.parametrize("value", [True, np.True_, "1", b"1", [1.0], np.ma.masked, 10**400, None])
def test_what_float_would_read_is_no_number(value):
    with pytest.raises(ValueError, match="sigma must be a non-negative finite number, got "):
        check_real("sigma", value)


@pytest.mark.parametrize("task", ["regression", "multiclass", "binary"])
def test_a_model_takes_no_task_and_no_outputs_of_others(task, model):
    theta = np.zeros(model.num_params)
    with pytest.raises(TypeError, match=f"task must be left out for a Model, got '{task}'"):
        isotropic(model, X, theta, task=task)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("saturated_max", True), ("saturated_max", 1.5), ("saturated_max", -1),
        ("ess_min", True), ("ess_min", 0), ("ess_min", np.nan), ("rhat_max", True),
        ("rhat_max", 1.0), ("rhat_max", "1.01"), ("ebfmi_min", False), ("ebfmi_min", -0.1),
        ("divergence_rate_max", True), ("divergence_rate_max", 1.5), ("rhat_max", np.nan),
    ],
)  # fmt: skip
def test_bounds_of_the_gate_are_numbers_in_their_range(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value!r}"):
        isounc.GateSettings(**{name: value})


WRONG_KEYS = [
    0, None, "0", [0, 1], np.float32(0), np.zeros(2), jnp.zeros(2), np.zeros(2, np.uint32),
    jax.random.split(jax.random.key(0), 3), jax.random.split(jax.random.PRNGKey(0), 3),
]  # fmt: skip


@pytest.mark.parametrize("key", WRONG_KEYS, ids=str)
def test_a_wrong_key_says_what_is_right(key, model):
    problem = isounc.make_problem("xor", n=4)
    for call in (
        lambda: isounc.fit_map(problem, model, prior_sd=1.0, key=key),
        lambda: isounc.fit_trained(problem, model, key=key),
        lambda: isounc.sample_posterior(problem, model, prior_sd=1.0, key=key),
        lambda: model.init(key),
        lambda: model.sample_prior(key, 1.0),
    ):
        with pytest.raises(ValueError, match=r"key must be one .*such as jax.random.key\(0\), got"):
            call()


def test_keys_of_both_kinds_are_right(model):
    for key in (jax.random.key(0), jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")):
        check_key("key", key)
    jax.vmap(model.init)(jax.random.split(jax.random.key(0), 3))
    with pytest.raises(ValueError, match=r"keys must be 2 random keys of JAX, such as .*split"):
        fit_maps([isounc.make_problem("xor")] * 2, model, prior_sd=1.0, keys=[jax.random.key(0)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, m, k: isounc.make_model("xor"), "problem must be a Problem, as make_problem"),
        (lambda p, m, k: isounc.make_model(None), "problem must be a Problem.*got None"),
        (
            lambda p, m, k: isounc.fit_map(m, p, prior_sd=1.0, key=k),
            r"problem must be a Problem.*got Model\(.*\(Model\)",
        ),
        (
            lambda p, m, k: isounc.fit_map(p, None, prior_sd=1.0, key=k),
            "model must be a Model, as make_model returns it, got None",
        ),
        (
            lambda p, m, k: isounc.fit_trained("xor", m, key=k),
            "problem must be a Problem, as make_problem returns it, got 'xor'",
        ),
        (
            lambda p, m, k: isounc.fit_map(p, m, prior_sd=1.0, key=k, settings={}),
            r"settings must be a MapSettings, as MapSettings\(...\) returns it, got {} \(dict\)",
        ),
        (
            lambda p, m, k: isounc.sample_posterior(p, m, prior_sd=1.0, key=k, settings={}),
            "settings must be a SamplerSettings",
        ),
        (
            lambda p, m, k: isounc.sample_posterior(p, m, prior_sd=1.0, key=k, num_chain=4),
            "num_chain is no setting of SamplerSettings .*did you mean num_chains",
        ),
        (lambda p, m, k: isounc.estimate("isotropic", X, m, X), "model must be a Model"),
        (
            lambda p, m, k: isounc.laplace(m, X, np.zeros(9), problem="xor", prior_sd=1.0),
            "problem must be a Problem",
        ),
        (lambda p, m, k: isounc.posterior_averaged(X, m, X), "model must be a Model"),
    ],
)
def test_swapped_and_missing_arguments_are_named(call, message, model):
    with pytest.raises(TypeError, match=message):
        call(isounc.make_problem("xor", n=4), model, jax.random.key(0))


def test_arrays_of_other_shapes_are_named(model):
    theta = np.zeros(model.num_params)
    with pytest.raises(ValueError, match=r"X must have shape \(N, 2\), got \(4, 3\)"):
        model.apply(theta, np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"theta must have shape \(9,\), got \(8,\)"):
        model.predict(theta[1:], X)
    # Its centred factor would be divided by zero.
    with pytest.raises(ValueError, match=r"draws must have shape \(S, P\), two rows or more for"):
        covariance.from_draws(jnp.ones((4, 9)), num_chains=4)
    with pytest.raises(ValueError, match=r"y must be below 2\^63, got 9223372036854775808"):
        isounc.Problem.from_arrays(X, np.array([0, 1, 0, 2**63], np.uint64))


def test_importing_starts_no_device_and_a_device_that_is_absent_is_refused():
    code = (
        "import isounc\n"
        "from isounc.studies import STUDIES, load\n"
        "names = [getattr(isounc, name) for name in isounc.__all__]\n"
        "studies = [load(name) for name in STUDIES]\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "from isounc.runs.settings import use_device\n"
        "for device in ('gpu', 'tpu'):\n"
        "    try:\n"
        "        use_device(device)\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
        "import jax; print(jax.default_backend())"
    )
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PATH": ""}
    environment |= {k: v for k, v in os.environ.items() if k == "PYTHONPYCACHEPREFIX"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    if jax.default_backend() == "cpu":
        for device in ("gpu", "tpu"):
            assert f"device must be one that JAX finds on this machine, got '{device}'" in (
                done.stdout
            )
    assert done.stdout.split()[-1] == "cpu"


def test_a_device_is_refused_once_another_computes():
    other = "gpu" if jax.default_backend() == "cpu" else "cpu"
    before = jax.config.jax_platforms  # pyright: ignore
    with pytest.raises(ValueError, match=f"device must be .* got '{other}'"):
        use_device(other)
    assert jax.config.jax_platforms == before  # pyright: ignore
    use_device(jax.default_backend())
    use_device("auto")
    jax.config.update("jax_platforms", before)


HUGE = 10**12


def scaling(**changes):
    check_scaling(dataclasses.replace(scaling_settings.PRESETS["quick"], **changes))


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("width", lambda: isounc.Model(2, 1, width=HUGE)),
        ("width and depth", lambda: isounc.Model(2, 1, width=10**5, depth=3)),
        ("depth", lambda: isounc.Model(2, 1, depth=HUGE)),
        ("in_features", lambda: isounc.Model(HUGE, 1)),
        ("n", lambda: isounc.make_problem("xor", n=HUGE)),
        ("num_test", lambda: isounc.make_problem("xor", num_test=HUGE)),
        ("num_far", lambda: isounc.make_problem("xor", num_far=HUGE)),
        ("grid_size", lambda: isounc.make_problem("xor", grid_size=HUGE)),
        *(
            (name, lambda name=name: isounc.SamplerSettings(**{"max_draws": 10**8, name: HUGE}))
            for name in (
                "num_chains", "chains_per_device", "num_warmup", "num_draws", "max_draws",
                "metric_rank", "max_integration_steps", "max_tree_depth", "num_mutations", "block",
                "num_kept", "locations_per_region",
            )
        ),
        *(
            (name, lambda name=name: isounc.MapSettings(**{name: HUGE}))
            for name in ("num_restarts", "adam_steps", "lbfgs_steps")
        ),
        ("num_bins", lambda: metrics.expected_calibration_error(X[:, :1] / 8, Y, num_bins=HUGE)),
        ("num_seeds", lambda: scaling(num_seeds=10**9)),
        ("num_seeds and the lists of settings", lambda: scaling(num_seeds=10**5)),
        ("widths", lambda: scaling(widths=(HUGE,))),
        ("depths", lambda: scaling(depths=(HUGE,))),
        ("n", lambda: scaling(n=HUGE)),
        ("num_averaged_draws", lambda: scaling(num_averaged_draws=HUGE)),
        ("num_iterations", lambda: GewekeSettings(num_iterations=HUGE)),
        ("num_replications", lambda: check_calibration(Calibration(num_replications=HUGE))),
        ("seed", lambda: check_calibration(Calibration(seed=2**32))),
        ("num_draws", lambda: NutsSettings(num_draws=HUGE, max_draws=HUGE)),
        ("num_resamples", lambda: BootstrapSettings(num_resamples=HUGE)),
        ("max_new_tokens", lambda: MeasureSettings(max_new_tokens=HUGE)),
        ("num_samples", lambda: MeasureSettings(num_samples=HUGE)),
        ("num_examples", lambda: check_qa(QA(num_examples=HUGE))),
        ("chunk", lambda: check_qa(QA(chunk=HUGE))),
        ("workers", lambda: check_run_settings(RunSettings(workers=HUGE))),
    ],
)  # fmt: skip
def test_counts_beyond_reason_are_refused_before_anything_is_allocated(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument} must (be|make) .*, got \d+"):
        call()


def test_epochs_are_bounded_by_the_rows_that_they_order(model):
    with pytest.raises(ValueError, match="epochs must be an integer from 1 to 67108864, got 10"):
        isounc.fit_trained(
            isounc.make_problem("xor", n=4), model, key=jax.random.key(0), epochs=10**9
        )


def test_the_rank_of_a_metric_is_at_most_the_number_of_parameters():
    settings = isounc.SamplerSettings(metric="low_rank", metric_rank=10**6)
    metric = start_tuning(13, jnp.float32, settings).metric
    assert metric.basis.shape == (13, 13)
    draws = jax.random.normal(jax.random.key(0), (40, 13))
    tuning = start_tuning(13, jnp.float32, settings)
    adapted = end_window(tuning, draws, -draws, settings)
    assert adapted.metric.basis.shape == (13, 13)
    assert np.isfinite(adapted.metric.velocity(draws[0])).all()
