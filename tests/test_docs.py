"""Code in the pages of the documentation runs."""

import re
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


def run(page):
    """The names that the code of a page leaves, from top to bottom."""
    text, names = (DOCS / page).read_text(encoding="utf-8"), {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, names)
    return names


def test_the_first_estimate():
    estimate = run("index.md")["estimate"]
    assert estimate.epistemic.shape == (5, 3) and (estimate.epistemic > 0).all()


@pytest.mark.filterwarnings("ignore:p of the predicted class")
def test_your_own_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("howto/own-model.md")
    estimate = names["estimate"]
    assert estimate.moderated.shape == (5, 3)
    np.testing.assert_allclose(estimate.moderated.sum(1), 1, rtol=1e-4)
    assert names["scale"].rule == "effective_dimension"


def test_reference_posteriors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("howto/references.md")["grid"].var.shape == (441, 1)
    assert (tmp_path / "xor.nc").stat().st_size > 0
