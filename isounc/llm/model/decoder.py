"""A decoder-only transformer of the Llama family in Flax NNX, and its cache of keys and values.

Every weight matrix is stored as (inputs, outputs) and used once, as `x @ W`; a tied embedding is
one parameter used twice. `isounc.gradnorm` therefore forms gradients of biases and norms only.
Layers are a list and not a scan: see `Decoder`.

Axes: B rows, T tokens, W width, V tokens of the vocabulary, heads (of queries), kv_heads (of keys
and values), slots of the cache (or keys, without one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from isounc.checks import check_choice
from isounc.llm.model.attention import Rotation, at_least_float32, attention, rotate, rotation_at
from isounc.llm.model.config import DecoderConfig

DTYPES = ("float32", "bfloat16")
PADDING = -1
"""Position of padding, which nothing attends to."""
SHARED = -1
"""Branch of tokens that every branch attends to."""
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


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

        def padded(array: Array, axis: int, fill: int = 0) -> Array:
            widths = [(0, num_slots if i == axis else 0) for i in range(array.ndim)]
            return jnp.pad(array, widths, constant_values=fill)

        return Cache(
            tuple(padded(keys, 2) for keys in self.keys),
            tuple(padded(values, 2) for values in self.values),
            padded(self.positions, 1, PADDING),
            padded(self.branches, 1, SHARED),
            self.used,
        )

    def repeated(self, num_rows: int) -> Cache:
        """The one row of this cache, `num_rows` times."""
        return jax.tree.map(
            lambda a: jnp.broadcast_to(a, (num_rows, *a.shape[1:])) if a.ndim else a, self
        )


class _Past(NamedTuple):
    """A layer's part of the cache."""

    keys: Float[Array, "B kv_heads slots head_width"]
    values: Float[Array, "B kv_heads slots head_width"]
    used: Int[Array, ""]
    """Slots written so far."""


