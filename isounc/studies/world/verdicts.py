"""The hypotheses, as bounds on a number of each world."""

from __future__ import annotations

from typing import NamedTuple

RIVALS = ("log_p", "entropy", "p_true", "moderated", "log_sq_norm")
"""Scores that the combined estimate is held against."""
NEAR = 0.05
"""AUROC that counts as near."""
STRONG = 0.7
"""Rank correlation that counts as strong: it explains half of the variance of the ranks."""
UNLIKE = 0.5
"""Rank correlation below which two scores are unlike."""
SIGNED = (
    *("log_p", "entropy", "null", "logit_norm", "sq_norm", "log_sq_norm", "odds_sq_norm", "total"),
    *("logit_scaled", "moderated", "p_true", "frequency"),
)
"""Scores of which it is asked whether they point right."""


class Hypothesis(NamedTuple):
    """A claim that a number lies above a bound, or below it."""

    claim: str
    """The claim in words."""
    column: str
    """The number of a row."""
    bound: float
    """Bound on the number."""
    scores: tuple[str, ...]
    """Scores that it is about."""
    conditions: tuple[str, ...]
    """Conditions that it is about."""
    rivals: tuple[str, ...] = ("",)
    """Scores whose number is subtracted; the empty name for none."""
    below: bool = False
    """Whether the number lies below the bound."""
    parts: tuple[str, ...] = ("all",)
    """Parts of the questions: all, below or above p = 1/2."""


HYPOTHESES = {
    "combined best in conflict": Hypothesis(
        "σ²‖∇p‖² + p(1−p) ranks wrong answers better than this score where answers conflict",
        "auroc", 0.0, ("total",), ("conflict16",), RIVALS,
    ),
    "chance on recall": Hypothesis(
        "its AUROC on recall is at most .05 above one half", "auroc", 0.5 + NEAR,
        ("total",), ("recall",), below=True,
    ),
    "unlike self-assessment": Hypothesis(
        "its rank correlation with 1 − P(True) is below one half", "with_p_true", UNLIKE,
        ("total",), ("all",), below=True,
    ),
    "points right": Hypothesis(
        "higher values mean wrong: AUROC above one half", "auroc", 0.5, SIGNED,
        ("all", "recall", "conflict16", "conflict4", "misconception", "rule"),
        parts=("all", "below", "above"),
    ),
    "learns self-assessment": Hypothesis(
        "P(True) ranks a random false answer below the true one: AUROC above one half over questions "
        "that were told and have no sentences of self-assessment", "asked_auroc", 0.5, ("p_true",),
        ("told",),
    ),
    "turned by temperature": Hypothesis(
        "AUROC at the highest temperature less that at the lowest is below zero", "auroc_turn", 0.0,
        ("null", "sq_norm", "log_sq_norm", "total", "logit_scaled", "moderated"), ("all",),
        below=True,
    ),
    "near the oracle": Hypothesis(
        "AUROC at most .05 below the oracle's", "below_oracle", -NEAR, SIGNED,
        ("conflict16", "conflict4"),
    ),
    "norm beyond p": Hypothesis(
        "the rank correlation with Σ_c Var p_c of the other members, given p(1−p), is above zero",
        "partial_trace", 0.0, ("sq_norm", "log_sq_norm", "odds_sq_norm", "logit_scaled"), ("all",),
    ),
    "near theta*": Hypothesis(
        "the rank correlation of this score with Var p of chains around θ* is above .7", "near",
        STRONG, ("sq_norm",), ("all",),
    ),
    "near theta*, HMC": Hypothesis(
        "the rank correlation of this score with Var p by Hamiltonian Monte Carlo is above .7",
        "near_hmc", STRONG, ("sq_norm",), ("all",),
    ),
    "beyond p, HMC": Hypothesis(
        "that rank correlation, given p(1−p), is above zero", "beyond_hmc", 0.0,
        ("sq_norm", "log_sq_norm", "odds_sq_norm", "logit_scaled"), ("all",),
    ),
    "nearer than seeds": Hypothesis(
        "this score's rank correlation with Σ_c Var p_c of chains around θ* is above that with "
        "Σ_c Var p_c of the other members", "nearer", 0.0,
        ("sq_norm", "log_sq_norm", "logit_scaled", "null"), ("all",),
    ),
    "nearer than seeds, Var p": Hypothesis(
        "the same of Var p of the answer", "nearer_var_p", 0.0,
        ("sq_norm", "log_sq_norm", "logit_scaled", "null"), ("all",),
    ),
    "unknown from conflict": Hypothesis(
        "tells what was never told from what is told in conflict better than entropy", "auroc", 0.0,
        ("sq_norm", "log_sq_norm", "odds_sq_norm", "logit_scaled", "moderated"), ("unknown",),
        ("entropy",),
    ),
    "better with size": Hypothesis(
        "the rank correlation of this score with Σ_c Var p_c rises with log2 of the width, at equal "
        "accuracy", "slope", 0.0, ("sq_norm", "logit_scaled", "null"), ("all",),
    ),
}  # fmt: skip
"""Hypotheses by name; the study's docstring states them."""
