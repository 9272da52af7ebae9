"""The command line that the experiments share."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from isounc.runs.command import command


@dataclass(frozen=True)
class Settings:
    preset: str = "quick"
    width: int = 2
    depth: int = 1


PRESETS = {"quick": Settings(), "paper": Settings(preset="paper", width=512)}


def end(monkeypatch, run, *arguments):
    """What the process would end with."""
    monkeypatch.setattr(sys, "argv", ["experiment.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        command(PRESETS, run, description="What it does.", parts="cells")
    return ended.value.code


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), Settings()),
        (("--preset", "paper"), PRESETS["paper"]),
        (("--depth", "3", "--preset", "paper"), Settings("paper", 512, 3)),
        (("--preset=paper", "--width", "8"), Settings("paper", 8, 1)),
    ],
)
def test_other_options_override_those_of_the_preset(monkeypatch, arguments, expected):
    seen = []
    assert end(monkeypatch, seen.append, *arguments) == 0
    assert seen == [expected]


def test_the_status_says_whether_it_was_right(monkeypatch):
    assert end(monkeypatch, lambda settings: True) == 0
    assert end(monkeypatch, lambda settings: False) == 1


def test_errors_and_interruptions_end_in_one_line(monkeypatch):
    def fail(settings):
        raise ValueError(f"width must be 3; got {settings.width}")

    def interrupt(settings):
        raise KeyboardInterrupt

    assert end(monkeypatch, fail) == "error: width must be 3; got 2"
    assert end(monkeypatch, interrupt) == (
        "Interrupted. Finished cells are kept: the same command goes on from here."
    )


def test_help_says_what_it_does(monkeypatch, capsys):
    assert end(monkeypatch, lambda settings: None, "--help") == 0
    assert "What it does." in capsys.readouterr().out
