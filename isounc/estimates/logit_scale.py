"""The scale of Gaussian logits of any trained model, fitted once to reference inputs and stored."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from isounc import fields
from isounc.checks import check_choice, check_real
from isounc.estimates.adapters import Bound, output_shape
from isounc.estimates.columns import TASK_OF_LIKELIHOOD, TASKS, bind_task, columns_of
from isounc.estimates.inputs import split
from isounc.estimates.scale_rules import LOGISTIC_VAR
from isounc.gradnorm import Filter
from isounc.gradnorm.leaves import split_leaves
from isounc.likelihoods import LIKELIHOODS
from isounc.models import Model
from isounc.runs.files import store_json, stored_json

RULES = ("unit", "effective_dimension")
"""Rules that set sigma^2 (`isounc.estimates.scale_rules`)."""
MOST_NUMBERS = 2**27
"""Numbers that the gradients at the reference inputs may have where they must be formed."""
_LIKELIHOODS = {task: name for name, task in TASK_OF_LIKELIHOOD.items()}


@dataclass(frozen=True)
class LogitScale:
    """The sigma^2 of f ~ N(f(x, theta*), sigma^2 ||df/dtheta||^2), and where it comes from."""

    var: float
    """sigma^2, in squared units of the parameters."""
    rule: str
    """The rule of `RULES` that set it."""
    task: str
    """The task of the model."""
    num_params: int
    """Parameters that the gradients are taken of."""
    num_reference: int
    """Reference inputs."""
    effective_dimension: float | None = None
    """The effective dimension of the kernel of the reference inputs, where the rule needs it."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a JSON file, which `load` reads."""
        store_json(path, dataclasses.asdict(self), "scale")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LogitScale:
        """Read a file of `save`.

        Raises
        ------
        ValueError
            If it holds anything else; the message names the file and the field.
        OSError
            If it is absent or may not be read.
        """
        content, what = stored_json(path)
        return cls(**fields.declared(content, _FIELDS, what))


_FIELDS = {
    "var": fields.number(above=0),
    "rule": fields.text(RULES),
    "task": fields.text(TASKS),
    "num_params": fields.integer(1),
    "num_reference": fields.integer(2),
    "effective_dimension": fields.number(0, default=None),
}


