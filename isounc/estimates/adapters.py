"""Any trained model as a function of its parameters: Flax NNX, Flax Linen, or a plain function.

`bind` takes a model apart into a hashable function `apply(params, rest, x)` of a batch, the
parameters that gradients are taken of, and the rest (batch statistics and the like). Equal models
give equal functions, so that what was compiled for one serves the next call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors, linen, nnx

KeywordArguments = tuple[tuple[str, Any], ...]


class Bound(NamedTuple):
    """A model taken apart."""

    apply: Callable[[Any, Any, Any], Any]
    """`apply(params, rest, x) -> outputs` of a batch; hashable."""
    params: Any
    """Arrays that gradients are taken of."""
    rest: Any
    """Arrays that are held fixed."""


@dataclass(frozen=True)
class _Nnx:
    graphdef: Any
    kwargs: KeywordArguments

    def __call__(self, params, rest, x):
        return self.called(params, rest, x)[0]

    def called(self, params, rest, x) -> tuple[Any, nnx.Module]:
        """The outputs, and the module after the call, which may have changed its variables.

        Copied variables belong to the trace that the call is in, so that a call may count itself or
        advance a stream of random numbers; each call begins with the model as it was given.
        """
        module: Any = nnx.merge(self.graphdef, params, rest, copy=True)
        return module(x, **dict(self.kwargs)), module


@dataclass(frozen=True)
class _Linen:
    module: linen.Module
    kwargs: KeywordArguments

    def __call__(self, params, rest, x) -> Any:
        return self.module.apply({**rest, "params": params}, x, **dict(self.kwargs))


@dataclass(frozen=True)
class _Function:
    f: Callable[..., Any]
    kwargs: KeywordArguments

    def __call__(self, params, rest, x):
        return self.f(params, x, **dict(self.kwargs))


def bind(model: Any, params: Any = None, kwargs: Mapping[str, Any] | None = None) -> Bound:
    """Take a model apart.

    Parameters
    ----------
    model
        An NNX module, which holds its parameters; a Linen module; a function `f(params, x)` of a
        batch.
    params
        Linen: the variables (`{"params": ..., "batch_stats": ...}`) or the parameters alone. A
        function: any pytree of arrays.
    kwargs
        Keyword arguments of each call (`{"train": False}`), hashable.

    Raises
    ------
    TypeError
        For a model that is none of these, parameters that are missing or given twice, or kwargs
        that have no hash.
    ValueError
        For an NNX module in training mode (dropout or batch statistics).
    """
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise TypeError(f"kwargs must map names to constants, got {kwargs!r:.80}")
    pairs = tuple(sorted(kwargs.items()))
    try:
        hash(pairs)
    except TypeError as error:
        raise TypeError(
            f"kwargs must hold constants (True, 3, 'same'), got {kwargs!r}; wrap anything else in "
            "a function f(params, x)"
        ) from error
    if isinstance(model, nnx.Module):
        if params is not None:
            raise TypeError(
                f"params must be left out for an NNX module, which holds its own, got "
                f"{type(params).__name__}; nnx.update puts others in"
            )
        _check_evaluating(model, dict(pairs))
        graphdef, state, rest = nnx.split(model, nnx.Param, ...)
        return Bound(_hashable(_Nnx(graphdef, pairs)), state, rest)
    if not callable(model) and not isinstance(model, linen.Module):
        raise TypeError(
            "model must be a Flax module, an isounc Model or a function f(params, x), got "
            f"{type(model).__name__}"
        )
    if params is None:
        what = "a Linen module (its variables)" if isinstance(model, linen.Module) else "a function"
        raise TypeError(f"params must be given for {what}, got None")
    if isinstance(model, linen.Module):
        if not isinstance(params, Mapping):
            raise TypeError(
                f"params must be the module's variables, a dict, got {type(params).__name__}"
            )
        variables = dict(params) if "params" in params else {"params": params}
        weights = variables.pop("params")
        return Bound(_hashable(_Linen(model, pairs)), weights, variables)
    return Bound(_hashable(_Function(model, pairs)), params, None)


def _hashable(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`apply`, hashed by identity where a module holds something without a hash.

    It is then compiled again at every call.
    """
    try:
        hash(apply)
    except TypeError:
        return functools.partial(apply)
    return apply


