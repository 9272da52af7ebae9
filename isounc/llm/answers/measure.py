"""What a language model does with questions: its answers, and everything that scores are later made of.

For each question: the prompt; the answer (generated greedily, or the most probable of the given choices); the answer's
probabilities and exact gradient norms; sampled answers; how the model judges its own answer (P(True) with and without
the samples in the prompt, a stated percentage). Scores (`isounc.llm.answers.scores`) are functions of what is kept
here: a new score needs no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isounc.checks import check_choice, check_count, check_real
from isounc.llm.answers import prompts
from isounc.llm.answers.estimands import (
    ESTIMANDS,
    SCALINGS,
    AnswerNorms,
    answer_log_probs,
    answer_norms,
)
from isounc.llm.answers.judging import Judgement, judge_generated, mc1, mc2
from isounc.llm.answers.packing import pack
from isounc.llm.answers.question import Question
from isounc.llm.answers.text import first_answer
from isounc.llm.model.generate import GenerationSettings, generate
from isounc.llm.model.load import LanguageModel

Measured = dict[str, Any]
"""One question's numbers and texts, as JSON can hold them; what is undefined is None, with a word under ``reasons``.

    id, benchmark, question, prompt_version, answer      texts
    correct, judgement                                   whether the answer is right, and by which rule
    num_prompt_tokens, num_tokens                        lengths
    log_odds[estimand]                                   log p - log(1 - p)
    log_sq_norms[estimand][scaling]                      log ||grad log p||^2 under each of `SCALINGS`
    token_log_probs, token_entropies                     of the answer's tokens, nats
    choice_log_probs                                     of the given choices, as sequences
    samples[i]                                           text, log_prob, num_tokens of other answers
    p_true, p_true_ideas                                 log probabilities of both options: true, false
    confidence, confidence_text                          the stated confidence in [0, 1], and what the model wrote
"""


@dataclass(frozen=True)
class MeasureSettings:
    """What is measured, and how answers are generated."""

    estimands: tuple[str, ...] = ESTIMANDS
    """Probabilities of an answer: sequence, length_normalised, mean_token, first_token, choice."""
    scalings: tuple[str, ...] = SCALINGS
    """Sums of the squared gradient: all, layer_scaled, last_layer."""
    max_new_tokens: int = 48
    """Most tokens of a generated answer; short answers take at most 24."""
    num_samples: int = 10
    """Other answers, sampled at ``sample_temperature``; 0 leaves out every score that needs them."""
    sample_temperature: float = 1.0
    """Temperature of the samples (the answer itself is the most probable one, token by token)."""
    self_assessment: bool = True
    """Ask the model whether its answer is true, and for a percentage."""
    num_ideas: int = 5
    """Samples that P(True) is shown in its second form."""
    batch_size: int = 8
    """Questions at a time, which bounds memory."""
    seed: int = 0
    """Of the samples."""

    def __post_init__(self):
        for value in self.estimands:
            check_choice("estimands", value, ESTIMANDS)
        for value in self.scalings:
            check_choice("scalings", value, SCALINGS)
        for name, least in (
            ("max_new_tokens", 1), ("num_samples", 0), ("num_ideas", 1), ("batch_size", 1), ("seed", 0),
        ):  # fmt: skip
            check_count(name, getattr(self, name), least)
        check_real("sample_temperature", self.sample_temperature, positive=True)


@dataclass(frozen=True)
class Asked:
    """A question as the model is given it."""

    question: Question
    """The question."""
    prompt: prompts.Prompt
    """What the model continues."""
    form: Literal["generated", "mc1", "mc2"]
    """Whether it writes its answer, or takes one of the question's choices, and how that is judged."""
    judged: bool = True
    """False for a question whose answer is not known: ``correct`` is then None."""


