"""Checkpoints of a sampling run: a killed run is resumed and gives the same draws, bit for bit.

A folder holds `run.json`, which says what is being sampled, a `block-NNNNN.npz` for each block of
draws, and the state of the chains after the newest blocks. Of a block, a window of warm-up or a
round that is not finished, `part-NNNNN.npz` holds what there is. Files appear whole or not at all
and carry their SHA-256; a file that does not agree with it is not read.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from isounc.runs import files, values

DIGEST = "sha256"
"""Name of the array with the digest of those after it."""


class Checkpoint:
    """The folder of one run; see `open`."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def open(cls, folder: str | Path, identity: Mapping[str, Any]) -> Checkpoint:
        """Begin a folder, or resume one of the same run.

        Parameters
        ----------
        folder
            New, empty, or of the same run.
        identity
            Everything that decides the draws, as JSON can hold it.

        Raises
        ------
        ValueError
            If the folder holds another run (with the differences), or anything but checkpoints.
        OSError
            If it cannot be written.
        """
        path = Path(folder)
        asked = values.encode(dict(identity), "identity")
        about = path / "run.json"
        content = files.bytes_or_none(about)
        if content is not None:
            try:
                known = values.parse_json(content, str(about))["identity"]
            except (values.Damaged, KeyError) as error:
                raise ValueError(
                    "checkpoint must be a folder with a run.json that can be read, got "
                    f"{path} ({error}); give another folder"
                ) from error
            if lines := values.differences(known, asked):
                raise ValueError(
                    f"checkpoint must be a folder of this run, got {path} of another run; give "
                    "another folder, or the same settings and data:\n  " + "\n  ".join(lines)
                )
            files.remove_stale(path)
            return cls(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(
                f"checkpoint must be a folder that is new, empty or of this run, got {path}, which "
                "holds something else"
            )
        path.mkdir(parents=True, exist_ok=True)
        files.write_atomic({about: values.json_bytes({"identity": asked})}, "run.json")
        return cls(path)

    def save(self, step: int, state: Any, block: Any = None) -> None:
        """Store the state after a step, and the block (or round of blocks) that the step gave."""
        contents = {self._path("state", step): _pack(state)}
        if block is not None:
            contents = {self._path("block", step): _pack(block)} | contents
        files.write_atomic(contents, f"checkpoint {step}")
        # The one before is the way back if this one should turn out to be damaged.
        for path in (self._path("state", step - 2), self._path("part", step)):
            with contextlib.suppress(OSError):
                path.unlink()

    def save_part(self, step: int, state: Any) -> None:
        """Store the state within a step that is not finished, in place of an earlier one."""
        files.write_atomic({self._path("part", step): _pack(state)}, f"part of checkpoint {step}")

    def load_part(self, step: int, like: Any) -> Any | None:
        """Read the state within a step, of the structure and shapes of `like`; None if none is."""
        with contextlib.suppress(values.Damaged):
            return _unpack(self._path("part", step), like)
        return None

    def load(self, state: Any, block: Any, first_block: int) -> tuple[int, Any, list[Any]]:
        """Read the newest step of which all files are sound.

        Parameters
        ----------
        state, block
            Pytrees of the structure and shapes that were saved.
        first_block
            The step that gave the first block.

        Returns
        -------
        The step, its state and all blocks up to it; (-1, `state`, []) if there is none.
        """
        steps = sorted(
            (int(p.stem.split("-")[1]) for p in self.folder.glob("state-*.npz")), reverse=True
        )
        for step in steps:
            with contextlib.suppress(values.Damaged):
                saved = _unpack(self._path("state", step), state)
                blocks = [
                    _unpack(self._path("block", i), block) for i in range(first_block, step + 1)
                ]
                return step, saved, blocks
        return -1, state, []

    def _path(self, kind: str, step: int) -> Path:
        return self.folder / f"{kind}-{step:05d}.npz"


def _pack(tree: Any) -> bytes:
    """The digest of the leaves' archive, in an archive of its own, and after it that archive."""
    arrays = {f"leaf{i:03d}": np.asarray(a) for i, a in enumerate(jax.tree.leaves(tree))}
    content = values.pack(arrays)
    digest = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
    return values.pack({DIGEST: digest}) + content


_HEAD = len(values.pack({DIGEST: np.zeros(32, np.uint8)}))


def _unpack(path: Path, like: Any) -> Any:
    packed = files.bytes_or_none(path)
    if packed is None:
        raise values.Damaged(f"{path} is missing")
    content = packed[_HEAD:]
    if values.unpack(packed[:_HEAD])[DIGEST].tobytes() != hashlib.sha256(content).digest():
        raise values.Damaged(f"{path} does not agree with its SHA-256")
    arrays = values.unpack(content)
    leaves = [arrays[name] for name in sorted(arrays)]
    expected = jax.tree.leaves(like)
    if [np.shape(a) for a in leaves] != [np.shape(a) for a in expected]:
        raise values.Damaged(f"{path} holds arrays of other shapes")
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
