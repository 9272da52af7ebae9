"""The second answerer: examples before the question, and the most frequent of several samples.

Each of its records has one question: the sampled answers, the one that most of them agree on and
whether it is right, the state of the *first* model after the last token of its prompt (what a router
may look at before anybody has answered), and the seconds of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from isounc.llm.answers.judging import judge_generated
from isounc.llm.answers.measure import AskedQuestion, MeasureSettings, generation_settings
from isounc.llm.answers.rendering import rendered
from isounc.llm.answers.text import first_answer, normalise
from isounc.llm.model.generate import generate
from isounc.llm.model.load import LanguageModel, model_name
from isounc.llm.model.transformer import PADDING
from isounc.padding import batches, bucket
from isounc.runs.folder import Record
from isounc.studies.qa.routing.settings import SecondSettings
from isounc.studies.qa.tasks import record_name


class SecondCell(NamedTuple):
    """A question that is asked a second time."""

    source: str
    """The model that answers first."""
    answerer: str
    """Name of the second answerer."""
    question: AskedQuestion
    """The question as the first is asked."""
    again: AskedQuestion
    """The question as the second is asked."""

    @property
    def name(self) -> str:
        """Name of the record."""
        return second_name(self.answerer, model_name(self.source), self.question.question.id)


def second_name(answerer: str, model: str, question_id: str) -> str:
    """Name of the record of a second answer."""
    return f"second={answerer}={record_name(model, question_id)}"


def second_records(
    first: LanguageModel,
    second: LanguageModel,
    cells: Sequence[SecondCell],
    settings: SecondSettings,
    measure: MeasureSettings,
    clock: Callable[[str], None],
) -> list[Record]:
    """Records of second answers.

    Parameters
    ----------
    first
        The model that answers first.
    second
        The model that is asked again.
    cells
        The questions, in both forms.
    settings
        The second answerer.
    measure
        How the first is measured: batch size, seed and length of answers are the same.
    clock
        Called with the name of each step.

    Source: Wang et al. 2022 (arXiv 2203.11171), self-consistency.
    """
    clock("second answers")
    answers = sampled_answers(second, [cell.again for cell in cells], settings, measure)
    clock("prompt's states")
    given = rendered(first, [cell.question.prompt for cell in cells])
    states = last_states(first, [g.ids for g in given], batch_size=measure.batch_size)
    clock("")
    records = []
    for cell, texts, state in zip(cells, answers, states, strict=True):
        vote = majority(texts)
        judgement = judge_generated(cell.again.question, vote.text)
        meta = {
            "id": cell.again.question.id, "benchmark": cell.again.question.benchmark,
            "prompt_version": cell.again.prompt.version, "answers": list(texts),
            "answer": vote.text, "votes": vote.votes, "correct": judgement.correct,
        }  # fmt: skip
        records.append(Record(cell.name, meta, {"state": state}))
    return records


def sampled_answers(
    model: LanguageModel,
    asked: Sequence[AskedQuestion],
    settings: SecondSettings,
    measure: MeasureSettings,
) -> list[list[str]]:
    """The answers of the second answerer to each question, in the order in which they were drawn."""
    temperature = settings.temperature if settings.num_samples > 1 else 0.0
    given = rendered(model, [question.prompt for question in asked])
    drawn = generate(
        model, [g.ids for g in given],
        generation_settings(
            asked, measure, num_samples=settings.num_samples, temperature=temperature
        ),
    )  # fmt: skip
    return [[first_answer(text) for text in texts] for texts in drawn.text]


class Vote(NamedTuple):
    """The answer that most samples agree on."""

    text: str
    """The first sample of it; empty if all are."""
    votes: int
    """Samples that agree."""


def majority(texts: Sequence[str]) -> Vote:
    """The most frequent answer by normal form; of several as frequent the one drawn first.

    Samples without a normal form (empty ones, or nothing but signs) have no vote.

    Raises
    ------
    ValueError
        There are no samples.
    """
    if not texts:
        raise ValueError("texts must hold at least one sample, got none")
    forms = [normalise(text) for text in texts]
    counts = Counter(form for form in forms if form)
    if not counts:
        return Vote("", len(texts))
    most = max(counts.values())
    at = next(i for i, form in enumerate(forms) if counts[form] == most)
    return Vote(texts[at], most)


def last_states(
    model: LanguageModel, prompts: Sequence[Sequence[int]], *, batch_size: int
) -> Float[np.ndarray, "N W"]:
    """States after the last norm at the last token of each prompt, float32."""
    found = np.zeros((len(prompts), model.config.width), np.float32)
    for numbers, num_rows in batches([len(ids) for ids in prompts], lambda _: batch_size):
        rows = [list(prompts[i]) for i in np.resize(numbers, num_rows)]
        length = bucket(max(map(len, rows)), 32)
        tokens = np.array([ids + [0] * (length - len(ids)) for ids in rows], np.int32)
        positions = np.array(
            [[*range(len(ids)), *[PADDING] * (length - len(ids))] for ids in rows], np.int32
        )
        hidden = model.decoder.hidden(jnp.asarray(tokens), positions=jnp.asarray(positions))
        states = np.asarray(hidden, np.float32)
        for row, i in enumerate(numbers):
            found[i] = states[row, len(prompts[i]) - 1]
    return found
