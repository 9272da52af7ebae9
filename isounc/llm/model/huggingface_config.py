"""Description of a decoder in a Hugging Face `config.json`: entries, kinds, ranges, defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from isounc.checks import check_choice
from isounc.fields import (
    Field,
    Unreadable,
    anything,
    declared,
    integer,
    items,
    nothing,
    number,
    one_of,
    section,
    text,
    truth,
)
from isounc.llm.model.config import ARCHITECTURES, DecoderConfig, Rotary

# Bounds that no model in sight comes near, so that a few bytes cannot ask for all memory.
SIZE = integer(1, 2**24)
"""Vocabulary and widths."""
LAYERS = integer(1, 1024)
POSITIONS = integer(1, 2**31 - 1)
SCALING = number(1, 2**20)
"""Factors of context extension."""
_ROPE = {
    "rope_theta": number(above=0, default=None),
    "partial_rotary_factor": number(above=0, most=1, default=None),
    "rope_type": text(default=None),
    "type": text(default=None),
    "factor": SCALING._replace(default=None),
    "low_freq_factor": number(above=0, default=None),
    "high_freq_factor": number(above=0, default=None),
    "original_max_position_embeddings": POSITIONS._replace(default=None),
}
# Hugging Face's names, with the defaults of each family's class for entries that config.json lacks.
_COMMON: dict[str, Field] = {
    "vocab_size": SIZE, "hidden_size": SIZE, "intermediate_size": SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": integer(1, 2**16),
    "num_key_value_heads": integer(1, 2**16, default=None),
    "head_dim": integer(2, 2**16, default=None),
    "max_position_embeddings": POSITIONS._replace(default=2048),
    "rms_norm_eps": number(0, 1, default=1e-6),
    "hidden_act": text(default="silu"),
    "tie_word_embeddings": truth(default=False),
    "attention_bias": truth(default=False),
    "mlp_bias": anything(default=False),
    "rope_theta": number(above=0, default=10_000.0),
    "rope_local_base_freq": number(above=0, default=None),
    "rope_scaling": section(_ROPE, default=None),
    # Flat, or by the kind of layer.
    "rope_parameters": section(
        _ROPE | dict.fromkeys(("full_attention", "sliding_attention"), section(_ROPE, default=None)),
        default=None,
    ),
    "partial_rotary_factor": number(above=0, most=1, default=1.0),
    "sliding_window": POSITIONS._replace(default=None),
    "use_sliding_window": truth(default=True),
    "layer_types": items(text(("sliding_attention", "full_attention")), 1024, default=None),
    "max_window_layers": integer(0, 1024, default=0),
    "sliding_window_pattern": LAYERS._replace(default=None),
    "query_pre_attn_scalar": number(above=0, default=None),
    "attn_logit_softcapping": anything(default=None),
    "final_logit_softcapping": anything(default=None),
    "use_bidirectional_attention": anything(default=False),
    "quantization_config": anything(default=None),
}  # fmt: skip
_QWEN = {"max_position_embeddings": 32768, "use_sliding_window": False, "max_window_layers": 28}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {
        "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096,
    },
    "qwen2": _QWEN | {"sliding_window": 4096},
    "qwen3": _QWEN | {"sliding_window": 4096, "head_dim": 128},
    "gemma3_text": {
        "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 131072, "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
        "sliding_window": 4096, "sliding_window_pattern": 6, "query_pre_attn_scalar": 256,
    },
    "olmo2": {"rms_norm_eps": 1e-5},
    "phi3": {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
}  # fmt: skip
"""Families that can be loaded, with what differs from the defaults of `_COMMON`."""
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_FIXED: dict[str, dict[str, Any]] = {
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": "head"},
    "gemma3_text": {"qk_norm": "head", "norm_out": True},
    "olmo2": {"qk_norm": "projection", "norm_in": False, "norm_out": True},
}
"""Features of a family that its config.json does not mention."""


def from_huggingface(content: Mapping[str, Any]) -> DecoderConfig:
    """The description in a Hugging Face `config.json`.

    Raises
    ------
    ValueError
        The family is unknown, an entry is missing, of another kind or out of range, or the model
        has a feature that the decoder does not have.
    """
    given = dict(content)
    family = given.get("model_type")
    if family == "gemma3":
        # Gemma 3 from 4B on comes with a vision model, which is left out.
        inner = declared(given, {"text_config": anything(default={})}, "config.json")["text_config"]
        declared(inner, {}, "text_config of config.json")
        given = {"tie_word_embeddings": True, **inner}
        family = "gemma3_text"
    check_choice("model_type of config.json", family, ARCHITECTURES)
    assert isinstance(family, str)
    if "hidden_activation" in given and "hidden_act" not in given:
        given["hidden_act"] = given["hidden_activation"]
    # An explicit null is no absent entry: null for a window is none.
    own = {
        name: (
            _COMMON[name] if _COMMON[name].default is not None else one_of(_COMMON[name], nothing())
        )._replace(default=default)
        for name, default in _FAMILIES[family].items()
    }
    c = declared(given, _COMMON | own, "config.json")
    for name in ("mlp_bias", "attn_logit_softcapping", "final_logit_softcapping",
                 "use_bidirectional_attention", "quantization_config"):  # fmt: skip
        if c[name] not in (None, False):
            raise Unreadable(
                f"{name} of config.json must be off, since the decoder does not have it, got "
                f"{c[name]!r:.80}"
            )
    check_choice("hidden_act of config.json", c["hidden_act"], tuple(_ACTIVATIONS))
    head_width = c["head_dim"] or c["hidden_size"] // c["num_attention_heads"]
    windows = _windows(c)
    rotary, local = _rotaries(c, head_width)
    scale = c["query_pre_attn_scalar"]
    fixed = dict(_FIXED.get(family, {}))
    if family in ("llama", "qwen3", "gemma3_text", "olmo2"):
        fixed |= {"qkv_bias": bool(c["attention_bias"]), "out_bias": bool(c["attention_bias"])}
    return DecoderConfig(
        architecture=family,
        vocab_size=c["vocab_size"],
        width=c["hidden_size"],
        num_layers=c["num_hidden_layers"],
        num_heads=c["num_attention_heads"],
        num_kv_heads=c["num_key_value_heads"] or c["num_attention_heads"],
        head_width=head_width,
        mlp_width=c["intermediate_size"],
        context_length=c["max_position_embeddings"],
        rotary=rotary,
        norm_eps=c["rms_norm_eps"],
        windows=windows,
        local_rotary=local if any(windows) and local != rotary else None,
        activation=_ACTIVATIONS[c["hidden_act"]],
        tied=c["tie_word_embeddings"],
        embed_scale=math.sqrt(c["hidden_size"]) if family == "gemma3_text" else 1.0,
        query_scale=None if scale is None else scale**-0.5,
        **fixed,
    )


def _windows(c: Mapping[str, Any]) -> tuple[int, ...]:
    """Window of each layer."""
    num_layers, window = c["num_hidden_layers"], c["sliding_window"] or 0
    if not c["use_sliding_window"]:
        window = 0
    kinds, every = c["layer_types"], c["sliding_window_pattern"]
    if kinds is None:
        kinds = ["sliding_attention"] * num_layers
        for i in range(num_layers):
            if i < c["max_window_layers"] or (every and (i + 1) % every == 0):
                kinds[i] = "full_attention"
    if len(kinds) != num_layers:
        raise Unreadable(
            f"layer_types of config.json must have one entry a layer ({num_layers}), got "
            f"{len(kinds)}"
        )
    windows = tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    return windows if any(windows) else ()


def _rotaries(c: Mapping[str, Any], head_width: int) -> tuple[Rotary, Rotary]:
    """Rotary embeddings of layers without and with a window, from newer or older entries."""
    old, new = _stated(c["rope_scaling"]), _stated(c["rope_parameters"])
    if "full_attention" in new or "sliding_attention" in new:
        full, sliding = (_stated(new.get(f"{kind}_attention")) for kind in ("full", "sliding"))
    else:
        full = {**old, **new}
        sliding = {} if c["rope_local_base_freq"] else full
    local_theta = c["rope_local_base_freq"] or c["rope_theta"]
    context = c["max_position_embeddings"]
    share = c["partial_rotary_factor"]
    return (
        _rotary(full, head_width, c["rope_theta"], share, context),
        _rotary(sliding, head_width, local_theta, share, context),
    )


def _stated(entries: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries of a section that are not null."""
    return {name: value for name, value in (entries or {}).items() if value is not None}


