"""Numbers of questions: AUROC, reliability of references, replies about given answers, and the rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PyTree

from isounc.llm.answers.logistic import share_smaller
from isounc.statistics import compare, interval_over_seeds
from isounc.studies.world.corpus import IS_TRUE, NUM_ANSWERS, YES, World
from isounc.studies.world.scores import p_true_of, reference

FEWEST = 10
"""Wrong answers, and right ones, that an AUROC needs."""
SPLITS = 10
"""Splits of the members into halves."""
REFERENCES = ("trace", "mi", "var_p")
"""Numbers of a reference."""


def auroc(values: Float[np.ndarray, " N"], wrong: Bool[np.ndarray, " N"]) -> float | None:
    """Probability that a wrong answer has a higher value than a right one, ties counting half.

    None where there are fewer than `FEWEST` of either, or a value is not finite.
    """
    if min(wrong.sum(), (~wrong).sum()) < FEWEST or not np.isfinite(values).all():
        return None
    return float(share_smaller(values[wrong], values[~wrong]).mean())


def reliability(
    log_probs: Float[np.ndarray, "M Q C"],
    answer: np.ndarray,
    wheres: Mapping[str, Bool[np.ndarray, " Q"]],
    seed: int,
) -> dict[str, dict[str, float | None]]:
    """Split-half reliability of each number of a reference, 2 r / (1 + r), by condition.

    r is the mean rank correlation between the references of the two halves, over `SPLITS` splits. It
    lies below the rank correlation of the whole reference with one of as many new members: the formula
    is that of means, whose errors fall as 1 / n, where those of variances over n members fall as
    1 / (n - 1); and of an odd number of members one is left out.
    """
    rng = np.random.default_rng(seed)
    half = len(log_probs) // 2
    found: dict[str, dict[str, list[float | None]]] = {
        name: {number: [] for number in REFERENCES} for name in wheres
    }
    for _ in range(SPLITS):
        order = rng.permutation(len(log_probs))
        a, b = (reference(log_probs[order[i * half :][:half]], answer) for i in range(2))
        for name, where in wheres.items():
            for number in REFERENCES:
                pair = (getattr(one, number)[where] for one in (a, b))
                found[name][number].append(compare(*pair).spearman)
    return {
        name: {number: _stepped_up(rs) for number, rs in numbers.items()}
        for name, numbers in found.items()
    }


def _stepped_up(rs: list[float | None]) -> float | None:
    known = [r for r in rs if r is not None]
    if len(known) < len(rs) or np.mean(known) <= -1:
        return None
    r = float(np.mean(known))
    return 2 * r / (1 + r)


class Asked(NamedTuple):
    """P(True) of given answers, where the decoder's own answer plays no part."""

    of_true: Float[np.ndarray, " Q"]
    """P(True) of the true answer of each question."""
    of_false: Float[np.ndarray, " Q"]
    """P(True) of an answer drawn from the others of its pool."""
    taught: float
    """Share of right replies to the sentences of the training that ask whether an answer is true."""

    def numbers(self, where: Bool[np.ndarray, " Q"]) -> dict[str, float | None]:
        """The share of right replies, and the AUROC of 1 - P(True) for the false ones."""
        true, false = self.of_true[where], self.of_false[where]
        right = np.concatenate([true > 0.5, false < 0.5])
        is_false = np.repeat([False, True], len(true))
        return {
            "asked_accuracy": float(right.mean()) if len(right) else None,
            "asked_auroc": auroc(1 - np.concatenate([true, false]), is_false),
            "taught_accuracy": self.taught,
        }


def ask(graphdef: nnx.GraphDef, params: PyTree[Array], world: World, seed: int) -> Asked:
    """Ask a decoder about the true answer of every question and about a false one."""
    rng = np.random.default_rng(seed)
    false = (world.truth + rng.integers(1, NUM_ANSWERS, len(world.truth))) % NUM_ANSWERS
    of_true, of_false = (
        p_true_of(graphdef, params, _spelled(world, answer)) for answer in (world.truth, false)
    )
    claims = world.claims[world.claims[:, 5] == IS_TRUE]
    replies = p_true_of(graphdef, params, claims[:, :5])
    return Asked(of_true, of_false, float(((replies > 0.5) == (claims[:, 6] == YES)).mean()))


def _spelled(world: World, answer: Int[np.ndarray, " Q"]) -> Int[np.ndarray, "Q 5"]:
    return np.concatenate([world.prompts, world.answers[world.relation, answer]], axis=1)


def numbers_of_rule(
    log_probs: Float[np.ndarray, "M Q C"], world: World, where: Bool[np.ndarray, " Q"]
) -> dict[str, float | None]:
    """How well all members, and not only those judged, answer questions of the rule.

    Parameters
    ----------
    where
        Questions whose truth follows by the rule.

    Returns
    -------
    dict
        The mean accuracy, its lower 95% bound over members (Student's), and the accuracy on the
        premises of these questions.
    """
    right = log_probs.argmax(2) == world.truth
    found = interval_over_seeds(right[:, where].mean(1), kind="mean")
    return {
        "members_accuracy": found.mean,
        "members_low": found.low,
        "premise_accuracy": float(right[:, world.premise[where]].mean()),
    }
