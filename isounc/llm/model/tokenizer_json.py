"""Checks of a `tokenizer.json`: only known parts of byte-pair tokenizers, of a bounded size.

The package `tokenizers` runs whatever the file says. A chain of replacements can double a text forty
times over, a pattern can take for ever, and some tables end the process. Here each part is one that
a decoder of `isounc.llm.model.config` may have, with fields of declared kinds and ranges.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from isounc.fields import (
    Field,
    Unreadable,
    anything,
    declared,
    entries,
    integer,
    items,
    number,
    one_of,
    section,
    shortened,
    text,
    truth,
)

MOST_TOKENS, LONGEST_TOKEN = 2**19, 1024
_MOST_PARTS, _MOST_GROWTH = 32, 64
_BRACKETS = re.compile(r"\\.|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]", re.DOTALL)
"""An escaped character, or a class of characters."""
_QUANTIFIER = re.compile(r"[*+?]|\{(\d*)(,?)(\d*)\}")

_FLAGS = {"add_prefix_space": truth(default=True), "use_regex": truth(default=True)}
_ONE = text(longest=16)
_METASPACE = {"replacement": text(longest=1)}
_PATTERN = section(
    {"String": text(longest=256, default=None), "Regex": text(longest=4096, default=None)}
)
_REPLACE = {"pattern": _PATTERN, "content": text(longest=64)}
_PARTS: dict[str, dict[str, dict[str, Field]]] = {
    "normalizer": {
        **{kind: {} for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents",
                                 "Nmt", "ByteLevel")},
        "Prepend": {"prepend": _ONE}, "Replace": _REPLACE,
    },
    "pre_tokenizer": {
        **{kind: {} for kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Digits",
                                 "Punctuation", "UnicodeScripts")},
        "ByteLevel": _FLAGS, "Metaspace": _METASPACE, "Split": {"pattern": _PATTERN},
    },
    "decoder": {
        **{kind: {} for kind in ("ByteLevel", "ByteFallback", "Fuse")},
        "Metaspace": _METASPACE, "Replace": _REPLACE,
        "Strip": {"content": text(longest=1), "start": integer(0, 16), "stop": integer(0, 16)},
    },
    "post_processor": {
        "ByteLevel": _FLAGS,
        "TemplateProcessing": {"single": anything(), "special_tokens": anything()},
    },
}  # fmt: skip
_INNER = {
    "normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders",
    "post_processor": "processors",
}  # fmt: skip
"""Fields in which a `Sequence` of each holds its parts."""


def check_tokenizer(content: Any, what: str) -> None:
    """Raise an `Unreadable` unless the content of a `tokenizer.json` is in the bounds of this module.

    Parameters
    ----------
    content
        The parsed file.
    what
        Its name in messages.
    """
    parts = {role: one_of(section({}), default=None) for role in _PARTS}
    token = integer(0, MOST_TOKENS)
    added = {"id": token, "content": text(longest=LONGEST_TOKEN)}
    top = declared(
        content,
        {"model": section({}), "added_tokens": items(section(added), MOST_TOKENS, default=())}
        | parts,
        what,
    )
    model = f"model of {what}"
    given = content["model"]
    fields = {
        "type": text(("BPE",), default="BPE"),
        "vocab": entries(token, MOST_TOKENS),
        "merges": anything(),
        "unk_token": text(default=None),
        # A token for a part of a word, and pairs left out at random, which no decoder here has.
        "continuing_subword_prefix": text(("",), default=None),
        "end_of_word_suffix": text(("",), default=None),
        "dropout": number(0, 0, default=None),
    }
    bpe = declared(given, fields, model)
    vocabulary = bpe["vocab"]
    if longest := [t for t in vocabulary if len(t) > LONGEST_TOKEN]:
        raise Unreadable(
            f"tokens of {what} must have at most {LONGEST_TOKEN} characters, got {len(longest[0])}"
        )
    if len(set(vocabulary.values())) != len(vocabulary):
        raise Unreadable(f"vocab of {model} must have an id for each token, got one for two")
    if bpe["unk_token"] is not None and bpe["unk_token"] not in vocabulary:
        raise Unreadable(f"unk_token of {model} must be a token, got {bpe['unk_token']!r:.80}")
    known = {*vocabulary, *(a["content"] for a in top["added_tokens"])}
    for role in _PARTS:
        growth = 1.0
        found = list(_flattened(content.get(role), role, f"{role} of {what}"))
        if len(found) > _MOST_PARTS:
            raise Unreadable(
                f"{role} of {what} must have at most {_MOST_PARTS} parts, got {len(found)}"
            )
        for kind, values, place in found:
            growth *= _growth(kind, values, place)
            if kind == "TemplateProcessing":
                _check_template(values, known, place)
        if growth > _MOST_GROWTH:
            raise Unreadable(
                f"{role} of {what} must make a text at most {_MOST_GROWTH} times as long, got "
                f"{growth:g} times"
            )


def added_ids(content: Mapping[str, Any]) -> dict[str, int]:
    """Ids that the file says its added tokens have."""
    return {token["content"]: token["id"] for token in content.get("added_tokens") or ()}


def _flattened(value: Any, role: str, place: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Kinds and fields of all parts within each other."""
    if value is None:
        return
    kind = declared(value, {"type": text(("Sequence", *_PARTS[role]))}, place)["type"]
    if kind == "Sequence":
        inner = declared(value, {_INNER[role]: items(anything(), _MOST_PARTS)}, place)
        for part in inner[_INNER[role]]:
            yield from _flattened(part, role, place)
        return
    yield kind, declared(value, _PARTS[role][kind], place), f"{kind} of {place}"


