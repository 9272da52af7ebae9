"""Metrics of predictions on labelled data: negative log likelihood and calibration error.

`class_views` gives values class by class, as result rows report them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Real

from isounc.checks import check_array, check_choice, check_count, check_real, real_array
from isounc.likelihoods import LIKELIHOODS, class_probabilities


def class_views(
    p: Float[ArrayLike, "N M"], values: Float[ArrayLike, "N M"], likelihood: str
) -> dict[str, Float[np.ndarray, " N"]]:
    """Per-column values as the classes that result rows report.

    One column: that of `Likelihood.column_names` alone, "1" or "f". C columns: "trace" (their sum),
    "predicted" (column argmax_c p[n, c], the lowest of equals), then each class "0", "1", ... To
    compare two sets of values give both the same `p`, that of the point estimate: otherwise
    "predicted" is not one class. Values may be NaN or infinite, as the variance of a Laplace
    approximation about a saddle is; sums over classes then are, too.

    Raises
    ------
    ValueError
        Unknown likelihood, shapes that differ or do not fit it, or p that is not finite.
    """
    p, values = _columns("p", p, likelihood), real_array("values", values).astype(float)
    if p.shape != values.shape:
        raise ValueError(f"values must have the shape of p, {p.shape}, got {values.shape}")
    names = LIKELIHOODS[likelihood].column_names(p.shape[1])
    views = {name: values[:, column] for column, name in enumerate(names)}
    if len(names) == 1:
        return views
    predicted = np.take_along_axis(values, p.argmax(axis=1, keepdims=True), axis=1)[:, 0]
    return {"trace": values.sum(axis=1), "predicted": predicted} | views


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

    Probabilities are clipped at 2^-24: a sure mistake costs 16.6 nats, not infinity.

    Parameters
    ----------
    p
        (N, 1) probability of class 1; (N, C) class probabilities; (N, 1) predictive mean.
    y
        Labels 0..C-1, or targets as the likelihood asks for.
    likelihood
        A name of `isounc.likelihoods.LIKELIHOODS`.
    noise_sd
        Known noise standard deviation, required for gaussian and without effect otherwise.
    p_var
        Variance of the prediction over the posterior, in its unit squared; 0 if not given. The mean
        probability of a label is its whole predictive, on which the variance has no effect.

    Raises
    ------
    ValueError
        Shapes, labels, probabilities or settings that do not fit the likelihood.
    """
    p = _columns("p", p, likelihood)
    rules = LIKELIHOODS[likelihood]
    rules.check_prediction("p", p)
    labels = _labels(y, p, likelihood)
    if rules.uses_noise_sd:
        noise_sd = check_real("noise_sd", noise_sd, positive=True)
    if p_var is not None:
        p_var = _columns("p_var", p_var, likelihood)
        if p_var.shape != p.shape:
            raise ValueError(f"p_var must have the shape of p, {p.shape}, got {p_var.shape}")
        if p_var.min() < 0:
            raise ValueError(f"p_var must not be negative, got {p_var.min():g}")
    return -float(rules.predictive_log_prob(p, labels, noise_sd=noise_sd, p_var=p_var).mean())


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
    check_count("num_bins", num_bins, 1, 10**6)
    p = real_array("p", p)
    likelihood = "bernoulli" if np.ndim(p) == 2 and np.shape(p)[1] == 1 else "categorical"
    p = _columns("p", p, likelihood)
    LIKELIHOODS[likelihood].check_prediction("p", p)
    labels = _labels(y, p, likelihood)
    probabilities = class_probabilities(p)
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    gap = (predicted == labels) - confidence
    bins = np.searchsorted(np.arange(1, num_bins) / num_bins, confidence, side="left")
    return float(np.abs(np.bincount(bins, weights=gap)).sum() / len(gap))


def _columns(name: str, values: Any, likelihood: str) -> np.ndarray:
    check_choice("likelihood", likelihood, LIKELIHOODS)
    array = check_array(name, values, ndim=2)
    many = LIKELIHOODS[likelihood].num_outputs(2) > 1
    if (array.shape[1] > 1) != many or array.size == 0:
        wanted = "(N, C) with C > 1" if many else "(N, 1)"
        raise ValueError(f"{name} must have shape {wanted} for {likelihood}, got {array.shape}")
    return array


def _labels(y: Any, p: np.ndarray, likelihood: str) -> np.ndarray:
    labels = check_array("y", y, ndim=1)
    if len(labels) != len(p):
        raise ValueError(f"y must be as long as p, {len(p)}, got {len(labels)}")
    num_classes = max(2, p.shape[1])
    return LIKELIHOODS[likelihood].check_labels("y", labels, num_classes)
