"""Code in the pages about a guard runs, and prints what they say that it does."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
from flax import nnx

from isounc.guard import Guard
from isounc.guard.control import Promise, fewest_accepted, quantile_thresholds

ROOT = Path(__file__).resolve().parents[2]


def blocks(page, kind):
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_how_many_answers_it_takes():
    (code,), (table,) = (
        blocks(ROOT / "docs" / "guarantee.md", kind) for kind in ("python", "text")
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert [line.rstrip() for line in printed.getvalue().splitlines()] == table.splitlines()
    # The library starts its sequence where the table says that a threshold is certified.
    for line in table.splitlines()[1:]:
        target, confidence, none, half = (float(word) for word in line.split())
        promise = Promise(target, None, confidence, "fixed_sequence")
        assert fewest_accepted(promise) == none
        certainty = np.arange(5000.0)
        assert (certainty >= quantile_thresholds(certainty, promise)[0]).sum() == half


def test_the_readme_from_a_model_to_a_certificate(tmp_path, monkeypatch):
    """A network that is right where |x| is large: its guard accepts these answers, and is stored."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## From a score to")[1]
    code = section.split("```python\n")[1].split("```")[0]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 12
    monkeypatch.chdir(tmp_path)
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    kernel = np.array([[3.0, -3.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    model.kernel[...], model.bias[...] = kernel, np.zeros(3, np.float32)
    X = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    truth = np.where(np.abs(X[:, 0]) < 0.2, 2, np.where(X[:, 0] > 0, 0, 1))
    names = {"model": model, "X_train": X, "X": X, "y": truth, "X_new": X}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    certificate = names["guard"].certificate
    assert str(certificate) in printed.getvalue()
    # It accepts what is right, and wrong answers up to the target: no score could accept much more.
    right = (np.abs(X[:, 0]) >= 0.2).mean()
    assert right < certificate.coverage.value <= 1 - certificate.least_abstention
    assert Guard.load(tmp_path / "guard.json") == names["guard"]
