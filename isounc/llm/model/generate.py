"""Answers sampled from a language model, with what the model itself thought of every token.

What all prompts begin with is read once for all. Their rests are padded on the right to a few lengths; all samples of a
prompt share its keys and values (`Decoder.extend`'s branches). Tokens are made in segments of a few steps inside of one
compiled loop. Between segments, stop strings that span tokens are looked for, and samples that have ended are left out
of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from isounc.checks import check_count, check_real
from isounc.llm.model.decode import SEGMENT, Choice, Made, State, begin, go_on, prompt_keys, read
from isounc.llm.model.decoder import Cache
from isounc.llm.model.load import LanguageModel
from isounc.llm.model.tokens import Tokenizer
from isounc.padding import batches, bucket

_LEAST = 32
"""Prompts are padded to this length at least, so that short ones share a compilation; beginnings are read apart from
this length on."""


@dataclass(frozen=True)
class GenerationSettings:
    """How tokens are chosen."""

    num_samples: int = 1
    """S, answers to each prompt."""
    max_new_tokens: int = 64
    """Most tokens of an answer, the one that stops it included."""
    temperature: float = 1.0
    """Logits are divided by it before sampling; 0 takes the most probable token."""
    top_k: int | None = None
    """Sample among this many most probable tokens; None is all."""
    top_p: float | None = None
    """Sample among the fewest most probable tokens that hold this much probability, after top_k; None is all."""
    stop: tuple[str, ...] = ()
    """An answer ends before the first of these strings."""
    stop_ids: tuple[int, ...] | None = None
    """An answer ends with one of these tokens; None is the tokenizer's own, () none."""
    seed: int = 0
    """Of the random keys; a prompt's key comes from this and its own tokens."""
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
                f"num_samples must be 1 at temperature 0, where all samples are the same; got {self.num_samples}"
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
    """Tokens that ``text`` is made of: the first of them whose text begins with it."""
    stopped: Bool[np.ndarray, "N S"]
    """Whether a stop token or string ended the answer; False where max_new_tokens did."""
    log_probs: Float[np.ndarray, "N S T"]
    """Of each token under the model itself (temperature 1, nothing left out), in nats; 0 after the end."""
    entropies: Float[np.ndarray, "N S T"]
    """Of the model's distribution that each token was taken from, in nats; 0 after the end."""
    prompt_lengths: Int[np.ndarray, " N"]
    """Tokens of each prompt."""


def generate(
    model: LanguageModel,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    settings: GenerationSettings | None = None,
) -> Generated:
    """Sample answers to prompts.

    Equal settings give equal answers. A prompt's random numbers depend on the seed, its own tokens, the number of the
    sample and the step: not on the other prompts, on the batch size or on how many samples there are. (What a batch
    changes is rounding, which now and then turns a tie.)

    Parameters
    ----------
    model
        From `load_model`.
    prompts
        N texts, which the tokenizer encodes with what the model wants at the beginning, or N sequences of token ids.
    settings
        None is `GenerationSettings()`.

    Returns
    -------
    Generated
        T is the length of the longest answer.

    Raises
    ------
    ValueError
        For prompts that are empty or leave no room in the model's context, and logits that are not finite.
    """
    settings = settings or GenerationSettings()
    if isinstance(prompts, str):
        raise ValueError(
            f"prompts must be texts or sequences of token ids, got one text {prompts!r:.40}"
        )
    encoded = [_encoded(model, prompt, i, settings) for i, prompt in enumerate(prompts)]
    if not encoded:
        raise ValueError("prompts must hold at least one prompt")
    graph, state = nnx.split(model.decoder)
    stops = _stop_table(model, settings)
    found: dict[int, _Answer] = {}
    start = _shared_length(encoded)
    if start:
        shared = read(graph, state, np.array(encoded[0][:start], np.int32))
    else:
        shared = model.decoder.empty_cache(1, 0)
    for which, rows in batches([len(ids) for ids in encoded], lambda _: settings.batch_size):
        chosen = [encoded[i] for i in np.resize(which, rows)]
        answers = _answers(model, graph, state, shared, chosen, stops, settings)
        found |= dict(zip(which, answers, strict=False))
    return _together([found[i] for i in range(len(encoded))], [len(ids) for ids in encoded])


