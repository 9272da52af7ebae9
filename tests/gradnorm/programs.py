"""Random programs over every function of `jax.numpy`, `jax.lax` and kin that takes arrays.

A program puts one or two such functions between a parameter w (4 x 4) and a scalar, at a place
where the engine has to decide what becomes of w: on w alone, on activations, or between w and data.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import special

MODULES = {
    "jnp": jnp, "lax": lax, "nn": jax.nn, "fft": jnp.fft, "linalg": jnp.linalg, "special": special,
    "lax.linalg": lax.linalg,
}  # fmt: skip
DATA = np.sin(np.arange(16.0) + 1).reshape(4, 4) * 0.4 + 0.5
"""Numbers between 0.1 and 0.9, where most functions are defined."""
IDS = np.array([3, 0, 3, 1], np.int8)


@jax.custom_jvp
def doubled_slope(a):
    """A function whose derivative is twice that of its value."""
    return jnp.sin(a)


@doubled_slope.defjvp
def _doubled_slope_jvp(primals, tangents):
    return jnp.sin(primals[0]), 2 * jnp.cos(primals[0]) * tangents[0]


@jax.custom_vjp
def table_product(a, b):
    """A product whose backward pass indexes a constant by a traced number."""
    return a @ b


def _table_product_fwd(a, b):
    return a @ b, (a, b, jnp.array([1.0, 2.0, 3.0], a.dtype))


def _table_product_bwd(residuals, g):
    a, b, table = residuals
    scale = lax.fori_loop(0, 3, lambda i, total: total + table[i], jnp.zeros((), a.dtype))
    return scale * g @ b.T, scale * a.T @ g


table_product.defvjp(_table_product_fwd, _table_product_bwd)


def through_reference(a, b):
    """A product that passes through a mutable reference."""
    held = jax.new_ref(jnp.zeros_like(a))
    held[...] += a @ b
    return held[...]


def counted(a, b):
    """A product times a number of turns that a while loop finds without a derivative."""
    limit = lax.stop_gradient(jnp.abs(a).sum())
    return a @ b * lax.while_loop(lambda i: i < limit, lambda i: i + 1, jnp.zeros((), a.dtype))


OWN: dict[str, Callable[..., Any]] = {
    "doubled_slope": doubled_slope,
    "table_product": table_product,
    "through_reference": through_reference,
    "counted": counted,
    "stop_gradient_of_part": lambda a: a + lax.stop_gradient(a**2),
    "reshape_by_columns": lambda a: a.reshape(4, 4, order="F"),
    "reshape_dimensions": lambda a: lax.reshape(a, (4, 4), dimensions=(1, 0)),
    "complex_product": lambda a, b: jnp.abs(jnp.fft.fft(a) @ b),
    "complex_parameter": lambda a, b: (a @ jnp.exp(1j * b)).imag,
    "rows": lambda a: jnp.take(a, IDS, axis=0),
    "rows_of_a_tall_table": lambda a: jnp.take(
        jnp.tile(a, (100, 1)), np.array([[200, 7], [130, 200]], np.uint8), axis=0
    ),
    "columns": lambda a: a[:, IDS],
    "dynamic_rows": lambda a: lax.dynamic_slice(a, (np.int8(1), np.int8(0)), (2, 4)),
    "set_rows": lambda a: a.at[IDS].set(a[::-1]),
    "add_rows": lambda a: a.at[IDS].add(1.0),
    "add_to_rows": lambda a, b: a.at[IDS].add(b),
    "multiply_rows": lambda a, b: a.at[IDS].multiply(b, mode="drop"),
    "pad": lambda a: lax.pad(a, jnp.zeros((), a.dtype), [(1, -1, 0), (0, 2, 1)]),
    "strided": lambda a: a[::2, ::-1],
    "convolution": lambda a, b: lax.conv(a[None, None], b[None, None], (1, 1), "SAME"),
    "convolution_of_columns": lambda a, b: jnp.convolve(a[0], b[1]),
    "dot_of_batches": lambda a, b: lax.dot_general(a, b, (((1,), (0,)), ((), ()))),
    "dot_over_batch": lambda a, b: lax.dot_general(a, b, (((), ()), ((0,), (1,)))),
    "dot_over_both": lambda a, b: lax.dot_general(a, b, (((0, 1), (1, 0)), ((), ()))),
    "einsum_diagonal": lambda a, b: jnp.einsum("ii,ij->j", a, b),
    "einsum_batch": lambda a, b: jnp.einsum("ij,ik->ijk", a, b),
    "mapped": lambda a, b: jax.vmap(lambda row: jnp.tanh(row @ b))(a),
    "mapped_by_scan": lambda a, b: lax.map(lambda row: jnp.tanh(row @ b), a),
    "scan_over": lambda a, b: lax.scan(lambda c, row: (c + row @ b, c * row), b[0], a)[1],
    "scan_carry": lambda a, b: lax.scan(lambda c, _: (jnp.tanh(c @ b), None), a, None, 3)[0],
    "scan_reversed": lambda a, b: lax.scan(
        lambda c, row: (jnp.tanh(c @ row), c), a, jnp.stack([b, b.T]), reverse=True, unroll=2
    )[0],
    "associative_scan": lambda a: lax.associative_scan(jnp.multiply, a, axis=1),
    "fori": lambda a, b: lax.fori_loop(0, 3, lambda i, c: c + jnp.sin(c @ b) * i, a),
    "branch": lambda a, b: lax.cond(a.sum() > 0, lambda: a @ b, lambda: b @ a),
    "switch": lambda a, b: lax.switch(jnp.argmax(a[0]), [lambda: a @ b, lambda: b, lambda: a]),
    "branch_by_while": lambda a, b: jnp.where(a > b.mean(), a @ b, 0),
    "checkpoint": lambda a, b: jax.checkpoint(lambda a, b: jnp.sin(a @ b) @ b)(a, b),
    "checkpoint_of_one": lambda a: jax.checkpoint(lambda a: a.T * 2)(a),
    "jit": lambda a, b: jax.jit(lambda a, b: (a.T, b @ a))(a, b)[1],
    "jit_of_one": lambda a: jax.jit(lambda a: 3 * a.T)(a),
    "barrier": lambda a: lax.optimization_barrier((a, a.T))[1],
    "solve_by_iteration": lambda a, b: lax.custom_linear_solve(
        lambda v: (b @ b.T + 4 * jnp.eye(4, dtype=b.dtype)) @ v, a,
        lambda matvec, rhs: jnp.linalg.solve(jax.jacobian(matvec)(rhs[:, 0]), rhs), symmetric=True,
    ),
    "derivative_inside": lambda a, b: jax.grad(lambda a: jnp.sin(a @ b).sum())(a),
    "forward_derivative_inside": lambda a, b: jax.jvp(lambda a: jnp.sin(a @ b), (a,), (b,))[1],
    "random": lambda a: a * jax.random.normal(jax.random.key(0), a.shape, a.dtype),
    "gamma": lambda a: jax.random.gamma(jax.random.key(0), 1 + jnp.abs(a), dtype=a.dtype),
    "attention": lambda a, b: jax.nn.dot_product_attention(
        a.reshape(1, 2, 2, 4), b.reshape(1, 2, 2, 4), a.T.reshape(1, 2, 2, 4)
    ),
    "callback_free_print": lambda a: (jax.debug.callback(lambda v: None, a[0, 0]), a * 2)[1],
    "concatenated": lambda a: jnp.concatenate([a[:2], a[2:]]),
    "split": lambda a, b: sum(part @ b for part in jnp.split(a, 2)),
    "tree": lambda a, b: lax.scan(lambda c, xs: (c, xs["a"] @ xs["b"]), 0, {"a": a, "b": b})[1],
}  # fmt: skip
"""Functions that need more than arrays, by name."""


class Operation(NamedTuple):
    """A function of one, two or three 4 x 4 arrays."""

    name: str
    function: Callable[..., Any]
    arity: int


@functools.cache
def functions() -> dict[str, Callable[..., Any]]:
    """Return all functions of the modules by name, whatever they take."""
    found = dict(OWN)
    for prefix, module in MODULES.items():
        for name in sorted(dir(module)):
            function = getattr(module, name)
            if not name.startswith("_") and callable(function) and not inspect.isclass(function):
                found[f"{prefix}.{name}"] = function
    return found


@functools.cache
def operation(name: str) -> Operation | None:
    """Return the function of a name if it takes 4 x 4 arrays and has a derivative."""
    function = functions()[name]
    if name in OWN:
        return Operation(name, function, len(inspect.signature(function).parameters))
    arity = next((arity for arity in (1, 2, 3) if _has_derivative(function, arity)), None)
    return None if arity is None else Operation(name, function, arity)


def operations() -> list[Operation]:
    """Return all functions that are operations; to try them all takes a while."""
    return [found for name in functions() if (found := operation(name))]


def random_operations(rng: np.random.Generator) -> Iterator[Operation]:
    """Yield operations at random without end, of which each is tried when its turn comes."""
    names = list(functions())
    while True:
        if found := operation(names[rng.integers(len(names))]):
            yield found


def _has_derivative(function: Callable[..., Any], arity: int) -> bool:
    """Whether a function of so many arrays returns some that depend smoothly on the first one."""

    def total(w):
        return jnp.sum(flat(function(w, *[jnp.asarray(DATA, w.dtype)] * (arity - 1))))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            jax.eval_shape(jax.grad(total), jax.ShapeDtypeStruct((4, 4), jnp.result_type(float)))
    except Exception:  # whatever a function raises that is not made for such arrays
        return False
    return True


def flat(values: Any) -> jax.Array:
    """Return the real and imaginary parts of all floating outputs as one vector."""
    parts = []
    for leaf in jax.tree.leaves(values):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            parts += [leaf.real.ravel(), leaf.imag.ravel()]
        elif jnp.issubdtype(leaf.dtype, jnp.floating):
            parts.append(leaf.ravel())
    return jnp.concatenate(parts)


def square(values: Any) -> jax.Array:
    """Return the outputs as a 4 x 4 array, as they are if they are one."""
    leaves = [leaf for leaf in jax.tree.leaves(values) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if leaves and leaves[0].size == 16:
        return leaves[0].reshape(4, 4)
    return jnp.resize(flat(values), (4, 4))


class Program(NamedTuple):
    """A scalar function of w and data."""

    name: str
    function: Callable[[Any, Any], Any]


def program(place: str, first: Operation, second: Operation | None, other: int) -> Program:
    """Return the program that puts operations at a place.

    Parameters
    ----------
    place
        parameter (the operation sees w alone), activations, data (w meets data in the operation), or
        twice (as parameter, while w is also used elsewhere).
    first, second
        The operations, the second on the output of the first.
    other
        Position of w among the inputs of an operation with several.
    """

    def apply(operation, a, fill):
        inputs = [fill] * operation.arity
        inputs[other % operation.arity] = a
        return square(operation.function(*inputs))

    def function(w, x):
        start = w if place != "activations" else jnp.tanh(x @ w)
        fill = x if place in ("activations", "data") else w
        h = apply(first, start, fill)
        if second is not None:
            h = apply(second, h, fill)
        out = jnp.sin(x @ h) if place != "activations" else jnp.sin(h @ w)
        return out.sum() + (jnp.cos(x @ w).sum() if place == "twice" else 0)

    names = first.name if second is None else f"{second.name}({first.name})"
    return Program(f"{names} {place} {other}", function)


PLACES = ("parameter", "activations", "data", "twice")


def every_program(operations: list[Operation]) -> Iterator[Program]:
    """Yield programs of every single operation, at every place and position."""
    for operation, place in itertools.product(operations, PLACES):
        for other in range(operation.arity if place in ("data", "activations") else 1):
            yield program(place, operation, None, other)


def random_programs(seed: int, number: int) -> list[Program]:
    """Return programs of two operations each."""
    rng = np.random.default_rng(seed)
    drawn = random_operations(rng)
    return [
        program(PLACES[rng.integers(4)], next(drawn), next(drawn), int(rng.integers(3)))
        for _ in range(number)
    ]
