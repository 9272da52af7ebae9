"""Names of a package that are imported when they are first used.

A package with them costs what is used of it: who reads a table does not wait for JAX, and who asks a
language model does not wait for Flax.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def importer(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """A package's `__getattr__`, for its public names and its modules.

    Parameters
    ----------
    package
        Full name of the package.
    homes
        Names by the module that has them.

    Returns
    -------
    Callable
        It raises an AttributeError for what is neither, as a module does.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name in home:
            value = getattr(importlib.import_module(home[name]), name)
            setattr(sys.modules[package], name, value)
            return value
        if not name.startswith("_"):
            try:
                return importlib.import_module(f"{package}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{package}.{name}":
                    raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
