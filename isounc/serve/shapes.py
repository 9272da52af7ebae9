"""The few shapes that requests are padded to, so that all programs are compiled beforehand.

Axes: B sequences at a time, T tokens of a sequence, A tokens of its answer.
"""

from __future__ import annotations

from itertools import takewhile

from isounc.llm.answers.packing import MOST_TOKENS, PackedAnswers, PackedShape
from isounc.serve.settings import MOST_PADDED

_LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, MOST_PADDED)
"""T of a check, and lengths of a prompt that is continued."""
_TARGETS = (64,)
"""A of a check, beside T itself."""


def lengths(max_tokens: int) -> tuple[int, ...]:
    """The lengths that hold up to `max_tokens` tokens."""
    below = tuple(takewhile(lambda n: n < max_tokens, _LENGTHS))
    return (*below, _LENGTHS[len(below)])


def length_of(num_tokens: int) -> int:
    """The least length that holds so many tokens."""
    return next(n for n in _LENGTHS if n >= num_tokens)


def targets_of(length: int) -> tuple[int, ...]:
    """The numbers of answer tokens that sequences of a length are padded to."""
    return tuple(sorted({n for n in (*_TARGETS, length) if n <= length}))


def check_shape(packed: PackedAnswers) -> PackedShape:
    """What a prompt with its answer is padded to."""
    length = length_of(packed.tokens.size)
    targets = next(n for n in (*_TARGETS, length) if n >= packed.at.size)
    return PackedShape(length, targets, 1)


def rows_of(length: int) -> int:
    """Sequences of a length that are measured at a time: more tokens at once would be no faster."""
    return max(1, MOST_TOKENS // length)
