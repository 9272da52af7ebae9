"""The result rows of one cell compare every estimate with its reference, class by class."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from isounc.estimates.estimators import ESTIMATORS, Estimate
from isounc.likelihoods import LIKELIHOODS
from isounc.metrics import class_views, expected_calibration_error, negative_log_likelihood
from isounc.problems import Problem
from isounc.sampling.moments import Moments
from isounc.statistics import Comparison, compare

RESULT_COLUMNS = (
    *("problem", "width", "depth", "activation", "parameterisation", "prior_sd", "seed"),
    *("point", "region", "estimator", "quantity", "class", "n_points"),
    *("pearson", "spearman", "log10_pearson", "n_dropped", "slope", "attenuation", "reason"),
    *("gate", "rhat_max", "ess_min", "seconds", "nll", "ece", "mcmc_nll", "mcmc_ece"),
    "pearson_sd",
)
"""Columns of `results.csv`, in order."""
TEXT_COLUMNS = (
    *("problem", "activation", "parameterisation", "point", "region", "estimator", "quantity"),
    *("class", "reason", "gate"),
)
"""Columns that hold text: class "1" is a label, not a number."""


def quantities(point: str, estimator: str) -> tuple[str, ...]:
    """Return the fields of an estimate that are compared with the reference."""
    fields = ESTIMATORS[estimator].quantities
    # At single draws only the estimator that stands for the point has its aleatoric part compared.
    return fields if point != "draw" or "aleatoric" in fields else ("epistemic",)


def _reference(moments: Moments, quantity: str) -> np.ndarray:
    if quantity == "epistemic":
        return moments.var
    if quantity == "total":
        # This is exactly p(1-p) of the averaged prediction; for regression it is the predictive
        # variance plus that of the noise.
        return moments.aleatoric + moments.var
    return moments.aleatoric


def compare_classes(
    likelihood: str,
    alternatives: Sequence[Estimate],
    moments: Moments,
    quantity: str,
    *,
    per_class: bool,
) -> dict[str, dict[str, Any]]:
    """Compare a quantity with its reference, class by class.

    Numbers are averaged over alternative points (draws), whose spread is given as `pearson_sd`.
    Unless `per_class`, classes that have a trace are compared by it and by the predicted class.
    """
    reference = _reference(moments, quantity)
    with_se = quantity == "epistemic"
    by_class: dict[str, list[Comparison]] = {}
    for estimate in alternatives:
        estimates = class_views(estimate.prob, getattr(estimate, quantity), likelihood)
        references = class_views(estimate.prob, reference, likelihood)
        # Errors of classes are correlated; the sum's error is bounded by adding them up.
        ses = class_views(estimate.prob, moments.var_se, likelihood)
        for name in estimates:
            if not per_class and "trace" in estimates and name not in ("trace", "predicted"):
                continue
            se = ses[name] if with_se else None
            comparison = compare(estimates[name], references[name], reference_se=se)
            by_class.setdefault(name, []).append(comparison)
    return {name: _averaged(comparisons) for name, comparisons in by_class.items()}


def _averaged(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Average each number over several comparisons, with Pearson's sd; one is left as it is."""
    if len(comparisons) == 1:
        return comparisons[0]._asdict() | {"pearson_sd": None}
    numbers: dict[str, Any] = {}
    for name in Comparison._fields[:-1]:
        values = [v for c in comparisons if (v := getattr(c, name)) is not None]
        if name == "slope" and values:
            numbers[name] = math.exp(np.mean(np.log(values)))
        else:
            numbers[name] = float(np.mean(values)) if values else None
    defined = [c.pearson for c in comparisons if c.pearson is not None]
    numbers["pearson_sd"] = float(np.std(defined, ddof=1)) if len(defined) > 1 else None
    reasons = sorted({c.reason for c in comparisons if c.reason})
    undefined = sum(bool(c.reason) for c in comparisons)
    numbers["reason"] = (
        f"undefined at {undefined} of {len(comparisons)} draws: {'; '.join(reasons)}"
        if reasons
        else ""
    )
    return numbers


def predictive_row(
    problem: Problem,
    region: str,
    predictions: Sequence[Float[Array | np.ndarray, "N M"]],
    moments: Moments,
) -> dict[str, Any]:
    """Score predictions of a point and of the posterior at the labelled locations of a region."""
    y, likelihood = problem.targets[region], problem.likelihood
    nll = functools.partial(
        negative_log_likelihood, y=y, likelihood=likelihood, noise_sd=problem.noise_sd
    )
    row: dict[str, Any] = {
        "estimator": "prediction",
        "quantity": "predictive",
        "class": "all" if problem.num_classes else LIKELIHOODS[likelihood].quantity,
        "n_points": len(y),
        "nll": float(np.mean([nll(p) for p in predictions])),
        "mcmc_nll": nll(moments.mean, p_var=moments.var),
    }
    if problem.num_classes:
        row["ece"] = float(np.mean([expected_calibration_error(p, y) for p in predictions]))
        row["mcmc_ece"] = expected_calibration_error(moments.mean, y)
    return row
