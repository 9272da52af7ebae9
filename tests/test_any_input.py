"""Any input gives a result, or an error that names the argument; never anything else, never long.

One or two arguments of a call that is right are exchanged for something from everywhere: None,
texts, huge numbers, arrays of other types and shapes, each other. What is expensive after all
arguments are checked is left out.
"""

from __future__ import annotations

import re
import string
import time
import warnings
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import isounc
from isounc import covariance, densities, gradnorm, metrics, references
from isounc.runs.folder import DamagedRecordWarning, Record, RunFolder
from isounc.runs.settings import restored_settings
from isounc.sampling import batch_means, convergence, gate
from isounc.statistics import holm
from isounc.studies.scaling.settings import PRESETS

MOST_SECONDS = 10.0
X = np.arange(12.0).reshape(6, 2)
Y = np.array([0, 1, 0, 1, 1, 0])
PROBLEM = isounc.Problem.from_arrays(X, Y)
MODEL = isounc.Model(2, 1, width=2)
THETA = np.linspace(-1, 1, MODEL.num_params)
KEY = jax.random.key(0)


class Reached(Exception):
    """All arguments were taken: what follows is left out."""


def _anything() -> st.SearchStrategy[Any]:
    numbers = st.one_of(
        st.sampled_from([0, -1, 1, 2, 3, 10**6, 10**12, 10**400, -(2**63), 2**64]),
        st.sampled_from([0.0, -0.0, 0.5, 1.5, -2.0, 1e-320, 1e308, np.nan, np.inf, -np.inf]),
        st.sampled_from([True, False, 1j, np.float32(2), np.int8(3), np.bool_(True), b"1"]),
    )
    texts = st.one_of(
        st.sampled_from(["", "xor", "tanh", "bernoulli", "[", "(", "\x00", "../x", "1", "π" * 300]),
        st.text(string.ascii_letters + "~.[](){}*%$ \n", max_size=6),  # no path out of a folder
    )
    shapes = st.sampled_from(
        [(), (0,), (2,), (6,), (9,), (6, 2), (2, 9), (6, 1), (0, 2), (2, 4, 1)]
    )
    kinds = st.sampled_from(["f8", "f4", "i4", "u1", "u8", "?", "c8", "U2", "O", "M8[s]", "f2"])
    arrays = st.builds(lambda shape, kind: np.ones(shape).astype(kind), shapes, kinds)
    jax_arrays = st.builds(lambda shape, kind: jnp.ones(shape, kind), shapes, st.sampled_from(
        ["float32", "int32", "bool", "bfloat16", "complex64", "uint32"]
    ))  # fmt: skip
    odd = st.sampled_from([
        None, ..., object(), int, len, [], {}, (), set(), [None], ["a"], [[1], [2, 3]], {"a": 1},
        {1: 2}, range(3), PROBLEM, MODEL, KEY, jax.random.split(KEY, 2), jax.random.PRNGKey(0),
        np.ma.array(X, mask=X > 3), np.array([np.nan, 1.0]), np.full((6, 2), np.inf), X, Y, THETA,
        np.array(["1", "2"]), [X, X], slice(2), isounc.GateSettings(), isounc.SamplerSettings(),
    ])  # fmt: skip
    return st.one_of(numbers, texts, arrays, jax_arrays, odd)


ANYTHING = _anything()


def _of(function: Callable[..., Any], /, *others: str, **right: Any) -> tuple[Any, list[str], Any]:
    """A function, names that messages may give its arguments besides, and arguments."""
    return function, list(others), right


def logits(params, x):
    return x @ params


def logits_sum(params, x):
    return jnp.sin(x @ params).sum()


