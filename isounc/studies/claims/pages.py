"""Markdown files that hold the table of verdicts between two markers."""

from __future__ import annotations

from pathlib import Path

from isounc import untrusted
from isounc.checks import check_path
from isounc.runs import files

BEGIN, END = "<!-- claims -->", "<!-- /claims -->"
"""Lines before and after the table."""


def check_page(page: str) -> Path:
    """The path of a Markdown file with both markers, each once and in their order.

    Raises
    ------
    ValueError
        If it is no such file.
    OSError
        If it cannot be read.
    """
    path = check_path("pages", page)
    if not path.is_file():
        raise ValueError(f"pages must be Markdown files, got {path}, which is none")
    text = _text(path)
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(
            f"pages must have the line {BEGIN} and below it {END}, each once, got {path} with "
            f"{text.count(BEGIN)} and {text.count(END)}, or in another order"
        )
    return path


def write_table(page: str, table: str) -> None:
    """Put a table between the markers of a page."""
    path = check_page(page)
    before, _, rest = _text(path).partition(BEGIN)
    content = f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}"
    files.write_atomic({path: content.encode()}, f"the table of {path.name}")


def table_of_page(page: Path) -> str:
    """What stands between the markers of a page."""
    return _text(page).partition(BEGIN)[2].partition(END)[0].strip()


def _text(path: Path) -> str:
    data = untrusted.read_bytes(path, most=16 * untrusted.MEGABYTE)
    return untrusted.decode_text(data, str(path))
