"""Models in GGUF files: the header, and tensors to weights; `gguf_config` has the description.

GGUF is the format of llama.cpp. Tensors are dequantised by `quantised`, or by the package `gguf`.
Rows of the query and key projections of the architecture `llama` are stored in the order of its
rotary layout, which rotates pairs of neighbouring dimensions; they are put back into the order of
`isounc.llm.model.attention`, which pairs the two halves.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isounc.fields import Unreadable, declared, integer
from isounc.llm.model.config import DecoderConfig
from isounc.llm.model.packages import require
from isounc.llm.model.quantised import LAYOUTS, QUANTISED, Layout, Quantised
from isounc.untrusted import open_regular, reading

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
FREQUENCIES = "rope_freqs.weight"
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
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
_UNSIGNED = {"<u4": 4, "<u8": 8}
_STRING, _ARRAY = 8, 9
_MOST_STRINGS = 2**20
"""Strings in an array: a short one takes 60 bytes more in memory than in the file."""
_MOST_ENTRIES = 2**17
"""Metadata, and tensors."""


class _Cursor:
    """Reads one value after the other, and never allocates more than the file can fill.

    The reader of the package `gguf` takes ten times as long for a vocabulary.
    """

    def __init__(self, content: bytes | mmap.mmap):
        self.content, self.at = content, 0

    def numbers(self, code: str, count: int = 1) -> np.ndarray:
        kind = np.dtype(code)
        self.room(count, kind.itemsize)
        self.at += count * kind.itemsize
        # A copy, as the file is closed after its header was read.
        return np.frombuffer(self.content, kind, count, self.at - count * kind.itemsize).copy()

    def number(self, code: str) -> Any:
        if code not in _UNSIGNED:
            return self.numbers(code)[0].item()
        # Five times as fast, and there is one before every string.
        size = _UNSIGNED[code]
        self.room(1, size)
        self.at += size
        return int.from_bytes(self.content[self.at - size : self.at], "little")

    def room(self, count: int, size: int, most: int | None = None) -> None:
        """Refuse a count that the rest of the file cannot hold, before anything is allocated."""
        if count * size > len(self.content) - self.at or (most is not None and count > most):
            raise Unreadable(f"{count} values at byte {self.at} are more than it can hold")

    def string(self) -> str:
        length = self.number("<u8")
        self.room(length, 1)
        self.at += length
        # The pieces of a tokenizer may be parts of characters.
        return self.content[self.at - length : self.at].decode("utf-8", errors="replace")

    def value(self) -> Any:
        kind = self.number("<u4")
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(self._code(kind))
        kind, count = self.number("<u4"), self.number("<u8")
        if kind == _STRING:
            self.room(count, 8, _MOST_STRINGS)
            return [self.string() for _ in range(count)]
        return self.numbers(self._code(kind), count)

    def _code(self, kind: int) -> str:
        if kind not in _NUMBERS:
            raise Unreadable(f"{kind} before byte {self.at} is not a type of value")
        return _NUMBERS[kind]


def open_gguf(path: Path) -> GgufFile:
    """Read metadata and the table of tensors.

    Raises
    ------
    ValueError
        The file is not GGUF of version 2 or 3, ends before its tensors do, or names a tensor or an
        entry twice.
    """
    with open_regular(path, path.name) as file:
        magic = file.read(4)
        if magic != b"GGUF":
            raise Unreadable(f"{path.name} must be a GGUF file, got one that begins with {magic!r}")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            size, cursor = len(content), _Cursor(content)
            cursor.at = 4
            try:
                if (version := cursor.number("<u4")) not in (2, 3):
                    raise ValueError(version)
                metadata, tensors = _header(cursor)
            except Unreadable as error:
                raise Unreadable(
                    f"{path.name} must be a whole GGUF file, got {size} bytes that end or go wrong "
                    f"inside of the header ({error})"
                ) from error
            except ValueError as error:
                raise Unreadable(
                    f"{path.name} must be GGUF of version 2 or 3, got {error}"
                ) from None
    alignments = {"general.alignment": integer(1, 2**20, default=32)}
    alignment = declared(metadata, alignments, path.name)["general.alignment"]
    begin = -(-cursor.at // alignment) * alignment
    gguf_file = GgufFile(
        path, metadata, {n: t._replace(start=t.start + begin) for n, t in tensors.items()}
    )
    room = size - begin
    for name, tensor in gguf_file.tensors.items():
        num_bytes = _num_bytes(gguf_file, name)
        room -= num_bytes
        if tensor.start + num_bytes > size or room < 0:
            raise Unreadable(
                f"{path.name} must be a whole GGUF file, got {size} bytes, and tensor {name} ends "
                f"at {tensor.start + num_bytes}, or overlaps others"
            )
    return gguf_file


def _header(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors, with places from the end of the header."""
    num_tensors, num_values = cursor.number("<u8"), cursor.number("<u8")
    # Name, kind and content take 13 bytes at least; name, axes, kind and place 32.
    cursor.room(num_values, 13, _MOST_ENTRIES)
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        key = cursor.string()
        if key in metadata:
            raise Unreadable(f"{key!r:.80} is there twice")
        metadata[key] = cursor.value()
    cursor.room(num_tensors, 32, _MOST_ENTRIES)
    tensors: dict[str, Tensor] = {}
    for _ in range(num_tensors):
        name, num_axes = cursor.string(), cursor.number("<u4")
        if name in tensors or not 1 <= num_axes <= 4:
            wrong = "is there twice" if name in tensors else f"has {num_axes} axes"
            raise Unreadable(f"tensor {name!r:.80} {wrong}")
        shape = tuple(cursor.numbers("<u8", num_axes).tolist()[::-1])  # GGUF counts from the last
        tensors[name] = Tensor(shape, cursor.number("<u4"), cursor.number("<u8"))
    return metadata, tensors


