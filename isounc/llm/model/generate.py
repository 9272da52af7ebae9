"""Answers sampled from a language model, with the log probability and entropy of every token.

The tokens that all prompts begin with are read once for all. The rests are padded on the right to
a few lengths; all samples of a prompt share its keys and values (the branches of `Decoder.extend`).
Tokens are chosen in segments of a few steps. Between segments the text
is searched for stop strings that span tokens, and samples that have ended are left out of the next.

Axes: N prompts in all, B of them in a batch, S samples of each, T tokens, V tokens of the
vocabulary.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from isounc.checks import check_count, check_real
from isounc.llm.model.decode import (
    DecodedTokens,
    DecodingStrategy,
    prompt_keys,
    read_prefix,
    start_of,
    unused_keys,
)
from isounc.llm.model.decoding_loop import decode_steps
from isounc.llm.model.load import LanguageModel
from isounc.llm.model.tokens import Tokenizer, check_token_ids
from isounc.llm.model.transformer import Cache, Weights
from isounc.padding import batches, bucket

_LEAST = 32
"""Prompts are padded to this length at least, so that short ones share a compilation; a common
beginning is read apart from this length on."""


@dataclass(frozen=True)
class GenerationSettings:
    """How tokens are chosen."""

    num_samples: int = 1
    """S, answers to each prompt."""
    max_new_tokens: int = 64
    """Largest number of tokens of an answer, the one that stops it included."""
    temperature: float = 1.0
    """Logits are divided by it before sampling; 0 takes the most probable token."""
    top_k: int | None = None
    """Sample among this many most probable tokens; None is all."""
    top_p: float | None = None
    """Sample among the fewest most probable tokens that hold this much probability, after top_k;
    None is all."""
    stop: tuple[str, ...] = ()
    """An answer ends before the first of these strings."""
    stop_ids: tuple[int, ...] | None = None
    """An answer ends with one of these tokens; None is the tokenizer's own, () none."""
    seed: int = 0
    """Seed of the random keys; a prompt's key comes from this and its own tokens."""
    batch_size: int = 8
    """Prompts at a time."""

    def __post_init__(self):
        for name in ("num_samples", "max_new_tokens", "batch_size"):
            check_count(name, getattr(self, name), 1)
        check_count("seed", self.seed, 0)
        check_real("temperature", self.temperature)
        if self.top_k is not None:
            check_count("top_k", self.top_k, 1)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p!r}")
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise ValueError(f"stop must be a tuple of non-empty strings, got {self.stop!r}")
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError(
                "num_samples must be 1 at temperature 0, where all samples are the same, got "
                f"{self.num_samples}"
            )


class Generated(NamedTuple):
    """S answers to each of N prompts, of up to T tokens."""

    text: list[list[str]]
    """By prompt and sample, without special tokens, stop strings and what follows them."""
    tokens: Int[np.ndarray, "N S T"]
    """Token ids, the one that stopped the answer included; -1 after the end."""
    lengths: Int[np.ndarray, "N S"]
    """Tokens of each answer, the one that stopped it included."""
    text_lengths: Int[np.ndarray, "N S"]
    """Number of first tokens whose text begins with `text`."""
    stopped: Bool[np.ndarray, "N S"]
    """Whether a stop token or string ended the answer; False if max_new_tokens did."""
    log_probs: Float[np.ndarray, "N S T"]
    """Log probability of each token under the model itself (temperature 1, nothing left out), in
    nats; 0 after the end."""
    entropies: Float[np.ndarray, "N S T"]
    """Entropy of the model's distribution that each token was taken from, in nats; 0 after the
    end."""
    prompt_lengths: Int[np.ndarray, " N"]
    """Tokens of each prompt."""


def generate(
    model: LanguageModel,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    settings: GenerationSettings | None = None,
) -> Generated:
    """Sample answers to prompts.

    Equal settings give equal answers. A prompt's random numbers depend on the seed, its own
    tokens, the number of the sample and the step: not on the other prompts, on the batch size or on
    how many samples there are. (A batch changes rounding, which now and then turns a tie.)

    Parameters
    ----------
    model
        From `load_model`.
    prompts
        N texts, which the tokenizer encodes with what the model wants at the beginning, or N
        sequences of token ids.
    settings
        None is `GenerationSettings()`.

    Returns
    -------
    Generated
        T is the length of the longest answer.

    Raises
    ------
    ValueError
        A prompt is empty or leaves no room in the model's context, or logits are not finite.
    """
    settings = settings or GenerationSettings()
    if isinstance(prompts, str):
        raise ValueError(
            f"prompts must be texts or sequences of token ids, got one text {prompts!r:.40}"
        )
    encoded = [_encoded(model, prompt, i, settings) for i, prompt in enumerate(prompts)]
    if not encoded:
        raise ValueError("prompts must hold at least one prompt, got none")
    weights = model.weights()
    stops = _stop_table(model, settings)
    start = _prefix_length(encoded)
    prefix = None
    if start:
        prefix = read_prefix(model.config, weights, np.array(encoded[0][:start], np.int32))
    answers: dict[int, _Answers] = {}
    lengths = [len(ids) for ids in encoded]
    for numbers, num_rows in batches(lengths, lambda _: settings.batch_size):
        batch = [encoded[i] for i in np.resize(numbers, num_rows)]
        decoded = _decode(model, weights, prefix, batch, stops, settings)
        for row, i in enumerate(numbers):
            answers[i] = _cut_answers(model, settings, stops, decoded, row)
    return _together([answers[i] for i in range(len(encoded))], lengths)


