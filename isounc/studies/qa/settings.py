"""Settings of the question-answering study, and its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from isounc.checks import check_choice, check_count
from isounc.llm.answers.isotropic_scores import ScoreSettings
from isounc.llm.answers.measure import AskedQuestion, MeasureSettings
from isounc.llm.model.load import model_name
from isounc.runs.executors import Batch, Group
from isounc.runs.settings import MOST_SEED, RunSettings
from isounc.studies.qa.evaluation import BootstrapSettings
from isounc.studies.qa.routing.second import SecondCell
from isounc.studies.qa.routing.settings import RoutingSettings, SecondSettings
from isounc.studies.qa.tasks import FORMS, SHORT, Task, make_task, record_name

Benchmark = Literal[
    "truthfulqa_mc1",
    "truthfulqa_mc2",
    "truthfulqa",
    "triviaqa",
    "natural_questions",
    "triviaqa_pairs",
    "natural_questions_pairs",
]


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
    """Settings of the question-answering study."""

    models: tuple[str, ...] = ("smollm2",)
    """smollm2 (installed by the dependency group of that name), GGUF files, or folders with a
    checkpoint."""
    benchmarks: tuple[Benchmark, ...] = ("truthfulqa_mc1", "triviaqa")
    """Benchmarks whose questions are asked."""
    num_questions: int = 100
    """Questions of each benchmark, or all if it has fewer."""
    num_examples: int = 5
    """Questions and answers shown before a short answer; none of them is evaluated."""
    prompting: Literal["few_shot", "completion", "chat"] = "few_shot"
    """few_shot: an instruction, examples and the question as plain text. completion: the question
    alone. chat: the same as few_shot as a conversation, in the form of the model's chat template."""
    seed: int = 0
    """Decides which questions and which examples are taken, and the order of choices."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights."""
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    """Which measurements are taken of each answer."""
    scores: ScoreSettings = field(default_factory=ScoreSettings)
    """Which scores are made of the measurements."""
    nli: str = ""
    """Model of natural language inference (a folder, or a name on the hub) for semantic entropy by
    entailment. It needs the packages transformers and torch; empty leaves that score out."""
    second: SecondSettings = field(default_factory=SecondSettings)
    """A second, costlier answerer, to which questions may be passed on."""
    main_estimand: Literal["auto", "sequence", "length_normalised", "mean_token", "first_token"] = (
        "auto"
    )
    """Estimand of the headline; auto is choice if there are choices, else length_normalised."""
    bootstrap: BootstrapSettings = field(default_factory=BootstrapSettings)
    """Intervals and tests."""
    routing: RoutingSettings = field(default_factory=RoutingSettings)
    """How passing on to the second answerer is judged."""
    data: str = "data"
    """Folder of the question files, or "hub"."""
    chunk: int = 32
    """Questions that are measured together: the most that a kill can lose."""


PRESETS = {
    "quick": Settings(),
    "standard": Settings(
        preset="standard",
        benchmarks=("truthfulqa_mc1", "triviaqa", "natural_questions"),
        num_questions=1000,
    ),
    "paper": Settings(
        preset="paper",
        benchmarks=tuple(FORMS),  # pyright: ignore
        num_questions=1000,
    ),
}


class Cell(NamedTuple):
    """A question that a model is asked."""

    source: str
    """The model, as `load_model` takes it."""
    question: AskedQuestion
    """The question with its prompt."""

    @property
    def name(self) -> str:
        """Name of the record."""
        return record_name(model_name(self.source), self.question.question.id)


