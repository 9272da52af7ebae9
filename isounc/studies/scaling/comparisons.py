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
from isounc.sampling.moments import Moments, TwoValued, two_valued
from isounc.statistics import Comparison, compare

RESULT_COLUMNS = (
    *("problem", "width", "depth", "activation", "parameterisation", "prior_sd", "seed"),
    *("point", "region", "estimator", "quantity", "class", "n_points"),
    *("pearson", "spearman", "log10_pearson", "n_dropped", "slope", "attenuation", "reason"),
    *("gate", "sampler", "rhat_max", "ess_min", "seconds", "nll", "ece", "mcmc_nll", "mcmc_ece"),
    *("partial_pearson", "partial_spearman"),
    *("pearson_sd", "two_valued_share", "two_valued_undecided"),
    *("pearson_from_two_valued", "spearman_from_two_valued"),
    *(f"{name}_not_two_valued" for name in (*Comparison._fields[:-1], "pearson_sd")),
    *("n", "grid_margin", "num_params"),
)
"""Columns of `results.csv`, in order."""
TEXT_COLUMNS = (
    *("problem", "activation", "parameterisation", "point", "region", "estimator", "quantity"),
    *("class", "reason", "gate", "sampler", "reason_not_two_valued"),
)
"""Columns that hold text: class "1" is a label, not a number."""


SD = "epistemic_sd"
"""The quantity of a comparison on the scale of the standard deviation: ||grad p|| against sd(p)."""
WITH_SD = ("isotropic", "null_aleatoric", "logit_scaled")
"""Estimators that are also compared as standard deviations, where that is asked for."""


def quantities(point: str, estimator: str, *, with_sd: bool = False) -> tuple[str, ...]:
    """Return the fields of an estimate that are compared with the reference."""
    fields = ESTIMATORS[estimator].quantities
    # At single draws only the estimator that stands for the point has its aleatoric part compared.
    fields = fields if point != "draw" or "aleatoric" in fields else ("epistemic",)
    return (*fields, SD) if with_sd and estimator in WITH_SD else fields


def _reference(moments: Moments, quantity: str) -> np.ndarray:
    if quantity in ("epistemic", SD):
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
    Partial correlations of epistemic parts are given p (1 - p) at the point, of the same class. For
    the quantity `epistemic_sd` square roots of all of them are compared, after sums over classes.
    Of class probabilities, `two_valued_share` is the share of the locations at which the posterior
    is nearly two-valued (`isounc.two_valued`), `two_valued_undecided` the share at which Monte
    Carlo error could decide otherwise, `_not_two_valued` marks the comparison over the other
    locations, and `_from_two_valued` is the correlation over all less that over the others.
    """
    reference = _reference(moments, quantity)
    with_se = quantity == "epistemic"
    by_class: dict[str, list[Comparison]] = {}
    places: dict[str, list[TwoValued]] = {}
    for estimate in alternatives:
        field = "epistemic" if quantity == SD else quantity
        estimates = class_views(estimate.prob, getattr(estimate, field), likelihood)
        references = class_views(estimate.prob, reference, likelihood)
        nulls = class_views(estimate.prob, estimate.aleatoric, likelihood)
        # Errors of classes are correlated; the sum's error is bounded by adding them up.
        ses = class_views(estimate.prob, moments.var_se, likelihood)
        if quantity == SD:
            # A variance that is a sum of squares of differences may be a hair below zero.
            estimates, references, nulls = (
                {name: np.sqrt(np.maximum(v, 0)) for name, v in views.items()}
                for views in (estimates, references, nulls)
            )
        two_valued_at = two_valued(moments, likelihood, p=estimate.prob)
        for name in estimates:
            if not per_class and "trace" in estimates and name not in ("trace", "predicted"):
                continue
            se = ses[name] if with_se else None
            here = two_valued_at.get(name)
            mask = None if here is None else here.mask
            leaves_none_out = mask is not None and not mask.any()
            comparison = compare(
                estimates[name],
                references[name],
                reference_se=se,
                given=nulls[name] if quantity in ("epistemic", SD) else None,
                two_valued=None if leaves_none_out else mask,
            )
            if leaves_none_out:
                comparison = comparison._replace(not_two_valued=comparison)
            by_class.setdefault(name, []).append(comparison)
            if here is not None:
                places.setdefault(name, []).append(here)
    return {name: row_numbers(c, places.get(name, ())) for name, c in by_class.items()}


def row_numbers(
    comparisons: Sequence[Comparison], places: Sequence[TwoValued] = ()
) -> dict[str, Any]:
    """The numbers of a row: averages over alternatives, also without the two-valued locations."""
    numbers = _averaged(comparisons)
    rest = [c.not_two_valued for c in comparisons if c.not_two_valued is not None]
    if not rest:
        return numbers
    numbers["two_valued_share"] = float(np.mean([place.share for place in places]))
    numbers["two_valued_undecided"] = float(np.mean([place.undecided for place in places]))
    without = _averaged(rest)
    for name in ("pearson", "spearman"):
        if numbers[name] is not None and without[name] is not None:
            numbers[f"{name}_from_two_valued"] = numbers[name] - without[name]
    return numbers | {f"{name}_not_two_valued": value for name, value in without.items()}


def _averaged(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Average each number over several comparisons, with Pearson's sd; one is left as it is."""
    if len(comparisons) == 1:
        numbers = comparisons[0]._asdict()
        del numbers["not_two_valued"]
        return numbers | {"pearson_sd": None}
    numbers: dict[str, Any] = {}
    for name in Comparison._fields[:-2]:
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
