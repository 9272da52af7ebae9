"""The engine against vmap(grad): values, norms by leaf, products, and which way each leaf goes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import equinox as eqx
import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.ode import odeint

from isounc.estimates.grams import group_grams
from isounc.gradnorm import (
    check,
    explain,
    value_and_grad_gram,
    value_and_log_sq_grad_norm,
    value_and_sq_grad_norm,
    value_and_sq_grad_norms,
)
from isounc.models import Model
from tests.gradnorm.zoo import CASES, MLP, ROWS, X, decoder, mlp, normal


@pytest.fixture(autouse=True)
def _broadcasting_as_users_have_it():
    """The functions here are users' own, which may add a bias without writing its axes down."""
    with jax.numpy_rank_promotion("allow"):
        yield


def reference(f, params, *args):
    """Value, and squared norm of the gradient by leaf."""
    # Compiled as a whole, which takes less time than operation by operation.
    value, gradient = jax.jit(jax.value_and_grad(f))(params, *args)
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    return value, {jax.tree_util.keystr(p) or "params": (g**2).sum() for p, g in leaves}


def cast(tree, dtype):
    """Floating leaves in a type, indices in theirs."""

    def leaf(a):
        return jnp.asarray(a, dtype if jnp.issubdtype(a.dtype, jnp.floating) else np.int32)

    return jax.tree.map(leaf, tree)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_gradient_in_float64(name, x64):
    case = CASES[name]
    params, args = cast(case.params, jnp.float64), cast(case.args, jnp.float64)
    value, norms = reference(case.f, params, *args)
    got, parts = value_and_sq_grad_norm(case.f, per_leaf=True)(params, *args)
    np.testing.assert_allclose(got, value, rtol=1e-12)
    assert parts.keys() == norms.keys()
    for path, expected in norms.items():
        np.testing.assert_allclose(parts[path], expected, rtol=1e-12, atol=1e-300)
    ways = {leaf.path: leaf.way for leaf in explain(case.f, params, *args).leaves}
    assert ways | case.ways == ways


@pytest.mark.parametrize(
    "name",
    [
        "mlp_rows",
        "cnn",
        # Float64 has them above, and compiling them twice takes long.
        *(
            pytest.param(
                name,
                marks=pytest.mark.skipif(
                    os.environ.get("ISOUNC_SLOW") != "1", reason="takes long: set ISOUNC_SLOW=1"
                ),
            )
            for name in ("decoder_scan_remat", "moe", "square_twice")
        ),
    ],
)
def test_equals_the_gradient_in_float32(name):
    case = CASES[name]
    params, args = cast(case.params, jnp.float32), cast(case.args, jnp.float32)
    value, norms = reference(case.f, params, *args)
    got, total = value_and_sq_grad_norm(case.f)(params, *args)
    np.testing.assert_allclose(got, value, rtol=1e-5)
    np.testing.assert_allclose(total, sum(norms.values()), rtol=1e-5)


