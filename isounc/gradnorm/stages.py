"""Squared gradient norms of a chain of functions, each of which is compiled by itself.

A deep model is a chain x_0 -> x_1 -> ... of functions that differ in their parameters alone. Where
one compiled program holds all of them, each is compiled anew. `linearise_stage` is one link: its
pullback holds arrays only, so that it may leave one compiled function and enter another, and takes
the cotangents of the link's output to those of its input and to the norms of its parameters. One
program for the forward pass and one for the backward pass then serve all links of a kind.

Every parameter must belong to one link. For one that several share, give the factors of its uses to
a function of their own (`isounc.llm.answers.layerwise` does so for a tied embedding).

Axes: B examples, K outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from isounc.gradnorm.engine import rewrite, sq_norms, while_loops_named
from isounc.gradnorm.leaves import Filter, split_leaves
from isounc.gradnorm.plan import Plan


@dataclasses.dataclass(frozen=True, eq=False)
class _Form:
    """Structure of a pullback without its arrays; one object for all uses of a compiled stage."""

    tree: Any
    """Structure of the function that JAX made."""
    params: dict[int, int]
    """Which of its leaves are parameters: these are given again, as a compiled function would copy
    them on their way out."""
    x: Any
    """Structure of x."""
    plan: Plan
    paths: list[str]
    shapes: list[tuple[int, ...]]
    dtype: np.dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pullback:
    """Function from cotangents of a stage's output to those of its input, and to norms."""

    # Leaves are arrays, but transformations of JAX put other things in their place for a while.
    arrays: list[Any]
    """Values of the forward pass that the backward pass needs, without the parameters."""
    data: Any
    """Data of parameters with several uses."""
    form: _Form = dataclasses.field(metadata={"static": True})

    def __call__(
        self, params: PyTree[Array], cotangents: Float[Array, "K B *out"]
    ) -> tuple[PyTree[Array], dict[str, Float[Array, "B K"]]]:
        """Cotangents of x, and the squared gradient norm of each leaf by path.

        `params` are those of the forward pass.
        """
        form, given, others = self.form, jax.tree.leaves(params), iter(self.arrays)
        leaves = [
            given[form.params[i]] if i in form.params else next(others)
            for i in range(form.tree.num_leaves)
        ]
        pullback = jax.tree.unflatten(form.tree, leaves)
        with while_loops_named():
            *cotangents_of_leaves, of_x = jax.vmap(pullback)(cotangents)

        def norms(cotangents, data):
            return sq_norms(form.plan, form.shapes, cotangents, data, form.dtype)

        by_example = jax.vmap(jax.vmap(norms), in_axes=(0, None))
        by_leaf = by_example(tuple(cotangents_of_leaves), self.data)
        of_x = jax.tree.unflatten(form.x, of_x)
        return of_x, {path: norm.T for path, norm in zip(form.paths, by_leaf, strict=True)}


def linearise_stage(
    f: Callable[..., tuple[Any, Any]],
    params: PyTree[Array],
    x: PyTree[Array],
    *args: PyTree[Array],
    wrt: Filter = None,
    policy: Callable[..., bool] | None = None,
) -> tuple[Float[Array, "B *out"], Any, Pullback]:
    """Evaluate one function of a chain for B examples, and prepare its part of the backward pass.

    Parameters
    ----------
    f
        Function of (params, x, *args) for one example, that returns an array and a pytree (aux).
    params
        Pytree of arrays, which all examples share.
    x
        Pytree of floating-point arrays whose cotangents are wanted, with a leading axis of
        examples.
    args
        Data, with a leading axis of examples.
    wrt
        The leaves that count, as for `value_and_sq_grad_norm`; the others are fixed.
    policy
        Values of the forward pass that are kept for the backward pass, as for `jax.checkpoint`; the
        others are computed again. None keeps all.

    Returns
    -------
    tuple
        The outputs and aux of all examples, and the pullback.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `value_and_sq_grad_norm` does.
    """
    leaves, fill, paths = split_leaves(params, wrt)
    double = any(leaf.dtype == jnp.float64 for leaf in leaves)
    dtype = np.dtype(np.float64 if double else np.float32)
    flat, tree = jax.tree.flatten((x, args))
    num_x = jax.tree.structure(x).num_leaves
    num_examples = flat[0].shape[0]
    aux_trees: list[Any] = []

    def flat_f(leaves: Sequence[Any], flat: Sequence[Any]) -> list[Any]:
        x, args = jax.tree.unflatten(tree, flat)
        out, aux = f(fill(leaves), x, *args)
        flat_aux, aux_tree = jax.tree.flatten(aux)
        aux_trees.append(aux_tree)
        return [out, *flat_aux]

    example = [jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in flat]
    rewritten = rewrite(flat_f, leaves, example, dtype)

    def for_each(array: Array) -> Array:
        return jnp.broadcast_to(array, (num_examples, *array.shape))

    # Every example has its own copy of what is differentiated, and so its own gradients and norms.
    formed = {i: for_each(leaves[i]) for i in rewritten.plan.formed}
    totals, taps = jax.tree.map(for_each, (rewritten.totals, rewritten.taps))

    def outputs(formed, totals, taps, flat_x):
        def one(formed, totals, taps, flat):
            return rewritten.evaluate(leaves, flat, formed, totals, taps)

        return jax.vmap(one)(formed, totals, taps, [*flat_x, *flat[num_x:]])

    if policy is not None:
        outputs = jax.checkpoint(outputs, policy=policy, prevent_cse=False)
    with while_loops_named():
        out, pullback, (data, aux) = jax.vjp(
            outputs, formed, totals, taps, flat[:num_x], has_aux=True
        )
    arrays, structure = jax.tree.flatten(pullback)
    numbers = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(params))}
    known = {i: numbers[id(a)] for i, a in enumerate(arrays) if id(a) in numbers}
    form = _Form(
        structure, known, jax.tree.structure(x), rewritten.plan, paths,
        [leaf.shape for leaf in leaves], dtype,
    )  # fmt: skip
    kept = [array for i, array in enumerate(arrays) if i not in known]
    return out, jax.tree.unflatten(aux_trees[-1], aux), Pullback(kept, data, form)
