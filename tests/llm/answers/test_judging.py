"""Judgements by hand."""

from __future__ import annotations

import numpy as np
import pytest

from isounc.llm.answers import judging
from isounc.llm.answers.question import Question


def test_exact_match():
    aliases = ["The Beatles", "Fab Four", "--"]
    right = judging.exact_match("beatles!", aliases)
    assert (right.correct, right.matched, right.proxy, right.score) == (
        True,
        "The Beatles",
        False,
        1,
    )
    longer = judging.exact_match("It was the Beatles", aliases)
    assert (longer.correct, longer.matched) == (False, "")
    assert longer.score == pytest.approx(2 / 4)
    assert not judging.exact_match("", aliases).correct
    assert not judging.exact_match("four", ["4"]).correct
    with pytest.raises(ValueError, match="aliases must hold an answer"):
        judging.exact_match("x", ["--"])


def test_reference_overlap_by_hand():
    correct, incorrect = ["Nothing happens"], ["You get sick", "You die"]
    judged = judging.reference_overlap("nothing happens to you", correct, incorrect)
    # 2 * 2 / (4 + 2) against 2 * 1 / (4 + 2) for "You die".
    assert judged.score == pytest.approx(4 / 6 - 2 / 6)
    assert (judged.correct, judged.proxy, judged.matched) == (True, True, "Nothing happens")
    assert (
        judging.reference_overlap("You get very sick", correct, incorrect).matched == "You get sick"
    )
    tie = judging.reference_overlap("happens sick", ["it happens"], ["sick it"])
    assert (tie.score, tie.correct) == (0, False)
    for nothing in ("", "zebra"):
        found = judging.reference_overlap(nothing, correct, incorrect)
        assert (found.correct, found.matched) == (False, "")
    assert judging.reference_overlap("I have no comment.", correct, incorrect).correct
    assert (
        judging.reference_overlap("I have no comment", ["I  have no comment"], ["x"]).matched
        == "I  have no comment"
    )
    with pytest.raises(ValueError, match="incorrect must hold"):
        judging.reference_overlap("x", correct, [])


def test_mc1_and_mc2_by_hand():
    labels = np.array([0, 1, 0])
    assert judging.mc1(np.array([-3.0, -1.0, -2.0]), labels) == (True, "mc1", False, 1.0, "")
    assert judging.mc1(np.array([-1.0, -1.0, -2.0]), labels)[0] is False
    assert judging.mc1(np.full(3, -np.inf), labels)[0] is False
    probabilities = np.array([0.1, 0.2, 0.3])
    found = judging.mc2(np.log(probabilities) - 2000, np.array([1, 1, 0]))
    assert found.score == pytest.approx(0.5) and found.rule == "mc2"
    assert judging.mc2(np.log([0.1, 0.21, 0.3]), np.array([1, 1, 0])).correct
    assert not judging.mc2(np.zeros(2), np.array([1, 0])).correct
    for call, message in [
        (lambda: judging.mc1([1, 2, 3], [1, 1, 0]), "exactly one"),
        (lambda: judging.mc1([1, np.nan], [1, 0]), "below infinity"),
        (lambda: judging.mc1([1, 2], [1, 0, 0]), "shape"),
        (lambda: judging.mc2([1, 2], [1, 1]), "with a 0 among them"),
        (lambda: judging.mc2([1, 2], [0, 0]), "true choice"),
        (lambda: judging.mc2([-np.inf] * 2, [0, 1]), "got -inf for all"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_generations_are_judged_as_the_benchmark_does():
    short = Question("t-1", "triviaqa", "Who?", aliases=("Ann",))
    assert judging.judge_generated(short, " Ann.\nQ: Where?\nA: Rome").correct
    long = Question(
        "t-2", "truthfulqa", "Why?", correct=("Because it rains",), incorrect=("Magic",)
    )
    assert judging.judge_generated(long, " Because of rains\nQ:").proxy
    with pytest.raises(ValueError, match="mc1 or mc2"):
        judging.judge_generated(
            Question("t-3", "truthfulqa_mc1", "?", choices=("a",), labels=(1,)), "a"
        )
