"""The steps of generation: read the prompts, then choose and read one token after another.

Python goes from one compiled program to the next, a block's being the same for all layers.

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
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from isounc.llm.model.config import DecoderConfig
from isounc.llm.model.transformer import (
    Cache,
    Weights,
    empty_cache,
    extend,
    final_norm,
    logits_of,
)

SEGMENT = 8
"""Steps between two looks for stop strings and for samples that have ended."""

_BLOCK = 256
"""Weights summed up together when one of many is drawn."""


Scale = np.float32 | Float[Array | np.ndarray, "B 1 1"]
"""A number for all prompts, or one for each."""


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


def prompt_keys(seed: int, prompts: Sequence[Sequence[int]], num_samples: int) -> Key[Array, "B S"]:
    """A key for each prompt and sample, from the prompt's own tokens."""
    words = []
    for ids in prompts:
        digest = hashlib.sha256(np.asarray(ids, "<i8").tobytes()).digest()
        words.append(np.frombuffer(digest[:4], "<u4")[0])
    return _folded(jax.random.key(seed), np.array(words), num_samples)


def unused_keys(num_prompts: int, num_samples: int) -> Key[Array, "B S"]:
    """Keys for a greedy strategy, which draws nothing: no program is needed to make them."""
    zeros = np.zeros((num_prompts, num_samples, 2), np.uint32)
    return jax.random.wrap_key_data(jax.device_put(zeros), impl="threefry2x32")


@functools.partial(jax.jit, static_argnames="num_samples")
def _folded(
    root: Key[Array, ""], words: UInt32[Array, " B"], num_samples: int
) -> Key[Array, "B S"]:
    samples = jnp.arange(num_samples)
    by_prompt = jax.vmap(lambda word: jax.random.fold_in(root, word))(words)
    return jax.vmap(lambda key: jax.vmap(lambda sample: jax.random.fold_in(key, sample))(samples))(
        by_prompt
    )


def read_prefix(config: DecoderConfig, weights: Weights, tokens: Int[np.ndarray, " T"]) -> Cache:
    """Cache of the tokens that all prompts begin with: one row, without padding."""
    positions = np.arange(tokens.size, dtype=np.int32)[None]
    cache = empty_cache(config, 1, tokens.size, weights.embed.dtype)
    return extend(config, weights, tokens[None], positions, cache, in_place=True)[1]


def start_of(prefix: Cache | None) -> int:
    """Position of the first token after a prefix, or without one."""
    return 0 if prefix is None else prefix.positions.shape[1]


def prefill(
    config: DecoderConfig,
    weights: Weights,
    prefix: Cache | None,
    tokens: Int[np.ndarray, "B T"],
    lengths: Int[np.ndarray, " B"],
    keys: Key[Array, "B S"],
    stops: Bool[Array, " V"],
    temperature: Scale,
    top_p: Scale,
    *,
    num_slots: int,
    strategy: DecodingStrategy,
) -> tuple[Cache, DecodeState, DecodedTokens]:
    """Read what follows the prefix in each prompt, and choose the first token of every sample.

    Tokens beyond `lengths` are padding. The cache, with a row for each prompt and a branch for each
    sample, has room for `num_slots` more tokens.
    """
    num_prompts, num_tokens = tokens.shape
    start = start_of(prefix)
    if prefix is None:
        cache = empty_cache(config, num_prompts, num_tokens, weights.embed.dtype)
    else:
        cache = prefix.repeated(num_prompts).grown(num_tokens)
    positions = np.arange(num_tokens, dtype=np.int32)[None]
    positions = np.where(positions < lengths[:, None], start + positions, -1)
    x, cache = extend(config, weights, tokens, positions, cache, in_place=True)
    state, first = _first(
        config, weights.norm, weights.embed, weights.head, _last(x, lengths), lengths,
        np.int32(start), keys, stops, temperature, top_p, strategy=strategy,
    )  # fmt: skip
    return cache.grown(num_slots), state, first


@jax.jit
def _last(x: Float[Array, "B T W"], lengths: Int[Array, " B"]) -> Float[Array, "B 1 W"]:
    """What stands at each prompt's last token; apart, so that `_first` is the same for every T."""
    return jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)


