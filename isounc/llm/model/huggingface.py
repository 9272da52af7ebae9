"""Models in folders of Hugging Face's libraries: config.json, safetensors and tokenizer.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isounc.llm.model.config import DecoderConfig, from_huggingface
from isounc.llm.model.packages import require
from isounc.llm.model.tokens import Tokenizer, tokenizer_from_json

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
        A file is missing. Weights in PyTorch's own format are refused, since reading them can
        execute code.
    """
    files = {file.name for file in path.iterdir()}
    config = _json(
        path / "config.json", "a folder with config.json, safetensors and tokenizer.json"
    )
    if _INDEX in files:
        names = _json(path / _INDEX, "whole").get("weight_map", {}).values()
        shards = sorted(set(names))
        if missing := [name for name in shards if name not in files]:
            raise ValueError(
                f"{path.name} must have every shard that {_INDEX} lists, got no "
                f"{', '.join(missing)}"
            )
    else:
        shards = sorted(name for name in files if name.endswith(".safetensors"))
    if not shards:
        others = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth")))
        given = f"{', '.join(others)}, and reading those can execute code" if others else "none"
        raise ValueError(f"{path.name} must have its weights as safetensors, got {given}")
    if "tokenizer.json" not in files:
        raise ValueError(f"{path.name} must have a tokenizer.json, got {', '.join(sorted(files))}")
    return Folder(path, config, tuple(path / name for name in shards))


def _json(path: Path, right: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"source must be {right}, got {path.parent.name} without {path.name}"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} of {path.parent.name} must be JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path.name} of {path.parent.name} must be a JSON object, got {content!r:.40}"
        )
    return content


def config_of(folder: Folder) -> DecoderConfig:
    """The description in config.json; errors as in `from_huggingface`."""
    return from_huggingface(folder.config)


def tokenizer_of(folder: Folder) -> Tokenizer:
    """The tokenizer, with the stop tokens of config.json and generation_config.json."""
    sources = [folder.config, folder.config.get("text_config", {})]
    generation = folder.path / "generation_config.json"
    if generation.is_file():
        sources.append(_json(generation, "whole"))
    stops: set[int] = set()
    bos = None
    for source in sources:
        ends = source.get("eos_token_id")
        stops |= set(ends if isinstance(ends, list) else [ends]) - {None}
        bos = source.get("bos_token_id", bos)
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
        try:
            with safetensors.safe_open(shard, framework="flax") as file:
                for name in file.keys():
                    if _OTHER.search(name):
                        continue
                    array = np.asarray(file.get_tensor(name)).astype(np.float32)
                    yield from _named(name, array, config, shard)
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{shard.name} must be a whole safetensors file: {error}") from error


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
        raise ValueError(f"{shard.name} must hold only tensors of the decoder, got {name} besides")
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
