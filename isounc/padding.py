"""Lengths that arrays are padded to, and batches of similar length, so that few shapes are compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence


def bucket(n: int, unit: int = 1) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, ... units from n on: at most half as much again."""
    units = -(-n // unit)
    power = 1 << (units - 1).bit_length()
    return unit * (3 * power // 4 if power >= 4 and units <= 3 * power // 4 else power)


def batches(lengths: Sequence[int], size: Callable[[int], int]) -> Iterator[tuple[list[int], int]]:
    """Numbers of items of similar length, the longest first, with how many rows they are to fill.

    ``size`` says how many items go together if the longest of them has a given length. All batches of one such size
    have as many rows; only where a single batch holds all items, it has no more than the next `bucket`.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        most = size(lengths[order[0]])
        part, rest = order[:most], order[most:]
        yield part, most if len(lengths) > most else min(most, bucket(len(part)))
        order = rest