def fit_logit_scale(
    model: Any,
    reference: Any,
    params: Any = None,
    *,
    rule: str = "unit",
    prior_sd: float | None = None,
    task: str | None = None,
    noise_sd: float = 1.0,
    outputs: str | None = None,
    wrt: Filter = None,
    kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
) -> LogitScale:
    """Set the scale of Gaussian logits by reference inputs, for `isotropic(..., scale=)`.

        unit                   median(sigma^2 ||df/dtheta||^2) = pi^2 / 3
        effective_dimension    sum_i a_i sigma^2 ||df_i/dtheta||^2 = sum lambda / (lambda + 1 / s^2)

    The first takes the parameters' noise to be as large as a label's own on the scale of the logit
    f; of several classes, f is the log-odds of the predicted one. In regression pi^2 / 3 gives way
    to noise_sd^2. It is about the order of the estimates and overstates their sum. The second has
    a_i = p_i (1 - p_i), the eigenvalues lambda of the kernel sqrt(a_i a_j) <df_i, df_j> of the
    training inputs, and the prior sd s; with C classes the kernel has n C rows, by the curvature of
    the softmax. It sets the sum of the estimates over the training inputs, too.

    Parameters
    ----------
    model, params, task, noise_sd, outputs, wrt, kwargs, batch_size
        As `isounc.isotropic` takes them.
    reference
        Two inputs or more: training inputs or, for unit, any batch of typical ones, such as 100.
    rule
        `"unit"`, or `"effective_dimension"`, which forms the gradients at all reference inputs.
    prior_sd
        Prior standard deviation of the parameters, for effective_dimension; that of a `Model` goes
        through its parameterisation.

    Returns
    -------
    LogitScale
        The scale, which can be saved.

    Raises
    ------
    TypeError, ValueError
        As `isounc.isotropic`, with the name `reference`; for fewer than two inputs, gradients that
        are zero at half of them or more, probabilities as outputs, and gradients too large to form.

    Examples
    --------
    >>> from flax import nnx
    >>> classifier = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    >>> typical = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    >>> scale = fit_logit_scale(classifier, typical, task="binary")
    >>> scale.num_reference
    100
    """
    check_choice("rule", rule, RULES)
    noise_sd = check_real("noise_sd", noise_sd, positive=True)
    if isinstance(model, Model) and model.likelihood not in TASK_OF_LIKELIHOOD:
        known = ", ".join(TASK_OF_LIKELIHOOD)
        raise ValueError(
            f"model must be one with likelihood {known}, got {model.likelihood!r}; "
            "isounc.estimate('logit_scaled', ...) has a rule for any"
        )
    _check_logits(outputs)
    if rule == "unit" and prior_sd is not None:
        raise ValueError(f"prior_sd must be left out for rule 'unit', got {prior_sd!r}")
    bound, inputs, task = bind_task(
        model, reference, params, task=task, outputs=outputs, kwargs=kwargs, argument="reference"
    )
    if rule == "effective_dimension":
        prior_sd = check_real("prior_sd", prior_sd, positive=True)
        if task == "token":
            raise ValueError("rule must be 'unit' for task 'token', got 'effective_dimension'")
    leaves, _, _ = split_leaves(bound.params, wrt)
    num_params = sum(leaf.size for leaf in leaves)
    columns = columns_of(
        bound, inputs, task=task, target="predicted" if task in ("multiclass", "token") else None,
        outputs=outputs, wrt=wrt, batch_size=batch_size, argument="reference",
    )  # fmt: skip
    spread = columns.sq_norms.mean(axis=1)
    if len(spread) < 2:
        raise ValueError(f"reference must hold two inputs or more, got {len(spread)}")
    middle = float(np.median(spread))
    if middle <= 0:
        raise ValueError(
            "reference must have gradients that are not zero at more than half of its inputs, got "
            f"{int((spread == 0).sum())} of {len(spread)} that are"
        )
    if rule == "unit":
        own = noise_sd**2 if task == "regression" else LOGISTIC_VAR
        return LogitScale(own / middle, rule, task, num_params, len(spread))
    assert prior_sd is not None
    sd = np.float64(prior_sd)
    if isinstance(model, Model):
        counted, _, _ = split_leaves(model.unflatten(model.param_prior_sd(prior_sd)), wrt)
        sd = np.concatenate([np.ravel(leaf) for leaf in counted]).astype(np.float64)
    gradients = _weighted_gradients(bound, inputs, task, wrt, noise_sd, num_params, batch_size)
    dimension = _effective_dimension(gradients * sd)
    var = dimension / float((gradients**2).sum())
    return LogitScale(var, rule, task, num_params, len(spread), dimension)


def _check_logits(outputs: Any) -> None:
    if isinstance(outputs, str) and outputs == "probabilities":
        raise ValueError(
            "outputs must be 'logits' for Gaussian logits, got 'probabilities'; give a function that "
            "returns the logits"
        )


