"""Packages of the extra `isounc[llm]`, imported only when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(name: str) -> ModuleType:
    """A package of the extra.

    Raises
    ------
    ImportError
        The package is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise ImportError(
            f"loading a language model needs the package {error.name}: pip install isounc[llm]"
        ) from error
