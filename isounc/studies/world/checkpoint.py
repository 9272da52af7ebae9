"""Where the training of a world and size stands, so that a run that was killed goes on from there.

The parameters of all members and the state of their optimiser are stored after every training length,
before its scores are computed, in a folder of the run that is removed once the last length has its
record. They are arrays without pickle that appear whole or not at all (`isounc.sampling.checkpoint`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from isounc.runs.provenance import provenance
from isounc.sampling.checkpoint import Checkpoint
from isounc.studies.world.settings import Cell, Settings

FOLDER = "training"
"""Folder in that of a run."""


class Progress:
    """The stored states of the training of one world and size.

    Parameters
    ----------
    folder
        The folder of the run.
    cells
        Cells of that world and size, whose records the run lacks.
    settings
        Settings of the run; states of other settings, versions or devices are not read.
    """

    def __init__(self, folder: Path, cells: Sequence[Cell], settings: Settings):
        made_by, cell = provenance(), cells[0]
        identity = {
            "world": cell.world, "width": cell.width, "depth": cell.depth,
            "epochs": list(settings.epochs), "num_relations": settings.num_relations,
            "rule": settings.rule, "assessed": settings.assessed,
            "num_members": settings.num_members, "num_bootstrap": settings.num_bootstrap,
            "train": dataclasses.asdict(settings.train), "versions": made_by["versions"],
            "device": {k: made_by["device"][k] for k in ("platform", "kind", "x64")},
        }  # fmt: skip
        self._name = f"world{cell.world}-width{cell.width}-depth{cell.depth}"
        self._root = folder / FOLDER
        self._identity = identity | {
            "local": dataclasses.asdict(settings.local), "hmc": dataclasses.asdict(settings.hmc)
        }  # fmt: skip
        self._epochs, self._first = settings.epochs, min(cell.epochs for cell in cells)
        self._checkpoint = self._open("", identity)

    def save(self, epoch: int, state: Any) -> None:
        """Store the state after a training length."""
        self._checkpoint.save(self._epochs.index(epoch), jax.device_get(state))

    def load(self, like: Any) -> tuple[int, Any]:
        """The newest state that is not beyond the first of the cells; 0 and `like` without one."""
        step, state, _ = self._checkpoint.load(like, None, len(self._epochs))
        if step < 0 or self._epochs[step] > self._first:
            return 0, like
        return self._epochs[step], jax.tree.map(jnp.asarray, state)

    def of_chains(self, member: int) -> Checkpoint:
        """Where chains of Hamiltonian Monte Carlo around a member are kept."""
        identity = self._identity | {"member": member}
        return self._open("-hmc", identity)

    def _open(self, kind: str, identity: dict[str, Any]) -> Checkpoint:
        """A folder for what these settings lead to."""
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        return Checkpoint.open(self._root / f"{self._name}{kind}-{digest}", identity)

    def remove(self) -> None:
        """Remove all states of this world and size."""
        for path in self._root.glob(f"{self._name}-*"):
            shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # those of another world are there
            self._root.rmdir()