class _Answers(NamedTuple):
    """S answers to one prompt, see `Generated`."""

    text: list[str]
    tokens: Int[np.ndarray, "S T"]
    lengths: Int[np.ndarray, " S"]
    text_lengths: Int[np.ndarray, " S"]
    stopped: Bool[np.ndarray, " S"]
    log_probs: Float[np.ndarray, "S T"]
    entropies: Float[np.ndarray, "S T"]


def _encoded(
    model: LanguageModel, prompt: str | Sequence[int], number: int, settings: GenerationSettings
) -> list[int]:
    if not isinstance(prompt, str):
        check_token_ids(f"prompts[{number}]", prompt)
    ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
    if not ids:
        raise ValueError(f"prompts must not be empty, got no tokens for prompt {number}")
    if min(ids) < 0 or max(ids) >= model.config.vocab_size:
        raise ValueError(
            f"prompts must hold token ids 0..{model.config.vocab_size - 1}, got {min(ids)} to "
            f"{max(ids)} in prompt {number}"
        )
    room = model.context_length - settings.max_new_tokens
    if len(ids) > room:
        raise ValueError(
            f"prompts must leave room for {settings.max_new_tokens} new tokens in the context of "
            f"{model.context_length}, got {len(ids)} tokens in prompt {number}"
        )
    return ids


def _prefix_length(encoded: Sequence[Sequence[int]]) -> int:
    """Number of tokens that several prompts begin with, rounded down to few lengths.

    Each prompt keeps at least one token of its own.
    """
    if len(encoded) == 1:
        return 0
    most = min(map(len, encoded)) - 1
    common = next((i for i in range(most) if len({ids[i] for ids in encoded}) > 1), most)
    return max(n for n in range(0, common + 1, _LEAST) if n == 0 or bucket(n, _LEAST) == n)


def _stop_table(model: LanguageModel, settings: GenerationSettings) -> Bool[np.ndarray, " V"]:
    """Tokens after which an answer has ended: stop tokens, and those that hold a stop string."""
    ids = model.tokenizer.stop_ids if settings.stop_ids is None else settings.stop_ids
    table = np.zeros(model.config.vocab_size, bool)
    outside = [i for i in ids if not 0 <= i < len(table)]
    if outside:
        raise ValueError(f"stop_ids must be token ids 0..{len(table) - 1}, got {outside[0]}")
    table[list(ids)] = True
    # A tokenizer may have more tokens than the model has rows: those are never generated.
    held = model.tokenizer.ids_with(settings.stop)
    table[held[held < len(table)]] = True
    return table


def _decode(
    model: LanguageModel,
    weights: Weights,
    prefix: Cache | None,
    prompts: Sequence[Sequence[int]],
    stops: Bool[np.ndarray, " V"],
    settings: GenerationSettings,
) -> DecodedTokens:
    """Tokens (T, B, S) after one batch of prompts.

    The tokens of each prompt after the prefix are padded to one length.
    """
    strategy, temperature, top_p = strategy_of(settings)
    if strategy.greedy:
        keys = unused_keys(len(prompts), settings.num_samples)
    else:
        keys = prompt_keys(settings.seed, prompts, settings.num_samples)
    steps = decode_steps(
        model.config, weights, prefix, prompts, keys, stops,
        strategy=strategy, temperature=temperature, top_p=top_p,
        num_tokens=bucket(max(map(len, prompts)) - start_of(prefix), _LEAST),
        max_new_tokens=settings.max_new_tokens,
        has_ended=lambda tokens: _has_stop(model.tokenizer, tokens, settings),
    )  # fmt: skip
    *_, decoded = steps
    return decoded


