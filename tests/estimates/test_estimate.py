"""Estimates against gradients by hand, exact posteriors, loops, quadrature and invariances."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from isounc import covariance as cov
from isounc import densities
from isounc.estimates import estimate as estimates
from isounc.estimates import estimators
from isounc.estimates.estimate import estimate, estimate_all, layer_rms
from isounc.estimates.estimators import (
    ESTIMATORS,
    Estimate,
    Evidence,
    GaussianLogit,
    Linearised,
    estimator_names,
    register_estimator,
)
from isounc.estimates.isotropic import isotropic
from isounc.estimates.scale_rules import unit_var
from isounc.fit import PointEstimate
from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model, make_model
from isounc.problems import Problem
from tests.exact import load_exact

BINARY = Model(2, 1, "bernoulli", width=3)
CLASSES = Model(2, 3, "categorical", width=3, parameterisation="fan_in")
REGRESSION = Model(2, 1, "gaussian", width=3)
MODELS = pytest.mark.parametrize("model", [BINARY, CLASSES, REGRESSION], ids=lambda m: m.likelihood)
PRIOR_SD, NOISE_SD = 1.4, 0.3
LINEARISED = tuple(n for n in estimator_names("map") if type(ESTIMATORS[n]) is Linearised)


def problem_of(model, n=9, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, model.in_features))
    if model.likelihood == "gaussian":
        return Problem.from_arrays(X, rng.normal(size=n), noise_sd=NOISE_SD)
    labels = np.arange(n) % max(2, model.out_features)
    return Problem.from_arrays(X, labels, likelihood=model.likelihood)


def setting(model, seed=0):
    """A point, locations, draws of three chains and a positive definite "Hessian", in float64."""
    rng = np.random.default_rng(seed)
    size = model.num_params
    chains = rng.normal(size=(3, 1, size)) + 0.3 * rng.normal(size=(3, 8, size))
    a = rng.normal(size=(size, size))
    return SimpleNamespace(
        theta=rng.normal(size=size),
        X=2 * rng.normal(size=(7, model.in_features)),
        draws=chains.reshape(-1, size),
        hessian=a @ a.T + np.eye(size),
    )


def evidence_of(model, case, *, hessian=True):
    data = densities.make_data(problem_of(model), model, PRIOR_SD)
    arrays = [jnp.asarray(a, data.X.dtype) for a in (case.draws, case.hessian)]
    return Evidence(data, data.prior_sd, data.prior_sd, arrays[0], arrays[1] if hessian else None)


def all_of(model, case, names=LINEARISED, *, hessian=True, **settings):
    """Several estimates in JAX's float type."""
    dtype = jnp.result_type(float)
    theta, X = jnp.asarray(case.theta, dtype), jnp.asarray(case.X, dtype)
    settings = {"num_chains": 3, "noise_sd": NOISE_SD} | settings
    evidence = evidence_of(model, case, hessian=hessian)
    return jax.device_get(estimate_all(names, model, X, theta, evidence=evidence, **settings))


@functools.partial(jax.jit, static_argnames="model")
def _gradients(theta, X, *, model):
    return jax.jacrev(lambda t: model.predict(t, X))(theta)


def gradients(model, theta, X):
    """dp_m(x_n)/dtheta, (N, M, P), by plain automatic differentiation in float64."""
    with jax.enable_x64(True):
        return np.asarray(_gradients(jnp.asarray(theta), jnp.asarray(X), model=model))


# By hand.


@pytest.mark.parametrize("parameterisation", ["standard", "ntk"])
def test_isotropic_of_logistic_regression_by_hand(parameterisation, x64):
    model = Model(2, 1, depth=0, parameterisation=parameterisation)
    theta = np.array([0.7, -1.2, 0.4])
    X = np.random.default_rng(0).normal(size=(6, 2))
    x = X / np.sqrt(2) if parameterisation == "ntk" else X
    p = special.expit(x @ theta[:2] + theta[2])
    # g = p (1 - p) (x, 1)
    g = (p * (1 - p))[:, None] * np.column_stack([x, np.ones(6)])
    got = isotropic(model, X, theta)
    np.testing.assert_allclose(gradients(model, theta, X)[:, 0], g, rtol=1e-12)
    expected = Estimate(
        p, (g**2).sum(1), p * (1 - p), p * (1 - p) + (g**2).sum(1), p * (1 - p) - (g**2).sum(1)
    )
    for field in Estimate._fields[:5]:
        assert getattr(got, field).shape == (6, 1)
        np.testing.assert_allclose(getattr(got, field)[:, 0], getattr(expected, field), rtol=1e-12)


def test_isotropic_of_softmax_regression_by_hand(x64):
    model = Model(2, 3, "categorical", depth=0, parameterisation="standard")
    rng = np.random.default_rng(1)
    theta, X = rng.normal(size=9), rng.normal(size=(5, 2))
    got = isotropic(model, X, theta)
    p = special.softmax(X @ theta[:6].reshape(2, 3) + theta[6:], axis=1)
    for c in range(3):
        # dp_c/df_k = p_c (1[c=k] - p_k); each logit has gradient (x, 1) in its own parameters.
        by_logit = p[:, [c]] * (np.eye(3)[c] - p)
        expected = (by_logit**2).sum(1) * ((X**2).sum(1) + 1)
        np.testing.assert_allclose(got.epistemic[:, c], expected, rtol=1e-12)
    np.testing.assert_allclose(got.prob, p, rtol=1e-12)
    np.testing.assert_allclose(got.aleatoric, p * (1 - p), rtol=1e-12)


