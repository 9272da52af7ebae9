"""Description of a decoder, made from a Hugging Face `config.json` or from GGUF metadata.

The families of models differ only in the place of norms, in biases, rotary embeddings and windows.
Each difference is a field here, so that one module computes them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isounc.checks import check_choice, check_count, check_real

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")
QK_NORMS = ("none", "head", "projection")


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding.

    Dimensions i and i + size/2 rotate by the angle position * base^(-2i/size) / divisors[i].

    Source: Su et al. 2021 (arXiv 2104.09864).
    """

    base: float
    """Base of the wavelengths."""
    size: int
    """Dimensions of each head that rotate, from the first on."""
    divisors: tuple[float, ...] = ()
    """Divisors of the size/2 frequencies (context extension); () is 1 for all."""

    def __post_init__(self):
        check_real("base of the rotary embedding", self.base, positive=True)
        check_count("size of the rotary embedding", self.size, 2)
        if self.size % 2 or len(self.divisors) not in (0, self.size // 2):
            raise ValueError(
                "size of the rotary embedding must be even, with a divisor for each pair, got "
                f"{self.size} and {len(self.divisors)} divisors"
            )


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer with grouped-query attention, rotary positions and a gated MLP."""

    architecture: str
    """Family, by its name in Hugging Face's `model_type`."""
    vocab_size: int
    """V, rows of the embedding."""
    width: int
    """W, width of the residual stream."""
    num_layers: int
    """Blocks of attention and MLP."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads; each serves num_heads / num_kv_heads query heads."""
    head_width: int
    """Dimensions of a head."""
    mlp_width: int
    """Hidden units of the gated MLP."""
    context_length: int
    """Largest number of tokens that the model was made for."""
    rotary: Rotary
    """Position embedding."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMS norms."""
    windows: tuple[int, ...] = ()
    """Number of positions that each layer attends to, its own included; 0 is all. () is 0
    everywhere."""
    local_rotary: Rotary | None = None
    """Position embedding of layers with a window; None is that of the others."""
    activation: str = "silu"
    """Activation of the MLP's gate: silu, gelu or gelu_tanh."""
    tied: bool = True
    """Whether the output head is the embedding."""
    qkv_bias: bool = False
    """Whether queries, keys and values have biases."""
    out_bias: bool = False
    """Whether attention's output projection has a bias."""
    qk_norm: str = "none"
    """RMS norm of queries and keys before they rotate: `none`, by `head`, or over the whole
    `projection`."""
    norm_in: bool = True
    """RMS norm of the inputs of attention and MLP."""
    norm_out: bool = False
    """RMS norm of their outputs, before these are added to the residual stream."""
    embed_scale: float = 1.0
    """Factor of the input embeddings (not of a tied head)."""
    query_scale: float | None = None
    """Factor of the attention scores; None is 1 / sqrt(head_width)."""

    def __post_init__(self):
        check_choice("architecture", self.architecture, ARCHITECTURES)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("qk_norm", self.qk_norm, QK_NORMS)
        for name in ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads"):
            check_count(name, getattr(self, name), 1)
        for name in ("head_width", "mlp_width", "context_length"):
            check_count(name, getattr(self, name), 1)
        check_real("norm_eps", self.norm_eps)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                "num_heads must be a multiple of num_kv_heads, got "
                f"{self.num_heads} and {self.num_kv_heads}"
            )
        if len(self.windows) not in (0, self.num_layers):
            raise ValueError(
                f"windows must have one entry a layer ({self.num_layers}), got {len(self.windows)}"
            )
        for rotary in (self.rotary, self.local_rotary):
            if rotary and rotary.size > self.head_width:
                raise ValueError(
                    f"size of the rotary embedding must be at most head_width {self.head_width}, "
                    f"got {rotary.size}"
                )

    def window(self, layer: int) -> int:
        """Number of positions that a layer attends to; 0 is all."""
        return self.windows[layer] if self.windows else 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter of a `Decoder` by name; matrices are (inputs, outputs)."""
        q, kv = self.num_heads * self.head_width, self.num_kv_heads * self.head_width
        block = {
            "q": (self.width, q), "k": (self.width, kv), "v": (self.width, kv),
            "out": (q, self.width),
            "gate": (self.width, self.mlp_width), "up": (self.width, self.mlp_width),
            "down": (self.mlp_width, self.width),
        }  # fmt: skip
        if self.qkv_bias:
            block |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
        if self.out_bias:
            block |= {"out_bias": (self.width,)}
        if self.qk_norm == "head":
            block |= {"q_norm": (self.head_width,), "k_norm": (self.head_width,)}
        if self.qk_norm == "projection":
            block |= {"q_norm": (q,), "k_norm": (kv,)}
        if self.norm_in:
            block |= {"attention_norm_in": (self.width,), "mlp_norm_in": (self.width,)}
        if self.norm_out:
            block |= {"attention_norm_out": (self.width,), "mlp_norm_out": (self.width,)}
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab_size, self.width)}
        for i in range(self.num_layers):
            shapes |= {f"layers.{i}.{name}": shape for name, shape in block.items()}
        shapes["norm"] = (self.width,)
        if not self.tied:
            shapes["head"] = (self.width, self.vocab_size)
        return shapes


# Hugging Face's names, with the defaults of each family's class for entries that config.json lacks.
_COMMON = {
    "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
    "attention_bias": False, "mlp_bias": False, "rope_theta": 10_000.0,
    "rope_local_base_freq": None, "rope_scaling": None, "rope_parameters": None,
    "partial_rotary_factor": 1.0, "sliding_window": None, "use_sliding_window": True,
    "layer_types": None, "max_window_layers": 0, "sliding_window_pattern": None,
    "query_pre_attn_scalar": None, "attn_logit_softcapping": None,
    "final_logit_softcapping": None, "use_bidirectional_attention": False,
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
ARCHITECTURES = tuple(_FAMILIES)
"""Families that can be loaded."""
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_FIXED: dict[str, dict[str, Any]] = {
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": "head"},
    "gemma3_text": {"qk_norm": "head", "norm_out": True},
    "olmo2": {"qk_norm": "projection", "norm_in": False, "norm_out": True},
}
"""Features of a family that its config.json does not mention."""


def from_huggingface(entries: Mapping[str, Any]) -> DecoderConfig:
    """The description in a Hugging Face `config.json`.

    Raises
    ------
    ValueError
        The family is unknown, an entry is missing, or the model has a feature that the decoder does
        not have.
    """
    family = entries.get("model_type")
    if family == "gemma3":
        # Gemma 3 from 4B on comes with a vision model, which is left out.
        text = entries.get("text_config", {})
        entries = {"tie_word_embeddings": True, **text}
        family = "gemma3_text"
    check_choice("model_type of config.json", family, ARCHITECTURES)
    assert isinstance(family, str)
    if "hidden_activation" in entries and "hidden_act" not in entries:
        entries = {**entries, "hidden_act": entries["hidden_activation"]}
    c = {**_COMMON, **_FAMILIES[family], **entries}
    needed = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size",
    )  # fmt: skip
    if missing := [name for name in needed if name not in c]:
        raise ValueError(f"config.json must have {', '.join(missing)}, got {', '.join(entries)}")
    for name in ("mlp_bias", "attn_logit_softcapping", "final_logit_softcapping",
                 "use_bidirectional_attention"):  # fmt: skip
        if c[name]:
            raise ValueError(
                f"{name} of config.json must be off, since the decoder does not have it, got "
                f"{c[name]!r}"
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
    for kind in kinds:
        check_choice("layer_types of config.json", kind, ("sliding_attention", "full_attention"))
    windows = tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    return windows if any(windows) else ()


def _rotaries(c: Mapping[str, Any], head_width: int) -> tuple[Rotary, Rotary]:
    """Rotary embeddings of layers without and with a window, from newer or older entries."""
    new = c["rope_parameters"] or {}
    if "full_attention" in new or "sliding_attention" in new:
        full, sliding = new.get("full_attention") or {}, new.get("sliding_attention") or {}
    else:
        full = {**(c["rope_scaling"] or {}), **new}
        sliding = {} if c["rope_local_base_freq"] else full
    local_theta = c["rope_local_base_freq"] or c["rope_theta"]
    context = c["max_position_embeddings"]
    share = c["partial_rotary_factor"]
    return (
        _rotary(full, head_width, c["rope_theta"], share, context),
        _rotary(sliding, head_width, local_theta, share, context),
    )


def _rotary(
    entries: Mapping[str, Any], head_width: int, theta: float, share: float, context: int
) -> Rotary:
    base = float(entries.get("rope_theta", theta))
    size = int(head_width * entries.get("partial_rotary_factor", share))
    kind = entries.get("rope_type", entries.get("type")) or "default"
    check_choice("rope_type of config.json", kind, ("default", "linear", "llama3"))
    if kind == "default":
        return Rotary(base, size)
    try:
        factor = float(entries["factor"])
        if kind == "linear":
            return Rotary(base, size, (factor,) * (size // 2))
        divisors = llama3_divisors(
            base,
            size,
            factor=factor,
            low=float(entries["low_freq_factor"]),
            high=float(entries["high_freq_factor"]),
            original=float(entries.get("original_max_position_embeddings") or context),
        )
        return Rotary(base, size, divisors)
    except KeyError as error:
        raise ValueError(
            f"config.json must have {error} in rope_scaling of type {kind}, got "
            f"{', '.join(entries)}"
        ) from error


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
