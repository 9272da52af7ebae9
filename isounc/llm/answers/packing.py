"""Prompts and their answers packed into sequences of tokens, padded to few shapes, in batches.

Axes: B sequences, T tokens of a sequence, A tokens of its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from isounc.llm.model.tokens import check_token_ids
from isounc.llm.model.transformer import PADDING, SHARED
from isounc.padding import batches, bucket

MOST_TOKENS = 256
"""Tokens at a time, padding included. The activations of a model of 135M parameters then take below
1 GiB, even in three backward passes at once, and more tokens at a time are no faster
(`benchmarks/llm.py --batch-size`)."""

NO_ANSWER = -1
"""Answer that a target of padding belongs to."""


class PackedShape(NamedTuple):
    """Sizes that a packed sequence is padded to."""

    num_tokens: int
    """T."""
    num_targets: int
    """A."""
    num_answers: int
    """Most answers of a sequence."""


class PackedAnswers(NamedTuple):
    """A prompt and its answers as one sequence of T tokens, from which A tokens are predicted.

    Stacked sequences have a leading axis B. Inside of compiled functions these are arrays of JAX.
    """

    tokens: Int[np.ndarray, "*B T"]
    """Ids of the prompt and of all but the last token of each answer."""
    positions: Int[np.ndarray, "*B T"]
    """Position of each token in its prompt and answer; -1 is padding."""
    branches: Int[np.ndarray, "*B T"]
    """Answer that each token belongs to; -1 is the prompt."""
    at: Int[np.ndarray, "*B A"]
    """Index of the token after which each token of an answer is predicted."""
    targets: Int[np.ndarray, "*B A"]
    """Ids of the answers' tokens."""
    answer: Int[np.ndarray, "*B A"]
    """Answer that each target belongs to; -1 is padding."""

    @property
    def num_answers(self) -> int:
        """Number of answers of one sequence."""
        return int(self.answer.max()) + 1


