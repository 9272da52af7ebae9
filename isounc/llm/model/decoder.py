"""A decoder-only transformer of the Llama family in Flax NNX, and its cache of keys and values.

Every weight matrix is stored as (inputs, outputs) and used once, as ``x @ W``; a tied embedding is one parameter used
twice. `isounc.gradnorm` therefore forms gradients of biases and norms only. Layers are a list and not a scan: see
`Decoder`.
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
from isounc.llm.model.config import DecoderConfig, Rotary

DTYPES = ("float32", "bfloat16")
PADDING = -1
"""Position of what nothing attends to."""
SHARED = -1
"""Branch of what every branch attends to."""
_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class Cache(NamedTuple):
    """Keys and values of tokens that were read before, in S slots."""

    keys: tuple[Float[Array, "B G S K"], ...]
    """By layer, turned to their positions; G heads of K dimensions."""
    values: tuple[Float[Array, "B G S K"], ...]
    """By layer."""
    positions: Int[Array, "B S"]
    """Position of each slot's token; -1 where there is none."""
    branches: Int[Array, "B S"]
    """Continuation that a slot belongs to; -1 is all of them (see `Decoder.extend`)."""
    used: Int[Array, ""]
    """Slots written so far, the same in every row."""

    def grown(self, slots: int) -> Cache:
        """The same with room for more tokens."""

        def more(a, axis, fill=0):
            widths = [(0, slots if i == axis else 0) for i in range(a.ndim)]
            return jnp.pad(a, widths, constant_values=fill)

        return Cache(
            tuple(more(a, 2) for a in self.keys),
            tuple(more(a, 2) for a in self.values),
            more(self.positions, 1, PADDING),
            more(self.branches, 1, SHARED),
            self.used,
        )

    def repeated(self, rows: int) -> Cache:
        """The one row of this cache, ``rows`` times."""
        return jax.tree.map(
            lambda a: jnp.broadcast_to(a, (rows, *a.shape[1:])) if a.ndim else a, self
        )


class _Turn(NamedTuple):
    """Cosines and sines of the rotary embedding at some positions."""

    cos: Float[Array, "B T H"]
    sin: Float[Array, "B T H"]


