"""Models in folders of Hugging Face's libraries: config.json, safetensors and tokenizer.json."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isounc.fields import Unreadable, declared, entries, integer, items, one_of, text
from isounc.llm.model.config import DecoderConfig
from isounc.llm.model.huggingface_config import from_huggingface
from isounc.llm.model.packages import require
from isounc.llm.model.tokens import Tokenizer, tokenizer_from_json
from isounc.untrusted import MEGABYTE, check_size, open_regular, read_json, reading

_CONFIG_SIZE, _INDEX_SIZE, _TABLE_SIZE = MEGABYTE, 16 * MEGABYTE, 8 * MEGABYTE
"""Bytes of the largest descriptions of a model; those in use have a tenth of these."""
_NUMBERS = ("F64", "F32", "F16", "BF16")
"""Types of tensors that hold weights as they are; others need scales or tables beside them."""
_MAIN = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_BLOCK = {
    "self_attn.q_proj.weight": "q", "self_attn.k_proj.weight": "k", "self_attn.v_proj.weight": "v",
    "self_attn.o_proj.weight": "out", "self_attn.q_proj.bias": "q_bias",
    "self_attn.k_proj.bias": "k_bias", "self_attn.v_proj.bias": "v_bias",
    "self_attn.o_proj.bias": "out_bias",
    "self_attn.q_norm.weight": "q_norm", "self_attn.k_norm.weight": "k_norm",
    "mlp.gate_proj.weight": "gate", "mlp.up_proj.weight": "up", "mlp.down_proj.weight": "down",
    "pre_feedforward_layernorm.weight": "mlp_norm_in",
    "post_feedforward_layernorm.weight": "mlp_norm_out",
}  # fmt: skip
_TOP = {"embed_tokens.weight": "embed", "norm.weight": "norm", "lm_head.weight": "head"}
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
"""Name, number and count of a part of a checkpoint."""
_OTHER = re.compile(r"rotary_emb\.inv_freq$|^vision_tower\.|^multi_modal_projector\.")
"""Buffers that the configuration implies, and the vision model that comes with a Gemma 3."""
_PREFIXES = ("language_model.", "model.", "language_model.", "model.")
"""Names of the modules around a decoder, in the orders of various versions."""


class Folder(NamedTuple):
    """The files of a model in a folder."""

    path: Path
    """Path of the folder."""
    config: dict[str, Any]
    """Content of config.json."""
    shards: tuple[Path, ...]
    """Files with weights."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that a model is made of."""
        return (self.path / "config.json", *self.shards, self.path / "tokenizer.json")


def open_folder(path: Path) -> Folder:
    """Find the files of a model.

    Raises
    ------
    ValueError
        A file is missing or no regular file, or files of weights stand beside each other of which
        only some can be meant. Weights in PyTorch's own format are refused, since reading them can
        execute code.
    """
    files = set(os.listdir(path))
    config = _json(path, "config.json", _CONFIG_SIZE)
    if config is None:
        raise Unreadable(
            "source must be a folder with config.json, safetensors and tokenizer.json, got "
            f"{path.name} without config.json"
        )
    shards = _shards(path, files)
    if not shards:
        others = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth")))
        given = f"{', '.join(others)}, and reading those can execute code" if others else "none"
        raise Unreadable(f"{path.name} must have its weights as safetensors, got {given}")
    if "tokenizer.json" not in files:
        raise Unreadable(f"{path.name} must have a tokenizer.json, got {', '.join(sorted(files))}")
    return Folder(path, config, tuple(path / name for name in shards))


def _shards(path: Path, files: set[str]) -> list[str]:
    """Names of the files with weights: those of the index, `model.safetensors`, or one set."""
    index = _json(path, _INDEX, _INDEX_SIZE) if _INDEX in files else None
    if index is not None:
        table = {"weight_map": entries(text(longest=255), most=2**20)}
        names = declared(index, table, f"{_INDEX} of {path.name}")["weight_map"].values()
        shards = sorted(set(names))
        if missing := [name for name in shards if name not in files]:
            raise Unreadable(
                f"{path.name} must have every shard that {_INDEX} lists, got no "
                f"{', '.join(missing[:8])}"
            )
        if _MAIN in files and shards != [_MAIN]:
            raise Unreadable(
                f"{path.name} must have {_MAIN} or an index of other files, got both; remove one"
            )
        return shards
    if _MAIN in files:
        return [_MAIN]  # whatever else is there: averages, states of an optimiser
    found = sorted(name for name in files if name.endswith(".safetensors"))
    parts = [match for name in found if (match := _PART.fullmatch(name))]
    one_set = len({(part[1], part[3]) for part in parts}) == 1 and len(parts) == len(found)
    if len(found) > 1 and not (one_set and len(found) == int(parts[0][3])):
        raise Unreadable(
            f"{path.name} must have {_MAIN}, an index, or one whole set of shards, got "
            f"{', '.join(found[:8])}"
        )
    return found