def _growth(kind: str, values: Mapping[str, Any], place: str) -> float:
    """Factor by which a part may make a text longer, in bytes."""
    if kind in ("ByteLevel", "Metaspace"):
        return 2.0
    if "pattern" not in values:
        return 1.0
    string, regex = values["pattern"]["String"], values["pattern"]["Regex"]
    if (string is None) == (regex is None) or string == "":
        raise Unreadable(
            f"pattern of {place} must be a String or a Regex, got {shortened(values['pattern'])}"
        )
    if regex is not None:
        _check_pattern(regex, place)
    if kind == "Split":
        return 1.0
    content = values["content"].encode("utf-8", errors="replace")
    if regex is not None:
        return 1.0 + len(content)  # before each character
    return max(1.0, len(content) / len(string.encode("utf-8", errors="replace")))


def _check_pattern(pattern: str, place: str) -> None:
    """Refuse a repeated group with a choice or a repetition inside, which can take for ever."""
    plain = _BRACKETS.sub("x", pattern)
    # For each open group, whether there was a choice or a repetition inside.
    open_groups, last = [False], False
    at = 0
    while at < len(plain):
        symbol = plain[at]
        at += 1
        if symbol == "(":
            open_groups.append(False)
            at += plain.startswith("?", at)  # which begins the kind of a group
        elif symbol == "|":
            open_groups[-1] = True
        closed = False
        if symbol == ")" and len(open_groups) > 1:
            last, closed = open_groups.pop(), True
            open_groups[-1] |= last
        match = _QUANTIFIER.match(plain, at) if symbol not in "(|" else None
        if match is None or match[0] == "?":
            continue
        least, comma, most = match[1], match[2], match[3]
        varies = match[0] in ("*", "+") or bool(comma)
        repeats = varies or int(least or 1) > 1
        if repeats and closed and last:
            raise Unreadable(
                f"pattern of {place} must not repeat a group with a choice or a repetition inside, "
                f"which can take for ever, got {pattern!r:.200}"
            )
        if max(int(least or 0), int(most or 0)) > 1000:
            raise Unreadable(f"pattern of {place} must repeat at most 1000 times, got {match[0]}")
        open_groups[-1] |= varies


def _check_template(values: Mapping[str, Any], known: set[str], place: str) -> None:
    """A template must have the text once, and special tokens that there are."""
    name = section({"id": text(longest=LONGEST_TOKEN)}, default=None)
    piece = section({"SpecialToken": name, "Sequence": name})
    pieces = items(piece, 16).read(values["single"], f"single of {place}")
    special = section({"ids": items(integer(0, MOST_TOKENS), 16), "tokens": items(text(), 16)})
    tokens = entries(special, 64).read(values["special_tokens"], f"special_tokens of {place}")
    if sum(piece["Sequence"] is not None for piece in pieces) != 1:
        raise Unreadable(f"single of {place} must have the text once, got {pieces!r:.200}")
    for piece in pieces:
        token = piece["SpecialToken"]
        if token is not None and token["id"] not in tokens:
            raise Unreadable(
                f"single of {place} must have tokens of its special_tokens, got {token['id']!r:.80}"
            )
    for token in tokens.values():
        if missing := [name for name in token["tokens"] if name not in known]:
            raise Unreadable(f"special_tokens of {place} must be tokens, got {missing[0]!r:.80}")
