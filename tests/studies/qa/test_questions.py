"""Questions: planted traps, counts in the published files, judging by hand, prompts that say what they are."""

from __future__ import annotations

import csv
import json
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isounc.checks import check_name
from isounc.llm.answers import judging, prompts
from isounc.llm.answers.text import contains_words, first_answer, normalise, token_f1
from isounc.studies.qa.files import ORIGINS, read_table
from isounc.studies.qa.questions import (
    BENCHMARKS,
    Question,
    load_questions,
    question_id,
    shown_alias,
    why_not_false,
)
from isounc.studies.qa.selection import make_statements, select


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
        f'{{"question": {json.dumps(q)}, "mc1_targets": {targets(one)}, "mc2_targets": {targets(two)}}}'
        for q, one, two in rows
    ]
    path = tmp_path / "truthfulqa_mc.json"
    path.write_text("[" + ",\n".join(items) + "]", encoding="utf-8")
    return path


# Text


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("The  Beatles.", "beatles"),
        ("F.L.A.", "fla"),
        ("São_Paulo", "sao paulo"),
        ("İsrail", "israil"),
        ("\u2018Ziggy\u2019\u2014Stardust", "ziggystardust"),
        ("a\tb\nc", "b c"),
        ("A", "a"),
        ("The The", "the the"),
        ("A+", "a+"),
        ("$100", "$100"),
        ("Ⓐ", "a"),
        ("--- !", ""),
        ("", ""),
        ("Theatre", "theatre"),
    ],
)
def test_normal_form(text, form):
    assert normalise(text) == form


@settings(max_examples=50)
@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_short_cut_for_ascii_changes_nothing(text):
    # A letter outside ASCII makes the general rule run.
    assert normalise(text + " é").removesuffix("e").strip() in (
        normalise(text),
        _without_articles(text),
    )
    assert normalise(normalise(text)) == normalise(text)


def _without_articles(text):
    """With another word in the text, one of nothing but articles loses them."""
    return "" if set(normalise(text).split()) <= {"a", "an", "the"} else normalise(text)


@pytest.mark.parametrize(
    ("generated", "answer"),
    [
        (" Paris\nQ: Where is Rome?", "Paris"),
        ("\n\n Answer: Paris.", "Paris."),
        ("A: 1066 Question: next", "1066"),
        ("  \n", ""),
        ("A Tale of Two Cities", "A Tale of Two Cities"),
    ],
)
def test_first_answer(generated, answer):
    assert first_answer(generated) == answer


def test_token_f1_counts_repeated_words():
    # 2 in common (sun once, shines once) of 3 and 3.
    assert token_f1("sun sun shines", "the sun always shines") == pytest.approx(2 * 2 / 6)
    assert token_f1("", "sun") == token_f1("...", "") == 0
    assert contains_words("river clyde", "clyde")
    assert not contains_words("clydesdale", "clyde")
    assert not contains_words("clyde", "")


# Files that cannot be used


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, "triviaqa.csv, or 'hub'.*mandarjoshi90"),
        ("empty.csv", b"", "has no rows"),
        ("header.csv", b"question,answer,false_answer\n", "has no rows"),
        ("columns.csv", b"Question,Answer\nwho,me\n", "row 0 of .*has no question, answer"),
        (
            "short.csv",
            b"question,answer,false_answer\nwho,me,you\nwhy\n",
            "row 1 of .*has no answer",
        ),
        ("latin.csv", "question,answer\nwho,caf\xe9\n".encode("latin-1"), "byte 0xe9 at 23"),
        ("no alias.csv", b"question,answer\nwho,--\n", "all rows were dropped"),
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
        ("{not json", "is not JSON"),
        ('{"question": "who"}', "must be a JSON list"),
        ('[{"question": "who"}]', "has no mc1_targets, mc2_targets"),
        (
            '[{"question": "who", "mc1_targets": {"me": "yes"}, "mc2_targets": {}}]',
            "each choice to 0 or 1",
        ),
        (
            '[{"question": 7, "mc1_targets": {"me": 1}, "mc2_targets": {"me": 1}}]',
            "question must be text",
        ),
        ("[]", "has no rows"),
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


