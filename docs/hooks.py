"""Pages of the site that are not in `docs`: results, notes of the project, the command line.

Pages elsewhere in the repository and sections of the README are taken as they are, so that nothing
stands in two places, and so is the text of `--help`. A link means the same in the repository and on
the site: it goes to the site's page of the same file where there is one, and is plain text where
there is none.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FOR_TESTS = re.compile(r"^<!-- (?:given|needs|not run):.*?-->\n+", re.DOTALL | re.MULTILINE)
"""Comments that tell the tests how to run a block."""
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
TAKEN = (".png", ".csv", ".json")
"""Kinds of files beside pages that are copied to the site where a page links to them."""
PAGES_IN = ("results",)
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "isounc/references/data/README.md")
SECTIONS = {
    "howto/studies.md": ("Running studies", "Two commands"),
    "howto/any-function.md": ("Any JAX function", "On any JAX function"),
    "howto/decision.md": ("From a score to a decision", "From a score to a decision"),
}
"""Pages that are sections of the README: title, and name of the section."""
NOTEBOOKS = {
    f"notebooks/{path.stem}.md": f"notebooks/{path.name}"
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}
"""Pages that are notebooks, with the outputs that are stored in them."""
MADE_OF = dict.fromkeys(SECTIONS, "README.md") | NOTEBOOKS
GUARD = {
    "fit": "Calibrate a guard from a table of scores.",
    "check": "Look whether a guard holds on other answers.",
    "report": "Write one page about a guard.",
}
WIDTH = "100"

log = logging.getLogger("mkdocs.hooks.site")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the two sections of the navigation whose pages are made here."""
    titles = {
        path: re.search(r"^# (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
        for path in outside_pages()
    }
    results = [path for path in titles if re.fullmatch(r"results/(\w+/)?README\.md", path)]
    sections = {
        "Results": [results[0], *({path.split("/")[1]: path} for path in results[1:])],
        "Command line": ["cli/index.md", *({name: f"cli/{name}.md"} for name in commands())],
    }
    for entry in config.nav or []:
        for title in sections.keys() & entry.keys():
            entry[title] = sections[title]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages and files of the repository, and the pages of the command line."""
    wanted = {}
    for path in outside_pages():
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    pages = [file for file in files if file.src_uri.endswith(".md")]
    for file in pages:
        here = place_of(file)
        for _, _, target in LINK.findall((ROOT / here).read_text(encoding="utf-8")):
            path = resolve(here, target.partition("#")[0])
            if path and path.endswith(TAKEN) and (ROOT / path).is_file():
                wanted[path] = ROOT / path
    for path, source in wanted.items():
        if not files.get_file_from_path(path):
            files.append(File.generated(config, path, abs_src_path=str(source)))
    front = (ROOT / "README.md").read_text(encoding="utf-8")
    for src, (title, section) in SECTIONS.items():
        text = front.split(f"\n## {section}\n")[1].split("\n## ")[0]
        files.append(File.generated(config, src, content=f"# {title}\n{text}"))
    for src, notebook in NOTEBOOKS.items():
        files.append(File.generated(config, src, content=notebook_page(ROOT / notebook)))
    with terminal():
        for src, text in command_pages().items():
            files.append(File.generated(config, src, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in the table of claims, and let links lead to pages of the site."""
    if page.file.src_uri.startswith("cli/"):
        return markdown
    here = MADE_OF.get(page.file.src_uri) or place_of(page.file)
    markdown = FOR_TESTS.sub("", markdown)
    if here.startswith("docs/") and "<!-- claims -->" in markdown:
        front = (ROOT / "README.md").read_text(encoding="utf-8")
        table = front.split("<!-- claims -->")[1].split("<!-- /claims -->")[0]
        markdown = markdown.replace("<!-- claims -->", table.strip())

    def lead(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if ":" in target or not path:
            return match[0]
        found = resolve(here, path)
        if found is None:
            log.warning("%s links to %s, which does not exist", here, target)
            return text
        src = re.sub(r"\.ipynb$", ".md", found.removeprefix("docs/"))
        if not files.get_file_from_path(src):
            return "" if image else text
        uri = posixpath.relpath(src, posixpath.dirname(page.file.src_uri) or ".")
        return f"{image}[{text}]({uri}{'#' if anchor else ''}{anchor})"

    parts = FENCE.split(markdown)
    return "".join(p if p.startswith("```") else LINK.sub(lead, p) for p in parts)


def outside_pages() -> list[str]:
    """Pages of the repository outside of `docs` that the site has, by their paths."""
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in PAGES_IN
        for path in sorted((ROOT / folder).rglob("*.md"))
    ]
    return [*found, *PAGES]


def place_of(file: File) -> str:
    """The path in the repository of a file of the site."""
    path = Path(file.abs_src_path or "")
    return path.resolve().relative_to(ROOT).as_posix()


def resolve(here: str, target: str) -> str | None:
    """The file that a link on a page means; of a folder its first page. None if there is none."""
    if not target or ":" in target:
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
    if re.fullmatch(r"docs/cli/\w+\.md", path):
        return path if Path(path).stem in (*commands(), "index") else None
    if (ROOT / path).is_dir():
        pages = (posixpath.join(path, name) for name in ("README.md", "reading.md"))
        return next((page for page in pages if (ROOT / page).is_file()), path)
    return path if (ROOT / path).is_file() else None


def notebook_page(notebook: Path) -> str:
    """A notebook as Markdown: its cells, and what they printed and drew when they were stored."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                image = "".join("".join(data["image/png"]).split())
                parts.append(f"![Figure of this cell](data:image/png;base64,{image})")
            else:
                parts.append(block("".join(output.get("text", data.get("text/plain", "")))))
    return "\n\n".join(parts) + "\n"


def commands() -> dict[str, str]:
    """Names of the subcommands, with a line each."""
    from isounc.__main__ import COMMANDS
    from isounc.studies import STUDIES

    return STUDIES | COMMANDS


def command_pages() -> dict[str, str]:
    """Pages of the command line, by their paths: what `--help` prints."""
    rows = [f"| [`{name}`]({name}.md) | {line} |" for name, line in commands().items()]
    intro = (
        "Every experiment is a subcommand of `isounc`; `isounc --version` says which one this is. These "
        "pages are made from what `--help` prints.\n\n"
        "All studies share `--preset`, `--out`, `--executor`, `--workers`, `--device`, `--dtype`, "
        "`--cache` and `--dry-run`. A run that was killed resumes when you give the same command "
        "again.\n"
    )
    table = ["| command | what it does |", "| --- | --- |", *rows]
    pages = {"cli/index.md": "\n".join(["# Command line", "", intro, *table])}
    for name in commands():
        parts = [f"# isounc {name}", *shown(help_of([name]))]
        if name == "guard":
            for action, line in GUARD.items():
                parts += [f"## isounc guard {action}", line, *shown(help_of([name, action]))]
        pages[f"cli/{name}.md"] = "\n\n".join(parts) + "\n"
    return pages


def help_of(arguments: Sequence[str]) -> str:
    """The help text of a command."""
    from isounc.__main__ import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    if not said.getvalue().strip():
        log.warning("isounc %s --help prints nothing", " ".join(arguments))
    return said.getvalue()


def shown(text: str) -> list[str]:
    """The help of a command as Markdown.

    tyro leaves each paragraph of a description in one line, for a terminal to wrap, and its examples
    are indented: that is Markdown. Below come boxes of options, each with a line under its title.
    argparse has wrapped everything itself.
    """
    boxes = re.split(r"^ ([\w. ]+?) *\n -{9,} *\n", text, flags=re.MULTILINE)
    if len(boxes) == 1:
        return [block(text)]
    usage, _, description = boxes[0].partition("\n\n")
    parts = [block(usage), re.sub(r"\n{3,}", "\n\n", description).strip()]
    for title, options in zip(boxes[1::2], boxes[2::2], strict=True):
        parts += [f"## {title[0].upper()}{title[1:]}", block(options)]
    return parts


def block(text: str) -> str:
    """A text as it is."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    return "\n".join(["```text", *lines, "```"])


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Help of one width, without colours."""
    before = dict(os.environ)
    os.environ.update(COLUMNS=WIDTH, NO_COLOR="1", TERM="dumb")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
