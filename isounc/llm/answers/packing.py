"""Prompts and their answers as rows of tokens, padded to few shapes and put together in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from isounc.llm.model.decoder import PADDING, SHARED
from isounc.padding import batches, bucket

MOST_TOKENS = 256
"""Tokens at a time, padding included: the activations of a model of 135M parameters then take below 1 GiB, three
backward passes at once included, and more tokens at a time are no faster (`benchmarks/llm.py --batch-size`)."""

NOWHERE = -1
"""Answer of a target of padding."""

Shape = tuple[int, int, int]
"""Tokens, targets and answers that a row is padded to."""


class Row(NamedTuple):
    """A prompt and its K answers as one sequence of T tokens, of which A are predicted."""

    tokens: Int[np.ndarray, "*N T"]
    """Ids of the prompt and of all but the last token of each answer."""
    positions: Int[np.ndarray, "*N T"]
    """Position in the prompt and answer; -1 is padding."""
    branches: Int[np.ndarray, "*N T"]
    """Answer a token belongs to; -1 is the prompt."""
    at: Int[np.ndarray, "*N A"]
    """Index of the token after which an answer's token is predicted."""
    targets: Int[np.ndarray, "*N A"]
    """Ids of the answers' tokens."""
    answer: Int[np.ndarray, "*N A"]
    """Answer that each belongs to; -1 is padding."""


def pack(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> Row:
    """A prompt and its answers in one row.

    Raises
    ------
    ValueError
        For an empty prompt, no answers, or an empty answer.
    """
    if not len(prompt):
        raise ValueError("prompt must have at least one token; got none.")
    if not len(answers) or not all(len(answer) for answer in answers):
        empty = [k for k, answer in enumerate(answers) if not len(answer)]
        raise ValueError(
            f"answers must have at least one token each; got {len(answers)} answers"
            + (f", number {empty[0]} of which is empty." if empty else ".")
        )
    columns: list[list[int]] = [list(prompt), list(range(len(prompt))), [SHARED] * len(prompt)]
    at, targets, owner = [], [], []
    for k, answer in enumerate(answers):
        start, length = len(columns[0]), len(answer)
        columns[0] += answer[:-1]
        columns[1] += range(len(prompt), len(prompt) + length - 1)
        columns[2] += [k] * (length - 1)
        at += [len(prompt) - 1, *range(start, start + length - 1)]
        targets += answer
        owner += [k] * length
    return Row(*(np.array(column, np.int32) for column in (*columns, at, targets, owner)))


def pad(row: Row, num_tokens: int, num_targets: int) -> Row:
    """The same row with more tokens, which nothing attends to, and more targets, which count for nothing."""
    more, extra = num_tokens - row.tokens.size, num_targets - row.at.size
    fills = Row(0, PADDING, SHARED, 0, 0, NOWHERE)  # pyright: ignore
    return Row(
        *(
            np.pad(a, (0, more if name in ("tokens", "positions", "branches") else extra),
                   constant_values=fill)
            for name, a, fill in zip(Row._fields, row, fills, strict=True)
        )
    )  # fmt: skip


def only(row: Row, k: int) -> Row:
    """The prompt and the answer number ``k`` alone, as `pack` would make it."""
    prompt = row.tokens[row.branches == SHARED]
    return pack(prompt.tolist(), [row.targets[row.answer == k].tolist()])


def shape_of(row: Row) -> Shape:
    """Shape for gradient norms: few, as each is a program that takes long to compile.

    A single answer of one token is apart: all its probabilities are the same one.
    """
    num_answers = int(row.answer.max()) + 1
    if num_answers == 1:
        targets = 1 if row.at.size == 1 else bucket(row.at.size, 16)
        return bucket(row.tokens.size, 16), targets, 1
    size = bucket(max(row.tokens.size, row.at.size), 32)
    return size, size, bucket(num_answers, 16)


def forward_shape_of(row: Row) -> Shape:
    """Shape for a forward pass alone."""
    return bucket(row.tokens.size, 32), bucket(row.at.size, 4), 1


def row_batches(
    rows: Sequence[Row], shape: Callable[[Row], Shape], size: int
) -> Iterator[tuple[list[int], Row, Shape]]:
    """Numbers of rows of similar length, these rows stacked, and the shape that each is padded to.

    No more than ``size`` rows and `MOST_TOKENS` tokens go together (one row is the least). Rows of a single target are
    not mixed with others.
    """
    shapes = [shape(row) for row in rows]
    for single in (False, True):
        which = [i for i, found in enumerate(shapes) if (found[1] == 1) == single]
        lengths = [shapes[i][0] for i in which]
        for part, count in batches(lengths, lambda n: max(1, min(size, MOST_TOKENS // n))):
            own = [which[j] for j in part]
            num_tokens, num_targets, slots = map(max, zip(*(shapes[i] for i in own), strict=True))
            padded = [pad(rows[i], num_tokens, num_targets) for i in np.resize(own, count)]
            stacked = Row(*map(np.stack, zip(*padded, strict=True)))
            yield own, stacked, (num_tokens, num_targets, slots)
