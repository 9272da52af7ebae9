"""The questions of TruthfulQA, TriviaQA and Natural Questions, cleaned by rules that count drops.

Four files (`isounc.studies.qa.files.ORIGINS`) give five benchmarks. The rules answer to faults that
were found in the files:

- the false answers of the short-answer files were written by a language model, and many are true,
  or cut short;
- TriviaQA repeats questions, and its aliases are page titles that point to the answer's page, in no
  order;
- in the multiple-choice file the true choices come first;
- TruthfulQA lists empty answers, and answers that are both correct and incorrect.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isounc.checks import check_choice, check_count
from isounc.llm.answers.question import Question
from isounc.llm.answers.text import contains_words, normalise
from isounc.studies.qa.files import ORIGINS, Table, read_table

ID_DIGITS = 10
"""Hexadecimal digits of a question's id."""


class Provenance(NamedTuple):
    """The source of questions, and counts of what was dropped."""

    file: str
    """File name without folder, or data set on the hub."""
    sha256: str
    """Digest of the file's bytes; empty for the hub."""
    rows_read: int
    """Rows of the file."""
    rows_dropped: dict[str, int]
    """Rows that gave no question of their own, by reason; `rows_read` less their sum is the number
    of questions."""
    answers_dropped: dict[str, int]
    """Answers, aliases and choices left out, by reason, counted over all rows."""
    mended: dict[str, int]
    """Number of questions and answers whose text was mended, by fault."""


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a benchmark."""

    benchmark: str
    """Key of `BENCHMARKS`."""
    questions: tuple[Question, ...]
    """Questions in the order of the file."""
    provenance: Provenance
    """File and counts."""
    seed: int = 0
    """Seed of the choices' order."""

    def __len__(self) -> int:
        return len(self.questions)


def load_questions(benchmark: str, source: str | Path, *, seed: int = 0) -> QuestionSet:
    """The questions of a benchmark from its file.

    Parameters
    ----------
    benchmark
        Key of `BENCHMARKS`: `truthfulqa_mc1`, `truthfulqa_mc2`, `truthfulqa`, `triviaqa`,
        `natural_questions`.
    source
        Path of the file (`isounc.studies.qa.files.ORIGINS` says where to get it), or `hub`.
    seed
        Seed of the order of choices; each question's order depends on it and on the question's id
        alone.

    Raises
    ------
    ValueError
        The benchmark is unknown, the seed is negative, or the file cannot be used (see
        `read_table`) or leaves no question.
    """
    check_choice("benchmark", benchmark, BENCHMARKS)
    check_count("seed", seed, 0)
    file, read = BENCHMARKS[benchmark]
    table = read_table(file, source)
    dropped = _Dropped(Counter(), Counter())
    questions = tuple(read(benchmark, table, dropped, seed))
    provenance = Provenance(
        table.file, table.sha256, len(table.rows),
        dict(dropped.rows), dict(dropped.answers), table.mended,
    )  # fmt: skip
    if not questions:
        raise ValueError(
            f"source must leave questions, got none from {table.file}; rows were dropped: "
            f"{dict(dropped.rows)}"
        )
    return QuestionSet(benchmark, questions, provenance, seed)


def question_id(benchmark: str, question: str) -> str:
    """Id of a question: `<benchmark>-<digits>`.

    The digits come from the normalised text of the question: they are the same in every version and
    order of the file, and in all benchmarks that ask it.
    """
    return f"{benchmark}-{hashlib.sha256(normalise(question).encode()).hexdigest()[:ID_DIGITS]}"


def generator(seed: int, name: str) -> np.random.Generator:
    """The random generator of a seed and a name, such as a question's id."""
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def shown_alias(aliases: Sequence[str]) -> str:
    """The alias to show in an example; none is canonical, and all are accepted in judging.

    The first of these preferences that tells two aliases apart decides: without brackets, slashes
    and colons, which mark titles of other pages; repeated by another alias in capitals (often the
    answer as TriviaQA's author wrote it); in neither capitals nor small letters throughout, nor
    with capitals inside a word; with words that are in most aliases; not in capitals, however
    short; the shortest; the first in the alphabet. The result does not depend on the order of the
    aliases.
    """
    words = [normalise(alias).split() for alias in aliases]
    cases = {(tuple(w), alias.isupper()) for alias, w in zip(aliases, words, strict=True)}
    holders = Counter(word for w in words for word in set(w))

    def rank(i: int) -> tuple:
        alias = aliases[i]
        odd_case = (alias.isupper() and len(alias) > 4) or alias.islower()
        odd_case = odd_case or re.search(r"[a-z][A-Z]", alias) is not None
        common = sum(holders[word] for word in words[i]) / max(len(words[i]), 1)
        marked = re.search(r"[()/:]", alias) is not None
        twice = {(tuple(words[i]), True), (tuple(words[i]), False)} <= cases
        return marked, not twice, odd_case, -common, alias.isupper(), len(alias), alias

    return aliases[min(range(len(aliases)), key=rank)]


