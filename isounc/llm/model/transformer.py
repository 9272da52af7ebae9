"""A decoder's arithmetic as functions of its weights, layer by layer.

Each function here is a compiled program of its own, and a block is the same program for every
layer: called outside of other compiled functions, they compile once for a shape, whatever the number
of layers. (A scan over stacked weights would compile as fast, but copies every layer's weights out
of the stack in each pass.) Inside of a compiled function they become part of it.

Axes: B rows, T tokens, W width, V tokens of the vocabulary, heads (of queries), kv_heads (of keys
and values), slots of the cache (or keys, without one).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from isounc.llm.model.attention import Rotation, at_least_float32, attention, rotate, rotation_at
from isounc.llm.model.config import DecoderConfig

PADDING = -1
"""Position of padding, which nothing attends to."""
SHARED = -1
"""Branch of tokens that every branch attends to."""
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}

BlockWeights = dict[str, Array]
"""Parameters of a block, by the names of `DecoderConfig.shapes`."""


class Weights(NamedTuple):
    """Parameters of a decoder."""

    embed: Float[Array, "V W"]
    """Embedding."""
    layers: tuple[BlockWeights, ...]
    """Blocks, the first one first."""
    norm: Float[Array, " W"]
    """Scale of the last norm."""
    head: Float[Array, "W V"] | None
    """Output head; None if it is the embedding."""


@runtime_checkable
class Network(Protocol):
    """A decoder as its description and its parameters: a `Decoder`, or a `LanguageModel`."""

    @property
    def config(self) -> DecoderConfig:
        """Description of the decoder."""
        ...

    def weights(self) -> Weights:
        """All parameters, as arrays."""
        ...


class Cache(NamedTuple):
    """Keys and values of tokens that were read before."""

    keys: tuple[Float[Array, "B kv_heads slots head_width"], ...]
    """By layer, rotated to their positions."""
    values: tuple[Float[Array, "B kv_heads slots head_width"], ...]
    """By layer."""
    positions: Int[Array, "B slots"]
    """Position of each slot's token; -1 if there is none."""
    branches: Int[Array, "B slots"]
    """Continuation that a slot belongs to; -1 is all of them (see `Decoder.extend`)."""
    used: Int[Array, ""]
    """Slots written so far, the same in every row."""

    def grown(self, num_slots: int) -> Cache:
        """The same with room for more tokens."""
        return Cache(
            tuple(_padded(keys, 2, num_slots) for keys in self.keys),
            tuple(_padded(values, 2, num_slots) for values in self.values),
            _padded(self.positions, 1, num_slots, PADDING),
            _padded(self.branches, 1, num_slots, SHARED),
            self.used,
        )

    def repeated(self, num_rows: int) -> Cache:
        """The one row of this cache, `num_rows` times."""
        return jax.tree.map(lambda a: _repeated(a, num_rows) if a.ndim else a, self)


@functools.partial(jax.jit, static_argnames=("config", "num_rows", "num_slots", "dtype"))
def empty_cache(config: DecoderConfig, num_rows: int, num_slots: int, dtype: jnp.dtype) -> Cache:
    """A cache without tokens; no two of its arrays share their memory."""
    shape = (num_rows, config.num_kv_heads, num_slots, config.head_width)
    keys, values = (
        tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)) for _ in range(2)
    )
    nothing = jnp.full((num_rows, num_slots), PADDING)
    return Cache(keys, values, nothing, jnp.full_like(nothing, SHARED), jnp.zeros((), int))


@functools.partial(jax.jit, static_argnames=("axis", "num", "fill"))
def _padded(array: Array, axis: int, num: int, fill: int = 0) -> Array:
    widths = [(0, num if i == axis else 0) for i in range(array.ndim)]
    return jnp.pad(array, widths, constant_values=fill)


@functools.partial(jax.jit, static_argnames="num_rows")
def _repeated(array: Array, num_rows: int) -> Array:
    return jnp.broadcast_to(array, (num_rows, *array.shape[1:]))


class Inputs(NamedTuple):
    """What the blocks are given."""

    x: Float[Array, "B T W"]
    """The residual stream before the first block."""
    rotations: dict[bool, Rotation]
    """Rotations of keys and queries, in layers without and with a window of their own."""
    masks: dict[int, Bool[Array, "#B T slots"]]
    """Which keys each query attends to, by the layer's window."""

    def of_layer(
        self, config: DecoderConfig, layer: int
    ) -> tuple[Rotation, Bool[Array, "#B T slots"]]:
        """Rotation and mask of a layer."""
        window = config.window(layer)
        is_local = config.local_rotary is not None and window > 0
        return self.rotations[is_local], self.masks[window]


