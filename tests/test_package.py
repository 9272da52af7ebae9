"""The project's own files agree with each other, and the fixtures do what they promise."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zlib
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from packaging.requirements import Requirement

import isounc
import isounc.estimates
import isounc.llm
from isounc.padding import bucket
from isounc.statistics import compare
from tests.conftest import checked_raises

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_one_version_everywhere(pyproject):
    assert importlib.metadata.version("isounc") == isounc.__version__
    assert pyproject["project"]["dynamic"] == ["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [isounc.__version__]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{isounc.__version__}]" in changelog


def test_the_bank_is_of_the_range_that_the_extra_asks_for(pyproject):
    [wanted] = pyproject["project"]["optional-dependencies"]["bank"]
    requirement = Requirement(wanted)
    assert importlib.metadata.version(requirement.name) in requirement.specifier
    folder = ROOT / "packages" / requirement.name
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_an_answer_needs_no_flax():
    code = "import isounc.studies.qa.ask, sys; print({'flax', 'optax', 'scipy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_names_of_packages_are_where_they_are_said_to_be():
    for package in (isounc, isounc.estimates, isounc.llm):
        assert {*package.__all__} <= {*dir(package)}
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(
            AttributeError, match=f"{package.__name__!r} has no attribute 'no_such'"
        ):
            package.no_such  # noqa: B018


def test_the_wheel_stays_small():
    # Deflated one by one, as in a wheel; release/check.py looks at the wheel itself.
    files = [path for path in Path(isounc.__file__).parent.rglob("*") if path.is_file()]
    packed = sum(len(zlib.compress(path.read_bytes())) for path in files if path.suffix != ".pyc")
    assert 500_000 < packed < 5_000_000


def test_every_locked_distribution_is_pinned(pyproject):
    lock = ROOT / "uv.lock"
    if not lock.exists():
        pytest.skip("not run by uv: there is no lock to compare with")
    locked = {
        (package["name"], package["version"])
        for package in tomllib.loads(lock.read_text(encoding="utf-8"))["package"]
        if "registry" in package["source"]  # the others are folders of this repository
    }
    pins = pyproject["tool"]["uv"]["constraint-dependencies"]
    pinned = {tuple(pin.partition(";")[0].strip().split("==")) for pin in pins}
    assert locked == pinned, "renew the pins as CONTRIBUTING.md says"


def test_the_picture_of_packages_is_the_contract(pyproject):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    [picture] = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    drawn = [re.split(r"\s{2,}", line)[0] for line in picture.splitlines() if line[0] != " "]
    assert drawn == pyproject["tool"]["importlinter"]["contracts"][0]["layers"]


@pytest.mark.usefixtures("x64")
def test_x64_fixture_gives_float64():
    assert jnp.zeros(1).dtype == jnp.float64


def test_annotations_are_checked():
    with checked_raises(BeartypeCallHintViolation, match="parameter n="):
        bucket("3")
    with checked_raises(jaxtyping.TypeCheckError, match="reference"):  # which names axes
        compare(np.arange(3.0), np.arange(4.0))
    with pytest.raises(TypeError, match="bad operand"):  # the function's own error
        bucket("3")


def test_ranks_are_not_promoted():
    with pytest.raises(ValueError, match="rank"):
        _ = jnp.zeros(3) + jnp.zeros((2, 3))
