"""The isotropic estimate of any trained model, in one call."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from isounc.checks import check_choice, check_count, check_real
from isounc.estimates.columns import (
    TASK_OF_LIKELIHOOD,
    Columns,
    bind_task,
    chosen_targets,
    columns_of,
)
from isounc.estimates.estimate import estimate_all
from isounc.estimates.estimators import Estimate, Evidence
from isounc.estimates.inputs import padded
from isounc.estimates.links import LinkMoments, sigmoid_normal_moments, softmax_normal_moments
from isounc.estimates.logit_scale import LogitScale, scale_var
from isounc.estimates.points import check_finite, check_points
from isounc.estimates.signs import rises_with_p, warning_of
from isounc.gradnorm import Filter
from isounc.gradnorm.leaves import split_leaves
from isounc.models import Model
from isounc.padding import bucket
from isounc.precision import double_precision

METHODS = ("isotropic", "logit_scaled")
"""Ways from the norms to an estimate."""


def isotropic(
    model: Any,
    x: Any,
    params: Any = None,
    *,
    task: str | None = None,
    target: Int[np.ndarray, " N"] | Sequence[int | np.integer] | str | None = None,
    sigma: float = 1.0,
    noise_sd: float = 1.0,
    method: str = "isotropic",
    reference: Any = None,
    scale: str | float | LogitScale = "unit",
    prior_sd: float | None = None,
    outputs: str | None = None,
    wrt: Filter = None,
    kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> Estimate:
    """Compute the isotropic estimate of a trained model at N inputs.

        epistemic = sigma^2 ||dp/dtheta||^2,    aleatoric = p (1 - p)

    or, with `method="logit_scaled"` and from the same pass, that of a Gaussian logit

        epistemic = Var[sigmoid(f)],    f ~ N(f(x, theta*), sigma^2 ||df/dtheta||^2),

    whose sigma^2 comes from reference inputs (`isounc.fit_logit_scale`).

    Every norm is exact and costs a forward pass and the activation half of a backward pass per
    column; no weight matrix's gradient is stored (`isounc.gradnorm`, which also works inside of
    jit). A column is a class c through its log-odds d = f_c - log sum_{k != c} exp f_k,
    p = sigmoid(d), so that dp/dtheta = p (1 - p) dd/dtheta keeps its digits where p is all but 0 or
    1. For a `Model` with another likelihood it is `isounc.estimate("isotropic", ...)`.

    Parameters
    ----------
    model
        A Flax NNX module (in evaluation mode), a Flax Linen module, a function `f(params, x)` of a
        batch, or a `Model`.
    x
        A batch of N inputs: an array, or a pytree of arrays, with examples along the first axis, as
        the model takes it. For token models also a list of sequences of different lengths; they are
        padded on the right to a few lengths, none beyond the longest, which is exact for a causal
        model only.
    params
        Linen: its variables, of which the collection `params` counts. A function: its parameters. A
        `Model`: theta, or what `fit_map` or `fit_trained` returned. NNX: none, its `nnx.Param`
        count. Batch statistics and the like are held fixed.
    task
        binary: one logit an example, (N,) or (N, 1). multiclass: C logits, (N, C). regression: (N,)
        or (N, M). token: logits of the next token, (N, V), or at every position, (N, T, V), of
        which the last counts. A `Model` takes none.
    target
        The class or token that the estimate is about, one an example, or `"predicted"` for the most
        probable one: one column and one backward pass. None is all classes (multiclass), the
        predicted token (token).
    sigma
        Standard deviation of the parameters, the same for all.
    noise_sd
        Known noise of a regression.
    method
        `"isotropic"`, the paper's, or `"logit_scaled"`: log-odds of a chosen column are Gaussian,
        and without a choice all C logits are, through the softmax (C cotangents on one forward
        pass). In regression there is no link: this is sigma^2 ||df/dtheta||^2, which orders inputs
        exactly as the other method does.
    reference
        For logit_scaled: the inputs, training inputs or a batch of typical ones, that set sigma^2.
    scale
        For logit_scaled: the rule, `"unit"` or `"effective_dimension"` (training inputs as the
        reference, and `prior_sd`); sigma^2 itself; or what `isounc.fit_logit_scale` returned, for
        single inputs. The last two take no reference.
    prior_sd
        For effective_dimension: prior standard deviation of the parameters.
    outputs
        `"logits"` or `"probabilities"`, what the model returns. None is logits, refused where they
        look otherwise: between 0 and 1, and adding up to 1 or, for a binary model, at eight inputs
        or more. A `Model` takes none.
    wrt
        Only these parameters count, by regular expression or function of the path: `"layers.*30"`.
    kwargs
        Keyword arguments of each call of the model, such as `{"train": False}`.
    batch_size
        Examples at a time, which bounds the memory of their activations: 128 over the number of
        columns (a `Model`: 128), and 8 for tokens, unless given.

    Returns
    -------
    Estimate
        NumPy arrays (N, M) in float64: M is 1, the number of classes, or the regression's outputs;
        `target` where one was chosen.

    Warns
    -----
    UserWarning
        Where ||dp/dtheta||^2 rises with p at most of the examples in theory, so that it points the
        wrong way as an uncertainty (`isounc.estimates.signs`). The p of an example is that of the
        predicted class or token, and it rises where that is below 1/2. Where no target is given,
        the number is the sum over the classes, and it rises where the largest p is below 1/2 and
        several classes share the rest (seldom for three). Nothing is misread, and there is no
        warning, for a binary model, whose predicted class has p of at least 1/2; for a target that
        is given by number, about which "is it this class?" is such a binary question; and in
        regression. `epistemic / prob**2` is ||d log p/dtheta||^2, whose sign does not flip; the
        variance of method logit_scaled flips as well, 1 - moderated does not.

    Raises
    ------
    TypeError, ValueError
        For an unknown task, outputs that do not fit it, a model in training mode, parameters or
        inputs that are not finite (by path and by row), targets out of range, a reference that sets
        no scale.

    Source: Grünefeld, Frellsen, Hardmeier 2026 (arXiv 2603.29466).

    Examples
    --------
    >>> from flax import nnx
    >>> classifier = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    >>> estimate = isotropic(classifier, np.ones((5, 4), np.float32), task="multiclass")
    >>> estimate.epistemic.shape
    (5, 3)
    """
    sigma = check_real("sigma", sigma, positive=True)
    noise_sd = check_real("noise_sd", noise_sd, positive=True)
    check_choice("method", method, METHODS)
    if method == "isotropic":
        unset = None if isinstance(scale, str) and scale == "unit" else scale
        for name, value in (("reference", reference), ("prior_sd", prior_sd), ("scale", unset)):
            if value is not None:
                raise ValueError(
                    f"{name} must be left out for method 'isotropic', got {value!r:.60}"
                )
    if isinstance(model, Model) and model.likelihood not in TASK_OF_LIKELIHOOD:
        if method != "isotropic":
            raise ValueError(
                f"method must be 'isotropic' for a Model with likelihood {model.likelihood!r}, got "
                f"{method!r}; isounc.estimate('logit_scaled', ...) has it"
            )
        return _of_model(model, x, params, target, sigma, noise_sd, wrt, batch_size)
    about = {"outputs": outputs, "kwargs": kwargs}
    if method == "isotropic":
        # The link of a Model is known, and p (1 - p) is squared in float64 below.
        bound, x, task = bind_task(model, x, params, task=task, **about)
        columns = columns_of(
            bound, x, task=task, target=target, outputs=outputs, wrt=wrt, batch_size=batch_size
        )
        estimate = _estimate(columns, task, outputs, sigma, noise_sd)
        if task in ("multiclass", "token") and (target is None or isinstance(target, str)):
            over_classes = columns.label is None
            rising = rises_with_p(np.asarray(estimate.prob), over_classes=over_classes)
            if 2 * rising.sum() > len(rising):
                what = "the largest p" if over_classes else "p of the predicted class or token"
                message = warning_of(int(rising.sum()), f"{len(rising)} examples", what)
                warnings.warn(message, stacklevel=2)
        return estimate if columns.label is None else estimate._replace(target=columns.label)
    if sigma != 1:
        raise ValueError(
            f"sigma must be left out for method 'logit_scaled', whose scale sets it, got {sigma}"
        )
    var = scale_var(
        scale, model, reference, params, task=task, prior_sd=prior_sd, noise_sd=noise_sd,
        wrt=wrt, batch_size=batch_size, **about,
    )  # fmt: skip
    bound, x, task = bind_task(model, x, params, task=task, **about)
    products = task == "multiclass" and target is None
    columns = columns_of(
        bound, x, task=task, target=target, outputs=outputs, wrt=wrt, batch_size=batch_size,
        products=products,
    )  # fmt: skip
    if task == "regression":
        return _estimate(columns, task, None, var**0.5, noise_sd)
    estimate = _gaussian_logits(columns, var, products=products)
    return estimate if columns.label is None else estimate._replace(target=columns.label)


def _of_model(
    model: Model,
    X: Any,
    theta: Any,
    target: Any,
    sigma: float,
    noise_sd: float,
    wrt: Filter,
    batch_size: int | None,
) -> Estimate:
    """The registry's estimate, in float64, with Sigma = sigma^2 I on the groups that count."""
    if batch_size is not None:
        check_count("batch_size", batch_size, 1)
    if theta is None:
        raise TypeError("params must be given for a Model: theta, or what fit_map returned")
    points, theta = check_points(model, X, theta)
    name, evidence = "isotropic", Evidence()
    if sigma != 1 or wrt is not None:
        counted, _, _ = split_leaves(model.unflatten(1.0 * model.group_index), wrt)
        mask = np.isin(model.group_index, [leaf.flat[0] for leaf in counted])
        name, evidence = "layer_scaled", Evidence(layer_sd=jnp.asarray(sigma * mask, theta.dtype))
    result = estimate_all(
        [name], model, points, theta,
        evidence=evidence, noise_sd=noise_sd, batch_size=batch_size or 128,
    )[name]  # fmt: skip
    check_finite(result, "theta and x must give finite gradients")
    columns = [np.asarray(a, np.float64) for a in result[:5]]
    prob = columns[0]
    task = "multiclass" if prob.shape[1] > 1 else model.likelihood
    chosen = chosen_targets(task, target, *prob.shape)
    if chosen is None:
        return Estimate(*columns)
    label = np.where(chosen < 0, prob.argmax(axis=1), chosen)[:, None]
    columns = [np.take_along_axis(a, label, axis=1) for a in columns]
    return Estimate(*columns)._replace(target=label)


