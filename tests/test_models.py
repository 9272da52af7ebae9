"""Models against networks written out in NumPy, Flax's own state, and the prior's moments."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from isounc.models import ACTIVATIONS, PARAMETERISATIONS, Model, make_model
from isounc.problems import Problem, make_problem

ACTIVATION = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * special.expit(x),
    # Flax's gelu is the tanh approximation.
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def by_hand(model, theta, X):
    """The forward pass with NumPy, from the flat vector: kernel row by row, then bias."""
    sizes = [model.in_features, *[model.width] * model.depth, model.out_features]
    theta, at, h = np.asarray(theta, float), 0, np.asarray(X, float)
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        kernel = np.array(
            [[theta[at + row * b + column] for column in range(b)] for row in range(a)]
        )
        at += a * b
        bias, at = theta[at : at + b], at + b
        h = h @ kernel / (math.sqrt(a) if model.parameterisation == "ntk" else 1) + bias
        if i < model.depth:
            h = ACTIVATION[model.activation](h)
    assert at == theta.size
    return h


def point(model, seed=0):
    return np.random.default_rng(seed).normal(size=model.num_params)


def inputs(model, n=5, seed=1):
    return np.random.default_rng(seed).normal(size=(n, model.in_features))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_forward_pass_is_the_one_by_hand(activation, depth, x64):
    model = Model(2, 3, "categorical", width=4, depth=depth, activation=activation)
    theta, X = point(model), inputs(model)
    outputs = model.apply(jnp.asarray(theta), jnp.asarray(X))
    assert outputs.shape == (5, 3)
    assert outputs.dtype == np.float64
    np.testing.assert_allclose(outputs, by_hand(model, theta, X), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        model.apply_transposed(jnp.asarray(theta), jnp.asarray(X)).T,
        outputs,
        rtol=1e-12,
        atol=1e-14,
    )


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_transposed_outputs_of_integers_are_the_same(parameterisation):
    model = Model(3, 1, width=4, depth=2, parameterisation=parameterisation)
    theta, X = point(model), np.array([[1, -2, 0], [300, 0, 7]], np.int16)
    outputs = model.apply_transposed(theta, X)
    assert outputs.shape == (1, 2)
    np.testing.assert_allclose(outputs.T, by_hand(model, theta, X), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"X must .*\(N, 3\)"):
        model.apply_transposed(theta, X.T)


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_only_ntk_divides_by_the_root_of_the_fan_in(parameterisation, x64):
    model = Model(3, 1, width=5, depth=2, parameterisation=parameterisation)
    theta, X = point(model), inputs(model)
    np.testing.assert_allclose(
        model.apply(jnp.asarray(theta), jnp.asarray(X)), by_hand(model, theta, X), rtol=1e-12
    )


def test_float32_stays_float32_and_agrees():
    model = Model(2, 1, width=8, depth=2)
    theta, X = point(model), inputs(model)
    outputs = model.apply(jnp.asarray(theta, jnp.float32), jnp.asarray(X, jnp.float32))
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, by_hand(model, theta, X), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("depth", [0, 2])
def test_the_flax_module_is_the_same_function_with_the_same_state(depth):
    model = Model(2, 3, "categorical", width=4, depth=depth)
    theta, X = jnp.asarray(point(model), jnp.float32), jnp.asarray(inputs(model), jnp.float32)
    module = model.module(theta)
    np.testing.assert_array_equal(module(X), model.apply(theta, X))
    state, expected = nnx.to_pure_dict(nnx.state(module)), model.unflatten(theta)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    assert len(jax.tree.leaves(state)) == 2 * (depth + 1)
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_flat_order_is_kernel_row_by_row_then_bias_layer_by_layer():
    model = Model(2, 3, "categorical", width=4)
    theta = np.arange(model.num_params, dtype=np.float32)
    layers = model.unflatten(theta)["layers"]
    np.testing.assert_array_equal(layers[0]["kernel"], np.arange(8).reshape(2, 4))
    np.testing.assert_array_equal(layers[0]["bias"], np.arange(8, 12))
    np.testing.assert_array_equal(layers[1]["kernel"], np.arange(12, 24).reshape(4, 3))
    np.testing.assert_array_equal(layers[1]["bias"], np.arange(24, 27))
    assert model.num_params == 27


def test_groups_name_and_cover_the_parameters_in_order():
    model = Model(2, 3, "categorical", width=4)
    assert model.groups == ("layer0/kernel", "layer0/bias", "layer1/kernel", "layer1/bias")
    assert model.group_sizes == (8, 4, 12, 3)
    assert sum(model.group_sizes) == model.num_params == len(model.group_index)
    np.testing.assert_array_equal(model.group_index, [0] * 8 + [1] * 4 + [2] * 12 + [3] * 3)
    assert model.layer_sizes == ((2, 4), (4, 3))


def test_prior_sds_of_each_parameterisation():
    sizes = dict(width=16, depth=2)
    for parameterisation in ("ntk", "standard"):
        model = Model(4, 1, parameterisation=parameterisation, **sizes)
        np.testing.assert_array_equal(model.group_prior_sd(1.5), [1.5] * 6)
    fan_in = Model(4, 1, parameterisation="fan_in", **sizes)
    # Fan-ins 4, 16, 16; biases keep prior_sd.
    np.testing.assert_allclose(fan_in.group_prior_sd(3.0), [1.5, 3, 0.75, 3, 0.75, 3])
    np.testing.assert_array_equal(
        fan_in.param_prior_sd(3.0), fan_in.group_prior_sd(3.0)[fan_in.group_index]
    )
    assert fan_in.param_prior_sd(3.0).shape == (fan_in.num_params,)


def prior_function_var(parameterisation, width):
    model = Model(2, 1, width=width, parameterisation=parameterisation)
    thetas = jax.vmap(lambda key: model.sample_prior(key, 2.0))(
        jax.random.split(jax.random.key(3), 2000)
    )
    X = jnp.asarray([[1.0, -0.5]])
    return float(jnp.var(jax.vmap(lambda theta: model.apply(theta, X))(thetas)))


def test_prior_function_variance_over_width():
    narrow, wide = 4, 64
    # The variance of 2000 draws has a relative standard error of about 4%.
    for parameterisation in ("ntk", "fan_in"):
        ratio = prior_function_var(parameterisation, wide) / prior_function_var(
            parameterisation, narrow
        )
        assert ratio == pytest.approx(1, abs=0.2), parameterisation
    ratio = prior_function_var("standard", wide) / prior_function_var("standard", narrow)
    assert ratio > 10


def test_ntk_and_fan_in_priors_are_one_prior_on_functions(x64):
    # theta_fan_in = theta_ntk / sqrt(fan_in) on kernels maps one onto the other exactly.
    ntk = Model(3, 1, width=4, depth=2)
    fan_in = dataclasses.replace(ntk, parameterisation="fan_in")
    key = jax.random.key(0)
    a, b = ntk.sample_prior(key, 2.0), fan_in.sample_prior(key, 2.0)
    X = jnp.asarray(inputs(ntk))
    np.testing.assert_allclose(ntk.apply(a, X), fan_in.apply(b, X), rtol=1e-12)


def test_prior_draws_have_the_prior_sds():
    model = Model(4, 1, width=25, depth=2, parameterisation="fan_in")
    z = model.sample_prior(jax.random.key(1), 2.0) / model.param_prior_sd(2.0)
    assert z.dtype == np.float32
    for group in range(len(model.groups) - 2):  # the read-out's bias is one number
        of_group = np.asarray(z)[model.group_index == group]
        assert abs(of_group.std() - 1) < 4 / math.sqrt(2 * of_group.size)


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_initialisation_has_zero_biases_and_unit_gain(parameterisation):
    model = Model(100, 1, width=100, parameterisation=parameterisation)
    layers = model.unflatten(model.init(jax.random.key(0)))["layers"]
    assert not np.any(layers[0]["bias"])
    assert not np.any(layers[1]["bias"])
    gain = np.asarray(layers[0]["kernel"]).std() * (1 if parameterisation == "ntk" else 10)
    assert gain == pytest.approx(1, abs=0.05)


def test_models_are_hashable_and_equal_by_their_settings():
    a, b = Model(2, 1, width=8), Model(2, 1, width=8)
    a.module(jnp.zeros(a.num_params))  # what it caches is no part of its identity
    assert a == b
    assert hash(a) == hash(b)
    assert a != dataclasses.replace(a, width=9)
    assert len({a, b, dataclasses.replace(a, activation="relu")}) == 2


def test_equal_models_share_one_compiled_function():
    traces = []

    @jax.jit
    def noted(theta, X):
        traces.append(None)
        return theta.sum() + X.sum()

    run = jax.jit(
        lambda model, theta, X: noted(theta, X) + model.apply(theta, X).sum(), static_argnums=0
    )
    for _ in range(2):
        model = Model(2, 1, width=3)
        run(model, jnp.ones(model.num_params), jnp.ones((2, 2)))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        ("xor", (2, 1, "bernoulli")),
        ("rings3", (2, 3, "categorical")),
        ("linear_regression", (1, 1, "gaussian")),
    ],
)
def test_make_model_takes_sizes_and_likelihood_from_the_problem(problem, expected):
    model = make_model(
        make_problem(problem), width=7, depth=2, activation="silu", parameterisation="fan_in"
    )
    assert (model.in_features, model.out_features, model.likelihood) == expected
    assert (model.width, model.depth, model.activation, model.parameterisation) == (
        7,
        2,
        "silu",
        "fan_in",
    )


def test_make_model_of_a_users_problem():
    problem = Problem.from_arrays(np.eye(4), [0, 1, 0, 1])
    assert make_model(problem, depth=0) == Model(4, 1, depth=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 0}, ["width", "from 1 to", "0"]),
        ({"width": -3}, ["width", "-3"]),
        ({"width": 2.5}, ["width", "2.5"]),
        ({"depth": -1}, ["depth", "from 0 to 1000", "-1"]),
        ({"activation": "tahn"}, ["activation", "'tahn'", "did you mean 'tanh'"]),
        ({"activation": "sine"}, ["activation", "tanh, relu, gelu, silu"]),
        ({"activation": np.tanh}, ["activation"]),
        ({"parameterisation": "NTK"}, ["parameterisation", "ntk, fan_in, standard"]),
        ({"parameterisation": "fanin"}, ["parameterisation", "did you mean 'fan_in'"]),
        ({"likelihood": "bernouli"}, ["likelihood", "did you mean 'bernoulli'"]),
        ({"in_features": 0}, ["in_features"]),
        ({"out_features": 0}, ["out_features"]),
        ({"out_features": 3}, ["out_features", "bernoulli", "must be 1"]),
        ({"out_features": 3, "likelihood": "gaussian"}, ["out_features", "gaussian"]),
    ],
)
def test_bad_settings_get_one_clear_error(settings, words):
    with pytest.raises(ValueError) as error:
        Model(**({"in_features": 2, "out_features": 1} | settings))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("prior_sd", [0, -1.0, math.nan, math.inf, "2", None, True])
def test_bad_prior_sds_get_one_clear_error(prior_sd):
    model = Model(2, 1)
    for use in (model.group_prior_sd, model.param_prior_sd):
        with pytest.raises(ValueError, match="prior_sd must be a positive finite number"):
            use(prior_sd)
    with pytest.raises(ValueError, match="prior_sd"):
        model.sample_prior(jax.random.key(0), prior_sd)
