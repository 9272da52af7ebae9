"""The precision in which JAX computes."""

from __future__ import annotations

from contextlib import AbstractContextManager

import jax


def double_precision() -> AbstractContextManager[None]:
    """Context in which JAX computes in float64 where the backend has it (not on TPU)."""
    return jax.enable_x64(jax.default_backend() != "tpu" or bool(jax.config.read("jax_enable_x64")))