def measure(
    model: LanguageModel,
    asked: Sequence[Asked],
    settings: MeasureSettings | None = None,
    *,
    tell: Callable[[str], None] = lambda what: None,
) -> list[Measured]:
    """Ask a model, and measure its answers.

    Parameters
    ----------
    model
        From `load_model`.
    asked
        Questions of one form; they are worked on together.
    settings
        None is `MeasureSettings()`.
    tell
        Called with the name of each step.

    Raises
    ------
    ValueError
        Questions of several forms, prompts longer than the model's context, logits that are not finite.
    """
    settings = settings or MeasureSettings()
    forms = {one.form for one in asked}
    if len(forms) != 1:
        raise ValueError(f"asked must hold questions of one form; got {sorted(forms) or 'none'}")
    tokenizer = model.tokenizer
    check_lengths(model, asked, settings)
    ids = [tokenizer.encode(one.prompt.text) for one in asked]
    generated = forms == {"generated"}
    if generated:
        tell("answers")
        answers = _written(model, asked, ids, settings)
        choices = [[text] for text, _ in answers]
        encoded = [[tokens] for _, tokens in answers]
    else:
        choices = [list(one.question.choices) for one in asked]
        encoded = [_encoded_choices(model, one) for one in asked]
    found: list[Measured] = [_start(one, own) for one, own in zip(asked, ids, strict=True)]
    tell("gradient norms")
    there = [i for i, answers in enumerate(encoded) if all(answers)]
    rows = [pack(ids[i], encoded[i]) for i in there]
    if rows:
        norms = answer_norms(
            model.decoder, rows, estimands=settings.estimands, scalings=settings.scalings,
            batch_size=settings.batch_size,
        )  # fmt: skip
        for j, i in enumerate(there):
            found[i] |= _numbers(norms, j, choices[i], not generated)
    for i, one in enumerate(asked):
        if i not in there:
            found[i] |= {"answer": "", "num_tokens": 0, "reasons": ["the answer is empty"]}
        judgement = _judged(one, found[i]) if one.judged else None
        found[i] |= {
            "correct": judgement and judgement.correct,
            "judgement": judgement and judgement._asdict(),
        }
    if settings.num_samples:
        tell("samples")
        _add_samples(model, found, ids, settings, asked)
    if settings.self_assessment:
        tell("self-assessment")
        _add_self_assessment(model, found, settings)
    return found


def _start(one: Asked, ids: Sequence[int]) -> Measured:
    return {
        "id": one.question.id,
        "benchmark": one.question.benchmark,
        "question": one.question.question,
        "prompt_version": one.prompt.version,
        "num_prompt_tokens": len(ids),
        "reasons": [],
    }


def _stops(asked: Sequence[Asked], settings: MeasureSettings, **changes: Any) -> GenerationSettings:
    """Answers end with their line."""
    short = all(one.question.aliases for one in asked)
    most = min(24, settings.max_new_tokens) if short else settings.max_new_tokens
    return GenerationSettings(
        **{"max_new_tokens": most, "stop": ("\n",), "batch_size": settings.batch_size,
           "seed": settings.seed, **changes}
    )  # fmt: skip


def _written(model, asked, ids, settings) -> list[tuple[str, list[int]]]:
    """Text and tokens of the answers that the model writes, without what stopped them."""
    out = generate(model, ids, _stops(asked, settings, temperature=0.0))
    texts = [first_answer(own[0]) for own in out.text]
    tokens = [
        out.tokens[i, 0, : out.text_lengths[i, 0]].tolist() if text else []
        for i, text in enumerate(texts)
    ]
    tokens = [_up_to(model, *pair) for pair in zip(texts, tokens, strict=True)]
    return list(zip(texts, tokens, strict=True))


def _up_to(model: LanguageModel, text: str, tokens: list[int]) -> list[int]:
    """The tokens that an answer takes: a next question may follow in its line, which is not part of it."""
    decode = model.tokenizer.decode
    if decode(tokens).rstrip().endswith(text):
        return tokens
    ends = (n for n in range(1, len(tokens)) if text in decode(tokens[:n]))
    return tokens[: next(ends, len(tokens))]


def _encoded_choices(model: LanguageModel, one: Asked) -> list[list[int]]:
    return [model.tokenizer.continuation(one.prompt.text, f" {c}") for c in one.question.choices]


def check_lengths(model: LanguageModel, asked: Sequence[Asked], settings: MeasureSettings) -> None:
    """Refuse questions that a model cannot be asked, before any is.

    Raises
    ------
    ValueError
        A prompt that is longer than the model's context, with its answer, or has tokens that the model has not.
    """
    for one in asked:
        ids = model.tokenizer.encode(one.prompt.text)
        if max(ids, default=0) >= model.config.vocab_size:
            raise ValueError(
                f"prompts must hold tokens that {model.name} has; that of {one.question.id} has number {max(ids)} of "
                f"{model.config.vocab_size}"
            )
        longest = len(ids)
        if one.form == "generated":
            longest += _stops([one], settings).max_new_tokens
        else:
            longest += max(map(len, _encoded_choices(model, one)), default=0)
        _check_length(model, one.question.id, longest, "prompt and answer", "Give fewer examples.")


