"""Command lines of the experiments: a preset sets the defaults that the other options override."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import tyro


def settings_of_run(settings: Any, leave_out: Collection[str]) -> dict[str, Any]:
    """What a run folder keeps of the settings: all fields but those that change no number of the run."""
    return {k: v for k, v in dataclasses.asdict(settings).items() if k not in leave_out}


def command(
    presets: Mapping[str, Any], run: Callable[[Any], Any], *, description: str | None, parts: str
) -> None:
    """Read the settings, run, and end the process with one line for what the user can mend.

    Parameters
    ----------
    presets
        Settings by the name that ``--preset`` takes; the first one is the default.
    run
        Called with the settings; the process ends with status 1 where it returns False.
    description
        Shown by ``--help``.
    parts
        What a run that is interrupted keeps, e.g. "cells".
    """
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset")
    default = presets.get(first.parse_known_args()[0].preset, next(iter(presets.values())))
    try:
        settings = tyro.cli(type(default), default=default, description=description)
        sys.exit(1 if run(settings) is False else 0)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"Interrupted. Finished {parts} are kept: the same command goes on from here.")
