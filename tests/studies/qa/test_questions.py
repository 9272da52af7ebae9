"""Questions: planted traps, and counts in the published files."""

from __future__ import annotations

import csv
import json
import sys
import types

import numpy as np
import pytest

from isounc.checks import check_name
from isounc.llm.answers import judging, prompts
from isounc.studies.qa.files import ORIGINS, read_table
from isounc.studies.qa.questions import (
    BENCHMARKS,
    load_questions,
    question_id,
    shown_alias,
    why_not_false,
)
from isounc.studies.qa.selection import make_statements


def write_csv(path, header, rows, **kwargs):
    with open(path, "w", newline="", encoding=kwargs.pop("encoding", "utf-8")) as file:
        csv.writer(file).writerows([header, *rows])
    return path


def short_file(tmp_path, rows):
    return write_csv(tmp_path / "triviaqa.csv", ["question", "answer", "false_answer"], rows)


def truthful_file(tmp_path, rows):
    header = ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers"]
    return write_csv(
        tmp_path / "truthfulqa.csv", header, [["Adversarial", "Law", *r] for r in rows]
    )


def mc_file(tmp_path, rows):
    """Written by hand: a dict could not hold a repeated choice."""

    def targets(pairs):
        return "{" + ", ".join(f"{json.dumps(c)}: {label}" for c, label in pairs) + "}"

    items = [
        f'{{"question": {json.dumps(q)}, "mc1_targets": {targets(mc1)}, '
        f'"mc2_targets": {targets(mc2)}}}'
        for q, mc1, mc2 in rows
    ]
    path = tmp_path / "truthfulqa_mc.json"
    path.write_text("[" + ",\n".join(items) + "]", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, "triviaqa.csv, or 'hub', got .*mandarjoshi90"),
        ("empty.csv", b"", "must have a header, got an empty file; get triviaqa.csv from"),
        ("header.csv", b"question,answer,false_answer\n", "got no rows"),
        ("columns.csv", b"Question,Answer\nwho,me\n", "got no question, answer but .*in row 0 of"),
        (
            "short.csv",
            b"question,answer,false_answer\nwho,me,you\nwhy\n",
            r"line 3 of .*short\.csv must have 3 cells, as the header has, got 1",
        ),
        ("latin.csv", "question,answer\nwho,caf\xe9\n".encode("latin-1"), "byte 0xe9 at 23"),
        ("no alias.csv", b"question,answer\nwho,--\n", "got none from"),
    ],
)
def test_unusable_short_answer_files(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_questions("triviaqa", path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "must be JSON, got a file that is none"),
        ('{"question": "who"}', "must be a JSON list"),
        ('[{"question": "who"}]', "got no mc1_targets, mc2_targets"),
        (
            '[{"question": "who", "mc1_targets": {"me": "yes"}, "mc2_targets": {}}]',
            "each choice to 0 or 1",
        ),
        (
            '[{"question": 7, "mc1_targets": {"me": 1}, "mc2_targets": {"me": 1}}]',
            "question must be text",
        ),
        ("[]", "got no rows"),
    ],
)
def test_unusable_json(tmp_path, content, message):
    path = tmp_path / "mc.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_questions("truthfulqa_mc1", path)


def test_unknown_benchmark_and_seed(tmp_path):
    with pytest.raises(ValueError, match=r"benchmark must be one of.*did you mean 'triviaqa'"):
        load_questions("trivaqa", tmp_path)
    with pytest.raises(ValueError, match="seed must be"):
        load_questions("triviaqa", tmp_path, seed=-1)


def test_false_answers_that_may_be_true_are_dropped(tmp_path):
    rows = [
        ["Q1?", "Paris; City of Light", "the PARIS!"],
        ["Q2?", "Clyde", "River Clyde"],
        ["Q3?", "Warren G. Harding", "Warren G"],
        ["Q4?", "Bloggs", "Dr"],
        ["Q5?", "Bloggs", "Joseph B"],
        ["Q6?", "Bloggs", "--"],
        ["Q7?", "Sweden", "Norway"],
        ["Q8?", "World War II", "World War I"],
        ["Q9?", "Malcolm Little", "Malcolm X"],
    ]
    loaded = load_questions("triviaqa", short_file(tmp_path, rows))
    assert loaded.provenance.answers_dropped == {
        "false answer equals an alias": 1,
        "false answer and an alias contain each other": 2,
        "false answer cut short": 2,
        "false answer empty after normalising": 1,
    }
    assert [q.incorrect for q in loaded.questions] == [()] * 6 + [
        ("Norway",), ("World War I",), ("Malcolm X",)
    ]  # fmt: skip
    made = make_statements(loaded.questions)
    assert made.questions_dropped == {"no false answer left": 6}
    assert [(s.answer, s.label) for s in made.statements[:2]] == [("Sweden", 1), ("Norway", 0)]
    assert why_not_false("Norway", {"sweden"}) == ""