def f_classes(p, x):
    return jax.nn.softmax(jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"])


@pytest.mark.parametrize("batch_size", [None, 2, 3, 100])
def test_several_outputs_of_a_batch(batch_size, x64):
    params = {k: jnp.asarray(MLP[k]) for k in ("w1", "b1", "w2")}
    x = jnp.asarray(normal(7, 5))
    jacobian = jax.jit(jax.vmap(jax.jacrev(f_classes), (None, 0)))(params, x)
    flat = jnp.concatenate([j.reshape(7, 6, -1) for j in jax.tree.leaves(jacobian)], axis=-1)
    gram = jnp.einsum("nkp,nlp->nkl", flat, flat)
    options = {"in_axes": 0, "batch_size": batch_size}
    values, got = value_and_grad_gram(f_classes, **options)(params, x)
    np.testing.assert_allclose(got, gram, rtol=1e-11, atol=1e-18)
    np.testing.assert_allclose(values, jax.vmap(f_classes, (None, 0))(params, x), rtol=1e-12)
    _, norms = value_and_sq_grad_norms(f_classes, **options)(params, x)
    np.testing.assert_allclose(norms, jnp.diagonal(gram, axis1=1, axis2=2), rtol=1e-11)


@pytest.mark.parametrize(
    "name",
    [
        "decoder_scan", "decoder_remat", "nested_scan", "recurrence", "recurrent_stack", "cnn",
        "conv_grouped", "conv_depthwise_gram", "moe", "square_twice",
    ],
)  # fmt: skip
def test_products_of_two_outputs(name, x64):
    case = CASES[name]
    params, args = cast(case.params, jnp.float64), cast(case.args, jnp.float64)

    def two(p, *args):
        value = case.f(p, *args)
        return jnp.stack([jnp.sin(value), value**2])

    jacobian = jax.tree.leaves(jax.jit(jax.jacrev(two))(params, *args))
    flat = jnp.concatenate([j.reshape(2, -1) for j in jacobian], axis=-1)
    _, gram = value_and_grad_gram(two)(params, *args)
    np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-11)


def test_products_of_gradients_of_a_multiple_of_a_parameter(x64):
    def two(w, x):
        hidden = jnp.tanh(x @ (-3 * w.T / 2))
        return jnp.stack([hidden.sum(), (hidden**2).sum()])

    w, x = jnp.asarray(normal(4, 5)), jnp.asarray(normal(2, 5, seed=1))
    assert explain(lambda w, x: two(w, x)[0], w, x).leaves[0].way == "fast"
    jacobian = jax.jit(jax.jacrev(two))(w, x).reshape(2, -1)
    np.testing.assert_allclose(value_and_grad_gram(two)(w, x)[1], jacobian @ jacobian.T, rtol=1e-11)


def test_composes_with_jit_vmap_map_and_checkpoint(x64):
    params, x = cast(MLP, jnp.float64), jnp.asarray(normal(6, 5))
    gradients = jax.jit(jax.vmap(jax.grad(mlp), (None, 0)))(params, x)
    expected = sum((g.reshape(6, -1) ** 2).sum(1) for g in jax.tree.leaves(gradients))
    one = value_and_sq_grad_norm(mlp)
    for norms in (
        value_and_sq_grad_norm(mlp, in_axes=0)(params, x)[1],
        value_and_sq_grad_norm(mlp, in_axes=1, batch_size=4)(params, x.T)[1],
        jax.vmap(one, (None, 0))(params, x)[1],
        jax.jit(jax.vmap(one, (None, 0)))(params, x)[1],
        jax.lax.map(lambda row: one(params, row)[1], x),
        value_and_sq_grad_norm(jax.checkpoint(mlp), in_axes=0)(params, x)[1],
    ):
        np.testing.assert_allclose(norms, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "name",
    ["mlp", pytest.param("decoder", marks=pytest.mark.slow), "decoder_scan", "recurrence", "cnn"],
)
def test_value_and_norm_can_be_differentiated(name, x64):
    case = CASES[name]
    params, args = cast(case.params, jnp.float64), cast(case.args, jnp.float64)
    norms = value_and_sq_grad_norm(case.f)

    def plain(params):
        value, gradient = jax.value_and_grad(case.f)(params, *args)
        return value + sum((g**2).sum() for g in jax.tree.leaves(gradient))

    expected = jax.tree.leaves(jax.jit(jax.grad(plain))(params))
    got = jax.tree.leaves(jax.jit(jax.grad(lambda p: sum(norms(p, *args))))(params))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_permuting_examples_permutes_the_norms():
    params, x = cast(MLP, jnp.float32), jnp.asarray(normal(8, 5), jnp.float32)
    order = np.random.default_rng(0).permutation(8)
    norms = value_and_sq_grad_norm(mlp, in_axes=0)
    np.testing.assert_allclose(norms(params, x[order])[1], norms(params, x)[1][order], rtol=1e-6)