def _estimate(
    columns: Columns, task: str, outputs: str | None, sigma: float, noise_sd: float
) -> Estimate:
    """The estimate from log-odds (or outputs) and their squared gradient norms."""
    values, sq_norms = columns.values, columns.sq_norms
    if task == "regression":
        epistemic = sigma**2 * sq_norms
        aleatoric = np.full_like(values, noise_sd**2)
        return Estimate(values, epistemic, aleatoric, epistemic + aleatoric, aleatoric)
    if outputs == "probabilities":
        prob = values.clip(0, 1)  # a sum of rounded numbers may exceed 1
        aleatoric, epistemic = prob * (1 - prob), sigma**2 * sq_norms
    else:
        prob, aleatoric = _of_log_odds(values)
        epistemic = sigma**2 * aleatoric**2 * sq_norms
    return Estimate(prob, epistemic, aleatoric, epistemic + aleatoric, aleatoric - epistemic)


def _of_log_odds(
    values: Float[np.ndarray, "N M"],
) -> tuple[Float[np.ndarray, "N M"], Float[np.ndarray, "N M"]]:
    """P and p (1 - p)."""
    # exp(-|d|) never overflows, and p (1 - p) from it never cancels.
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1, small) / (1 + small), small / (1 + small) ** 2


def _gaussian_logits(columns: Columns, var: float, *, products: bool) -> Estimate:
    """The estimate under Gaussian log-odds, or Gaussian logits of all classes."""
    values, spread = columns.values, var * columns.sq_norms
    # Rows up to a few numbers of them, each of which is compiled once.
    rows = [padded(a, bucket(len(a))) for a in (values, spread)]
    with double_precision():  # the variance of a sure prediction is beyond single precision
        moments = jax.device_get(_moments(*map(jnp.asarray, rows), products=products))
    mean, epistemic, label_var = (np.asarray(a)[: len(values)] for a in moments)
    if products:
        from scipy import special  # a third of a second to import

        is_own = np.eye(values.shape[1], dtype=bool)[None]
        others = np.where(is_own, -np.inf, values[:, None, :])
        values = values - special.logsumexp(others, axis=2)
    prob, aleatoric = _of_log_odds(values)
    total = epistemic + aleatoric
    return Estimate(prob, epistemic, aleatoric, total, label_var, moderated=mean)


@functools.partial(jax.jit, static_argnames="products")
def _moments(
    values: Float[Array, "N M"], spread: Float[Array, "N M *C"], *, products: bool
) -> LinkMoments:
    return (softmax_normal_moments if products else sigmoid_normal_moments)(values, spread)