@functools.partial(jax.jit, static_argnames="config")
def inputs(
    config: DecoderConfig,
    embed: Float[Array, "V W"],
    tokens: Int[Array, "B T"],
    positions: Int[Array, "#B T"],
    branches: Int[Array, "B T"] | None = None,
) -> Inputs:
    """What the blocks are given for rows of tokens; branches as in `extend`."""
    return _inputs(config, embed, tokens, positions, branches, positions, branches)


def _inputs(
    config: DecoderConfig,
    embed: Float[Array, "V W"],
    tokens: Int[Array, "B T"],
    positions: Int[Array, "#B T"],
    branches: Int[Array, "B T"] | None,
    key_positions: Int[Array, "#B slots"],
    key_branches: Int[Array, "B slots"] | None,
) -> Inputs:
    rotations = {False: rotation_at(config.rotary, positions)}
    if config.local_rotary is not None:
        rotations[True] = rotation_at(config.local_rotary, positions)
    back = positions[:, :, None] - key_positions[:, None, :]
    seen = (back >= 0) & (key_positions[:, None, :] != PADDING)
    if branches is not None and key_branches is not None:
        keys = key_branches[:, None, :]
        seen &= (keys == SHARED) | (keys == branches[:, :, None])
    windows = {config.window(i) for i in range(config.num_layers)}
    masks = {w: seen & (back < w) if w else seen for w in windows}
    return Inputs(embedded(config, embed, tokens), rotations, masks)


def embedded(
    config: DecoderConfig, embed: Float[Array, "V W"], tokens: Int[Array, "*axes"]
) -> Float[Array, "*axes W"]:
    """Embeddings of tokens."""
    x = embed[tokens]
    scale = config.embed_scale
    return x if scale == 1.0 else x * jnp.asarray(scale, x.dtype)


def _block(
    config: DecoderConfig,
    weights: BlockWeights,
    x: Float[Array, "B T W"],
    rotation: Rotation,
    mask: Bool[Array, "#B T slots"],
    past: tuple[Array, Array] | None = None,
    used: Int[Array, ""] | None = None,
) -> tuple[Float[Array, "B T W"], tuple[Array, Array]]:
    """The residual stream after a block, and the keys and values that were attended to.

    These, of shape (B, kv_heads, slots, head_width), are the new ones, put into those of `past`
    behind the first `used`.
    """

    def norm(name: str, x: Float[Array, "*axes N"]) -> Float[Array, "*axes N"]:
        return rms_norm(x, weights[name], config.norm_eps)

    y = norm("attention_norm_in", x) if config.norm_in else x
    q, keys, values = _heads(config, weights, y, rotation)
    if past is not None and used is not None:
        put = jax.lax.dynamic_update_slice_in_dim
        keys = put(past[0], keys.astype(past[0].dtype), used, axis=2)
        values = put(past[1], values.astype(past[1].dtype), used, axis=2)
    y = attention(q, keys, values, mask, config) @ weights["out"]
    if config.out_bias:
        y = y + _broadcast(weights["out_bias"], y)
    x = x + (norm("attention_norm_out", y) if config.norm_out else y)
    y = norm("mlp_norm_in", x) if config.norm_in else x
    gate = _ACTIVATIONS[config.activation](y @ weights["gate"])
    y = (gate * (y @ weights["up"])) @ weights["down"]
    x = x + (norm("mlp_norm_out", y) if config.norm_out else y)
    return x, (keys, values)


block = functools.partial(jax.jit, static_argnames="config")(_block)
"""`_block`, compiled."""
_block_in_place = functools.partial(jax.jit, static_argnames="config", donate_argnames="past")(
    _block
)
"""The same in the memory of `past`."""