def _rotary(
    entries: Mapping[str, Any], head_width: int, theta: float, share: float, context: int
) -> Rotary:
    base = entries.get("rope_theta", theta)
    size = int(head_width * entries.get("partial_rotary_factor", share))
    kind = entries.get("rope_type", entries.get("type")) or "default"
    check_choice("rope_type of config.json", kind, ("default", "linear", "llama3"))
    if kind == "default":
        return Rotary(base, size)
    needed = ("factor",) if kind == "linear" else ("factor", "low_freq_factor", "high_freq_factor")
    if missing := [name for name in needed if name not in entries]:
        raise Unreadable(
            f"config.json must have {', '.join(missing)} in rope_scaling of type {kind}, got "
            f"{', '.join(entries)}"
        )
    factor = entries["factor"]
    if kind == "linear":
        return Rotary(base, size, (factor,) * (size // 2))
    low, high = entries["low_freq_factor"], entries["high_freq_factor"]
    if low >= high:
        raise Unreadable(
            f"low_freq_factor of config.json must be below high_freq_factor, got {low} and {high}"
        )
    original = float(entries.get("original_max_position_embeddings", context))
    return Rotary(
        base,
        size,
        llama3_divisors(base, size, factor=factor, low=low, high=high, original=original),
    )


def llama3_divisors(
    base: float, size: int, *, factor: float, low: float, high: float, original: float
) -> tuple[float, ...]:
    """Divisors by which Llama 3.1 stretches its context from `original` positions.

    A frequency with fewer than `low` rotations in `original` positions is divided by `factor`, one
    with more than `high` rotations is kept, and in between the factor's share falls linearly with
    the number of rotations.
    """
    divisors = []
    for i in range(size // 2):
        rotations = original * base ** (-2 * i / size) / (2 * math.pi)
        kept = min(max((rotations - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - kept) / factor + kept))
    return tuple(divisors)
