r"""Scores of inputs, each with its equation, its source, what it needs and what higher values mean.

Notation: logits f(x) = h(x) V + b of C classes, p = softmax(f), k the predicted class argmax f, h
the features, V and b the read-out, theta all parameters, u = 1/C; e_k is the k-th unit vector.
Covariances, neighbours and means are those of the training inputs alone; no number of a score is
fitted to inputs out of distribution, and none to those that judge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp, softmax, xlogy

from isounc.checks import check_choice, check_count
from isounc.estimates.links import softmax_normal_moments
from isounc.estimates.scale_rules import unit_var
from isounc.likelihoods import LIKELIHOODS
from isounc.precision import double_precision

Values = Float[np.ndarray, " N"]


class Options(NamedTuple):
    """Numbers of the scores that were fixed beforehand."""

    knn_k: int
    """Which of the nearest neighbours counts."""
    temperature: float
    """T of ODIN."""


class Signals(NamedTuple):
    """What scores are made from: a network at N inputs, of which the first n are those of training."""

    y: Int[np.ndarray, " n"]
    """Labels of the training inputs."""
    logits: Float[np.ndarray, "N C"]
    """f(x)."""
    hidden: Float[np.ndarray, "N F"]
    """h(x)."""
    gram: Float[np.ndarray, "N C C"]
    """Products of the gradients of the logits with respect to all parameters."""
    kernel: Float[np.ndarray, "F C"]
    """V."""
    bias: Float[np.ndarray, " C"]
    """b."""
    perturbed: Float[np.ndarray, "N C"] | None = None
    """Logits at the inputs that ODIN moved."""
    members: Float[np.ndarray, "E N C"] | None = None
    """Logits of an ensemble."""
    passes: Float[np.ndarray, "T N C"] | None = None
    """Logits of passes with dropout."""
    mcmc_var: Float[np.ndarray, " N"] | None = None
    """Variance of p over the posterior, summed over classes; NaN at the training inputs."""


class Undefined(ValueError):
    """Why a score has no values here."""


class Score(NamedTuple):
    """A number for each input."""

    label: str
    """Name in figures and tables."""
    higher: str
    """What higher values are to mean by its source: "out" of distribution or "in" it."""
    equation: str
    """Definition."""
    source: str
    """Where it is from, and what was fixed after it."""
    compute: Callable[[Signals, Options], Values]
    """The values at all inputs."""
    needs: str = ""
    """The field of `Signals` without which there is none, where one may be missing."""


def evaluate_score(name: str, signals: Signals, options: Options) -> Values:
    """Compute a score at all inputs, in float64.

    Raises
    ------
    ValueError
        For an unknown score, a k above n, signals that are missing; an `Undefined` where the data
        have no such score (a class with too few examples, gradients of zero).
    """
    check_choice("scores", name, SCORES)
    score = SCORES[name]
    if score.needs and getattr(signals, score.needs) is None:
        raise ValueError(f"signals must have {score.needs} for the score {name!r}, got none")
    arrays: dict[str, Any] = {
        field: value if value is None or field == "y" else np.asarray(value, np.float64)
        for field, value in signals._asdict().items()
    }
    return score.compute(Signals(**arrays), options)


def _predicted(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p, and which entry is that of the predicted class."""
    return softmax(logits, axis=1), np.eye(logits.shape[1], dtype=bool)[logits.argmax(axis=1)]


def _contrasts(p: np.ndarray) -> np.ndarray:
    """Rows dp_c/df = p_c (e_c - p) of every class c, from sums in which nothing cancels."""
    own = np.eye(p.shape[1], dtype=bool)
    others = np.where(own, 0.0, p[:, None, :]).sum(axis=2)  # 1 - p_c
    return p[:, :, None] * np.where(own, others[:, :, None], -p[:, None, :])


