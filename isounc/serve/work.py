"""What is asked of the model: an answer to be measured, or a prompt to be continued."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, Key

from isounc.llm.answers.answer import MeasuredAnswer
from isounc.llm.answers.measure import AskedQuestion, unmeasured, with_norms
from isounc.llm.answers.norms import AnswerNorms
from isounc.llm.answers.packing import PackedAnswers, pack
from isounc.llm.answers.prompts import Prompt
from isounc.llm.answers.question import Question


@dataclass(frozen=True)
class Check:
    """An answer to be measured, whoever wrote it."""

    prompt_ids: list[int]
    """Tokens of the prompt."""
    answer_ids: list[int]
    """Tokens of the answer; at least one."""
    text: str
    """Text of the answer."""
    result: Future[MeasuredAnswer] = dataclasses.field(default_factory=Future)
    """The answer with its probabilities and norms."""

    def packed(self) -> PackedAnswers:
        """Prompt and answer as one sequence."""
        return pack(self.prompt_ids, [self.answer_ids])

    def measured(self, norms: AnswerNorms, row: int) -> MeasuredAnswer:
        """The answer with the numbers of a row."""
        question = Question("checked", "checked", "")
        asked = AskedQuestion(question, Prompt("", "given", ()), "generated", judged=False)
        answer = unmeasured(asked, self.prompt_ids)
        return with_norms(answer, norms, row, [self.text], are_choices=False)


class Written(NamedTuple):
    """What the model has written of an answer so far."""

    tokens: Int[np.ndarray, " T"]
    """Token ids, up to the one that ended the answer."""
    log_probs: Float[np.ndarray, " T"]
    """Log probability of each token under the model itself, in nats."""
    text: str
    """Text of the answer so far that later tokens do not change."""
    num_text_tokens: int
    """Number of first tokens that hold the text, without what ended it."""
    finish: str | None
    """`stop` where a token or string of the request ended the answer, `length` where the number of
    tokens did, None while it goes on."""


@dataclass(frozen=True)
class Continuation:
    """A prompt to be continued."""

    prompt_ids: list[int]
    """Tokens of the prompt."""
    max_new_tokens: int
    """Largest number of tokens of the answer."""
    temperature: float
    """Logits are divided by it; 0 takes the most probable token."""
    top_p: float
    """Sample among the fewest tokens that hold this much probability."""
    stop: tuple[str, ...]
    """The answer ends before the first of these strings."""
    key: Key[jax.Array, "1 1"]
    """Random key."""
    on_written: Callable[[Written | BaseException], object]
    """Called from the thread of the model after every segment, and at the end; or with what went
    wrong."""
    left: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Set when nobody waits for the answer any more."""

    @property
    def group(self) -> tuple[bool, bool]:
        """Continuations of one group can be written together."""
        return self.temperature == 0, self.top_p < 1
