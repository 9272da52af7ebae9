"""The compiled steps of generation: read the prompts, then choose and read one token after the other."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from isounc.llm.decoder import Cache, Decoder

SEGMENT = 16
"""Steps between two looks for stop strings."""


class Choice(NamedTuple):
    """How a token is chosen, as compiled."""

    greedy: bool
    """Whether the most probable token is taken."""
    top_k: int | None
    """Among how many tokens there is sampling; None is all."""
    nucleus: bool
    """Whether top_p leaves tokens out."""


class State(NamedTuple):
    """Where B x S samples stand."""

    cache: Cache | None
    """A row for each prompt, a branch for each sample; None where it is handed over apart (`go_on`)."""
    token: Int[Array, "B S"]
    """The newest token, not yet read."""
    done: Bool[Array, "B S"]
    """Whether the sample has ended."""
    lengths: Int[Array, " B"]
    """Tokens of each prompt."""
    keys: PRNGKeyArray
    """By prompt and sample (B, S)."""
    step: Int[Array, ""]
    """Tokens made so far."""


class Made(NamedTuple):
    """What one step, or several along the first axis, gave; arrays of JAX or NumPy."""

    token: Any
    """Integers (B, S)."""
    log_prob: Any
    """Floats (B, S)."""
    entropy: Any
    """Floats (B, S)."""


def prompt_keys(seed: int, prompts: Sequence[Sequence[int]], samples: int) -> PRNGKeyArray:
    """A key for each prompt and sample, from the prompt's own tokens."""
    words = []
    for ids in prompts:
        digest = hashlib.sha256(np.asarray(ids, "<i8").tobytes()).digest()
        words.append(np.frombuffer(digest[:4], "<u4")[0])
    one = jax.random.key(seed)
    by_prompt = jax.vmap(lambda word: jax.random.fold_in(one, word))(np.array(words))
    numbers = jnp.arange(samples)
    return jax.vmap(lambda key: jax.vmap(lambda sample: jax.random.fold_in(key, sample))(numbers))(
        by_prompt
    )


@functools.partial(jax.jit, static_argnames=("graph", "slots", "choice"))
def begin(graph, state, tokens, lengths, keys, stops, numbers, *, slots, choice):
    """Read the prompts and choose the first token of every sample."""
    decoder: Decoder = nnx.merge(graph, state)
    rows, length = tokens.shape
    positions = jnp.arange(length)[None]
    positions = jnp.where(positions < lengths[:, None], positions, -1)
    states, cache = decoder.extend(tokens, positions, decoder.empty_cache(rows, length))
    last = jnp.take_along_axis(states, lengths[:, None, None] - 1, axis=1)
    logits = jnp.repeat(decoder.head(last), keys.shape[1], axis=1)
    step = jnp.zeros((), jnp.int32)
    made = _choose(logits, keys, step, numbers, choice)
    now = State(cache.grown(slots), made.token, stops[made.token], lengths, keys, step + 1)
    return now, made


@functools.partial(jax.jit, static_argnames=("graph", "choice"), donate_argnames="cache")
def go_on(graph, state, cache, now, stops, numbers, *, choice):
    """Up to a segment of further tokens; none after all samples are done.

    The cache is given up, so that it is not in memory twice. Nothing else is: tokens and the like may share their
    memory with NumPy arrays of the caller.
    """
    decoder: Decoder = nnx.merge(graph, state)
    now = now._replace(cache=cache)
    rows, samples = now.token.shape
    branches = jnp.broadcast_to(jnp.arange(samples)[None], (rows, samples))

    def turn(carry):
        i, now, made = carry
        positions = jnp.broadcast_to((now.lengths + now.step - 1)[:, None], (rows, samples))
        states, cache = decoder.extend(now.token, positions, now.cache, branches=branches)
        new = _choose(decoder.head(states), now.keys, now.step, numbers, choice)
        made = jax.tree.map(lambda old, one: old.at[i].set(one), made, new)
        done = now.done | stops[new.token]
        return i + 1, now._replace(cache=cache, token=new.token, done=done, step=now.step + 1), made

    def unfinished(carry):
        i, now, _ = carry
        return (i < SEGMENT) & ~now.done.all()

    shape = (SEGMENT, rows, samples)
    nothing = Made(jnp.zeros(shape, now.token.dtype), jnp.zeros(shape), jnp.zeros(shape))
    _, now, made = jax.lax.while_loop(unfinished, turn, (0, now, nothing))
    return now, made


def _choose(
    logits: Float[Array, "B S V"],
    keys: PRNGKeyArray,
    step: Int[Array, ""],
    numbers: tuple[Any, Any],
    choice: Choice,
) -> Made:
    """One token a sample, with its log-probability and the entropy under the model as it is."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1)
    if choice.greedy:
        token = jnp.argmax(logits, axis=-1)
    else:
        temperature, top_p = numbers
        keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, step)))(keys)
        scores = logits / temperature
        draw = jax.vmap(jax.vmap(jax.random.categorical))
        if choice.top_k is None and not choice.nucleus:
            token = draw(keys, scores)
        else:
            size = logits.shape[-1]
            best, at = jax.lax.top_k(scores, min(choice.top_k or size, size))
            if choice.nucleus:
                share = jax.nn.softmax(best, axis=-1)
                before = jnp.cumsum(share, axis=-1) - share
                best = jnp.where(before < top_p, best, -jnp.inf)
            token = jnp.take_along_axis(at, draw(keys, best)[..., None], axis=-1)[..., 0]
    token = token.astype(jnp.int32)
    chosen = jnp.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0]
    return Made(token, chosen, entropy)
