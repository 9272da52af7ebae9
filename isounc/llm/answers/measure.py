"""Ask a language model questions, and measure its answers.

For each question the model writes an answer (greedily) or takes the most probable of the given
choices. Then follow the answer's probabilities and exact gradient norms, sampled answers, and how
the model judges its own answer: P(True) with and without the samples in the prompt, and a stated
percentage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from isounc.checks import check_choice, check_count, check_real
from isounc.llm.answers.answer import MeasuredAnswer, Sample
from isounc.llm.answers.estimands import ESTIMANDS, SCALINGS
from isounc.llm.answers.judging import Judgement, judge_generated, mc1, mc2
from isounc.llm.answers.norms import AnswerNorms, answer_norms
from isounc.llm.answers.packing import pack
from isounc.llm.answers.prompts import Prompt
from isounc.llm.answers.question import Question
from isounc.llm.answers.rendering import Given, rendered
from isounc.llm.answers.self_assessment import assess, check_fits_context
from isounc.llm.answers.text import first_answer
from isounc.llm.model.generate import GenerationSettings, generate
from isounc.llm.model.load import LanguageModel


@dataclass(frozen=True)
class MeasureSettings:
    """Settings of the measurements and of generation."""

    estimands: tuple[str, ...] = ESTIMANDS
    """Probabilities of an answer: sequence, length_normalised, mean_token, first_token, choice."""
    scalings: tuple[str, ...] = SCALINGS
    """Weights of the squared gradient's entries: all, layer_scaled, last_layer."""
    max_new_tokens: int = 48
    """Largest number of tokens of a generated answer; short answers have at most 24."""
    num_samples: int = 10
    """Other answers, sampled at `sample_temperature`; 0 leaves out every score that needs them."""
    sample_temperature: float = 1.0
    """Temperature of the samples. The answer itself takes the most probable token each time."""
    self_assessment: bool = True
    """Ask the model whether its answer is true, and for a percentage."""
    num_ideas: int = 5
    """Samples that P(True) is shown in its second form."""
    semgrad_token: int = 0
    """Token of the prompt, counted from its end, in whose states SemGrad takes derivatives: 1 without
    a chat template, 3 as the authors for ChatML, 4 for Llama 3 (isounc.llm.answers.semgrad). An answer
    of several tokens then costs one more backward pass. 0 leaves it out."""
    batch_size: int = 8
    """Questions at a time, which bounds memory."""
    seed: int = 0
    """Seed of the samples."""

    def __post_init__(self):
        for value in self.estimands:
            check_choice("estimands", value, ESTIMANDS)
        for value in self.scalings:
            check_choice("scalings", value, SCALINGS)
        for name, least, most in (
            ("max_new_tokens", 1, 10**6), ("num_samples", 0, 10**4), ("num_ideas", 1, 10**4),
            ("semgrad_token", 0, 10**4), ("batch_size", 1, 10**5), ("seed", 0, 2**32 - 1),
        ):  # fmt: skip
            check_count(name, getattr(self, name), least, most)
        check_real("sample_temperature", self.sample_temperature, positive=True)


@dataclass(frozen=True)
class AskedQuestion:
    """A question as the model is given it.

    An answer that somebody else gave is the single choice of a question of form mc1 that is not
    judged.
    """

    question: Question
    """The question."""
    prompt: Prompt
    """The text that the model continues."""
    form: Literal["generated", "mc1", "mc2"]
    """Whether it writes its answer, or takes one of the choices, and how that is judged."""
    judged: bool = True
    """False for a question whose right answer is not known."""


class WrittenAnswer(NamedTuple):
    """An answer that a model wrote, before anything of it is measured."""

    text: str
    """The answer; empty if it wrote none."""
    tokens: list[int]
    """Its A tokens."""
    log_probs: Float[np.ndarray, " A"]
    """Log probability of each, in nats."""
    entropies: Float[np.ndarray, " A"]
    """Entropy of the distribution that each was taken from, in nats."""