def _json(path: Path, name: str, most: int) -> dict[str, Any] | None:
    """Content of a JSON object in a folder; None if there is no such file."""
    what = f"{name} of {path.name}"
    try:
        content = read_json(path / name, most=most, what=what)
    except FileNotFoundError:
        return None
    if not isinstance(content, dict):
        raise Unreadable(f"{what} must be a JSON object, got {content!r:.40}")
    return content


def config_of(folder: Folder) -> DecoderConfig:
    """The description in config.json; errors as in `from_huggingface`."""
    return from_huggingface(folder.config)


def tokenizer_of(folder: Folder, config: DecoderConfig) -> Tokenizer:
    """The tokenizer, with the stop tokens of config.json and generation_config.json.

    Raises
    ------
    ValueError
        tokenizer.json cannot be used, or a token id is beyond the vocabulary.
    """
    sources = [("config.json", folder.config)]
    if inner := folder.config.get("text_config"):
        sources.append(("text_config of config.json", inner))
    if generation := _json(folder.path, "generation_config.json", _CONFIG_SIZE):
        sources.append(("generation_config.json", generation))
    number = integer(0, config.vocab_size - 1)
    table = {
        "eos_token_id": one_of(number, items(number, most=1000), default=None),
        "bos_token_id": number._replace(default=None),
    }
    stops: set[int] = set()
    bos = None
    for name, source in sources:
        ids = declared(source, table, name)
        ends = ids["eos_token_id"]
        stops |= set(ends if isinstance(ends, list) else [ends]) - {None}
        bos = ids["bos_token_id"] if "bos_token_id" in source else bos
    return tokenizer_from_json(folder.path / "tokenizer.json", stop_ids=stops, bos_id=bos)


def weights_of(folder: Folder, config: DecoderConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Names and float32 arrays of all parameters of `DecoderConfig.shapes`, one at a time.

    Raises
    ------
    ImportError
        The package `safetensors` is not installed.
    ValueError
        A shard cannot be read, or a tensor is not one of the decoder's.
    """
    safetensors = require("safetensors")
    for shard in folder.shards:
        with open_regular(shard, shard.name) as raw:
            # The table of tensors, which takes twenty times as much memory once it is read.
            size = int.from_bytes(raw.read(8), "little")
            check_size(size, _TABLE_SIZE, f"the table of tensors in {shard.name}")
        with (
            reading(shard.name, "a whole safetensors file"),
            safetensors.safe_open(shard, framework="flax") as file,
        ):
            for name in file.keys():
                if _OTHER.search(name):
                    continue
                kind = file.get_slice(name).get_dtype()
                if kind not in _NUMBERS:
                    raise Unreadable(
                        f"{shard.name} must have its weights in {', '.join(_NUMBERS)}, got {kind} "
                        f"for {name}; convert quantised weights to BF16 first"
                    )
                array = np.asarray(file.get_tensor(name)).astype(np.float32)
                yield from _named(name, array, config, shard)


def _named(
    name: str, array: np.ndarray, config: DecoderConfig, shard: Path
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and array of the decoder's parameters in a tensor: one, or several fused into it."""
    short = name
    for prefix in _PREFIXES:
        short = short.removeprefix(prefix)
    if short in _TOP:
        parameter = _TOP[short]
        if parameter == "head":
            if not config.tied:
                yield parameter, array.T
            return
        yield parameter, _scale(array, config) if parameter == "norm" else array
        return
    _, number, rest = [*short.split(".", 2), "", ""][:3]
    parts = _parts(rest, array, config)
    if not short.startswith("layers.") or not parts:
        raise Unreadable(f"{shard.name} must hold only tensors of the decoder, got {name} besides")
    for parameter, part in parts:
        scale_or_matrix = _scale(part, config) if "norm" in parameter else part.T
        yield f"layers.{number}.{parameter}", scale_or_matrix


def _parts(name: str, array: np.ndarray, config: DecoderConfig) -> list[tuple[str, np.ndarray]]:
    """Parameters in one tensor of a block, with outputs as rows; none for an unknown tensor."""
    if name == "self_attn.qkv_proj.weight":
        q, kv = (n * config.head_width for n in (config.num_heads, config.num_kv_heads))
        return list(zip(("q", "k", "v"), np.split(array, [q, q + kv]), strict=True))
    if name == "mlp.gate_up_proj.weight":
        return list(zip(("gate", "up"), np.split(array, 2), strict=True))
    if name == "input_layernorm.weight":
        return [("attention_norm_in", array)]
    if name == "post_attention_layernorm.weight":
        # After attention, or before the MLP: the same name has meant both.
        return [("attention_norm_out" if config.norm_out else "mlp_norm_in", array)]
    return [(_BLOCK[name], array)] if name in _BLOCK else []


def _scale(array: np.ndarray, config: DecoderConfig) -> np.ndarray:
    """Scales of a norm; Gemma stores their differences from 1."""
    return array + 1 if config.architecture == "gemma3_text" else array