def _heads(
    config: DecoderConfig,
    weights: BlockWeights,
    y: Float[Array, "B T W"],
    rotation: Rotation,
) -> tuple[
    Float[Array, "B heads T head_width"],
    Float[Array, "B kv_heads T head_width"],
    Float[Array, "B kv_heads T head_width"],
]:
    """Queries, keys and values."""
    c = config
    projections = []
    for name, heads in (("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads)):
        z = y @ weights[name]
        if c.qkv_bias:
            z = z + _broadcast(weights[f"{name}_bias"], z)
        if c.qk_norm == "projection" and name != "v":
            z = rms_norm(z, weights[f"{name}_norm"], c.norm_eps)
        z = z.reshape(*z.shape[:2], heads, c.head_width)
        if c.qk_norm == "head" and name != "v":
            z = rms_norm(z, weights[f"{name}_norm"], c.norm_eps)
        projections.append(jnp.swapaxes(z if name == "v" else rotate(z, rotation), 1, 2))
    queries, keys, values = projections
    return queries, keys, values


def hidden(
    config: DecoderConfig,
    weights: Weights,
    tokens: Int[Array | np.ndarray, "B T"],
    positions: Int[Array | np.ndarray, "#B T"],
    branches: Int[Array | np.ndarray, "B T"] | None = None,
) -> Float[Array, "B T W"]:
    """States after the last norm."""
    given = inputs(config, weights.embed, tokens, positions, branches)
    x = given.x
    for i, layer in enumerate(weights.layers):
        x, _ = block(config, layer, x, *given.of_layer(config, i))
    return final_norm(config, weights.norm, x)


def extend(
    config: DecoderConfig,
    weights: Weights,
    tokens: Int[Array | np.ndarray, "B T"],
    positions: Int[Array | np.ndarray, "#B T"],
    cache: Cache,
    *,
    branches: Int[Array | np.ndarray, "B T"] | None = None,
    in_place: bool = False,
) -> tuple[Float[Array, "B T W"], Cache]:
    """The residual stream after the last block, and the cache; see `Decoder.extend`.

    With `in_place` the new cache takes the memory of the old one, which can be used no more.
    """
    given, all_positions, all_branches, used = _inputs_with_past(
        config, weights.embed, tokens, positions, branches,
        cache.positions, cache.branches, cache.used,
    )  # fmt: skip
    apply = _block_in_place if in_place else block
    x, keys, values = given.x, [], []
    for i, layer in enumerate(weights.layers):
        past = cache.keys[i], cache.values[i]
        x, (layer_keys, layer_values) = apply(
            config, layer, x, *given.of_layer(config, i), past, cache.used
        )
        keys.append(layer_keys)
        values.append(layer_values)
    return x, Cache(tuple(keys), tuple(values), all_positions, all_branches, used)


@functools.partial(jax.jit, static_argnames="config")
def _inputs_with_past(
    config: DecoderConfig,
    embed: Float[Array, "V W"],
    tokens: Int[Array, "B T"],
    positions: Int[Array, "#B T"],
    branches: Int[Array, "B T"] | None,
    past_positions: Int[Array, "B slots"],
    past_branches: Int[Array, "B slots"],
    used: Int[Array, ""],
) -> tuple[Inputs, Int[Array, "B slots"], Int[Array, "B slots"], Int[Array, ""]]:
    """What the blocks are given, and the positions, branches and number of the cache's tokens."""
    new = jnp.full_like(positions, SHARED) if branches is None else branches
    put = jax.lax.dynamic_update_slice_in_dim
    all_positions = put(past_positions, positions.astype(past_positions.dtype), used, axis=1)
    all_branches = put(past_branches, new.astype(past_branches.dtype), used, axis=1)
    given = _inputs(config, embed, tokens, positions, branches, all_positions, all_branches)
    return given, all_positions, all_branches, used + tokens.shape[1]


@functools.partial(jax.jit, static_argnames="config")
def final_norm(
    config: DecoderConfig, scale: Float[Array, " W"], x: Float[Array, "*axes W"]
) -> Float[Array, "*axes W"]:
    """States after the last norm."""
    return rms_norm(x, scale, config.norm_eps)


@jax.jit
def logits_of(
    states: Float[Array, "*axes W"],
    embed: Float[Array, "_ _"],
    head: Float[Array, "W V"] | None,
) -> Float[Array, "*axes V"]:
    """Logits of states, float32; without a head the embedding is the head."""
    matrix = embed.T if head is None else head
    return jnp.matmul(
        states.astype(matrix.dtype),
        matrix,
        preferred_element_type=at_least_float32(matrix.dtype),
    )


def _broadcast(
    vector: Float[Array, " N"], like: Float[Array, "*axes N"]
) -> Float[Array, "*ones N"]:
    """A vector with leading axes of 1 and the type of `like`."""
    return vector.astype(like.dtype).reshape(*(1,) * (like.ndim - 1), -1)


def rms_norm(
    x: Float[Array, "*axes N"], scale: Float[Array, " N"], eps: float
) -> Float[Array, "*axes N"]:
    """RMS norm, x / sqrt(mean(x^2) + eps) * scale.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467).
    """
    y = x.astype(at_least_float32(x.dtype))
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * _broadcast(scale, y)).astype(x.dtype)
