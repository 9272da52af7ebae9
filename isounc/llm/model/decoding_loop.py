"""The loop of generation: programs of `isounc.llm.model.decode`, a segment of steps at a time.

Whoever consumes the loop sees the tokens after every segment, and may show them or leave.

Axes: B prompts, S samples of each, T tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from isounc.llm.model.config import DecoderConfig
from isounc.llm.model.decode import (
    SEGMENT,
    DecodedTokens,
    DecodeState,
    DecodingStrategy,
    Scale,
    decode_segment,
    prefill,
    start_of,
)
from isounc.llm.model.transformer import Cache, Weights


def decode_steps(
    config: DecoderConfig,
    weights: Weights,
    prefix: Cache | None,
    prompts: Sequence[Sequence[int]],
    keys: Key[Array, "B S"],
    stops: Bool[np.ndarray, " V"],
    *,
    strategy: DecodingStrategy,
    temperature: Scale,
    top_p: Scale,
    num_tokens: int,
    max_new_tokens: int,
    has_ended: Callable[[Int[np.ndarray, "T B S"]], Bool[np.ndarray, "B S"]],
) -> Iterator[DecodedTokens]:
    """Yield the tokens (T, B, S) so far: after the first step, and after every further segment.

    The arrays are those of the loop itself, which goes on to fill the rest of them. A sample that has
    ended is left out of further steps, and what stands after its end means nothing.

    Parameters
    ----------
    config, weights
        The model.
    prefix
        Cache of the tokens that all prompts begin with; None if there are none.
    prompts
        Token ids, the prefix among them.
    keys
        Random keys.
    stops
        Tokens after which an answer has ended.
    strategy, temperature, top_p
        How a token is chosen; temperatures may be given by prompt.
    num_tokens
        Length that the rests of the prompts are padded to.
    max_new_tokens
        Largest number of tokens of an answer.
    has_ended
        Whether a sample has ended for another reason than a token of `stops`.
    """
    num_prompts, num_samples = keys.shape
    start = start_of(prefix)
    tokens = np.stack([np.pad(ids[start:], (0, start + num_tokens - len(ids))) for ids in prompts])
    lengths = np.array([len(ids) - start for ids in prompts])
    # The last token is never read.
    num_segments = -(-(max_new_tokens - 1) // SEGMENT)
    table = jax.device_put(stops)
    cache, state, first = prefill(
        config, weights, prefix, tokens, lengths, keys, table, temperature, top_p,
        num_slots=num_samples * SEGMENT * num_segments, strategy=strategy,
    )  # fmt: skip
    shape = (1 + SEGMENT * num_segments, num_prompts, num_samples)
    decoded = DecodedTokens(np.zeros(shape, np.int32), np.zeros(shape), np.zeros(shape))
    _put(decoded, first, 0, state.branches)
    for num_steps in range(1, shape[0], SEGMENT):
        so_far = DecodedTokens(*(array[:num_steps] for array in decoded))
        yield so_far
        tokens = np.asarray(so_far.token)
        done = has_ended(tokens) | stops[tokens].any(0)
        if done.all():
            return
        rest = _unfinished(state, done)
        cache, state, segment = decode_segment(
            config, weights, cache, rest, table, temperature, top_p, strategy=strategy
        )
        _put(decoded, segment, slice(num_steps, num_steps + SEGMENT), state.branches)
    yield DecodedTokens(*(array[:max_new_tokens] for array in decoded))


def _put(
    decoded: DecodedTokens, part: DecodedTokens, steps: int | slice, branches: Int[Array, "B S"]
) -> None:
    """Write the tokens of some samples into the arrays of all."""
    rows = np.arange(decoded.token.shape[1])[:, None]
    for array, new in zip(decoded, part, strict=True):
        array[steps, rows, np.asarray(branches)] = np.asarray(new)


def _unfinished(state: DecodeState, done: Bool[np.ndarray, "B S"]) -> DecodeState:
    """The state of the samples that have not ended.

    The number of samples is halved as often as the prompt with the most of them allows.
    """
    if not done.any():
        return state
    branches = np.asarray(state.branches)
    ended = np.take_along_axis(done, branches, axis=1)
    most, size = int((~ended).sum(1).max()), ended.shape[1]
    while most <= (size + 1) // 2 < size:
        size = (size + 1) // 2
    kept = np.argsort(ended, axis=1, kind="stable")[:, :size]
    return _kept(state._replace(done=ended), kept)


@jax.jit
def _kept(state: DecodeState, kept: Int[Array, "B S"]) -> DecodeState:
    """The state of some of each prompt's samples."""
    rows = jnp.arange(len(kept))[:, None]
    some = ("token", "done", "keys", "branches")
    return state._replace(**{name: getattr(state, name)[rows, kept] for name in some})
