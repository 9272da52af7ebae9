"""Model files that are wrong without a word, from the field: each is refused by name, or right."""

from __future__ import annotations

import json
import struct

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from isounc.llm import GenerationSettings, generate, load_model
from isounc.llm.answers.norms import answer_log_probs, answer_norms
from isounc.llm.answers.packing import pack
from isounc.llm.model import gguf as gguf_file
from isounc.llm.model import gguf_config
from isounc.llm.model.config import Rotary
from isounc.llm.model.huggingface_config import from_huggingface
from tests.llm import files as llm_files

LLAMA = llm_files.ABOUT["llama"]["config"]
ROPE = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}
LLAMA3 = ROPE | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"rope_parameters": ROPE | {"factor": 0}},
            "factor of rope_parameters of config.json must",
        ),
        ({"rope_parameters": ROPE | {"factor": -2.0}}, "must be a finite number from 1 to"),
        ({"rope_parameters": ROPE | {"factor": float("nan")}}, "must be a finite number from 1 to"),
        ({"rope_parameters": ROPE | {"factor": "2"}}, "must be a finite number from 1 to"),
        ({"rope_parameters": ROPE | {"rope_theta": 0}}, "rope_theta of rope_parameters of config"),
        (
            {"rope_parameters": ROPE | {"partial_rotary_factor": 2}},
            "partial_rotary_factor of rope_",
        ),
        ({"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}}, "low_freq_factor of .* below"),
        ({"rope_parameters": {"rope_type": "linear"}}, "must have factor in rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type of config.json must be one of"),
        ({"rope_parameters": 3}, "rope_parameters of config.json must be a mapping"),
        ({"rope_scaling": ["linear"], "rope_parameters": None}, "rope_scaling of config.json must"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings of config.json must be true or false"),
        ({"attention_bias": 1}, "attention_bias of config.json must be true or false, got 1"),
        ({"sliding_window": -5}, "sliding_window of config.json must be an integer from 1"),
        ({"sliding_window": 2.5}, "sliding_window of config.json must be an integer from 1"),
        ({"max_window_layers": -1}, "max_window_layers of config.json must be an integer from 0"),
        ({"layer_types": ["full_attention"]}, r"must have one entry a layer \(2\), got 1"),
        ({"layer_types": [["full_attention"]] * 2}, "item 0 of layer_types of config.json must be"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers of config.json must be .* to 1024, got"),
        ({"num_hidden_layers": 10**18}, "num_hidden_layers of config.json must be an integer"),
        ({"head_dim": 2**40}, "head_dim of config.json must be an integer from 2 to 65536"),
        ({"vocab_size": True}, "vocab_size of config.json must be an integer"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps of config.json must be a finite number from 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps of config.json must be a finite number"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar of config.json must be a finite"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping of config.json must be off"),
        ({"quantization_config": {"bits": 4}}, "quantization_config of config.json must be off"),
        ({"hidden_act": ["silu"]}, "hidden_act of config.json must be text"),
        ({"model_type": ["llama"]}, "model_type of config.json must be one of"),
        ({"model_type": "gemma3", "text_config": [1]}, "text_config of config.json must be a map"),
    ],
)
def test_entries_of_config_json(changes, words):
    with pytest.raises(ValueError, match=words):
        from_huggingface(LLAMA | changes)


def test_null_is_no_window_and_no_number_of_heads():
    config = {**LLAMA, "model_type": "mistral", "sliding_window": None, "num_key_value_heads": None}
    found = from_huggingface(config)
    assert found.windows == () and found.num_kv_heads == LLAMA["num_attention_heads"]
    del config["sliding_window"]
    assert set(from_huggingface(config).windows) == {4096}


@pytest.mark.parametrize("divisor", [0.0, -1.0, float("nan"), float("inf")])
def test_divisors_of_frequencies(divisor):
    with pytest.raises(ValueError, match="divisors of the rotary embedding must be a positive"):
        Rotary(10000.0, 4, (1.0, divisor))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", {"eos_token_id": 10**9}, "eos_token_id of config.json must be .* 0 to 63"),
        ("config.json", {"eos_token_id": [2, -1]}, "eos_token_id of config.json must be"),
        ("config.json", {"bos_token_id": 64}, "bos_token_id of config.json must be"),
        ("config.json", {"bos_token_id": "1"}, "bos_token_id of config.json must be"),
        ("generation_config.json", {"eos_token_id": 1.5}, "of generation_config.json must be"),
        ("generation_config.json", [1], "generation_config.json of tiny must be a JSON object"),
        (
            "model.safetensors.index.json",
            {"weight_map": 3},
            "weight_map of model.safetensors.index",
        ),
        ("model.safetensors.index.json", {}, "index.json of tiny must have weight_map"),
        ("model.safetensors.index.json", {"weight_map": {"a": 1}}, "a of weight_map of"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../x"}}, "got no ../x"),
        ("model.safetensors.index.json", {"weight_map": {"a": "b.safetensors"}}, "or an index of"),
    ],
)
def test_other_files_of_a_folder(tmp_path, file, content, words):
    path = llm_files.write_folder(tmp_path / "tiny", "llama")
    (path / "b.safetensors").write_bytes(b"")
    if isinstance(content, dict) and file == "config.json":
        content = LLAMA | content
    (path / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        load_model(path)


def test_the_main_file_of_weights_counts_alone(tmp_path):
    """Averages and states of an optimiser lie beside it, as transformers leaves them."""
    path = llm_files.write_folder(tmp_path / "tiny", "llama")
    right = load_model(path)
    doubled = {name: 2 * array for name, array in llm_files.weights("llama").items()}
    for name in ("model_ema", "optimizer", "pytorch_model"):
        safetensors.numpy.save_file(doubled, path / f"{name}.safetensors")
    again = load_model(path)
    assert again.sha256 == right.sha256
    np.testing.assert_array_equal(again.decoder.embed[...], right.decoder.embed[...])
    (path / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"one whole set of shards, got model_ema\.safetensors, opt"
    ):
        load_model(path)
    for name in ("optimizer", "pytorch_model"):
        (path / f"{name}.safetensors").unlink()
    only = load_model(path)
    np.testing.assert_array_equal(only.decoder.embed[...], 2 * right.decoder.embed[...])


def test_a_tensor_in_two_shards(tmp_path):
    path = llm_files.write_folder(tmp_path / "tiny", "llama", shards=2)
    file = path / "model-00002-of-00002.safetensors"
    shard = dict(safetensors.numpy.load_file(file))
    shard["model.embed_tokens.weight"] = np.ones_like(
        llm_files.weights("llama")["model.embed_tokens.weight"]
    )
    safetensors.numpy.save_file(shard, file)
    with pytest.raises(ValueError, match="tiny must have each tensor once, got embed twice"):
        load_model(path)


def one_weight(path, change):
    """A folder in which one matrix is of another type."""
    tensors = llm_files.weights("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = change(tensors[name])
    safetensors.numpy.save_file(tensors, path / "model.safetensors")


@pytest.mark.parametrize(
    ("kind", "named"),
    [(ml_dtypes.float8_e4m3fn, "F8_E4M3"), (ml_dtypes.float8_e5m2, "F8_E5M2"), (np.int32, "I32"),
     (np.int8, "I8"), (np.uint8, "U8"), (bool, "BOOL")],
)  # fmt: skip
def test_weights_that_need_a_scale(tmp_path, kind, named):
    path = llm_files.write_folder(tmp_path / "tiny", "llama")
    one_weight(path, lambda array: array.astype(kind))
    with pytest.raises(
        ValueError,
        match=rf"model\.safetensors must have its weights in .*, got {named} for model\.layers\.0",
    ):
        load_model(path)


def test_weights_in_other_floating_types(tmp_path):
    path = llm_files.write_folder(tmp_path / "tiny", "llama")
    right = load_model(path).decoder.layers[0].up[...]
    for kind in (np.float64, np.float16, ml_dtypes.bfloat16):
        one_weight(path, lambda array, kind=kind: array.astype(kind))
        found = load_model(path).decoder.layers[0].up[...]
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, right, rtol=1e-2)


# GGUF.


def header(values=(), tensors=()):
    """A GGUF file of given metadata (key, kind, bytes) and tensors (name, shape, kind, start)."""

    def string(text):
        return struct.pack("<Q", len(text)) + text.encode()

    content = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    for key, kind, body in values:
        content += string(key) + struct.pack("<I", kind) + body
    for name, shape, kind, start in tensors:
        content += string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        content += struct.pack("<IQ", kind, start)
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header([("a", 4, bytes(4))] * 2), "'a' is there twice"),
        (header((), [("t", (4,), 0, 0)] * 2) + bytes(64), "tensor 't' is there twice"),
        (header((), [("t", (1,) * 5, 0, 0)]) + bytes(64), "tensor 't' has 5 axes"),
        (header((), [("t", (16,), 0, 0), ("u", (16,), 0, 0)]) + bytes(96), "or overlaps others"),
        (header([("a", 9, struct.pack("<IQ", 9, 1) + bytes(99))]), "9 before .* is not a type"),
        (header([("a", 99, bytes(9))]), "99 before .* is not a type of value"),
        (header([("general.alignment", 4, bytes(4))]), "general.alignment of x.gguf must be an"),
        (header([("general.alignment", 8, struct.pack("<Q", 1) + b"x")]), "general.alignment of"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0) + bytes(2**20), f"{2**60} values at byte 24"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60) + bytes(2**20), f"{2**60} values at byte 24"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 5) + bytes(2**20), "'' is there twice"),
        (header([("a", 9, struct.pack("<IQ", 8, 2**60) + bytes(9**5))]), f"{2**60} values"),
        (header([("a", 9, struct.pack("<IQ", 0, 2**60) + bytes(9**5))]), f"{2**60} values"),
        (header([("a", 8, struct.pack("<Q", 2**63) + bytes(9**5))]), f"{2**63} values"),
        (b"GGUF", "inside of the header"),
    ],
)
def test_headers_of_gguf(tmp_path, content, words):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.gguf must .*{words}|{words}"):
        gguf_file.open_gguf(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("block_count", 10**6, "llama.block_count of tiny.gguf must be an integer from 1 to 1024"),
        ("block_count", 2.0, "llama.block_count of tiny.gguf must be an integer"),
        ("attention.head_count", 0, "llama.attention.head_count of tiny.gguf must be an integer"),
        ("attention.head_count", np.array([2, 2]), "llama.attention.head_count of tiny.gguf must"),
        ("rope.scaling.factor", -2.0, "llama.rope.scaling.factor of tiny.gguf must be"),
        ("rope.scaling.factor", float("nan"), "llama.rope.scaling.factor of tiny.gguf must be"),
        ("rope.scaling.type", "yarn", "llama.rope.scaling.type of tiny.gguf must be one of none"),
        ("rope.freq_base", 0.0, "llama.rope.freq_base of tiny.gguf must be a finite number above"),
        ("rope.freq_base", float("inf"), "llama.rope.freq_base of tiny.gguf must be a finite"),
        ("attention.sliding_window", -5, "llama.attention.sliding_window of tiny.gguf must be"),
        ("attention.sliding_window_pattern", np.ones(3, bool), r"one entry a layer \(2\), got 3"),
        (
            "attention.sliding_window_pattern",
            np.ones(10**6, bool),
            "sliding_window_pattern of tiny",
        ),
        ("attention.layer_norm_rms_epsilon", float("nan"), "rms_epsilon of tiny.gguf must be a fi"),
        ("attention.layer_norm_rms_epsilon", "1e-5", "rms_epsilon of tiny.gguf must be a finite"),
        ("context_length", None, "context_length of tiny.gguf must be an integer"),
    ],
)
def test_entries_of_gguf(tmp_path, key, value, words):
    file = gguf_file.open_gguf(llm_files.write_gguf(tmp_path / "tiny.gguf", "llama"))
    file.metadata[f"llama.{key}"] = value
    with pytest.raises(ValueError, match=words):
        gguf_config.config_of(file)


