"""Grouped-query attention and rotary position embeddings.

Axes: B rows, T tokens, heads (of queries), kv_heads (of keys and values), slots (keys).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from isounc.llm.model.config import DecoderConfig, Rotary

FEW = 8
"""Keys up to which sums over them are faster on a CPU than many tiny matrix products."""


class Rotation(NamedTuple):
    """Cosines and sines of the rotary embedding at some positions, for pairs of dimensions."""

    cos: Float[Array, "B T pairs"]
    """Cosines, in float32."""
    sin: Float[Array, "B T pairs"]
    """Sines, in float32."""


def at_least_float32(dtype: Any) -> Any:
    """Float32, or float64 for a dtype of float64."""
    return jnp.promote_types(dtype, jnp.float32)


def rotation_at(rotary: Rotary, positions: Int[Array, "B T"]) -> Rotation:
    """The rotation of a rotary embedding at some positions."""
    # In NumPy, so that frequencies are the same constants wherever this is compiled.
    frequency = rotary.base ** -(np.arange(0, rotary.size, 2) / rotary.size)
    if rotary.divisors:
        frequency = frequency / np.array(rotary.divisors)
    angle = positions[:, :, None].astype(jnp.float32) * frequency.astype(np.float32)[None, None]
    return Rotation(jnp.cos(angle), jnp.sin(angle))


def rotate(
    x: Float[Array, "B T heads head_width"], rotation: Rotation
) -> Float[Array, "B T heads head_width"]:
    """Queries or keys, rotated to their positions."""
    cos, sin = rotation.cos[:, :, None], rotation.sin[:, :, None]
    half = cos.shape[-1]
    y = x.astype(at_least_float32(x.dtype))
    a, b, rest = y[..., :half], y[..., half : 2 * half], y[..., 2 * half :]
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)
    return rotated.astype(x.dtype)


def attention(
    q: Float[Array, "B heads T head_width"],
    keys: Float[Array, "B kv_heads slots head_width"],
    values: Float[Array, "B kv_heads slots head_width"],
    mask: Bool[Array, "#B T slots"],
    config: DecoderConfig,
) -> Float[Array, "B T heads*head_width"]:
    """softmax(scale q k^T) v, in which several query heads share the same keys and values.

    The queries that share a key are rows of one matrix product, which is twice as fast on a CPU as
    an axis of heads. Where there are few keys, sums take half the time of products.

    Source: Ainslie et al. 2023 (arXiv 2305.13245).
    """
    num_rows, num_heads, num_tokens, width = q.shape
    num_groups, num_slots = keys.shape[1:3]
    scale = config.query_scale or 1 / math.sqrt(width)
    dtype = at_least_float32(q.dtype)
    q = q.reshape(num_rows, num_groups, -1, width)
    is_short = num_slots <= FEW
    if is_short:
        wide = q.astype(dtype)[:, :, :, None] * keys.astype(dtype)[:, :, None]
        scores = scale * wide.sum(-1)
    else:
        scores = scale * jnp.einsum("bgqk,bgsk->bgqs", q, keys, preferred_element_type=dtype)
    # Finite, so that a row of padding, which attends to nothing, has no NaN.
    scores = jnp.where(
        mask[:, None, None],
        scores.reshape(num_rows, num_groups, num_heads // num_groups, num_tokens, num_slots),
        jnp.finfo(dtype).min,
    )
    shares = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    shares = shares.reshape(num_rows, num_groups, -1, num_slots)
    if is_short:
        wide = shares.astype(dtype)[..., None] * values.astype(dtype)[:, :, None]
        mixed = wide.sum(3).astype(values.dtype)
    else:
        mixed = jnp.einsum("bgqs,bgsk->bgqk", shares, values)
    mixed = mixed.reshape(num_rows, num_heads, num_tokens, width)
    return jnp.swapaxes(mixed, 1, 2).reshape(num_rows, num_tokens, num_heads * width)
