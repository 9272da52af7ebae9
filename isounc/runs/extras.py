"""Packages of isounc's extras, imported only when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType


def imported(package: str, *, extra: str, what: str) -> ModuleType:
    """Import a package of an extra.

    Parameters
    ----------
    what
        What needs it, in words.

    Raises
    ------
    ImportError
        If it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{what} needs the package {error.name or package}: pip install 'isounc[{extra}]'"
        ) from error
