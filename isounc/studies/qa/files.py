"""The benchmarks' files as their authors publish them: read, checked, and mended.

The results are rows of plain text, one a question, with lists of answers already split and faulty
encodings mended. `isounc.studies.qa.questions` makes questions of them.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from isounc.checks import check_choice
from isounc.fields import Unreadable
from isounc.untrusted import MEGABYTE, parse_csv, parse_json, read_bytes

_FILE_SIZE = 256 * MEGABYTE
"""Bytes of the largest file of questions; the published ones have a twentieth of these."""
_MOST_ANSWERS, _LONGEST = 200_000, 20_000
"""Answers that a question may have, and characters of a text."""


class Origin(NamedTuple):
    """The source of a benchmark's rows."""

    file: str
    """Usual name of the file."""
    address: str
    """Where people can get the file."""
    hub: tuple[str, str | None]
    """Data set and configuration on the Hugging Face hub; the split is always validation."""
    columns: tuple[str, ...]
    """Columns (CSV) or keys (JSON) that every row must have."""
    lists: tuple[str, ...]
    """The columns that hold several answers."""


_NATURAL = "https://github.com/google-research-datasets/natural-questions"
_HONEST = (
    "from the data of https://github.com/likenneth/honest_llama (question, answer, false_answer), "
    "saved as CSV"
)
ORIGINS = {
    "truthfulqa_mc": Origin(
        "truthfulqa_mc.json",
        "https://github.com/sylinrl/TruthfulQA, data/mc_task.json",
        ("truthfulqa/truthful_qa", "multiple_choice"),
        ("question", "mc1_targets", "mc2_targets"),
        (),
    ),
    "truthfulqa": Origin(
        "truthfulqa.csv",
        "https://github.com/sylinrl/TruthfulQA, TruthfulQA.csv",
        ("truthfulqa/truthful_qa", "generation"),
        ("Question", "Best Answer", "Correct Answers", "Incorrect Answers"),
        ("Correct Answers", "Incorrect Answers"),
    ),
    "triviaqa": Origin(
        "triviaqa.csv",
        f"TriviaQA (https://github.com/mandarjoshi90/triviaqa) with false answers, {_HONEST}",
        ("OamPatel/iti_trivia_qa_val", None),
        ("question", "answer"),
        ("answer",),
    ),
    "natural_questions": Origin(
        "natural_questions.csv",
        f"Natural Questions ({_NATURAL}) with false answers, {_HONEST}",
        ("OamPatel/iti_nq_open_val", None),
        ("question", "answer"),
        ("answer",),
    ),
}
"""The files that can be read. Without `false_answer` in a short-answer file no pairs are made."""

_C1 = {i: bytes([i]).decode("cp1252", errors="ignore") or " " for i in range(0x80, 0xA0)}
_PERCENT = re.compile(r"%[0-9A-F]{2}(?![0-9])")


class Table(NamedTuple):
    """Rows of a file."""

    rows: list[dict[str, Any]]
    """One mapping a question: text, lists of text in `Origin.lists`, lists of (choice, label) in
    `*_targets`."""
    file: str
    """Name of the file without its folder, or of the data set on the hub."""
    sha256: str
    """Digest of the bytes that were read; empty for the hub, which has revisions of its own."""
    mended: dict[str, int]
    """Number of questions and answers whose text was mended, by fault."""


def read_table(file: str, source: str | Path) -> Table:
    """Read one of the files of `ORIGINS`.

    Parameters
    ----------
    file
        Key of `ORIGINS`.
    source
        Path of the file, or `hub`: the Hugging Face hub, which needs a network and the package
        `datasets`.

    Raises
    ------
    ValueError
        The file does not exist, is no regular file, is not UTF-8, is not JSON or CSV or not of the
        expected form, lacks a column, or has no rows.
    """
    check_choice("file", file, ORIGINS)
    origin = ORIGINS[file]
    if source == "hub":
        return _from_hub(file, origin)
    path = Path(source)
    try:
        data = read_bytes(path, most=_FILE_SIZE)
        raw = _json_rows(data, path, origin) if path.suffix == ".json" else _csv_rows(data, path)
    except OSError as error:
        raise Unreadable(
            f"source must be the file {origin.file}, or 'hub', got {path} ({error.strerror}); get "
            f"the file from: {origin.address}"
        ) from None
    except Unreadable as error:
        raise Unreadable(f"{error}; get {origin.file} from: {origin.address}") from None
    if not raw:
        raise ValueError(
            f"source must hold questions, got no rows in {path}; get it from: {origin.address}"
        )
    _check_columns(raw, str(path), origin)
    _split_lists(raw, origin.lists, str(path))
    _check_sizes(raw, str(path))
    mended: Counter[str] = Counter()
    rows = [_mend(row, mended) for row in raw]
    return Table(rows, path.name, hashlib.sha256(data).hexdigest(), dict(mended))


def _check_columns(rows: Sequence[Mapping[str, Any]], file: str, origin: Origin) -> None:
    text = origin.columns[0]
    for number, row in enumerate(rows):
        missing = [column for column in origin.columns if row.get(column) is None]
        if missing:
            raise Unreadable(
                f"source must have {', '.join(origin.columns)} in every row, got no "
                f"{', '.join(missing)} but {', '.join(map(str, row))} in row {number} of {file}; "
                f"{origin.file} is available from {origin.address}"
            )
        if not isinstance(row[text], str):
            raise Unreadable(
                f"{text} must be text, got {row[text]!r:.200} in row {number} of {file}"
            )