def measure(
    model: LanguageModel,
    asked: Sequence[AskedQuestion],
    settings: MeasureSettings | None = None,
    *,
    on_step: Callable[[str], None] = lambda step: None,
    on_written: Callable[[list[WrittenAnswer]], None] = lambda answers: None,
) -> list[MeasuredAnswer]:
    """Ask a model questions, and measure its answers.

    Parameters
    ----------
    model
        From `load_model`.
    asked
        Questions of one form; they are worked on together.
    settings
        None is `MeasureSettings()`.
    on_step
        Called with the name of each step.
    on_written
        Called with the answers of form `generated` once the model has written them, one for each
        question; most of the time goes into what follows.

    Raises
    ------
    ValueError
        The questions have several forms, a prompt is longer than the model's context or is a
        conversation that the model has no template for, or logits are not finite.
    """
    settings = settings or MeasureSettings()
    forms = {question.form for question in asked}
    if len(forms) != 1:
        raise ValueError(f"asked must hold questions of one form, got {sorted(forms) or 'none'}")
    given = check_lengths(model, asked, settings)
    prompt_ids = [prompt.ids for prompt in given]
    is_generated = forms == {"generated"}
    if is_generated:
        on_step("answers")
        generated = _generated_answers(model, asked, prompt_ids, settings)
        on_written(generated)
        texts = [[answer.text] for answer in generated]
        tokens = [[answer.tokens] for answer in generated]
    else:
        texts = [list(question.question.choices) for question in asked]
        tokens = [_choice_tokens(model, *pair) for pair in zip(asked, given, strict=True)]
    on_step("gradient norms")
    answers = [unmeasured(*pair) for pair in zip(asked, prompt_ids, strict=True)]
    nonempty = [i for i, ids in enumerate(tokens) if all(ids)]
    if nonempty:
        norms = answer_norms(
            model, [pack(prompt_ids[i], tokens[i]) for i in nonempty],
            estimands=settings.estimands, scalings=settings.scalings,
            batch_size=settings.batch_size, semgrad_token=settings.semgrad_token,
        )  # fmt: skip
        for n, i in enumerate(nonempty):
            answers[i] = with_norms(answers[i], norms, n, texts[i], are_choices=not is_generated)
    answers = [_judged(*pair) for pair in zip(asked, answers, strict=True)]
    if settings.num_samples:
        on_step("samples")
        samples = _samples(model, asked, prompt_ids, settings)
        answers = [
            dataclasses.replace(answer, samples=drawn)
            for answer, drawn in zip(answers, samples, strict=True)
        ]
    if settings.self_assessment:
        assessments = assess(
            model, answers, num_ideas=settings.num_ideas, batch_size=settings.batch_size,
            chat=any(prompt.is_chat for prompt in given), on_step=on_step,
        )  # fmt: skip
        answers = [
            dataclasses.replace(answer, self_assessment=assessment)
            for answer, assessment in zip(answers, assessments, strict=True)
        ]
    return answers


def check_lengths(
    model: LanguageModel, asked: Sequence[AskedQuestion], settings: MeasureSettings
) -> list[Given]:
    """Prompts as a model is given them; those that it cannot be asked are refused before any is.

    Raises
    ------
    ValueError
        A prompt with its answer is longer than the model's context, or has tokens that are not in
        the model's vocabulary, or is a conversation that the model has no template for.
    """
    given = rendered(model, [question.prompt for question in asked])
    for question, prompt in zip(asked, given, strict=True):
        prompt_ids = prompt.ids
        if max(prompt_ids, default=0) >= model.config.vocab_size:
            raise ValueError(
                f"prompts must hold token ids below {model.config.vocab_size} of {model.name}, got "
                f"{max(prompt_ids)} for question {question.question.id}"
            )
        if question.form == "generated":
            longest = generation_settings([question], settings).max_new_tokens
        else:
            longest = max(map(len, _choice_tokens(model, question, prompt)), default=0)
        check_fits_context(
            model, "a prompt with its answer", question.question.id, len(prompt_ids) + longest,
            "give fewer examples",
        )  # fmt: skip
    return given


def generation_settings(
    asked: Sequence[AskedQuestion], settings: MeasureSettings, **changes: Any
) -> GenerationSettings:
    """Settings under which answers end with their line, with changes.

    Short answers have at most 24 tokens.
    """
    are_short = all(question.question.aliases for question in asked)
    most = min(24, settings.max_new_tokens) if are_short else settings.max_new_tokens
    return GenerationSettings(
        **{"max_new_tokens": most, "stop": ("\n",), "batch_size": settings.batch_size,
           "seed": settings.seed, **changes}
    )  # fmt: skip