def test_repeated_questions_are_merged(tmp_path):
    rows = [
        ["Who?", "Ann; Anna", "Bob"],
        ["Where?", "Rome", "Oslo"],
        ["who", "Hannah; Ann", "Carl"],
        ["WHO?", "Ann", "Hannah"],
        ["Who?", "Ann", "Bob"],
    ]
    loaded = load_questions("triviaqa", short_file(tmp_path, rows))
    who, where = loaded.questions
    assert who.aliases == ("Ann", "Anna", "Hannah")
    # Hannah is false in one row and accepted in another: accepted.
    assert who.incorrect == ("Bob", "Carl")
    assert loaded.provenance.rows_dropped == {"question repeated": 3}
    assert loaded.provenance.rows_read - 3 == len(loaded) == 2
    dropped = loaded.provenance.answers_dropped
    assert dropped == {"false answer equals an alias": 1, "false answer repeated": 1}
    assert where.id == question_id("triviaqa", "where") != question_id("natural_questions", "where")
    check_name("id", where.id)


def test_aliases_are_split_mended_and_cleaned(tmp_path):
    rows = [
        [
            'What is ""tl;dr""?',
            'TL;DR; Too long; ; --; """Summary"""; Tl%3Bdr; Israe;',
            "x\x91y\x92",
        ],
        ["Gone?", "...; --", "x"],
    ]
    loaded = load_questions("triviaqa", short_file(tmp_path, rows))
    (q,) = loaded.questions
    assert q.question == 'What is "tl;dr"?'
    assert q.aliases == ("TL;DR", "Too long", "Summary", "Tl;dr", "Israe")
    assert q.incorrect == ("x\u2018y\u2019",)
    assert loaded.provenance.rows_dropped == {"no alias left": 1}
    # "", "--" and what follows the last ";", and both of the second row.
    assert loaded.provenance.answers_dropped["alias empty after normalising"] == 5
    assert loaded.provenance.mended["doubled quotes"] == 2
    assert loaded.provenance.mended["control characters of Windows-1252"] == 1
    assert loaded.provenance.mended["percent-encoded"] == 1


def test_a_file_separated_by_semicolons_alone_and_without_false_answers(tmp_path):
    rows = [["who", "Ann;Anna"], ["why", "so"]]
    path = write_csv(tmp_path / "nq.csv", ["question", "answer"], rows, encoding="utf-8-sig")
    loaded = load_questions("natural_questions", path)
    assert loaded.questions[0].aliases == ("Ann", "Anna")
    with pytest.raises(ValueError, match="no false answer left"):
        make_statements(loaded.questions)


def test_the_shown_alias_does_not_depend_on_the_order():
    aliases = [
        "History of Rome",
        "ROME",
        "Rome (city)",
        "rome",
        "RomE",
        "Rome",
        "Eternal City",
        "City/Rome",
    ]
    rng = np.random.default_rng(0)
    shown = {shown_alias(list(rng.permutation(aliases))) for _ in range(20)}
    assert shown == {"Rome"}
    assert shown_alias(["42"]) == "42"


def test_truthfulqa_empty_repeated_and_contradictory_answers(tmp_path):
    rows = [
        ["Law? ", "Yes", "Yes; yes.; Unknown; ", "No; Unknown; ;"],
        ["Only false?", "x", " ; ", "No"],
        ["law", "Yes", "Yes; Sure", "No"],
    ]
    loaded = load_questions("truthfulqa", truthful_file(tmp_path, rows))
    (q,) = loaded.questions
    assert (q.question, q.best, q.correct, q.incorrect) == ("Law?", "Yes", ("Yes",), ("No",))
    assert q.category == "Law"
    assert loaded.provenance.rows_dropped == {
        "no correct answer, or no incorrect one": 1,
        "question repeated": 1,
    }
    assert loaded.provenance.answers_dropped["answer both true and false"] == 1
    assert loaded.provenance.answers_dropped["answer repeated"] == 2
    # The splitter leaves one empty piece at the end of "Unknown; ", two after "No; Unknown", and
    # two in " ; ".
    assert loaded.provenance.answers_dropped["answer empty"] == 5


