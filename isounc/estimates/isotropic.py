"""The isotropic estimate of any trained model, in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from isounc.checks import check_choice, check_count, check_real
from isounc.estimates.adapters import Bound, bind, output_shape
from isounc.estimates.estimate import check_finite, check_points, estimate_all
from isounc.estimates.estimators import Estimate, Evidence
from isounc.gradnorm import Filter, check_leaves, value_and_sq_grad_norms
from isounc.gradnorm.leaves import split_leaves
from isounc.models import Model
from isounc.padding import bucket

TASKS = ("binary", "multiclass", "regression", "token")
"""Kinds of models that `isotropic` takes, beside `Model`, which knows its own likelihood."""


def isotropic(
    model: Any,
    x: Any,
    params: Any = None,
    *,
    task: str | None = None,
    target: Int[np.ndarray, " N"] | Sequence[int] | str | None = None,
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
    1. For a `Model` it is `isounc.estimate("isotropic", ...)`, bit by bit.

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
        return _of_model(model, x, params, target, sigma, noise_sd, wrt, batch_size or 128)
    check_choice("task", task, TASKS)
    assert task is not None
    if outputs is not None:
        check_choice("outputs", outputs, ("logits", "probabilities"))
        if task == "regression":
            raise ValueError(f"outputs must be left out for regression, got {outputs!r}")
    bound = bind(model, params, kwargs)
    check_leaves(bound.params)
    size = batch_size or (8 if task == "token" else 128)
    parts = _parts(x, task, size)
    num_outputs = _check_outputs(bound, parts, task)
    if batch_size is None and target is None and task in ("multiclass", "regression"):
        parts = _parts(x, task, max(1, size // num_outputs))
    num_rows = sum(len(part[0]) for part in parts)
    chosen = _targets(task, target, num_rows, num_outputs)
    run = functools.partial(
        _norms, bound.params, bound.rest, apply=bound.apply, task=task, wrt=wrt,
        probabilities=outputs == "probabilities",
    )  # fmt: skip
    found: dict[int, tuple[np.ndarray, ...]] = {}
    for rows, inputs, at in tqdm(parts, unit="batch", desc="isotropic", delay=2, leave=False):
        here = None if chosen is None else chosen[rows]
        here = None if here is None else _padded(here, len(jax.tree.leaves(inputs)[0]))
        columns = jax.device_get(run(inputs, here, at))
        for i, row in enumerate(rows):
            found[row] = tuple(column[i] for column in columns)
    values, sq_norms, label, alike = (
        np.stack(c) for c in zip(*map(found.get, range(num_rows)), strict=True)
    )
    finite = np.isfinite(values).all(1) & np.isfinite(sq_norms).all(1)
    if not finite.all():
        _blame(bound, np.flatnonzero(~finite))
    if task != "regression":
        _check_link(values, alike, task, outputs)
    one = _estimate(values, sq_norms, task, outputs, sigma, noise_sd)
    return one if task == "regression" or chosen is None else one._replace(target=label)


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
def _norms(params, rest, inputs, target, at, *, apply, task, wrt, probabilities):
    """Log-odds (or outputs), squared gradient norms, a chosen column's class, and whether outputs are probabilities."""

    def columns(params, row, target, at):
        out = apply(params, rest, jax.tree.map(lambda a: a[None], row))[0]
        tolerance = 8 * out.size**0.5 * float(jnp.finfo(out.dtype).eps)
        out = out.astype(jnp.promote_types(out.dtype, jnp.float32))
        if task == "token" and out.ndim == 2:
            out = out[at]
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
    (values, (label, alike)), sq_norms = norms(params, inputs, target, at)
    return values, sq_norms, label, alike


def _estimate(values, sq_norms, task, outputs, sigma, noise_sd) -> Estimate:
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


def _padded(values: Any, size: int) -> Any:
    """Rows up to `size`, with copies of the first."""
    missing = size - len(values)
    return values if not missing else np.concatenate([values, np.repeat(values[:1], missing, 0)])


Part = tuple[np.ndarray, Any, np.ndarray]
"""Numbers of the rows, inputs (padded to a shape that others share), and the position that counts in each row."""


def _parts(x: Any, task: str, batch_size: int) -> list[Part]:
    if task == "token" and isinstance(x, list):
        return list(_ragged(x, batch_size))
    # Lists of numbers are one array, any other container is a pytree of them.
    x = np.asarray(x) if isinstance(x, list) else x
    leaves = jax.tree.leaves(x)
    sizes = {np.shape(a)[0] if np.ndim(a) else 0 for a in leaves}
    if len(sizes) != 1 or 0 in sizes:
        shapes = ", ".join(str(np.shape(a)) for a in leaves) or "nothing"
        raise ValueError(f"x must be a batch with examples along the first axis, got {shapes}")
    num_rows = sizes.pop()
    size = min(batch_size, bucket(num_rows))
    parts = []
    for start in range(0, num_rows, size):
        rows = np.arange(start, min(start + size, num_rows))
        inputs = jax.tree.map(lambda a, rows=rows: _padded(np.asarray(a)[rows], size), x)
        parts.append((rows, inputs, np.full(size, -1)))
    return parts


