"""The command `isounc`: its subcommands run the studies and read what they leave behind."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from isounc import references
from isounc.runs import command
from isounc.runs.folder import RunFolder
from isounc.runs.study import report_run
from isounc.studies import STUDIES, load

COMMANDS = {
    "report": "Write the tables, figures and page of a run anew, from its folder alone.",
    "references": "List the bank of reference posteriors, or show how one was made.",
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
        command.main(load(chosen), rest, program=f"isounc {chosen}")
    {"report": _report, "references": _references, "ask": _ask}[chosen](rest)


def _report(arguments: Sequence[str]) -> None:
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

    command.end(report, kept="records")


def _references(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="isounc references", description=COMMANDS["references"])
    parser.add_argument("name", nargs="?", help="show how this reference was made")
    options = parser.parse_args(arguments)

    def show() -> None:
        if options.name:
            print(references.load(options.name).card)
            return
        for entry in references.list():
            verdict = "pass" if entry.passed else "FAIL"
            print(f"{entry.name:<40}{entry.method:<14}P = {entry.num_params:<7}{verdict}")

    command.end(show, kept="files")


def _ask(arguments: Sequence[str]) -> None:
    from isounc.studies.qa.ask import main as ask

    command.end(lambda: ask(arguments), kept="answers")


if __name__ == "__main__":
    main()
