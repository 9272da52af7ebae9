"""The engine against vmap(grad): values, norms by leaf, products, and which way each leaf goes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import NamedTuple

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isounc.gradnorm import (
    explain,
    group_grams,
    output_jacobian,
    value_and_grad_gram,
    value_and_log_sq_grad_norm,
    value_and_sq_grad_norm,
    value_and_sq_grad_norms,
)
from isounc.models import Model

DNUMS = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(autouse=True)
def _broadcasting_as_users_have_it():
    """The functions here are users' own, which may add a bias without writing its axes down."""
    with jax.numpy_rank_promotion("allow"):
        yield


class Case(NamedTuple):
    """A function with parameters, data, and the way that each leaf should go."""

    f: object
    params: dict
    args: tuple
    ways: dict


def normal(*shape, seed=0):
    """Standard normal numbers, others for another shape."""
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def mlp(p, x):
    hidden = jnp.tanh(x @ p["w1"] + p["b1"])
    return jnp.tanh(hidden @ p["w2"]) @ p["w3"]


MLP = {"w1": normal(5, 7), "b1": normal(7), "w2": normal(7, 6), "w3": normal(6)}


def norm(x, scale):
    """RMSNorm with its scale written as 1 + g."""
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale)


def rotate(x):
    """Rotary position embedding of (T, heads, d)."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[0])[:, None, None] / 10.0 ** jnp.arange(half)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate(
        [a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1
    )


def decoder_layer(x, p):
    """Pre-norm attention with grouped queries (4 heads on 2), then a gated MLP."""
    y = norm(x, p["n1"])
    q = rotate(jnp.einsum("td,dhk->thk", y, p["q"]))
    k, v = (jnp.einsum("td,dhk->thk", y, p[name]) for name in ("k", "v"))
    k, v = (jnp.repeat(a, 2, axis=1) for a in (rotate(k), v))
    scores = jnp.einsum("thk,shk->hts", q, k) / 2.0
    mask = jnp.tril(jnp.ones((x.shape[0], x.shape[0]), bool))
    weights = jax.nn.softmax(jnp.where(mask[None], scores, -1e9), axis=-1)
    x = x + jnp.einsum("hts,shk,hkd->td", weights, v, p["o"])
    y = norm(x, p["n2"])
    return x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]


def layer_params(*lead):
    shapes = {
        "n1": (8,),
        "n2": (8,),
        "q": (8, 4, 4),
        "k": (8, 2, 4),
        "v": (8, 2, 4),
        "o": (4, 4, 8),
        "gate": (8, 12),
        "up": (8, 12),
        "down": (12, 8),
    }
    return {name: 0.3 * normal(*lead, *shape) for name, shape in shapes.items()}


def decoder(p, ids, *, remat=False, scanned=False):
    """Log probability of the last token, embedding and head tied."""
    layer = jax.checkpoint(decoder_layer) if remat else decoder_layer
    x = p["embed"][ids[:-1]]
    if scanned:
        x, _ = jax.lax.scan(lambda x, q: (layer(x, q), None), x, p["layers"])
    else:
        for q in p["layers"]:
            x = layer(x, q)
    logits = norm(x, p["final"])[-1] @ p["embed"].T
    return jax.nn.log_softmax(logits)[ids[-1]]


DECODER_WAYS = {"['embed']": "tied", "['final']": "formed"}
TOKENS = (np.array([3, 1, 3, 3, 8, 2]),)


def group_norm_cnn(p, x):
    y = jax.lax.conv_general_dilated(x[None], p["k1"], (1, 1), "SAME", dimension_numbers=DNUMS)
    y = y.reshape(1, *y.shape[1:3], 2, 2)
    y = (y - y.mean((1, 2, 4), keepdims=True)) / jnp.sqrt(y.var((1, 2, 4), keepdims=True) + 1e-5)
    y = jax.nn.relu(y.reshape(1, *y.shape[1:3], 4) * p["scale"] + p["shift"])
    y = jax.lax.conv_general_dilated(y, p["k2"], (2, 2), "VALID", dimension_numbers=DNUMS)
    return jnp.sin(y).mean((1, 2))[0] @ p["head"]


CNN = {
    "k1": normal(3, 3, 2, 4),
    "scale": normal(4),
    "shift": normal(4, seed=1),
    "k2": normal(2, 2, 4, 3),
    "head": normal(3),
}


def moe(p, x):
    """Two experts for every token, mixed by a softmax router."""
    route = jax.nn.softmax(x @ p["router"])
    hidden = jax.nn.gelu(jnp.einsum("td,edf->tef", x, p["up"]))
    return jnp.einsum("te,tef,efd->td", route, hidden, p["down"]).sum()


def recurrence(p, x):
    step = lambda h, xi: (jnp.tanh(h @ p["w"] + xi @ p["u"]), None)  # noqa: E731
    return jax.lax.scan(step, jnp.zeros(4, x.dtype), x)[0].sum()


def weight_norm(p, x):
    w = p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0, keepdims=True)[0]
    return jnp.sin(x @ w).sum()


def nested_scan(p, x):
    def outer(x, w):
        return jax.lax.scan(lambda x, v: (jnp.sin(x @ v), None), x, w)[0], None

    return jax.lax.scan(outer, x, p)[0].sum()


X, ROWS = normal(5), normal(4, 5)
SQUARE, ONE = normal(6, 6), {"['w']": "fast"}
CASES = {
    "mlp": Case(mlp, MLP, (X,), {"['w1']": "fast", "['b1']": "formed", "['w3']": "fast"}),
    "mlp_rows": Case(lambda p, x: mlp(p, x).sum(), MLP, (ROWS,), {"['w2']": "fast"}),
    "many_rows": Case(lambda p, x: mlp(p, x).sum(), MLP, (normal(40, 5),), {"['w2']": "fast"}),
    "square_twice": Case(
        lambda p, x: jnp.sin(jnp.tanh(x @ p["w"]) @ p["w"].T).sum(),
        {"w": SQUARE},
        (normal(2, 6),),
        {"['w']": "tied"},
    ),
    "square_thrice": Case(
        lambda p, x: jnp.sin(jnp.tanh(jnp.tanh(x @ p["w"]) @ (2 * p["w"])) @ p["w"]).sum(),
        {"w": SQUARE},
        (normal(2, 6),),
        {"['w']": "tied"},
    ),
    "decoder": Case(
        decoder,
        {"embed": normal(20, 8), "final": normal(8), "layers": [layer_params(), layer_params()]},
        TOKENS,
        DECODER_WAYS,
    ),
    "decoder_remat": Case(
        functools.partial(decoder, remat=True),
        {"embed": normal(20, 8), "final": normal(8), "layers": [layer_params()]},
        TOKENS,
        DECODER_WAYS | {"['layers'][0]['q']": "fast"},
    ),
    "decoder_scan": Case(
        functools.partial(decoder, scanned=True),
        {"embed": normal(20, 8), "final": normal(8), "layers": layer_params(3)},
        TOKENS,
        DECODER_WAYS | {"['layers']['up']": "fast", "['layers']['n1']": "formed"},
    ),
    "decoder_scan_remat": Case(
        functools.partial(decoder, scanned=True, remat=True),
        {"embed": normal(20, 8), "final": normal(8), "layers": layer_params(3)},
        TOKENS,
        DECODER_WAYS | {"['layers']['down']": "fast"},
    ),
    "nested_scan": Case(nested_scan, normal(2, 3, 5, 5), (ROWS,), {"params": "fast"}),
    "cnn": Case(group_norm_cnn, CNN, (normal(6, 6, 2),), {"['k1']": "fast", "['scale']": "formed"}),
    "moe": Case(
        moe,
        {"router": normal(5, 2), "up": normal(2, 5, 3), "down": normal(2, 3, 5)},
        (ROWS,),
        {"['up']": "fast"},
    ),
    "batched_weights": Case(
        lambda p, x: jnp.sin(jnp.einsum("etd,edf->etf", x, p["w"])).sum(),
        {"w": normal(3, 5, 4)},
        (normal(3, 7, 5),),
        ONE,
    ),
    "lora": Case(
        lambda p, x: jnp.sin(x @ p["w"] + 0.5 * (x @ p["a"]) @ p["b"]).sum(),
        {"w": normal(5, 6), "a": normal(5, 2), "b": normal(2, 6)},
        (ROWS,),
        {"['w']": "fast", "['a']": "fast"},
    ),
    "lora_merged": Case(
        lambda p, x: jnp.sin(x @ (p["w"] + 0.5 * p["a"] @ p["b"])).sum(),
        {"w": normal(5, 6), "a": normal(5, 2), "b": normal(2, 6)},
        (ROWS,),
        {"['w']": "formed", "['a']": "formed"},
    ),
    "weight_norm": Case(
        weight_norm, {"v": normal(5, 6), "g": normal(1, 6)}, (ROWS,), {"['v']": "formed"}
    ),
    "recurrence": Case(
        recurrence, {"w": normal(4, 4), "u": normal(5, 4)}, (ROWS,), {"['w']": "tied"}
    ),
    "fused_qkv": Case(
        lambda p, x: (lambda q, k, v: jax.nn.softmax((x @ q) @ (x @ k).T) @ (x @ v))(
            *jnp.split(p["w"], 3, axis=1)
        ).sum(),
        {"w": normal(5, 9)},
        (ROWS,),
        ONE,
    ),
    "overlapping_slices": Case(
        lambda p, x: jnp.sin(x @ p["w"][:, :4]).sum() * jnp.cos(x @ p["w"][:, 2:]).sum(),
        {"w": normal(5, 6)},
        (ROWS,),
        {"['w']": "formed"},
    ),
    "stacked_by_index": Case(
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"][0]) @ p["w"][1]).sum(),
        {"w": normal(2, 5, 5)},
        (ROWS,),
        ONE,
    ),
    "flat_vector": Case(
        lambda p, x: jnp.sin(jnp.tanh(x @ p[:15].reshape(5, 3)) @ p[15:]),
        normal(18),
        (X,),
        {"params": "fast"},
    ),
    "cond": Case(
        lambda p, x: jax.lax.cond(
            x[0] > 0, lambda: (x @ p["w"]).sum(), lambda: jnp.sin(x @ p["w"]).sum()
        ),
        {"w": normal(5, 3)},
        (X,),
        {"['w']": "formed"},
    ),
    "custom_gradient": Case(
        lambda p, x: jax.nn.relu(x @ p["w"]).sum() + jax.nn.relu(p["w"]).sum(),
        {"w": normal(5, 3)},
        (X,),
        {"['w']": "formed"},
    ),
    "params_alone": Case(
        lambda p, x: (p["w"] ** 2).sum() + 0 * x.sum(),
        {"w": normal(5, 3)},
        (X,),
        {"['w']": "formed"},
    ),
    "unused": Case(
        lambda p, x: jnp.sin(x @ p["w"]),
        {"w": normal(5), "v": normal(2)},
        (X,),
        {"['v']": "unused"},
    ),
    "clipped_rows": Case(
        lambda p, i: jnp.tanh(jnp.take(p["w"], i, axis=0, mode="clip")).sum(),
        {"w": normal(5, 3)},
        (np.array([1, 1, 9, 2]),),
        ONE,
    ),
    "filled_rows": Case(
        lambda p, i: jnp.tanh(p["w"].at[i].get(mode="fill", fill_value=0.0)).sum(),
        {"w": normal(5, 3)},
        (np.array([1, 1, 9, 2]),),
        ONE,
    ),
}


def reference(f, params, *args):
    """Value, and squared norm of the gradient by leaf."""
    value, gradient = jax.value_and_grad(f)(params, *args)
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    return value, {jax.tree_util.keystr(p) or "params": (g**2).sum() for p, g in leaves}


def cast(tree, dtype):
    """Floating leaves in a type, indices in theirs."""

    def one(a):
        return jnp.asarray(a, dtype if jnp.issubdtype(a.dtype, jnp.floating) else np.int32)

    return jax.tree.map(one, tree)


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


@pytest.mark.parametrize("name", ["mlp_rows", "decoder_scan_remat", "cnn", "moe", "square_twice"])
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
    jacobian = jax.vmap(jax.jacrev(f_classes), (None, 0))(params, x)
    flat = jnp.concatenate([j.reshape(7, 6, -1) for j in jax.tree.leaves(jacobian)], axis=-1)
    gram = jnp.einsum("nkp,nlp->nkl", flat, flat)
    options = {"in_axes": 0, "batch_size": batch_size}
    values, got = value_and_grad_gram(f_classes, **options)(params, x)
    np.testing.assert_allclose(got, gram, rtol=1e-11, atol=1e-18)
    np.testing.assert_allclose(values, jax.vmap(f_classes, (None, 0))(params, x), rtol=1e-12)
    _, norms = value_and_sq_grad_norms(f_classes, **options)(params, x)
    np.testing.assert_allclose(norms, jnp.diagonal(gram, axis1=1, axis2=2), rtol=1e-11)


@pytest.mark.parametrize("name", ["decoder_scan", "decoder_remat", "cnn", "moe", "square_twice"])
def test_products_where_gradients_are_formed(name, x64):
    case = CASES[name]
    params, args = cast(case.params, jnp.float64), cast(case.args, jnp.float64)

    def two(p, *args):
        value = case.f(p, *args)
        return jnp.stack([jnp.sin(value), value**2])

    jacobian = jax.tree.leaves(jax.jacrev(two)(params, *args))
    flat = jnp.concatenate([j.reshape(2, -1) for j in jacobian], axis=-1)
    _, gram = value_and_grad_gram(two)(params, *args)
    np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-11)


def test_composes_with_jit_vmap_map_and_checkpoint(x64):
    params, x = cast(MLP, jnp.float64), jnp.asarray(normal(6, 5))
    gradients = jax.vmap(jax.grad(mlp), (None, 0))(params, x)
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
        (lambda p, x: x @ p["w"], {"w": normal(5), "name": "dense"}, {}, r"\['name'\] is str"),
        (lambda p, x: jnp.abs(x @ p), normal(5) + 1j, {}, "params must be real"),
        (lambda p, x: x @ p, normal(5), {"wrt": "head"}, "wrt keeps no floating-point leaf"),
        (
            lambda p, x: x @ p,
            normal(5),
            {"in_axes": (0, 0)},
            "in_axes must have an entry for each of 1",
        ),
    ],
)
def test_bad_input(f, params, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        value_and_sq_grad_norm(f, **options)(params, X)


def test_batch_axes_must_match():
    f = lambda p, x, y: x @ p + y  # noqa: E731
    with pytest.raises(ValueError, match=r"one length along in_axes 0, got \[3, 4\]"):
        value_and_sq_grad_norm(f, in_axes=0)(normal(5), ROWS, normal(3))


def test_a_while_loop_over_parameters_is_refused():
    def f(p, x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + x @ p, x).sum()

    with pytest.raises(NotImplementedError, match="while loop"):
        value_and_sq_grad_norm(f)(normal(5, 5), X)


def test_explain_says_what_is_stored():
    case = CASES["cond"]
    report = explain(case.f, case.params, *case.args)
    assert {leaf.path: leaf.stored for leaf in report.leaves} == {"['w']": 15}
    assert "formed" in str(report)


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
def test_group_grams_are_those_of_the_jacobian(likelihood, x64):
    model = Model(3, 1 if likelihood == "bernoulli" else 3, likelihood, width=4, depth=2)
    theta, x = jnp.asarray(normal(model.num_params)), jnp.asarray(normal(6, 3))
    jacobian = output_jacobian(model.apply, theta, x)
    outputs, grams = group_grams(model, theta, x, batch_size=4)
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
"""


def test_examples_sharded_over_devices():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
