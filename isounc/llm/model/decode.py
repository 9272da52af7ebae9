"""The compiled steps of generation: read the prompts, then choose and read one token after another.

Axes: B prompts, S samples of each, T tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from isounc.llm.model.decoder import Cache, Decoder

SEGMENT = 8
"""Steps between two looks for stop strings and for samples that have ended."""

_BLOCK = 256
"""Weights summed up together when one of many is drawn."""


class DecodingStrategy(NamedTuple):
    """How a token is chosen, as far as it is compiled."""

    greedy: bool
    """Whether the most probable token is taken."""
    top_k: int | None
    """Number of most probable tokens among which one is sampled; None is all."""
    nucleus: bool
    """Whether top_p leaves tokens out."""


class DecodeState(NamedTuple):
    """The state of B x S samples between two steps, but for the cache."""

    token: Int[Array, "B S"]
    """The newest token, not yet read."""
    done: Bool[Array, "B S"]
    """Whether the sample has ended."""
    lengths: Int[Array, " B"]
    """Tokens of each prompt."""
    keys: Key[Array, "B S"]
    """Random key of each sample."""
    branches: Int[Array, "B S"]
    """Number of each sample among those of its prompt: samples that have ended may be left out."""
    step: Int[Array, ""]
    """Tokens chosen so far."""


class DecodedTokens(NamedTuple):
    """The tokens of one step, or of several along the first axis."""

    token: Int[Array | np.ndarray, "*T B S"]
    """Token ids."""
    log_prob: Float[Array | np.ndarray, "*T B S"]
    """Log probability of each token, in nats."""
    entropy: Float[Array | np.ndarray, "*T B S"]
    """Entropy of the distribution of each token, in nats."""


Carry = tuple[Int[Array, ""] | int, Cache, DecodeState, DecodedTokens]
"""Number of a step in its segment, cache and state before it, and the tokens so far."""


def prompt_keys(seed: int, prompts: Sequence[Sequence[int]], num_samples: int) -> Key[Array, "B S"]:
    """A key for each prompt and sample, from the prompt's own tokens."""
    words = []
    for ids in prompts:
        digest = hashlib.sha256(np.asarray(ids, "<i8").tobytes()).digest()
        words.append(np.frombuffer(digest[:4], "<u4")[0])
    root = jax.random.key(seed)
    by_prompt = jax.vmap(lambda word: jax.random.fold_in(root, word))(np.array(words))
    samples = jnp.arange(num_samples)
    return jax.vmap(lambda key: jax.vmap(lambda sample: jax.random.fold_in(key, sample))(samples))(
        by_prompt
    )


@functools.partial(jax.jit, static_argnames="graphdef")
def read_prefix(graphdef: nnx.GraphDef, params: PyTree[Array], tokens: Int[Array, " T"]) -> Cache:
    """Cache of the tokens that all prompts begin with: one row, without padding."""
    decoder: Decoder = nnx.merge(graphdef, params)
    positions = jnp.arange(tokens.size)[None]
    return decoder.extend(tokens[None], positions, decoder.empty_cache(1, tokens.size))[1]


