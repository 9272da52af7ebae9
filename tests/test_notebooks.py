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
}
"""What each notebook prints, as regular expressions."""


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def text_of(cells):
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
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


def test_what_is_committed_of_the_guard_is_whole_and_small():
    path = next(p for p in NOTEBOOKS if p.stem == "guard")
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [said for said in PRINTED["guard"] if not re.search(said, text_of(cells))] == []
    assert path.stat().st_size < 2**18
