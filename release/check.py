"""Build what is released, and check it as users get it: in fresh environments, without our pins.

    uv run --group release release/check.py
    uv run --group release release/check.py --python 3.12 --resolution newest

Sdists and wheels of isounc and isounc-bank land in dist; nothing is uploaded. For each Python there
are two environments: `newest` has what pip chooses today, `lowest` the oldest versions that the
ranges of pyproject.toml allow. Each runs the command, its self-check, `client.py` and some tests
against the installed wheel, and pyright on `client.py`. The status is 1 if anything fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
PROJECTS = (ROOT, ROOT / "packages" / "isounc-bank")
MOST_BYTES = 5_000_000
"""Largest wheel of isounc."""
PYTHONS = ("3.11", "3.12", "3.13")
EXTRAS = ("arviz", "bank", "guard", "llm", "serve")
"""Extras that are checked: the others need an accelerator or a cluster, or bring
tools alone."""
TOOLS = ("beartype", "equinox", "httpx", "hypothesis", "openai", "pytest", "pytest-xdist")
"""Distributions of the development group that the tests below need."""
TESTS = (
    "tests/gradnorm/test_accuracy.py",
    "tests/estimates/test_moderated.py",
    "tests/estimates/test_signs.py",
    "tests/estimates/test_stateful_modules.py",
    "tests/test_statistics.py",
    "tests/test_untrusted.py",
    "tests/references",
    "tests/guard/test_guard.py",
    "tests/guard/test_parts.py",
    "tests/llm/model/test_untrusted_models.py",
    "tests/llm/model/test_untrusted_tokenizers.py",
    "tests/serve/test_checks.py",
)
"""About a minute that touches every extra."""
SHOWN = ("jax", "flax", "numpy", "scipy", "pandas", "blackjax", "numpyro", "arviz", "fastapi")


def main() -> None:
    """Build, check every environment, print a table, and end with a status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python", nargs="+", default=PYTHONS, help="versions on the PATH, or interpreters"
    )
    parser.add_argument(
        "--resolution", nargs="+", default=("newest", "lowest"), choices=("newest", "lowest")
    )
    parser.add_argument("--built", action="store_true", help="check what lies in dist already")
    options = parser.parse_args()
    if not options.built:
        build()
    wheels, sdist = examine_files()
    failed = []
    for python in options.python:
        for resolution in options.resolution:
            with tempfile.TemporaryDirectory(prefix="isounc-") as folder:
                try:
                    Environment(Path(folder), python, resolution).examine(wheels, sdist)
                except subprocess.CalledProcessError as error:
                    print(f"FAILED with status {error.returncode}: {' '.join(error.cmd)}")
                    failed.append(f"{python} {resolution}")
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall passed")
    raise SystemExit(bool(failed))


def build() -> None:
    """Build sdists and wheels of both projects."""
    for old in DIST.glob("isounc*"):
        old.unlink()
    for project in PROJECTS:
        run([sys.executable, "-m", "build", "--outdir", str(DIST), str(project)], ROOT)


def examine_files() -> tuple[list[Path], Path]:
    """Check metadata and size; return the wheels (isounc's first) and isounc's sdist."""
    files = sorted(DIST.glob("isounc*"))
    run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)], ROOT)
    [wheel], [bank] = DIST.glob("isounc-*.whl"), DIST.glob("isounc_bank-*.whl")
    [sdist] = DIST.glob("isounc-*.tar.gz")
    for path in files:
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    with zipfile.ZipFile(wheel) as archive:
        members = sorted(archive.infolist(), key=lambda member: -member.compress_size)
    for member in members[:5]:
        print(f"    {member.compress_size:>9,}  {member.filename}")
    if wheel.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{wheel.name} must have at most {MOST_BYTES:,} bytes")
    return [wheel, bank], sdist


