"""Routers: whom to ask a question, decided before anybody has answered.

What passing a question on is worth, that the second answer is right and the first is not, is
estimated from the question alone by two logistic regressions, fitted to the guard questions:

    worth = P(second answer right | x) - P(first answer right | x)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from isounc.llm.answers.logistic import log_odds_from_others

WORDS = ("who", "what", "which", "where", "when", "how")
"""Question words."""


def question_features(questions: Sequence[str]) -> Float[np.ndarray, "N F"]:
    """The form of each question: words, letters, capitals after the first word, digits, question words."""
    rows = []
    for question in questions:
        words = question.split()
        lower = {word.strip("?,.'\"").lower() for word in words}
        capitals = sum(word[:1].isupper() for word in words[1:])
        digits = float(any(letter.isdigit() for letter in question))
        asked = [float(word in lower) for word in WORDS]
        rows.append([len(words), len(question), capitals, digits, *asked])
    return np.array(rows, float)


def worth(
    features: Float[np.ndarray, "N F"],
    correct: Bool[np.ndarray, "N 2"],
    guard: Int[np.ndarray, " G"],
    *,
    num_components: int = 0,
) -> Float[np.ndarray, " N"]:
    """What passing each question on is worth; only the guard questions are fitted to.

    Parameters
    ----------
    features
        What is known of every question.
    correct
        Whether each answerer is right; read at the guard questions alone.
    guard
        Their numbers.
    num_components
        Principal components of the guard questions' features that take their place; 0 is none.
    """
    if num_components:
        features = _components(features, guard, num_components)
    first, second = (_probability(features, correct[guard, j], guard) for j in (0, 1))
    return second - first


def _components(
    features: Float[np.ndarray, "N F"], guard: Int[np.ndarray, " G"], number: int
) -> Float[np.ndarray, "N C"]:
    known = features[guard].astype(float)
    sd = known.std(axis=0)
    scaled = (features - known.mean(axis=0)) / np.where(sd > 0, sd, 1.0)
    _, _, directions = np.linalg.svd(scaled[guard], full_matrices=False)
    return scaled @ directions[:number].T


def _probability(
    features: Float[np.ndarray, "N F"], right: Bool[np.ndarray, " G"], guard: Int[np.ndarray, " G"]
) -> Float[np.ndarray, " N"]:
    if right.all() or not right.any():
        return np.full(len(features), float(right.mean()))
    return expit(-log_odds_from_others(features[guard], ~right, features))
