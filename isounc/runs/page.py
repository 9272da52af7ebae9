"""A report as one self-contained HTML page and a Markdown file: sections of text, figures and tables.

The page holds its images and its style, loads nothing, runs nothing, and needs no network; all text is escaped.
"""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from isounc.runs import files

_LONG = 16
"""Tables with more rows than this are folded up."""

_STYLE = """
:root { color-scheme: light dark; --line: #d0d4d9; --soft: #f3f5f7; --text: #1d2126; --dim: #566069;
  --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3c434b; --soft: #22272d; --text: #e4e7ea; --dim: #a5aeb7; --link: #7db8f5; }
  body { background: #16191d; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); max-width: 76rem; margin: 0 auto;
  padding: 1rem 1.25rem 4rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; background: white; border: 1px solid var(--line); }
figcaption, .note { color: var(--dim); font-size: .92rem; max-width: 60rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { background: var(--soft); }
tbody th { font-weight: 600; }
details { margin: .8rem 0; }
summary { cursor: pointer; font-weight: 600; }
"""


class Table(NamedTuple):
    """A table of texts."""

    title: str
    """What it shows."""
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
    """What kind of figure it is, by which a report finds its section."""
    caption: str
    """What it shows, in a sentence or two."""
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
    """Figures that were drawn."""
    tables: tuple[Table, ...]
    """Tables that have rows."""


def write_page(folder: Path, name: str, sections: Iterable[Section]) -> Path:
    """Write `report.html` and `report.md` into a folder, each whole or not at all; the path of the page.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    sections = list(sections)
    page = folder / "report.html"
    contents = {
        page: _html(name, sections).encode(),
        page.with_suffix(".md"): _markdown(name, sections, folder).encode(),
    }
    files.write_atomic(contents, "the report")
    return page


def _html(name: str, sections: list[Section]) -> str:
    esc = html.escape
    links = "".join(f'<li><a href="#{s.key}">{esc(s.title)}</a></li>' for s in sections)
    body = "\n".join(_html_section(section) for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{esc(name)}: isounc report</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{esc(name)}</h1>
<nav aria-label="Contents"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def _html_section(section: Section) -> str:
    esc = html.escape
    parts = [f'<section id="{section.key}">', f"<h2>{esc(section.title)}</h2>"]
    parts += [f"<p>{esc(text)}</p>" for text in section.text]
    for i, figure in enumerate(section.figures):
        data = base64.b64encode(figure.paths[0].read_bytes()).decode()
        image = (
            f'<figure><img alt="{esc(figure.caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{esc(figure.caption)}</figcaption></figure>"
        )
        # The first shows what the section is about; the rest would push its tables out of sight.
        if i:
            title = f"<summary>{esc(figure.name)}</summary>"
            image = f"<details>{title}{image}</details>"
        parts.append(image)
    for table in section.tables:
        text = _html_table(table)
        if len(table.rows) > _LONG:
            title = f"{esc(table.title)} ({len(table.rows)} rows)"
            text = f"<details><summary>{title}</summary>{text}</details>"
        parts.append(text)
    return "\n".join([*parts, "</section>"])


def _html_table(table: Table) -> str:
    esc = html.escape
    head = "".join(f'<th scope="col">{esc(column)}</th>' for column in table.columns)
    rows = "\n".join(
        f'<tr><th scope="row">{esc(row[0])}</th>'
        + "".join(f"<td>{esc(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    note = f'<p class="note">{esc(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll"><table><caption>{esc(table.title)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>{note}"
    )


def _markdown(name: str, sections: list[Section], folder: Path) -> str:
    parts = [f"# {_plain(name)}"]
    for section in sections:
        parts.append(f"## {_plain(section.title)}")
        parts += [_plain(text) for text in section.text]
        for figure in section.figures:
            place = os.path.relpath(figure.paths[0], folder).replace(os.sep, "/")
            parts.append(f"![{_plain(figure.caption)}]({place})")
        for table in section.tables:
            lines = [
                "| " + " | ".join(map(_plain, row)) + " |" for row in (table.columns, *table.rows)
            ]
            lines.insert(1, "|" + " --- |" * len(table.columns))
            parts += [f"### {_plain(table.title)}", "\n".join(lines)]
            parts += [_plain(table.note)] if table.note else []
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    for character in "\\`*_[]|":
        text = text.replace(character, "\\" + character)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(text.split())
