"""Outputs of any trained model and the gradient norms of its log-odds, at a batch of inputs.

A column is an output, or a class c through its log-odds d = f_c - log sum_{k != c} exp f_k.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from isounc.checks import check_choice, check_count, check_integers, real_array
from isounc.estimates.adapters import Bound, bind, check_steady, output_shape
from isounc.estimates.inputs import Part, check_token_ids, padded, split
from isounc.estimates.points import check_points
from isounc.gradnorm import Filter, check_leaves, value_and_grad_gram, value_and_sq_grad_norms
from isounc.models import Model

TASKS = ("binary", "multiclass", "regression", "token")
"""Kinds of models that `isotropic` takes, beside `Model`, which knows its own likelihood."""
TASK_OF_LIKELIHOOD = {
    "bernoulli": "binary",
    "categorical": "multiclass",
    "gaussian": "regression",
}
"""Tasks of an isounc `Model`; another likelihood goes through the registry of estimators."""


class Columns(NamedTuple):
    """Values and gradients at N inputs, in float64."""

    values: Float[np.ndarray, "N M"]
    """Log-odds, or outputs where they are no logits; the C logits less their mean where products were
    asked for."""
    sq_norms: Float[np.ndarray, "N M *C"]
    """Squared norms of their gradients, or (N, C, C) products of those of the logits."""
    label: Int[np.ndarray, "N 1"] | None
    """The class of a chosen column."""


def bind_task(
    model: Any,
    x: Any,
    params: Any,
    *,
    task: Any,
    outputs: Any,
    kwargs: Mapping[str, Any] | None,
    argument: str = "X",
) -> tuple[Bound, Any, str]:
    """Take a model apart and check what is said about it.

    Parameters
    ----------
    model, x, params, task, outputs, kwargs
        As `isounc.isotropic` takes them; a `Model` is one of `TASK_OF_LIKELIHOOD`.
    argument
        Name of the locations of a `Model` in messages.

    Returns
    -------
    tuple
        The model's parts, inputs and task.

    Raises
    ------
    TypeError, ValueError
        For an unknown task, outputs that are no choice, a model that `bind` refuses.
    """
    if isinstance(model, Model):
        for name, value in (("task", task), ("outputs", outputs), ("kwargs", kwargs)):
            if value is not None:
                raise TypeError(f"{name} must be left out for a Model, got {value!r}")
        if params is None:
            raise TypeError("params must be given for a Model: theta, or what fit_map returned")
        task = TASK_OF_LIKELIHOOD.get(model.likelihood)
        x, theta = check_points(model, x, params, argument=argument)
        model, params = model.apply_params, model.unflatten(theta)
    check_choice("task", task, TASKS)
    if outputs is not None:
        check_choice("outputs", outputs, ("logits", "probabilities"))
        if task == "regression":
            raise ValueError(f"outputs must be left out for regression, got {outputs!r}")
    bound = bind(model, params, kwargs)
    check_leaves(bound.params)
    return bound, x, task


def columns_of(
    bound: Bound,
    x: Any,
    *,
    task: str,
    target: Any = None,
    outputs: str | None = None,
    wrt: Filter = None,
    batch_size: int | None = None,
    products: bool = False,
    argument: str = "x",
) -> Columns:
    """Values and squared gradient norms at all inputs, batch by batch.

    Parameters
    ----------
    bound, task
        What `bind_task` returned.
    x, target, outputs, wrt, batch_size
        As `isounc.isotropic` takes them.
    products
        Whether the products of the gradients of the C logits take the place of norms.
    argument
        Name of the inputs in messages.

    Raises
    ------
    TypeError, ValueError
        For inputs, outputs or gradients that are not finite or do not fit the task, and for targets
        out of range.
    """
    if batch_size is not None:
        check_count("batch_size", batch_size, 1)
    size = batch_size or (8 if task == "token" else 128)
    parts = split(x, size, tokens=task == "token", argument=argument)
    num_outputs = _check_outputs(bound, parts, task, argument)
    if task == "token":
        check_token_ids(x, num_outputs, argument=argument)
    for leaf in jax.tree.leaves([part.inputs for part in parts]):
        check_integers(argument, leaf)
    check_steady(bound, jax.tree.map(lambda a: a[:8], parts[0].inputs))
    if batch_size is None and target is None and task in ("multiclass", "regression"):
        parts = split(x, max(1, size // num_outputs), tokens=False, argument=argument)
    num_rows = sum(len(part.rows) for part in parts)
    targets = chosen_targets(task, target, num_rows, num_outputs)
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
            as_they_are=outputs == "probabilities" or task == "regression",
            products=products,
        )
        columns = jax.device_get(columns)
        for i, row in enumerate(part.rows):
            of_row[row] = tuple(column[i] for column in columns)
    values, sq_norms, label, alike = (
        np.stack(column) for column in zip(*map(of_row.get, range(num_rows)), strict=True)
    )
    finite = np.isfinite(values).all(1) & np.isfinite(sq_norms).reshape(num_rows, -1).all(1)
    if not finite.all():
        _blame(bound, np.flatnonzero(~finite), argument)
    if task != "regression":
        _check_link(values, alike, task, outputs)
    # float64: at log-odds of 50 the square of p (1 - p) is beyond single precision.
    values, sq_norms = (np.asarray(a, np.float64) for a in (values, sq_norms))
    return Columns(values, sq_norms, None if targets is None else label)


@functools.partial(jax.jit, static_argnames=("apply", "task", "wrt", "as_they_are", "products"))
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
    as_they_are: bool,
    products: bool,
) -> tuple[Float[Array, "N M"], Float[Array, "N M *C"], Int[Array, "N 1"], Bool[Array, " N"]]:
    """Log-odds (or outputs) and their squared gradient norms or products, by row of the inputs.

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
        if products:
            # The softmax does not see what all logits share, and a share that is large would cost the
            # products the digits of the differences.
            return out - out.mean(), (label, alike)
        if as_they_are:
            return (out if target is None else out[label]), (label, alike)
        if task == "binary":
            return out, (label, alike)
        classes = jnp.arange(out.size)
        rows = classes if target is None else label
        others = jnp.where(rows[:, None] == classes[None, :], -jnp.inf, out[None, :])
        return out[rows] - jax.nn.logsumexp(others, axis=1), (label, alike)

    transform = value_and_grad_gram if products else value_and_sq_grad_norms
    norms = transform(columns, wrt=wrt, has_aux=True, in_axes=(0, None if target is None else 0, 0))
    (values, (label, alike)), sq_norms = norms(params, inputs, target, ends)
    return values, sq_norms, label, alike