def test_isotropic_of_linear_regression_by_hand(x64):
    model = Model(2, 1, "gaussian", depth=0, parameterisation="standard")
    X = np.random.default_rng(2).normal(size=(5, 2))
    got = isotropic(model, X, np.array([1.0, -2.0, 0.5]), noise_sd=0.3)
    np.testing.assert_allclose(got.prob[:, 0], X @ [1.0, -2.0] + 0.5, rtol=1e-12)
    np.testing.assert_allclose(got.epistemic[:, 0], (X**2).sum(1) + 1, rtol=1e-12)
    np.testing.assert_allclose(got.aleatoric, 0.09, rtol=1e-12)
    np.testing.assert_allclose(got.aleatoric_corrected, 0.09, rtol=1e-12)
    np.testing.assert_allclose(got.total, got.epistemic + 0.09, rtol=1e-12)


# Every estimator against its dense formula.


@functools.cache
def dense_case(model):
    """Linearised estimates in float64, with everything that the formulas need."""
    case = setting(model)
    with jax.enable_x64(True):
        with_hessian = all_of(model, case)
        with_ggn = all_of(model, case, hessian=False)
        data = densities.make_data(problem_of(model), model, PRIOR_SD)
        factor = np.asarray(
            jax.jit(cov.gauss_newton_factor, static_argnums=0)(model, jnp.asarray(case.theta), data)
        )
    precision = np.diag(1 / np.asarray(data.prior_sd) ** 2) + factor.T @ factor
    return case, gradients(model, case.theta, case.X), with_hessian, with_ggn, precision


@MODELS
def test_linearised_estimates_are_g_sigma_g(model):
    case, g, with_hessian, with_ggn, precision = dense_case(model)
    prior_var = model.param_prior_sd(PRIOR_SD) ** 2
    within = [np.cov(c, rowvar=False) for c in case.draws.reshape(3, 8, -1)]
    pooled = np.cov(case.draws, rowvar=False)
    common = {
        "isotropic": np.eye(model.num_params),
        "layer_scaled": np.diag(prior_var),
        "oracle": pooled,
        "oracle_within_chain": np.mean(within, axis=0),
        "oracle_diagonal": np.diag(np.diag(pooled)),
    }
    nulls = {"null_squared", "null_distance"}  # of the outputs: below
    laplace = {"laplace": np.linalg.inv, "laplace_diagonal": lambda a: np.diag(1 / np.diag(a))}
    assert set(common) | set(laplace) | nulls == set(LINEARISED)
    for got, matrix in ((with_hessian, case.hessian), (with_ggn, precision)):
        for name, sigma in (
            common | {n: inverse(matrix) for n, inverse in laplace.items()}
        ).items():
            expected = np.einsum("nmp,pq,nmq->nm", g, sigma, g)
            np.testing.assert_allclose(got[name].epistemic, expected, rtol=1e-8, err_msg=name)


@MODELS
def test_parts_of_an_estimate_add_up(model):
    case, _, with_hessian, _, _ = dense_case(model)
    for one in with_hessian.values():
        np.testing.assert_allclose(one.total, one.epistemic + one.aleatoric, rtol=1e-12)
        if model.likelihood == "gaussian":
            np.testing.assert_allclose(one.aleatoric, NOISE_SD**2)
            np.testing.assert_allclose(one.aleatoric_corrected, NOISE_SD**2)
        else:
            np.testing.assert_allclose(one.aleatoric, one.prob * (1 - one.prob), rtol=1e-10)
            # The consistent pair adds up to the variance of the label under the point prediction.
            np.testing.assert_allclose(
                one.aleatoric_corrected + one.epistemic, one.aleatoric, rtol=1e-10
            )
        assert one.prob.shape == one.epistemic.shape == (len(case.X), model.out_features)


def test_trace_is_the_sum_over_classes_and_the_predicted_class_one_of_them():
    case, g, with_hessian, _, _ = dense_case(CLASSES)
    one = with_hessian["isotropic"]
    np.testing.assert_allclose(one.epistemic.sum(1), (g**2).sum((1, 2)), rtol=1e-10)
    rows, best = np.arange(len(case.X)), one.prob.argmax(1)
    np.testing.assert_allclose(one.epistemic[rows, best], (g[rows, best] ** 2).sum(-1), rtol=1e-10)
    np.testing.assert_allclose(one.prob.sum(1), 1)


def test_two_logits_have_the_binary_prediction_and_twice_its_squared_gradient(x64):
    # p of a softmax with logits (0, f) is sigmoid(f); its first column of weights is free as well.
    one, two = Model(2, 1, depth=0), Model(2, 2, "categorical", depth=0)
    X = np.random.default_rng(0).normal(size=(4, 2))
    binary = isotropic(one, X, [0.7, -1.2, 0.4])
    softmax = isotropic(two, X, [0, 0.7, 0, -1.2, 0, 0.4])
    np.testing.assert_allclose(softmax.prob[:, [1]], binary.prob, rtol=1e-12)
    for c in range(2):
        np.testing.assert_allclose(softmax.epistemic[:, [c]], 2 * binary.epistemic, rtol=1e-10)


# Exact posteriors.