def pack(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> PackedAnswers:
    """A prompt and its answers in one sequence, in which each answer sees the prompt and itself.

    Raises
    ------
    ValueError
        The prompt is empty, there are no answers, an answer is empty, or holds other than token
        ids.
    """
    check_token_ids("prompt", prompt)
    for k, answer in enumerate(answers):
        check_token_ids(f"answers[{k}]", answer)
    if not len(prompt):
        raise ValueError("prompt must have at least one token, got none")
    if not len(answers) or not all(len(answer) for answer in answers):
        empty = [k for k, answer in enumerate(answers) if not len(answer)]
        which = f", of which number {empty[0]} is empty" if empty else ""
        raise ValueError(
            f"answers must have at least one token each, got {len(answers)} answers{which}"
        )
    tokens, positions = list(prompt), list(range(len(prompt)))
    branches = [SHARED] * len(prompt)
    at, targets, owners = [], [], []
    for k, answer in enumerate(answers):
        start, length = len(tokens), len(answer)
        tokens += answer[:-1]
        positions += range(len(prompt), len(prompt) + length - 1)
        branches += [k] * (length - 1)
        at += [len(prompt) - 1, *range(start, start + length - 1)]
        targets += answer
        owners += [k] * length
    columns = (tokens, positions, branches, at, targets, owners)
    return PackedAnswers(*(np.array(column, np.int32) for column in columns))


def check_vocabulary(packed: Sequence[PackedAnswers], num_tokens: int) -> None:
    """Raise a ValueError if a token is beyond the vocabulary: a gather would take the last one."""
    for i, sequence in enumerate(packed):
        largest = max(int(sequence.tokens.max()), int(sequence.targets.max()))
        if largest >= num_tokens:
            raise ValueError(
                f"tokens must be below {num_tokens}, the size of the vocabulary, got {largest} in "
                f"sequence {i}"
            )


def pad(packed: PackedAnswers, num_tokens: int, num_targets: int) -> PackedAnswers:
    """The same with more tokens, which nothing attends to, and more targets, which do not count."""

    def padded(array: Int[np.ndarray, " N"], size: int, fill: int) -> Int[np.ndarray, " M"]:
        return np.pad(array, (0, size - array.size), constant_values=fill)

    return PackedAnswers(
        tokens=padded(packed.tokens, num_tokens, 0),
        positions=padded(packed.positions, num_tokens, PADDING),
        branches=padded(packed.branches, num_tokens, SHARED),
        at=padded(packed.at, num_targets, 0),
        targets=padded(packed.targets, num_targets, 0),
        answer=padded(packed.answer, num_targets, NO_ANSWER),
    )


def only(packed: PackedAnswers, k: int) -> PackedAnswers:
    """The prompt with answer number `k` alone, as `pack` would make it."""
    prompt = packed.tokens[packed.branches == SHARED]
    return pack(prompt.tolist(), [packed.targets[packed.answer == k].tolist()])


def shape_of(packed: PackedAnswers) -> PackedShape:
    """Shape for gradient norms: few, as each is a program that takes long to compile.

    A single answer of one token has a shape of its own: all its probabilities are the same one.
    """
    if packed.num_answers == 1:
        num_targets = 1 if packed.at.size == 1 else bucket(packed.at.size, 16)
        return PackedShape(bucket(packed.tokens.size, 16), num_targets, 1)
    size = bucket(max(packed.tokens.size, packed.at.size), 32)
    return PackedShape(size, size, bucket(packed.num_answers, 16))


def forward_shape_of(packed: PackedAnswers) -> PackedShape:
    """Shape for a forward pass alone."""
    return PackedShape(bucket(packed.tokens.size, 32), bucket(packed.at.size, 4), 1)


def packed_batches(
    packed: Sequence[PackedAnswers], shape: Callable[[PackedAnswers], PackedShape], size: int
) -> Iterator[tuple[list[int], PackedAnswers, PackedShape]]:
    """Batches of sequences of similar length, padded to one shape.

    A batch has at most `size` sequences and `MOST_TOKENS` tokens, but at least one sequence.
    Sequences of a single target are not mixed with others.

    Yields
    ------
    numbers
        Numbers of the sequences in the batch.
    stacked
        These sequences, padded and stacked; the last ones may be repetitions that fill the batch.
    shape
        What they are padded to.
    """
    shapes = [shape(sequence) for sequence in packed]
    for single in (False, True):
        kind = [i for i, padded in enumerate(shapes) if (padded.num_targets == 1) == single]
        lengths = [shapes[i].num_tokens for i in kind]
        for part, num_rows in batches(lengths, lambda n: max(1, min(size, MOST_TOKENS // n))):
            numbers = [kind[j] for j in part]
            largest = PackedShape(*map(max, zip(*(shapes[i] for i in numbers), strict=True)))
            rows = [
                pad(packed[i], largest.num_tokens, largest.num_targets)
                for i in np.resize(numbers, num_rows)
            ]
            yield numbers, PackedAnswers(*map(np.stack, zip(*rows, strict=True))), largest


def in_batches(
    packed: Sequence[PackedAnswers],
    shape: Callable[[PackedAnswers], PackedShape],
    batch_size: int,
    program: Callable[[PackedAnswers, list[int], PackedShape], Any],
) -> list[Any]:
    """Results of a program for each sequence, with NumPy arrays.

    The program is given stacked sequences, their numbers and their shape.
    """
    results: dict[int, Any] = {}
    for numbers, stacked, padded in packed_batches(packed, shape, batch_size):
        batch = jax.tree.map(np.asarray, program(stacked, numbers, padded))
        for row, i in enumerate(numbers):
            results[i] = jax.tree.map(lambda array, row=row: array[row], batch)
    return [results[i] for i in range(len(packed))]


def check_finite(number: int, sequence: PackedAnswers, *arrays: Float[np.ndarray, "_"]) -> None:
    """Raise a ValueError if numbers of a sequence are not finite."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(
            f"logits must be finite, got NaN or infinite ones for question {number} "
            f"({sequence.tokens.size} tokens); check the weights, and whether bfloat16 is too "
            "coarse for them"
        )
