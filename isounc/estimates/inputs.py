"""Inputs of `isounc.isotropic` in batches of a few shapes, so that few programs are compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, Shaped

from isounc.checks import check_unmasked, real_array
from isounc.padding import bucket


class Part(NamedTuple):
    """A batch, padded to a shape that others share by copies of its first row."""

    rows: Int[np.ndarray, " n"]
    """Places of its rows among all inputs."""
    inputs: Any
    """A pytree of arrays, with examples along the first axis."""
    ends: Int[np.ndarray, " N"]
    """The position that counts in each row of tokens; -1 is the last."""


def padded(values: Shaped[np.ndarray, "n *rest"], size: int) -> Shaped[np.ndarray, "N *rest"]:
    """Rows up to `size`, with copies of the first."""
    missing = size - len(values)
    return values if not missing else np.concatenate([values, np.repeat(values[:1], missing, 0)])


def split(x: Any, batch_size: int, *, tokens: bool, argument: str = "x") -> list[Part]:
    """Split inputs into batches.

    Parameters
    ----------
    x
        An array, a pytree of arrays, or a list of sequences of token ids.
    batch_size
        Most examples in a batch.
    tokens
        Whether a list holds sequences of token ids, which may have different lengths.
    argument
        Name of the inputs in messages.

    Raises
    ------
    ValueError
        For inputs that are no batch, or sequences that are not of token ids.
    """
    if tokens and isinstance(x, list):
        return list(_ragged(x, batch_size, argument))
    # Lists of numbers are one array, any other container is a pytree of them.
    x = real_array(argument, x) if isinstance(x, list) else x
    leaves = jax.tree.leaves(x)
    for leaf in leaves:
        check_unmasked(argument, leaf)
    sizes = {np.shape(a)[0] if np.ndim(a) else 0 for a in leaves}
    if len(sizes) != 1 or 0 in sizes:
        shapes = ", ".join(str(np.shape(a)) for a in leaves) or "nothing"
        raise ValueError(
            f"{argument} must be a batch with examples along the first axis, got {shapes}"
        )
    num_rows = sizes.pop()
    size = min(batch_size, bucket(num_rows))
    parts = []
    for start in range(0, num_rows, size):
        rows = np.arange(start, min(start + size, num_rows))
        inputs = jax.tree.map(lambda a, rows=rows: padded(np.asarray(a)[rows], size), x)
        parts.append(Part(rows, inputs, np.full(size, -1)))
    return parts


def check_token_ids(x: Any, num_tokens: int, *, argument: str = "x") -> None:
    """Refuse ids that are no tokens of a vocabulary: a gather clips them, or counts from the end.

    Only what can be nothing else than ids is looked at: lists of sequences, and one array of at
    most two axes. Embeddings have three, and of several arrays one may hold positions.

    Raises
    ------
    ValueError
        For numbers that are no integers from 0 to `num_tokens` - 1.
    """
    arrays = x if isinstance(x, list) else [x]
    for i, array in enumerate(map(np.asarray, arrays)):
        if array.dtype.kind == "O" or array.ndim > 2 or not array.size:
            continue
        right = f"{argument} must hold token ids, integers from 0 to {num_tokens - 1},"
        if array.dtype.kind not in "iu":
            raise ValueError(f"{right} got {array.dtype}")
        outside = np.argwhere((array < 0) | (array >= num_tokens))
        if len(outside):
            place = outside[0] if not isinstance(x, list) else [i, *outside[0]]
            raise ValueError(
                f"{right} got {array[tuple(outside[0])]} at {', '.join(map(str, place))}"
            )


def _ragged(x: Sequence[Any], batch_size: int, argument: str) -> Iterator[Part]:
    """Batches of sequences of token ids, padded on the right to a few lengths."""
    for ids in x:
        check_unmasked(argument, ids)
    sequences = [np.asarray(ids) for ids in x]
    for i, ids in enumerate(sequences):
        if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
            raise ValueError(
                f"{argument} must hold sequences of token ids, got shape {ids.shape} of "
                f"{ids.dtype} at {i}"
            )
    if not sequences:
        raise ValueError(f"{argument} must hold at least one sequence of token ids, got none")
    # None beyond the longest: a model may have no more positions. Equal lengths are not padded.
    longest = max(ids.size for ids in sequences)
    lengths = np.array([min(longest, max(16, bucket(ids.size))) for ids in sequences])
    if min(ids.size for ids in sequences) == longest:
        lengths[:] = longest
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        size = min(batch_size, bucket(len(same)))
        for start in range(0, len(same), size):
            rows = same[start : start + size]
            ids = np.stack([np.pad(sequences[i], (0, length - sequences[i].size)) for i in rows])
            ends = np.array([sequences[i].size - 1 for i in rows])
            yield Part(rows, padded(ids, size), padded(ends, size))