def chosen_targets(task: str, target: Any, num_rows: int, num_outputs: int) -> np.ndarray | None:
    """One number an example, -1 for the predicted class; None for all columns."""
    if target is None and task != "token":
        return None
    if task not in ("multiclass", "token"):
        raise ValueError(f"target must be left out for {task}, got {target!r:.80}")
    if target is None or (isinstance(target, str) and target == "predicted"):
        return np.full(num_rows, -1)
    numbers = real_array("target", target)
    if numbers.shape != (num_rows,) or numbers.dtype.kind not in "iu" or (numbers < 0).any():
        raise ValueError(
            f"target must be 'predicted' or {num_rows} non-negative integers, one an example, got "
            f"{target!r:.80}"
        )
    if numbers.max() >= num_outputs:
        raise ValueError(f"target must be below {num_outputs}, got {numbers.max()}")
    return numbers


def _check_outputs(bound: Bound, parts: Sequence[Part], task: str, argument: str) -> int:
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
        shape = output_shape(bound, jax.tree.map(lambda a: a[:1], inputs), argument=argument).shape
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


def _blame(bound: Bound, rows: np.ndarray, argument: str) -> None:
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
        f"the model's outputs and gradients must be finite, got others at {len(rows)} rows of "
        f"{argument} ({which}) though params are finite; check those inputs, and the range of token ids"
    )