# Planted traps


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
    path = write_csv(tmp_path / "nq.csv", ["question", "answer"], [["who", "Ann;Anna"], ["why", "so"]],
                     encoding="utf-8-sig")  # fmt: skip
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
    # The splitter leaves one empty piece at the end of "Unknown; ", two after "No; Unknown", two in " ; ".
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
    with pytest.raises(ValueError, match=r"row 0 of OamPatel/iti_trivia_qa_val has no answer"):
        load_questions("triviaqa", "hub")

    def offline(*names, split):
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=offline))
    with pytest.raises(ValueError, match=r"no network.*triviaqa\.csv, to be had from"):
        load_questions("triviaqa", "hub")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"package datasets.*truthfulqa\.csv.*sylinrl/TruthfulQA"):
        load_questions("truthfulqa", "hub")


# Selection


def many_questions(n):
    return tuple(
        Question(question_id("triviaqa", f"question {i}"), "triviaqa", f"question {i}", best=f"{i}",
                 aliases=(f"{i}",), incorrect=(f"not {i}", f"never {i}"))
        for i in range(n)
    )  # fmt: skip


def test_selections_are_nested_and_examples_disjoint():
    questions = many_questions(60)
    small, large = (select(questions, n, num_examples=5, seed=1) for n in (10, 55))
    assert large.evaluated[:10] == small.evaluated
    assert large.examples == small.examples and len(small.examples) == 5
    assert not set(large.evaluated) & set(large.examples)
    assert select(questions[::-1], 10, num_examples=5, seed=1) == small
    assert select(questions, 10, seed=2).evaluated != small.evaluated
    assert select(questions, 60).examples == ()
    # Without the question in third place the others keep their order.
    fewer = tuple(q for q in questions if q != small.evaluated[2])
    assert select(fewer, 9, seed=1).evaluated == small.evaluated[:2] + small.evaluated[3:]
    with pytest.raises(ValueError, match=r"at most 60.*got 56 \+ 5"):
        select(questions, 56, num_examples=5)


def test_statements_are_balanced_and_seeded():
    questions = many_questions(40)
    made = make_statements(questions, seed=0)
    assert [s.label for s in made.statements] == [1, 0] * 40
    assert all(s.answer == s.question.split()[1] for s in made.statements if s.label)
    assert {s.answer.split()[0] for s in made.statements if not s.label} == {"not", "never"}
    assert made == make_statements(questions, seed=0)
    assert made.statements != make_statements(questions, seed=1).statements
    assert make_statements(questions[5:6]).statements == made.statements[10:12]
    assert len({s.id for s in made.statements}) == 80


# Judging


def test_exact_match():
    aliases = ["The Beatles", "Fab Four", "--"]
    right = judging.exact_match("beatles!", aliases)
    assert (right.correct, right.matched, right.proxy, right.score) == (
        True,
        "The Beatles",
        False,
        1,
    )
    longer = judging.exact_match("It was the Beatles", aliases)
    assert (longer.correct, longer.matched) == (False, "")
    assert longer.score == pytest.approx(2 / 4)
    assert not judging.exact_match("", aliases).correct
    assert not judging.exact_match("four", ["4"]).correct
    with pytest.raises(ValueError, match="aliases must hold an answer"):
        judging.exact_match("x", ["--"])


def test_reference_overlap_by_hand():
    correct, incorrect = ["Nothing happens"], ["You get sick", "You die"]
    judged = judging.reference_overlap("nothing happens to you", correct, incorrect)
    # 2 * 2 / (4 + 2) against 2 * 1 / (4 + 2) for "You die".
    assert judged.score == pytest.approx(4 / 6 - 2 / 6)
    assert (judged.correct, judged.proxy, judged.matched) == (True, True, "Nothing happens")
    assert (
        judging.reference_overlap("You get very sick", correct, incorrect).matched == "You get sick"
    )
    tie = judging.reference_overlap("happens sick", ["it happens"], ["sick it"])
    assert (tie.score, tie.correct) == (0, False)
    for nothing in ("", "zebra"):
        found = judging.reference_overlap(nothing, correct, incorrect)
        assert (found.correct, found.matched) == (False, "")
    assert judging.reference_overlap("I have no comment.", correct, incorrect).correct
    assert (
        judging.reference_overlap("I have no comment", ["I  have no comment"], ["x"]).matched
        == "I  have no comment"
    )
    with pytest.raises(ValueError, match="incorrect must hold"):
        judging.reference_overlap("x", correct, [])


