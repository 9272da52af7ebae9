"""Selections of questions to ask and to show as examples, and true/false statements."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from isounc.checks import check_count
from isounc.llm.answers.question import Question
from isounc.studies.qa.questions import generator


class Selection(NamedTuple):
    """Questions to evaluate, and examples that are not among them."""

    evaluated: tuple[Question, ...]
    """Questions in random order; the first n of a larger selection with the same seed are the
    selection of n."""
    examples: tuple[Question, ...]
    """Questions for few-shot prompts; they do not depend on the number evaluated."""


class Statement(NamedTuple):
    """An answer to a question, to be called true or false."""

    id: str
    """`<question id>-true` or `<question id>-false`."""
    question_id: str
    """`Question.id`; the two statements of a question are not independent examples."""
    question: str
    """The question."""
    answer: str
    """The answer."""
    label: int
    """1 if the answer is true."""


class Statements(NamedTuple):
    """Pairs of statements."""

    statements: tuple[Statement, ...]
    """The true, then the false statement of each question that has both kinds of answer."""
    questions_dropped: dict[str, int]
    """Number of questions without a pair, by reason."""


def select(
    questions: Sequence[Question], n: int, *, num_examples: int = 0, seed: int = 0
) -> Selection:
    """A random subset of n questions, nested in n, and examples outside every such subset.

    Questions are put in the order of a hash of seed and id, so that the order of two questions
    depends neither on the order of the file nor on other questions in it. The first n are evaluated
    and the last `num_examples` are the examples.

    Raises
    ------
    ValueError
        n + num_examples exceeds the number of questions, n is below 1, or the seed or the number of
        examples is negative.
    """
    check_count("n", n, 1)
    check_count("num_examples", num_examples, 0)
    check_count("seed", seed, 0)
    if n + num_examples > len(questions):
        raise ValueError(
            f"n + num_examples must be at most {len(questions)}, the number of questions, got "
            f"{n} + {num_examples}"
        )
    order = sorted(questions, key=lambda q: hashlib.sha256(f"{seed}/{q.id}".encode()).digest())
    return Selection(tuple(order[:n]), tuple(order[len(order) - num_examples :]))


def make_statements(questions: Iterable[Question], *, seed: int = 0) -> Statements:
    """True/false pairs: each question with one true and one false answer, so that labels balance.

    The true answer is `Question.best` (in mc2, which has none, a random true choice); the false one
    is drawn from the incorrect answers or false choices. Both draws depend on the seed and the
    question's id alone. The false answers of the short-answer benchmarks were written by a language
    model in its own manner (more often a whole sentence, more often in plain title case), so that
    some labels can be told from the form: compare with the answer's length as a baseline.

    Raises
    ------
    ValueError
        The seed is negative, or no question has both a true and a false answer.
    """
    check_count("seed", seed, 0)
    statements: list[Statement] = []
    dropped: Counter[str] = Counter()
    for q in questions:
        rng = generator(seed, q.id)
        labelled = list(zip(q.choices, q.labels, strict=True))
        true = [q.best] if q.best else [c for c, label in labelled if label] or list(q.correct)
        false = [c for c, label in labelled if not label] or list(q.incorrect)
        if not true or not false:
            dropped["no true answer" if not true else "no false answer left"] += 1
            continue
        statements += [
            Statement(f"{q.id}-{word}", q.id, q.question, _drawn(answers, rng), label)
            for word, answers, label in (("true", true, 1), ("false", false, 0))
        ]
    if not statements:
        raise ValueError(
            "questions must hold one with a true and a false answer, got none; dropped were "
            f"{dict(dropped)}"
        )
    return Statements(tuple(statements), dict(dropped))


def _drawn(answers: Sequence[str], rng: np.random.Generator) -> str:
    return answers[int(rng.integers(len(answers)))]