class Block(nnx.Module):
    """Attention and gated MLP, each added to the residual stream."""

    def __init__(self, config: DecoderConfig, weights: Mapping[str, Array]):
        self.config = config
        for name, value in weights.items():
            setattr(self, name, nnx.Param(value))

    def _weight(self, name: str) -> Array:
        return getattr(self, name)[...]

    def _norm(self, name: str, x: Float[Array, "*axes N"]) -> Float[Array, "*axes N"]:
        return _rms_norm(x, self._weight(name), self.config.norm_eps)

    def __call__(
        self,
        x: Float[Array, "B T W"],
        rotation: Rotation,
        mask: Bool[Array, "#B T slots"],
        past: _Past | None = None,
    ) -> tuple[
        Float[Array, "B T W"],
        tuple[
            Float[Array, "B kv_heads slots head_width"], Float[Array, "B kv_heads slots head_width"]
        ],
    ]:
        """The residual stream after this block, and the keys and values that were attended to.

        These are the new ones, put into those of `past`.
        """
        y = self._norm("attention_norm_in", x) if self.config.norm_in else x
        q, keys, values = self._heads(y, rotation)
        if past is not None:
            put = jax.lax.dynamic_update_slice_in_dim
            keys = put(past.keys, keys.astype(past.keys.dtype), past.used, axis=2)
            values = put(past.values, values.astype(past.values.dtype), past.used, axis=2)
        y = attention(q, keys, values, mask, self.config) @ self._weight("out")
        if self.config.out_bias:
            y = y + _broadcast(self._weight("out_bias"), y)
        x = x + (self._norm("attention_norm_out", y) if self.config.norm_out else y)
        y = self._norm("mlp_norm_in", x) if self.config.norm_in else x
        gate = _ACTIVATIONS[self.config.activation](y @ self._weight("gate"))
        y = (gate * (y @ self._weight("up"))) @ self._weight("down")
        x = x + (self._norm("mlp_norm_out", y) if self.config.norm_out else y)
        return x, (keys, values)

    def _heads(
        self, y: Float[Array, "B T W"], rotation: Rotation
    ) -> tuple[
        Float[Array, "B heads T head_width"],
        Float[Array, "B kv_heads T head_width"],
        Float[Array, "B kv_heads T head_width"],
    ]:
        """Queries, keys and values."""
        c = self.config
        projections = []
        for name, heads in (("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads)):
            z = y @ self._weight(name)
            if c.qkv_bias:
                z = z + _broadcast(self._weight(f"{name}_bias"), z)
            if c.qk_norm == "projection" and name != "v":
                z = self._norm(f"{name}_norm", z)
            z = z.reshape(*z.shape[:2], heads, c.head_width)
            if c.qk_norm == "head" and name != "v":
                z = self._norm(f"{name}_norm", z)
            projections.append(jnp.swapaxes(z if name == "v" else rotate(z, rotation), 1, 2))
        queries, keys, values = projections
        return queries, keys, values


class Decoder(nnx.Module):
    """A decoder-only transformer: token ids to logits of the next token.

    Parameters come from `weights`, by the names and shapes of `DecoderConfig.shapes`. Norms, scores
    and softmax of attention, rotary angles and logits are computed in float32 whatever the type of
    the weights. Blocks are a list, since a scan over stacked weights copies a slice of every stack
    at each step.

    Raises
    ------
    ValueError
        A weight is missing, unknown, or of another shape.
    """

    def __init__(self, config: DecoderConfig, weights: Mapping[str, Array]):
        _check_weights(config, weights)
        self.config = config
        self.embed = nnx.Param(weights["embed"])
        self.layers = nnx.List()
        for i in range(config.num_layers):
            prefix = f"layers.{i}."
            block = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
            self.layers.append(Block(config, block))
        self.norm = nnx.Param(weights["norm"])
        if not config.tied:
            self.unembed = nnx.Param(weights["head"])

    @classmethod
    def random(cls, config: DecoderConfig, seed: int = 0, *, dtype: str = "float32") -> Decoder:
        """A decoder with normal weights of variance 1/fan-in, norms of 1 and biases of 0."""
        check_choice("dtype", dtype, DTYPES)
        rng = np.random.default_rng(seed)
        weights = {}
        for name, shape in config.shapes().items():
            if len(shape) == 2:
                fan_in = config.width if name == "embed" else shape[0]
                drawn = rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(fan_in))
                weights[name] = jnp.asarray(drawn, dtype)
            else:
                fill = np.zeros if name.endswith("bias") else np.ones
                weights[name] = jnp.asarray(fill(shape, np.float32))
        return cls(config, weights)

    def __call__(
        self, tokens: Int[Array, "B T"], *, positions: Int[Array, "B T"] | None = None
    ) -> Float[Array, "B T V"]:
        """Logits of the token after each position, float32.

        Tokens to the right of a row's end change nothing before it. `positions` are 0, 1, ... in
        each row unless given; -1 marks padding anywhere.
        """
        return self.head(self.hidden(tokens, positions=positions))

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        branches: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T W"]:
        """States after the last norm, of which `head` makes logits; `branches` as in `extend`."""
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        rotations, masks = self._rotations(positions), self._masks(positions, positions)
        if branches is not None:
            masks = _within(masks, branches, branches)
        x = self._embedded(tokens)
        for i, layer in enumerate(self.layers):
            x, _ = layer(x, rotations[self._is_local(i)], masks[self.config.window(i)])
        return _rms_norm(x, self.norm[...], self.config.norm_eps)

    def head(self, states: Float[Array, "*axes W"]) -> Float[Array, "*axes V"]:
        """Logits of states, float32.

        Give only the states whose logits are needed: a large vocabulary takes most of the time.
        """
        matrix = self.embed[...].T if self.config.tied else self.unembed[...]
        return jnp.matmul(
            states.astype(matrix.dtype),
            matrix,
            preferred_element_type=at_least_float32(matrix.dtype),
        )

    def empty_cache(self, num_rows: int, num_slots: int) -> Cache:
        """A cache without tokens."""
        c = self.config
        shape = (num_rows, c.num_kv_heads, num_slots, c.head_width)
        zeros = tuple(jnp.zeros(shape, self.embed[...].dtype) for _ in range(c.num_layers))
        nothing = jnp.full((num_rows, num_slots), PADDING)
        return Cache(zeros, zeros, nothing, jnp.full_like(nothing, SHARED), jnp.zeros((), int))

    def extend(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        cache: Cache,
        *,
        branches: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T W"], Cache]:
        """States of tokens that follow those in the cache, and the cache with them added.

        A token attends to the tokens at its own position or before, in the cache and among
        `tokens`. Positions of -1 are padding. With `branches`, a row holds several continuations of
        one beginning: a token attends to its own branch and to the shared one (-1), so that the
        beginning is kept and read once for all continuations.

        The cache must have room for T more tokens (`Cache.grown`). Inside of jit this cannot be
        checked.
        """
        new = jnp.full_like(positions, SHARED) if branches is None else branches
        put = jax.lax.dynamic_update_slice_in_dim
        all_positions = put(
            cache.positions, positions.astype(cache.positions.dtype), cache.used, axis=1
        )
        all_branches = put(cache.branches, new.astype(cache.branches.dtype), cache.used, axis=1)
        rotations, masks = self._rotations(positions), self._masks(positions, all_positions)
        if branches is not None:
            masks = _within(masks, new, all_branches)
        x = self._embedded(tokens)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            past = _Past(cache.keys[i], cache.values[i], cache.used)
            rotation, mask = rotations[self._is_local(i)], masks[self.config.window(i)]
            x, (layer_keys, layer_values) = layer(x, rotation, mask, past)
            keys.append(layer_keys)
            values.append(layer_values)
        states = _rms_norm(x, self.norm[...], self.config.norm_eps)
        used = cache.used + tokens.shape[1]
        return states, Cache(tuple(keys), tuple(values), all_positions, all_branches, used)

    def _embedded(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T W"]:
        x = self.embed[...][tokens]
        scale = self.config.embed_scale
        return x if scale == 1.0 else x * jnp.asarray(scale, x.dtype)

    def _is_local(self, layer: int) -> bool:
        """Whether a layer has the rotary embedding of layers with a window."""
        return self.config.local_rotary is not None and self.config.window(layer) > 0

    def _rotations(self, positions: Int[Array, "B T"]) -> dict[bool, Rotation]:
        """Rotations of keys and queries, in layers without and with a window of their own."""
        rotations = {False: rotation_at(self.config.rotary, positions)}
        if self.config.local_rotary is not None:
            rotations[True] = rotation_at(self.config.local_rotary, positions)
        return rotations

    def _masks(
        self, queries: Int[Array, "B T"], keys: Int[Array, "B slots"]
    ) -> dict[int, Bool[Array, "B T slots"]]:
        """Which keys each query attends to, from their positions, by the layer's window."""
        back = queries[:, :, None] - keys[:, None, :]
        seen = (back >= 0) & (keys[:, None, :] != PADDING)
        windows = {self.config.window(i) for i in range(self.config.num_layers)}
        return {w: seen & (back < w) if w else seen for w in windows}


def _within(
    masks: Mapping[int, Bool[Array, "B T slots"]],
    queries: Int[Array, "B T"],
    keys: Int[Array, "B slots"],
) -> dict[int, Bool[Array, "B T slots"]]:
    """Masks by window, without the keys of other branches."""
    same_branch = (keys[:, None, :] == SHARED) | (keys[:, None, :] == queries[:, :, None])
    return {window: mask & same_branch for window, mask in masks.items()}


def _check_weights(config: DecoderConfig, weights: Mapping[str, Any]) -> None:
    shapes = config.shapes()
    for verb, names in (
        ("must have", [n for n in shapes if n not in weights]),
        ("must not have", [n for n in weights if n not in shapes]),
    ):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ValueError(
                f"weights of this {config.architecture} decoder {verb} {', '.join(names[:4])}{more}"
            )
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(
                f"weights must fit the configuration: {name} must have shape {shape}, got "
                f"{tuple(weights[name].shape)}"
            )


def _broadcast(
    vector: Float[Array, " N"], like: Float[Array, "*axes N"]
) -> Float[Array, "*ones N"]:
    """A vector with leading axes of 1 and the type of `like`."""
    return vector.astype(like.dtype).reshape(*(1,) * (like.ndim - 1), -1)


def _rms_norm(
    x: Float[Array, "*axes N"], scale: Float[Array, " N"], eps: float
) -> Float[Array, "*axes N"]:
    """RMS norm, x / sqrt(mean(x^2) + eps) * scale.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467).
    """
    y = x.astype(at_least_float32(x.dtype))
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * _broadcast(scale, y)).astype(x.dtype)
