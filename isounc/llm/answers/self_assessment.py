"""A model's assessment of its own answers: P(True), and a percentage that it writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from isounc.llm.answers import prompts
from isounc.llm.answers.answer import MeasuredAnswer, OptionLogProbs, SelfAssessment
from isounc.llm.answers.norms import answer_log_probs
from isounc.llm.answers.packing import pack
from isounc.llm.answers.rendering import rendered
from isounc.llm.model.generate import GenerationSettings, generate
from isounc.llm.model.load import LanguageModel


def assess(
    model: LanguageModel,
    answers: Sequence[MeasuredAnswer],
    *,
    num_ideas: int,
    batch_size: int,
    chat: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> list[SelfAssessment]:
    """Ask a model whether its answers are true.

    Parameters
    ----------
    model
        The model that gave the answers.
    answers
        Answers with their samples, if there are any. Nothing is asked about an empty answer.
    num_ideas
        Samples that the second form of P(True) shows; it is undefined without any.
    batch_size
        Questions at a time.
    chat
        Whether each prompt is the message of a user, in the form of the model's chat template.
    on_step
        Called with the name of each step.

    Raises
    ------
    ValueError
        A prompt is longer than the model's context.

    Source: Kadavath et al. 2022 (arXiv 2207.05221) for P(True), Tian et al. 2023 (arXiv 2305.14975)
    for the percentage.
    """
    assessments = [SelfAssessment()] * len(answers)
    written = [i for i, answer in enumerate(answers) if answer.text]
    if not written:
        return assessments
    for field, step in (("p_true", "P(True)"), ("p_true_ideas", "P(True) with ideas")):
        on_step(step)
        ideas = {
            i: _ideas(answers[i], num_ideas) if field == "p_true_ideas" else [] for i in written
        }
        judged = [i for i in written if field == "p_true" or ideas[i]]
        options = _p_true(model, [answers[i] for i in judged], [ideas[i] for i in judged], field,
                          batch_size=batch_size, chat=chat)  # fmt: skip
        for i, log_probs in zip(judged, options, strict=True):
            assessments[i] = dataclasses.replace(assessments[i], **{field: log_probs})
    on_step("stated percentage")
    asked = [prompts.confidence(answers[i].question, answers[i].text) for i in written]
    given = rendered(model, [prompts.as_chat(prompt) if chat else prompt for prompt in asked])
    settings = GenerationSettings(
        temperature=0.0, max_new_tokens=8, stop=("\n",), batch_size=batch_size
    )
    for i, (text,) in zip(
        written, generate(model, [prompt.ids for prompt in given], settings).text, strict=True
    ):
        assessments[i] = dataclasses.replace(
            assessments[i],
            confidence=prompts.read_confidence(text),
            confidence_text=text.strip(),
        )
    return assessments


def check_fits_context(
    model: LanguageModel, argument: str, question_id: str, length: int, remedy: str
) -> None:
    """Raise a ValueError if a prompt and its continuation are longer than the model's context."""
    if length > model.context_length:
        raise ValueError(
            f"{argument} must fit the context of {model.context_length} tokens of {model.name}, "
            f"got {length} tokens for question {question_id}; {remedy}"
        )


def _ideas(answer: MeasuredAnswer, num_ideas: int) -> list[str]:
    return [sample.text for sample in answer.samples or () if sample.text][:num_ideas]


def _p_true(
    model: LanguageModel,
    answers: Sequence[MeasuredAnswer],
    ideas: Sequence[Sequence[str]],
    field: str,
    *,
    batch_size: int,
    chat: bool,
) -> list[OptionLogProbs]:
    """Log probabilities of both options of P(True) for each answer, in one batch of prompts."""
    packed, asked = [], []
    for answer, shown in zip(answers, ideas, strict=True):
        prompt = prompts.p_true(answer.question, answer.text, shown)
        asked.append(prompts.as_chat(prompt) if chat else prompt)
    for answer, prompt, given in zip(answers, asked, rendered(model, asked), strict=True):
        options = [given.option_ids(model, option) for option in prompt.options]
        packed.append(pack(given.ids, options))
        check_fits_context(
            model, f"the prompt of {field} and its option", answer.id, packed[-1].tokens.size + 1,
            "ask for fewer ideas (num_ideas), or for no self-assessment",
        )  # fmt: skip
    totals = answer_log_probs(model, packed, batch_size=batch_size)
    return [OptionLogProbs(float(true), float(false)) for true, false in totals]
