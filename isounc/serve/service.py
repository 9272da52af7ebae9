"""The work behind the endpoints: prompts to tokens, the engine's results to what clients are told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from isounc.guard.guard import Guard
from isounc.llm.answers.answer import MeasuredAnswer
from isounc.llm.answers.rendering import Given
from isounc.llm.model.chat import Message
from isounc.llm.model.load import LanguageModel
from isounc.serve.engine import Busy, Engine, Unavailable
from isounc.serve.judgement import Judge
from isounc.serve.monitoring import Feedback, FeedbackState, Metrics
from isounc.serve.settings import Serve
from isounc.serve.work import Check, Continuation, Written
from isounc.serve.writing import key_of

T = TypeVar("T")
LOG = logging.getLogger("isounc.serve")


class Refused(Exception):
    """A request that cannot be answered, with its status and the argument at fault."""

    def __init__(self, status: int, message: str, argument: str | None = None):
        super().__init__(message)
        self.status, self.argument = status, argument


class Judged(NamedTuple):
    """A measured answer."""

    identity: str
    """Its id, for feedback."""
    uncertainty: dict[str, Any]
    """See `Judge.uncertainty`."""
    usage: dict[str, int]
    """Numbers of tokens, in OpenAI's words."""


class Service:
    """A model, its engine, a guard, and what they have seen.

    Raises
    ------
    ValueError
        The guard was fitted to another model or score.
    """

    def __init__(self, model: LanguageModel, settings: Serve, guard: Guard | None = None):
        self.model, self.settings = model, settings
        self.judge = Judge(model, guard)
        self.feedback = Feedback(guard)
        self.metrics = Metrics()
        self.engine = Engine(
            model, max_tokens=settings.max_tokens, max_new_tokens=settings.max_new_tokens,
            max_waiting=settings.max_waiting, max_streams=settings.max_streams,
        )  # fmt: skip
        self.engine.on_batch = self._count_batch
        self.created = int(time.time())

    def _count_batch(self, kind: str, rows: int, seconds: float) -> None:
        self.metrics.batches.labels(kind).observe(seconds)
        self.metrics.batch_rows.labels(kind).observe(rows)

    def deadline(self) -> float:
        """When a request of now must be answered, by the event loop's clock."""
        return asyncio.get_running_loop().time() + self.settings.seconds

    def check_model(self, name: str | None) -> None:
        """Refuse a request for another model."""
        if name is not None and name != self.model.name:
            raise Refused(
                404, f"model must be {self.model.name!r}, the one that is served, got {name!r:.100}",
                "model",
            )  # fmt: skip

    async def given(self, messages: Sequence[Message] | None, prompt: str | None) -> Given:
        """Tokens of a conversation, or of a text."""
        if prompt is not None:
            return Given(prompt, False, await self._encoded(prompt, special=True))
        if self.model.chat_template is None:
            raise Refused(
                400, f"messages must be left out, since {self.model.name} has no chat template; give "
                "a prompt", "messages",
            )  # fmt: skip
        template = self.model.chat_template
        try:
            (text,) = await asyncio.to_thread(template.render, [list(messages or ())])
        except ValueError as error:
            raise Refused(400, str(error), "messages") from error
        return Given(text, True, await self._encoded(text, special=False))

    async def _encoded(self, text: str, *, special: bool) -> list[int]:
        try:
            # A megabyte takes seconds, in which the event loop goes on.
            ids = await asyncio.to_thread(self.model.tokenizer.encode, text, special=special)
        except ValueError as error:
            raise Refused(400, str(error), "prompt") from error
        if not ids:
            raise Refused(400, "prompt must hold at least one token, got none", "prompt")
        self._check_vocabulary("prompt", ids)
        return ids

    def _check_vocabulary(self, argument: str, ids: Sequence[int]) -> None:
        """Refuse a token of the tokenizer's alone, such as that of images: a gather would take another."""
        size = self.model.config.vocab_size
        if max(ids, default=0) >= size:
            raise Refused(
                400, f"{argument} must hold tokens of the model, of which there are {size}, got "
                f"number {max(ids)}", argument,
            )  # fmt: skip

    async def check(self, given: Given, answer: str) -> Judged:
        """Measure and judge an answer that somebody gave."""
        most, tokenizer = self.engine.max_tokens, self.model.tokenizer
        if len(given.ids) >= most:
            raise Refused(
                400, f"prompt must have fewer than {most} tokens, got {len(given.ids)}",
                "messages" if given.is_chat else "prompt",
            )  # fmt: skip
        ids = await asyncio.to_thread(given.option_ids, self.model, answer)
        self._check_vocabulary("answer", ids)
        if len(given.ids) + len(ids) > most:
            raise Refused(
                400, f"prompt and answer must have at most {most} tokens, got "
                f"{len(given.ids) + len(ids)}", "answer",
            )  # fmt: skip
        if not tokenizer.decode(ids).strip():
            raise Refused(400, "answer must hold text, got special tokens alone", "answer")
        self._log_text(given.text, answer)
        return await self.measured(given.ids, ids, answer, f"check-{secrets.token_hex(12)}")

    async def measured(
        self,
        prompt_ids: list[int],
        ids: list[int],
        text: str,
        identity: str,
        *,
        admitted: bool = False,
    ) -> Judged:
        """Measure and judge the tokens of an answer; see `Engine.check` for `admitted`."""
        check = Check(prompt_ids, ids, text)
        self._put(partial(self.engine.check, admitted=admitted), check)
        try:
            answer = await asyncio.wrap_future(check.result)
        except Exception as error:
            raise _failed(error) from error
        return self._judged(answer, ids, identity)

    def _judged(self, answer: MeasuredAnswer, ids: list[int], identity: str) -> Judged:
        uncertainty = self.judge.uncertainty(answer, self.model.tokenizer.decode_each(ids))
        if uncertainty["decision"]:
            self.metrics.decisions.labels(uncertainty["decision"]).inc()
        self.feedback.remember(identity, uncertainty["scores"])
        return Judged(identity, uncertainty, usage(answer.num_prompt_tokens, answer.num_tokens))

    async def written(
        self,
        given: Given,
        *,
        max_tokens: int | None,
        temperature: float | None,
        top_p: float | None,
        stop: tuple[str, ...],
        seed: int | None,
    ) -> AsyncGenerator[Written]:
        """What the model has written so far, after every segment and at the end.

        Whoever stops iterating frees the answer's place.
        """
        room = self.engine.max_tokens - len(given.ids)
        if room < 1:
            raise Refused(
                400, f"prompt must have fewer than {self.engine.max_tokens} tokens, got "
                f"{len(given.ids)}", "messages" if given.is_chat else "prompt",
            )  # fmt: skip
        # Many clients always send the largest number of some other model: it is a bound, and so is
        # this one. `finish_reason` says which answers it cuts.
        most = min(self.engine.max_new_tokens, room, max_tokens or room)
        self._log_text(given.text, None)
        loop, events = asyncio.get_running_loop(), asyncio.Queue()

        def tell(event: Written | BaseException) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
                loop.call_soon_threadsafe(events.put_nowait, event)

        seed = secrets.randbits(31) if seed is None else seed % 2**32
        prompt = Continuation(
            given.ids, most, 1.0 if temperature is None else float(temperature),
            1.0 if top_p is None else float(top_p), stop, key_of(seed, given.ids), tell,
        )  # fmt: skip
        self._put(self.engine.write, prompt)
        try:
            while True:
                event = await events.get()
                if isinstance(event, BaseException):
                    raise _failed(event) from event
                yield event
                if event.finish is not None:
                    return
        finally:
            prompt.left.set()

    def add_feedback(self, identity: str, correct: bool) -> FeedbackState:
        """Take feedback about an answer."""
        if self.judge.guard is None:
            raise Refused(
                404, "the service was started without --guard: there is no promise for feedback to "
                "watch", "id",
            )  # fmt: skip
        try:
            state = self.feedback.add(identity, correct)
        except KeyError:
            raise Refused(
                404, f"id must be that of a check or completion of this service without feedback, "
                f"got {identity!r:.100}", "id",
            ) from None  # fmt: skip
        except OverflowError as error:
            raise Refused(429, str(error)) from error
        self.metrics.alarm.set(float(state.alarm_since is not None))
        return state

    def _put(self, put: Any, item: Check | Continuation) -> None:
        try:
            put(item)
        except Busy as error:
            raise Refused(429, f"{error}; try again later") from error
        except Unavailable as error:
            raise Refused(503, str(error)) from error

    def _log_text(self, prompt: str, answer: str | None) -> None:
        if self.settings.log_text:
            LOG.info("prompt %r answer %r", prompt, answer)


def _failed(error: BaseException) -> Refused:
    """What a client is told of a computation that failed; anything but its own fault is logged."""
    if isinstance(error, ValueError):
        return Refused(500, str(error))
    # Errors of the runtime say what was missing. Others might quote an answer.
    said = f": {error!s:.500}" if isinstance(error, RuntimeError) else ""
    LOG.error("a computation ended with %s%s", type(error).__name__, said)
    return Refused(500, f"the computation ended with {type(error).__name__}")


async def within(work: Awaitable[T], deadline: float) -> T:
    """The result of some work, if it comes before a time of the event loop's clock."""
    try:
        async with asyncio.timeout_at(deadline):
            return await work
    except TimeoutError:
        raise Refused(504, "the answer took longer than a request may (--seconds)") from None


def usage(num_prompt_tokens: int, num_tokens: int) -> dict[str, int]:
    """Numbers of tokens, in OpenAI's words."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt_tokens + num_tokens,
    }


def tokens_of(written: Written) -> list[int]:
    """Token ids of the text that was written, without what ended it."""
    return np.asarray(written.tokens)[: written.num_text_tokens].tolist()
