"""The isotropic estimate of any trained model, in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from isounc.checks import check_choice, check_count, check_real
from isounc.estimates.adapters import Bound, bind, check_steady, output_shape
from isounc.estimates.estimate import check_finite, check_points, estimate_all
from isounc.estimates.estimators import Estimate, Evidence
from isounc.estimates.inputs import Part, check_token_ids, padded, split
from isounc.gradnorm import Filter, check_leaves, value_and_sq_grad_norms
from isounc.gradnorm.leaves import split_leaves
from isounc.models import Model

TASKS = ("binary", "multiclass", "regression", "token")
TASK_OF_LIKELIHOOD = {
    "bernoulli": "binary",
    "categorical": "multiclass",
    "gaussian": "regression",
}
"""Tasks of an isounc `Model`; another likelihood goes through the registry of estimators."""
"""Kinds of models that `isotropic` takes, beside `Model`, which knows its own likelihood."""


def isotropic(
    model: Any,
    x: Any,
    params: Any = None,
    *,
    task: str | None = None,
    target: Int[np.ndarray, " N"] | Sequence[int | np.integer] | str | None = None,
    sigma: float = 1.0,
    noise_sd: float = 1.0,
    outputs: str | None = None,
    wrt: Filter = None,
    kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> Estimate:
    """Compute the isotropic estimate of a trained model at N inputs.

        epistemic = sigma^2 ||dp/dtheta||^2,    aleatoric = p (1 - p)

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
        Linen: its variables. A function: its parameters. A `Model`: theta, or what `fit_map` or
        `fit_trained` returned. NNX: none.
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

    Raises
    ------
    TypeError, ValueError
        For an unknown task, outputs that do not fit it, a model in training mode, parameters or
        inputs that are not finite (by path and by row), targets out of range.

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
    if batch_size is not None:
        check_count("batch_size", batch_size, 1)
    if isinstance(model, Model):
        for argument, value in (("task", task), ("outputs", outputs), ("kwargs", kwargs)):
            if value is not None:
                raise TypeError(f"{argument} must be left out for a Model, got {value!r}")
        if params is None:
            raise TypeError("params must be given for a Model: theta, or what fit_map returned")
        if model.likelihood not in TASK_OF_LIKELIHOOD:
            return _of_model(model, x, params, target, sigma, noise_sd, wrt, batch_size or 128)
        # Its link is known, and p (1 - p) is squared in float64 below.
        task = TASK_OF_LIKELIHOOD[model.likelihood]
        x, theta = check_points(model, x, params)
        model, params = model.apply_params, model.unflatten(theta)
    check_choice("task", task, TASKS)
    assert task is not None
    if outputs is not None:
        check_choice("outputs", outputs, ("logits", "probabilities"))
        if task == "regression":
            raise ValueError(f"outputs must be left out for regression, got {outputs!r}")
    bound = bind(model, params, kwargs)
    check_leaves(bound.params)
    size = batch_size or (8 if task == "token" else 128)
    parts = split(x, size, tokens=task == "token")
    num_outputs = _check_outputs(bound, parts, task)
    if task == "token":
        check_token_ids(x, num_outputs)
    check_steady(bound, jax.tree.map(lambda a: a[:8], parts[0].inputs))
    if batch_size is None and target is None and task in ("multiclass", "regression"):
        parts = split(x, max(1, size // num_outputs), tokens=False)
    num_rows = sum(len(part.rows) for part in parts)
    targets = _targets(task, target, num_rows, num_outputs)
    of_row: dict[int, tuple[np.ndarray, ...]] = {}
    for part in tqdm(parts, unit="batch", desc="isotropic", delay=2, leave=False):
        columns = _norms(
            bound.params,
            bound.rest,
            part.inputs,
            None if targets is None else padded(targets[part.rows], len(part.ends)),
            part.ends,
            apply=bound.apply,
            task=task,
            wrt=wrt,
            probabilities=outputs == "probabilities",
        )
        columns = jax.device_get(columns)
        for i, row in enumerate(part.rows):
            of_row[row] = tuple(column[i] for column in columns)
    values, sq_norms, label, alike = (
        np.stack(column) for column in zip(*map(of_row.get, range(num_rows)), strict=True)
    )
    finite = np.isfinite(values).all(1) & np.isfinite(sq_norms).all(1)
    if not finite.all():
        _blame(bound, np.flatnonzero(~finite))
    if task != "regression":
        _check_link(values, alike, task, outputs)
    estimate = _estimate(values, sq_norms, task, outputs, sigma, noise_sd)
    return estimate if targets is None else estimate._replace(target=label)


def _of_model(
    model: Model,
    X: Any,
    theta: Any,
    target: Any,
    sigma: float,
    noise_sd: float,
    wrt: Filter,
    batch_size: int,
) -> Estimate:
    """The registry's estimate, in float64, with Sigma = sigma^2 I on the groups that count."""
    points, theta = check_points(model, X, theta)
    name, evidence = "isotropic", Evidence()
    if sigma != 1 or wrt is not None:
        counted, _, _ = split_leaves(model.unflatten(1.0 * model.group_index), wrt)
        mask = np.isin(model.group_index, [leaf.flat[0] for leaf in counted])
        name, evidence = "layer_scaled", Evidence(layer_sd=jnp.asarray(sigma * mask, theta.dtype))
    result = estimate_all(
        [name], model, points, theta,
        evidence=evidence, noise_sd=noise_sd, batch_size=batch_size,
    )[name]  # fmt: skip
    check_finite(result, "theta and x must give finite gradients")
    columns = [np.asarray(a, np.float64) for a in result[:-1]]
    prob = columns[0]
    task = "multiclass" if prob.shape[1] > 1 else model.likelihood
    chosen = _targets(task, target, *prob.shape)
    if chosen is None:
        return Estimate(*columns)
    label = np.where(chosen < 0, prob.argmax(axis=1), chosen)[:, None]
    columns = [np.take_along_axis(a, label, axis=1) for a in columns]
    return Estimate(*columns)._replace(target=label)


@functools.partial(jax.jit, static_argnames=("apply", "task", "wrt", "probabilities"))
def _norms(
    params: Any,
    rest: Any,
    inputs: Any,
    target: Int[Array | np.ndarray, " N"] | None,
    ends: Int[Array | np.ndarray, " N"],
    *,
    apply: Callable[[Any, Any, Any], Any],
    task: str,
    wrt: Filter,
    probabilities: bool,
) -> tuple[Float[Array, "N M"], Float[Array, "N M"], Int[Array, "N 1"], Bool[Array, " N"]]:
    """Log-odds (or outputs) and their squared gradient norms, by row of the inputs.

    With them the class of a chosen column, and whether the outputs look like probabilities.
    """

    def columns(params, row, target, end):
        out = apply(params, rest, jax.tree.map(lambda a: a[None], row))[0]
        tolerance = 8 * out.size**0.5 * float(jnp.finfo(out.dtype).eps)
        out = out.astype(jnp.promote_types(out.dtype, jnp.float32))
        if task == "token" and out.ndim == 2:
            out = out[end]
        out = jnp.atleast_1d(out)
        alike = (out >= 0).all() & (out <= 1).all()
        if task != "binary":
            alike &= jnp.abs(out.sum() - 1) < tolerance
        label = jnp.zeros(1, jnp.int32)
        if target is not None:
            label = jnp.where(target < 0, jnp.argmax(out), target)[None].astype(jnp.int32)
        if probabilities or task == "regression":
            return (out if target is None else out[label]), (label, alike)
        if task == "binary":
            return out, (label, alike)
        classes = jnp.arange(out.size)
        rows = classes if target is None else label
        others = jnp.where(rows[:, None] == classes[None, :], -jnp.inf, out[None, :])
        return out[rows] - jax.nn.logsumexp(others, axis=1), (label, alike)

    norms = value_and_sq_grad_norms(
        columns, wrt=wrt, has_aux=True, in_axes=(0, None if target is None else 0, 0)
    )
    (values, (label, alike)), sq_norms = norms(params, inputs, target, ends)
    return values, sq_norms, label, alike


def _estimate(
    values: Float[np.ndarray, "N M"],
    sq_norms: Float[np.ndarray, "N M"],
    task: str,
    outputs: str | None,
    sigma: float,
    noise_sd: float,
) -> Estimate:
    """The estimate from log-odds (or outputs) and their squared gradient norms."""
    # float64: at log-odds of 50 the square of p (1 - p) is beyond single precision.
    values, sq_norms = (np.asarray(a, np.float64) for a in (values, sq_norms))
    if task == "regression":
        epistemic = sigma**2 * sq_norms
        aleatoric = np.full_like(values, noise_sd**2)
        return Estimate(values, epistemic, aleatoric, epistemic + aleatoric, aleatoric)
    if outputs == "probabilities":
        prob = values.clip(0, 1)  # a sum of rounded numbers may exceed 1
        aleatoric, epistemic = prob * (1 - prob), sigma**2 * sq_norms
    else:
        # exp(-|d|) never overflows, and p (1 - p) from it never cancels.
        small = np.exp(-np.abs(values))
        aleatoric = small / (1 + small) ** 2
        prob = np.where(values >= 0, 1, small) / (1 + small)
        epistemic = sigma**2 * aleatoric**2 * sq_norms
    return Estimate(prob, epistemic, aleatoric, epistemic + aleatoric, aleatoric - epistemic)


def _targets(task: str, target: Any, num_rows: int, num_outputs: int) -> np.ndarray | None:
    """One number an example, -1 for the predicted class; None for all columns."""
    if target is None and task != "token":
        return None
    if task not in ("multiclass", "token"):
        raise ValueError(f"target must be left out for {task}, got {target!r:.80}")
    if target is None or (isinstance(target, str) and target == "predicted"):
        return np.full(num_rows, -1)
    numbers = np.asarray(target)
    if numbers.shape != (num_rows,) or numbers.dtype.kind not in "iu" or (numbers < 0).any():
        raise ValueError(
            f"target must be 'predicted' or {num_rows} non-negative integers, one an example, got "
            f"{target!r:.80}"
        )
    if numbers.max() >= num_outputs:
        raise ValueError(f"target must be below {num_outputs}, got {numbers.max()}")
    return numbers


def _check_outputs(bound: Bound, parts: Sequence[Part], task: str) -> int:
    """Number of outputs; a ValueError unless they fit the task, at one input of each shape."""
    fits: dict[str, tuple[Callable[..., bool], str]] = {
        "binary": (lambda s: s in ((), (1,)), "(N,) or (N, 1), one logit an example"),
        "multiclass": (lambda s: len(s) == 1 and s[0] > 1, "(N, C) with two or more classes"),
        "regression": (lambda s: len(s) < 2, "(N,) or (N, M)"),
        "token": (lambda s: len(s) in (1, 2), "(N, V) or (N, T, V)"),
    }
    fitting, words = fits[task]
    shape = ()
    for _, inputs, ends in parts:
        shape = output_shape(bound, jax.tree.map(lambda a: a[:1], inputs)).shape
        if not shape or shape[0] != 1 or not fitting(shape[1:]):
            raise ValueError(
                f"model must return {words} for task {task!r}, whatever N, got {shape} at one input"
            )
        if task != "token":
            break
        if len(shape) == 2 and (ends >= 0).any() and (ends + 1 < inputs.shape[1]).any():
            raise ValueError(
                "model must return logits at every position, (N, T, V), for sequences of different "
                f"lengths, got {shape} at one of them; give sequences of one length as an array"
            )
    return shape[-1] if len(shape) > 1 else 1


def _check_link(values: np.ndarray, alike: np.ndarray, task: str, outputs: str | None) -> None:
    """Probabilities taken for logits, or the reverse, would give numbers that mean nothing."""
    beyond = np.maximum(-values, values - 1).max()
    if outputs == "probabilities" and beyond > 1e-2:
        raise ValueError(
            "the model must return probabilities for outputs='probabilities', got "
            f"{values.min():g} to {values.max():g}"
        )
    if outputs is None and alike.all() and (task != "binary" or len(alike) >= 8):
        sums = "" if task == "binary" else " and add up to 1"
        raise ValueError(
            "outputs must be 'probabilities', or 'logits' if they are that all the same, got None "
            f"for a model whose outputs lie between 0 and 1{sums}"
        )


def _blame(bound: Bound, rows: np.ndarray) -> None:
    """Raise an error that names the array of the model, or else the inputs, that is not finite."""
    for what, tree in (("params", bound.params), ("the model's other arrays", bound.rest)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not jnp.issubdtype(leaf.dtype, jnp.inexact) or bool(jnp.isfinite(leaf).all()):
                continue
            wrong = int((~jnp.isfinite(leaf)).sum())
            raise ValueError(
                f"{what} must be finite, got {wrong} of {leaf.size} values NaN or infinite in "
                f"{jax.tree_util.keystr(path)}"
            )
    which = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    raise ValueError(
        f"the model's outputs and gradients must be finite, got others at {len(rows)} rows of x "
        f"({which}) though params are finite; check those inputs, and the range of token ids"
    )
