"""The part of a run that is small enough to commit: settings, tables, its reading, and figures."""

from __future__ import annotations

import fnmatch
import gzip
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isounc.runs import files
from isounc.runs.folder import RunFolder
from isounc.runs.page import table_markdown
from isounc.runs.study import Report, Study, settings_of_run
from isounc.runs.values import Damaged

MOST_PLAIN = 2**18
"""Bytes above which a table is compressed."""


def publish(
    study: Study[Any],
    run: RunFolder,
    out: str | os.PathLike[str] | None = None,
    *,
    figures: Sequence[str] = ("*",),
) -> Path:
    """Write the published form of a run; records and pages stay behind.

    `isounc.runs.load` reads it like the run itself. Large tables are compressed, and `reading.md` is
    made from the tables that are published.

    Parameters
    ----------
    run
        A finished run, or an earlier publication.
    out
        A new folder, or one of the same run. None is the run's own, in which large tables are then
        replaced by compressed ones.
    figures
        Patterns (`scaling*`) of the names of the figures that are copied, as PNG.

    Raises
    ------
    ValueError
        If the run has no results or cannot be read, a pattern fits no figure, or `out` holds another
        run or other things.
    OSError
        If a file cannot be written.
    """
    if files.table_path(run.path, "results.csv") is None:
        raise ValueError(
            f"run must be a finished one, got {run.path}, which has no results.csv: let its command "
            "end, or write its tables with isounc report"
        )
    pictures = _pictures(run.path / "figures", figures)
    goal = RunFolder.open(run.path if out is None else out, run.settings, study=study.name)
    contents = _tables(run.path)
    if (info := files.bytes_or_none(run.path / "info.json")) is not None:
        contents["info.json"] = info
    contents |= {f"figures/{path.name}": _picture(path) for path in pictures}
    (goal.path / "figures").mkdir(exist_ok=True)
    with files.locked(goal.path, create=True):
        files.write_atomic({goal.path / name: data for name, data in contents.items()}, "results")
        for name in contents:
            # The other form of a table, which would be an earlier state of it.
            other = name.removesuffix(".gz") if name.endswith(".gz") else f"{name}.gz"
            (goal.path / other).unlink(missing_ok=True)
    report = study.report(goal, settings_of_run(study, goal))
    if report.reading:
        content = reading_page(goal.path.resolve().name, study, report).encode()
        with files.locked(goal.path, create=True):
            files.write_atomic({goal.path / "reading.md": content}, "the reading")
    return goal.path


def reading_page(name: str, study: Study[Any], report: Report) -> str:
    """Write the reading of a run and its tables as Markdown."""
    parts = [f"# Reading of {name}", *report.reading]
    for table in report.reading_tables:
        parts += [f"## {table.title}", *table_markdown(table)]
    parts.append(f"<!-- Written by isounc publish from the tables of the study {study.name}. -->")
    return "\n\n".join(parts) + "\n"


def _tables(folder: Path) -> dict[str, bytes]:
    """Tables by file name; large ones compressed, to bytes that depend on the table alone."""
    names = sorted({path.name.removesuffix(".gz") for path in folder.glob("*.csv*")})
    contents = {}
    for name in names:
        try:
            data = files.table_file(folder, name)
        except Damaged as error:
            raise ValueError(str(error)) from error
        if data is not None and len(data) > MOST_PLAIN:
            contents[f"{name}.gz"] = gzip.compress(data, 9, mtime=0)
        elif data is not None:
            contents[name] = data
    return contents


def _picture(path: Path) -> bytes:
    """A figure, which may be anything in a run of somebody else."""
    try:
        return files.bytes_or_none(path) or b""
    except Damaged as error:
        raise ValueError(str(error)) from error


def _pictures(folder: Path, patterns: Sequence[str]) -> list[Path]:
    there = sorted(folder.glob("*.png"))
    unused = [p for p in patterns if p != "*" and not fnmatch.filter([f.stem for f in there], p)]
    if unused:
        raise ValueError(
            f"figures must fit figures of the run, got {', '.join(unused)}, which fit none of "
            f"{', '.join(f.stem for f in there) or 'its figures, of which there are none'}"
        )
    return [path for path in there if any(fnmatch.fnmatch(path.stem, p) for p in patterns)]
