"""Tokenizers: from a ``tokenizer.json``, or rebuilt from the metadata of a GGUF file.

The work is done by the package `tokenizers`; here is which of its parts a GGUF file's few words stand for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isounc.checks import check_choice
from isounc.llm.model.packages import require

SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What SmolLM2 was trained to be told first."""
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
"""How text is cut before pairs are merged; None is GPT-2's way, which the package knows."""
_PRE = {
    "llama-bpe": "llama3", "llama3": "llama3", "llama-v3": "llama3",
    "smaug-bpe": "llama3", "dbrx": "llama3", "qwen2": "qwen2", "deepseek-r1-qwen": "qwen2",
    "gpt-2": "gpt-2", "olmo": "gpt-2", "smollm": "smollm", "gpt-4o": "gpt-4o", "tekken": "tekken",
}  # fmt: skip
"""tokenizer.ggml.pre by the way of cutting."""
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""Those of whose files llama.cpp supposes, where they do not say, that a text begins with BOS; a word that is a token
is not made of others there."""


class Tokenizer:
    """Text to token ids and back.

    Parameters
    ----------
    backend
        A `tokenizers.Tokenizer`, whose post-processor adds what the model wants at the beginning (BOS).
    stop_ids
        Tokens that end an answer.
    bos_id
        Token that begins a text, if there is one; added by `encode` where the backend does so.
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

        Special tokens written in the text (``<|im_start|>``) become their ids. With ``special=False`` nothing is added
        at the beginning, as for the continuation of a prompt.
        """
        if not isinstance(text, str):
            raise ValueError(f"text must be a string, got {text!r:.60}")
        return list(self.backend.encode(text, add_special_tokens=special).ids)

    def continuation(self, prompt: str, text: str) -> list[int]:
        """Token ids of a text as what follows a prompt.

        By itself it may have others: SentencePiece puts a space before every text that it is given. Where the prompt's
        last token would grow into the text, the text's own ids are given.
        """
        before = self.encode(prompt)
        both = self.encode(prompt + text)
        if both[: len(before)] == before:
            return both[len(before) :]
        return self.encode(text, special=False)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of token ids, without special tokens unless asked for."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=not special)

    def chat(self, messages: Sequence[tuple[str, str]], *, system: str | None = None) -> str:
        """Text of a conversation in ChatML, up to where the assistant's next turn begins.

        Only for models whose tokens have ChatML's marks (SmolLM2, Qwen): the templates that come with models are
        programs, which isounc does not run.

        Parameters
        ----------
        messages
            Pairs of a role (``"user"``, ``"assistant"``) and what it says.
        system
            Said before them; SmolLM2's own template says `SMOLLM2_SYSTEM`. None says nothing.

        Raises
        ------
        ValueError
            For a model without those marks, or a message that is no pair of strings.
        """
        if self.backend.token_to_id("<|im_start|>") is None:
            raise ValueError(
                "chat must be for a model with ChatML's marks; <|im_start|> is no token"
            )
        turns = [] if system is None else [("system", system)]
        for message in messages:
            if len(message) != 2 or not all(isinstance(part, str) for part in message):
                raise ValueError(f"messages must be pairs of role and text, got {message!r:.60}")
            turns.append((message[0], message[1]))
        said = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns]
        return "".join([*said, "<|im_start|>assistant\n"])

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        """Text of every token by itself; replacement characters stand for parts of a character."""
        return tuple(self.backend.decode([i], skip_special_tokens=True) for i in range(self.size))


def tokenizer_from_json(path: Path, *, stop_ids: Iterable[int], bos_id: int | None) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``.

    Raises
    ------
    ImportError
        Without the package tokenizers.
    ValueError
        For a file that cannot be read as one.
    """
    tokenizers = require("tokenizers")
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises nothing more precise
        raise ValueError(
            f"{path.name} must be a tokenizer of the package tokenizers: {error}"
        ) from error
    return Tokenizer(backend, stop_ids=stop_ids, bos_id=bos_id)


