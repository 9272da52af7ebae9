"""What every test runs under: a shared compilation cache, strict broadcasting, no display."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

# Variables, so that the processes which tests start inherit them; and before JAX is imported.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".jax_cache")
)
os.environ.setdefault("JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Compiling is most of what the tests do; these halve it. JAX 0.12 has lost one, and dies of flags it does not know.
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

matplotlib.use("Agg")
# A plugin may have imported JAX before the variables were set (XLA's flags are read when its first program runs).
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update(
    "jax_persistent_cache_min_compile_time_secs",
    float(os.environ["JAX_PERSISTENT_COMPILATION_CACHE_MIN_COMPILE_TIME_SECS"]),
)
# (N,) against (N, C) is a mistake until somebody writes the axis down.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example compiles, which takes any deadline; derandomised, a failure can be had again.
hypothesis.settings.register_profile("isounc", deadline=None, derandomize=True)
hypothesis.settings.load_profile("isounc")


def pytest_configure(config: pytest.Config) -> None:
    """Import ArviZ before the workers do: on the first import of a day it writes a file, which two would trip over."""
    if not hasattr(config, "workerinput"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("arviz")


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that read files outside of the repository: `-m "not shared"` leaves them out."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """Path of a file in `../shared`, which is not part of the repository; a skip if it is absent."""

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
    """Float64 for one test, where the backend has it; what was set before is back afterwards."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    """No figure outlives its test: matplotlib warns at twenty open ones."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
