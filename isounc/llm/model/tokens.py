"""Text to token ids and back, by the package `tokenizers`; `gguf_tokenizer` makes others."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from isounc.fields import Unreadable, shortened
from isounc.llm.model.packages import require
from isounc.llm.model.tokenizer_json import (
    MOST_TOKENS,
    added_ids,
    check_tokenizer,
)
from isounc.untrusted import MEGABYTE, decode_text, parse_json, read_bytes, reading

_TOKENIZER_SIZE = 128 * MEGABYTE
"""Bytes of the largest tokenizer.json; that of Gemma 3 has a quarter of these."""


def check_token_ids(argument: str, ids: Any) -> None:
    """Raise a ValueError unless `ids` is a sequence of non-negative integers."""
    try:
        array = np.asarray(ids)
    except ValueError:
        array = np.empty((), object)
    good = array.ndim == 1 and (not array.size or (array.dtype.kind in "iu" and array.min() >= 0))
    if not good:
        raise ValueError(
            f"{argument} must be a sequence of token ids, non-negative integers, got "
            f"{shortened(ids)}"
        )


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
        self._with: dict[tuple[str, ...], Int[np.ndarray, " n"]] = {}

    @property
    def size(self) -> int:
        """Number of tokens, one more than the largest id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text.

        Special tokens written in the text (`<|im_start|>`) become their ids. With `special=False`
        nothing is added at the beginning, as for the continuation of a prompt.
        """
        if not isinstance(text, str):
            raise ValueError(f"text must be a string, got {text!r:.60}")
        with reading("the tokenizer", f"one that can encode {text!r:.60}"):
            return list(self.backend.encode(text, add_special_tokens=special).ids)

    def continuation(self, prompt: str, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text as the continuation of a prompt that is encoded with `special`.

        They may differ from those of the text by itself: SentencePiece puts a space before every
        text. If the prompt's last token would grow into the text, the ids are those of the text by
        itself.
        """
        before = self.encode(prompt, special=special)
        both = self.encode(prompt + text, special=special)
        if both[: len(before)] == before:
            return both[len(before) :]
        return self.encode(text, special=False)

    def decode(self, ids: Iterable[int] | Int[np.ndarray, " T"], *, special: bool = False) -> str:
        """Text of token ids, with special tokens only if `special`."""
        numbers = [int(i) for i in ids]
        with reading("the tokenizer", "one that can decode its tokens"):
            return self.backend.decode(numbers, skip_special_tokens=not special)

    def decode_each(
        self, ids: Iterable[int] | Int[np.ndarray, " T"], *, is_first: bool = True
    ) -> list[str]:
        """Text of each token in its place, special tokens among them.

        Unless `is_first`, a token stands before them: SentencePiece leaves out the space before a text,
        and a token by itself would be one.
        """
        ids = [int(i) for i in ids]
        texts = [self.decode([i], special=True) for i in ids]
        before = self.encode("a", special=False)[-1:]
        shown = self.decode(before, special=True)
        for k, i in enumerate(ids):
            text = self.decode([*before, i], special=True)
            if (k or not is_first) and text.startswith(shown):
                texts[k] = text[len(shown) :]
        return texts

    def text_ends(self, ids: Sequence[int]) -> list[int]:
        """For n = 0, 1, ... the characters of the whole text that belong to its first n tokens.

        A character of several tokens belongs to the first of them.
        """
        lengths = np.array([len(self.decode(ids[:n])) for n in range(len(ids) + 1)])
        # The bytes of a character may count as one each, as in SentencePiece, until the last is there.
        return np.minimum.accumulate(lengths[::-1])[::-1].tolist()

    @functools.cached_property
    def pieces(self) -> tuple[str, ...]:
        """Text of every token by itself; parts of a character become replacement characters."""
        decode = self.backend.decode
        with reading("the tokenizer", "one that can decode its tokens"):
            return tuple(decode([i], skip_special_tokens=True) for i in range(self.size))

    def ids_with(self, texts: Iterable[str]) -> Int[np.ndarray, " n"]:
        """Tokens whose text by itself holds one of some texts; equal `texts` are looked for once."""
        key = tuple(texts)
        if key not in self._with:
            holds = re.compile("|".join(map(re.escape, key))).search
            found = [i for i, piece in enumerate(self.pieces) if holds(piece)] if key else []
            self._with[key] = np.array(found, int)
        return self._with[key]


def tokenizer_from_json(path: Path, *, stop_ids: Iterable[int], bos_id: int | None) -> Tokenizer:
    """The tokenizer of a `tokenizer.json`.

    Raises
    ------
    ImportError
        The package `tokenizers` is not installed.
    ValueError
        The file cannot be read as a tokenizer, or goes beyond `tokenizer_json`'s bounds.
    """
    tokenizers = require("tokenizers")
    what = path.name
    content = decode_text(read_bytes(path, most=_TOKENIZER_SIZE, what=what), what)
    names = content.count('":')
    if names > MOST_TOKENS * 5 // 4:  # tokens, and what else the file says
        raise Unreadable(f"{what} must have at most {MOST_TOKENS} tokens, got {names} names")
    with reading(what, "a tokenizer that the package tokenizers can read"):
        parsed = parse_json(content, what, most_brackets=2 * MOST_TOKENS)
        check_tokenizer(parsed, what)
        added = added_ids(parsed)
        del parsed  # the vocabulary is large, and the package makes its own
        backend = tokenizers.Tokenizer.from_str(content)
        for token, number in added.items():
            # The package gives ids of its own to tokens that do not follow the others.
            if backend.token_to_id(token) != number:
                raise Unreadable(
                    f"added_tokens of {what} must have the ids that follow the others, got "
                    f"{number} for {token!r:.80}"
                )
        return Tokenizer(backend, stop_ids=stop_ids, bos_id=bos_id)