def _check_length(model: LanguageModel, which: str, length: int, what: str, remedy: str) -> None:
    if length > model.context_length:
        raise ValueError(
            f"{what} must fit the context of {model.context_length} tokens of {model.name}; those of {which} have "
            f"{length}. {remedy}"
        )


def _numbers(norms: AnswerNorms, j: int, choices: Sequence[str], given: bool) -> Measured:
    """Probabilities and norms of one answer."""
    chosen = int(norms.chosen[j])
    return {
        "answer": choices[chosen],
        "num_tokens": len(norms.token_log_probs[j]),
        "log_odds": {e: _real(v[j]) for e, v in norms.log_odds.items()},
        "log_sq_norms": {
            e: {s: _real(v[j]) for s, v in by.items()} for e, by in norms.log_sq_norms.items()
        },
        "token_log_probs": norms.token_log_probs[j].tolist(),
        "token_entropies": norms.token_entropies[j].tolist(),
        "choice_log_probs": norms.log_probs[j].tolist() if given else None,
    }


def _real(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _judged(one: Asked, found: Measured) -> Judgement:
    if one.form == "generated":
        return judge_generated(one.question, found["answer"])
    judge = {"mc1": mc1, "mc2": mc2}[one.form]
    return judge(np.array(found["choice_log_probs"]), np.array(one.question.labels))


def _add_samples(model, found, ids, settings, asked) -> None:
    out = generate(
        model,
        ids,
        _stops(asked, settings, num_samples=settings.num_samples,
               temperature=settings.sample_temperature),
    )  # fmt: skip
    for i, own in enumerate(found):
        own["samples"] = [
            {
                "text": first_answer(text),
                "log_prob": float(out.log_probs[i, k, : out.lengths[i, k]].sum()),
                "num_tokens": int(out.lengths[i, k]),
            }
            for k, text in enumerate(out.text[i])
        ]


def _add_self_assessment(model, found: Sequence[Measured], settings: MeasureSettings) -> None:
    """P(True) from the probabilities of its two options, and a percentage that the model writes."""
    there = [own for own in found if own["answer"]]
    for own in found:
        own |= {"p_true": None, "p_true_ideas": None, "confidence": None, "confidence_text": ""}
    if not there:
        return
    for key in ("p_true", "p_true_ideas"):
        mine = there
        if key == "p_true_ideas":
            mine = [own for own in there if any(s["text"] for s in own.get("samples", ()))]
        texts = [
            prompts.p_true(own["question"], own["answer"], _ideas(own, key, settings))
            for own in mine
        ]
        rows = [
            pack(
                model.tokenizer.encode(prompt.text),
                [model.tokenizer.continuation(prompt.text, option) for option in prompt.options],
            )
            for prompt in texts
        ]
        for own, row in zip(mine, rows, strict=True):
            _check_length(
                model, own["id"], row.tokens.size + 1, f"the prompt of {key} and its option",
                "Ask for fewer ideas (num_ideas), or for no self-assessment.",
            )  # fmt: skip
        if rows:
            totals = answer_log_probs(model.decoder, rows, batch_size=settings.batch_size)
            for own, (true, false) in zip(mine, totals, strict=True):
                own[key] = {"true": float(true), "false": float(false)}
    asked = [prompts.confidence(own["question"], own["answer"]).text for own in there]
    out = generate(
        model,
        asked,
        GenerationSettings(
            temperature=0.0, max_new_tokens=8, stop=("\n",), batch_size=settings.batch_size
        ),
    )
    for own, (text,) in zip(there, out.text, strict=True):
        own |= {"confidence": prompts.read_confidence(text), "confidence_text": text.strip()}


def _ideas(own: Measured, key: str, settings: MeasureSettings) -> Sequence[str]:
    if key == "p_true":
        return ()
    return [s["text"] for s in own["samples"] if s["text"]][: settings.num_ideas]
