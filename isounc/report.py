"""The report of a run: one self-contained HTML page and a Markdown file, from the folder alone.

    python -m isounc.report RUN

draws the figures anew and writes `report.html` and `report.md` into RUN. The page holds its images
and its style, loads nothing, runs nothing, and needs no network; all text of the run is escaped.
"""

from __future__ import annotations

import base64
import html
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from isounc import storage
from isounc.figures import Drawn, draw_figures
from isounc.paper import SOURCE
from isounc.records import RunFolder
from isounc.results import Results
from isounc.tables import (
    Table,
    aleatoric_table,
    cost_table,
    gate_table,
    level_table,
    paper_table,
    point_table,
    predictive_table,
    settings_table,
    summary_table,
    trend_table,
    undefined_table,
)

__all__ = ["main", "make_report", "summary_table"]

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


class _Section(NamedTuple):
    """A heading with what comes under it, in order."""

    key: str
    title: str
    text: tuple[str, ...]
    figures: tuple[Drawn, ...]
    tables: tuple[Table, ...]


def make_report(run: RunFolder | Results) -> Path:
    """Draw the figures and write `report.html` and `report.md`; the path of the page.

    Parts that the run does not have are left out, and the report says which and why.

    Raises
    ------
    ValueError
        If the run's results cannot be read.
    OSError
        If a file cannot be written.
    """
    results = Results.of(run)
    sections = _sections(results, draw_figures(results))
    name = results.run.path.resolve().name
    page = results.run.path / "report.html"
    files = {
        page: _html(name, sections).encode(),
        page.with_suffix(".md"): _markdown(name, sections, page.parent).encode(),
    }
    storage.write_atomic(files, "the report")
    return page


def _sections(results: Results, drawn: Sequence[Drawn]) -> list[_Section]:
    def of_kind(*kinds: str) -> tuple[Drawn, ...]:
        return tuple(figure for figure in drawn if figure.kind in kinds and figure.paths)

    headline, curves = of_kind("scaling")[:1], of_kind("scaling")[1:]
    info = results.run.read_info()
    skipped = [f"{figure.name}: {figure.reason}" for figure in drawn if not figure.paths]
    about = settings_table({"rows from": results.source, "not drawn": skipped}, "This report")
    sections = [
        _Section("summary", "Summary", _overview(results), headline, (paper_table(results),)),
        _Section(
            "width", "Change with width",
            ("A panel shows the cells of one problem. The dashed line is the paper's value, whose "
             f"width, region and prior are not known ({SOURCE}).",),
            curves, (trend_table(results),),
        ),
        _Section(
            "budget", "Error budget",
            ("From averaged over draws to oracle Σ one linearises at a single point; from oracle Σ "
             "to isotropic the covariance of the draws gives way to the identity; link-aware keeps "
             "the link function. Differences need not add up.",),
            of_kind("budget"), (),
        ),
        _Section("maps", "Uncertainty over the inputs", (), of_kind("maps"), ()),
        _Section(
            "level", "Estimate against reference", (), of_kind("scatter"), (level_table(results),)
        ),
        _Section("aleatoric", "Aleatoric part", (), (), (aleatoric_table(results),)),
        _Section("predictions", "Predictions", (), (), (predictive_table(results),)),
        _Section(
            "checks", "Checks",
            ("A cell counts in means and trends only if its reference passed the gate and its "
             "point estimate passed its checks.",),
            (), (gate_table(results), point_table(results), undefined_table(results)),
        ),
        _Section(
            "settings", "Settings and environment", (), (),
            (
                settings_table(results.run.settings, "Settings"),
                settings_table(info, "Environment and checks"),
                cost_table(results),
                about,
            ),
        ),
    ]  # fmt: skip
    kept = [s._replace(tables=tuple(t for t in s.tables if t.rows)) for s in sections]
    return [s for s in kept if s.figures or s.tables or s.key == "summary"]


def _overview(results: Results) -> tuple[str, ...]:
    if not results.rows and not results.cells:
        return ("The run holds no results yet.",)
    lines = [
        f"How well estimates of predictive uncertainty agree with MCMC, for {len(results.setups)} "
        f"problem settings; rows from {results.source}."
    ]
    if results.cells:
        passed = sum(cell.passed for cell in results.cells)
        failed = len(results.cells) - passed
        lines.append(
            f"{passed} of {len(results.cells)} cells passed the gate of their reference"
            + (f"; {failed} failed, are drawn hollow and are in no mean." if failed else ".")
        )
        if passed == 0:
            lines.append("No reference can be trusted, so there is no correlation to report.")
    else:
        lines.append("There are no records, so no gate results, maps or scatter plots.")
    return tuple(lines)


def _html(name: str, sections: Iterable[_Section]) -> str:
    sections = list(sections)
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


def _html_section(section: _Section) -> str:
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


def _markdown(name: str, sections: Iterable[_Section], folder: Path) -> str:
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


@dataclass(frozen=True)
class _Command:
    """Draw the figures of a run anew and write its report.

    Needs the run folder alone: RUN/figures, RUN/report.html (one self-contained file) and
    RUN/report.md are written; nothing is computed and no record is changed.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder: it holds settings.json, as experiments/scaling.py writes it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 0, or 2 with one line on standard error if RUN cannot be used."""
    command = tyro.cli(_Command, args=arguments, prog="python -m isounc.report")
    try:
        results = Results.of(RunFolder.load(command.run))
        page = make_report(results)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(summary_table(results))
    print(f"Report: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
