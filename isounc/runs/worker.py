"""The inside of a worker process: what it does first, and how it computes a group.

The module imports the standard library alone: a worker must notice that its parent is gone while it
still imports everything else, which takes seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from typing import Any

_events: Connection | None = None
"""Where the news of this worker goes."""


def start(events: Connection, cache: str | None, platforms: str | None) -> None:
    """Watch the parent, and let JAX compute as it does there."""
    global _events
    _events = events
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    import jax

    from isounc.runs import process

    process.use_compilation_cache(cache)
    jax.config.update("jax_platforms", platforms)
    events.send(None)  # it has started


def compute(work: Any, group: Any) -> Any:
    """Call `work(group, tell)`."""
    assert _events is not None
    send = _events.send
    return work(group, lambda event: send(tuple(event)))


def _end_with_the_parent() -> None:
    # A parent that was killed cannot stop its workers, and may be dead before this line.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