class _Answer(NamedTuple):
    """S answers to one prompt, see `Generated`."""

    text: list[str]
    tokens: np.ndarray
    lengths: np.ndarray
    text_lengths: np.ndarray
    stopped: np.ndarray
    log_probs: np.ndarray
    entropies: np.ndarray


def _encoded(model: LanguageModel, prompt: Any, at: int, settings: GenerationSettings) -> list[int]:
    ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
    if not ids:
        raise ValueError(f"prompts must not be empty; prompt {at} has no tokens")
    if min(ids) < 0 or max(ids) >= model.config.vocab_size:
        raise ValueError(
            f"prompts must hold token ids 0..{model.config.vocab_size - 1}; prompt {at} has {min(ids)} to {max(ids)}"
        )
    room = model.context_length - settings.max_new_tokens
    if len(ids) > room:
        raise ValueError(
            f"prompts must leave room for {settings.max_new_tokens} new tokens in the context of "
            f"{model.context_length}; prompt {at} has {len(ids)} tokens"
        )
    return ids


def _shared_length(encoded: Sequence[Sequence[int]]) -> int:
    """How many tokens several prompts begin with, of which each has one more at least; rounded down to few lengths."""
    if len(encoded) == 1:
        return 0
    most = min(map(len, encoded)) - 1
    same = next((i for i in range(most) if len({ids[i] for ids in encoded}) > 1), most)
    return max(n for n in range(0, same + 1, _LEAST) if n == 0 or bucket(n, _LEAST) == n)


def _stop_table(model: LanguageModel, settings: GenerationSettings) -> Bool[np.ndarray, " V"]:
    """Tokens after which an answer has ended: stop tokens, and those whose own text has a stop string."""
    ids = model.tokenizer.stop_ids if settings.stop_ids is None else settings.stop_ids
    table = np.zeros(model.config.vocab_size, bool)
    wrong = [i for i in ids if not 0 <= i < len(table)]
    if wrong:
        raise ValueError(f"stop_ids must be token ids 0..{len(table) - 1}, got {wrong[0]}")
    table[list(ids)] = True
    if settings.stop:
        for i, piece in enumerate(model.tokenizer.pieces):
            table[i] |= any(stop in piece for stop in settings.stop)
    return table


