"""Tokenizers that are wrong without a word, never end or panic: refused by name, or right."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers

from isounc.llm import load_model
from isounc.llm.model.gguf_tokenizer import tokenizer_from_gguf
from isounc.llm.model.tokens import Tokenizer
from tests.llm import files as llm_files


def sentence_piece(words, **changes):
    """A tokenizer of pieces at given ids, up to the largest of them."""
    size = max(words) + 1
    tokens = [words.get(i, f"[unused{i}]") for i in range(size)]
    marks = {i for i, token in words.items() if token.startswith("<")}
    metadata = {
        "general.architecture": "phi3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(size, dtype=float),
        "tokenizer.ggml.token_type": np.array([3 if i in marks else 1 for i in range(size)]),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    metadata |= {f"tokenizer.ggml.{k}": v for k, v in changes.items()}
    return {k: v for k, v in metadata.items() if v is not None}


PHI3 = {
    1: "<s>", 2: "</s>", 13: "\n", 3: "\u2581", 4: "H", 5: "e", 6: "l", 7: "o", 8: "\u2581H",
    9: "\u2581He", 10: "ll", 11: "llo", 15043: "\u2581Hello", 32000: "<|endoftext|>",
    32001: "<|assistant|>", 32007: "<|end|>", 32010: "<|user|>",
}  # fmt: skip


def test_marks_of_phi3_take_the_space_after_them():
    own = tokenizer_from_gguf(sentence_piece(PHI3), "phi3")
    text = "<|user|>\nHello<|end|>\n<|assistant|>\n"
    assert own.encode(text, special=False) == [32010, 15043, 32007, 32001]
    assert own.encode("<|endoftext|>\n", special=False)[0] == 32000
    assert len(own.encode("<|endoftext|>\n", special=False)) == 3  # space, newline
    # By its name where the architecture is another; and no other model's marks do.
    named = sentence_piece(PHI3) | {"general.architecture": "llama"}
    assert len(tokenizer_from_gguf(named, "x").encode(text, special=False)) > 4
    named["general.name"] = "Phi-3 Mini 4k"
    assert tokenizer_from_gguf(named, "x").encode(text, special=False) == [
        32010,
        15043,
        32007,
        32001,
    ]


SMALL = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "a", 4: "b", 5: "ab"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"eos_token_id": 10**9},
            "tokenizer.ggml.eos_token_id of x must be an integer from 0 to 5",
        ),
        ({"bos_token_id": -1}, "tokenizer.ggml.bos_token_id of x must be an integer from 0 to 5"),
        ({"unknown_token_id": 6}, "tokenizer.ggml.unknown_token_id of x must be an integer"),
        ({"eot_token_id": "2"}, "tokenizer.ggml.eot_token_id of x must be an integer"),
        ({"token_type": [1, 1]}, r"token_type of x must have one number a token \(6\), got"),
        ({"scores": [1.0]}, "scores of x must have one number a token"),
        ({"scores": [float("nan")] * 6}, "tokenizer.ggml.scores in its metadata, got numbers that"),
        ({"scores": None}, "x must have tokenizer.ggml.scores in its metadata, got none"),
        ({"tokens": None}, "x must have tokenizer.ggml.tokens in its metadata, got none"),
        (
            {"tokens": np.arange(6)},
            "tokenizer.ggml.tokens of x must be a list of texts, got others",
        ),
        ({"tokens": ["a"] * 6}, "must have each token once, got 'a' twice"),
        ({"tokens": ["a" * 100_000, *"bcdef"]}, "at most 256 characters, got 6 of at most 100000"),
        ({"add_bos_token": "yes"}, "tokenizer.ggml.add_bos_token of x must be true or false"),
        ({"add_space_prefix": 1}, "tokenizer.ggml.add_space_prefix of x must be true or false"),
    ],
)
def test_tokenizers_of_gguf(changes, words):
    with pytest.raises(ValueError, match=words):
        tokenizer_from_gguf(sentence_piece(SMALL, **changes), "x")


# tokenizer.json.


def replace(old, new):
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def chain(kind, parts):
    return {"type": "Sequence", kind: parts}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


TEMPLATE = {
    "type": "TemplateProcessing", "pair": [],
    "single": [{"SpecialToken": {"id": "<q>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {},
}  # fmt: skip
ADDED = {
    "special": True,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalizer": chain("normalizers", [replace("a", "aa")] * 30)}, "64 times as long"),
        ({"normalizer": chain("normalizers", [{"type": "NFC"}] * 33)}, "a list of 0 to 32 values"),
        (
            {"normalizer": replace("", "aaaa")},
            "pattern of Replace of normalizer .* must be a String",
        ),
        ({"normalizer": replace("a", "a" * 65)}, "content of normalizer of tokenizer.json must be"),
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
            "type of norm",
        ),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}}, "prepend of normalizer of"),
        ({"normalizer": []}, "normalizer of tokenizer.json must be a mapping"),
        ({"normalizer": {}}, "normalizer of tokenizer.json must have type"),
        ({"pre_tokenizer": chain("pretokenizers", [{"type": "ByteLevel"}] * 30)}, "as long, got"),
        ({"pre_tokenizer": split("(a+)+$")}, "must not repeat a group with a choice or a repet"),
        ({"pre_tokenizer": split("(?:a|a)*$")}, "must not repeat a group with a choice"),
        ({"pre_tokenizer": split("(?:x(a{1,9})y){2,50}")}, "must not repeat a group with"),
        ({"pre_tokenizer": split("a{5000}")}, "must repeat at most 1000 times"),
        ({"pre_tokenizer": split("(")}, "that the package tokenizers can read"),
        (
            {"decoder": chain("decoders", [replace("a", "aa")] * 30)},
            "decoder of tokenizer.json must",
        ),
        ({"decoder": {"type": "CTC"}}, "type of decoder of tokenizer.json must be one of"),
        ({"post_processor": TEMPLATE}, "must have tokens of its special_tokens, got '<q>'"),
        ({"post_processor": TEMPLATE | {"single": []}}, "must have the text once"),
        (
            {"added_tokens": [ADDED | {"id": 4 * 10**9, "content": "q"}]},
            "id of item 0 of added_tokens",
        ),
        ({"added_tokens": [ADDED | {"id": 70, "content": "q"}]}, "must have the ids that follow"),
        ({"added_tokens": 3}, "added_tokens of tokenizer.json must be a list"),
        ({"model": None}, "model of tokenizer.json must be a mapping"),
        (
            {"model": {"type": "Unigram", "vocab": []}},
            "type of model of tokenizer.json must be one",
        ),
        ({"model": {"vocab": [], "merges": []}}, "vocab of model of tokenizer.json must be"),
        ({"model": {"vocab": {"a": -1}, "merges": []}}, "a of vocab of model of tokenizer.json"),
        ({"model": {"vocab": {"a": 0, "b": 0}, "merges": []}}, "must have an id for each token"),
        ({"model": {"vocab": {"a" * 10**5: 0}, "merges": []}}, "at most 1024 characters"),
        (
            {"model": {"vocab": {"a": 0}, "merges": [["a", "a"]]}},
            "tokenizers can read, got one whose",
        ),
        ({"model": {"vocab": {"a": 0}, "merges": [], "dropout": 0.5}}, "dropout of model of"),
        ({"model": {"vocab": {"a": 0}, "merges": [], "unk_token": "b"}}, "unk_token of model of"),
        (
            {"model": {"vocab": {"a": 0}, "merges": [], "continuing_subword_prefix": "##"}},
            "continuing",
        ),
    ],
)
def test_parts_of_tokenizer_json(tmp_path, changes, words):
    path = llm_files.write_folder(tmp_path / "tiny", "llama")
    content = json.loads((path / "tokenizer.json").read_text()) | changes
    (path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        load_model(path)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+(?i:'s|'t)?|\s+(?!\S)|\s+",
        r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
        r"[A-Za-z(|)+*]+\)|\(\|",
    ],
)
def test_patterns_of_real_tokenizers_pass(tmp_path, pattern):
    path = llm_files.write_folder(tmp_path / "tiny", "llama")
    content = json.loads((path / "tokenizer.json").read_text())
    content["pre_tokenizer"] = chain("pretokenizers", [split(pattern), content["pre_tokenizer"]])
    (path / "tokenizer.json").write_text(json.dumps(content))
    assert (
        load_model(path).tokenizer.encode("abc d") == llm_files.tiny_tokenizer().encode("abc d").ids
    )


def test_a_panic_while_encoding_names_the_text():
    backend = llm_files.tiny_tokenizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("(a+)+$"), "isolated")

    with pytest.raises(
        ValueError, match=r"tokenizer must be one that can encode 'aaaa.*retry-limit"
    ):
        Tokenizer(backend).encode("a" * 40 + "b")


def test_an_empty_vocabulary(tmp_path):
    path = llm_files.write_folder(tmp_path / "tiny", "llama")
    content = json.loads((path / "tokenizer.json").read_text())
    content |= {"model": {"vocab": {}, "merges": []}, "added_tokens": []}
    (path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="must have the same vocabulary, got 0 tokens and 64 rows"):
        load_model(path)
