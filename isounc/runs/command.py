"""The command line of a study: a preset sets the defaults that the other options override."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import tyro

from isounc.doorway import end
from isounc.runs.settings import RunSettings
from isounc.runs.study import Study, run_study


def main(study: Study, arguments: Sequence[str] | None = None, *, program: str | None = None):
    """Run a study with the settings of its command line, and end the process.

    The status is 0, or 1 where the outcome is not as it should be.

    Parameters
    ----------
    arguments
        Options; None means those of the process.
    program
        Name of the program in `--help`.
    """
    end(lambda: run_study(study, settings_of(study, arguments, program=program)), kept=study.unit)


def settings_of(
    study: Study, arguments: Sequence[str] | None = None, *, program: str | None = None
) -> RunSettings:
    """Settings of a study from its command line."""
    preset = argparse.ArgumentParser(add_help=False)
    preset.add_argument("--preset")
    chosen = preset.parse_known_args(arguments)[0].preset
    default = study.presets.get(chosen, next(iter(study.presets.values())))
    default = study.defaults(default, arguments)
    return tyro.cli(
        type(default), default=default, description=study.description, args=arguments, prog=program
    )
