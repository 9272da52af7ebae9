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

from isounc.llm.model.decoder import Cache, Decoder

SEGMENT = 8
"""Steps between two looks for stop strings and for samples that have ended."""

_BLOCK = 256
"""Weights summed up together when one of many is drawn."""


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
    branches: Int[Array, "B S"]
    """Which of its prompt's samples each is: those that have ended may be left out."""
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


@functools.partial(jax.jit, static_argnames="graph")
def read(graph, state, tokens):
    """Cache of what all prompts begin with: one row, without padding."""
    decoder: Decoder = nnx.merge(graph, state)
    positions = jnp.arange(tokens.size)[None]
    return decoder.extend(tokens[None], positions, decoder.empty_cache(1, tokens.size))[1]


@functools.partial(jax.jit, static_argnames=("graph", "slots", "choice"))
def begin(graph, state, shared, tokens, lengths, keys, stops, numbers, *, slots, choice):
    """Read what follows the `shared` beginning in each prompt, and choose the first token of every sample."""
    decoder: Decoder = nnx.merge(graph, state)
    rows, length = tokens.shape
    start = shared.positions.shape[1]
    positions = jnp.arange(length)[None]
    positions = jnp.where(positions < lengths[:, None], start + positions, -1)
    states, cache = decoder.extend(tokens, positions, shared.repeated(rows).grown(length))
    last = jnp.take_along_axis(states, lengths[:, None, None] - 1, axis=1)
    samples = keys.shape[1]
    logits = jnp.repeat(decoder.head(last), samples, axis=1)
    step = jnp.zeros((), jnp.int32)
    made = _choose(logits, keys, step, numbers, choice)
    branches = jnp.broadcast_to(jnp.arange(samples)[None], (rows, samples))
    now = State(
        cache.grown(slots), made.token, stops[made.token], start + lengths, keys, branches, step + 1
    )
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

    def turn(carry):
        i, now, made = carry
        positions = jnp.broadcast_to((now.lengths + now.step - 1)[:, None], (rows, samples))
        states, cache = decoder.extend(now.token, positions, now.cache, branches=now.branches)
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
        draw = jax.vmap(jax.vmap(_draw))
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


def _draw(key: PRNGKeyArray, scores: Float[Array, " V"]) -> Int[Array, ""]:
    """Number of a score, drawn with its softmax probability by inverting the distribution function.

    First a block of scores, then one in it: two random numbers, where the Gumbel trick (`jax.random.categorical`) makes
    one for each score, which takes longer on a CPU than the decoder's layers. With a number of its own for each of the
    two, what is rare is drawn as often as it should be, to float32's rounding of the sums.
    """
    weights = jnp.exp(scores - scores.max())
    blocks = jnp.pad(weights, (0, -weights.size % _BLOCK)).reshape(-1, _BLOCK)
    first, second = jax.random.uniform(key, (2,))
    block = _inverse(first, blocks.sum(1))
    return block * _BLOCK + _inverse(second, blocks[block])


def _inverse(uniform: Float[Array, ""], weights: Float[Array, " N"]) -> Int[Array, ""]:
    """Number of a weight, with a probability in proportion to it; never that of a weight of zero."""
    ends = jnp.cumsum(weights)
    # The largest number below 1 may round up to the whole sum: then it is the last weight that adds to it.
    return jnp.minimum(
        jnp.searchsorted(ends, uniform * ends[-1], side="right"),
        jnp.searchsorted(ends, ends[-1], side="left"),
    )