def tokenizer_from_gguf(metadata: Mapping[str, Any], name: str) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describe.

    ``gpt2`` is byte-level byte-pair encoding with merges in the file. ``llama`` is SentencePiece's, whose merges follow
    from the scores of the tokens: of two neighbours, those are joined whose union has the best score.

    Raises
    ------
    ImportError
        Without the package tokenizers.
    ValueError
        For a kind of tokenizer or a way of cutting text that is not known, or metadata that are incomplete.
    """

    def of(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    kind, tokens = of("model"), of("tokens")
    check_choice(f"tokenizer.ggml.model of {name}", kind, ("gpt2", "llama"))
    needed = {"tokens": tokens, "merges": of("merges")} if kind == "gpt2" else {
        "tokens": tokens, "scores": of("scores")
    }  # fmt: skip
    if missing := [key for key, value in needed.items() if not value]:
        raise ValueError(f"{name} must have tokenizer.ggml.{missing[0]} in its metadata")
    kinds = of("token_type") or [1] * len(tokens)
    backend = _byte_level(of, tokens, name) if kind == "gpt2" else _sentence_piece(of, tokens)
    _add_tokens(backend, tokens, kinds)
    bos = of("bos_token_id")
    begins = kind == "llama" or of("pre") in _LLAMA3
    if of("add_bos_token", begins) and bos is not None:
        processors = require("tokenizers.processors")
        begin = processors.TemplateProcessing(
            single=f"{tokens[bos]}:0 $A:0",
            pair=f"{tokens[bos]}:0 $A:0 {tokens[bos]}:1 $B:1",
            special_tokens=[(tokens[bos], bos)],
        )
        backend.post_processor = begin
    stops = {of("eos_token_id"), of("eot_token_id"), of("eom_token_id")} - {None}
    # Files of chat models often name the end of a text only, not that of a turn.
    ends = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>")
    at = {token: i for i, token in enumerate(tokens)}
    stops |= {at[end] for end in ends if end in at and kinds[at[end]] in (_CONTROL, _USER)}
    return Tokenizer(backend, stop_ids=stops, bos_id=bos)


def _byte_level(of, tokens: Sequence[str], name: str):
    tokenizers = require("tokenizers")
    pre, models = tokenizers.pre_tokenizers, tokenizers.models
    way = of("pre", "none")
    check_choice(f"tokenizer.ggml.pre of {name}", way, tuple(_PRE))
    whole_words = way in _LLAMA3
    way = _PRE[way]
    at = {token: i for i, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in of("merges")]
    for merge in merges:
        # The package would end the process's thread over it.
        if len(merge) != 2 or any(part not in at for part in (*merge, "".join(merge))):
            raise ValueError(
                f"tokenizer.ggml.merges of {name} must join tokens into tokens; {' '.join(merge)!r} does not"
            )
    backend = tokenizers.Tokenizer(models.BPE(at, merges, ignore_merges=whole_words))
    pattern = _SPLITS[way]
    if pattern is None:
        cuts = [pre.ByteLevel(add_prefix_space=False, use_regex=True)]
        if way == "smollm":
            cuts.insert(0, pre.Digits(individual_digits=True))
    else:
        cuts = [
            pre.Split(tokenizers.Regex(pattern), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    if way == "qwen2":
        backend.normalizer = tokenizers.normalizers.NFC()
    backend.pre_tokenizer = pre.Sequence(cuts)
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _sentence_piece(of, tokens: Sequence[str]):
    tokenizers = require("tokenizers")
    at = {token: i for i, token in enumerate(tokens)}
    unknown = of("unknown_token_id")
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            at,
            _merges(at, np.asarray(of("scores"), np.float64)),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    space = "\u2581"
    steps = [tokenizers.normalizers.Replace(" ", space)]
    ends = [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    if of("add_space_prefix", True):
        steps.insert(0, tokenizers.normalizers.Prepend(space))
        ends.append(tokenizers.decoders.Strip(content=" ", left=1))
    backend.normalizer = tokenizers.normalizers.Sequence(steps)
    backend.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.Replace(space, " "), *ends])
    return backend


def _merges(at: Mapping[str, int], scores: np.ndarray) -> list[tuple[str, str]]:
    """Pairs whose union is a token, the best score first; of one union's pairs, those with earlier halves first."""
    found = []
    for token, i in at.items():
        for cut in range(1, len(token)):
            left, right = at.get(token[:cut]), at.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[i], i, left, right, token[:cut], token[cut:]))
    found.sort(key=lambda entry: entry[:4])
    return [(left, right) for *_, left, right in found]


def _add_tokens(backend, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Tokens that are never made of others: control tokens, which decoding leaves out, and those of the user."""
    added = require("tokenizers").AddedToken
    control = [added(t, special=True, normalized=False)
               for t, kind in zip(tokens, kinds, strict=True) if kind in (_CONTROL, _UNKNOWN)]  # fmt: skip
    user = [added(t, special=False, normalized=False)
            for t, kind in zip(tokens, kinds, strict=True) if kind == _USER]  # fmt: skip
    backend.add_special_tokens(control)
    backend.add_tokens(user)
