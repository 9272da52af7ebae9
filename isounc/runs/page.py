"""A report as one self-contained HTML page and a Markdown file: text, figures and tables.

The page holds its images and its style, loads nothing, runs nothing, and needs no network. Its
template is `page.html.jinja`; Jinja escapes all text.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jinja2

from isounc.runs import files

_ROWS_SHOWN = 16
"""Tables with more rows than this are folded up."""


class Table(NamedTuple):
    """A table of texts."""

    title: str
    """Title of the table."""
    columns: tuple[str, ...]
    """Headings."""
    rows: list[tuple[str, ...]]
    """Cells, as many in each row as there are headings."""
    note: str
    """How to read it."""


class FigureFile(NamedTuple):
    """A figure of a run, or why there is none."""

    name: str
    """File name without ending."""
    kind: str
    """Kind of figure, by which a report finds its section."""
    caption: str
    """Caption of a sentence or two."""
    paths: tuple[Path, ...]
    """The files written: PNG, then SVG; none if it was skipped."""
    reason: str
    """Why it was skipped; empty if it was not."""


class Section(NamedTuple):
    """A heading with what comes under it, in order."""

    key: str
    """Anchor."""
    title: str
    """Heading."""
    text: tuple[str, ...]
    """Paragraphs."""
    figures: tuple[FigureFile, ...]
    """Its figures; the page shows those that were drawn."""
    tables: tuple[Table, ...]
    """Tables that have rows."""


def write_page(folder: Path, name: str, sections: Iterable[Section]) -> Path:
    """Write `report.html` and `report.md` into a folder, each whole or not at all.

    Parameters
    ----------
    folder
        A run folder; the figures lie in it.
    name
        Title of the report.
    sections
        What it shows, in order.

    Returns
    -------
    Path
        The HTML file.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    sections = [
        section._replace(figures=tuple(figure for figure in section.figures if figure.paths))
        for section in sections
    ]
    page = folder / "report.html"
    contents = {
        page: _html(name, sections).encode(),
        page.with_suffix(".md"): _markdown(name, sections, folder).encode(),
    }
    # A run has a lock, or whoever opens it would remove what is half written.
    with files.locked(folder, create=False):
        files.write_atomic(contents, "the report")
    return page


def _html(name: str, sections: list[Section]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("isounc.runs", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode()
    template = environment.get_template("page.html.jinja")
    return template.render(name=name, sections=sections, rows_shown=_ROWS_SHOWN)


def _markdown(name: str, sections: list[Section], folder: Path) -> str:
    parts = [f"# {_escaped(name)}"]
    for section in sections:
        parts.append(f"## {_escaped(section.title)}")
        parts += [_escaped(text) for text in section.text]
        for figure in section.figures:
            place = os.path.relpath(figure.paths[0], folder).replace(os.sep, "/")
            parts.append(f"![{_escaped(figure.caption)}]({place})")
        for table in section.tables:
            parts += [f"### {_escaped(table.title)}", *table_markdown(table)]
    return "\n\n".join(parts) + "\n"


def table_markdown(table: Table) -> list[str]:
    """Write a table without its title as paragraphs of Markdown: the table, and its note."""
    lines = ["| " + " | ".join(map(_escaped, row)) + " |" for row in (table.columns, *table.rows)]
    lines.insert(1, "|" + " --- |" * len(table.columns))
    return ["\n".join(lines), *([_escaped(table.note)] if table.note else [])]


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    for character in "\\`*_[]|":
        text = text.replace(character, "\\" + character)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(text.split())