def linear_gaussian(n=20, prior_sd=1.5, noise_sd=0.4):
    rng = np.random.default_rng(11)
    X, Xq = rng.normal(size=(n, 3)), 2 * rng.normal(size=(30, 3))
    problem = Problem.from_arrays(X, X @ [1.0, 0.5, -1.0] + rng.normal(size=n), noise_sd=noise_sd)
    phi, phi_q = (np.column_stack([x, np.ones(len(x))]) for x in (X, Xq))
    precision = phi.T @ phi / noise_sd**2 + np.eye(4) / prior_sd**2
    sigma = np.linalg.inv(precision)
    theta = sigma @ phi.T @ problem.y / noise_sd**2
    return problem, Xq, theta, precision, np.einsum("np,pq,nq->n", phi_q, sigma, phi_q)


@pytest.mark.parametrize("with_hessian", [True, False])
@pytest.mark.parametrize("double", [True, False], ids=["float64", "float32"])
def test_laplace_is_exact_for_the_linear_gaussian_model(with_hessian, double):
    problem, Xq, theta, precision, f_var = linear_gaussian()
    model = Model(3, 1, "gaussian", depth=0, parameterisation="standard")
    with jax.enable_x64(double):
        got = estimates.laplace(
            model, Xq, theta, problem=problem, prior_sd=1.5,
            hessian=precision if with_hessian else None,
        )  # fmt: skip
        assert got.epistemic.dtype == (np.float64 if double else np.float32)
    np.testing.assert_allclose(got.epistemic[:, 0], f_var, rtol=1e-10 if double else 1e-4)
    np.testing.assert_allclose(got.total[:, 0], f_var + 0.16, rtol=1e-10 if double else 1e-4)


@pytest.mark.parametrize("name", ["logistic_2d", "softmax_1d"])
def test_exact_classification_references(name, x64):
    ref = load_exact(f"{name}.npz")
    problem = Problem.from_arrays(ref["X"], ref["y"])
    model = Model(
        problem.num_features, problem.num_outputs, problem.likelihood, depth=0,
        parameterisation="standard",
    )  # fmt: skip
    theta, Xq, prior_sd = ref["theta_map"], ref["Xq"], float(ref["prior_sd"])
    g = ref["grad_p_map"].reshape(len(Xq), model.out_features, -1)
    np.testing.assert_allclose(gradients(model, theta, Xq), g, rtol=1e-7, atol=1e-12)
    got = isotropic(model, Xq, theta)
    np.testing.assert_allclose(got.prob, ref["p_map"].reshape(got.prob.shape), rtol=1e-7)
    np.testing.assert_allclose(got.epistemic, (g**2).sum(-1), rtol=1e-7)
    data = densities.make_data(problem, model, prior_sd)
    hessian = jax.jit(cov.hessian, static_argnums=0)(model, jnp.asarray(theta), data)
    np.testing.assert_allclose(hessian, ref["hessian"], rtol=1e-6, atol=1e-7)
    expected = np.einsum("nmp,pq,nmq->nm", g, ref["cov_laplace"], g)
    # Outputs are linear in theta, where the GGN is the Hessian.
    for given in (hessian, None):
        laplace = estimates.laplace(
            model, Xq, theta, problem=problem, prior_sd=prior_sd, hessian=given
        )
        np.testing.assert_allclose(laplace.epistemic, expected, rtol=1e-6)


