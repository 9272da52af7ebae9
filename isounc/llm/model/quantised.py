"""Quantised matrices of GGUF files, dequantised by compiled programs.

    Q4_0    x = d (q - 8),    q in 0..15        d, and 16 bytes of q: the first halves of the bytes
    Q4_1    x = d q + m,      q in 0..15        d, m, and the same
    Q8_0    x = d q,          q in -128..127    d, and 32 bytes of q

for blocks of 32 values, d and m in half precision. These are the usual ones of small models; the
package `gguf` knows the others. It computes with NumPy, which holds every step of a tensor in memory
and takes several times as long. The products have at most 19 binary digits, so that float32 holds
them exactly, the sum alone is rounded, and the numbers are the package's to the last bit.

Axes: R rows, N values of a row.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8


class Layout(NamedTuple):
    """How the values of a tensor are stored."""

    kind: str
    """Name of the quantisation."""
    values: int
    """Values in a block."""
    size: int
    """Bytes of a block."""


LAYOUTS = {
    0: Layout("F32", 1, 4), 1: Layout("F16", 1, 2), 2: Layout("Q4_0", 32, 18),
    3: Layout("Q4_1", 32, 20), 8: Layout("Q8_0", 32, 34),
}  # fmt: skip
"""By their numbers in files: those that are read without the package `gguf`."""
QUANTISED = ("Q4_0", "Q4_1", "Q8_0")


class Quantised(NamedTuple):
    """A matrix as a file stores it."""

    rows: UInt8[np.ndarray, "R bytes"]
    """Blocks of each row."""
    kind: str
    """One of `QUANTISED`."""
    transposed: bool
    """Whether the parameter is the transposed matrix."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the parameter."""
        layout = _layout(self.kind)
        num_rows, size = self.rows.shape
        num_values = size // layout.size * layout.values
        return (num_values, num_rows) if self.transposed else (num_rows, num_values)


def _layout(kind: str) -> Layout:
    return next(layout for layout in LAYOUTS.values() if layout.kind == kind)


@functools.partial(jax.jit, static_argnames=("kind", "transposed", "dtype"))
def dequantised(
    rows: UInt8[Array | np.ndarray, "R bytes"], *, kind: str, transposed: bool, dtype: str
) -> tuple[Float[Array, "_ _"], Int[Array, ""]]:
    """The matrix, (R, N) or transposed, and the number of its values that are not finite."""
    layout = _layout(kind)
    blocks = jnp.asarray(rows).reshape(rows.shape[0], -1, layout.size)
    halves = 2 if kind == "Q4_1" else 1
    scales = [_halves(blocks[..., 2 * i : 2 * i + 2]) for i in range(halves)]
    stored = blocks[..., 2 * halves :]
    if kind == "Q8_0":
        values = jax.lax.bitcast_convert_type(stored, jnp.int8).astype(jnp.float32)
    else:
        values = jnp.concatenate([stored & 15, stored >> 4], axis=-1).astype(jnp.float32)
    if kind == "Q4_0":
        values = values - 8
    values = scales[0] * values
    if kind == "Q4_1":
        values = values + scales[1]
    # The values of a block are finite if its scales are.
    bad = layout.values * jnp.sum(~jnp.isfinite(sum(scales)))
    matrix = values.reshape(rows.shape[0], -1).astype(dtype)
    return matrix.T if transposed else matrix, bad


def _halves(pairs: UInt8[Array, "R blocks 2"]) -> Float[Array, "R blocks 1"]:
    """Numbers in half precision from their bytes, in float32."""
    return jax.lax.bitcast_convert_type(pairs, jnp.float16).astype(jnp.float32)[..., None]
