"""Links of all pages: files and headings that they lead to exist, and addresses are well-formed.

`mkdocs build --strict` checks those of the site; this test needs no build, and sees the files as a
reader of the repository does, notebooks and the README included. Nothing is fetched.
"""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.pages import ROOT

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(path for folder in ("docs", "results", "isounc", "notebooks", "packages", "tests") for path in
      sorted((ROOT / folder).rglob("*.md")) + sorted((ROOT / folder).rglob("*.ipynb"))),
]  # fmt: skip
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
BARE = re.compile(r"<(https?://[^>\s]+)>")
MADE = (
    "docs/cli/",
    "docs/howto/studies.md",
    "docs/howto/decision.md",
    "docs/howto/any-function.md",
)
"""Pages of the site that are no files of the repository; the build checks links to them."""


def text_of(path: Path) -> str:
    """The prose of a page: without code, which may look like a link."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    text = re.sub(r"^```.*?^```$|<!--.*?-->", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "``", text)


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings that GitHub and the site agree on."""
    text = re.sub(
        r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        on_github = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        on_site = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip())
        if on_github == on_site:
            found.add(on_site)
    return found


def fault(page: Path, target: str) -> str:
    """What is wrong with a link; empty if nothing is."""
    if re.match(r"[a-z]+:", target):
        return fault_of_address(target)
    path, _, anchor = target.partition("#")
    goal = (page.parent / path).resolve() if path else page
    name = goal.relative_to(ROOT).as_posix() if goal.is_relative_to(ROOT) else ""
    if not name and goal != ROOT:
        return "lies outside of the repository"
    if name.startswith(MADE):
        return ""
    if not goal.exists():
        return "there is no such file"
    if anchor and goal.suffix == ".md" and anchor not in anchors(goal):
        return "there is no such heading"
    return ""


def fault_of_address(target: str) -> str:
    """What is wrong with an address of the web."""
    parts = urlsplit(target)
    if parts.scheme != "https":
        return "the scheme must be https"
    if not re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc):
        return "there is no such host"
    if not target.isascii() or target[-1] in ".,;:!?" or target.count("(") != target.count(")"):
        return "it ends wrongly or has other characters than an address may have"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = text_of(page)
    targets = [*LINK.findall(text), *BARE.findall(text)]
    assert {t: fault(page, t) for t in targets if fault(page, t)} == {}


@pytest.mark.parametrize(
    "target",
    [
        "nowhere.md", "../outside.md", "CONTRIBUTING.md#no-such-heading", "http://arxiv.org/abs/1",
        "https://arxiv/abs/1", "https://arxiv.org/abs/1.", "https://arxiv.org/(abs", "ftp://a.org",
    ],
)  # fmt: skip
def test_a_wrong_link_is_found(target):
    assert fault(ROOT / "README.md", target)
