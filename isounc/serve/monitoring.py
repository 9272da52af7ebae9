"""Numbers about the service itself, and what became of its answers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from isounc.guard.drift import MOST_STORED, RiskMonitor
from isounc.guard.guard import Guard

MOST_REMEMBERED = 100_000
"""Answers whose scores are kept for feedback; the oldest go first."""

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper ends of the histogram of seconds."""


class Metrics:
    """Counts and times for Prometheus."""

    def __init__(self):
        self.registry = on = CollectorRegistry()
        self.requests = Counter(
            "isounc_requests", "Requests by endpoint and status.", ["endpoint", "status"],
            registry=on,
        )  # fmt: skip
        self.seconds = Histogram(
            "isounc_request_seconds", "Seconds from a request to the end of its answer.",
            ["endpoint"], buckets=_BUCKETS, registry=on,
        )  # fmt: skip
        self.batches = Histogram(
            "isounc_batch_seconds", "Seconds of a batch, by kind of work.", ["kind"], registry=on
        )
        self.batch_rows = Histogram(
            "isounc_batch_requests", "Requests in a batch, by kind of work.", ["kind"],
            buckets=(1, 2, 3, 4, 6, 8, 16), registry=on,
        )  # fmt: skip
        self.decisions = Counter(
            "isounc_decisions", "Decisions of the guard.", ["decision"], registry=on
        )
        self.waiting = Gauge("isounc_waiting", "Requests that no work has begun on.", registry=on)
        self.ready = Gauge("isounc_ready", "1 when all programs are compiled.", registry=on)
        self.alarm = Gauge(
            "isounc_alarm", "1 after an alarm of the monitor of feedback.", registry=on
        )

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)


@dataclass(frozen=True)
class FeedbackState:
    """What feedback has shown so far."""

    num_labelled: int
    """Answers with feedback."""
    lower_bound: float | None
    """Lower bound of the share of wrong answers among the accepted ones; None without any."""
    alarm_since: str | None
    """The id of the answer whose feedback raised the alarm; None if there is none."""

    def to_json(self) -> dict[str, Any]:
        """Fields of the response."""
        return {
            "labelled": self.num_labelled,
            "risk_lower_bound": self.lower_bound,
            "alarm_since": self.alarm_since,
        }


class Feedback:
    """Remembers the scores of answers, and watches what they turned out to be.

    Raises
    ------
    ImportError
        There is a guard with a threshold, and MAPIE is not installed.
    """

    def __init__(self, guard: Guard | None):
        self._guard = guard
        watches = guard is not None and guard.threshold is not None
        self._monitor = RiskMonitor(guard) if watches and guard is not None else None
        self._scores: OrderedDict[str, float] = OrderedDict()
        self._labelled: list[str] = []
        self._lock = threading.Lock()

    def remember(self, identity: str, scores: dict[str, float]) -> None:
        """Keep the guard's score of an answer until its feedback comes."""
        if self._guard is None:
            return
        value = scores.get(self._guard.certificate.score)
        if value is None:
            return
        with self._lock:
            self._scores[identity] = value
            while len(self._scores) > MOST_REMEMBERED:
                self._scores.popitem(last=False)

    def add(self, identity: str, correct: bool) -> FeedbackState:
        """Take feedback about an answer; each counts once.

        Raises
        ------
        KeyError
            No answer of this id waits for feedback.
        OverflowError
            The monitor can hold no more.
        """
        with self._lock:
            if len(self._labelled) >= MOST_STORED:
                raise OverflowError(f"{MOST_STORED} answers have feedback already")
            score = self._scores.pop(identity)
            self._labelled.append(identity)
            if self._monitor is not None:
                self._monitor.update([score], [correct])
            return self._state()

    def _state(self) -> FeedbackState:
        if self._monitor is None:
            return FeedbackState(len(self._labelled), None, None)
        since = self._monitor.alarm_since
        return FeedbackState(
            len(self._labelled),
            self._monitor.lower_bound,
            None if since is None else self._labelled[since],
        )