def _answers(
    model: LanguageModel,
    graph: Any,
    state: Any,
    shared: Cache,
    prompts: Sequence[Sequence[int]],
    stops: np.ndarray,
    settings: GenerationSettings,
) -> list[_Answer]:
    """Answers to one batch of prompts, whose tokens after the shared ones are padded to one length."""
    rows, samples = len(prompts), settings.num_samples
    start = shared.positions.shape[1]
    length = bucket(max(map(len, prompts)) - start, _LEAST)
    tokens = np.stack([np.pad(ids[start:], (0, start + length - len(ids))) for ids in prompts])
    lengths = np.array([len(ids) - start for ids in prompts])
    choice = Choice(settings.temperature == 0, settings.top_k, settings.top_p is not None)
    numbers = np.float32(settings.temperature or 1), np.float32(settings.top_p or 1)
    keys = prompt_keys(settings.seed, prompts, samples)
    # The last token is never read.
    segments = -(-(settings.max_new_tokens - 1) // SEGMENT)
    now, first = begin(
        graph, state, shared, tokens, lengths, keys, jnp.asarray(stops), numbers,
        slots=samples * SEGMENT * segments, choice=choice,
    )  # fmt: skip
    shape = (1 + SEGMENT * segments, rows, samples)
    whole = Made(np.zeros(shape, np.int32), np.zeros(shape), np.zeros(shape))
    _put(whole, first, 0, now.branches)
    for steps in range(1, shape[0], SEGMENT):
        done = _has_stop(model.tokenizer, whole.token[:steps], settings)
        done |= stops[whole.token[:steps]].any(0)
        if done.all():
            break
        rest = _unfinished(now, done)
        now, more = go_on(graph, state, now.cache, rest, jnp.asarray(stops), numbers, choice=choice)
        _put(whole, more, slice(steps, steps + SEGMENT), now.branches)
    whole = Made(*(a[: settings.max_new_tokens] for a in whole))
    return [_answer(model, settings, stops, whole, row) for row in range(rows)]


def _put(whole: Made, part: Made, steps: int | slice, branches: Any) -> None:
    """Write what was made of some samples into the arrays of all."""
    rows = np.arange(whole.token.shape[1])[:, None]
    for array, new in zip(whole, part, strict=True):
        array[steps, rows, np.asarray(branches)] = np.asarray(new)


def _unfinished(now: State, done: Bool[np.ndarray, "B S"]) -> State:
    """Where the samples stand that have not ended: half of them, a quarter, ... as it suffices for each prompt."""
    branches = np.asarray(now.branches)
    ended = np.take_along_axis(done, branches, axis=1)
    most, size = int((~ended).sum(1).max()), ended.shape[1]
    while most <= (size + 1) // 2 < size:
        size = (size + 1) // 2
    kept = np.argsort(ended, axis=1, kind="stable")[:, :size]
    rows = np.arange(len(kept))[:, None]
    return now._replace(
        cache=None, token=now.token[rows, kept], keys=now.keys[rows, kept],
        done=jnp.array(ended[rows, kept]), branches=jnp.array(branches[rows, kept]),
    )  # fmt: skip


def _has_stop(
    tokenizer: Tokenizer, tokens: Int[np.ndarray, "T B S"], settings: GenerationSettings
) -> Bool[np.ndarray, "B S"]:
    """Whether the text so far has a stop string, which may span tokens."""
    found = np.zeros(tokens.shape[1:], bool)
    if settings.stop:
        for at in np.ndindex(found.shape):
            text = tokenizer.decode(tokens[(slice(None), *at)])
            found[at] = any(stop in text for stop in settings.stop)
    return found


def _answer(
    model: LanguageModel, settings: GenerationSettings, stops: np.ndarray, made: Made, row: int
) -> _Answer:
    """Cut the samples of one prompt where they end."""
    tokens, log_probs, entropies = (np.asarray(a)[:, row].T for a in made)
    texts, lengths, text_lengths, stopped = [], [], [], []
    for ids in tokens:
        text, length, text_length, ended = _cut(model.tokenizer, ids, stops, settings.stop)
        texts.append(text)
        lengths.append(length)
        text_lengths.append(text_length)
        stopped.append(ended)
    ends = np.array(lengths)
    inside = np.arange(tokens.shape[1])[None, :] < ends[:, None]
    if not np.isfinite(log_probs[inside]).all():
        raise ValueError(
            f"logits of model {model.name} must be finite; they are NaN or infinite for {texts[0]!r:.40}"
        )
    return _Answer(
        texts,
        np.where(inside, tokens, -1),
        ends,
        np.array(text_lengths),
        np.array(stopped),
        np.where(inside, log_probs, 0),
        np.where(inside, entropies, 0),
    )


def _cut(
    tokenizer: Tokenizer, ids: Int[np.ndarray, " T"], stops: np.ndarray, strings: Sequence[str]
) -> tuple[str, int, int, bool]:
    """Text, tokens up to the one that stops, tokens of the text, and whether anything stopped it."""
    ends = np.flatnonzero(stops[ids])
    ids = ids[: ends[0] + 1] if len(ends) else ids
    text = tokenizer.decode(ids)
    at = min((text.find(s) for s in strings if s in text), default=-1)
    if at < 0:
        # Special tokens have no text: the answer's tokens end where its text does.
        return text, len(ids), _least(tokenizer, ids, lambda t: t.startswith(text)), bool(len(ends))
    length = _least(tokenizer, ids, lambda t: any(s in t for s in strings))
    text = text[:at]
    return text, length, _least(tokenizer, ids[:length], lambda t: t.startswith(text)), True


def _least(tokenizer: Tokenizer, ids: Int[np.ndarray, " T"], holds: Any) -> int:
    """The fewest tokens whose text `holds`."""
    return next((n for n in range(len(ids)) if holds(tokenizer.decode(ids[:n]))), len(ids))


def _together(answers: Sequence[_Answer], prompt_lengths: Sequence[int]) -> Generated:
    longest = max(int(a.lengths.max()) for a in answers)

    def stacked(name: str, fill: float) -> np.ndarray:
        found = []
        for answer in answers:
            array = getattr(answer, name)[:, :longest]
            more = longest - array.shape[1]
            found.append(np.pad(array, ((0, 0), (0, more)), constant_values=fill))
        return np.stack(found)

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