CALLS: dict[str, Any] = {
    "make_problem": _of(
        isounc.make_problem, "problem", name="xor", n=6, seed=0, label_noise=1.0, num_test=2, num_far=2,
        grid_size=2,
    ),
    "Problem.from_arrays": _of(
        isounc.Problem.from_arrays, X=X, y=Y, likelihood="bernoulli", regions={"a": X},
        noise_sd=None, targets={"a": Y}, p_true=None, num_classes=2, name="mine",
    ),
    "make_model": _of(
        isounc.make_model, problem=PROBLEM, width=2, depth=1, activation="tanh",
        parameterisation="ntk",
    ),
    "Model": _of(
        isounc.Model, in_features=2, out_features=1, likelihood="bernoulli", width=2, depth=1,
        activation="tanh", parameterisation="ntk",
    ),
    "Model.init": _of(MODEL.init, key=KEY),
    "Model.sample_prior": _of(MODEL.sample_prior, key=KEY, prior_sd=1.0),
    "Model.apply": _of(MODEL.apply, theta=THETA, X=X),
    "Model.predict": _of(MODEL.predict, theta=THETA, X=X),
    "Model.unflatten": _of(MODEL.unflatten, theta=THETA),
    "Model.param_prior_sd": _of(MODEL.param_prior_sd, prior_sd=1.0),
    "MapSettings": _of(
        isounc.MapSettings, num_restarts=1, adam_steps=1, adam_learning_rate=1.0, lbfgs_steps=1,
        tolerance=1e-5,
    ),
    "TrainSettings": _of(
        isounc.TrainSettings, epochs=1, minibatch=1, learning_rate=1.0, weight_decay=0.0
    ),
    "GateSettings": _of(
        isounc.GateSettings, ess_min=1.0, rhat_max=1.1, ebfmi_min=0.1, divergence_rate_max=0.1,
        saturated_max=0,
    ),
    "SamplerSettings": _of(
        isounc.SamplerSettings, sampler="hmc", coordinates="auto", metric="diagonal",
        metric_rank=2, num_chains=2, chains_per_device=0, num_warmup=20, num_draws=4, max_draws=4,
        max_seconds=1.0, target_var_se=0.1, trajectory_length=1.0, max_integration_steps=2, max_tree_depth=2,
        num_mutations=1, tempering_ess=0.5, target_acceptance=0.8, block=2, num_kept=2,
        locations_per_region=1, gate=isounc.GateSettings(),
    ),
    "fit_map": _of(
        isounc.fit_map, problem=PROBLEM, model=MODEL, prior_sd=1.0, key=KEY, num_restarts=1
    ),
    "fit_trained": _of(
        isounc.fit_trained, problem=PROBLEM, model=MODEL, key=KEY, prior_sd=1.0, epochs=1
    ),
    "sample_posterior": _of(
        isounc.sample_posterior, problem=PROBLEM, model=MODEL, prior_sd=1.0, key=KEY,
        num_draws=4, num_chains=2, keep_values=False, checkpoint=None,
    ),
    "isotropic": _of(
        isounc.isotropic, "theta", model=logits, x=X, params=np.ones((2, 3)), task="multiclass",
        target=None, sigma=1.0, noise_sd=1.0, outputs=None, kwargs=None, batch_size=4,
    ),
    "isotropic of a Model": _of(
        isounc.isotropic, "X", "theta", "task", model=MODEL, x=X, params=THETA, sigma=1.0, batch_size=4
    ),
    "isotropic by logit_scaled": _of(
        isounc.isotropic, "theta", model=logits, x=X, params=np.ones((2, 3)), task="multiclass",
        target="predicted", method="logit_scaled", reference=X, scale="unit", prior_sd=None,
    ),
    "fit_logit_scale": _of(
        isounc.fit_logit_scale, model=logits, reference=X, params=np.ones((2, 3)), task="multiclass",
        rule="effective_dimension", prior_sd=1.0, noise_sd=1.0, outputs=None, batch_size=4,
    ),
    "fit_logit_scale of a Model": _of(
        isounc.fit_logit_scale, "theta", "task", model=MODEL, reference=X, params=THETA, rule="unit",
        prior_sd=None, wrt=None,
    ),
    "LogitScale.load": _of(isounc.LogitScale.load, path="nowhere"),
    "estimate": _of(
        isounc.estimate, "estimator", name="isotropic", model=MODEL, X=X, theta=THETA, problem=PROBLEM,
        prior_sd=1.0, draws=np.stack([THETA, 2 * THETA]), num_chains=1, hessian=None,
        noise_sd=None,
    ),
    "link_aware": _of(isounc.link_aware, model=MODEL, X=X, theta=THETA, prior_sd=1.0),
    "posterior_averaged": _of(
        isounc.posterior_averaged, model=MODEL, X=X, draws=np.stack([THETA, THETA]), noise_sd=1.0,
        batch_size=4,
    ),
    "gradnorm": _of(
        lambda **options: gradnorm.value_and_sq_grad_norm(logits_sum, **options)(THETA[:2], X),
        wrt="params", per_leaf=False, batch_size=2, dtype="float32",
    ),
    "compare": _of(
        isounc.compare, estimate=X[:, 0], reference=X[:, 1], reference_se=X[:, 1],
        given=X[:, 0] ** 2, two_valued=X[:, 0] > 0,
    ),
    "two_valued": _of(isounc.two_valued, moments=None, likelihood="bernoulli", p=X[:, :1] / 12),
    "interval_over_seeds": _of(
        isounc.interval_over_seeds, values=[0.1, 0.2], kind="correlation", level=0.9
    ),
    "trend": _of(isounc.trend, widths=[2, 4], values_by_seed=[[0.1, 0.2], [0.2, None]], level=0.9),
    "holm": _of(holm, p_values=[0.1, 0.2]),
    "class_views": _of(
        metrics.class_views, p=X[:, :1] / 12, values=X[:, :1], likelihood="bernoulli"
    ),
    "negative_log_likelihood": _of(
        metrics.negative_log_likelihood, p=X[:, :1] / 12, y=Y, likelihood="bernoulli",
        noise_sd=None, p_var=X[:, :1],
    ),
    "expected_calibration_error": _of(
        metrics.expected_calibration_error, p=X[:, :1] / 12, y=Y, num_bins=3
    ),
    "make_data": _of(densities.make_data, problem=PROBLEM, model=MODEL, prior_sd=1.0),
    "from_draws": _of(covariance.from_draws, draws=np.stack([THETA, THETA]), num_chains=1),
    "diagonal_from_draws": _of(covariance.diagonal_from_draws, draws=np.stack([THETA, THETA])),
    "ebfmi": _of(gate.ebfmi, energy=X),
    "diagnose": _of(convergence.diagnose, values=X.reshape(2, 6, 1)),
    "batch_means_se": _of(batch_means.batch_means_se, batch_means=X, batch_square_means=X, shift=0.0),
    "gate": _of(
        gate.gate, values=X.reshape(2, 6, 1), energy=X.reshape(2, 6), num_divergent=0,
        num_saturated=0, num_transitions=12, settings=None,
    ),
    "register_problem": _of(
        isounc.register_problem, name="mine", factory=isounc.make_problem
    ),
    "register_likelihood": _of(
        isounc.register_likelihood, name="mine", likelihood=None
    ),
    "register_estimator": _of(
        isounc.register_estimator, name="mine", estimator=None
    ),
    "references.load": _of(references.load, name="linear-logistic-v1", folder=None),
    "references.list": _of(references.list, folder=None),
    "references.linear_gaussian": _of(
        references.linear_gaussian, problem=PROBLEM, model=MODEL, prior_sd=1.0, num_draws=4,
    ),
    "references.logistic_by_quadrature": _of(
        references.logistic_by_quadrature, problem=PROBLEM, model=MODEL, prior_sd=1.0, num_draws=4,
    ),
    "references.compare": _of(references.compare, reference=None, other=None),
    "runs.load": _of(isounc.runs.load, path="nowhere"),
    "restored_settings": _of(
        lambda stored: restored_settings(PRESETS["quick"], stored), "settings", "num_kept",
        stored={"widths": [2], "n": 10},
    ),
}  # fmt: skip