class Block(nnx.Module):
    """Attention and gated MLP, each added to the stream."""

    def __init__(self, config: DecoderConfig, weights: Mapping[str, Array]):
        self.config = config
        for name, value in weights.items():
            setattr(self, name, nnx.Param(value))

    def _of(self, name: str) -> Array:
        return getattr(self, name)[...]

    def _norm(self, name: str, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return _rms_norm(x, self._of(name), self.config.norm_eps)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        turn: _Turn,
        mask: Bool[Array, "B T S"],
        past: tuple[Array, Array, Array] | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[Array, Array]]:
        """The stream after this block, and keys and values: the new ones, put into those of `past` at a slot."""
        y = self._norm("attention_norm_in", x) if self.config.norm_in else x
        q, keys, values = self._heads(y, turn)
        if past is not None:
            put = jax.lax.dynamic_update_slice_in_dim
            old_keys, old_values, at = past
            keys = put(old_keys, keys.astype(old_keys.dtype), at, axis=2)
            values = put(old_values, values.astype(old_values.dtype), at, axis=2)
        y = _attention(q, keys, values, mask, self.config) @ self._of("out")
        if self.config.out_bias:
            y = y + _broadcast(self._of("out_bias"), y)
        x = x + (self._norm("attention_norm_out", y) if self.config.norm_out else y)
        y = self._norm("mlp_norm_in", x) if self.config.norm_in else x
        gate = _ACTIVATIONS[self.config.activation](y @ self._of("gate"))
        y = (gate * (y @ self._of("up"))) @ self._of("down")
        x = x + (self._norm("mlp_norm_out", y) if self.config.norm_out else y)
        return x, (keys, values)

    def _heads(self, y: Float[Array, "B T D"], turn: _Turn) -> tuple[Array, Array, Array]:
        """Queries (B num_heads T K), keys and values (B num_kv_heads T K)."""
        c = self.config
        found = []
        for name, heads in (("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads)):
            z = y @ self._of(name)
            if c.qkv_bias:
                z = z + _broadcast(self._of(f"{name}_bias"), z)
            if c.qk_norm == "projection" and name != "v":
                z = self._norm(f"{name}_norm", z)
            z = z.reshape(*z.shape[:2], heads, c.head_width)
            if c.qk_norm == "head" and name != "v":
                z = self._norm(f"{name}_norm", z)
            found.append(jnp.swapaxes(z if name == "v" else _turned(z, turn), 1, 2))
        return found[0], found[1], found[2]


class Decoder(nnx.Module):
    """A decoder-only transformer: token ids to logits of the next token.

    Parameters are in ``weights`` by the names and shapes of `DecoderConfig.shapes`. Norms, scores and softmax of
    attention, rotary angles and logits are computed in float32 whatever their type. Blocks are a list, since a scan
    over stacked weights copies a slice of every stack at each turn.

    Raises
    ------
    ValueError
        For weights that are missing, unknown, or of another shape.
    """

    def __init__(self, config: DecoderConfig, weights: Mapping[str, Array]):
        _check_weights(config, weights)
        self.config = config
        self.embed = nnx.Param(weights["embed"])
        self.layers = nnx.List()
        for i in range(config.num_layers):
            prefix = f"layers.{i}."
            own = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
            self.layers.append(Block(config, own))
        self.norm = nnx.Param(weights["norm"])
        if not config.tied:
            self.unembed = nnx.Param(weights["head"])

    @classmethod
    def random(cls, config: DecoderConfig, seed: int = 0, *, dtype: str = "float32") -> Decoder:
        """A decoder with normal weights of variance 1/fan-in, norms of 1 and biases of 0, as for tests and timings."""
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

        Tokens on the right of an example's end change nothing before it. ``positions`` are 0, 1, ... in each row unless
        given; -1 marks padding anywhere.
        """
        return self.head(self.hidden(tokens, positions=positions))

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        positions: Int[Array, "B T"] | None = None,
        branches: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """States after the last norm, of which `head` makes logits; ``branches`` as in `extend`."""
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        turns, masks = self._surroundings(positions, positions)
        if branches is not None:
            masks = _within(masks, branches, branches)
        x = self._embedded(tokens)
        for i, layer in enumerate(self.layers):
            x, _ = layer(x, turns[self._local(i)], masks[self.config.window(i)])
        return _rms_norm(x, self.norm[...], self.config.norm_eps)

    def head(self, states: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Logits of states, float32. At a large vocabulary give only the states whose logits are wanted."""
        matrix = self.embed[...].T if self.config.tied else self.unembed[...]
        return jnp.matmul(
            states.astype(matrix.dtype), matrix, preferred_element_type=_float32(matrix.dtype)
        )

    def empty_cache(self, rows: int, slots: int) -> Cache:
        """A cache without tokens."""
        c = self.config
        shape = (rows, c.num_kv_heads, slots, c.head_width)
        zeros = tuple(jnp.zeros(shape, self.embed[...].dtype) for _ in range(c.num_layers))
        nothing = jnp.full((rows, slots), PADDING)
        return Cache(zeros, zeros, nothing, jnp.full_like(nothing, SHARED), jnp.zeros((), int))

    def extend(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        cache: Cache,
        *,
        branches: Int[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """States of tokens that follow those in the cache, and the cache with them added.

        A token attends to what stands at its own position or before, in the cache and among ``tokens``. Positions of -1
        are padding. With ``branches``, a row holds several continuations of one beginning: a token attends to its own
        branch and to what is shared (-1), so that the beginning is kept and read once for all of them.

        There must be room in the cache (`Cache.grown`): T more slots. Inside of jit this cannot be checked.
        """
        new = jnp.full_like(positions, SHARED) if branches is None else branches
        at = cache.used
        put = jax.lax.dynamic_update_slice_in_dim
        where = put(cache.positions, positions.astype(cache.positions.dtype), at, axis=1)
        whose = put(cache.branches, new.astype(cache.branches.dtype), at, axis=1)
        turns, masks = self._surroundings(positions, where)
        if branches is not None:
            masks = _within(masks, new, whose)
        x = self._embedded(tokens)
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            past = (cache.keys[i], cache.values[i], at)
            x, (k, v) = layer(x, turns[self._local(i)], masks[self.config.window(i)], past)
            keys.append(k)
            values.append(v)
        states = _rms_norm(x, self.norm[...], self.config.norm_eps)
        used = at + tokens.shape[1]
        return states, Cache(tuple(keys), tuple(values), where, whose, used)

    def _embedded(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        x = self.embed[...][tokens]
        scale = self.config.embed_scale
        return x if scale == 1.0 else x * jnp.asarray(scale, x.dtype)

    def _local(self, layer: int) -> bool:
        return self.config.local_rotary is not None and self.config.window(layer) > 0

    def _surroundings(self, queries: Int[Array, "B T"], keys: Int[Array, "B S"]):
        """Rotary turns of queries (plain, and of layers with windows), and masks by window."""
        c = self.config
        turns = {False: _turn(c.rotary, queries)}
        if c.local_rotary is not None:
            turns[True] = _turn(c.local_rotary, queries)
        back = queries[:, :, None] - keys[:, None, :]
        seen = (back >= 0) & (keys[:, None, :] != PADDING)
        windows = {c.window(i) for i in range(c.num_layers)}
        return turns, {w: seen & (back < w) if w else seen for w in windows}


def _within(masks: Mapping[int, Array], queries: Int[Array, "B T"], keys: Int[Array, "B S"]):
    """Masks by window, without what belongs to another branch."""
    same = (keys[:, None, :] == SHARED) | (keys[:, None, :] == queries[:, :, None])
    return {window: mask & same for window, mask in masks.items()}


def _check_weights(config: DecoderConfig, weights: Mapping[str, Any]) -> None:
    wanted = config.shapes()
    for what, names in (
        ("must have", [n for n in wanted if n not in weights]),
        ("must not have", [n for n in weights if n not in wanted]),
    ):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ValueError(
                f"weights of this {config.architecture} decoder {what} {', '.join(names[:4])}{more}"
            )
    for name, shape in wanted.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(
                f"weights must fit the configuration; {name} is {tuple(weights[name].shape)} and should be {shape}"
            )


def _float32(dtype: Any) -> Any:
    """Float32, or float64 where that is what comes in."""
    return jnp.promote_types(dtype, jnp.float32)


def _broadcast(vector: Float[Array, " D"], like: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """A vector with leading axes of 1 and the type of `like`."""
    return vector.astype(like.dtype).reshape(*(1,) * (like.ndim - 1), -1)


def _rms_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], eps: float
) -> Float[Array, "... D"]:
    """RMS norm, x / sqrt(mean(x^2) + eps) * scale. Source: Zhang and Sennrich 2019 (arXiv 1910.07467)."""
    y = x.astype(_float32(x.dtype))
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * _broadcast(scale, y)).astype(x.dtype)


def _turn(rotary: Rotary, positions: Int[Array, "B T"]) -> _Turn:
    # In NumPy, so that frequencies are the same constants wherever this is compiled.
    frequency = rotary.base ** -(np.arange(0, rotary.size, 2) / rotary.size)
    if rotary.divisors:
        frequency = frequency / np.array(rotary.divisors)
    angle = positions[:, :, None].astype(jnp.float32) * frequency.astype(np.float32)[None, None]
    return _Turn(jnp.cos(angle), jnp.sin(angle))


def _turned(x: Float[Array, "B T heads K"], turn: _Turn) -> Float[Array, "B T heads K"]:
    cos, sin = turn.cos[:, :, None], turn.sin[:, :, None]
    half = cos.shape[-1]
    y = x.astype(_float32(x.dtype))
    a, b, rest = y[..., :half], y[..., half : 2 * half], y[..., 2 * half :]
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
    return turned.astype(x.dtype)


def _attention(
    q: Float[Array, "B heads T K"],
    keys: Float[Array, "B G S K"],
    values: Float[Array, "B G S K"],
    mask: Bool[Array, "B T S"],
    config: DecoderConfig,
) -> Float[Array, "B T heads*K"]:
    """softmax(scale q k^T) v, where several query heads share one of the keys and values.

    The queries that share a key are rows of one matrix product: on a CPU twice as fast as with an axis of heads.

    Source: Ainslie et al. 2023 (arXiv 2305.13245).
    """
    rows, heads, num_tokens, width = q.shape
    groups, slots = keys.shape[1:3]
    scale = config.query_scale or 1 / math.sqrt(width)
    number = _float32(q.dtype)
    q = q.reshape(rows, groups, -1, width)
    scores = scale * jnp.einsum("bgqk,bgsk->bgqs", q, keys, preferred_element_type=number)
    # Finite, so that a row of padding, which attends to nothing, has no NaN.
    scores = jnp.where(
        mask[:, None, None],
        scores.reshape(rows, groups, heads // groups, num_tokens, slots),
        jnp.finfo(number).min,
    )
    shares = jax.nn.softmax(scores, axis=-1).astype(values.dtype).reshape(rows, groups, -1, slots)
    found = jnp.einsum("bgqs,bgsk->bgqk", shares, values).reshape(rows, heads, num_tokens, width)
    return jnp.swapaxes(found, 1, 2).reshape(rows, num_tokens, heads * width)
