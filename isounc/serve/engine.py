"""The one thread that computes: it batches what waits, and takes turns between it.

Requests that arrive while it computes are measured together, padded to one of few shapes
(`isounc.serve.shapes`). Answers are written a few tokens at a time, in turns with the measurements, so
that neither waits for the other's end.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from isounc.llm.model.load import LanguageModel
from isounc.serve.shapes import check_shape, length_of, rows_of
from isounc.serve.warming import measure_together, warm_up
from isounc.serve.work import Check, Continuation
from isounc.serve.writing import ROWS, Writer

LOG = logging.getLogger("isounc.serve")


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
        self._streams: deque[tuple[Iterator[None], list[Continuation]]] = deque()
        self._running: list[Check] = []
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

    def check(self, check: Check, *, admitted: bool = False) -> None:
        """Measure an answer; its future has the result.

        Parameters
        ----------
        check
            The answer.
        admitted
            Whether it belongs to a request that has waited already, as the answer of a prompt does.

        Raises
        ------
        Busy
            Too many requests wait.
        Unavailable
            The service is not ready, or ends.
        """
        with self._changed:
            self._admit(admitted)
            self._checks.append(check)

    def write(self, prompt: Continuation) -> None:
        """Continue a prompt.

        Raises
        ------
        Busy
            Too many requests wait.
        Unavailable
            The service is not ready, or ends.
        """
        with self._changed:
            self._admit(False)
            self._prompts.append(prompt)

    def _admit(self, admitted: bool) -> None:
        """Refuse a further request, or wake the model's thread for it; the lock is held."""
        if self.failure:
            raise Unavailable("the model's thread has ended: the service must be started again")
        if self._closing:
            raise Unavailable("the service is ending")
        if not self.is_ready:
            raise Unavailable("the service is starting: its programs are being compiled")
        if self.num_waiting >= self._max_waiting and not admitted:
            # Places of clients that have left are free.
            self._checks = deque(c for c in self._checks if not c.result.cancelled())
            self._prompts = deque(p for p in self._prompts if not p.left.is_set())
            if self.num_waiting >= self._max_waiting:
                raise Busy(f"{self._max_waiting} requests wait already")
        self._changed.notify()

    def _run(self) -> None:
        try:
            for _ in warm_up(self.model, self.max_tokens, self.max_new_tokens):
                if self._closing:
                    return
            self.is_ready = True
            LOG.info("Ready: all programs are compiled")
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
            checks = self._running = self._next_checks()
            prompts = self._next_prompts() if len(self._streams) < self._max_streams else []
        if checks:
            self._measure(checks)
        if prompts:
            self._streams.append((self._writer.write(prompts), prompts))
        for _ in range(len(self._streams)):
            stream, prompts = self._streams[0]
            begun = time.perf_counter()
            with contextlib.suppress(StopIteration):
                next(stream)
                self._streams.append((stream, prompts))
            self._streams.popleft()
            self.on_batch("segment", len(prompts), time.perf_counter() - begun)
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
        except Exception as error:
            # One answer's fault must not be that of the others in its batch, nor end the service:
            # the memory may hold one answer where it does not hold all.
            for check in running:
                if len(running) == 1:
                    _fail(check, error)
                else:
                    self._alone(check)
        self.on_batch("check", len(running), time.perf_counter() - begun)

    def _alone(self, check: Check) -> None:
        if check.result.done():
            return
        try:
            measure_together(self.model, [check])
        except Exception as error:
            _fail(check, error)

    def _fail_all(self, error: BaseException) -> None:
        """Tell everybody who waits, has been taken from the queue, or is being answered."""
        # Not the error itself: one that ends a thread would end the loop of the clients' requests too.
        said = RuntimeError(f"the model's thread has ended with {type(error).__name__}")
        with self._changed:
            for check in (*self._running, *self._checks):
                _fail(check, said)
            for prompt in (*self._prompts, *(p for _, prompts in self._streams for p in prompts)):
                prompt.on_written(said)
            self._checks.clear()
            self._prompts.clear()
            self._streams.clear()


def _fail(check: Check, error: Exception) -> None:
    """Give a check an error for its result, unless it has one or nobody waits for it."""
    running = check.result.running()
    if not check.result.done() and (running or check.result.set_running_or_notify_cancel()):
        check.result.set_exception(error)
