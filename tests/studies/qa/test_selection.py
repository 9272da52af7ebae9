"""Nested selections, and balanced statements."""

from __future__ import annotations

import pytest

from isounc.llm.answers.question import Question
from isounc.studies.qa.questions import (
    question_id,
)
from isounc.studies.qa.selection import make_statements, select


def many_questions(n):
    return tuple(
        Question(question_id("triviaqa", f"question {i}"), "triviaqa", f"question {i}", best=f"{i}",
                 aliases=(f"{i}",), incorrect=(f"not {i}", f"never {i}"))
        for i in range(n)
    )  # fmt: skip


def test_selections_are_nested_and_examples_disjoint():
    questions = many_questions(60)
    small, large = (select(questions, n, num_examples=5, seed=1) for n in (10, 55))
    assert large.evaluated[:10] == small.evaluated
    assert large.examples == small.examples and len(small.examples) == 5
    assert not set(large.evaluated) & set(large.examples)
    assert select(questions[::-1], 10, num_examples=5, seed=1) == small
    assert select(questions, 10, seed=2).evaluated != small.evaluated
    assert select(questions, 60).examples == ()
    # Without the question in third place the others keep their order.
    fewer = tuple(q for q in questions if q != small.evaluated[2])
    assert select(fewer, 9, seed=1).evaluated == small.evaluated[:2] + small.evaluated[3:]
    with pytest.raises(ValueError, match=r"at most 60.*got 56 \+ 5"):
        select(questions, 56, num_examples=5)


def test_statements_are_balanced_and_seeded():
    questions = many_questions(40)
    made = make_statements(questions, seed=0)
    assert [s.label for s in made.statements] == [1, 0] * 40
    assert all(s.answer == s.question.split()[1] for s in made.statements if s.label)
    assert {s.answer.split()[0] for s in made.statements if not s.label} == {"not", "never"}
    assert made == make_statements(questions, seed=0)
    assert made.statements != make_statements(questions, seed=1).statements
    assert make_statements(questions[5:6]).statements == made.statements[10:12]
    assert len({s.id for s in made.statements}) == 80
