"""The command `isounc guard fit|check|report`: from a table of scores to a certificate, and back.

    isounc guard fit answers.csv --score entropy --target-risk 0.1 --out guard.json
    isounc guard check guard.json new.csv
    isounc guard report guard.json answers.csv --out report

A table is a CSV file with a header, or a Parquet file: a row for each answer, a column with its score
and one that says whether it is right (true, false, 1 or 0).

fit finds the threshold that accepts most and keeps the promise: among accepted answers at most
--target-risk are wrong, with probability --confidence over samples such as this one. It prints the
certificate and writes it; that no threshold keeps the promise is an answer, with exit status 1.

check counts what the guard does with labelled answers that it was not fitted to, in the order of the
table, and looks for an alarm of drift. Its exit status is 1 where the share of wrong answers is above
the target beyond doubt, or an alarm was raised.

report writes one page with the certificate, the risk-coverage curve and wrong answers by score.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isounc import untrusted
from isounc.checks import check_path
from isounc.guard.certificate import LEVEL, METHODS, Share, digest
from isounc.guard.drift import RiskMonitor
from isounc.guard.guard import Guard
from isounc.guard.sample import Sample, checked_sample

MOST_BYTES = 2**28
"""Largest table that is read."""
_TRUTH = {"1": 1.0, "0": 0.0, "true": 1.0, "false": 0.0, "1.0": 1.0, "0.0": 0.0}


def run(arguments: Sequence[str]) -> bool:
    """Run an action; whether all is as it should be."""
    options = _parser().parse_args(arguments)
    return {"fit": _fit, "check": _check, "report": _report}[options.action](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="isounc guard", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    fit = actions.add_parser("fit", help="find a threshold, and write its certificate")
    check = actions.add_parser("check", help="hold a guard against other labelled answers")
    report = actions.add_parser("report", help="write a page about a guard and its sample")
    for action in (check, report):
        action.add_argument("guard", metavar="GUARD", help="file of a certificate")
    for action in (fit, check, report):
        action.add_argument("table", metavar="TABLE", help="CSV or Parquet file, a row an answer")
        default = "score" if action is fit else "that of the guard, or score"
        action.add_argument("--score", help=f"column with the score (default: {default})")
        action.add_argument(
            "--correct",
            default="correct",
            help="column that says which answers are right (default: correct)",
        )
    fit.add_argument(
        "--out", default="guard.json", help="file of the certificate (default: %(default)s)"
    )
    fit.add_argument(
        "--target-risk",
        type=float,
        default=0.1,
        help="largest share of wrong answers among the accepted ones (default: %(default)s)",
    )
    fit.add_argument(
        "--confidence",
        type=float,
        default=0.9,
        help="probability of keeping that promise (default: %(default)s)",
    )
    fit.add_argument(
        "--target-false-alarm",
        type=float,
        help="also promise: largest share of the right answers that is not accepted",
    )
    fit.add_argument(
        "--higher-is-certain", action="store_true", help="the score is high where the model is sure"
    )
    fit.add_argument(
        "--method",
        choices=METHODS,
        help="test of the thresholds (default: fixed_sequence, or holm with --target-false-alarm); "
        "docs/guarantee.md says what they assume",
    )
    fit.add_argument(
        "--model",
        default="",
        help="name or hash of the model, for the certificate; isounc serve refuses a guard of another",
    )
    report.add_argument(
        "--out", default="guard-report", help="folder of the page (default: %(default)s)"
    )
    return parser


def _fit(options: argparse.Namespace) -> bool:
    name = options.score or "score"
    scores, correct = read_table(options.table, name, options.correct)
    guard = Guard.fit(
        scores, correct, target_risk=options.target_risk, confidence=options.confidence,
        target_false_alarm=options.target_false_alarm, method=options.method, score=name,
        higher_is_uncertain=not options.higher_is_certain, model=options.model,
    )  # fmt: skip
    guard.save(options.out)
    print(f"{guard.certificate}\nCertificate: {options.out}")
    if guard.threshold is None and _points_the_other_way(scores, correct, options):
        sure, act = ("low", "leave out") if options.higher_is_certain else ("high", "give")
        print(
            "Right answers have the less certain scores on average. Is the score "
            f"{sure} where the model is sure? Then {act} --higher-is-certain."
        )
    return guard.threshold is not None


def _points_the_other_way(
    scores: np.ndarray, correct: np.ndarray, options: argparse.Namespace
) -> bool:
    right = correct == 1
    if right.all() or not right.any():
        return False
    gap = scores[right].mean() - scores[~right].mean()
    return bool(gap < 0 if options.higher_is_certain else gap > 0)


def _check(options: argparse.Namespace) -> bool:
    guard, sample = _guard_and_sample(options)
    certificate = guard.certificate
    if _digest(guard, sample) == certificate.data:
        raise ValueError(
            f"TABLE must hold other answers than the guard was fitted to, got {options.table}, the "
            "calibration sample itself"
        )
    accepted = guard.accept(_scores(guard, sample))
    wrong = int((accepted & ~sample.correct).sum())
    risk = Share.of_counts(wrong, int(accepted.sum()))
    print(
        f"{len(accepted)} answers: {Share.of_counts(int((~sample.correct).sum()), len(accepted))} wrong."
    )
    print(
        f"Accepted: {Share.of_counts(int(accepted.sum()), len(accepted))}, of these wrong {risk}."
    )
    print(f"The guard promises at most {certificate.target_risk:g}. Intervals are {LEVEL:.0%}.")
    broken, since = risk.low > certificate.target_risk, None
    if guard.threshold is not None:
        since = RiskMonitor(guard).update(_scores(guard, sample), sample.correct).alarm_since
    if broken:
        print("More answers are wrong than promised, beyond doubt: fit the guard anew.")
    if since is not None:
        print(f"An alarm of drift was raised at answer {since + 1}, in the order of the table.")
    if not broken and since is None:
        above = risk.value is not None and risk.value > certificate.target_risk
        print(
            "More of the accepted answers are wrong than promised, but the interval of their share "
            "includes the promise: chance may explain it."
            if above
            else "Nothing speaks against the promise."
        )
    return not broken and since is None


def _report(options: argparse.Namespace) -> bool:
    from isounc.guard.report import write_report

    guard, sample = _guard_and_sample(options)
    own = _digest(guard, sample) == guard.certificate.data
    print(f"Report: {write_report(guard, sample, Path(options.out), is_own=own)}")
    return True


def _guard_and_sample(options: argparse.Namespace) -> tuple[Guard, Sample]:
    guard = Guard.load(options.guard)
    name = options.score or guard.certificate.score or "score"
    scores, correct = read_table(options.table, name, options.correct)
    return guard, checked_sample(scores, correct, guard.certificate.higher_is_uncertain)


def _scores(guard: Guard, sample: Sample) -> np.ndarray:
    return -sample.certainty if guard.certificate.higher_is_uncertain else sample.certainty


def _digest(guard: Guard, sample: Sample) -> str:
    return digest(_scores(guard, sample), sample.correct)


def read_table(path: str, score: str, correct: str) -> tuple[np.ndarray, np.ndarray]:
    """The two columns of a table, as numbers.

    Raises
    ------
    ValueError
        The file is no table, lacks a column, or a cell is no number or no truth value.
    ImportError
        A Parquet file is given and no package reads it.
    OSError
        The file is absent or may not be read.
    """
    file = check_path("TABLE", path)
    what = f"TABLE {file.name}"
    if file.suffix.lower() in (".parquet", ".pq"):
        columns = _parquet_columns(file)
    else:
        header, rows = untrusted.parse_csv(untrusted.read_bytes(file, most=MOST_BYTES), what)
        columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    for option, name in (("--score", score), ("--correct", correct)):
        if name not in columns:
            raise ValueError(
                f"{what} must have a column {name}, got {', '.join(columns)}; {option} names another"
            )
    return (
        np.array([_number(v, what, score, i) for i, v in enumerate(columns[score])]),
        np.array([_truth(v, what, correct, i) for i, v in enumerate(columns[correct])]),
    )


def _parquet_columns(file: Path) -> dict[str, list]:
    import pandas

    with untrusted.open_regular(file) as stream:
        try:
            frame = pandas.read_parquet(stream)
        except ImportError as error:
            raise ImportError(
                "reading Parquet needs the package pyarrow: pip install pyarrow"
            ) from error
        except Exception as error:  # of the reader's own kinds
            raise ValueError(f"TABLE {file.name} must be a Parquet file: {error}") from error
    return {str(name): frame[name].tolist() for name in frame.columns}


def _number(value: Any, what: str, column: str, row: int) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{column} of {what} must be numbers, got {value!r:.60} in row {row + 1} below the header"
        ) from None


def _truth(value: object, what: str, column: str, row: int) -> float:
    known = _TRUTH.get(str(value).strip().lower())
    if known is None:
        raise ValueError(
            f"{column} of {what} must be true, false, 1 or 0, got {value!r:.60} in row {row + 1} "
            "below the header"
        )
    return known
