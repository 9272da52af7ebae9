"""The command line that the studies share, and the command that lists them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from isounc.__main__ import main as isounc_main
from isounc.runs import command
from isounc.runs.executors import Batch
from isounc.runs.folder import Record, RunFolder
from isounc.runs.settings import RunSettings
from isounc.runs.study import Report, Study, TableFile, report_run


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    width: int = 2
    """How wide."""
    depth: int = 1


@dataclass(frozen=True)
class Cell:
    name: str


PRESETS = {"quick": Settings(), "paper": Settings(preset="paper", width=512)}


def study(**parts):
    given = {
        "name": "doubling",
        "description": "What it does.",
        "presets": PRESETS,
        "unit": "cells",
        "check": lambda settings: None,
        "plan": lambda settings: [(Batch("all", (Cell("a"), Cell("b"))),)],
        "evaluate": double,
        "report": report,
    }
    return Study(**{**given, **parts})


def double(batch, settings, say):
    for cell in batch.cells:
        say(cell.name)
        yield Record(cell.name, {"twice": 2 * settings.width}, {})


def report(folder, settings):
    rows = [{"cell": record.name, "twice": record.meta["twice"]} for record in folder.records()]
    table = TableFile(("cell", "twice"), rows)
    return Report(
        {"results.csv": table, "summary.csv": table}, [], lambda drawn: [],
        text=f"{len(rows)} cells", checks={"cells": len(rows)}, passed=settings.depth < 3,
    )  # fmt: skip


def end(*arguments, **parts):
    """The exit status of the process, or the words that it ends with."""
    with pytest.raises(SystemExit) as ended:
        command.main(study(**parts), arguments)
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), Settings()),
        (("--preset", "paper"), PRESETS["paper"]),
        (("--depth", "3", "--preset", "paper"), Settings(preset="paper", width=512, depth=3)),
        (("--preset=paper", "--width", "8"), Settings(preset="paper", width=8)),
    ],
)
def test_other_options_override_those_of_the_preset(arguments, expected):
    assert command.settings_of(study(), arguments) == expected


def test_a_run_has_its_tables_page_and_info_and_is_resumed(tmp_path, capsys):
    out = ("--out", str(tmp_path / "run"), "--cache", "")
    assert end(*out) == 0
    said = capsys.readouterr().out
    assert "2 cells" in said and "report.html" in said
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"results.csv", "summary.csv", "info.json", "settings.json", "report.html"} <= names
    assert (tmp_path / "run" / "results.csv").read_text() == "cell,twice\na,4\nb,4\n"

    def never(*_):
        raise AssertionError("everything is there already")

    assert end(*out, evaluate=never) == 0
    # Records go as soon as they are there: what fails later loses none of them.
    (tmp_path / "run" / "cells" / "b.npz").unlink()

    def fail(batch, settings, say):
        yield from list(double(batch, settings, say))[:1]
        raise ValueError("the second cannot be had")

    with pytest.warns(UserWarning, match="damaged"):
        assert end(*out, evaluate=fail) == "error: the second cannot be had"
    assert (tmp_path / "run" / "cells" / "a.npz").exists()
    assert "width: 2 in the folder, 5 asked for" in end(*out, "--width", "5")


def test_cells_that_are_there_are_left_out_where_a_batch_may_be_split(tmp_path):
    out = ("--out", str(tmp_path / "run"), "--cache", "")
    seen = []

    def evaluate(batch, settings, say):
        seen.append([cell.name for cell in batch.cells])
        return double(batch, settings, say)

    for separable, expected in ((True, ["b"]), (False, ["a", "b"])):
        end(*out)
        for half in ("npz", "json"):
            (tmp_path / "run" / "cells" / f"b.{half}").unlink()
        assert end(*out, evaluate=evaluate, separable=separable) == 0
        assert seen.pop() == expected


def test_views_may_differ_on_resumption_and_are_remembered(tmp_path):
    out = ("--out", str(tmp_path / "run"), "--cache", "")
    assert end(*out, views=("width",)) == 0
    assert end(*out, "--width", "7", views=("width",), evaluate=None) == 0
    folder = RunFolder.load(tmp_path / "run")
    assert "width" not in folder.settings and folder.read_info()["views"] == {"width": 7}
    seen = []

    def look(folder, settings):
        seen.append(settings.width)
        return report(folder, settings)

    assert report_run(
        study(views=("width",), report=look), RunFolder.load(folder.path, writable=True)
    )
    assert seen == [7]


def test_the_status_says_whether_the_outcome_is_right(tmp_path):
    assert end("--out", str(tmp_path / "run"), "--cache", "", "--depth", "3") == 1


def test_errors_and_interruptions_end_in_one_line(tmp_path):
    def refuse(settings):
        raise ValueError(f"width must be 3, got {settings.width}")

    def interrupt(batch, settings, say):
        raise KeyboardInterrupt

    assert end(check=refuse) == "error: width must be 3, got 2"
    assert end("--out", str(tmp_path / "run"), "--cache", "", evaluate=interrupt) == (
        "Interrupted. Finished cells are kept: the same command goes on from here."
    )
    assert "executor" in end("--executor", "cluster") and not (tmp_path / "cluster").exists()


def test_help_says_what_the_study_does_and_what_every_option_means(capsys):
    assert end("--help") == 0
    said = capsys.readouterr().out
    for words in ("What it does.", "--width", "How wide.", "--workers", "--dry-run", "--executor"):
        assert words in said


def test_a_dry_run_computes_nothing(tmp_path, capsys):
    assert end("--dry-run", "--out", str(tmp_path / "run")) == 0
    assert "2 cells in 1 batches" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_isounc_lists_its_commands_and_refuses_others(capsys):
    with pytest.raises(SystemExit) as ended:
        isounc_main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for name in (
        "scaling",
        "passes",
        "confirmation",
        "covariance",
        "spectrum",
        "shift",
        "world",
        "guard",
        "agreement",
        "calibration",
        "bank",
        "qa",
        "report",
        "references",
        "doctor",
    ):
        assert f"    {name}" in said
    with pytest.raises(SystemExit) as ended:
        isounc_main(["skaling"])
    assert ended.value.code == 2 and "skaling" in capsys.readouterr().err


def test_a_run_can_be_reported_on_again(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        isounc_main(["report", str(tmp_path)])
    assert "must be a run folder" in str(ended.value.code)
    end("--out", str(tmp_path / "run"), "--cache", "")
    settings = tmp_path / "run" / "settings.json"
    settings.write_text(settings.read_text().replace('"doubling"', '""'))
    with pytest.raises(SystemExit) as ended:
        isounc_main(["report", str(tmp_path / "run")])
    assert "give its name as --study" in str(ended.value.code)


def test_isounc_shows_the_bank(capsys):
    with pytest.raises(SystemExit) as ended:
        isounc_main(["references"])
    assert ended.value.code == 0 and "linear-logistic-v1" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        isounc_main(["references", "show", "linear-logistic-v1"])
    assert "## How it was made" in capsys.readouterr().out