class Environment:
    """A fresh environment with one Python, and what is run in it."""

    def __init__(self, folder: Path, python: str, resolution: str):
        self.folder, self.resolution = folder, resolution
        found = ["uv", "python", "find", "--no-config", "--system", "--no-project", python]
        self.interpreter = run(found, folder, quiet=True).strip()
        self.python = str(folder / "venv" / "bin" / "python")
        self.title = f"Python {python}, {resolution}"

    def examine(self, wheels: Sequence[Path], sdist: Path) -> None:
        """Install and check, first without extras and then with them."""
        print(f"\n=== {self.title}", flush=True)
        client = str(shutil.copy(ROOT / "release" / "client.py", self.folder))
        command = str(self.folder / "venv" / "bin" / "isounc")
        self.step("venv", [self.interpreter, "-m", "venv", "venv"])
        self.step("install", self.install(wheels[:1], ()))
        self.step("pip check", [self.python, "-m", "pip", "check"])
        self.step("isounc --version", [command, "--version"])
        self.step("isounc doctor", [command, "doctor", "--cache", "cache"])
        self.step("client", [self.python, client])
        self.step("install extras", self.install(wheels, EXTRAS))
        self.step("pip check", [self.python, "-m", "pip", "check"])
        self.step("isounc references", [command, "references", "show", "linear-logistic-v1"])
        self.step("client", [self.python, client])
        self.step("pyright", [sys.executable, "-m", "pyright", "--pythonpath", self.python, client])
        listed = run([self.python, "-m", "pip", "list", "--format=json"], self.folder, quiet=True)
        versions = {row["name"].lower(): row["version"] for row in json.loads(listed)}
        print("    " + ", ".join(f"{name} {versions[name]}" for name in SHOWN), flush=True)
        tools = [r for r in group("dev") if r.split(">")[0].split("=")[0] in TOOLS]
        self.step("install tools", [self.python, "-m", "pip", "install", "-q", *tools])
        with tarfile.open(sdist) as archive:
            archive.extractall(self.folder, filter="data")
        source = self.folder / sdist.name.removesuffix(".tar.gz")
        shutil.rmtree(source / "isounc")  # the wheel is tested, not this copy
        self.step("tests", [self.python, "-m", "pytest", "-q", "-n", "0", *TESTS], source)

    def install(self, wheels: Sequence[Path], extras: Sequence[str]) -> list[str]:
        """The command that installs isounc with extras."""
        wanted = [str(wheels[0]) + (f"[{','.join(extras)}]" if extras else "")]
        wanted += map(str, wheels[1:])
        if self.resolution == "newest":
            return [self.python, "-m", "pip", "install", "-q", *wanted]
        # uv takes the lowest version of what is asked for by name, not of what a wheel asks for.
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        named = [*project["dependencies"]]
        for extra in extras:
            named += project["optional-dependencies"][extra]
        named = [line for line in named if not line.startswith("isounc-bank")]
        return [
            "uv", "pip", "install", "-q", "--no-config", "--python", self.python,
            "--resolution", "lowest-direct", *named, *wanted,
        ]  # fmt: skip

    def step(self, name: str, command: Sequence[str], where: Path | None = None) -> None:
        """Run a command, and say how long it took."""
        start = time.perf_counter()
        run(command, where or self.folder)
        print(f"    {name}: {time.perf_counter() - start:.0f} s", flush=True)


def group(name: str) -> list[str]:
    """Requirements of a dependency group."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [line for line in groups["dependency-groups"][name] if isinstance(line, str)]


def run(command: Sequence[str], where: Path, *, quiet: bool = False) -> str:
    """Run a command without the surroundings of this one; its output is shown if it fails."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    kept["JAX_COMPILATION_CACHE_DIR"] = str(where / "cache")
    done = subprocess.run(command, cwd=where, env=kept, text=True, capture_output=True)
    if done.returncode:
        print(done.stdout[-8000:], done.stderr[-8000:], sep="\n", flush=True)
        done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    main()
