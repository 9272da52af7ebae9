"""Answers written a segment at a time, several prompts together.

Axes: B prompts, T tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from isounc.llm.model.decode import DecodedTokens, DecodingStrategy, prompt_keys
from isounc.llm.model.decoding_loop import decode_steps
from isounc.llm.model.generate import cut_answer, fewest
from isounc.llm.model.load import LanguageModel
from isounc.serve.shapes import length_of
from isounc.serve.work import Continuation, Written

ROWS = 4
"""Prompts that are continued together; one alone has programs of its own."""
REPLACEMENT = "\ufffd"
"""What a tokenizer makes of the first bytes of a character."""


class Writer:
    """Continues prompts.

    Parameters
    ----------
    model
        From `isounc.llm.load_model`.
    max_new_tokens
        Largest number of tokens of any answer. It decides about the size of the cache, so that
        requests for fewer tokens have the same programs.
    """

    def __init__(self, model: LanguageModel, max_new_tokens: int):
        self._model, self._most = model, max_new_tokens
        self._stops = np.zeros(model.config.vocab_size, bool)
        self._stops[list(model.tokenizer.stop_ids)] = True

    def write(self, prompts: Sequence[Continuation]) -> Iterator[None]:
        """Continue prompts of one group; yield after each segment.

        Each is told what has been written (`Continuation.on_written`). One that nobody waits for any
        more is left out of what follows.
        """
        finished = [False] * len(prompts)
        try:
            for decoded in self._steps(prompts, finished):
                for row, prompt in enumerate(prompts):
                    if finished[row]:
                        continue
                    tokens, log_probs = (np.asarray(a)[:, row, 0] for a in decoded[:2])
                    try:
                        written = self.written(prompt, tokens, log_probs)
                        finished[row] = written.finish is not None
                    except ValueError as error:
                        # One answer's fault must not be that of the others.
                        written, finished[row] = error, True
                    finished[row] |= prompt.left.is_set()
                    if not prompt.left.is_set():
                        prompt.on_written(written)
                if all(finished):
                    return
                yield
        except Exception as error:
            for row, prompt in enumerate(prompts):
                if not finished[row]:
                    prompt.on_written(error)

    def _steps(
        self, prompts: Sequence[Continuation], finished: Sequence[bool]
    ) -> Iterator[DecodedTokens]:
        num_rows = 1 if len(prompts) == 1 else ROWS
        rows = [prompts[i % len(prompts)] for i in range(num_rows)]
        is_greedy, is_nucleus = rows[0].group

        def scale(values: Sequence[float]) -> Float[np.ndarray, "B 1 1"]:
            return np.array(values, np.float32)[:, None, None]

        def has_ended(tokens: Int[np.ndarray, "T B 1"]) -> Bool[np.ndarray, "B 1"]:
            return np.array([[i >= len(prompts) or finished[i]] for i in range(num_rows)])

        weights = self._model.weights()
        yield from decode_steps(
            self._model.config, weights,
            None, [row.prompt_ids for row in rows],
            jnp.concatenate([row.key for row in rows]), self._stops,
            strategy=DecodingStrategy(is_greedy, None, is_nucleus),
            temperature=scale([max(row.temperature, 1e-30) if row.temperature else 1.0 for row in rows]),
            top_p=scale([row.top_p for row in rows]),
            num_tokens=length_of(max(len(row.prompt_ids) for row in rows)),
            max_new_tokens=self._most, has_ended=has_ended,
        )  # fmt: skip

    def written(
        self,
        prompt: Continuation,
        tokens: Int[np.ndarray, " T"],
        log_probs: Float[np.ndarray, " T"],
    ) -> Written:
        """Cut what has been decoded where the answer ends, and its text where it may still change."""
        ids = tokens[: prompt.max_new_tokens]
        cut = cut_answer(self._model.tokenizer, ids, self._stops, prompt.stop)
        log_probs = log_probs[: cut.length]
        if not np.isfinite(log_probs).all():
            raise ValueError(
                f"logits of model {self._model.name} must be finite, got NaN or infinite ones"
            )
        finish = "stop" if cut.stopped else None
        if finish is None and len(ids) == prompt.max_new_tokens:
            finish = "length"
        text, num_text_tokens = cut.text, cut.text_length
        if finish is None:
            # A stop string may have begun, and a character may lack some of its bytes.
            kept = len(text) - max((_begun(text, s) for s in prompt.stop), default=0)
            text = text[:kept].rstrip(REPLACEMENT)
            if text != cut.text:
                num_text_tokens = fewest(
                    self._model.tokenizer, ids, lambda decoded: decoded.startswith(text)
                )
        return Written(ids[: cut.length], log_probs, text, num_text_tokens, finish)


def key_of(seed: int, prompt_ids: Sequence[int]) -> Key[Array, "1 1"]:
    """The random key of a request: as in `isounc.llm.model.generate.generate`."""
    return prompt_keys(seed, [prompt_ids], 1)


def _begun(text: str, stop: str) -> int:
    """Length of the longest end of a text with which a stop string begins."""
    lengths = range(min(len(stop), len(text)), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
