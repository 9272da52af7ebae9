"""Time and memory of the README's command on a fresh clone, without environment or compiled code.

    uv run benchmarks/fresh_clone.py                     # the quick preset
    uv run benchmarks/fresh_clone.py --test              # the tests

The clone is made of HEAD, so commit first. It uses uv's package cache, so that downloads are not
timed. Memory is the sum of the proportional set sizes of the command's processes, sampled twice a
second (Linux).
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def tree_mebibytes(root: int) -> float:
    """Proportional set size in MiB of a process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        todo += children.get(pid, [])
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def main() -> None:
    """Clone the repository, run the command, and print its time and memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--test", action="store_true", help="time the tests instead")
    parser.add_argument("arguments", nargs="*", help="more arguments of the command, after --")
    options = parser.parse_args()
    command = (
        ["uv", "run", "pytest", "-q"] if options.test else ["uv", "run", "experiments/scaling.py"]
    )
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "isounc"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache", "HOME": folder}
        # A fresh home would also hide uv's downloads and its Python.
        cache = subprocess.run(["uv", "cache", "dir"], capture_output=True, text=True, check=True)
        environment["UV_CACHE_DIR"] = cache.stdout.strip()
        environment.pop("VIRTUAL_ENV", None)
        started, peak = time.perf_counter(), 0.0
        process = subprocess.Popen([*command, *options.arguments], cwd=clone, env=environment)
        while process.poll() is None:
            peak = max(peak, tree_mebibytes(process.pid))
            time.sleep(0.5)
        seconds = time.perf_counter() - started
    print(
        f"\n{' '.join(command)}: exit {process.returncode}, {seconds:.0f} s, peak {peak:.0f} MiB "
        f"({os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()})"
    )
    raise SystemExit(process.returncode)


if __name__ == "__main__":
    main()
