"""Measured answers with numbers that are easy to compute with."""

import numpy as np

from isounc.llm.answers.answer import (
    MeasuredAnswer,
    OptionLogProbs,
    Sample,
    SelfAssessment,
)
from isounc.llm.answers.judging import Judgement

SCALINGS = {"all": 0.0, "layer_scaled": -1.0, "last_layer": -2.0}


def measured(number=0, *, p=0.3, log_norm=2.0, texts=("Paris", "paris.", "Rome", "Lyon"),
             said=None, correct=True, **changes):  # fmt: skip
    """An answer of two tokens; the k-th sample has log probability -k."""
    fields = {
        "id": f"q-{number}",
        "benchmark": "triviaqa",
        "question": "Which city?",
        "prompt_version": "short_answer-1-5shot",
        "num_prompt_tokens": 7,
        "text": "Paris",
        "num_tokens": 2,
        "log_odds": {"sequence": float(np.log(p / (1 - p))), "choice": None},
        "log_sq_norms": {
            "sequence": {scaling: log_norm + less for scaling, less in SCALINGS.items()},
            "choice": dict.fromkeys(SCALINGS),
        },
        "token_log_probs": (-0.5, -1.5),
        "token_entropies": (0.25, 1.25),
        "choice_log_probs": None,
        "correct": correct,
        "judgement": Judgement(correct, "exact_match", False, float(correct), ""),
        "samples": tuple(Sample(text, -float(k), 1) for k, text in enumerate(texts)),
        "self_assessment": said or assessment(),
    }
    return MeasuredAnswer(**fields | changes)


def assessment(true=0.03, false=0.01, ideas=None, confidence=0.8):
    """Options of the given probabilities; `ideas` are those of the second form."""
    pair = None if ideas is None else OptionLogProbs(*map(float, np.log(ideas)))
    plain = OptionLogProbs(float(np.log(true)), float(np.log(false)))
    return SelfAssessment(plain, pair, confidence, f"{confidence:.0%}")


def empty_answer(**changes):
    """The measurements of an answer without text."""
    return measured(
        id="empty", text="", num_tokens=0, log_odds={}, log_sq_norms={}, token_log_probs=(),
        token_entropies=(), correct=False, samples=(), self_assessment=SelfAssessment(),
        reasons=("the answer is empty",), **changes,
    )  # fmt: skip


def values(score, answers):
    return score.values(answers, np.array([not answer.correct for answer in answers]))
