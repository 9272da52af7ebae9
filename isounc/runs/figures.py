"""Figures of a run: what each shows, how it is drawn, and the files that it is saved in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from isounc.runs.page import FigureFile
from isounc.runs.style import NothingToDraw, save

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


def draw_plots(plots: Iterable[Plot], folder: Path) -> list[FigureFile]:
    """Draw figures into `folder`; one that cannot be drawn is returned with the reason.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    files = []
    for name, kind, caption, draw in plots:
        try:
            files.append(FigureFile(name, kind, caption, tuple(save(draw(), folder / name)), ""))
        except NothingToDraw as error:
            _log.info("figure %s skipped: %s", name, error)
            files.append(FigureFile(name, kind, caption, (), str(error)))
    return files
