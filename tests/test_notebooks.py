"""The notebooks run from top to bottom."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
PRINTED = {
    "quickstart": ("gate passed: True", "Pearson"),
    "guard": (
        r"Accept where one minus moderated probability is at or below 0\.\d",
        r"read back, it is the same: True",
        r"Report: report/report\.html",
        r"No threshold keeps the promise: .* Nothing is accepted\.\nthreshold: None",
        r"even without an error \d+ accepted answers are needed",
        r"\nlabelled monitor: alarm at answer \d+, \d+ answers after the change",
        r"unlabelled monitor: alarm at answer \d+, \d+ answers after the change",
    ),
    "own_model": (
        r"(?s)Flax Linen: largest relative difference below 1e-4: True\n"
        r".*Equinox: largest relative difference below 1e-4: True\n"
        r".*a function: largest relative difference below 1e-4: True\n",
        r"\['w1'\] +2x32  fast",
        "check agrees to 1e-4: True",
        r"sigma² = 0\.\d+ by the rule unit",
    ),
    "reading_a_curve": (
        "60 of 60 references of this run passed",
        r"50 draws a chain, gate passed: False\n- ",
        r"draws a chain, gate passed: True",
        r"(?s)test: r of the norm less r of p\(1−p\): .*far: r of the norm",
        r"moons: .* per doubling of the width: undecided",
    ),
    "language_model": (
        r"the right answer is the more probable one in \d+ of 12 questions",
        r"‖∇log p‖² is larger for the wrong answer in \d+ of 12",
        r"(?s)The capital of Italy is Rome\. .*The capital of Japan is Madrid\. ",
    ),
}
"""What each notebook prints, as regular expressions."""
LONG = {"language_model", "own_model", "reading_a_curve"}
"""Notebooks that run only where ISOUNC_SLOW=1 is set; tests/test_docs.py runs a page with the calls of
own_model."""
MOST_OF_AN_IMAGE = {"quickstart": 220_000}
"""Characters of the largest image that is committed; others have 80 000, a PNG of 60 kB."""


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def text_of(cells):
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, marks=[pytest.mark.slow] if p.stem in LONG else [], id=p.stem)
        for p in NOTEBOOKS
    ],
)
def test_notebook_runs(path, tmp_path, monkeypatch):
    # The kernel inherits it, and would draw nothing into the notebook.
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    printed = text_of(code)
    assert [said for said in PRINTED[path.stem] if not re.search(said, printed)] == []
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_what_is_committed_is_whole_and_small(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [said for said in PRINTED[path.stem] if not re.search(said, text_of(cells))] == []
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(output.get("name") != "stderr" for output in outputs)
    images = [len(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    assert images and max(images) <= MOST_OF_AN_IMAGE.get(path.stem, 80_000)
    assert path.stat().st_size < 2**18
    assert not re.search(r"/(home|root|tmp|work|Users)/", text_of(cells))
