"""Settings that every study has under the same names, and settings that are read back from a run.

A study adds its own fields in a subclass. Every field becomes an option of its command line, in
which the docstring below the field is the help text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import jax

from isounc.checks import check_choice, check_count, check_real
from isounc.fields import shortened
from isounc.runs.executors import EXECUTORS

MOST_CELLS = 100_000
"""Most cells of a run; a grid of more is a slip, and would fill the memory before it begins."""
MOST_SEED = 2**32 - 1
"""Largest seed; JAX, in 32 bits, would give larger ones the keys of smaller ones."""
MOST_WORKERS = 8
"""Most worker processes that `workers=0` starts."""

ON_MACHINES = ("ray", "slurm")
"""Executors that use other machines. The process that was started computes nothing."""

ONLY_OF = {
    "ray_address": ("ray",),
    "cpus_per_cell": ("ray", "slurm"),
    "gpus_per_cell": ("ray",),
    "partition": ("slurm",),
    "time": ("slurm",),
    "gpus": ("slurm",),
}
"""Settings that only some executors have, with those."""

OF_THE_MACHINE = ("out", "executor", "workers", "cache", "dry_run", "figures", *ONLY_OF)
"""Settings that change no number. A run does not store them, and they may differ on resumption."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Settings of a run that every study has."""

    preset: Literal["quick", "standard", "paper"] = "quick"
    """Defaults of all other settings: quick takes minutes, standard much longer, paper longest."""
    out: str = ""
    """Run folder; empty means runs/STUDY-PRESET."""
    executor: str = "auto"
    """Where cells are computed: serial (in this process), processes (worker processes), ray (a Ray
    cluster), slurm (jobs of a Slurm cluster), or auto: what the study prefers on CPU, and serial on
    GPU and TPU."""
    workers: int = 0
    """Number of worker processes; 0 means one for each CPU core, at most 8. With ray and slurm, how
    many batches are computed at a time; 0 means as many as there is room for."""
    ray_address: str = ""
    """Ray: address of a running cluster, auto for the one of this machine; empty starts one here."""
    cpus_per_cell: float = 1.0
    """Ray, Slurm: CPU cores of a task or job, which computes the cells of a batch."""
    gpus_per_cell: float = 0.0
    """Ray: GPUs of a task; four tasks share one with 0.25."""
    partition: str = ""
    """Slurm: partition of the jobs; empty means the cluster's default."""
    time: int = 60
    """Slurm: time limit of a job in minutes."""
    gpus: int = 0
    """Slurm: GPUs of a job."""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """Device that computes; auto is JAX's choice."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the computation."""
    cache: str = "~/.cache/isounc/jax"
    """Folder of compiled programs, which later runs reuse; empty means none."""
    figures: Literal["all", "shown"] = "all"
    """Figures that are drawn: all, as PNG and SVG, or what the page shows unfolded, as PNG;
    isounc report draws all of them."""
    dry_run: bool = False
    """List the cells with a forecast of time and memory, and stop."""


S = TypeVar("S", bound=RunSettings)


def folder_of_run(settings: RunSettings, study: str) -> str:
    """The run folder of a study."""
    return settings.out or f"runs/{study}-{settings.preset}"


def check_run_settings(settings: RunSettings) -> None:
    """Refuse shared settings that cannot be used.

    Raises
    ------
    ValueError
        For an unknown executor, a number of workers that cannot be, or a setting of another executor.
    """
    check_choice("executor", settings.executor, ("auto", *EXECUTORS))
    check_count("workers", settings.workers, 0, 1024)
    _check_cluster(settings)


def _check_cluster(settings: RunSettings) -> None:
    """Refuse settings of executors that use other machines, where they cannot be or have no use."""
    executor, defaults = (
        settings.executor,
        {f.name: f.default for f in dataclasses.fields(settings)},
    )
    for name, executors in ONLY_OF.items():
        value = getattr(settings, name)
        if value != defaults[name] and executor not in executors:
            raise ValueError(
                f"{name} must be left out with executor {executor}, got {value!r}; it belongs to "
                f"executor {' and '.join(executors)}"
            )
    check_real("cpus_per_cell", settings.cpus_per_cell, positive=True)
    check_real("gpus_per_cell", settings.gpus_per_cell)
    check_count("time", settings.time, 1)
    check_count("gpus", settings.gpus, 0)
    shares = {"ray": "a share of one, or a whole number", "slurm": "a whole number"}
    for name in ("cpus_per_cell", "gpus_per_cell"):
        value = getattr(settings, name)
        if value % 1 and (value > 1 or executor == "slurm"):
            raise ValueError(f"{name} must be {shares[executor]}, got {value}")
    if executor == "ray" and settings.device == "gpu" and not settings.gpus_per_cell:
        raise ValueError("gpus_per_cell must be positive with device gpu, got 0")


