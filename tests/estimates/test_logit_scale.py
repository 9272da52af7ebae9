"""The scale of Gaussian logits against closed forms, quadrature and its own invariances."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import integrate, special, stats

from isounc.estimates.estimate import estimate
from isounc.estimates.isotropic import isotropic
from isounc.estimates.logit_scale import LogitScale, fit_logit_scale
from isounc.models import Model
from isounc.problems import Problem
from tests.estimates.test_estimate import softmax_quadrature

RNG = np.random.default_rng(5)
X, FAR = RNG.normal(size=(41, 3)), 4 * RNG.normal(size=(6, 3))
OWN = np.pi**2 / 3


def logit(w, x):
    """Logistic regression: ||df/dw||^2 = ||x||^2."""
    return x @ w


W = jnp.asarray([0.7, -1.2, 0.4])


def variance(mean, sd):
    """Var[sigmoid(f)], f ~ N(mean, sd^2), by adaptive quadrature."""

    def moment(g):
        def integrand(z):
            return g(special.expit(mean + sd * z)) * stats.norm.pdf(z)

        kink = np.clip(-mean / sd, -11, 11)
        return integrate.quad(integrand, -12, 12, points=[kink], epsabs=0, epsrel=1e-9)[0]

    first = moment(lambda p: p)
    return moment(lambda p: (p - first) ** 2)


# By hand.


def test_logistic_regression_by_hand():
    scale = fit_logit_scale(logit, X, W, task="binary")
    var = OWN / np.median((X**2).sum(1))
    assert scale == LogitScale(scale.var, "unit", "binary", 3, 41)
    assert scale.var == pytest.approx(var, rel=1e-5)
    got = isotropic(logit, FAR, W, task="binary", method="logit_scaled", reference=X)
    mean = FAR @ np.asarray(W, np.float64)
    expected = [variance(m, s) for m, s in zip(mean, np.sqrt(var * (FAR**2).sum(1)), strict=True)]
    np.testing.assert_allclose(got.epistemic[:, 0], expected, rtol=1e-4)
    p = special.expit(mean)
    np.testing.assert_allclose(got.prob[:, 0], p, rtol=1e-4)
    np.testing.assert_allclose(got.aleatoric[:, 0], p * (1 - p), rtol=1e-4)
    total = got.aleatoric_corrected + got.epistemic
    assert ((0 < total) & (total <= 0.25)).all()


def test_effective_dimension_of_logistic_regression_by_hand():
    scale = fit_logit_scale(logit, X, W, task="binary", rule="effective_dimension", prior_sd=1.7)
    p = special.expit(X @ np.asarray(W, np.float64))
    kernel = np.sqrt(np.outer(p * (1 - p), p * (1 - p))) * (X @ X.T)
    dimension = np.trace(kernel @ np.linalg.inv(kernel + np.eye(41) / 1.7**2))
    assert 1 < dimension < 3
    assert scale.effective_dimension == pytest.approx(dimension, rel=1e-5)
    weight = (p * (1 - p) * (X**2).sum(1)).sum()
    assert scale.var == pytest.approx(dimension / weight, rel=1e-5)


def test_linear_regression_by_hand():
    """No link: the label's own noise sets the scale, and the level under the posterior is exact."""
    given = {"task": "regression", "noise_sd": 0.3}
    scale = fit_logit_scale(logit, X, W, **given)
    assert scale.var == pytest.approx(0.09 / np.median((X**2).sum(1)), rel=1e-5)
    got = isotropic(logit, FAR, W, method="logit_scaled", scale=scale, **given)
    plain = isotropic(logit, FAR, W, **given)
    np.testing.assert_allclose(got.epistemic, scale.var * plain.epistemic, rtol=1e-6)
    level = fit_logit_scale(logit, X, W, rule="effective_dimension", prior_sd=2.0, **given)
    posterior = np.linalg.inv(X.T @ X / 0.09 + np.eye(3) / 4)
    summed = np.einsum("np,pq,nq->", X, posterior, X)
    assert level.var * (X**2).sum() == pytest.approx(summed, rel=1e-5)
    two = fit_logit_scale(lambda w, x: x @ w, X, jnp.ones((3, 2)), **given)
    assert two.var == pytest.approx(scale.var, rel=1e-5)


