"""Padded lengths and batches of similar length, by what they promise."""

import pytest

from isounc.padding import batches, bucket


@pytest.mark.parametrize("unit", [1, 32])
def test_buckets_are_few_and_close(unit):
    found = [bucket(n, unit) for n in range(1, 40 * unit)]
    assert all(n <= b < 1.5 * n + unit for n, b in enumerate(found, 1))
    assert sorted(set(found)) == [unit * k for k in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)]
    assert found == sorted(found)


def test_batches_hold_every_item_once_the_longest_first():
    lengths = [5, 40, 7, 64, 5, 33, 8, 6, 5]
    found = list(batches(lengths, lambda n: 2 if n > 32 else 4))
    assert [rows for _, rows in found] == [2, 2, 4, 4]
    assert [lengths[i] for part, _ in found for i in part] == sorted(lengths, reverse=True)
    assert sorted(i for part, _ in found for i in part) == list(range(9))
    assert list(batches([3, 3, 3], lambda n: 8)) == [([0, 1, 2], 3)]
    assert list(batches([3] * 5, lambda n: 8)) == [([0, 1, 2, 3, 4], 6)]
    assert list(batches([], lambda n: 8)) == []