def check(settings: Settings) -> None:
    """Refuse settings that cannot be run, before anything is loaded.

    Raises
    ------
    ValueError
        A name is unknown, a list is empty, two models have the same name, an estimand that the
        headline needs is left out, or a number is out of its range.
    """
    for argument in ("models", "benchmarks"):
        if not getattr(settings, argument):
            raise ValueError(f"{argument} must have at least one value, got none")
    for benchmark in settings.benchmarks:
        check_choice("benchmarks", benchmark, FORMS)
    names = [model_name(source) for source in settings.models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            "models must have different names, by which their records are told apart, got "
            f"{twice[0]} twice"
        )
    for benchmark in settings.benchmarks:
        estimand = headline_estimand(benchmark, settings.main_estimand)
        for argument, given in (
            ("measure.estimands", settings.measure.estimands),
            ("scores.estimands", settings.scores.estimands),
        ):
            if estimand not in given:
                raise ValueError(
                    f"{argument} must have {estimand}, which the headline of {benchmark} is about "
                    f"(main_estimand), got {', '.join(given)}"
                )
    for argument, least, most in (
        ("num_questions", 1, 10**9),  # a benchmark has no more than its file
        ("num_examples", 0, 1000),
        ("seed", 0, MOST_SEED),
        ("chunk", 1, 10**5),
    ):
        check_count(argument, getattr(settings, argument), least, most)
    if settings.second.num_samples:
        model_name(settings.second.model or settings.models[0])
        for benchmark in settings.benchmarks:
            check_choice("benchmarks that are asked a second time", benchmark, SHORT)


def headline_estimand(benchmark: str, main_estimand: str) -> str:
    """The estimand that a benchmark's headline is about.

    `auto` is choice if the benchmark gives choices, else length_normalised.
    """
    if main_estimand != "auto":
        return main_estimand
    return "length_normalised" if FORMS[benchmark] == "generated" else "choice"


def tasks_of(settings: Settings, *, num_examples: int | None = None) -> list[Task]:
    """The questions of each benchmark with their prompts.

    Parameters
    ----------
    num_examples
        Examples before a short answer; None is what the settings say.

    Raises
    ------
    ValueError
        A file is missing or cannot be used.
    """
    return [
        make_task(
            benchmark,
            settings.data,
            num_questions=settings.num_questions,
            num_examples=settings.num_examples if num_examples is None else num_examples,
            seed=settings.seed,
            prompting=settings.prompting,
        )
        for benchmark in settings.benchmarks
    ]


def second_tasks_of(settings: Settings, tasks: Sequence[Task]) -> list[Task]:
    """The same questions as the second answerer is asked them; none where there is none.

    Raises
    ------
    ValueError
        A question is among the second answerer's examples.
    """
    if not settings.second.num_samples:
        return []
    again = []
    for task, second in zip(
        tasks, tasks_of(settings, num_examples=settings.second.num_examples), strict=True
    ):
        by_id = {asked.question.id: asked for asked in second.asked}
        if shown := [q.question.id for q in task.asked if q.question.id not in by_id]:
            raise ValueError(
                f"num_questions must leave {settings.second.num_examples} questions of "
                f"{task.benchmark} as examples of the second answerer (second.num_examples), got "
                f"{len(task.asked)} questions with {shown[0]} among them"
            )
        again.append(task._replace(asked=tuple(by_id[q.question.id] for q in task.asked)))
    return again


def plan(settings: Settings) -> list[Group]:
    """Chunks of questions of one benchmark, those of similar length together."""
    groups: list[Group] = []
    tasks = tasks_of(settings)
    again = second_tasks_of(settings, tasks)
    for source in settings.models:
        label = model_name(source)
        for task in tasks:
            cells = [Cell(source, q) for q in task.asked]
            groups += _chunks(f"{label}, {task.benchmark}", cells, settings.chunk)
        for task, second in zip(tasks if again else (), again, strict=True):
            pairs = zip(task.asked, second.asked, strict=True)
            cells = [SecondCell(source, settings.second.name(source), *pair) for pair in pairs]
            groups += _chunks(f"{label}, {task.benchmark} again", cells, settings.chunk)
    return groups


def _chunks(label: str, cells: Sequence[Cell | SecondCell], size: int) -> list[Group]:
    ordered = sorted(cells, key=_length)
    parts = [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
    return [(Batch(label, part, float(len(part))),) for part in parts]


def _length(cell: Cell | SecondCell) -> int:
    return len(cell.question.prompt.text) + sum(map(len, cell.question.question.choices))
