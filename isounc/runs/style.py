"""How figures look in every study, and how they are saved.

The colours are Okabe and Ito's and Tol's muted ones, which people with the common kinds of colour
blindness tell apart. Markers say the same a second time. A hollow marker means a failed gate.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, Formatter, FuncFormatter, LogFormatter

from isounc.runs import files


class Look(NamedTuple):
    """How one thing is drawn and called."""

    label: str
    """Name in legends and titles."""
    color: str
    """Colour of lines, markers and bars."""
    marker: str
    """Marker of matplotlib."""
    linestyle: str = "-"
    """Style of lines; dotted for what a result is held against."""


REGION_LOOKS = {
    "test": Look("test", "#0072B2", "o"),
    "grid": Look("grid", "#8C8C8C", "."),
    "far": Look("far", "#D55E00", "^"),
}
"""Looks of the regions that problems have."""
SPARE = (("#332288", "<"), ("#999933", ">"), ("#AA4499", "d"), ("#117733", "H"))
"""Colours and markers for what is not built in."""

DPI = 150
LONGEST_LINE = 200
"""Longest line of a text in a figure; of longer ones the beginning and the end are drawn."""
_UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so figures look alike everywhere
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.formatter.use_mathtext": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.unicode_minus": True,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.titlesize": 11,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "figure.dpi": DPI,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "isounc",  # equal figures give equal files
    "text.usetex": False,
}


class NothingToDraw(ValueError):
    """Why a figure cannot be drawn from a run."""


def region_look(name: str, *, position: int = 0) -> Look:
    """The look of a region. One that is not built in takes a spare colour by its position."""
    return REGION_LOOKS.get(name) or Look(name, *SPARE[position % len(SPARE)])


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Draw and save with the project's settings of matplotlib, whatever the user's are."""
    with matplotlib.rc_context(_RC):
        yield


def legend_below(figure: Figure, entries: Mapping[str, Any], **settings: Any) -> None:
    """Draw one legend under all panels, in as many columns as fit the width of the figure.

    A legend of more than three rows makes the figure taller, so that the panels keep their height.
    """
    labels = list(entries)
    if not labels:
        return

    def width(columns: int) -> float:
        # Inches: a letter is about 0.064 wide at this size, a handle with its gaps 0.6.
        split = np.array_split([len(label) for label in labels], columns)  # as a legend does
        return sum(0.064 * float(lengths.max()) + 0.6 for lengths in split)

    fitting = [n for n in range(1, len(labels) + 1) if width(n) <= figure.get_figwidth()]
    columns = max(fitting, default=1)
    more_rows = max(0, -(-len(labels) // columns) - 3)
    figure.set_figheight(figure.get_figheight() + 0.17 * more_rows)
    figure.legend(
        list(entries.values()), labels, loc="outside lower center", ncols=columns, **settings
    )


def _take_texts_as_they_are(figure: Figure) -> None:
    """Draw names from records as they are: dollars begin no formula, no name is longer than a page.

    Numbers on logarithmic axes are formulas of matplotlib's own.
    """
    formulas = {
        id(text)
        for ax in figure.axes
        for axis in (ax.xaxis, ax.yaxis)
        if isinstance(axis.get_major_formatter(), LogFormatter)
        for text in axis.findobj(Text)
        if text is not axis.label
    }
    for text in figure.findobj(Text):
        if id(text) not in formulas:
            assert isinstance(text, Text)
            text.set_parse_math(False)
            text.set_text(_drawable(text.get_text()))
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FixedFormatter | FuncFormatter):  # texts that were given
                axis.set_major_formatter(_as_it_is(formatter))


def _as_it_is(formatter: Formatter) -> FuncFormatter:
    return FuncFormatter(lambda value, position: _drawable(formatter(value, position)))


def _drawable(text: str) -> str:
    """The text without what no font has, and with the middle left out of long lines."""
    lines = _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text).split("\n")
    middle = LONGEST_LINE // 2
    return "\n".join(x if len(x) <= LONGEST_LINE else f"{x[:middle]}…{x[-20:]}" for x in lines)


def save(figure: Figure, stem: Path, *, svg: bool = True) -> list[Path]:
    """Write a figure as `stem`.png and, with `svg`, `stem`.svg, each whole or not at all.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    OSError
        If they cannot be written.
    """
    drawn = {"png": io.BytesIO()} | ({"svg": io.BytesIO()} if svg else {})
    _take_texts_as_they_are(figure)
    with styled():
        # `Figure.savefig` would draw each format twice; drawing is what takes the time here.
        FigureCanvasAgg(figure).print_png(drawn["png"], metadata={"Software": None})
        if svg:
            figure.set_layout_engine("none")  # the layout just found holds for the other format too
            FigureCanvasSVG(figure).print_svg(drawn["svg"], metadata={"Date": None})
    contents = {
        stem.with_name(f"{stem.name}.{ending}"): content.getvalue()
        for ending, content in drawn.items()
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(contents, f"figure {stem.name}")
    return list(contents)
