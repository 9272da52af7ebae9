"""Normal forms, first answers and shared words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isounc.llm.answers.text import contains_words, first_answer, normalise, token_f1


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
