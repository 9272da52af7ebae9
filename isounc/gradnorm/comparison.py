"""Comparison of the engine's squared gradient norms with plain gradients, for a user's own model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from isounc.gradnorm.api import value_and_sq_grad_norm
from isounc.gradnorm.leaves import Filter, check_leaves, split_leaves
from isounc.gradnorm.report import explain


class LeafComparison(NamedTuple):
    """Squared gradient norm of one leaf, in both ways."""

    path: str
    """Path in the parameters."""
    way: str
    """Treatment by the engine: fast, tied, formed or unused (`isounc.gradnorm.plan`)."""
    sq_norm: float
    """||grad f||^2 over this leaf, by `value_and_sq_grad_norm`."""
    plain: float
    """The sum of squares of `jax.grad`, added up in float64."""

    @property
    def relative_error(self) -> float:
        """|sq_norm - plain| / plain: 0 where both are zero, NaN where either is."""
        difference = abs(self.sq_norm - self.plain)
        if self.sq_norm == self.plain:
            return 0.0
        return difference / self.plain if self.plain else difference * float("inf")


class Comparison(NamedTuple):
    """Squared gradient norms of every leaf, in both ways."""

    leaves: tuple[LeafComparison, ...]
    """One comparison for each leaf."""

    @property
    def relative_error(self) -> float:
        """The largest relative error of a leaf; NaN if one is."""
        return float(np.max([leaf.relative_error for leaf in self.leaves]))

    def __str__(self) -> str:
        lines = [f"{'leaf':<40}  {'way':<7}{'engine':>14}{'jax.grad':>14}{'relative error':>16}"]
        lines += [
            f"{leaf.path:<40}  {leaf.way:<7}{leaf.sq_norm:>14.6g}{leaf.plain:>14.6g}"
            f"{leaf.relative_error:>16.1e}"
            for leaf in self.leaves
        ]
        return "\n".join(lines)


def check(
    f: Callable[..., Any], params: Any, *args: Any, wrt: Filter = None, has_aux: bool = False
) -> Comparison:
    """Compare `value_and_sq_grad_norm(f)(params, *args)` with plain gradients, leaf by leaf.

    The reference is sum_i (df/dtheta_i)^2 of `jax.grad`, in the precision of `params`: errors of a
    few roundings (1e-6 in float32) belong to both. The gradient is held in memory as a whole.

    Parameters
    ----------
    f
        Scalar function `f(params, *args)` of one example.
    params
        Its parameters, any pytree of arrays.
    *args
        One example.
    wrt
        The leaves that count, as in `value_and_sq_grad_norm`.
    has_aux
        Whether f returns `(scalar, aux)`.

    Returns
    -------
    Comparison
        Both numbers and their relative error for each leaf; `print` shows them as a table.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `value_and_sq_grad_norm`.

    Examples
    --------
    >>> f = lambda w, x: jnp.tanh(x @ w)
    >>> assert check(f, jnp.ones(3), jnp.ones(3)).relative_error < 1e-5
    """
    check_leaves(params)
    norms = value_and_sq_grad_norm(f, per_leaf=True, wrt=wrt, has_aux=has_aux)(params, *args)[1]
    ways = {leaf.path: leaf.way for leaf in explain(f, params, *args, wrt=wrt, has_aux=has_aux)[0]}
    leaves, fill, paths = split_leaves(params, wrt)

    def of_leaves(leaves: list[Any]) -> Any:
        result = f(fill(leaves), *args)
        return result[0] if has_aux else result

    gradients = jax.jit(jax.grad(of_leaves))(leaves)
    plain = [float((np.asarray(g, np.float64) ** 2).sum()) for g in gradients]
    return Comparison(
        tuple(
            LeafComparison(path, ways[path], float(norms[path]), sq_norm)
            for path, sq_norm in zip(paths, plain, strict=True)
        )
    )