def test_multiple_choice_is_shuffled_and_cleaned(tmp_path):
    many = [(f"Choice {i}.", int(i == 0)) for i in range(6)]
    rows = [(f"Question {n}?", many, [*many, ("Choice six.", 1)]) for n in range(40)]
    repeated = [("True.", 1), ("False.", 0), ("false", 0), ("Both", 1), ("Both", 0), (" ", 0)]
    rows += [
        ("Messy?", repeated, repeated),
        ("Two?", [("a", 1), ("b", 1), ("c", 0)], [("a", 1), ("b", 1), ("c", 0)]),
        ("None?", [("a", 0), ("b", 0)], [("a", 1)]),
        ("question 0", many, many),
    ]
    path = mc_file(tmp_path, rows)
    one = load_questions("truthfulqa_mc1", path, seed=3)
    assert one.provenance.rows_dropped == {
        "more than one true choice in mc1": 1,
        "no true choice": 1,
        "question repeated": 1,
    }
    # Of "Both" the second counts as repeated before both go.
    assert one.provenance.answers_dropped == {
        "answer repeated": 2,
        "answer both true and false": 1,
        "answer empty": 1,
    }
    for q in one.questions[:40]:
        assert sorted(q.choices) == sorted(choice for choice, _ in many)
        assert q.choices[q.labels.index(1)] == q.best == "Choice 0."
    assert dict(zip(one.questions[40].choices, one.questions[40].labels, strict=True)) == {
        "True.": 1, "False.": 0,
    }  # fmt: skip
    places = np.bincount([q.labels.index(1) for q in one.questions[:40]], minlength=6)
    assert (places > 0).all() and places[0] < 16, "the true choice still comes first"

    two = load_questions("truthfulqa_mc2", path, seed=3)
    assert two.provenance.rows_dropped == {"no false choice": 1, "question repeated": 1}
    assert sum(two.questions[0].labels) == 2 and two.questions[0].best == ""
    assert [c for c in two.questions[0].choices if c != "Choice six."] != [c for c, _ in many]
    # Each order depends on the seed and the question alone: not on the rows before it.
    alone = load_questions("truthfulqa_mc1", mc_file(tmp_path, rows[7:8]), seed=3).questions[0]
    assert alone == one.questions[7]
    other = load_questions("truthfulqa_mc1", mc_file(tmp_path, rows), seed=4)
    assert [q.choices for q in other.questions] != [q.choices for q in one.questions]


def test_hub_rows_become_those_of_the_files(monkeypatch):
    calls = []

    def load_dataset(name, configuration, split):
        calls.append((name, configuration, split))
        if configuration == "multiple_choice":
            targets = {"choices": ["yes", "no"], "labels": [1, 0]}
            return [{"question": "Q?", "mc1_targets": targets, "mc2_targets": targets}]
        if configuration == "generation":
            return [{"type": "x", "category": "Law", "question": "Q?", "best_answer": "yes",
                     "correct_answers": ["yes"], "incorrect_answers": ["no", ""]}]  # fmt: skip
        return [{"question": "Q?", "answer": ["TL;DR", "Short"], "false_answer": "Long"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = {benchmark: load_questions(benchmark, "hub") for benchmark in BENCHMARKS}
    assert set(found["truthfulqa_mc1"].questions[0].choices) == {"yes", "no"}
    assert found["truthfulqa"].questions[0].incorrect == ("no",)
    assert found["truthfulqa"].questions[0].category == "Law"
    assert found["triviaqa"].questions[0].aliases == ("TL;DR", "Short")
    assert found["natural_questions"].provenance.file == "OamPatel/iti_nq_open_val"
    assert {split for *_, split in calls} == {"validation"}

    def gives(rows):
        module = types.SimpleNamespace(load_dataset=lambda *names, split: rows)
        monkeypatch.setitem(sys.modules, "datasets", module)

    # TriviaQA's own form of an answer.
    whole = {
        "value": "Paris",
        "aliases": ["Paris", "City of Light"],
        "normalized_aliases": ["paris"],
    }
    gives([{"question": "Q?", "answer": whole, "false_answer": "Rome"}])
    assert load_questions("triviaqa", "hub").questions[0].aliases == ("Paris", "City of Light")
    gives([{"question": "Q?", "false_answer": "Rome"}])
    with pytest.raises(ValueError, match=r"got no answer .*in row 0 of OamPatel/iti_trivia_qa_val"):
        load_questions("triviaqa", "hub")

    def offline(*names, split):
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=offline))
    with pytest.raises(ValueError, match=r"no network.*triviaqa\.csv, to be had from"):
        load_questions("triviaqa", "hub")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"package datasets.*truthfulqa\.csv.*sylinrl/TruthfulQA"):
        load_questions("truthfulqa", "hub")


