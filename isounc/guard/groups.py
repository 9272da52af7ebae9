"""Thresholds of their own for groups of questions, such as subjects, languages or customers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from isounc.checks import real_vector
from isounc.guard.guard import Guard
from isounc.guard.sample import Values, check_share


@dataclass(frozen=True)
class GroupGuard:
    """A `Guard` for each group."""

    guards: Mapping[str, Guard]
    """By name of the group."""

    @classmethod
    def fit(
        cls,
        scores: Values,
        correct: Values,
        groups: Any,
        *,
        confidence: float = 0.9,
        simultaneous: bool = True,
        **promise: Any,
    ) -> GroupGuard:
        """Fit a guard to the answers of each group.

        Parameters
        ----------
        scores, correct
            As in `Guard.fit`.
        groups
            Name of the group of each answer.
        confidence
            Probability that the promise is kept: in all groups at once if `simultaneous`, for which
            each has confidence 1 - (1 - confidence) / G (Bonferroni), else in each by itself.
        simultaneous
            See above.
        **promise
            The other arguments of `Guard.fit`.

        Raises
        ------
        ValueError
            As `Guard.fit`, or if groups are no names, one for each answer.
        """
        check_share("confidence", confidence)
        names = _names(groups)
        values, labels = real_vector("scores", scores), real_vector("correct", correct)
        if not len(values) == len(labels) == len(names):
            raise ValueError(
                "groups must hold a name for each answer, as scores and correct have them, got "
                f"{len(names)} for {len(values)} and {len(labels)}"
            )
        known = sorted(set(names))
        each = 1 - (1 - confidence) / (len(known) if simultaneous else 1)
        where = np.array(names)
        return cls(
            {
                name: Guard.fit(
                    values[where == name], labels[where == name], confidence=each, **promise
                )
                for name in known
            }
        )

    def accept(self, scores: Values, groups: Any) -> Bool[np.ndarray, " N"]:
        """Whether each answer is accepted, by the threshold of its group.

        Raises
        ------
        ValueError
            A group was not in the calibration sample, so that nothing is known of its risk.
        """
        values, names = real_vector("scores", scores), _names(groups)
        if len(values) != len(names):
            raise ValueError(
                f"groups must hold a name for each score, got {len(names)} for {len(values)}"
            )
        unknown = sorted(set(names) - set(self.guards))
        if unknown:
            raise ValueError(
                f"groups must be among those of the calibration sample ({', '.join(self.guards)}), "
                f"got {', '.join(unknown[:4])}"
            )
        accepted = np.zeros(len(values), bool)
        where = np.array(names)
        for name in set(names):
            accepted[where == name] = self.guards[name].accept(values[where == name])
        return accepted


def _names(groups: Any) -> list[str]:
    values = np.asarray(groups)
    if values.ndim != 1 or values.dtype.kind not in "UOiub":
        raise ValueError(
            f"groups must be a list of names, got shape {values.shape}, dtype {values.dtype}"
        )
    return [str(value) for value in values]
