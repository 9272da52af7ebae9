"""How programs of small and of large work are compiled on a CPU, whatever executor computes them."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys

import jax

from isounc.runs.batches import Group

LARGE_WORK = 30_000
"""Examples times parameters from which programs of a group are worth XLA's full optimization. On a
CPU gradients are 1.3 times as fast with it at 33,000 and 1.6 times at 500,000; four at once at
13,000 are not."""


def is_large(group: Group) -> bool:
    """Whether the programs of a group are worth XLA's full optimization."""
    return max((batch.work for batch in group), default=0) >= LARGE_WORK


@functools.cache
def quick_compilation() -> tuple[str, ...]:
    """XLA's flags that halve the time of compilation, where this JAX knows them.

    Small programs run as fast with them; those of large work do not. A process that starts with an
    unknown flag in XLA_FLAGS dies.
    """
    known = []
    for name, value in (
        ("xla_cpu_use_fusion_emitters", False),
        ("xla_backend_optimization_level", 1),
    ):
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
            known.append(f"--{name}={str(value).lower()}")
    return tuple(known)


@functools.cache
def quick_compilation_asked() -> tuple[str, ...]:
    """The same, asked in a child: to find out starts a device, which this process may be without."""
    code = f"from {__name__} import quick_compilation; print(*quick_compilation())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return tuple(done.stdout.split())
