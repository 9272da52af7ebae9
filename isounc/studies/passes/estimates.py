"""Estimates of the variance of p from K networks, and their correlation with the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from isounc.statistics import Comparison, compare
from isounc.studies.passes.networks import Predictions

DEGREES_OF_FREEDOM = 8
"""Degrees of freedom that `combined` gives the gradients; the variance over K networks has K - 1."""
VIEWS = ("trace", "predicted")
"""What is compared of several classes: the sum over them, and the class that the mean of p over the
networks predicts. Of a single column there is the sum alone, which is the column."""
COMPARED = ("pearson", "spearman", "partial_pearson", "partial_spearman")
"""Fields of `Comparison` that are averaged over groups of networks."""


class Kind(NamedTuple):
    """How an estimate from K networks is called, and what it costs."""

    label: str
    """Name in legends and tables."""
    backward: bool
    """Whether it takes a backward pass through each network beside the forward one."""
    program: str
    """Which of `isounc.studies.passes.networks.PROGRAMS` is timed as its cost."""
    least: int = 1
    """Fewest networks that it is defined for."""


ESTIMATES = {
    "mean_norm": Kind("mean ‖∇p‖²", True, "norm"),
    "mean_logit_scaled": Kind("mean logit-scaled", True, "logit_scaled"),
    "variance": Kind("variance of p", False, "forward", 2),
    "label_variance": Kind("null: p̄(1−p̄)", False, "forward"),
    "combined": Kind("combined", True, "logit_scaled"),
}
"""Estimates by name; the study's docstring defines them."""


def estimates_of(
    at: Predictions, reference: Predictions, *, noise_sd: float | None = None
) -> dict[str, Float[np.ndarray, "N M"]]:
    """Each of `ESTIMATES` that K networks define, at N locations.

    Parameters
    ----------
    at
        Predictions of the K networks at the locations.
    reference
        Predictions of the same networks at the training inputs, which set the level at which
        `combined` adds variances to gradients.
    noise_sd
        Known noise of a regression, whose label variance is constant; None for classes.
    """
    count = len(at.p)
    scaled, mean = at.logit_scaled.mean(axis=0), at.p.mean(axis=0)
    label = mean * (1 - mean) if noise_sd is None else np.full_like(mean, noise_sd**2)
    found = {
        "mean_norm": at.norm.mean(axis=0),
        "mean_logit_scaled": scaled,
        "label_variance": label,
        "combined": scaled,
    }
    if count >= 2:
        found["variance"] = at.p.var(axis=0, ddof=1)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # Not finite where all gradients vanish: the comparison then says so.
            level = reference.p.var(axis=0, ddof=1).sum() / reference.logit_scaled.mean(0).sum()
            found["combined"] = (
                DEGREES_OF_FREEDOM * level * scaled + (count - 1) * found["variance"]
            ) / (DEGREES_OF_FREEDOM + count - 1)
    return {name: found[name] for name in ESTIMATES if name in found}


def quality(
    predictions: Predictions,
    *,
    locations: slice,
    training: slice,
    groups: Sequence[slice],
    reference: Float[np.ndarray, "N M"],
    noise_sd: float | None,
) -> dict[tuple[str, str], dict[str, Any]]:
    """Correlations of each estimate with the reference, averaged over groups of networks.

    They have the view, one of `VIEWS`, and the name of the estimate for a key.

    Parameters
    ----------
    predictions
        Those of all networks, at all locations and the training inputs.
    locations, training
        Where the locations of a region and the training inputs are among them.
    reference
        The MCMC variance at the region's locations.
    """
    found: dict[tuple[str, str], list[Comparison]] = {}
    for group in groups:
        at = predictions.at(group, locations)
        values = estimates_of(at, predictions.at(group, training), noise_sd=noise_sd)
        mean = at.p.mean(axis=0)
        target, given = (_views(mean, v) for v in (reference, values["label_variance"]))
        for name, value in values.items():
            for view, estimate in _views(mean, value).items():
                comparison = compare(estimate, target[view], given=given[view])
                found.setdefault((view, name), []).append(comparison)
    return {key: _averaged(comparisons) for key, comparisons in found.items()}


def _views(
    p: Float[np.ndarray, "N M"], values: Float[np.ndarray, "N M"]
) -> dict[str, Float[np.ndarray, " N"]]:
    """Values by `VIEWS`, given the prediction p that chooses the class."""
    views = {"trace": values.sum(axis=1)}
    if values.shape[1] > 1:
        predicted = np.take_along_axis(values, p.argmax(axis=1, keepdims=True), axis=1)
        views["predicted"] = predicted[:, 0]
    return views


def _averaged(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Means over the groups in which a number is defined."""
    numbers: dict[str, Any] = {}
    for field in COMPARED:
        values = [v for c in comparisons if (v := getattr(c, field)) is not None]
        numbers[field] = float(np.mean(values)) if values else None
    undefined = [c for c in comparisons if c.pearson is None]
    reasons = "; ".join(sorted({c.reason for c in undefined}))
    where = f"in {len(undefined)} of {len(comparisons)} groups: " if len(comparisons) > 1 else ""
    return numbers | {
        "num_groups": len(comparisons),
        "num_groups_undefined": len(undefined),
        "reason": f"{where}{reasons}" if undefined else "",
    }