@pytest.fixture
def published(shared):
    """Questions of a benchmark by its name, from the published file."""
    return lambda benchmark: load_questions(
        benchmark, shared(f"data/{ORIGINS[BENCHMARKS[benchmark][0]].file}")
    )


def test_published_triviaqa(published):
    loaded = published("triviaqa")
    found = loaded.provenance
    assert found.rows_read == 3610 and found.rows_dropped == {"question repeated": 316}
    assert found.answers_dropped["false answer equals an alias"] == 1385
    # Pairs that are left hold nothing that exact match would accept.
    for q in loaded.questions[::10]:
        assert q.best in q.aliases
        assert not any(judging.exact_match(answer, q.aliases).correct for answer in q.incorrect)
    assert not any('""' in q.question for q in loaded.questions)
    assert len({q.id for q in loaded.questions}) == len(loaded) == 3610 - 316


def test_published_natural_questions(published):
    loaded = published("natural_questions")
    assert loaded.provenance.rows_dropped == {"no alias left": 2}
    assert loaded.provenance.answers_dropped["false answer equals an alias"] == 253
    made = make_statements(loaded.questions)
    assert len(made.statements) == 2 * (
        len(loaded) - made.questions_dropped["no false answer left"]
    )


def test_published_truthfulqa(published):
    one, two, text = map(published, ("truthfulqa_mc1", "truthfulqa_mc2", "truthfulqa"))
    assert len(one) == len(two) == len(text) == 817
    assert text.provenance.answers_dropped["answer both true and false"] == 2
    assert all(sum(q.labels) == 1 for q in one.questions)
    first = np.mean([q.labels[0] for q in one.questions])
    expected = np.mean([1 / len(q.labels) for q in one.questions])
    assert abs(first - expected) < 0.05, "the true choice comes first too often or too rarely"
    # The same questions have the same digits in all three.
    digits = [{q.id.split("-")[1] for q in loaded.questions} for loaded in (one, two, text)]
    assert digits[0] == digits[1] == digits[2]
    assert {question for question, _ in prompts.TRUTHFUL_EXAMPLES}.isdisjoint(
        q.question for q in text.questions
    )
    # A reference answer is judged as what it is, unless the other list holds its words too.
    right = [
        judging.reference_overlap(q.best, q.correct, q.incorrect).correct for q in text.questions
    ]
    wrong = [
        judging.reference_overlap(q.incorrect[0], q.correct, q.incorrect).correct
        for q in text.questions
    ]
    assert np.mean(right) > 0.99 and np.mean(wrong) < 0.01


def test_digest_is_of_the_bytes(tmp_path):
    path = short_file(tmp_path, [["Who?", "Ann", "Bob"]])
    before = read_table("triviaqa", path)
    path.write_bytes(path.read_bytes() + b"Why?,So,Not\n")
    after = read_table("triviaqa", path)
    assert len(before.sha256) == 64 and before.sha256 != after.sha256
    assert before.file == "triviaqa.csv"


@pytest.mark.parametrize("num_rows", [3, 40])
def test_false_answers_beside_few_or_many_others(tmp_path, num_rows):
    """What overlaps an alias is dropped however the aliases are looked up."""
    long = "the " + " ".join(f"w{i}" for i in range(12))
    rows = [
        ["Who?", f"River Clyde; {long}; Bob", "Clyde"],
        ["Who?", "Ann", "w3 w4 w5"],
        ["Who?", "Ann", "Captain Bob Smith"],
        *[["Who?", "Ann", f"nobody {i}"] for i in range(3, num_rows)],
        ["Who?", "Ann", "w3 w5"],
    ]
    loaded = load_questions("triviaqa", short_file(tmp_path, rows))
    assert loaded.provenance.answers_dropped == {"false answer and an alias contain each other": 3}
    assert loaded.questions[0].incorrect[-1] == "w3 w5"
    assert len(loaded.questions[0].incorrect) == num_rows - 2