def _ragged(x: Sequence[Any], batch_size: int) -> Iterator[Part]:
    sequences = [np.asarray(ids) for ids in x]
    for i, ids in enumerate(sequences):
        if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
            raise ValueError(
                f"x must hold sequences of token ids, got shape {ids.shape} of {ids.dtype} at {i}"
            )
    if not sequences:
        raise ValueError("x must hold at least one sequence of token ids")
    # None beyond the longest: a model may have no more positions. Equal lengths are not padded at all.
    longest = max(ids.size for ids in sequences)
    lengths = np.array([min(longest, max(16, bucket(ids.size))) for ids in sequences])
    if min(ids.size for ids in sequences) == longest:
        lengths[:] = longest
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        size = min(batch_size, bucket(len(same)))
        for start in range(0, len(same), size):
            rows = same[start : start + size]
            ids = np.stack([np.pad(sequences[i], (0, length - sequences[i].size)) for i in rows])
            ends = np.array([sequences[i].size - 1 for i in rows])
            yield rows, _padded(ids, size), _padded(ends, size)


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
            f"target must be 'predicted' or {num_rows} non-negative integers, one an example; got "
            f"{target!r:.80}"
        )
    if numbers.max() >= num_outputs:
        raise ValueError(f"target must be below {num_outputs}, got {numbers.max()}")
    return numbers


def _check_outputs(bound: Bound, parts: Sequence[Part], task: str) -> int:
    """Number of outputs; a ValueError unless the model's fit the task. It is called as it will be, on one example."""
    fits: dict[str, tuple[Callable[..., bool], str]] = {
        "binary": (lambda s: s in ((), (1,)), "(N,) or (N, 1), one logit an example"),
        "multiclass": (lambda s: len(s) == 1 and s[0] > 1, "(N, C) with two or more classes"),
        "regression": (lambda s: len(s) < 2, "(N,) or (N, M)"),
        "token": (lambda s: len(s) in (1, 2), "(N, V) or (N, T, V)"),
    }
    right, words = fits[task]
    shape = ()
    for _, inputs, ends in parts:
        shape = output_shape(bound, jax.tree.map(lambda a: a[:1], inputs)).shape
        if not shape or shape[0] != 1 or not right(shape[1:]):
            raise ValueError(
                f"model must return {words} for task {task!r}, whatever N; at one input it returns {shape}"
            )
        if task != "token":
            break
        if len(shape) == 2 and (ends >= 0).any() and (ends + 1 < inputs.shape[1]).any():
            raise ValueError(
                "model must return logits at every position, (N, T, V), for sequences of different lengths; it "
                f"returns {shape} at one of them. Give sequences of one length as an array."
            )
    return shape[-1] if len(shape) > 1 else 1


def _check_link(values: np.ndarray, alike: np.ndarray, task: str, outputs: str | None) -> None:
    """Probabilities taken for logits, or the reverse, would give numbers that mean nothing."""
    beyond = np.maximum(-values, values - 1).max()
    if outputs == "probabilities" and beyond > 1e-2:
        raise ValueError(
            f"outputs='probabilities', but the model returns {values.min():g} to {values.max():g}"
        )
    if outputs is None and alike.all() and (task != "binary" or len(alike) >= 8):
        sums = "" if task == "binary" else " and add up to 1"
        raise ValueError(
            f"outputs must be said: the model's lie between 0 and 1{sums}. Give outputs='probabilities', or "
            "outputs='logits' if they are logits all the same."
        )


def _blame(bound: Bound, rows: np.ndarray) -> None:
    """One error that names the parameter, the other array of the model, or the inputs that are not finite."""
    for what, tree in (("params", bound.params), ("the model's other arrays", bound.rest)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not jnp.issubdtype(leaf.dtype, jnp.inexact) or bool(jnp.isfinite(leaf).all()):
                continue
            wrong = int((~jnp.isfinite(leaf)).sum())
            raise ValueError(
                f"{what} must be finite; {jax.tree_util.keystr(path)} has {wrong} of {leaf.size} values NaN or infinite"
            )
    which = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    raise ValueError(
        f"the model's output or gradient is not finite at {len(rows)} rows of x ({which}); params are finite. "
        "Check those inputs, and token ids for their range."
    )
