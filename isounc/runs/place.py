"""The place of a run: a folder that is one already or can become one, and that can be written."""

from __future__ import annotations

import os
from pathlib import Path

from isounc.checks import check_path
from isounc.runs import files

SUBFOLDERS = ("cells", "cells/damaged", "figures", "jobs", "jobs/unfinished")
"""Folders of a run that are written."""


def check_run(path: Path) -> None:
    """Raise a ValueError, which says what it is, unless a path is a folder of a run."""
    if (path / "settings.json").is_file():
        return
    kind = "is a file" if path.is_file() else "has no settings.json"
    kind = kind if path.exists() else "does not exist"
    raise ValueError(
        f"path must be a run folder, or one of published results, got {path}, which {kind}"
    )


def check_place(path: str | os.PathLike[str]) -> Path:
    """A path where a run is or can be made; nothing is created.

    Raises
    ------
    ValueError
        If it is a file or lies below one, or is a folder with other things in it.
    OSError
        If it cannot be written.
    """
    path = check_path("path", path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, but a run needs a folder; choose another --out")
    # A folder that is not ours must be left as it was found; a page about the run may lie there first.
    others = [p for p in path.iterdir() if not files.is_housekeeping(p)] if path.exists() else []
    names = sorted(p.name for p in others if p.name != "README.md")
    if names and "settings.json" not in names:
        raise ValueError(
            f"{path} is not empty and holds no settings.json, so it is no run folder "
            f"(found {', '.join(names[:3])}); choose another --out"
        )
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise ValueError(f"{path} lies below a file; choose another --out")
    for folder in (there, *(path / name for name in SUBFOLDERS)):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise OSError(
                f"{folder} cannot be written (a read-only file system, or missing rights); make it "
                "writable, or choose another --out"
            )
        if path.exists() and path.resolve() not in (folder.resolve(), *folder.resolve().parents):
            raise ValueError(
                f"{folder} must be a folder of the run, got a link to {folder.resolve()}, which "
                "lies outside; remove the link"
            )
    return path