def _generated_answers(
    model: LanguageModel,
    asked: Sequence[AskedQuestion],
    prompt_ids: Sequence[Sequence[int]],
    settings: MeasureSettings,
) -> list[WrittenAnswer]:
    """The answers that the model writes, without what stopped them."""
    generated = generate(model, prompt_ids, generation_settings(asked, settings, temperature=0.0))
    answers = []
    for i, (continuation,) in enumerate(generated.text):
        text = first_answer(continuation)
        tokens = generated.tokens[i, 0, : generated.text_lengths[i, 0]].tolist() if text else []
        tokens = _tokens_of_text(model, text, tokens)
        numbers = (
            array[i, 0, : len(tokens)] for array in (generated.log_probs, generated.entropies)
        )
        answers.append(WrittenAnswer(text, tokens, *numbers))
    return answers


def _tokens_of_text(model: LanguageModel, text: str, tokens: list[int]) -> list[int]:
    """The first tokens that hold an answer: another question may follow on its line."""
    decode = model.tokenizer.decode
    if first_answer(decode(tokens), stops=()) == text:
        return tokens
    # That question may end with the same words: what counts is how the line begins.
    ends = (n for n in range(1, len(tokens)) if first_answer(decode(tokens[:n])).startswith(text))
    return tokens[: next(ends, len(tokens))]


def _choice_tokens(model: LanguageModel, question: AskedQuestion, given: Given) -> list[list[int]]:
    return [given.answer_ids(model, choice) for choice in question.question.choices]


def unmeasured(asked: AskedQuestion, prompt_ids: Sequence[int]) -> MeasuredAnswer:
    """The record of a question without an answer."""
    return MeasuredAnswer(
        id=asked.question.id,
        benchmark=asked.question.benchmark,
        question=asked.question.question,
        prompt_version=asked.prompt.version,
        num_prompt_tokens=len(prompt_ids),
        text="",
        num_tokens=0,
        log_odds={},
        log_sq_norms={},
        token_log_probs=(),
        token_entropies=(),
        choice_log_probs=None,
        reasons=("the answer is empty",),
    )


def with_norms(
    answer: MeasuredAnswer, norms: AnswerNorms, n: int, texts: Sequence[str], *, are_choices: bool
) -> MeasuredAnswer:
    """The answer with the n-th probabilities and norms; it is one of `texts`."""
    tokens = norms.tokens[n]
    return dataclasses.replace(
        answer,
        text=texts[int(norms.chosen[n])],
        num_tokens=tokens.log_odds.size,
        log_odds={e: _real(values[n]) for e, values in norms.log_odds.items()},
        log_sq_norms={
            e: {s: _real(values[n]) for s, values in by_scaling.items()}
            for e, by_scaling in norms.log_sq_norms.items()
        },
        token_log_probs=tuple(tokens.log_probs.tolist()),
        token_entropies=tuple(tokens.entropies.tolist()),
        token_log_sq_norms_logits=tuple(tokens.log_sq_norms_logits.tolist()),
        token_log_sq_norms_head=tuple(tokens.log_sq_norms_head.tolist()),
        choice_log_probs=tuple(norms.log_probs[n].tolist()) if are_choices else None,
        log_semgrad=None if norms.log_semgrad is None else _finite(norms.log_semgrad[n]),
        reasons=(),
    )


def _real(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _judged(asked: AskedQuestion, answer: MeasuredAnswer) -> MeasuredAnswer:
    if not asked.judged:
        return answer
    judgement = _judgement(asked, answer)
    return dataclasses.replace(answer, correct=judgement.correct, judgement=judgement)


def _judgement(asked: AskedQuestion, answer: MeasuredAnswer) -> Judgement:
    if asked.form == "generated":
        return judge_generated(asked.question, answer.text)
    judge = {"mc1": mc1, "mc2": mc2}[asked.form]
    return judge(np.array(answer.choice_log_probs), np.array(asked.question.labels))


def _samples(
    model: LanguageModel,
    asked: Sequence[AskedQuestion],
    prompt_ids: Sequence[Sequence[int]],
    settings: MeasureSettings,
) -> list[tuple[Sample, ...]]:
    """Sampled answers to each question."""
    drawn = generate(
        model,
        prompt_ids,
        generation_settings(asked, settings, num_samples=settings.num_samples,
                    temperature=settings.sample_temperature),
    )  # fmt: skip
    return [
        tuple(
            Sample(
                first_answer(text),
                float(drawn.log_probs[i, k, : drawn.lengths[i, k]].sum()),
                int(drawn.lengths[i, k]),
            )
            for k, text in enumerate(texts)
        )
        for i, texts in enumerate(drawn.text)
    ]
