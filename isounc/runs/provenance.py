"""Provenance of a run: versions, device, git state and time."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("isounc", "jax", "jaxlib", "flax", "blackjax", "optax", "numpyro", "numpy", "scipy")


def provenance(computed_on: dict[str, Any] | None = None) -> dict[str, Any]:
    """Say what computes a run, without host names or paths.

    Parameters
    ----------
    computed_on
        The `device` of another process, if that computed; this one then starts no device.

    Returns
    -------
    dict
        ``versions`` (package to version, None where not installed), ``device`` (platform, kind,
        count, x64), ``system``, ``cpu_count`` (usable by this process), ``git`` (commit, and
        whether tracked files were changed; both None where this code is not tracked by git) and
        ``time`` (UTC, ISO 8601).
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "versions": versions,
        "device": computed_on or device(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_count": len(affinity(0)) if affinity else os.cpu_count(),
        "git": git_state(Path(__file__)),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device() -> dict[str, Any]:
    """The device on which this process computes, which it starts."""
    import jax  # here, because reading a run needs no accelerator to be started

    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "x64": bool(jax.config.read("jax_enable_x64")),
    }


def git_state(file: Path) -> dict[str, Any]:
    """Commit and dirty flag of the working tree that tracks `file`; both None if none does."""
    # A hook exports GIT_DIR and the like, which would point at another repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout.strip()

    try:
        # An installed copy may lie, ignored, inside a repository that has nothing to do with it.
        git("ls-files", "--error-unmatch", file.name)
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
