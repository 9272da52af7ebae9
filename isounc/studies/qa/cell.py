"""A cell of the question-answering study: a model's answer to a question is measured."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any

from isounc.llm.answers.answer import to_record
from isounc.llm.answers.entailment import load_entailment
from isounc.llm.answers.measure import check_lengths, measure
from isounc.llm.model.load import LanguageModel, load_model, model_name
from isounc.runs.compute import Say
from isounc.runs.executors import Batch
from isounc.runs.folder import Record, RunFolder
from isounc.studies.qa.routing.second import SecondCell, second_records
from isounc.studies.qa.settings import Settings, second_tasks_of, tasks_of
from isounc.studies.qa.tasks import record_name

ORDER = "questions="
"""Prefix of the records that hold the order of a benchmark's questions."""


@functools.lru_cache(maxsize=2)
def loaded_model(source: str, dtype: str) -> LanguageModel:
    """The model, which stays loaded until others are asked for: one that answers, and a second one."""
    return load_model(source, dtype=dtype)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Clocks by name; that of the processor counts this process alone, on whatever else the machine works."""


class Clock:
    """Seconds of the steps of a piece of work, each of which begins where it is named."""

    def __init__(self, say: Say):
        self.say, self.step = say, ""
        self.began = {name: clock() for name, clock in CLOCKS.items()}
        self.total: dict[str, dict[str, float]] = {name: {} for name in CLOCKS}

    def __call__(self, step: str) -> None:
        now = {name: clock() for name, clock in CLOCKS.items()}
        if self.step:
            for name, total in self.total.items():
                total[self.step] = total.get(self.step, 0.0) + now[name] - self.began[name]
        if step:
            self.say(step)
        self.step, self.began = step, now

    def of_each(self, count: int) -> dict[str, dict[str, float]]:
        """Seconds of each step by clock, for one of `count` questions; ends the last step."""
        self("")
        return {
            name: {step: float(f"{seconds / count:.4g}") for step, seconds in total.items()}
            for name, total in self.total.items()
        }


def prepare(settings: Settings, folder: RunFolder) -> None:
    """Note the files that records are made from, and refuse questions that a model cannot take.

    Raises
    ------
    ValueError
        A file, or the template of a chat, differs from the one of that name that the run was made
        with, or a prompt is too long for a model.
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
        for task in second_tasks_of(settings, tasks):
            second = loaded_model(settings.second.source(source), settings.dtype)
            described = {"source": second.source, "sha256": second.sha256}
            _add_sources(folder, "second", {settings.second.name(source): described})
            check_lengths(second, task.asked, settings.measure)


def evaluate(batch: Batch, settings: Settings, say: Say) -> list[Record]:
    """The records of questions to one model."""
    model = loaded_model(batch.cells[0].source, settings.dtype)
    clock = Clock(say)
    if isinstance(batch.cells[0], SecondCell):
        second = loaded_model(settings.second.source(batch.cells[0].source), settings.dtype)
        records = second_records(
            model, second, batch.cells, settings.second, settings.measure, clock
        )
        seconds = clock.of_each(len(records))
        return [record._replace(meta=record.meta | {"seconds": seconds}) for record in records]
    questions = [cell.question for cell in batch.cells]
    answers = measure(model, questions, settings.measure, on_step=clock)
    seconds = clock.of_each(len(answers))
    return [
        Record(cell.name, to_record(dataclasses.replace(answer, seconds=seconds)), {})
        for cell, answer in zip(batch.cells, answers, strict=True)
    ]


def _add_sources(folder: RunFolder, key: str, described: Mapping[str, Mapping[str, Any]]) -> None:
    """Note the files that records are made from; another file under the same name is refused."""
    known = folder.read_info().get(key, {})
    for name, new in described.items():
        if alike := [k for k in known if k != name and record_name(k, "") == record_name(name, "")]:
            raise ValueError(
                f"{key} must have names by which their records are told apart, got {name!r} beside "
                f"{alike[0]!r} of {folder.path}; rename it, or take another out"
            )
        before = known.get(name, {})
        old = before.get("sha256")
        if old and new["sha256"] and old != new["sha256"]:
            raise ValueError(
                f"{key} must be those that {folder.path} was made with: {name} had sha256 {old}, "
                f"got {new['sha256']}. Take the former file, or another out"
            )
        # The digest of a model is that of its weights and tokenizer.
        template = new.get("chat_template")
        if before.get("chat_template", template) != template:
            raise ValueError(
                f"{key} must be those that {folder.path} was made with: {name} had another chat "
                "template. Take the former one, or another out"
            )
    folder.write_info({key: known | described})