def _layout(file: GgufFile, name: str) -> Layout:
    """How the values of a tensor are stored."""
    number = file.tensors[name].kind
    if number in LAYOUTS:
        return LAYOUTS[number]
    gguf = require("gguf")
    try:
        kind = gguf.GGMLQuantizationType(number)
        return Layout(kind.name, *gguf.GGML_QUANT_SIZES[kind])
    except (ValueError, KeyError) as error:
        raise _unsupported(file, name, f"number {number}") from error


def _unsupported(file: GgufFile, name: str, what: str) -> Unreadable:
    return Unreadable(
        f"{file.path.name} must be in a quantisation that the package gguf can undo, got tensor "
        f"{name} in {what}"
    )


def _num_bytes(file: GgufFile, name: str) -> int:
    _, values, size = _layout(file, name)
    return math.prod(file.tensors[name].shape) // values * size


def weights_of(
    file: GgufFile, config: DecoderConfig
) -> Iterator[tuple[str, np.ndarray | Quantised]]:
    """All parameters of `DecoderConfig.shapes` by name, one at a time: in float32, or as stored.

    Raises
    ------
    ValueError
        The package `gguf` cannot undo a quantisation, or a tensor is not one of the decoder's.
    """
    with reading(file.path.name, "a GGUF file of weights that fit its metadata"):
        for name in file.tensors:
            if name == FREQUENCIES:
                continue
            kind, shape = _layout(file, name).kind, file.tensors[name].shape
            is_stored = kind in QUANTISED and len(shape) == 2
            array = _stored(file, name) if is_stored else dequantised(file, name)
            for parameter, part, transposed in _placed(file, name, array, config):
                if is_stored:
                    yield parameter, Quantised(part, kind, transposed)
                else:
                    yield parameter, part.T if transposed else part


def _placed(
    file: GgufFile, name: str, array: np.ndarray, config: DecoderConfig
) -> list[tuple[str, np.ndarray, bool]]:
    """Names of the parameters in a tensor, their rows, and whether they are transposed."""
    if name in _TOP:
        return [(_TOP[name], array, name == "output.weight")]
    head, _, rest = name.removeprefix("blk.").partition(".")
    parts = _parts(rest, array, config)
    if not name.startswith("blk.") or not head.isdecimal() or not parts:
        raise Unreadable(
            f"{file.path.name} must hold only tensors of the decoder, got {name:.80} besides"
        )
    return [(f"layers.{head}.{parameter}", part, True) for parameter, part in parts]


def _parts(name: str, array: np.ndarray, config: DecoderConfig) -> list[tuple[str, np.ndarray]]:
    """Parameters in one tensor of a block, with outputs as rows; none for an unknown tensor.

    Rows may be of values or of bytes.
    """
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


def _stored(file: GgufFile, name: str) -> np.ndarray:
    """The bytes of a tensor, by rows."""
    shape, _, start = file.tensors[name]
    kind, values, size = _layout(file, name)
    if shape[-1] % values:
        raise _unsupported(file, name, f"{kind}, whose blocks of {values} do not fit {shape}")
    raw = np.fromfile(file.path, np.uint8, _num_bytes(file, name), offset=start)
    return raw.reshape(math.prod(shape[:-1]), shape[-1] // values * size)


def dequantised(file: GgufFile, name: str) -> np.ndarray:
    """A tensor in float32."""
    raw, shape, kind = _stored(file, name), file.tensors[name].shape, _layout(file, name).kind
    plain = {"F32": "<f4", "F16": "<f2"}.get(kind)
    if plain:
        return raw.view(plain).astype(np.float32, copy=False).reshape(shape)
    gguf = require("gguf")
    rows = math.prod(shape[:-1])
    # The package works on 16 rows at a time: fewer, longer rows take it less time.
    merged = 64 if rows % 64 == 0 else 1
    try:
        array = gguf.quants.dequantize(
            raw.reshape(rows // merged, -1), gguf.GGMLQuantizationType[kind]
        )
    except NotImplementedError as error:
        raise _unsupported(file, name, kind) from error
    return array.reshape(shape)