def test_mc1_and_mc2_by_hand():
    labels = [0, 1, 0]
    assert judging.mc1([-3.0, -1.0, -2.0], labels) == (True, "mc1", False, 1.0, "")
    assert judging.mc1([-1.0, -1.0, -2.0], labels)[0] is False
    assert judging.mc1([-np.inf] * 3, labels)[0] is False
    probabilities = np.array([0.1, 0.2, 0.3])
    found = judging.mc2(np.log(probabilities) - 2000, [1, 1, 0])
    assert found.score == pytest.approx(0.5) and found.rule == "mc2"
    assert judging.mc2(np.log([0.1, 0.21, 0.3]), [1, 1, 0]).correct
    assert not judging.mc2([0.0, 0.0], [1, 0]).correct
    for call, message in [
        (lambda: judging.mc1([1, 2, 3], [1, 1, 0]), "exactly one"),
        (lambda: judging.mc1([1, np.nan], [1, 0]), "below infinity"),
        (lambda: judging.mc1([1, 2], [1, 0, 0]), "shape"),
        (lambda: judging.mc2([1, 2], [1, 1]), "with a 0 among them"),
        (lambda: judging.mc2([1, 2], [0, 0]), "true choice"),
        (lambda: judging.mc2([-np.inf] * 2, [0, 1]), "all are -inf"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_generations_are_judged_as_the_benchmark_does():
    short = Question("t-1", "triviaqa", "Who?", aliases=("Ann",))
    assert judging.judge_generated(short, " Ann.\nQ: Where?\nA: Rome").correct
    long = Question(
        "t-2", "truthfulqa", "Why?", correct=("Because it rains",), incorrect=("Magic",)
    )
    assert judging.judge_generated(long, " Because of rains\nQ:").proxy
    with pytest.raises(ValueError, match="mc1 or mc2"):
        judging.judge_generated(
            Question("t-3", "truthfulqa_mc1", "?", choices=("a",), labels=(1,)), "a"
        )


# Prompts


def test_prompts_hold_what_they_are_given():
    prompt = prompts.short_answer("Who\nwas it?", [("Where?", "Rome")])
    assert prompt.text.endswith("Q: Where?\nA: Rome\n\nQ: Who was it?\nA:")
    assert prompt.version == "short_answer-1-1shot" and prompt.options == ()
    assert prompts.truthful("Why?").version == "truthful-1-5shot"
    assert prompts.truthful("Why?", ()).text.count("Q:") == 1

    plain, ideas = (
        prompts.p_true("Who?", "Ann"),
        prompts.p_true("Who?", "Ann", ["Bob", " ", "Carl"]),
    )
    assert plain.options == ideas.options == (" A", " B")
    assert plain.version != ideas.version
    lines = ideas.text.splitlines()
    assert [line for line in lines if line not in plain.text] == [
        "Some other answers that came up: Bob", "Some other answers that came up: Carl",
    ]  # fmt: skip
    assert not any(p.text != p.text.rstrip() for p in (prompt, plain, ideas))
    with pytest.raises(ValueError, match="hold text"):
        prompts.p_true("Who?", " ")


@pytest.mark.parametrize(
    ("generated", "value"),
    [
        (" 90%", 0.9), ("about 85 percent, as", 0.85), ("\n\n70", 0.7), ("0.9", 0.9), (".25", 0.25),
        ("0.5%", 0.005), ("100", 1.0), ("0%", 0.0), ("150%", None), ("-5", None), ("high\n90", None), ("", None),
    ],
)  # fmt: skip
def test_stated_confidence(generated, value):
    assert prompts.read_confidence(generated) == (None if value is None else pytest.approx(value))


# The published files


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
    # A reference answer given back is judged as what it is, unless the other list holds its words too.
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
