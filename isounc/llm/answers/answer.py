"""A language model's answer to a question with all that was measured of it, and its record.

Scores (`isounc.llm.answers.scores`) are functions of a `MeasuredAnswer` alone: a new score of old
answers needs no model, only the records of a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from isounc.llm.answers.judging import Judgement


class Sample(NamedTuple):
    """Another answer to the same question, drawn at random."""

    text: str
    """The answer, cut as `first_answer` does."""
    log_prob: float
    """Log probability of its tokens as a sequence, in nats."""
    num_tokens: int
    """Number of tokens that were drawn, the one that stopped it included."""


class OptionLogProbs(NamedTuple):
    """Log probabilities of the two options of P(True), in nats."""

    true: float
    """Log probability of the option that calls the answer true."""
    false: float
    """Log probability of the option that calls it false."""


@dataclass(frozen=True)
class SelfAssessment:
    """A model's assessment of its own answer; undefined parts are None."""

    p_true: OptionLogProbs | None = None
    """The model is shown the question and its answer."""
    p_true_ideas: OptionLogProbs | None = None
    """The model is also shown some of the samples."""
    confidence: float | None = None
    """The stated confidence in [0, 1]."""
    confidence_text: str = ""
    """The text that the model wrote when it was asked for a percentage."""


@dataclass(frozen=True)
class MeasuredAnswer:
    """One answer with its probabilities, gradient norms, samples and judgement."""

    id: str
    """`Question.id` of the question."""
    benchmark: str
    """Benchmark of the question."""
    question: str
    """Text of the question."""
    prompt_version: str
    """Version of the prompt, see `isounc.llm.answers.prompts.VERSIONS`."""
    num_prompt_tokens: int
    """Length of the prompt."""
    text: str
    """The answer; empty if the model wrote nothing."""
    num_tokens: int
    """A, the length of the answer; 0 if it is empty."""
    log_odds: Mapping[str, float | None]
    """log p - log(1 - p) by estimand; None where undefined. No entry for an empty answer."""
    log_sq_norms: Mapping[str, Mapping[str, float | None]]
    """log ||grad log p||^2 by estimand and scaling (`isounc.llm.answers.estimands.SCALINGS`)."""
    token_log_probs: tuple[float, ...]
    """Log probability of each of the A tokens, in nats."""
    token_entropies: tuple[float, ...]
    """Entropy of the distribution of each of the A tokens, in nats."""
    choice_log_probs: tuple[float, ...] | None
    """Log probability of each given choice as a sequence, in nats; None if there are no choices."""
    token_log_sq_norms_logits: tuple[float, ...] = ()
    """log ||grad log p||^2 of each of the A tokens in its logits; empty in older records."""
    token_log_sq_norms_head: tuple[float, ...] = ()
    """The same in the matrix that makes the logits, see `isounc.llm.token_scores`."""
    log_semgrad: float | None = None
    """Log of SemGrad (`isounc.llm.answers.semgrad`); None if it is zero or was not asked for."""
    correct: bool | None = None
    """Whether the answer is right; None if it was not judged."""
    judgement: Judgement | None = None
    """How that was judged; None if it was not."""
    samples: tuple[Sample, ...] | None = None
    """Sampled answers; None if none were drawn."""
    self_assessment: SelfAssessment | None = None
    """The model's assessment of its answer; None if it was not asked."""
    seconds: Mapping[str, Mapping[str, float]] | None = None
    """Seconds of each step of the measurement by clock (wall, cpu: of the processor), for a question of
    those measured together; None if they were not noted."""
    reasons: tuple[str, ...] = ()
    """Why numbers are missing."""


def to_record(answer: MeasuredAnswer) -> dict[str, Any]:
    """The answer as JSON can hold it; `from_record` reads it back.

    What was not measured has no entry, what is undefined is null.
    """
    record: dict[str, Any] = {
        "id": answer.id,
        "benchmark": answer.benchmark,
        "question": answer.question,
        "prompt_version": answer.prompt_version,
        "num_prompt_tokens": answer.num_prompt_tokens,
        "reasons": list(answer.reasons),
        "answer": answer.text,
        "num_tokens": answer.num_tokens,
    }
    if answer.num_tokens:
        choices = answer.choice_log_probs
        record |= {
            "log_odds": dict(answer.log_odds),
            "log_sq_norms": {e: dict(norms) for e, norms in answer.log_sq_norms.items()},
            "token_log_probs": list(answer.token_log_probs),
            "token_entropies": list(answer.token_entropies),
        }
        if answer.token_log_sq_norms_head:
            record |= {
                "token_log_sq_norms_logits": list(answer.token_log_sq_norms_logits),
                "token_log_sq_norms_head": list(answer.token_log_sq_norms_head),
            }
        record |= {
            "choice_log_probs": None if choices is None else list(choices),
        }
        if answer.log_semgrad is not None:
            record["log_semgrad"] = answer.log_semgrad
    record |= {"correct": answer.correct, "judgement": _as_dict(answer.judgement)}
    if answer.samples is not None:
        record["samples"] = [sample._asdict() for sample in answer.samples]
    if (said := answer.self_assessment) is not None:
        record |= {
            "p_true": _as_dict(said.p_true),
            "p_true_ideas": _as_dict(said.p_true_ideas),
            "confidence": said.confidence,
            "confidence_text": said.confidence_text,
        }
    if answer.seconds is not None:
        record["seconds"] = {clock: dict(steps) for clock, steps in answer.seconds.items()}
    return record


def from_record(record: Mapping[str, Any]) -> MeasuredAnswer:
    """The answer that `to_record` wrote."""
    choices, samples = record.get("choice_log_probs"), record.get("samples")
    judgement = record["judgement"]
    said = None
    if "p_true" in record:
        said = SelfAssessment(
            _options(record["p_true"]),
            _options(record["p_true_ideas"]),
            record["confidence"],
            record["confidence_text"],
        )
    return MeasuredAnswer(
        id=record["id"],
        benchmark=record["benchmark"],
        question=record["question"],
        prompt_version=record["prompt_version"],
        num_prompt_tokens=record["num_prompt_tokens"],
        text=record["answer"],
        num_tokens=record["num_tokens"],
        log_odds=record.get("log_odds", {}),
        log_sq_norms=record.get("log_sq_norms", {}),
        token_log_probs=tuple(record.get("token_log_probs", ())),
        token_entropies=tuple(record.get("token_entropies", ())),
        token_log_sq_norms_logits=tuple(record.get("token_log_sq_norms_logits", ())),
        token_log_sq_norms_head=tuple(record.get("token_log_sq_norms_head", ())),
        choice_log_probs=None if choices is None else tuple(choices),
        log_semgrad=record.get("log_semgrad"),
        correct=record["correct"],
        judgement=None if judgement is None else Judgement(**judgement),
        samples=None if samples is None else tuple(Sample(**sample) for sample in samples),
        self_assessment=said,
        seconds=record.get("seconds"),
        reasons=tuple(record["reasons"]),
    )


def _as_dict(value: Judgement | OptionLogProbs | None) -> dict[str, Any] | None:
    return None if value is None else value._asdict()


def _options(log_probs: Mapping[str, float] | None) -> OptionLogProbs | None:
    return None if log_probs is None else OptionLogProbs(**log_probs)