def test_exact_linear_gaussian_reference(x64):
    ref = load_exact("linear_gaussian.npz")
    phi, phi_q = ref["Phi"], ref["Phi_q"]
    # One feature is the constant: the model's bias takes its place, which the prior covers as well.
    [constant] = np.flatnonzero((phi == 1).all(0))
    order = [*np.delete(np.arange(4), constant), constant]
    X, Xq = phi[:, order[:-1]], phi_q[:, order[:-1]]
    problem = Problem.from_arrays(X, ref["y"], noise_sd=float(ref["noise_sd"]))
    model = Model(3, 1, "gaussian", depth=0, parameterisation="standard")
    theta, prior_sd = ref["theta_mean"][order], float(ref["prior_sd"])
    got = estimates.laplace(model, Xq, theta, problem=problem, prior_sd=prior_sd)
    np.testing.assert_allclose(got.prob[:, 0], ref["f_mean"], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(got.epistemic[:, 0], ref["f_var"], rtol=1e-8)
    got = isotropic(model, Xq, theta, noise_sd=problem.noise_sd)
    np.testing.assert_allclose(got.epistemic[:, 0], ref["iso_norm2"], rtol=1e-10)


# The link.


def logit_quadrature(mean, sd):
    """E[p], Var[p] and E[p (1 - p)] of p = sigmoid(f), f ~ N(mean, sd^2), by adaptive quadrature."""

    def expect(function):
        def integrand(z):
            return function(mean + sd * z) * stats.norm.pdf(z)

        kink = np.clip(-mean / sd, -11, 11)
        return integrate.quad(integrand, -12, 12, points=[kink], epsabs=0, epsrel=1e-9, limit=500)[
            0
        ]

    p = expect(special.expit)
    return (
        p,
        expect(lambda f: (special.expit(f) - p) ** 2),
        expect(lambda f: special.expit(f) * special.expit(-f)),
    )


@pytest.mark.parametrize("double", [True, False], ids=["float64", "float32"])
def test_link_aware_is_the_quadrature_over_the_logit(double):
    model = Model(1, 1, depth=0, parameterisation="standard")
    theta, prior_sd = np.array([1.0, 0.3]), 2.0
    X = np.array([0.0, 0.4, -1, 4, -9, 30])[:, None]  # logit sds from 2 to 60
    with jax.enable_x64(double):
        got = estimates.link_aware(model, X, theta, prior_sd=prior_sd)
    for n, x in enumerate(X[:, 0]):
        _, var, label_var = logit_quadrature(x + 0.3, prior_sd * np.sqrt(x**2 + 1))
        assert float(got.epistemic[n, 0]) == pytest.approx(var, rel=1e-3)
        assert float(got.aleatoric_corrected[n, 0]) == pytest.approx(label_var, rel=2e-3)


def softmax_quadrature(mean, covariance, num=201):
    """Var[p] and E[p (1 - p)] for three Gaussian logits by trapezoid over the two differences."""
    contrast = np.array([[1.0, 0, -1], [0, 1, -1]])
    root = np.linalg.cholesky(contrast @ covariance @ contrast.T)
    z = np.linspace(-8, 8, num)
    grid = np.stack(np.meshgrid(z, z, indexing="ij"), axis=-1).reshape(-1, 2)
    weight = np.exp(-0.5 * (grid**2).sum(1))
    weight /= weight.sum()
    differences = contrast @ mean + grid @ root.T
    p = special.softmax(np.column_stack([differences, np.zeros(len(grid))]), axis=1)
    p_mean = weight @ p
    return weight @ (p - p_mean) ** 2, weight @ (p * (1 - p))


def test_link_aware_of_three_classes_errs_by_less_than_one_percent(x64):
    case = setting(CLASSES)
    got = estimates.link_aware(CLASSES, case.X, case.theta, prior_sd=PRIOR_SD)
    logits = np.asarray(CLASSES.apply(jnp.asarray(case.theta), jnp.asarray(case.X)))
    jacobian = jax.jit(jax.jacrev(lambda t: CLASSES.apply(t, jnp.asarray(case.X))))
    half = np.asarray(jacobian(jnp.asarray(case.theta))) * CLASSES.param_prior_sd(PRIOR_SD)
    for n in range(len(case.X)):
        var, label_var = softmax_quadrature(logits[n], half[n] @ half[n].T)
        np.testing.assert_allclose(got.epistemic[n], var, rtol=1e-2)
        np.testing.assert_allclose(got.aleatoric_corrected[n], label_var, rtol=1e-2)


@pytest.mark.parametrize("model", [BINARY, CLASSES], ids=lambda m: m.likelihood)
def test_link_aware_tends_to_the_linearised_estimate_under_a_tight_prior(model, x64):
    case, prior_sd = setting(model), 1e-3
    linearised = estimate("layer_scaled", model, case.X, case.theta, prior_sd=prior_sd)
    got = estimates.link_aware(model, case.X, case.theta, prior_sd=prior_sd)
    np.testing.assert_allclose(got.epistemic, linearised.epistemic, rtol=1e-2)
    np.testing.assert_allclose(got.aleatoric_corrected, linearised.aleatoric_corrected, rtol=1e-2)


def test_link_aware_keeps_to_the_bounds_of_a_probability(x64):
    case = setting(BINARY)
    got = estimates.link_aware(BINARY, case.X, case.theta, prior_sd=50.0)
    assert (np.asarray(got.epistemic) <= 0.25).all()
    assert (np.asarray(got.aleatoric_corrected) >= 0).all()
    linearised = estimate("layer_scaled", BINARY, case.X, case.theta, prior_sd=50.0)
    assert np.max(linearised.epistemic) > 0.25


def test_regression_has_no_link(x64):
    case = setting(REGRESSION)
    got = estimates.link_aware(REGRESSION, case.X, case.theta, prior_sd=2.0, noise_sd=NOISE_SD)
    expected = estimate(
        "layer_scaled", REGRESSION, case.X, case.theta, prior_sd=2.0, noise_sd=NOISE_SD
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), got, expected)


# Layers.


def test_layer_scaled_is_a_sum_over_groups():
    _, g, with_hessian, _, _ = dense_case(CLASSES)
    sds = CLASSES.group_prior_sd(PRIOR_SD)
    assert len(set(sds)) > 1
    expected = sum(
        sd**2 * (g[..., CLASSES.group_index == group] ** 2).sum(-1) for group, sd in enumerate(sds)
    )
    np.testing.assert_allclose(with_hessian["layer_scaled"].epistemic, expected, rtol=1e-10)


def test_under_the_ntk_prior_layer_scaled_is_isotropic_times_the_prior_variance():
    _, _, with_hessian, _, _ = dense_case(BINARY)
    np.testing.assert_allclose(
        with_hessian["layer_scaled"].epistemic,
        PRIOR_SD**2 * with_hessian["isotropic"].epistemic,
        rtol=1e-12,
    )


def test_layer_rms_is_the_root_mean_square_of_each_group(x64):
    theta = setting(CLASSES).theta
    rms = layer_rms(CLASSES, theta)
    assert rms.shape == theta.shape
    for group in range(len(CLASSES.groups)):
        mine = CLASSES.group_index == group
        np.testing.assert_allclose(rms[mine], np.sqrt(np.mean(theta[mine] ** 2)), rtol=1e-12)
    assert layer_rms(CLASSES, jnp.asarray(theta, jnp.float32)).dtype == jnp.float32


def test_layer_scaled_without_a_prior_takes_the_rms_of_the_weights(x64):
    case = setting(BINARY)
    got = estimate("layer_scaled", BINARY, case.X, case.theta)
    g = gradients(BINARY, case.theta, case.X)
    expected = ((g * np.asarray(layer_rms(BINARY, case.theta))) ** 2).sum(-1)
    np.testing.assert_allclose(got.epistemic, expected, rtol=1e-10)


# Averages over the posterior.