def test_groups_and_filters(x64):
    params, x = cast(MLP, jnp.float64), jnp.asarray(X)
    _, norms = reference(mlp, params, x)
    _, groups = value_and_sq_grad_norm(mlp, per_leaf=lambda path: path[2])(params, x)
    assert groups.keys() == {"b", "w"}
    np.testing.assert_allclose(groups["b"], norms["['b1']"], rtol=1e-12)
    _, last = value_and_sq_grad_norm(mlp, wrt=r"w3")(params, x)
    np.testing.assert_allclose(last, norms["['w3']"], rtol=1e-12)
    _, two = value_and_sq_grad_norm(mlp, wrt=lambda path: path in ("['w1']", "['b1']"))(params, x)
    np.testing.assert_allclose(two, norms["['w1']"] + norms["['b1']"], rtol=1e-12)


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda p, x: p["b"], 1),
        (lambda p, x: p["w"][1, 2], 1),
        (lambda p, x: 3 * p["w"][:1, :1].reshape(()), 9),
        (lambda p, x: -p["w"].T[2, 0] + 0 * x.sum(), 1),
    ],
)
def test_an_output_that_is_a_parameter_itself(f, expected):
    params = {"b": jnp.asarray(2.0), "w": jnp.asarray(normal(4, 3), jnp.float32)}
    value, total = value_and_sq_grad_norm(f)(params, X)
    np.testing.assert_allclose(value, f(params, X))
    assert total == expected
    _, gram = value_and_grad_gram(lambda p, x: f(p, x)[None])(params, X)
    assert gram == expected


def test_integer_leaves_are_fixed(x64):
    params = {"w": jnp.asarray(normal(5, 3)), "ids": jnp.array([0, 2])}
    f = lambda p, x: jnp.sin(x @ p["w"])[p["ids"]].sum()  # noqa: E731
    expected = jax.grad(lambda w: f({"w": w, "ids": params["ids"]}, X))(params["w"])
    _, total = value_and_sq_grad_norm(f)(params, X)
    np.testing.assert_allclose(total, (expected**2).sum(), rtol=1e-12)


def test_log_norm_where_the_probability_underflows(x64):
    case = CASES["decoder"]
    params = cast(case.params, jnp.float64)
    shift = lambda p, ids: decoder(p, ids) - 2000.0  # noqa: E731
    log_p, log_norm = value_and_log_sq_grad_norm(shift)(params, *case.args)
    value, norms = reference(decoder, params, *case.args)
    np.testing.assert_allclose(log_p, value - 2000)
    np.testing.assert_allclose(log_norm, 2 * (value - 2000) + jnp.log(sum(norms.values())))


def test_half_precision_norms_are_summed_in_float32():
    params = cast(MLP, jnp.bfloat16)
    x = jnp.asarray(ROWS, jnp.bfloat16)
    f = lambda p, x: mlp(p, x).astype(jnp.float32).sum()  # noqa: E731
    _, total = value_and_sq_grad_norm(f)(params, x)
    _, expected = reference(f, cast(params, jnp.float32), x.astype(jnp.float32))
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, sum(expected.values()), rtol=0.1)


def test_double_precision_sums_of_a_single_precision_model(x64):
    w, x = (jnp.asarray(normal(64, 64, seed=i), jnp.float32) for i in (0, 1))
    f = lambda w, x: ((x @ w)[:, :1]).sum()  # noqa: E731
    exact = (np.asarray(x, np.float64).sum(0) ** 2).sum()
    _, single = value_and_sq_grad_norm(f, dtype=jnp.float32)(w, x)
    _, double = value_and_sq_grad_norm(f, dtype=jnp.float64)(w, x)
    assert (single.dtype, double.dtype) == (jnp.float32, jnp.float64)
    assert 0 < abs(single - exact) < 1e-5 * exact
    np.testing.assert_allclose(double, exact, rtol=1e-13)


