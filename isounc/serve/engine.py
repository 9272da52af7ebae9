"""The one thread that computes: it batches what waits, and takes turns between it.

Requests that arrive while it computes are measured together, padded to one of few shapes
(`isounc.serve.shapes`). Answers are written a few tokens at a time, in turns with the measurements, so
that neither waits for the other's end.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from isounc.llm.model.load import LanguageModel
from isounc.serve.shapes import check_shape, length_of, rows_of
from isounc.serve.warming import measure_together, warm_up
from isounc.serve.work import Check, Continuation
from isounc.serve.writing import ROWS, Writer


class Busy(Exception):
    """Too many requests wait."""


class Unavailable(Exception):
    """The programs are not compiled yet, or the service is ending."""


class Engine:
    """Measures and writes answers for many clients at a time.

    Parameters
    ----------
    model
        From `isounc.llm.load_model`.
    max_tokens
        Most tokens of a prompt with its answer.
    max_new_tokens
        Most tokens of an answer that is written.
    max_waiting
        Requests that may wait.
    max_streams
        Groups of answers that are written in turns.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        max_tokens: int,
        max_new_tokens: int,
        max_waiting: int = 256,
        max_streams: int = 4,
    ):
        self.model = model
        self.max_tokens = min(max_tokens, model.context_length)
        self.max_new_tokens = min(max_new_tokens, self.max_tokens - 1)
        self._writer = Writer(model, self.max_new_tokens)
        self._max_waiting, self._max_streams = max_waiting, max_streams
        self._changed = threading.Condition()
        self._checks: deque[Check] = deque()
        self._prompts: deque[Continuation] = deque()
        self._streams: deque[Iterator[None]] = deque()
        self._closing = False
        self.is_ready = False
        """Whether all programs are compiled."""
        self.failure: BaseException | None = None
        """What ended the thread, if anything did."""
        self.on_batch: Callable[[str, int, float], None] = lambda kind, rows, seconds: None
        """Called after each batch with its kind, the requests in it and its seconds."""
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin: compile all programs, then work."""
        self._thread.start()

    def close(self) -> None:
        """Finish what waits, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def num_waiting(self) -> int:
        """Requests that no work has begun on."""
        return len(self._checks) + len(self._prompts)

    def check(self, check: Check) -> None:
        """Measure an answer; its future has the result.

        Raises
        ------
        Busy
            Too many requests wait.
        Unavailable
            The service is not ready, or ends.
        """
        self._put(self._checks, check)

    def write(self, prompt: Continuation) -> None:
        """Continue a prompt.

        Raises
        ------
        Busy
            Too many requests wait.
        Unavailable
            The service is not ready, or ends.
        """
        self._put(self._prompts, prompt)

    def _put(self, queue: deque, item: Check | Continuation) -> None:
        with self._changed:
            if not self.is_ready:
                raise Unavailable("the service is starting: its programs are being compiled")
            if self.failure or self._closing:
                raise Unavailable("the service is ending")
            if self.num_waiting >= self._max_waiting:
                raise Busy(f"{self._max_waiting} requests wait already")
            queue.append(item)
            self._changed.notify()

    def _run(self) -> None:
        try:
            for _ in warm_up(self.model, self.max_tokens, self.max_new_tokens):
                if self._closing:
                    return
            self.is_ready = True
            while self._turn():
                pass
        except BaseException as error:
            self.failure = error
            self._fail_all(error)
            raise

    def _turn(self) -> bool:
        """One batch of checks and one segment of each stream; False at the end."""
        with self._changed:
            while not (self._checks or self._prompts or self._streams):
                if self._closing:
                    return False
                self._changed.wait()
            checks = self._next_checks()
            prompts = self._next_prompts() if len(self._streams) < self._max_streams else []
        if checks:
            self._measure(checks)
        if prompts:
            self._streams.append(self._writer.write(prompts))
        for _ in range(len(self._streams)):
            stream = self._streams.popleft()
            begun = time.perf_counter()
            with contextlib.suppress(StopIteration):
                next(stream)
                self._streams.append(stream)
            self.on_batch("segment", 1, time.perf_counter() - begun)
        return True

    def _next_checks(self) -> list[Check]:
        """The check that has waited longest, and others of its shape."""
        taken: list[Check] = []
        rest: deque[Check] = deque()
        shape = None
        while self._checks:
            check = self._checks.popleft()
            if check.result.cancelled():
                continue
            own = check_shape(check.packed())
            shape = shape or own
            if own == shape and len(taken) < rows_of(shape.num_tokens):
                taken.append(check)
            else:
                rest.append(check)
        self._checks = rest
        return taken

    def _next_prompts(self) -> list[Continuation]:
        """The prompt that has waited longest, and others that can be continued with it."""
        taken: list[Continuation] = []
        rest: deque[Continuation] = deque()
        while self._prompts:
            prompt = self._prompts.popleft()
            if prompt.left.is_set():
                continue
            fits = not taken or (
                prompt.group == taken[0].group
                and length_of(len(prompt.prompt_ids)) == length_of(len(taken[0].prompt_ids))
            )
            (taken if fits and len(taken) < ROWS else rest).append(prompt)
        self._prompts = rest
        return taken

    def _measure(self, checks: list[Check]) -> None:
        begun = time.perf_counter()
        running = [check for check in checks if check.result.set_running_or_notify_cancel()]
        if not running:
            return
        try:
            measure_together(self.model, running)
        except ValueError as error:
            # One answer's fault must not be that of the others in its batch.
            for check in running:
                if len(running) == 1:
                    check.result.set_exception(error)
                else:
                    self._alone(check)
        self.on_batch("check", len(running), time.perf_counter() - begun)

    def _alone(self, check: Check) -> None:
        try:
            measure_together(self.model, [check])
        except ValueError as error:
            check.result.set_exception(error)

    def _fail_all(self, error: BaseException) -> None:
        """Tell everybody who waits."""
        with self._changed:
            for check in self._checks:
                if check.result.set_running_or_notify_cancel():
                    check.result.set_exception(error)
            for prompt in self._prompts:
                prompt.on_written(error)
            self._checks.clear()
            self._prompts.clear()
