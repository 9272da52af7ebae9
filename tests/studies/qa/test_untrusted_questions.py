"""Files of questions that anybody may have written: bounds, other forms, very many answers."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isounc.studies.qa.questions import load_questions
from tests.studies.qa.test_questions import mc_file, short_file


def test_questions_with_very_many_answers(tmp_path):
    """Linear work: each of these took minutes, or the CSV reader's own limit."""
    n = 19_000
    start = time.process_time()
    one = short_file(tmp_path, [["Who?", "; ".join(f"a{i}" for i in range(n)), "no"]])
    assert len(load_questions("triviaqa", one).questions[0].aliases) == n
    rows = short_file(tmp_path, [["Who?", f"a{i}", f"no {i}"] for i in range(n // 4)])
    assert len(load_questions("triviaqa", rows).questions[0].incorrect) == n // 4
    choices = [(f"c{i}", int(i == 0)) for i in range(n)]
    both = [*choices, *((choice, 1 - label) for choice, label in choices[2:])]
    path = mc_file(tmp_path, [("Who?", choices, both)])
    assert len(load_questions("truthfulqa_mc1", path).questions[0].choices) == n
    assert len(load_questions("truthfulqa_mc2", path).questions[0].choices) == 2
    assert time.process_time() - start < 10


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name, kind in [("pipe.csv", "a pipe"), ("zero.csv", "a device"), (".", "a folder")]:
        with pytest.raises(
            ValueError, match=rf"must be a regular file, got {kind}; get triviaqa\.csv"
        ):
            load_questions("triviaqa", tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.csv",
            b"question,answer,answer\na,b,c\n",
            "must have each column once, got 'answer' tw",
        ),
        (
            "a.csv",
            b"question,answer\nwho," + b"x" * 30_000 + b"\n",
            "at most 20000 characters, got",
        ),
        (
            "a.csv",
            b"question,answer\nwho," + b";" * 300_000 + b"\n",
            "must have at most 200000 ans",
        ),
        ("a.json", b"[" * 10**6, "must have at most 500000 lists and objects"),
        ("a.json", b"[" * 1000, "must have at most 64 lists and objects"),
        ("a.json", b'[{"question": "a", "question": "b"}]', "a name is twice in the object of 'b'"),
        ("a.json", b'[{"question": NaN}]', "NaN is no number of JSON"),
        ("a.json", b'[{"question": {"question": [1]}, "mc1_targets": {}}]', "mc1_targets|must be"),
    ],
)
def test_files_of_other_forms(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    benchmark = "triviaqa" if name.endswith("csv") else "truthfulqa_mc1"
    with pytest.raises(ValueError, match=words):
        load_questions(benchmark, tmp_path / name)


GOOD = {
    "triviaqa": b'question,answer,false_answer\nWho?,Ann; Bob,Carl\n"Where, then?",Rome,Oslo\n',
    "truthfulqa": b"Question,Best Answer,Correct Answers,Incorrect Answers\nWho?,Ann,Ann; Bo,Cy\n",
    "truthfulqa_mc1": (
        b'[{"question": "Who?", "mc1_targets": {"Ann": 1, "Bob": 0}, "mc2_targets": {}}]'
    ),
}
PIECES = [
    b"\0", b"\xff", b"\n", b",", b'"', b"[", b"{", b"1e999", b"null", b";", b'""', b"%41", b"\x80",
    b"\xc2\x93", b"7", b"}", b"]", b": ", b"question",
]  # fmt: skip


@pytest.mark.parametrize("benchmark", sorted(GOOD))
def test_any_file_gives_questions_or_an_error_that_names_it(tmp_path, benchmark):
    path = tmp_path / ("file.json" if benchmark.endswith("mc1") else "file.csv")

    @settings(max_examples=40, deadline=10_000)
    @given(st.data())
    def run(data):
        content = bytearray(GOOD[benchmark])
        for _ in range(data.draw(st.integers(1, 4))):
            at, length = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 3))
            content[at : at + length] = data.draw(st.sampled_from(PIECES))
        path.write_bytes(content)
        try:
            assert len(load_questions(benchmark, path)) > 0
        except ValueError as error:
            assert path.name in str(error)

    run()
