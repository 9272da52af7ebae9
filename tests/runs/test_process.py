"""Memory between the parts of a long run."""

import jax
import jax.numpy as jnp

from isounc import sweep


def test_programs_are_dropped_above_a_bound_alone():
    double = jax.jit(lambda x: 2 * x)
    double(jnp.arange(3.0))
    sweep.bound_memory(2**40)
    assert double._cache_size() == 1
    assert 10 < sweep.resident_mebibytes() <= sweep.peak_mebibytes() + 1 < sweep.machine_mebibytes()
    sweep.bound_memory(0)
    assert double._cache_size() == 0
    assert double(jnp.arange(3.0))[2] == 4
