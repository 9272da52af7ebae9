"""Tokenizers: from a `tokenizer.json`, or rebuilt from the metadata of a GGUF file.

The package `tokenizers` does the work; this module chooses its parts for what a GGUF file names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from isounc.checks import check_choice
from isounc.llm.model.packages import require

SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""The system message that SmolLM2 was trained with."""
# Kinds of tokens in GGUF's tokenizer.ggml.token_type.
_UNKNOWN, _CONTROL, _USER, _UNUSED = 2, 3, 4, 5
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SLASH_TAIL = _TAIL.replace(r"[\r\n]*|", r"[\r\n/]*|", 1)
_SPLITS = {
    "llama3": rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}",
    "qwen2": rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_TAIL}",
    "gpt-4o": "|".join(
        [*(f"{word}{_CONTRACTIONS}?" for word in _CASED), r"\p{N}{1,3}", _SLASH_TAIL]
    ),
    "tekken": "|".join([*_CASED, r"\p{N}", _SLASH_TAIL]),
    "gpt-2": None,
    "smollm": None,
}
"""Patterns that cut text before pairs are merged; None is GPT-2's, which the package knows."""
_PRE = {
    "llama-bpe": "llama3", "llama3": "llama3", "llama-v3": "llama3",
    "smaug-bpe": "llama3", "dbrx": "llama3", "qwen2": "qwen2", "deepseek-r1-qwen": "qwen2",
    "gpt-2": "gpt-2", "olmo": "gpt-2", "smollm": "smollm", "gpt-4o": "gpt-4o", "tekken": "tekken",
}  # fmt: skip
"""Pattern in `_SPLITS` by tokenizer.ggml.pre."""
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""Values of tokenizer.ggml.pre for which llama.cpp assumes that a text begins with BOS unless the
file says otherwise; a word that is a token is not made of others there."""


class Tokenizer:
    """Text to token ids and back.

    Parameters
    ----------
    backend
        A `tokenizers.Tokenizer`, whose post-processor adds BOS if the model wants it.
    stop_ids
        Tokens that end an answer.
    bos_id
        Token that begins a text, if there is one; `encode` adds it if the backend does so.
    """

    def __init__(self, backend: Any, *, stop_ids: Iterable[int] = (), bos_id: int | None = None):
        self.backend = backend
        backend.no_padding()
        backend.no_truncation()
        self.stop_ids = tuple(sorted(set(stop_ids)))
        self.bos_id = bos_id

    @property
    def size(self) -> int:
        """Number of tokens, one more than the largest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text.

        Special tokens written in the text (`<|im_start|>`) become their ids. With `special=False`
        nothing is added at the beginning, as for the continuation of a prompt.
        """
        if not isinstance(text, str):
            raise ValueError(f"text must be a string, got {text!r:.60}")
        return list(self.backend.encode(text, add_special_tokens=special).ids)

    def continuation(self, prompt: str, text: str) -> list[int]:
        """Token ids of a text as the continuation of a prompt.

        They may differ from those of the text by itself: SentencePiece puts a space before every
        text. If the prompt's last token would grow into the text, the ids are those of the text by
        itself.
        """
        before = self.encode(prompt)
        both = self.encode(prompt + text)
        if both[: len(before)] == before:
            return both[len(before) :]
        return self.encode(text, special=False)

    def decode(self, ids: Iterable[int] | Int[np.ndarray, " T"], *, special: bool = False) -> str:
        """Text of token ids, with special tokens only if `special`."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=not special)

    def chat(self, messages: Sequence[tuple[str, str]], *, system: str | None = None) -> str:
        """Text of a conversation in ChatML, up to where the assistant's next turn begins.

        This is only for models whose tokens include ChatML's marks (SmolLM2, Qwen): the templates
        that come with models are programs, which isounc does not run.

        Parameters
        ----------
        messages
            Pairs of a role (`"user"`, `"assistant"`) and a text.
        system
            Message before the others, if any; that of SmolLM2's own template is `SMOLLM2_SYSTEM`.

        Raises
        ------
        ValueError
            The model lacks those marks, or a message is not a pair of strings.
        """
        if self.backend.token_to_id("<|im_start|>") is None:
            raise ValueError(
                "chat must be for a model with ChatML's marks, got one without the token "
                "<|im_start|>"
            )
        turns = [] if system is None else [("system", system)]
        for message in messages:
            if len(message) != 2 or not all(isinstance(part, str) for part in message):
                raise ValueError(f"messages must be pairs of role and text, got {message!r:.60}")
            turns.append((message[0], message[1]))
        parts = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns]
        return "".join([*parts, "<|im_start|>assistant\n"])

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        """Text of every token by itself; parts of a character become replacement characters."""
        return tuple(self.backend.decode([i], skip_special_tokens=True) for i in range(self.size))


