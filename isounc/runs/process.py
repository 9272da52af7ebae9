"""The process that computes: its compiled programs, and its memory."""

from __future__ import annotations

import ctypes
import gc
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import psutil

MEBIBYTE = 2**20


class Compilation(NamedTuple):
    """Compilations of a process so far."""

    count: int
    """Programs compiled."""
    cached: int
    """Programs taken from the persistent cache instead."""
    seconds: float
    """Time spent on both."""


_compiled = {"count": 0, "cached": 0, "seconds": 0.0}


def _on_duration(event: str, duration_secs: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled["count"] += 1
        _compiled["seconds"] += duration_secs


def _on_event(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _compiled["cached"] += 1


jax.monitoring.register_event_duration_secs_listener(_on_duration)
jax.monitoring.register_event_listener(_on_event)


def compilations() -> Compilation:
    """Compilations of this process since it imported this module."""
    cached = _compiled["cached"]
    return Compilation(int(_compiled["count"] - cached), int(cached), _compiled["seconds"])


def use_compilation_cache(folder: str | Path | None) -> None:
    """Keep compiled programs in `folder` for later runs; None and "" leave JAX as it is."""
    if not folder:
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
    # All programs: a run has about two hundred, most of which compile faster than the default bound.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # JAX mentions an entry that was torn by a kill. It is compiled again: no news for a user.
    warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")


def peak_mebibytes() -> float:
    """Largest resident set of this process so far, in MiB."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / MEBIBYTE
    import resource  # which Windows does not have

    unit = MEBIBYTE if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def resident_mebibytes() -> float:
    """Resident set of this process now, in MiB."""
    return psutil.Process().memory_info().rss / MEBIBYTE


def machine_mebibytes() -> float:
    """Physical memory of the machine, in MiB."""
    return psutil.virtual_memory().total / MEBIBYTE


def bound_memory(most: float) -> None:
    """Return freed memory to the system, and drop compiled programs above `most` MiB.

    A program that is needed again comes back from the compilation cache within seconds. The
    allocator of glibc keeps much of what compiling took until it is told to trim.
    """
    _trim()
    if resident_mebibytes() > most:
        jax.clear_caches()
        gc.collect()
        _trim()


def _trim() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