def check(function, others, right, data):
    """Exchange arguments, call, and judge."""
    chosen = data.draw(
        st.lists(st.sampled_from(list(right)), min_size=1, max_size=2, unique=True), "arguments"
    )
    given = dict(right)
    if len(chosen) == 2 and data.draw(st.booleans(), "swapped"):
        given[chosen[0]], given[chosen[1]] = given[chosen[1]], given[chosen[0]]
    else:
        given |= {name: data.draw(ANYTHING, name) for name in chosen}
    began = time.thread_time()
    try:
        function(**given)
    except Reached:
        pass
    except (ValueError, TypeError, OSError) as error:
        names = "|".join(map(re.escape, [*right, *others]))
        named = re.search(rf"\b({names})\b", str(error)) or getattr(error, "filename", None)
        assert named, f"{type(error).__name__}: {error}"
    assert time.thread_time() - began < MOST_SECONDS


@pytest.fixture(scope="module", autouse=True)
def no_checks_and_no_work():
    """Take the checks of annotations away, and what is expensive."""

    def reached(*_, **__):
        raise Reached

    jaxtyping.config.update("jaxtyping_disable", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isounc.fit._search", reached)
        patch.setattr("isounc.training._train", reached)
        patch.setattr("isounc.sampling.posterior._prepare", reached)
        for registry in ("problems.PROBLEMS", "likelihoods.LIKELIHOODS"):
            patch.setattr(f"isounc.{registry}", dict(eval_registry(registry)))
        yield
    jaxtyping.config.update("jaxtyping_disable", False)


def eval_registry(path):
    module, name = path.split(".")
    return getattr(getattr(isounc, module), name)


@pytest.mark.parametrize("name", CALLS)
@hypothesis.settings(max_examples=8)
@hypothesis.given(data=st.data())
def test_a_function(name, data):
    check(*CALLS[name], data)


RUN_CALLS = {
    "open": {"path": "run", "settings": {"n": 1}},
    "write": {"record": Record("a", {"b": 1}, {"x": X})},
    "read": {"name": "a"},
    "write_table": {"name": "results.csv", "rows": [{"a": 1}], "columns": ["a"]},
    "read_table": {"name": "results.csv"},
    "write_info": {"info": {"a": 1}},
}
WORDS = ("array", "meta", "run folder", "is no run", "is a file", "columns", "settings")
"""What else a message about a record or a table may name."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("runs"))
        yield RunFolder.open("run", {"n": 1})


@pytest.mark.parametrize("name", RUN_CALLS)
@hypothesis.settings(max_examples=8)
@hypothesis.given(data=st.data())
def test_a_method_of_a_run(name, run, data):
    check(getattr(run, name), WORDS, RUN_CALLS[name], data)


@pytest.mark.parametrize("file", ["settings.json", "info.json", "results.csv", "a.json", "a.npz"])
@hypothesis.settings(max_examples=8)
@hypothesis.given(data=st.data())
def test_a_file_of_a_run(file, run, data):
    """Whatever a file of a run holds: its content changed here and there, or anything else."""
    path = run.path / ("cells" if file.startswith("a.") else ".") / file
    run.write(Record("a", {"b": [1, "x"]}, {"x": X}))
    run.write_table("results.csv", [{"a": 1, "b": "x"}], ["a", "b"])
    right = path.read_bytes()
    if data.draw(st.booleans(), "another file"):
        content = data.draw(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
    else:
        at = data.draw(st.integers(0, len(right)))
        junk = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"[" * 9999, b"1e999", b"NaN", b"9" * 999])
        )
        content = right[:at] + junk + right[at + data.draw(st.integers(0, 9)) :]
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DamagedRecordWarning)
            read = RunFolder.load(run.path)
            for look in (lambda: read.read("a"), read.read_info, lambda: read.results):
                look()
    except ValueError as error:
        assert file in str(error) or "'a'" in str(error)
    finally:
        path.write_bytes(right)
