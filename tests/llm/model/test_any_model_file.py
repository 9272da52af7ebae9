"""Whatever a model's file holds: a result, or one error that names the file or the entry."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isounc.llm.model import gguf as gguf_file
from isounc.llm.model import gguf_config, huggingface
from isounc.llm.model.gguf_tokenizer import tokenizer_from_gguf
from isounc.llm.model.huggingface_config import from_huggingface
from isounc.llm.model.tokens import tokenizer_from_json
from tests.llm import files as llm_files

EXAMPLES = settings(max_examples=25, deadline=10_000)
ERRORS = (ValueError, TypeError, OSError)

NUMBERS = st.one_of(
    st.integers(), st.sampled_from([0, -1, 1, 2, 64, 2**31, 2**63, 2**64, 10**400]), st.floats()
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5), st.just("a" * 100_000)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


def changed(tree, draw):
    """A JSON value in which one place holds something else, or is gone."""
    if isinstance(tree, dict) and tree and not draw(st.integers(0, 6)) == 0:
        key = draw(st.sampled_from(sorted(tree)))
        if draw(st.integers(0, 9)) == 0:
            return {k: v for k, v in tree.items() if k != key}
        return tree | {key: changed(tree[key], draw)}
    if isinstance(tree, list) and tree and not draw(st.integers(0, 6)) == 0:
        at = draw(st.integers(0, min(len(tree), 20) - 1))
        return [*tree[:at], changed(tree[at], draw), *tree[at + 1 :]]
    return draw(VALUES)


def damaged(content, draw, within=None):
    """Bytes of which a few are others, or that end early."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(within or len(content), len(content)) - 1))
        new = draw(
            st.sampled_from([b"\0", b"\xff", b"\x80", b"{", b"[", b'"', struct.pack("<Q", 2**60)])
        )
        content[at : at + len(new)] = new
    return bytes(content[: draw(st.sampled_from([len(content), len(content) // 2]))])


def check(read, *names):
    try:
        read()
    except ERRORS as error:
        assert any(name in str(error) for name in names), str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llm_files.write_folder(tmp_path_factory.mktemp("models") / "tiny", "llama")


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    return path, llm_files.write_gguf(path, "llama").read_bytes()


@EXAMPLES
@given(st.data(), st.sampled_from(sorted(set(llm_files.ABOUT))))
def test_any_config_json(data, name):
    config = changed(llm_files.ABOUT[name]["config"], data.draw)
    if isinstance(config, dict):
        check(lambda: from_huggingface(config), "config.json", "must")


def test_text_of_config_json(folder):
    path, good = folder / "config.json", (folder / "config.json").read_bytes()

    @EXAMPLES
    @given(st.data())
    def run(data):
        path.write_bytes(damaged(good, data.draw))
        check(
            lambda: from_huggingface(huggingface.open_folder(folder).config), "config.json", "must"
        )

    run()
    path.write_bytes(good)


def test_any_index(folder):
    index = {"metadata": {"total_size": 1}, "weight_map": {"a": "model.safetensors"}}
    path = folder / "model.safetensors.index.json"

    @EXAMPLES
    @given(st.data())
    def run(data):
        path.write_text(json.dumps(changed(index, data.draw)))
        check(lambda: huggingface.open_folder(folder), "model.safetensors.index.json", "tiny")

    run()
    path.unlink()


def test_any_tokens_that_begin_and_end_texts(folder):
    opened = huggingface.open_folder(folder)
    config = from_huggingface(opened.config)
    generation = {"eos_token_id": [1, 2], "bos_token_id": 1}
    path = folder / "generation_config.json"

    @EXAMPLES
    @given(st.data())
    def run(data):
        path.write_text(json.dumps(changed(generation, data.draw)))
        check(lambda: huggingface.tokenizer_of(opened, config), "generation_config.json")

    run()
    path.unlink()


def test_any_tokenizer_json(folder):
    path = folder / "tokenizer.json"
    good = json.loads(path.read_text())
    good["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"String": "a"}, "content": "b"},
            {"type": "Prepend", "prepend": "a"},
        ],
    }
    good["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }  # fmt: skip
    assert tokenizer_from_written(path, good).encode("abc")[0] == 1

    def read(content):
        tokenizer = tokenizer_from_written(path, content)
        tokenizer.decode(tokenizer.encode("abc, abc <s>"))

    # Parts by themselves, since most of the file is vocabulary.
    @EXAMPLES
    @given(st.data(), st.sampled_from(sorted(good)))
    def run(data, part):
        check(lambda: read(good | {part: changed(good[part], data.draw)}), "tokenizer")

    run()

    text = json.dumps(good).encode()

    @EXAMPLES
    @given(st.data())
    def run_bytes(data):
        path.write_bytes(damaged(text, data.draw))
        check(lambda: tokenizer_from_json(path, stop_ids=(), bos_id=None), "tokenizer.json")

    run_bytes()
    path.write_text(json.dumps(good))


def tokenizer_from_written(path, content):
    path.write_text(json.dumps(content))
    return tokenizer_from_json(path, stop_ids=(), bos_id=None)


def read_gguf(path: Path):
    file = gguf_file.open_gguf(path)
    config = gguf_config.config_of(file)
    tokenizer_from_gguf(file.metadata, path.name).encode("abc")
    for _ in gguf_file.weights_of(file, config):
        pass


def test_any_gguf(gguf_bytes):
    path, good = gguf_bytes
    read_gguf(path)

    @EXAMPLES
    @given(st.data())
    def run(data):
        path.write_bytes(damaged(good, data.draw, within=3000))
        check(lambda: read_gguf(path), "tiny.gguf", "must")

    run()


def test_any_metadata_of_gguf(gguf_bytes):
    path, good = gguf_bytes
    path.write_bytes(good)
    file = gguf_file.open_gguf(path)
    keys = sorted(file.metadata)

    @EXAMPLES
    @given(st.sampled_from(keys), VALUES)
    def run(key, value):
        other = file._replace(metadata={**file.metadata, key: value})

        def read():
            gguf_config.config_of(other)
            tokenizer_from_gguf(other.metadata, path.name).encode("abc")

        check(read, "tiny.gguf", "must")

    run()


def test_any_safetensors(folder):
    opened = huggingface.open_folder(folder)
    config = from_huggingface(opened.config)
    path = folder / "model.safetensors"
    good = path.read_bytes()
    size = struct.unpack("<Q", good[:8])[0]
    head = json.loads(good[8 : 8 + size])

    def read():
        for _ in huggingface.weights_of(opened, config):
            pass

    @EXAMPLES
    @given(st.data(), st.booleans())
    def run(data, parsed):
        if parsed:
            text = json.dumps(changed(head, data.draw)).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + good[8 + size :])
        else:
            path.write_bytes(damaged(good, data.draw, within=8 + size))
        check(read, "model.safetensors")

    run()
    path.write_bytes(good)