@MODELS
def test_posterior_averaged_is_the_loop_over_draws(model, x64):
    case = setting(model)
    draws = case.draws[:5]
    got = estimates.posterior_averaged(model, case.X, draws, noise_sd=NOISE_SD)
    loop = [isotropic(model, case.X, t, noise_sd=NOISE_SD) for t in draws]
    for field in ("prob", "epistemic", "aleatoric", "total"):
        expected = np.mean([getattr(one, field) for one in loop], axis=0)
        np.testing.assert_allclose(getattr(got, field), expected, rtol=1e-10)
    np.testing.assert_array_equal(got.aleatoric_corrected, got.aleatoric)


# Invariances.


def assert_same(got, expected, rtol=1e-10):
    assert set(got) == set(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-14), got, expected
    )


@pytest.mark.parametrize("batch_size", [1, 3])
def test_chunks_of_locations_change_nothing(batch_size, x64):
    _, _, expected, _, _ = dense_case(BINARY)
    assert_same(all_of(BINARY, setting(BINARY), batch_size=batch_size), expected)


def test_locations_may_come_in_any_order(x64):
    case, _, expected, _, _ = dense_case(CLASSES)
    order = np.random.default_rng(0).permutation(len(case.X))
    got = all_of(CLASSES, SimpleNamespace(**vars(case) | {"X": case.X[order]}))
    assert_same(got, jax.tree.map(lambda a: a[order], expected))


def rearranged(model, theta, order, sign):
    """The parameters of the same function with its hidden units in another order, some negated."""
    layers = {k: dict(v) for k, v in model.unflatten(np.asarray(theta))["layers"].items()}
    layers[0]["kernel"] = layers[0]["kernel"][:, order] * sign
    layers[0]["bias"] = layers[0]["bias"][order] * sign
    layers[1]["kernel"] = layers[1]["kernel"][order] * sign[:, None]
    return np.concatenate([layers[i][n].ravel() for i in (0, 1) for n in ("kernel", "bias")])


@pytest.mark.parametrize("sign", [(1, 1, 1), (-1, 1, -1)], ids=["permuted", "negated"])
@pytest.mark.parametrize("model", [BINARY, CLASSES], ids=lambda m: m.likelihood)
def test_symmetries_of_the_hidden_units_change_nothing(model, sign, x64):
    case, _, _, expected, _ = dense_case(model)
    moved = SimpleNamespace(**vars(case))
    moved.theta = rearranged(model, case.theta, [2, 0, 1], np.array(sign))
    assert not np.allclose(moved.theta, case.theta)
    got = all_of(model, moved, hessian=False)
    # Draws stay where they were, so that the oracles may move.
    names = ("isotropic", "null_distance", "layer_scaled", "laplace", "laplace_diagonal")
    assert_same({n: got[n] for n in names}, {n: expected[n] for n in names}, rtol=1e-8)
    assert not np.allclose(got["oracle"].epistemic, expected["oracle"].epistemic, rtol=1e-3)


def test_a_symmetry_changes_nothing_behind_the_link_either(x64):
    case = setting(BINARY)
    theta = rearranged(BINARY, case.theta, [2, 0, 1], np.array([-1, 1, 1]))
    a, b = (estimates.link_aware(BINARY, case.X, t, prior_sd=2.0) for t in (case.theta, theta))
    np.testing.assert_allclose(a.epistemic, b.epistemic, rtol=1e-6)


# Precision.


def saturated(model):
    """A point whose logits are from moderate to beyond what 1 - p can hold in float32."""
    case = setting(model)
    layers = model.unflatten(np.ones(model.num_params))["layers"]
    size = layers[1]["kernel"].size + layers[1]["bias"].size
    with jax.enable_x64(True):
        logits = np.asarray(model.apply(jnp.asarray(case.theta), jnp.asarray(case.X)))
    # The read-out is linear in its parameters; the square of exp(-38) is still a normal number.
    case.theta[-size:] *= 38 / np.ptp(np.column_stack([logits, np.zeros(len(logits))]), 1).max()
    return case


@pytest.mark.parametrize("model", [BINARY, CLASSES], ids=lambda m: m.likelihood)
def test_float32_agrees_with_float64_at_saturated_probabilities(model):
    case = saturated(model)
    with jax.enable_x64(True):
        expected = all_of(model, case)
    got = all_of(model, case)
    confidence = np.maximum(expected["isotropic"].prob, 1 - expected["isotropic"].prob)
    assert confidence.max() > 1 - 1e-8
    assert confidence.min() < 0.99
    for name, one in got.items():
        assert one.epistemic.dtype == np.float32
        for field in ("prob", "epistemic", "aleatoric", "total"):
            a, b = getattr(one, field), getattr(expected[name], field)
            assert np.isfinite(a).all()
            assert (a >= 0).all()
            np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-36, err_msg=f"{name} {field}")


def test_extreme_logits_give_zeros_and_no_nan():
    model = Model(1, 3, "categorical", depth=0)
    theta = np.array([1e4, -1e4, 0, 0, 0, 0])
    for name in ("isotropic", "link_aware", "layer_scaled"):
        one = estimate(name, model, np.array([[1.0], [-1.0], [0.0]]), theta, prior_sd=1e-3)
        for values in one[:3]:
            assert np.isfinite(values).all()
            assert (np.asarray(values) >= 0).all()


