"""Where the unfinished work of a batch is kept, so that a job that is taken away goes on with it.

A job opens the place around its work. Whatever has checkpoints of its own, as sampling has, asks for
a folder there by everything that decides its numbers, so that nothing in between knows of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from isounc.runs import files

_place: ContextVar[Path | None] = ContextVar("place", default=None)


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Keep what is unfinished in the block below `folder`."""
    before = _place.set(folder)
    try:
        yield
    finally:
        _place.reset(before)


def is_kept() -> bool:
    """Whether unfinished work is kept here."""
    return _place.get() is not None


def place_of(identity: Mapping[str, Any]) -> Path:
    """The folder of a piece of work that `identity` decides.

    Raises
    ------
    LookupError
        If nothing is kept here.
    """
    if (place := _place.get()) is None:
        raise LookupError("unfinished work is kept in jobs of a cluster alone")
    return place / files.json_digest(files.encode(dict(identity), "identity"))[:16]
