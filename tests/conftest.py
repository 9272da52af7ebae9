"""Settings of all tests: a shared compilation cache, strict broadcasting, checked annotations."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Environment variables, which processes that tests start inherit; set before JAX is imported.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".jax_cache")
)
# Small programs too: storing one takes a millisecond, compiling it again in another process thirty.
os.environ.setdefault("JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Where Python is told to write no bytecode, every process that tests start translates some two
# thousand modules anew, which takes longer than all else that it does. A folder apart leaves the
# sources' own folders as they are.
if sys.dont_write_bytecode and sys.pycache_prefix is None:
    sys.pycache_prefix = str(Path(__file__).resolve().parents[1] / ".bytecode_cache")
    sys.dont_write_bytecode = False
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Compiling takes most of the tests' time: XLA leaves most optimizations out, but in tests that have
# the fixture `optimized`, for which these flags halve it. JAX 0.12 no longer knows one of them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=1",
        *(["--xla_cpu_use_fusion_emitters=false"] if version("jaxlib").startswith("0.10.") else []),
        os.environ.get("XLA_FLAGS", ""),
    ]
).strip()

import hypothesis
import jax
import jaxtyping
import matplotlib
import pytest

from tests.annotations import check_sparingly

check_sparingly()
matplotlib.use("Agg")
# A plugin may have imported JAX before the variables were set; XLA reads its flags later.
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update(
    "jax_persistent_cache_min_compile_time_secs",
    float(os.environ["JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS"]),
)
jax.config.update(
    "jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
)
# (N,) against (N, C) is a mistake until somebody writes the axis down.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example compiles, which exceeds any deadline; derandomised, a failure can be repeated.
hypothesis.settings.register_profile("isounc", deadline=None, derandomize=True)
hypothesis.settings.load_profile("isounc")


checked_raises: Any = pytest.raises


@contextlib.contextmanager
def unchecked_raises(*args, **kwargs) -> Iterator[pytest.ExceptionInfo]:
    """`pytest.raises` without the checks of annotations, which would hide isounc's own errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with checked_raises(*args, **kwargs) as info:
            yield info
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


pytest.raises = unchecked_raises


def pytest_configure(config: pytest.Config) -> None:
    """Import ArviZ before the workers do: its first import of a day writes a file."""
    if not hasattr(config, "workerinput"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("arviz")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give processes whole files, the longest first, unless another `--dist` is asked for."""
    if config.getoption("dist") != "loadfile":
        return None
    return importlib.import_module("tests.distribution").WholeFiles(config, log)


SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_finish() -> None:
    """Let Python look for cycles of garbage more rarely, and not among what was imported."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that read files outside the repository, and skip slow ones unless asked for.

    `-m "not shared"` leaves the former out, ISOUNC_SLOW=1 runs the latter.
    """
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")
        if item.get_closest_marker("slow") and os.environ.get("ISOUNC_SLOW") != "1":
            item.add_marker(pytest.mark.skip(reason="takes long: set ISOUNC_SLOW=1"))


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """Path of a file in `../shared`, outside the repository; the test is skipped if it is absent."""

    def path_of(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"reads {path}, which is not part of the repository")
        return path

    return path_of


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No shape checks: for a test of what a function itself says of wrong arguments."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 for one test, if the backend has it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optimized() -> Iterator[None]:
    """Optimized programs, for tests that compute for longer than they compile."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    """Close all figures after a test: matplotlib warns at twenty open ones."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
