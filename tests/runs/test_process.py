"""Memory between the parts of a long run."""

import jax
import jax.numpy as jnp

from isounc.runs import process


def test_programs_are_dropped_above_a_bound_alone():
    double = jax.jit(lambda x: 2 * x)
    double(jnp.arange(3.0))
    process.bound_memory(2**40)
    assert double._cache_size() == 1
    assert (
        10
        < process.resident_mebibytes()
        <= process.peak_mebibytes() + 1
        < process.machine_mebibytes()
    )
    process.bound_memory(0)
    assert double._cache_size() == 0
    assert double(jnp.arange(3.0))[2] == 4
