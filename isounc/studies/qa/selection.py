"""Which questions are asked, which serve as examples, and the true/false pairs made of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from isounc.checks import check_count
from isounc.llm.answers.question import Question
from isounc.studies.qa.questions import generator


class Selection(NamedTuple):
    """Questions to evaluate, and examples that are none of them."""

    evaluated: tuple[Question, ...]
    """In random order; the first n of a larger selection with the same seed are the selection of n."""
    examples: tuple[Question, ...]
    """For few-shot prompts; the same whatever the number evaluated."""


class Statement(NamedTuple):
    """An answer to a question, to be called true or false."""

    id: str
    """``<question id>-true`` or ``<question id>-false``."""
    question_id: str
    """`Question.id`; the two statements of a question are no independent examples."""
    question: str
    """The question."""
    answer: str
    """The answer."""
    label: int
    """1 if the answer is true."""


class Statements(NamedTuple):
    """Pairs of statements."""

    statements: tuple[Statement, ...]
    """For each question that has both a true and a false answer its true, then its false statement."""
    questions_dropped: dict[str, int]
    """Questions without a pair, by reason."""


def select(
    questions: Sequence[Question], n: int, *, num_examples: int = 0, seed: int = 0
) -> Selection:
    """A random subset of n questions, nested in n, and examples outside every such subset.

    Questions are put in the order of a hash of seed and id, so that neither the order of the file nor other questions
    in it matter to which of two comes first. The first n are evaluated and the last ``num_examples`` are the examples.

    Raises
    ------
    ValueError
        n + num_examples exceeds the number of questions; n < 1; a negative seed or number of examples.
    """
    check_count("n", n, 1)
    check_count("num_examples", num_examples, 0)
    check_count("seed", seed, 0)
    if n + num_examples > len(questions):
        raise ValueError(
            f"n + num_examples must be at most {len(questions)}, the number of questions; "
            f"got {n} + {num_examples}"
        )
    order = sorted(questions, key=lambda q: hashlib.sha256(f"{seed}/{q.id}".encode()).digest())
    return Selection(tuple(order[:n]), tuple(order[len(order) - num_examples :]))


def make_statements(questions: Iterable[Question], *, seed: int = 0) -> Statements:
    """True/false pairs: each question with one true and one false answer, so that the labels are balanced.

    The true answer is `Question.best` (in mc2, which has none, a random true choice); the false one is drawn from the
    incorrect answers or false choices. Both draws depend on the seed and the question's id alone. Of the short-answer
    benchmarks, whose false answers a language model wrote in its own manner (more often a whole sentence, more often
    in plain title case), a part of the labels can be told from form: compare with the answer's length as a baseline.

    Raises
    ------
    ValueError
        A negative seed, or no question that has both a true and a false answer.
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
            Statement(f"{q.id}-{word}", q.id, q.question, _one(answers, rng), label)
            for word, answers, label in (("true", true, 1), ("false", false, 0))
        ]
    if not statements:
        raise ValueError(
            f"questions must hold one with a true and a false answer; left out: {dict(dropped)}"
        )
    return Statements(tuple(statements), dict(dropped))


def _one(answers: Sequence[str], rng) -> str:
    return answers[int(rng.integers(len(answers)))]