def test_three_classes_by_quadrature():
    def logits(w, x):
        return x @ w

    w = jnp.asarray(RNG.normal(size=(3, 3)))
    f = FAR @ np.asarray(w, np.float64)
    scale = fit_logit_scale(logits, X, w, task="multiclass")
    at_reference = special.softmax(X @ np.asarray(w, np.float64), axis=1)
    top = at_reference.argmax(1)
    others = at_reference / (1 - at_reference[np.arange(41), top])[:, None]
    contrast = np.eye(3)[top] - np.where(np.eye(3)[top] > 0, 0, others)
    # Each logit has the gradient x in its own column of w.
    middle = np.median((contrast**2).sum(1) * (X**2).sum(1))
    assert scale.var == pytest.approx(OWN / middle, rel=1e-4)
    given = {"task": "multiclass", "method": "logit_scaled", "scale": scale}
    got = isotropic(logits, FAR, w, **given)
    for n, x in enumerate(FAR):
        var, label_var = softmax_quadrature(f[n], scale.var * (x @ x) * np.eye(3), num=401)
        np.testing.assert_allclose(got.epistemic[n], var, rtol=2e-3)
        np.testing.assert_allclose(got.aleatoric_corrected[n], label_var, rtol=2e-3)
    p = special.softmax(f, axis=1)
    np.testing.assert_allclose(got.prob, p, rtol=1e-4)
    np.testing.assert_allclose(got.aleatoric, p * (1 - p), rtol=1e-4)
    # One column is the log-odds of the class as a Gaussian.
    one = isotropic(logits, FAR, w, target="predicted", **given)
    best = p.argmax(1)
    np.testing.assert_array_equal(one.target[:, 0], best)
    for n, c in enumerate(best):
        share = p[n] / (1 - p[n, c])
        direction = np.where(np.arange(3) == c, 1, -share)
        sd = np.sqrt(scale.var * (direction @ direction) * (FAR[n] @ FAR[n]))
        expected = variance(special.logit(p[n, c]), sd)
        assert one.epistemic[n, 0] == pytest.approx(expected, rel=1e-3)


# The same numbers, however they are asked for.


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_it_is_the_estimator_of_the_registry(likelihood, x64):
    model = Model(3, 3 if likelihood == "categorical" else 1, likelihood, width=4,
                  parameterisation="fan_in")  # fmt: skip
    theta = RNG.normal(size=model.num_params)
    noise = {"noise_sd": 0.3} if likelihood == "gaussian" else {}
    y = RNG.normal(size=41) if noise else np.arange(41) % (3 if model.out_features == 3 else 2)
    problem = Problem.from_arrays(X, y, likelihood=likelihood, **noise)
    given = {"problem": problem, "prior_sd": 1.4}
    expected = estimate("logit_scaled", model, FAR, theta, **given)
    got = isotropic(model, FAR, theta, method="logit_scaled", reference=X, **noise)
    for name in ("prob", "epistemic", "aleatoric_corrected"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-5)
    expected = estimate("logit_scaled_level", model, FAR, theta, **given)
    got = isotropic(
        model, FAR, theta, method="logit_scaled", reference=X, scale="effective_dimension",
        prior_sd=1.4, **noise,
    )  # fmt: skip
    np.testing.assert_allclose(got.epistemic, expected.epistemic, rtol=1e-5)


def test_the_level_is_that_of_laplace_over_the_training_inputs(x64):
    """With equal prior sds, sum_i a_i s_i^2 under sigma^2 I and under the GGN posterior agree."""
    model = Model(3, 1, width=4)
    theta = RNG.normal(size=model.num_params)
    problem = Problem.from_arrays(X, np.arange(41) % 2)
    given = {"problem": problem, "prior_sd": 1.4}
    laplace = estimate("laplace", model, X, theta, **given)
    scale = fit_logit_scale(model, X, theta, rule="effective_dimension", prior_sd=1.4)
    a = np.asarray(laplace.aleatoric)
    # g^T Sigma g = a^2 s^2 for the probability.
    plain = isotropic(model, X, theta)
    summed = float((np.asarray(laplace.epistemic) / a).sum())
    assert scale.var * (plain.epistemic / a).sum() == pytest.approx(summed, rel=1e-6)


