"""Tokenizers rebuilt from the metadata of a GGUF file.

The package `tokenizers` does the work; this module chooses its parts for what the file names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from isounc.fields import Field, Unreadable, declared, integer, text, truth
from isounc.llm.model.packages import require
from isounc.llm.model.tokenizer_json import LONGEST_TOKEN, MOST_TOKENS
from isounc.llm.model.tokens import Tokenizer
from isounc.untrusted import reading

_LONGEST_PIECE = 256
"""Characters of a piece of SentencePiece, all cuts of which are tried."""
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
    with reading(name, "a GGUF file with a whole tokenizer"):
        return _from_metadata(_GgufEntries(metadata, name))


class _GgufEntries:
    """The entries `tokenizer.ggml.*` of a GGUF file, each checked when it is asked for."""

    def __init__(self, metadata: Mapping[str, Any], name: str):
        self.metadata, self.name = metadata, name

    def __call__(self, key: str, field: Field) -> Any:
        """The value of a field; its default if there is none."""
        full = f"tokenizer.ggml.{key}"
        return declared(self.metadata, {full: field}, self.name)[full]

    def strings(self, key: str) -> list[str]:
        """A list of texts, which must be there."""
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None or not len(value):
            raise Unreadable(
                f"{self.name} must have tokenizer.ggml.{key} in its metadata, got none"
            )
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise Unreadable(
                f"tokenizer.ggml.{key} of {self.name} must be a list of texts, got others"
            )
        return value

    def numbers(self, key: str, count: int) -> np.ndarray | None:
        """Numbers, one a token; None if there are none."""
        value = self.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        with reading(f"tokenizer.ggml.{key} of {self.name}", "numbers"):
            array = np.asarray(value)
        if array.shape != (count,) or array.dtype.kind not in "iuf":
            raise Unreadable(
                f"tokenizer.ggml.{key} of {self.name} must have one number a token ({count}), got "
                f"{array.dtype} of shape {array.shape}"
            )
        return array

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        return self(key, truth(default=default))


def _from_metadata(given: _GgufEntries) -> Tokenizer:
    name, metadata = given.name, given.metadata
    kind = given("model", text(("gpt2", "llama")))
    tokens = given.strings("tokens")
    longest = max(map(len, tokens))
    bound = LONGEST_TOKEN if kind == "gpt2" else _LONGEST_PIECE
    if len(tokens) > MOST_TOKENS or longest > bound:
        raise Unreadable(
            f"tokenizer.ggml.tokens of {name} must be at most {MOST_TOKENS} tokens of at most "
            f"{bound} characters, got {len(tokens)} of at most {longest}"
        )
    ids = {token: i for i, token in enumerate(tokens)}
    # Parts of characters, which a text cannot hold, may look alike.
    if len(ids) < len(tokens) and len({*ids}) + sum("\ufffd" in t for t in tokens) < len(tokens):
        twice = next(token for i, token in enumerate(tokens) if ids[token] != i)
        raise Unreadable(
            f"tokenizer.ggml.tokens of {name} must have each token once, got {twice!r:.80} twice"
        )
    kinds = given.numbers("token_type", len(tokens))
    kinds = np.ones(len(tokens), int) if kinds is None else kinds
    token_id = integer(0, len(tokens) - 1, default=None)
    pre = metadata.get("tokenizer.ggml.pre")
    if kind == "gpt2":
        pre = given("pre", text(tuple(_PRE)))
        backend = _byte_level(given.strings("merges"), pre, ids, name)
    else:
        scores = given.numbers("scores", len(tokens))
        if scores is None or not np.isfinite(scores).all():
            wrong = "none" if scores is None else "numbers that are not finite"
            raise Unreadable(f"{name} must have tokenizer.ggml.scores in its metadata, got {wrong}")
        unknown = given("unknown_token_id", token_id)
        backend = _sentence_piece(
            ids,
            scores.astype(np.float64).tolist(),
            unknown=None if unknown is None else tokens[unknown],
            add_space=given.flag("add_space_prefix", True),
        )
    _add_tokens(backend, tokens, kinds, swallow=_swallowing(metadata, kind))
    bos = given("bos_token_id", token_id)
    if given.flag("add_bos_token", kind == "llama" or pre in _LLAMA3) and bos is not None:
        processors = require("tokenizers.processors")
        backend.post_processor = processors.TemplateProcessing(
            single=[f"{tokens[bos]}:0", "$A:0"],
            pair=[f"{tokens[bos]}:0", "$A:0", f"{tokens[bos]}:1", "$B:1"],
            special_tokens=[(tokens[bos], bos)],
        )
    stops = {given(f"{end}_token_id", token_id) for end in ("eos", "eot", "eom")} - {None}
    # Files of chat models often name only the end of a text, not that of a turn.
    ends = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>")
    stops |= {ids[end] for end in ends if end in ids and kinds[ids[end]] in (_CONTROL, _USER)}
    return Tokenizer(backend, stop_ids=stops, bos_id=bos)


def _swallowing(metadata: Mapping[str, Any], kind: str) -> bool:
    """Whether the marks of a chat take the white space after them, which GGUF does not say.

    They do in Phi-3, by whose name llama.cpp goes, too.
    """
    called = str(metadata.get("general.name", "")).lower()
    is_phi3 = (
        metadata.get("general.architecture") == "phi3" or "phi-3" in called or "phi3" in called
    )
    return kind == "llama" and is_phi3


def _byte_level(joined: Sequence[str], pre: str, ids: Mapping[str, int], name: str) -> Any:
    """Backend of byte-level byte-pair encoding; `joined` are merges, as pairs with a space."""
    tokenizers = require("tokenizers")
    merges = [tuple(pair.split(" ", 1)) for pair in joined]
    for merge in merges:
        # The package would end the process's thread over it.
        if len(merge) != 2 or any(part not in ids for part in (*merge, "".join(merge))):
            raise Unreadable(
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
    scores: Sequence[float],
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


def _merges(ids: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Pairs whose union is a token, the best score first.

    Pairs with the same union come in the order of their halves' ids.
    """
    lengths = {len(token) for token in ids}
    tokens = {i: token for token, i in ids.items()}
    pairs = []
    for token, i in ids.items():
        for cut in range(1, len(token)):
            # A long token has no halves of most lengths.
            if cut not in lengths or len(token) - cut not in lengths:
                continue
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                pairs.append((-scores[i], i, left, right))
    pairs.sort()
    return [(tokens[left], tokens[right]) for *_, left, right in pairs]


_KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>")


def _add_tokens(
    backend: Any, tokens: Sequence[str], kinds: Int[np.ndarray, " V"], *, swallow: bool
) -> None:
    """Add tokens that are never made of others.

    These are control tokens, which decoding leaves out, and those of the user. With `swallow`, all
    control tokens but the ends of texts take the white space after them, and so does "</s>".
    """
    added_token = require("tokenizers").AddedToken
    control, user = [], []
    for token, kind in zip(tokens, kinds, strict=True):
        takes = swallow and token not in _KEEPS_SPACE and (kind == _CONTROL or token == "</s>")
        if kind in (_CONTROL, _UNKNOWN):
            control.append(added_token(token, special=True, normalized=False, rstrip=takes))
        elif kind == _USER:
            user.append(added_token(token, special=False, normalized=False, rstrip=takes))
    backend.add_special_tokens(control)
    backend.add_tokens(user)
