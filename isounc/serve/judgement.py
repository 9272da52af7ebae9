"""What a client is told about an answer: scores, tokens, and the guard's decision."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from isounc.guard.guard import Guard
from isounc.llm.answers import isotropic_scores
from isounc.llm.answers.answer import MeasuredAnswer
from isounc.llm.answers.baseline_scores import baseline_scores
from isounc.llm.answers.scores import Score
from isounc.llm.model.load import LanguageModel
from isounc.serve.settings import ESTIMANDS


def served_scores() -> dict[str, Score]:
    """The scores that are served, by name: those of one answer that need no constant and no sample.

    They are the ones of the tables of question answering, so that a guard can be fitted to either.
    """
    scores = [
        make(estimand)
        for estimand in ESTIMANDS
        for make in (
            isotropic_scores.epistemic, isotropic_scores.epistemic_log, isotropic_scores.aleatoric
        )
    ]  # fmt: skip
    wanted = (
        "log_prob",
        "mean_log_prob",
        "mean_token_entropy",
        "max_token_entropy",
        "answer_length",
    )
    scores += [score for score in baseline_scores() if score.name in wanted]
    return {score.name: score for score in scores}


class Judge:
    """Scores an answer, and asks the guard whether to accept it.

    Raises
    ------
    ValueError
        The guard was fitted to another model or to a score that is not served, or takes it in the
        wrong direction.
    """

    def __init__(self, model: LanguageModel, guard: Guard | None):
        self.model, self.guard = model, guard
        self._scores = served_scores()
        self.certificate = ""
        """SHA-256 of the certificate."""
        if guard is not None:
            self._check_guard(guard)
            text = json.dumps(guard.certificate.to_json(), sort_keys=True)
            self.certificate = hashlib.sha256(text.encode()).hexdigest()

    def _check_guard(self, guard: Guard) -> None:
        certificate = guard.certificate
        if certificate.model not in ("", self.model.name, self.model.sha256):
            raise ValueError(
                f"guard must be fitted to answers of {self.model.name}, got one of "
                f"{certificate.model!r}"
            )
        score = self._scores.get(certificate.score)
        if score is None:
            raise ValueError(
                f"guard must be fitted to a score of the service ({', '.join(self._scores)}), got "
                f"{certificate.score!r}"
            )
        if score.higher_is_certain == certificate.higher_is_uncertain:
            word, act = ("certain", "with") if score.higher_is_certain else ("uncertain", "without")
            raise ValueError(
                f"guard must take {score.name} as high where the model is {word}, got the opposite: "
                f"fit it again {act} --higher-is-certain"
            )

    def scores(self, answer: MeasuredAnswer) -> dict[str, float]:
        """The scores that are defined."""
        values = {
            name: float(score.values([answer], np.zeros(1, bool))[0])
            for name, score in self._scores.items()
        }
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def uncertainty(self, answer: MeasuredAnswer, pieces: list[str]) -> dict[str, Any]:
        """The object `uncertainty` of an answer, in which `pieces` are the texts of its tokens."""
        scores = self.scores(answer)
        return {
            "scores": {name: finite(value) for name, value in scores.items()},
            "tokens": [
                {
                    "token": piece,
                    "logprob": finite(log_p),
                    "entropy": finite(entropy),
                    "log_sq_norm_logits": finite(of_logits),
                    "log_sq_norm_head": finite(of_head),
                }
                for piece, log_p, entropy, of_logits, of_head in zip(
                    pieces,
                    answer.token_log_probs,
                    answer.token_entropies,
                    answer.token_log_sq_norms_logits,
                    answer.token_log_sq_norms_head,
                    strict=True,
                )
            ],
            "decision": self.decision(scores),
            "guard": self._summary(scores),
        }

    def decision(self, scores: Mapping[str, float]) -> str | None:
        """Accept or abstain; None without a guard."""
        if self.guard is None:
            return None
        value = scores.get(self.guard.certificate.score)
        # An undefined score vouches for nothing.
        accepted = value is not None and bool(self.guard.accept([value])[0])
        return "accept" if accepted else "abstain"

    def _summary(self, scores: Mapping[str, float]) -> dict[str, Any] | None:
        if self.guard is None:
            return None
        certificate = self.guard.certificate
        value, threshold = scores.get(certificate.score), certificate.threshold
        return {
            "score": certificate.score,
            "value": None if value is None else finite(value),
            "threshold": None if threshold is None else finite(threshold),
            "accepts": "at or below" if certificate.higher_is_uncertain else "at or above",
            "target_risk": certificate.target_risk,
            "confidence": certificate.confidence,
            "certificate": self.certificate,
        }


def finite(value: float) -> float:
    """The number, or the largest one that JSON can hold in place of an infinite one."""
    return float(np.clip(value, -1.7976931348623157e308, 1.7976931348623157e308))