class _Dropped(NamedTuple):
    """Counts of what was dropped so far, by reason."""

    rows: Counter[str]
    answers: Counter[str]


def _multiple_choice(
    benchmark: str, table: Table, dropped: _Dropped, seed: int
) -> Iterable[Question]:
    """Questions of the multiple-choice file: mc1 has one true choice, mc2 one or more."""
    key = f"{benchmark.removeprefix('truthfulqa_')}_targets"
    seen: set[str] = set()
    for row in table.rows:
        text = row["question"].strip()
        name = question_id(benchmark, text)
        choices = _consistent(row[key], dropped)
        num_true = sum(choices.values())
        if not normalise(text):
            dropped.rows["question empty"] += 1
        elif name in seen:
            dropped.rows["question repeated"] += 1
        elif num_true == 0 or num_true == len(choices):
            dropped.rows["no true choice" if num_true == 0 else "no false choice"] += 1
        elif key == "mc1_targets" and num_true > 1:
            dropped.rows["more than one true choice in mc1"] += 1
        else:
            seen.add(name)
            order = generator(seed, name).permutation(len(choices))
            listed = list(choices.items())
            shuffled = [listed[i] for i in order]
            true = [choice for choice, label in choices.items() if label]
            yield Question(
                name, benchmark, text,
                choices=tuple(choice for choice, _ in shuffled),
                labels=tuple(label for _, label in shuffled),
                best=true[0] if key == "mc1_targets" else "",
                category=str(row.get("category") or ""),
            )  # fmt: skip


def _consistent(targets: Iterable[tuple[str, int]], dropped: _Dropped) -> dict[str, int]:
    """Choices without empty, repeated and contradictory ones."""
    labels: dict[str, set[int]] = {}
    spelled: dict[str, str] = {}
    for choice, label in targets:
        form = " ".join(choice.casefold().split()).rstrip(".")
        if not form:
            dropped.answers["answer empty"] += 1
            continue
        if form in spelled:
            dropped.answers["answer repeated"] += 1
        spelled.setdefault(form, choice.strip())
        labels.setdefault(form, set()).add(label)
    both = {form for form, seen in labels.items() if len(seen) > 1}
    dropped.answers.update({"answer both true and false": len(both)} if both else {})
    return {spelled[form]: min(labels[form]) for form in spelled if form not in both}


def _truthfulqa(benchmark: str, table: Table, dropped: _Dropped, seed: int) -> Iterable[Question]:
    """Questions of TruthfulQA's generation file; the seed has no effect."""
    seen: set[str] = set()
    for row in table.rows:
        text = row["Question"].strip()
        name = question_id(benchmark, text)
        true, false = row["Correct Answers"], row["Incorrect Answers"]
        kept = _consistent([(a, 1) for a in true] + [(a, 0) for a in false], dropped)
        correct = tuple(answer for answer, label in kept.items() if label)
        incorrect = tuple(answer for answer, label in kept.items() if not label)
        if not normalise(text):
            dropped.rows["question empty"] += 1
        elif name in seen:
            dropped.rows["question repeated"] += 1
        elif not correct or not incorrect:
            dropped.rows["no correct answer, or no incorrect one"] += 1
        else:
            seen.add(name)
            best = row["Best Answer"].strip()
            yield Question(
                name, benchmark, text, correct=correct, incorrect=incorrect,
                best=best if best in correct else correct[0],
                category=str(row.get("Category") or ""),
            )  # fmt: skip