def tokenizer_from_json(path: Path, *, stop_ids: Iterable[int], bos_id: int | None) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`.

    Raises
    ------
    ImportError
        The package `tokenizers` is not installed.
    ValueError
        The file cannot be read as a tokenizer.
    """
    tokenizers = require("tokenizers")
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises nothing more precise
        raise ValueError(
            f"{path.name} must be a tokenizer of the package tokenizers, got a file that it cannot "
            f"read: {error}"
        ) from error
    return Tokenizer(backend, stop_ids=stop_ids, bos_id=bos_id)


def tokenizer_from_gguf(metadata: Mapping[str, Any], name: str) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describe.

    `gpt2` is byte-level byte-pair encoding with merges in the file. `llama` is SentencePiece's,
    whose merges follow from the scores of the tokens: those neighbours are joined whose union has
    the best score.

    Raises
    ------
    ImportError
        The package `tokenizers` is not installed.
    ValueError
        The kind of tokenizer or the way of cutting text is unknown, or metadata are missing.
    """

    def entry(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    kind, tokens = entry("model"), entry("tokens")
    check_choice(f"tokenizer.ggml.model of {name}", kind, ("gpt2", "llama"))
    for key in ("tokens", "merges" if kind == "gpt2" else "scores"):
        if not entry(key):
            raise ValueError(f"{name} must have tokenizer.ggml.{key} in its metadata, got none")
    kinds = entry("token_type") or [1] * len(tokens)
    ids = {token: i for i, token in enumerate(tokens)}
    if kind == "gpt2":
        backend = _byte_level(entry("merges"), entry("pre", "none"), ids, name)
    else:
        unknown = entry("unknown_token_id")
        backend = _sentence_piece(
            ids,
            np.asarray(entry("scores"), np.float64),
            unknown=None if unknown is None else tokens[unknown],
            add_space=entry("add_space_prefix", True),
        )
    _add_tokens(backend, tokens, kinds)
    bos = entry("bos_token_id")
    begins = kind == "llama" or entry("pre") in _LLAMA3
    if entry("add_bos_token", begins) and bos is not None:
        processors = require("tokenizers.processors")
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]}:0 $A:0",
            pair=f"{tokens[bos]}:0 $A:0 {tokens[bos]}:1 $B:1",
            special_tokens=[(tokens[bos], bos)],
        )
    stops = {entry("eos_token_id"), entry("eot_token_id"), entry("eom_token_id")} - {None}
    # Files of chat models often name only the end of a text, not that of a turn.
    ends = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>")
    stops |= {ids[end] for end in ends if end in ids and kinds[ids[end]] in (_CONTROL, _USER)}
    return Tokenizer(backend, stop_ids=stops, bos_id=bos)


def _byte_level(joined: Sequence[str], pre: str, ids: Mapping[str, int], name: str) -> Any:
    """Backend of byte-level byte-pair encoding; `joined` are merges, as pairs with a space."""
    tokenizers = require("tokenizers")
    check_choice(f"tokenizer.ggml.pre of {name}", pre, tuple(_PRE))
    merges = [tuple(pair.split(" ", 1)) for pair in joined]
    for merge in merges:
        # The package would end the process's thread over it.
        if len(merge) != 2 or any(part not in ids for part in (*merge, "".join(merge))):
            raise ValueError(
                f"tokenizer.ggml.merges of {name} must join tokens into tokens, got "
                f"{' '.join(merge)!r}"
            )
    model = tokenizers.models.BPE(ids, merges, ignore_merges=pre in _LLAMA3)
    backend = tokenizers.Tokenizer(model)
    pre_tokenizers, split = tokenizers.pre_tokenizers, _PRE[pre]
    pattern = _SPLITS[split]
    if pattern is None:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        if split == "smollm":
            steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    else:
        steps = [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    if split == "qwen2":
        backend.normalizer = tokenizers.normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _sentence_piece(
    ids: Mapping[str, int],
    scores: Float[np.ndarray, " V"],
    *,
    unknown: str | None,
    add_space: bool,
) -> Any:
    """Backend of SentencePiece's byte-pair encoding."""
    tokenizers = require("tokenizers")
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            ids,
            _merges(ids, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    space = "\u2581"
    steps = [tokenizers.normalizers.Replace(" ", space)]
    ends = [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    if add_space:
        steps.insert(0, tokenizers.normalizers.Prepend(space))
        ends.append(tokenizers.decoders.Strip(content=" ", left=1))
    backend.normalizer = tokenizers.normalizers.Sequence(steps)
    backend.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.Replace(space, " "), *ends])
    return backend


def _merges(ids: Mapping[str, int], scores: Float[np.ndarray, " V"]) -> list[tuple[str, str]]:
    """Pairs whose union is a token, the best score first.

    Pairs with the same union come in the order of their halves' ids.
    """
    pairs = []
    for token, i in ids.items():
        for cut in range(1, len(token)):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                pairs.append((-scores[i], i, left, right, token[:cut], token[cut:]))
    pairs.sort(key=lambda pair: pair[:4])
    return [(left, right) for *_, left, right in pairs]


def _add_tokens(backend: Any, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Add tokens that are never made of others.

    These are control tokens, which decoding leaves out, and those of the user.
    """
    added_token = require("tokenizers").AddedToken
    control, user = [], []
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (_CONTROL, _UNKNOWN):
            control.append(added_token(token, special=True, normalized=False))
        elif kind == _USER:
            user.append(added_token(token, special=False, normalized=False))
    backend.add_special_tokens(control)
    backend.add_tokens(user)