def test_aux_comes_back_with_the_value(x64):
    def f(p, x):
        hidden = jnp.tanh(x @ p["w1"])
        return hidden.sum(), {"hidden": hidden, "weights": p["b1"]}

    params, x = cast(MLP, jnp.float64), jnp.asarray(ROWS)
    (value, aux), total = value_and_sq_grad_norm(f, in_axes=0, has_aux=True)(params, x)
    expected, without = value_and_sq_grad_norm(lambda p, x: f(p, x)[0], in_axes=0)(params, x)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(total, without, rtol=1e-12)
    np.testing.assert_allclose(aux["hidden"], jnp.tanh(x @ params["w1"]), rtol=1e-12)
    assert aux["weights"].shape == (4, 7)
    log_options = {"in_axes": 0, "has_aux": True}
    (_, same), log_norm = value_and_log_sq_grad_norm(f, **log_options)(params, x)
    np.testing.assert_allclose(log_norm, 2 * value + jnp.log(total), rtol=1e-12)
    np.testing.assert_array_equal(same["hidden"], aux["hidden"])
    with pytest.raises(TypeError, match=r"f must return \(value, aux\)"):
        value_and_sq_grad_norm(mlp, has_aux=True)(params, x[0])


def test_equinox_modules(x64):
    x = jnp.asarray(ROWS)
    module = eqx.nn.Sequential(
        [
            eqx.nn.Linear(5, 6, key=jax.random.key(0)),
            eqx.nn.Lambda(jnp.tanh),
            eqx.nn.LayerNorm(6),
            eqx.nn.Linear(6, 1, key=jax.random.key(1)),
        ]
    )
    params, static = eqx.partition(module, eqx.is_inexact_array)
    params = cast(params, jnp.float64)
    f = lambda p, x: jax.nn.sigmoid(eqx.combine(p, static)(x))[0]  # noqa: E731
    values, norms = value_and_sq_grad_norm(f, in_axes=0)(params, x)
    for i, row in enumerate(x):
        value, expected = reference(f, params, row)
        np.testing.assert_allclose(values[i], value, rtol=1e-12)
        np.testing.assert_allclose(norms[i], sum(expected.values()), rtol=1e-12)
    kernels = [leaf.way for leaf in explain(f, params, x[0]).leaves if len(leaf.shape) == 2]
    assert kernels == ["fast", "fast"]


def test_flax_modules(x64):
    x = jnp.asarray(ROWS)
    module = nnx.Sequential(
        nnx.Linear(5, 6, rngs=nnx.Rngs(0), param_dtype=jnp.float64),
        nnx.LayerNorm(6, rngs=nnx.Rngs(0), param_dtype=jnp.float64),
        jnp.tanh,
        nnx.Linear(6, 1, rngs=nnx.Rngs(1), param_dtype=jnp.float64),
    )
    graph, state = nnx.split(module)
    f = lambda p, x: jax.nn.sigmoid(nnx.merge(graph, p)(x)).sum()  # noqa: E731
    _, norms = reference(f, state, x)
    _, total = value_and_sq_grad_norm(f)(state, x)
    np.testing.assert_allclose(total, sum(norms.values()), rtol=1e-12)

    linen = nn.Sequential(
        [nn.Dense(6, param_dtype=jnp.float64), nn.gelu, nn.Dense(1, param_dtype=jnp.float64)]
    )
    variables = linen.init(jax.random.key(0), x)
    g = lambda p, x: linen.apply({"params": p}, x).sum()  # noqa: E731
    _, norms = reference(g, variables["params"], x)
    _, total = value_and_sq_grad_norm(g)(variables["params"], x)
    np.testing.assert_allclose(total, sum(norms.values()), rtol=1e-12)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=25)
