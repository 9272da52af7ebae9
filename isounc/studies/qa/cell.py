"""A cell of the question-answering study: a model's answer to a question is measured."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from isounc.llm.answers.answer import to_record
from isounc.llm.answers.entailment import load_entailment
from isounc.llm.answers.measure import check_lengths, measure
from isounc.llm.model.load import LanguageModel, load_model, model_name
from isounc.runs.compute import Say
from isounc.runs.executors import Batch
from isounc.runs.folder import Record, RunFolder
from isounc.studies.qa.settings import Settings, tasks_of

ORDER = "questions="
"""Prefix of the records that hold the order of a benchmark's questions."""


@functools.lru_cache(maxsize=1)
def loaded_model(source: str, dtype: str) -> LanguageModel:
    """The model, which stays loaded until another is asked for."""
    return load_model(source, dtype=dtype)


def prepare(settings: Settings, folder: RunFolder) -> None:
    """Note the files that records are made from, and refuse questions that a model cannot take.

    Raises
    ------
    ValueError
        A file differs from the one of that name that the run was made with, or a prompt is too long
        for a model.
    """
    if settings.nli:
        load_entailment(settings.nli)
    tasks = tasks_of(settings)
    _add_sources(folder, "questions", {task.benchmark: task.provenance for task in tasks})
    for task in tasks:
        order = {"ids": [asked.question.id for asked in task.asked]}
        folder.write(Record(f"{ORDER}{task.benchmark}", order, {}))
    for source in settings.models:
        model = loaded_model(source, settings.dtype)
        described = {"source": model.source, "sha256": model.sha256}
        if settings.prompting == "chat" and model.chat_template is not None:
            described["chat_template"] = model.chat_template.source
        _add_sources(folder, "models", {model_name(source): described})
        for task in tasks:
            check_lengths(model, task.asked, settings.measure)


def evaluate(batch: Batch, settings: Settings, say: Say) -> list[Record]:
    """The records of questions to one model."""
    model = loaded_model(batch.cells[0].source, settings.dtype)
    questions = [cell.question for cell in batch.cells]
    answers = measure(model, questions, settings.measure, on_step=say)
    return [
        Record(cell.name, to_record(answer), {})
        for cell, answer in zip(batch.cells, answers, strict=True)
    ]


def _add_sources(folder: RunFolder, key: str, described: Mapping[str, Mapping[str, Any]]) -> None:
    """Note the files that records are made from; another file under the same name is refused."""
    known = folder.read_info().get(key, {})
    for name, new in described.items():
        old = known.get(name, {}).get("sha256")
        if old and new["sha256"] and old != new["sha256"]:
            raise ValueError(
                f"{key} must be those that {folder.path} was made with: {name} had sha256 {old}, "
                f"got {new['sha256']}. Take the former file, or another out"
            )
    folder.write_info({key: known | described})
