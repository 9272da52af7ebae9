"""Question answering: which uncertainty of a language model says that its answer is wrong?

A model answers questions of TruthfulQA, TriviaQA and Natural Questions. For each answer the isotropic estimate is taken
over all parameters, exactly (epistemic: squared gradient norm of a probability p of the answer; aleatoric: p (1 - p)),
for several meanings of p, and beside it what else is used: P(True), a stated percentage, entropies of tokens and of
sampled answers. Then AUROC for a wrong answer, with intervals and paired tests against the best baseline.

    uv run --extra llm --group smollm2 experiments/qa.py --data DATA                  quick: 100 questions each
    uv run --extra llm --group smollm2 experiments/qa.py --data DATA --preset full    1000 questions each
    uv run --extra llm experiments/qa.py --data DATA --models PATH/TO/MODEL --benchmarks triviaqa --out runs/mine

DATA is a folder with the authors' files: truthfulqa_mc.json, truthfulqa.csv, triviaqa.csv, natural_questions.csv (a
message says where to get one that lacks), or "hub" where the package datasets and a network are there. A killed run
goes on where it was; the same --out with more questions, benchmarks or models adds them.

The protocol, fixed before the first result. The estimand that counts is --main-estimand (choice where a benchmark gives
choices, length_normalised where the model writes its answer); the total that counts is total_sum with --scores.sigma.
Everything else in the tables is for comparison. Prompts are in isounc/llm/answers/prompts.py, by version. Multiple
choice takes the most probable of the choices, zero-shot; *_pairs is the choice between a true and a false answer. Short
answers are judged by exact match after normalisation; TruthfulQA's own sentences, as a proxy, by words in common with
references. The best baseline is chosen anew in every bootstrap resample, and p-values are corrected for the number of
scores (Benjamini and Hochberg).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from isounc import sweep
from isounc.checks import check_choice, check_count
from isounc.llm.answers.answer import to_record
from isounc.llm.answers.entailment import load_entailment
from isounc.llm.answers.isotropic_scores import ScoreSettings
from isounc.llm.answers.measure import AskedQuestion, MeasureSettings, check_lengths, measure
from isounc.llm.model.load import LanguageModel, load_model, model_name
from isounc.runs.command import command, settings_of_run
from isounc.runs.folder import Record, RunFolder
from isounc.runs.provenance import provenance
from isounc.studies.qa import report, tasks
from isounc.studies.qa.evaluation import BootstrapSettings

Benchmark = Literal[
    "truthfulqa_mc1",
    "truthfulqa_mc2",
    "truthfulqa",
    "triviaqa",
    "natural_questions",
    "triviaqa_pairs",
    "natural_questions_pairs",
]


@dataclass(frozen=True)
class Settings:
    """Settings of the experiment; every one that changes a number is stored with the run."""

    preset: Literal["quick", "full"] = "quick"
    """Defaults of the other settings: quick (100 questions), full (all of TruthfulQA, 1000 of the others)."""
    models: tuple[str, ...] = ("smollm2",)
    """smollm2 (comes with the dependency group of that name), GGUF files, or folders with a checkpoint."""
    benchmarks: tuple[Benchmark, ...] = ("truthfulqa_mc1", "triviaqa")
    """Which questions."""
    num_questions: int = 100
    """Of each benchmark, or all where it has fewer."""
    num_examples: int = 5
    """Questions and answers shown before a short answer; none of them is evaluated."""
    seed: int = 0
    """Which questions, which examples, the order of choices."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights."""
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    """What is measured of each answer."""
    scores: ScoreSettings = field(default_factory=ScoreSettings)
    """Which scores are made of it."""
    nli: str = ""
    """Model of natural language inference (a folder, or a name on the hub) for semantic entropy by entailment; needs
    the packages transformers and torch. Empty leaves that score out."""
    main_estimand: Literal["auto", "sequence", "length_normalised", "mean_token", "first_token"] = (
        "auto"
    )
    """The one that the headline is about; auto is choice where there are choices, else length_normalised."""
    bootstrap: BootstrapSettings = field(default_factory=BootstrapSettings)
    """Intervals and tests."""
    data: str = "data"
    """Folder of the question files, or "hub"."""
    chunk: int = 32
    """Questions between two records: what a kill can lose."""
    cache: str = "~/.cache/isounc/jax"
    """Folder of compiled programs that later runs reuse; empty for none."""
    out: str = ""
    """Run folder; empty is runs/qa-PRESET."""


PRESETS = {
    "quick": Settings(),
    "full": Settings(
        preset="full",
        benchmarks=(
            "truthfulqa_mc1", "truthfulqa_mc2", "truthfulqa", "triviaqa", "natural_questions",
            "triviaqa_pairs", "natural_questions_pairs",
        ),
        num_questions=1000,
    ),
}  # fmt: skip

MEMORY_SHARE = 0.25
"""Of the machine's memory: above it compiled programs are dropped between questions. They come back from the cache, but
tracing and loading all of them again for every 32 questions would take longer than the questions' gradients."""