@functools.partial(jax.jit, static_argnames=("config", "strategy"))
def _first(
    config: DecoderConfig,
    norm: Float[Array, " W"],
    embed: Float[Array, "V W"],
    head: Float[Array, "W V"] | None,
    last: Float[Array, "B 1 W"],
    lengths: Int[Array, " B"],
    start: Int[Array, ""],
    keys: Key[Array, "B S"],
    stops: Bool[Array, " V"],
    temperature: Float[Array, ""] | Float[Array, "B 1 1"],
    top_p: Float[Array, ""] | Float[Array, "B 1 1"],
    *,
    strategy: DecodingStrategy,
) -> tuple[DecodeState, DecodedTokens]:
    """The state after the prompts, and the first token of every sample."""
    num_prompts, num_samples = keys.shape
    logits = logits_of(final_norm(config, norm, last), embed, head)
    step = jnp.zeros((), jnp.int32)
    logits = jnp.repeat(logits, num_samples, axis=1)
    first = _choose(logits, keys, step, temperature, top_p, strategy)
    branches = jnp.broadcast_to(jnp.arange(num_samples)[None], (num_prompts, num_samples))
    state = DecodeState(
        jnp.asarray(first.token), stops[first.token], start + lengths,
        keys, branches, step + 1,
    )  # fmt: skip
    return state, first


def decode_segment(
    config: DecoderConfig,
    weights: Weights,
    cache: Cache,
    state: DecodeState,
    stops: Bool[Array, " V"],
    temperature: Scale,
    top_p: Scale,
    *,
    strategy: DecodingStrategy,
) -> tuple[Cache, DecodeState, DecodedTokens]:
    """Up to `SEGMENT` further tokens of each sample; none after all samples are done.

    The cache is donated, so that it is not in memory twice.
    """
    shape = (SEGMENT, *state.token.shape)
    tokens = DecodedTokens(np.zeros(shape, np.int32), np.zeros(shape), np.zeros(shape))
    for i in range(SEGMENT):
        if np.asarray(state.done).all():
            break
        x, cache = extend(
            config, weights, state.token, _positions(state), cache, branches=state.branches,
            in_place=True,
        )  # fmt: skip
        state, new = _next(
            config, weights.norm, weights.embed, weights.head, x, state, stops, temperature, top_p,
            strategy=strategy,
        )  # fmt: skip
        for array, value in zip(tokens, new, strict=True):
            np.asarray(array)[i] = value
    return cache, state, tokens


@jax.jit
def _positions(state: DecodeState) -> Int[Array, "B S"]:
    """Positions of the newest tokens."""
    positions = (state.lengths + state.step - 1)[:, None]
    return jnp.broadcast_to(positions, state.token.shape)


@functools.partial(jax.jit, static_argnames=("config", "strategy"))
def _next(
    config: DecoderConfig,
    norm: Float[Array, " W"],
    embed: Float[Array, "V W"],
    head: Float[Array, "W V"] | None,
    x: Float[Array, "B S W"],
    state: DecodeState,
    stops: Bool[Array, " V"],
    temperature: Float[Array, ""] | Float[Array, "B 1 1"],
    top_p: Float[Array, ""] | Float[Array, "B 1 1"],
    *,
    strategy: DecodingStrategy,
) -> tuple[DecodeState, DecodedTokens]:
    """The state after one more token of every sample, and these tokens."""
    logits = logits_of(final_norm(config, norm, x), embed, head)
    new = _choose(logits, state.keys, state.step, temperature, top_p, strategy)
    token, done = jnp.asarray(new.token), state.done | stops[new.token]
    return state._replace(token=token, done=done, step=state.step + 1), new


def _choose(
    logits: Float[Array, "B S V"],
    keys: Key[Array, "B S"],
    step: Int[Array, ""],
    temperature: Float[Array, ""] | Float[Array, "B 1 1"],
    top_p: Float[Array, ""] | Float[Array, "B 1 1"],
    strategy: DecodingStrategy,
) -> DecodedTokens:
    """One token a sample, with its log probability and the entropy under the model itself."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1)
    if strategy.greedy:
        token = jnp.argmax(logits, axis=-1)
    else:
        keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, step)))(keys)
        # Of the best token exactly 0, however small the temperature and the rounding of a division.
        scores = (logits - logits.max(axis=-1, keepdims=True)) / temperature
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