def test_older_and_empty_factors_of_gguf(tmp_path):
    """Without a factor there is none, as llama.cpp has it; older files have another name for it."""
    file = gguf_file.open_gguf(llm_files.write_gguf(tmp_path / "tiny.gguf", "mistral"))
    for key in ("rope.scaling.type", "rope.scaling.factor"):
        file.metadata.pop(f"llama.{key}", None)
    file.tensors.pop("rope_freqs.weight", None)
    plain = gguf_config.config_of(file).rotary
    assert plain.divisors == ()
    file.metadata["llama.rope.scaling.factor"] = 0.0
    assert gguf_config.config_of(file).rotary == plain
    file.metadata["llama.rope.scale_linear"] = 4.0
    assert gguf_config.config_of(file).rotary.divisors == (4.0,) * (plain.size // 2)


def test_frequencies_of_zeros(tmp_path):
    zeros = np.zeros(ROPE_SIZE // 2, np.float32)
    path = llm_files.write_gguf(tmp_path / "a.gguf", "llama", **{"rope_freqs.weight": zeros})
    with pytest.raises(ValueError, match="divisors of the rotary embedding must be a positive"):
        load_model(path)


ROPE_SIZE = LLAMA.get("head_dim") or LLAMA["hidden_size"] // LLAMA["num_attention_heads"]


def test_integers_of_the_same_size_in_gguf(tmp_path):
    path = llm_files.write_gguf(tmp_path / "tiny.gguf", "llama")
    content = bytearray(path.read_bytes())
    name = b"blk.0.ffn_gate.weight"
    at = content.index(name) + len(name) + 4 + 16
    content[at] = 26  # int32
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"quantisation.*blk\.0\.ffn_gate\.weight in I32"):
        load_model(path)


# Tokens.


@pytest.mark.parametrize("temperature", [1e-38, 1e-45, 1e-30, 1e150])
def test_temperatures_at_the_ends(tmp_path, temperature):
    model = load_model(llm_files.write_folder(tmp_path / "tiny", "llama"))
    greedy = generate(
        model, ["abc"], GenerationSettings(temperature=0, max_new_tokens=8, stop_ids=())
    )
    settings = GenerationSettings(temperature=temperature, max_new_tokens=8, stop_ids=())
    drawn = generate(model, ["abc"], settings)
    assert drawn.lengths[0, 0] == 8 and np.isfinite(drawn.log_probs).all()
    if temperature < 1:
        np.testing.assert_array_equal(drawn.tokens, greedy.tokens)


@pytest.mark.parametrize("ids", [[1.5, 2], [-1, 2], [[1], [2]], [True], "ab", [2**70], [None], 3])
def test_numbers_that_are_no_tokens(ids):
    for call in (lambda: pack(ids, [[1]]), lambda: pack([1], [ids] if ids != 3 else [[1.0]])):
        with pytest.raises(
            ValueError, match=r"(prompt|answers\[0\]) must be a sequence of token ids"
        ):
            call()


def test_tokens_beyond_the_vocabulary(tmp_path):
    model = load_model(llm_files.write_folder(tmp_path / "tiny", "llama"))
    for packed in (pack([1, 64], [[3]]), pack([1], [[3], [4, 2**30]])):
        for measure in (answer_norms, answer_log_probs):
            with pytest.raises(
                ValueError, match=r"must be below 64, the size of the .* in sequence 0"
            ):
                measure(model.decoder, [packed])
    with pytest.raises(ValueError, match=r"prompts\[1\] must be a sequence of token ids"):
        generate(model, [[1, 2], [1.5, 2.0]], GenerationSettings(max_new_tokens=2))


@pytest.mark.parametrize("source", [None, "", 3, b"smollm2", ["smollm2"], "a\0b"])
def test_sources_of_other_kinds(source):
    with pytest.raises(ValueError, match="source must be"):
        load_model(source)