NOT_PART_OF_A_RUN = (
    "preset", "models", "benchmarks", "num_questions", "data", "chunk", "cache", "out", "scores", "nli",
    "bootstrap", "main_estimand",
)  # fmt: skip
"""Settings that change no record and may differ when a run is resumed: further questions, benchmarks or models are
added, and tables and figures are made anew."""


def check(settings: Settings) -> None:
    """Refuse what cannot be run before anything is loaded."""
    for argument in ("models", "benchmarks"):
        if not getattr(settings, argument):
            raise ValueError(f"{argument} must have at least one value.")
    for benchmark in settings.benchmarks:
        check_choice("benchmarks", benchmark, tasks.FORMS)
    names = [model_name(source) for source in settings.models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"models must have different names, by which their records are told apart; {twice[0]} is there twice"
        )
    for benchmark in settings.benchmarks:
        own = report.headline_estimand(benchmark, settings.main_estimand)
        for argument, there in (
            ("measure.estimands", settings.measure.estimands),
            ("scores.estimands", settings.scores.estimands),
        ):
            if own not in there:
                raise ValueError(
                    f"{argument} must have {own}, which the headline of {benchmark} is about (main_estimand); got "
                    f"{', '.join(there)}"
                )
    for argument, least in (("num_questions", 1), ("num_examples", 0), ("seed", 0), ("chunk", 1)):
        check_count(argument, getattr(settings, argument), least)


def ask_all(
    folder: RunFolder, model: LanguageModel, asked: list[AskedQuestion], settings: Settings
) -> None:
    """Measure the questions that the run folder lacks, those of one length together."""
    missing = [one for one in asked if not folder.has(tasks.record_name(model.name, one))]
    check_lengths(model, missing, settings.measure)
    missing.sort(key=lambda one: len(one.prompt.text) + sum(map(len, one.question.choices)))
    with tqdm(total=len(asked), initial=len(asked) - len(missing), unit="question") as bar:
        title = f"{model.name}, {asked[0].question.benchmark}"
        bar.set_description(title)
        for start in range(0, len(missing), settings.chunk):
            part = missing[start : start + settings.chunk]
            answers = measure(model, part, settings.measure, on_step=bar.set_postfix_str)
            for one, answer in zip(part, answers, strict=True):
                folder.write(Record(tasks.record_name(model.name, one), to_record(answer), {}))
            bar.update(len(part))
            sweep.bound_memory(MEMORY_SHARE * sweep.machine_mebibytes())


def add_sources(folder: RunFolder, key: str, found: dict[str, dict]) -> None:
    """Write down which files records are made from; another file under the same name is refused."""
    known = folder.read_info().get(key, {})
    for name, new in found.items():
        old = known.get(name, {}).get("sha256")
        if old and new["sha256"] and old != new["sha256"]:
            raise ValueError(
                f"{key} must be those that {folder.path} was made with: {name} had sha256 {old}, and has "
                f"{new['sha256']}. Take the former file, or another out"
            )
    folder.write_info({key: known | found})


def run(settings: Settings) -> None:
    """Ask what is missing, and write tables, figures and the report."""
    check(settings)
    out = Path(settings.out or f"runs/qa-{settings.preset}")
    # Questions first: a file that lacks is said before a model is loaded.
    sets = {
        benchmark: tasks.make_task(
            benchmark, settings.data, num_questions=settings.num_questions,
            num_examples=settings.num_examples, seed=settings.seed,
        )
        for benchmark in settings.benchmarks
    }  # fmt: skip
    same = load_entailment(settings.nli) if settings.nli else None
    sweep.use_compilation_cache(settings.cache)
    stored = settings_of_run(settings, NOT_PART_OF_A_RUN)
    started = time.perf_counter()
    folder = RunFolder.open(out, stored)
    add_sources(folder, "questions", {name: asked.provenance for name, asked in sets.items()})
    models = []
    for source in settings.models:
        model = load_model(source, dtype=settings.dtype)
        models.append(model.name)
        described = {"source": model.source, "sha256": model.sha256}
        add_sources(folder, "models", {model.name: described})
        for asked in sets.values():
            ask_all(folder, model, list(asked.asked), settings)
    seconds = time.perf_counter() - started
    folder.write_info(
        provenance()
        | {
            "last_session": {
                "seconds": round(seconds, 1),
                "peak_mebibytes": sweep.peak_mebibytes(),
            },
        }
    )
    names = {
        (model, benchmark): [tasks.record_name(model, one) for one in asked.asked]
        for model in models
        for benchmark, asked in sets.items()
    }
    print("\n" + report.make(
        folder, names, scores=settings.scores, bootstrap=settings.bootstrap,
        main_estimand=settings.main_estimand, same=same,
    ))  # fmt: skip
    print(f"\n{seconds / 60:.1f} minutes. {out / 'report.html'}")


if __name__ == "__main__":
    command(PRESETS, run, description=__doc__, parts="questions")
