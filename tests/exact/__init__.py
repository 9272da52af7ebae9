"""Exact references, as arrays by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


def load_exact(name: str) -> dict[str, np.ndarray]:
    """Arrays of a reference by name; `README.md` describes the files and their contents."""
    with np.load(FOLDER / name, allow_pickle=False) as archive:
        return dict(archive)
