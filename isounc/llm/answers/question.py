"""A question and the answers that are accepted for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One question and its accepted answers; fields that its benchmark does not use are empty."""

    id: str
    """Name of the question, unique within a run; it may be part of a file name."""
    benchmark: str
    """Name of the benchmark that the question comes from."""
    question: str
    """The question as it is asked."""
    choices: tuple[str, ...] = ()
    """Multiple choice: the choices in the order in which they are shown."""
    labels: tuple[int, ...] = ()
    """1 for a true choice, 0 for a false one; as long as `choices`."""
    aliases: tuple[str, ...] = ()
    """Short answers: all accepted answers, in no particular order."""
    correct: tuple[str, ...] = ()
    """Free-form answers (TruthfulQA's generation form): the correct reference answers."""
    incorrect: tuple[str, ...] = ()
    """Incorrect reference answers. A short-answer question has 0 or 1, or more if it was repeated
    in its file."""
    best: str = ""
    """The answer to show where one has to be shown; empty if there is no single one."""
    category: str = ""
    """Category of the question, if its file has one."""
