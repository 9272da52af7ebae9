"""Random programs over all functions of JAX's public modules, against plain gradients."""

from __future__ import annotations

import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isounc.gradnorm import value_and_sq_grad_norm
from tests.gradnorm.programs import (
    DATA,
    OWN,
    Program,
    every_program,
    operation,
    operations,
    random_operations,
    random_programs,
)

SLOW = os.environ.get("ISOUNC_SLOW") == "1"
TOGETHER = 25
"""Number of programs that are compiled as one, each with a parameter of its own."""


@pytest.fixture(autouse=True)
def _in_float64_and_as_users_write(x64):
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about arguments out of a function's domain
        yield


def differences(programs: list[Program]) -> list[str]:
    """Return programs whose norms are not those of `jax.grad`, with both numbers."""
    w, x = jnp.asarray(DATA.T[::-1]), jnp.asarray(DATA)

    def total(params, x):
        return sum(function(params[name], x) for name, function in known)

    known = []
    for one in programs:
        try:
            jax.eval_shape(jax.grad(jax.jit(one.function)), w, x)
        except Exception:  # JAX itself has no gradient of the traced function to compare with
            continue
        known.append(one)
    params = {one.name: w for one in known}
    gradient = jax.jit(jax.grad(total))(params, x)
    _, norms = value_and_sq_grad_norm(total, per_leaf=True)(params, x)
    found = []
    for one in known:
        expected, got = (gradient[one.name] ** 2).sum(), norms[f"['{one.name}']"]
        # Where the gradient is not finite, there is no number to compare.
        if np.isfinite(expected) and not np.isclose(got, expected, rtol=1e-8, atol=1e-18):
            found.append(f"{one.name}: {got:.10g} instead of {expected:.10g}")
    return found


def check_all(programs: list[Program]) -> None:
    programs = list({one.name: one for one in programs}.values())
    found = []
    for start in range(0, len(programs), TOGETHER):
        found += differences(programs[start : start + TOGETHER])
    assert not found, "\n".join(found)


def test_functions_are_found():
    arities = {"rows": 1, "jnp.matmul": 2, "lax.dot": 2, "nn.softmax": 1, "lax.clamp": 3}
    arities |= {"linalg.solve": 2, "fft.fft": 1}
    for name, arity in arities.items():
        found = operation(name)
        assert found and found.arity == arity, name
    assert operation("jnp.argmax") is None


def test_single_functions():
    if SLOW:
        programs = list(every_program(operations()))
    else:
        rng, programs = np.random.default_rng(0), {}
        for drawn in random_operations(rng):
            of_this = list(every_program([drawn]))
            one = of_this[rng.integers(len(of_this))]
            programs[one.name] = one
            if len(programs) == 50:
                break
        programs = list(programs.values())
    check_all(programs)


def test_own_functions():
    """Those of the faults that were found: narrow indices, complex values, references, loops."""
    programs = every_program([found for name in OWN if (found := operation(name))])
    if not SLOW:
        programs = [one for one in programs if one.name.endswith(("parameter 0", "data 0"))]
    check_all(list(programs))


@pytest.mark.parametrize("seed", range(40 if SLOW else 1))
def test_two_functions(seed):
    check_all(random_programs(seed, 25))