def scale_var(
    scale: Any, model: Any, reference: Any, params: Any, *, task: Any, prior_sd: Any,
    noise_sd: float, outputs: Any, wrt: Filter, kwargs: Any, batch_size: int | None,
) -> float:  # fmt: skip
    """sigma^2 of `isotropic(..., scale=)`: by a rule, given, or fitted before.

    Raises
    ------
    TypeError, ValueError
        For a scale of another kind or of another model, and a reference too many or too few.
    """
    if isinstance(scale, str):
        try:
            check_choice("scale", scale, RULES)
        except ValueError as error:
            raise ValueError(f"{error}; isounc.LogitScale.load reads a stored scale") from error
        if reference is None:
            raise ValueError(
                f"reference must be given for scale {scale!r}: training inputs, or for 'unit' any "
                "batch of typical inputs; or give as scale what isounc.fit_logit_scale returned"
            )
        return fit_logit_scale(
            model, reference, params, rule=scale, prior_sd=prior_sd, task=task, noise_sd=noise_sd,
            outputs=outputs, wrt=wrt, kwargs=kwargs, batch_size=batch_size,
        ).var  # fmt: skip
    for name, value in (("reference", reference), ("prior_sd", prior_sd)):
        if value is not None:
            raise ValueError(f"{name} must be left out where scale is no rule, got {value!r:.60}")
    _check_logits(outputs)
    if not isinstance(scale, LogitScale):
        try:
            return check_real("scale", scale, positive=True)
        except ValueError as error:
            raise ValueError(
                f"scale must be one of {', '.join(RULES)}, sigma^2 (a positive number), or what "
                f"isounc.fit_logit_scale returned, got {scale!r:.60}"
            ) from error
    if isinstance(model, Model):
        task = TASK_OF_LIKELIHOOD.get(model.likelihood)
        params = model.unflatten(np.zeros(model.num_params, np.float32))
    else:
        params = bind_task(model, None, params, task=task, outputs=outputs, kwargs=kwargs)[0].params
    given = task, sum(leaf.size for leaf in split_leaves(params, wrt)[0])
    if given != (scale.task, scale.num_params):
        raise ValueError(
            f"scale must be one fitted to this model and wrt (task {given[0]}, {given[1]} "
            f"parameters), got one of task {scale.task} and {scale.num_params} parameters"
        )
    return scale.var


def _weighted_gradients(
    bound: Bound,
    inputs: Any,
    task: str,
    wrt: Filter,
    noise_sd: float,
    num_params: int,
    batch_size: int | None,
) -> Float[np.ndarray, "R P"]:
    """B_i^T J_i at all inputs, rows of the factor of the GGN."""
    parts = split(inputs, batch_size or 32, tokens=False, argument="reference")
    shape = output_shape(bound, jax.tree.map(lambda a: a[:1], parts[0].inputs)).shape
    count = sum(len(part.rows) for part in parts) * math.prod(shape)
    if count * num_params > MOST_NUMBERS:
        raise ValueError(
            f"reference must have gradients of at most {MOST_NUMBERS} numbers for rule "
            f"'effective_dimension', got {count} gradients of {num_params} each; give fewer inputs, "
            "or some of the parameters as wrt"
        )
    found = []
    for part in parts:
        rows = _rows(
            bound.params, bound.rest, part.inputs, jnp.asarray(noise_sd),
            apply=bound.apply, likelihood=_LIKELIHOODS[task], wrt=wrt,
        )  # fmt: skip
        found.append(np.asarray(rows, np.float64)[: len(part.rows)].reshape(-1, num_params))
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnames=("apply", "likelihood", "wrt"))
def _rows(
    params: Any,
    rest: Any,
    inputs: Any,
    noise_sd: Float[Array, ""],
    *,
    apply: Callable[[Any, Any, Any], Any],
    likelihood: str,
    wrt: Filter,
) -> Float[Array, "N O P"]:
    leaves, fill, _ = split_leaves(params, wrt)

    def at_input(row):
        def output_of(leaves):
            out = apply(fill(leaves), rest, jax.tree.map(lambda a: a[None], row))[0]
            return jnp.atleast_1d(out).astype(jnp.promote_types(out.dtype, jnp.float32))

        output, pullback = jax.vjp(output_of, leaves)
        if likelihood == "gaussian":  # of any number of outputs with one noise
            half = jnp.eye(output.size, dtype=output.dtype) / noise_sd
        else:
            half = LIKELIHOODS[likelihood].curvature_factor(output[None], noise_sd)[0]
        (parts,) = jax.vmap(pullback)(half.T.astype(output.dtype))
        return jnp.concatenate([a.reshape(output.size, -1) for a in parts], axis=1)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(at_input)(inputs)


def _effective_dimension(rows: Float[np.ndarray, "R P"]) -> float:
    """Sum of lambda / (lambda + 1) over the eigenvalues of the rows' kernel."""
    kernel = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    eigenvalues = np.maximum(np.linalg.eigvalsh(kernel), 0)
    return float((eigenvalues / (1 + eigenvalues)).sum())
