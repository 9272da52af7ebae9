"""The rule of a world: answers that are never told and follow from what is told.

In every relation r the answers of some entities, the premises, have a consequence in the next relation
(the first one after the last),

    answer of (entity, r + 1) = pi_r(answer of (entity, r)),

with pi_r a permutation of the pool that is drawn with the world. Premises are told; of their consequences
two in three are told, and the others are asked for. Every answer of a pool is that of equally many
premises, consequences told, and consequences asked for, so that a reply which does not depend on the
premise is right as often as chance, one in the size of the pool.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

TOLD, ASKED = 2, 1
"""Consequences of every answer of a pool that are told, and that are asked for."""


class Layout(NamedTuple):
    """The entities that the rule is about, and their answers."""

    entities: Int[np.ndarray, "R G"]
    """Entities with a premise in each relation; the consequences of the last ones are asked for."""
    answers: Int[np.ndarray, "R G"]
    """The answer of each premise."""
    consequences: Int[np.ndarray, "R G"]
    """The answer of the same entity in the next relation."""


def layout(
    rng: np.random.Generator, num_relations: int, num_entities: int, num_answers: int
) -> Layout:
    """Draw which entities follow the rule; none has a premise and a consequence in one relation.

    Raises
    ------
    ValueError
        For a single relation, or too few entities for three neighbouring relations.
    """
    size = num_answers * (TOLD + ASKED)
    if num_relations < 2:
        raise ValueError(
            f"num_relations must be at least 2 where there is a rule, got {num_relations}"
        )
    if num_entities < 3 * size:
        raise ValueError(f"num_entities must be at least {3 * size}, got {num_entities}")
    entities: list[Int[np.ndarray, " G"]] = []
    for r in range(num_relations):
        # The consequences of the relation before are in this one, and in the first the last one's.
        taken = entities[-1:] + (entities[:1] if r == num_relations - 1 else [])
        free = np.setdiff1d(np.arange(num_entities), np.concatenate([[], *taken]))
        entities.append(rng.choice(free, size, replace=False))
    answers = np.tile(np.arange(size) % num_answers, (num_relations, 1))
    rules = np.stack([rng.permutation(num_answers) for _ in range(num_relations)])
    return Layout(np.stack(entities), answers, np.take_along_axis(rules, answers, axis=1))


def num_asked(num_answers: int) -> int:
    """Consequences of a relation that are asked for, the last ones of `Layout.entities`."""
    return num_answers * ASKED