def test_random_graphs(data):
    """Random products, sums and rearrangements of three square matrices, shared at will."""
    steps = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, 2),
                st.sampled_from(["x@w", "x@wT", "w@x", "+w", "*w", "sin", "wide", "slice"]),
            ),
            min_size=1,
            max_size=6,
        )
    )

    def f(ws, x):
        for which, kind in steps:
            w = ws[which]
            if kind == "x@w":
                x = x @ w
            elif kind == "x@wT":
                x = 0.5 * (x @ (w * 2).T)
            elif kind == "w@x":
                x = w @ x
            elif kind == "+w":
                x = x + w
            elif kind == "*w":
                x = x * w
            elif kind == "sin":
                x = jnp.sin(x)
            elif kind == "wide":
                x = jnp.tanh(x @ jnp.concatenate([w, ws[0]], axis=1)) @ ws[1].reshape(3, 3).repeat(
                    2, 0
                )
            else:
                x = jnp.concatenate([x @ w[:, :1], x @ w[:, 1:]], axis=1)
        return jnp.sin(x).sum()

    with jax.enable_x64(True):
        ws = [jnp.asarray(normal(3, 3, seed=i)) for i in range(3)]
        x = jnp.asarray(normal(3, 3, seed=9))
        _, norms = reference(f, ws, x)
        _, parts = value_and_sq_grad_norm(f, per_leaf=True)(ws, x)
        for path, expected in norms.items():
            np.testing.assert_allclose(parts[path], expected, rtol=1e-10, atol=1e-25)


