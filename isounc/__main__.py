"""The command `isounc`: its subcommands run the studies and read what they leave behind.

Worker processes import this module again, so that imports which only a command needs are inside.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from isounc import references
from isounc.studies import STUDIES, load

COMMANDS = {
    "report": "Write the tables, figures and page of a run anew, from its folder alone.",
    "references": "List, show, check and install reference posteriors.",
    "ask": "Ask a language model a question, and see how certain it is of the answer.",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand and end the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="isounc",
        description="isounc: one-pass uncertainty estimates against the Bayesian reference.",
        epilog="isounc COMMAND --help explains a command and its options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choices = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, line in (STUDIES | COMMANDS).items():
        choices.add_parser(name, help=line, add_help=False)
    chosen, rest = parser.parse_args(given[:1]).command, given[1:]
    if chosen in STUDIES:
        from isounc.runs import command

        command.main(load(chosen), rest, program=f"isounc {chosen}")
    {"report": _report, "references": _references, "ask": _ask}[chosen](rest)


def _report(arguments: Sequence[str]) -> None:
    from isounc.runs.command import end
    from isounc.runs.folder import RunFolder
    from isounc.runs.study import report_run

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
        name = options.study or folder.study
        if not name:
            raise ValueError(
                f"{folder.path} has an older layout and does not say which study made it; "
                "give its name as --study"
            )
        return report_run(load(name), folder)

    end(report, kept="records")


def _references(arguments: Sequence[str]) -> None:
    from isounc.runs.command import end

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
        action.add_argument("--bank", help="folder of the bank; the default comes with isounc")
    options = parser.parse_args(arguments)

    def act() -> bool:
        if options.action in ("check", "install"):
            from isounc.studies.bank.install import BANK, check_again, install

            bank = options.bank or BANK
            if options.action == "check":
                return check_again(options.names, bank)
            print(install(options.run, bank, overwrite=options.overwrite))
        elif options.action == "show":
            print(references.load(options.name, options.bank).card)
        else:
            for entry in references.list(options.bank):
                verdict = "pass" if entry.passed else "FAIL"
                print(f"{entry.name:<40}{entry.method:<14}P = {entry.num_params:<7}{verdict}")
        return True

    end(act, kept="files")


def _ask(arguments: Sequence[str]) -> None:
    from isounc.runs.command import end
    from isounc.studies.qa.ask import main as ask

    end(lambda: ask(arguments), kept="answers")


if __name__ == "__main__":
    main()
