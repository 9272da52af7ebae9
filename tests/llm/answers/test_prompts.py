"""Prompts hold what they are given, and stated percentages are read."""

from __future__ import annotations

import pytest

from isounc.llm.answers import prompts


def test_prompts_hold_what_they_are_given():
    prompt = prompts.short_answer("Who\nwas it?", [("Where?", "Rome")])
    assert prompt.text.endswith("Q: Where?\nA: Rome\n\nQ: Who was it?\nA:")
    assert prompt.version == "short_answer-1-1shot" and prompt.options == ()
    assert prompts.truthful("Why?").version == "truthful-1-5shot"
    assert prompts.truthful("Why?", ()).text.count("Q:") == 1

    plain, ideas = (
        prompts.p_true("Who?", "Ann"),
        prompts.p_true("Who?", "Ann", ["Bob", " ", "Carl"]),
    )
    assert plain.options == ideas.options == (" A", " B")
    assert plain.version != ideas.version
    lines = ideas.text.splitlines()
    assert [line for line in lines if line not in plain.text] == [
        "Some other answers that came up: Bob", "Some other answers that came up: Carl",
    ]  # fmt: skip
    assert not any(p.text != p.text.rstrip() for p in (prompt, plain, ideas))
    with pytest.raises(ValueError, match="hold text"):
        prompts.p_true("Who?", " ")


@pytest.mark.parametrize(
    ("generated", "value"),
    [
        (" 90%", 0.9), ("about 85 percent, as", 0.85), ("\n\n70", 0.7), ("0.9", 0.9), (".25", 0.25),
        ("0.5%", 0.005), ("100", 1.0), ("0%", 0.0), ("150%", None), ("-5", None),
        ("high\n90", None), ("", None),
    ],
)  # fmt: skip
def test_stated_confidence(generated, value):
    assert prompts.read_confidence(generated) == (None if value is None else pytest.approx(value))
