"""Metrics of predictions on labelled data: negative log likelihood, calibration error, and values class by class."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from isounc.checks import check_choice
from isounc.problems import LIKELIHOODS

PROBABILITY_RTOL = 1e-6
"""How far above 1 a probability computed in float32 may lie."""
MIN_PROBABILITY = 2.0**-24
"""Where probabilities are clipped before their log: a float32 sigmoid reaches 0 and 1 exactly."""


def class_views(
    p: Float[ArrayLike, "N M"], values: Float[ArrayLike, "N M"], likelihood: str
) -> dict[str, Float[np.ndarray, " N"]]:
    """Per-column values as the classes that result rows report.

    ``bernoulli``: {"1"}. ``gaussian``: {"f"}. ``categorical``: "trace" (sum over the classes),
    "predicted" (column argmax_c p[n, c], the lowest of equals), then each class "0", "1", ... To
    compare two sets of values give both the same ``p``, that of the point estimate: otherwise
    "predicted" is not one class.

    Raises
    ------
    ValueError
        Unknown likelihood, or shapes that differ or do not fit it.
    """
    check_choice("likelihood", likelihood, LIKELIHOODS)
    p, values = _columns("p", p, likelihood), _columns("values", values, likelihood)
    if p.shape != values.shape:
        raise ValueError(f"values must have the shape of p, {p.shape}; got {values.shape}")
    if likelihood != "categorical":
        return {"1" if likelihood == "bernoulli" else "f": values[:, 0]}
    predicted = np.take_along_axis(values, p.argmax(axis=1, keepdims=True), axis=1)[:, 0]
    views = {"trace": values.sum(axis=1), "predicted": predicted}
    return views | {str(c): values[:, c] for c in range(values.shape[1])}


def negative_log_likelihood(
    p: Float[ArrayLike, "N M"],
    y: Real[ArrayLike, " N"],
    *,
    likelihood: str,
    noise_sd: float | None = None,
    p_var: Float[ArrayLike, "N M"] | None = None,
) -> float:
    r"""Mean negative log probability (density) of the targets under a prediction, in nats.

        bernoulli     -mean_n log(p_n if y_n = 1 else 1 - p_n)
        categorical   -mean_n log p[n, y_n]
        gaussian       mean_n (log(2 pi v_n) + (y_n - p_n)^2 / v_n) / 2,  v_n = noise_sd^2 + p_var_n

    Probabilities are clipped at `MIN_PROBABILITY`: a sure mistake costs 16.6 nats, not infinity.

    Parameters
    ----------
    p
        (N, 1) probability of class 1; (N, C) class probabilities; (N, 1) predictive mean.
    y
        Labels 0..C-1, or real targets.
    noise_sd
        Known noise standard deviation, required for gaussian and without effect otherwise.
    p_var
        Variance of the function value, in the target's unit squared; gaussian only, 0 if not given.
        (The mean probability of a label is its whole predictive and needs no variance.)

    Raises
    ------
    ValueError
        Shapes, labels, probabilities or settings that do not fit the likelihood.
    """
    check_choice("likelihood", likelihood, LIKELIHOODS)
    p = _columns("p", p, likelihood)
    if likelihood != "gaussian":
        if p_var is not None:
            raise ValueError(f"p_var must be None for {likelihood}: only gaussian has a use for it")
        probabilities = _class_probabilities(p)
        chosen = probabilities[np.arange(len(p)), _labels(y, probabilities)]
        return float(-np.log(np.clip(chosen, MIN_PROBABILITY, 1.0)).mean())
    if noise_sd is None or not 0 < noise_sd < math.inf:
        raise ValueError(f"noise_sd must be positive for gaussian; got {noise_sd!r}")
    mean, target = p[:, 0], _vector("y", y)
    f_var = np.zeros_like(mean) if p_var is None else _columns("p_var", p_var, likelihood)[:, 0]
    for name, array in (("p", mean), ("y", target), ("p_var", f_var)):
        _check_length(name, array, "p", mean)
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite; got {array[~np.isfinite(array)][0]}")
    if f_var.min() < 0:
        raise ValueError(f"p_var must not be negative; its smallest is {f_var.min():g}")
    var = noise_sd**2 + f_var
    return float(0.5 * np.mean(np.log(2 * np.pi * var) + (target - mean) ** 2 / var))


def expected_calibration_error(
    p: Float[ArrayLike, "N M"], y: Real[ArrayLike, " N"], *, num_bins: int = 15
) -> float:
    r"""Mean gap between confidence and accuracy of the predicted class, by bins; in [0, 1].

        ECE = sum_b (N_b / N) |accuracy_b - mean confidence_b|,   confidence_n = max_c p[n, c]

    Bins are ((b - 1) / num_bins, b / num_bins]. One column p(y = 1) means two classes (1 - p, p),
    whose confidences fill [1/2, 1] only. The lowest of equal classes is predicted. The value is
    biased upwards, in the order of sqrt(num_bins / N): calibrated predictions do not give 0.

    Parameters
    ----------
    p
        (N, 1) probability of class 1, or (N, C) class probabilities.
    y
        Labels 0..C-1.
    num_bins
        Number of bins of equal width on [0, 1].

    Raises
    ------
    ValueError
        Shapes, labels or probabilities that do not fit, num_bins < 1.

    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1; got {num_bins}")
    binary = np.ndim(p) == 2 and np.shape(p)[1] == 1
    probabilities = _class_probabilities(_columns("p", p, "bernoulli" if binary else "categorical"))
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    gap = (predicted == _labels(y, probabilities)) - confidence
    bins = np.searchsorted(np.arange(1, num_bins) / num_bins, confidence, side="left")
    return float(np.abs(np.bincount(bins, weights=gap)).sum() / len(gap))


def _vector(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (N,); got {array.shape}")
    return array


def _columns(name: str, values: Any, likelihood: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    many = likelihood == "categorical"
    if array.ndim != 2 or (array.shape[1] > 1) != many or array.size == 0:
        wanted = "(N, C) with C > 1" if many else "(N, 1)"
        raise ValueError(f"{name} must have shape {wanted} for {likelihood}; got {array.shape}")
    return array


def _check_length(name: str, array: np.ndarray, other: str, like: np.ndarray) -> None:
    if len(array) != len(like):
        raise ValueError(f"{name} must be as long as {other}, {len(like)}; got {len(array)}")


def _class_probabilities(p: np.ndarray) -> np.ndarray:
    """Checked probabilities of two classes or more."""
    # A negated test, so that NaN is caught too.
    if not (p.min() >= 0 and p.max() <= 1 + PROBABILITY_RTOL):
        raise ValueError(f"p must be probabilities in [0, 1]; got {p.min():g} to {p.max():g}")
    if p.shape[1] == 1:
        return np.concatenate([1 - p, p], axis=1)
    off = np.abs(p.sum(axis=1) - 1).max()
    if off > 1e-3:
        raise ValueError(f"p must sum to 1 over the classes; a location is off by {off:g}")
    return p


def _labels(y: Any, probabilities: np.ndarray) -> np.ndarray:
    labels, num_classes = _vector("y", y), probabilities.shape[1]
    _check_length("y", labels, "p", probabilities)
    wrong = ~np.isin(labels, np.arange(num_classes))
    if wrong.any():
        raise ValueError(f"y must be labels 0..{num_classes - 1}; got {labels[wrong][0]:g}")
    return labels.astype(np.int64)
