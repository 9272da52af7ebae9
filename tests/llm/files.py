"""Tiny checkpoints in both formats, from values of benchmarks/make_llm_values.py."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import safetensors.numpy
import tokenizers

VALUES = Path(__file__).resolve().parent / "values"
ABOUT = json.loads((VALUES / "variants.json").read_text())
GGUF_NAMES = {"gemma3_text": "gemma3", "mistral": "llama"}
# What each family's tensors are called in GGUF: (Hugging Face, GGUF).
TENSORS = [
    ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"), ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"), ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down"), ("input_layernorm", "attn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"), ("post_feedforward_layernorm", "post_ffw_norm"),
]  # fmt: skip


@cache
def archive() -> dict[str, np.ndarray]:
    with np.load(VALUES / "variants.npz") as stored:
        return dict(stored)


def weights(name: str) -> dict[str, np.ndarray]:
    """Tensors by Hugging Face's names, float32."""
    flat, tensors, at = archive()[f"{name}/weights"].astype(np.float32), {}, 0
    for key, shape in ABOUT[name]["shapes"].items():
        size = int(np.prod(shape))
        tensors[key] = flat[at : at + size].reshape(shape)
        at += size
    assert at == flat.size
    return tensors


def tiny_tokenizer(size: int = 64) -> tokenizers.Tokenizer:
    """Byte-level pairs over a few letters: three special ids, single characters, then merges."""
    letters = [*"abcdefgh", "\u0120", "\u010a"]  # the last two are space and newline
    pieces = ["<unk>", "<s>", "</s>", *letters]
    merges = []
    for left in letters:
        for right in letters[:8]:
            if len(pieces) < size:
                pieces.append(left + right)
                merges.append((left, right))
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({p: i for i, p in enumerate(pieces)}, merges)
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(pieces[:3])
    return backend


def write_folder(path: Path, name: str, *, shards: int = 1, **changes) -> Path:
    """A Hugging Face checkpoint; `changes` go into config.json."""
    path.mkdir(parents=True, exist_ok=True)
    config = ABOUT[name]["config"] | changes
    (path / "config.json").write_text(json.dumps(config))
    tiny_tokenizer().save(str(path / "tokenizer.json"))
    tensors = weights(name)
    if shards == 1:
        safetensors.numpy.save_file(tensors, path / "model.safetensors")
        return path
    index = {}
    for part in range(shards):
        file = f"model-{part + 1:05d}-of-{shards:05d}.safetensors"
        shard = {key: tensors[key] for key in list(tensors)[part::shards]}
        safetensors.numpy.save_file(shard, path / file)
        index |= dict.fromkeys(shard, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return path


def write_gguf(path: Path, name: str, **changes) -> Path:
    """A GGUF file in the layout of llama.cpp's converter; `changes` replace tensors by name."""
    config, tensors = ABOUT[name]["config"], weights(name)
    family = GGUF_NAMES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, family)
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    head_width = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_key_length(head_width)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config["rope_parameters"]
    if family == "gemma3":
        writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
        writer.add_float32("gemma3.rope.freq_base_swa", rope["sliding_attention"]["rope_theta"])
        writer.add_array("gemma3.attention.sliding_window_pattern",
                         [t == "sliding_attention" for t in config["layer_types"]])  # fmt: skip
        rope = rope["full_attention"]
    else:
        writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_width * rope.get("partial_rotary_factor", 1)))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        # Divisors as the converter has them, from wavelengths.
        wave = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head_width, 2) / head_width)
        low, high = (rope["original_max_position_embeddings"] / rope[f"{end}_freq_factor"]
                     for end in ("low", "high"))  # fmt: skip
        smooth = (rope["original_max_position_embeddings"] / wave - rope["low_freq_factor"]) / (
            rope["high_freq_factor"] - rope["low_freq_factor"])  # fmt: skip
        between = 1 / ((1 - smooth) / rope["factor"] + smooth)
        divisors = np.where(wave < high, 1.0, np.where(wave > low, rope["factor"], between))
        writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    if config.get("sliding_window") and family != "llama":
        writer.add_sliding_window(config["sliding_window"])
    add_tokenizer(writer, tiny_tokenizer())
    for key, value in (gguf_tensors(tensors, family, heads, kv, config) | changes).items():
        if value is not None:
            writer.add_tensor(key, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(tensors, family, heads, kv, config) -> dict[str, np.ndarray]:
    tops = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    after = "post_attention_norm" if family in ("gemma3", "olmo2") else "ffn_norm"
    names = dict(TENSORS) | {"post_attention_layernorm": after}
    renamed = {}
    for key, value in tensors.items():
        if family == "gemma3" and "norm" in key:
            value = value + 1
        if key in tops:
            renamed[tops[key]] = value
            continue
        _, _, layer, rest = key.split(".", 3)
        module, end = rest.rsplit(".", 1)
        if family == "llama" and names[module] in ("attn_q", "attn_k"):
            n = heads if names[module] == "attn_q" else kv
            halves = value.reshape(n, 2, -1, *value.shape[1:])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        renamed[f"blk.{layer}.{names[module]}.{end}"] = value
    return renamed


def add_tokenizer(writer: gguf.GGUFWriter, backend: tokenizers.Tokenizer) -> None:
    vocabulary = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if i < 3 else 1 for _, i in vocabulary])
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