def _check_evaluating(model: nnx.Module, kwargs: Mapping[str, Any]) -> None:
    """Refuse dropout and statistics of the batch: the gradient would be a random number."""
    for path, module in nnx.iter_modules(model):
        wrong = []
        if getattr(module, "deterministic", None) is False:
            rates = [getattr(module, name, None) for name in ("rate", "dropout_rate")]
            rate = max([r for r in rates if isinstance(r, int | float)], default=0)
            if rate > 0:
                wrong.append(("deterministic", f"drops {rate:g} of its units"))
        if getattr(module, "use_running_average", None) is False:
            wrong.append(("use_running_average", "uses the statistics of the batch"))
        for flag, what in wrong:
            if not kwargs.get(flag):
                place = ".".join(map(str, path)) or "the model"
                raise ValueError(
                    f"model must be in evaluation mode; {place} ({type(module).__name__}) {what}. "
                    "Call model.eval() first."
                )


def check_steady(bound: Bound, x: Any) -> None:
    """Refuse an NNX module whose outputs depend on the batch or on random numbers.

    What no attribute tells shows in a call: statistics of the batch are updated, and a stream of
    random numbers advances. Recurrent layers advance one and never use what they drew; another
    stream must therefore give other outputs before the model is refused.

    Raises
    ------
    ValueError
        For a module in training mode.
    """
    apply = getattr(bound.apply, "func", bound.apply)
    kinds = (nnx.BatchStat, nnx.RngCount)
    if not isinstance(apply, _Nnx) or not jax.tree.leaves(nnx.filter_state(bound.rest, kinds)):
        return

    changed: dict[type, bool] = {}

    def call(params, rest, x):
        out, module = apply.called(params, rest, x)
        for kind in kinds:
            before, after = (
                jax.tree.leaves(nnx.filter_state(state, kind))
                for state in (rest, nnx.state(module))
            )
            changed[kind] = list(map(id, before)) != list(map(id, after))
        return out

    jax.eval_shape(call, bound.params, bound.rest, x)
    what = "updates the statistics of the batch" if changed[nnx.BatchStat] else ""
    if changed[nnx.RngCount] and not what:
        outputs = jax.jit(bound.apply)
        first = outputs(bound.params, bound.rest, x)
        # More than one, as two draws of dropout may agree on a few units.
        others = (outputs(bound.params, _reseeded(bound.rest, i), x) for i in range(1, 9))
        if not all(np.array_equal(first, other, equal_nan=True) for other in others):
            what = "uses random numbers (dropout, or noise of its own)"
    if what:
        raise ValueError(
            f"model must be in evaluation mode; it {what} when it is called. Call model.eval() "
            "first, or give the argument that switches it off as kwargs"
        )


def _reseeded(rest: Any, number: int) -> Any:
    """The same arrays with other random keys."""

    def other(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        data = jax.random.key_data(leaf) ^ jnp.uint32(number)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))

    return jax.tree.map(other, rest)


def output_shape(bound: Bound, x: Any, *, argument: str = "x") -> jax.ShapeDtypeStruct:
    """Shape of the outputs at a batch, which messages call `argument`, without computing them.

    Raises
    ------
    ValueError
        For a Linen module in training mode.
    TypeError
        Where the model returns anything but one array of real numbers.
    """
    try:
        out = jax.eval_shape(bound.apply, bound.params, bound.rest, x)
    except (errors.InvalidRngError, errors.ModifyScopeVariableError) as error:
        kind = "batch statistics are"
        if isinstance(error, errors.InvalidRngError):
            kind = "dropout (or another use of random numbers) is"
        raise ValueError(
            f"model must be in evaluation mode; {kind} on. Give the argument that switches it off, "
            "such as kwargs={'train': False} or kwargs={'deterministic': True}"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        message = str(error).partition("\n")[0]
        raise TypeError(
            f"model must take params, {argument} and kwargs as they were given; called at one input "
            f"it raised {type(error).__name__}: {message}"
        ) from error
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise TypeError(
            f"model must return one array of outputs, got {jax.tree.structure(out)}; wrap it into "
            "a function f(params, x) that picks the outputs"
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            f"model must return real numbers (logits, probabilities or values), got {out.dtype}"
        )
    return out