def strategy_of(settings: GenerationSettings) -> tuple[DecodingStrategy, np.float32, np.float32]:
    """How a token is chosen, with the temperature and the share of probability in single precision."""
    strategy = DecodingStrategy(
        settings.temperature == 0, settings.top_k, settings.top_p is not None
    )
    # Beyond these bounds single precision overflows, and nothing changes any more: all weight is on
    # the most probable token, or on all alike.
    temperature = np.float32(np.clip(settings.temperature or 1, 1e-30, 1e30))
    return strategy, temperature, np.float32(settings.top_p or 1)


def _has_stop(
    tokenizer: Tokenizer, tokens: Int[np.ndarray, "T B S"], settings: GenerationSettings
) -> Bool[np.ndarray, "B S"]:
    """Whether the text so far has a stop string, which may span tokens."""
    has_stop = np.zeros(tokens.shape[1:], bool)
    if settings.stop:
        for at in np.ndindex(has_stop.shape):
            text = tokenizer.decode(tokens[(slice(None), *at)])
            has_stop[at] = any(stop in text for stop in settings.stop)
    return has_stop


def _cut_answers(
    model: LanguageModel,
    settings: GenerationSettings,
    stops: Bool[np.ndarray, " V"],
    decoded: DecodedTokens,
    row: int,
) -> _Answers:
    """Cut the samples of one prompt where they end."""
    tokens, log_probs, entropies = (np.asarray(array)[:, row].T for array in decoded)
    cut = [cut_answer(model.tokenizer, ids, stops, settings.stop) for ids in tokens]
    texts = [answer.text for answer in cut]
    lengths = np.array([answer.length for answer in cut])
    inside = np.arange(tokens.shape[1])[None, :] < lengths[:, None]
    if not np.isfinite(log_probs[inside]).all():
        raise ValueError(
            f"logits of model {model.name} must be finite, got NaN or infinite ones for "
            f"{texts[0]!r:.40}"
        )
    return _Answers(
        texts,
        np.where(inside, tokens, -1),
        lengths,
        np.array([answer.text_length for answer in cut]),
        np.array([answer.stopped for answer in cut]),
        np.where(inside, log_probs, 0),
        np.where(inside, entropies, 0),
    )


class CutAnswer(NamedTuple):
    """One answer, cut where it ends."""

    text: str
    length: int
    """Tokens up to the one that stops it."""
    text_length: int
    """Tokens of the text."""
    stopped: bool
    """Whether anything stopped it."""


def cut_answer(
    tokenizer: Tokenizer,
    ids: Int[np.ndarray, " T"],
    stops: Bool[np.ndarray, " V"],
    strings: Sequence[str],
) -> CutAnswer:
    """The tokens of an answer up to where it ends: at one of `stops`, or with a stop string."""
    ends = np.flatnonzero(stops[ids])
    ids = ids[: ends[0] + 1] if len(ends) else ids
    text = tokenizer.decode(ids)
    at = min((text.find(s) for s in strings if s in text), default=-1)
    if at < 0:
        # Special tokens have no text: the answer's tokens end where its text does.
        text_length = fewest(tokenizer, ids, lambda t: t.startswith(text))
        return CutAnswer(text, len(ids), text_length, bool(len(ends)))
    length = fewest(tokenizer, ids, lambda t: any(s in t for s in strings))
    text = text[:at]
    text_length = fewest(tokenizer, ids[:length], lambda t: t.startswith(text))
    return CutAnswer(text, length, text_length, True)


def fewest(tokenizer: Tokenizer, ids: Int[np.ndarray, " T"], holds: Callable[[str], bool]) -> int:
    """The fewest first tokens for whose text a condition holds, which more tokens do not change."""
    return bisect.bisect_left(range(len(ids)), True, key=lambda n: holds(tokenizer.decode(ids[:n])))


def _together(answers: Sequence[_Answers], prompt_lengths: Sequence[int]) -> Generated:
    longest = max(int(answer.lengths.max()) for answer in answers)

    def stacked(name: str, fill: int) -> np.ndarray:
        padded = []
        for answer in answers:
            array = getattr(answer, name)[:, :longest]
            missing = longest - array.shape[1]
            padded.append(np.pad(array, ((0, 0), (0, missing)), constant_values=fill))
        return np.stack(padded)

    return Generated(
        text=[answer.text for answer in answers],
        tokens=stacked("tokens", -1),
        lengths=np.stack([answer.lengths for answer in answers]),
        text_lengths=np.stack([answer.text_lengths for answer in answers]),
        stopped=np.stack([answer.stopped for answer in answers]),
        log_probs=stacked("log_probs", 0),
        entropies=stacked("entropies", 0),
        prompt_lengths=np.array(prompt_lengths),
    )