def _norms(contrasts: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Squared norms w^T G w, which rounding may leave a little below zero."""
    return np.maximum(np.einsum("n...c,ncd,n...d->n...", contrasts, gram, contrasts), 0.0)


def _of_predicted(signals: Signals) -> np.ndarray:
    p, top = _predicted(signals.logits)
    return _contrasts(p)[top]


def _isotropic(signals, options):
    return _norms(_of_predicted(signals), signals.gram)


def _isotropic_trace(signals, options):
    p, _ = _predicted(signals.logits)
    return _norms(_contrasts(p), signals.gram).sum(axis=1)


def _log_norm(signals, options):
    p, top = _predicted(signals.logits)
    others = np.where(top, 0.0, p)
    return _norms(np.where(top, others.sum(axis=1, keepdims=True), -p), signals.gram)


def _logit_scaled(signals, options):
    num = len(signals.y)
    with double_precision():
        logits, gram = jnp.asarray(signals.logits), jnp.asarray(signals.gram)
        var = float(unit_var(LIKELIHOODS["categorical"], logits[:num], gram[:num], 1.0))
        if not np.isfinite(var):
            raise Undefined("the gradients at half of the training inputs or more are zero")
        return np.asarray(_softmax_var(logits, gram * var), np.float64)


@jax.jit
def _softmax_var(
    logits: Float[jax.Array, "N C"], cov: Float[jax.Array, "N C C"]
) -> Float[jax.Array, " N"]:
    return softmax_normal_moments(logits, cov).var.sum(axis=1)


def _gradnorm_output(signals, options):
    p, _ = _predicted(signals.logits)
    return np.abs(p - 1 / p.shape[1]).sum(axis=1)


def _gradnorm_features(signals, options):
    return np.abs(signals.hidden).sum(axis=1)


def _gradnorm(signals, options):
    return _gradnorm_features(signals, options) * _gradnorm_output(signals, options)


def _head_output(signals, options):
    return (_of_predicted(signals) ** 2).sum(axis=1)


def _head_features(signals, options):
    return (signals.hidden**2).sum(axis=1) + 1.0


def _head(signals, options):
    return _head_features(signals, options) * _head_output(signals, options)


def _null(signals, options):
    p, top = _predicted(signals.logits)
    return p[top] * np.where(top, 0.0, p).sum(axis=1)


def _msp(signals, options):
    return softmax(signals.logits, axis=1).max(axis=1)


def _max_logit(signals, options):
    return signals.logits.max(axis=1)


def _energy(signals, options):
    return np.asarray(logsumexp(signals.logits, axis=1))


def _odin(signals, options):
    return softmax(signals.perturbed / options.temperature, axis=1).max(axis=1)


def _classes(signals: Signals) -> tuple[np.ndarray, np.ndarray]:
    """Training features, and their mean in each class."""
    hidden = signals.hidden[: len(signals.y)]
    num_classes = signals.logits.shape[1]
    counts = np.bincount(signals.y, minlength=num_classes)
    if counts.min() < 2:
        raise Undefined(
            f"y must have two examples or more of each of the {num_classes} classes for a "
            f"covariance, got {counts.min()} of class {counts.argmin()}"
        )
    means = np.stack([hidden[signals.y == c].mean(axis=0) for c in range(num_classes)])
    return hidden, means


def _distances(signals: Signals) -> np.ndarray:
    """Squared Mahalanobis distances to the means of the classes, with one covariance."""
    from sklearn.covariance import EmpiricalCovariance  # imported late: it takes seconds

    hidden, means = _classes(signals)
    tied = EmpiricalCovariance(assume_centered=True).fit(hidden - means[signals.y])
    return np.stack([tied.mahalanobis(signals.hidden - mean) for mean in means], axis=1)


def _mahalanobis(signals, options):
    return _distances(signals).min(axis=1)


def _relative_mahalanobis(signals, options):
    from sklearn.covariance import EmpiricalCovariance

    whole = EmpiricalCovariance().fit(signals.hidden[: len(signals.y)])
    background = whole.mahalanobis(signals.hidden)
    return _distances(signals).min(axis=1) - background


def _knn(signals, options):
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import normalize

    n = len(signals.y)
    check_count("knn_k", options.knn_k, 1, n - 1)
    unit = normalize(signals.hidden)
    tree = NearestNeighbors(n_neighbors=options.knn_k).fit(unit[:n])
    # Without an argument: the neighbours of the training inputs, each left out of its own.
    return np.concatenate([d[:, -1] for d, _ in (tree.kneighbors(), tree.kneighbors(unit[n:]))])


def vim_dimension(num_features: int) -> int:
    """Dimension of ViM's principal space by its authors' rule."""
    return 1000 if num_features > 1500 else 512 if num_features >= 768 else num_features // 2


def _vim(signals, options):
    from sklearn.covariance import EmpiricalCovariance

    n = len(signals.y)
    origin = -np.linalg.pinv(signals.kernel.T) @ signals.bias
    centred = signals.hidden - origin
    moments = EmpiricalCovariance(assume_centered=True).fit(centred[:n]).covariance_
    _, directions = np.linalg.eigh(moments)  # ascending
    left = directions[:, : centred.shape[1] - vim_dimension(centred.shape[1])]
    residual = np.linalg.norm(centred @ left, axis=1)
    scale = residual[:n].mean()
    if not scale > 1e-9 * np.linalg.norm(centred[:n], axis=1).mean():
        raise Undefined("the training features have no part outside of the principal space")
    alpha = signals.logits[:n].max(axis=1).mean() / scale
    return alpha * residual - logsumexp(signals.logits, axis=1)


def _var_over(logits: np.ndarray) -> np.ndarray:
    return softmax(logits, axis=2).var(axis=0).sum(axis=1)


def _entropy_of_mean(logits: np.ndarray) -> np.ndarray:
    p = softmax(logits, axis=2).mean(axis=0)
    return -xlogy(p, p).sum(axis=1)


def _dropout(signals, options):
    return _var_over(signals.passes)


def _ensemble(signals, options):
    return _var_over(signals.members)


def _ensemble_entropy(signals, options):
    return _entropy_of_mean(signals.members)


def _mcmc(signals, options):
    return signals.mcmc_var


_PAPER = "Grünefeld, Frellsen, Hardmeier 2026"
_HUANG = "Huang, Geng, Li 2021: larger in distribution; L1 norm, weights of the last layer"
_FACTOR = "ablation of Huang, Geng, Li 2021"
_HEAD = "ablation: the norm restricted to the read-out, after Huang, Geng, Li 2021"
SCORES = {
    "isotropic": Score("isotropic ‖∇p‖²", "out", "‖∂p_k/∂θ‖²", _PAPER, _isotropic),
    "isotropic_trace": Score(
        "isotropic, trace", "out", "Σ_c ‖∂p_c/∂θ‖²", _PAPER, _isotropic_trace
    ),
    "logit_scaled": Score(
        "logit-scaled", "out",
        "Σ_c Var[softmax(f̃)_c], f̃ ~ N(f, σ² JJᵀ), median of σ²‖∇ log-odds_k‖² over the training "
        "inputs π²/3", "isounc's rule `unit`", _logit_scaled,
    ),
    "log_norm": Score("‖∇ log p‖²", "out", "‖∂ log p_k/∂θ‖²", _PAPER, _log_norm),
    "head": Score(
        "isotropic, read-out alone", "out", "‖∂p_k/∂(V, b)‖² = (‖h‖² + 1) ‖p_k (e_k − p)‖²", _HEAD, _head
    ),
    "head_features": Score("read-out, features", "out", "‖h‖² + 1", _HEAD, _head_features),
    "head_output": Score("read-out, output", "out", "‖p_k (e_k − p)‖²", _HEAD, _head_output),
    "gradnorm": Score(
        "GradNorm", "in", "‖∂KL(u ‖ p)/∂V‖₁ = ‖h‖₁ ‖p − u‖₁", _HUANG, _gradnorm
    ),
    "gradnorm_features": Score(
        "GradNorm, features", "in", "‖h‖₁", _FACTOR, _gradnorm_features
    ),
    "gradnorm_output": Score("GradNorm, output", "in", "‖p − u‖₁", _FACTOR, _gradnorm_output),
    "null": Score("null: p(1−p)", "out", "p_k (1 − p_k)", "no gradient", _null),
    "msp": Score("maximum softmax", "in", "max_c p_c", "Hendrycks, Gimpel 2017", _msp),
    "max_logit": Score("max logit", "in", "max_c f_c", "Hendrycks et al. 2022", _max_logit),
    "energy": Score(
        "energy", "in", "log Σ_c exp f_c (minus the energy)", "Liu et al. 2020, T = 1", _energy
    ),
    "odin": Score(
        "ODIN", "in", "max_c softmax(f(x + ε sign ∇_x log p_k^T)/T)_c",
        "Liang, Li, Srikant 2018: by default T = 1000, ε = .0014 of the range of the inputs, not tuned",
        _odin, "perturbed",
    ),
    "mahalanobis": Score(
        "Mahalanobis", "out", "min_c (h − μ_c)ᵀ S⁺ (h − μ_c), S within classes",
        "Lee et al. 2018, last features, no input perturbation; pseudo-inverse", _mahalanobis,
    ),
    "relative_mahalanobis": Score(
        "relative Mahalanobis", "out", "min_c M_c(h) − (h − μ)ᵀ S₀⁺ (h − μ), S₀ of all",
        "Ren et al. 2021", _relative_mahalanobis,
    ),
    "knn": Score(
        "kNN", "out", "distance of h/‖h‖ to the k-th nearest training h/‖h‖",
        "Sun et al. 2022; k = 10 by default, as their k belong to larger data; a training input is no "
        "neighbour of its own", _knn,
    ),
    "vim": Score(
        "ViM", "out", "α‖residual of h beyond D dimensions‖ − log Σ_c exp f_c",
        "Wang et al. 2022: D = F/2 below 768 features", _vim,
    ),
    "dropout": Score(
        "MC dropout", "out", "Σ_c Var p_c over passes",
        "Gal, Ghahramani 2016: a network of its own, by default rate .5 before the read-out", _dropout,
        "passes",
    ),
    "ensemble": Score(
        "ensemble, variance", "out", "Σ_c Var p_c over networks",
        "Lakshminarayanan et al. 2017, by default 5 networks", _ensemble, "members",
    ),
    "ensemble_entropy": Score(
        "ensemble, entropy", "out", "entropy of the mean of p over networks",
        "Lakshminarayanan et al. 2017, by default 5 networks", _ensemble_entropy, "members",
    ),
    "mcmc": Score(
        "MCMC variance", "out", "Σ_c Var p_c over the posterior",
        "the reference, where it is sampled and passes its gate", _mcmc, "mcmc_var",
    ),
}  # fmt: skip
"""Scores by name."""
