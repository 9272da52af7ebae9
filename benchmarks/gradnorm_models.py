"""The models of `gradnorm.py`, with random parameters: MLPs, a CNN and a decoder."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Job(NamedTuple):
    """One model and one batch."""

    model: str
    """mlp, cnn or decoder."""
    width: int
    """Hidden units of an MLP; 0 for the others."""
    batch: int
    """Number of examples."""


class Task(NamedTuple):
    """A function of one example, its parameters, and a batch."""

    f: Callable[..., jax.Array]
    """Scalar function of (params, example)."""
    params: Any
    """Its parameters."""
    batch: jax.Array
    """Examples along the first axis."""


class Timing(NamedTuple):
    """Time and error of one way to get the norms."""

    way: str
    """Name of the way."""
    seconds: float
    """Least time of a run."""
    relative_error: float | None
    """Root mean square of the norms' relative errors; None where there are no exact ones."""


def mlp(width: int, batch: int) -> Task:
    """P(y=1) of a tanh network of three hidden layers."""
    rng = np.random.default_rng(0)
    sizes = [width, width, width, width, 1]
    params = [
        (
            jnp.asarray(rng.standard_normal((a, b)) / np.sqrt(a), jnp.float32),
            jnp.zeros(b, jnp.float32),
        )
        for a, b in itertools.pairwise(sizes)
    ]

    def f(params, x):
        for w, b in params[:-1]:
            x = jnp.tanh(x @ w + b)
        w, b = params[-1]
        return jax.nn.sigmoid(x @ w + b)[0]

    x = jnp.asarray(rng.standard_normal((batch, width)), jnp.float32)
    return Task(f, params, x)


def cnn(batch: int) -> Task:
    """Log probability of class 0 by a convolutional classifier with GroupNorm, 32 x 32 images."""
    rng = np.random.default_rng(0)
    channels = [3, 32, 64, 128]
    params = {
        "kernels": [
            jnp.asarray(rng.standard_normal((3, 3, a, b)) / np.sqrt(9 * a), jnp.float32)
            for a, b in itertools.pairwise(channels)
        ],
        "scales": [jnp.ones(c, jnp.float32) for c in channels[1:]],
        "head": jnp.asarray(rng.standard_normal((128, 10)) / 11, jnp.float32),
    }

    def f(params, x):
        x = x[None]
        for kernel, scale in zip(params["kernels"], params["scales"], strict=True):
            x = jax.lax.conv_general_dilated(
                x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            groups = x.reshape(*x.shape[:3], 8, -1)
            groups -= groups.mean((1, 2, 4), keepdims=True)
            groups /= jnp.sqrt((groups**2).mean((1, 2, 4), keepdims=True) + 1e-5)
            x = jax.nn.relu(groups.reshape(x.shape) * scale)
        return jax.nn.log_softmax(x.mean((1, 2))[0] @ params["head"])[0]

    x = jnp.asarray(rng.standard_normal((batch, 32, 32, 3)), jnp.float32)
    return Task(f, params, x)


def decoder(batch: int, tokens: int, layers: int) -> Task:
    """Log probability of a sequence by a Llama-like decoder of SmolLM2-135M's shape."""
    d, heads, kv, ff, vocabulary = 576, 9, 3, 1536, 49152
    k = d // heads
    rng = np.random.default_rng(0)

    def draw(*shape):
        scale = 1 / np.sqrt(shape[0] if len(shape) == 2 else d)
        return jnp.asarray(scale * rng.standard_normal(shape, np.float32))

    params = {
        "embed": draw(vocabulary, d),
        "final": jnp.ones(d, jnp.float32),
        "layers": [
            {
                "n1": jnp.ones(d, jnp.float32), "n2": jnp.ones(d, jnp.float32),
                "q": draw(d, heads * k), "k": draw(d, kv * k),
                "v": draw(d, kv * k), "o": draw(heads * k, d),
                "gate": draw(d, ff), "up": draw(d, ff), "down": draw(ff, d),
            }
            for _ in range(layers)
        ],
    }  # fmt: skip

    def norm(x, scale):
        return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale

    def rotate(x):
        angle = jnp.arange(x.shape[0])[:, None, None] / 10000.0 ** (jnp.arange(k // 2) / (k // 2))
        a, b = x[..., : k // 2], x[..., k // 2 :]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def f(params, ids):
        x, t = params["embed"][ids[:-1]], ids.size - 1
        mask = jnp.tril(jnp.ones((t, t), bool))
        for p in params["layers"]:
            y = norm(x, p["n1"])
            q = rotate((y @ p["q"]).reshape(t, heads, k)).reshape(t, kv, heads // kv, k)
            key = rotate((y @ p["k"]).reshape(t, kv, k))
            value = (y @ p["v"]).reshape(t, kv, k)
            scores = jnp.einsum("tghk,sgk->ghts", q, key) / np.sqrt(k)
            weights = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1)
            x = x + jnp.einsum("ghts,sgk->tghk", weights, value).reshape(t, d) @ p["o"]
            y = norm(x, p["n2"])
            x = x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
        logits = norm(x, params["final"]) @ params["embed"].T
        return jnp.take_along_axis(jax.nn.log_softmax(logits), ids[1:, None], axis=1).sum()

    ids = jnp.asarray(rng.integers(0, vocabulary, (batch, tokens + 1)))
    return Task(f, params, ids)


def make_task(job: Job, *, tokens: int, layers: int) -> Task:
    """The model of a job."""
    if job.model == "mlp":
        return mlp(job.width, job.batch)
    if job.model == "cnn":
        return cnn(job.batch)
    return decoder(job.batch, tokens, layers)