def test_integer_locations_do_not_round_the_noise():
    model = Model(1, 1, "gaussian", depth=0)
    theta, X = np.zeros(2, np.float32), np.array([[1], [2]])
    point = estimate_all(["isotropic"], model, X, theta, noise_sd=0.5)["isotropic"]
    averaged = estimates.posterior_averaged(model, X, theta[None], noise_sd=0.5)
    for one in (point, averaged):
        np.testing.assert_allclose(one.aleatoric, 0.25)
        np.testing.assert_allclose(one.epistemic[:, 0], [2, 5])


# The doorway.


def test_one_name_from_what_a_user_has_is_the_same_estimate(x64):
    case, _, with_hessian, with_ggn, _ = dense_case(BINARY)
    given = dict(problem=problem_of(BINARY), prior_sd=PRIOR_SD, draws=case.draws, num_chains=3)
    for name in ("laplace_diagonal", "oracle_within_chain"):
        got = estimate(name, BINARY, case.X, case.theta, hessian=case.hessian, **given)
        assert_same({name: got}, {name: with_hessian[name]})
    got = estimates.laplace(BINARY, case.X, case.theta, problem=given["problem"], prior_sd=PRIOR_SD)
    assert_same({"laplace": got}, {"laplace": with_ggn["laplace"]})


def test_a_point_estimate_stands_for_its_parameters_and_its_hessian(x64):
    case, problem = setting(BINARY), problem_of(BINARY)
    point = PointEstimate(
        "map", case.theta, 0.0, 0.0, 0.0, 1.0, "dense", case.hessian, (), True, ()
    )
    given = dict(problem=problem, prior_sd=PRIOR_SD)
    for got, expected in (
        (
            estimates.laplace(BINARY, case.X, point, **given),
            estimates.laplace(BINARY, case.X, case.theta, hessian=case.hessian, **given),
        ),
        (
            estimates.laplace(BINARY, case.X, point._replace(hessian=None), **given),
            estimates.laplace(BINARY, case.X, case.theta, **given),
        ),
        (
            estimates.link_aware(BINARY, case.X, point, prior_sd=PRIOR_SD),
            estimates.link_aware(BINARY, case.X, case.theta, prior_sd=PRIOR_SD),
        ),
        (
            estimates.posterior_averaged(BINARY, case.X, [point, point]),
            estimates.posterior_averaged(BINARY, case.X, np.stack([case.theta] * 2)),
        ),
        (
            estimates.posterior_averaged(BINARY, case.X, point),
            estimate("isotropic", BINARY, case.X, point),
        ),
    ):
        np.testing.assert_allclose(got.epistemic, expected.epistemic, rtol=1e-12)
    other = estimates.laplace(BINARY, case.X, case.theta, **given)
    with_hessian = estimates.laplace(BINARY, case.X, point, **given)
    assert not np.allclose(with_hessian.epistemic, other.epistemic, rtol=1e-2)
    with pytest.raises(ValueError, match="estimator must be one at a point"):
        estimate("posterior_averaged", BINARY, case.X, point, draws=case.draws)
    with pytest.raises(ValueError, match=r"draws must have shape \(S, 13\)"):
        estimates.posterior_averaged(BINARY, case.X, np.ones((2, 12)))


def test_by_region_splits_concatenated_locations():
    one = Estimate(*(np.arange(5.0)[:, None] + i for i in range(5)))
    parts = estimates.by_region(one, {"a": np.zeros((2, 2)), "b": np.zeros((3, 2))})
    np.testing.assert_array_equal(parts["a"].prob[:, 0], [0, 1])
    np.testing.assert_array_equal(parts["b"].epistemic[:, 0], [3, 4, 5])


def test_a_users_estimator_works_like_the_others(monkeypatch):
    registry = dict(ESTIMATORS)
    for module in (estimates, estimators):
        monkeypatch.setattr(module, "ESTIMATORS", registry)
    case = setting(BINARY)

    def half_prior(model, theta, evidence, num_chains):
        return cov.Diagonal(0.5 * evidence.data.prior_sd)

    register_estimator("half_prior", Linearised(half_prior, needs=("data",)))
    given = dict(problem=problem_of(BINARY), prior_sd=PRIOR_SD)
    got = estimate("half_prior", BINARY, case.X, case.theta, **given)
    expected = estimate("layer_scaled", BINARY, case.X, case.theta, prior_sd=PRIOR_SD)
    np.testing.assert_allclose(got.epistemic, 0.25 * np.asarray(expected.epistemic), rtol=1e-5)
    with pytest.raises(
        ValueError, match="problem and prior_sd must be given for estimator 'half_prior'"
    ):
        estimate("half_prior", BINARY, case.X, case.theta)
    for taken in ("half_prior", "isotropic", "posterior_averaged"):
        with pytest.raises(ValueError, match=f"{taken}.*is already registered.*overwrite=True"):
            register_estimator(taken, Linearised(half_prior))
    with pytest.raises(ValueError, match="estimator must be an Estimator, got <function"):
        register_estimator("other", half_prior)
    with pytest.raises(ValueError, match=r"needs must be one of data, .*did you mean 'draws'"):
        Linearised(half_prior, needs=("drawn",))
    register_estimator("half_prior", ESTIMATORS["isotropic"], overwrite=True)
    again = estimate("half_prior", BINARY, case.X, case.theta, **given)
    np.testing.assert_allclose(again.epistemic * PRIOR_SD**2 / 4, got.epistemic, rtol=1e-5)


def test_single_classes_are_compared_where_an_estimator_asks_for_it():
    """The default, which those of a user have: the trace and the predicted class alone."""
    assert not Linearised(estimators.isotropic_rule).per_class
    by_class = {name for name, estimator in ESTIMATORS.items() if estimator.per_class}
    nulls = {"null_aleatoric", "null_squared"}
    assert by_class == {"isotropic", "link_aware", "logit_scaled"} | nulls