def _check_sizes(rows: Sequence[Mapping[str, Any]], file: str) -> None:
    for number, row in enumerate(rows):
        for key, value in row.items():
            answers = value if isinstance(value, list) else [value]
            texts = [a[0] if isinstance(a, tuple) else a for a in answers]
            longest = max((len(t) for t in texts if isinstance(t, str)), default=0)
            if len(answers) > _MOST_ANSWERS or longest > _LONGEST:
                raise Unreadable(
                    f"{key} must have at most {_MOST_ANSWERS} answers of at most {_LONGEST} "
                    f"characters, got {len(answers)} of up to {longest} in row {number} of {file}"
                )


def _csv_rows(data: bytes, path: Path) -> list[dict[str, Any]]:
    header, rows = parse_csv(data, str(path))
    return [dict(zip(header, row, strict=True)) for row in rows]


def _json_rows(data: bytes, path: Path, origin: Origin) -> list[dict[str, Any]]:
    wanted = f"source must be a JSON list of objects with {', '.join(origin.columns)}"

    def pairs(items: list[tuple[str, Any]]) -> Any:
        # A dict would let a repeated choice overwrite the first, and its label with it.
        row = dict(items)
        if "question" not in row:
            return items
        if len(row) < len(items):
            raise ValueError(f"a name is twice in the object of {row['question']!r:.80}")
        return row

    raw = parse_json(data, str(path), pairs=pairs)
    if not isinstance(raw, list) or not all(isinstance(row, dict) for row in raw):
        raise Unreadable(f"{wanted}, got something else in {path}; get it from: {origin.address}")
    for number, row in enumerate(raw):
        for key in ("mc1_targets", "mc2_targets"):
            if key in row and not _are_targets(row[key]):
                raise Unreadable(
                    f"{key} must map each choice to 0 or 1, got {row[key]!r:.200} in row {number} "
                    f"of {path}"
                )
    return raw


def _are_targets(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, tuple) and isinstance(item[0], str) and item[1] in (0, 1) for item in value
    )


def _from_hub(file: str, origin: Origin) -> Table:
    try:
        # By name, so that type checkers do not ask for an optional package.
        load_dataset = importlib.import_module("datasets").load_dataset
    except ImportError:
        raise ValueError(
            "source 'hub' needs the package datasets, which is not installed; install it, or give "
            f"the path of {origin.file}, to be had from: {origin.address}"
        ) from None
    name, configuration = origin.hub
    try:
        loaded = load_dataset(name, configuration, split="validation")
    except Exception as error:  # the package raises what its own dependencies do
        raise ValueError(
            f"source 'hub' cannot give {name} ({error}); give the path of {origin.file}, to be had "
            f"from: {origin.address}"
        ) from error
    rows = []
    for raw in loaded:
        row = dict(raw)
        for key in ("mc1_targets", "mc2_targets"):
            if key in row:
                row[key] = list(zip(row[key]["choices"], row[key]["labels"], strict=True))
        if isinstance(answer := row.get("answer"), dict):
            # TriviaQA's own form: the answer to show, and all its aliases.
            shown = [answer["value"]] if answer.get("value") else []
            row["answer"] = [*shown, *(a for a in answer["aliases"] if a not in shown)]
        if file == "truthfulqa":
            row = {key.replace("_", " ").title(): value for key, value in row.items()}
        rows.append(row)
    _check_columns(rows, name, origin)
    mended: Counter[str] = Counter()
    return Table([_mend(row, mended) for row in rows], name, "", dict(mended))


def _mend(row: Mapping[str, Any], mended: Counter[str]) -> dict[str, Any]:
    """A row with every text mended, and counted."""

    def mend(value: Any) -> Any:
        if isinstance(value, tuple):
            return mend(value[0]), int(value[1])
        if isinstance(value, list):
            return [mend(item) for item in value]
        if not isinstance(value, str):
            return value
        text = value
        if '""' in text:
            # Quoted for CSV twice over: doubled quotes are left, at times with a pair around them.
            text = re.sub(r'^"((?:[^"]|"")*)"$', r"\1", text.strip()).replace('""', '"')
            mended["doubled quotes"] += 1
        if any("\x80" <= c <= "\x9f" for c in text):
            # Windows-1252 read as Latin-1: its curly quotes and dots became control characters.
            text = text.translate(_C1)
            mended["control characters of Windows-1252"] += 1
        if _PERCENT.search(text):
            text = unquote(text)
            mended["percent-encoded"] += 1
        return text

    return {key: value if key == "Source" else mend(value) for key, value in row.items()}


def _split_lists(rows: list[dict[str, Any]], columns: tuple[str, ...], file: str) -> None:
    """Split the cells that hold several answers, in place, at ";".

    The published files write "; ", and a bare ";" is part of an answer there ("TL;DR"); a file
    without any "; " was written by somebody who separates by ";" alone.
    """
    cells = [row[column] for row in rows for column in columns]
    separator = r";(?:\s+|$)" if any("; " in cell for cell in cells) else ";"
    for number, row in enumerate(rows):
        for column in columns:
            if row[column].count(";") >= _MOST_ANSWERS:
                raise Unreadable(
                    f"{column} must have at most {_MOST_ANSWERS} answers, got "
                    f"{row[column].count(';') + 1} in row {number} of {file}"
                )
            row[column] = re.split(separator, row[column])