def test_a_constant_on_all_norms_changes_nothing():
    """Parameters in another unit: gradients are 100 times as large, and sigma a hundredth."""

    def stretched(u, x):
        return logit(100 * u, x)

    given = {"task": "binary", "method": "logit_scaled", "reference": X}
    one = isotropic(logit, FAR, W, **given)
    other = isotropic(stretched, FAR, W / 100, **given)
    np.testing.assert_allclose(other.epistemic, one.epistemic, rtol=1e-4)
    plain = isotropic(stretched, FAR, W / 100, task="binary")
    assert (plain.epistemic > 9e3 * isotropic(logit, FAR, W, task="binary").epistemic).all()


def test_a_stored_scale_scores_single_inputs(tmp_path):
    model = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.tanh, nnx.Linear(4, 1, rngs=nnx.Rngs(1))
    )
    fitted = fit_logit_scale(model, X.astype(np.float32), task="binary", wrt="kernel")
    fitted.save(tmp_path / "scale.json")
    scale = LogitScale.load(str(tmp_path / "scale.json"))
    assert scale == fitted
    assert scale.num_params == 16
    given = {"task": "binary", "method": "logit_scaled", "wrt": "kernel"}
    whole = isotropic(model, FAR, reference=X.astype(np.float32), **given)
    for n in range(len(FAR)):
        one = isotropic(model, FAR[n : n + 1], scale=scale, **given)
        np.testing.assert_allclose(one.epistemic[0], whole.epistemic[n], rtol=1e-5)
    number = isotropic(model, FAR, scale=scale.var, **given)
    np.testing.assert_allclose(number.epistemic, whole.epistemic, rtol=1e-6)


def test_the_next_token():
    table = jnp.asarray(RNG.normal(size=(9, 9)))

    def decoder(w, ids):
        return w[ids]

    ids = [[1, 2], [3], [4, 5, 8]]
    got = isotropic(decoder, ids, table, task="token", method="logit_scaled", reference=ids)
    assert got.epistemic.shape == (3, 1)
    np.testing.assert_array_equal(got.target[:, 0], np.asarray(table)[[2, 3, 8]].argmax(1))
    with pytest.raises(ValueError, match="rule must be 'unit' for task 'token'"):
        fit_logit_scale(decoder, ids, table, task="token", rule="effective_dimension", prior_sd=1.0)


def test_what_all_logits_share_costs_no_digits():
    """A common term of 10^4 in every logit, of which the softmax knows nothing."""

    def logits(params, x):
        return x["x"] @ params["w"] + (x["common"] * (x["x"] @ params["v"]))[:, None]

    params = {"w": jnp.asarray(np.outer(W, [1, 0, -1.0])), "v": 0.01 * W}
    without, with_common = (
        isotropic(
            logits, {"x": FAR, "common": np.full(6, common)}, params, task="multiclass",
            method="logit_scaled", scale=0.1,
        )
        for common in (0.0, 1e4)
    )  # fmt: skip
    np.testing.assert_allclose(with_common.epistemic, without.epistemic, rtol=1e-2)


def test_sure_predictions_keep_their_digits():
    """At log-odds of 60 p (1 - p) is 1e-26, and its square beyond single precision."""
    w = W * 60 / float(FAR[0] @ np.asarray(W))
    got = isotropic(logit, FAR[:1], w, task="binary", method="logit_scaled", scale=1e-4)
    sd = 1e-2 * np.sqrt(FAR[0] @ FAR[0])
    # E[exp(-2f)] - E[exp(-f)]^2 of a Gaussian.
    expected = np.exp(-120 + sd**2) * np.expm1(sd**2)
    assert got.epistemic[0, 0] == pytest.approx(expected, rel=1e-3)


# Bad input.