@functools.partial(jax.jit, static_argnames=("graphdef", "num_slots", "strategy"))
def prefill(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    prefix: Cache,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    keys: Key[Array, "B S"],
    stops: Bool[Array, " V"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
    *,
    num_slots: int,
    strategy: DecodingStrategy,
) -> tuple[Cache, DecodeState, DecodedTokens]:
    """Read what follows the prefix in each prompt, and choose the first token of every sample.

    Tokens beyond `lengths` are padding. The cache, with a row for each prompt and a branch for each
    sample, has room for `num_slots` more tokens.
    """
    decoder: Decoder = nnx.merge(graphdef, params)
    num_prompts, num_tokens = tokens.shape
    start = prefix.positions.shape[1]
    positions = jnp.arange(num_tokens)[None]
    positions = jnp.where(positions < lengths[:, None], start + positions, -1)
    states, cache = decoder.extend(
        tokens, positions, prefix.repeated(num_prompts).grown(num_tokens)
    )
    last = jnp.take_along_axis(states, lengths[:, None, None] - 1, axis=1)
    num_samples = keys.shape[1]
    logits = jnp.repeat(decoder.head(last), num_samples, axis=1)
    step = jnp.zeros((), jnp.int32)
    first = _choose(logits, keys, step, temperature, top_p, strategy)
    branches = jnp.broadcast_to(jnp.arange(num_samples)[None], (num_prompts, num_samples))
    cache = cache.grown(num_slots)
    state = DecodeState(
        jnp.asarray(first.token), stops[first.token], start + lengths,
        keys, branches, step + 1,
    )  # fmt: skip
    return cache, state, first


@functools.partial(jax.jit, static_argnames=("graphdef", "strategy"), donate_argnames="cache")
def decode_segment(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    cache: Cache,
    state: DecodeState,
    stops: Bool[Array, " V"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
    *,
    strategy: DecodingStrategy,
) -> tuple[Cache, DecodeState, DecodedTokens]:
    """Up to `SEGMENT` further tokens of each sample; none after all samples are done.

    The cache is donated, so that it is not in memory twice. Nothing else is: tokens and the like
    may share their memory with NumPy arrays of the caller.
    """
    decoder: Decoder = nnx.merge(graphdef, params)
    num_prompts, num_samples = state.token.shape

    def step(carry: Carry) -> Carry:
        i, cache, state, tokens = carry
        positions = (state.lengths + state.step - 1)[:, None]
        positions = jnp.broadcast_to(positions, (num_prompts, num_samples))
        states, cache = decoder.extend(state.token, positions, cache, branches=state.branches)
        logits = decoder.head(states)
        new = _choose(logits, state.keys, state.step, temperature, top_p, strategy)
        tokens = jax.tree.map(lambda array, value: array.at[i].set(value), tokens, new)
        done = state.done | stops[new.token]
        i = i + 1
        return i, cache, state._replace(token=new.token, done=done, step=state.step + 1), tokens

    def unfinished(carry: Carry) -> Bool[Array, ""]:
        i, _, state, _ = carry
        return (i < SEGMENT) & ~state.done.all()

    shape = (SEGMENT, num_prompts, num_samples)
    nothing = DecodedTokens(jnp.zeros(shape, state.token.dtype), jnp.zeros(shape), jnp.zeros(shape))
    start: Carry = (0, cache, state, nothing)
    _, cache, state, tokens = jax.lax.while_loop(unfinished, step, start)
    return cache, state, tokens


def _choose(
    logits: Float[Array, "B S V"],
    keys: Key[Array, "B S"],
    step: Int[Array, ""],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
    strategy: DecodingStrategy,
) -> DecodedTokens:
    """One token a sample, with its log probability and the entropy under the model itself."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1)
    if strategy.greedy:
        token = jnp.argmax(logits, axis=-1)
    else:
        keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, step)))(keys)
        scores = logits / temperature
        draw = jax.vmap(jax.vmap(_draw))
        if strategy.top_k is None and not strategy.nucleus:
            token = draw(keys, scores)
        else:
            size = logits.shape[-1]
            best, at = jax.lax.top_k(scores, min(strategy.top_k or size, size))
            if strategy.nucleus:
                share = jax.nn.softmax(best, axis=-1)
                before = jnp.cumsum(share, axis=-1) - share
                best = jnp.where(before < top_p, best, -jnp.inf)
            token = jnp.take_along_axis(at, draw(keys, best)[..., None], axis=-1)[..., 0]
    token = token.astype(jnp.int32)
    chosen = jnp.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0]
    return DecodedTokens(token, chosen, entropy)


def _draw(key: Key[Array, ""], scores: Float[Array, " V"]) -> Int[Array, ""]:
    """Number of a score, drawn with its softmax probability by inverting the distribution function.

    First a block of scores is drawn, then one score in it. That takes two random numbers, while the
    Gumbel trick (`jax.random.categorical`) takes one for each score, which is slower on a CPU than
    the decoder's layers. As each of the two draws has a random number of its own, rare scores are
    drawn as often as they should be, up to float32's rounding of the sums.
    """
    weights = jnp.exp(scores - scores.max())
    blocks = jnp.pad(weights, (0, -weights.size % _BLOCK)).reshape(-1, _BLOCK)
    first, second = jax.random.uniform(key, (2,))
    block = _inverse(first, blocks.sum(1))
    return block * _BLOCK + _inverse(second, blocks[block])


def _inverse(uniform: Float[Array, ""], weights: Float[Array, " N"]) -> Int[Array, ""]:
    """Number of a weight, drawn in proportion to it; never that of a weight of zero."""
    ends = jnp.cumsum(weights)
    # The largest number below 1 may round up to the whole sum: then the last weight that adds to
    # it is taken.
    return jnp.minimum(
        jnp.searchsorted(ends, uniform * ends[-1], side="right"),
        jnp.searchsorted(ends, ends[-1], side="left"),
    )
