"""Code blocks of Markdown pages: found, run in order, and their commands taken apart.

HTML comments, which no reader sees, say what a page cannot show:

    <!-- given:                   code that makes what a reader has already: data, a model
    CODE
    -->
    <!-- not run: WHY -->         the next block does not run in the tests, and why
    <!-- needs: MODULE; NOTE -->  it runs where this module is installed; with what it was checked
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import types
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md"))]
_PART = re.compile(
    r"^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$"
    r"|^<!-- given:\n(?P<given>.*?)^-->$"
    r"|^<!-- not run: (?P<reason>[^\n]+?) -->$"
    r"|^<!-- needs: (?P<needs>\w+); (?P<note>[^\n]+?) -->$",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


class Block(NamedTuple):
    """A block of a page."""

    language: str
    """What stands behind the opening fence; `given` for code that is not shown."""
    code: str
    """Its text."""
    line: int
    """Line of the page before its first one."""
    reason: str = ""
    """Why it is not run; empty for a block that is."""
    needs: str = ""
    """A module of another library that it needs; empty for none."""

    @property
    def runs(self) -> bool:
        """Whether it is run here."""
        return not self.reason and (not self.needs or find_spec(self.needs) is not None)


def blocks(page: str) -> list[Block]:
    """The blocks of a page from top to bottom."""
    text, found, about = (ROOT / page).read_text(encoding="utf-8"), [], {}
    for part in _PART.finditer(text):
        if part["reason"] or part["needs"]:
            between = text[part.end() :].lstrip("\n")
            assert between.startswith("```"), f"{page}: a block must follow {part[0]}"
            about = {"reason": part["reason"] or "", "needs": part["needs"] or ""}
            continue
        language, code = part["language"], part["code"]
        if part["given"] is not None:
            language, code = "given", part["given"]
        line = text.count("\n", 0, part.start()) + 1
        found.append(Block(language, code, line, **about))
        about = {}
    return found


def run(page: str, replaced: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run the Python blocks of a page in one namespace, and hold shown outputs against theirs.

    A block of text that follows one of Python is what this printed, numbers to 2%.

    Parameters
    ----------
    replaced
        Texts of the blocks and what takes their place.

    Returns
    -------
    dict
        The names that they leave.
    """
    module = types.ModuleType(f"page {page}")
    sys.modules[module.__name__] = module  # where dataclasses look their annotations up
    names, printed = vars(module), None
    for block in blocks(page):
        if block.language == "text" and printed is not None:
            same_output(block.code, printed)
        printed = None
        if block.language not in ("python", "given") or not block.runs:
            continue
        code = block.code
        for old, new in (replaced or {}).items():
            code = code.replace(old, new)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            # A traceback then has the page's own lines.
            exec(compile("\n" * block.line + code, page, "exec", dont_inherit=True), names)
        printed = said.getvalue()
    return names


def same_output(shown: str, printed: str) -> None:
    """Fail unless a page shows what its block printed."""
    assert _NUMBER.sub("#", shown).split() == _NUMBER.sub("#", printed).split(), printed
    for a, b in zip(_NUMBER.findall(shown), _NUMBER.findall(printed), strict=True):
        assert abs(float(a) - float(b)) <= 0.02 * abs(float(b)), printed


def commands(page: str) -> Iterator[list[str]]:
    """The commands of a page's shell blocks, as words."""
    for block in blocks(page):
        if block.language != "sh" or block.reason:
            continue
        line = ""
        for part in block.code.replace("\\\n", " ").splitlines():
            line += part
            try:
                words = _words(line)
            except ValueError:  # a quotation goes on
                line += "\n"
                continue
            line, command = "", []
            for word in [*words, ";"]:
                if set(word) <= set("&|;"):
                    if command:
                        yield command
                    command = []
                else:
                    command.append(word)


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    return list(lexer)


def isounc_arguments(words: list[str]) -> list[str] | None:
    """What a command gives to `isounc`; None for another command."""
    for i, word in enumerate(words):
        if word == "isounc":
            return words[i + 1 :]
        if (study := re.fullmatch(r"experiments/(\w+)\.py", word)) and words[i - 1] == "run":
            return [study[1], *words[i + 1 :]]
    return None