def check_cells(count: int, what: str) -> None:
    """Refuse a plan of more than `MOST_CELLS` cells, before it is made.

    Parameters
    ----------
    count
        Number of cells.
    what
        Settings that it is the product of.
    """
    if count > MOST_CELLS:
        raise ValueError(f"{what} must make at most {MOST_CELLS} cells, got {count}")


def use_device(device: str) -> None:
    """Let JAX compute on `device`; `auto` leaves the choice to JAX.

    Raises
    ------
    ValueError
        If the machine has no such device, or JAX computes on another one already.
    """
    if device == "auto":
        return
    before = jax.config.jax_platforms  # pyright: ignore
    jax.config.update("jax_platforms", {"gpu": "cuda"}.get(device, device))
    try:
        found = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # the latter where JAX knows no such platform
        jax.config.update("jax_platforms", before)
        says = str(error).partition("\n")[0] or "there is none"
        raise ValueError(
            f"device must be one that JAX finds on this machine, got {device!r} (JAX says: {says}); "
            "give --device cpu, or install the extra cuda or tpu"
        ) from error
    if found != device:
        jax.config.update("jax_platforms", before)
        raise ValueError(
            f"device must be {found!r}, on which this process computes already, got {device!r}"
        )


def executor_and_workers(settings: RunSettings, preferred: str, num_groups: int) -> tuple[str, int]:
    """The executor by name and its number of workers, for a plan of `num_groups` groups.

    Parameters
    ----------
    preferred
        The executor that `auto` means on CPU.

    Returns
    -------
    Name and number; 0 means as many as there is room for, which is not known here.
    """
    name = settings.executor
    if name in ON_MACHINES:
        return name, settings.workers
    on_cpu = jax.default_backend() == "cpu"
    if name == "auto":
        name = preferred if on_cpu else "serial"
    if name == "serial":
        return name, 1
    workers = settings.workers or (min(MOST_WORKERS, os.cpu_count() or 1) if on_cpu else 1)
    return name, max(1, min(workers, num_groups))


def stored_settings(settings: RunSettings, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """The settings that a run folder stores: all but those of the machine and `leave_out`."""
    omitted = {*OF_THE_MACHINE, *leave_out}
    return {k: v for k, v in dataclasses.asdict(settings).items() if k not in omitted}


def restored_settings(default: S, stored: Mapping[str, Any]) -> S:
    """The settings that a run folder stored, with the rest as in `default`.

    Names that this version does not have are left out, so that older runs can be read.

    Raises
    ------
    ValueError
        If a value is not of the kind of its setting.
    """
    return _restored(default, stored, "the run's settings")


def _restored(default: Any, stored: Any, where: str) -> Any:
    if not isinstance(stored, Mapping):
        raise ValueError(f"{where} must be a mapping, got {shortened(stored)}")
    kinds = typing.get_type_hints(type(default))
    names = [field.name for field in dataclasses.fields(default) if field.name in stored]
    values = {
        name: _value(stored[name], kinds[name], getattr(default, name), f"{name} of {where}")
        for name in names
    }
    return dataclasses.replace(default, **values)


def _value(value: Any, kind: Any, before: Any, place: str) -> Any:
    """What JSON kept of a setting, as its annotation says; `before` is its default."""
    origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for part in parts:
            with contextlib.suppress(ValueError):
                return _value(value, part, before, place)
        raise ValueError(f"{place} must be one of its kinds, got {shortened(value)}")
    if origin is typing.Literal:
        right, good = " or ".join(map(str, parts)), value in parts
    elif origin is tuple:
        if isinstance(value, list | tuple):
            of_all = len(parts) == 2 and parts[1] is Ellipsis
            pairs = zip(value, [parts[0]] * len(value) if of_all else parts, strict=False)
            return tuple(
                _value(item, part, None, f"item {i} of {place}")
                for i, (item, part) in enumerate(pairs)
            )
        right, good = "a list", False
    elif dataclasses.is_dataclass(origin):
        return _restored(before, value, place)
    elif origin in _WORDS:
        right, types_of = _WORDS[origin]
        good = isinstance(value, types_of) and isinstance(value, bool) == (origin is bool)
    else:
        return value
    if not good:
        raise ValueError(f"{place} must be {right}, got {shortened(value)}")
    return value


_WORDS: dict[Any, tuple[str, Any]] = {
    bool: ("true or false", bool),
    int: ("an integer", int),
    float: ("a number", int | float),
    str: ("text", str),
    types.NoneType: ("left out", types.NoneType),
}
