"""A benchmark as a task: which questions are asked, in which prompt, and how answers are judged."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from isounc.checks import check_choice
from isounc.llm.answers.measure import AskedQuestion
from isounc.llm.answers.prompts import (
    PROMPTINGS,
    TRUTHFUL_EXAMPLES,
    Prompt,
    completion,
    short_answer,
    truthful,
)
from isounc.llm.answers.question import Question
from isounc.studies.qa.files import ORIGINS
from isounc.studies.qa.questions import BENCHMARKS, QuestionSet, generator, load_questions
from isounc.studies.qa.selection import make_statements, select

PAIRS = "_pairs"
FORMS: dict[str, Literal["generated", "mc1", "mc2"]] = {
    "truthfulqa_mc1": "mc1",
    "truthfulqa_mc2": "mc2",
    "truthfulqa": "generated",
    "triviaqa": "generated",
    "natural_questions": "generated",
    "triviaqa_pairs": "mc1",
    "natural_questions_pairs": "mc1",
}
"""How the answers of each benchmark are given: written, or taken from choices (and judged as mc1
or mc2)."""
SHORT = ("triviaqa", "natural_questions")
"""Benchmarks of short answers, of which a model may give several and the most frequent counts."""


class Task(NamedTuple):
    """The questions of one benchmark as they are asked."""

    benchmark: str
    """Name of the benchmark."""
    asked: tuple[AskedQuestion, ...]
    """Questions with their prompts, in random order; fewer questions are the first of more."""
    provenance: dict[str, Any]
    """File, digest, rows read and dropped."""


def make_task(
    benchmark: str,
    data: str,
    *,
    num_questions: int,
    num_examples: int = 5,
    seed: int = 0,
    prompting: str = "few_shot",
) -> Task:
    """Questions of a benchmark with their prompts.

    Parameters
    ----------
    benchmark
        Key of `FORMS`.
    data
        Folder with the files of `isounc.studies.qa.files.ORIGINS`, or `hub`.
    num_questions
        Number of questions; all of them if there are fewer.
    num_examples
        Examples shown before a short answer. TruthfulQA's own sentences come after the project's
        five examples, choices after none.
    seed
        Seed of the selection and of the order of choices.
    prompting
        One of `isounc.llm.answers.prompts.PROMPTINGS`. A completion has no examples.

    Raises
    ------
    ValueError
        The benchmark or the prompting is unknown, or its file is missing or cannot be used.
    """
    check_choice("benchmark", benchmark, FORMS)
    check_choice("prompting", prompting, PROMPTINGS)
    base = benchmark.removesuffix(PAIRS)
    file = ORIGINS[BENCHMARKS[base][0]].file
    source = data if data == "hub" else Path(data).expanduser() / file
    loaded = load_questions(base, source, seed=seed)
    provenance = loaded.provenance._asdict()
    questions = list(loaded.questions)
    if benchmark.endswith(PAIRS):
        questions, provenance["pairs_dropped"] = _pairs(loaded, seed)
    written = FORMS[benchmark] == "generated"
    shows_examples = written and base != "truthfulqa" and prompting != "completion"
    shots = num_examples if shows_examples else 0
    count = min(num_questions, len(questions) - shots)
    if count < 1:
        raise ValueError(
            f"{file} must have more than the {shots} questions that are shown as examples, got "
            f"{len(questions)}"
        )
    selection = select(questions, count, num_examples=shots, seed=seed)
    examples = [(q.question, q.best) for q in selection.examples]

    def prompt(question: Question) -> Prompt:
        if prompting == "completion":
            return completion(question.question)
        chat = prompting == "chat"
        if base.startswith("truthfulqa"):
            shown = TRUTHFUL_EXAMPLES if written else ()
            return truthful(question.question, shown, chat=chat)
        return short_answer(question.question, examples, chat=chat)

    asked = tuple(AskedQuestion(q, prompt(q), FORMS[benchmark]) for q in selection.evaluated)
    return Task(benchmark, asked, provenance | {"asked": len(asked)})


def _pairs(loaded: QuestionSet, seed: int) -> tuple[list[Question], dict[str, int]]:
    """Each question with one true and one false answer as its choices, in random order."""
    statements, dropped = make_statements(loaded.questions, seed=seed)
    by_id = {q.id: q for q in loaded.questions}
    questions = []
    for true, false in zip(statements[::2], statements[1::2], strict=True):
        both = [true, false]
        if generator(seed, f"{true.question_id}/order").random() < 0.5:
            both.reverse()
        questions.append(
            dataclasses.replace(
                by_id[true.question_id], id=f"{true.question_id}{PAIRS}",
                benchmark=f"{loaded.benchmark}{PAIRS}", aliases=(), incorrect=(),
                choices=tuple(statement.answer for statement in both),
                labels=tuple(statement.label for statement in both),
            )
        )  # fmt: skip
    return questions, dropped


def record_name(model: str, question_id: str) -> str:
    """Name of the record of a question to a model."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '-', model)}={question_id}"
