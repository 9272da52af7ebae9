"""Every program of the service, run once before the first request.

All layers of a decoder have the same programs (`isounc.llm.answers.layerwise`), so that one layer is
enough to compile them, and takes a fraction of the time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from isounc.llm.answers.norms import answer_norms
from isounc.llm.model.load import LanguageModel
from isounc.serve.settings import ESTIMANDS
from isounc.serve.shapes import check_shape, lengths, rows_of, targets_of
from isounc.serve.work import Check, Continuation, Written
from isounc.serve.writing import ROWS, Writer, key_of


def measure_together(model: LanguageModel, checks: Sequence[Check]) -> None:
    """Measure answers of one shape, and give each its result.

    Raises
    ------
    ValueError
        Logits of one of them are not finite; none has a result then.
    """
    packed = [check.packed() for check in checks]
    # Of one sequence or of a full batch: two programs a shape.
    rows = 1 if len(packed) == 1 else rows_of(check_shape(packed[0]).num_tokens)
    norms = answer_norms(
        model, [packed[i % len(packed)] for i in range(rows)],
        estimands=ESTIMANDS, scalings=("all",), batch_size=rows, shape=check_shape,
    )  # fmt: skip
    for row, check in enumerate(checks):
        check.result.set_result(check.measured(norms, row))


def warm_up(model: LanguageModel, max_tokens: int, max_new_tokens: int) -> Iterator[None]:
    """Run every program on tokens that mean nothing; yield after each."""
    weights = model.weights()
    # The ends, and one layer.
    shallow = dataclasses.replace(model, parameters=weights._replace(layers=weights.layers[:1]))
    writer = Writer(shallow, max_new_tokens)
    for k, length in enumerate(lengths(max_tokens)):
        longest = min(length, max_tokens)
        for targets in targets_of(length):
            num = min(targets, longest - 1)
            if (
                targets > length
                or check_shape(_check(longest, num).packed()).num_targets != targets
            ):
                continue
            for rows in sorted({1, rows_of(length)}):
                measure_together(shallow, [_check(longest, num) for _ in range(rows)])
                yield
        # Programs that choose a token are the same after prompts of any length.
        strategies = ((0.0, 1.0), (1.0, 1.0), (1.0, 0.9))[: None if k == 0 else 1]
        for rows in (1, ROWS):
            for temperature, top_p in strategies:
                prompts = [
                    Continuation(
                        [0] * min(length, max_tokens - 1), min(2, max_new_tokens), temperature,
                        top_p, (), key_of(0, [0]), _nothing,
                    )
                    for _ in range(rows)
                ]  # fmt: skip
                yield from writer.write(prompts)


def _check(num_tokens: int, num_targets: int) -> Check:
    return Check([0] * (num_tokens - num_targets), [0] * num_targets, "")


def _nothing(written: Written | BaseException) -> None:
    # Numbers of one layer mean nothing; whatever else goes wrong is wrong with the service.
    if isinstance(written, BaseException) and not isinstance(written, ValueError):
        raise written
