"""Models in GGUF files: metadata to a `DecoderConfig`, tensors to weights.

GGUF is the format of llama.cpp. Tensors are dequantised by the package `gguf`. Rows of the query
and key projections of the architecture `llama` are stored in the order of its rotary layout, which
rotates pairs of neighbouring dimensions; they are put back into the order of
`isounc.llm.model.attention`, which pairs the two halves.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isounc.checks import check_choice
from isounc.llm.model.config import DecoderConfig, Rotary
from isounc.llm.model.packages import require

_FAMILIES = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": "head"},
    "gemma3": {"qk_norm": "head", "norm_out": True, "activation": "gelu_tanh"},
    "olmo2": {"qk_norm": "projection", "norm_in": False, "norm_out": True},
    "phi3": {},
}
_NAMES = {
    "attn_norm.weight": "attention_norm_in", "attn_q.weight": "q", "attn_k.weight": "k",
    "attn_v.weight": "v", "attn_output.weight": "out", "attn_q.bias": "q_bias",
    "attn_k.bias": "k_bias", "attn_v.bias": "v_bias", "attn_output.bias": "out_bias",
    "attn_q_norm.weight": "q_norm", "attn_k_norm.weight": "k_norm",
    "post_attention_norm.weight": "attention_norm_out", "ffn_norm.weight": "mlp_norm_in",
    "ffn_gate.weight": "gate", "ffn_up.weight": "up", "ffn_down.weight": "down",
    "post_ffw_norm.weight": "mlp_norm_out",
}  # fmt: skip
_TOP = {"token_embd.weight": "embed", "output_norm.weight": "norm", "output.weight": "head"}
_FREQUENCIES = "rope_freqs.weight"
"""Tensor with the divisors of the rotary frequencies."""


class Tensor(NamedTuple):
    """A tensor as the file stores it."""

    shape: tuple[int, ...]
    """Shape, rows first."""
    kind: int
    """Number of its quantisation."""
    start: int
    """Place of its first byte."""


class GgufFile(NamedTuple):
    """The header of a GGUF file."""

    path: Path
    """Path of the file."""
    metadata: Mapping[str, Any]
    """Numbers, strings and lists by key."""
    tensors: Mapping[str, Tensor]
    """Tensors by name."""


_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9


class _Cursor:
    """Reads one value after the other.

    The reader of the package `gguf` takes ten times as long for a vocabulary.
    """

    def __init__(self, content: bytes | mmap.mmap):
        self.content, self.at = content, 0

    def numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{count}{code}", self.content, self.at)
        self.at += struct.calcsize(f"<{count}{code}")
        return values

    def string(self) -> str:
        (length,) = self.numbers("Q")
        if self.at + length > len(self.content):
            raise struct.error(f"a string of {length} bytes at {self.at} goes beyond the end")
        self.at += length
        # The pieces of a tokenizer may be parts of characters.
        return self.content[self.at - length : self.at].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            (kind,), (count,) = self.numbers("I"), self.numbers("Q")
            if kind in _NUMBERS:
                return list(self.numbers(_NUMBERS[kind], count))
            return [self.value(kind) for _ in range(count)]
        if kind not in _NUMBERS:
            raise struct.error(f"{kind} at {self.at} is not a type of value")
        return self.numbers(_NUMBERS[kind])[0]


def open_gguf(path: Path) -> GgufFile:
    """Read metadata and the table of tensors.

    Raises
    ------
    ValueError
        The file is not GGUF of version 2 or 3, or ends before its tensors do.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            raise ValueError(f"{path.name} must be a GGUF file, got one that begins with {magic!r}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            cursor = _Cursor(content)
            try:
                metadata, tensors = _header(cursor)
            except (struct.error, OverflowError, MemoryError, RecursionError) as error:
                raise ValueError(
                    f"{path.name} must be a whole GGUF file, got {size} bytes that end or go wrong "
                    f"inside of the header ({error})"
                ) from error
    if isinstance(tensors, int):
        raise ValueError(f"{path.name} must be GGUF of version 2 or 3, got {tensors}")
    alignment = metadata.get("general.alignment", 32)
    begin = -(-cursor.at // alignment) * alignment
    gguf_file = GgufFile(
        path, metadata, {n: t._replace(start=t.start + begin) for n, t in tensors.items()}
    )
    for name, tensor in gguf_file.tensors.items():
        end = tensor.start + _num_bytes(gguf_file, name)
        if end > size:
            raise ValueError(
                f"{path.name} must be a whole GGUF file, got {size} bytes, and tensor {name} ends "
                f"at {end}"
            )
    return gguf_file


def _header(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, Tensor] | int]:
    """Metadata and tensors (with places from the end of the header), or an unknown version."""
    cursor.at = 4
    (version,) = cursor.numbers("I")
    if version not in (2, 3):
        return {}, version
    num_tensors, num_values = cursor.numbers("Q", 2)
    metadata, tensors = {}, {}
    for _ in range(num_values):
        key = cursor.string()
        metadata[key] = cursor.value(*cursor.numbers("I"))
    for _ in range(num_tensors):
        name = cursor.string()
        (num_axes,) = cursor.numbers("I")
        shape = cursor.numbers("Q", num_axes)[::-1]  # GGUF counts axes from the last
        (kind,), (start,) = cursor.numbers("I"), cursor.numbers("Q")
        tensors[name] = Tensor(shape, kind, start)
    return metadata, tensors


def _quantisation(file: GgufFile, name: str) -> tuple[Any, int, int]:
    """Quantisation of a tensor, with the number of values and bytes in one of its blocks."""
    gguf = require("gguf")
    number = file.tensors[name].kind
    try:
        kind = gguf.GGMLQuantizationType(number)
        return kind, *gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as error:
        raise _unsupported(file, name, f"number {number}") from error


def _unsupported(file: GgufFile, name: str, what: str) -> ValueError:
    return ValueError(
        f"{file.path.name} must be in a quantisation that the package gguf can undo, got tensor "
        f"{name} in {what}"
    )


def _num_bytes(file: GgufFile, name: str) -> int:
    _, values, size = _quantisation(file, name)
    return math.prod(file.tensors[name].shape) // values * size


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

    def entry(key: str, default: Any = None) -> Any:
        value = file.metadata.get(f"{family}.{key}", default)
        if value is None:
            raise ValueError(f"{file.path.name} must have {family}.{key} in its metadata, got none")
        return value

    width, num_heads = entry("embedding_length"), entry("attention.head_count")
    head_width = entry("attention.key_length", width // num_heads)
    num_layers = entry("block_count")
    rotary, local = _rotaries(file, entry, head_width)
    pattern = entry("attention.sliding_window_pattern", 6 if family == "gemma3" else 0)
    window = entry("attention.sliding_window", 0)
    if isinstance(pattern, list):
        windows = tuple(window if sliding else 0 for sliding in pattern)
    else:
        full = [bool(pattern) and (i + 1) % pattern == 0 for i in range(num_layers)]
        windows = tuple(0 if whole else window for whole in full)
    embed = file.tensors.get("token_embd.weight")
    if embed is None:
        raise ValueError(f"{file.path.name} must have the tensor token_embd.weight, got none")
    fixed: dict[str, Any] = dict(_FAMILIES[family])
    if family == "gemma3":
        fixed["embed_scale"] = math.sqrt(width)
        # As in llama.cpp: the metadata do not say that the largest model scales by width / heads.
        fixed["query_scale"] = (width // num_heads if num_layers == 62 else head_width) ** -0.5
    if family == "llama":
        fixed["qkv_bias"] = "blk.0.attn_q.bias" in file.tensors
        fixed["out_bias"] = "blk.0.attn_output.bias" in file.tensors
    return DecoderConfig(
        architecture="gemma3_text" if family == "gemma3" else family,
        vocab_size=embed.shape[0],
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=entry("attention.head_count_kv", num_heads),
        head_width=head_width,
        mlp_width=entry("feed_forward_length"),
        context_length=entry("context_length"),
        rotary=rotary,
        norm_eps=_decimal(entry("attention.layer_norm_rms_epsilon")),
        windows=windows if any(windows) else (),
        local_rotary=local if any(windows) and local != rotary else None,
        tied="output.weight" not in file.tensors,
        **fixed,
    )


def _decimal(value: float) -> float:
    """The shortest decimal of a float32: 1e-05, not 9.99999975e-06."""
    return float(str(np.float32(value)))


def _rotaries(file: GgufFile, entry: Callable[..., Any], head_width: int) -> tuple[Rotary, Rotary]:
    """Rotary embeddings of layers without and with a window."""
    gemma = file.metadata["general.architecture"] == "gemma3"
    size = entry("rope.dimension_count", head_width)
    base = _decimal(entry("rope.freq_base", 1e6 if gemma else 1e4))
    if long := [name for name in file.tensors if name.startswith("rope_factors_")]:
        raise ValueError(
            f"{file.path.name} must have rotary embeddings without longrope, which the decoder "
            f"does not have, got {long[0]}"
        )
    factor = entry("rope.scaling.factor", 1.0)
    kind = entry("rope.scaling.type", "linear" if factor != 1 else "none")
    check_choice(f"rope.scaling.type of {file.path.name}", kind, ("none", "linear"))
    divisors: tuple[float, ...] = ()
    if kind == "linear":
        divisors = (float(factor),) * (size // 2)
    if _FREQUENCIES in file.tensors:
        divisors = tuple(map(float, _dequantised(file, _FREQUENCIES).ravel()))
    local = Rotary(_decimal(entry("rope.freq_base_swa", 1e4 if gemma else base)), size)
    if not gemma:
        local = Rotary(local.base, size, divisors)
    return Rotary(base, size, divisors), local


def weights_of(file: GgufFile, config: DecoderConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Names and float32 arrays of all parameters of `DecoderConfig.shapes`, one at a time.

    Raises
    ------
    ValueError
        The package `gguf` cannot undo a quantisation, or a tensor is not one of the decoder's.
    """
    for name in file.tensors:
        if name == _FREQUENCIES:
            continue
        array = _dequantised(file, name)
        if name in _TOP:
            yield _TOP[name], array.T if name == "output.weight" else array
            continue
        head, _, rest = name.removeprefix("blk.").partition(".")
        parts = _parts(rest, array, config)
        if not name.startswith("blk.") or not head.isdecimal() or not parts:
            raise ValueError(
                f"{file.path.name} must hold only tensors of the decoder, got {name} besides"
            )
        for parameter, part in parts:
            yield f"layers.{head}.{parameter}", part.T


def _parts(name: str, array: np.ndarray, config: DecoderConfig) -> list[tuple[str, np.ndarray]]:
    """Parameters in one tensor of a block, with outputs as rows; none for an unknown tensor."""
    if name == "attn_qkv.weight":
        q, kv = (n * config.head_width for n in (config.num_heads, config.num_kv_heads))
        return list(zip(("q", "k", "v"), np.split(array, [q, q + kv]), strict=True))
    if name == "ffn_up.weight" and len(array) == 2 * config.mlp_width:
        return list(zip(("gate", "up"), np.split(array, 2), strict=True))
    if name not in _NAMES:
        return []
    parameter = _NAMES[name]
    if config.architecture == "llama" and parameter in ("q", "k", "q_bias", "k_bias"):
        heads = config.num_heads if parameter[0] == "q" else config.num_kv_heads
        # Rows i and i + D/2 of each head are neighbours in the file; here the first halves come
        # first.
        split = array.reshape(heads, config.head_width // 2, 2, *array.shape[1:])
        array = split.swapaxes(1, 2).reshape(array.shape)
    return [(parameter, array)]


def _dequantised(file: GgufFile, name: str) -> np.ndarray:
    """A tensor in float32."""
    gguf = require("gguf")
    shape, _, start = file.tensors[name]
    kind, values, _ = _quantisation(file, name)
    if shape[-1] % values:
        raise _unsupported(file, name, f"{kind.name}, whose blocks of {values} do not fit {shape}")
    raw = np.fromfile(file.path, np.uint8, _num_bytes(file, name), offset=start)
    plain = {"F32": "<f4", "F16": "<f2"}.get(kind.name)
    if plain:
        return raw.view(plain).astype(np.float32, copy=False).reshape(shape)
    rows = math.prod(shape[:-1])
    # The package works on 16 rows at a time: fewer, longer rows take it less time.
    merged = 64 if rows % 64 == 0 else 1
    try:
        array = gguf.quants.dequantize(raw.reshape(rows // merged, -1), kind)
    except NotImplementedError as error:
        raise _unsupported(file, name, kind.name) from error
    return array.reshape(shape)
