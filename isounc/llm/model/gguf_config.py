"""Description of a decoder in the metadata of a GGUF file: entries, kinds, ranges, defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from isounc.checks import check_choice
from isounc.fields import Field, Unreadable, declared, integer, items, number, one_of, text, truth
from isounc.llm.model.config import DecoderConfig, Rotary
from isounc.llm.model.gguf import FREQUENCIES, GgufFile, dequantised
from isounc.llm.model.huggingface_config import LAYERS, POSITIONS, SCALING, SIZE

_FAMILIES = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": "head"},
    "gemma3": {"qk_norm": "head", "norm_out": True, "activation": "gelu_tanh"},
    "olmo2": {"qk_norm": "projection", "norm_in": False, "norm_out": True},
    "phi3": {},
}
_ENTRIES: dict[str, Field] = {
    "embedding_length": SIZE, "feed_forward_length": SIZE,
    "block_count": LAYERS,
    "context_length": POSITIONS,
    "attention.head_count": integer(1, 2**16),
    "attention.head_count_kv": integer(1, 2**16, default=None),
    "attention.key_length": integer(2, 2**16, default=None),
    "attention.layer_norm_rms_epsilon": number(0, 1),
    # No window is 0.
    "attention.sliding_window": integer(0, 2**31 - 1, default=0),
    "attention.sliding_window_pattern": one_of(
        integer(0, 1024), items(one_of(truth(), integer(0, 1)), 1024), default=None
    ),
    "rope.dimension_count": integer(2, 2**16, default=None),
    "rope.freq_base": number(above=0, default=1e4),
    "rope.freq_base_swa": number(above=0, default=None),
    "rope.scaling.type": text(("none", "linear"), default=None),
    # No factor is 0, and an older name for it.
    "rope.scaling.factor": one_of(number(0, 0), SCALING, default=0.0),
    "rope.scale_linear": one_of(number(0, 0), SCALING, default=0.0),
}  # fmt: skip
"""Entries by name after the family's, with llama.cpp's defaults."""


def config_of(file: GgufFile) -> DecoderConfig:
    """The description in the metadata of a GGUF file.

    Raises
    ------
    ValueError
        The architecture is unknown, an entry is missing, or the model has a feature that the
        decoder does not have.
    """
    family = file.metadata.get("general.architecture")
    check_choice(f"general.architecture of {file.path.name}", family, tuple(_FAMILIES))
    assert isinstance(family, str)
    gemma = family == "gemma3"
    table = {f"{family}.{key}": field for key, field in _ENTRIES.items()}
    if gemma:
        for key, value in (("rope.freq_base", 1e6), ("rope.freq_base_swa", 1e4)):
            table[f"{family}.{key}"] = _ENTRIES[key]._replace(default=value)
    # A longer list is no field of these, and stays what it is.
    stated = {
        key: value.tolist() if isinstance(value, np.ndarray) and value.size <= 1024 else value
        for key, value in file.metadata.items()
        if key in table
    }
    declared_entries = declared(stated, table, file.path.name)
    c = {key.removeprefix(f"{family}."): value for key, value in declared_entries.items()}
    width, num_heads, num_layers = (
        c[key] for key in ("embedding_length", "attention.head_count", "block_count")
    )
    head_width = c["attention.key_length"] or width // num_heads
    rotary, local = _rotaries(file, c, head_width)
    pattern, window = c["attention.sliding_window_pattern"], c["attention.sliding_window"]
    if pattern is None:
        pattern = 6 if gemma else 0
    if isinstance(pattern, int):
        pattern = [not (pattern and (i + 1) % pattern == 0) for i in range(num_layers)]
    if len(pattern) != num_layers:
        raise Unreadable(
            f"{family}.attention.sliding_window_pattern of {file.path.name} must have one entry a "
            f"layer ({num_layers}), got {len(pattern)}"
        )
    windows = tuple(window if sliding else 0 for sliding in pattern)
    embed = file.tensors.get("token_embd.weight")
    if embed is None:
        raise Unreadable(f"{file.path.name} must have the tensor token_embd.weight, got none")
    fixed: dict[str, Any] = dict(_FAMILIES[family])
    if gemma:
        fixed["embed_scale"] = math.sqrt(width)
        # As in llama.cpp: the metadata do not say that the largest model scales by width / heads.
        fixed["query_scale"] = (width // num_heads if num_layers == 62 else head_width) ** -0.5
    if family == "llama":
        fixed["qkv_bias"] = "blk.0.attn_q.bias" in file.tensors
        fixed["out_bias"] = "blk.0.attn_output.bias" in file.tensors
    return DecoderConfig(
        architecture="gemma3_text" if gemma else family,
        vocab_size=embed.shape[0],
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=c["attention.head_count_kv"] or num_heads,
        head_width=head_width,
        mlp_width=c["feed_forward_length"],
        context_length=c["context_length"],
        rotary=rotary,
        norm_eps=_decimal(c["attention.layer_norm_rms_epsilon"]),
        windows=windows if any(windows) else (),
        local_rotary=local if any(windows) and local != rotary else None,
        tied="output.weight" not in file.tensors,
        **fixed,
    )


def _decimal(value: float) -> float:
    """The shortest decimal of a float32: 1e-05, not 9.99999975e-06."""
    return float(str(np.float32(value)))


def _rotaries(file: GgufFile, c: Mapping[str, Any], head_width: int) -> tuple[Rotary, Rotary]:
    """Rotary embeddings of layers without and with a window."""
    size = c["rope.dimension_count"] or head_width
    base = _decimal(c["rope.freq_base"])
    if long := [name for name in file.tensors if name.startswith("rope_factors_")]:
        raise Unreadable(
            f"{file.path.name} must have rotary embeddings without longrope, which the decoder "
            f"does not have, got {long[0]}"
        )
    factor = c["rope.scaling.factor"] or c["rope.scale_linear"] or 1.0
    divisors: tuple[float, ...] = ()
    if factor != 1 and c["rope.scaling.type"] != "none":
        divisors = (factor,) * (size // 2)
    if FREQUENCIES in file.tensors:
        divisors = tuple(map(float, dequantised(file, FREQUENCIES).ravel()))
    if file.metadata["general.architecture"] == "gemma3":
        return Rotary(base, size, divisors), Rotary(_decimal(c["rope.freq_base_swa"]), size)
    return Rotary(base, size, divisors), Rotary(
        _decimal(c["rope.freq_base_swa"] or base), size, divisors
    )