@pytest.mark.parametrize(
    ("f", "params", "options", "message"),
    [
        (lambda p, x: x @ p, normal(5, 2), {}, r"f must return a scalar, got shape \(2,\)"),
        (lambda p, x: (x @ p, 1.0), normal(5), {}, "f must return one array"),
        (
            lambda p, x: x @ p["w"],
            {"w": normal(5), "name": "dense"},
            {},
            r"params must hold arrays, got str .*\['name'\]",
        ),
        (lambda p, x: jnp.abs(x @ p), normal(5) + 1j, {}, "params must be real"),
        (
            lambda p, x: x @ p,
            normal(5),
            {"wrt": "head"},
            "wrt must keep a floating-point leaf, got leaves params",
        ),
        (
            lambda p, x: x.sum(),
            {"ids": np.arange(3)},
            {},
            r"params must have a floating-point leaf, got leaves \['ids'\]",
        ),
        (lambda p, x: x @ p, normal(5), {"in_axes": 0, "batch_size": 0}, "batch_size must be"),
        (
            lambda p, x: x @ p,
            normal(5),
            {"dtype": "float64"},
            "dtype must be float32 unless JAX's x64",
        ),
        (
            lambda p, x: x @ p,
            normal(5),
            {"dtype": jnp.bfloat16},
            "float32 or float64, got bfloat16",
        ),
        (
            lambda p, x: x @ p,
            normal(5),
            {"in_axes": (0, 0)},
            "in_axes must have an entry for each of 1",
        ),
        (None, normal(5), {}, "f must be a function"),
        (
            lambda p, x: x @ p,
            normal(5),
            {"wrt": "["},
            r"wrt must be a regular expression, got '\['",
        ),
        (lambda p, x: x @ p, normal(5), {"wrt": 3}, "wrt must be a regular expression"),
        (lambda p, x: x @ p, normal(5), {"per_leaf": "w"}, "per_leaf must be True, False or"),
        (lambda p, x: x @ p, normal(5), {"in_axes": 1.5}, "in_axes must be an integer, None"),
        (lambda p, x: x @ p, normal(5), {"in_axes": 7}, "in_axes must name axes that args have"),
        (lambda p, x: x @ p, normal(5), {"dtype": "xyz"}, "dtype must be float32 or float64"),
        (
            lambda p, x: x @ p,
            {"w": np.ma.masked_array(normal(5), mask=normal(5) > 0)},
            {},
            r"params must hold arrays without a mask.*\['w'\]",
        ),
    ],
)
def test_bad_input(f, params, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        value_and_sq_grad_norm(f, **options)(params, X)


@pytest.mark.parametrize(
    "x",
    ["xor", 10**12, np.array([None] * 5), np.ma.masked_array(X, mask=X > 0), np.array(["1"] * 5)],
)
def test_data_that_are_no_numbers(x):
    f = lambda p, x: x["a"] @ p  # noqa: E731
    for function in (value_and_sq_grad_norm(f), functools.partial(explain, f)):
        with pytest.raises(TypeError, match=r"args must hold arrays of numbers.*args\[0\]\['a'\]"):
            function(normal(5), {"a": x})


def test_explain_refuses_what_is_no_scalar():
    with pytest.raises(ValueError, match=r"f must return a scalar, got shape \(5,\)"):
        explain(lambda p, x: x * p, normal(5), X)


def test_integers_that_jax_would_wrap():
    f = lambda p, x: x["a"].astype(float) @ p  # noqa: E731
    x = {"a": np.array([1, 2, 3_000_000_000])}
    for function in (value_and_sq_grad_norm(f), functools.partial(explain, f)):
        with pytest.raises(ValueError, match=r"args\[0\]\['a'\] must hold .*, got 3000000000"):
            function(normal(3), x)
    value, _ = value_and_sq_grad_norm(f)(np.ones(3, np.float32), {"a": x["a"].astype(np.uint32)})
    assert value == pytest.approx(3_000_000_003, rel=1e-6)


def test_batch_axes_must_match():
    f = lambda p, x, y: x @ p + y  # noqa: E731
    with pytest.raises(ValueError, match=r"one length along in_axes 0, got \[3, 4\]"):
        value_and_sq_grad_norm(f, in_axes=0)(normal(5), ROWS, normal(3))


def test_a_while_loop_over_parameters_is_refused():
    def f(p, x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + x @ p, x).sum()

    def of_parameters(p, x):
        return jax.lax.while_loop(lambda p: p.sum() < 9, lambda p: 2 * p, p).sum() + x.sum()

    for refused in (f, of_parameters):
        with pytest.raises(NotImplementedError, match=r"while loop.*jax\.lax\.scan"):
            value_and_sq_grad_norm(refused)(normal(5, 5), X)


W = jnp.arange(16.0).reshape(4, 4) / 10
V = jnp.sin(jnp.arange(8.0)).reshape(2, 4)


def through_reference(w, x):
    held = jax.new_ref(jnp.zeros(()))
    held[...] += (w**2).sum()
    return jnp.sin(x @ w).sum() + held[...]


def reference_in_a_scan(w, x):
    held = jax.new_ref(jnp.zeros(()))

    def turn(carry, row):
        held[...] += jnp.sin(row @ w).sum()
        return carry, None

    jax.lax.scan(turn, 0.0, x)
    return held[...]


def counted(w, x):
    limit = jax.lax.stop_gradient(jnp.abs(x @ w).sum())
    turns = jax.lax.while_loop(lambda n: n < limit, lambda n: n + 1, 0.0)
    return jnp.sin(x @ w).sum() * turns


def solved(w, x):
    times = jnp.array([0.0, 0.5, 1.0])
    path = odeint(lambda y, t, w: jnp.tanh(y @ w) - t, jnp.sin(x[0] @ w), times, w)
    return jnp.sin(path).sum()


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (lambda w, x: jnp.abs(jnp.fft.fft(x) @ w).sum(), 27.474263),
        (lambda w, x: jnp.abs(jnp.fft.fft(jnp.tanh(x @ w)) @ w).sum(), None),
        (lambda w, x: jnp.abs(jnp.fft.ifft(jnp.fft.fft(x @ w) * jnp.fft.fft(w[:2]))).sum(), None),
        (lambda w, x: jnp.sin(jnp.tanh(x @ w.reshape(4, 4, order="F")) @ w).sum(), 126.533687),
        (lambda w, x: (x @ jax.lax.reshape(w, (4, 4), dimensions=(1, 0)) @ x.T).sum(), None),
        (lambda w, x: jnp.sin(x.reshape(4, 2, order="F").T @ w.reshape(4, 4)).sum(), None),
        (through_reference, 57.575479),
        (reference_in_a_scan, 7.709622),
        (counted, 377.77147),
        (solved, 0.2549724),
    ],
)  # fmt: skip
def test_functions_that_hide_their_parameters(f, expected):
    """Complex values, turned reshapes, mutable references, loops, constants in a backward pass."""
    value, norms = reference(f, W, V)
    got, total = value_and_sq_grad_norm(f)(W, V)
    np.testing.assert_allclose(got, value, rtol=1e-5)
    np.testing.assert_allclose(total, norms["params"], rtol=1e-5)
    if expected is not None:
        np.testing.assert_allclose(total, expected, rtol=5e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
@pytest.mark.parametrize("rows", [5, 256, 70_000])
@pytest.mark.parametrize("mode", ["clip", "fill"])
def test_indices_of_any_type(dtype, rows, mode):
    ids = np.array([[4, 100, -1], [4, 3, 100]]).astype(dtype)
    table = jnp.asarray(normal(rows, 2), jnp.float32)
    f = lambda t, ids: jnp.sin(jnp.take(t, ids, axis=0, mode=mode, fill_value=0)).sum()  # noqa: E731
    # The rows that JAX takes: it adds up no gradient of such indices without a crash of XLA.
    taken = np.asarray(jnp.take(jnp.arange(rows), ids, mode=mode, fill_value=-1)).ravel()
    gradient = np.zeros((rows, 2))
    np.add.at(gradient, taken[taken >= 0], np.cos(np.asarray(table)[taken[taken >= 0]]))
    _, total = value_and_sq_grad_norm(f)(table, ids)
    np.testing.assert_allclose(total, (gradient**2).sum(), rtol=1e-5)


def test_bytes_as_ids_of_a_small_table():
    table = jnp.arange(1024.0).reshape(256, 4) / 1000
    f = lambda t, i: jnp.sin(jnp.take(t, i, axis=0)).sum()  # noqa: E731
    _, total = value_and_sq_grad_norm(f)(table, jnp.array([72, 101], jnp.uint8))
    np.testing.assert_allclose(total, 7.0515604, rtol=1e-6)
    scattered = lambda t, i: (jnp.zeros_like(t).at[i].add(t[: len(i)]) ** 3).sum()  # noqa: E731
    _, norms = reference(scattered, table, jnp.array([200, 200], jnp.uint8))
    _, total = value_and_sq_grad_norm(scattered)(table, jnp.array([200, 200], jnp.uint8))
    np.testing.assert_allclose(total, norms["params"], rtol=1e-5)


def test_check_compares_with_plain_gradients():
    comparison = check(mlp, cast(MLP, jnp.float32), jnp.asarray(X, jnp.float32))
    assert {leaf.path for leaf in comparison.leaves} == {f"['{name}']" for name in MLP}
    assert comparison.relative_error < 1e-5
    assert "jax.grad" in str(comparison) and "['w1']" in str(comparison)

    @jax.custom_vjp
    def wrong(w, x):
        return (x @ w).sum()

    calls = []

    def backward(w, g):
        calls.append(g)
        return len(calls) * g * w, None

    wrong.defvjp(lambda w, x: (wrong(w, x), w), backward)
    comparison = check(wrong, W, V)
    assert comparison.relative_error > 0.1
    assert comparison.leaves[0].way == "formed"


def test_check_where_gradients_are_zero_or_undefined():
    assert check(lambda w, x: (x @ w).sum() * 0, W, V).relative_error == 0
    assert np.isnan(check(lambda w, x: (x @ w).sum() * jnp.nan, W, V).relative_error)
    with pytest.raises(TypeError, match="params must hold arrays"):
        check(lambda w, x: w * x, 1.0, V)


def test_explain_says_what_is_stored():
    case = CASES["cond"]
    report = explain(case.f, case.params, *case.args)
    assert report.leaves[0].operations is None
    assert {leaf.path: leaf.stored for leaf in report.leaves} == {"['w']": 15}
    assert "formed" in str(report)


@pytest.mark.parametrize(
    ("rows", "method", "operations"),
    [(1, "rank one", 4), (2, "rows", 2 * 2 * 5), (256, "rows", 256**2 * 5), (257, "sums", 257 * 4)],
)
def test_explain_says_how_rows_of_a_table_go(rows, method, operations):
    [leaf] = explain(lambda t, i: t[i].sum(), normal(9, 4), np.arange(rows) % 9).leaves
    assert leaf.uses == (f"gather ({method})",) and leaf.operations == operations


@pytest.mark.parametrize(
    ("shape", "method", "operations"),
    [
        ((1, 64, 64), "rank one", 64 + 64),
        ((8, 64, 64), "gram", 8 * 8 * (64 + 64 + 1)),
        ((2, 3, 8), "gram", 2 * 3 * 8),  # as many as by the direct way
        ((100, 4, 5), "direct", 100 * 4 * 5),
    ],
)
def test_explain_says_what_a_product_costs(shape, method, operations):
    rows, num_in, num_out = shape
    w, x = normal(num_in, num_out), normal(rows, num_in)
    [leaf] = explain(lambda w, x: jnp.sin(x @ w).sum(), w, x).leaves
    assert leaf.uses == (f"dot_general ({method})",) and leaf.operations == operations


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
def test_group_grams_are_those_of_the_jacobian(likelihood, x64):
    model = Model(3, 1 if likelihood == "bernoulli" else 3, likelihood, width=4, depth=2)
    theta, x = jnp.asarray(normal(model.num_params)), jnp.asarray(normal(6, 3))
    jacobian = jax.jit(jax.jacrev(lambda t: model.apply(t, x)))(theta)
    outputs, grams = jax.jit(lambda t, x: group_grams(model, t, x, batch_size=4))(theta, x)
    np.testing.assert_allclose(outputs, model.apply(theta, x), rtol=1e-12)
    for group, gram in enumerate(grams):
        part = jacobian[..., model.group_index == group]
        expected = jnp.einsum("nop,nqp->noq", part, part)
        np.testing.assert_allclose(gram, expected, rtol=1e-11, atol=1e-18)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from isounc.gradnorm import value_and_sq_grad_norm
assert jax.device_count() == 4
mesh = jax.make_mesh((4,), ("examples",), axis_types=(jax.sharding.AxisType.Auto,))
w, x = jnp.arange(12.0).reshape(3, 4) / 9, jnp.arange(24.0).reshape(8, 3) / 7
norms = value_and_sq_grad_norm(lambda w, x: jnp.tanh(x @ w).sum(), in_axes=0)
spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("examples")))
got = norms(w, spread)[1]
assert len(got.sharding.device_set) == 4, got.sharding
np.testing.assert_allclose(got, norms(w, x)[1], rtol=1e-6)

# Fast, tied and formed leaves: on a mesh with shardings in the types, and device by device.
mesh = jax.make_mesh((4,), ("examples",), axis_types=(jax.sharding.AxisType.Explicit,))
spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("examples")))
params = {"w": w, "b": jnp.ones(4), "square": jnp.eye(4) + 0.1}
norms = value_and_sq_grad_norm(
    lambda p, x: ((jnp.tanh(x @ p["w"] + p["b"]) @ p["square"]) @ p["square"]).sum(), in_axes=0
)
expected = norms(params, x)[1]
np.testing.assert_allclose(norms(params, spread)[1], expected, rtol=1e-6)
shared = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
specs = (PartitionSpec(), PartitionSpec("examples"))
mapped = jax.shard_map(lambda p, x: norms(p, x)[1], mesh=mesh, in_specs=specs, out_specs=specs[1])
np.testing.assert_allclose(jax.jit(mapped)(shared, spread), expected, rtol=1e-6)
"""


def test_examples_sharded_over_devices():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