# Bad input.


def refused(words, name, model=BINARY, theta=None, X=((0.0, 1.0),), **given):
    theta = np.ones(model.num_params) if theta is None else theta
    with pytest.raises(ValueError) as error:
        estimate(name, model, X, theta, **given)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_unknown_estimators_get_near_matches():
    refused(["estimator", "'isotropc'", "did you mean 'isotropic'"], "isotropc")
    refused(["estimator", "'laplace_diag'", "'laplace_diagonal'"], "laplace_diag")
    refused(["estimator must be one of isotropic, null_aleatoric"], "zzz")
    with pytest.raises(ValueError, match="did you mean 'oracle'"):
        estimate_all(["isotropic", "oracel"], BINARY, jnp.ones((1, 2)), jnp.ones(13))


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("link_aware", {}, ["link_aware", "prior_sd"]),
        ("laplace", {"prior_sd": 1.0}, ["laplace", "problem"]),
        ("laplace", {"problem": problem_of(BINARY)}, ["laplace", "prior_sd"]),
        ("laplace_diagonal", {}, ["laplace_diagonal", "problem and prior_sd"]),
        ("oracle", {}, ["oracle", "draws"]),
        ("oracle_within_chain", {}, ["oracle_within_chain", "draws"]),
        ("oracle_diagonal", {"prior_sd": 1.0}, ["oracle_diagonal", "draws"]),
    ],
)
def test_missing_evidence_is_named(name, given, words):
    refused(words, name, **given)


@pytest.mark.parametrize("name", ["laplace", "layer_scaled", "oracle"])
def test_missing_evidence_is_named_before_anything_is_computed(name):
    with pytest.raises(ValueError, match=f"must be given for estimator '{name}'"):
        estimate_all(["isotropic", name], BINARY, jnp.ones((1, 2)), jnp.ones(13))


@pytest.mark.parametrize(
    ("X", "words"),
    [
        ([[1.0, 2.0, 3.0]], ["X must have 2 columns", "(1, 3)"]),
        ([1.0, 2.0], ["X must have shape (rows, columns)", "(2,)"]),
        ([[0.0, 1.0], [np.nan, 1.0]], ["X must be finite", "row 1, column 0"]),
        ([[0.0, np.inf]], ["X must be finite", "inf"]),
        (np.ones((0, 2)), ["X", "at least one row"]),
        ([["a", "b"]], ["X must hold real numbers"]),
    ],
)
def test_bad_locations_get_one_clear_error(X, words):
    refused(words, "isotropic", X=X)


@pytest.mark.parametrize(
    ("theta", "words"),
    [
        (np.ones(12), ["theta must have shape (13,)", "(12,)"]),
        (np.ones((1, 13)), ["theta must have shape"]),
        (np.full(13, np.nan), ["theta must be finite"]),
    ],
)
def test_bad_parameters_get_one_clear_error(theta, words):
    refused(words, "isotropic", theta=theta)


@pytest.mark.parametrize("prior_sd", [0.0, -1.0, np.nan])
def test_bad_prior_sds_are_refused(prior_sd):
    refused(["prior_sd must be a positive finite number"], "link_aware", prior_sd=prior_sd)


@pytest.mark.parametrize(
    ("draws", "num_chains", "words"),
    [
        (np.ones((6, 12)), 1, ["draws must have shape (S, 13)", "(6, 12)"]),
        (np.ones((2, 3, 13)), 2, ["draws must have shape", "(2, 3, 13)"]),
        (np.ones((7, 13)), 2, ["num_chains=2", "(7, 13)"]),
        (np.ones((6, 13)), 0, ["num_chains", "at least 1"]),
        (np.ones((2, 13)), 2, ["more than one per chain"]),
    ],
)
def test_draws_that_do_not_fit_are_refused(draws, num_chains, words):
    refused(words, "oracle_within_chain", draws=draws, num_chains=num_chains)


def test_a_hessian_of_another_size_is_refused():
    given = dict(problem=problem_of(BINARY), prior_sd=1.0)
    refused(["hessian must have shape (13, 13)"], "laplace", hessian=np.eye(3), **given)


def test_a_problem_of_another_kind_than_the_model_is_refused():
    refused(["problem", "categorical"], "laplace", problem=problem_of(CLASSES), prior_sd=1.0)


def test_a_regression_without_its_noise_is_refused():
    refused(["noise_sd"], "isotropic", model=REGRESSION)
    refused(["noise_sd must be a positive"], "isotropic", model=REGRESSION, noise_sd=-1.0)


@pytest.mark.parametrize("name", ["laplace", "laplace_diagonal"])
def test_a_hessian_that_is_no_minimum_is_refused(name):
    problem = Problem.from_arrays(np.array([[-1.0], [1.0], [2.0]]), np.array([0, 1, 1]))
    model = make_model(problem, depth=0)
    theta = np.zeros(2, np.float32)
    with pytest.raises(
        ValueError, match=f"hessian must be positive definite for estimator '{name}'"
    ):
        estimate(name, model, problem.X, theta, problem=problem, prior_sd=1.0, hessian=-np.eye(2))


# Null baselines, and the scale of Gaussian logits.


