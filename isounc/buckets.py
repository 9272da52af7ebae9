"""Lengths that arrays are padded to, so that few shapes are compiled."""


def bucket(n: int, unit: int = 1) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, ... units from n on: at most half as much again."""
    units = -(-n // unit)
    power = 1 << (units - 1).bit_length()
    return unit * (3 * power // 4 if power >= 4 and units <= 3 * power // 4 else power)
