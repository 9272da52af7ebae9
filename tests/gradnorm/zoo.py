"""Functions with all kinds of uses of their parameters, for the tests of the gradient norms."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

DNUMS = ("NHWC", "HWIO", "NHWC")


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


def encoder(p, ids):
    """Masked-token log probability; positions see all others, embedding and head are tied."""
    x = p["embed"][ids] + p["position"]
    q, k, v = (x @ p[name] for name in ("q", "k", "v"))
    x = x + jax.nn.softmax(q @ k.T / 3) @ v
    x = x - x.mean(-1, keepdims=True)
    x = p["shift"] + p["scale"] * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return jax.nn.log_softmax((x @ p["embed"].T)[2] + p["bias"])[4]


def shared_layers(p, x):
    """The same layer six times, as a constant of a scan."""
    layer = lambda x, _: (x + jnp.tanh(jnp.tanh(x @ p["up"]) @ p["down"]), None)  # noqa: E731
    return jnp.sin(jax.lax.scan(jax.checkpoint(layer), x, None, length=6)[0]).sum()


def recurrent_stack(p, x):
    """Layers, scanned over, each of them a recurrence over its rows."""

    def layer(x, w):
        step = lambda h, xi: (jnp.tanh(h @ w["w"] + xi @ w["u"]),) * 2  # noqa: E731
        return jax.lax.scan(step, jnp.zeros(5, x.dtype), x)[1], None

    return jax.lax.scan(layer, x, p)[0].sum()


def printed(p, x):
    jax.debug.callback(lambda w: None, p["w"])
    jax.debug.callback(lambda w, x: None, p["w"], x)
    return jnp.sin(x @ p["w"]).sum()


@jax.custom_vjp
def scaled_product(x, w):
    """x w in a Pallas kernel, whose stated gradient for w is three times the true one."""

    def kernel(x_ref, w_ref, out_ref):
        out_ref[...] = x_ref[...] @ w_ref[...]

    shape = jax.ShapeDtypeStruct((x.shape[0], w.shape[1]), x.dtype)
    return pl.pallas_call(kernel, out_shape=shape, interpret=True)(x, w)


scaled_product.defvjp(
    lambda x, w: (scaled_product(x, w), (x, w)),
    lambda kept, g: (g @ kept[1].T, 3 * kept[0].T @ g),
)


def convolution(dnums, strides, padding, **options):
    """Sine of a convolution, summed with different weights so that no cotangents are alike."""

    def f(p, x):
        y = jax.lax.conv_general_dilated(
            x[None], p["k"], strides, padding, dimension_numbers=dnums, **options
        )
        return jnp.sin(y + jnp.arange(y.size, dtype=y.dtype).reshape(y.shape)).sum()

    return f


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
    "moe_routed": Case(
        lambda p, x, i: jnp.sin(jnp.einsum("td,tdf->tf", x, p["up"][i])).sum(),
        {"up": normal(3, 5, 4)},
        (ROWS, np.array([2, 0, 2, 2])),
        {"['up']": "fast"},
    ),
    "moe_ragged": Case(
        lambda p, x, sizes: jnp.sin(jax.lax.ragged_dot(x, p["up"], sizes)).sum(),
        {"up": normal(3, 5, 4)},
        (ROWS, np.array([1, 0, 3])),
        {"['up']": "formed"},
    ),
    "frozen": Case(
        lambda p, x: jnp.sin(jnp.tanh(x @ jax.lax.stop_gradient(p["w"])) @ p["v"]).sum(),
        {"w": normal(5, 4), "v": normal(4, 3)},
        (ROWS,),
        {"['v']": "fast"},
    ),
    "constant_data": Case(
        lambda p, x: jnp.sin((jnp.ones((2, 5)) @ p["w"]) * (x @ p["w"])).sum(),
        {"w": normal(5, 4)},
        (ROWS[:2],),
        {"['w']": "tied"},
    ),
    "learned_positions": Case(
        lambda p, x: jnp.sin(x @ p["w"] + p["position"][jnp.arange(4)]).sum(),
        {"w": normal(5, 4), "position": normal(6, 4)},
        (ROWS,),
        {"['w']": "fast", "['position']": "fast"},
    ),
    "many_tokens": Case(
        lambda p, i: jnp.tanh(jnp.tanh(p["w"][i]).cumsum(0)).sum(),
        {"w": normal(5, 3)},
        (np.random.default_rng(0).integers(0, 4, 300),),
        ONE,
    ),
    "printed": Case(printed, {"w": normal(5, 4)}, (ROWS,), ONE),
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
    "encoder": Case(
        encoder,
        {
            "embed": normal(20, 8),
            "position": normal(6, 8),
            "q": normal(8, 8),
            "k": normal(8, 8, seed=1),
            "v": normal(8, 8, seed=2),
            "scale": normal(8),
            "shift": normal(8),
            "bias": normal(20),
        },
        TOKENS,
        {"['embed']": "tied", "['q']": "fast", "['position']": "formed"},
    ),
    "shared_layers": Case(
        shared_layers,
        {"up": normal(20, 30), "down": normal(30, 20)},
        (normal(2, 20),),
        {"['up']": "tied", "['down']": "tied"},
    ),
    "recurrent_stack": Case(
        recurrent_stack,
        {"w": normal(3, 5, 5), "u": normal(3, 5, 5, seed=1)},
        (ROWS,),
        {"['w']": "formed"},
    ),
    "custom_vjp_pallas": Case(
        lambda p, x: jnp.sin(scaled_product(x, p["w"])).sum(),
        {"w": normal(5, 3)},
        (ROWS,),
        {"['w']": "formed"},
    ),
    "conv_strided": Case(
        convolution(DNUMS, (2, 1), ((1, 0), (2, 2)), rhs_dilation=(1, 2)),
        {"k": normal(3, 2, 2, 4)},
        (normal(7, 6, 2),),
        {"['k']": "fast"},
    ),
    "conv_grouped": Case(
        convolution(DNUMS, (1, 1), "SAME", feature_group_count=3),
        {"k": normal(2, 2, 2, 9)},
        (normal(5, 5, 6),),
        {"['k']": "fast"},
    ),
    "conv_depthwise_gram": Case(
        convolution(DNUMS, (4, 4), "VALID", feature_group_count=4),
        {"k": normal(4, 4, 1, 8)},
        (normal(8, 4, 4),),
        {"['k']": "fast"},
    ),
    "conv_channels_first_1d": Case(
        convolution(("NCH", "OIH", "NCH"), (1,), "VALID"),
        {"k": normal(4, 3, 5)},
        (normal(3, 9),),
        {"['k']": "fast"},
    ),
    "conv_transposed": Case(
        convolution(DNUMS, (1, 1), ((1, 2), (1, 2)), lhs_dilation=(2, 2)),
        {"k": normal(3, 3, 2, 4)},
        (normal(4, 4, 2),),
        {"['k']": "formed"},
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
