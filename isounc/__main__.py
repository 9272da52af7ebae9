"""The command `isounc`: its subcommands run the studies and read what they leave behind.

Worker processes import this module again, and importing takes time, in which a user may press
Ctrl-C: all imports are inside, behind the doorway.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isounc.runs.folder import RunFolder

COMMANDS = {
    "report": "Write the tables, figures and page of a run anew, from its folder alone.",
    "publish": "Write what of a run is small enough to commit: tables, reading, figures.",
    "references": "List, show, check and install reference posteriors.",
    "ask": "Ask a language model a question, and see how certain it is of the answer.",
    "serve": "Put a service in front of a language model: answers with their uncertainty.",
    "doctor": "Show versions, devices and cache, and check norms and sampler on this machine.",
}
GUARD_ACTIONS = ("fit", "check", "report")
"""Words after `isounc guard` that work on a table of scores instead of running the study."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand and end the process."""
    from isounc.doorway import end

    given = list(sys.argv[1:] if arguments is None else arguments)
    end(lambda: _run(given), kept="records")


def _run(given: Sequence[str]) -> None:
    from isounc import __version__
    from isounc.studies import STUDIES

    parser = argparse.ArgumentParser(
        prog="isounc",
        description="isounc: one-pass uncertainty estimates against the Bayesian reference.",
        epilog="isounc COMMAND --help explains a command and its options. isounc guard fit, check and "
        "report make, judge and show a guard from a table of scores.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"isounc {__version__}")
    choices = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, line in (STUDIES | COMMANDS).items():
        choices.add_parser(name, help=line, add_help=False)
    chosen, rest = parser.parse_args(given[:1]).command, given[1:]
    if chosen == "guard" and rest and rest[0] in GUARD_ACTIONS:
        _guard(rest)
    if chosen in STUDIES:
        _study(chosen, rest)
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "report": _report, "publish": _publish, "references": _references, "ask": _ask,
        "serve": _serve, "doctor": _doctor,
    }  # fmt: skip
    commands[chosen](rest)


def _study(name: str, arguments: Sequence[str]) -> None:
    from isounc.runs.place import check_place

    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--out", nargs="?")
    early.add_argument("--preset", nargs="?")
    options = early.parse_known_args(arguments)[0]
    # Before the imports of a study, which take seconds: nobody waits to hear of a wrong folder.
    check_place(options.out or f"runs/{name}-{options.preset or 'quick'}")

    from isounc.runs import command
    from isounc.studies import load

    command.main(load(name), arguments, program=f"isounc {name}")


def _report(arguments: Sequence[str]) -> None:
    from isounc.doorway import end
    from isounc.runs.folder import RunFolder
    from isounc.studies import STUDIES, load

    parser = argparse.ArgumentParser(prog="isounc report", description=COMMANDS["report"])
    parser.add_argument("run", metavar="RUN", help="a run folder: it has a settings.json")
    parser.add_argument(
        "--study",
        choices=STUDIES,
        help="the study that made the run, where the folder does not say (before version 0.1)",
    )
    options = parser.parse_args(arguments)

    def report() -> bool:
        folder = RunFolder.load(options.run, writable=True)
        study = load(_study_of(folder, options.study))
        from isounc.runs.study import report_run

        return report_run(study, folder)

    end(report, kept="records")


def _publish(arguments: Sequence[str]) -> None:
    from isounc.doorway import end
    from isounc.runs.folder import RunFolder
    from isounc.studies import STUDIES, load

    parser = argparse.ArgumentParser(
        prog="isounc publish",
        description=f"{COMMANDS['publish']} isounc.runs.load reads the result like the run. Large "
        "tables are compressed; reading.md says in words what the tables show.",
    )
    parser.add_argument("run", metavar="RUN", help="a finished run folder, or published results")
    parser.add_argument("out", metavar="OUT", nargs="?", help="a folder; without it, RUN itself")
    parser.add_argument(
        "--figures", nargs="*", default=["*"], metavar="PATTERN",
        help="names of the figures that are copied, such as 'scaling*'; without it, all of them",
    )  # fmt: skip
    parser.add_argument(
        "--study",
        choices=STUDIES,
        help="the study that made the run, where the folder does not say (before version 0.1)",
    )
    options = parser.parse_args(arguments)

    def publish() -> bool:
        folder = RunFolder.load(options.run)
        study = load(_study_of(folder, options.study))
        from isounc.runs import publish

        print(publish.publish(study, folder, options.out, figures=options.figures))
        return True

    end(publish, kept="files")


def _study_of(folder: RunFolder, given: str | None) -> str:
    """The name of the study that made a run."""
    name = given or folder.study
    if not name:
        raise ValueError(
            f"{folder.path} has an older layout and does not say which study made it; "
            "give its name as --study"
        )
    return name


def _references(arguments: Sequence[str]) -> None:
    from isounc.doorway import end

    parser = argparse.ArgumentParser(
        prog="isounc references",
        description="The bank of reference posteriors; isounc bank makes references.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="list the bank (also without an action)")
    show = actions.add_parser("show", help="show how a reference was made, and what it passed")
    check = actions.add_parser("check", help="make references again with another key, and compare")
    install = actions.add_parser("install", help="copy the references of a run into a bank")
    show.add_argument("name", metavar="NAME")
    check.add_argument("names", metavar="NAME", nargs="+")
    install.add_argument("run", metavar="RUN", help="a finished run folder of isounc bank")
    install.add_argument(
        "--overwrite", action="store_true", help="replace references of the same name"
    )
    for action in (parser, show, check, install):
        action.add_argument("--bank", help="folder of the bank; the default is that of isounc-bank")
    options = parser.parse_args(arguments)

    def act() -> bool:
        from isounc import references

        if options.action in ("check", "install"):
            from isounc.studies.bank.install import check_again, install

            if options.action == "check":
                return check_again(options.names, options.bank)
            print(install(options.run, options.bank, overwrite=options.overwrite))
        elif options.action == "show":
            print(references.load(options.name, options.bank).card)
        else:
            for entry in references.list(options.bank):
                verdict = "pass" if entry.passed else "FAIL"
                print(f"{entry.name:<40}{entry.method:<14}P = {entry.num_params:<7}{verdict}")
        return True

    end(act, kept="files")


def _guard(arguments: Sequence[str]) -> None:
    from isounc.doorway import end

    def act() -> bool:
        from isounc.guard.command import run

        return run(arguments)

    end(act, kept="files")


def _ask(arguments: Sequence[str]) -> None:
    from isounc.studies.qa.ask import main as ask

    ask(arguments)


def _serve(arguments: Sequence[str]) -> None:
    from isounc.serve.command import main as serve

    serve(arguments)


def _doctor(arguments: Sequence[str]) -> None:
    from isounc.doorway import end

    def examine() -> bool:
        from isounc.doctor import main as doctor

        return doctor(arguments)

    end(examine, kept="programs")


if __name__ == "__main__":
    main()