def _short_answers(
    benchmark: str, table: Table, dropped: _Dropped, seed: int
) -> Iterable[Question]:
    """Questions of the short-answer files; repeated ones are merged with all their answers."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in table.rows:
        if normalise(row["question"]):
            groups.setdefault(question_id(benchmark, row["question"]), []).append(row)
        else:
            dropped.rows["question empty"] += 1
    for name, rows in groups.items():
        aliases = _aliases([alias for row in rows for alias in row["answer"]], dropped)
        if not aliases:
            dropped.rows["no alias left"] += len(rows)
            continue
        if len(rows) > 1:
            dropped.rows["question repeated"] += len(rows) - 1
        forms = {normalise(alias) for alias in aliases}
        # Judged row by row, before the rows are merged, so that the counts are of rows.
        false = [row["false_answer"].strip() for row in rows if row.get("false_answer") is not None]
        kept: dict[str, None] = {}
        accepted = _Accepted(forms, many=len(false) > 8)
        for answer in false:
            repeated = "false answer repeated" if answer in kept else ""
            if why := _why_not_false(answer, accepted) or repeated:
                dropped.answers[why] += 1
            else:
                kept[answer] = None
        yield Question(
            name, benchmark, rows[0]["question"].strip(), aliases=aliases, incorrect=tuple(kept),
            best=shown_alias(aliases),
        )  # fmt: skip


def _aliases(aliases: Iterable[str], dropped: _Dropped) -> tuple[str, ...]:
    kept: dict[str, None] = {}
    for alias in aliases:
        # Quotes around the whole, a rest of quoting for CSV twice over, would be shown to a model.
        alias = re.sub(r'^"([^"]*)"$', r"\1", alias.strip())
        if normalise(alias):
            kept.setdefault(alias)
        else:
            dropped.answers["alias empty after normalising"] += 1
    return tuple(kept)


_CUT_SHORT = re.compile(
    r"(?:^|\s)(?:St|Dr|Mr|Mrs|Ms|Mt|Ft|Lt|Sgt|Capt|Col|Gen|Jr|Sr|Rev|No|vs)$|\s[A-HJ-UWYZ]$"
)
"""Ends of an answer that was cut at the full stop of an abbreviation or an initial ("Dr", "Warren
G"); I, V and X also number kings and wars and may stand."""


def why_not_false(answer: str, forms: Iterable[str]) -> str:
    """Why an answer that is given as false must not be used as false; empty if it may be.

    Parameters
    ----------
    answer
        The answer that is said to be false.
    forms
        Normal forms (`normalise`) of all accepted aliases.

    Notes
    -----
    An answer is dropped if its words contain an alias or are contained in one ("River Clyde" for
    "Clyde"; "Warren G" for "Warren G. Harding"): it is true, or half true, more often than not.
    This drops some false answers ("Apollo 11" if "11" is an alias) and finds no synonyms: a few of
    the remaining false answers will be true.
    """
    return _why_not_false(answer, _Accepted(set(forms)))


class _Accepted:
    """Normal forms of accepted aliases, to look false answers up in.

    A question may have thousands of both. With `many` of the latter, all runs of words of short
    aliases are kept, since a search through the text of all would take too long.
    """

    def __init__(self, forms: set[str], *, many: bool = False):
        self.forms = forms
        short = {form for form in forms if many and form.count(" ") < 8}
        self.runs = {run for form in short for run in _runs(form.split())}
        self.joined = "".join(f" {form} \n" for form in forms - short if form)

    def overlaps(self, form: str) -> bool:
        """Whether the words of the form follow each other in an alias, or those of one in it."""
        if form in self.runs or f" {form} " in self.joined:
            return True
        words = form.split()
        if len(words) ** 2 > len(self.forms):
            return any(contains_words(form, alias) for alias in self.forms)
        return any(run in self.forms for run in _runs(words))


def _runs(words: Sequence[str]) -> Iterator[str]:
    """All texts of words that follow each other."""
    for i in range(len(words)):
        for j in range(i + 1, len(words) + 1):
            yield " ".join(words[i:j])


def _why_not_false(answer: str, accepted: _Accepted) -> str:
    form = normalise(answer)
    if not form:
        return "false answer empty after normalising"
    if form in accepted.forms:
        return "false answer equals an alias"
    if accepted.overlaps(form):
        return "false answer and an alias contain each other"
    return "false answer cut short" if _CUT_SHORT.search(answer) else ""


_Reader = Callable[[str, Table, _Dropped, int], Iterable[Question]]
BENCHMARKS: dict[str, tuple[str, _Reader]] = {
    "truthfulqa_mc1": ("truthfulqa_mc", _multiple_choice),
    "truthfulqa_mc2": ("truthfulqa_mc", _multiple_choice),
    "truthfulqa": ("truthfulqa", _truthfulqa),
    "triviaqa": ("triviaqa", _short_answers),
    "natural_questions": ("natural_questions", _short_answers),
}
"""Benchmarks by name: the file that each is read from, and how."""
assert {file for file, _ in BENCHMARKS.values()} == set(ORIGINS)
