"""A part of a run, which a job of a cluster computes, and what the job says of it in a file.

A job is told texts alone: where the study and its settings are, and names of cells. It reads the
settings again, plans the run again, and computes those of its batches that it was given.
"""

from __future__ import annotations

import importlib
import math
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isounc.runs import files, process, unfinished, values
from isounc.runs.batches import Batch, Group
from isounc.runs.compilation import is_large, quick_compilation_asked
from isounc.runs.compute import WORKER_MEBIBYTES, Session, work_of
from isounc.runs.provenance import device
from isounc.runs.settings import RunSettings, restored_settings, stored_settings, use_device

SETTINGS = "settings.json"
"""File of all settings of a run, in the folder of its jobs."""
UNFINISHED = "unfinished"
"""Folder of checkpoints, beside those of the jobs."""


@dataclass(frozen=True)
class Part:
    """Some batches of a run. submitit pickles it, by the name of this class and these texts."""

    study: str
    """Where the study is, as `module:NAME`."""
    out: str
    """The run folder."""
    folder: str
    """Folder of the jobs, which has the settings and takes the outcome."""
    index: int
    """Which job of the run it is."""
    batches: tuple[str, ...]
    """The batches, each by the name of its first cell."""
    cache: str
    """Folder of compiled programs; empty means none."""
    flags: str = ""
    """Flags of XLA, besides those that the job starts with."""

    @property
    def outcome(self) -> Path:
        """The file in which the job says what it has done."""
        return Path(self.folder) / f"part-{self.index}.json"

    @property
    def unfinished(self) -> Path:
        """Where checkpoints of batches lie, for this job and for one of a later start."""
        return Path(self.folder).parent / UNFINISHED

    def __call__(self) -> None:
        """Compute the batches, and go on after one that fails.

        Raises
        ------
        ChildProcessError
            If one failed, once the others are computed, so that the job's status says so.
        """
        if self.flags:  # JAX reads them when it first computes
            given = os.environ.get("XLA_FLAGS", "")
            os.environ["XLA_FLAGS"] = f"{self.flags} {given}".strip()
        study = found_study(self.study)
        settings = read_settings(study, Path(self.folder) / SETTINGS)
        settings = replace(settings, out=self.out, cache=self.cache)
        process.use_compilation_cache(self.cache)
        use_device(settings.device)
        by_name = {_name(batch): batch for group in study.plan(settings) for batch in group}
        work = work_of(study, settings, most_mebibytes=WORKER_MEBIBYTES)
        said: dict[str, Any] = {}
        for name in self.batches:
            try:
                with unfinished.kept_in(self.unfinished / name):
                    session = work((by_name[name],), lambda _: None)
                said[name] = {"session": session._replace(device=device())._asdict()}
                shutil.rmtree(self.unfinished / name, ignore_errors=True)
            except Exception:
                said[name] = {"failure": traceback.format_exc().rstrip()}
            content = values.json_bytes({"batches": values.encode(said, "outcome")})
            files.write_atomic({self.outcome: content}, f"outcome of part {self.index}")
        failed = [name for name, of_batch in said.items() if "failure" in of_batch]
        if failed:
            raise ChildProcessError(f"{len(failed)} of {len(said)} batches failed: {failed}")

    def said(self) -> dict[str, Session | str]:
        """Read what the job has finished: for each batch its costs, or the traceback of its error."""
        try:
            content = files.bytes_or_none(self.outcome)
            said = values.parse_json(content, str(self.outcome))["batches"] if content else {}
            return {
                name: Session(**values.decode(of_batch["session"]))
                if "session" in of_batch
                else str(values.decode(of_batch["failure"]))
                for name, of_batch in said.items()
            }
        except (values.Damaged, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.outcome} is not what a job writes: {error}") from error

    def checkpoint(self) -> Any:
        """The same again, for a queue that has taken the machine away or whose time is up.

        What is computed is in the run folder, and so are checkpoints of what is not.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def write_settings(study: Any, settings: RunSettings, path: Path) -> None:
    """Write all settings that change a record, for `read_settings`.

    Raises
    ------
    ValueError
        If they would not come back as they are, since they are of kinds that JSON has not.
    """
    stored = values.encode(stored_settings(settings), "settings")
    files.write_atomic({path: values.json_bytes({"settings": stored})}, path.name)
    again = values.encode(stored_settings(read_settings(study, path)), "settings")
    if lines := values.differences(stored, again):
        raise ValueError(
            "\n  ".join(
                [
                    "settings must be such as a file can hold, got some that came back as others:",
                    *lines,
                ]
            )
        )


def read_settings(study: Any, path: Path) -> RunSettings:
    """Read what `write_settings` wrote."""
    content = values.parse_json(files.bytes_or_none(path) or b"", str(path))["settings"]
    stored = values.decode(content)
    first = next(iter(study.presets.values()))
    return restored_settings(study.presets.get(stored.get("preset"), first), stored)


def place_of_study(study: Any) -> str:
    """Where a job finds a study, as `module:NAME`.

    Raises
    ------
    ValueError
        If it is no attribute of a module that can be imported.
    """
    for name, module in list(sys.modules.items()):
        if name not in ("__main__", "__mp_main__"):  # multiprocessing's second name of it
            for attribute, value in list(vars(module).items()):
                if value is study:
                    return f"{name}:{attribute}"
    raise ValueError(
        f"study must be an attribute of a module that jobs can import, got {study.name!r}, which is "
        "none; put it into a module, as isounc's studies are"
    )


def found_study(place: str) -> Any:
    """The study at `module:NAME`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _name(batch: Batch) -> str:
    return str(batch.cells[0].name)


def parts_of(
    study: Any, settings: RunSettings, groups: Sequence[Group], folder: Path, *, most: int
) -> list[Part]:
    """A part for each batch, or for several that follow each other if there are more than `most`.

    Parameters
    ----------
    folder
        A new folder for what the jobs read and write; the settings are written there.
    """
    of_kind: dict[bool, list[str]] = {}
    for group in groups:
        of_kind.setdefault(is_large(group), []).extend(map(_name, group))
    count = sum(map(len, of_kind.values()))
    # A job compiles in one way, so that small and large work have jobs of their own.
    size = 1 if count <= most else math.ceil(count / max(1, most - len(of_kind) + 1))
    on_cpu = settings.device in ("auto", "cpu") and not settings.gpus
    place = place_of_study(study)
    folder.mkdir(parents=True)
    write_settings(study, settings, folder / SETTINGS)
    parts: list[Part] = []
    for large, names in of_kind.items():
        flags = "" if large or not on_cpu else " ".join(quick_compilation_asked())
        for start in range(0, len(names), size):
            some = tuple(names[start : start + size])
            about = place, settings.out, str(folder), len(parts), some, settings.cache, flags
            parts.append(Part(*about))
    return parts
