"""Lengths to which arrays are padded, and batches of similar length, so that few shapes compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence


def bucket(n: int, unit: int = 1) -> int:
    """Return the least of 1, 2, 3, 4, 6, 8, 12, 16, ... units that holds n."""
    units = -(-n // unit)
    power = 1 << (units - 1).bit_length()
    return unit * (3 * power // 4 if power >= 4 and units <= 3 * power // 4 else power)


def batches(lengths: Sequence[int], size: Callable[[int], int]) -> Iterator[tuple[list[int], int]]:
    """Yield indices of items of similar length, the longest first, and the rows to pad them to.

    Parameters
    ----------
    lengths
        Length of each item.
    size
        Function from the length of the longest item of a batch to the number of items in the batch.

    Yields
    ------
    tuple of list and int
        Indices of the items of a batch, and its number of rows: the size of a full batch, but no
        more than the next `bucket` if a single batch holds all items.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        most = size(lengths[order[0]])
        part, rest = order[:most], order[most:]
        yield part, most if len(lengths) > most else min(most, bucket(len(part)))
        order = rest