ZEROS = np.zeros((5, 3))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"reference": X[:1]}, ["reference must hold two inputs or more, got 1"]),
        ({"reference": X[:0]}, ["reference must be a batch with examples along the first axis"]),
        ({"reference": ZEROS}, ["reference must have gradients that are not zero", "5 of 5"]),
        ({"reference": np.where(np.arange(41)[:, None] == 3, np.nan, X)}, ["1 rows of reference (3)"]),
        ({"reference": "typical"}, ["reference must"]),
        ({"reference": [["a", "b", "c"]]}, ["reference must hold real numbers"]),
        ({}, ["reference must be given for scale 'unit'", "isounc.fit_logit_scale"]),
        ({"scale": "units", "reference": X}, ["scale must be one of", "did you mean 'unit'"]),
        ({"scale": 0}, ["scale must be one of unit, effective_dimension, sigma^2", "got 0"]),
        ({"scale": -1.0}, ["scale must be one of", "got -1.0"]),
        ({"scale": np.ones(3)}, ["scale must be one of"]),
        ({"scale": 2.0, "reference": X}, ["reference must be left out where scale is no rule"]),
        ({"scale": 2.0, "prior_sd": 1.0}, ["prior_sd must be left out"]),
        ({"reference": X, "prior_sd": 1.0}, ["prior_sd must be left out for rule 'unit'"]),
        ({"reference": X, "scale": "effective_dimension"}, ["prior_sd must be a positive", "None"]),
        ({"reference": X, "sigma": 2.0}, ["sigma must be left out", "got 2.0"]),
        ({"reference": X, "outputs": "probabilities"}, ["outputs must be 'logits'"]),
        ({"method": "logit", "reference": X}, ["method must be one of isotropic, logit_scaled"]),
        ({"method": "isotropic", "reference": X}, ["reference must be left out for method"]),
        ({"method": "isotropic", "scale": 2.0}, ["scale must be left out for method"]),
        ({"scale": LogitScale(1.0, "unit", "regression", 3, 9)}, ["task binary, 3", "regression"]),
        ({"scale": LogitScale(1.0, "unit", "binary", 4, 9)}, ["3 parameters", "4 parameters"]),
    ],
)  # fmt: skip
def test_bad_input(given, words):
    with pytest.raises(ValueError) as error:
        isotropic(logit, FAR, W, **{"task": "binary", "method": "logit_scaled"} | given)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_a_model_without_a_rule_of_its_own_names_the_other_way():
    model = Model(3, 1, depth=0)
    with pytest.raises(ValueError, match="reference must have 3 columns"):
        isotropic(model, X, np.ones(4), method="logit_scaled", reference=X[:, :2])
    with pytest.raises(TypeError, match="params must be given for a Model"):
        isotropic(model, X, method="logit_scaled", reference=X)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"var": 0}, ["var of", "scale.json", "above 0"]),
        ({"var": "1"}, ["var of", "must be a finite number"]),
        ({"rule": "other"}, ["rule of", "unit, effective_dimension"]),
        ({"num_reference": 2.5}, ["num_reference of", "an integer"]),
        ({"task": None}, ["task of", "binary"]),
    ],
)
def test_a_file_that_is_no_scale_is_refused_by_field(tmp_path, change, words):
    path = tmp_path / "scale.json"
    LogitScale(1.0, "unit", "binary", 3, 9).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError) as error:
        LogitScale.load(path)
    for word in words:
        assert word in str(error.value), str(error.value)
    with pytest.raises(OSError, match="nothing"):
        LogitScale.load(tmp_path / "nothing.json")


def test_a_reference_that_the_model_does_not_take_is_named():
    with pytest.raises(TypeError, match="model must take params, reference and kwargs"):
        isotropic(logit, FAR, W, task="binary", method="logit_scaled", reference=X[:, :2])


def test_gradients_too_large_to_form_are_refused_before(monkeypatch):
    monkeypatch.setattr("isounc.estimates.logit_scale.MOST_NUMBERS", 100)
    with pytest.raises(ValueError, match=r"at most 100 numbers .* got 41 gradients of 3 each"):
        fit_logit_scale(logit, X, W, task="binary", rule="effective_dimension", prior_sd=1.0)
