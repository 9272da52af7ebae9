"""Figures of a run: what each shows, how it is drawn, and the files that it is saved in."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from isounc.runs.page import FigureFile
from isounc.runs.style import NothingToDraw, save

LONGEST_STEM = 100
"""Longest file name of a figure, without ending; file systems end at 255 bytes."""
NOT_ASKED_FOR = "isounc report draws it (or the option --figures all)"
"""Why a figure beyond the first of its kind was not drawn."""
_log = logging.getLogger(__name__)


class Plot(NamedTuple):
    """A figure that a run may have."""

    name: str
    """File name without ending."""
    kind: str
    """Kind of figure, by which a report finds its section."""
    caption: str
    """Caption of a sentence or two."""
    draw: Callable[[], Figure]
    """Draws it; raises `NothingToDraw` with the reason where the run does not have the data."""


def _stem(name: str) -> str:
    """A file name: that of a figure may hold whatever a record calls a region or a problem."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) and len(name) <= LONGEST_STEM:
        return name
    safe = re.sub(r"[^A-Za-z0-9_-]", "-", name)[:LONGEST_STEM]
    return f"{safe or 'figure'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def draw_plots(
    plots: Iterable[Plot], folder: Path, *, shown_alone: bool = False
) -> list[FigureFile]:
    """Draw figures into `folder`; one that is not drawn is returned with the reason.

    Parameters
    ----------
    shown_alone
        Draw what a page shows unfolded: the first of each kind that can be drawn, as PNG alone.

    Raises
    ------
    ValueError
        If the folder is a link.
    OSError
        If a file cannot be written.
    """
    if folder.is_symlink():
        raise ValueError(
            f"{folder} must be a folder, got a link to {folder.resolve()}, where nothing is written"
        )
    files: list[FigureFile] = []
    for name, kind, caption, draw in plots:
        if shown_alone and any(file.kind == kind and file.paths for file in files):
            files.append(FigureFile(name, kind, caption, (), NOT_ASKED_FOR))
            continue
        try:
            paths = tuple(save(draw(), folder / _stem(name), svg=not shown_alone))
            files.append(FigureFile(name, kind, caption, paths, ""))
        except NothingToDraw as error:
            _log.info("figure %s skipped: %s", name, error)
            files.append(FigureFile(name, kind, caption, (), str(error)))
    return files