@MODELS
def test_nulls_need_no_gradient(model, x64):
    case = setting(model)
    problem = problem_of(model)
    given = {"problem": problem, "prior_sd": PRIOR_SD}
    one = {
        name: jax.device_get(estimate(name, model, case.X, case.theta, **given))
        for name in ("null_aleatoric", "null_squared", "null_distance", "isotropic")
    }
    p = one["isotropic"].prob
    nearest = np.linalg.norm(case.X[:, None] - problem.X[None], axis=2).min(axis=1)[:, None]
    if model.likelihood == "gaussian":
        own, squared = np.full_like(p, NOISE_SD**2), np.ones_like(p)
    elif model.likelihood == "bernoulli":
        own, squared = p * (1 - p), (p * (1 - p)) ** 2
    else:
        own = p * (1 - p)
        jacobian = p[:, :, None] * (np.eye(3) - p[:, None, :])
        squared = (jacobian**2).sum(2)
    np.testing.assert_allclose(one["null_aleatoric"].epistemic, own, rtol=1e-10)
    np.testing.assert_allclose(one["null_squared"].epistemic, squared, rtol=1e-10)
    np.testing.assert_allclose(one["null_distance"].epistemic, squared * nearest, rtol=1e-10)
    for estimate_ in one.values():
        np.testing.assert_array_equal(estimate_.prob, p)
        np.testing.assert_array_equal(estimate_.aleatoric, one["isotropic"].aleatoric)


def test_short_distances_keep_their_digits():
    X = np.array([[1000.0, 1000.0], [1000.0, 1001.0]])
    nearest = cov.OutputVariance(jnp.asarray(X, jnp.float32))
    step = np.float32(1000.25) - np.float32(1000)
    found = nearest.at(jnp.asarray(X + np.array([[0, 0.25], [0, 0]]), jnp.float32))
    np.testing.assert_allclose(found, [step, 0], rtol=1e-6)
    assert cov.OutputVariance().at(jnp.ones((3, 2), jnp.float32)).tolist() == [1, 1, 1]


def test_the_isotropic_estimate_of_a_binary_model_is_the_squared_null_times_the_norm(x64):
    case = setting(BINARY)
    isotropic_, squared = (
        estimate(name, BINARY, case.X, case.theta) for name in ("isotropic", "null_squared")
    )
    jacobian = jax.jacrev(lambda t: BINARY.apply(t, jnp.asarray(case.X)))
    norms = (np.asarray(jax.jit(jacobian)(jnp.asarray(case.theta))) ** 2).sum(-1)
    np.testing.assert_allclose(isotropic_.epistemic, squared.epistemic * norms, rtol=1e-10)


@MODELS
def test_the_scales_of_gaussian_logits_follow_their_rules(model, x64):
    """The prior's place is taken by sigma^2 I, from the gradients at the training inputs."""
    case, problem = setting(model), problem_of(model)
    at_data = np.asarray(
        jax.jit(jax.jacrev(lambda t: model.apply(t, jnp.asarray(problem.X))))(
            jnp.asarray(case.theta)
        )
    )
    outputs = np.asarray(model.apply(jnp.asarray(case.theta), jnp.asarray(problem.X)))
    if model.likelihood == "gaussian":
        half, own, contrast = np.ones((9, 1, 1)) / NOISE_SD, NOISE_SD**2, np.ones((9, 1))
    elif model.likelihood == "bernoulli":
        p = special.expit(outputs)
        half, own, contrast = np.sqrt(p * (1 - p))[..., None], np.pi**2 / 3, np.ones((9, 1))
    else:
        p, top = special.softmax(outputs, axis=1), outputs.argmax(1)[:, None]
        half = np.eye(3) * np.sqrt(p)[:, None] - p[:, :, None] * np.sqrt(p)[:, None]
        is_top = np.arange(3) == top
        contrast = np.where(is_top, 1, -p / (1 - np.take_along_axis(p, top, 1)))
        own = np.pi**2 / 3
    spread = (np.einsum("no,nop->np", contrast, at_data) ** 2).sum(1)
    factor = np.einsum("nok,nop->nkp", half, at_data).reshape(-1, model.num_params)
    prior = np.asarray(model.param_prior_sd(PRIOR_SD))
    kernel = (factor * prior) @ (factor * prior).T
    dimension = np.trace(kernel @ np.linalg.inv(kernel + np.eye(len(kernel))))
    evidence = Evidence(densities.make_data(problem, model, PRIOR_SD))
    for name, var in (
        ("logit_scaled", own / np.median(spread)),
        ("logit_scaled_level", dimension / (factor**2).sum()),
    ):
        assert isinstance(ESTIMATORS[name], GaussianLogit)
        rule = jax.jit(ESTIMATORS[name].covariance, static_argnums=(0, 3))
        sigma = rule(model, jnp.asarray(case.theta), evidence, 1)
        assert isinstance(sigma, cov.Diagonal)
        np.testing.assert_allclose(sigma.sd**2, np.full(model.num_params, var), rtol=1e-8)


def test_a_scale_that_gradients_do_not_set_is_no_number():
    outputs, gram = jnp.zeros((2, 1)), jnp.zeros((2, 1, 1))
    assert not np.isfinite(unit_var(LIKELIHOODS["bernoulli"], outputs, gram, 1.0))


def test_a_likelihood_without_a_rule_of_its_own_takes_its_information(x64):
    """Of a Gaussian likelihood it is 1 / noise^2; what holds for it holds for any."""
    gram = jnp.asarray([2.0, 3.0, 8.0])[:, None, None]
    var = unit_var(LIKELIHOODS["gaussian"], jnp.zeros((3, 1)), gram, 0.5)
    assert float(var) == pytest.approx(0.25 / 3)
